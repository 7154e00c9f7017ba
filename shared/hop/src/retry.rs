//! A request that can be sent once more: its head shared, what was taken of its body kept up to a bound.
//!
//! Must never send a body that was not kept from its first byte.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, Method};
use http_body::{Body as HttpBody, Frame, SizeHint};

use crate::body::Body;
use crate::fault::{Fault, Retry};
use crate::message::{Handle, Request, RequestParts as Parts};

/// The most of a body that is kept.
pub const MAX_KEPT: usize = 64 * 1024;

/// What is needed to send a request once more.
#[derive(Debug)]
pub struct Again {
    parts: Handle<Parts>,
    kept: Option<Arc<Mutex<Kept>>>,
}

#[derive(Debug)]
struct Kept {
    chunks: Vec<Bytes>,
    bytes: usize,
    trailers: Option<HeaderMap>,
    /// Too long to be kept, or failed: it cannot be sent once more.
    is_lost: bool,
    is_ended: bool,
    rest: Body,
}

/// Reads what was kept, then the rest.
struct Reader {
    kept: Arc<Mutex<Kept>>,
    next: usize,
    /// The first reader keeps what it reads; the second is the last.
    keeps: bool,
}

impl Again {
    /// Shares the head and starts keeping the body of a request that may have to be sent once more; the request to
    /// send now, and what sends it again. Skip it when there is nowhere else to send it: whoever changes the head now
    /// copies it first.
    pub fn keep(request: Request<Body>) -> (Request<Body>, Self) {
        let (parts, body) = request.into_parts();
        let shared = parts.clone();
        if body.is_end_stream() {
            return (Request::from_parts(parts, body), Self { parts: shared, kept: None });
        }
        let kept = Arc::new(Mutex::new(Kept {
            chunks: Vec::new(),
            bytes: 0,
            trailers: None,
            is_lost: false,
            is_ended: false,
            rest: body,
        }));
        let body = Body::wrap(Reader { kept: kept.clone(), next: 0, keeps: true });
        (Request::from_parts(parts, body), Self { parts: shared, kept: Some(kept) })
    }

    /// The request once more, if the fault allows it and no byte of its body is lost. What the caller has not sent yet
    /// follows what was kept.
    pub fn request(self, fault: &Fault) -> Option<Request<Body>> {
        let allowed = match fault.retry {
            Retry::Safe => true,
            Retry::IfIdempotent => is_idempotent(&self.parts.method),
            Retry::Never => false,
        };
        if !allowed {
            return None;
        }
        let body = match self.kept {
            None => Body::empty(),
            Some(kept) if lock(&kept).is_lost => return None,
            Some(kept) => Body::wrap(Reader { kept, next: 0, keeps: false }),
        };
        Some(Request::from_parts(self.parts, body))
    }
}

/// Whether sending such a request twice is the same as sending it once (RFC 9110 §9.2.2).
pub fn is_idempotent(method: &Method) -> bool {
    [Method::GET, Method::HEAD, Method::OPTIONS, Method::TRACE, Method::PUT, Method::DELETE].contains(method)
}

impl HttpBody for Reader {
    type Data = Bytes;
    type Error = Fault;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        let this = &mut *self;
        let mut kept = lock(&this.kept);
        if let Some(chunk) = kept.chunks.get(this.next) {
            this.next += 1;
            return Poll::Ready(Some(Ok(Frame::data(chunk.clone()))));
        }
        if kept.is_ended {
            return Poll::Ready(kept.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))));
        }
        let polled = Pin::new(&mut kept.rest).poll_frame(cx);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                if this.keeps {
                    kept.keep(frame);
                    this.next = kept.chunks.len();
                }
                kept.is_ended |= frame.is_trailers();
            }
            Poll::Ready(Some(Err(_))) => kept.is_lost = true,
            Poll::Ready(None) => kept.is_ended = true,
            Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        let kept = lock(&self.kept);
        self.next >= kept.chunks.len()
            && if kept.is_ended { kept.trailers.is_none() } else { kept.rest.is_end_stream() }
    }

    fn size_hint(&self) -> SizeHint {
        let kept = lock(&self.kept);
        let unread: usize = kept.chunks.iter().skip(self.next).map(Bytes::len).sum();
        let unread = u64::try_from(unread).unwrap_or(u64::MAX);
        let rest = if kept.is_ended { SizeHint::with_exact(0) } else { kept.rest.size_hint() };
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(unread));
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper.saturating_add(unread));
        }
        hint
    }
}

impl Kept {
    fn keep(&mut self, frame: &Frame<Bytes>) {
        if let Some(data) = frame.data_ref() {
            self.bytes = self.bytes.saturating_add(data.len());
            if self.bytes > MAX_KEPT {
                self.is_lost = true;
            }
            if self.is_lost {
                self.chunks = Vec::new();
            } else {
                // A copy: the data may be a small part of a large buffer that it would keep alive.
                self.chunks.push(Bytes::copy_from_slice(data));
            }
        } else if let Some(trailers) = frame.trailers_ref() {
            self.trailers = Some(trailers.clone());
        }
    }
}

fn lock(kept: &Mutex<Kept>) -> MutexGuard<'_, Kept> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}
