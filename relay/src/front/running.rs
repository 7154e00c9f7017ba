//! What runs on one connection now, and when a drain ends it.
//!
//! Must never end one exchange because another one on the same connection has run for long.

use std::future::pending;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use culvert_hop::body::Body;
use culvert_hop::fault::Fault;
use culvert_model::reason::Reason;
use culvert_ops::drain::{Drain, LONG_RUNNING, Phase};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::Notify;
use tokio::time::sleep_until;

use super::LongRunning;
use super::io::Fate;
use crate::cores;

/// The exchanges of one connection: one at a time over HTTP/1.1, many over HTTP/2.
#[derive(Debug, Default)]
pub(crate) struct Running {
    now: Mutex<Exchanges>,
    ended: Notify,
    fate: Arc<Fate>,
}

/// One exchange on its connection, until it is dropped.
pub(crate) struct Turn {
    running: Arc<Running>,
    id: u32,
    since: Instant,
    cut: Option<Cut>,
}

/// Ends one answer of several on a connection.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cut(Arc<Notify>);

#[derive(Debug, Default)]
struct Exchanges {
    running: Vec<Exchange>,
    next: u32,
}

#[derive(Debug)]
struct Exchange {
    id: u32,
    since: Instant,
    streaming: bool,
    /// None where the exchange has the connection for itself: then that is what is cut.
    cut: Option<Cut>,
}

impl Running {
    /// On a connection whose end hangs on this.
    pub(super) fn on(fate: Arc<Fate>) -> Self {
        Self { fate, ..Self::default() }
    }

    /// An exchange begins. One that shares its connection with others is cut alone, by [`Turn::cuttable`].
    pub(crate) fn begin(self: &Arc<Self>, shares: bool, now: Instant) -> Turn {
        let mut exchanges = self.lock();
        let id = exchanges.next;
        exchanges.next = id.wrapping_add(1);
        let cut = shares.then(Cut::default);
        exchanges.running.push(Exchange { id, since: now, streaming: false, cut: cut.clone() });
        drop(exchanges);
        Turn { running: Arc::clone(self), id, since: now, cut }
    }

    /// Waits until the connection has to end visibly: at `--drain-streams` for an answer that was already running for
    /// long when the drain closed listeners, at the deadline for the rest. An answer that shares the connection is ended
    /// alone where that is enough.
    pub(crate) async fn cut(&self, drain: &Drain, long_running: &Arc<LongRunning>) {
        drain.closing().await;
        let Phase::Draining { closing, streams, deadline } = drain.phase() else { return };
        let rest = async {
            let long: Vec<u32> = {
                let exchanges = self.lock();
                let long = exchanges.running.iter().filter(|one| is_long(one, closing));
                long.map(|one| one.id).collect()
            };
            if !long.is_empty() {
                let _one = long_running.one();
                tokio::select! {
                    () = sleep_until(streams.into()) => {}
                    () = self.over(&long) => {}
                }
                if self.cut_streams(&long) {
                    return;
                }
            }
            sleep_until(deadline.into()).await;
            if self.lock().running.is_empty() {
                pending::<()>().await;
            }
        };
        tokio::select! {
            () = rest => {}
            () = drain.stopped() => {}
        }
    }

    /// Ends those of these that are streaming; true when the whole connection has to end for it.
    fn cut_streams(&self, long: &[u32]) -> bool {
        let exchanges = self.lock();
        let mut whole = false;
        for one in exchanges.running.iter().filter(|one| one.streaming && long.contains(&one.id)) {
            match &one.cut {
                Some(cut) => cut.0.notify_one(),
                None => whole = true,
            }
        }
        whole
    }

    /// Waits until none of these runs any more.
    async fn over(&self, ids: &[u32]) {
        loop {
            let ended = self.ended.notified();
            if !self.lock().running.iter().any(|one| ids.contains(&one.id)) {
                return;
            }
            ended.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Exchanges> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_long(exchange: &Exchange, closing: Instant) -> bool {
    closing.saturating_duration_since(exchange.since) > LONG_RUNNING
}

impl Turn {
    /// When it began.
    pub(crate) fn since(&self) -> Instant {
        self.since
    }

    /// Its answer's head is out.
    pub(crate) fn streaming(&self) {
        if let Some(exchange) = self.running.lock().running.iter_mut().find(|one| one.id == self.id) {
            exchange.streaming = true;
        }
    }

    /// Its connection was given up because its caller did not read.
    pub(crate) fn is_unread(&self) -> bool {
        self.running.fate.is_unread()
    }

    /// It went to a connector of this shard.
    pub(crate) fn went_to(&self, shard: u8) {
        self.running.fate.moving().note(shard, cores::here());
    }

    /// What ends its answer alone, where it shares its connection.
    pub(crate) fn cuttable(&self) -> Option<Cut> {
        self.cut.clone()
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut exchanges = self.running.lock();
        if let Some(place) = exchanges.running.iter().position(|one| one.id == self.id) {
            exchanges.running.swap_remove(place);
        }
        drop(exchanges);
        self.running.ended.notify_waiters();
    }
}

impl Cut {
    /// The answer's body, until it is cut.
    pub(crate) fn over(self, body: Body) -> Body {
        until(body, async move { self.0.notified().await }, Reason::Draining)
    }
}

/// The body, until `told` ends it with a reason.
pub(crate) fn until(body: Body, told: impl Future<Output = ()> + Send + 'static, reason: Reason) -> Body {
    if body.is_end_stream() {
        return body;
    }
    Body::boxed(Cuttable { body, told: Box::pin(told), reason })
}

struct Cuttable {
    body: Body,
    told: Pin<Box<dyn Future<Output = ()> + Send>>,
    reason: Reason,
}

impl HttpBody for Cuttable {
    type Data = Bytes;
    type Error = Fault;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if polled.is_pending() && self.told.as_mut().poll(cx).is_ready() {
            // Never polled again: a body that failed is over.
            return Poll::Ready(Some(Err(Fault::new(self.reason))));
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests;
