//! What SQLite says, in the registry's words.

use rusqlite::ErrorCode;

use super::super::{RegistryError, Rule};
use super::schema;

/// An error before the database's path is known to it.
#[derive(Debug)]
pub(super) enum Failure {
    /// SQLite failed.
    Sqlite(rusqlite::Error),
    /// A rule forbids it.
    Rule(Rule),
    /// The schema is of a newer program.
    Newer(u32),
    /// A SQLite file of something else.
    Foreign,
    /// The file is not the one that was opened.
    Replaced,
    /// A check of the whole file failed.
    Damaged(String),
}

impl Failure {
    pub(super) fn into_error(self, path: &str) -> RegistryError {
        let path = path.to_owned();
        match self {
            Self::Rule(rule) => RegistryError::Rule(rule),
            Self::Newer(found) => RegistryError::Newer { path, found, known: schema::VERSION },
            Self::Foreign => RegistryError::Corrupt { path, detail: "it is no Culvert registry".to_owned() },
            Self::Damaged(detail) => RegistryError::Corrupt { path, detail },
            Self::Replaced => {
                RegistryError::Away { path, detail: "the file was deleted or replaced: restart the relay".to_owned() }
            }
            Self::Sqlite(error) => from_sqlite(&error, path),
        }
    }
}

fn from_sqlite(error: &rusqlite::Error, path: String) -> RegistryError {
    let rusqlite::Error::SqliteFailure(cause, _) = error else {
        // A value that does not read as what its column holds.
        return RegistryError::Corrupt { path, detail: error.to_string() };
    };
    let detail = error.to_string();
    if cause.code == ErrorCode::DatabaseBusy || cause.code == ErrorCode::DatabaseLocked {
        RegistryError::Locked { path }
    } else if cause.code == ErrorCode::DiskFull {
        RegistryError::Full { path }
    } else if cause.code == ErrorCode::DatabaseCorrupt || cause.code == ErrorCode::NotADatabase {
        RegistryError::Corrupt { path, detail }
    } else {
        RegistryError::Away { path, detail }
    }
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl From<Rule> for Failure {
    fn from(rule: Rule) -> Self {
        Self::Rule(rule)
    }
}
