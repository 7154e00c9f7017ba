//! One bidirectional byte stream.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use culvert_model::reason::Reason;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A bidirectional stream. `poll_shutdown` sends FIN (half-close); dropped without it = RESET and STOP_SENDING.
#[derive(Debug)]
pub struct Stream {
    _private: (),
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
    /// Ends both directions with the reason's code (RESET_STREAM and STOP_SENDING).
    pub fn cancel(&mut self, _reason: Reason) {}

    /// Refuses a stream of which nothing was read: the peer may send the same bytes elsewhere.
    pub fn refuse(self) {}
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Poll::Pending
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Pending
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
