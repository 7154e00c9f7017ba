//! One established QUIC connection with a peer.
//!
//! It must never say who the peer is by anything but the engine's word, which came with its synthetic address.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use culvert_engine::{BootstrapId, PeerId};
use culvert_model::close::CloseCode;
use quinn_proto::{ConnectionError, Dir, TransportErrorCode};
use tokio::sync::Semaphore;

use crate::congestion::{Flows, Shares};
use crate::crypto::VERSION_ALERT;
use crate::shared::Held;
use crate::stream::Stream;

/// A QUIC connection whose other end the engine has authenticated. Clones speak of the same connection; when the last
/// of them and of its streams is gone, it closes.
#[derive(Debug, Clone)]
pub struct Connection {
    link: Arc<Link>,
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
    /// Another process uses our key and is connected with it (wire.md §2, "Clones").
    #[error("another process uses this key")]
    Displaced,
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
    /// Times that congestion was met.
    pub congestion_events: u64,
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
    pub(crate) fn new(link: Arc<Link>) -> Self {
        Self { link }
    }

    /// Whose connection it is.
    pub fn peer(&self) -> PeerId {
        self.link.peer
    }

    /// The bootstrap key, when the peer is a joiner.
    pub fn bootstrap(&self) -> Option<BootstrapId> {
        self.link.bootstrap
    }

    /// Opens a stream; waits while the peer permits no more, or the shard's budget is used up. Cancel safe.
    ///
    /// # Errors
    /// [`OpenError::Closed`]
    pub async fn open(&self) -> Result<Stream, OpenError> {
        let link = &self.link;
        let share = link.budget.clone().acquire_many_owned(link.share).await.map_err(|_| stopped())?;
        loop {
            let notice = link.held.signals.permitted.notified();
            link.check_open()?;
            let opened = link.held.with(|slot| (slot.connection.streams().open(Dir::Bi), false)).flatten();
            match opened {
                Some(id) => return Ok(Stream::new(id, link.clone(), Some(share), true)),
                None => notice.await,
            }
        }
    }

    /// Waits for a stream that the peer opened; waits while the shard's budget is used up. Cancel safe.
    ///
    /// The first is free: it carries control messages for as long as the connection lives, and the budget is for what comes
    /// and goes. With a share for each, as many connectors as there are shares would leave none for requests, or for the next
    /// connector.
    ///
    /// # Errors
    /// [`Closed`], when no more can come.
    pub async fn accept(&self) -> Result<Stream, Closed> {
        let link = &self.link;
        let share = if link.accepted.load(Ordering::Relaxed) {
            tokio::select! {
                biased;
                share = link.budget.clone().acquire_many_owned(link.share) => Some(share.map_err(|_| stopped())?),
                closed = self.closed() => return Err(closed),
            }
        } else {
            None
        };
        loop {
            let notice = link.held.signals.opened.notified();
            // What the peer may open from now on is told to it.
            let accepted = link.held.with(|slot| {
                let accepted = slot.connection.streams().accept(Dir::Bi);
                (accepted, accepted.is_some())
            });
            if let Some(id) = accepted.flatten() {
                link.accepted.store(true, Ordering::Relaxed);
                return Ok(Stream::new(id, link.clone(), share, false));
            }
            link.check_open()?;
            notice.await;
        }
    }

    /// Closes at once; what streams have not delivered is lost.
    pub fn close(&self, code: CloseCode) {
        self.link.end(Ending::Code(code));
    }

    /// Waits for the end. Cancel safe.
    pub async fn closed(&self) -> Closed {
        let error = self.link.held.signals.until_ended().await;
        self.link.describe(&error)
    }

    /// Whether it has ended.
    pub fn is_closed(&self) -> bool {
        self.link.is_closed()
    }

    /// Smoothed round-trip time.
    pub fn rtt(&self) -> Duration {
        self.link.held.with(|slot| (slot.connection.rtt(), false)).unwrap_or_default()
    }

    /// Figures.
    pub fn stats(&self) -> ConnectionStats {
        let Some(stats) = self.link.held.with(|slot| (slot.connection.stats(), false)) else {
            return ConnectionStats::default();
        };
        ConnectionStats {
            rtt: stats.path.rtt,
            mtu: stats.path.current_mtu,
            window: stats.path.cwnd,
            congestion_events: stats.path.congestion_events,
            sent_packets: stats.path.sent_packets,
            lost_packets: stats.path.lost_packets,
            sent_bytes: stats.udp_tx.bytes,
            received_bytes: stats.udp_rx.bytes,
        }
    }

    /// Changes how many streams the peer may have open towards us, live. QUIC keeps memory for each permitted one.
    pub fn permit_streams(&self, incoming: u32) {
        self.link.held.with(|slot| (slot.connection.set_max_concurrent_streams(Dir::Bi, incoming.into()), true));
    }

    /// Tells this connection from every other one of this process.
    pub fn stable_id(&self) -> u64 {
        self.link.serial
    }
}

/// Why this end closed a connection by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The owner, or a newer connection, wanted it.
    Code(CloseCode),
    /// The peer's process is another one than the connection was with.
    NewInstance,
    /// The peer said that another process uses our key.
    Displaced,
    /// The engine has forgotten the peer.
    Gone,
}

/// What all handles and streams of one connection share.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) held: Held,
    peer: PeerId,
    bootstrap: Option<BootstrapId>,
    budget: Arc<Semaphore>,
    /// What one stream takes of the budget.
    share: u32,
    flows: Arc<Flows>,
    /// The peer's first stream was accepted.
    accepted: AtomicBool,
    ending: Mutex<Option<Ending>>,
    serial: u64,
}

impl Link {
    pub(crate) fn new(
        held: Held,
        peer: PeerId,
        bootstrap: Option<BootstrapId>,
        budget: &Arc<Semaphore>,
        share: u32,
    ) -> Arc<Self> {
        static SERIAL: AtomicU64 = AtomicU64::new(1);
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let controller = held.with(|slot| (slot.connection.congestion_state().clone_box(), false));
        let shares = controller.and_then(|controller| controller.into_any().downcast::<Shares>().ok());
        let flows = shares.map(|shares| shares.flows()).unwrap_or_default();
        let (budget, accepted) = (budget.clone(), AtomicBool::new(false));
        Arc::new(Self { held, peer, bootstrap, budget, share, flows, accepted, ending: Mutex::default(), serial })
    }

    pub(crate) fn peer(&self) -> PeerId {
        self.peer
    }

    /// Whom a stream tells that it sends.
    pub(crate) fn flows(&self) -> &Arc<Flows> {
        &self.flows
    }

    /// Closes; the first reason is the one that is told.
    pub(crate) fn end(&self, ending: Ending) {
        let code = match ending {
            Ending::Code(code) => code,
            Ending::NewInstance | Ending::Displaced => CloseCode::Replaced,
            Ending::Gone => CloseCode::Shutdown,
        };
        self.ending.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(ending);
        self.held.close(code);
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.held.signals.ended().is_some()
    }

    fn check_open(&self) -> Result<(), Closed> {
        self.held.signals.ended().map_or(Ok(()), |error| Err(self.describe(error)))
    }

    /// Its end, as streams tell it; none while it lives.
    pub(crate) fn lost(&self) -> Option<io::Error> {
        let error = self.held.signals.ended()?;
        Some(io::Error::new(io::ErrorKind::ConnectionAborted, self.describe(error)))
    }

    /// Puts an end in our words.
    pub(crate) fn describe(&self, error: &ConnectionError) -> Closed {
        let ending = *self.ending.lock().unwrap_or_else(PoisonError::into_inner);
        match (error, ending) {
            (ConnectionError::LocallyClosed, Some(Ending::Code(code))) => {
                Closed { code: Some(code), by_peer: false, cause: format!("closed by this end: {code}") }
            }
            (ConnectionError::LocallyClosed, Some(Ending::NewInstance)) => {
                Closed { code: None, by_peer: false, cause: "the peer has restarted".to_owned() }
            }
            (ConnectionError::LocallyClosed, Some(Ending::Displaced)) => Closed {
                code: Some(CloseCode::Replaced),
                by_peer: true,
                cause: "another process uses this key".to_owned(),
            },
            (ConnectionError::LocallyClosed, Some(Ending::Gone)) => {
                Closed { code: None, by_peer: false, cause: "the peer was removed".to_owned() }
            }
            _ => describe(error),
        }
    }
}

/// Puts QUIC's own reasons in our words.
pub(crate) fn describe(error: &ConnectionError) -> Closed {
    let version = TransportErrorCode::crypto(VERSION_ALERT);
    let (code, by_peer) = match error {
        ConnectionError::ApplicationClosed(close) => {
            let code = u32::try_from(close.error_code.into_inner()).unwrap_or(u32::MAX);
            (Some(CloseCode::from_code(code)), true)
        }
        ConnectionError::ConnectionClosed(close) if close.error_code == version => (Some(CloseCode::Version), true),
        ConnectionError::ConnectionClosed(_) => (Some(CloseCode::Protocol), true),
        ConnectionError::TransportError(error) if error.code == version => (Some(CloseCode::Version), false),
        ConnectionError::TransportError(_) => (Some(CloseCode::Protocol), false),
        ConnectionError::VersionMismatch => (Some(CloseCode::Version), false),
        ConnectionError::TimedOut
        | ConnectionError::Reset
        | ConnectionError::LocallyClosed
        | ConnectionError::CidsExhausted => (None, false),
    };
    Closed { code, by_peer, cause: error.to_string() }
}

fn stopped() -> Closed {
    Closed { code: Some(CloseCode::Shutdown), by_peer: false, cause: "the plane is shutting down".to_owned() }
}
