//! The hot functions, each alone and ready to be run: for the instruction guard and for the micro-benchmarks.
//!
//! Must stay deterministic where they are counted: no socket, no thread, no chance, no clock but one that stands still.
#![warn(missing_docs)]

// Plane's own files, as they are: plane shows them to nobody, and they need nothing of it but each other.
mod control;
mod exchange;
#[allow(dead_code, unreachable_pub, reason = "the files are plane's; not all of them is counted here")]
#[path = "../../../../shared/plane/src/fragment.rs"]
mod fragment;
mod packet;
mod planes;
pub mod proof;
mod tun;
mod tunnel;
#[allow(dead_code, unreachable_pub, reason = "the files are plane's; not all of them is counted here")]
#[path = "../../../../shared/plane/src/wrap.rs"]
mod wrap;

pub use control::Control;
pub use exchange::{exchanges, sent, served};
pub use packet::Packets;
pub use planes::streamed;
pub use tun::SuperPacket;
pub use tunnel::{PIECE, Storm, Tunnel};
