//! What an HTTP/2 peer has cost beyond what it was given: frames that ask for work and carry nothing, requests that it
//! takes back.
//!
//! h2 bounds by itself what it would have to remember: streams at once, CONTINUATION frames and the size of a head, small
//! and empty DATA frames, resets that it has to send (MadeYouReset, CVE-2025-8671), requests reset before they were
//! accepted. It does not bound what it can forget at once: PING, SETTINGS, PRIORITY, WINDOW_UPDATE and unknown frames,
//! and requests that are reset after they were accepted (rapid reset, CVE-2023-44487).
//!
//! Must never hold back or change a byte.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

/// Frames without use that a peer has on credit, and gets back each second.
const FRAMES: i64 = 1_000;
const FRAMES_PER_SECOND: i64 = 100;
/// What it can have earned at most: an answer may be long under way before its reader gives room back.
const MOST_FRAMES: i64 = 100_000;
/// What a frame that carries something earns, either way: a window update or two and a ping are its due.
const EARNED: i64 = 4;
/// Bytes written for which a peer may send one frame more: readers such as HAProxy give room back for every piece they
/// read, two window updates a piece, and a piece may be a single packet.
const BYTES_PER_FRAME: usize = 512;
/// Resets that come back each second.
const RESETS_PER_SECOND: i64 = 100;

const PREFACE: usize = 24;
const HEADER: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const CONTINUATION: u8 = 9;

/// A peer's credit.
#[derive(Debug)]
pub(crate) struct Ledger {
    /// Whether it is kept at all.
    is_kept: bool,
    frames: AtomicI64,
    resets: AtomicI64,
    most_resets: i64,
    is_spent: AtomicBool,
}

impl Ledger {
    /// For a connection with so many streams at once: all of them may be given up together, twice. A hop's own pool
    /// passes on what its callers do, so it needs no ledger of its own (`is_own`).
    pub(super) fn new(max_streams: u32, is_own: bool) -> Self {
        let resets = i64::from(max_streams).saturating_mul(2).max(100);
        Self {
            is_kept: !is_own,
            frames: AtomicI64::new(FRAMES),
            resets: AtomicI64::new(resets),
            most_resets: resets,
            is_spent: AtomicBool::new(false),
        }
    }

    /// An answer's head goes out: the request was not taken back before it had cost something.
    pub(super) fn answered(&self) {
        give(&self.resets, 1, self.most_resets);
        self.moved(1);
    }

    /// Frames with something in them went out. Their bytes earn as they are written.
    pub(crate) fn moved(&self, frames: u64) {
        let frames = i64::try_from(frames).unwrap_or(MOST_FRAMES);
        give(&self.frames, frames.saturating_mul(EARNED), MOST_FRAMES);
    }

    /// Whether the peer has had more than its credit: the connection has to end.
    pub(super) fn is_spent(&self) -> bool {
        self.is_spent.load(Ordering::Relaxed)
    }

    fn refill(&self, since: Duration) {
        let millis = i64::try_from(since.as_millis()).unwrap_or(i64::MAX);
        give(&self.frames, millis.saturating_mul(FRAMES_PER_SECOND) / 1_000, FRAMES);
        give(&self.resets, millis.saturating_mul(RESETS_PER_SECOND) / 1_000, self.most_resets);
    }

    /// Books a frame that came in; false when the credit does not cover it.
    fn book(&self, kind: u8, length: usize) -> bool {
        match kind {
            _ if !self.is_kept => true,
            HEADERS | CONTINUATION => true,
            DATA if length > 0 => {
                self.moved(1);
                true
            }
            RST_STREAM => self.resets.fetch_sub(1, Ordering::Relaxed) > 0,
            _ => self.frames.fetch_sub(1, Ordering::Relaxed) > 0,
        }
    }
}

fn give(credit: &AtomicI64, more: i64, most: i64) {
    let now = credit.load(Ordering::Relaxed);
    if now < most {
        credit.store(now.saturating_add(more).min(most), Ordering::Relaxed);
    }
}

/// The byte stream under a connection: books the frames that come in.
pub(super) struct Booked<Io> {
    io: Io,
    /// Read before, not yet handed on.
    first: Bytes,
    ledger: Arc<Ledger>,
    header: [u8; HEADER],
    seen: usize,
    skip: usize,
    /// Bytes written that have not earned a frame yet.
    written: usize,
    /// When credit was last given for time.
    refilled: Instant,
}

impl<Io> Booked<Io> {
    pub(super) fn new(io: Io, first: Bytes, ledger: Arc<Ledger>, now: Instant) -> Self {
        Self { io, first, ledger, header: [0; HEADER], seen: 0, skip: PREFACE, written: 0, refilled: now }
    }

    fn see(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && !self.ledger.is_spent() {
            if self.skip > 0 {
                let step = self.skip.min(bytes.len());
                self.skip -= step;
                bytes = bytes.get(step..).unwrap_or_default();
                continue;
            }
            let free = self.header.get_mut(self.seen..).unwrap_or_default();
            let step = free.len().min(bytes.len());
            if let (Some(free), Some(part)) = (free.get_mut(..step), bytes.get(..step)) {
                free.copy_from_slice(part);
            }
            self.seen += step;
            bytes = bytes.get(step..).unwrap_or_default();
            if self.seen == HEADER {
                self.seen = 0;
                let [a, b, c, kind, ..] = self.header;
                self.skip = usize::try_from(u32::from_be_bytes([0, a, b, c])).unwrap_or(usize::MAX);
                self.book(kind);
            }
        }
    }

    fn wrote(&mut self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = &written {
            self.written += bytes;
            if let Ok(frames @ 1..) = i64::try_from(self.written / BYTES_PER_FRAME) {
                self.written %= BYTES_PER_FRAME;
                give(&self.ledger.frames, frames, MOST_FRAMES);
            }
        }
        written
    }

    fn book(&mut self, kind: u8) {
        if self.ledger.book(kind, self.skip) {
            return;
        }
        // The clock is read only where it matters.
        let now = Instant::now();
        self.ledger.refill(now.saturating_duration_since(self.refilled));
        self.refilled = now;
        if !self.ledger.book(kind, self.skip) {
            self.ledger.is_spent.store(true, Ordering::Relaxed);
        }
    }
}

impl<Io: AsyncRead + Unpin> AsyncRead for Booked<Io> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.ledger.is_spent() {
            return Poll::Pending;
        }
        let before = out.filled().len();
        if this.first.is_empty() {
            ready!(Pin::new(&mut this.io).poll_read(cx, out))?;
        } else {
            let part = this.first.len().min(out.remaining());
            out.put_slice(this.first.get(..part).unwrap_or_default());
            this.first.advance(part);
        }
        this.see(out.filled().get(before..).unwrap_or_default());
        Poll::Ready(Ok(()))
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for Booked<Io> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, bytes);
        self.wrote(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, parts);
        self.wrote(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
