//! How a running relay answers a command: the JSON between `admin.sock` and the command line.

use serde::{Deserialize, Serialize};

use super::{CommandError, Outcome};

/// The answer to a command or a reload, as it travels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// Done.
    Done {
        /// For `--json`.
        json: serde_json::Value,
        /// For stdout otherwise.
        text: String,
        /// For stderr, one line each.
        notes: Vec<String>,
    },
    /// Not done.
    Failed {
        /// The command's exit status.
        exit: u8,
        /// One line.
        message: String,
        /// What to do about it.
        hint: Option<String>,
    },
}

impl From<&Result<Outcome, CommandError>> for Reply {
    fn from(result: &Result<Outcome, CommandError>) -> Self {
        match result {
            Ok(outcome) => {
                Self::Done { json: outcome.json.clone(), text: outcome.text.clone(), notes: outcome.notes.clone() }
            }
            Err(error) => {
                let (exit, hint) = match error {
                    CommandError::Failed { hint, .. } => (1, hint.clone()),
                    CommandError::Config { hint, .. } => (78, hint.clone()),
                    CommandError::Registry(_) => (1, None),
                };
                Self::Failed { exit, message: error.to_string(), hint }
            }
        }
    }
}
