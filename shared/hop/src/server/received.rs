//! The connection that a server and the body of the request under way read from in turns.
//!
//! Must never let a body end cleanly whose bytes did not all come.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use bytes::{BufMut as _, Bytes};
use culvert_model::reason::Reason;
use http_body::{Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::fault::{Fault, Side};
use crate::http1::{Decoder, Line, Piece};

/// What follows a request's head, before somebody knows what it is, is not read beyond this.
const AHEAD: usize = 4096;
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// One connection, as the server and a body share it.
pub(super) struct Conn<Io> {
    pub(super) line: Line<Io>,
    pub(super) decoder: Decoder,
    /// The caller waits for leave to send the body.
    pub(super) owes_continue: bool,
    /// Somebody has the body.
    is_held: bool,
    /// The server, which waits for what the body's reader does.
    server: Option<Waker>,
}

/// A request's body, as its reader has it.
pub(crate) struct Received(Arc<Mutex<dyn Inlet>>);

/// The side of a connection that a body's reader sees.
trait Inlet: Send {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>>;
    fn left(&self) -> Option<u64>;
    fn is_over(&self) -> bool;
    fn leave(&mut self);
}

pub(super) fn lock<Io>(conn: &Mutex<Conn<Io>>) -> MutexGuard<'_, Conn<Io>> {
    conn.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<Io> Conn<Io> {
    pub(super) fn new(io: Io) -> Self {
        let line = Line::new(io);
        Self { line, decoder: Decoder::Over, owes_continue: false, is_held: false, server: None }
    }

    /// Whether the body's reader has what it wants and is gone, or all came.
    pub(super) fn is_left(&self) -> bool {
        !self.is_held || self.decoder.is_over()
    }

    /// Has the server woken when the body's reader is done.
    pub(super) fn attend(&mut self, cx: &Context<'_>) {
        match &mut self.server {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
    }
}

impl<Io: AsyncRead + AsyncWrite + Unpin> Conn<Io> {
    /// Looks for the end of the caller while nothing of a body is to come; ready with how the caller ended.
    pub(super) fn poll_ended(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.line.is_ended() {
                return Poll::Ready(Ok(()));
            }
            if !self.decoder.is_over() || self.line.inbox.len() >= AHEAD {
                return Poll::Pending;
            }
            ready!(self.line.poll_read(cx))?;
        }
    }

    /// Skips what is here already of a body that nobody wants; whether that was all of it.
    pub(super) fn skip(&mut self, cx: &mut Context<'_>) -> bool {
        if self.owes_continue {
            return false;
        }
        for _ in 0..AHEAD {
            let is_ended = self.line.is_ended();
            match self.decoder.take(&mut self.line.inbox, is_ended) {
                Ok(Piece::Data(_) | Piece::Trailers(_)) => {}
                Ok(Piece::End) => return true,
                Ok(Piece::Missing) => match self.line.poll_read(cx) {
                    Poll::Ready(Ok(_)) => {}
                    Poll::Ready(Err(_)) | Poll::Pending => return false,
                },
                Err(_) => return false,
            }
        }
        false
    }

    fn wake_server(&mut self, cx: &Context<'_>) {
        if let Some(server) = &self.server
            && !server.will_wake(cx.waker())
        {
            server.wake_by_ref();
        }
    }
}

impl<Io: AsyncRead + AsyncWrite + Unpin + Send> Inlet for Conn<Io> {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        if std::mem::take(&mut self.owes_continue) {
            self.line.outbox().put_slice(CONTINUE);
            if !matches!(self.line.poll_flush(&mut Context::from_waker(Waker::noop())), Poll::Ready(Ok(()))) {
                self.wake_server(cx);
            }
        }
        let failed = loop {
            let is_ended = self.line.is_ended();
            match self.decoder.take(&mut self.line.inbox, is_ended) {
                Ok(Piece::Data(data)) => {
                    if self.decoder.is_over() {
                        self.wake_server(cx);
                    }
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Ok(Piece::Trailers(trailers)) => {
                    self.wake_server(cx);
                    return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                }
                Ok(Piece::End) => {
                    self.wake_server(cx);
                    return Poll::Ready(None);
                }
                Ok(Piece::Missing) => match ready!(self.line.poll_read(cx)) {
                    Ok(_) => {}
                    Err(error) => break Fault::new(Reason::BadRequest).log(error),
                },
                Err(broken) => break Fault::new(Reason::BadRequest).log(broken.0),
            }
        };
        Poll::Ready(Some(Err(failed.side(Side::Caller))))
    }

    fn left(&self) -> Option<u64> {
        self.decoder.left()
    }

    fn is_over(&self) -> bool {
        self.decoder.is_over()
    }

    fn leave(&mut self) {
        self.is_held = false;
        if let Some(server) = self.server.take() {
            server.wake();
        }
    }
}

impl Received {
    pub(super) fn new<Io>(conn: &Arc<Mutex<Conn<Io>>>) -> Self
    where
        Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        lock(conn).is_held = true;
        Self(conn.clone())
    }

    fn inlet(&self) -> MutexGuard<'_, dyn Inlet + 'static> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        self.inlet().poll_frame(cx)
    }

    pub(crate) fn is_end(&self) -> bool {
        self.inlet().is_over()
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        self.inlet().left().map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        self.inlet().leave();
    }
}
