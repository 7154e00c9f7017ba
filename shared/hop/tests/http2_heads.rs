//! HTTP/2 heads that are not what they should be, and changes of protocol by extended CONNECT.

mod rig;

use std::time::Duration;

use bytes::Bytes;
use culvert_hop::fault::PROXY_STATUS;
use culvert_model::reason::Reason;
use h2::client::SendRequest;
use h2::ext::Protocol;
use http::{Method, Request, Version};
use rig::{Rig, exactly, head, is_gone};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

async fn caller() -> (SendRequest<Bytes>, Rig) {
    let mut rig = Rig::new();
    let io = std::mem::replace(&mut rig.caller, tokio::io::duplex(1).0);
    let (send, mut connection) = h2::client::handshake(io).await.unwrap();
    // Until its SETTINGS are here, and say that extended CONNECT is known.
    let mut pings = connection.ping_pong().unwrap();
    tokio::spawn(async move { connection.await.ok() });
    pings.ping(h2::Ping::opaque()).await.unwrap();
    (send, rig)
}

fn to(uri: &str) -> http::request::Builder {
    Request::builder().version(Version::HTTP_2).uri(uri)
}

fn websocket() -> Request<()> {
    let request = to("http://orders/chat").method(Method::CONNECT).extension(Protocol::from_static("websocket"));
    request.header("sec-websocket-version", "13").header("sec-websocket-protocol", "chat").body(()).unwrap()
}

async fn soon<T>(event: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10_000), event).await.expect("waited in vain")
}

fn accept_of(request: &str) -> String {
    use base64::Engine as _;
    use sha1::Digest as _;
    let key = request
        .lines()
        .find_map(|line| line.to_ascii_lowercase().starts_with("sec-websocket-key: ").then(|| &line[19..]))
        .unwrap();
    assert_eq!(base64::engine::general_purpose::STANDARD.decode(key).unwrap().len(), 16);
    let digest = sha1::Sha1::digest(format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11"));
    base64::engine::general_purpose::STANDARD.encode(digest)
}

#[tokio::test(start_paused = true)]
async fn who_it_is_for_must_be_said_once_and_well() {
    let (send, mut rig) = caller().await;
    for (uri, host) in [
        ("http://orders/", Some("billing")),
        ("http://orders:80/", Some("orders:81")),
        ("http://user@orders/", None),
        ("http://orders/", Some("orders/x")),
        ("ftp://orders/", None),
    ] {
        let mut request = to(uri);
        if let Some(host) = host {
            request = request.header("host", host);
        }
        let answer = soon(send.clone().send_request(request.body(()).unwrap(), true).unwrap().0).await.unwrap();
        assert_eq!(answer.status(), 400, "{uri} {host:?}");
        assert_eq!(
            answer.headers()[PROXY_STATUS],
            "culvert-relay; error=http_request_error; details=\"bad_request\"",
            "{uri} {host:?}"
        );
        assert!(!answer.headers().contains_key("connection"));
    }
    let twice = to("http://orders/").header("host", "orders").header("host", "orders").body(()).unwrap();
    assert_eq!(soon(send.clone().send_request(twice, true).unwrap().0).await.unwrap().status(), 400);
    assert!(rig.origins.try_recv().is_err(), "it reached the origin");
    // The same place, spelled twice, is one.
    let _same = send.clone().send_request(to("http://orders:80/").header("host", "Orders").body(()).unwrap(), true);
    let request = head(&mut rig.origin().await).await;
    assert!(request.starts_with("GET / HTTP/1.1\r\nhost: orders:80\r\n"), "{request}");
    assert_eq!(request.matches("host:").count(), 2, "{request}");
}

#[tokio::test(start_paused = true)]
async fn connect_is_refused_and_so_is_any_protocol_but_websocket() {
    let (send, mut rig) = caller().await;
    let plain = Request::builder().version(Version::HTTP_2).method(Method::CONNECT).uri("orders:443").body(()).unwrap();
    let udp = to("http://orders/").method(Method::CONNECT).extension(Protocol::from_static("connect-udp"));
    for request in [plain, udp.body(()).unwrap()] {
        let answer = soon(send.clone().send_request(request, false).unwrap().0).await.unwrap();
        assert_eq!(answer.status(), 400);
    }
    assert!(rig.origins.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn a_websocket_by_extended_connect_is_one_by_upgrade_at_the_origin() {
    let (send, mut rig) = caller().await;
    let (answer, mut up) = send.clone().send_request(websocket(), false).unwrap();
    let mut origin = rig.origin().await;
    let request = head(&mut origin).await;
    assert!(request.starts_with("GET /chat HTTP/1.1\r\nhost: orders\r\n"), "{request}");
    for line in [
        "\r\nconnection: upgrade\r\n",
        "\r\nupgrade: websocket\r\n",
        "\r\nsec-websocket-version: 13\r\n",
        "\r\nsec-websocket-protocol: chat\r\n",
    ] {
        assert!(request.contains(line), "{line:?} is not in {request}");
    }
    let accept = accept_of(&request);
    origin
        .write_all(
            format!(
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                 Sec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: chat\r\n\r\n\u{1}hi"
            )
            .as_bytes(),
        )
        .await
        .unwrap();
    let answer = soon(answer).await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["sec-websocket-protocol"], "chat");
    for name in ["upgrade", "connection", "sec-websocket-accept"] {
        assert!(!answer.headers().contains_key(name), "{name}");
    }
    let mut down = answer.into_body();
    assert_eq!(soon(down.data()).await.unwrap().unwrap(), "\u{1}hi");
    up.send_data("frame".into(), false).unwrap();
    assert_eq!(exactly(&mut origin, 5).await, "frame");
    // Half-close crosses both ways.
    up.send_data(Bytes::new(), true).unwrap();
    assert_eq!(soon(origin.read(&mut [0])).await.unwrap(), 0);
    origin.write_all(b"bye").await.unwrap();
    origin.shutdown().await.unwrap();
    assert_eq!(soon(down.data()).await.unwrap().unwrap(), "bye");
    while let Some(rest) = soon(down.data()).await {
        assert_eq!(rest.unwrap(), "");
    }
}

#[tokio::test(start_paused = true)]
async fn a_websocket_that_breaks_off_at_one_end_is_reset_at_the_other() {
    for is_caller in [true, false] {
        let (send, mut rig) = caller().await;
        let (answer, mut up) = send.clone().send_request(websocket(), false).unwrap();
        let mut origin = rig.origin().await;
        let accept = accept_of(&head(&mut origin).await);
        let yes = format!(
            "HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
        );
        origin.write_all(yes.as_bytes()).await.unwrap();
        let mut answer = soon(answer).await.unwrap();
        if is_caller {
            up.send_reset(h2::Reason::CANCEL);
            assert!(is_gone(&mut origin).await);
        } else {
            // A drain's goodbye, then the end.
            rig.drain.send_replace(true);
            assert_eq!(&soon(answer.body_mut().data()).await.unwrap().unwrap()[..], b"\x88\x02\x03\xf4");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn only_a_right_switch_is_taken_for_success() {
    for said in [
        "HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n",
        "HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 204 No Content\r\n\r\n",
    ] {
        let (send, mut rig) = caller().await;
        let (answer, _up) = send.clone().send_request(websocket(), false).unwrap();
        let mut origin = rig.origin().await;
        head(&mut origin).await;
        origin.write_all(said.as_bytes()).await.unwrap();
        let answer = soon(answer).await.unwrap();
        assert_eq!(answer.status(), 502, "{said}");
        assert_eq!(rig.faults.lock().unwrap()[0].reason, Reason::UpgradeRefused);
    }
    // The origin's own no is passed on.
    let (send, mut rig) = caller().await;
    let (answer, _up) = send.clone().send_request(websocket(), false).unwrap();
    let mut origin = rig.origin().await;
    head(&mut origin).await;
    origin.write_all(b"HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\nno").await.unwrap();
    let mut answer = soon(answer).await.unwrap();
    assert_eq!(answer.status(), 403);
    assert_eq!(soon(answer.body_mut().data()).await.unwrap().unwrap(), "no");
}

#[tokio::test(start_paused = true)]
async fn a_websocket_whose_caller_waits_in_vain_is_told_and_one_who_leaves_is_missed() {
    let (send, mut rig) = caller().await;
    let (answer, mut up) = send.clone().send_request(websocket(), false).unwrap();
    let mut origin = rig.origin().await;
    head(&mut origin).await;
    up.send_reset(h2::Reason::CANCEL);
    assert!(is_gone(&mut origin).await);
    assert!(soon(answer).await.is_err());

    let (answer, _up) = send.clone().send_request(websocket(), false).unwrap();
    let mut origin = rig.origin().await;
    head(&mut origin).await;
    drop(origin);
    assert_eq!(soon(answer).await.unwrap().status(), 502);
}
