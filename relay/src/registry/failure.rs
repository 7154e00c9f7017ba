//! What an engine says, before the registry's place is known to it.

use super::schema;
use super::{RegistryError, Rule};

/// Why a transaction came to nothing.
#[derive(Debug)]
pub(super) enum Failure {
    /// A rule forbids it.
    Rule(Rule),
    /// The schema is of a newer program.
    Newer(u32),
    /// A database of something else.
    Foreign,
    /// The file is not the one that was opened.
    Replaced,
    /// What is stored is not what this program stores.
    Damaged(String),
    /// Another process holds it.
    Locked,
    /// No room.
    Full,
    /// It cannot be reached, or refuses.
    Away(String),
    /// It is there, and does not let us in as we are.
    Refused(String),
    /// It says nothing.
    Silent,
}

impl Failure {
    pub(super) fn into_error(self, place: &str) -> RegistryError {
        let path = place.to_owned();
        match self {
            Self::Rule(rule) => RegistryError::Rule(rule),
            Self::Newer(found) => RegistryError::Newer { path, found, known: schema::VERSION },
            Self::Foreign => RegistryError::Corrupt { path, detail: "it is no Culvert registry".to_owned() },
            Self::Damaged(detail) => RegistryError::Corrupt { path, detail },
            Self::Replaced => {
                RegistryError::Away { path, detail: "the file was deleted or replaced: restart the relay".to_owned() }
            }
            Self::Locked => RegistryError::Locked { path },
            Self::Full => RegistryError::Full { path },
            Self::Away(detail) => RegistryError::Away { path, detail },
            Self::Refused(detail) => RegistryError::Refused { path, detail },
            Self::Silent => RegistryError::Away { path, detail: "it does not answer".to_owned() },
        }
    }
}

impl Failure {
    /// In a few words, without the place.
    pub(super) fn why(&self) -> String {
        match self {
            Self::Rule(rule) => rule.to_string(),
            Self::Newer(found) => format!("its schema {found} is newer than this program"),
            Self::Foreign => "it is no Culvert registry".to_owned(),
            Self::Replaced => "the file was replaced".to_owned(),
            Self::Damaged(detail) | Self::Away(detail) | Self::Refused(detail) => detail.clone(),
            Self::Locked => "it is locked".to_owned(),
            Self::Full => "it has no room".to_owned(),
            Self::Silent => "it does not answer".to_owned(),
        }
    }
}

impl From<Rule> for Failure {
    fn from(rule: Rule) -> Self {
        Self::Rule(rule)
    }
}
