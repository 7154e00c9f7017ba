//! HTTP/2 origins: nginx in clear text and by ALPN, and one that resets and refuses as a script says.

use std::collections::BTreeSet;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use culvert_lab::address;
use culvert_lab::nginx::Nginx;
use culvert_lab::skip::{self, Need};
use culvert_model::reason::Reason;
use culvert_ops::task::{Task, spawn};
use culvert_origin::tls::{ClientTls, Files};
use h2::server::SendResponse;
use h2::{Reason as Code, RecvStream, SendStream};
use http::{HeaderMap, Request, Response};
use tokio::net::TcpListener;
use tokio::sync::Notify;

use crate::pki::Pki;
use crate::stand::{How, Stand, field};

const NEEDS: [Need; 2] = [Need::Program("nginx"), Need::Program("openssl")];
const TELL: &str = r#"return 200 "$server_protocol $connection $http_upgrade";"#;

/// An origin that plays a script on every stream of every connection.
struct Played {
    at: SocketAddr,
    _serves: Task<()>,
}

impl Played {
    async fn start<F, Playing>(script: F) -> Self
    where
        F: Fn(Request<RecvStream>, SendResponse<Bytes>, usize) -> Playing + Clone + Send + 'static,
        Playing: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let serves = spawn("test.origin", async move {
            let mut count = 0;
            let mut connections = Vec::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let script = script.clone();
                connections.push(spawn("test.connection", async move {
                    let mut connection = h2::server::handshake(stream).await.unwrap();
                    let mut streams = Vec::new();
                    while let Some(Ok((request, respond))) = connection.accept().await {
                        streams.push(spawn("test.stream", script(request, respond, count)));
                    }
                }));
                count += 1;
            }
        });
        Self { at, _serves: serves }
    }

    fn stand(&self) -> Stand {
        Stand::of(&format!("h2c://{}", self.at), None, |_| {}, |_| {})
    }
}

fn ok() -> Response<()> {
    Response::new(())
}

fn say(mut respond: SendResponse<Bytes>, text: &'static str) -> SendStream<Bytes> {
    let mut body = respond.send_response(ok(), false).unwrap();
    body.send_data(Bytes::from_static(text.as_bytes()), true).unwrap();
    body
}

async fn many(stand: &Stand, count: usize) -> Vec<String> {
    futures_util::future::join_all((0..count).map(|_| stand.get("/"))).await
}

#[tokio::test]
async fn an_h2c_origin_is_spoken_to_at_once_and_shares_connections() {
    if skip::unless("an_h2c_origin_is_spoken_to_at_once_and_shares_connections", &NEEDS) {
        return;
    }
    let at = address::at(address::own_loopback(), 5001);
    let config = format!("server {{ listen {at} http2; location / {{ {TELL} }} }}");
    let _nginx = Nginx::start(None, at, &config).await.unwrap();
    let stand = Stand::of(&format!("h2c://{at}"), None, |_| {}, |_| {});
    assert!(stand.get("/").await.contains("HTTP/2.0 "));
    let answers = many(&stand, 50).await;
    assert!(answers.iter().all(|answer| answer.starts_with("HTTP/1.1 200 ")), "{answers:?}");
    let connections: BTreeSet<_> = answers.iter().filter_map(|answer| answer.rsplit(' ').nth(1)).collect();
    assert!(connections.len() <= 2, "{connections:?}");
    let mut line = stand.line();
    line.ask("GET /", "connection: upgrade\r\nupgrade: echo\r\n", "").await;
    assert_eq!(field(&line.head().await, "culvert-failure"), Some("upgrade_refused; sent=0"));
}

#[tokio::test]
async fn an_https_origin_speaks_what_was_agreed_and_http_1_where_an_upgrade_is_asked() {
    if skip::unless("an_https_origin_speaks_what_was_agreed_and_http_1_where_an_upgrade_is_asked", &NEEDS) {
        return;
    }
    let pki = Pki::new();
    pki.certify("good", Some("DNS:orders.test"), None);
    let at = address::at(address::own_loopback(), 5002);
    let dir = pki.directory().display();
    let config = format!(
        "server {{ listen {at} ssl http2; ssl_certificate {dir}/good.pem; ssl_certificate_key {dir}/good.key; \
         location / {{ {TELL} }} }}"
    );
    let _nginx = Nginx::start(None, at, &config).await.unwrap();
    let tls = ClientTls::new(Files { ca: Some(pki.read("ca.pem")), ..Files::default() }).unwrap();
    let stand = Stand::of(
        &format!("https://orders.test:{}", at.port()),
        Some(tls),
        |_| {},
        |told| told.says("orders.test", at),
    );
    for _ in 0..3 {
        assert!(stand.get("/").await.contains("HTTP/2.0 "));
        let mut line = stand.line();
        line.ask("GET /", "connection: upgrade\r\nupgrade: echo\r\n", "").await;
        let answer = line.answer().await;
        assert!(answer.contains("\r\n\r\nHTTP/1.1 ") && answer.ends_with("echo"), "{answer}");
    }
}

#[tokio::test]
async fn an_origin_that_says_goodbye_fails_no_request() {
    if skip::unless("an_origin_that_says_goodbye_fails_no_request", &NEEDS) {
        return;
    }
    let at = address::at(address::own_loopback(), 5003);
    // GOAWAY after every seventh request.
    let config = format!("server {{ keepalive_requests 7; listen {at} http2; location / {{ {TELL} }} }}");
    let _nginx = Nginx::start(None, at, &config).await.unwrap();
    let stand = Stand::of(&format!("h2c://{at}"), None, |_| {}, |_| {});
    for _ in 0..20 {
        let answers = many(&stand, 10).await;
        let bad: Vec<_> = answers.iter().filter(|answer| !answer.starts_with("HTTP/1.1 200 ")).collect();
        assert!(bad.is_empty(), "{bad:?}");
    }
}

#[tokio::test]
async fn what_an_origin_refused_unread_is_sent_again_whatever_it_is() {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = asked.clone();
    let origin = Played::start(move |mut request, mut respond, _| {
        let number = counted.fetch_add(1, Ordering::Relaxed);
        async move {
            if number.is_multiple_of(2) {
                return respond.send_reset(Code::REFUSED_STREAM);
            }
            let body = request.body_mut().data().await.unwrap().unwrap();
            assert_eq!(body, "body");
            say(respond, "done");
        }
    })
    .await;
    let stand = origin.stand();
    for _ in 0..3 {
        let mut line = stand.line();
        line.ask("POST /", "content-length: 4\r\n", "body").await;
        let answer = line.chunked().await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("done"), "{answer}");
    }
    assert_eq!(asked.load(Ordering::Relaxed), 6);
}

#[tokio::test]
async fn a_stream_that_the_origin_cuts_is_reset_and_its_neighbours_go_on() {
    let cut = Arc::new(Notify::new());
    let notice = cut.clone();
    let origin = Played::start(move |request, mut respond, count| {
        let notice = notice.clone();
        async move {
            assert_eq!(count, 0, "one connection for all");
            if request.uri().path() != "/cut" {
                say(respond, "fine");
                return;
            }
            let mut body = respond.send_response(ok(), false).unwrap();
            body.send_data(Bytes::from_static(b"half"), false).unwrap();
            notice.notified().await;
            body.send_reset(Code::INTERNAL_ERROR);
        }
    })
    .await;
    let stand = origin.stand();
    let mut line = stand.line();
    line.ask("GET /cut", "", "").await;
    line.head().await;
    assert!(line.bytes("4\r\nhalf".len()).await.ends_with(b"half"));
    cut.notify_one();
    let (rest, how) = line.end().await;
    assert!(!rest.contains("0\r\n\r\n"), "{rest:?}");
    assert_eq!(how, How::Reset(Some(Reason::OriginClosed)));
    assert!(stand.get("/").await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn a_caller_that_goes_away_cancels_its_stream_at_the_origin() {
    let told = Arc::new(Notify::new());
    let cancelled = told.clone();
    let origin = Played::start(move |_, mut respond, _| {
        let cancelled = cancelled.clone();
        async move {
            let mut body = respond.send_response(ok(), false).unwrap();
            let code = std::future::poll_fn(|cx| body.poll_reset(cx)).await.unwrap();
            assert_eq!(code, Code::CANCEL);
            cancelled.notify_one();
        }
    })
    .await;
    let stand = origin.stand();
    let mut line = stand.line();
    line.ask("GET /", "", "").await;
    line.head().await;
    drop(line);
    tokio::time::timeout(std::time::Duration::from_secs(10), told.notified()).await.expect("the origin is told");
}

#[tokio::test]
async fn trailers_of_an_h2c_origin_arrive() {
    let origin = Played::start(|request, mut respond, _| async move {
        assert_eq!(request.headers().get("te").unwrap(), "trailers");
        assert!(request.headers().get("connection").is_none(), "{request:?}");
        let mut head = ok();
        head.headers_mut().insert("trailer", "grpc-status".parse().unwrap());
        let mut body = respond.send_response(head, false).unwrap();
        body.send_data(Bytes::from_static(b"ok"), false).unwrap();
        body.send_trailers(HeaderMap::from_iter([("grpc-status".parse().unwrap(), "7".parse().unwrap())])).unwrap();
    })
    .await;
    let mut line = origin.stand().line();
    line.ask("POST /", "te: trailers\r\nconnection: te\r\ncontent-length: 0\r\n", "").await;
    line.head().await;
    let rest = String::from_utf8(line.bytes("2\r\nok\r\n0\r\ngrpc-status: 7\r\n\r\n".len()).await).unwrap();
    assert_eq!(rest, "2\r\nok\r\n0\r\ngrpc-status: 7\r\n\r\n");
}

#[tokio::test]
async fn an_h2c_origin_that_speaks_http_1_is_named() {
    let origin = crate::scripted::Scripted::start(|mut conn, _| async move {
        conn.take(24).await?;
        conn.say("HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n").await?;
        while conn.take(1).await.is_some() {}
        Some(())
    })
    .await;
    let stand = Stand::of(&format!("h2c://{}", origin.at), None, |_| {}, |_| {});
    let answer = stand.get("/").await;
    assert!(
        field(&answer, "culvert-failure").is_some_and(|failure| failure.starts_with("origin_protocol;")),
        "{answer}"
    );
}
