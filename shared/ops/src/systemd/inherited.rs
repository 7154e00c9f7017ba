//! Sockets that systemd opened for us, by the names of its units.

use std::net::{TcpListener, UdpSocket};
use std::os::fd::{AsFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sys::socket::{AddressFamily, SockType, SockaddrLike as _, SockaddrStorage, getsockname, getsockopt, sockopt};

use crate::load::Environment;

/// The first descriptor that is handed over (sd_listen_fds(3)).
const FIRST: RawFd = 3;
/// More than any unit has.
const MOST: RawFd = 256;

static TAKEN: AtomicBool = AtomicBool::new(false);

/// A socket that was opened for us; non-blocking, closed on exec.
#[derive(Debug)]
pub enum Inherited {
    /// A listening TCP socket.
    Tcp(TcpListener),
    /// A listening unix socket.
    Unix(UnixListener),
    /// A UDP socket.
    Udp(UdpSocket),
}

/// The sockets that were handed over.
#[derive(Debug, Default)]
pub struct Sockets {
    named: Vec<(String, Inherited)>,
}

impl Sockets {
    /// Takes what `LISTEN_FDS` and `LISTEN_FDNAMES` speak of; once per process, later calls get nothing. To be called
    /// at the start, before anything else opens descriptors.
    pub fn take(environment: &dyn Environment) -> Self {
        let for_us = environment.var("LISTEN_PID").is_some_and(|pid| pid == std::process::id().to_string());
        let count = environment.var("LISTEN_FDS").and_then(|text| text.parse::<RawFd>().ok()).unwrap_or(0);
        if !for_us || count <= 0 || TAKEN.swap(true, Ordering::SeqCst) {
            return Self::default();
        }
        let names = environment.var("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':').map(str::to_owned);
        let mut named = Vec::new();
        for fd in FIRST..FIRST + count.min(MOST) {
            let name = names.next().filter(|name| !name.is_empty()).unwrap_or_else(|| "unknown".to_owned());
            match own(fd).and_then(classify) {
                Some(socket) => named.push((name, socket)),
                None => tracing::warn!(fd, name, "a socket from the service manager is of no use"),
            }
        }
        Self { named }
    }

    /// Takes those with this name (`FileDescriptorName=` of the socket unit).
    pub fn named(&mut self, name: &str) -> Vec<Inherited> {
        let (found, rest) = std::mem::take(&mut self.named).into_iter().partition(|(other, _)| other == name);
        self.named = rest;
        found.into_iter().map(|(_, socket): (String, _)| socket).collect()
    }

    /// The names of those that nobody took.
    pub fn left(&self) -> Vec<&str> {
        self.named.iter().map(|(name, _)| name.as_str()).collect()
    }
}

/// Takes an inherited descriptor; none when it is closed, or was opened by this process itself.
#[expect(unsafe_code, reason = "a descriptor's number is all that sd_listen_fds(3) hands over")]
fn own(fd: RawFd) -> Option<OwnedFd> {
    // SAFETY: F_GETFD takes no pointer and changes nothing; a closed descriptor is answered with -1.
    let flags = unsafe { nix::libc::fcntl(fd, nix::libc::F_GETFD) };
    // Rust opens everything with close-on-exec, so a descriptor that has it is this process's own.
    if flags < 0 || flags & nix::libc::FD_CLOEXEC != 0 {
        return None;
    }
    // SAFETY: the descriptor is open (just checked), was inherited and not opened here (no close-on-exec), and the
    // protocol gives it to the process whose pid LISTEN_PID names, which is this one. `TAKEN` lets this happen once, so
    // nobody else owns it.
    let owned = unsafe { OwnedFd::from_raw_fd(fd) };
    fcntl(&owned, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).ok()?;
    Some(owned)
}

fn classify(fd: OwnedFd) -> Option<Inherited> {
    let kind = getsockopt(&fd, sockopt::SockType).ok()?;
    let family = getsockname::<SockaddrStorage>(std::os::fd::AsRawFd::as_raw_fd(&fd.as_fd())).ok()?.family()?;
    let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL).ok()?);
    fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).ok()?;
    let inet = matches!(family, AddressFamily::Inet | AddressFamily::Inet6);
    match kind {
        SockType::Stream if !getsockopt(&fd, sockopt::AcceptConn).ok()? => None,
        SockType::Stream if inet => Some(Inherited::Tcp(fd.into())),
        SockType::Stream if family == AddressFamily::Unix => Some(Inherited::Unix(fd.into())),
        SockType::Datagram if inet => Some(Inherited::Udp(fd.into())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::os::fd::AsRawFd as _;

    use super::*;

    #[test]
    fn each_socket_is_known_for_what_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = tcp.local_addr().unwrap();
        match classify(tcp.into()) {
            Some(Inherited::Tcp(listener)) => {
                assert_eq!(listener.local_addr().unwrap(), address);
                let busy = listener.accept().unwrap_err();
                assert_eq!(busy.kind(), std::io::ErrorKind::WouldBlock, "it was made non-blocking");
            }
            other => panic!("{other:?}"),
        }
        let unix = UnixListener::bind(directory.path().join("s")).unwrap();
        assert!(matches!(classify(unix.into()), Some(Inherited::Unix(_))));
        assert!(matches!(
            classify(UdpSocket::bind("[::]:0").or_else(|_| UdpSocket::bind("127.0.0.1:0")).unwrap().into()),
            Some(Inherited::Udp(_))
        ));
        assert!(classify(tempfile::tempfile().unwrap().into()).is_none());
    }

    #[test]
    fn a_descriptor_of_our_own_is_never_taken() {
        let ours = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(own(ours.as_raw_fd()).is_none());
        assert!(own(1 << 20).is_none(), "a closed one");
    }

    #[test]
    fn what_is_meant_for_another_process_stays() {
        for pid in ["1", "", "x"] {
            let env: BTreeMap<String, String> =
                [("LISTEN_PID", pid), ("LISTEN_FDS", "1")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
            assert!(Sockets::take(&env).left().is_empty());
        }
    }

    /// Run by the test below in a process of its own, with a listening socket as descriptor 3.
    #[test]
    fn child_takes_its_socket() {
        use crate::load::ProcessEnvironment;
        if ProcessEnvironment.var("CULVERT_TEST_CHILD").is_none() {
            return;
        }
        let mut sockets = Sockets::take(&ProcessEnvironment);
        assert!(Sockets::take(&ProcessEnvironment).left().is_empty(), "a second time nothing is there");
        match sockets.named("http").pop() {
            Some(Inherited::Tcp(listener)) => println!("took {}", listener.local_addr().unwrap()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_socket_that_was_handed_over_is_listened_on() {
        use std::process::Command;
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let hand_over =
            "exec env LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=http CULVERT_TEST_CHILD=1 \"$@\" 3<&0 0</dev/null";
        let child = Command::new("sh")
            .args(["-c", hand_over, "sh"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture", "systemd::inherited::tests::child_takes_its_socket"])
            .stdin(OwnedFd::from(listener))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&child.stdout).into_owned();
        assert!(child.status.success() && said.contains(&format!("took {address}")), "{said}");
    }

    #[test]
    fn sockets_are_taken_by_name() {
        let socket = || Inherited::Udp(UdpSocket::bind("127.0.0.1:0").unwrap());
        let named = ["http", "admin", "http"].map(|name| (name.to_owned(), socket()));
        let mut sockets = Sockets { named: named.into() };
        assert_eq!(sockets.named("http").len(), 2);
        assert_eq!(sockets.left(), ["admin"]);
        assert!(sockets.named("http").is_empty());
    }
}
