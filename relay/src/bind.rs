//! The sockets of the relay: bound by itself, or handed over by the service manager.
//!
//! Must never be half done in silence: an address that cannot be had ends the start with one line, except IPv6 on a host
//! without it where nobody asked for it.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use culvert_ops::exit::Quit;
use culvert_ops::systemd::{Inherited, Sockets};
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpListener, TcpSocket, UnixListener};
use tracing::info;

use crate::config::{self, Address, Listener, Settled, Tcp, WireGuard};
use crate::front::Bound;

/// Callers that wait to be accepted, as many as the system allows.
const BACKLOG: u32 = 4_096;
/// Bytes that the kernel takes for a caller beyond what is on its way to it. Left to itself it takes megabytes for one
/// that does not read: memory, and a tunnel that is busy with what nobody reads.
const UNSENT: u32 = 128 * 1024;
/// The name of the front's sockets in a socket unit (`FileDescriptorName=`).
const HTTP: &str = "http";

/// What the front's listeners are called where one cannot be had, and the flag that sets them.
const HTTP_FLAG: (&str, &str) = ("HTTP", "--http-listen");
/// The name of raw TCP listeners' sockets there.
const TCP: &str = "tcp";

/// One listener of the front.
pub(crate) struct Front<L = Listener> {
    pub(crate) bound: Bound,
    pub(crate) listener: L,
    /// The service manager owns it.
    pub(crate) inherited: bool,
}

/// Binds the UDP sockets of so many shards: for each those of every address.
///
/// # Errors
/// Exit 1 for one that is in use, 78 for one that this host does not have.
pub(crate) fn wireguard(settings: &WireGuard, any_port: bool, shards: u8) -> Result<Vec<Vec<UdpSocket>>, Quit> {
    let mut sockets: Vec<_> = (0..shards.max(1)).map(|_| Vec::new()).collect();
    for address in &settings.listen {
        match on_any_port(*address, any_port, |address| culvert_plane::bind_group(address, shards.max(1))) {
            Ok(group) => group.into_iter().zip(&mut sockets).for_each(|(socket, shard)| shard.push(socket)),
            Err(error) if settings.is_default && address.is_ipv6() && is_without_ipv6(&error) => {
                info!(%address, "this host has no IPv6, not listening there");
            }
            Err(error) => return Err(refused("UDP", address, "--wireguard-listen", &error)),
        }
    }
    Ok(sockets)
}

/// Binds the front's listeners, those of the service manager first. What each is for comes with it.
///
/// # Errors
/// Exit 1 for one that is in use, 78 for one that this host does not have or that must not be open.
pub(crate) fn front(settled: &Settled, sockets: &mut Sockets) -> Result<Vec<Front>, Quit> {
    let mut inherited = sockets.named(HTTP);
    inherited.extend(sockets.named("unknown"));
    let mut wanted = settled.listeners.clone();
    let mut bound = Vec::new();
    for socket in inherited {
        let (socket, address) = adopt(socket)?;
        let place = wanted.iter().position(|listener| listener.address == address);
        let listener = match place {
            Some(place) => wanted.remove(place),
            None if settled.listeners_are_default => config::listener_of(address)?,
            None => {
                let message = format!("the service manager handed over {address}, which no http listener names");
                return Err(Quit::config(message).hint("add it to [http] listen, or take it out of the socket unit"));
            }
        };
        bound.push(Front { bound: socket, listener, inherited: true });
    }
    if settled.listeners_are_default && !bound.is_empty() {
        wanted.clear();
    }
    for listener in wanted {
        let socket = listen(&listener.address, settled.any_port, HTTP_FLAG)?;
        bound.push(Front { bound: socket, listener, inherited: false });
    }
    Ok(bound)
}

/// Binds the raw TCP listeners, those of the service manager first.
///
/// # Errors
/// As [`front`].
pub(crate) fn tcp(settled: &Settled, sockets: &mut Sockets) -> Result<Vec<Front<Tcp>>, Quit> {
    let mut wanted = settled.tcp.clone();
    let mut bound = Vec::new();
    for socket in sockets.named(TCP) {
        let (socket, address) = adopt(socket)?;
        let Some(place) = wanted.iter().position(|listener| listener.address == address) else {
            let message = format!("the service manager handed over {address}, which no tcp listener names");
            return Err(Quit::config(message).hint("add a [[tcp]] table with it, or take it out of the socket unit"));
        };
        bound.push(Front { bound: socket, listener: wanted.remove(place), inherited: true });
    }
    for listener in wanted {
        let socket = listen(&listener.address, settled.any_port, ("TCP", "[[tcp]] listen ="))?;
        bound.push(Front { bound: socket, listener, inherited: false });
    }
    Ok(bound)
}

/// Where a listener is bound, port 0 resolved.
impl<L: HasAddress> std::fmt::Display for Front<L> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.bound {
            Bound::Tcp(socket) => match socket.local_addr() {
                Ok(at) => at.fmt(f),
                Err(_) => self.listener.address().fmt(f),
            },
            Bound::Unix(..) => self.listener.address().fmt(f),
        }
    }
}

/// A listener of either kind.
pub(crate) trait HasAddress {
    /// The address it is configured with.
    fn address(&self) -> &Address;
}

impl HasAddress for Listener {
    fn address(&self) -> &Address {
        &self.address
    }
}

impl HasAddress for Tcp {
    fn address(&self) -> &Address {
        &self.address
    }
}

fn adopt(socket: Inherited) -> Result<(Bound, Address), Quit> {
    let failed = |error: io::Error| Quit::failed(format!("a socket of the service manager cannot be used: {error}"));
    match socket {
        Inherited::Tcp(listener) => {
            let address = Address::Tcp(listener.local_addr().map_err(failed)?);
            hold_little(&listener).map_err(failed)?;
            Ok((Bound::Tcp(TcpListener::from_std(listener).map_err(failed)?), address))
        }
        Inherited::Unix(listener) => {
            let path =
                listener.local_addr().map_err(failed)?.as_pathname().map_or_else(PathBuf::new, Path::to_path_buf);
            Ok((Bound::Unix(UnixListener::from_std(listener).map_err(failed)?, None), Address::Unix(path)))
        }
        Inherited::Udp(_) => {
            Err(Quit::config("the service manager handed over a UDP socket as \"http\"")
                .hint("use ListenStream= there"))
        }
    }
}

/// `what` is said of a listener that cannot be had, and how it is set.
fn listen(address: &Address, any_port: bool, (what, flag): (&str, &str)) -> Result<Bound, Quit> {
    match address {
        Address::Tcp(at) => {
            let bound = on_any_port(*at, any_port, bind_tcp).map_err(|error| refused(what, at, flag, &error))?;
            Ok(Bound::Tcp(bound))
        }
        Address::Unix(path) => {
            let bound = unix(path).map_err(|error| refused(what, address, flag, &error))?;
            Ok(Bound::Unix(bound, Some(path.clone())))
        }
    }
}

/// Binds, on a port of the system's choice if the one that is asked for is taken and any will do.
fn on_any_port<T>(at: SocketAddr, any_port: bool, bind: impl Fn(SocketAddr) -> io::Result<T>) -> io::Result<T> {
    match bind(at) {
        Err(error) if any_port && error.kind() == io::ErrorKind::AddrInUse => bind(SocketAddr::new(at.ip(), 0)),
        result => result,
    }
}

fn bind_tcp(at: SocketAddr) -> io::Result<TcpListener> {
    let socket = if at.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if at.is_ipv6() {
        setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
    }
    // A restart must not wait for connections of the process before it.
    socket.set_reuseaddr(true)?;
    socket.bind(at)?;
    hold_little(&socket)?;
    socket.listen(BACKLOG)
}

/// Connections inherit it from their listener.
fn hold_little(socket: &impl std::os::fd::AsFd) -> io::Result<()> {
    socket2::SockRef::from(socket).set_tcp_notsent_lowat(UNSENT)
}

/// A socket file that nobody listens on is a dead process's.
fn unix(path: &Path) -> io::Result<UnixListener> {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket());
    if is_socket && std::os::unix::net::UnixStream::connect(path).is_err_and(|error| is_refused(&error)) {
        std::fs::remove_file(path)?;
    }
    UnixListener::bind(path)
}

fn is_refused(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ConnectionRefused
}

fn is_without_ipv6(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL))
}

fn refused(what: &str, address: &dyn std::fmt::Display, flag: &str, error: &io::Error) -> Quit {
    match error.kind() {
        io::ErrorKind::AddrInUse => Quit::failed(format!("the {what} address {address} is in use"))
            .hint(format!("stop what listens there, or give another {flag} ADDR")),
        io::ErrorKind::PermissionDenied => {
            Quit::config(format!("cannot listen on the {what} address {address}: {error}"))
                .hint("ports below 1024 need a socket unit, or a higher port")
        }
        _ => Quit::config(format!("cannot listen on the {what} address {address}: {error}"))
            .hint(format!("give an address of this host with {flag}")),
    }
}

#[cfg(test)]
mod tests {
    use culvert_ops::exit::Exit;

    use super::*;

    #[tokio::test]
    async fn an_address_in_use_is_named_and_a_foreign_one_is_a_wrong_configuration() {
        let taken = bind_tcp("127.0.0.1:0".parse().unwrap()).unwrap();
        let at = Address::Tcp(taken.local_addr().unwrap());
        assert!(listen(&at, true, HTTP_FLAG).is_ok(), "any port will do");
        let quit = listen(&at, false, HTTP_FLAG).err().unwrap();
        assert_eq!(quit.exit, Exit::Failed);
        assert!(
            quit.message.ends_with("is in use") && quit.hint.unwrap().contains("--http-listen"),
            "{}",
            quit.message
        );
        let foreign = listen(&Address::Tcp("192.0.2.1:1".parse().unwrap()), true, HTTP_FLAG).err().unwrap();
        assert_eq!(foreign.exit, Exit::Config);
    }

    #[tokio::test]
    async fn a_dead_processs_socket_file_is_replaced_and_a_live_ones_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("http.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let live = unix(&path).unwrap();
        assert_eq!(unix(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(live);
        let file = dir.path().join("precious");
        std::fs::write(&file, "x").unwrap();
        assert!(unix(&file).is_err());
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "x");
    }

    #[test]
    fn a_default_that_the_host_cannot_have_is_skipped_and_a_written_one_is_not() {
        // An address that no host has stands for IPv6 that this one may have.
        let listen = vec!["127.0.0.1:0".parse().unwrap(), "[2001:db8::1]:0".parse().unwrap()];
        let settings = |is_default| WireGuard {
            listen: listen.clone(),
            is_default,
            endpoints: Vec::new(),
            inner_ipv4: "100.127.80.1/20".parse().unwrap(),
            peer_mtu: 1408,
        };
        let counts = |sockets: Vec<Vec<UdpSocket>>| sockets.iter().map(Vec::len).collect::<Vec<_>>();
        assert_eq!(wireguard(&settings(true), false, 1).map(counts).unwrap(), [1]);
        assert_eq!(wireguard(&settings(true), false, 3).map(counts).unwrap(), [1, 1, 1]);
        assert_eq!(wireguard(&settings(false), false, 1).unwrap_err().exit, Exit::Config);
    }
}
