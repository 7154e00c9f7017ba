//! Malformed and ambiguous requests in HTTP/2 (RFC 9113), their frames and fields written by hand.
//!
//! Must never leave the unpacking of its frames to the library under test.

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;
pub const ACK: u8 = 1;

/// What has to become of a connection's frames.
#[derive(Debug, Clone)]
pub enum Want {
    /// The stream alone: reset, or answered with a 4xx. A request after it is answered.
    Stream,
    /// The stream or, because the frame library sees it while it unpacks the head, the connection.
    Either,
    /// The connection ends.
    Connection,
    /// The same as [`Want::Stream`]; it may have reached the origin before, as this and without a body.
    Late(&'static str, &'static str),
    /// It reaches the origin as this.
    Passes(&'static str, &'static str, &'static [u8]),
}

#[derive(Debug, Clone)]
pub struct Frames {
    pub name: &'static str,
    pub bytes: Vec<u8>,
    pub want: Want,
}

pub type Field<'a> = (&'a [u8], &'a [u8]);

const GET: [Field<'static>; 4] =
    [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/a"), (b":authority", b"orders")];
const POST: [Field<'static>; 4] =
    [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/a"), (b":authority", b"orders")];

pub fn all() -> Vec<Frames> {
    let mut all = vec![
        passes("a plain request", head(&GET), "GET", "/a", b""),
        passes("a method in lower case", head(&with(0, b"get")), "get", "/a", b""),
        passes("a path like another host", head(&with(2, b"//other/a")), "GET", "//other/a", b""),
        passes("a body", [open(&POST), data(b"12345", END_STREAM)].concat(), "POST", "/a", b"12345"),
        passes(
            "a body of the length it says",
            [open(&[&POST[..], &[(b"content-length", b"5")]].concat()), data(b"123", 0), data(b"45", END_STREAM)]
                .concat(),
            "POST",
            "/a",
            b"12345",
        ),
        passes("TE: trailers", head(&more(&[(b"te", b"trailers")])), "GET", "/a", b""),
        passes("Host that agrees", head(&more(&[(b"host", b"orders")])), "GET", "/a", b""),
        // h2 0.4 hides these two from whoever is above it; what it shows is what the origin gets.
        passes("a :path with a fragment loses it", head(&with(2, b"/a#b")), "GET", "/a", b""),
        passes(
            "trailers with a pseudo-header lose it",
            [open(&POST), data(b"1", 0), frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(&[(b":path", b"/b")]))]
                .concat(),
            "POST",
            "/a",
            b"1",
        ),
        passes("a head in many pieces", in_pieces(&GET), "GET", "/a", b""),
    ];
    let malformed: [(&'static str, Vec<Field<'static>>); 45] = [
        ("a pseudo-header behind a field", [&GET[..3], &[(b"x-a", b"b"), GET[3]]].concat()),
        ("a pseudo-header of answers", more_pseudo(&[(b":status", b"200")])),
        (":method twice", more_pseudo(&[(b":method", b"POST")])),
        (":path twice", more_pseudo(&[(b":path", b"/b")])),
        (":path twice, the same", more_pseudo(&[(b":path", b"/a")])),
        (":scheme twice", more_pseudo(&[(b":scheme", b"https")])),
        (":authority twice", more_pseudo(&[(b":authority", b"other")])),
        (":authority twice, the same", more_pseudo(&[(b":authority", b"orders")])),
        ("no :method", GET[1..].to_vec()),
        ("no :scheme", [&GET[..1], &GET[2..]].concat()),
        ("no :path", [&GET[..2], &GET[3..]].concat()),
        ("no :authority and no Host", GET[..3].to_vec()),
        ("an empty :path", with(2, b"")),
        ("a :path without a slash", with(2, b"a")),
        ("a :path of * for GET", with(2, b"*")),
        ("a name with a quote", more(&[(b"x\"a", b"b")])),
        ("a :path of a query", with(2, b"?a")),
        ("a :path of a fragment", with(2, b"#a")),
        ("a :path of a fragment with a slash", with(2, b"#/a")),
        ("a :path with a scheme", with(2, b"http://other/a")),
        ("a :path with a space", with(2, b"/a b")),
        ("a :path with a version", with(2, b"/a HTTP/1.1")),
        ("a :path with another request", with(2, b"/a HTTP/1.1\r\nHost: other\r\n\r\nGET /smuggled")),
        ("a :path with a NUL", with(2, b"/a\0")),
        ("a :path with a tab", with(2, b"/a\tb")),
        (":authority with a user", with(3, b"a@orders")),
        (":authority with a user like a service", with(3, b"orders@other")),
        (":authority with a path", with(3, b"orders/a")),
        (":authority with a space", with(3, b"orders other")),
        (":authority with a line", with(3, b"orders\r\nX-A: b")),
        (":authority with a port that is no number", with(3, b"orders:x")),
        ("an empty :authority", with(3, b"")),
        ("Host that disagrees", more(&[(b"host", b"other")])),
        ("Host twice", more(&[(b"host", b"orders"), (b"host", b"orders")])),
        ("Host twice, one of another", more(&[(b"host", b"orders"), (b"host", b"other")])),
        ("Connection", more(&[(b"connection", b"close")])),
        ("Connection: host", more(&[(b"connection", b"host")])),
        ("Keep-Alive", more(&[(b"keep-alive", b"timeout=5")])),
        ("Proxy-Connection", more(&[(b"proxy-connection", b"close")])),
        ("Transfer-Encoding", more(&[(b"transfer-encoding", b"chunked")])),
        ("Upgrade", more(&[(b"upgrade", b"websocket")])),
        ("TE: gzip", more(&[(b"te", b"gzip")])),
        ("a length and no body", more(&[(b"content-length", b"5")])),
        ("a length with a plus", more(&[(b"content-length", b"+5")])),
        ("two lengths", more(&[(b"content-length", b"0"), (b"content-length", b"0")])),
    ];
    let unreadable: [(&'static str, Vec<Field<'static>>); 15] = [
        ("a name in upper case", more(&[(b"X-A", b"b")])),
        ("one capital in a name", more(&[(b"x-A", b"b")])),
        ("a pseudo-header that nobody knows", more_pseudo(&[(b":other", b"b")])),
        ("an empty :method", with(0, b"")),
        ("a :method with a space", with(0, b"GET /smuggled HTTP/1.1\r\nHost: other\r\n\r\nGET")),
        ("a :method with a control", with(0, b"GE\x01T")),
        ("a value with CR LF", more(&[(b"x-a", b"b\r\nX-B: c")])),
        ("a value with LF", more(&[(b"x-a", b"b\nX-B: c")])),
        ("a value with CR", more(&[(b"x-a", b"b\rc")])),
        ("a value with a NUL", more(&[(b"x-a", b"b\0c")])),
        ("a name with CR LF", more(&[(b"x-a: b\r\nx-b", b"c")])),
        ("a name with a colon", more(&[(b"x:a", b"b")])),
        ("a name with a space", more(&[(b"x a", b"b")])),
        ("an empty name", more(&[(b"", b"b")])),
        ("a name of high bytes", more(&[(b"x-\xe4", b"b")])),
    ];
    all.extend(malformed.into_iter().map(|(name, fields)| Frames { name, bytes: head(&fields), want: Want::Stream }));
    all.extend(unreadable.into_iter().map(|(name, fields)| Frames { name, bytes: head(&fields), want: Want::Either }));
    let long = |length: &'static [u8]| open(&[&POST[..], &[(b"content-length", length)]].concat());
    all.extend([
        Frames {
            name: "a body where the length says none",
            bytes: [
                open(&[&POST[..], &[(b"content-length", b"0")]].concat()),
                data(b"GET /smuggled HTTP/1.1\r\n\r\n", END_STREAM),
            ]
            .concat(),
            want: Want::Late("POST", "/a"),
        },
        stream("CONNECT", head(&[(b":method", b"CONNECT"), (b":authority", b"orders:80")])),
        stream("CONNECT with a path", head(&with(0, b"CONNECT"))),
        stream(
            "CONNECT to a protocol that nobody knows",
            open(&[&with(0, b"CONNECT")[..], &[(b":protocol", b"own")]].concat()),
        ),
        stream("less than the length says", [long(b"6"), data(b"12345", END_STREAM)].concat()),
        stream("more than the length says", [long(b"4"), data(b"12345", END_STREAM)].concat()),
        stream(
            "two lengths that differ",
            [
                open(&[&POST[..], &[(b"content-length", b"5"), (b"content-length", b"6")]].concat()),
                data(b"12345", END_STREAM),
            ]
            .concat(),
        ),
        connection("a head on stream 0", frame(HEADERS, END_HEADERS | END_STREAM, 0, &block(&GET))),
        connection("a head on an even stream", frame(HEADERS, END_HEADERS | END_STREAM, 2, &block(&GET))),
        connection("a body on stream 0", frame(DATA, END_STREAM, 0, b"12345")),
        connection("a body on a stream that is not open", frame(DATA, END_STREAM, 5, b"12345")),
        connection("a continuation of nothing", frame(CONTINUATION, END_HEADERS, 1, &block(&GET))),
        connection(
            "a head broken by another frame",
            [
                frame(HEADERS, END_STREAM, 1, &block(&GET)),
                frame(PING, 0, 0, &[0; 8]),
                frame(CONTINUATION, END_HEADERS, 1, b""),
            ]
            .concat(),
        ),
        connection(
            "a head continued on another stream",
            [frame(HEADERS, END_STREAM, 1, &block(&GET[..3])), frame(CONTINUATION, END_HEADERS, 3, &block(&GET[3..]))]
                .concat(),
        ),
        connection("a promise by the caller", frame(5, END_HEADERS, 1, &[&[0, 0, 0, 2], &block(&GET)[..]].concat())),
        connection("settings on a stream", frame(SETTINGS, 0, 1, &[])),
        connection("settings of five bytes", frame(SETTINGS, 0, 0, &[0; 5])),
        connection("an acknowledgement with settings", frame(SETTINGS, ACK, 0, &[0; 6])),
        connection("a ping of seven bytes", frame(PING, 0, 0, &[0; 7])),
        connection("a ping on a stream", frame(PING, 0, 1, &[0; 8])),
        connection("a window opened by nothing", frame(8, 0, 0, &[0; 4])),
        connection("a window opened too far", frame(8, 0, 0, &[0x7f, 0xff, 0xff, 0xff])),
        connection("a reset of a stream that is not open", frame(RST_STREAM, 0, 7, &[0; 4])),
        connection("a frame larger than allowed", frame(DATA, 0, 1, &vec![0; 1 << 20])),
        connection(
            "an index that no table has",
            frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0xff, 0xff, 0xff, 0x0f]),
        ),
        connection("index 0", frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0x80])),
        connection(
            "a table larger than allowed",
            frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0x3f, 0xff, 0xff, 0xff, 0x07]),
        ),
        connection(
            "a string longer than its frame",
            frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0x00, 0x7f, 0x20, b'a']),
        ),
        connection(
            "more padding than frame",
            frame(HEADERS, END_HEADERS | END_STREAM | 8, 1, &[&[0xff], &block(&GET)[..]].concat()),
        ),
        connection(
            "a flood of continuations",
            [
                frame(HEADERS, END_STREAM, 1, &block(&GET)),
                frame(CONTINUATION, 0, 1, &block(&[(b"x-a", &[b'a'; 1000])])).repeat(1000),
            ]
            .concat(),
        ),
        connection(
            "a flood of empty continuations",
            [frame(HEADERS, END_STREAM, 1, &block(&GET)), frame(CONTINUATION, 0, 1, b"").repeat(20_000)].concat(),
        ),
        connection("HTTP/1.1 behind the preface", b"GET /smuggled HTTP/1.1\r\nHost: other\r\n\r\n".repeat(20)),
    ]);
    all
}

fn stream(name: &'static str, bytes: Vec<u8>) -> Frames {
    Frames { name, bytes, want: Want::Stream }
}

fn connection(name: &'static str, bytes: Vec<u8>) -> Frames {
    Frames { name, bytes, want: Want::Connection }
}

fn passes(
    name: &'static str,
    bytes: Vec<u8>,
    method: &'static str,
    target: &'static str,
    body: &'static [u8],
) -> Frames {
    Frames { name, bytes, want: Want::Passes(method, target, body) }
}

/// One frame.
pub fn frame(kind: u8, flags: u8, stream: u32, body: &[u8]) -> Vec<u8> {
    let [_, a, b, c] = u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes();
    [&[a, b, c, kind, flags], &stream.to_be_bytes()[..], body].concat()
}

/// Fields written out without an index (RFC 7541 §6.2.2).
pub fn block(fields: &[Field<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in fields {
        out.push(0);
        for text in [name, value] {
            match u8::try_from(text.len()) {
                Ok(length @ 0..127) => out.push(length),
                _ => {
                    let mut rest = text.len() - 127;
                    out.push(127);
                    while rest >= 128 {
                        out.push(u8::try_from(rest % 128).unwrap_or(0) | 0x80);
                        rest /= 128;
                    }
                    out.push(u8::try_from(rest).unwrap_or(0));
                }
            }
            out.extend_from_slice(text);
        }
    }
    out
}

/// A whole request without a body, on stream 1.
fn head(fields: &[Field<'static>]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(fields))
}

/// The head of a request with a body, on stream 1.
fn open(fields: &[Field<'static>]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, 1, &block(fields))
}

fn data(bytes: &[u8], flags: u8) -> Vec<u8> {
    frame(DATA, flags, 1, bytes)
}

/// One byte a frame.
fn in_pieces(fields: &[Field<'static>]) -> Vec<u8> {
    let block = block(fields);
    let (first, rest) = block.split_at(1);
    let mut out = frame(HEADERS, END_STREAM, 1, first);
    // Not so many that they are a flood.
    for piece in rest.chunks(20) {
        out.extend(frame(CONTINUATION, 0, 1, piece));
    }
    out.extend(frame(CONTINUATION, END_HEADERS, 1, b""));
    out
}

/// The plain request with another value in that place.
pub fn with(place: usize, value: &'static [u8]) -> Vec<Field<'static>> {
    let mut fields = GET.to_vec();
    if let Some(field) = fields.get_mut(place) {
        field.1 = value;
    }
    fields
}

/// The plain request and more fields.
fn more(fields: &[Field<'static>]) -> Vec<Field<'static>> {
    [&GET[..], fields].concat()
}

/// The same, for pseudo-headers.
fn more_pseudo(fields: &[Field<'static>]) -> Vec<Field<'static>> {
    more(fields)
}
