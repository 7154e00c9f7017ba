//! The handle to one shard: what the relay and the connector call.

use std::future::pending;
use std::io;
use std::net::{Ipv6Addr, SocketAddr, UdpSocket};

use culvert_engine::{AddPeerError, BootstrapConfig, BootstrapId, PeerConfig, PeerId, PeerStats, PskEpoch};
use culvert_model::close::CloseCode;
use culvert_model::id::InstanceId;

use crate::connection::{Connection, DialError};
use crate::event::Events;

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

/// A cheap handle to one shard; clones speak of the same one.
#[derive(Debug, Clone)]
pub struct Plane {
    _private: (),
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
}

impl Plane {
    /// Starts the shard's tasks on the current `current_thread` runtime.
    ///
    /// # Errors
    /// [`StartError`]
    pub fn start(_config: Config) -> Result<(Self, Events), StartError> {
        Err(StartError::Sockets(0))
    }

    /// Adds a peer.
    ///
    /// # Errors
    /// As the engine says.
    pub fn add_peer(&self, _peer: PeerConfig) -> Result<PeerId, AddPeerError> {
        unimplemented!()
    }

    /// Adds a token's bootstrap key.
    ///
    /// # Errors
    /// As the engine says.
    pub fn add_bootstrap(&self, _bootstrap: BootstrapConfig) -> Result<BootstrapId, AddPeerError> {
        unimplemented!()
    }

    /// Forgets a bootstrap key and its instances.
    pub fn remove_bootstrap(&self, _bootstrap: BootstrapId) {}

    /// Closes the peer's connection with `code`, flushes that datagram (100 ms at most), then forgets the peer.
    pub async fn remove_peer(&self, _peer: PeerId, _code: CloseCode) {
        pending().await
    }

    /// Replaces the peer's pre-shared keys, make before break (wire.md §3).
    pub fn set_psks(&self, _peer: PeerId, _psks: Vec<PskEpoch>) {}

    /// Starts a handshake now, toward `remote` when it is given.
    pub fn connect(&self, _peer: PeerId, _remote: Option<SocketAddr>) {}

    /// Connector: waits for a confirmed session and the peer's hello, then dials QUIC.
    ///
    /// Waits as long as it takes: the caller sets the deadline. Cancel safe.
    ///
    /// # Errors
    /// [`DialError`]
    pub async fn dial(&self, _peer: PeerId) -> Result<Connection, DialError> {
        pending().await
    }

    /// What the engine knows of a peer.
    pub fn peer_stats(&self, _peer: PeerId) -> Option<PeerStats> {
        None
    }

    /// Counters.
    pub fn stats(&self) -> Stats {
        Stats::default()
    }

    /// Where the sockets are bound.
    pub fn local_addrs(&self) -> Vec<SocketAddr> {
        Vec::new()
    }

    /// Closes every connection with `code`, flushes, and stops the shard's tasks.
    pub async fn shutdown(&self, _code: CloseCode) {
        pending().await
    }
}
