//! The other end of an exchange that changed its protocol: a connector's stream, or an origin behind a peer.
//!
//! Must never change a byte or an error on its way.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use culvert_hop::exchange::Answer;
use culvert_hop::upgrade::Raw;
use culvert_model::reason::Reason;
use culvert_plane::{Stream, StreamReset};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::behind::Severed;

/// A byte stream away from the caller.
pub(crate) enum FarEnd {
    /// Of a connector's connection.
    Tunnel(Stream),
    /// A connection of this relay's own, through a peer.
    Origin(Box<Severed>),
}

impl FarEnd {
    /// Why it failed.
    pub(crate) fn reason_of(&self, error: &io::Error) -> Reason {
        match self {
            Self::Tunnel(_) => reason_of(error),
            Self::Origin(severed) => severed.reason(),
        }
    }

    /// An answer over a connector's stream.
    pub(crate) fn over_tunnel(answer: Answer<Stream>) -> Answer<Self> {
        match answer {
            Answer::Response(response) => Answer::Response(response),
            Answer::Switched(response, Raw { io, first }) => {
                Answer::Switched(response, Raw { io: Self::Tunnel(io), first })
            }
        }
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

macro_rules! each {
    ($io:expr, $stream:ident => $call:expr) => {
        match $io.get_mut() {
            FarEnd::Tunnel($stream) => $call,
            FarEnd::Origin($stream) => $call,
        }
    };
}

impl AsyncRead for FarEnd {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for FarEnd {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        each!(self, stream => Pin::new(stream).poll_write(cx, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_shutdown(cx))
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
