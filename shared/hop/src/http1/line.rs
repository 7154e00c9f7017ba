//! A byte stream with what was read of it and not used yet, and what is to be written.
//!
//! Must never hold more of a body than one piece, or allocate for a connection that is idle and was small.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};

/// Read at once at first; more where reads fill it.
const FIRST_READ: usize = 8 * 1024;
/// Read at once at most.
const MOST_READ: usize = 64 * 1024;
/// A piece of a body up to this length is copied behind what waits; a longer one is written from where it is.
const COPIED: usize = 4 * 1024;

pub(crate) struct Line<Io> {
    io: Io,
    /// Read, not yet used.
    pub(crate) inbox: BytesMut,
    outbox: BytesMut,
    /// Written behind `outbox`.
    piece: Bytes,
    /// Written behind `piece`.
    tail: &'static [u8],
    read_size: usize,
    written: u64,
    is_ended: bool,
    is_dirty: bool,
}

impl<Io> Line<Io> {
    pub(crate) fn new(io: Io) -> Self {
        Self {
            io,
            inbox: BytesMut::new(),
            outbox: BytesMut::new(),
            piece: Bytes::new(),
            tail: b"",
            read_size: FIRST_READ,
            written: 0,
            is_ended: false,
            is_dirty: false,
        }
    }

    /// Where the next bytes are put. Only while [`Self::has_room`].
    pub(crate) fn outbox(&mut self) -> &mut BytesMut {
        &mut self.outbox
    }

    /// Puts a piece of a body behind what waits, and `tail` behind it. Only while [`Self::has_room`].
    pub(crate) fn put(&mut self, piece: Bytes, tail: &'static [u8]) {
        if piece.len() <= COPIED {
            self.outbox.extend_from_slice(&piece);
            self.outbox.extend_from_slice(tail);
        } else {
            self.piece = piece;
            self.tail = tail;
        }
    }

    /// Whether more may be put: no long piece waits, and little else.
    pub(crate) fn has_room(&self) -> bool {
        self.piece.is_empty() && self.tail.is_empty() && self.outbox.len() < COPIED
    }

    /// Whether all was written; not whether it was flushed.
    pub(crate) fn is_written(&self) -> bool {
        self.outbox.is_empty() && self.piece.is_empty() && self.tail.is_empty()
    }

    /// Nothing is expected for a while: lets go of what only a large message needs.
    pub(crate) fn rest(&mut self) {
        if self.read_size > FIRST_READ && self.inbox.is_empty() {
            self.inbox = BytesMut::new();
            self.read_size = FIRST_READ;
        }
        if self.outbox.capacity() > MOST_READ && self.outbox.is_empty() {
            self.outbox = BytesMut::new();
        }
    }

    /// Bytes that the stream has taken.
    pub(crate) fn written(&self) -> u64 {
        self.written
    }

    /// Whether the other side has ended what it sends.
    pub(crate) fn is_ended(&self) -> bool {
        self.is_ended
    }

    pub(crate) fn into_parts(self) -> (Io, Bytes) {
        (self.io, self.inbox.freeze())
    }
}

impl<Io: AsyncRead + Unpin> Line<Io> {
    /// Reads once into the inbox; how many bytes, none at the end.
    pub(crate) fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.is_ended {
            return Poll::Ready(Ok(0));
        }
        // A large body is read in large pieces; a head fits into what another has left.
        let least = if self.read_size > FIRST_READ { self.read_size } else { FIRST_READ / 4 };
        if self.inbox.capacity() - self.inbox.len() < least {
            self.inbox.reserve(self.read_size);
        }
        let read = ready!(pin!(self.io.read_buf(&mut self.inbox)).poll(cx))?;
        if read == 0 {
            self.is_ended = true;
        } else if read >= self.read_size {
            self.read_size = (self.read_size * 2).min(MOST_READ);
        } else if read < self.read_size / 8 {
            // A stream that has become slow holds no more than one that always was.
            self.read_size = (self.read_size / 2).max(FIRST_READ);
        }
        Poll::Ready(Ok(read))
    }
}

impl<Io: AsyncWrite + Unpin> Line<Io> {
    /// Writes all that waits.
    pub(crate) fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.is_written() {
            let taken = if self.piece.is_empty() && self.tail.is_empty() {
                ready!(Pin::new(&mut self.io).poll_write(cx, &self.outbox))?
            } else {
                let parts = [IoSlice::new(&self.outbox), IoSlice::new(&self.piece), IoSlice::new(self.tail)];
                let parts = if self.outbox.is_empty() { parts.get(1..).unwrap_or_default() } else { &parts };
                ready!(Pin::new(&mut self.io).poll_write_vectored(cx, parts))?
            };
            if taken == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.take(taken);
        }
        Poll::Ready(Ok(()))
    }

    /// Writes all that waits, and flushes it.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_write(cx))?;
        if self.is_dirty {
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            self.is_dirty = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Flushes, and ends what is sent.
    pub(crate) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_flush(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn take(&mut self, taken: usize) {
        self.is_dirty = true;
        self.written = self.written.saturating_add(u64::try_from(taken).unwrap_or(u64::MAX));
        let mut left = taken;
        let of_outbox = left.min(self.outbox.len());
        if of_outbox == self.outbox.len() {
            self.outbox.clear();
        } else {
            self.outbox.advance(of_outbox);
        }
        left -= of_outbox;
        let of_piece = left.min(self.piece.len());
        if of_piece == self.piece.len() {
            self.piece = Bytes::new();
        } else {
            self.piece.advance(of_piece);
        }
        left -= of_piece;
        self.tail = self.tail.get(left..).unwrap_or_default();
    }
}

impl<Io: AsyncRead + Unpin> Line<Io> {
    /// Reads and forgets, until the end.
    pub(crate) fn poll_forget(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inbox.clear();
        let mut few = [0; 4096];
        for _ in 0..16 {
            let mut few = ReadBuf::new(&mut few);
            ready!(Pin::new(&mut self.io).poll_read(cx, &mut few))?;
            if few.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}
