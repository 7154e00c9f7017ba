//! The bytes of a stream after an extended CONNECT (RFC 8441), as of a connection.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::{Reason, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;

use crate::server::Ledger;

/// The most that one write takes.
const MAX_WRITE: usize = 64 * 1024;

/// One stream. Dropped before both directions have ended, it is reset (RFC 8441 §5: a RST of the connection).
pub(crate) struct RawStream {
    receive: RecvStream,
    send: SendStream<Bytes>,
    read: Bytes,
    is_read: bool,
    is_shut: bool,
    ledger: Arc<Ledger>,
    /// Tells the connection when the stream is over.
    _over: oneshot::Sender<()>,
}

impl RawStream {
    pub(crate) fn new(
        receive: RecvStream,
        send: SendStream<Bytes>,
        ledger: Arc<Ledger>,
        over: oneshot::Sender<()>,
    ) -> Self {
        Self { receive, send, read: Bytes::new(), is_read: false, is_shut: false, ledger, _over: over }
    }
}

impl Drop for RawStream {
    fn drop(&mut self) {
        if !self.is_read || !self.is_shut {
            self.send.send_reset(Reason::CANCEL);
        }
    }
}

impl AsyncRead for RawStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.read.is_empty() {
            match ready!(self.receive.poll_data(cx)) {
                Some(Ok(data)) => {
                    let _ = self.receive.flow_control().release_capacity(data.len());
                    self.read = data;
                }
                Some(Err(error)) => return Poll::Ready(Err(failed(error))),
                None => {
                    self.is_read = true;
                    return Poll::Ready(Ok(()));
                }
            }
        }
        let part = self.read.len().min(out.remaining());
        out.put_slice(self.read.get(..part).unwrap_or_default());
        self.read.advance(part);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for RawStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        self.send.reserve_capacity(bytes.len().min(MAX_WRITE));
        let mut room = self.send.capacity();
        while room == 0 {
            if let Poll::Ready(reset) = self.send.poll_reset(cx) {
                return Poll::Ready(Err(reset.map_or_else(failed, |_| io::ErrorKind::ConnectionReset.into())));
            }
            match ready!(self.send.poll_capacity(cx)) {
                Some(Ok(more)) => room = more,
                Some(Err(error)) => return Poll::Ready(Err(failed(error))),
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            }
        }
        let part = bytes.get(..room.min(bytes.len())).unwrap_or_default();
        self.send.send_data(Bytes::copy_from_slice(part), false).map_err(failed)?;
        self.ledger.moved(1);
        Poll::Ready(Ok(part.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.is_shut {
            self.is_shut = true;
            self.send.send_data(Bytes::new(), true).map_err(failed)?;
        }
        Poll::Ready(Ok(()))
    }
}

fn failed(error: h2::Error) -> io::Error {
    if error.is_io() {
        return error.into_io().unwrap_or(io::ErrorKind::ConnectionAborted.into());
    }
    io::Error::new(io::ErrorKind::ConnectionReset, error)
}
