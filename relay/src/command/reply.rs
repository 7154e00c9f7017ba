//! How a running relay answers a command: the JSON between `admin.sock` and the command line.

use culvert_ops::exit::{self, Exit, Quit};
use serde::{Deserialize, Serialize};

use super::{CommandError, Outcome};

/// The answer to a command or a reload, as it travels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Reply {
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
            Ok(Outcome { json, text, notes, .. }) => {
                Self::Done { json: json.clone(), text: text.clone(), notes: notes.clone() }
            }
            Err(error) => Quit::from(error.clone()).into(),
        }
    }
}

impl From<Quit> for Reply {
    fn from(quit: Quit) -> Self {
        Self::Failed { exit: quit.exit as u8, message: quit.message, hint: quit.hint }
    }
}

impl Reply {
    /// Prints what was done, data on stdout and words on stderr, and gives the command's end.
    ///
    /// # Errors
    /// What the relay answered, or that stdout cannot be written.
    pub(crate) fn print(self, as_json: bool) -> Result<Exit, Quit> {
        match self {
            Self::Done { json, text, notes } => {
                for note in notes {
                    exit::say(note);
                }
                if as_json {
                    exit::print(json)?;
                } else if !text.is_empty() {
                    exit::print(text.trim_end_matches('\n'))?;
                }
                Ok(Exit::Ok)
            }
            Self::Failed { exit, message, hint } => {
                let exit = [Exit::Usage, Exit::Config].into_iter().find(|known| *known as u8 == exit);
                Err(Quit { exit: exit.unwrap_or(Exit::Failed), message, hint })
            }
        }
    }
}
