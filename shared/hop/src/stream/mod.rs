//! HTTP/2 streams, the same at both ends: bodies in, bodies out, and the raw bytes of an extended CONNECT.
//!
//! Must never end a cut body cleanly, or hold back the window of a stream whose reader reads.

mod inbound;
mod pump;
mod raw;

pub(crate) use inbound::{Inbound, Owner};
pub(crate) use pump::{Progress, Pumped, code, pump};
pub(crate) use raw::RawStream;
