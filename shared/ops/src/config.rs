//! One value for every setting, and where it came from: flag over environment over file over default.
//!
//! A program lists its [`Setting`]s once; names of variables, unknown keys, `check` and "needs a restart" follow from
//! that list. Must never show a secret, and never let a mistyped key pass in silence.

mod file;
mod key;
mod kind;
mod merge;
mod serde_with;
mod shown;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::de::DeserializeOwned;

use crate::exit::{Exit, Quit};
use crate::load::Environment;
use crate::program::Program;

pub use kind::Kind;
pub use serde_with::{duration, given, optional_duration, optional_size};
pub use shown::Shown;

/// One setting of a program.
///
/// The key is dotted, as in `http.domain`. `[]` behind a part is an array of tables (`http.listener[].listen`), `*` a
/// name that the user chooses (`service.*.limits.concurrent`); such keys have no variable.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// The dotted key.
    pub key: &'static str,
    /// What it holds.
    pub kind: Kind,
    /// Its value when nobody gives one, as the environment would write it.
    pub default: Option<&'static str>,
    /// Whether its value is never shown.
    pub secret: bool,
    /// Whether a reload cannot change it.
    pub restart: bool,
    /// One line for the reference.
    pub help: &'static str,
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A flag, as `--endpoint`.
    Flag(&'static str),
    /// A variable.
    Environment(String),
    /// A line of a file (from 1).
    File {
        /// Which file.
        path: Arc<Path>,
        /// Which line.
        line: usize,
    },
    /// Nobody gave one.
    Default,
}

/// What the command line gives.
#[derive(Debug, Clone, Default)]
pub struct Flags {
    given: Vec<(&'static str, &'static str, Vec<String>)>,
}

/// Everything that goes into a configuration.
pub struct Load<'a> {
    program: Program,
    settings: &'static [Setting],
    environment: &'a dyn Environment,
    flags: Flags,
    config: Option<PathBuf>,
    etc: PathBuf,
}

/// A merged configuration whose keys and types are right; what it means is for the program to settle.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The file that was read, if there was one.
    pub file: Option<PathBuf>,
    /// What deserves a line but stops nothing: variables that look mistyped.
    pub warnings: Vec<String>,
    table: toml::Table,
    values: BTreeMap<String, Leaf>,
    settings: &'static [Setting],
}

/// One thing that is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where it stands.
    pub source: Source,
    /// What is wrong.
    pub message: String,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file that was asked for is not there.
    #[error("no configuration file {}", .0.display())]
    Missing(PathBuf),
    /// The file cannot be read.
    #[error("cannot read the configuration file {}: {source}", .path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Values are wrong; at least one is named.
    #[error("{}", shown::lines(.0))]
    Wrong(Vec<Problem>),
}

#[derive(Debug, Clone)]
struct Leaf {
    value: toml::Value,
    source: Source,
    setting: usize,
}

/// Two lists as one of `N` settings, for programs that share a part of theirs.
pub const fn joined<const N: usize>(first: &[Setting], second: &[Setting]) -> [Setting; N] {
    let mut all = [Setting::new("", Kind::Bool, ""); N];
    let mut at = 0;
    while at < N {
        all[at] = if at < first.len() { first[at] } else { second[at - first.len()] };
        at += 1;
    }
    all
}

impl Setting {
    /// A setting without a default that a reload can change.
    pub const fn new(key: &'static str, kind: Kind, help: &'static str) -> Self {
        Self { key, kind, default: None, secret: false, restart: false, help }
    }

    /// Gives it a default, written as in the environment: a list's items separated by spaces.
    #[must_use]
    pub const fn or(mut self, default: &'static str) -> Self {
        self.default = Some(default);
        self
    }

    /// Never shows its value.
    #[must_use]
    pub const fn secret(mut self) -> Self {
        self.secret = true;
        self
    }

    /// A change needs a restart.
    #[must_use]
    pub const fn restart(mut self) -> Self {
        self.restart = true;
        self
    }

    /// The variable that sets it, if one can: `CULVERT_RELAY_WIREGUARD_LISTEN`.
    pub fn variable(&self, program: Program) -> Option<String> {
        let plain = !self.key.contains(['[', '*']);
        plain.then(|| format!("{}{}", program.env_prefix(), self.key.to_ascii_uppercase().replace(['.', '-'], "_")))
    }
}

impl Flags {
    /// No flag given.
    pub fn new() -> Self {
        Self::default()
    }

    /// A flag with one value, if it was given.
    #[must_use]
    pub fn value(mut self, flag: &'static str, key: &'static str, value: Option<impl fmt::Display>) -> Self {
        if let Some(value) = value {
            self.given.push((flag, key, vec![value.to_string()]));
        }
        self
    }

    /// A flag that may be given several times; no values: it was not given.
    #[must_use]
    pub fn list<T: fmt::Display>(
        mut self,
        flag: &'static str,
        key: &'static str,
        values: impl IntoIterator<Item = T>,
    ) -> Self {
        let values: Vec<String> = values.into_iter().map(|value| value.to_string()).collect();
        if !values.is_empty() {
            self.given.push((flag, key, values));
        }
        self
    }
}

impl<'a> Load<'a> {
    /// Loads a program's settings from this environment and the default file.
    pub fn new(program: Program, settings: &'static [Setting], environment: &'a dyn Environment) -> Self {
        let etc = PathBuf::from("/etc/culvert");
        Self { program, settings, environment, flags: Flags::new(), config: None, etc }
    }

    /// Adds what the command line gives.
    #[must_use]
    pub fn flags(mut self, flags: Flags) -> Self {
        self.flags = flags;
        self
    }

    /// Reads this file (`--config`) and no other; it must be there.
    #[must_use]
    pub fn config(mut self, path: Option<impl Into<PathBuf>>) -> Self {
        self.config = path.map(Into::into);
        self
    }

    /// Looks for the host's file in another directory than `/etc/culvert`.
    #[must_use]
    pub fn etc(mut self, directory: impl Into<PathBuf>) -> Self {
        self.etc = directory.into();
        self
    }

    /// Reads and merges everything.
    ///
    /// # Errors
    /// [`ConfigError::Missing`] for a `--config` that is not there; [`ConfigError::Wrong`] with every problem found.
    pub fn load(&self) -> Result<Loaded, ConfigError> {
        let mut problems = Vec::new();
        let (file, mut tree) = match self.read()? {
            None => (None, merge::Node::default()),
            Some((path, text)) => {
                let tree = file::parse(&path, &text, self.settings, &mut problems);
                (Some(path), tree)
            }
        };
        let warnings = merge::environment(&mut tree, self.settings, self.program, self.environment, &mut problems);
        merge::flags(&mut tree, self.settings, &self.flags.given, &mut problems);
        merge::defaults(&mut tree, self.settings);
        if !problems.is_empty() {
            return Err(ConfigError::Wrong(problems));
        }
        let mut values = BTreeMap::new();
        let table = merge::settle(&tree, &mut values);
        Ok(Loaded { file, warnings, table, values, settings: self.settings })
    }

    fn read(&self) -> Result<Option<(PathBuf, String)>, ConfigError> {
        let asked = self.config.clone();
        let asked = asked.or_else(|| self.environment.path(&format!("{}CONFIG", self.program.env_prefix())));
        let (places, must) = match asked {
            Some(path) => (vec![path], true),
            None => (self.places(), false),
        };
        for path in places {
            match std::fs::read_to_string(&path) {
                Ok(text) => return Ok(Some((path, text))),
                Err(error) if error.kind() == io::ErrorKind::NotFound && must => {
                    return Err(ConfigError::Missing(path));
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(ConfigError::Unreadable { path, source }),
            }
        }
        Ok(None)
    }

    fn places(&self) -> Vec<PathBuf> {
        let name = format!("{}.toml", self.program.name());
        let absolute = |variable| self.environment.path(variable).filter(|path| path.is_absolute());
        let home = absolute("XDG_CONFIG_HOME").or_else(|| absolute("HOME").map(|home| home.join(".config")));
        let home = home.map(|base| base.join("culvert").join(&name));
        [Some(self.etc.join(&name)), home].into_iter().flatten().collect()
    }
}

impl Loaded {
    /// Reads it into the program's own type. Keys without a value are absent.
    ///
    /// # Errors
    /// [`ConfigError::Wrong`] when the type and the list of settings disagree.
    pub fn settle<T: DeserializeOwned>(&self) -> Result<T, ConfigError> {
        T::deserialize(self.table.clone()).map_err(|error| {
            let source =
                self.file.as_deref().map_or(Source::Default, |path| Source::File { path: path.into(), line: 0 });
            ConfigError::Wrong(vec![Problem { source, message: error.message().to_owned() }])
        })
    }

    /// The merged table.
    pub fn table(&self) -> &toml::Table {
        &self.table
    }

    /// Where a value came from; the key names its place, as `http.listener[0].listen`.
    pub fn source(&self, key: &str) -> Source {
        self.values.get(key).map_or(Source::Default, |leaf| leaf.source.clone())
    }

    /// Says that a value means nothing good, with its file and line, variable or flag. For a key without a value the
    /// nearest one above it is named.
    pub fn wrong(&self, key: &str, message: impl fmt::Display) -> ConfigError {
        let beside = |place: &str| {
            let mut near = self.values.iter().filter(|(other, _)| other.as_str() == place || is_below(other, place));
            near.find(|(_, leaf)| leaf.source != Source::Default).map(|(_, leaf)| leaf.source.clone())
        };
        let places = std::iter::successors(Some(key), |place| place.rsplit_once('.').map(|(parent, _)| parent));
        let exact = self.values.get(key).map(|leaf| leaf.source.clone());
        let source = exact.or_else(|| places.into_iter().find_map(beside)).unwrap_or(Source::Default);
        ConfigError::Wrong(vec![Problem { source, message: format!("{key}: {message}") }])
    }

    /// Every value that is set or has a default, secrets hidden, for `check`.
    pub fn values(&self) -> Vec<Shown> {
        let shown = |(key, leaf): (&String, &Leaf)| {
            let setting = self.settings.get(leaf.setting)?;
            Some(Shown::new(key, setting, &leaf.value, &leaf.source))
        };
        self.values.iter().filter_map(shown).collect()
    }

    /// The keys that differ in `new` and that a running process cannot change.
    pub fn restart_needed(&self, new: &Self) -> Vec<String> {
        let differs = |key: &&String| {
            let value = |loaded: &'_ Self| loaded.values.get(*key).map(|leaf| leaf.value.clone());
            value(self) != value(new)
        };
        let restart = |loaded: &Self, key: &String| {
            let setting = loaded.values.get(key).and_then(|leaf| loaded.settings.get(leaf.setting));
            setting.is_some_and(|setting| setting.restart)
        };
        let mut keys: Vec<String> = self.values.keys().chain(new.values.keys()).filter(differs).cloned().collect();
        keys.retain(|key| restart(self, key) || restart(new, key));
        keys.sort();
        keys.dedup();
        keys
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(name) => f.write_str(name),
            Self::Environment(name) => f.write_str(name),
            Self::File { path, line: 0 } => write!(f, "{}", path.display()),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Default => f.write_str("default"),
        }
    }
}

impl From<ConfigError> for Quit {
    fn from(error: ConfigError) -> Self {
        let typed = matches!(&error, ConfigError::Wrong(problems)
            if problems.iter().all(|problem| matches!(problem.source, Source::Flag(_))));
        Self::new(if typed { Exit::Usage } else { Exit::Config }, error.to_string())
    }
}

fn is_below(key: &str, parent: &str) -> bool {
    key.strip_prefix(parent).is_some_and(|rest| rest.starts_with(['.', '[']))
}

#[cfg(test)]
mod tests;
