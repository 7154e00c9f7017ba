//! Idle HTTP/1.1 connections to one place, over any byte stream: newest first, bounded in number and time.
//!
//! Must never send a request twice: it says what was sent, its caller decides.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::body::Body;
use crate::exchange::{Answer, Deadlines, SendError};
use crate::fault::Fault;

/// How to reach the place.
pub trait Opener: Send + Sync + 'static {
    /// The byte stream.
    type Io: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// Opens a stream. Its deadline is the opener's own.
    fn open(&self) -> impl Future<Output = Result<Self::Io, Fault>> + Send;

    /// Names the failure of a stream that was open: `io` is its first error, none when it ended early; `sent` says
    /// whether it took a byte of the request.
    fn lost(&self, io: Option<&io::Error>, sent: bool) -> Fault;
}

/// Limits of a pool.
#[derive(Debug, Clone)]
pub struct PoolSettings {
    /// Idle connections kept at most.
    pub max_idle: usize,
    /// How long one is kept idle. Must be less than the other side's patience.
    pub idle_timeout: Duration,
    /// The largest response head, in bytes.
    pub max_head: usize,
    /// Whether the case of field names is kept (HTTP/1.1; costs a second map per message).
    pub preserve_case: bool,
}

/// Idle connections to one place. Clones share them.
pub struct Pool<O: Opener> {
    _opener: Arc<O>,
}

impl<O: Opener> Clone for Pool<O> {
    fn clone(&self) -> Self {
        Self { _opener: self._opener.clone() }
    }
}

impl<O: Opener> Pool<O> {
    /// An empty pool.
    pub fn new(_opener: O, _settings: PoolSettings) -> Self {
        todo!()
    }

    /// How it reaches the place.
    pub fn opener(&self) -> &O {
        &self._opener
    }

    /// Sends one request, on the newest idle connection that is still open or on a new one.
    ///
    /// The request is in its final form ([`crate::request`]). Dropping the future cancels it: the stream is dropped
    /// without a clean end. Dropping the response's body before its end does the same.
    ///
    /// # Errors
    /// [`SendError`]: nothing was answered.
    pub async fn send(&self, _request: Request<Body>, _deadlines: &Deadlines) -> Result<Answer<O::Io>, SendError> {
        todo!()
    }

    /// Idle connections held.
    pub fn idle(&self) -> usize {
        todo!()
    }

    /// Closes connections that have been idle too long, or that the other side closed. Call it every few seconds.
    pub fn sweep(&self) {
        todo!()
    }

    /// Closes every idle connection, and those in use when their exchange is over.
    pub fn close(&self) {
        todo!()
    }
}
