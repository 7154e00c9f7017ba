//! A payload that is signed piece by piece while it is sent (`STREAMING-AWS4-HMAC-SHA256-PAYLOAD`), as S3 takes it.
//!
//! Must never send a byte that the signature before its end does not cover, or keep more than one piece.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use culvert_hop::body::Body;
use culvert_hop::fault::{Fault, Side};
use culvert_model::reason::Reason;
use http_body::{Body as HttpBody, Frame, SizeHint};
use ring::hmac;

use super::sign::{Signed, hex, sha256};

/// What the payload's hash is called.
pub(super) const STREAMING: &str = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD";
/// Bytes of a piece; S3 wants 8 KiB at least.
const PIECE: usize = 64 * 1024;
const MARK: &str = ";chunk-signature=";
/// SHA-256 of nothing.
const NOTHING: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// The pieces of a body of a known length, each with its signature.
pub(super) struct Chunked {
    body: Body,
    pending: BytesMut,
    key: Arc<hmac::Key>,
    /// What each piece's text to sign begins with.
    start: String,
    before: String,
    /// Of the body's bytes.
    left: u64,
    is_over: bool,
}

impl Chunked {
    /// Of a request that is signed with [`STREAMING`] in place of its payload's hash.
    pub(super) fn of(body: Body, length: u64, signed: &Signed, stamp: &str) -> Body {
        Body::boxed(Self {
            body,
            pending: BytesMut::new(),
            key: signed.key.clone(),
            start: format!("AWS4-HMAC-SHA256-PAYLOAD\n{stamp}\n{}\n", signed.scope),
            before: signed.signature.clone(),
            left: length,
            is_over: false,
        })
    }

    fn piece(&mut self, data: &[u8]) -> Bytes {
        let text = format!("{}{}\n{NOTHING}\n{}", self.start, self.before, sha256(data));
        self.before = hex(hmac::sign(&self.key, text.as_bytes()).as_ref());
        let mut piece = BytesMut::with_capacity(data.len() + 100);
        piece.extend_from_slice(format!("{:x}{MARK}{}\r\n", data.len(), self.before).as_bytes());
        piece.extend_from_slice(data);
        piece.extend_from_slice(b"\r\n");
        piece.freeze()
    }
}

/// How long a body of this length is with its signatures.
pub(super) fn encoded_length(length: u64) -> u64 {
    let piece = u64::try_from(PIECE).unwrap_or(u64::MAX);
    let one = |bytes: u64| {
        let digits = format!("{bytes:x}").len() + MARK.len() + 64 + 4;
        bytes + u64::try_from(digits).unwrap_or_default()
    };
    let rest = length % piece;
    length / piece * one(piece) + if rest > 0 { one(rest) } else { 0 } + one(0)
}

impl HttpBody for Chunked {
    type Data = Bytes;
    type Error = Fault;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        let this = self.get_mut();
        if this.is_over {
            return Poll::Ready(None);
        }
        let wanted = usize::try_from(this.left).unwrap_or(usize::MAX).min(PIECE);
        while this.pending.len() < wanted {
            match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                // What follows a body is not signed: it goes no further.
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        this.pending.extend_from_slice(data);
                    }
                }
                Some(Err(fault)) => return Poll::Ready(Some(Err(fault))),
                None => {
                    let why = "the body is shorter than its Content-Length";
                    return Poll::Ready(Some(Err(Fault::new(Reason::BadRequest).side(Side::Caller).log(why))));
                }
            }
        }
        let data = this.pending.split_to(wanted);
        this.left = this.left.saturating_sub(u64::try_from(wanted).unwrap_or(u64::MAX));
        this.is_over = wanted == 0;
        Poll::Ready(Some(Ok(Frame::data(this.piece(&data)))))
    }

    fn is_end_stream(&self) -> bool {
        self.is_over
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(if self.is_over { 0 } else { encoded_length(self.left) })
    }
}

#[cfg(test)]
mod tests {
    use culvert_hop::message::Request;
    use culvert_ops::secret::Secret;
    use http::{HeaderName, HeaderValue};
    use http_body_util::StreamBody;

    use super::super::sign::{Credentials, Scope, Signer};
    use super::*;

    /// Amazon S3 API Reference, "Signature calculations for the authorization header: transferring payload in multiple
    /// chunks", its example.
    #[tokio::test]
    async fn the_published_upload_in_pieces_gets_its_published_signatures() {
        let mut request = Request::new(());
        *request.method_mut() = http::Method::PUT;
        *request.uri_mut() = "/examplebucket/chunkObject.txt".parse().unwrap();
        for (name, value) in [
            ("host", "s3.amazonaws.com"),
            ("x-amz-date", "20130524T000000Z"),
            ("x-amz-storage-class", "REDUCED_REDUNDANCY"),
            ("x-amz-content-sha256", STREAMING),
            ("content-encoding", "aws-chunked"),
            ("x-amz-decoded-content-length", "66560"),
            ("content-length", "66824"),
        ] {
            request.headers_mut().append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        let credentials = Arc::new(Credentials {
            id: "AKIAIOSFODNN7EXAMPLE".to_owned(),
            secret: Secret::new("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"),
            token: None,
            expires: None,
        });
        let also = ["content-encoding", "content-length"].map(HeaderName::from_static).to_vec();
        let signer = Signer::new(Scope { service: "s3".to_owned(), region: "us-east-1".to_owned() }, also);
        let (parts, ()) = request.into_parts();
        let signed = signer.sign(&parts, STREAMING, &credentials, "20130524T000000Z").unwrap();
        assert_eq!(signed.signature, "4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9");
        assert_eq!(encoded_length(66_560), 66_824);
        // However it comes in.
        let arrived = vec![Bytes::from(vec![b'a'; 1000]); 66].into_iter().chain([Bytes::from(vec![b'a'; 560])]);
        let frames: Vec<Result<_, Fault>> = arrived.map(|data| Ok(Frame::data(data))).collect();
        let body = Body::boxed(StreamBody::new(futures_util::stream::iter(frames)));
        let sent = Chunked::of(body, 66_560, &signed, "20130524T000000Z").read(100_000).await.unwrap();
        assert_eq!(sent.len(), 66_824);
        let text = String::from_utf8(sent.to_vec()).unwrap();
        let heads: Vec<&str> = text.split("\r\n").filter(|line| line.contains(MARK)).collect();
        assert_eq!(
            heads,
            [
                "10000;chunk-signature=ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648",
                "400;chunk-signature=0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497",
                "0;chunk-signature=b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9",
            ]
        );
        assert!(text.ends_with("\r\n\r\n"));
    }

    #[tokio::test]
    async fn a_body_that_ends_early_ends_in_a_fault_and_not_in_a_last_piece() {
        let signer = Signer::new(Scope { service: "s3".to_owned(), region: "r".to_owned() }, Vec::new());
        let credentials =
            Arc::new(Credentials { id: "a".to_owned(), secret: Secret::new("b"), token: None, expires: None });
        let (parts, ()) = Request::new(()).into_parts();
        let signed = signer.sign(&parts, STREAMING, &credentials, "20130524T000000Z").unwrap();
        let cut = Chunked::of(Body::full("abc"), 4, &signed, "20130524T000000Z").read(1000).await;
        assert_eq!(cut.unwrap_err().reason, Reason::BadRequest);
    }
}
