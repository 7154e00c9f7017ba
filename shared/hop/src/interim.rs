//! Interim responses (1xx) on their way back to an HTTP/2 caller, past whoever waits for the final one.
//!
//! Must never let one through that is about a connection (100 is this hop's own, 101 switches), or hold more than a few.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;
use http::{HeaderMap, Request, Response, StatusCode};

use crate::body::Body;
use crate::fields::{drop_fields, is_culvert, is_hop_by_hop};

/// So many wait at once; what comes beyond is not passed on (RFC 9110 §15.2: they may be dropped).
const MOST: usize = 8;

/// The way back of one request. Goes with it as an extension; clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Interim(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// The request's body is read by somebody who gives it leave to come.
    is_wanted: AtomicBool,
    waiting: Mutex<VecDeque<Response<()>>>,
    waker: AtomicWaker,
}

impl Interim {
    /// Of a request that goes to the next hop.
    pub(crate) fn of(request: &Request<Body>) -> Option<Self> {
        request.extensions().get().cloned()
    }

    /// Has hyper's HTTP/1.1 client tell it.
    pub(crate) fn listen(self, request: &mut Request<Body>) {
        hyper::ext::on_informational(request, move |response| self.tell(response.status(), response.headers()));
    }

    /// The next hop sent one.
    pub(crate) fn tell(&self, status: StatusCode, fields: &HeaderMap) {
        if !status.is_informational() || matches!(status, StatusCode::CONTINUE | StatusCode::SWITCHING_PROTOCOLS) {
            return;
        }
        let mut response = Response::new(());
        *response.status_mut() = status;
        *response.headers_mut() = fields.clone();
        drop_fields(response.headers_mut(), |name| is_hop_by_hop(name) || is_culvert(name));
        let mut waiting = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() < MOST {
            waiting.push_back(response);
            self.0.waker.wake();
        }
    }

    /// The request's body may come.
    pub(crate) fn want(&self) {
        self.0.is_wanted.store(true, Ordering::Release);
        self.0.waker.wake();
    }

    /// The next to be sent.
    pub(crate) fn poll_next(&self, cx: &Context<'_>) -> Poll<Response<()>> {
        self.0.waker.register(cx.waker());
        if self.0.is_wanted.swap(false, Ordering::AcqRel) {
            let mut leave = Response::new(());
            *leave.status_mut() = StatusCode::CONTINUE;
            return Poll::Ready(leave);
        }
        match self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front() {
            Some(response) => Poll::Ready(response),
            None => Poll::Pending,
        }
    }
}
