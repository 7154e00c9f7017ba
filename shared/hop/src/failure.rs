//! How a connector's failure reaches the relay before a response's head: `Culvert-Failure: REASON; sent=0|1`.
//!
//! Must never be believed from an origin or a caller: the field is dropped from both.

use culvert_model::reason::Reason;
use http::{HeaderMap, Response};

use crate::body::Body;
use crate::fault::Fault;

/// The connector's answer to the relay in place of the origin's.
pub fn respond(_fault: &Fault) -> Response<Body> {
    todo!()
}

/// At the relay: takes the connector's failure out of a response's head.
pub fn take(_headers: &mut HeaderMap) -> Option<Fault> {
    todo!()
}

/// Reads the field's value.
pub fn parse(_value: &[u8]) -> Option<(Reason, bool)> {
    todo!()
}
