//! The byte stream under a server: what hyper does not tell about it, and what it does wrong with it.
//!
//! Must never hold back or change a byte of a good request or of an answer.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use culvert_model::reason::Reason;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::fault;
use crate::heads::{Flaw, Heads};
use crate::server::{Http2, ServerSettings};

/// An answer is owed or under way.
pub(crate) const ANSWERING: u32 = 1;
/// A request's body is not fully read.
pub(crate) const READING: u32 = 2;
/// Bytes of a head have come that is not a request yet.
pub(crate) const HEAD: u32 = 4;
/// A 101 was answered.
pub(crate) const SWITCHED: u32 = 8;
/// The first bytes are HTTP/2's.
pub(crate) const HTTP2: u32 = 16;
/// One request, in the bits above: they tell one idle time from the next.
pub(crate) const COUNT: u32 = 32;

/// What an HTTP/2 connection begins with (RFC 9113 §3.4). No HTTP/1.1 method is `PRI`.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What hyper writes, without the date, to a head that it cannot read.
const BARE_REFUSALS: [(&[u8], Reason); 3] = [
    (b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n", Reason::BadRequest),
    (b"HTTP/1.1 414 URI Too Long\r\nconnection: close\r\ncontent-length: 0\r\n\r\n", Reason::HeadTooLarge),
    (
        b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
        Reason::HeadTooLarge,
    ),
];
/// Kept of what follows an offered upgrade, before its answer.
const HELD: usize = 4096;
/// No head can hold it: makes hyper refuse what it would repair.
const SPOILT: &[u8] = b"\0\r\n\r\n";

pub(crate) struct Served<Io> {
    io: Io,
    bits: Arc<AtomicU32>,
    /// The first bytes, while they may still be HTTP/2's preface.
    sniffed: Option<BytesMut>,
    heads: Option<Heads>,
    /// What came behind an offer to change the protocol, before its answer: nobody knows yet what it is.
    held: Bytes,
    /// Who reads it then.
    waiting: Option<Waker>,
    is_spoilt: bool,
    /// Nothing behind a flaw in a body is read.
    is_broken: bool,
    /// The other side has closed its sending side; when it is taken for gone.
    ended: Option<Pin<Box<Sleep>>>,
    half_close: Duration,
    has_written: bool,
    /// What is written in place of hyper's bare refusal.
    refusal: Option<Bytes>,
    refused: Option<Arc<dyn Fn(Reason) + Send + Sync>>,
}

impl<Io> Served<Io> {
    pub(crate) fn new(io: Io, bits: Arc<AtomicU32>, settings: &ServerSettings) -> Self {
        Self {
            io,
            bits,
            sniffed: (settings.http2 == Http2::Sniff).then(BytesMut::new),
            heads: settings.strict.then(Heads::new),
            held: Bytes::new(),
            waiting: None,
            is_spoilt: false,
            is_broken: false,
            ended: None,
            half_close: settings.half_close,
            has_written: false,
            refusal: None,
            refused: settings.refused.clone(),
        }
    }

    pub(crate) fn into_inner(self) -> Io {
        self.io
    }

    /// The stream, and what was read of it, of a connection that speaks HTTP/2.
    pub(crate) fn into_begun(self) -> (Io, Bytes) {
        (self.io, self.sniffed.unwrap_or_default().freeze())
    }

    fn has(&self, bits: u32) -> bool {
        self.bits.load(Ordering::Relaxed) & bits != 0
    }

    /// Ready when hyper may be told that nothing more comes. It takes that for the end of the caller.
    fn poll_ended(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            // A body that came whole is not cut by the end behind it, however much of it is still to be read.
            let is_cut = || self.has(READING) && !self.heads.as_ref().is_some_and(Heads::is_between);
            if !self.has(ANSWERING) || self.half_close.is_zero() || is_cut() {
                return Poll::Ready(());
            }
            let due = || Instant::now() + self.half_close;
            let ended = self.ended.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due())));
            ready!(ended.as_mut().poll(cx));
            if !std::mem::take(&mut self.has_written) {
                return Poll::Ready(());
            }
            ended.as_mut().reset(due());
        }
    }

    /// Looks whether an offered upgrade has been answered; whether it has not.
    fn is_undecided(&mut self) -> bool {
        let Some(heads) = &mut self.heads else { return false };
        let bits = self.bits.load(Ordering::Relaxed);
        if bits & SWITCHED != 0 {
            heads.switch_off();
        } else if bits & ANSWERING == 0 {
            heads.go_on();
        }
        heads.is_undecided()
    }

    /// Looks at what was read into `out` past `before`.
    fn judge(&mut self, out: &mut ReadBuf<'_>, before: usize) -> io::Result<()> {
        let Some(heads) = &mut self.heads else { return Ok(()) };
        let read = out.filled().get(before..).unwrap_or_default();
        let (flaw, begin) = match heads.see(read) {
            Err(flawed) => flawed,
            Ok(seen) => {
                if let Some(rest @ [_, ..]) = read.get(seen..) {
                    self.held = Bytes::from([rest, &self.held].concat());
                    out.set_filled(before + seen);
                }
                return Ok(());
            }
        };
        tracing::debug!(?flaw, "refused a request");
        out.set_filled(before + begin);
        if flaw == Flaw::Chunk {
            // What is read now is a body, in which nothing looks spoilt.
            self.is_broken = true;
            return if begin == 0 { Err(io::ErrorKind::InvalidData.into()) } else { Ok(()) };
        }
        self.is_spoilt = true;
        if out.remaining() < SPOILT.len() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        out.put_slice(SPOILT);
        Ok(())
    }

    /// Puts Culvert's words in place of hyper's, if these bytes are its refusal of a head.
    fn renounce(&mut self, bytes: &[u8]) {
        if self.has(ANSWERING) || !(self.has(HEAD) || self.is_spoilt) || !bytes.starts_with(b"HTTP/1.1 4") {
            return;
        }
        if let Some((_, reason)) = BARE_REFUSALS.iter().find(|(bare, _)| *bare == bytes) {
            if let Some(refused) = &self.refused {
                refused(*reason);
            }
            self.refusal = Some(fault::refusal(*reason));
        }
    }
}

impl<Io: AsyncRead + Unpin> Served<Io> {
    /// Waits for the answer to an offered upgrade; what comes meanwhile is kept, and its end noticed.
    fn hold(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.held.is_empty() && self.ended.is_none() {
            let mut few = [0; HELD];
            let mut few = ReadBuf::new(&mut few);
            ready!(Pin::new(&mut self.io).poll_read(cx, &mut few))?;
            self.held = Bytes::copy_from_slice(few.filled());
            self.has_written = false;
        }
        if self.held.is_empty() {
            return self.poll_ended(cx).map(Ok);
        }
        self.waiting = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Reads until it is known whether the bytes are HTTP/2's: pending for good if they are.
    fn sniff(&mut self, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let held = self.sniffed.get_or_insert_default();
        loop {
            let before = out.filled().len();
            if held.is_empty() {
                ready!(Pin::new(&mut self.io).poll_read(cx, out))?;
            } else {
                // What is held goes in front of the rest, so nothing may lie beyond it.
                let mut few = [0; PREFACE.len()];
                let mut few = ReadBuf::new(few.get_mut(held.len()..).unwrap_or_default());
                ready!(Pin::new(&mut self.io).poll_read(cx, &mut few))?;
                if few.filled().is_empty() {
                    return Poll::Ready(Ok(()));
                }
                held.extend_from_slice(few.filled());
                if out.remaining() < held.len() {
                    return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
                }
                out.put_slice(held);
            }
            let read = out.filled().get(before..).unwrap_or_default();
            let same = read.len().min(PREFACE.len());
            if read.is_empty() || read.get(..same) != PREFACE.get(..same) {
                self.sniffed = None;
                return Poll::Ready(Ok(()));
            }
            held.clear();
            held.extend_from_slice(read);
            let is_whole = read.len() >= PREFACE.len();
            out.set_filled(before);
            // From here on it is a head that has to come in time.
            self.bits.fetch_or(if is_whole { HTTP2 | HEAD } else { HEAD }, Ordering::Relaxed);
            if is_whole {
                return Poll::Pending;
            }
        }
    }
}

impl<Io: AsyncRead + Unpin> AsyncRead for Served<Io> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.is_spoilt {
            return Poll::Pending;
        }
        if this.is_broken {
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        }
        if this.is_undecided() {
            return this.hold(cx);
        }
        if this.ended.is_none() {
            let before = out.filled().len();
            match &mut this.sniffed {
                None if !this.held.is_empty() => {
                    let part = this.held.split_to(this.held.len().min(out.remaining()));
                    out.put_slice(&part);
                }
                None => ready!(Pin::new(&mut this.io).poll_read(cx, out))?,
                Some(_) => ready!(this.sniff(cx, out))?,
            }
            if out.filled().len() > before {
                if !this.has(ANSWERING | READING) {
                    this.bits.fetch_or(HEAD, Ordering::Relaxed);
                }
                return Poll::Ready(this.judge(out, before));
            }
            if out.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            this.has_written = false;
        }
        this.poll_ended(cx).map(Ok)
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for Served<Io> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        this.has_written = true;
        if this.refusal.is_none() {
            this.renounce(bytes);
        }
        if let Some(refusal) = &mut this.refusal {
            while !refusal.is_empty() {
                let written = ready!(Pin::new(&mut this.io).poll_write(cx, refusal))?;
                if written == 0 {
                    return Poll::Ready(Ok(0));
                }
                refusal.advance(written);
            }
            this.refusal = None;
            return Poll::Ready(Ok(bytes.len()));
        }
        Pin::new(&mut this.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let [part] = parts {
            return self.poll_write(cx, part);
        }
        self.has_written = true;
        Pin::new(&mut self.io).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // hyper flushes when it has answered, and does not look for more by itself.
        if self.waiting.is_some()
            && !self.is_undecided()
            && let Some(waiting) = self.waiting.take()
        {
            waiting.wake();
        }
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
