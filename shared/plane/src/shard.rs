//! The shard's state and its flow: datagram → engine → inner packet → QUIC, hello or echo; and QUIC → inner packet →
//! engine → outbox.
//!
//! One uncontended lock holds it. It must never call into QUIC: QUIC's own locks are held by those who call in here, so
//! what has to be closed is handed out (`closing`) and closed by the driver without this lock.

use std::collections::VecDeque;
use std::mem;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use culvert_engine::{
    AddPeerError, BootstrapConfig, BootstrapId, Engine, Event as Fact, Path, PeerConfig, PeerId, Received, Replies,
    SealError,
};
use culvert_model::address::{BOOTSTRAP_INNER, RELAY_INNER};
use culvert_model::id::InstanceId;
use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;
use tokio::task::AbortHandle;

use crate::connection::{Ending, Link};
use crate::crypto::PROTOCOL_VERSION;
use crate::event::Event;
use crate::fragment::{self, Reassembly};
use crate::hello::{self, Flags, Hello};
use crate::icmp;
use crate::inbox::Inbox;
use crate::outbox::Outbox;
use crate::peers::{Instance, Peers};
use crate::plane::{PlaneStats, Role};
use crate::wrap::{self, Addresses, HELLO_PORT, NEXT_FRAGMENT, NEXT_ICMPV6, NEXT_UDP, QUIC_PORT};

/// What WireGuard adds to an inner packet, and the step to which it pads one.
const WIREGUARD_LEN: usize = 32;
const PADDING: usize = 16;
/// Facts that wait for the plane's owner.
const MAX_FACTS: usize = 16 * 1024;
/// Handshake messages worked off between two receive turns: each costs about two X25519 operations.
const HANDSHAKES: usize = 2;
/// A peer's move is told this long after it happened, once for all hops in between.
const MOVED_AFTER: Duration = Duration::from_millis(50);

/// How a dial stands.
pub(crate) enum Dial {
    /// Go on to QUIC at this synthetic address; the peer is at that outer one.
    Ready(SocketAddr, IpAddr),
    /// Something has to happen first: wait for the notice, then look again.
    Wait(OwnedNotified),
    Unknown,
    Version(u32),
    Displaced,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Shard {
    role: Role,
    instance: InstanceId,
    inner: Ipv6Addr,
    engine: EngineBox,
    pub(crate) peers: Peers,
    pub(crate) outbox: Outbox,
    reassembly: Reassembly,
    fragment_id: u32,
    replies: Replies,
    /// Peers whose endpoint moved and that are not told of yet.
    moved: Vec<PeerId>,
    moved_due: Option<Instant>,
    /// Buffers that live as long as the shard, so that packets cost no allocation.
    opened: Vec<u8>,
    whole: Vec<u8>,
    packet: Vec<u8>,
    halves: [Vec<u8>; 2],
    flags: Vec<Flags>,
    /// For the plane's owner, in order.
    pub(crate) facts: VecDeque<Event>,
    /// To be closed, by somebody who does not hold the shard.
    pub(crate) closing: Vec<(Arc<Link>, Ending)>,
    /// When the driver is going to look at timers.
    pub(crate) armed: Option<Instant>,
    pub(crate) stopped: bool,
    /// Bulk is being sent: a flush may wait for more of the same turn.
    pub(crate) bulk: bool,
    pub(crate) flusher: Option<Waker>,
    pub(crate) writers: Vec<Waker>,
    pub(crate) work: Arc<Notify>,
    pub(crate) told: Arc<Notify>,
    pub(crate) stats: PlaneStats,
    #[cfg(test)]
    pub(crate) tap: Option<Arc<std::sync::Mutex<Vec<Vec<u8>>>>>,
}

/// The engine holds keys: it is not printed.
struct EngineBox(Engine);

impl std::fmt::Debug for EngineBox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Engine")
    }
}

impl Shard {
    pub(crate) fn new(role: Role, instance: InstanceId, inner: Ipv6Addr, engine: Engine, outbox: Outbox) -> Self {
        Self {
            role,
            instance,
            inner,
            engine: EngineBox(engine),
            peers: Peers::default(),
            outbox,
            reassembly: Reassembly::default(),
            fragment_id: rand::random(),
            replies: Replies::default(),
            moved: Vec::new(),
            moved_due: None,
            opened: Vec::new(),
            whole: Vec::new(),
            packet: Vec::new(),
            halves: [Vec::new(), Vec::new()],
            flags: Vec::new(),
            facts: VecDeque::new(),
            closing: Vec::new(),
            armed: None,
            stopped: false,
            bulk: false,
            flusher: None,
            writers: Vec::new(),
            work: Arc::default(),
            told: Arc::default(),
            stats: PlaneStats::default(),
            #[cfg(test)]
            tap: None,
        }
    }

    // In: a datagram of the outside.

    /// One UDP payload: opened, and what is in it is handled or handed to `inbox` for QUIC.
    pub(crate) fn handle_datagram(&mut self, datagram: &[u8], path: Path, now: Instant, inbox: &mut Inbox<'_, '_>) {
        let mut opened = mem::take(&mut self.opened);
        opened.clear();
        let received = self.engine.0.handle_datagram(datagram, path, now, &mut opened, &mut self.replies);
        self.drain_engine(now);
        match received {
            Received::Packet { peer } => self.handle_packet(peer, &opened, now, inbox),
            Received::Handled => {}
            Received::Dropped(reason) => tracing::trace!(reason = reason.name(), "dropped datagram"),
        }
        self.opened = opened;
    }

    fn handle_packet(&mut self, peer: PeerId, bytes: &[u8], now: Instant, inbox: &mut Inbox<'_, '_>) {
        let Some(packet) = wrap::open(bytes).filter(|packet| packet.addresses.destination == self.inner) else {
            self.stats.inner_dropped += 1;
            return;
        };
        if packet.next != NEXT_FRAGMENT {
            return self.handle_body(peer, &packet, now, inbox);
        }
        let mut whole = mem::take(&mut self.whole);
        if self.reassembly.handle_fragment(peer, &packet.addresses, packet.body, now, &mut whole) {
            match wrap::open(&whole).filter(|packet| packet.next != NEXT_FRAGMENT) {
                Some(packet) => self.handle_body(peer, &packet, now, inbox),
                None => self.stats.inner_dropped += 1,
            }
        }
        self.whole = whole;
    }

    fn handle_body(&mut self, peer: PeerId, packet: &wrap::Packet<'_>, now: Instant, inbox: &mut Inbox<'_, '_>) {
        match packet.next {
            NEXT_UDP => match wrap::open_udp(packet.body) {
                Some((QUIC_PORT, payload)) => self.hand_to_quic(peer, payload, inbox),
                Some((HELLO_PORT, payload)) => self.handle_hello(peer, payload, now),
                _ => self.stats.inner_dropped += 1,
            },
            NEXT_ICMPV6 if self.role == Role::Relay => {
                let mut reply = mem::take(&mut self.packet);
                reply.clear();
                if icmp::answer(&packet.addresses, packet.body, &mut reply) {
                    self.stats.echoes += 1;
                    self.seal(peer, &mut reply, now);
                } else {
                    self.stats.inner_dropped += 1;
                }
                self.packet = reply;
            }
            _ => self.stats.inner_dropped += 1,
        }
    }

    /// The remote address is the peer's synthetic one, whatever the packet says (wire.md §1).
    fn hand_to_quic(&mut self, peer: PeerId, payload: &[u8], inbox: &mut Inbox<'_, '_>) {
        let known = self.peers.get(peer).filter(|peer| peer.greeting.instance.is_some());
        match known {
            Some(peer) if inbox.put(peer.address, payload) => self.stats.quic_received += 1,
            // Before its hello nobody knows which process speaks.
            _ => self.stats.inner_dropped += 1,
        }
    }

    fn handle_hello(&mut self, id: PeerId, payload: &[u8], now: Instant) {
        let Some((hello, peer)) = Hello::read(payload).zip(self.peers.get_mut(id)) else {
            self.stats.inner_dropped += 1;
            return;
        };
        self.stats.hellos_received += 1;
        let met = peer.meet(hello.instance, self.role, now);
        let mut displaced = false;
        match met {
            Instance::Same | Instance::First => {}
            Instance::TooSoon => {
                self.stats.inner_dropped += 1;
                return;
            }
            Instance::New => {
                let link = mem::take(&mut peer.link).upgrade();
                self.closing.extend(link.map(|link| (link, Ending::NewInstance)));
                self.abandon_handshake(id);
                self.peers.readdress(id);
                self.tell(Event::NewInstance { peer: id });
            }
            Instance::Displaced => {
                displaced = true;
                self.tell(Event::Clone { peer: id });
            }
        }
        let Some(peer) = self.peers.get_mut(id) else { return };
        let mut flags = mem::take(&mut self.flags);
        match self.role {
            Role::Relay => {
                if !displaced {
                    peer.greeting.note(&hello);
                    peer.greeting.follow(&hello);
                }
                flags.extend(hello.answer().map(|answer| if displaced { answer.displaced() } else { answer }));
            }
            Role::Connector => {
                peer.greeting.handle_hello(&hello, now, &mut flags);
                let link = if peer.greeting.displaced { mem::take(&mut peer.link).upgrade() } else { None };
                if let Some(link) = link {
                    // Its owner learns it from the connection; the next dial asks afresh.
                    self.closing.push((link, Ending::Displaced));
                    peer.greeting.stop();
                }
                peer.changed.notify_waiters();
            }
        }
        self.say_all(id, &mut flags, now);
        self.flags = flags;
        self.work.notify_one();
    }

    // Out: a packet of QUIC.

    /// Seals QUIC's datagrams for the peer at the synthetic address. `false`: the outbox is full, try again later.
    pub(crate) fn send_quic(&mut self, to: SocketAddr, contents: &[u8], segment: Option<usize>, now: Instant) -> bool {
        if self.outbox.is_full() {
            return false;
        }
        let found = self.peers.at(to).map(|peer| (peer.id, peer.inner, peer.greeting.small));
        let Some((id, Some(destination), small)) = found else {
            // The peer, or the process that the connection was with, is gone.
            self.stats.quic_dropped += 1;
            return true;
        };
        let addresses = Addresses { source: self.inner, destination };
        let segment = segment.unwrap_or(contents.len()).max(1);
        self.bulk |= contents.len() > 4 * segment;
        let mut packet = mem::take(&mut self.packet);
        for payload in contents.chunks(segment) {
            #[cfg(test)]
            if let Some(tap) = &self.tap {
                tap.lock().unwrap().push(payload.to_vec());
            }
            packet.clear();
            if wrap::write_udp(&addresses, QUIC_PORT, payload, &mut packet) {
                self.stats.quic_sent += 1;
                if small && packet.len() > fragment::WHOLE_LIMIT {
                    self.seal_halves(id, &packet, now);
                } else {
                    self.seal(id, &mut packet, now);
                }
            }
        }
        self.packet = packet;
        self.after(now);
        true
    }

    fn seal_halves(&mut self, id: PeerId, packet: &[u8], now: Instant) {
        let [mut first, mut second] = mem::take(&mut self.halves);
        first.clear();
        second.clear();
        self.fragment_id = self.fragment_id.wrapping_add(1);
        if fragment::split(packet, self.fragment_id, &mut first, &mut second) {
            self.stats.split += 1;
            self.seal(id, &mut first, now);
            self.seal(id, &mut second, now);
        }
        self.halves = [first, second];
    }

    /// Seals one inner packet into the outbox. Without a live session it is lost: QUIC sends again.
    fn seal(&mut self, id: PeerId, packet: &mut Vec<u8>, now: Instant) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        let length = packet.len().next_multiple_of(PADDING) + WIREGUARD_LEN;
        let engine = &mut self.engine.0;
        let path = peer.path.or_else(|| engine.peer_stats(id)?.path);
        let sealed = match path {
            Some(path) => self.outbox.append(path, length, |out| engine.seal(id, packet, now, out)),
            None => Err(SealError::NoPath),
        };
        match sealed {
            Ok(sealed) => {
                peer.path = Some(sealed.path);
                peer.sealed += 1;
            }
            Err(error) => {
                tracing::trace!(%error, "inner packet was not sealed");
                self.stats.unsealed += 1;
                // The engine may have started a handshake instead.
                self.work.notify_one();
            }
        }
    }

    /// Says each of the hellos to the peer. Padded ones go whole on purpose: they probe.
    fn say_all(&mut self, id: PeerId, flags: &mut Vec<Flags>, now: Instant) {
        let Some(peer) = self.peers.get(id) else { return flags.clear() };
        let (destination, epoch) = (peer.inner, peer.epoch);
        let hellos: Vec<_> = flags.drain(..).map(|flags| peer.greeting.complete(flags)).collect();
        let Some(destination) = destination else { return };
        let addresses = Addresses { source: self.inner, destination };
        for flags in hellos {
            let mut payload = Vec::with_capacity(hello::PADDED_LEN);
            hello::compose(flags, self.instance, epoch).write(&mut payload);
            let mut packet = Vec::with_capacity(hello::PADDED_LEN + wrap::OVERHEAD);
            if wrap::write_udp(&addresses, HELLO_PORT, &payload, &mut packet) {
                self.seal(id, &mut packet, now);
            }
        }
        self.wake_flusher();
    }

    // Facts of the engine.

    /// Takes what the engine wants sent and what it tells.
    fn drain_engine(&mut self, now: Instant) {
        if !self.replies.is_empty() {
            for (path, datagram) in self.replies.drain() {
                self.outbox.push(path, datagram);
            }
        }
        while let Some(fact) = self.engine.0.poll_event() {
            self.handle_fact(fact, now);
        }
    }

    fn handle_fact(&mut self, fact: Fact, now: Instant) {
        match fact {
            Fact::SessionUp { peer, bootstrap, path, epoch, first, .. } => {
                self.session_up(peer, bootstrap, path, epoch, now);
                self.tell(Event::SessionUp { peer, bootstrap, path, first });
            }
            Fact::EndpointMoved { peer, path } => {
                // Told after a while, with the newest path: a peer that hops from packet to packet costs no more.
                if let Some(known) = self.peers.get_mut(peer) {
                    known.path = Some(path);
                    if !mem::replace(&mut known.moved, true) {
                        self.moved.push(peer);
                        self.moved_due.get_or_insert(now + MOVED_AFTER);
                        self.work.notify_one();
                    }
                }
            }
            Fact::SessionLost { peer } => {
                if let Some(peer) = self.peers.get_mut(peer) {
                    peer.live = false;
                    peer.asked = false;
                    peer.greeting.stop();
                    peer.changed.notify_waiters();
                }
                self.tell(Event::SessionLost { peer });
            }
            Fact::Unanswered { peer, attempts } => self.tell(Event::Unanswered { peer, attempts }),
            Fact::ClockBehind { peer, .. } => self.tell(Event::ClockBehind { peer }),
            Fact::PeerGone { peer, bootstrap } => {
                self.forget(peer);
                self.tell(Event::PeerGone { peer, bootstrap });
            }
            Fact::EpochPromoted { peer, epoch } => self.tell(Event::EpochPromoted { peer, epoch }),
            _ => {}
        }
    }

    /// The hello is the first inner datagram of the session (wire.md §2).
    fn session_up(&mut self, id: PeerId, bootstrap: Option<BootstrapId>, path: Path, epoch: Option<u32>, now: Instant) {
        if self.peers.get(id).is_none() {
            self.peers.insert(id, bootstrap, Some(BOOTSTRAP_INNER));
        }
        let Some(peer) = self.peers.get_mut(id) else { return };
        peer.path = Some(path);
        peer.live = true;
        peer.asked = false;
        peer.epoch = epoch;
        let mut flags = mem::take(&mut self.flags);
        match self.role {
            Role::Relay => flags.push(Flags::PLAIN),
            Role::Connector => peer.greeting.start(now, &mut flags),
        }
        peer.changed.notify_waiters();
        self.say_all(id, &mut flags, now);
        self.flags = flags;
    }

    pub(crate) fn tell(&mut self, event: Event) {
        if self.facts.len() < MAX_FACTS {
            self.facts.push_back(event);
            self.told.notify_one();
        } else {
            self.stats.facts_lost += 1;
        }
    }

    // Time.

    /// One turn of the driver: handshakes within their budget, then what is due. `true`: more handshakes wait.
    pub(crate) fn handle_turn(&mut self, now: Instant) -> bool {
        let more = self.engine.0.handle_handshakes(HANDSHAKES, now, &mut self.replies);
        if self.engine.0.poll_timeout().is_some_and(|due| due <= now) {
            self.engine.0.handle_timeout(now, &mut self.replies);
        }
        self.drain_engine(now);
        if self.role == Role::Connector {
            self.handle_greetings(now);
        }
        if self.moved_due.is_some_and(|due| due <= now) {
            self.handle_moved(now);
        }
        self.wake_flusher();
        more
    }

    fn handle_moved(&mut self, now: Instant) {
        self.moved_due = None;
        for id in mem::take(&mut self.moved) {
            let Some(peer) = self.peers.get_mut(id) else { continue };
            peer.moved = false;
            let Some(path) = peer.path else { continue };
            if self.role == Role::Relay {
                self.say_all(id, &mut vec![Flags::MOVED], now);
            }
            self.tell(Event::EndpointMoved { peer: id, path });
        }
    }

    fn handle_greetings(&mut self, now: Instant) {
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        let ids: Vec<_> =
            self.peers.iter().filter(|peer| due(peer.greeting.poll_timeout())).map(|peer| peer.id).collect();
        for id in ids {
            let mut flags = mem::take(&mut self.flags);
            if let Some(peer) = self.peers.get_mut(id) {
                peer.greeting.handle_timeout(now, &mut flags);
                peer.changed.notify_waiters();
            }
            self.say_all(id, &mut flags, now);
            self.flags = flags;
        }
    }

    /// When [`Self::handle_turn`] is due. Remembers it, so that [`Self::after`] notices what comes sooner.
    pub(crate) fn poll_timeout(&mut self) -> Option<Instant> {
        let engine = self.engine.0.poll_timeout();
        let greetings = match self.role {
            Role::Relay => None,
            Role::Connector => self.peers.iter().filter_map(|peer| peer.greeting.poll_timeout()).min(),
        };
        self.armed = engine.into_iter().chain(greetings).chain(self.moved_due).min();
        self.armed
    }

    /// Ends a turn in which datagrams came or went: wakes the flush, and the driver if its timer has moved forward.
    pub(crate) fn after(&mut self, _now: Instant) {
        self.wake_flusher();
        let due = self.engine.0.poll_timeout();
        if due.is_some_and(|due| self.armed.is_none_or(|armed| due < armed)) {
            self.armed = due;
            self.work.notify_one();
        }
    }

    /// After a receive turn: handshakes may wait for their budget.
    pub(crate) fn after_receive(&mut self, now: Instant) {
        if self.engine.0.stats().queued > 0 || !self.closing.is_empty() {
            self.work.notify_one();
        }
        self.after(now);
    }

    pub(crate) fn wake_flusher(&mut self) {
        if self.outbox.is_empty() {
            return;
        }
        if let Some(waker) = self.flusher.take() {
            waker.wake();
        }
    }

    // What the plane's owner asks for.

    pub(crate) fn add_peer(&mut self, config: PeerConfig, now: Instant) -> Result<PeerId, AddPeerError> {
        let inner = match self.role {
            Role::Connector => Some(RELAY_INNER),
            Role::Relay => config.allowed_ips.iter().find_map(|net| match net.addr() {
                IpAddr::V6(address) if net.prefix_len() == 128 => Some(address),
                _ => None,
            }),
        };
        // All relays of a connector have one inner address, so nothing can be routed by it.
        let id = match self.role {
            Role::Connector => self.engine.0.add_unrouted_peer(config, now)?,
            Role::Relay => self.engine.0.add_peer(config, now)?,
        };
        self.peers.insert(id, None, inner);
        self.after(now);
        Ok(id)
    }

    pub(crate) fn add_bootstrap(&mut self, config: BootstrapConfig) -> Result<BootstrapId, AddPeerError> {
        self.engine.0.add_bootstrap(config)
    }

    pub(crate) fn remove_bootstrap(&mut self, bootstrap: BootstrapId, now: Instant) {
        let links = self.peers.iter().filter(|peer| peer.bootstrap == Some(bootstrap));
        let ids: Vec<_> = links.map(|peer| peer.id).collect();
        self.engine.0.remove_bootstrap(bootstrap);
        self.drain_engine(now);
        for id in ids {
            self.forget(id);
        }
        self.work.notify_one();
    }

    pub(crate) fn remove_peer(&mut self, id: PeerId) {
        self.engine.0.remove_peer(id);
        self.forget(id);
        self.work.notify_one();
    }

    pub(crate) fn engine(&mut self) -> &mut Engine {
        &mut self.engine.0
    }

    pub(crate) fn connect(&mut self, id: PeerId, path: Option<Path>, now: Instant) {
        if let Some(peer) = self.peers.get_mut(id) {
            peer.asked = true;
            if path.is_some() {
                peer.path = None;
            }
            self.engine.0.connect(id, path, now, &mut self.replies);
            self.drain_engine(now);
            self.after(now);
        }
    }

    /// Connector: how far the way to QUIC is; pushes it on where nothing moves.
    pub(crate) fn prepare_dial(&mut self, id: PeerId, now: Instant) -> Dial {
        let Some(peer) = self.peers.get_mut(id) else { return Dial::Unknown };
        let (changed, address) = (peer.changed.clone().notified_owned(), peer.address);
        if peer.greeting.displaced {
            // Told once; the next dial asks again.
            peer.greeting.stop();
            return Dial::Displaced;
        }
        if !peer.live {
            if !peer.asked {
                self.connect(id, None, now);
            }
            return Dial::Wait(changed);
        }
        if peer.greeting.is_ready(now) {
            let path = peer.path;
            let outer = path.map_or(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), |path| path.remote.ip());
            return Dial::Ready(address, outer);
        }
        if let Some(theirs) = peer.greeting.version.filter(|version| *version != PROTOCOL_VERSION) {
            peer.greeting.stop();
            return Dial::Version(theirs);
        }
        if !peer.greeting.is_asking() {
            let mut flags = Vec::new();
            peer.greeting.start(now, &mut flags);
            self.say_all(id, &mut flags, now);
            self.work.notify_one();
        }
        Dial::Wait(changed)
    }

    /// Relay: whose QUIC handshake comes from this synthetic address, and where it is outside.
    pub(crate) fn admit(&self, address: SocketAddr) -> Option<(PeerId, IpAddr)> {
        let peer = self.peers.at(address)?;
        Some((peer.id, peer.path?.remote.ip()))
    }

    /// Relay: one handshake for each peer; a newer one ends the older.
    pub(crate) fn handshake_started(&mut self, id: PeerId, handshake: AbortHandle) {
        self.abandon_handshake(id);
        match self.peers.get_mut(id) {
            Some(peer) => peer.handshake = Some(handshake),
            None => handshake.abort(),
        }
    }

    /// Everything of the plane about a peer that is gone.
    fn forget(&mut self, id: PeerId) {
        self.abandon_handshake(id);
        self.reassembly.forget(id);
        if let Some(peer) = self.peers.remove(id) {
            self.closing.extend(peer.link.upgrade().map(|link| (link, Ending::Gone)));
            peer.changed.notify_waiters();
            self.work.notify_one();
        }
    }

    pub(crate) fn abandon_handshake(&mut self, id: PeerId) {
        if let Some(handshake) = self.peers.get_mut(id).and_then(|peer| peer.handshake.take()) {
            handshake.abort();
        }
    }
}
