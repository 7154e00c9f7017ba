//! Culvert's last hop, to an origin: its name, its addresses, TLS, proofs, pooled connections and health.
//!
//! A connector takes it for the services of its private network, and a relay for those behind a peer that is no Culvert
//! connector. Must never know tunnels, or reach an origin that no table names.
#![warn(missing_docs)]

pub mod allow;
pub mod auth;
pub mod connect;
pub mod exchange;
pub mod figures;
pub mod health;
pub mod moves;
pub mod names;
pub mod network;
pub mod origin;
pub mod origin_io;
pub mod origins;
pub mod pools;
pub mod proof;
pub mod proxy_protocol;
pub mod service;
pub mod tls;
