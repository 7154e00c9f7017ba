//! The admin server's two doors: a TCP address and the socket in the state directory.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use nix::unistd::{Group, chown};
use tokio::net::{TcpListener, UnixListener};

use super::AdminError;
use crate::state::StateDir;

/// The socket's name in the state directory.
pub(super) const SOCKET: &str = "admin.sock";
/// How many ports after the default are tried before any free one is taken.
const NEXT: u16 = 20;
/// What fits into `sockaddr_un` with some room (unix(7): 108 bytes with the NUL).
const LONGEST_PATH: usize = 100;

/// Listens on the admin address. A default that is taken gives way to the next free port, with one line; an address
/// that the user chose does not.
///
/// # Errors
/// [`AdminError::InUse`], [`AdminError::Listen`].
pub async fn bind_tcp(address: SocketAddr, chosen: bool) -> Result<TcpListener, AdminError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::AddrInUse => AdminError::InUse(address),
        _ => AdminError::Listen { address, source },
    };
    let first = match TcpListener::bind(address).await {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && !chosen => error,
        other => return other.map_err(failed),
    };
    let next = (1..=NEXT).filter_map(|step| address.port().checked_add(step)).chain([0]);
    for port in next {
        let other = SocketAddr::new(address.ip(), port);
        if let Ok(listener) = TcpListener::bind(other).await {
            let now = listener.local_addr().unwrap_or(other);
            tracing::info!(taken = %address, listen = %now, "the admin port is taken, another one is used");
            return Ok(listener);
        }
    }
    Err(failed(first))
}

/// The admin socket; its file goes with it.
#[derive(Debug)]
pub struct AdminSocket {
    pub(super) listener: UnixListener,
    path: PathBuf,
}

impl AdminSocket {
    /// Makes `admin.sock` in the state directory, whose lock the caller holds: 0600, or 0660 for a group.
    ///
    /// For the group to reach it, the directory becomes 0710 and the group's: passable, not readable.
    ///
    /// # Errors
    /// [`AdminError::NoGroup`], [`AdminError::Socket`].
    pub fn bind(state: &StateDir, group: Option<&str>) -> Result<Self, AdminError> {
        let path = state.path().join(SOCKET);
        let failed = |source: io::Error| AdminError::Socket { path: path.clone(), source };
        let group = match group {
            None => None,
            Some(name) => match Group::from_name(name) {
                Ok(Some(group)) => Some(group.gid),
                Ok(None) => return Err(AdminError::NoGroup(name.to_owned())),
                Err(errno) => return Err(failed(errno.into())),
            },
        };
        // INVARIANT: the state's lock is ours, so a socket that is there is a dead process's.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            Ok(()) | Err(_) => {}
        }
        let near = Near::new(&path).map_err(failed)?;
        let listener = UnixListener::bind(&near.path).map_err(failed)?;
        state.adopt(&path).map_err(|error| failed(io::Error::other(error)))?;
        if group.is_some() {
            chown(&path, None, group).and_then(|()| chown(state.path(), None, group)).map_err(|e| failed(e.into()))?;
            fs::set_permissions(state.path(), Permissions::from_mode(0o710)).map_err(failed)?;
        }
        let mode = if group.is_some() { 0o660 } else { 0o600 };
        fs::set_permissions(&path, Permissions::from_mode(mode)).map_err(failed)?;
        Ok(Self { listener, path })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// A socket's path that is short enough for the kernel: long ones go by a descriptor of their directory.
pub(super) struct Near {
    pub(super) path: PathBuf,
    _directory: Option<File>,
}

impl Near {
    pub(super) fn new(path: &Path) -> io::Result<Self> {
        let (Some(parent), Some(name), true) = (path.parent(), path.file_name(), path.as_os_str().len() > LONGEST_PATH)
        else {
            return Ok(Self { path: path.to_path_buf(), _directory: None });
        };
        let directory = OpenOptions::new().read(true).custom_flags(nix::libc::O_DIRECTORY).open(parent)?;
        let near = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())).join(name);
        Ok(Self { path: near, _directory: Some(directory) })
    }
}
