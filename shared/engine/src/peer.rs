//! One peer: its keys, where it is, its tunnels, and what it may still cost.
//!
//! Must never change because of a message that is not confirmed.

use std::time::{Duration, Instant};

use crate::bucket::{Bucket, Rate};
use crate::config::{BootstrapId, Path, PeerId};
use crate::flaps::Flaps;
use crate::keys::Keys;
use crate::routes::Allowed;
use crate::tunn::REKEY_TIMEOUT;

/// Initiations answered, per peer (wire.md §2).
pub(crate) const ACCEPTED: Rate = Rate { burst: 3, every: Duration::from_secs(1) };
/// Initiations answered since the last confirmation. One is forgiven each REKEY_TIMEOUT, the pace of an honest initiator:
/// otherwise five lost responses, or five recorded initiations replayed to a fresh tunnel, would shut a peer out.
pub(crate) const UNCONFIRMED: Rate = Rate { burst: 5, every: REKEY_TIMEOUT };
/// Call-backs to a peer whose clock went back.
pub(crate) const CALL_BACK: Duration = Duration::from_secs(5);

/// A peer, or one instance of a bootstrap key. Thousands are there and idle: what few of them have is boxed.
pub(crate) struct Peer {
    pub(crate) id: PeerId,
    pub(crate) keys: Keys,
    pub(crate) allowed: Allowed,
    pub(crate) routed: bool,
    pub(crate) path: Option<Path>,
    /// None: it has never moved.
    pub(crate) flaps: Option<Box<Flaps>>,
    pub(crate) persistent_keepalive: Option<Duration>,
    /// Oldest first, a few at most.
    pub(crate) tunnels: Vec<u32>,
    /// The tunnel with the newest confirmed session.
    pub(crate) active: Option<u32>,
    /// A session was live when we last looked.
    pub(crate) live: bool,
    pub(crate) last_handshake: Option<Instant>,
    pub(crate) attempt: Option<Box<Attempt>>,
    /// When a cookie that we got is used.
    pub(crate) cookie_at: Option<Instant>,
    pub(crate) called_back: Option<Instant>,
    pub(crate) accepted: Bucket,
    pub(crate) unconfirmed: Bucket,
    pub(crate) rx_bytes: u64,
    pub(crate) tx_bytes: u64,
    pub(crate) due: Option<Instant>,
    pub(crate) instance: Option<Box<Instance>>,
}

/// What makes a peer an instance of a bootstrap key.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Instance {
    pub(crate) bootstrap: BootstrapId,
    pub(crate) source: std::net::SocketAddr,
    pub(crate) ends_at: Instant,
}

/// We want a session, and ask for it until we get one.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Attempt {
    pub(crate) started: Instant,
    /// Initiations without an answer.
    pub(crate) unanswered: u32,
    /// Where to, if not where the peer is known to be.
    pub(crate) target: Option<Path>,
    /// When the next initiation is due.
    pub(crate) at: Instant,
    /// An initiation is on its way.
    pub(crate) sent: bool,
    /// Initiations in a row that cookies made us repeat.
    pub(crate) cookies: u8,
}

impl Attempt {
    pub(crate) fn new(target: Option<Path>, now: Instant) -> Box<Self> {
        Box::new(Self { started: now, unanswered: 0, target, at: now, sent: false, cookies: 0 })
    }
}

impl Peer {
    /// Tells whether one more initiation may be answered.
    ///
    /// Only those answered count: if replays and forgeries did too, anyone could use up what the peer itself needs. What
    /// those cost is bounded by the limiter in front.
    pub(crate) fn may_answer(&self, now: Instant) -> bool {
        self.accepted.has_room(ACCEPTED, now) && self.unconfirmed.has_room(UNCONFIRMED, now)
    }

    pub(crate) fn note_answer(&mut self, now: Instant) {
        self.accepted.take(ACCEPTED, now);
        self.unconfirmed.take(UNCONFIRMED, now);
    }
}
