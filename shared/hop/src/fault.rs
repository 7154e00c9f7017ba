//! A failure with its name, and the only place that makes Culvert's own responses (interface.md §5).
//!
//! Must never show a caller what is for the log: addresses, keys, causes.

use std::fmt;

use culvert_model::reason::Reason;
use http::{HeaderValue, Response};

use crate::body::Body;

/// Who caused a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Whoever sent the request.
    Caller,
    /// This process.
    Here,
    /// The tunnel, or the process at its other end.
    Tunnel,
    /// The origin.
    Origin,
}

/// Whether the same request may be tried once more, elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// Another try fails as well, or has no time left.
    Never,
    /// The request may have been acted on: only if it is idempotent and its body is still whole.
    IfIdempotent,
    /// Nothing of the request was sent to anyone who acts on it.
    Safe,
}

/// A failed request: what the caller is told ([`Reason`]) and what only the log is told (the detail).
#[derive(Debug)]
pub struct Fault {
    /// Its name.
    pub reason: Reason,
    /// Who caused it.
    pub side: Side,
    /// Whether to try again.
    pub retry: Retry,
    detail: Option<Box<str>>,
}

/// Whom an answer is for: kept from the request's head, for the case that Culvert has to answer itself.
#[derive(Debug, Clone)]
pub struct Audience {
    /// `X-Request-Id`, as kept or made.
    pub request_id: HeaderValue,
    /// Whether `Accept` prefers JSON to text.
    pub json: bool,
    /// Whether it is a gRPC call.
    pub grpc: bool,
}

impl Fault {
    /// A fault with the side and the retry that usually go with the reason.
    pub fn new(reason: Reason) -> Self {
        Self { reason, side: Side::Here, retry: Retry::Never, detail: None }
    }

    /// Says who caused it.
    #[must_use]
    pub fn side(mut self, side: Side) -> Self {
        self.side = side;
        self
    }

    /// Says whether to try again.
    #[must_use]
    pub fn retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    /// Adds what only the log may know.
    #[must_use]
    pub fn log(mut self, detail: impl fmt::Display) -> Self {
        self.detail = Some(detail.to_string().into());
        self
    }

    /// What only the log may know.
    pub fn detail(&self) -> Option<&str> {
        self.detail.as_deref()
    }
}

/// Makes the response to a request that failed here.
pub fn respond(_fault: &Fault, _audience: &Audience) -> Response<Body> {
    todo!()
}
