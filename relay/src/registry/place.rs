//! Where the registry is: `[registry] url`, and the opening of it.

use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::{fs, io};

use culvert_ops::state::StateDir;

use super::sqlite::Sqlite;
use super::{Registry, RegistryError};

/// Where the registry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Url {
    file: PathBuf,
}

/// Why a URL names no registry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a registry: sqlite:FILE is expected, as in sqlite:registry.db")]
pub(crate) struct BadUrl(String);

impl Default for Url {
    fn default() -> Self {
        Self { file: PathBuf::from("registry.db") }
    }
}

impl FromStr for Url {
    type Err = BadUrl;

    fn from_str(text: &str) -> Result<Self, BadUrl> {
        let file = text.strip_prefix("sqlite:").filter(|file| !file.is_empty() && !file.starts_with("//"));
        // The text may be of another kind and hold a password: only its scheme is repeated.
        let scheme = || text.split_once(':').map_or(text, |(scheme, _)| scheme);
        file.map(|file| Self { file: PathBuf::from(file) }).ok_or_else(|| BadUrl(format!("{}:…", scheme())))
    }
}

impl Url {
    /// A SQLite file, wherever it is.
    pub(crate) fn at(file: &Path) -> Self {
        Self { file: file.to_path_buf() }
    }

    /// The database's file; none where the registry is elsewhere.
    pub(crate) fn file(&self, state: &StateDir) -> Option<PathBuf> {
        Some(self.path(state))
    }

    /// The database's file; relative to the state directory.
    pub(crate) fn path(&self, state: &StateDir) -> PathBuf {
        state.path().join(&self.file)
    }

    /// Whether there is no registry yet.
    pub(crate) fn is_new(&self, state: &StateDir) -> bool {
        fs::metadata(self.path(state)).map_or(true, |metadata| metadata.len() == 0)
    }

    /// Opens the registry; makes it, for the owner of the state directory alone, if it is not there.
    ///
    /// # Errors
    /// [`RegistryError`], all but its rules.
    pub(crate) fn open(&self, state: &StateDir) -> Result<Arc<dyn Registry>, RegistryError> {
        let path = self.path(state);
        make_private(&path, state)?;
        Ok(Arc::new(Sqlite::open(&path)?))
    }
}

fn make_private(path: &Path, state: &StateDir) -> Result<(), RegistryError> {
    let away = |detail: String| RegistryError::Away { path: path.display().to_string(), detail };
    match fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        // SQLite gives the files beside it to the same owner.
        Ok(_) => return state.adopt(path).map_err(|error| away(error.to_string())),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(away(error.to_string())),
    }
    let mode = fs::metadata(path).map_err(|error| away(error.to_string()))?.mode() & 0o7777;
    if mode & 0o007 != 0 {
        return Err(RegistryError::Exposed { path: path.display().to_string(), mode });
    }
    if mode & 0o070 != 0 {
        tracing::warn!(path = %path.display(), mode = format_args!("{mode:04o}"), "the group can read the registry");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_registry_is_a_file_in_the_state_directory_or_elsewhere() {
        let state = StateDir::temporary().unwrap();
        let path = |url: &str| url.parse::<Url>().map(|url| url.path(&state));
        assert_eq!(path("sqlite:registry.db"), Ok(Url::default().path(&state)));
        assert_eq!(path("sqlite:/srv/culvert.db"), Ok(PathBuf::from("/srv/culvert.db")));
        for bad in ["", "registry.db", "sqlite:", "sqlite://x"] {
            assert!(path(bad).is_err(), "{bad:?}");
        }
        let secret = path("postgres://culvert:hunter2@db/culvert").unwrap_err().to_string();
        assert!(!secret.contains("hunter2"), "{secret}");
    }

    #[test]
    fn a_new_registry_is_private_and_one_that_others_can_read_is_refused() {
        let state = StateDir::temporary().unwrap();
        let url = Url::default();
        assert!(url.is_new(&state));
        drop(url.open(&state).unwrap());
        assert!(!url.is_new(&state));
        let path = url.path(&state);
        for name in ["registry.db", "registry.db-wal", "registry.db-shm"] {
            if let Ok(metadata) = fs::metadata(state.path().join(name)) {
                assert_eq!(metadata.mode() & 0o777, 0o600, "{name}");
            }
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(url.open(&state), Err(RegistryError::Exposed { mode: 0o644, .. })));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(url.open(&state).is_ok());
    }

    #[test]
    fn a_place_that_cannot_be_written_is_named() {
        let state = StateDir::temporary().unwrap();
        let url: Url = "sqlite:/proc/culvert.db".parse().unwrap();
        let error = url.open(&state).err().unwrap();
        assert!(matches!(&error, RegistryError::Away { path, .. } if path == "/proc/culvert.db"), "{error}");
    }
}
