//! A request that can be sent once more: its head copied, its body kept whole up to a bound.
//!
//! Must never send a body that was not kept from its first byte to its last.

use http::Request;

use crate::body::Body;
use crate::fault::Fault;

/// The most of a body that is kept.
pub const MAX_KEPT: usize = 64 * 1024;

/// What is needed to send a request once more.
#[derive(Debug)]
pub struct Again {
    _private: (),
}

impl Again {
    /// Copies the head and starts keeping the body of a request that may have to be sent once more; the request to
    /// send now, and what sends it again. Costs a copy of the head: skip it when there is nowhere else to send it.
    pub fn keep(_request: Request<Body>) -> (Request<Body>, Self) {
        todo!()
    }

    /// The request once more, if the fault allows it and its body is whole.
    pub fn request(self, _fault: &Fault) -> Option<Request<Body>> {
        todo!()
    }
}

/// Whether sending such a request twice is the same as sending it once (RFC 9110 §9.2.2).
pub fn is_idempotent(_method: &http::Method) -> bool {
    todo!()
}
