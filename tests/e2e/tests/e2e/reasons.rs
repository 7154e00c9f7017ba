//! Every failure that a loopback can make: its status, its field, its line.

use std::time::{Duration, Instant};

use anyhow::Result;
use culvert_lab::{Connector, Origin, Relay, client};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::Setup;

/// A server that reads a head and answers with these bytes, then closes.
async fn answers(bytes: &'static [u8]) -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = [0; 4096];
                if matches!(stream.read(&mut head).await, Ok(read) if read > 0) {
                    let _ = stream.write_all(bytes).await;
                }
            });
        }
    });
    Ok(url)
}

#[tokio::test]
async fn each_failure_of_an_origin_has_its_name() -> Result<()> {
    let closed = std::net::TcpListener::bind("127.0.0.1:0")?;
    let refused = format!("http://{}", closed.local_addr()?);
    drop(closed);
    let plain = answers(b"HTTP/1.1 400 no\r\ncontent-length: 0\r\n\r\n").await?;
    // Not of the name `slow`: what follows `/NAME/` is a path of its own there.
    let slow = Origin::start("origin").await?;
    let config = format!(
        r#"
        [[service]]
        name = "refused"
        origin = "{refused}"
        [[service]]
        name = "nameless"
        origin = "http://no-such-host.invalid:80"
        [[service]]
        name = "garbled"
        origin = "{}"
        [[service]]
        name = "closing"
        origin = "{}"
        [[service]]
        name = "not-tls"
        origin = "{}"
        [[service]]
        name = "slow"
        origin = "{}"
        [service.timeouts]
        first_byte = "300ms"
        "#,
        answers(b"this is not HTTP at all\r\n\r\n").await?,
        answers(b"").await?,
        plain.replace("http://", "https://"),
        slow.url(),
    );
    let names = ["refused", "nameless", "garbled", "closing", "not-tls", "slow", "nobody"];
    let mut relay = Relay::new()?;
    relay.start().await?;
    let token = relay.tunnel("main", &names).await?;
    let mut connector = Connector::new(&token, &[])?;
    connector.config(&config)?;
    connector.start().await?;
    relay.up("slow").await?;
    let cases = [
        ("refused", "/", 502, "connection_refused", "origin_refused"),
        ("nameless", "/", 502, "dns_error", "origin_dns"),
        ("garbled", "/", 502, "http_protocol_error", "origin_protocol"),
        ("closing", "/", 502, "http_response_incomplete", "origin_closed"),
        ("not-tls", "/", 502, "tls_protocol_error", "origin_tls"),
        ("slow", "/slow/5000", 504, "http_response_timeout", "origin_timeout"),
        ("nobody", "/", 503, "destination_unavailable", "no_connector"),
        ("unheard-of", "/", 404, "destination_not_found", "no_such_service"),
    ];
    for (service, path, status, kind, reason) in cases {
        let start = Instant::now();
        let answer = relay.get(service, path).await?;
        let field = answer.header("proxy-status");
        assert_eq!(answer.status.as_u16(), status, "{service}: {field} {}", answer.text());
        assert_eq!(field, format!("culvert-relay; error={kind}; details=\"{reason}\""), "{service}");
        assert!(start.elapsed() < Duration::from_secs(4), "{service} took {:?}", start.elapsed());
        assert!(!answer.text().contains("127.0.0.1") && !field.contains("127.0.0.1"), "{service} names its address");
        let id = answer.header("x-request-id");
        assert!(id.is_empty() || answer.text().contains(id), "{service}: no request id in {}", answer.text());
        if reason != "no_such_service" {
            let metrics = relay.ask("/metrics").await?.text();
            let metric = format!("culvert_errors_total{{service=\"{service}\",reason=\"{reason}\"}} 1");
            assert!(metrics.contains(&metric), "no {metric} in\n{metrics}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_bad_request_is_refused_before_any_origin_sees_it() -> Result<()> {
    let setup = Setup::new().await?;
    let cases: [(&str, &[u8], &[&str]); 7] = [
        ("no host", b"GET / HTTP/1.1\r\n\r\n", &["400"]),
        ("two hosts", b"GET / HTTP/1.1\r\nHost: orders\r\nHost: other\r\n\r\n", &["400"]),
        ("ill-formed host", b"GET / HTTP/1.1\r\nHost: or ders\r\n\r\n", &["400"]),
        (
            "length and chunked",
            b"POST /echo HTTP/1.1\r\nHost: orders\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            &["400"],
        ),
        (
            "unknown coding",
            b"POST /echo HTTP/1.1\r\nHost: orders\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            &["400", "501"],
        ),
        ("connect", b"CONNECT orders:80 HTTP/1.1\r\nHost: orders:80\r\n\r\n", &["400", "405", "501"]),
        ("not HTTP", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", &["400"]),
    ];
    for (case, bytes, statuses) in cases {
        let answer = client::raw(setup.relay.http, bytes, Duration::from_secs(3)).await?;
        let text = String::from_utf8_lossy(&answer).into_owned();
        let status = text.split(' ').nth(1).unwrap_or_default();
        assert!(statuses.contains(&status), "{case}: {text:?}");
    }
    assert_eq!(setup.origin.requests("/") + setup.origin.requests("/echo"), 0);
    let mut long = b"GET / HTTP/1.1\r\nHost: orders\r\n".to_vec();
    for field in 0..90 {
        long.extend_from_slice(format!("x-{field}: {}\r\n", "y".repeat(2000)).as_bytes());
    }
    long.extend_from_slice(b"\r\n");
    let answer = client::raw(setup.relay.http, &long, Duration::from_secs(3)).await?;
    assert!(answer.starts_with(b"HTTP/1.1 431"), "{}", String::from_utf8_lossy(&answer));
    assert_eq!(setup.relay.get("orders", "/").await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn a_request_that_comes_back_to_its_relay_is_a_loop() -> Result<()> {
    let mut relay = Relay::new()?;
    relay.start().await?;
    let token = relay.tunnel("main", &["again"]).await?;
    let mut connector = Connector::new(&token, &[])?;
    connector
        .config(&format!("[[service]]\nname = \"again\"\norigin = \"http://{}\"\nhost = \"preserve\"\n", relay.http))?;
    connector.start().await?;
    relay.up("again").await?;
    let answer = relay.get("again", "/").await?;
    assert_eq!(answer.status, 508, "{} {}", answer.header("proxy-status"), answer.text());
    Ok(())
}

#[tokio::test]
async fn a_request_in_flight_fails_by_name_when_its_connector_dies() -> Result<()> {
    let mut setup = Setup::new().await?;
    let http = setup.relay.http;
    let waiting = tokio::spawn(async move { client::post(http, "orders", "/slow/60000", "not idempotent").await });
    let arrived = || async { (setup.origin.requests("/slow/60000") == 1).then_some(()) };
    culvert_lab::wait::until("the request at the origin", Duration::from_secs(5), arrived).await?;
    let start = Instant::now();
    setup.connector.kill()?;
    let answer = waiting.await??;
    assert_eq!(answer.status, 502, "{}", answer.text());
    assert!(answer.header("proxy-status").contains("connector_lost"), "{}", answer.header("proxy-status"));
    assert!(start.elapsed() < Duration::from_secs(8), "noticed after {:?}", start.elapsed());
    let answer = setup.relay.get("orders", "/").await?;
    assert!(answer.header("proxy-status").contains("no_connector"), "{answer:?}");
    assert_eq!(setup.origin.requests("/slow/60000"), 1, "a POST was repeated");
    Ok(())
}
