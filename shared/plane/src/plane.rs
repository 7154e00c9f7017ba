//! The handle to all shards: what the relay and the connector call.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, MutexGuard};
use std::task::Poll;
use std::time::{Duration, Instant};

use culvert_engine::{
    AddPeerError, BootstrapConfig, BootstrapId, Holder, KeyError, Path, PeerConfig, PeerId, PeerKey, PeerStats,
    PskEpoch, PskError,
};
use culvert_model::close::CloseCode;
use culvert_model::id::InstanceId;
use culvert_model::key::{PrivateKey, PublicKey};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use crate::connection::{Connection, DialError};
use crate::crypto::PROTOCOL_VERSION;
use crate::event::Events;
use crate::group::{Group, Place};
use crate::outbox::SendStats;
use crate::port::Carrier;
use crate::running::Running;
use crate::shard::Shard;
use crate::shared::{Shared, now};
use crate::tun::TunStats;
use crate::udp::Udp;

/// Which end this is: the connector dials QUIC, the relay accepts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Accepts connections; answers ICMPv6 echo.
    Relay,
    /// Dials connections.
    Connector,
}

/// What a plane is made of.
pub struct Config {
    /// Which end this is.
    pub role: Role,
    /// The bound sockets (see [`crate::bind`]), 1..=255; the place in this list is `Path::socket`.
    pub sockets: Vec<UdpSocket>,
    /// The engine's own configuration.
    pub engine: culvert_engine::Config,
    /// This run of the process.
    pub instance: InstanceId,
    /// Our address inside the tunnel: `RELAY_INNER`, `connector_inner(id)`, or `BOOTSTRAP_INNER` while joining.
    pub inner: Ipv6Addr,
    /// A secret of its own from the state directory: stateless resets work across restarts with it (wire.md §2).
    pub reset_secret: [u8; 32],
    /// Bounds of streams.
    pub streams: StreamLimits,
}

/// Bounds of streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamLimits {
    /// Streams the peer may have open towards us, for each connection.
    pub incoming: u32,
    /// Bytes the peer may send on one stream before they are read.
    pub window: u32,
    /// Bytes all streams together may hold unread (streams × window): past it new streams wait. The first that each
    /// connection accepts is not counted.
    pub budget: u64,
}

impl Default for StreamLimits {
    fn default() -> Self {
        Self { incoming: 16, window: 256 * 1024, budget: 1 << 30 }
    }
}

/// A cheap handle to the shards; clones speak of the same ones. When the last is gone, so are they.
#[derive(Debug, Clone)]
pub struct Plane {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// At least one.
    shards: Vec<Running>,
    /// None: there is one shard.
    group: Option<Arc<Group>>,
}

/// Where one more shard runs.
#[derive(Debug)]
pub struct Further {
    /// A `current_thread` runtime with I/O and time that lives as long as the plane.
    pub runtime: Handle,
    /// Bound to the addresses of [`Config::sockets`], in their order (see [`crate::bind_group`]).
    pub sockets: Vec<UdpSocket>,
}

/// Why a plane did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No socket, more than 255, or not as many as the first shard has.
    #[error("a shard needs 1 to 255 sockets, as many as the first, not {0}")]
    Sockets(usize),
    /// More shards than can be told apart.
    #[error("a plane has 256 shards at most, not {0}")]
    Shards(usize),
    /// A socket option or registration failed.
    #[error("the UDP socket cannot be used: {0}")]
    Socket(#[from] io::Error),
}

/// Plain counters of one shard, or of all.
#[derive(Debug, Clone, Default)]
pub struct Stats {
    /// The engine's.
    pub engine: culvert_engine::Stats,
    /// Of inner packets.
    pub plane: PlaneStats,
    /// Of what left.
    pub send: SendStats,
    /// Of the TUN plane; zeros without one.
    pub tun: TunStats,
}

/// Plain counters of inner packets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PlaneStats {
    /// QUIC datagrams handed in.
    pub quic_received: u64,
    /// QUIC datagrams taken out.
    pub quic_sent: u64,
    /// QUIC datagrams sent a second time, on ways that lose some.
    pub spares: u64,
    /// QUIC datagrams to peers or processes that are gone.
    pub quic_dropped: u64,
    /// Hellos that came.
    pub hellos_received: u64,
    /// Echo requests answered.
    pub echoes: u64,
    /// Inner packets sent as two fragments.
    pub split: u64,
    /// Inner packets that were not for us or not of our kind.
    pub inner_dropped: u64,
    /// Inner packets that found no live session.
    pub unsealed: u64,
    /// Events that nobody took in time.
    pub facts_lost: u64,
    /// Datagrams that landed on this shard and were another one's.
    pub passed_on: u64,
    /// Those of them that the other had no room for.
    pub passed_lost: u64,
}

/// Events that wait while the owner is busy.
const EVENTS: usize = 1024;
/// How long a closing datagram may take to leave.
pub(crate) const FLUSH: Duration = Duration::from_millis(100);
/// What the top byte of a session index tells apart.
const MOST_SHARDS: usize = 256;

impl Plane {
    /// Starts one shard on the current `current_thread` runtime.
    ///
    /// # Errors
    /// [`StartError`]
    ///
    /// # Panics
    /// Outside a runtime with I/O and time.
    pub fn start(config: Config) -> Result<(Self, Events), StartError> {
        Self::start_over(config, Vec::new())
    }

    /// Starts the first shard on the current runtime and the others on theirs: a peer lives on one of them, and everything
    /// else is as with one. `config.streams.budget` is that of all together.
    ///
    /// # Errors
    /// [`StartError`]
    ///
    /// # Panics
    /// As [`Self::start`].
    pub fn start_over(mut config: Config, others: Vec<Further>) -> Result<(Self, Events), StartError> {
        let sockets = std::mem::take(&mut config.sockets);
        let first = Further { runtime: Handle::current(), sockets };
        let count = first.sockets.len();
        if others.len() >= MOST_SHARDS {
            return Err(StartError::Shards(others.len() + 1));
        }
        let mut seats = Vec::with_capacity(1 + others.len());
        for Further { runtime, sockets } in std::iter::once(first).chain(others) {
            if sockets.is_empty() || sockets.len() != count || count > usize::from(u8::MAX) {
                return Err(StartError::Sockets(sockets.len()));
            }
            let _within = runtime.enter();
            let carriers = sockets.into_iter().map(|socket| Ok(Arc::new(Udp::new(socket)?) as Arc<dyn Carrier>));
            let carriers = carriers.collect::<io::Result<Vec<_>>>()?;
            seats.push((runtime.clone(), carriers));
        }
        Self::start_on(seats, config, PROTOCOL_VERSION)
    }

    /// As [`Self::start_over`], on any carriers and with any version.
    pub(crate) fn start_on(
        seats: Vec<(Handle, Vec<Arc<dyn Carrier>>)>,
        config: Config,
        version: u32,
    ) -> Result<(Self, Events), StartError> {
        let group = (seats.len() > 1).then(|| Group::new(seats.len()));
        let (owner, receiver) = mpsc::channel(EVENTS);
        let mut shards = Vec::with_capacity(seats.len());
        for (number, (runtime, carriers)) in (0..=u8::MAX).zip(seats) {
            let place = group.as_ref().map(|group| Place { group: group.clone(), number });
            shards.push(Running::start(&config, version, runtime, carriers, place, owner.clone())?);
        }
        if let Some(group) = &group {
            group.introduce(shards.iter().map(|shard| Arc::downgrade(shard.shared())).collect());
        }
        Ok((Self { inner: Arc::new(Inner { shards, group }) }, Events { receiver }))
    }

    /// How many shards there are.
    pub fn shards(&self) -> usize {
        self.inner.shards.len()
    }

    /// Adds a peer: to the shard that carries the fewest.
    ///
    /// # Errors
    /// As the engine says.
    pub fn add_peer(&self, peer: PeerConfig) -> Result<PeerId, AddPeerError> {
        self.add(peer, None, |shard, peer, now| shard.add_peer(peer, now))
    }

    /// As [`Self::add_peer`], but first of all to a shard that carries none of those `others`, or the fewest.
    ///
    /// # Errors
    /// As the engine says.
    pub fn add_peer_apart(&self, peer: PeerConfig, others: &[PeerId]) -> Result<PeerId, AddPeerError> {
        let to = self.least_filled(others);
        self.add(peer, Some(to), |shard, peer, now| shard.add_peer(peer, now))
    }

    /// Adds a stock WireGuard peer: no QUIC, no hello. Its allowed addresses, IPv4 and IPv6, are routed to it through the TUN
    /// plane ([`crate::tun::Tun`]), which may come later. Facts about it are told as about any other; [`Self::connect`] and
    /// [`Self::connect_path`] call it back after a restart, and [`Self::remove_peer`] takes it away.
    ///
    /// # Errors
    /// As the engine says; [`AddPeerError::Reserved`] for networks that hold addresses of the relay or of connectors.
    pub fn add_stock_peer(&self, peer: PeerConfig) -> Result<PeerId, AddPeerError> {
        // The device has one reader, on the first shard.
        self.add(peer, Some(0), |shard, peer, now| shard.add_stock_peer(peer, now))
    }

    /// Adds a token's bootstrap key.
    ///
    /// # Errors
    /// As the engine says.
    pub fn add_bootstrap(&self, bootstrap: BootstrapConfig) -> Result<BootstrapId, AddPeerError> {
        let mut homes = self.homes();
        self.check_elsewhere(homes.as_deref(), &bootstrap.public_key, 0)?;
        let public_key = bootstrap.public_key;
        let added = self.shared().shard().add_bootstrap(bootstrap)?;
        if let Some(homes) = &mut homes {
            homes.insert(public_key, 0);
        }
        Ok(added)
    }

    /// Forgets a bootstrap key and its instances.
    pub fn remove_bootstrap(&self, bootstrap: BootstrapId) {
        let mut homes = self.homes();
        let mut shard = self.shared().shard();
        let key = shard.engine().bootstrap_key(bootstrap);
        shard.remove_bootstrap(bootstrap, now());
        drop(shard);
        self.leave_home(homes.as_deref_mut(), 0, key);
    }

    /// Closes the peer's connection with `code`, flushes that datagram (100 ms at most), then forgets the peer.
    ///
    /// Dropped before its end, the peer stays.
    pub async fn remove_peer(&self, peer: PeerId, code: CloseCode) {
        let running = self.of(peer);
        let link = running.shared().shard().peers.get(peer).and_then(|peer| peer.link.upgrade());
        if let Some(link) = link {
            running.close_and_flush(&[link], code).await;
        }
        let mut homes = self.homes();
        let mut shard = running.shared().shard();
        let keys = shard.engine().keys_of(peer);
        shard.remove_peer(peer);
        drop(shard);
        self.leave_home(homes.as_deref_mut(), peer.shard(), keys);
    }

    /// Replaces the pre-shared keys of the key that the peer is initiated with, make before break (wire.md §3).
    ///
    /// # Errors
    /// As the engine says.
    pub fn set_psks(&self, peer: PeerId, psks: Vec<PskEpoch>) -> Result<(), PskError> {
        self.shard_of(peer).change(|engine, now| engine.set_psks(peer, psks, now))
    }

    /// As [`Self::set_psks`], for one key of several; `static_index` where the peer has it with several of ours.
    ///
    /// # Errors
    /// As the engine says.
    pub fn set_key_psks(
        &self,
        peer: PeerId,
        public_key: &PublicKey,
        static_index: Option<usize>,
        psks: Vec<PskEpoch>,
    ) -> Result<(), PskError> {
        self.shard_of(peer).change(|engine, now| engine.set_key_psks(peer, public_key, static_index, psks, now))
    }

    /// Adds a static key to a peer, beside those it has. Its sessions, under whichever key, are one peer's: QUIC does not
    /// notice. With `prefer` it is what we initiate with from now on; [`Self::connect`] does so at once.
    ///
    /// # Errors
    /// As the engine says.
    pub fn add_key(&self, peer: PeerId, key: PeerKey, prefer: bool) -> Result<(), AddPeerError> {
        let mut homes = self.homes();
        self.check_elsewhere(homes.as_deref(), &key.public_key, peer.shard())?;
        let public_key = key.public_key;
        self.shard_of(peer).change(|engine, now| engine.add_key(peer, key, prefer, now))?;
        if let Some(homes) = &mut homes {
            homes.insert(public_key, peer.shard());
        }
        Ok(())
    }

    /// Initiates with one of several static keys of a peer from now on; [`Self::connect`] does so at once.
    ///
    /// # Errors
    /// As the engine says.
    pub fn prefer_key(
        &self,
        peer: PeerId,
        public_key: &PublicKey,
        static_index: Option<usize>,
    ) -> Result<(), KeyError> {
        self.shard_of(peer).engine().prefer_key(peer, public_key, static_index)
    }

    /// Takes one of several static keys from a peer, and ends what is left of its sessions.
    ///
    /// # Errors
    /// As the engine says.
    pub fn remove_key(
        &self,
        peer: PeerId,
        public_key: &PublicKey,
        static_index: Option<usize>,
    ) -> Result<(), KeyError> {
        let mut homes = self.homes();
        self.shard_of(peer).change(|engine, now| engine.remove_key(peer, public_key, static_index, now))?;
        self.leave_home(homes.as_deref_mut(), peer.shard(), [*public_key]);
        Ok(())
    }

    /// Adds a static key of our own and tells its number; one that is there keeps its number. Every peer may speak to it
    /// from now on.
    pub fn add_static(&self, key: &PrivateKey) -> usize {
        // Under the lock all shards add and remove in one order, so the number is the same for all.
        let _homes = self.homes();
        let numbers = self.inner.shards.iter().map(|shard| shard.shared().shard().engine().add_static(key));
        numbers.max().unwrap_or_default()
    }

    /// Takes a static key of our own away, and ends what is left of the sessions under it. What was added with it belongs
    /// to `instead` from now on.
    ///
    /// # Errors
    /// As the engine says.
    pub fn remove_static(&self, index: usize, instead: usize) -> Result<(), KeyError> {
        let _homes = self.homes();
        self.inner.shards.iter().try_for_each(|shard| {
            shard.shared().shard().change(|engine, now| engine.remove_static(index, instead, now))
        })
    }

    /// Starts a handshake now, toward `remote` when it is given, even when a session is live.
    pub fn connect(&self, peer: PeerId, remote: Option<SocketAddr>) {
        let running = self.of(peer);
        let path = remote.map(|remote| {
            let same = |own: &SocketAddr| own.is_ipv4() == remote.is_ipv4();
            let socket = running.addresses.iter().position(same).unwrap_or(0);
            Path { remote, local: None, socket: u8::try_from(socket).unwrap_or(0) }
        });
        running.shared().shard().connect(peer, path, now());
    }

    /// As [`Self::connect`], over a path that is known whole: a relay calls back from the address it last used.
    pub fn connect_path(&self, peer: PeerId, path: Path) {
        self.shard_of(peer).connect(peer, Some(path), now());
    }

    /// Connector: waits for a confirmed session and the peer's hello, then dials QUIC.
    ///
    /// A connection that this peer already has is closed first. Waits as long as it takes: the caller sets the
    /// deadline. Cancel safe.
    ///
    /// # Errors
    /// [`DialError`]
    pub async fn dial(&self, peer: PeerId) -> Result<Connection, DialError> {
        self.of(peer).dial(peer).await
    }

    /// What the engine knows of a peer.
    pub fn peer_stats(&self, peer: PeerId) -> Option<PeerStats> {
        self.shard_of(peer).engine().peer_stats(peer)
    }

    /// Whether a session with a peer is live.
    pub fn is_live(&self, peer: PeerId) -> bool {
        self.shard_of(peer).peers.get(peer).is_some_and(|peer| peer.live)
    }

    /// How many handshake messages wait for their turn, at all shards.
    pub fn handshakes_waiting(&self) -> usize {
        self.inner.shards.iter().map(|shard| shard.shared().shard().engine().handshakes_waiting()).sum()
    }

    /// Counters, of all shards together.
    pub fn stats(&self) -> Stats {
        let mut all = self.stats_by_shard().into_iter();
        let mut sum = all.next().unwrap_or_default();
        all.for_each(|stats| sum.add(&stats));
        sum
    }

    /// Counters of each shard.
    pub fn stats_by_shard(&self) -> Vec<Stats> {
        self.inner.shards.iter().map(Running::stats).collect()
    }

    /// Where the sockets are bound; those of further shards are bound to the same addresses.
    pub fn local_addrs(&self) -> Vec<SocketAddr> {
        self.first().addresses.clone()
    }

    /// Closes every connection with `code`, flushes (100 ms at most), stops the shards' tasks and closes their sockets,
    /// whoever still holds a handle or a connection.
    pub async fn shutdown(&self, code: CloseCode) {
        let mut closing: Vec<_> = self.inner.shards.iter().map(|shard| Box::pin(shard.close_all(code))).collect();
        std::future::poll_fn(|cx| {
            closing.retain_mut(|one| one.as_mut().poll(cx).is_pending());
            if closing.is_empty() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        self.inner.shards.iter().for_each(Running::stop);
    }

    /// Copies of every QUIC datagram that is sent from now on.
    #[cfg(test)]
    pub(crate) fn tap(&self) -> Arc<std::sync::Mutex<Vec<Vec<u8>>>> {
        let tap = Arc::default();
        self.shared().shard().tap = Some(Arc::clone(&tap));
        tap
    }

    /// Bytes that wait in the outbox.
    #[cfg(test)]
    pub(crate) fn waiting_bytes(&self) -> usize {
        self.shared().shard().outbox.waiting()
    }

    /// The first shard.
    pub(crate) fn shared(&self) -> &Arc<Shared> {
        self.first().shared()
    }

    fn first(&self) -> &Running {
        // A plane is never started without one.
        &self.inner.shards[0]
    }

    fn of(&self, peer: PeerId) -> &Running {
        self.inner.shards.get(usize::from(peer.shard())).unwrap_or_else(|| self.first())
    }

    fn shard_of(&self, peer: PeerId) -> MutexGuard<'_, Shard> {
        self.of(peer).shared().shard()
    }

    fn homes(&self) -> Option<MutexGuard<'_, HashMap<PublicKey, u8>>> {
        self.inner.group.as_ref().map(|group| group.homes())
    }

    /// The shard with the fewest of those `others`, then with the fewest peers. Joiners are all on the first one and gone soon.
    fn least_filled(&self, others: &[PeerId]) -> u8 {
        if self.inner.group.is_none() {
            return 0;
        }
        let filled = |shard: &Running| {
            let stats = shard.shared().shard().engine().stats();
            stats.peers.saturating_sub(stats.bootstraps)
        };
        let of_others = |number| others.iter().filter(|other| other.shard() == number).count();
        let least = (0..=u8::MAX)
            .zip(&self.inner.shards)
            .min_by_key(|(number, shard)| (of_others(*number), filled(shard), *number));
        least.map_or(0, |(number, _)| number)
    }

    fn add(
        &self,
        peer: PeerConfig,
        to: Option<u8>,
        add: impl FnOnce(&mut Shard, PeerConfig, Instant) -> Result<PeerId, AddPeerError>,
    ) -> Result<PeerId, AddPeerError> {
        let mut homes = self.homes();
        let public_key = peer.public_key;
        // One key of two peers is for their engine to judge.
        let home = homes.as_ref().and_then(|homes| homes.get(&public_key)).copied();
        let to = to.or(home).unwrap_or_else(|| self.least_filled(&[]));
        self.check_elsewhere(homes.as_deref(), &public_key, to)?;
        for other in (0..=u8::MAX).zip(&self.inner.shards).filter(|(number, _)| *number != to).map(|(_, shard)| shard) {
            let mut shard = other.shared().shard();
            for net in &peer.allowed_ips {
                if let Some(with) = shard.engine().overlap(net) {
                    return Err(AddPeerError::Overlap { net: *net, with });
                }
            }
        }
        let shard = self.inner.shards.get(usize::from(to)).unwrap_or_else(|| self.first());
        let id = add(&mut shard.shared().shard(), peer, now())?;
        if let Some(homes) = &mut homes {
            homes.insert(public_key, to);
        }
        Ok(id)
    }

    /// A static key is known on one shard only, or nobody could say where an initiation belongs.
    fn check_elsewhere(
        &self,
        homes: Option<&HashMap<PublicKey, u8>>,
        key: &PublicKey,
        shard: u8,
    ) -> Result<(), AddPeerError> {
        let Some(home) = homes.and_then(|homes| homes.get(key)).filter(|home| **home != shard) else { return Ok(()) };
        let holder =
            self.inner.shards.get(usize::from(*home)).and_then(|home| home.shared().shard().engine().holder(key));
        match holder {
            Some(Holder::Peer(peer)) => Err(AddPeerError::KnownKey(peer)),
            Some(Holder::Bootstrap(id)) => Err(AddPeerError::KnownBootstrap(id)),
            None => Ok(()),
        }
    }

    /// Forgets where keys were, but for those that are still known there.
    fn leave_home(
        &self,
        homes: Option<&mut HashMap<PublicKey, u8>>,
        shard: u8,
        keys: impl IntoIterator<Item = PublicKey>,
    ) {
        let (Some(homes), Some(running)) = (homes, self.inner.shards.get(usize::from(shard))) else { return };
        let mut state = running.shared().shard();
        for key in keys {
            if homes.get(&key) == Some(&shard) && state.engine().holder(&key).is_none() {
                homes.remove(&key);
            }
        }
    }
}

impl Stats {
    /// Takes another shard's into the sum.
    fn add(&mut self, other: &Self) {
        self.engine.add(&other.engine);
        self.plane.add(&other.plane);
        self.send.add(&other.send);
        // One shard has the device.
        if other.tun != TunStats::default() {
            self.tun = other.tun;
        }
    }
}

impl PlaneStats {
    fn add(&mut self, other: &Self) {
        self.quic_received += other.quic_received;
        self.quic_sent += other.quic_sent;
        self.spares += other.spares;
        self.quic_dropped += other.quic_dropped;
        self.hellos_received += other.hellos_received;
        self.echoes += other.echoes;
        self.split += other.split;
        self.inner_dropped += other.inner_dropped;
        self.unsealed += other.unsealed;
        self.facts_lost += other.facts_lost;
        self.passed_on += other.passed_on;
        self.passed_lost += other.passed_lost;
    }
}
