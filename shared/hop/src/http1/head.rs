//! Heads: the first line and the fields, read and written (RFC 9112 §2–§6).
//!
//! Must never take a head that another parser may read differently, or write one with two lengths.

use std::mem::MaybeUninit;

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{Extensions, HeaderValue, Method, StatusCode, Uri, Version};
use http_body::Body as _;

use super::framing::{Decoder, Encoder};
use crate::body::Body;
use crate::fields::name::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING};
use crate::fields::{Fields, Name};
use crate::message::{Handle, RequestParts, ResponseParts};

/// Fields at most.
const MOST_FIELDS: usize = 100;
/// Room for a request's fields, with those that a relay adds to a bare one: less than the KiB past which the allocator is dearer.
const ROOM_OF_REQUEST: usize = 12;
/// Room for the fields that a connector adds to a request, or a hop to a response.
const SPARE_FIELDS: usize = 3;

/// Why bytes are no head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// They are not as RFC 9112 has them.
    Malformed(&'static str),
    /// They are more than may be.
    TooLarge,
}

/// A head, and what it says about its connection.
#[derive(Debug)]
pub(crate) struct Heard<Parts> {
    pub(crate) parts: Handle<Parts>,
    /// Takes the body that follows.
    pub(crate) body: Decoder,
    /// Whether the connection may be used once more behind it.
    pub(crate) keeps: bool,
}

/// How far a head was looked at that is not whole yet.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    seen: usize,
    line: usize,
    /// What was tried to read before its end was there.
    tried: usize,
}

/// What the fields say about the framing.
struct Framing {
    length: Option<u64>,
    codings: usize,
    is_chunked: bool,
    closes: bool,
    keeps: bool,
}

/// Takes a request's head from the front of `inbox`, if it is whole.
///
/// # Errors
/// It is malformed, ambiguous or too large: nothing behind it can be read.
pub(crate) fn read_request(
    inbox: &mut BytesMut,
    progress: &mut Progress,
    most: usize,
) -> Result<Option<Heard<RequestParts>>, Flaw> {
    let Some(end) = progress.find_end(inbox, most)? else {
        if inbox.len() >= progress.tried.saturating_mul(2) {
            // What cannot become a head is refused at once.
            progress.tried = inbox.len().max(1);
            let mut slots = [const { MaybeUninit::uninit() }; MOST_FIELDS];
            httparse::Request::new(&mut []).parse_with_uninit_headers(inbox, &mut slots).map_err(flaw)?;
        }
        return Ok(None);
    };
    *progress = Progress::default();
    let text = inbox.split_to(end).freeze();
    let mut slots = [const { MaybeUninit::uninit() }; MOST_FIELDS];
    let mut request = httparse::Request::new(&mut []);
    let parsed = request.parse_with_uninit_headers(&text, &mut slots).map_err(flaw)?;
    let (httparse::Status::Complete(length), Some(method), Some(target), Some(minor)) =
        (parsed, request.method, request.path, request.version)
    else {
        return Err(Flaw::Malformed("a head that ends too soon"));
    };
    if length != text.len() {
        return Err(Flaw::Malformed("a head that ends too soon"));
    }
    if target.contains('#') {
        return Err(Flaw::Malformed("a fragment in the target"));
    }
    let method = Method::from_bytes(method.as_bytes()).map_err(|_| Flaw::Malformed("an ill-formed method"))?;
    let uri = Uri::from_maybe_shared(text.slice_ref(target.as_bytes())).map_err(|error| match target.len() {
        65_535.. => Flaw::TooLarge,
        _ => {
            tracing::debug!(%error, "refused a target");
            Flaw::Malformed("an ill-formed target")
        }
    })?;
    let version = if minor == 0 { Version::HTTP_10 } else { Version::HTTP_11 };
    let (headers, framing) = fields(&text, &text, request.headers, true)?;
    let body = match framing {
        Framing { codings: 2.., .. } => return Err(Flaw::Malformed("Transfer-Encoding twice")),
        Framing { codings: 1, length: Some(_), .. } => {
            return Err(Flaw::Malformed("Content-Length beside Transfer-Encoding"));
        }
        Framing { codings: 1, is_chunked: false, .. } => return Err(Flaw::Malformed("a coding other than chunked")),
        Framing { codings: 1, .. } if minor == 0 => return Err(Flaw::Malformed("Transfer-Encoding before HTTP/1.1")),
        Framing { codings: 1, .. } => Decoder::chunks(),
        Framing { length, .. } => Decoder::length(length.unwrap_or(0)),
    };
    let keeps = if minor == 0 { framing.keeps } else { true } && !framing.closes;
    let parts = RequestParts { method, uri, version, headers, extensions: Extensions::new(), interim: None };
    Ok(Some(Heard { parts: parts.into(), body, keeps }))
}

/// Takes the head of a response to a request of this method from the front of `inbox`, if it is whole.
///
/// Ambiguous framing is left to [`crate::response::accept`] to name; it reads as what takes most.
///
/// # Errors
/// It is malformed or too large.
pub(crate) fn read_response(
    inbox: &mut BytesMut,
    method: &Method,
    most: usize,
) -> Result<Option<Heard<ResponseParts>>, Flaw> {
    let mut slots = [const { MaybeUninit::uninit() }; MOST_FIELDS];
    let mut response = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    let parsed = config.parse_response_with_uninit_headers(&mut response, inbox, &mut slots).map_err(flaw)?;
    let httparse::Status::Complete(end) = parsed else {
        return if inbox.len() > most { Err(Flaw::TooLarge) } else { Ok(None) };
    };
    if end > most {
        return Err(Flaw::TooLarge);
    }
    // A copy of its own: parsed where it lies, and no answer's head holds on to a large buffer.
    let whole = inbox.get(..end).unwrap_or_default();
    let text = Bytes::copy_from_slice(whole);
    let (Some(code), Some(minor)) = (response.code, response.version) else {
        return Err(Flaw::Malformed("a head that ends too soon"));
    };
    let status = StatusCode::from_u16(code).map_err(|_| Flaw::Malformed("an ill-formed status"))?;
    let phrase = response.reason.filter(|phrase| *phrase != status.canonical_reason().unwrap_or_default());
    let phrase = phrase.map(|phrase| part(&text, whole, phrase.as_bytes()));
    let (headers, framing) = fields(&text, whole, response.headers, false)?;
    let is_bare = status.is_informational()
        || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
        || *method == Method::HEAD;
    let body = match framing {
        _ if is_bare => Decoder::Over,
        Framing { codings: 1.., .. } if minor == 0 => {
            return Err(Flaw::Malformed("Transfer-Encoding before HTTP/1.1"));
        }
        Framing { codings: 1.., is_chunked: true, .. } => Decoder::chunks(),
        Framing { codings: 1.., .. } => Decoder::UntilEnd,
        Framing { length: Some(length), .. } => Decoder::length(length),
        Framing { .. } => Decoder::UntilEnd,
    };
    let keeps = !framing.closes && (minor == 1 || framing.keeps) && !matches!(body, Decoder::UntilEnd);
    let _ = inbox.split_to(end);
    let version = if minor == 0 { Version::HTTP_10 } else { Version::HTTP_11 };
    let parts = ResponseParts { status, version, headers, extensions: Extensions::new(), phrase };
    Ok(Some(Heard { parts: parts.into(), body, keeps }))
}

/// Writes a request's head, with framing for its body where it says none.
pub(crate) fn write_request(parts: &RequestParts, body: &Body, out: &mut BytesMut) -> Encoder {
    let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
    out.reserve(parts.method.as_str().len() + target.len() + 64 + size(&parts.headers));
    out.put_slice(parts.method.as_str().as_bytes());
    // A query may stand alone in absolute-form only (RFC 9112 §3.2.1).
    out.put_slice(if target.starts_with('?') { b" /" } else { b" " });
    out.put_slice(target.as_bytes());
    out.put_slice(b" HTTP/1.1\r\n");
    let mut encoder = None;
    for (name, value) in parts.headers.iter() {
        write_field(name, value, out);
        if encoder.is_none() {
            encoder = framed_by(name, value);
        }
    }
    let encoder = encoder.unwrap_or_else(|| {
        if body.is_end_stream() {
            return Encoder::Length(0);
        }
        frame(body, out)
    });
    out.put_slice(b"\r\n");
    encoder
}

/// What a response's head depends on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked {
    pub(crate) version: Version,
    pub(crate) is_head: bool,
    /// Whether the connection may be used once more.
    pub(crate) keeps: bool,
}

/// Writes a response's head, with framing for its body where it says none; how the body is framed, and whether the
/// connection may be used once more behind it.
pub(crate) fn write_response(parts: &ResponseParts, body: &Body, asked: Asked, out: &mut BytesMut) -> (Encoder, bool) {
    let is_old = asked.version < Version::HTTP_11;
    let is_bare = parts.status.is_informational() || parts.status == StatusCode::NO_CONTENT;
    out.reserve(64 + size(&parts.headers));
    out.put_slice(if is_old { b"HTTP/1.0 " } else { b"HTTP/1.1 " });
    out.put_slice(parts.status.as_str().as_bytes());
    out.put_slice(b" ");
    match &parts.phrase {
        Some(phrase) => out.put_slice(phrase),
        None => out.put_slice(parts.status.canonical_reason().unwrap_or_default().as_bytes()),
    }
    out.put_slice(b"\r\n");
    let mut encoder = None;
    let (mut closes, mut says) = (!asked.keeps, false);
    for (name, value) in parts.headers.iter() {
        if name.as_bytes().len() == 10 && name.is(CONNECTION) {
            closes |= has_token(value, b"close");
            says = true;
        }
        if let Some(found) = framed_by(name, value) {
            // RFC 9110 §8.6, RFC 9112 §6.1; and one framing is enough.
            if is_bare || encoder.is_some() || is_old && found == Encoder::Chunks {
                continue;
            }
            encoder = Some(found);
        }
        write_field(name, value, out);
    }
    let encoder = match encoder {
        _ if is_bare => Encoder::Nothing,
        _ if asked.is_head || parts.status == StatusCode::NOT_MODIFIED => Encoder::Nothing,
        Some(encoder) => encoder,
        None if is_old && body.size_hint().exact().is_none() => {
            closes = true;
            Encoder::UntilEnd
        }
        None => frame(body, out),
    };
    if closes && !says && !parts.status.is_informational() {
        out.put_slice(b"connection: close\r\n");
    } else if is_old && !closes && !says {
        out.put_slice(b"connection: keep-alive\r\n");
    }
    out.put_slice(b"\r\n");
    (encoder, !closes)
}

/// Writes the framing of a body whose head says none.
fn frame(body: &Body, out: &mut BytesMut) -> Encoder {
    let Some(length) = body.size_hint().exact() else {
        out.put_slice(b"transfer-encoding: chunked\r\n");
        return Encoder::Chunks;
    };
    out.put_slice(b"content-length: ");
    out.put_slice(HeaderValue::from(length).as_bytes());
    out.put_slice(b"\r\n");
    Encoder::Length(length)
}

fn framed_by(name: &Name, value: &HeaderValue) -> Option<Encoder> {
    match name.as_bytes().len() {
        14 if name.is(CONTENT_LENGTH) => digits(value.as_bytes()).map(Encoder::Length),
        17 if name.is(TRANSFER_ENCODING) => Some(Encoder::Chunks),
        _ => None,
    }
}

fn write_field(name: &Name, value: &HeaderValue, out: &mut BytesMut) {
    out.put_slice(name.as_bytes());
    out.put_slice(if value.is_empty() { b":" } else { b": " });
    out.put_slice(value.as_bytes());
    out.put_slice(b"\r\n");
}

fn size(fields: &Fields) -> usize {
    fields.iter().map(|(name, value)| name.as_bytes().len() + value.len() + 4).sum()
}

/// The bytes of `text` that are at the place of `part` in `whole`, of which `text` is a copy.
fn part(text: &Bytes, whole: &[u8], part: &[u8]) -> Bytes {
    let start = part.as_ptr().addr().saturating_sub(whole.as_ptr().addr()).min(text.len());
    text.slice(start..(start + part.len()).min(text.len()))
}

/// The fields of a head, which `lines` of `whole` are, and what they say about its framing. `text` has the same bytes.
fn fields(
    text: &Bytes,
    whole: &[u8],
    lines: &[httparse::Header<'_>],
    is_request: bool,
) -> Result<(Fields, Framing), Flaw> {
    let mut framing = Framing { length: None, codings: 0, is_chunked: false, closes: false, keeps: false };
    let least = if is_request { ROOM_OF_REQUEST } else { 0 };
    let mut fields = Fields::with_capacity((lines.len() + SPARE_FIELDS).max(least));
    for line in lines {
        let name = Name::received(part(text, whole, line.name.as_bytes()));
        let value = HeaderValue::from_maybe_shared(part(text, whole, line.value))
            .map_err(|_| Flaw::Malformed("a control in a value"))?;
        match line.name.len() {
            10 if name.is(CONNECTION) => {
                framing.closes |= has_token(&value, b"close");
                framing.keeps |= has_token(&value, b"keep-alive");
            }
            14 if name.is(CONTENT_LENGTH) => {
                let length = digits(value.as_bytes()).ok_or(Flaw::Malformed("an ill-formed Content-Length"))?;
                if framing.length.is_some_and(|other| is_request || other != length) {
                    return Err(Flaw::Malformed("Content-Length twice"));
                }
                framing.length = Some(length);
            }
            17 if name.is(TRANSFER_ENCODING) => {
                framing.codings += 1;
                let last = value.as_bytes().rsplit(|byte| *byte == b',').next().unwrap_or_default();
                framing.is_chunked = last.trim_ascii().eq_ignore_ascii_case(b"chunked");
            }
            _ => {}
        }
        fields.append(name, value);
    }
    Ok((fields, framing))
}

fn has_token(value: &HeaderValue, token: &[u8]) -> bool {
    value.as_bytes().split(|byte| *byte == b',').any(|one| one.trim_ascii().eq_ignore_ascii_case(token))
}

fn digits(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn flaw(error: httparse::Error) -> Flaw {
    match error {
        httparse::Error::TooManyHeaders => Flaw::TooLarge,
        httparse::Error::HeaderName => Flaw::Malformed("an ill-formed field name"),
        httparse::Error::HeaderValue => Flaw::Malformed("an ill-formed field value"),
        httparse::Error::NewLine => Flaw::Malformed("an ill-formed line end"),
        httparse::Error::Status => Flaw::Malformed("an ill-formed status"),
        httparse::Error::Token => Flaw::Malformed("an ill-formed method or target"),
        httparse::Error::Version => Flaw::Malformed("another version"),
    }
}

impl Progress {
    /// Where the head ends. Takes empty lines off its front (RFC 9112 §2.2).
    fn find_end(&mut self, inbox: &mut BytesMut, most: usize) -> Result<Option<usize>, Flaw> {
        loop {
            let fresh = inbox.get(self.seen..).unwrap_or_default();
            let Some(at) = memchr::memchr(b'\n', fresh).map(|at| self.seen + at) else {
                self.seen = inbox.len();
                return if inbox.len() > most { Err(Flaw::TooLarge) } else { Ok(None) };
            };
            if at == 0 || inbox.get(at - 1) != Some(&b'\r') {
                return Err(Flaw::Malformed("a bare LF"));
            }
            if at != self.line + 1 {
                (self.seen, self.line) = (at + 1, at + 1);
            } else if self.line == 0 {
                let _ = inbox.split_to(at + 1);
                self.seen = 0;
            } else if at >= most {
                return Err(Flaw::TooLarge);
            } else {
                return Ok(Some(at + 1));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MOST: usize = 4096;

    /// Feeds a head in pieces; the fields as they came, and what was left.
    fn request(bytes: &[u8], cut: usize) -> Result<Option<(String, Fields, BytesMut)>, Flaw> {
        let (mut inbox, mut progress) = (BytesMut::new(), Progress::default());
        let mut pieces = bytes.chunks(cut);
        loop {
            match read_request(&mut inbox, &mut progress, MOST)? {
                Some(heard) => {
                    inbox.extend_from_slice(&pieces.collect::<Vec<_>>().concat());
                    let line = format!("{} {} {:?}", heard.parts.method, heard.parts.uri, heard.parts.version);
                    return Ok(Some((line, heard.parts.into_inner().headers, inbox)));
                }
                None => match pieces.next() {
                    Some(piece) => inbox.extend_from_slice(piece),
                    None => return Ok(None),
                },
            }
        }
    }

    #[test]
    fn a_head_is_read_however_it_is_cut_and_not_a_byte_beyond() {
        let text = b"\r\nPUT /a?b HTTP/1.1\r\nHost: x\r\nX-a:  1 \r\nContent-Length: 3\r\n\r\nabcGET";
        for cut in [1, 2, 7, 1000] {
            let (line, fields, left) = request(text, cut).unwrap().unwrap();
            assert_eq!(line, "PUT /a?b HTTP/1.1");
            let lines: Vec<_> =
                fields.iter().map(|(name, value)| format!("{name}={}", value.to_str().unwrap())).collect();
            assert_eq!(lines, ["Host=x", "X-a=1", "Content-Length=3"]);
            assert_eq!(&left[..], b"abcGET");
        }
        assert!(request(b"GET / HTTP/1.1\r\nHost: x\r\n", 3).unwrap().is_none());
    }

    #[test]
    fn what_another_parser_may_read_differently_is_refused() {
        let start = "POST / HTTP/1.1\r\nHost: a\r\n";
        for bad in [
            "Content-Length: 1\r\ncontent-length: 1\r\n",
            "Content-Length: 1, 1\r\n",
            "Content-Length: +1\r\n",
            "Content-Length:\r\n",
            "Content-Length: 18446744073709551616\r\n",
            "Transfer-Encoding: chunked\r\nTRANSFER-ENCODING: chunked\r\n",
            "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: chunked, gzip\r\n",
            "Transfer-Encoding: xchunked\r\n",
            "X: y\nZ: z\r\n",
            "X: y\r\n\n",
            "X : y\r\n",
            "X: y\r\n z\r\n",
            "X: \0\r\n",
            "X: a\rb\r\n",
            ": y\r\n",
        ] {
            for cut in [1, 5, 1000] {
                let flaw = request(format!("{start}{bad}\r\n").as_bytes(), cut).unwrap_err();
                assert!(matches!(flaw, Flaw::Malformed(_)), "{bad:?} by {cut}: {flaw:?}");
            }
        }
        for bad in
            ["GET /a#b HTTP/1.1\r\n\r\n", "GET / HTTP/2.0\r\n\r\n", "\nGET / HTTP/1.1\r\n\r\n", "\x16\x03\x01\x02"]
        {
            assert!(matches!(request(bad.as_bytes(), 1000), Err(Flaw::Malformed(_))), "{bad:?}");
        }
        let old = "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert!(matches!(request(old.as_bytes(), 1000), Err(Flaw::Malformed(_))));
    }

    #[test]
    fn a_head_over_its_limit_is_refused_whether_it_is_whole_or_not() {
        let long = format!("GET / HTTP/1.1\r\nX: {}", "a".repeat(MOST));
        assert_eq!(request(long.as_bytes(), 100).unwrap_err(), Flaw::TooLarge);
        assert_eq!(request(format!("{long}\r\n\r\n").as_bytes(), 100_000).unwrap_err(), Flaw::TooLarge);
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(MOST_FIELDS + 1));
        assert_eq!(request(many.as_bytes(), 100_000).unwrap_err(), Flaw::TooLarge);
    }

    #[test]
    fn a_responses_framing_follows_its_status_and_the_method() {
        let read = |text: &str, method: &Method| {
            let heard = read_response(&mut BytesMut::from(text.as_bytes()), method, MOST).unwrap().unwrap();
            (heard.body.left(), heard.keeps)
        };
        for (head, left, keeps) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n", Some(7), true),
            ("HTTP/1.1 200 OK\r\nContent-Length: 7\r\nConnection: close\r\n\r\n", Some(7), false),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", None, true),
            ("HTTP/1.1 200 OK\r\n\r\n", None, false),
            ("HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", Some(0), false),
            ("HTTP/1.0 200 OK\r\nContent-Length: 0\r\nConnection: Keep-Alive\r\n\r\n", Some(0), true),
            ("HTTP/1.1 204 No Content\r\n\r\n", Some(0), true),
            ("HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", Some(0), true),
            ("HTTP/1.1 103 Early Hints\nLink: x\n\n", Some(0), true),
        ] {
            assert_eq!(read(head, &Method::GET), (left, keeps), "{head:?}");
        }
        assert_eq!(read("HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n", &Method::HEAD), (Some(0), true));
    }

    proptest! {
        #[test]
        fn fields_go_out_as_they_came_in(lines in prop::collection::vec(("[A-Za-z][A-Za-z0-9-]{0,12}", "[!-~]([ -~]{0,20}[!-~])?"), 0..20)) {
            let lines: Vec<_> = lines
                .into_iter()
                .filter(|(name, _)| {
                    let name = name.to_ascii_lowercase();
                    name != "content-length" && name != "transfer-encoding" && name != "connection"
                })
                .collect();
            let text: String = lines.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
            let head = format!("GET /x HTTP/1.1\r\n{text}\r\n");
            let mut inbox = BytesMut::from(head.as_bytes());
            let heard = read_request(&mut inbox, &mut Progress::default(), MOST).unwrap().unwrap();
            let mut out = BytesMut::new();
            write_request(&heard.parts, &Body::empty(), &mut out);
            prop_assert_eq!(String::from_utf8_lossy(&out), head);
        }
    }
}
