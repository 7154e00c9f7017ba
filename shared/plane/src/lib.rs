//! Carriers, and QUIC streams over the engine: every file descriptor of the packet world.
//!
//! A [`Plane`] has one shard or several (wire.md §5), each a `current_thread` runtime, an engine, QUIC's state and its UDP
//! sockets.
//! It must never decide who may speak (the engine does) or what a stream means (the hop does).
#![deny(unsafe_code)]
#![warn(missing_docs)]

mod clock;
mod congestion;
mod connection;
mod crypto;
mod driver;
mod event;
mod fragment;
mod group;
mod hello;
mod icmp;
mod inbox;
mod intake;
#[cfg(any(test, feature = "memory"))]
pub mod memory;
mod outbox;
mod pages;
mod peers;
mod plane;
mod port;
mod quic;
mod running;
mod shard;
mod shared;
mod spares;
mod steer;
mod stream;
#[cfg(test)]
mod tests;
pub mod tun;
mod udp;
mod watch;
mod wrap;

pub use connection::{Closed, Connection, ConnectionStats, DialError, OpenError};
pub use crypto::PROTOCOL_VERSION;
pub use culvert_engine::{
    AddPeerError, BootstrapConfig, BootstrapId, KeyError, Path, PeerConfig, PeerId, PeerKey, PeerStats, PskEpoch,
    PskError,
};
pub use event::{Event, Events};
pub use outbox::SendStats;
pub use plane::{Config, Further, Plane, PlaneStats, Role, StartError, Stats, StreamLimits};
pub use stream::{Stream, StreamReset};
pub use udp::{bind, bind_group};
