//! A byte stream to an origin, of whatever kind.
//!
//! Must never end a raw connection cleanly that was not ended cleanly on both sides.

use std::io;
use std::os::fd::AsFd as _;
use std::pin::Pin;
use std::task::{Context, Poll};

use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::client::TlsStream;

/// A byte stream to an origin.
#[derive(Debug)]
pub enum OriginIo {
    /// Plain TCP.
    Tcp(TcpStream),
    /// TLS over TCP.
    Tls(Box<TlsStream<TcpStream>>),
    /// A unix socket.
    Unix(UnixStream),
    /// The TCP connection of a service that is raw TCP.
    Raw(Raw),
}

/// A TCP connection that is reset when it is dropped before both directions were ended: the origin must be able to
/// tell a caller that was cut off from one that was done.
#[derive(Debug)]
pub struct Raw {
    stream: TcpStream,
    has_heard_end: bool,
    has_said_end: bool,
}

impl OriginIo {
    /// Whether both ends agreed on HTTP/2; none where they did not negotiate.
    pub fn is_http2(&self) -> Option<bool> {
        match self {
            Self::Tls(stream) => Some(stream.get_ref().1.alpn_protocol() == Some(b"h2")),
            Self::Tcp(_) | Self::Unix(_) | Self::Raw(_) => None,
        }
    }
}

impl Raw {
    /// A connection as it was dialled.
    pub const fn new(stream: TcpStream) -> Self {
        Self { stream, has_heard_end: false, has_said_end: false }
    }

    /// Closes it in good order, although not both sides were done.
    pub fn end(mut self) {
        (self.has_heard_end, self.has_said_end) = (true, true);
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if self.has_heard_end && self.has_said_end {
            return;
        }
        // Closed with a linger time of zero, it sends RST in place of FIN. If that cannot be set, nothing can be done.
        let _ = setsockopt(&self.stream.as_fd(), sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 });
    }
}

impl AsyncRead for Raw {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        if matches!(polled, Poll::Ready(Ok(()))) && buf.filled().len() == before && buf.remaining() > 0 {
            self.has_heard_end = true;
        }
        polled
    }
}

impl AsyncWrite for Raw {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.has_said_end |= matches!(polled, Poll::Ready(Ok(())));
        polled
    }
}

macro_rules! each {
    ($io:expr, $stream:ident => $call:expr) => {
        match $io.get_mut() {
            OriginIo::Tcp($stream) => $call,
            OriginIo::Tls($stream) => $call,
            OriginIo::Unix($stream) => $call,
            OriginIo::Raw($stream) => $call,
        }
    };
}

impl AsyncRead for OriginIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for OriginIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        each!(self, stream => Pin::new(stream).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self, stream => Pin::new(stream).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
            Self::Unix(stream) => stream.is_write_vectored(),
            Self::Raw(_) => false,
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }
}
