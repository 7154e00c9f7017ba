//! Layers over one another: what the file says, then the environment, then flags; defaults where nobody said anything.

use std::collections::BTreeMap;

use toml::{Table, Value};

use super::key::{Part, nearest, parts};
use super::kind::Kind;
use super::{Leaf, Problem, Setting, Source};
use crate::load::Environment;
use crate::program::Program;

/// A part of the configuration on its way to be a TOML table.
#[derive(Debug, Clone)]
pub(super) enum Node {
    Leaf(Leaf),
    Table(BTreeMap<String, Node>),
    Tables(Vec<Node>),
}

impl Default for Node {
    fn default() -> Self {
        Self::Table(BTreeMap::new())
    }
}

impl Node {
    pub(super) fn insert(&mut self, name: &str, child: Self) {
        if let Self::Table(children) = self {
            children.insert(name.to_owned(), child);
        }
    }

    fn child(&mut self, name: &str) -> Option<&mut Self> {
        match self {
            Self::Table(children) => Some(children.entry(name.to_owned()).or_default()),
            Self::Leaf(_) | Self::Tables(_) => None,
        }
    }

    /// Puts a leaf in place of whatever is there.
    fn set(&mut self, names: &[&str], leaf: Leaf) {
        match names {
            [] => {}
            [last] => self.insert(last, Self::Leaf(leaf)),
            [first, rest @ ..] => {
                if let Some(child) = self.child(first) {
                    child.set(rest, leaf);
                }
            }
        }
    }

    /// Puts a leaf wherever the pattern fits and nothing is.
    fn fill(&mut self, pattern: &[Part], leaf: &Leaf) {
        let ([part, rest @ ..], Self::Table(children)) = (pattern, self) else { return };
        match (part.name, part.array, rest) {
            (Some(name), false, []) => {
                children.entry(name.to_owned()).or_insert_with(|| Self::Leaf(leaf.clone()));
            }
            (Some(name), false, rest) => children.entry(name.to_owned()).or_default().fill(rest, leaf),
            (Some(name), true, rest) => {
                if let Some(Self::Tables(tables)) = children.get_mut(name) {
                    tables.iter_mut().for_each(|table| table.fill(rest, leaf));
                }
            }
            (None, _, rest) => children.values_mut().for_each(|child| child.fill(rest, leaf)),
        }
    }
}

/// Lays the environment over the tree; gives a line for each variable that looks like a mistyped setting.
pub(super) fn environment(
    tree: &mut Node,
    settings: &[Setting],
    program: Program,
    environment: &dyn Environment,
    problems: &mut Vec<Problem>,
) -> Vec<String> {
    let prefix = program.env_prefix();
    let mut known = vec![format!("{prefix}STATE_DIR"), format!("{prefix}CONFIG")];
    for (index, setting) in settings.iter().enumerate() {
        let Some(variable) = setting.variable(program) else { continue };
        if setting.kind == Kind::Secret {
            let file = format!("{variable}_FILE");
            if let Some(path) = environment.var(&file) {
                let value = Kind::secret_file(&path);
                let leaf = Leaf { value, source: Source::Environment(file.clone()), setting: index };
                tree.set(&names(setting), leaf);
            }
            known.push(file);
        }
        if let Some(text) = environment.var(&variable) {
            let items: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
            given(tree, settings, (index, setting), Source::Environment(variable.clone()), &text, &items, problems);
        }
        known.push(variable);
    }
    let mistyped =
        |name: &String| name.strip_prefix(prefix).is_some_and(|rest| !is_service_link(rest)) && !known.contains(name);
    let line = |name: String| {
        let hint = nearest(&name, known.iter().cloned());
        let hint = hint.map(|hint| format!("; did you mean {hint}?")).unwrap_or_default();
        format!("the variable {name} is no setting{hint}")
    };
    environment.all().into_keys().filter(mistyped).map(line).collect()
}

/// Lays flags over the tree.
pub(super) fn flags(
    tree: &mut Node,
    settings: &[Setting],
    flags: &[(&'static str, &'static str, Vec<String>)],
    problems: &mut Vec<Problem>,
) {
    for (flag, key, values) in flags {
        let source = Source::Flag(flag);
        match settings.iter().enumerate().find(|(_, setting)| setting.key == *key) {
            Some(setting) => given(tree, settings, setting, source, &values.join(" "), values, problems),
            None => problems.push(Problem { source, message: format!("no setting {key:?} stands behind it") }),
        }
    }
}

/// Fills in the defaults.
pub(super) fn defaults(tree: &mut Node, settings: &[Setting]) {
    for (index, setting) in settings.iter().enumerate() {
        let Some(value) = setting.default.and_then(|text| setting.kind.read(text).ok()) else { continue };
        tree.fill(&parts(setting.key), &Leaf { value, source: Source::Default, setting: index });
    }
}

/// Turns the tree into a table, and every leaf into an entry under its concrete key.
pub(super) fn settle(tree: &Node, leaves: &mut BTreeMap<String, Leaf>) -> Table {
    match value(tree, String::new(), leaves) {
        Value::Table(table) => table,
        _ => Table::new(),
    }
}

fn value(node: &Node, key: String, leaves: &mut BTreeMap<String, Leaf>) -> Value {
    match node {
        Node::Leaf(leaf) => {
            leaves.insert(key, leaf.clone());
            leaf.value.clone()
        }
        Node::Table(children) => {
            let mut table = Table::new();
            for (name, child) in children {
                let key = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
                table.insert(name.clone(), value(child, key, leaves));
            }
            Value::Table(table)
        }
        Node::Tables(tables) => {
            let each = |(index, table)| value(table, format!("{key}[{index}]"), leaves);
            Value::Array(tables.iter().enumerate().map(each).collect())
        }
    }
}

/// Takes what a flag or variable gives for one setting.
fn given(
    tree: &mut Node,
    settings: &[Setting],
    (index, setting): (usize, &Setting),
    source: Source,
    text: &str,
    items: &[String],
    problems: &mut Vec<Problem>,
) {
    if let Kind::Entries { name, value } = setting.kind {
        for item in items {
            if let Err(message) = add_entry(tree, settings, setting, (name, value), item, &source) {
                problems.push(Problem { source: source.clone(), message });
            }
        }
        return;
    }
    match setting.kind.read(text) {
        Ok(value) => tree.set(&names(setting), Leaf { value, source, setting: index }),
        Err(message) => problems.push(Problem { source, message }),
    }
}

fn add_entry(
    tree: &mut Node,
    settings: &[Setting],
    setting: &Setting,
    (name_key, value_key): (&str, &str),
    item: &str,
    source: &Source,
) -> Result<(), String> {
    let wrong = || format!("{item:?} is not {}={}", name_key.to_ascii_uppercase(), value_key.to_ascii_uppercase());
    let (name, value) = item.split_once('=').ok_or_else(wrong)?;
    if name.is_empty() || value.is_empty() {
        return Err(wrong());
    }
    let leaf = |key: &str, text: &str| {
        let key = format!("{}[].{key}", setting.key);
        let (index, setting) = settings.iter().enumerate().find(|(_, setting)| setting.key == key).ok_or_else(wrong)?;
        let value = setting.kind.read(text)?;
        Ok::<_, String>(Node::Leaf(Leaf { value, source: source.clone(), setting: index }))
    };
    let (name_leaf, value_leaf) = (leaf(name_key, name)?, leaf(value_key, value)?);
    let mut parent = &mut *tree;
    for part in names(setting) {
        parent = parent.child(part).ok_or_else(wrong)?;
    }
    if let Node::Table(_) = parent {
        *parent = Node::Tables(Vec::new());
    }
    let Node::Tables(entries) = parent else { return Err(wrong()) };
    let is_it = |entry: &&mut Node| match entry {
        Node::Table(children) => matches!(children.get(name_key), Some(Node::Leaf(leaf))
            if leaf.value.as_str().is_some_and(|other| other.eq_ignore_ascii_case(name))),
        Node::Leaf(_) | Node::Tables(_) => false,
    };
    if let Some(entry) = entries.iter_mut().find(is_it) {
        entry.insert(value_key, value_leaf);
    } else {
        let mut entry = Node::default();
        entry.insert(name_key, name_leaf);
        entry.insert(value_key, value_leaf);
        entries.push(entry);
    }
    Ok(())
}

fn names(setting: &Setting) -> Vec<&'static str> {
    setting.key.split('.').collect()
}

/// Whether Kubernetes sets it for a Service that is called as the program is.
fn is_service_link(rest: &str) -> bool {
    let ends = ["SERVICE_HOST", "SERVICE_PORT", "PORT"];
    ends.iter().any(|end| rest == *end || rest.strip_suffix(end).is_some_and(|before| before.ends_with('_')))
        || rest.starts_with("PORT_")
        || rest.contains("_PORT_")
}
