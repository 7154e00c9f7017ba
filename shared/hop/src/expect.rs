//! `Expect: 100-continue`: a request's body waits for the next hop's leave, so that the caller sees it only then.
//!
//! Must never wait for ever: not every server knows of it (RFC 9110 §10.1.1).

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::header::EXPECT;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::Sleep;

use crate::body::Body;
use crate::fault::Fault;
use crate::message::Request;

/// How long a body waits for leave.
pub(crate) const PATIENCE: Duration = Duration::from_secs(1);

/// Holds a body back until a 100 came.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    is_open: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

struct Held {
    body: Body,
    gate: Arc<Gate>,
    patience: Option<Pin<Box<Sleep>>>,
}

impl Gate {
    /// Puts a gate before the body of a request that expects one.
    pub(crate) fn before(request: &mut Request<Body>) -> Option<Arc<Self>> {
        let expects =
            request.headers().get(EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
        if !expects || request.body().is_end_stream() {
            return None;
        }
        let gate = Arc::new(Self::default());
        let body = std::mem::replace(request.body_mut(), Body::empty());
        *request.body_mut() = Body::wrap(Held { body, gate: gate.clone(), patience: None });
        Some(gate)
    }

    pub(crate) fn is_open(&self) -> bool {
        self.is_open.load(Ordering::Acquire)
    }

    /// Leave has come.
    pub(crate) fn open(&self) {
        self.is_open.store(true, Ordering::Release);
        if let Some(waker) = self.waker.lock().unwrap_or_else(PoisonError::into_inner).take() {
            waker.wake();
        }
    }
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = Fault;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        let this = &mut *self;
        if !this.gate.is_open() {
            *this.gate.waker.lock().unwrap_or_else(PoisonError::into_inner) = Some(cx.waker().clone());
            let patience = this.patience.get_or_insert_with(|| Box::pin(tokio::time::sleep(PATIENCE)));
            if !this.gate.is_open() && patience.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            this.gate.is_open.store(true, Ordering::Release);
        }
        Pin::new(&mut this.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
