//! WireGuard without I/O: bytes and a time go in, bytes and facts come out.
//!
//! One [`Engine`] holds the peers of one shard: which peer a datagram belongs to, handshakes and cookies, rekeys,
//! roaming, allowed addresses, pre-shared key epochs and the bootstrap class. It must never open a socket, start a task,
//! read a clock (boringtun reads its own) or depend on a runtime, and bytes from the network must never make it panic.
#![warn(missing_docs)]

mod answer;
mod bootstrap;
mod bucket;
mod config;
mod due;
mod engine;
mod event;
mod flaps;
mod handshakes;
mod index;
mod keys;
mod limiter;
mod own;
mod peer;
mod replies;
mod roster;
mod routes;
mod slots;
mod statics;
mod stats;
mod timers;
mod tunn;

pub use config::{
    AddPeerError, BootstrapConfig, BootstrapId, Config, HandshakeLimits, Holder, KeyError, Path, PeerConfig, PeerId,
    PeerKey, PskEpoch, PskError, Shard,
};
pub use engine::Engine;
pub use event::{DropReason, Event, Received, SealError, Sealed};
pub use handshakes::Unclaimed;
pub use replies::Replies;
pub use stats::{PeerStats, Stats};
