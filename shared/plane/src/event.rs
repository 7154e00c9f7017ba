//! What the plane tells its owner.

use std::time::Duration;

use culvert_engine::{BootstrapId, Path, PeerId};
use culvert_model::key::PublicKey;
use tokio::sync::mpsc;

use crate::connection::Connection;

/// A fact about a peer, in the order in which things happened.
#[derive(Debug)]
pub enum Event {
    /// The relay accepted a QUIC connection and it is established. The connector gets its own from [`crate::Plane::dial`].
    Connected(Connection),
    /// Key confirmation happened on a new WireGuard session.
    SessionUp {
        /// Who.
        peer: PeerId,
        /// Set when the peer is an instance of a token's bootstrap key.
        bootstrap: Option<BootstrapId>,
        /// Where it is.
        path: Path,
        /// No session was live before.
        first: bool,
    },
    /// No live WireGuard session is left.
    SessionLost {
        /// Who.
        peer: PeerId,
    },
    /// An authenticated packet came from another address.
    EndpointMoved {
        /// Who.
        peer: PeerId,
        /// The new way.
        path: Path,
    },
    /// The peer's process is another one than before (its hello told). Its QUIC connection is closed already.
    NewInstance {
        /// Who.
        peer: PeerId,
    },
    /// A process that another one had displaced came back while that one is connected: two processes use this key. The
    /// newcomer was told so and its connection was not taken.
    Clone {
        /// Whose key.
        peer: PeerId,
    },
    /// One handshake initiation got no answer.
    Unanswered {
        /// Who.
        peer: PeerId,
        /// How many in a row.
        attempts: u32,
    },
    /// A known peer's initiation carried a stale timestamp: its clock, or ours, went back.
    ClockBehind {
        /// Who.
        peer: PeerId,
    },
    /// An instance of a bootstrap key ended.
    PeerGone {
        /// Who.
        peer: PeerId,
        /// Of which token.
        bootstrap: BootstrapId,
    },
    /// The first data under a new pre-shared key arrived: the old one can go.
    EpochPromoted {
        /// Who.
        peer: PeerId,
        /// The epoch now in use.
        epoch: u32,
    },
    /// The first session under one of a peer's several static keys is confirmed: the others can go after a grace.
    KeyPromoted {
        /// Whose key.
        peer: PeerId,
        /// The peer's key.
        public_key: PublicKey,
        /// Ours, by its number.
        static_index: usize,
    },
    /// Authenticated packets of one key come from two places in turn: it is in use twice. Told once in ten minutes.
    Flapping {
        /// Whose key.
        peer: PeerId,
        /// Where it was, and where it is now.
        paths: [Path; 2],
    },
    /// A handshake names a static key that no peer has. Nothing of it is proven; at most one a second.
    Stranger {
        /// The key it names.
        public_key: PublicKey,
        /// Where it came from.
        path: Path,
    },
    /// The machine slept (CLOCK_BOOTTIME ran ahead of CLOCK_MONOTONIC): the link should redial.
    Resumed {
        /// For how long.
        asleep: Duration,
    },
}

/// The receiving end of a plane's facts; bounded.
#[derive(Debug)]
pub struct Events {
    pub(crate) receiver: mpsc::Receiver<Event>,
}

impl Events {
    /// Waits for the next fact; `None` when the plane is gone. Cancel safe.
    pub async fn recv(&mut self) -> Option<Event> {
        self.receiver.recv().await
    }
}
