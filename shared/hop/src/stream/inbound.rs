//! A body that comes on an HTTP/2 stream.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::RecvStream;
use http::HeaderMap;
use http::header::CONTENT_LENGTH;
use http_body::{Frame, SizeHint};

use crate::fault::Fault;

/// Whoever a body on a stream belongs to. Dropped with the body.
pub(crate) trait Owner: Send {
    /// The body is read for the first time.
    fn wanted(&mut self) {}

    /// Why the body ended early.
    fn fault(&mut self, error: &h2::Error) -> Fault;

    /// The body is over.
    fn finish(self: Box<Self>) {}
}

/// A body, its announced length, and its owner.
pub(crate) struct Inbound {
    stream: RecvStream,
    left: Option<u64>,
    is_wanted: bool,
    /// Dropped after the stream: whoever it wakes finds the stream closed.
    owner: Box<dyn Owner>,
}

impl Inbound {
    /// The body of a message with these fields.
    pub(crate) fn new(stream: RecvStream, headers: &HeaderMap, owner: Box<dyn Owner>) -> Self {
        let left = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        Self { stream, left, is_wanted: false, owner }
    }

    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        if !self.is_wanted {
            self.is_wanted = true;
            self.owner.wanted();
        }
        let failed = loop {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(data)) if data.is_empty() => {}
                Some(Ok(data)) => {
                    self.left =
                        self.left.map(|left| left.saturating_sub(u64::try_from(data.len()).unwrap_or(u64::MAX)));
                    // Whoever took the bytes asks for more only when they are gone.
                    let _ = self.stream.flow_control().release_capacity(data.len());
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => break error,
                None => match ready!(self.stream.poll_trailers(cx)) {
                    Ok(trailers) => return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers)))),
                    Err(error) => break error,
                },
            }
        };
        Poll::Ready(Some(Err(self.owner.fault(&failed))))
    }

    pub(crate) fn is_end(&self) -> bool {
        self.stream.is_end_stream()
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }

    pub(crate) fn finish(self) {
        let Self { stream, owner, .. } = self;
        drop(stream);
        owner.finish();
    }
}
