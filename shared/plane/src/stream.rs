//! One bidirectional byte stream.
//!
//! It must never end a direction cleanly by accident: only `poll_shutdown` sends a FIN, everything else is a reset.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use culvert_engine::PeerId;
use culvert_model::reason::Reason;
use quinn_proto::{ReadError, SendStream, Side, StreamId, VarInt, WriteError};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::OwnedSemaphorePermit;

use crate::connection::Link;
use crate::quic::Slot;

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
    id: StreamId,
    link: Arc<Link>,
    _share: Option<OwnedSemaphorePermit>,
    opened_here: bool,
    /// The period in which it was counted among those that send.
    counted: Option<u32>,
    /// Bytes written since something was read.
    written: u64,
    /// FIN or RESET is on its way.
    send_over: bool,
    receiving: Receiving,
    /// A byte of the peer was handed out.
    read: bool,
}

/// What may still come from the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Receiving {
    Open,
    /// Its FIN was read.
    Finished,
    /// Its RESET was met, perhaps behind bytes that had to be handed out first.
    Reset(VarInt),
    /// This end stopped it.
    Stopped,
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
    pub(crate) fn new(id: StreamId, link: Arc<Link>, share: Option<OwnedSemaphorePermit>, opened_here: bool) -> Self {
        if id.initiator() == Side::Client && id.index() == 0 {
            // It fails only for a stream that is over, which needs none.
            link.held.with(|slot| (slot.connection.send_stream(id).set_priority(FIRST_STREAM), false));
        }
        Self {
            id,
            link,
            _share: share,
            opened_here,
            counted: None,
            written: 0,
            send_over: false,
            receiving: Receiving::Open,
            read: false,
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
        let (id, code) = (self.id, VarInt::from_u32(code));
        let (send_over, receive_over) = (self.send_over, self.receiving != Receiving::Open);
        if send_over && receive_over {
            return;
        }
        self.send_over = true;
        if !receive_over {
            self.receiving = Receiving::Stopped;
        }
        self.link.held.with(|slot| {
            slot.readers.remove(&id);
            slot.writers.remove(&id);
            let is_open = slot.signals.ended().is_none();
            // Both fail only where there is nothing left to end.
            if is_open && !send_over {
                let _ = slot.connection.send_stream(id).reset(code);
            }
            if is_open && !receive_over {
                let _ = slot.connection.recv_stream(id).stop(code);
            }
            ((), is_open)
        });
    }

    /// Writes what `write` says, as soon as there is room.
    fn poll_write_with(
        &mut self,
        cx: &Context<'_>,
        write: impl FnOnce(&mut SendStream<'_>) -> Result<usize, WriteError>,
    ) -> Poll<io::Result<usize>> {
        let id = self.id;
        let written = self.link.held.with(|slot| {
            if slot.signals.ended().is_some() {
                return (Err(WriteError::Blocked), false);
            }
            let written = write(&mut slot.connection.send_stream(id));
            if written == Err(WriteError::Blocked) {
                slot.writers.insert(id, cx.waker().clone());
            }
            let moved = written.is_ok();
            (written, moved)
        });
        match written.unwrap_or(Err(WriteError::Blocked)) {
            Ok(written) => {
                self.note(written);
                Poll::Ready(Ok(written))
            }
            Err(WriteError::Blocked) => match self.link.lost() {
                Some(lost) => Poll::Ready(Err(lost)),
                None => Poll::Pending,
            },
            Err(WriteError::Stopped(code)) => Poll::Ready(Err(reset(code))),
            Err(WriteError::ClosedStream) => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    /// Counts itself among the streams that send.
    fn note(&mut self, written: usize) {
        self.written += written as u64;
        self.link.flows().note(&mut self.counted, self.written);
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let (id, before) = (this.id, buf.filled().len());
        if this.receiving == Receiving::Open {
            this.receiving = this.link.held.with(|slot| read(slot, id, buf, cx)).unwrap_or(Receiving::Open);
        }
        if buf.filled().len() > before {
            this.written = 0;
            this.read = true;
            return Poll::Ready(Ok(()));
        }
        match this.receiving {
            Receiving::Open => this.link.lost().map_or(Poll::Pending, |lost| Poll::Ready(Err(lost))),
            Receiving::Finished => Poll::Ready(Ok(())),
            Receiving::Reset(code) => Poll::Ready(Err(reset(code))),
            Receiving::Stopped => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().poll_write_with(cx, |send| send.write(buf))
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
        // QUIC makes one allocation for each write of a slice: one for all of them is cheaper.
        let length = bufs.iter().map(|buf| buf.len()).sum::<usize>().min(MAX_GATHER);
        let mut gathered = BytesMut::with_capacity(length);
        for buf in bufs {
            let part = buf.len().min(length - gathered.len());
            gathered.extend_from_slice(buf.get(..part).unwrap_or_default());
        }
        let mut chunks: [Bytes; 1] = [gathered.freeze()];
        self.get_mut().poll_write_with(cx, |send| send.write_chunks(&mut chunks).map(|written| written.bytes))
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
            let id = this.id;
            // Fails only for a stream that is reset already; the reader learns that.
            this.link.held.with(|slot| ((), slot.connection.send_stream(id).finish().is_ok()));
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let unread = !self.opened_here && !self.read && self.receiving == Receiving::Open;
        self.end(if unread { StreamReset::REFUSED_UNREAD } else { Reason::ConnectorLost.reset_code() });
    }
}

/// Reads what has come, and tells what may come after it; leaves the task's waker where nothing has.
fn read(slot: &mut Slot, id: StreamId, buf: &mut ReadBuf<'_>, cx: &Context<'_>) -> (Receiving, bool) {
    let before = buf.filled().len();
    let mut stream = slot.connection.recv_stream(id);
    let Ok(mut chunks) = stream.read(true) else { return (Receiving::Stopped, false) };
    let mut receiving = Receiving::Open;
    let mut blocked = false;
    while receiving == Receiving::Open && !blocked && buf.remaining() > 0 {
        match chunks.next(buf.remaining()) {
            Ok(Some(chunk)) => buf.put_slice(&chunk.bytes),
            Ok(None) => receiving = Receiving::Finished,
            Err(ReadError::Blocked) => blocked = true,
            Err(ReadError::Reset(code)) => receiving = Receiving::Reset(code),
        }
    }
    let moved = chunks.finalize().should_transmit();
    if blocked && buf.filled().len() == before && slot.signals.ended().is_none() {
        slot.readers.insert(id, cx.waker().clone());
    }
    (receiving, moved)
}

fn reset(code: VarInt) -> io::Error {
    let code = u32::try_from(code.into_inner()).unwrap_or(u32::MAX);
    io::Error::new(io::ErrorKind::ConnectionReset, StreamReset { code })
}
