//! One process per state directory.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;

use super::{StateDir, StateError};

/// Holds the state directory for this process. Released on drop, and by the kernel when the process dies.
#[derive(Debug)]
#[must_use = "the directory is free again when the lock is dropped"]
pub struct Lock {
    _file: File,
}

impl Lock {
    pub(super) fn take(state: &StateDir) -> Result<Self, StateError> {
        let path = state.join("lock")?;
        let failed = |what| {
            let path = path.clone();
            move |source| StateError::from_io(what, path, source)
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed("open"))?;
        state.adopt(&path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                let _ = file.read_to_string(&mut text);
                return Err(StateError::Busy { path: state.path().to_path_buf(), pid: text.trim().parse().ok() });
            }
            Err(TryLockError::Error(source)) => return Err(failed("lock")(source)),
        }
        file.set_len(0).and_then(|()| file.rewind()).map_err(failed("write"))?;
        writeln!(file, "{}", std::process::id()).map_err(failed("write"))?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::{Exit, Quit};

    #[test]
    fn a_second_process_is_told_the_pid_of_the_first() {
        let state = StateDir::temporary().unwrap();
        let held = state.lock().unwrap();
        let quit = Quit::from(state.lock().unwrap_err());
        assert_eq!(quit.exit, Exit::Failed);
        assert!(quit.message.contains(&format!("process {}", std::process::id())), "{}", quit.message);
        drop(held);
        drop(state.lock().unwrap());
    }

    #[test]
    fn a_lock_left_by_a_killed_process_is_free() {
        let state = StateDir::temporary().unwrap();
        std::fs::write(state.path().join("lock"), "999999\n").unwrap();
        let _held = state.lock().unwrap();
        let text = std::fs::read_to_string(state.path().join("lock")).unwrap();
        assert_eq!(text, format!("{}\n", std::process::id()));
    }
}
