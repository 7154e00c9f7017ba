//! Engines on one simulated clock and one simulated network: what time, loss and attackers do to them, in seconds.
//!
//! Must never touch a socket or wait for real time, and must give the same result for the same seed but for the random
//! bytes of keys and nonces.

mod pair;
mod wall;
mod world;

pub use pair::{Pair, inner_packet};
pub use world::{HostId, Kind, Link, Sent, World, kind_of};
