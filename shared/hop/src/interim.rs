//! Interim responses (1xx) on their way back to the caller, past whoever waits for the final one.
//!
//! Must never let one through that is about a connection (100 is this hop's own, 101 switches), or hold more than a few.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;
use http::StatusCode;

use crate::fields::{Fields, is_culvert, is_hop_by_hop};
use crate::message::Response;

/// So many wait at once; what comes beyond is not passed on (RFC 9110 §15.2: they may be dropped).
const MOST: usize = 8;

/// The way back of one request. Clones share it.
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
    /// The next hop sent one.
    pub(crate) fn tell(&self, status: StatusCode, fields: Fields) {
        if !status.is_informational() || matches!(status, StatusCode::CONTINUE | StatusCode::SWITCHING_PROTOCOLS) {
            return;
        }
        let mut response = Response::new(());
        *response.status_mut() = status;
        *response.headers_mut() = fields;
        response.headers_mut().drop_named(|name| is_hop_by_hop(name) || is_culvert(name.as_bytes()));
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
