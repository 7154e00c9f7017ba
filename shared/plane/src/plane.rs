//! The handle to one shard: what the relay and the connector call.

use std::io;
use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use culvert_engine::{
    AddPeerError, BootstrapConfig, BootstrapId, Engine, KeyError, Path, PeerConfig, PeerId, PeerKey, PeerStats,
    PskEpoch, PskError,
};
use culvert_model::close::CloseCode;
use culvert_model::id::InstanceId;
use culvert_model::key::{PrivateKey, PublicKey};
use quinn::{Endpoint, TokioRuntime};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::AbortHandle;
use tokio::time::timeout;

use crate::connection::{Connection, DialError, Ending, Link, describe};
use crate::crypto::PROTOCOL_VERSION;
use crate::driver::{self, Maker};
use crate::event::Events;
use crate::outbox::{Outbox, SendStats};
use crate::port::Carrier;
use crate::quic::{self, Quic};
use crate::shard::{Dial, Shard};
use crate::socket::{Shared, VirtualSocket, now};
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

/// What a shard is made of.
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
    /// Bytes all streams of the shard together may hold unread (streams × window): past it new streams wait.
    pub budget: u64,
}

impl Default for StreamLimits {
    fn default() -> Self {
        Self { incoming: 16, window: 256 * 1024, budget: 1 << 30 }
    }
}

/// A cheap handle to one shard; clones speak of the same one. When the last is gone, so is the shard.
#[derive(Debug, Clone)]
pub struct Plane {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    maker: Maker,
    endpoint: Endpoint,
    addresses: Vec<SocketAddr>,
    tasks: Vec<AbortHandle>,
}

/// Why a shard did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No socket, or more than 255.
    #[error("a plane needs 1 to 255 sockets, not {0}")]
    Sockets(usize),
    /// A socket option or registration failed.
    #[error("the UDP socket cannot be used: {0}")]
    Socket(#[from] io::Error),
}

/// Plain counters of one shard.
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
}

/// Events that wait while the owner is busy.
const EVENTS: usize = 1024;
/// How long a closing datagram may take to leave.
const FLUSH: Duration = Duration::from_millis(100);
/// The budget is counted in these.
const BUDGET_UNIT: u64 = 1024;

impl Plane {
    /// Starts the shard's tasks on the current `current_thread` runtime.
    ///
    /// # Errors
    /// [`StartError`]
    ///
    /// # Panics
    /// Outside a runtime with I/O and time.
    pub fn start(mut config: Config) -> Result<(Self, Events), StartError> {
        let sockets = std::mem::take(&mut config.sockets);
        if sockets.is_empty() || sockets.len() > usize::from(u8::MAX) {
            return Err(StartError::Sockets(sockets.len()));
        }
        let carriers = sockets.into_iter().map(|socket| Ok(Arc::new(Udp::new(socket)?) as Arc<dyn Carrier>));
        let carriers = carriers.collect::<io::Result<Vec<_>>>()?;
        Self::start_on(carriers, config, PROTOCOL_VERSION)
    }

    /// As [`Self::start`], on any carriers and with any version.
    pub(crate) fn start_on(
        carriers: Vec<Arc<dyn Carrier>>,
        config: Config,
        version: u32,
    ) -> Result<(Self, Events), StartError> {
        let engine = Engine::new(config.engine, now());
        let addresses = carriers.iter().map(|carrier| carrier.local_addr()).collect();
        let shard = Shard::new(config.role, config.instance, config.inner, engine, Outbox::new(carriers.clone()));
        let shared = Shared::new(shard, carriers, config.role);
        let quic = Arc::new(Quic::new(&config.streams, version));
        let server = (config.role == Role::Relay).then(|| quic.any_server());
        let socket = Arc::new(VirtualSocket::new(shared.clone()));
        let endpoint = quic::endpoint(&config.reset_secret);
        let endpoint = Endpoint::new_with_abstract_socket(endpoint, server, socket, Arc::new(TokioRuntime))?;

        let units = usize::try_from(config.streams.budget / BUDGET_UNIT).unwrap_or(usize::MAX);
        let units = units.clamp(1, Semaphore::MAX_PERMITS);
        let share = u64::from(config.streams.window).div_ceil(BUDGET_UNIT);
        let share = u32::try_from(share).unwrap_or(u32::MAX).min(u32::try_from(units).unwrap_or(u32::MAX));
        let maker = Maker { shared: shared.clone(), quic, budget: Arc::new(Semaphore::new(units)), share };

        let (owner, receiver) = mpsc::channel(EVENTS);
        let mut tasks = vec![
            tokio::spawn(driver::flush(shared.clone())).abort_handle(),
            tokio::spawn(driver::work(shared.clone())).abort_handle(),
            tokio::spawn(driver::report(shared, owner)).abort_handle(),
        ];
        if config.role == Role::Relay {
            tasks.push(tokio::spawn(driver::accept(maker.clone(), endpoint.clone())).abort_handle());
        }
        Ok((Self { inner: Arc::new(Inner { maker, endpoint, addresses, tasks }) }, Events { receiver }))
    }

    /// Adds a peer.
    ///
    /// # Errors
    /// As the engine says.
    pub fn add_peer(&self, peer: PeerConfig) -> Result<PeerId, AddPeerError> {
        self.shared().shard().add_peer(peer, now())
    }

    /// Adds a stock WireGuard peer: no QUIC, no hello. Its allowed addresses, IPv4 and IPv6, are routed to it through the TUN
    /// plane ([`crate::tun::Tun`]), which may come later. Facts about it are told as about any other; [`Self::connect`] and
    /// [`Self::connect_path`] call it back after a restart, and [`Self::remove_peer`] takes it away.
    ///
    /// # Errors
    /// As the engine says; [`AddPeerError::Reserved`] for networks that hold addresses of the relay or of connectors.
    pub fn add_stock_peer(&self, peer: PeerConfig) -> Result<PeerId, AddPeerError> {
        self.shared().shard().add_stock_peer(peer, now())
    }

    /// Adds a token's bootstrap key.
    ///
    /// # Errors
    /// As the engine says.
    pub fn add_bootstrap(&self, bootstrap: BootstrapConfig) -> Result<BootstrapId, AddPeerError> {
        self.shared().shard().add_bootstrap(bootstrap)
    }

    /// Forgets a bootstrap key and its instances.
    pub fn remove_bootstrap(&self, bootstrap: BootstrapId) {
        self.shared().shard().remove_bootstrap(bootstrap, now());
    }

    /// Closes the peer's connection with `code`, flushes that datagram (100 ms at most), then forgets the peer.
    ///
    /// Dropped before its end, the peer stays.
    pub async fn remove_peer(&self, peer: PeerId, code: CloseCode) {
        let link = self.shared().shard().peers.get(peer).and_then(|peer| peer.link.upgrade());
        if let Some(link) = link {
            self.close_and_flush(&[link], code).await;
        }
        self.shared().shard().remove_peer(peer);
    }

    /// Replaces the pre-shared keys of the key that the peer is initiated with, make before break (wire.md §3).
    ///
    /// # Errors
    /// As the engine says.
    pub fn set_psks(&self, peer: PeerId, psks: Vec<PskEpoch>) -> Result<(), PskError> {
        self.shared().shard().change(|engine, now| engine.set_psks(peer, psks, now))
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
        self.shared().shard().change(|engine, now| engine.set_key_psks(peer, public_key, static_index, psks, now))
    }

    /// Adds a static key to a peer, beside those it has. Its sessions, under whichever key, are one peer's: QUIC does not
    /// notice. With `prefer` it is what we initiate with from now on; [`Self::connect`] does so at once.
    ///
    /// # Errors
    /// As the engine says.
    pub fn add_key(&self, peer: PeerId, key: PeerKey, prefer: bool) -> Result<(), AddPeerError> {
        self.shared().shard().change(|engine, now| engine.add_key(peer, key, prefer, now))
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
        self.shared().shard().engine().prefer_key(peer, public_key, static_index)
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
        self.shared().shard().change(|engine, now| engine.remove_key(peer, public_key, static_index, now))
    }

    /// Adds a static key of our own and tells its number; one that is there keeps its number. Every peer may speak to it
    /// from now on.
    pub fn add_static(&self, key: &PrivateKey) -> usize {
        self.shared().shard().engine().add_static(key)
    }

    /// Takes a static key of our own away, and ends what is left of the sessions under it. What was added with it belongs
    /// to `instead` from now on.
    ///
    /// # Errors
    /// As the engine says.
    pub fn remove_static(&self, index: usize, instead: usize) -> Result<(), KeyError> {
        self.shared().shard().change(|engine, now| engine.remove_static(index, instead, now))
    }

    /// Starts a handshake now, toward `remote` when it is given, even when a session is live.
    pub fn connect(&self, peer: PeerId, remote: Option<SocketAddr>) {
        let path = remote.map(|remote| {
            let same = |own: &SocketAddr| own.is_ipv4() == remote.is_ipv4();
            let socket = self.inner.addresses.iter().position(same).unwrap_or(0);
            Path { remote, local: None, socket: u8::try_from(socket).unwrap_or(0) }
        });
        self.shared().shard().connect(peer, path, now());
    }

    /// As [`Self::connect`], over a path that is known whole: a relay calls back from the address it last used.
    pub fn connect_path(&self, peer: PeerId, path: Path) {
        self.shared().shard().connect(peer, Some(path), now());
    }

    /// Connector: waits for a confirmed session and the peer's hello, then dials QUIC.
    ///
    /// A connection that this peer already has is closed first. Waits as long as it takes: the caller sets the
    /// deadline. Cancel safe.
    ///
    /// # Errors
    /// [`DialError`]
    pub async fn dial(&self, peer: PeerId) -> Result<Connection, DialError> {
        loop {
            let (address, outer) = self.until_ready(peer).await?;
            let older = self.shared().shard().peers.get(peer).and_then(|peer| peer.link.upgrade());
            if let Some(older) = older {
                older.end(Ending::Code(CloseCode::Shutdown));
            }
            let client = self.inner.maker.quic.client(outer);
            let connecting = self.inner.endpoint.connect_with(client, address, "culvert");
            let connecting = connecting.map_err(|_| DialError::Stopped)?;
            tokio::select! {
                quic = connecting => {
                    let quic = quic.map_err(|error| DialError::Failed(describe(&error)))?;
                    if let Some(connection) = self.inner.maker.register(quic, peer, address) {
                        return Ok(connection);
                    }
                }
                () = self.until_elsewhere(peer, address) => {}
            }
        }
    }

    /// What the engine knows of a peer.
    pub fn peer_stats(&self, peer: PeerId) -> Option<PeerStats> {
        self.shared().shard().engine().peer_stats(peer)
    }

    /// Counters.
    pub fn stats(&self) -> Stats {
        let mut shard = self.shared().shard();
        Stats { engine: shard.engine().stats(), plane: shard.stats, send: shard.outbox.stats, tun: shard.tun_stats }
    }

    /// Where the sockets are bound.
    pub fn local_addrs(&self) -> Vec<SocketAddr> {
        self.inner.addresses.clone()
    }

    /// Closes every connection with `code`, flushes (100 ms at most), stops the shard's tasks and closes its sockets,
    /// whoever still holds a handle or a connection.
    pub async fn shutdown(&self, code: CloseCode) {
        let links: Vec<_> = self.shared().shard().peers.iter().filter_map(|peer| peer.link.upgrade()).collect();
        self.close_and_flush(&links, code).await;
        self.inner.stop();
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

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.inner.maker.shared
    }

    async fn until_ready(&self, peer: PeerId) -> Result<(SocketAddr, std::net::IpAddr), DialError> {
        loop {
            let dial = {
                let mut shard = self.shared().shard();
                if shard.stopped { Err(DialError::Stopped) } else { Ok(shard.prepare_dial(peer, now())) }
            };
            match dial? {
                Dial::Ready(address, outer) => return Ok((address, outer)),
                Dial::Wait(notice) => notice.await,
                Dial::Unknown => return Err(DialError::UnknownPeer),
                Dial::Version(theirs) => return Err(DialError::Version { ours: PROTOCOL_VERSION, theirs }),
                Dial::Displaced => return Err(DialError::Displaced),
            }
        }
    }

    /// Waits until the peer is gone or its process is another one.
    async fn until_elsewhere(&self, peer: PeerId, address: SocketAddr) {
        loop {
            let notice = {
                let shard = self.shared().shard();
                let known = shard.peers.get(peer).filter(|peer| peer.address == address);
                known.map(|peer| peer.changed.clone().notified_owned())
            };
            match notice {
                Some(notice) => notice.await,
                None => return,
            }
        }
    }

    /// Closes connections and waits until each has sealed a datagram more and all have left.
    async fn close_and_flush(&self, links: &[Arc<Link>], code: CloseCode) {
        let shared = self.shared();
        let sealed = |link: &Arc<Link>| shared.shard().peers.get(link.peer()).map(|peer| peer.sealed);
        let open = links.iter().filter(|link| !link.is_closed());
        let before: Vec<_> = open.map(|link| (link, sealed(link))).collect();
        for (link, _) in &before {
            link.end(Ending::Code(code));
        }
        let flushed = async {
            loop {
                let notice = shared.flushed.notified();
                let all = before.iter().all(|(link, before)| sealed(link) != *before);
                if all && shared.shard().outbox.is_empty() {
                    return;
                }
                notice.await;
            }
        };
        // Late is as good as lost: the peer's timers notice the end without it.
        let _ = timeout(FLUSH, flushed).await;
    }
}

impl Inner {
    fn stop(&self) {
        let notices: Vec<_> = {
            let mut shard = self.maker.shared.shard();
            shard.stopped = true;
            for handshake in shard.peers.iter_mut().filter_map(|peer| peer.handshake.take()) {
                handshake.abort();
            }
            shard.peers.iter().map(|peer| peer.changed.clone()).collect()
        };
        for notice in notices {
            notice.notify_waiters();
        }
        self.endpoint.close(CloseCode::Shutdown.code().into(), b"shutdown");
        self.maker.budget.close();
        for task in &self.tasks {
            task.abort();
        }
        // What waits in the shard for those tasks may hold connections, and QUIC behind them the shard; and QUIC's own
        // tasks outlive this by its drain time. None of them may keep the sockets.
        self.maker.shared.close();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop();
    }
}
