//! The one body type of every hop: streamed with back-pressure, counted, with deadlines, and with an end that is told.
//!
//! Must never end cleanly when what it reads was cut short.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use culvert_model::reason::Reason;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::Instant;

/// What a boxed body may fail with.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A request's or response's body.
#[derive(Debug)]
pub struct Body {
    _private: (),
}

/// Why a body did not arrive whole.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// Its sender went away or broke the framing.
    #[error("the body was cut short")]
    Cut(#[source] BoxError),
    /// No byte for the idle time.
    #[error("nothing of the body arrived in time")]
    Idle,
    /// The whole-request deadline passed.
    #[error("the body was not whole before the deadline")]
    Deadline,
    /// Over the limit.
    #[error("the body is longer than {0} bytes")]
    TooLarge(u64),
    /// Ended on purpose, for this reason.
    #[error("the body was ended: {0}")]
    Ended(Reason),
}

/// How a body ended and how much of it passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ending {
    /// Bytes of data, without framing and trailers.
    pub bytes: u64,
    /// How.
    pub outcome: Outcome,
}

/// How a body ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// With its last byte, or trailers.
    Whole,
    /// By an error on the side that it comes from.
    Cut(Reason),
    /// Nobody wanted the rest.
    Dropped,
}

impl Body {
    /// No body.
    pub const fn empty() -> Self {
        Self { _private: () }
    }

    /// These bytes.
    pub fn full(_bytes: impl Into<Bytes>) -> Self {
        todo!()
    }

    /// Any other body.
    pub fn boxed<B>(_body: B) -> Self
    where
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        todo!()
    }

    /// Adds the bytes of data that pass to `counter`.
    #[must_use]
    pub fn counted(self, _counter: Arc<AtomicU64>) -> Self {
        self
    }

    /// Fails the body with [`BodyError::TooLarge`] past so many bytes.
    #[must_use]
    pub fn limited(self, _bytes: u64) -> Self {
        self
    }

    /// Fails the body when nothing arrives for so long while it is waited for.
    #[must_use]
    pub fn idle_timeout(self, _idle: Duration) -> Self {
        self
    }

    /// Fails the body when it is waited for past this moment.
    #[must_use]
    pub fn deadline(self, _deadline: Instant) -> Self {
        self
    }

    /// Calls `end` once: when the body ended, failed, or was dropped.
    #[must_use]
    pub fn on_end(self, _end: impl FnOnce(Ending) + Send + 'static) -> Self {
        self
    }

    /// Reads it all, at most `limit` bytes.
    ///
    /// # Errors
    /// As the body's, and [`BodyError::TooLarge`].
    pub async fn read(self, _limit: usize) -> Result<Bytes, BodyError> {
        todo!()
    }
}

impl From<Incoming> for Body {
    fn from(_: Incoming) -> Self {
        todo!()
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        todo!()
    }

    fn is_end_stream(&self) -> bool {
        todo!()
    }

    fn size_hint(&self) -> SizeHint {
        todo!()
    }
}
