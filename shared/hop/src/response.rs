//! A response's head, checked and rewritten for the caller.
//!
//! Must never forward a switch of protocols that nobody asked for, ambiguous framing, or a `Culvert-*` field.

use http::response::Parts;

use crate::fault::Fault;

/// Checks the head of an origin's (or connector's) response and strips what is for this hop.
///
/// `asked` says whether the request asked for an upgrade. At the relay, call [`crate::failure::take`] before.
///
/// # Errors
/// A [`Fault`] `origin_protocol` or `upgrade_refused`: drop the exchange.
pub fn accept(_parts: &mut Parts, _asked: bool) -> Result<(), Fault> {
    todo!()
}
