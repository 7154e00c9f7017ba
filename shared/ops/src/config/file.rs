//! A TOML file as a tree of checked values that know their lines.

use std::path::Path;
use std::sync::Arc;

use toml::Spanned;
use toml::Value;
use toml::de::{DeArray, DeTable, DeValue};

use super::key::{Place, nearest_key, place};
use super::kind::Kind;
use super::merge::Node;
use super::{Leaf, Problem, Setting, Source};

/// Reads a file's text; what is wrong goes to `problems`, what is right into the tree.
pub(super) fn parse(path: &Path, text: &str, settings: &[Setting], problems: &mut Vec<Problem>) -> Node {
    let mut reader = Reader { path: path.into(), text, settings, problems };
    match DeTable::parse(text) {
        Ok(table) => reader.table(table.get_ref(), &mut Vec::new()),
        Err(error) => {
            let at = error.span().map_or(0, |span| span.start);
            reader.problem(at, error.message().to_owned());
            Node::default()
        }
    }
}

struct Reader<'a> {
    path: Arc<Path>,
    text: &'a str,
    settings: &'a [Setting],
    problems: &'a mut Vec<Problem>,
}

impl Reader<'_> {
    fn table(&mut self, table: &DeTable<'_>, names: &mut Vec<String>) -> Node {
        let mut node = Node::default();
        for (key, value) in table {
            names.push(key.get_ref().to_string());
            if let Some(child) = self.value(key.span().start, value, names) {
                node.insert(key.get_ref(), child);
            }
            names.pop();
        }
        node
    }

    fn value(&mut self, at: usize, value: &Spanned<DeValue<'_>>, names: &mut Vec<String>) -> Option<Node> {
        match (place(self.settings, names), value.get_ref()) {
            (Place::Setting(index), inner) => {
                let kind = self.settings.get(index)?.kind;
                if let Kind::Entries { .. } = kind {
                    return self.tables(at, inner, names);
                }
                let read = plain(inner).and_then(|value| kind.check(value, self.path.parent()));
                match read {
                    Ok(value) => Some(Node::Leaf(Leaf { value, source: self.source(at), setting: index })),
                    Err(message) => self.problem(at, format!("{}: {message}", names.join("."))),
                }
            }
            (Place::Table, DeValue::Table(table)) => Some(self.table(table, names)),
            (Place::Table, _) => self.problem(at, format!("{0} is a table: write [{0}]", names.join("."))),
            (Place::Tables, inner) => self.tables(at, inner, names),
            (Place::Unknown, _) => {
                let key = names.join(".");
                let nearest = nearest_key(self.settings, &key);
                let hint = nearest.map(|nearest| format!("; did you mean {nearest:?}?")).unwrap_or_default();
                self.problem(at, format!("unknown key {key:?}{hint}"))
            }
        }
    }

    fn tables(&mut self, at: usize, value: &DeValue<'_>, names: &mut Vec<String>) -> Option<Node> {
        let wrong =
            |reader: &mut Self| reader.problem(at, format!("{0} is a list of tables: write [[{0}]]", names.join(".")));
        let DeValue::Array(items) = value else { return wrong(self) };
        let Some(tables) = all_tables(items) else { return wrong(self) };
        Some(Node::Tables(tables.into_iter().map(|table| self.table(table, names)).collect()))
    }

    fn problem(&mut self, at: usize, message: String) -> Option<Node> {
        let source = self.source(at);
        self.problems.push(Problem { source, message });
        None
    }

    fn source(&self, at: usize) -> Source {
        let before = self.text.as_bytes().get(..at).unwrap_or(self.text.as_bytes());
        let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
        Source::File { path: Arc::clone(&self.path), line }
    }
}

fn all_tables<'v, 'i>(items: &'v DeArray<'i>) -> Option<Vec<&'v DeTable<'i>>> {
    items.iter().map(|item| item.get_ref().as_table()).collect()
}

fn plain(value: &DeValue<'_>) -> Result<Value, String> {
    Ok(match value {
        DeValue::String(text) => Value::String(text.to_string()),
        DeValue::Integer(number) => {
            let parsed = i64::from_str_radix(number.as_str(), number.radix());
            Value::Integer(parsed.map_err(|_| "the number is too large".to_owned())?)
        }
        DeValue::Float(number) => Value::Float(number.as_str().parse().map_err(|_| "not a number".to_owned())?),
        DeValue::Boolean(truth) => Value::Boolean(*truth),
        DeValue::Datetime(time) => Value::Datetime(*time),
        DeValue::Array(items) => {
            Value::Array(items.iter().map(|item| plain(item.get_ref())).collect::<Result<_, _>>()?)
        }
        DeValue::Table(table) => {
            let entry = |(key, value): (&Spanned<_>, &Spanned<DeValue<'_>>)| {
                let key: &toml::de::DeString<'_> = key.get_ref();
                plain(value.get_ref()).map(|value| (key.to_string(), value))
            };
            Value::Table(table.iter().map(entry).collect::<Result<_, _>>()?)
        }
    })
}
