//! A caller's connection: TCP or a unix socket, with or without TLS on it.
//!
//! Must never end as if all were said when it was cut.

use std::io;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use nix::sys::socket::{MsgFlags, recv, setsockopt, sockopt};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::time::{Sleep, sleep};
use tokio_rustls::server::TlsStream;

use super::moving::Moving;

/// A bound listener.
pub(crate) enum Bound {
    Tcp(TcpListener),
    Unix(UnixListener, Option<PathBuf>),
}

/// A socket as it was accepted.
pub(crate) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// A caller's connection of any kind. Reset on drop when it is cut, so that no caller takes the end for a clean one.
pub(crate) struct CallerIo {
    stream: Stream,
    fate: Arc<Fate>,
    /// How long its caller may take nothing of what is there for it.
    patience: Option<Duration>,
    stalled: Option<Pin<Box<Sleep>>>,
}

/// How a connection ends, as its stream and who keeps it tell each other.
#[derive(Debug, Default)]
pub(crate) struct Fate {
    reset: AtomicBool,
    unread: AtomicBool,
    patient: AtomicBool,
    moved: AtomicBool,
    moving: Moving,
}

enum Stream {
    Plain(Socket),
    Tls(Box<TlsStream<Socket>>),
}

impl CallerIo {
    pub(super) fn plain(socket: Socket) -> Self {
        Self::new(Stream::Plain(socket))
    }

    pub(super) fn tls(stream: TlsStream<Socket>) -> Self {
        Self::new(Stream::Tls(Box::new(stream)))
    }

    fn new(stream: Stream) -> Self {
        Self { stream, fate: Arc::default(), patience: None, stalled: None }
    }

    /// Has its end hang on this.
    pub(super) fn share(mut self, fate: Arc<Fate>) -> Self {
        self.fate = fate;
        self
    }

    /// Its thread is another one since the last poll: that one's runtime looks after the socket from now on.
    #[cold]
    fn settle(&mut self) {
        self.fate.moved.store(false, Ordering::Relaxed);
        let socket = match &mut self.stream {
            Stream::Plain(socket) => socket,
            Stream::Tls(stream) => stream.get_mut().0,
        };
        // Without a descriptor more the old runtime goes on waking this one.
        if let Err(error) = socket.resettle() {
            tracing::debug!(%error, "a connection's socket stays on its old thread");
        }
    }

    fn has_moved(&self) -> bool {
        self.fate.moved.load(Ordering::Relaxed)
    }

    /// What its end hangs on.
    pub(super) fn fate(&self) -> Arc<Fate> {
        Arc::clone(&self.fate)
    }

    /// Gives a caller up that takes nothing for so long of what is there for it.
    pub(super) fn set_patience(&mut self, patience: Duration) {
        self.patience = Some(patience);
    }

    fn heed<T>(&mut self, polled: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if polled.is_pending() {
            return self.poll_stalled(cx).map(Err);
        }
        if self.stalled.is_some() {
            self.stalled = None;
        }
        polled
    }

    fn poll_stalled(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let Some(patience) = self.patience.filter(|_| !self.fate.patient.load(Ordering::Relaxed)) else {
            return Poll::Pending;
        };
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(patience)));
        ready!(stalled.as_mut().poll(cx));
        self.fate.unread.store(true, Ordering::Relaxed);
        self.fate.set_reset(true);
        Poll::Ready(io::ErrorKind::TimedOut.into())
    }

    fn socket(&self) -> &Socket {
        match &self.stream {
            Stream::Plain(socket) => socket,
            Stream::Tls(stream) => stream.get_ref().0,
        }
    }
}

impl Fate {
    /// Whether the end, when it comes, is a visible one.
    pub(super) fn set_reset(&self, reset: bool) {
        self.reset.store(reset, Ordering::Relaxed);
    }

    /// From now on its caller may read as slowly as it likes: what it speaks has pauses of its own.
    pub(super) fn be_patient(&self) {
        self.patient.store(true, Ordering::Relaxed);
    }

    /// Where its exchanges go.
    pub(super) fn moving(&self) -> &Moving {
        &self.moving
    }

    /// From now on it is polled on another thread.
    pub(super) fn set_moved(&self) {
        self.moved.store(true, Ordering::Relaxed);
    }

    /// It was given up because its caller did not read.
    pub(super) fn is_unread(&self) -> bool {
        self.unread.load(Ordering::Relaxed)
    }
}

impl Socket {
    /// Has it looked after by the current runtime from now on, in place of the one that accepted it.
    pub(super) fn settle(self) -> io::Result<Self> {
        Ok(match self {
            Self::Tcp(stream) => Self::Tcp(TcpStream::from_std(stream.into_std()?)?),
            Self::Unix(stream) => Self::Unix(UnixStream::from_std(stream.into_std()?)?),
        })
    }

    /// As [`Self::settle`], in place.
    fn resettle(&mut self) -> io::Result<()> {
        *self = match self {
            Self::Tcp(stream) => Self::Tcp(TcpStream::from_std(stream.as_fd().try_clone_to_owned()?.into())?),
            Self::Unix(stream) => Self::Unix(UnixStream::from_std(stream.as_fd().try_clone_to_owned()?.into())?),
        };
        Ok(())
    }

    /// Reads into `out` what has come, and leaves it there. Cancel safe.
    pub(super) async fn peek(&self, out: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.peek(out).await,
            Self::Unix(stream) => {
                use std::os::fd::AsRawFd as _;
                let fd = stream.as_raw_fd();
                stream.async_io(Interest::READABLE, || Ok(recv(fd, out, MsgFlags::MSG_PEEK)?)).await
            }
        }
    }
}

impl Drop for CallerIo {
    fn drop(&mut self) {
        if let (Socket::Tcp(stream), true) = (self.socket(), self.fate.reset.load(Ordering::Relaxed)) {
            let _ = setsockopt(stream, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 });
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

impl AsyncRead for CallerIo {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.has_moved() {
            self.settle();
        }
        match &mut self.stream {
            Stream::Plain(socket) => Pin::new(socket).poll_read(cx, buf),
            Stream::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for CallerIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.has_moved() {
            self.settle();
        }
        let polled = match &mut self.stream {
            Stream::Plain(socket) => Pin::new(socket).poll_write(cx, buf),
            Stream::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        };
        self.heed(polled, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.has_moved() {
            self.settle();
        }
        let polled = match &mut self.stream {
            Stream::Plain(socket) => Pin::new(socket).poll_write_vectored(cx, bufs),
            Stream::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        };
        self.heed(polled, cx)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            // Nothing is held back, so nothing says that anything was taken.
            Stream::Plain(_) => Poll::Ready(Ok(())),
            Stream::Tls(stream) => {
                let polled = Pin::new(stream).poll_flush(cx);
                self.heed(polled, cx)
            }
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(socket) => Pin::new(socket).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::time::{Instant, timeout};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(120);

    fn pair() -> (CallerIo, UnixStream) {
        let (near, far) = UnixStream::pair().unwrap();
        let mut io = CallerIo::plain(Socket::Unix(near));
        io.set_patience(PATIENCE);
        (io, far)
    }

    /// Writes until the other side takes no more for too long.
    async fn flood(io: &mut CallerIo) -> io::Error {
        loop {
            if let Err(error) = io.write(&[0; 4_096]).await {
                return error;
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_reads_nothing_is_given_up_and_one_that_reads_now_and_then_is_not() {
        let (mut io, mut far) = pair();
        let fate = io.fate();
        let reads = async {
            let mut some = vec![0; 256 * 1024];
            for _ in 0..5 {
                sleep(PATIENCE - Duration::from_secs(1)).await;
                far.read_exact(&mut some).await.unwrap();
                assert!(!fate.is_unread());
            }
            Instant::now()
        };
        let (error, last) = tokio::join!(flood(&mut io), reads);
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(fate.is_unread());
        assert_eq!(last.elapsed(), PATIENCE);
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_change_of_protocol_a_caller_may_take_its_time() {
        let (mut io, _far) = pair();
        io.fate().be_patient();
        assert!(timeout(100 * PATIENCE, flood(&mut io)).await.is_err());
    }
}
