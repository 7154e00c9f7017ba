//! The directory itself and its files: private, whole, and owned as the directory is.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use nix::unistd::{Gid, Uid, chown, geteuid};
use tempfile::TempDir;
use zeroize::Zeroizing;

use super::{Lock, StateError};

/// The longest file that [`StateDir::read`] takes: keys and small records.
const LONGEST: u64 = 1 << 20;
/// What unfinished files are called; [`StateDir::lock`] removes those of a killed process.
const UNFINISHED: &str = ".unfinished-";

/// The content of a private file. Wiped on drop.
pub type Private = Zeroizing<Vec<u8>>;

/// A state directory that nobody else can read. Clones share it.
#[derive(Debug, Clone)]
pub struct StateDir {
    path: PathBuf,
    owner: Option<(Uid, Gid)>,
    /// Removed with the last clone, for `dev` and tests.
    _temporary: Option<Arc<TempDir>>,
}

impl StateDir {
    /// Opens a directory that is there.
    ///
    /// # Errors
    /// [`StateError::Exposed`] when others can read it, [`StateError::Denied`] when this user may not,
    /// [`StateError::System`] when it is missing or not a directory.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        let failed = |source| StateError::from_io("open the state directory", path, source);
        let metadata = fs::metadata(path).map_err(failed)?;
        if !metadata.is_dir() {
            return Err(failed(io::ErrorKind::NotADirectory.into()));
        }
        let mode = metadata.mode() & 0o7777;
        if mode & 0o007 != 0 {
            return Err(StateError::Exposed { path: path.to_path_buf(), mode, directory: true });
        }
        fs::read_dir(path).map_err(failed)?;
        if mode & 0o060 != 0 {
            tracing::warn!(path = %path.display(), mode = format_args!("{mode:04o}"), "the group can read the state directory");
        }
        let foreign = geteuid().is_root() && metadata.uid() != 0;
        let owner = foreign.then(|| (Uid::from_raw(metadata.uid()), Gid::from_raw(metadata.gid())));
        Ok(Self { path: path.to_path_buf(), owner, _temporary: None })
    }

    /// Opens a directory, or makes it with mode 0700 (its missing parents as usual).
    ///
    /// # Errors
    /// As [`StateDir::open`], and [`StateError::ReadOnly`].
    pub fn create(path: &Path) -> Result<Self, StateError> {
        let failed = |source| StateError::from_io("make the state directory", path, source);
        if !path.is_dir() {
            if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                fs::create_dir_all(parent).map_err(failed)?;
            }
            match DirBuilder::new().mode(0o700).create(path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
                Ok(()) | Err(_) => {}
            }
        }
        let state = Self::open(path)?;
        // Said now, and not when the first key is to be written.
        drop(state.unfinished()?);
        Ok(state)
    }

    /// Makes one that vanishes with its last clone.
    ///
    /// # Errors
    /// [`StateError::System`] and its like, when the temporary directory cannot be written.
    pub fn temporary() -> Result<Self, StateError> {
        let made = tempfile::Builder::new().prefix("culvert-").permissions(fs::Permissions::from_mode(0o700)).tempdir();
        let made = made.map_err(|error| StateError::from_io("make", std::env::temp_dir(), error))?;
        let mut state = Self::create(made.path())?;
        state._temporary = Some(Arc::new(made));
        Ok(state)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Who owns it, when this process is root and the owner is somebody else.
    pub fn owner(&self) -> Option<(u32, u32)> {
        self.owner.map(|(uid, gid)| (uid.as_raw(), gid.as_raw()))
    }

    /// Holds it for this process, and clears what a killed one left half-written.
    ///
    /// # Errors
    /// [`StateError::Busy`] with the other process.
    pub fn lock(&self) -> Result<Lock, StateError> {
        let lock = Lock::take(self)?;
        if let Ok(entries) = fs::read_dir(&self.path) {
            for entry in entries.flatten() {
                if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
                    let _ = fs::remove_file(entry.path());
                }
            }
        }
        Ok(lock)
    }

    /// The path of a file inside, as `private.key` or `relays/main/preshared.key`.
    ///
    /// # Errors
    /// [`StateError::Outside`] for a name that leads elsewhere.
    pub fn join(&self, name: &str) -> Result<PathBuf, StateError> {
        let inside = !name.is_empty() && Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
        if inside { Ok(self.path.join(name)) } else { Err(StateError::Outside(name.to_owned())) }
    }

    /// Reads a private file; none when it is not there.
    ///
    /// # Errors
    /// [`StateError::Exposed`] when others can read it.
    pub fn read(&self, name: &str) -> Result<Option<Private>, StateError> {
        let path = self.join(name)?;
        let failed = |source| StateError::from_io("read", &path, source);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let metadata = file.metadata().map_err(failed)?;
        refuse_exposed(&path, &metadata)?;
        if !metadata.is_file() || metadata.len() > LONGEST {
            return Err(failed(io::Error::other("not a small plain file")));
        }
        // Whole in one piece: growing would leave copies of a key behind.
        let mut content = Zeroizing::new(Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or(0) + 1));
        file.take(LONGEST).read_to_end(&mut content).map_err(failed)?;
        Ok(Some(content))
    }

    /// Reads a private file of text, less the white space around it; none when it is not there.
    ///
    /// # Errors
    /// As [`StateDir::read`]; [`StateError::System`] when it is not UTF-8.
    pub fn read_text(&self, name: &str) -> Result<Option<Zeroizing<String>>, StateError> {
        let Some(content) = self.read(name)? else { return Ok(None) };
        match std::str::from_utf8(&content) {
            Ok(text) => Ok(Some(Zeroizing::new(text.trim().to_owned()))),
            Err(error) => Err(StateError::from_io("read", self.path.join(name), io::Error::other(error))),
        }
    }

    /// Writes a file with mode 0600: after a crash it is the old one or the new one, never a part.
    ///
    /// # Errors
    /// [`StateError::ReadOnly`], [`StateError::Denied`], [`StateError::System`] (a full disk); the old file stands then.
    pub fn write(&self, name: &str, content: &[u8]) -> Result<(), StateError> {
        let path = self.join(name)?;
        let failed = |source| StateError::from_io("write", &path, source);
        let mut file = self.unfinished()?;
        file.write_all(content).and_then(|()| file.as_file().sync_all()).map_err(failed)?;
        self.adopt(file.path())?;
        file.persist(&path).map_err(|error| failed(error.error))?;
        let directory = path.parent().unwrap_or(&self.path);
        File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed)
    }

    /// Removes a file; one that is not there is fine.
    ///
    /// # Errors
    /// [`StateError::ReadOnly`], [`StateError::Denied`], [`StateError::System`].
    pub fn remove(&self, name: &str) -> Result<(), StateError> {
        let path = self.join(name)?;
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StateError::from_io("remove", path, error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Makes a directory inside with mode 0700, and its missing parents; one that is there is fine.
    ///
    /// # Errors
    /// [`StateError::ReadOnly`], [`StateError::Denied`], [`StateError::System`].
    pub fn create_dir(&self, name: &str) -> Result<PathBuf, StateError> {
        let target = self.join(name)?;
        let mut path = self.path.clone();
        for part in Path::new(name).components() {
            path.push(part);
            match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => self.adopt(&path)?,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(StateError::from_io("make", path, error)),
            }
        }
        Ok(target)
    }

    /// Gives a file that root made here (a database, its journal) to the directory's owner.
    ///
    /// # Errors
    /// [`StateError::System`] when it cannot be given away.
    pub fn adopt(&self, path: &Path) -> Result<(), StateError> {
        let Some((uid, gid)) = self.owner else { return Ok(()) };
        chown(path, Some(uid), Some(gid)).map_err(|errno| StateError::from_io("give away", path, errno.into()))
    }

    /// Makes an empty file with mode 0600 where none is, for a library that would make it readable (a database).
    ///
    /// # Errors
    /// As [`StateDir::check_private`]; [`StateError::ReadOnly`], [`StateError::Denied`], [`StateError::System`].
    pub fn create_file(&self, name: &str) -> Result<PathBuf, StateError> {
        let path = self.join(name)?;
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
            Ok(_) => self.adopt(&path)?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => self.check_private(name)?,
            Err(error) => return Err(StateError::from_io("make", path, error)),
        }
        Ok(path)
    }

    /// Refuses a file that others can read, and warns when the group can; a missing one is fine. For files that this
    /// crate does not read itself, as the registry.
    ///
    /// # Errors
    /// [`StateError::Exposed`].
    pub fn check_private(&self, name: &str) -> Result<(), StateError> {
        let path = self.join(name)?;
        match fs::metadata(&path) {
            Ok(metadata) => refuse_exposed(&path, &metadata),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(StateError::from_io("read", path, error)),
        }
    }

    fn unfinished(&self) -> Result<tempfile::NamedTempFile, StateError> {
        tempfile::Builder::new()
            .prefix(UNFINISHED)
            .permissions(fs::Permissions::from_mode(0o600))
            .tempfile_in(&self.path)
            .map_err(|source| StateError::from_io("write in the state directory", &self.path, source))
    }
}

fn refuse_exposed(path: &Path, metadata: &fs::Metadata) -> Result<(), StateError> {
    let mode = metadata.mode() & 0o7777;
    if mode & 0o007 != 0 {
        return Err(StateError::Exposed { path: path.to_path_buf(), mode, directory: false });
    }
    if mode & 0o070 != 0 {
        tracing::warn!(path = %path.display(), mode = format_args!("{mode:04o}"), "the group can read a private file");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::{Exit, Quit};

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn the_directory_and_its_files_are_made_private() {
        let outside = tempfile::tempdir().unwrap();
        let state = StateDir::create(&outside.path().join("a/b")).unwrap();
        state.write("private.key", b"secret").unwrap();
        state.create_dir("relays/main").unwrap();
        state.write("relays/main/preshared.key", b"other").unwrap();
        assert_eq!(mode(state.path()), 0o700);
        assert_eq!(mode(&state.path().join("private.key")), 0o600);
        assert_eq!(mode(&state.path().join("relays")), 0o700);
        assert_eq!(mode(&state.create_file("registry.db").unwrap()), 0o600);
        assert!(state.create_file("registry.db").is_ok(), "one that is there is kept");
        assert_eq!(state.read("private.key").unwrap().unwrap().as_slice(), b"secret");
        assert_eq!(state.read("none.key").unwrap(), None);
    }

    #[test]
    fn a_directory_that_others_can_reach_is_refused_with_the_command_that_cures_it() {
        let outside = tempfile::tempdir().unwrap();
        for exposed in [0o701, 0o704, 0o755, 0o777, 0o1777] {
            set_mode(outside.path(), exposed);
            let quit = Quit::from(StateDir::open(outside.path()).unwrap_err());
            assert_eq!(quit.exit, Exit::Config, "{exposed:o}");
            assert!(quit.hint.unwrap().contains("chmod 700"));
            assert!(StateDir::create(outside.path()).is_err());
        }
        for private in [0o700, 0o750, 0o770, 0o2770, 0o710] {
            set_mode(outside.path(), private);
            assert!(StateDir::open(outside.path()).is_ok(), "{private:o}");
        }
    }

    #[test]
    fn a_key_that_others_can_read_is_refused_and_one_for_the_group_is_not() {
        let state = StateDir::temporary().unwrap();
        state.write("private.key", b"secret").unwrap();
        let path = state.path().join("private.key");
        set_mode(&path, 0o644);
        let quit = Quit::from(state.read("private.key").unwrap_err());
        assert_eq!(quit.exit, Exit::Config);
        assert!(quit.hint.unwrap().contains("chmod 600"));
        assert!(state.check_private("private.key").is_err());
        set_mode(&path, 0o640);
        assert!(state.read("private.key").is_ok());
        assert!(state.check_private("missing").is_ok());
    }

    #[test]
    fn a_rewritten_file_is_another_file_and_nothing_half_written_stays() {
        let state = StateDir::temporary().unwrap();
        state.write("key", b"old").unwrap();
        let before = fs::metadata(state.path().join("key")).unwrap().ino();
        let mut reader = File::open(state.path().join("key")).unwrap();
        state.write("key", b"new").unwrap();
        let mut seen = String::new();
        reader.read_to_string(&mut seen).unwrap();
        assert_eq!(seen, "old", "a reader of the old file keeps it whole");
        assert_ne!(fs::metadata(state.path().join("key")).unwrap().ino(), before);
        fs::write(state.path().join(format!("{UNFINISHED}x")), b"half").unwrap();
        let _lock = state.lock().unwrap();
        let left: Vec<_> = fs::read_dir(state.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left.len(), 2, "{left:?}");
    }

    #[test]
    fn names_that_lead_out_of_the_directory_are_refused() {
        let state = StateDir::temporary().unwrap();
        for name in ["", "/etc/passwd", "../x", "a/../../x"] {
            assert!(matches!(state.write(name, b""), Err(StateError::Outside(_))), "{name:?}");
        }
    }

    #[test]
    fn files_that_root_makes_belong_to_the_owner_of_the_directory() {
        if !geteuid().is_root() {
            eprintln!("SKIPPED: only root can give files away");
            return;
        }
        let outside = tempfile::tempdir().unwrap();
        set_mode(outside.path(), 0o700);
        chown(outside.path(), Some(Uid::from_raw(4321)), Some(Gid::from_raw(4322))).unwrap();
        let state = StateDir::open(outside.path()).unwrap();
        assert_eq!(state.owner(), Some((4321, 4322)));
        state.write("key", b"k").unwrap();
        state.create_dir("relays/main").unwrap();
        let _lock = state.lock().unwrap();
        for name in ["key", "relays", "relays/main", "lock"] {
            let metadata = fs::metadata(outside.path().join(name)).unwrap();
            assert_eq!((metadata.uid(), metadata.gid()), (4321, 4322), "{name}");
        }
    }

    #[test]
    fn a_place_that_cannot_be_written_is_named() {
        let quit = Quit::from(StateDir::create(Path::new("/proc/culvert")).unwrap_err());
        assert!(quit.message.contains("/proc/culvert"), "{}", quit.message);
        let denied = StateError::from_io("write", "/x", io::ErrorKind::ReadOnlyFilesystem.into());
        assert_eq!(Quit::from(denied).exit, Exit::Config);
    }

    #[test]
    fn a_temporary_directory_vanishes_with_its_last_clone() {
        let state = StateDir::temporary().unwrap();
        let path = state.path().to_path_buf();
        let clone = state.clone();
        drop(state);
        assert!(path.is_dir());
        drop(clone);
        assert!(!path.exists());
    }
}
