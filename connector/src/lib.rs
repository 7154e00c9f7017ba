//! Culvert's connector: dials out of a private network, and carries a relay's requests to private origins.
//!
//! Must never listen for anybody but this host's operator, or reach an origin that its own configuration does not name.
#![warn(missing_docs)]

pub mod admin;
pub mod app;
pub mod board;
pub mod cli;
pub mod command;
pub mod config;
pub mod control;
pub mod diagnose;
pub mod gate;
pub mod identity;
pub mod introductions;
pub mod join;
pub mod lanes;
pub mod link;
pub mod liveness;
pub mod managed;
pub mod metrics;
pub mod psks;
pub mod reach;
pub mod relays;
pub mod renewal;
pub mod resolve;
pub mod roam;
pub mod rotation;
pub mod session;
pub mod shared;
pub mod stay;
pub mod words;

pub use app::{Start, run};

/// This program's version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
