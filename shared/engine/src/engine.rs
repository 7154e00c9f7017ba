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
use ipnet::IpNet;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use crate::bootstrap::{BYTES, Bootstraps};
use crate::config::{AddPeerError, BootstrapConfig, BootstrapId, Config, Path, PeerConfig, PeerId, PskEpoch, PskError};
use crate::event::{DropReason, Event, Received, SealError, Sealed};
use crate::handshakes::{Handshake, Handshakes};
use crate::index::Indices;
use crate::limiter::{Limiter, Verdict};
use crate::own::Own;
use crate::peer::{Attempt, Instance, Peer};
use crate::replies::Replies;
use crate::routes::{Allowed, Routes};
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
    pub(crate) own: Vec<Own>,
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
    routes: Routes,
    queue: Handshakes,
    limiter: Limiter,
    /// Where peers are, with how many are there: their handshakes go first.
    endpoints: HashMap<SocketAddr, u32>,
    load_checked: Instant,
    joiners_checked: Instant,
}

/// Whose a static key is.
#[derive(Copy, Clone, Debug)]
pub(crate) enum Known {
    Peer(u32),
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
            own: config.statics.iter().map(Own::new).collect(),
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
            limiter: Limiter::new(config.handshakes, &mut rng, now),
            endpoints: HashMap::new(),
            load_checked: now,
            joiners_checked: now,
            rng,
        }
    }

    /// Adds a peer whose allowed addresses are routed to it.
    ///
    /// # Errors
    /// See [`AddPeerError`]; nothing has changed then.
    pub fn add_peer(&mut self, config: PeerConfig, now: Instant) -> Result<PeerId, AddPeerError> {
        for net in &config.allowed_ips {
            if let Some(with) = self.routes.overlap(net).and_then(|slot| self.peers.get(slot)) {
                return Err(AddPeerError::Overlap { net: *net, with: with.id });
            }
        }
        self.insert_peer(config, true, now)
    }

    /// Adds a peer that [`route`](Self::route) never returns, so its addresses may be those of another: a connector's
    /// several relays all have the same inner address. Its inner source is checked all the same.
    ///
    /// # Errors
    /// As [`add_peer`](Self::add_peer), but never [`AddPeerError::Overlap`].
    pub fn add_unrouted_peer(&mut self, config: PeerConfig, now: Instant) -> Result<PeerId, AddPeerError> {
        self.insert_peer(config, false, now)
    }

    /// Forgets a peer: silence from now on.
    pub fn remove_peer(&mut self, peer: PeerId) {
        if self.peer(peer).is_some() {
            self.forget_peer(peer.slot);
        }
    }

    /// Adds a key that many joiners share.
    ///
    /// # Errors
    /// See [`AddPeerError`]; nothing has changed then.
    pub fn add_bootstrap(&mut self, config: BootstrapConfig) -> Result<BootstrapId, AddPeerError> {
        self.check_new_key(&config.public_key, config.static_index)?;
        let BootstrapConfig { public_key, static_index, psk, allowed_ips } = config;
        let id = self.bootstraps.add(public_key, static_index, psk, allowed_ips);
        self.known.insert((public_key, static_index), Known::Bootstrap(id));
        Ok(id)
    }

    /// Forgets a bootstrap key and ends its instances.
    pub fn remove_bootstrap(&mut self, bootstrap: BootstrapId) {
        let Some(key) = self.bootstraps.remove(bootstrap) else { return };
        self.known.remove(&(key.public_key, key.home));
        for slot in self.bootstraps.instances(bootstrap) {
            self.end_instance(slot);
        }
    }

    /// Replaces a peer's pre-shared keys, newest last, make before break (wire.md §3): a live session stays live, and
    /// [`connect`](Self::connect) brings up one under the newest.
    ///
    /// # Errors
    /// See [`PskError`].
    pub fn set_psks(&mut self, peer: PeerId, psks: Vec<PskEpoch>, now: Instant) -> Result<(), PskError> {
        let Some(entry) = self.peers.get_mut(peer.slot).filter(|entry| entry.id == peer) else {
            return Err(PskError::UnknownPeer);
        };
        if !are_two_epochs_at_most(&psks) {
            return Err(PskError::BadPsks);
        }
        let same = |old: &PskEpoch| psks.iter().any(|new| new.epoch == old.epoch && new.psk == old.psk);
        let gone: Vec<u32> = entry.psks.iter().filter(|old| !same(old)).map(|old| old.epoch).collect();
        let had_none = entry.psks.is_empty() && !psks.is_empty();
        entry.psks = psks;
        entry.forget_old_at = None;
        for slot in entry.tunnels.clone() {
            let Some(tunnel) = self.tunnels.get_mut(slot) else { continue };
            if tunnel.epoch.map_or(had_none, |epoch| gone.contains(&epoch)) {
                tunnel.retired = true;
            }
        }
        self.rearm(peer.slot, now);
        Ok(())
    }

    /// Starts a handshake now, even when a session is live: that one stays until the new one is confirmed. `path`
    /// overrides the known one. Costs three to six X25519, so thousands of calls want pacing.
    pub fn connect(&mut self, peer: PeerId, path: Option<Path>, now: Instant, replies: &mut Replies) {
        let Some(entry) = self.peers.get_mut(peer.slot).filter(|entry| entry.id == peer) else { return };
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
            let Some(handshake) = self.queue.pop() else { break };
            let taken = match &handshake {
                Handshake::Initiation { bytes, path, own } => self.take_initiation(bytes, *path, *own, now, replies),
                Handshake::Response { bytes, path } => self.take_response(bytes, *path, now, replies),
            };
            if let Err(reason) = taken {
                self.stats.count_drop(reason);
            }
        }
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
        Some(PeerStats {
            rx_bytes: entry.rx_bytes,
            tx_bytes: entry.tx_bytes,
            last_handshake: entry.last_handshake,
            path: entry.path,
            psk_epoch: active.and_then(|tunnel| tunnel.epoch),
            live: entry.live,
            bootstrap: entry.instance.map(|instance| instance.bootstrap),
        })
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
            let old = peer.path.replace(path);
            move_endpoint(&mut self.endpoints, old, Some(path));
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
        let own = self.own.iter().position(|own| own.fits(message)).ok_or(DropReason::BadMac)?;
        let response = match <&[u8; RESPONSE]>::try_from(message) {
            Ok(bytes) => {
                // What answers an initiation of ours needs no cookie: its index was a secret between us and its sender.
                let tunnel = le32(message, 8).and_then(|index| self.indices.tunnel(index));
                let tunnel = tunnel.and_then(|slot| self.tunnels.get(slot)).ok_or(DropReason::UnknownIndex)?;
                Some((*bytes, tunnel.expects_response()))
            }
            Err(_) => None,
        };
        if !response.is_some_and(|(_, expected)| expected) {
            let key = self.own.get(own).ok_or(DropReason::BadMac)?;
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
            (None, Ok(bytes)) => Handshake::Initiation { bytes: *bytes, path, own },
            (None, Err(_)) => return Err(DropReason::Malformed),
        };
        let first = response.is_some() || self.endpoints.contains_key(&path.remote);
        if self.queue.push(handshake, first) { Ok(Received::Handled) } else { Err(DropReason::QueueFull) }
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

    fn insert_peer(&mut self, config: PeerConfig, routed: bool, now: Instant) -> Result<PeerId, AddPeerError> {
        self.check_new_key(&config.public_key, config.static_index)?;
        if !are_two_epochs_at_most(&config.psks) {
            return Err(AddPeerError::BadPsks);
        }
        let keepalive = config.persistent_keepalive.map(|secs| Duration::from_secs(u64::from(secs.get())));
        let key = (config.public_key, config.static_index);
        let peer = NewPeer {
            public_key: config.public_key,
            own: config.static_index,
            psks: config.psks,
            allowed_ips: &config.allowed_ips,
            path: config.path,
            keepalive,
            instance: None,
        };
        let slot = self.put_peer(peer).ok_or(AddPeerError::Full)?;
        self.known.insert(key, Known::Peer(slot));
        let entry = self.peers.get_mut(slot).ok_or(AddPeerError::Full)?;
        let id = entry.id;
        entry.routed = routed;
        if routed {
            self.routes.add(&entry.allowed, slot);
        }
        if keepalive.is_some() && config.path.is_some() {
            entry.attempt = Some(Attempt::new(None, now));
        }
        self.rearm(slot, now);
        Ok(id)
    }

    /// Puts a peer into the table, known under no key and routed nowhere.
    pub(crate) fn put_peer(&mut self, new: NewPeer<'_>) -> Option<u32> {
        let slot = self.peers.insert_with(|slot, generation| Peer {
            id: PeerId { slot, generation },
            public_key: new.public_key,
            home: new.own,
            own: new.own,
            psks: new.psks,
            forget_old_at: None,
            allowed: Allowed::new(new.allowed_ips),
            routed: false,
            path: new.path,
            persistent_keepalive: new.keepalive,
            tunnels: Vec::new(),
            active: None,
            live: false,
            last_handshake: None,
            attempt: None,
            cookie_at: None,
            called_back: None,
            accepted: Default::default(),
            unconfirmed: Default::default(),
            rx_bytes: 0,
            tx_bytes: 0,
            due: None,
            instance: new.instance,
        })?;
        move_endpoint(&mut self.endpoints, None, new.path);
        Some(slot)
    }

    /// Takes a peer out of every table.
    pub(crate) fn forget_peer(&mut self, slot: u32) -> Option<Peer> {
        let peer = self.peers.remove(slot)?;
        for tunnel in &peer.tunnels {
            if let Some(tunnel) = self.tunnels.remove(*tunnel) {
                self.indices.release(tunnel.base);
            }
        }
        if peer.routed {
            self.routes.remove(&peer.allowed);
        }
        match peer.instance {
            Some(instance) => self.bootstraps.forget(instance.bootstrap, instance.source, slot),
            None => {
                self.known.remove(&(peer.public_key, peer.home));
            }
        }
        self.stats.live -= u32::from(peer.live);
        self.timers.disarm(slot, peer.due);
        move_endpoint(&mut self.endpoints, peer.path, None);
        Some(peer)
    }

    /// Ends a bootstrap instance and says so if it was ever announced.
    pub(crate) fn end_instance(&mut self, slot: u32) {
        if let Some(Peer { id, last_handshake: Some(_), instance: Some(instance), .. }) = self.forget_peer(slot) {
            self.events.push_back(Event::PeerGone { peer: id, bootstrap: instance.bootstrap });
        }
    }

    pub(crate) fn set_path(&mut self, slot: u32, path: Path) {
        if let Some(peer) = self.peers.get_mut(slot).filter(|peer| peer.path != Some(path)) {
            let old = peer.path.replace(path);
            move_endpoint(&mut self.endpoints, old, Some(path));
        }
    }

    /// Remembers that a packet wanted to go out, so that the next turn starts a handshake.
    #[cold]
    fn want_session(&mut self, slot: u32, now: Instant) -> SealError {
        let Some(peer) = self.peers.get_mut(slot) else { return SealError::UnknownPeer };
        if peer.path.is_none() && peer.attempt.is_none_or(|attempt| attempt.target.is_none()) {
            return SealError::NoPath;
        }
        if peer.attempt.is_none() && peer.instance.is_none() {
            peer.attempt = Some(Attempt::new(None, now));
        }
        self.rearm(slot, now);
        SealError::NoSession
    }

    fn check_new_key(&self, key: &PublicKey, own: usize) -> Result<(), AddPeerError> {
        if own >= self.own.len() {
            return Err(AddPeerError::BadStatic);
        }
        match self.known.get(&(*key, own)) {
            None => Ok(()),
            Some(Known::Bootstrap(id)) => Err(AddPeerError::KnownBootstrap(*id)),
            Some(Known::Peer(slot)) => {
                Err(self.peers.get(*slot).map_or(AddPeerError::Full, |peer| AddPeerError::KnownKey(peer.id)))
            }
        }
    }

    fn peer(&self, id: PeerId) -> Option<&Peer> {
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

/// What a row of the table is made of.
pub(crate) struct NewPeer<'a> {
    pub(crate) public_key: PublicKey,
    pub(crate) own: usize,
    pub(crate) psks: Vec<PskEpoch>,
    pub(crate) allowed_ips: &'a [IpNet],
    pub(crate) path: Option<Path>,
    pub(crate) keepalive: Option<Duration>,
    pub(crate) instance: Option<Instance>,
}

fn are_two_epochs_at_most(psks: &[PskEpoch]) -> bool {
    match psks {
        [] | [_] => true,
        [old, new] => old.epoch & 1 != new.epoch & 1,
        _ => false,
    }
}

fn move_endpoint(endpoints: &mut HashMap<SocketAddr, u32>, old: Option<Path>, new: Option<Path>) {
    if let Some(new) = new {
        *endpoints.entry(new.remote).or_default() += 1;
    }
    if let Some(old) = old
        && let std::collections::hash_map::Entry::Occupied(mut entry) = endpoints.entry(old.remote)
    {
        *entry.get_mut() -= 1;
        if *entry.get() == 0 {
            entry.remove();
        }
    }
}
