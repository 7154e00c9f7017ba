//! The nouns of Culvert: keys, ids, tokens, names, reasons and the messages that both ends exchange.
//!
//! Must never do I/O, read a clock or start a task.
#![warn(missing_docs)]

pub mod address;
pub mod close;
pub mod control;
pub mod gateway;
pub mod id;
pub mod kem;
pub mod key;
pub mod name;
pub mod proof;
pub mod reason;
pub mod token;
pub mod units;
