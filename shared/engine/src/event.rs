//! What the engine tells its owner: facts about sessions, and what became of each datagram.
//!
//! Must never carry key material.

use culvert_model::key::PublicKey;

use crate::config::{BootstrapId, Path, PeerId};

/// A fact about a peer, in the order in which it became true.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A new session's keys are confirmed: the initiator got a valid response, the responder the first data that decrypts.
    SessionUp {
        /// Whose session.
        peer: PeerId,
        /// The bootstrap key that the peer is an instance of.
        bootstrap: Option<BootstrapId>,
        /// Where the confirming message came from.
        path: Path,
        /// The pre-shared key epoch that the session's keys hang on.
        epoch: Option<u32>,
        /// We sent the initiation.
        initiated: bool,
        /// No session of this peer was live before.
        first: bool,
    },
    /// Newer authenticated data of the newest session came from elsewhere than before.
    EndpointMoved {
        /// Who moved.
        peer: PeerId,
        /// The new way.
        path: Path,
    },
    /// The last live session ended.
    SessionLost {
        /// Whose session.
        peer: PeerId,
    },
    /// An initiation got no answer; another one is on its way unless 90 s have passed.
    Unanswered {
        /// Who was silent.
        peer: PeerId,
        /// Initiations without an answer in a row.
        attempts: u32,
    },
    /// A peer without a session sent an initiation that is authentic but older than its last: its clock went back, or
    /// somebody replays it. The engine has already initiated toward that source (wire.md §2).
    ClockBehind {
        /// Whose clock.
        peer: PeerId,
        /// Where the initiation came from.
        path: Path,
    },
    /// A bootstrap instance that had a session has ended; its [`PeerId`] means nothing from now on.
    PeerGone {
        /// The instance.
        peer: PeerId,
        /// The bootstrap key it came by.
        bootstrap: BootstrapId,
    },
    /// The first session under the newest of two pre-shared keys is confirmed; the old one is forgotten in 180 s.
    EpochPromoted {
        /// Whose key.
        peer: PeerId,
        /// The epoch that is now the only one used.
        epoch: u32,
    },
    /// The first session under one of several static keys is confirmed: the others can go after a grace.
    KeyPromoted {
        /// Whose key.
        peer: PeerId,
        /// The peer's key.
        public_key: PublicKey,
        /// Ours.
        static_index: usize,
    },
    /// Authenticated data comes from two places in turn: whoever else has the key, it is in use twice. Told once in ten
    /// minutes.
    Flapping {
        /// Whose key.
        peer: PeerId,
        /// Where it was, and where it is now.
        paths: [Path; 2],
    },
    /// An initiation names a static key that no peer has: a connector that was revoked, perhaps. Neither key nor address is
    /// proven. At most one a second, so that strangers fill no queue.
    Stranger {
        /// The key it names.
        public_key: PublicKey,
        /// Where it came from.
        path: Path,
    },
}

/// What became of one datagram.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Received {
    /// An inner packet was appended.
    Packet {
        /// Its authenticated sender.
        peer: PeerId,
    },
    /// A handshake message, cookie reply or keepalive: nothing to hand on.
    Handled,
    /// Nothing came of it.
    Dropped(DropReason),
}

/// Why a datagram came to nothing.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
#[non_exhaustive]
pub enum DropReason {
    /// Not a WireGuard message, or of a wrong length.
    Malformed,
    /// mac1 fits none of our keys.
    BadMac,
    /// No session or handshake of ours has that receiver index.
    UnknownIndex,
    /// No peer has that static key.
    UnknownPeer,
    /// It does not decrypt.
    BadSeal,
    /// The session is older than 180 s or has carried too many messages.
    Expired,
    /// The counter was seen before, or is too far back.
    Replayed,
    /// The initiation is not newer than the last one.
    Stale,
    /// More initiations than a peer may send, or too many without confirmation.
    TooManyInitiations,
    /// The queue of handshakes is full.
    QueueFull,
    /// A cookie was demanded and sent.
    CookieDemanded,
    /// More handshakes from one address than allowed while cookies are demanded.
    AddressLimit,
    /// The inner source address is not one of the peer's.
    SourceNotAllowed,
    /// Decrypted, but no IP packet.
    BadInner,
    /// The bootstrap class is full, or the instance has used up what it may.
    BootstrapLimit,
    /// A handshake message waited for so long that its sender has asked anew.
    Late,
}

impl DropReason {
    /// Every reason, in the order in which [`Stats::dropped`](crate::Stats::dropped) counts them.
    pub const ALL: [Self; 16] = [
        Self::Malformed,
        Self::BadMac,
        Self::UnknownIndex,
        Self::UnknownPeer,
        Self::BadSeal,
        Self::Expired,
        Self::Replayed,
        Self::Stale,
        Self::TooManyInitiations,
        Self::QueueFull,
        Self::CookieDemanded,
        Self::AddressLimit,
        Self::SourceNotAllowed,
        Self::BadInner,
        Self::BootstrapLimit,
        Self::Late,
    ];

    /// A stable name in snake case, for metrics and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::BadMac => "bad_mac",
            Self::UnknownIndex => "unknown_index",
            Self::UnknownPeer => "unknown_peer",
            Self::BadSeal => "bad_seal",
            Self::Expired => "expired",
            Self::Replayed => "replayed",
            Self::Stale => "stale",
            Self::TooManyInitiations => "too_many_initiations",
            Self::QueueFull => "queue_full",
            Self::CookieDemanded => "cookie_demanded",
            Self::AddressLimit => "address_limit",
            Self::SourceNotAllowed => "source_not_allowed",
            Self::BadInner => "bad_inner",
            Self::BootstrapLimit => "bootstrap_limit",
            Self::Late => "late",
        }
    }
}

/// A sealed datagram, appended to the caller's buffer.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct Sealed {
    /// Bytes appended.
    pub len: usize,
    /// Where it goes.
    pub path: Path,
}

/// Why a packet was not sealed. Nothing was appended then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// No live session; a handshake has been started if the peer's endpoint is known.
    #[error("no live session")]
    NoSession,
    /// Nothing is known of where the peer is.
    #[error("no known endpoint")]
    NoPath,
    /// The peer is gone.
    #[error("no such peer")]
    UnknownPeer,
    /// More than one UDP datagram holds, or more than a bootstrap instance may send.
    #[error("packet too long")]
    TooLong,
}
