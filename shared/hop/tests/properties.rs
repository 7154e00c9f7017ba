//! Whatever passes a hop is read by the next parser as it was meant: the same method, target, host and body, for heads of
//! both versions, well-formed and odd. The reader here is a parser of its own, and strict.

mod rig;

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Version};
use proptest::prelude::*;
use rig::{Options, Rig};
use tokio::io::AsyncReadExt;

/// What a request says to a reader who repairs nothing.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    method: String,
    target: String,
    host: String,
    body: Vec<u8>,
}

fn read(mut bytes: &[u8]) -> Result<Seen, &'static str> {
    // One empty line before a request is forgiven (RFC 9112 §2.2).
    while let Some(rest) = bytes.strip_prefix(b"\r\n") {
        bytes = rest;
    }
    let end = bytes.windows(4).position(|part| part == b"\r\n\r\n").ok_or("no end of the head")?;
    let (head, mut rest) = (&bytes[..end + 2], &bytes[end + 4..]);
    let mut lines =
        head.split_inclusive(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r\n").ok_or("a bare LF"));
    let first = String::from_utf8(lines.next().ok_or("nothing")??.to_vec()).map_err(|_| "no text")?;
    let [method, target, "HTTP/1.1"] = first.split(' ').collect::<Vec<_>>()[..] else { return Err("no request line") };
    let (mut hosts, mut lengths, mut codings) = (Vec::new(), Vec::new(), Vec::new());
    for line in lines {
        let line = String::from_utf8(line?.to_vec()).map_err(|_| "no text")?;
        let (name, value) = line.split_once(':').ok_or("no colon")?;
        if name.is_empty()
            || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_!#$%&'*+.^`|~".contains(&byte))
        {
            return Err("no name");
        }
        if value.bytes().any(|byte| byte < 0x20 && byte != b'\t' || byte == 0x7f) {
            return Err("a control character");
        }
        let value = value.trim_matches([' ', '\t']).to_owned();
        match name.to_ascii_lowercase().as_str() {
            "host" => hosts.push(value),
            "content-length" => lengths.push(value),
            "transfer-encoding" => codings.push(value),
            _ => {}
        }
    }
    let [host] = &hosts[..] else { return Err("not one Host") };
    let mut body = Vec::new();
    match (&lengths[..], &codings[..]) {
        ([], []) => {}
        ([length], []) if !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit()) => {
            let length = length.parse().map_err(|_| "a length out of this world")?;
            body.extend_from_slice(rest.get(..length).ok_or("a short body")?);
        }
        ([], [coding]) if coding.eq_ignore_ascii_case("chunked") => loop {
            let end = rest.windows(2).position(|part| part == b"\r\n").ok_or("no chunk size")?;
            let size = std::str::from_utf8(&rest[..end]).map_err(|_| "no text")?;
            let size = usize::from_str_radix(size, 16).map_err(|_| "no size")?;
            rest = &rest[end + 2..];
            if size == 0 {
                break;
            }
            body.extend_from_slice(rest.get(..size).ok_or("a short chunk")?);
            rest = rest.get(size..).and_then(|rest| rest.strip_prefix(b"\r\n")).ok_or("no end of a chunk")?;
        },
        _ => return Err("ambiguous framing"),
    }
    let target = match target.split_once("://") {
        None => target.to_owned(),
        Some((_, rest)) => {
            let path = rest.find(['/', '?']).map_or("", |at| &rest[at..]);
            let named = &rest[..rest.len() - path.len()];
            if named.trim_end_matches(":80") != host.to_ascii_lowercase().trim_end_matches(":80") {
                return Err("two hosts");
            }
            if path.starts_with('/') { path.to_owned() } else { format!("/{path}") }
        }
    };
    Ok(Seen { method: method.to_owned(), target, host: host.clone(), body })
}

/// Everything that the origin hears, if anything.
async fn heard(rig: &mut Rig) -> Option<Vec<u8>> {
    let mut origin = tokio::time::timeout(Duration::from_secs(1), rig.origins.recv()).await.ok()??;
    let mut heard = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(1), origin.read_to_end(&mut heard)).await;
    Some(heard)
}

fn paused<T>(run: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap().block_on(run)
}

fn methods() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["GET", "POST", "PUT", "DELETE", "OPTIONS", "PURGE", "get", "M-SEARCH"])
}

fn paths() -> impl Strategy<Value = String> {
    prop_oneof![
        "/[!-~&&[^#]]{0,12}",
        Just("//a//../b/./%2e%2E/%00?x=/../y&&".to_owned()),
        Just("/".to_owned()),
        Just("/?".to_owned()),
        Just("/a;b=c,d:e@f!$&'()*+?q??".to_owned()),
    ]
}

fn lines() -> impl Strategy<Value = String> {
    let odd = vec![
        "Content-Length: 3",
        "content-length: 03",
        "Content-Length: 3, 3",
        "Content-Length: +3",
        "Content-Length: 0x3",
        "Content-Length:",
        "Content-Length: 99999999999999999999",
        "Content-Length : 3",
        "Transfer-Encoding: chunked",
        "Transfer-Encoding: Chunked",
        "Transfer-Encoding: identity",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: \tchunked",
        "Transfer-Encoding : chunked",
        "Transfer_Encoding: chunked",
        " Transfer-Encoding: chunked",
        "X: y\n Transfer-Encoding: chunked",
        "X: y\r\n folded",
        "X: y\rContent-Length: 3",
        "X: y\nContent-Length: 3",
        "Host: other",
        "host: orders",
        "Connection: content-length",
        "Connection: host, close",
        "Connection: transfer-encoding",
        "Connection: x-mine",
        "Connection: close",
        "Upgrade: h2c",
        "Expect: nothing",
        "TE: trailers",
        "X-Mine: a,b\t c",
        "X-Mine: \u{7f}",
        "X\u{0}: y",
        ": empty",
        "no-colon",
        "Culvert-Service: evil",
        "X-Forwarded-Host: evil",
    ];
    prop_oneof![prop::sample::select(odd).prop_map(str::to_owned), "[A-Za-z0-9-]{1,8}: [ -~]{0,12}", "[ -~\t]{0,20}",]
}

fn bodies() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "",
        "abc",
        "abcdef",
        "3\r\nabc\r\n0\r\n\r\n",
        "0\r\n\r\n",
        "3\r\nabc\r\n",
        "03\r\nabc\r\n0\r\n\r\n",
        "3\nabc\r\n0\r\n\r\n",
        "3\r\nabcd\r\n0\r\n\r\n",
        "0x3\r\nabc\r\n0\r\n\r\n",
        "FFFFFFFFFFFFFFFFF\r\nabc\r\n0\r\n\r\n",
        "0\r\n\r\nGET /evil HTTP/1.1\r\nHost: evil\r\n\r\n",
        "GET /evil HTTP/1.1\r\nHost: evil\r\n\r\n",
    ])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_http1_request_that_passes_is_read_alike_by_the_next(
        method in methods(),
        target in prop_oneof![4 => paths(), 1 => paths().prop_map(|path| format!("http://orders{path}"))],
        host in prop::sample::select(vec!["orders", "Orders:80", "orders:8080"]),
        before in prop::collection::vec(lines(), 0..3),
        after in prop::collection::vec(lines(), 0..3),
        body in bodies(),
        cut in 1..200usize,
    ) {
        let mut request = format!("{method} {target} HTTP/1.1\r\n");
        for line in before.iter().chain([&format!("Host: {host}")]).chain(&after) {
            request.push_str(line);
            request.push_str("\r\n");
        }
        request.push_str("\r\n");
        request.push_str(body);
        let passed = paused(async {
            let mut rig = Rig::with(Options::default());
            for part in request.as_bytes().chunks(cut) {
                if tokio::io::AsyncWriteExt::write_all(&mut rig.caller, part).await.is_err() {
                    break;
                }
                tokio::task::yield_now().await;
            }
            heard(&mut rig).await
        });
        let Some(passed) = passed else { return Ok(()) };
        match (read(request.as_bytes()), read(&passed)) {
            (Ok(sent), Ok(seen)) => prop_assert_eq!(sent, seen),
            // A body that breaks off, or is no body, may begin to pass: it must not seem whole.
            (Err(_), Err("a short body" | "no chunk size" | "a short chunk" | "no end of a chunk")) => {}
            (Err(why), _) => prop_assert!(false, "passed in spite of {why}: {request:?}"),
            (Ok(_), Err(why)) => prop_assert!(false, "made ill-formed, {why}: {:?}", String::from_utf8_lossy(&passed)),
        }
    }

    #[test]
    fn an_http2_request_that_passes_is_read_alike_by_an_http1_origin(
        method in methods(),
        path in paths(),
        authority in prop::sample::select(vec!["orders", "Orders:80", "orders:8080", "[::1]:80", "user@orders", "a,b", "a b"]),
        host in prop::option::of(prop::sample::select(vec!["orders", "other", "orders:8080", "orders "])),
        fields in prop::collection::vec(("[a-z0-9_-]{1,8}", "[ -~\t]{0,12}"), 0..4),
        length in prop::option::of(prop::sample::select(vec!["0", "3", "03", "4", "+3", ""])),
        body in prop::option::of(prop::sample::select(vec!["", "abc", "0\r\n\r\nGET / HTTP/1.1\r\n\r\n"])),
    ) {
        let Ok(uri) = http::Uri::try_from(format!("http://{authority}{path}")) else { return Ok(()) };
        let mut request = Request::builder().version(Version::HTTP_2).method(method).uri(uri);
        for (name, value) in &fields {
            if !["te", "upgrade", "host"].contains(&name.as_str()) {
                request = request.header(name.as_str(), value.as_str());
            }
        }
        for (name, value) in [("host", host), ("content-length", length)] {
            if let Some(value) = value {
                request = request.header(name, value);
            }
        }
        let Ok(request) = request.body(()) else { return Ok(()) };
        let sent = request.uri().path_and_query().map_or("/", http::uri::PathAndQuery::as_str).to_owned();
        let passed = paused(async {
            let mut rig = Rig::with(Options::default());
            let io = std::mem::replace(&mut rig.caller, tokio::io::duplex(1).0);
            let (mut send, connection) = h2::client::handshake(io).await.unwrap();
            tokio::spawn(async move { connection.await.ok() });
            let Ok((_answer, mut up)) = send.send_request(request, body.is_none()) else { return None };
            if let Some(body) = body {
                let _ = up.send_data(Bytes::from_static(body.as_bytes()), true);
            }
            heard(&mut rig).await
        });
        let Some(passed) = passed else { return Ok(()) };
        let body = body.unwrap_or_default().as_bytes();
        let is_length_right = length.is_none_or(|length| length.parse() == Ok(body.len()));
        match read(&passed) {
            Ok(seen) => {
                prop_assert_eq!((seen.method.as_str(), seen.target.as_str()), (method, sent.as_str()));
                prop_assert!(seen.host.eq_ignore_ascii_case(authority), "{} for {authority}", seen.host);
                prop_assert_eq!(seen.body, body);
                prop_assert!(is_length_right);
                prop_assert!(host.is_none_or(|host| {
                    let plain = |host: &str| host.to_ascii_lowercase().trim_end_matches(":80").to_owned();
                    plain(host) == plain(authority)
                }), "two hosts");
            }
            Err("a short body" | "no chunk size" | "a short chunk") => prop_assert!(!is_length_right),
            Err(why) => prop_assert!(false, "made ill-formed, {why}: {:?}", String::from_utf8_lossy(&passed)),
        }
    }
}
