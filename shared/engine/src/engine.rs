//! The engine: both flows of packets, in their order.
//!
//! ```text
//! in   handle_datagram ─ data ──────▶ index → tunnel → open → [confirm] → [endpoint] → inner source → owner
//!                      └ handshake ─▶ mac1 → limiter → queue
//!      handle_handshakes ───────────▶ initiation → static key → bounds → tunnel → response       (answer.rs)
//!                                   └ response → tunnel → confirm → keepalive
//! out  seal ────────────────────────▶ peer → tunnel → datagram
//! time handle_timeout ──────────────▶ ticks, keepalives, initiations, ends                        (due.rs)
//! ```
//!
//! Must never block, read a clock or send: what is to be sent is appended to what the caller passes in.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use culvert_model::key::PublicKey;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use crate::bootstrap::{BYTES, Bootstraps};
use crate::bucket::Bucket;
use crate::config::{BootstrapId, Config, Path, PeerId};
use crate::event::{DropReason, Event, Received, SealError, Sealed};
use crate::handshakes::{Handshake, Handshakes, Unclaimed};
use crate::index::Indices;
use crate::limiter::{Limiter, Verdict};
use crate::own::Own;
use crate::peer::{Attempt, Peer};
use crate::replies::Replies;
use crate::roster::move_peer;
use crate::routes::Routes;
use crate::slots::Slots;
use crate::stats::{PeerStats, Stats};
use crate::timers::Timers;
use crate::tunn::{COOKIE_REPLY, INITIATION, Inner, LONGEST, OVERHEAD, RESPONSE, Tunnel, le32};

/// Cookies that one attempt follows at once; past it, it waits as for any lost initiation.
const COOKIES_FOLLOWED: u8 = 3;
/// How often joiners that wait are looked at, and how many of them are answered each time.
const JOINERS_EVERY: Duration = Duration::from_millis(10);
const JOINERS: usize = 4;
/// Jitter before an initiation is repeated with a cookie (wire.md §2).
const COOKIE_JITTER_MS: u64 = 50;

/// The peers of one shard.
pub struct Engine {
    /// Those that were taken away leave a hole: the numbers of the others stay.
    pub(crate) own: Vec<Option<Own>>,
    pub(crate) peers: Slots<Peer>,
    pub(crate) tunnels: Slots<Box<Tunnel>>,
    pub(crate) indices: Indices,
    /// Who has a static key, for each key of ours that it was added under.
    pub(crate) known: HashMap<(PublicKey, usize), Known>,
    pub(crate) bootstraps: Bootstraps,
    pub(crate) timers: Timers,
    pub(crate) events: VecDeque<Event>,
    /// What calls without `replies` want sent.
    pub(crate) outbox: Replies,
    pub(crate) stats: Stats,
    pub(crate) rng: StdRng,
    pub(crate) routes: Routes,
    pub(crate) queue: Handshakes,
    pub(crate) unclaimed: VecDeque<Unclaimed>,
    limiter: Limiter,
    /// Where peers are, with how many are there: their handshakes go first.
    pub(crate) endpoints: HashMap<SocketAddr, u32>,
    pub(crate) strangers: Bucket,
    load_checked: Instant,
    joiners_checked: Instant,
}

/// Whose a static key is.
#[derive(Copy, Clone, Debug)]
pub(crate) enum Known {
    /// By slot, and which of its keys.
    Peer(u32, u32),
    Bootstrap(BootstrapId),
}

impl Engine {
    /// Makes an engine without peers.
    pub fn new(config: Config, now: Instant) -> Self {
        let mut rng = match config.seed {
            Some(seed) => StdRng::seed_from_u64(seed),
            None => StdRng::from_seed(culvert_model::key::random()),
        };
        Self {
            own: config.statics.iter().map(|key| Some(Own::new(key))).collect(),
            peers: Slots::default(),
            tunnels: Slots::default(),
            indices: Indices::new(config.shard),
            known: HashMap::new(),
            bootstraps: Bootstraps::default(),
            timers: Timers::new(now),
            events: VecDeque::new(),
            outbox: Replies::default(),
            stats: Stats::default(),
            routes: Routes::default(),
            queue: Handshakes::new(config.handshakes.queue),
            unclaimed: VecDeque::new(),
            limiter: Limiter::new(config.handshakes, &mut rng, now),
            endpoints: HashMap::new(),
            strangers: Bucket::default(),
            load_checked: now,
            joiners_checked: now,
            rng,
        }
    }

    /// Starts a handshake now, even when a session is live: that one stays until the new one is confirmed. `path`
    /// overrides the known one. Costs three to six X25519, so thousands of calls want pacing.
    pub fn connect(&mut self, peer: PeerId, path: Option<Path>, now: Instant, replies: &mut Replies) {
        let Some(entry) = self.peers.get_mut(peer.slot).filter(|entry| entry.id == peer) else { return };
        if let Some(before) = entry.attempt.as_ref().filter(|before| before.sent)
            && let Some(target) = before.target.or(entry.path)
        {
            entry.keys.note_unanswered(target.remote);
        }
        entry.attempt = Some(Attempt::new(path, now));
        entry.cookie_at = None;
        self.initiate(peer.slot, now, replies);
        self.rearm(peer.slot, now);
    }

    /// Takes one whole UDP payload, which is only read.
    ///
    /// Data is opened at once and its inner IP packet appended to `inner`; handshake messages are checked (length, mac1,
    /// cookie) and queued for [`handle_handshakes`](Self::handle_handshakes). `path` becomes the peer's endpoint, but only
    /// once authenticated (paper §2.1).
    pub fn handle_datagram(
        &mut self,
        datagram: &[u8],
        path: Path,
        now: Instant,
        inner: &mut Vec<u8>,
        replies: &mut Replies,
    ) -> Received {
        self.stats.datagrams += 1;
        let taken = match (datagram.first_chunk::<4>(), datagram.len()) {
            (Some([4, 0, 0, 0]), OVERHEAD..) => self.take_data(datagram, path, now, inner),
            (Some([1, 0, 0, 0]), INITIATION) | (Some([2, 0, 0, 0]), RESPONSE) => {
                self.take_handshake(datagram, path, now, replies)
            }
            (Some([3, 0, 0, 0]), COOKIE_REPLY) => self.take_cookie(datagram, now),
            _ => Err(DropReason::Malformed),
        };
        self.flush(replies);
        taken.unwrap_or_else(|reason| {
            self.stats.count_drop(reason);
            Received::Dropped(reason)
        })
    }

    /// Works off queued handshake messages, at most `budget` of them; true: more are waiting. Each costs up to six X25519,
    /// so it is never called between the data packets of one receive turn.
    pub fn handle_handshakes(&mut self, budget: usize, now: Instant, replies: &mut Replies) -> bool {
        for _ in 0..budget {
            let Some(handshake) = self.queue.pop(now) else { break };
            let taken = match &handshake {
                Handshake::Initiation { bytes, path, own, passed } => {
                    self.take_initiation(bytes, *path, (*own, *passed), now, replies)
                }
                Handshake::Response { bytes, path } => self.take_response(bytes, *path, now, replies),
            };
            if let Err(reason) = taken {
                self.stats.count_drop(reason);
            }
        }
        self.stats.count_drops(DropReason::Late, self.queue.take_stale());
        self.flush(replies);
        self.queue.len() > 0
    }

    /// Seals one inner packet, padded with zeros in place to a multiple of 16, and appends the datagram to `out`.
    ///
    /// # Errors
    /// [`SealError::NoSession`] starts a handshake, if the peer's endpoint is known and none is under way.
    pub fn seal(
        &mut self,
        peer: PeerId,
        packet: &mut Vec<u8>,
        now: Instant,
        out: &mut Vec<u8>,
    ) -> Result<Sealed, SealError> {
        let entry = self.peers.get(peer.slot).filter(|entry| entry.id == peer).ok_or(SealError::UnknownPeer)?;
        let (active, path) = (entry.active, entry.path);
        let len = packet.len();
        let spent = entry.rx_bytes + entry.tx_bytes;
        if len > LONGEST || entry.instance.is_some() && spent + len as u64 > BYTES {
            return Err(SealError::TooLong);
        }
        let Some(tunnel) = active else { return Err(self.want_session(peer.slot, now)) };
        let path = path.ok_or(SealError::NoPath)?;
        if self.tunnels.get(tunnel).is_some_and(|tunnel| tunnel.is_stale(now)) {
            self.tick(peer.slot, tunnel, now);
        }
        packet.resize(len.next_multiple_of(16), 0);
        let Some(len_out) = self.tunnels.get_mut(tunnel).and_then(|tunnel| tunnel.seal(packet, now, out)) else {
            packet.truncate(len);
            return Err(self.want_session(peer.slot, now));
        };
        if let Some(entry) = self.peers.get_mut(peer.slot) {
            entry.tx_bytes += len as u64;
        }
        self.stats.sealed += 1;
        Ok(Sealed { len: len_out, path })
    }

    /// When [`handle_timeout`](Self::handle_timeout) wants to be called; may lie in the past.
    pub fn poll_timeout(&self) -> Option<Instant> {
        if !self.outbox.is_empty() {
            return Some(self.load_checked);
        }
        let joiners = self.bootstraps.has_waiting().then(|| self.joiners_checked + JOINERS_EVERY);
        self.timers.next().into_iter().chain(joiners).min()
    }

    /// Does what is due, a bounded part of it: [`poll_timeout`](Self::poll_timeout) tells at once when there is more.
    pub fn handle_timeout(&mut self, now: Instant, replies: &mut Replies) {
        /// Peers looked at in one call; each may cost an initiation.
        const TURN: usize = 64;
        /// However soon something more seems due: nothing can make this spin.
        const PAUSE: Duration = Duration::from_millis(10);
        for _ in 0..TURN {
            let Some(slot) = self.timers.pop(now) else { break };
            if let Some(peer) = self.peers.get_mut(slot) {
                peer.due = None;
            }
            self.handle_due(slot, now, replies);
            self.rearm_after(slot, now + PAUSE, now);
        }
        self.admit_joiners(JOINERS, now, replies);
        self.joiners_checked = now;
        self.load_checked = now;
        self.flush(replies);
    }

    /// Takes the next fact.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// The peer that an inner destination address belongs to. Networks of peers never overlap, so the one that holds it is
    /// the longest prefix.
    pub fn route(&self, destination: IpAddr) -> Option<PeerId> {
        Some(self.peers.get(self.routes.peer(destination)?)?.id)
    }

    /// What is known of a peer now.
    pub fn peer_stats(&self, peer: PeerId) -> Option<PeerStats> {
        let entry = self.peer(peer)?;
        let active = entry.active.and_then(|slot| self.tunnels.get(slot));
        let under = active.map_or_else(|| entry.keys.newest(), |tunnel| tunnel.under);
        let key = entry.keys.get(under.key).unwrap_or_else(|| entry.keys.preferred());
        Some(PeerStats {
            rx_bytes: entry.rx_bytes,
            tx_bytes: entry.tx_bytes,
            last_handshake: entry.last_handshake,
            path: entry.path,
            public_key: key.public_key,
            static_index: under.own,
            psk_epoch: active.and_then(|tunnel| tunnel.under.epoch),
            live: entry.live,
            bootstrap: entry.instance.as_ref().map(|instance| instance.bootstrap),
        })
    }

    /// How many handshake messages wait for [`handle_handshakes`](Self::handle_handshakes).
    pub fn handshakes_waiting(&self) -> usize {
        self.queue.len()
    }

    /// Counters. [`Stats::under_load`] is of the last call that was told the time.
    pub fn stats(&self) -> Stats {
        Stats {
            peers: u32::try_from(self.peers.len()).unwrap_or(u32::MAX),
            bootstraps: u32::try_from(self.bootstraps.len()).unwrap_or(u32::MAX),
            queued: self.queue.len(),
            under_load: self.limiter.under_load(self.load_checked),
            ..self.stats
        }
    }

    #[inline]
    fn take_data(
        &mut self,
        datagram: &[u8],
        path: Path,
        now: Instant,
        inner: &mut Vec<u8>,
    ) -> Result<Received, DropReason> {
        let index = le32(datagram, 4).ok_or(DropReason::Malformed)?;
        let slot = self.indices.tunnel(index).ok_or(DropReason::UnknownIndex)?;
        let tunnel = self.tunnels.get_mut(slot).ok_or(DropReason::UnknownIndex)?;
        let peer_slot = tunnel.peer;
        let tunnel = if tunnel.is_stale(now) {
            self.tick(peer_slot, slot, now);
            self.tunnels.get_mut(slot).ok_or(DropReason::UnknownIndex)?
        } else {
            tunnel
        };
        let start = inner.len();
        let opened = tunnel.open(datagram, now, inner)?;
        if opened.confirms {
            self.confirm(peer_slot, slot, opened.index, false, path, now);
        }
        let peer = self.peers.get_mut(peer_slot).ok_or(DropReason::UnknownPeer)?;
        if opened.newest_counter
            && peer.path != Some(path)
            && peer.active.and_then(|active| self.tunnels.get(active)).is_some_and(|active| opened.is_newest(active))
        {
            self.events.push_back(Event::EndpointMoved { peer: peer.id, path });
            move_peer(peer, path, &mut self.endpoints, &mut self.events, now);
        }
        let refused = match opened.inner {
            Inner::Keepalive => return Ok(Received::Handled),
            Inner::Bad => Some(DropReason::BadInner),
            Inner::Packet(source) if !peer.allowed.contains(source) => Some(DropReason::SourceNotAllowed),
            Inner::Packet(_) => None,
        };
        let len = (inner.len() - start) as u64;
        let spent = peer.rx_bytes + peer.tx_bytes;
        let refused =
            refused.or_else(|| (peer.instance.is_some() && spent + len > BYTES).then_some(DropReason::BootstrapLimit));
        if let Some(reason) = refused {
            inner.truncate(start);
            return Err(reason);
        }
        peer.rx_bytes += len;
        self.stats.opened += 1;
        Ok(Received::Packet { peer: peer.id })
    }

    fn take_handshake(
        &mut self,
        message: &[u8],
        path: Path,
        now: Instant,
        replies: &mut Replies,
    ) -> Result<Received, DropReason> {
        let own = self.fitting(message).ok_or(DropReason::BadMac)?;
        let response = match <&[u8; RESPONSE]>::try_from(message) {
            Ok(bytes) => {
                // What answers an initiation of ours needs no cookie: its index was a secret between us and its sender.
                let tunnel = le32(message, 8).and_then(|index| self.indices.tunnel(index));
                let tunnel = tunnel.and_then(|slot| self.tunnels.get(slot)).ok_or(DropReason::UnknownIndex)?;
                if tunnel.under.own != own {
                    return Err(DropReason::BadMac);
                }
                Some((*bytes, tunnel.expects_response()))
            }
            Err(_) => None,
        };
        if !response.is_some_and(|(_, expected)| expected) {
            let key = self.own.get(own).and_then(Option::as_ref).ok_or(DropReason::BadMac)?;
            self.load_checked = now;
            match self.limiter.judge(message, path.remote, key, self.queue.len(), &mut self.rng, now) {
                Verdict::Pass => {}
                Verdict::Cookie(reply) => {
                    self.stats.cookies += 1;
                    replies.push(path, &reply);
                    return Err(DropReason::CookieDemanded);
                }
                Verdict::AddressLimit => return Err(DropReason::AddressLimit),
            }
        }
        let handshake = match (response, <&[u8; INITIATION]>::try_from(message)) {
            (Some((bytes, _)), _) => Handshake::Response { bytes, path },
            (None, Ok(bytes)) => Handshake::Initiation { bytes: *bytes, path, own, passed: false },
            (None, Err(_)) => return Err(DropReason::Malformed),
        };
        let first = response.is_some() || self.endpoints.contains_key(&path.remote);
        if self.queue.push(handshake, first, now) { Ok(Received::Handled) } else { Err(DropReason::QueueFull) }
    }

    fn take_cookie(&mut self, reply: &[u8], now: Instant) -> Result<Received, DropReason> {
        let slot = le32(reply, 4).and_then(|index| self.indices.tunnel(index)).ok_or(DropReason::UnknownIndex)?;
        let tunnel = self.tunnels.get_mut(slot).ok_or(DropReason::UnknownIndex)?;
        if !tunnel.take_cookie(reply) {
            return Err(DropReason::BadSeal);
        }
        let peer_slot = tunnel.peer;
        let jitter = Duration::from_millis(self.rng.random_range(0..=COOKIE_JITTER_MS));
        let peer = self.peers.get_mut(peer_slot).ok_or(DropReason::UnknownPeer)?;
        if let Some(attempt) = peer.attempt.as_mut().filter(|attempt| attempt.cookies < COOKIES_FOLLOWED) {
            attempt.cookies += 1;
            peer.cookie_at = Some(now + jitter);
            self.rearm(peer_slot, now);
        }
        Ok(Received::Handled)
    }

    /// Remembers that a packet wanted to go out, so that the next turn starts a handshake.
    #[cold]
    fn want_session(&mut self, slot: u32, now: Instant) -> SealError {
        let Some(peer) = self.peers.get_mut(slot) else { return SealError::UnknownPeer };
        if peer.path.is_none() && peer.attempt.as_ref().is_none_or(|attempt| attempt.target.is_none()) {
            return SealError::NoPath;
        }
        if peer.attempt.is_none() && peer.instance.is_none() {
            peer.attempt = Some(Attempt::new(None, now));
        }
        self.rearm(slot, now);
        SealError::NoSession
    }

    /// Counts a handshake message that another shard has judged.
    pub(crate) fn note_load(&mut self, now: Instant) {
        self.load_checked = now;
        self.limiter.note(self.queue.len(), now);
    }

    /// The key of ours that a handshake message is meant for, by its mac1.
    fn fitting(&self, message: &[u8]) -> Option<usize> {
        self.own.iter().position(|own| own.as_ref().is_some_and(|own| own.fits(message)))
    }

    pub(crate) fn peer(&self, id: PeerId) -> Option<&Peer> {
        self.peers.get(id.slot).filter(|peer| peer.id == id)
    }

    fn flush(&mut self, replies: &mut Replies) {
        if !self.outbox.is_empty() {
            for (path, datagram) in self.outbox.drain() {
                replies.push(path, datagram);
            }
        }
    }
}
