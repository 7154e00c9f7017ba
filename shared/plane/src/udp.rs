//! The UDP carrier: segmentation and receive offload, sticky source addresses, DF set (by quinn-udp) but for what stock
//! peers are sent: they do not look for a path's MTU, and WireGuard in the kernel sets no DF either.
//!
//! It must never let one refused datagram take others with it, nor treat EMSGSIZE as an error: path MTU discovery
//! sends packets that do not fit on purpose.

use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, Once, PoisonError};
use std::task::{Context, Poll};

use quinn_udp::{RecvMeta, Transmit, UdpSocketState};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::port::{Carrier, Sent};
use crate::steer::steer;
use crate::watch::watch;

/// What a busy relay needs to ride out a few milliseconds of other work.
const RECEIVE_BUFFER: usize = 4 << 20;
const SEND_BUFFER: usize = 2 << 20;
/// A socket that fails this often in a row while it says it is readable waits for its next readiness.
const MAX_FAILURES: usize = 16;

/// Binds one UDP socket for [`crate::Config::sockets`]: V6ONLY on IPv6, large buffers, non-blocking.
///
/// # Errors
/// As the system says; a port in use is [`io::ErrorKind::AddrInUse`].
pub fn bind(addr: SocketAddr) -> io::Result<UdpSocket> {
    bind_with(addr, false)
}

/// Binds one socket for each shard, in their order, to the same address (SO_REUSEPORT); port 0 picks one port for all of
/// them. The kernel gives each datagram to its shard's socket where it can.
///
/// # Errors
/// As [`bind`]: a port that another process has is in use, whatever options that process has set.
pub fn bind_group(addr: SocketAddr, shards: u8) -> io::Result<Vec<UdpSocket>> {
    // The first is bound alone, so that a stranger's socket is noticed; then it lets the others in.
    let first = bind_with(addr, false)?;
    if shards < 2 {
        return Ok(vec![first]);
    }
    let bound = first.local_addr()?;
    socket2::SockRef::from(&first).set_reuse_port(true)?;
    let others = (1..shards).map(|_| bind_with(bound, true));
    let group: Vec<_> = std::iter::once(Ok(first)).chain(others).collect::<io::Result<_>>()?;
    if let Some(first) = group.first()
        && let Err(error) = steer(first, shards)
    {
        tracing::info!(%error, "the kernel does not steer datagrams, shards pass them on to each other");
    }
    Ok(group)
}

fn bind_with(addr: SocketAddr, shared: bool) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    if shared {
        socket.set_reuse_port(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    socket.set_send_buffer_size(SEND_BUFFER)?;
    // Linux tells twice of what it gives, for its own book-keeping.
    let (receive, send) = (socket.recv_buffer_size()? / 2, socket.send_buffer_size()? / 2);
    if receive < RECEIVE_BUFFER || send < SEND_BUFFER {
        static NOTICE: Once = Once::new();
        NOTICE.call_once(|| {
            tracing::info!(
                receive,
                send,
                "UDP buffers are smaller than asked for: raise net.core.rmem_max and net.core.wmem_max for bursts"
            );
        });
    }
    socket.bind(&addr.into())?;
    Ok(socket.into())
}

/// A bound UDP socket on the current runtime.
#[derive(Debug)]
pub(crate) struct Udp {
    /// Watched for datagrams only: a socket that is watched for room to send wakes the shard whenever a datagram has left,
    /// about once in two requests on an idle machine.
    io: AsyncFd<OwnedFd>,
    /// The same socket, watched for room to send while it has none.
    room: Mutex<Option<AsyncFd<OwnedFd>>>,
    is_blocked: AtomicBool,
    state: UdpSocketState,
    local: SocketAddr,
    /// Cleared when the network device cannot do segmentation offload.
    offload: AtomicBool,
    /// DF is off now.
    fragments: AtomicBool,
}

impl Udp {
    pub(crate) fn new(socket: UdpSocket) -> io::Result<Self> {
        let local = socket.local_addr()?;
        let state = UdpSocketState::new((&socket).into())?;
        let offload = AtomicBool::new(state.max_gso_segments() > 1);
        let io = watch(socket.into(), Interest::READABLE)?;
        let (room, is_blocked, fragments) = (Mutex::default(), AtomicBool::new(false), AtomicBool::new(false));
        Ok(Self { io, room, is_blocked, state, local, offload, fragments })
    }

    fn send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let sent = self.state.try_send(self.io.get_ref().into(), transmit);
        if self.is_blocked.load(Ordering::Relaxed) && sent.is_ok() {
            self.is_blocked.store(false, Ordering::Relaxed);
            *self.room.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        sent
    }

    /// Wakes `cx` when there is room. The registration is new each time, so that it tells of room that is there already.
    fn watch_room(&self, cx: &mut Context<'_>) -> io::Result<()> {
        let room = watch(self.io.get_ref().try_clone()?, Interest::WRITABLE)?;
        if room.poll_write_ready(cx)?.is_ready() {
            cx.waker().wake_by_ref();
        }
        *self.room.lock().unwrap_or_else(PoisonError::into_inner) = Some(room);
        self.is_blocked.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Turns DF off or on for what follows. Sends alternate rarely, and a run is far dearer than this call.
    fn let_fragments(&self, fragments: bool) {
        if self.fragments.load(Ordering::Relaxed) != fragments
            && set_discovery(self.io.get_ref(), self.local, fragments)
        {
            self.fragments.store(fragments, Ordering::Relaxed);
        }
    }

    /// A run that was refused as a whole: a segment may be too long, the device may not know how to cut it, or our
    /// address may be gone. Each datagram on its own shows which.
    fn send_apart(&self, transmit: &Transmit<'_>, refused: i32) -> Sent {
        let segment = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
        let mut outcome = Sent::Done;
        let mut longest = 0;
        for contents in transmit.contents.chunks(segment) {
            match self.send_one(&Transmit { contents, segment_size: None, ..transmit.clone() }) {
                Sent::Done => longest = longest.max(contents.len()),
                Sent::Blocked => break,
                refused @ Sent::Refused(_) => outcome = refused,
            }
        }
        let cut_by_the_way = self.fragments.load(Ordering::Relaxed);
        if refused == libc::EIO
            || (!cut_by_the_way && longest == segment && refused == libc::EINVAL && transmit.src_ip.is_none())
        {
            self.offload.store(false, Ordering::Relaxed);
        }
        outcome
    }

    fn send_one(&self, transmit: &Transmit<'_>) -> Sent {
        match outcome(self.send(transmit)) {
            Sent::Refused(libc::EMSGSIZE) => Sent::Done,
            // Perhaps from our address of yesterday: the system picks another (sticky source, wire.md §2).
            Sent::Refused(_) if transmit.src_ip.is_some() => {
                self.send_one(&Transmit { src_ip: None, ..transmit.clone() })
            }
            other => other,
        }
    }
}

impl Carrier for Udp {
    fn poll_recv(&self, cx: &mut Context<'_>, bufs: &mut [IoSliceMut<'_>], metas: &mut [RecvMeta]) -> Poll<usize> {
        for _ in 0..MAX_FAILURES {
            let Poll::Ready(Ok(mut ready)) = self.io.poll_read_ready(cx) else { return Poll::Pending };
            // Errors here are old news of single peers (ECONNREFUSED and the like) or lost readiness.
            if let Ok(Ok(count @ 1..)) = ready.try_io(|io| self.state.recv(io.get_ref().into(), bufs, metas)) {
                if count < bufs.len() {
                    // There was no more, and the next to come says so itself (edge-triggered): asking once more would cost
                    // a system call in vain.
                    ready.clear_ready();
                }
                return Poll::Ready(count);
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn try_send(&self, transmit: &Transmit<'_>, fragments: bool) -> Sent {
        self.let_fragments(fragments);
        let run = transmit.segment_size.is_some_and(|segment| segment < transmit.contents.len());
        if !run {
            return self.send_one(transmit);
        }
        match outcome(self.send(transmit)) {
            Sent::Refused(errno) if transmit.src_ip.is_some() => self.send_apart(transmit, errno),
            Sent::Refused(errno @ (libc::EINVAL | libc::EIO | libc::EMSGSIZE)) => self.send_apart(transmit, errno),
            other => other,
        }
    }

    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<()> {
        if let Err(error) = self.watch_room(cx) {
            // Out of descriptors: without being told, it is tried again.
            tracing::debug!(%error, "cannot watch a UDP socket for room");
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    fn max_segments(&self) -> usize {
        if self.offload.load(Ordering::Relaxed) { 64 } else { 1 }
    }

    fn local_addr(&self) -> SocketAddr {
        self.local
    }
}

/// As quinn-udp sets them, or so that routers may take datagrams apart, and we ourselves where a router said how narrow it
/// is.
fn set_discovery(socket: &impl AsFd, local: SocketAddr, fragments: bool) -> bool {
    match (local, fragments) {
        (SocketAddr::V4(_), true) => set(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT),
        (SocketAddr::V4(_), false) => set(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE),
        (SocketAddr::V6(_), fragments) => {
            let discover = if fragments { libc::IPV6_PMTUDISC_DONT } else { libc::IPV6_PMTUDISC_PROBE };
            set(socket, libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, i32::from(!fragments))
                && set(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, discover)
        }
    }
}

#[expect(unsafe_code, reason = "neither std, socket2 nor nix knows these options")]
fn set(socket: &impl AsFd, level: i32, option: i32, value: i32) -> bool {
    // SAFETY: the descriptor is open, because `socket` is borrowed for the call; value and length describe one `c_int` on
    // this stack, which the kernel only reads.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            option,
            std::ptr::from_ref(&value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    result == 0
}

fn outcome(result: io::Result<()>) -> Sent {
    match result {
        Ok(()) => Sent::Done,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Sent::Blocked,
        Err(error) => Sent::Refused(error.raw_os_error().unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    fn loopback() -> SocketAddr {
        "127.0.0.1:0".parse().unwrap()
    }

    #[test]
    fn a_port_in_use_is_told_even_from_a_group() {
        let first = bind(loopback()).unwrap();
        let taken = first.local_addr().unwrap();
        assert_eq!(bind(taken).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        let group = bind_group(loopback(), 3).unwrap();
        assert_eq!(group.len(), 3);
        let ports: Vec<_> = group.iter().map(|socket| socket.local_addr().unwrap().port()).collect();
        assert!(ports.iter().all(|port| *port == ports[0]));
        assert_eq!(bind_group(group[0].local_addr().unwrap(), 2).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }

    #[tokio::test]
    async fn a_full_socket_tells_of_room_and_is_watched_for_it_no_longer_than_that() {
        let (to, from) = (bind(loopback()).unwrap(), bind(loopback()).unwrap());
        let destination = to.local_addr().unwrap();
        let from = Udp::new(from).unwrap();
        let contents = [7; 1000];
        let transmit = Transmit { destination, ecn: None, contents: &contents, segment_size: None, src_ip: None };
        // Loopback delivers in the call, so that nothing ever waits in the socket: the test says that it does.
        let mut polls = 0;
        poll_fn(|cx| {
            polls += 1;
            if polls == 1 { from.poll_writable(cx) } else { Poll::Ready(()) }
        })
        .await;
        assert!(from.room.lock().unwrap().is_some());
        assert_eq!(from.try_send(&transmit, false), Sent::Done);
        assert!(from.room.lock().unwrap().is_none());
    }

    #[tokio::test]
    async fn a_run_from_an_address_that_is_gone_is_sent_from_another() {
        let (to, from) = (Udp::new(bind(loopback()).unwrap()).unwrap(), Udp::new(bind(loopback()).unwrap()).unwrap());
        let contents = [7; 300];
        let sent = from.try_send(
            &Transmit {
                destination: to.local_addr(),
                ecn: None,
                contents: &contents,
                segment_size: Some(100),
                // Not an address of this host (sticky source, wire.md §2).
                src_ip: Some("192.0.2.1".parse().unwrap()),
            },
            false,
        );
        assert_eq!(sent, Sent::Done);
        let mut buffer = vec![0; 65_536];
        let mut metas = [RecvMeta::default()];
        let mut bytes = 0;
        while bytes < 300 {
            poll_fn(|cx| to.poll_recv(cx, &mut [IoSliceMut::new(&mut buffer)], &mut metas)).await;
            assert_eq!(metas[0].stride, 100);
            bytes += metas[0].len;
        }
        assert_eq!(from.max_segments(), 64, "offload is not to blame");
    }
}
