//! What of a state directory a backup holds: every key file, and the registry as it was at one moment.
//!
//! Must never catch a key rotation half-way, nor hold up a relay that runs.

use std::fs;
use std::path::Path;

use culvert_model::key::{BadKey, PrivateKey, PublicKey};
use culvert_ops::exit::{OrQuit as _, Quit};
use culvert_ops::state::{Private, StateDir};
use rusqlite::backup::Backup;
use rusqlite::{Connection, OpenFlags};
use tempfile::NamedTempFile;

use crate::identity::PRIVATE_KEY;
use crate::registry::Url;

/// Keys that change while the registry is copied are copied again, so often.
const TRIES: usize = 5;

/// What goes into a backup.
pub(super) struct Contents {
    /// Key files by name.
    pub(super) keys: Vec<(String, Private)>,
    /// A copy of the registry; none where that is PostgreSQL.
    pub(super) registry: Option<NamedTempFile>,
    /// The relay's public key.
    pub(super) public_key: PublicKey,
}

impl Contents {
    /// Copies what there is.
    ///
    /// # Errors
    /// What cannot be read, or that there is nothing.
    pub(super) fn of(state: &StateDir, url: &Url) -> Result<Self, Quit> {
        for _ in 0..TRIES {
            let keys = keys(state)?;
            let public_key = public_key(state, &keys)?;
            let registry = match url.file(state) {
                Some(path) => Some(snapshot(state, &path)?),
                None => None,
            };
            if keys == self::keys(state)? {
                return Ok(Self { keys, registry, public_key });
            }
        }
        Err(Quit::failed("the relay's keys keep changing").hint("try again when its key is not being rotated"))
    }

    /// How large the registry's copy is.
    ///
    /// # Errors
    /// It cannot be looked at.
    pub(super) fn registry_bytes(&self) -> Result<Option<u64>, Quit> {
        let length = |file: &NamedTempFile| file.as_file().metadata().map(|metadata| metadata.len());
        self.registry.as_ref().map(length).transpose().or_failed("cannot read the copy of the registry")
    }
}

/// Refuses a state directory without an identity, before anything makes one there.
///
/// # Errors
/// That there is nothing to back up.
pub(super) fn refuse_nothing(state: &StateDir) -> Result<(), Quit> {
    if state.path().join(PRIVATE_KEY).is_file() { Ok(()) } else { Err(nothing(state)) }
}

/// Whether a file of the state directory is a key file, as backups hold them.
pub(super) fn is_key(name: &str) -> bool {
    name.ends_with(".key") && !name.starts_with('.')
}

/// The names of the key files in a state directory, in order.
///
/// # Errors
/// It cannot be read.
pub(super) fn key_names(state: &StateDir) -> Result<Vec<String>, Quit> {
    let reading = || format!("cannot read {}", state.path().display());
    let mut names = Vec::new();
    for entry in fs::read_dir(state.path()).or_failed(reading())? {
        let entry = entry.or_failed(reading())?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if is_key(&name) && entry.file_type().or_failed(reading())?.is_file() {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

fn keys(state: &StateDir) -> Result<Vec<(String, Private)>, Quit> {
    let mut keys = Vec::new();
    for name in key_names(state)? {
        // One that was removed meanwhile shows in the second look.
        if let Some(content) = state.read(&name)? {
            keys.push((name, content));
        }
    }
    Ok(keys)
}

fn public_key(state: &StateDir, keys: &[(String, Private)]) -> Result<PublicKey, Quit> {
    let Some((_, content)) = keys.iter().find(|(name, _)| name == PRIVATE_KEY) else { return Err(nothing(state)) };
    let key: Result<PrivateKey, BadKey> = std::str::from_utf8(content).map_err(|_| BadKey).and_then(str::parse);
    key.map(|key| key.public_key()).or_config(format_args!("{PRIVATE_KEY} in {}", state.path().display()))
}

fn nothing(state: &StateDir) -> Quit {
    Quit::failed(format!("no relay has an identity in {}: nothing to back up", state.path().display()))
        .hint("`culvert-relay run` makes one; --state-dir DIR names another directory")
}

/// The registry as it is at one moment, also while a relay writes it: one read transaction copies every page, and writers go on
/// in the write-ahead log.
fn snapshot(state: &StateDir, path: &Path) -> Result<NamedTempFile, Quit> {
    let copying = || format!("cannot copy the registry {}", path.display());
    if !path.is_file() {
        return Err(Quit::failed(format!("{}: there is no registry", copying()))
            .hint("is it somewhere else? --config FILE names the relay's configuration"));
    }
    let copy = super::unfinished_in(state.path()).or_failed(copying())?;
    let copied = || -> rusqlite::Result<()> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let source = Connection::open_with_flags(path, flags)?;
        source.busy_timeout(std::time::Duration::from_secs(5))?;
        let mut target = Connection::open_with_flags(copy.path(), flags)?;
        Backup::new(&source, &mut target)?.step(-1)?;
        // One file, without a write-ahead log beside it.
        target.pragma_update(None, "journal_mode", "DELETE")
    };
    copied().or_failed(copying())?;
    copy.as_file().sync_all().or_failed(copying())?;
    Ok(copy)
}
