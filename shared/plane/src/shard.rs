//! The shard's state and its flow: datagram → engine → inner packet → QUIC, hello or echo; and QUIC → inner packet →
//! engine → outbox.
//!
//! One uncontended lock holds it. It must never call into QUIC: QUIC's lock is held by those who call in here, so what has to
//! be closed is handed out (`closing`) and closed by the driver without this lock.

use std::collections::VecDeque;
use std::mem;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use culvert_engine::{Engine, Path, PeerId, Received, Replies, SealError};
use culvert_model::id::InstanceId;
use tokio::sync::Notify;

use crate::connection::{Ending, Link};
use crate::event::Event;
use crate::fragment::{self, Reassembly};
use crate::group::Place;
use crate::hello::{self, Flags, Hello};
use crate::icmp;
use crate::inbox::Inbox;
use crate::outbox::Outbox;
use crate::peers::{Instance, Peers};
use crate::plane::{PlaneStats, Role};
use crate::quic::Key;
use crate::spares::Spares;
use crate::tun::TunStats;
use crate::wrap::{self, Addresses, HELLO_PORT, NEXT_FRAGMENT, NEXT_ICMPV6, NEXT_UDP, QUIC_PORT};

mod owner;
mod stock;
mod turn;

pub(crate) use owner::Dial;
pub(crate) use stock::TunSide;

/// What WireGuard adds to an inner packet, and the step to which it pads one.
const WIREGUARD_LEN: usize = 32;
const PADDING: usize = 16;
/// Facts that wait for the plane's owner.
const MAX_FACTS: usize = 16 * 1024;
/// Handshake messages worked off between two receive turns: each costs about two X25519 operations.
const HANDSHAKES: usize = 2;
/// A peer's move is told this long after it happened, once for all hops in between.
const MOVED_AFTER: Duration = Duration::from_millis(50);

/// See the module.
#[derive(Debug)]
pub(crate) struct Shard {
    role: Role,
    instance: InstanceId,
    inner: Ipv6Addr,
    /// None: it is the only shard.
    pub(crate) place: Option<Place>,
    engine: EngineBox,
    pub(crate) peers: Peers,
    pub(crate) outbox: Outbox,
    spares: Spares,
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
    pub(crate) closing: Vec<Closing>,
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
    /// Where stock peers' packets go; none: they go nowhere.
    tun: Option<Box<TunSide>>,
    pub(crate) tun_stats: TunStats,
    #[cfg(test)]
    pub(crate) tap: Option<Arc<std::sync::Mutex<Vec<Vec<u8>>>>>,
}

/// What is to be closed.
#[derive(Debug)]
pub(crate) enum Closing {
    Link(Arc<Link>, Ending),
    /// A connection that has let nobody in yet.
    Handshake(Key),
}

/// The engine holds keys: it is not printed.
struct EngineBox(Engine);

impl std::fmt::Debug for EngineBox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Engine")
    }
}

impl Shard {
    pub(crate) fn new(
        role: Role,
        instance: InstanceId,
        inner: Ipv6Addr,
        engine: Engine,
        outbox: Outbox,
        place: Option<Place>,
    ) -> Self {
        Self {
            role,
            instance,
            inner,
            place,
            engine: EngineBox(engine),
            peers: Peers::default(),
            outbox,
            spares: Spares::default(),
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
            tun: None,
            tun_stats: TunStats::default(),
            #[cfg(test)]
            tap: None,
        }
    }

    // In: a datagram of the outside.

    /// One UDP payload: opened, and what is in it is handled or handed to `inbox` for QUIC.
    pub(crate) fn handle_datagram(&mut self, datagram: &[u8], path: Path, now: Instant, inbox: &mut Inbox) {
        if let Some(place) = &self.place
            && let Some(number) = place.elsewhere(datagram)
        {
            self.stats.passed_on += 1;
            self.stats.passed_lost += u64::from(!place.pass(number, datagram, path));
            return;
        }
        let mut opened = mem::take(&mut self.opened);
        opened.clear();
        let received = self.engine.0.handle_datagram(datagram, path, now, &mut opened, &mut self.replies);
        self.drain_engine(now);
        match received {
            Received::Packet { peer } if self.is_stock(peer) => self.take_in(peer, &opened, now),
            Received::Packet { peer } => self.handle_packet(peer, &opened, now, inbox),
            Received::Handled => {}
            Received::Dropped(reason) => tracing::trace!(reason = reason.name(), "dropped datagram"),
        }
        self.opened = opened;
    }

    fn handle_packet(&mut self, peer: PeerId, bytes: &[u8], now: Instant, inbox: &mut Inbox) {
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

    fn handle_body(&mut self, peer: PeerId, packet: &wrap::Packet<'_>, now: Instant, inbox: &mut Inbox) {
        match packet.next {
            NEXT_UDP => match wrap::open_udp(packet.body) {
                Some((QUIC_PORT, payload)) => self.hand_to_quic(peer, payload, inbox),
                Some((HELLO_PORT, payload)) => self.handle_hello(peer, payload, now),
                _ => self.stats.inner_dropped += 1,
            },
            NEXT_ICMPV6 if self.role == Role::Relay => self.echo(peer, packet, now),
            _ => self.stats.inner_dropped += 1,
        }
    }

    fn echo(&mut self, peer: PeerId, packet: &wrap::Packet<'_>, now: Instant) {
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

    /// The remote address is the peer's synthetic one, whatever the packet says (wire.md §1).
    fn hand_to_quic(&mut self, peer: PeerId, payload: &[u8], inbox: &mut Inbox) {
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
                self.closing.extend(link.map(|link| Closing::Link(link, Ending::NewInstance)));
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
                    self.closing.push(Closing::Link(link, Ending::Displaced));
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

    /// Seals QUIC's datagrams for the peer at the synthetic address; [`Self::after`] ends the turn.
    pub(crate) fn send_quic(&mut self, to: SocketAddr, contents: &[u8], segment: Option<usize>, now: Instant) {
        let segment = segment.unwrap_or(contents.len()).max(1);
        let is_bulk = contents.len() > 4 * segment;
        let flows = self.peers.at(to).map(|peer| &peer.flows).filter(|flows| !is_bulk || flows.are_short());
        if let Some(rtt) = flows.and_then(|flows| flows.take_spare(contents.len())) {
            for payload in contents.chunks(segment) {
                self.spares.keep(to, payload, rtt, now);
            }
        }
        self.seal_quic(to, contents, segment, now);
    }

    fn seal_quic(&mut self, to: SocketAddr, contents: &[u8], segment: usize, now: Instant) {
        let found = self.peers.at(to).map(|peer| (peer.id, peer.inner, peer.greeting.small));
        let Some((id, Some(destination), small)) = found else {
            // The peer, or the process that the connection was with, is gone.
            self.stats.quic_dropped += 1;
            return;
        };
        let addresses = Addresses { source: self.inner, destination };
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
    }

    /// Sends the copies that are due.
    fn send_spares(&mut self, now: Instant) {
        while let Some(spare) = self.spares.take(now) {
            if !self.outbox.is_full() {
                self.stats.spares += 1;
                self.seal_quic(spare.address, &spare.payload, spare.payload.len(), now);
            }
            self.spares.give_back(spare);
        }
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
        if let Err(error) = self.try_seal(id, packet, now) {
            tracing::trace!(%error, "inner packet was not sealed");
            self.stats.unsealed += 1;
        }
    }

    /// As [`Self::seal`], and tells what came of it.
    fn try_seal(&mut self, id: PeerId, packet: &mut Vec<u8>, now: Instant) -> Result<(), SealError> {
        let peer = self.peers.get_mut(id).ok_or(SealError::UnknownPeer)?;
        let length = packet.len().next_multiple_of(PADDING) + WIREGUARD_LEN;
        let engine = &mut self.engine.0;
        let path = peer.path.or_else(|| engine.peer_stats(id)?.path);
        let sealed = match path {
            Some(path) => self.outbox.append(path, length, peer.stock, |out| engine.seal(id, packet, now, out)),
            None => Err(SealError::NoPath),
        };
        match sealed {
            Ok(sealed) => {
                peer.path = Some(sealed.path);
                peer.sealed += 1;
                Ok(())
            }
            Err(error) => {
                // The engine may have started a handshake instead.
                self.work.notify_one();
                Err(error)
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
}
