//! The engine: both flows of packets, in order.
//!
//! Must never block, read a clock or send: what is to be sent is appended to what the caller passes in.

use std::net::IpAddr;
use std::time::Instant;

use crate::config::{AddPeerError, BootstrapConfig, BootstrapId, Config, Path, PeerConfig, PeerId, PskEpoch, PskError};
use crate::event::{DropReason, Event, Received, SealError, Sealed};
use crate::replies::Replies;
use crate::stats::{PeerStats, Stats};

/// The peers of one shard.
pub struct Engine {
    stats: Stats,
}

impl Engine {
    /// Makes an engine without peers.
    pub fn new(_config: Config, _now: Instant) -> Self {
        Self { stats: Stats::default() }
    }

    /// Adds a peer whose allowed addresses are routed to it.
    ///
    /// # Errors
    /// See [`AddPeerError`]; nothing has changed then.
    pub fn add_peer(&mut self, _config: PeerConfig, _now: Instant) -> Result<PeerId, AddPeerError> {
        Err(AddPeerError::Full)
    }

    /// Adds a peer that [`route`](Self::route) never returns, so its addresses may be those of another: a connector's
    /// several relays all have the same inner address. Its inner source is checked all the same.
    ///
    /// # Errors
    /// As [`add_peer`](Self::add_peer), but never [`AddPeerError::Overlap`].
    pub fn add_unrouted_peer(&mut self, _config: PeerConfig, _now: Instant) -> Result<PeerId, AddPeerError> {
        Err(AddPeerError::Full)
    }

    /// Forgets a peer: silence from now on.
    pub fn remove_peer(&mut self, _peer: PeerId) {}

    /// Adds a key that many joiners share.
    ///
    /// # Errors
    /// See [`AddPeerError`]; nothing has changed then.
    pub fn add_bootstrap(&mut self, _config: BootstrapConfig) -> Result<BootstrapId, AddPeerError> {
        Err(AddPeerError::Full)
    }

    /// Forgets a bootstrap key and ends its instances.
    pub fn remove_bootstrap(&mut self, _bootstrap: BootstrapId) {}

    /// Replaces a peer's pre-shared keys, newest last, make before break (wire.md §3): a live session stays live.
    ///
    /// # Errors
    /// See [`PskError`].
    pub fn set_psks(&mut self, _peer: PeerId, _psks: Vec<PskEpoch>, _now: Instant) -> Result<(), PskError> {
        Ok(())
    }

    /// Starts a handshake now, even when a session is live. `path` overrides the known one.
    pub fn connect(&mut self, _peer: PeerId, _path: Option<Path>, _now: Instant, _replies: &mut Replies) {}

    /// Takes one whole UDP payload. Data is opened at once and its inner IP packet appended to `inner`; handshake messages
    /// are checked and queued.
    pub fn handle_datagram(
        &mut self,
        _datagram: &[u8],
        _path: Path,
        _now: Instant,
        _inner: &mut Vec<u8>,
        _replies: &mut Replies,
    ) -> Received {
        Received::Dropped(DropReason::Malformed)
    }

    /// Works off queued handshake messages, at most `budget` of them; true: more are waiting.
    pub fn handle_handshakes(&mut self, _budget: usize, _now: Instant, _replies: &mut Replies) -> bool {
        false
    }

    /// Seals one inner packet, padded with zeros in place to a multiple of 16, and appends the datagram to `out`.
    ///
    /// # Errors
    /// See [`SealError`].
    pub fn seal(
        &mut self,
        _peer: PeerId,
        _packet: &mut Vec<u8>,
        _now: Instant,
        _out: &mut Vec<u8>,
    ) -> Result<Sealed, SealError> {
        Err(SealError::NoSession)
    }

    /// When [`handle_timeout`](Self::handle_timeout) wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        None
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, _now: Instant, _replies: &mut Replies) {}

    /// Takes the next fact.
    pub fn poll_event(&mut self) -> Option<Event> {
        None
    }

    /// The peer that an inner destination address belongs to: longest prefix over all peers.
    pub fn route(&self, _destination: IpAddr) -> Option<PeerId> {
        None
    }

    /// What is known of a peer now.
    pub fn peer_stats(&self, _peer: PeerId) -> Option<PeerStats> {
        None
    }

    /// Counters.
    pub fn stats(&self) -> Stats {
        self.stats
    }
}
