//! One bidirectional byte stream.
//!
//! It must never end a direction cleanly by accident: only `poll_shutdown` sends a FIN, everything else is a reset.

use std::future::Future as _;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use culvert_engine::PeerId;
use culvert_model::reason::Reason;
use quinn::{ReadError, RecvStream, SendStream, Side, VarInt, WriteError};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::OwnedSemaphorePermit;

use crate::connection::Link;

/// One vectored write copies at most this much into one allocation.
const MAX_GATHER: usize = 64 * 1024;

/// The first stream that the dialling end opens carries what both ends have to say to each other, signs of life above all:
/// on a way that is full it goes before the others (0), or a long transfer would make them silent.
const FIRST_STREAM: i32 = 1;

/// A bidirectional stream. `poll_shutdown` sends FIN (half-close, it cancels nothing); dropped without it = RESET and
/// STOP_SENDING.
///
/// A lost connection is an [`io::Error`] that holds a [`crate::Closed`], a reset by the peer one that holds a
/// [`StreamReset`].
#[derive(Debug)]
pub struct Stream {
    send: SendStream,
    receive: RecvStream,
    link: Arc<Link>,
    _share: Option<OwnedSemaphorePermit>,
    opened_here: bool,
    /// The period in which it was counted among those that send.
    counted: Option<u32>,
    /// Bytes written since something was read.
    written: u64,
    /// FIN or RESET is on its way.
    send_over: bool,
    /// The peer's FIN or RESET was read, or STOP_SENDING is on its way.
    receive_over: bool,
    /// A byte of the peer was handed out.
    read: bool,
}

/// The peer reset the stream; found inside an [`io::Error`] by [`StreamReset::of`] or downcast.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the stream was reset by the peer (code {code:#x})")]
pub struct StreamReset {
    /// The application error code ([`Reason::from_reset_code`] reads it).
    pub code: u32,
}

impl StreamReset {
    /// The code of a stream that the peer refused without reading a byte of it: safe to try elsewhere.
    pub const REFUSED_UNREAD: u32 = 1;

    /// Finds a peer's reset inside an I/O error.
    pub fn of(error: &io::Error) -> Option<Self> {
        error.get_ref()?.downcast_ref::<Self>().copied()
    }

    /// The reason that the peer gave, if it is one of ours.
    pub fn reason(self) -> Option<Reason> {
        Reason::from_reset_code(self.code)
    }

    /// Whether the peer says that it read nothing of the stream.
    pub fn is_refused_unread(self) -> bool {
        self.code == Self::REFUSED_UNREAD
    }
}

impl Stream {
    pub(crate) fn new(
        send: SendStream,
        receive: RecvStream,
        link: Arc<Link>,
        share: Option<OwnedSemaphorePermit>,
        opened_here: bool,
    ) -> Self {
        let (send_over, receive_over, read) = (false, false, false);
        if send.id().initiator() == Side::Client && send.id().index() == 0 {
            // It fails only for a stream that is over, which needs none.
            let _ = send.set_priority(FIRST_STREAM);
        }
        Self {
            send,
            receive,
            link,
            _share: share,
            opened_here,
            counted: None,
            written: 0,
            send_over,
            receive_over,
            read,
        }
    }

    /// Whose stream it is.
    pub fn peer(&self) -> PeerId {
        self.link.peer()
    }

    /// Ends both directions with the reason's code (RESET_STREAM and STOP_SENDING).
    pub fn cancel(&mut self, reason: Reason) {
        self.end(reason.reset_code());
    }

    /// Refuses a stream of which nothing was read: the peer may send the same bytes elsewhere.
    ///
    /// If something was read it is an ordinary cancel, because then the peer must not.
    pub fn refuse(mut self) {
        let code = if self.read { Reason::Overloaded.reset_code() } else { StreamReset::REFUSED_UNREAD };
        self.end(code);
    }

    fn end(&mut self, code: u32) {
        let code = VarInt::from_u32(code);
        // Both fail only where there is nothing left to end.
        if !self.send_over {
            let _ = self.send.reset(code);
            self.send_over = true;
        }
        if !self.receive_over {
            let _ = self.receive.stop(code);
            self.receive_over = true;
        }
    }

    /// Counts itself among the streams that send.
    fn note(&mut self, written: usize) {
        self.written += written as u64;
        self.link.flows().note(&mut self.counted, self.written);
    }

    fn write_error(&self, error: &WriteError) -> io::Error {
        match error {
            WriteError::Stopped(code) => reset(*code),
            WriteError::ConnectionLost(error) => {
                io::Error::new(io::ErrorKind::ConnectionAborted, self.link.describe(error))
            }
            WriteError::ClosedStream | WriteError::ZeroRttRejected => io::ErrorKind::BrokenPipe.into(),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        match ready!(this.receive.poll_read_buf(cx, buf)) {
            Ok(()) => {
                if buf.filled().len() == before {
                    this.receive_over = true;
                } else {
                    this.written = 0;
                    this.read = true;
                }
                Poll::Ready(Ok(()))
            }
            Err(ReadError::Reset(code)) => {
                this.receive_over = true;
                Poll::Ready(Err(reset(code)))
            }
            Err(ReadError::ConnectionLost(error)) => {
                Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, this.link.describe(&error))))
            }
            // Read after it was stopped by this end.
            Err(ReadError::ClosedStream | ReadError::IllegalOrderedRead | ReadError::ZeroRttRejected) => {
                Poll::Ready(Err(io::ErrorKind::NotConnected.into()))
            }
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.send).poll_write(cx, buf));
        this.note(written.as_ref().copied().unwrap_or_default());
        Poll::Ready(written.map_err(|error| this.write_error(&error)))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut filled = bufs.iter().filter(|buf| !buf.is_empty());
        let (Some(first), Some(_)) = (filled.next(), filled.next()) else {
            let only = bufs.iter().find(|buf| !buf.is_empty());
            return self.poll_write(cx, only.map(|buf| &**buf).unwrap_or_default());
        };
        if first.len() >= MAX_GATHER {
            return self.poll_write(cx, first);
        }
        // quinn makes one allocation for each write of a slice: one for all of them is cheaper.
        let length = bufs.iter().map(|buf| buf.len()).sum::<usize>().min(MAX_GATHER);
        let mut gathered = BytesMut::with_capacity(length);
        for buf in bufs {
            let part = buf.len().min(length - gathered.len());
            gathered.extend_from_slice(buf.get(..part).unwrap_or_default());
        }
        let this = self.get_mut();
        let mut chunks: [Bytes; 1] = [gathered.freeze()];
        let written = ready!(pin!(this.send.write_chunks(&mut chunks)).poll(cx));
        this.note(written.as_ref().map_or(0, |written| written.bytes));
        Poll::Ready(written.map(|written| written.bytes).map_err(|error| this.write_error(&error)))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.send_over {
            this.send_over = true;
            // Fails only for a stream that is reset already; the reader learns that.
            let _ = this.send.finish();
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let unread = !self.opened_here && !self.read && !self.receive_over;
        self.end(if unread { StreamReset::REFUSED_UNREAD } else { Reason::ConnectorLost.reset_code() });
    }
}

fn reset(code: VarInt) -> io::Error {
    let code = u32::try_from(code.into_inner()).unwrap_or(u32::MAX);
    io::Error::new(io::ErrorKind::ConnectionReset, StreamReset { code })
}
