//! Where the registry is: `[registry] url`, and the opening of it.

use std::fmt;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{fs, io};

use culvert_ops::secret::SecretSource;
use culvert_ops::state::StateDir;
use tracing::warn;

use super::postgres::{self, BadTarget, Target};
use super::sqlite::{self, Sqlite};
use super::{Registry, RegistryError};
use crate::identity::{PRIVATE_KEY, STATE_KEY};

/// How often a database is tried that a start waits for, and how often that is said.
const TRIED_EVERY: Duration = Duration::from_secs(1);
const SAID_EVERY: Duration = Duration::from_secs(60);

/// Where the registry is.
#[derive(Debug, Clone)]
pub(crate) enum Url {
    /// A SQLite file, relative to the state directory.
    Sqlite(PathBuf),
    /// A PostgreSQL database.
    Postgres(Box<Target>),
}

/// Why a URL names no registry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadUrl {
    /// It is of no engine.
    #[error(
        "{0:?} is not a registry: sqlite:FILE or postgres://USER@HOST/DATABASE is expected, as in sqlite:registry.db"
    )]
    Unknown(String),
    /// It is PostgreSQL's, and wrong.
    #[error(transparent)]
    Postgres(#[from] BadTarget),
    /// A file asks for no password.
    #[error("a SQLite registry has no password")]
    NeedlessPassword,
}

impl Default for Url {
    fn default() -> Self {
        Self::Sqlite(PathBuf::from("registry.db"))
    }
}

impl FromStr for Url {
    type Err = BadUrl;

    fn from_str(text: &str) -> Result<Self, BadUrl> {
        Self::new(text, None)
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(file) => write!(f, "sqlite:{}", file.display()),
            Self::Postgres(target) => target.fmt(f),
        }
    }
}

impl Url {
    /// Reads a URL; `password` is where a password comes from that does not stand in it.
    ///
    /// # Errors
    /// [`BadUrl`], which repeats no password.
    pub(crate) fn new(text: &str, password: Option<SecretSource>) -> Result<Self, BadUrl> {
        if text.starts_with("postgres://") || text.starts_with("postgresql://") {
            return Ok(Self::Postgres(Box::new(Target::new(text, password)?)));
        }
        let file = text.strip_prefix("sqlite:").filter(|file| !file.is_empty() && !file.starts_with("//"));
        // The text may be of another kind and hold a password: only its scheme is repeated.
        let scheme = || text.split_once(':').map_or(text, |(scheme, _)| scheme);
        let file = file.ok_or_else(|| BadUrl::Unknown(format!("{}:…", scheme())))?;
        if password.is_some() {
            return Err(BadUrl::NeedlessPassword);
        }
        Ok(Self::Sqlite(PathBuf::from(file)))
    }

    /// A registry in this file.
    pub(crate) fn at(file: &Path) -> Self {
        Self::Sqlite(file.to_path_buf())
    }

    /// The database's file, if it is one.
    pub(crate) fn file(&self, state: &StateDir) -> Option<PathBuf> {
        match self {
            Self::Sqlite(file) => Some(state.path().join(file)),
            Self::Postgres(_) => None,
        }
    }

    /// Whether nothing depends on the relay's secrets yet: there is no registry, or one elsewhere that this relay was
    /// never part of.
    pub(crate) fn is_new(&self, state: &StateDir) -> bool {
        match self.file(state) {
            Some(file) => fs::metadata(file).map_or(true, |metadata| metadata.len() == 0),
            None => [PRIVATE_KEY, STATE_KEY].iter().all(|name| !state.path().join(name).exists()),
        }
    }

    /// Says which engine it is, where, and how it is, for `check`. Changes nothing there.
    pub(crate) fn look(&self, state: Option<&StateDir>) -> String {
        match self {
            Self::Sqlite(file) => {
                let path = state.map_or_else(|| file.clone(), |state| state.path().join(file));
                format!("sqlite, {}: {}", path.display(), sqlite::look(&path))
            }
            Self::Postgres(target) => format!("postgresql, {target}: {}", postgres::look(target)),
        }
    }

    /// Waits for a database elsewhere that cannot be reached, as after a start of the whole site. What is wrong with it is
    /// for [`Url::open`] to say.
    pub(crate) async fn wait(&self) {
        let Self::Postgres(target) = self else { return };
        let mut said: Option<Instant> = None;
        loop {
            let looked = tokio::task::spawn_blocking({
                let target = Target::clone(target);
                move || postgres::reach(&target)
            });
            let Ok(Err(error)) = looked.await else { return };
            if !error.may_pass() {
                return;
            }
            if said.is_none_or(|said| said.elapsed() >= SAID_EVERY) {
                warn!(%error, "waiting for the registry");
                said = Some(Instant::now());
            }
            tokio::time::sleep(TRIED_EVERY).await;
        }
    }

    /// Opens the registry; makes a file, for the owner of the state directory alone, if it is not there.
    ///
    /// # Errors
    /// [`RegistryError`], all but its rules.
    pub(crate) fn open(&self, state: &StateDir) -> Result<Arc<dyn Registry>, RegistryError> {
        match self {
            Self::Sqlite(file) => {
                let path = state.path().join(file);
                make_private(&path, state)?;
                Ok(Arc::new(Sqlite::open(&path)?))
            }
            Self::Postgres(target) => Ok(Arc::new(postgres::open(target)?)),
        }
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
        warn!(path = %path.display(), mode = format_args!("{mode:04o}"), "the group can read the registry");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_registry_is_a_file_in_the_state_directory_or_elsewhere_or_a_database() {
        let state = StateDir::temporary().unwrap();
        let file = |url: &str| url.parse::<Url>().unwrap().file(&state);
        assert_eq!(file("sqlite:registry.db"), Url::default().file(&state));
        assert_eq!(file("sqlite:/srv/culvert.db"), Some(PathBuf::from("/srv/culvert.db")));
        assert_eq!(file("postgres://culvert@db/culvert"), None);
        for bad in ["", "registry.db", "sqlite:", "sqlite://x", "mysql://culvert:hunter2@db/culvert"] {
            let error = bad.parse::<Url>().unwrap_err().to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
        let password = SecretSource::Env("PASSWORD".to_owned());
        assert_eq!(Url::new("sqlite:registry.db", Some(password)).unwrap_err(), BadUrl::NeedlessPassword);
    }

    #[test]
    fn a_relay_that_joins_a_database_makes_its_secrets_and_one_that_was_there_does_not() {
        let state = StateDir::temporary().unwrap();
        let url: Url = "postgres://culvert@db/culvert".parse().unwrap();
        assert!(url.is_new(&state));
        state.write(STATE_KEY, b"x").unwrap();
        assert!(!url.is_new(&state));
    }

    #[test]
    fn a_new_registry_is_private_and_one_that_others_can_read_is_refused() {
        let state = StateDir::temporary().unwrap();
        let url = Url::default();
        assert!(url.is_new(&state));
        drop(url.open(&state).unwrap());
        assert!(!url.is_new(&state));
        let path = url.file(&state).unwrap();
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
