//! The way in: datagrams of the outside are read, opened, and what is in them is handed to QUIC, all in one call, without a
//! task or queue between.

use std::future::{Future, poll_fn};
use std::io::{self, IoSliceMut};
use std::net::IpAddr;
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use culvert_engine::Path;
use quinn_udp::RecvMeta;

use crate::driver::Maker;
use crate::group::Place;
use crate::inbox::Inbox;
use crate::pages::Pages;
use crate::plane::Role;
use crate::port::Carrier;
use crate::shard::Shard;
use crate::shared::now;

/// Receive buffers of one system call: each takes a whole GRO batch. Only what the kernel fills becomes memory.
const RECEIVE_BUFFERS: usize = 16;
const RECEIVE_BUFFER: usize = 64 * 1024;
/// System calls of one turn before other tasks get theirs.
const ROUNDS: usize = 4;
/// Datagrams opened before QUIC, and then other tasks, get their turn: about 200 µs.
const TURN: usize = 128;

/// Takes in what comes, for as long as the shard runs.
pub(crate) fn receive(maker: Maker) -> impl Future<Output = ()> {
    poll_fn(move |cx| {
        let mut intake = maker.shared.intake.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..ROUNDS {
            let taken = intake.turn(&maker);
            let place = maker.shared.place.as_ref();
            if intake.is_empty() && !intake.fill(cx) && place.is_none_or(|place| place.poll_mail(cx).is_pending()) {
                return Poll::Pending;
            }
            if taken >= TURN {
                break;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
}

/// Datagrams of the outside that have been read and not opened yet.
pub(crate) struct Intake {
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
    inbox: Inbox,
    woken: Vec<Waker>,
}

impl std::fmt::Debug for Intake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Intake").field("carriers", &self.carriers).finish_non_exhaustive()
    }
}

impl Intake {
    /// # Errors
    /// There is no memory for what comes in.
    pub(crate) fn new(carriers: Vec<Arc<dyn Carrier>>, role: Role) -> io::Result<Self> {
        Ok(Self {
            carriers,
            role,
            memory: Pages::new(RECEIVE_BUFFERS * RECEIVE_BUFFER)?,
            metas: [RecvMeta::default(); RECEIVE_BUFFERS],
            filled: 0,
            buffer: 0,
            offset: 0,
            socket: 0,
            inbox: Inbox::default(),
            woken: Vec::new(),
        })
    }

    /// Lets go of the carriers.
    pub(crate) fn close(&mut self) {
        self.carriers.clear();
    }

    /// Opens what was read and what other shards have passed on, hands it to QUIC, and tells how much that was.
    fn turn(&mut self, maker: &Maker) -> usize {
        let (shared, now) = (&maker.shared, now());
        if !self.is_empty() {
            let mut shard = shared.shard();
            self.open(&mut shard, now);
            shard.after_receive(now);
        }
        if let Some(place) = &shared.place {
            self.open_mail(place, maker, now);
        }
        let taken = self.inbox.len();
        if taken > 0 {
            for guest in shared.deliver(&mut self.inbox, &mut self.woken, now) {
                maker.let_in(&guest);
            }
        }
        taken
    }

    /// Opens what other shards have passed on.
    fn open_mail(&mut self, place: &Place, maker: &Maker, now: Instant) {
        let Some(mut passed) = place.take() else { return };
        let mut shard = maker.shared.shard();
        for left in (0..TURN).rev() {
            shard.handle_datagram(&passed.datagram, passed.path, now, &mut self.inbox);
            match (left > 0).then(|| place.take()).flatten() {
                Some(next) => passed = next,
                None => break,
            }
        }
        shard.after_receive(now);
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

    /// Opens datagrams, a turn's worth at most.
    fn open(&mut self, shard: &mut Shard, now: Instant) {
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
                if left == 0 {
                    return;
                }
                left -= 1;
                let datagram = rest.get(..stride).unwrap_or(rest);
                self.offset += datagram.len();
                shard.handle_datagram(datagram, path, now, &mut self.inbox);
            }
            self.buffer += 1;
            self.offset = 0;
        }
    }
}

fn plain(address: IpAddr) -> IpAddr {
    address.to_canonical()
}
