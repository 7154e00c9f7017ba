//! What of a head reaches the next hop, byte by byte, and what is refused.

mod rig;

use std::sync::{Arc, Mutex};

use culvert_hop::request::ForwardPolicy;
use culvert_hop::server::ServerSettings;
use proptest::prelude::*;
use rig::{Options, Rig, head};
use tokio::io::AsyncWriteExt;

/// What this hop adds to every request, with the order in which it does.
const ADDED: &str = "x-forwarded-for: 192.0.2.7\r\nx-forwarded-proto: http\r\n\
                     x-forwarded-host: orders\r\nx-forwarded-port: 8080\r\n\
                     forwarded: for=192.0.2.7;by=_culvert-r1;host=orders;proto=http\r\nvia: 1.1 culvert\r\n";

async fn passed(request: &str) -> String {
    passed_by(request, ForwardPolicy::Append).await
}

async fn passed_by(request: &str, policy: ForwardPolicy) -> String {
    let mut rig = Rig::with(Options { policy, ..Options::default() });
    rig.say(request).await;
    tokio::select! {
        Some(mut origin) = rig.origins.recv() => head(&mut origin).await,
        heard = rig::head(&mut rig.caller) => panic!("{request:?} was refused: {heard}"),
    }
}

/// A request with these lines; what the origin sees of it, without what the hop adds.
async fn seen(lines: &str) -> String {
    let id = "X-Request-Id: abc\r\n";
    let request = format!("GET /a HTTP/1.1\r\nHost: orders\r\n{id}{lines}\r\n");
    let out = passed(&request).await;
    let start = format!("GET /a HTTP/1.1\r\nHost: orders\r\n{id}");
    let rest = out.strip_prefix(&start).unwrap_or_else(|| panic!("{out}"));
    rest.strip_suffix("\r\n").unwrap().replace(ADDED, "")
}

async fn refused(request: &str) -> String {
    let refusals = Arc::new(Mutex::new(Vec::new()));
    let told = refusals.clone();
    let settings = ServerSettings {
        refused: Some(Arc::new(move |reason| told.lock().unwrap().push(reason))),
        ..ServerSettings::front()
    };
    let mut rig = Rig::with(Options { settings, ..Options::default() });
    // A second request behind it must never become one.
    rig.say(format!("{request}GET /smuggled HTTP/1.1\r\nHost: orders\r\n\r\n")).await;
    let heard = rig.rest().await;
    assert!(rig.origins.try_recv().is_err(), "{request:?} reached the origin");
    assert_eq!(heard.matches("HTTP/1.").count(), 1, "{request:?} was answered: {heard}");
    assert!(heard.contains("connection: close\r\n"), "{request:?}: {heard}");
    assert!(heard.contains("proxy-status: culvert-relay; error=http_request_error; details="), "{request:?}: {heard}");
    assert_eq!(refusals.lock().unwrap().len() + rig.faults.lock().unwrap().len(), 1, "{request:?}: not told of");
    heard
}

#[tokio::test(start_paused = true)]
async fn a_plain_request_passes_as_it_was_sent() {
    let out = passed(
        "GET //a/../b%2F%zz/;x=1?q=a%20b&&r=//c?d HTTP/1.1\r\nHost: orders\r\nUser-Agent: x/1\r\n\
         X-Mixed-CASE: a  b \"c\"\r\nX-B: 1\r\nx-b: 2\r\nX-Empty:\r\nX-B: 3\r\nCookie: a=b; c=d\r\n\
         X-Request-Id: abc\r\ntraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n\r\n",
    )
    .await;
    assert_eq!(
        out,
        format!(
            "GET //a/../b%2F%zz/;x=1?q=a%20b&&r=//c?d HTTP/1.1\r\nHost: orders\r\nUser-Agent: x/1\r\n\
             X-Mixed-CASE: a  b \"c\"\r\nX-B: 1\r\nx-b: 2\r\nX-Empty:\r\nX-B: 3\r\nCookie: a=b; c=d\r\n\
             X-Request-Id: abc\r\ntraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n{ADDED}\r\n"
        )
    );
}

#[tokio::test(start_paused = true)]
async fn values_pass_byte_for_byte() {
    let mut rig = Rig::new();
    rig.say(b"GET / HTTP/1.1\r\nHost: orders\r\nX-Latin: \xe4\xff\t~\r\n\r\n").await;
    let mut origin = rig.origin().await;
    let mut out = vec![0; 60];
    tokio::io::AsyncReadExt::read_exact(&mut origin, &mut out).await.unwrap();
    assert!(out.windows(15).any(|part| part == b"X-Latin: \xe4\xff\t~\r\n"), "{out:?}");
}

#[tokio::test(start_paused = true)]
async fn fields_of_one_hop_end_here() {
    for (lines, left) in [
        ("Connection: keep-alive\r\nKeep-Alive: timeout=5\r\n", ""),
        ("Connection: close, X-Mine\r\nX-Mine: 1\r\nX-Other: 2\r\n", "X-Other: 2\r\n"),
        ("X-A: 1\r\nConnection: x-mine\r\nConnection: , x-b ,\r\nX-B: 2\r\nX-MINE: 1\r\n", "X-A: 1\r\n"),
        ("Proxy-Connection: keep-alive\r\n", ""),
        ("TE: gzip, trailers\r\nConnection: TE\r\n", ""),
        ("TE: deflate\r\n", ""),
        ("Culvert-Service: other\r\nculvert-failure: x; sent=0\r\nCULVERT-ANY: 1\r\n", ""),
        ("Culvert: 1\r\n", "Culvert: 1\r\n"),
        ("Trailer: x-sum\r\n", "Trailer: x-sum\r\n"),
        (
            "Authorization: Bearer x\r\nProxy-Authorization: y\r\n",
            "Authorization: Bearer x\r\nProxy-Authorization: y\r\n",
        ),
        // Upgrades that are not passed on.
        ("Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\nConnection: Upgrade, HTTP2-Settings\r\n", ""),
        ("Upgrade: websocket, h2c\r\nConnection: upgrade\r\n", ""),
        ("Upgrade: HTTP/2.0\r\nConnection: upgrade\r\n", ""),
        ("Upgrade: websocket\r\n", ""),
        ("Upgrade: websocket\r\nUpgrade: foo\r\nConnection: upgrade\r\n", ""),
    ] {
        let out = seen(lines).await;
        assert_eq!(out, left, "{lines:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_upgrade_with_a_body_is_not_passed_on() {
    let out = passed(
        "POST / HTTP/1.1\r\nHost: orders\r\nUpgrade: websocket\r\nConnection: upgrade\r\nContent-Length: 1\r\n\r\nx",
    )
    .await;
    assert!(!out.to_ascii_lowercase().contains("upgrade"), "{out}");
}

#[tokio::test(start_paused = true)]
async fn an_offered_upgrade_passes_with_its_name() {
    let out = seen("Sec-WebSocket-Key: x\r\nUpgrade: WebSocket\r\nConnection: keep-alive, Upgrade\r\n").await;
    assert_eq!(out, "Sec-WebSocket-Key: x\r\nUpgrade: WebSocket\r\nConnection: upgrade\r\n");
}

#[tokio::test(start_paused = true)]
async fn a_believed_callers_forwarding_fields_are_added_to() {
    let out = passed(
        "GET / HTTP/1.1\r\nHost: orders:81\r\nX-Forwarded-For: 10.1.1.1\r\nX-Forwarded-For: 10.2.2.2 ,x\r\n\
         X-Forwarded-Proto: https\r\nX-Forwarded-Host: api.example.com\r\nForwarded: for=_a\r\nVia: 1.0 edge\r\n\
         X-Forwarded-Prefix: /p\r\nX-Real-IP: 10.1.1.1\r\n\r\n",
    )
    .await;
    for line in [
        "X-Forwarded-For: 10.1.1.1\r\n",
        "X-Forwarded-For: 10.2.2.2 ,x, 192.0.2.7\r\n",
        "X-Forwarded-Proto: https\r\n",
        "X-Forwarded-Host: api.example.com\r\n",
        "x-forwarded-port: 81\r\n",
        "Forwarded: for=_a, for=192.0.2.7;by=_culvert-r1;host=\"orders:81\";proto=http\r\n",
        "Via: 1.0 edge, 1.1 culvert\r\n",
        "X-Forwarded-Prefix: /p\r\n",
        "X-Real-IP: 10.1.1.1\r\n",
    ] {
        assert!(out.contains(line), "{line:?} is not in {out}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_strangers_forwarding_fields_are_dropped() {
    let request = "GET / HTTP/1.1\r\nHost: orders\r\nX-Request-Id: abc\r\nX-Forwarded-For: 10.1.1.1\r\n\
                   X-Forwarded-Proto: https\r\nx-forwarded-host: evil\r\nX-Forwarded-Prefix: /p\r\nForwarded: for=_a\r\n\
                   Via: 1.0 edge\r\nX-Real-IP: 10.1.1.1\r\nX_Forwarded_For: 10.1.1.1\r\nX-Forwarded_Proto: https\r\n\
                   x_real_ip: 10.1.1.1\r\nCulvert_Service: a\r\nX-Stays: 1\r\nForwarded_: 1\r\nculverts: 1\r\n\r\n";
    let out = passed_by(request, ForwardPolicy::Replace).await.to_ascii_lowercase();
    let kept = "host: orders\r\nx-request-id: abc\r\nx-stays: 1\r\nforwarded_: 1\r\nculverts: 1\r\n";
    assert_eq!(out, format!("get / http/1.1\r\n{kept}{ADDED}\r\n"));
}

#[tokio::test(start_paused = true)]
async fn a_request_id_is_kept_if_it_is_one_visible_word() {
    for (id, kept) in [
        ("a-B_3.~!", true),
        ("a b", false),
        ("", false),
        ("\u{e4}", false),
        (&"x".repeat(128), true),
        (&"x".repeat(129), false),
    ] {
        let out = passed(&format!("GET / HTTP/1.1\r\nHost: orders\r\nX-Request-Id: {id}\r\n\r\n")).await;
        let (_, rest) = out.split_once("X-Request-Id: ").unwrap();
        let sent = rest.split("\r\n").next().unwrap();
        assert_eq!(sent == id, kept, "{id:?} became {sent:?}");
        if !kept {
            assert!(sent.len() == 32 && sent.bytes().all(|byte| byte.is_ascii_hexdigit()), "{sent}");
        }
    }
    let out = passed("GET / HTTP/1.1\r\nHost: orders\r\nX-Request-Id: a\r\nX-Request-Id: b\r\n\r\n").await;
    assert_eq!(out.to_ascii_lowercase().matches("x-request-id").count(), 1, "{out}");
}

#[tokio::test(start_paused = true)]
async fn targets_become_paths() {
    for (line, target) in [
        ("GET http://orders/a//b?c HTTP/1.1\r\nHost: orders\r\n", "GET /a//b?c HTTP/1.1\r\n"),
        ("GET http://ORDERS:80/ HTTP/1.1\r\nHost: orders\r\n", "GET / HTTP/1.1\r\n"),
        ("GET https://orders/ HTTP/1.1\r\nHost: orders:443\r\n", "GET / HTTP/1.1\r\n"),
        ("GET http://orders HTTP/1.1\r\nHost: orders\r\n", "GET / HTTP/1.1\r\n"),
        ("GET http://orders?a HTTP/1.1\r\nHost: orders\r\n", "GET /?a HTTP/1.1\r\n"),
        ("GET http://orders/a HTTP/1.0\r\n", "GET /a HTTP/1.1\r\n"),
        ("OPTIONS * HTTP/1.1\r\nHost: orders\r\n", "OPTIONS * HTTP/1.1\r\n"),
        ("PURGE /a HTTP/1.1\r\nHost: orders\r\n", "PURGE /a HTTP/1.1\r\n"),
        ("GET /a?b{c}|~d HTTP/1.0\r\nHost: orders\r\n", "GET /a?b{c}|~d HTTP/1.1\r\n"),
    ] {
        let out = passed(&format!("{line}\r\n")).await;
        assert!(out.starts_with(target), "{line:?} became {out}");
        assert!(out.to_ascii_lowercase().contains("host: orders"), "{out}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_ambiguous_is_refused() {
    for request in [
        // Host.
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost:\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: orders\r\nHost: orders\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a, b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: user@orders\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: orders/x\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: orders:x\r\n\r\n",
        // Target.
        "GET http://other/ HTTP/1.1\r\nHost: orders\r\n\r\n",
        "GET http://orders:81/ HTTP/1.1\r\nHost: orders\r\n\r\n",
        "GET http://orders/ HTTP/1.1\r\n\r\n",
        "GET http://user@orders/ HTTP/1.1\r\nHost: orders\r\n\r\n",
        "GET ftp://orders/ HTTP/1.1\r\nHost: orders\r\n\r\n",
        "GET orders:80 HTTP/1.1\r\nHost: orders\r\n\r\n",
        "GET * HTTP/1.1\r\nHost: orders\r\n\r\n",
        "CONNECT orders:80 HTTP/1.1\r\nHost: orders:80\r\n\r\n",
        "GET /a#b HTTP/1.1\r\nHost: orders\r\n\r\n",
        "GET /a b HTTP/1.1\r\nHost: orders\r\n\r\n",
        "GET  / HTTP/1.1\r\nHost: orders\r\n\r\n",
        "GET / HTTP/1.2\r\nHost: orders\r\n\r\n",
        "GET / HTTP/2.0\r\nHost: orders\r\n\r\n",
        "GET /\r\n\r\n",
        "G\u{1}T / HTTP/1.1\r\nHost: orders\r\n\r\n",
        // Framing.
        "POST / HTTP/1.1\r\nHost: orders\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: orders\r\nContent-Length: 4\r\nContent-Length: 4\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: orders\r\nContent-Length: 4, 4\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: orders\r\nContent-Length: +4\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: orders\r\nContent-Length: -4\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: orders\r\nContent-Length: 0x4\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: orders\r\nContent-Length: 4 4\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: orders\r\nContent-Length:\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: orders\r\nContent-Length: 99999999999999999999\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: orders\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: orders\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: orders\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: orders\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: orders\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: orders\r\nTransfer-Encoding: identity\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: orders\r\nTransfer-Encoding: xchunked\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: orders\r\nTransfer-Encoding: \"chunked\"\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: orders\r\nTransfer-Encoding:\r\n\r\n",
        "POST / HTTP/1.0\r\nHost: orders\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: orders\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        // Lines.
        "GET / HTTP/1.1\r\nHost: orders\r\nX: a\r\n b\r\n\r\n",
        "GET / HTTP/1.1\r\n Host: orders\r\n\r\n",
        "GET / HTTP/1.1\r\nHost : orders\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: orders\r\nX\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: orders\r\n: x\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: orders\r\nX: a\rb\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: orders\r\nX: a\0b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: orders\nX: a\r\n\r\n",
        "GET / HTTP/1.1\nHost: orders\n\n",
        "GET / HTTP/1.1\r\nHost: orders\r\n\n",
        "GET / HTTP/1.1\r\nHost: orders\r\nX: a\r\r\n\r\n",
        // Connection.
        "GET / HTTP/1.1\r\nHost: orders\r\nConnection: host\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: orders\r\nConnection: content-length\r\nContent-Length: 0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: orders\r\nConnection: close, X-Forwarded-For\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: orders\r\nConnection: close\r\nConnection: Authorization\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: orders\r\nConnection: transfer-encoding\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: orders\r\nConnection: cookie\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: orders\r\nConnection: culvert-service\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: orders\r\nConnection: a b\r\n\r\n",
    ] {
        let heard = refused(request).await;
        assert!(
            heard.starts_with("HTTP/1.") && heard.get(8..).is_some_and(|rest| rest.starts_with(" 400 Bad Request\r\n")),
            "{request:?}: {heard}"
        );
        assert!(heard.contains("details=\"bad_request\""), "{heard}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_head_over_its_bounds_gets_431() {
    for request in [
        format!("GET / HTTP/1.1\r\nHost: orders\r\nX: {}\r\n\r\n", "x".repeat(70_000)),
        format!("GET / HTTP/1.1\r\nHost: orders\r\n{}\r\n", "X: y\r\n".repeat(101)),
        format!("GET /{} HTTP/1.1\r\nHost: orders\r\n\r\n", "x".repeat(70_000)),
    ] {
        let mut rig = Rig::with(Options { buffer: 1 << 20, ..Options::default() });
        rig.say(&request).await;
        let heard = rig.rest().await;
        let what = &request[..request.len().min(50)];
        assert!(heard.starts_with("HTTP/1.1 431 ") && heard.contains("details=\"too_large\""), "{what:?}: {heard:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_good_request_before_a_flawed_one_is_answered() {
    let mut rig = Rig::new();
    rig.say("GET /good HTTP/1.1\r\nHost: orders\r\n\r\nGET /bad HTTP/1.1\nHost: orders\r\n\r\n").await;
    let mut origin = rig.origin().await;
    assert!(head(&mut origin).await.starts_with("GET /good "));
    origin.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood").await.unwrap();
    let heard = rig.rest().await;
    assert!(heard.starts_with("HTTP/1.1 200 OK\r\n") && heard.contains("goodHTTP/1.1 400 Bad Request\r\n"), "{heard}");
    assert!(heard.contains("details=\"bad_request\""), "{heard}");
}

#[tokio::test(start_paused = true)]
async fn a_request_that_was_here_before_is_a_loop() {
    for (fields, is_loop) in [
        ("Forwarded: for=_a;by=_culvert-r1;host=orders\r\n", true),
        ("Forwarded: for=_a\r\nForwarded: for=_b, By=\"_culvert-r1\"\r\n", true),
        ("Forwarded: for=_a;by=_culvert-r12\r\n", false),
        ("Forwarded: for=_culvert-r1\r\n", false),
        ("Via: 1.1 culvert, 1.1 culvert\r\n", false),
        (
            "Via: 1.1 culvert, 1.1 culvert, 1.0 x, 1.1 culvert, 1.1 culvert\r\nVia: 1.1 culvert,1.1 culvert,1.1 culvert,1.1 culvert\r\n",
            true,
        ),
    ] {
        for policy in [ForwardPolicy::Append, ForwardPolicy::Replace] {
            let mut rig = Rig::with(Options { policy, ..Options::default() });
            rig.say(format!("GET / HTTP/1.1\r\nHost: orders\r\n{fields}\r\n")).await;
            tokio::select! {
                _ = rig.origins.recv() => assert!(!is_loop, "{fields:?}"),
                heard = rig::head(&mut rig.caller) => assert!(is_loop && heard.starts_with("HTTP/1.1 508 "), "{fields:?}: {heard}"),
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_loses_what_is_for_one_hop() {
    for (fields, left) in [
        ("Connection: close\r\n", ""),
        ("Connection: X-Mine, content-length\r\nX-Mine: 1\r\nX-A: 2\r\n", "X-A: 2\r\n"),
        ("Keep-Alive: timeout=5\r\nProxy-Connection: x\r\nUpgrade: h2,h2c\r\nConnection: Upgrade\r\n", ""),
        ("Culvert-Gateway: x\r\n", ""),
        ("Proxy-Status: culvert-relay; error=dns_error\r\nProxy-Status: other; error=x\r\n", ""),
        ("Proxy-Status: other; error=x\r\n", "Proxy-Status: other; error=x\r\n"),
        ("Set-Cookie: a=b\r\nX: 1\r\nset-cookie: c=d\r\n", "Set-Cookie: a=b\r\nX: 1\r\nset-cookie: c=d\r\n"),
        (
            "Server: x\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\n",
            "Server: x\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\n",
        ),
        ("Location: http://10.0.0.7/x\r\nVia: 1.1 inner\r\n", "Location: http://10.0.0.7/x\r\nVia: 1.1 inner\r\n"),
    ] {
        let mut rig = Rig::new();
        rig.say("GET / HTTP/1.1\r\nHost: orders\r\n\r\n").await;
        let mut origin = rig.origin().await;
        head(&mut origin).await;
        origin.write_all(format!("HTTP/1.1 201 Fine\r\n{fields}Content-Length: 0\r\n\r\n").as_bytes()).await.unwrap();
        assert_eq!(
            head(&mut rig.caller).await,
            format!("HTTP/1.1 201 Fine\r\n{left}Content-Length: 0\r\n\r\n"),
            "{fields:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn an_ambiguous_answer_is_the_origins_fault() {
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ] {
        let mut rig = Rig::new();
        rig.say("GET / HTTP/1.1\r\nHost: orders\r\n\r\n").await;
        let mut origin = rig.origin().await;
        head(&mut origin).await;
        origin.write_all(answer.as_bytes()).await.unwrap();
        let heard = head(&mut rig.caller).await;
        assert!(
            heard.starts_with("HTTP/1.1 502 ") && heard.contains("details=\"origin_protocol\""),
            "{answer:?}: {heard}"
        );
        assert_eq!(rig.pool.idle(), 0, "{answer:?} left its connection in the pool");
    }
}

#[tokio::test(start_paused = true)]
async fn an_origin_of_http_1_0_is_read_to_its_end() {
    let mut rig = Rig::new();
    rig.say("GET / HTTP/1.1\r\nHost: orders\r\n\r\n").await;
    let mut origin = rig.origin().await;
    head(&mut origin).await;
    origin.write_all(b"HTTP/1.0 200 OK\r\nServer: old\r\n\r\nabc").await.unwrap();
    drop(origin);
    assert_eq!(head(&mut rig.caller).await, "HTTP/1.1 200 OK\r\nServer: old\r\ntransfer-encoding: chunked\r\n\r\n");
    assert_eq!(rig::exactly(&mut rig.caller, 13).await, "3\r\nabc\r\n0\r\n\r\n");
}

fn spelled(name: &'static str) -> impl Strategy<Value = String> {
    prop::collection::vec(any::<bool>(), name.len()).prop_map(move |upper| {
        name.chars().zip(upper).map(|(c, upper)| if upper { c.to_ascii_uppercase() } else { c }).collect()
    })
}

fn space() -> impl Strategy<Value = &'static str> {
    prop_oneof![Just(""), Just(" "), Just("\t"), Just("  \t ")]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_spelling_brings_a_culvert_field_to_the_origin(
        name in spelled("culvert-service"), before in space(), after in space(), named in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        let connection = if named { "Connection: x-a, close\r\nX-A: 1\r\n" } else { "" };
        let out = runtime.block_on(seen(&format!("X-B: 2\r\n{name}:{before}other{after}\r\n{connection}X-C: 3\r\n")));
        prop_assert!(!out.to_ascii_lowercase().contains("culvert-service"), "{}", out);
        prop_assert!(!out.contains("X-A"), "{}", out);
        prop_assert!(out.contains("X-B: 2\r\n") && out.contains("X-C: 3\r\n"), "{}", out);
    }

    #[test]
    fn no_spelling_of_a_length_beside_chunked_passes(
        length in spelled("content-length"), coding in spelled("transfer-encoding"), chunked in spelled("chunked"),
        before in space(), after in space(), length_first in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        let length = format!("{length}:{before}4{after}\r\n");
        let coding = format!("{coding}:{before}{chunked}{after}\r\n");
        let lines = if length_first { length + &coding } else { coding + &length };
        let heard = runtime.block_on(refused(&format!("POST / HTTP/1.1\r\nHost: orders\r\n{lines}\r\n0\r\n\r\n")));
        prop_assert!(heard.starts_with("HTTP/1.1 400 "), "{}", heard);
    }
}

#[test]
fn a_relay_that_takes_the_last_hop_itself_asks_the_origin_as_a_connector_would() {
    use culvert_hop::message::{Request, RequestParts};
    use culvert_hop::request::{self, Caller};

    let caller = Caller { address: Some([192, 0, 2, 7].into()), tls: false, port: Some(8080) };
    let shown =
        |parts: &RequestParts| format!("{:?} {:?} {} {:?}", parts.version, parts.method, parts.uri, parts.headers);
    for (version, fields) in [
        (http::Version::HTTP_11, &[("accept", "*/*"), ("connection", "keep-alive")][..]),
        (
            http::Version::HTTP_11,
            &[("transfer-encoding", "chunked"), ("te", "gzip"), ("connection", "te, x-a"), ("x-a", "1")],
        ),
        (http::Version::HTTP_10, &[("content-length", "3"), ("expect", "100-continue")]),
        (http::Version::HTTP_2, &[("te", "trailers"), ("content-type", "application/grpc")]),
    ] {
        let mut asked = http::Request::get("http://orders/a?b").version(version);
        if version != http::Version::HTTP_2 {
            asked = http::Request::get("/a?b").version(version).header("host", "orders");
        }
        for (name, value) in fields {
            asked = asked.header(*name, *value);
        }
        let (mut parts, ()) = Request::from(asked.body(()).unwrap()).into_parts();
        let head = request::check(&mut parts).unwrap();
        request::forward(&mut parts, &head, &caller, ForwardPolicy::Append, "r1").unwrap();
        parts.headers.insert("culvert-service".parse::<http::HeaderName>().unwrap(), "orders".parse().unwrap());
        let mut direct = parts.clone();
        request::deliver_forwarded(&mut direct);
        let head = request::check(&mut parts).unwrap();
        request::deliver(&mut parts, &head);
        assert_eq!(shown(&direct), shown(&parts), "{version:?} {fields:?}");
    }
}
