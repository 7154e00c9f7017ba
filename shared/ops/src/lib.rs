//! What both binaries need to be good citizens of a host: configuration, state directory, secrets, logs, metrics, the
//! admin server, drain, named tasks, systemd.
//!
//! Must never know what a relay or a connector does: they hand in their settings, their health and their commands.
//! The environment is read in [`load`] alone.
#![warn(missing_docs)]

pub mod admin;
pub mod certificate;
pub mod config;
pub mod cores;
pub mod drain;
pub mod exit;
pub mod load;
pub mod log;
pub mod metrics;
pub mod process;
pub mod program;
pub mod resident;
pub mod runtime;
pub mod secret;
pub mod state;
pub mod systemd;
pub mod task;
pub mod time;

pub use exit::{Exit, OrQuit, Quit};
pub use load::{Environment, ProcessEnvironment};
pub use program::Program;
