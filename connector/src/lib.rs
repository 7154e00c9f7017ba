//! Culvert's connector: dials out of a private network, and carries a relay's requests to private origins.
//!
//! Must never listen for anybody but this host's operator, or reach an origin that its own configuration does not name.
#![warn(missing_docs)]

pub mod allow;
pub mod config;
pub mod connect;
pub mod health;
pub mod identity;
pub mod link;
pub mod liveness;
pub mod origin;
pub mod origins;
pub mod service;
pub mod tls;
