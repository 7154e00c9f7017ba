//! A request's body, read whole before it is sent: a proof that is about its bytes needs them first.
//!
//! Must never hold more than was agreed on, of one request or of all together.

use bytes::{Bytes, BytesMut};
use culvert_hop::body::Body;
use culvert_hop::fault::{Fault, Retry, Side};
use culvert_hop::message::RequestParts;
use culvert_model::reason::Reason;
use futures_util::stream;
use http::header::{CONTENT_LENGTH, EXPECT, TRANSFER_ENCODING};
use http::{HeaderValue, Version};
use http_body::{Body as _, Frame};
use http_body_util::{BodyExt as _, StreamBody};
use tokio::sync::Semaphore;

/// What may be held of one request, unless a setting says otherwise.
pub const USUAL_LIMIT: usize = 1024 * 1024;
/// And at most: all of them share `ROOM`.
pub const MOST: usize = 64 * 1024 * 1024;

const KIB: usize = 1024;
/// What all requests together may hold, in KiB.
const ROOM: usize = 256 * 1024;

static FREE: Semaphore = Semaphore::const_new(ROOM);

/// A body that was read, and the same to be sent.
pub(super) struct Whole {
    /// Its bytes.
    pub(super) bytes: Bytes,
    /// To be sent in its place.
    pub(super) body: Body,
}

/// Whether a request has a body, be it an empty one.
pub(super) fn is_there(parts: &RequestParts, body: &Body) -> bool {
    !body.is_end_stream() || parts.headers.contains_key(CONTENT_LENGTH) || parts.headers.contains_key(TRANSFER_ENCODING)
}

/// Reads a body of at most `limit` bytes. The head says its length afterwards, unless trailers follow it.
///
/// # Errors
/// `too_large`; `overloaded` when others hold too much; or the body's own fault.
pub(super) async fn read(parts: &mut RequestParts, body: Body, limit: usize) -> Result<Whole, Fault> {
    if body.is_end_stream() {
        return Ok(Whole { bytes: Bytes::new(), body });
    }
    let told = body.size_hint().upper().and_then(|length| usize::try_from(length).ok());
    let most = told.map_or(limit, |length| length.min(limit));
    let room = u32::try_from(most / KIB + 1).unwrap_or(u32::MAX);
    let Ok(held) = FREE.try_acquire_many(room) else {
        let why = "too many bodies are held for their proofs at once";
        return Err(Fault::new(Reason::Overloaded).side(Side::Here).retry(Retry::Safe).log(why));
    };
    let mut body = body.limited(u64::try_from(limit).unwrap_or(u64::MAX));
    let mut bytes = BytesMut::with_capacity(told.unwrap_or_default().min(limit));
    let mut trailers = None;
    while let Some(frame) = body.frame().await {
        match frame?.into_data() {
            Ok(data) => bytes.extend_from_slice(&data),
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    let bytes = bytes.freeze();
    // Who sent the body has been told to go on.
    parts.headers.remove(EXPECT);
    let body = match trailers {
        None => {
            parts.headers.remove(TRANSFER_ENCODING);
            parts.headers.insert(CONTENT_LENGTH, HeaderValue::from(bytes.len()));
            Body::full(bytes.clone())
        }
        Some(trailers) => {
            if parts.version < Version::HTTP_2 {
                parts.headers.remove(CONTENT_LENGTH);
            }
            let frames = [Ok::<_, Fault>(Frame::data(bytes.clone())), Ok(Frame::trailers(trailers))];
            Body::boxed(StreamBody::new(stream::iter(frames)))
        }
    };
    Ok(Whole { bytes, body: body.on_end(move |_| drop(held)) })
}

#[cfg(test)]
mod tests {
    use culvert_hop::message::Request;
    use http::{HeaderMap, HeaderName};

    use super::*;

    fn pieces(pieces: &[&'static str], trailers: Option<HeaderMap>) -> Body {
        let data = pieces.iter().map(|piece| Frame::data(Bytes::from_static(piece.as_bytes())));
        let frames: Vec<Result<_, Fault>> = data.chain(trailers.map(Frame::trailers)).map(Ok).collect();
        Body::boxed(StreamBody::new(stream::iter(frames)))
    }

    fn parts(fields: &[(&'static str, &'static str)]) -> RequestParts {
        let mut request = Request::new(());
        for (name, value) in fields {
            request.headers_mut().append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        request.into_parts().0.into_inner()
    }

    #[tokio::test]
    async fn a_body_in_pieces_is_read_whole_and_its_length_is_said() {
        let mut head = parts(&[("transfer-encoding", "chunked"), ("expect", "100-continue")]);
        let whole = read(&mut head, pieces(&["ab", "c"], None), 3).await.unwrap();
        assert_eq!((&whole.bytes[..], head.headers.len()), (&b"abc"[..], 1));
        assert_eq!(head.headers.get("content-length").unwrap(), "3");
        assert_eq!(whole.body.read(3).await.unwrap(), "abc");
        let mut bodiless = parts(&[]);
        let whole = read(&mut bodiless, Body::empty(), 3).await.unwrap();
        assert!(whole.bytes.is_empty() && bodiless.headers.is_empty() && !is_there(&bodiless, &whole.body));
    }

    #[tokio::test]
    async fn what_follows_a_body_still_follows_it() {
        let mut late = HeaderMap::new();
        late.insert("x-checksum", HeaderValue::from_static("7"));
        let mut head = parts(&[("transfer-encoding", "chunked")]);
        let whole = read(&mut head, pieces(&["ab"], Some(late)), 3).await.unwrap();
        assert_eq!(head.headers.get("transfer-encoding").unwrap(), "chunked");
        let sent = whole.body.collect().await.unwrap();
        assert_eq!(sent.trailers().unwrap()["x-checksum"], "7");
    }

    #[tokio::test]
    async fn a_body_over_the_limit_is_the_callers_fault_and_room_is_given_back() {
        for body in [pieces(&["ab", "cd"], None), Body::full("abcd")] {
            let fault = read(&mut parts(&[]), body, 3).await.err().unwrap();
            assert_eq!((fault.reason, fault.side), (Reason::TooLarge, Side::Caller));
        }
        for _ in 0..ROOM {
            read(&mut parts(&[]), pieces(&["x"], None), MOST).await.unwrap();
        }
    }
}
