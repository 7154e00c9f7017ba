//! What runs through a peer and ends with it: bodies of answers, and connections after a change of protocol.
//!
//! Must never end cleanly because a peer was removed, or call its origin's end what was the peer's.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use culvert_hop::body::Body;
use culvert_hop::fault::{Fault, Side};
use culvert_model::reason::Reason;
use culvert_origin::origin_io::OriginIo;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::peers::StockPeer;

/// A connection to an origin, for as long as its peer is there.
pub(crate) struct Severed {
    io: OriginIo,
    end: End,
}

/// The body of an answer, for as long as the peer is there.
struct SeveredBody {
    body: Body,
    end: End,
}

struct End {
    stock: Arc<StockPeer>,
    gone: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Severed {
    pub(super) fn new(io: OriginIo, stock: &Arc<StockPeer>) -> Self {
        Self { io, end: End::of(stock) }
    }

    /// Why it failed.
    pub(crate) fn reason(&self) -> Reason {
        if self.end.is_over() { Reason::ConnectorLost } else { Reason::OriginClosed }
    }
}

/// Lets a body end with its peer.
pub(super) fn severed(body: Body, stock: &Arc<StockPeer>) -> Body {
    if body.is_end_stream() { body } else { Body::boxed(SeveredBody { body, end: End::of(stock) }) }
}

/// The failure of whatever ran through a peer that is removed.
pub(super) fn removed() -> Fault {
    Fault::new(Reason::ConnectorLost).side(Side::Tunnel).log("the peer was removed")
}

impl End {
    fn of(stock: &Arc<StockPeer>) -> Self {
        let waiting = Arc::clone(stock);
        Self { stock: Arc::clone(stock), gone: Box::pin(async move { waiting.gone().await }) }
    }

    /// Whether an error is the peer's: what an origin says comes through a session.
    fn is_over(&self) -> bool {
        self.stock.is_gone() || !self.stock.is_up()
    }

    /// What is to be told in place of a wait, or of an error that came of the peer's end.
    fn instead<T>(&mut self, polled: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if polled.is_pending() && !self.stock.is_gone() && self.gone.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        if polled.is_pending() {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        }
        polled
    }
}

impl AsyncRead for Severed {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.io).poll_read(cx, buf);
        self.end.instead(polled, cx)
    }
}

impl AsyncWrite for Severed {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write(cx, bytes);
        self.end.instead(polled, cx)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.io).poll_flush(cx);
        self.end.instead(polled, cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.io).poll_shutdown(cx);
        self.end.instead(polled, cx)
    }
}

impl HttpBody for SeveredBody {
    type Data = Bytes;
    type Error = Fault;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        match Pin::new(&mut self.body).poll_frame(cx) {
            // Never polled again: a body that failed is over.
            Poll::Pending if self.end.stock.is_gone() || self.end.gone.as_mut().poll(cx).is_ready() => {
                Poll::Ready(Some(Err(removed())))
            }
            Poll::Ready(Some(Err(_))) if self.end.stock.is_gone() => Poll::Ready(Some(Err(removed()))),
            Poll::Ready(Some(Err(fault))) if self.end.is_over() => {
                let lost = Fault::new(Reason::ConnectorLost).side(Side::Tunnel);
                Poll::Ready(Some(Err(lost.log(format_args!("the peer has no session: {fault:?}")))))
            }
            polled => polled,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
