//! The byte stream under a client's HTTP/2 connection: what h2 does not tell of it.
//!
//! Must never change a byte or the order of them.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What is known of a connection's bytes.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    written: AtomicU64,
    read: AtomicU64,
    /// What `written` was when something was read last.
    answered: AtomicU64,
    /// The first error, which h2 does not tell whole.
    error: Mutex<Option<io::Error>>,
}

/// A stream that counts its bytes and keeps its first error.
pub(crate) struct Wire<Io> {
    io: Io,
    seen: Arc<Seen>,
}

impl Seen {
    /// Bytes that the stream has taken.
    pub(crate) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Bytes that came.
    pub(crate) fn read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// Whether something was sent after what came last.
    pub(crate) fn is_waited_for(&self) -> bool {
        self.written() > self.answered.load(Ordering::Relaxed)
    }

    /// Keeps an error that the stream did not tell.
    pub(crate) fn fail(&self, error: io::Error) {
        self.error().get_or_insert(error);
    }

    /// Shows the first error.
    pub(crate) fn with_error<T>(&self, see: impl FnOnce(Option<&io::Error>) -> T) -> T {
        see(self.error().as_ref())
    }

    fn error(&self) -> MutexGuard<'_, Option<io::Error>> {
        self.error.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note_read(&self, bytes: usize) {
        self.read.fetch_add(u64::try_from(bytes).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.answered.store(self.written(), Ordering::Relaxed);
    }
}

impl<Io> Wire<Io> {
    pub(crate) fn new(io: Io, seen: Arc<Seen>) -> Self {
        Self { io, seen }
    }

    fn keep<T>(&self, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        polled.map_err(|error| {
            let kind = error.kind();
            self.seen.fail(error);
            kind.into()
        })
    }

    fn count(&self, polled: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = &polled {
            self.seen.written.fetch_add(u64::try_from(*bytes).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
        self.keep(polled)
    }
}

impl<Io: AsyncRead + Unpin> AsyncRead for Wire<Io> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = out.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(cx, out);
        let read = out.filled().len().saturating_sub(before);
        if read > 0 {
            self.seen.note_read(read);
        }
        self.keep(polled)
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for Wire<Io> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write(cx, bytes);
        self.count(polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write_vectored(cx, parts);
        self.count(polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.io).poll_flush(cx);
        self.keep(polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.io).poll_shutdown(cx);
        self.keep(polled)
    }
}
