//! `backup` and `restore`: a relay's identity and registry in one encrypted file, so that a lost host comes back as itself.
//!
//! Must never leave a half-written file, replace what works before all of the backup was opened and checked, or write a
//! secret anywhere in clear but into the state directory.

mod archive;
mod contents;
mod passphrase;
mod restore;
mod sealed;

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::Path;
use std::time::SystemTime;

use culvert_ops::exit::{self, Exit, OrQuit as _, Quit};
use culvert_ops::load::ProcessEnvironment;
use tempfile::NamedTempFile;

use crate::cli::{BackupArgs, Place, RunArgs};
use crate::command::{Command, ask};
use crate::config;
use crate::registry::Url;
use archive::{Manifest, REGISTRY};
use contents::Contents;
use passphrase::For;
pub(crate) use restore::restore;
use sealed::{Cost, Sealer, Unopened};

/// What its own files are called until they are whole.
const UNFINISHED: &str = ".unfinished-";

/// Writes the backup, also while the relay runs.
///
/// # Errors
/// Why there is none; what stood at the file's place stands there still.
pub(crate) async fn backup(args: BackupArgs) -> Result<Exit, Quit> {
    let state = ask::find(&args.place)?;
    contents::refuse_nothing(&state)?;
    refuse_foreign(&args.file)?;
    let registry = registry_of(&args.place)?;
    let passphrase = passphrase::find(args.passphrase_file.as_deref(), &ProcessEnvironment, For::Sealing)?;
    // Before, so that the backup knows of itself.
    let noted = ask::perform(Command::NoteBackup, &args.place, &state).await.and_then(|reply| reply.print(false));
    if let Err(quit) = noted {
        exit::say(format_args!("warning: the audit trail does not know of this backup: {quit}"));
    }
    let contents = Contents::of(&state, &registry)?;
    let manifest = Manifest::new(contents.public_key, contents.registry.is_some(), SystemTime::now());
    write(&args.file, |out| seal(out, &manifest, &contents, passphrase.expose().as_bytes(), Cost::default()))
        .or_failed(format_args!("cannot write {}", args.file.display()))?;
    exit::say(format_args!("backed up: the identity {}", contents.public_key));
    match contents.registry_bytes()? {
        Some(bytes) => exit::say(format_args!("backed up: the registry, {} KiB", bytes.div_ceil(1024))),
        None => exit::say(
            "not in it: the registry, which is in PostgreSQL; back it up with pg_dump (its sealed keys open with this identity \
             alone)",
        ),
    }
    exit::say("not in it: the configuration, and the files that it names (certificates, keys of listeners)");
    Ok(Exit::Ok)
}

/// A file that is something else is not written over.
fn refuse_foreign(path: &Path) -> Result<(), Quit> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Quit::failed(format!("cannot write {}: {error}", path.display()))),
    };
    let mut start = [0; sealed::MAGIC.len()];
    if file.metadata().is_ok_and(|metadata| metadata.is_file())
        && file.read_exact(&mut start).is_ok()
        && start == *sealed::MAGIC
    {
        return Ok(());
    }
    Err(Quit::failed(format!("{} is there and is no backup: it is not written over", path.display()))
        .hint("give another name, or remove it first"))
}

/// Where the registry is, as the configuration says.
fn registry_of(place: &Place) -> Result<Url, Quit> {
    let args = RunArgs { place: place.clone(), ..RunArgs::default() };
    Ok(config::load(&args, &ProcessEnvironment)?.1.registry)
}

fn seal(out: &mut File, manifest: &Manifest, contents: &Contents, passphrase: &[u8], cost: Cost) -> io::Result<()> {
    let mut sealer = Sealer::new(out, passphrase, cost)?;
    archive::write_manifest(&mut sealer, manifest)?;
    for (name, content) in &contents.keys {
        archive::write_entry(&mut sealer, name, content.len() as u64, content.as_slice())?;
    }
    if let Some(registry) = &contents.registry {
        let file = registry.reopen()?;
        archive::write_entry(&mut sealer, REGISTRY, file.metadata()?.len(), file)?;
    }
    archive::write_end(&mut sealer)?;
    sealer.finish()?.flush()
}

/// Writes a file with mode 0600 that is there whole or not at all.
fn write(path: &Path, fill: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut file = unfinished_in(directory)?;
    fill(file.as_file_mut())?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    File::open(directory)?.sync_all()
}

fn unfinished_in(directory: &Path) -> io::Result<NamedTempFile> {
    use std::os::unix::fs::PermissionsExt as _;
    tempfile::Builder::new().prefix(UNFINISHED).permissions(fs::Permissions::from_mode(0o600)).tempfile_in(directory)
}

/// Why a backup cannot be opened, if that is why reading failed.
fn unopened(error: &io::Error) -> Option<Unopened> {
    error.get_ref()?.downcast_ref().copied()
}
