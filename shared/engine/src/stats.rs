//! Counters, as plain integers: names for metrics are given at the edge.
//!
//! Must never decide anything.

use std::time::Instant;

use culvert_model::key::PublicKey;

use crate::config::{BootstrapId, Path};
use crate::event::DropReason;

/// Counters of one engine since it was made.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Default)]
#[non_exhaustive]
pub struct Stats {
    /// Peers known, bootstrap instances among them.
    pub peers: u32,
    /// Peers with a live session.
    pub live: u32,
    /// Bootstrap instances.
    pub bootstraps: u32,
    /// Datagrams taken.
    pub datagrams: u64,
    /// Inner packets opened and handed on.
    pub opened: u64,
    /// Inner packets sealed.
    pub sealed: u64,
    /// Initiations sent, retries included.
    pub initiations: u64,
    /// Responses sent.
    pub responses: u64,
    /// Sessions confirmed.
    pub sessions: u64,
    /// Cookie replies sent.
    pub cookies: u64,
    /// Keepalives sent.
    pub keepalives: u64,
    /// Handshake messages that wait now.
    pub queued: usize,
    /// Cookies are demanded now.
    pub under_load: bool,
    pub(crate) drops: [u64; DropReason::ALL.len()],
}

impl Stats {
    /// Datagrams that came to nothing for this reason.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops.get(reason as usize).copied().unwrap_or_default()
    }

    /// Takes another engine's into the sum.
    pub fn add(&mut self, other: &Self) {
        self.peers += other.peers;
        self.live += other.live;
        self.bootstraps += other.bootstraps;
        self.datagrams += other.datagrams;
        self.opened += other.opened;
        self.sealed += other.sealed;
        self.initiations += other.initiations;
        self.responses += other.responses;
        self.sessions += other.sessions;
        self.cookies += other.cookies;
        self.keepalives += other.keepalives;
        self.queued += other.queued;
        self.under_load |= other.under_load;
        for (own, other) in self.drops.iter_mut().zip(other.drops) {
            *own += other;
        }
    }

    pub(crate) fn count_drop(&mut self, reason: DropReason) {
        self.count_drops(reason, 1);
    }

    pub(crate) fn count_drops(&mut self, reason: DropReason, more: u64) {
        if let Some(count) = self.drops.get_mut(reason as usize) {
            *count += more;
        }
    }
}

/// What is known of one peer.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct PeerStats {
    /// Bytes of inner packets received.
    pub rx_bytes: u64,
    /// Bytes of inner packets sent, padding not counted.
    pub tx_bytes: u64,
    /// When the newest session was confirmed.
    pub last_handshake: Option<Instant>,
    /// Where the peer is.
    pub path: Option<Path>,
    /// The peer's static key of the newest session; before the first, the one that we would initiate with.
    pub public_key: PublicKey,
    /// Our own static key of that session.
    pub static_index: usize,
    /// The pre-shared key epoch of the newest session.
    pub psk_epoch: Option<u32>,
    /// A session is live: packets can be sealed now.
    pub live: bool,
    /// The bootstrap key that the peer is an instance of.
    pub bootstrap: Option<BootstrapId>,
}
