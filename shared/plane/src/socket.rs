//! The virtual UDP socket that QUIC believes it has: its datagrams are inner packets, its addresses synthetic.
//!
//! Datagrams of the outside are read, opened and handed out in the same call, without a task or queue between. It
//! must return only Ok or WouldBlock: any other error would end QUIC's driver and leave streams hanging (wire.md §1).

use std::io::{self, IoSliceMut};
use std::mem;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

use culvert_engine::Path;
use quinn::{AsyncUdpSocket, UdpPoller};
use quinn_udp::{RecvMeta, Transmit};
use tokio::sync::Notify;

use crate::group::Place;
use crate::inbox::Inbox;
use crate::pages::Pages;
use crate::plane::Role;
use crate::port::Carrier;
use crate::shard::Shard;
use crate::wrap::QUIC_PORT;

/// Receive buffers of one system call: each takes a whole GRO batch. Only what the kernel fills becomes memory.
const RECEIVE_BUFFERS: usize = 16;
const RECEIVE_BUFFER: usize = 64 * 1024;
/// System calls of one turn that may bring nothing for QUIC before other tasks get theirs.
const ROUNDS: usize = 4;
/// Datagrams opened before QUIC, and then other tasks, get their turn: about 200 µs.
const TURN: usize = 128;
/// What [`RECEIVE_BUFFER`] holds of datagrams of a 1500-byte path.
const SEGMENTS: usize = 44;
/// How many of them a connector's QUIC takes in a row. QUIC keeps 32 buffers of so many: 2 MiB at the relay, where bulk comes
/// in; a third of one in each connector.
const SEGMENTS_OF_CONNECTOR: usize = 8;

/// What the tasks of one shard share.
#[derive(Debug)]
pub(crate) struct Shared {
    shard: Mutex<Shard>,
    /// See [`Shard::place`].
    place: Option<Place>,
    intake: Mutex<Intake>,
    /// Notified when everything that waited has left.
    pub(crate) flushed: Notify,
}

impl Shared {
    /// # Errors
    /// There is no memory for what comes in.
    pub(crate) fn new(shard: Shard, carriers: Vec<Arc<dyn Carrier>>, role: Role) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            place: shard.place.clone(),
            shard: Mutex::new(shard),
            intake: Mutex::new(Intake::new(carriers, role)?),
            flushed: Notify::new(),
        }))
    }

    pub(crate) fn shard(&self) -> MutexGuard<'_, Shard> {
        self.shard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets go of the carriers, and of everything that nobody will fetch any more.
    pub(crate) fn close(&self) {
        let left = {
            let mut shard = self.shard();
            shard.outbox.close();
            shard.detach_tun();
            (mem::take(&mut shard.facts), mem::take(&mut shard.closing), mem::take(&mut shard.writers))
        };
        let (facts, closing, writers) = left;
        for writer in writers {
            writer.wake();
        }
        // Without the shard's lock: a connection's end calls into QUIC.
        drop((facts, closing));
        self.intake.lock().unwrap_or_else(PoisonError::into_inner).carriers.clear();
    }
}

/// The time by the runtime's clock.
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// See the module.
#[derive(Debug)]
pub(crate) struct VirtualSocket {
    shared: Arc<Shared>,
    role: Role,
}

impl VirtualSocket {
    pub(crate) fn new(shared: Arc<Shared>, role: Role) -> Self {
        Self { shared, role }
    }
}

impl VirtualSocket {
    /// Opens what other shards have passed on, while QUIC has room for what may be in it.
    fn open_mail(&self, place: &Place, inbox: &mut Inbox<'_, '_>) {
        let Some(mut passed) = inbox.has_room().then(|| place.take()).flatten() else { return };
        let (mut shard, now) = (self.shared.shard(), now());
        for left in (0..TURN).rev() {
            shard.handle_datagram(&passed.datagram, passed.path, now, inbox);
            match (left > 0 && inbox.has_room()).then(|| place.take()).flatten() {
                Some(next) => passed = next,
                None => break,
            }
        }
        shard.after_receive(now);
    }
}

impl AsyncUdpSocket for VirtualSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Writable { shared: self.shared.clone() })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let sent = self.shared.shard().send_quic(transmit.destination, transmit.contents, transmit.segment_size, now());
        if sent { Ok(()) } else { Err(io::ErrorKind::WouldBlock.into()) }
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut intake = self.shared.intake.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..ROUNDS {
            let mut inbox = Inbox::new(bufs, metas);
            if !intake.is_empty() {
                let (mut shard, now) = (self.shared.shard(), now());
                intake.open(&mut shard, now, &mut inbox);
                shard.after_receive(now);
            }
            if let Some(place) = &self.shared.place {
                self.open_mail(place, &mut inbox);
            }
            let used = inbox.used();
            if used > 0 {
                return Poll::Ready(Ok(used));
            }
            if !intake.fill(cx) && self.shared.place.as_ref().is_none_or(|place| place.poll_mail(cx).is_pending()) {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(SocketAddr::from((Ipv6Addr::UNSPECIFIED, QUIC_PORT)))
    }

    fn max_transmit_segments(&self) -> usize {
        SEGMENTS
    }

    fn max_receive_segments(&self) -> usize {
        match self.role {
            Role::Relay => SEGMENTS,
            Role::Connector => SEGMENTS_OF_CONNECTOR,
        }
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

/// Datagrams of the outside that have been read and not opened yet.
struct Intake {
    carriers: Vec<Arc<dyn Carrier>>,
    role: Role,
    memory: Pages,
    metas: [RecvMeta; RECEIVE_BUFFERS],
    filled: usize,
    /// The next datagram: in which buffer, at which byte.
    buffer: usize,
    offset: usize,
    /// Which carrier filled the buffers.
    socket: usize,
}

impl std::fmt::Debug for Intake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Intake").field("carriers", &self.carriers).finish_non_exhaustive()
    }
}

impl Intake {
    fn new(carriers: Vec<Arc<dyn Carrier>>, role: Role) -> io::Result<Self> {
        Ok(Self {
            carriers,
            role,
            memory: Pages::new(RECEIVE_BUFFERS * RECEIVE_BUFFER)?,
            metas: [RecvMeta::default(); RECEIVE_BUFFERS],
            filled: 0,
            buffer: 0,
            offset: 0,
            socket: 0,
        })
    }

    fn is_empty(&self) -> bool {
        self.buffer >= self.filled
    }

    /// Reads the next carrier that has something. `false`: none has, and all of them will wake `cx`.
    fn fill(&mut self, cx: &mut Context<'_>) -> bool {
        let mut chunks = self.memory.chunks_mut(RECEIVE_BUFFER).map(IoSliceMut::new);
        let mut bufs: [IoSliceMut<'_>; RECEIVE_BUFFERS] =
            std::array::from_fn(|_| chunks.next().unwrap_or_else(|| IoSliceMut::new(&mut [])));
        for _ in 0..self.carriers.len() {
            self.socket = (self.socket + 1) % self.carriers.len();
            let Some(carrier) = self.carriers.get(self.socket) else { break };
            if let Poll::Ready(filled) = carrier.poll_recv(cx, &mut bufs, &mut self.metas) {
                (self.filled, self.buffer, self.offset) = (filled.min(RECEIVE_BUFFERS), 0, 0);
                return true;
            }
        }
        false
    }

    /// Opens datagrams while QUIC has room for what may be in them.
    fn open(&mut self, shard: &mut Shard, now: Instant, inbox: &mut Inbox<'_, '_>) {
        let mut left = TURN;
        while let Some(meta) = self.metas.get(self.buffer).filter(|_| self.buffer < self.filled) {
            // A relay with several addresses answers from the one it was spoken to; a connector moves between
            // networks, so the system picks its address each time.
            let local = meta.dst_ip.filter(|_| self.role == Role::Relay);
            let path =
                Path { remote: meta.addr, local: local.map(plain), socket: u8::try_from(self.socket).unwrap_or(0) };
            let start = self.buffer * RECEIVE_BUFFER;
            let whole = self.memory.get(start..start + meta.len.min(RECEIVE_BUFFER)).unwrap_or_default();
            let stride = meta.stride.max(1);
            while let Some(rest) = whole.get(self.offset..).filter(|rest| !rest.is_empty()) {
                if left == 0 || !inbox.has_room() {
                    return;
                }
                left -= 1;
                let datagram = rest.get(..stride).unwrap_or(rest);
                self.offset += datagram.len();
                shard.handle_datagram(datagram, path, now, inbox);
            }
            self.buffer += 1;
            self.offset = 0;
        }
    }
}

fn plain(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

/// Waits for room in the outbox.
#[derive(Debug)]
struct Writable {
    shared: Arc<Shared>,
}

impl UdpPoller for Writable {
    fn poll_writable(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut shard = self.shared.shard();
        if !shard.outbox.is_full() {
            return Poll::Ready(Ok(()));
        }
        shard.wait_for_room(cx.waker());
        Poll::Pending
    }
}
