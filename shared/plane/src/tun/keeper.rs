//! The keeper: makes namespace and device, hands the device over, and opens sockets inside for as long as somebody asks.
//! The same code runs on a thread of this process and in a child without privileges.
//!
//! It must never read a packet, nor outlive the other end of its socket.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::unistd::{getegid, geteuid};
use tun_rs::DeviceBuilder;

use super::config::Way;
use super::passing::{self, Kind, MOST, Reply, Request, Setup, Step};
use super::routes;

/// The device's name inside; nobody else is there.
const NAME: &str = "culvert";
const DEVICE: &str = "/dev/net/tun";

/// What suits a namespace that only our own sockets use. Wishes: a kernel that refuses one works all the same.
const SETTINGS: [(&str, &str); 7] = [
    // A path that swallows long packets in silence is found by TCP itself (RFC 4821).
    ("net/ipv4/tcp_mtu_probing", "1"),
    // Nothing listens here, so every port is free for connections.
    ("net/ipv4/ip_local_port_range", "1024 65535"),
    ("net/ipv4/tcp_tw_reuse", "1"),
    // Whatever the host says of its own links; and nobody is there to be told of this one.
    ("net/ipv6/conf/default/disable_ipv6", "0"),
    ("net/ipv6/conf/default/addr_gen_mode", "1"),
    ("net/ipv6/conf/default/accept_ra", "0"),
    ("net/ipv6/conf/default/router_solicitations", "0"),
];

/// Why there is no device.
pub(super) struct Failure {
    step: Step,
    error: io::Error,
}

impl Step {
    fn failed(self, error: impl Into<io::Error>) -> Failure {
        Failure { step: self, error: error.into() }
    }
}

/// Does what `way` needs, answers on `socket`, and serves it until its other end is closed.
///
/// The calling thread changes its network namespace for good, and for [`Way::Child`] its user namespace: the process must
/// have no other thread then. `settled` is called when nothing more has to be set up.
///
/// # Errors
/// `socket` is none.
pub(super) fn keep(socket: BorrowedFd<'_>, way: Way, settled: impl FnOnce()) -> io::Result<()> {
    let Some(setup) = read_setup(socket)? else { return Ok(()) };
    match setup.ok_or_else(|| Step::Start.failed(nix::errno::Errno::EINVAL)).and_then(|setup| set_up(&setup, way)) {
        Ok((device, v6)) => {
            settled();
            if (Reply::Ready { device, v6 }).send(socket).is_ok() {
                serve(socket);
            }
        }
        Err(Failure { step, error }) => {
            let errno = error.raw_os_error().unwrap_or_default();
            let _ = Reply::Failed { step, errno }.send(socket);
        }
    }
    Ok(())
}

/// What is to be made, if it can be read; nothing when the other end is gone.
fn read_setup(socket: BorrowedFd<'_>) -> io::Result<Option<Option<Setup>>> {
    let mut bytes = [0; 512];
    let (length, _) = passing::receive(socket, &mut bytes)?;
    Ok((length > 0).then(|| Setup::read(&bytes[..length])))
}

fn set_up(setup: &Setup, way: Way) -> Result<(OwnedFd, bool), Failure> {
    // tun-rs would make the node; the host's files are not ours.
    if !Path::new(DEVICE).exists() {
        return Err(Step::Open.failed(io::Error::from_raw_os_error(nix::libc::ENOENT)));
    }
    enter(way)?;
    fs::File::options().read(true).write(true).open(DEVICE).map_err(|error| Step::Open.failed(error))?;
    make(setup)
}

/// A namespace of this thread's own.
fn enter(way: Way) -> Result<(), Failure> {
    match way {
        Way::Thread => unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| Step::Namespace.failed(errno)),
        Way::Child => {
            let (uid, gid) = (geteuid(), getegid());
            let both = CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET;
            unshare(both).map_err(|errno| Step::Namespace.failed(errno))?;
            // user_namespaces(7): without setgroups an unprivileged process may map its own group.
            let maps = [
                ("/proc/self/setgroups", "deny".to_owned()),
                ("/proc/self/uid_map", format!("{uid} {uid} 1")),
                ("/proc/self/gid_map", format!("{gid} {gid} 1")),
            ];
            for (file, content) in maps {
                fs::write(file, content).map_err(|error| Step::Map.failed(error))?;
            }
            Ok(())
        }
    }
}

fn make(setup: &Setup) -> Result<(OwnedFd, bool), Failure> {
    for (name, value) in SETTINGS {
        let _ = fs::write(Path::new("/proc/sys").join(name), value);
    }
    let mut builder = DeviceBuilder::new().name(NAME).mtu(setup.mtu).offload(true).enable(true);
    if let Some(v4) = setup.v4 {
        builder = builder.ipv4(v4, 32, None::<Ipv4Addr>);
    }
    let device = builder.build_sync().map_err(|error| Step::Make.failed(error))?;
    // A host without IPv6 still has peers that speak IPv4.
    let added = setup.v6.iter().try_for_each(|v6| device.add_address_v6(*v6, 128));
    let v6 = added.is_ok() && !setup.v6.is_empty();
    if setup.v4.is_none() {
        added.map_err(|error| Step::Address.failed(error))?;
    }
    let interface = device.if_index().map_err(|error| Step::Route.failed(error))?;
    for family in [setup.v4.map(|_| false), v6.then_some(true)].into_iter().flatten() {
        routes::set_default(family, interface).map_err(|error| Step::Route.failed(error))?;
    }
    device.set_nonblocking(true).map_err(|error| Step::Make.failed(error))?;
    // The same open file: tun-rs has no other way to let go of it.
    let descriptor = device.as_fd().try_clone_to_owned().map_err(|error| Step::Make.failed(error))?;
    Ok((descriptor, v6))
}

/// Opens sockets until nobody is left to ask.
fn serve(socket: BorrowedFd<'_>) {
    let mut bytes = [0; 16];
    while let Ok((length @ 1.., _)) = passing::receive(socket, &mut bytes) {
        let Some(request) = Request::read(&bytes[..length]) else { return };
        let count = usize::from(request.count).min(MOST);
        let opened: Result<Vec<_>, _> = (0..count).map(|_| open(request.kind)).collect();
        let reply = match opened {
            Ok(sockets) => Reply::Sockets { kind: request.kind, asked: request.count, sockets },
            Err(errno) => Reply::Short { kind: request.kind, errno: errno as i32 },
        };
        if reply.send(socket).is_err() {
            return;
        }
    }
}

fn open(kind: Kind) -> nix::Result<OwnedFd> {
    let (family, of) = match kind {
        Kind::TcpV4 => (AddressFamily::Inet, SockType::Stream),
        Kind::TcpV6 => (AddressFamily::Inet6, SockType::Stream),
        Kind::UdpV4 => (AddressFamily::Inet, SockType::Datagram),
        Kind::UdpV6 => (AddressFamily::Inet6, SockType::Datagram),
    };
    socket(family, of, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)
}
