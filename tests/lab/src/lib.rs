//! The test harness: starts and stops the real binaries, origins, gateways and networks that tests need.
//!
//! It never sleeps to let something happen: it waits for the event (a line, an answer, an exit) under a deadline.
//! Everything it starts ends with the value that owns it, and with the test process.

pub mod activator;
pub mod address;
pub mod binary;
pub mod branch;
pub mod certificate;
pub mod client;
pub mod connector;
pub mod gateway;
pub mod load;
pub mod netns;
pub mod nginx;
pub mod origin;
pub mod postgres;
pub mod process;
pub mod relay;
pub mod skip;
pub mod spawner;
pub mod token;
pub mod topology;
pub mod udp;
pub mod usage;
pub mod wait;
pub mod websocket;

pub use connector::Connector;
pub use netns::Namespace;
pub use origin::Origin;
pub use postgres::Postgres;
pub use process::Process;
pub use relay::Relay;
