//! From a backup to a state directory: everything is opened and checked beside its place first, then moved into it.
//!
//! Must never touch the directory of a relay that runs, nor what stands in a directory unless it is told to.

use std::fs::{self, File};
use std::io::{self, Read, Write as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use culvert_model::key::{BadKey, PrivateKey};
use culvert_ops::exit::{self, Exit, OrQuit as _, Quit};
use culvert_ops::load::ProcessEnvironment;
use culvert_ops::program::Program;
use culvert_ops::state::{Search, StateDir};
use culvert_ops::time::rfc3339;
use tempfile::NamedTempFile;
use zeroize::Zeroizing;

use super::archive::{self, Manifest, REGISTRY};
use super::contents::{is_key, key_names};
use super::passphrase::{self, For};
use super::sealed::{Opener, Unopened};
use super::{UNFINISHED, registry_of, unfinished_in, unopened};
use crate::cli::RestoreArgs;
use crate::command::uid;
use crate::identity::{PRIVATE_KEY, RESET_KEY, STATE_KEY, relay_tag};
use crate::registry::{AuditRow, Url};

/// The longest key file.
const KEY_BYTES: u64 = 1 << 20;
/// What may stand in an empty state directory.
const NOTHING: [&str; 3] = ["lock", "admin.sock", "lost+found"];

/// Puts a backup into a state directory.
///
/// # Errors
/// Why not; the directory is as it was then, unless the message says otherwise.
pub(crate) async fn restore(args: RestoreArgs) -> Result<Exit, Quit> {
    let shown = args.file.display().to_string();
    let file = File::open(&args.file).or_failed(format_args!("cannot read {shown}"))?;
    let url = registry_of(&args.place)?;
    let passphrase = passphrase::find(args.passphrase_file.as_deref(), &ProcessEnvironment, For::Opening)?;
    let mut opener =
        Opener::new(io::BufReader::new(file), passphrase.expose().as_bytes()).map_err(|error| said(&shown, error))?;
    let manifest = archive::read_manifest(&mut opener).map_err(|error| said(&shown, error))?;
    let search = Search::new(Program::Relay, args.place.state_dir.as_deref(), &ProcessEnvironment);
    let state = search.create()?;
    exit::say(format_args!("state directory: {}", state.path().display()));
    let lock = state.lock()?;
    let target = url.file(&state);
    if manifest.has_registry && target.is_none() {
        return Err(Quit::config("the backup holds a registry, and the configuration names PostgreSQL")
            .hint("restore with the configuration that the relay had, then move the registry"));
    }
    if !args.force {
        refuse_used(&state, target.as_deref())?;
    }
    let staged = Staged::read(&mut opener, &state, target.as_deref()).map_err(|error| said(&shown, error))?;
    staged.ready(&manifest, &state).await?;
    let aside = if args.force { put_aside(&state, target.as_deref())? } else { None };
    staged.put(&state, target.as_deref()).map_err(|error| {
        Quit::failed(format!("cannot move the backup into {}: {error}", state.path().display()))
            .hint("a part of it may be there: restore again with --force")
    })?;
    drop(lock);
    tell(&manifest, aside.as_deref(), target.is_some());
    Ok(Exit::Ok)
}

fn tell(manifest: &Manifest, aside: Option<&Path>, sqlite: bool) {
    exit::say(format_args!("restored: the identity {}, as of {}", manifest.public_key, manifest.created));
    if manifest.has_registry {
        exit::say(format_args!(
            "what changed after {} is undone: tokens used since then can be used again, and what was revoked since then is not; \
             `culvert-relay audit`, `token list` and `connector list` show what there is",
            manifest.created
        ));
    } else if sqlite {
        exit::say(
            "warning: the backup holds no registry (it was in PostgreSQL), and the configuration names SQLite: the relay \
                   will start with an empty one",
        );
    } else {
        exit::say("not in the backup: the registry, which is in PostgreSQL");
    }
    if let Some(aside) = aside {
        exit::say(format_args!("what stood there before is in {}: delete it when it is not needed", aside.display()));
    }
}

/// A directory in use is not restored into, by mistake.
fn refuse_used(state: &StateDir, registry: Option<&Path>) -> Result<(), Quit> {
    let entries = fs::read_dir(state.path()).or_failed(format_args!("cannot read {}", state.path().display()))?;
    let mut found: Vec<String> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    found.retain(|name| !NOTHING.contains(&name.as_str()) && !name.starts_with(UNFINISHED));
    found.sort_unstable();
    if let Some(path) = registry.filter(|path| fs::metadata(path).is_ok_and(|metadata| metadata.len() > 0))
        && !path.starts_with(state.path())
    {
        found.push(path.display().to_string());
    }
    match found.first() {
        None => Ok(()),
        Some(one) => Err(Quit::failed(format!("{} is not empty: it holds {one}", state.path().display()))
            .hint("restore into an empty directory; or --force puts what the backup replaces aside and restores here")),
    }
}

/// What was read from a backup, beside its place.
struct Staged {
    keys: Vec<(String, NamedTempFile)>,
    registry: Option<NamedTempFile>,
}

impl Staged {
    fn read(input: &mut impl Read, state: &StateDir, registry: Option<&Path>) -> io::Result<Self> {
        let mut staged = Self { keys: Vec::new(), registry: None };
        while let Some(entry) = archive::read_entry(input)? {
            let content = input.by_ref().take(entry.length);
            if is_key(&entry.name) && entry.length <= KEY_BYTES {
                staged.keys.push((entry.name, fill(state, state.path(), content, entry.length)?));
            } else if entry.name == REGISTRY
                && let Some(target) = registry
            {
                // On the file system where it is to be.
                let directory = target.parent().unwrap_or(state.path());
                staged.registry = Some(fill(state, directory, content, entry.length)?);
            } else {
                return Err(io::Error::other(format!("it holds {}, which this program does not know", entry.name)));
            }
        }
        // The last piece says that it is: nothing was cut off.
        match input.read(&mut [0])? {
            0 => Ok(staged),
            _ => Err(io::Error::other("it goes on behind its end")),
        }
    }

    /// That what was read is a relay's identity and registry; readies the registry for connectors that went on since.
    async fn ready(&self, manifest: &Manifest, state: &StateDir) -> Result<(), Quit> {
        for name in [PRIVATE_KEY, STATE_KEY, RESET_KEY] {
            let key = self.key(name).or_failed(format_args!("the backup's {name}"))?;
            if name == PRIVATE_KEY && key.public_key() != manifest.public_key {
                return Err(Quit::failed("the backup's key is another one than it says"));
            }
        }
        match (&self.registry, manifest.has_registry) {
            (Some(file), true) => {
                // Opening looks it through, and brings it to the schema of this program.
                let registry = Url::at(file.path()).open(state)?;
                let row = AuditRow {
                    at: SystemTime::now(),
                    actor: uid(nix::unistd::geteuid().as_raw()),
                    action: "relay.restore".to_owned(),
                    subject: "relay".to_owned(),
                    detail: format!("from a backup of {}", manifest.created),
                };
                let tag = relay_tag(&self.key(STATE_KEY).or_failed("the backup's state.key")?);
                registry.restored(tag, row).await.map_err(Quit::from)
            }
            (None, false) => Ok(()),
            (Some(_), false) | (None, true) => Err(Quit::failed("the backup holds something else than it says")),
        }
    }

    fn key(&self, name: &str) -> Result<PrivateKey, BadKey> {
        let (_, file) = self.keys.iter().find(|(known, _)| known == name).ok_or(BadKey)?;
        let text = fs::read_to_string(file.path()).map(Zeroizing::new).map_err(|_| BadKey)?;
        text.trim().parse()
    }

    /// Moves everything to its place. The registry goes first and the private key last: a relay does not start with a part.
    fn put(mut self, state: &StateDir, registry: Option<&Path>) -> io::Result<()> {
        if let (Some(file), Some(target)) = (self.registry.take(), registry) {
            persist(file, target)?;
        }
        self.keys.sort_by_key(|(name, _)| name == PRIVATE_KEY);
        for (name, file) in self.keys {
            persist(file, &state.path().join(name))?;
        }
        Ok(())
    }
}

/// One entry's content in an unfinished file that belongs to the directory's owner.
fn fill(state: &StateDir, directory: &Path, mut content: impl Read, length: u64) -> io::Result<NamedTempFile> {
    let mut file = unfinished_in(directory)?;
    if io::copy(&mut content, file.as_file_mut())? != length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    file.as_file_mut().flush()?;
    file.as_file().sync_all()?;
    state.adopt(file.path()).map_err(io::Error::other)?;
    Ok(file)
}

fn persist(file: NamedTempFile, target: &Path) -> io::Result<()> {
    file.persist(target).map_err(|error| error.error)?;
    let directory = target.parent().unwrap_or_else(|| Path::new("/"));
    File::open(directory)?.sync_all()
}

/// Moves keys and registry into a directory of their own inside the state directory.
fn put_aside(state: &StateDir, registry: Option<&Path>) -> Result<Option<PathBuf>, Quit> {
    let mut old: Vec<PathBuf> = key_names(state)?.into_iter().map(|name| state.path().join(name)).collect();
    if let Some(path) = registry {
        let beside = |suffix: &str| {
            let mut name = path.as_os_str().to_owned();
            name.push(suffix);
            PathBuf::from(name)
        };
        old.extend(["", "-wal", "-shm", "-journal"].map(beside).into_iter().filter(|path| path.exists()));
    }
    if old.is_empty() {
        return Ok(None);
    }
    let aside = state.create_dir(&format!("replaced-{}", rfc3339(SystemTime::now()).replace(':', "")))?;
    // Keys go first: a registry without them is refused, but with them and no registry a relay would begin a new one.
    old.sort_by_key(|path| path.extension().is_some_and(|extension| extension == "key"));
    for path in old.into_iter().rev() {
        let name = path.file_name().unwrap_or_default();
        fs::rename(&path, aside.join(name)).or_failed(format_args!(
            "cannot move {} to {} (a registry on another file system: move it yourself)",
            path.display(),
            aside.display()
        ))?;
    }
    Ok(Some(aside))
}

/// What is wrong with a backup that cannot be read.
fn said(shown: &str, error: io::Error) -> Quit {
    let quit = Quit::failed(format!("cannot restore {shown}: {error}; nothing was changed"));
    match unopened(&error) {
        Some(Unopened::WrongPassphrase) => {
            quit.hint("the file is whole: it opens with the passphrase it was made with")
        }
        Some(Unopened::Damaged) => quit.hint("copy it again, as binary, or take another backup"),
        Some(Unopened::Newer(_)) => quit.hint("use the program that made it, or a newer one"),
        Some(Unopened::NotABackup) | None => quit,
    }
}
