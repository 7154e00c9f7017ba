//! One request and its response on one connection, with deadlines, both bodies streaming at the same time.
//!
//! Must never keep working for somebody who went away.

use std::time::Duration;

use http::{Request, Response};

use crate::body::Body;
use crate::fault::Fault;
use crate::upgrade::Raw;

/// The deadlines of an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// From sending until the response's head.
    pub first_byte: Duration,
    /// Without a byte of a body that is waited for.
    pub idle: Duration,
    /// The whole exchange.
    pub request: Option<Duration>,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self { first_byte: Duration::from_secs(60), idle: Duration::from_secs(3600), request: None }
    }
}

/// A response.
#[derive(Debug)]
pub enum Answer<Io> {
    /// An ordinary one. Its head is as received: see [`crate::failure::take`], [`crate::response::accept`].
    Response(Response<Body>),
    /// 101, asked or not: the head, and the bytes after it.
    Switched(Response<()>, Raw<Io>),
}

/// No response.
#[derive(Debug)]
pub struct SendError {
    /// What went wrong. Its `retry` is right: [`crate::fault::Retry::Safe`] only if no byte of the request was taken.
    pub fault: Fault,
    /// The request, untouched, if none of it was taken.
    pub request: Option<Box<Request<Body>>>,
}
