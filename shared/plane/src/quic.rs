//! QUIC's connections of one shard, turned by the shard's own tasks ([`crate::driver`]): what came is handed in at once for
//! all of them, what a turn wants sent is taken out at once at its end.
//!
//! A task, a channel and a timer for each connection, as the crate `quinn` has them around the same state machine, would cost a
//! tenth of a request's instructions and nine kilobytes a connection.
//!
//! Its lock comes before the shard's. It must never be called by somebody who holds the shard, nor say who a peer is by
//! anything but its synthetic address.

use std::collections::{BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::task::Waker;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use culvert_engine::PeerId;
use quinn_proto::{Connection, ConnectionHandle, DatagramEvent, Endpoint, Incoming, Transmit, VarInt};
use rustc_hash::FxHashMap;
use slab::Slab;

use crate::plane::{Role, StreamLimits};
use crate::shard::Shard;
use crate::shared::Shared;

mod settings;
mod slot;

use settings::Settings;
pub(crate) use slot::{Signals, Slot};

/// Datagrams that one connection sends before the next has its turn: one send's worth on a 1500-byte path.
const TURN: usize = 44;

/// Names a connection for as long as the process lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Key {
    slot: usize,
    serial: u64,
}

/// A connection that has just let a peer in.
#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) key: Key,
    pub(crate) peer: PeerId,
    pub(crate) address: SocketAddr,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Quic {
    endpoint: Endpoint,
    settings: Settings,
    slots: Slab<Box<Slot>>,
    numbers: FxHashMap<ConnectionHandle, usize>,
    /// Counts connections ever made.
    serial: u64,
    /// Those that may have something to send, in their order.
    dirty: VecDeque<usize>,
    /// Those for which datagrams came in this turn.
    touched: Vec<usize>,
    timers: BTreeSet<(Instant, usize)>,
    /// When the driver is going to look at timers.
    armed: Option<Instant>,
    buffer: Vec<u8>,
    /// The flush, while it waits for work.
    pub(crate) flusher: Option<Waker>,
}

impl Quic {
    pub(crate) fn new(limits: &StreamLimits, version: u32, reset_secret: &[u8; 32], role: Role) -> Self {
        let settings = Settings::new(limits, version);
        let server = (role == Role::Relay).then(|| settings.any_server());
        let endpoint = Endpoint::new(Arc::new(settings::endpoint(reset_secret)), server, true, None);
        Self {
            endpoint,
            settings,
            slots: Slab::new(),
            numbers: FxHashMap::default(),
            serial: 0,
            dirty: VecDeque::new(),
            touched: Vec::new(),
            timers: BTreeSet::new(),
            armed: None,
            buffer: Vec::new(),
            flusher: None,
        }
    }

    /// Takes one datagram of the peer at the synthetic address; [`Self::handle_turn`] ends the turn.
    pub(crate) fn handle_datagram(&mut self, from: SocketAddr, payload: BytesMut, shared: &Shared, now: Instant) {
        self.buffer.clear();
        match self.endpoint.handle(now, from, None, None, payload, &mut self.buffer) {
            Some(DatagramEvent::ConnectionEvent(handle, event)) => {
                if let Some(&index) = self.numbers.get(&handle)
                    && let Some(slot) = self.slots.get_mut(index)
                {
                    slot.connection.handle_event(event);
                    self.touch(index);
                }
            }
            Some(DatagramEvent::NewConnection(incoming)) => self.handle_incoming(incoming, shared, now),
            Some(DatagramEvent::Response(transmit)) => self.respond(&transmit, shared, now),
            None => {}
        }
    }

    /// Relay: takes QUIC from peers that have said hello.
    fn handle_incoming(&mut self, incoming: Incoming, shared: &Shared, now: Instant) {
        let address = incoming.remote_address();
        let admitted = shared.shard().admit(address);
        let Some((peer, outer)) = admitted else { return self.endpoint.ignore(incoming) };
        self.buffer.clear();
        let server = self.settings.server(outer);
        match self.endpoint.accept(incoming, now, &mut self.buffer, Some(server)) {
            Ok((handle, connection)) => {
                let key = self.insert(handle, connection, Some((peer, address)));
                self.touch(key.slot);
                shared.shard().handshake_started(peer, key);
            }
            Err(error) => {
                tracing::debug!(error = %error.cause, "refused QUIC handshake");
                if let Some(transmit) = error.response {
                    self.respond(&transmit, shared, now);
                }
            }
        }
    }

    fn respond(&self, transmit: &Transmit, shared: &Shared, now: Instant) {
        let contents = self.buffer.get(..transmit.size).unwrap_or_default();
        let mut shard = shared.shard();
        shard.send_quic(transmit.destination, contents, transmit.segment_size, now);
        shard.after(now);
    }

    /// Ends a turn in which datagrams came: collects whom to wake and who was let in.
    pub(crate) fn handle_turn(&mut self, woken: &mut Vec<Waker>, guests: &mut Vec<Guest>) {
        while let Some(index) = self.touched.pop() {
            if let Some(slot) = self.slots.get_mut(index) {
                slot.touched = false;
            }
            self.mark(index);
            self.settle(index, woken, guests);
        }
    }

    /// Has the shard send what connections have to send, in turns, while the outbox has room. `true`: some have more.
    pub(crate) fn drive(&mut self, shard: &mut Shard, now: Instant, woken: &mut Vec<Waker>) -> bool {
        for _ in 0..self.dirty.len() {
            if shard.outbox.is_full() {
                break;
            }
            let Some(index) = self.dirty.pop_front() else { break };
            let Some(slot) = self.slots.get_mut(index) else { continue };
            let mut left = TURN;
            let mut more = false;
            while !more {
                self.buffer.clear();
                let Some(transmit) = slot.connection.poll_transmit(now, left, &mut self.buffer) else { break };
                let contents = self.buffer.get(..transmit.size).unwrap_or_default();
                shard.send_quic(transmit.destination, contents, transmit.segment_size, now);
                left = left.saturating_sub(transmit.segment_size.map_or(1, |size| transmit.size.div_ceil(size.max(1))));
                more = left == 0 || shard.outbox.is_full();
            }
            slot.dirty = more;
            if more {
                self.dirty.push_back(index);
            }
            // A handshake ends well by a datagram that comes, so nobody is let in here.
            self.settle(index, woken, &mut Vec::new());
        }
        !self.dirty.is_empty()
    }

    /// Lets time pass for connections whose deadline has come.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        while let Some((due, index)) = self.timers.first().copied().filter(|(due, _)| *due <= now) {
            self.timers.remove(&(due, index));
            let Some(slot) = self.slots.get_mut(index) else { continue };
            slot.armed = None;
            match slot.connection.poll_timeout() {
                Some(later) if later > now => self.arm(index),
                Some(_) => {
                    slot.connection.handle_timeout(now);
                    self.mark(index);
                }
                None => {}
            }
        }
    }

    /// When [`Self::handle_timeout`] is due. Remembers it, for [`Self::is_sooner`].
    pub(crate) fn poll_timeout(&mut self) -> Option<Instant> {
        self.armed = self.timers.first().map(|(due, _)| *due);
        self.armed
    }

    /// Whether timers are due before the driver looks at them.
    pub(crate) fn is_sooner(&self) -> bool {
        let first = self.timers.first().map(|(due, _)| *due);
        first.is_some_and(|due| self.armed.is_none_or(|armed| due < armed))
    }

    /// Dials the peer at the synthetic address, which is at `outer` outside. `None`: no more connections can be told apart.
    pub(crate) fn connect(&mut self, address: SocketAddr, outer: IpAddr, now: Instant) -> Option<Key> {
        let config = self.settings.client(outer);
        let (handle, connection) = self.endpoint.connect(now, config, address, "culvert").ok()?;
        let key = self.insert(handle, connection, None);
        self.mark(key.slot);
        Some(key)
    }

    /// The connection; `None` when it is forgotten.
    pub(crate) fn get_mut(&mut self, key: Key) -> Option<&mut Slot> {
        self.slots.get_mut(key.slot).map(|slot| &mut **slot).filter(|slot| slot.serial == key.serial)
    }

    /// Keeps a connection in memory until [`Self::release`], even when it is over: what it has received may still be read.
    pub(crate) fn hold(&mut self, key: Key) -> Option<Arc<Signals>> {
        let slot = self.get_mut(key)?;
        slot.held = true;
        Some(slot.signals.clone())
    }

    /// Closes a connection that nobody holds any more.
    pub(crate) fn release(&mut self, key: Key, now: Instant, woken: &mut Vec<Waker>) {
        self.close(key, VarInt::from_u32(0), Bytes::new(), now, woken);
        if let Some(slot) = self.get_mut(key) {
            slot.held = false;
            self.forget_drained(key.slot);
        }
    }

    /// Closes a connection; no more than once.
    pub(crate) fn close(&mut self, key: Key, code: VarInt, reason: Bytes, now: Instant, woken: &mut Vec<Waker>) {
        if let Some(slot) = self.get_mut(key).filter(|slot| slot.signals.ended().is_none()) {
            slot.close(code, reason, now, woken);
            self.mark(key.slot);
        }
    }

    /// Closes all of them.
    pub(crate) fn close_all(&mut self, code: VarInt, reason: &Bytes, now: Instant, woken: &mut Vec<Waker>) {
        let keys: Vec<_> = self.slots.iter().map(|(at, slot)| Key { slot: at, serial: slot.serial }).collect();
        for key in keys {
            self.close(key, code, reason.clone(), now, woken);
        }
    }

    /// Has a connection looked at when the turn ends. To be followed by [`Self::take_flusher`].
    pub(crate) fn mark_dirty(&mut self, key: Key) {
        self.mark(key.slot);
    }

    /// The flush, if there is work for it.
    pub(crate) fn take_flusher(&mut self) -> Option<Waker> {
        if self.dirty.is_empty() { None } else { self.flusher.take() }
    }

    /// How many connections there are, with those that are over and not forgotten.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    fn insert(&mut self, handle: ConnectionHandle, connection: Connection, guest: Option<(PeerId, SocketAddr)>) -> Key {
        self.serial += 1;
        let slot = self.slots.insert(Box::new(Slot::new(connection, handle, self.serial, guest)));
        self.numbers.insert(handle, slot);
        Key { slot, serial: self.serial }
    }

    fn touch(&mut self, index: usize) {
        if let Some(slot) = self.slots.get_mut(index).filter(|slot| !slot.touched) {
            slot.touched = true;
            self.touched.push(index);
        }
    }

    fn mark(&mut self, index: usize) {
        if let Some(slot) = self.slots.get_mut(index).filter(|slot| !slot.dirty) {
            slot.dirty = true;
            self.dirty.push_back(index);
        }
    }

    /// Hands on what a connection tells its tasks and QUIC's endpoint, and arms its timer.
    fn settle(&mut self, index: usize, woken: &mut Vec<Waker>, guests: &mut Vec<Guest>) {
        let Some(slot) = self.slots.get_mut(index) else { return };
        if slot.tell(woken)
            && let Some((peer, address)) = slot.guest.take()
        {
            guests.push(Guest { key: Key { slot: index, serial: slot.serial }, peer, address });
        }
        while let Some(event) = slot.connection.poll_endpoint_events() {
            if event.is_drained() {
                slot.drained = true;
                self.numbers.remove(&slot.handle);
            }
            if let Some(event) = self.endpoint.handle_event(slot.handle, event) {
                slot.connection.handle_event(event);
            }
        }
        self.arm(index);
        self.forget_drained(index);
    }

    /// A deadline that has moved on is found when the old one comes: most move on with every packet.
    fn arm(&mut self, index: usize) {
        let Some(slot) = self.slots.get_mut(index) else { return };
        let Some(due) = slot.connection.poll_timeout() else { return };
        if slot.armed.is_none_or(|armed| due < armed) {
            if let Some(armed) = slot.armed.replace(due) {
                self.timers.remove(&(armed, index));
            }
            self.timers.insert((due, index));
        }
    }

    fn forget_drained(&mut self, index: usize) {
        let Some(slot) = self.slots.get(index).filter(|slot| slot.drained && !slot.held) else { return };
        if let Some(armed) = slot.armed {
            self.timers.remove(&(armed, index));
        }
        self.slots.remove(index);
    }
}
