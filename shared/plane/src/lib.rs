//! Carriers, and QUIC streams over the engine: every file descriptor of the packet world.
//!
//! One [`Plane`] is one shard (wire.md §5): a `current_thread` runtime, an engine, a QUIC endpoint and its UDP sockets.
//! It must never decide who may speak (the engine does) or what a stream means (the hop does).
#![deny(unsafe_op_in_unsafe_fn)]
#![warn(missing_docs)]

mod connection;
mod event;
mod plane;
mod stream;
mod udp;

pub use connection::{Closed, Connection, ConnectionStats, DialError, OpenError};
pub use culvert_engine::{AddPeerError, BootstrapConfig, BootstrapId, Path, PeerConfig, PeerId, PeerStats, PskEpoch};
pub use event::{Event, Events};
pub use plane::{Config, Plane, Role, StartError, Stats, StreamLimits};
pub use stream::{Stream, StreamReset};
pub use udp::{bind, bind_group};
