//! One established QUIC connection with a peer.

use std::future::pending;
use std::time::Duration;

use culvert_engine::{BootstrapId, PeerId};
use culvert_model::close::CloseCode;

use crate::stream::Stream;

/// A QUIC connection whose other end the engine has authenticated. Clones speak of the same connection.
#[derive(Debug, Clone)]
pub struct Connection {
    peer: PeerId,
    bootstrap: Option<BootstrapId>,
}

/// Why a connection ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{cause}")]
pub struct Closed {
    /// The code, when one end closed on purpose.
    pub code: Option<CloseCode>,
    /// The other end closed it.
    pub by_peer: bool,
    /// In words, for the log.
    pub cause: String,
}

/// Why no stream could be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The connection is over.
    #[error("the connection is closed: {0}")]
    Closed(#[from] Closed),
}

/// Why no connection came about.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DialError {
    /// The plane does not know the peer (any more).
    #[error("the peer is not known")]
    UnknownPeer,
    /// The peer speaks another protocol version.
    #[error("the peer speaks protocol version {theirs}, this end {ours}")]
    Version {
        /// Ours.
        ours: u32,
        /// The peer's.
        theirs: u32,
    },
    /// The QUIC handshake failed, or the peer closed it.
    #[error("the connection was not established: {0}")]
    Failed(#[from] Closed),
    /// The plane is shutting down.
    #[error("the plane is shutting down")]
    Stopped,
}

/// Figures of one connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ConnectionStats {
    /// Smoothed round-trip time.
    pub rtt: Duration,
    /// The largest QUIC datagram that passes.
    pub mtu: u16,
    /// Congestion window in bytes.
    pub window: u64,
    /// Datagrams sent.
    pub sent_packets: u64,
    /// Datagrams found lost.
    pub lost_packets: u64,
    /// Bytes sent, QUIC headers included.
    pub sent_bytes: u64,
    /// Bytes received, QUIC headers included.
    pub received_bytes: u64,
}

impl Connection {
    /// Whose connection it is.
    pub fn peer(&self) -> PeerId {
        self.peer
    }

    /// The bootstrap key, when the peer is a joiner.
    pub fn bootstrap(&self) -> Option<BootstrapId> {
        self.bootstrap
    }

    /// Opens a stream; waits while the peer permits no more. Cancel safe.
    ///
    /// # Errors
    /// [`OpenError::Closed`]
    pub async fn open(&self) -> Result<Stream, OpenError> {
        pending().await
    }

    /// Waits for a stream that the peer opened. Cancel safe.
    ///
    /// # Errors
    /// [`Closed`], when no more can come.
    pub async fn accept(&self) -> Result<Stream, Closed> {
        pending().await
    }

    /// Closes at once; streams are lost.
    pub fn close(&self, _code: CloseCode) {}

    /// Waits for the end. Cancel safe.
    pub async fn closed(&self) -> Closed {
        pending().await
    }

    /// Whether it has ended.
    pub fn is_closed(&self) -> bool {
        false
    }

    /// Smoothed round-trip time.
    pub fn rtt(&self) -> Duration {
        Duration::ZERO
    }

    /// Figures.
    pub fn stats(&self) -> ConnectionStats {
        ConnectionStats::default()
    }

    /// Changes how many streams the peer may have open towards us, live.
    pub fn permit_streams(&self, _incoming: u32) {}

    /// Tells this connection from every other one of this process.
    pub fn stable_id(&self) -> u64 {
        0
    }
}
