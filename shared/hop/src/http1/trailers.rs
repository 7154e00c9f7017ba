//! The fields behind a body in chunks (RFC 9110 §6.5).
//!
//! Must never pass on one that is about framing, routing or who asks: it came too late to be checked.

use bytes::{BufMut as _, BytesMut};
use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, COOKIE, EXPECT, HOST,
    MAX_FORWARDS, SET_COOKIE, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::framing::Broken;

/// Fields at most.
const MOST: usize = 64;

/// Where the blank line behind them ends, if it has come.
pub(super) fn end(bytes: &[u8]) -> Result<Option<usize>, Broken> {
    let mut begin = 0;
    for at in memchr::memchr2_iter(b'\n', b'\r', bytes) {
        if bytes.get(at) == Some(&b'\r') {
            match bytes.get(at + 1) {
                None | Some(b'\n') => continue,
                Some(_) => return Err(Broken("a trailer with a CR")),
            }
        }
        if at == 0 || bytes.get(at - 1) != Some(&b'\r') {
            return Err(Broken("a trailer's line ends in LF"));
        }
        if at == begin + 1 {
            return Ok(Some(at + 1));
        }
        begin = at + 1;
    }
    Ok(None)
}

/// Reads lines that end with a blank one.
pub(super) fn parse(text: &[u8]) -> Result<HeaderMap, Broken> {
    let mut slots = [httparse::EMPTY_HEADER; MOST];
    let parsed = httparse::parse_headers(text, &mut slots).map_err(|_| Broken("a malformed trailer"))?;
    let httparse::Status::Complete((_, lines)) = parsed else { return Err(Broken("a malformed trailer")) };
    let mut trailers = HeaderMap::with_capacity(lines.len());
    for line in lines {
        let name = HeaderName::from_bytes(line.name.as_bytes()).map_err(|_| Broken("a malformed trailer"))?;
        let value = HeaderValue::from_bytes(line.value).map_err(|_| Broken("a malformed trailer"))?;
        trailers.append(name, value);
    }
    Ok(trailers)
}

/// Writes those that may come so late.
pub(super) fn write(trailers: &HeaderMap, out: &mut BytesMut) {
    for (name, value) in trailers {
        if is_allowed(name) {
            out.put_slice(name.as_str().as_bytes());
            out.put_slice(b": ");
            out.put_slice(value.as_bytes());
            out.put_slice(b"\r\n");
        }
    }
}

fn is_allowed(name: &HeaderName) -> bool {
    const LATE: [HeaderName; 15] = [
        AUTHORIZATION,
        CONNECTION,
        CONTENT_ENCODING,
        CONTENT_LENGTH,
        CONTENT_RANGE,
        CONTENT_TYPE,
        COOKIE,
        EXPECT,
        HOST,
        MAX_FORWARDS,
        SET_COOKIE,
        TE,
        TRAILER,
        TRANSFER_ENCODING,
        UPGRADE,
    ];
    !LATE.contains(name) && !crate::fields::is_culvert(name.as_str().as_bytes())
}
