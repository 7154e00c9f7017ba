//! One HTTP/1.1 connection as its client, polled by whoever holds it and by no task of its own.
//!
//! Must never be given back to its pool while anything of an exchange is still to come.

use std::error::Error as _;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body as _, Frame};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1::{Builder, Connection, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWrite;
use tokio::time::Instant;

use culvert_model::reason::Reason;

use crate::body::{Body, Drive, Flag, STARVED, UPLOADING};
use crate::fault::{Fault, Retry};
use crate::pool::{Inner, Lost, Opener, PoolSettings};
use crate::wakes::Wakes;
use crate::wire::{Seen, Wire};

/// A connection. Dropped while an exchange runs, it drops its stream without a clean end.
pub(crate) struct Client<O: Opener> {
    pub(crate) sender: SendRequest<Body>,
    connection: Option<Connection<TokioIo<Wire<O::Io>>, Body>>,
    /// None while it is polled.
    wakes: Option<Wakes>,
    ended: bool,
    error: Option<hyper::Error>,
    bits: Arc<AtomicU32>,
    seen: Arc<Seen>,
    /// What was written when the exchange began.
    baseline: u64,
    pub(crate) idle_since: Instant,
    /// Where it goes when the exchange is over. None while it is there: they would keep each other alive.
    pub(crate) pool: Option<Arc<Inner<O>>>,
}

impl<O: Opener> Client<O> {
    pub(crate) async fn handshake(
        io: O::Io,
        pool: &Arc<Inner<O>>,
        settings: &PoolSettings,
    ) -> Result<Box<Self>, Fault> {
        let seen = Arc::<Seen>::default();
        let wire = Wire::new(io, seen.clone());
        // Not `max_headers`: setting it moves hyper's parser from the stack to the heap. The default is 100.
        let (sender, connection) = Builder::new()
            .preserve_header_case(settings.preserve_case)
            .max_buf_size(settings.max_head.max(8192))
            .handshake(TokioIo::new(wire))
            .await
            .map_err(|error| Fault::new(Reason::Internal).retry(Retry::Safe).log(error))?;
        Ok(Box::new(Self {
            sender,
            connection: Some(connection),
            wakes: Some(Wakes::new()),
            ended: false,
            error: None,
            bits: Arc::new(AtomicU32::new(0)),
            seen,
            baseline: 0,
            idle_since: Instant::now(),
            pool: Some(pool.clone()),
        }))
    }

    /// Marks the start of an exchange; the flag that goes with its request's body.
    pub(crate) fn begin(&mut self, has_body: bool) -> Option<Flag> {
        self.baseline = self.written();
        has_body.then(|| Flag::raise(&self.bits, UPLOADING, STARVED))
    }

    /// Moves bytes; ready once the connection is over.
    pub(crate) fn poll_connection(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.ended {
            return Poll::Ready(());
        }
        let Some(connection) = &mut self.connection else { return Poll::Ready(()) };
        match connection.poll_without_shutdown(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(result) => {
                self.ended = true;
                self.error = result.err();
                Poll::Ready(())
            }
        }
    }

    /// Polls the connection together with its user, so that what they wake each other for does not wake their task.
    pub(crate) fn poll_quietly<T>(
        &mut self,
        cx: &mut Context<'_>,
        mut poll: impl FnMut(&mut Self, &mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        let Some(wakes) = self.wakes.take() else { return poll(self, cx) };
        let polled = wakes.poll(cx, |cx| poll(self, cx));
        self.wakes = Some(wakes);
        polled
    }

    /// Hands over a request; poll the connection for it with [`Self::poll_quietly`].
    pub(crate) fn send(
        &mut self,
        request: Request<Body>,
    ) -> impl Future<Output = Result<Response<Incoming>, TrySendError<Request<Body>>>> + use<O> {
        let Self { sender, wakes, .. } = self;
        match wakes {
            Some(wakes) => wakes.hush(|| sender.try_send_request(request)),
            None => sender.try_send_request(request),
        }
    }

    /// Whether an idle connection can take a request.
    pub(crate) fn poll_usable(&mut self, cx: &mut Context<'_>) -> bool {
        let polled = self.poll_quietly(cx, |client, cx| client.poll_connection(cx));
        polled.is_pending() && self.sender.is_ready()
    }

    /// Bytes that the stream has taken.
    pub(crate) fn written(&self) -> u64 {
        self.seen.written()
    }

    pub(crate) fn is_uploading(&self) -> bool {
        self.bits.load(Ordering::Relaxed) & UPLOADING != 0
    }

    /// Whether the request's body is waited for.
    pub(crate) fn is_starved(&self) -> bool {
        self.bits.load(Ordering::Relaxed) & STARVED != 0
    }

    /// The stream, and what was read past the head, of a connection that is over.
    #[expect(clippy::boxed_local, reason = "it is large, and lives in its box")]
    pub(crate) fn into_raw(mut self: Box<Self>) -> Option<(O::Io, Bytes)> {
        let parts = self.connection.take().filter(|_| self.ended)?.into_parts();
        Some((parts.io.into_inner().into_inner(), parts.read_buf))
    }

    /// Drops hyper's half of the connection, which hands back a request that it has not touched.
    pub(crate) fn disconnect(&mut self) -> Option<io::Error> {
        self.ended = true;
        self.connection = None;
        self.seen.take_error()
    }

    /// Names the failure of the exchange: the request's body's own, or what the opener makes of the stream's.
    pub(crate) fn fault(&mut self, error: Option<&hyper::Error>) -> Fault {
        let stored = self.error.take();
        let error = error.or(stored.as_ref());
        if let Some(own) = error.and_then(|error| error.source()).and_then(|source| source.downcast_ref::<Fault>()) {
            let fault = Fault::new(own.reason).side(own.side);
            return match own.detail() {
                Some(detail) => fault.log(detail),
                None => fault,
            };
        }
        let io = self.disconnect();
        let lost = match (&io, error) {
            (Some(io), _) => Lost::Io(io),
            (None, Some(error)) if error.is_parse() => Lost::Malformed,
            (None, _) => Lost::Ended,
        };
        let fault = self.name(lost);
        match (fault.detail(), io, error) {
            (Some(_), ..) | (None, None, None) => fault,
            (None, Some(io), _) => fault.log(io),
            (None, None, Some(error)) => fault.log(error),
        }
    }

    /// Names a failure, and says whether the request may go elsewhere.
    pub(crate) fn name(&self, lost: Lost<'_>) -> Fault {
        let fault = match &self.pool {
            Some(pool) => pool.opener.lost(lost),
            None => Fault::new(Reason::Internal),
        };
        if self.written() == self.baseline { fault.retry(Retry::Safe) } else { fault }
    }

    /// Gives the connection back if the exchange has left nothing behind; else drops it.
    pub(crate) fn release(mut self: Box<Self>) {
        // hyper may still have to notice that the last byte was the last.
        if self.is_uploading() || !self.sender.is_ready() && !self.poll_usable(&mut Context::from_waker(Waker::noop()))
        {
            return;
        }
        if let Some(pool) = self.pool.take() {
            self.idle_since = Instant::now();
            pool.put(self);
        }
    }

    /// Ends an idle connection cleanly, without waiting.
    #[expect(clippy::boxed_local, reason = "it is large, and lives in its box")]
    pub(crate) fn retire(mut self: Box<Self>) {
        if let Some(connection) = self.connection.take() {
            let mut wire = connection.into_parts().io.into_inner();
            let _ = Pin::new(&mut wire).poll_shutdown(&mut Context::from_waker(Waker::noop()));
        }
    }
}

impl<O: Opener> Drive for Client<O> {
    fn poll_frame(
        &mut self,
        incoming: &mut Incoming,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.poll_quietly(cx, |client, cx| {
            let polled = Pin::new(&mut *incoming).poll_frame(cx);
            if polled.is_ready() {
                return polled;
            }
            let _ = client.poll_connection(cx);
            Pin::new(&mut *incoming).poll_frame(cx)
        })
    }

    fn poll_fault(&mut self, _: &mut Context<'_>) -> Poll<Fault> {
        Poll::Ready(self.fault(None))
    }

    fn finish(self: Box<Self>) {
        self.release();
    }
}
