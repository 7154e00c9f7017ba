//! What the tests of HTTP are made of: callers and origins that say and check every byte, and the site between them.
//!
//! Must never forgive what it reads: a reader here that repairs a message would hide that Culvert sent a bad one.
#![allow(missing_docs, reason = "read by the tests beside it alone")]

pub mod caller;
pub mod compare;
pub mod corpus;
pub mod frames;
pub mod front;
pub mod logged;
pub mod mutate;
pub mod origin;
pub mod site;
pub mod strict;
pub mod table;
mod two;
pub mod wire;
