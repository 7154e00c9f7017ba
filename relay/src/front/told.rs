//! The far end of an exchange that keeps why it failed, for the log.
//!
//! Must never change a byte or an error on its way.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use culvert_model::reason::Reason;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::far_end::FarEnd;

/// The far end, and its first failure.
pub(crate) struct Told {
    io: FarEnd,
    reason: Option<Reason>,
}

impl Told {
    pub(crate) fn new(io: FarEnd) -> Self {
        Self { io, reason: None }
    }

    /// Why it failed, if it did.
    pub(crate) fn reason(&self) -> Option<Reason> {
        self.reason
    }

    fn keep<T>(&mut self, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if let Poll::Ready(Err(error)) = &polled {
            self.reason.get_or_insert_with(|| self.io.reason_of(error));
        }
        polled
    }
}

impl AsyncRead for Told {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.io).poll_read(cx, buf);
        self.keep(polled)
    }
}

impl AsyncWrite for Told {
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
