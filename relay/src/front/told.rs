//! A tunnel's stream that keeps why it failed, for the log.
//!
//! Must never change a byte or an error on its way.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use culvert_model::reason::Reason;
use culvert_plane::StreamReset;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The stream, and its first failure.
pub(crate) struct Told<Io> {
    io: Io,
    reason: Option<Reason>,
}

impl<Io> Told<Io> {
    pub(crate) fn new(io: Io) -> Self {
        Self { io, reason: None }
    }

    /// Why it failed, if it did.
    pub(crate) fn reason(&self) -> Option<Reason> {
        self.reason
    }

    fn keep<T>(&mut self, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if let Poll::Ready(Err(error)) = &polled {
            self.reason.get_or_insert_with(|| reason_of(error));
        }
        polled
    }
}

/// A connector that resets one stream is there: its origin broke off. It says no more when it drops the stream.
fn reason_of(error: &io::Error) -> Reason {
    match StreamReset::of(error).map(|reset| reset.reason()) {
        None => Reason::ConnectorLost,
        Some(None | Some(Reason::ConnectorLost)) => Reason::OriginClosed,
        Some(Some(reason)) => reason,
    }
}

impl<Io: AsyncRead + Unpin> AsyncRead for Told<Io> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.io).poll_read(cx, buf);
        self.keep(polled)
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for Told<Io> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write(cx, bytes);
        self.keep(polled)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reset_of_one_stream_is_the_origins_end_and_a_lost_connection_the_connectors() {
        let reset = |code| io::Error::other(StreamReset { code });
        for (error, reason) in [
            (reset(Reason::ConnectorLost.reset_code()), Reason::OriginClosed),
            (reset(0x9999), Reason::OriginClosed),
            (reset(Reason::Draining.reset_code()), Reason::Draining),
            (io::ErrorKind::ConnectionReset.into(), Reason::ConnectorLost),
        ] {
            assert_eq!(reason_of(&error), reason, "{error}");
        }
    }
}
