//! The state directory: where keys and the registry live, who may read it, and which one a command means.
//!
//! Must never follow a file that others can read, and never leave a half-written one.

mod dir;
mod lock;
mod search;

use std::io;
use std::path::PathBuf;

pub use dir::{Private, StateDir};
pub use lock::Lock;
pub use search::Search;

use crate::exit::Quit;

/// Why the state directory, or a file of it, cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// None of the places holds one, and commands make none.
    #[error("no state directory of a {program} here: looked in {}", shown(.looked))]
    Nowhere {
        /// Which program's.
        program: &'static str,
        /// Where it was looked for.
        looked: Vec<PathBuf>,
    },
    /// There is no place to make one.
    #[error("no place for a state directory: {why}")]
    NoPlace {
        /// Why not.
        why: String,
        /// The flag's variable.
        variable: String,
    },
    /// Others can read it.
    #[error("{} can be read by other users (mode {mode:04o})", .path.display())]
    Exposed {
        /// The directory or file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// Whether it is a directory.
        directory: bool,
    },
    /// Another process uses it.
    #[error("the state directory {} is in use by process {}", .path.display(), .pid.map_or("?".to_owned(), |pid| pid.to_string()))]
    Busy {
        /// The directory.
        path: PathBuf,
        /// The other process, when it said who it is.
        pid: Option<u32>,
    },
    /// This user may not.
    #[error("cannot {what} {}: permission denied", .path.display())]
    Denied {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
    },
    /// The file system takes no changes.
    #[error("cannot {what} {}: the file system is read-only", .path.display())]
    ReadOnly {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
    },
    /// The name leads out of the directory; a defect of the caller.
    #[error("{0:?} is not a name inside the state directory")]
    Outside(String),
    /// The system failed.
    #[error("cannot {what} {}: {source}", .path.display())]
    System {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

impl StateError {
    fn from_io(what: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        let path = path.into();
        match source.kind() {
            io::ErrorKind::PermissionDenied => Self::Denied { what, path },
            io::ErrorKind::ReadOnlyFilesystem => Self::ReadOnly { what, path },
            _ => Self::System { what, path, source },
        }
    }
}

impl From<StateError> for Quit {
    fn from(error: StateError) -> Self {
        let text = error.to_string();
        match error {
            StateError::Nowhere { program, .. } => Self::failed(text).hint(format!(
                "start the {program} first (`culvert-{program} run`), or say where its state is with --state-dir DIR"
            )),
            StateError::NoPlace { variable, .. } => {
                Self::config(text).hint(format!("give one with --state-dir DIR or {variable}"))
            }
            StateError::Exposed { path, directory: true, .. } => Self::config(text).hint(format!(
                "chmod 700 {path}; or use a directory inside it, which will be made private: --state-dir {path}/culvert",
                path = path.display()
            )),
            StateError::Exposed { path, directory: false, .. } => Self::config(text)
                .hint(format!("chmod 600 {}, and replace the key if it was exposed", path.display())),
            StateError::Busy { .. } => {
                Self::failed(text).hint("one process per state directory: stop it first, or give another --state-dir")
            }
            StateError::Denied { .. } => {
                Self::failed(text).hint("run this as its owner or as root, or give another --state-dir DIR")
            }
            StateError::ReadOnly { .. } => {
                Self::config(text).hint("give a directory on a writable volume with --state-dir DIR")
            }
            StateError::Outside(_) | StateError::System { .. } => Self::failed(text),
        }
    }
}

fn shown(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}
