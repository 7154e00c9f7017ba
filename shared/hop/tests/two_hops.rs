//! A relay's hop and a connector's hop behind each other, as in a tunnel.

mod rig;

use std::time::Duration;

use culvert_hop::fault::Retry;
use culvert_hop::pool::{Pool, PoolSettings};
use rig::{Origins, Rig, connect, exactly, head, is_gone, pool};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

struct Tunnel {
    relay: Rig,
    origins: mpsc::UnboundedReceiver<DuplexStream>,
    pool: Pool<Origins>,
    gate: JoinHandle<()>,
}

/// A relay and a connector with one stream between them, which `request` went through.
async fn tunnel(request: &str) -> Tunnel {
    let mut relay = Rig::new();
    relay.say(request).await;
    let (pool, origins) = pool(64 * 1024, PoolSettings::default());
    let gate = connect(relay.origin().await, pool.clone());
    Tunnel { relay, origins, pool, gate }
}

#[tokio::test(start_paused = true)]
async fn both_hops_leave_the_head_as_one() {
    let Tunnel { mut relay, mut origins, .. } = tunnel(
        "POST //a?b HTTP/1.1\r\nHost: Orders\r\nX-Request-Id: abc\r\nConnection: x-mine\r\nX-Mine: 1\r\nX-b: 1\r\n\
         CULVERT-SERVICE: other\r\nContent-Length: 0\r\nX-B: 2\r\n\r\n",
    )
    .await;
    let mut origin = origins.recv().await.unwrap();
    assert_eq!(
        head(&mut origin).await,
        "POST //a?b HTTP/1.1\r\nHost: Orders\r\nX-Request-Id: abc\r\nX-b: 1\r\nContent-Length: 0\r\nX-B: 2\r\n\
         x-forwarded-for: 192.0.2.7\r\nx-forwarded-proto: http\r\n\
         x-forwarded-host: Orders\r\nx-forwarded-port: 8080\r\n\
         forwarded: for=192.0.2.7;by=_culvert-r1;host=Orders;proto=http\r\nvia: 1.1 culvert\r\n\
         te: trailers\r\nconnection: te\r\n\r\n"
    );
    origin.write_all(b"HTTP/1.1 200 Yes\r\nX-Out: 1\r\nconnection: x\r\nContent-LENGTH: 2\r\n\r\nok").await.unwrap();
    assert_eq!(head(&mut relay.caller).await, "HTTP/1.1 200 Yes\r\nX-Out: 1\r\nContent-LENGTH: 2\r\n\r\n");
    assert_eq!(exactly(&mut relay.caller, 2).await, "ok");
    assert_eq!(relay.pool.idle(), 1);
}

#[tokio::test(start_paused = true)]
async fn bodies_and_trailers_cross() {
    let body = "3\r\nabc\r\n0\r\nx-sum: 7\r\n\r\n";
    let Tunnel { mut relay, mut origins, .. } = tunnel(&format!(
        "PUT / HTTP/1.1\r\nHost: orders\r\nTE: trailers\r\nTrailer: x-sum\r\nTransfer-Encoding: chunked\r\n\r\n{body}"
    ))
    .await;
    let mut origin = origins.recv().await.unwrap();
    head(&mut origin).await;
    assert_eq!(exactly(&mut origin, body.len()).await, body);
    let answer = "HTTP/1.1 200 OK\r\nTrailer: x-sum\r\nTransfer-Encoding: chunked\r\n\r\n";
    origin.write_all(format!("{answer}{body}").as_bytes()).await.unwrap();
    head(&mut relay.caller).await;
    assert_eq!(exactly(&mut relay.caller, body.len()).await, body);
}

#[tokio::test(start_paused = true)]
async fn a_connectors_failure_keeps_its_name_and_loses_its_address() {
    let Tunnel { mut relay, mut origins, pool, .. } = tunnel("GET / HTTP/1.1\r\nHost: orders\r\n\r\n").await;
    let mut origin = origins.recv().await.unwrap();
    head(&mut origin).await;
    origin.write_all(b"HTTP/1.1 200 OK\r\nCulvert-Failure: loop; sent=0\r\nContent-Length: 0\r\n\r\n").await.unwrap();
    let answer = head(&mut relay.caller).await;
    assert_eq!(answer, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "an origin spoke for the connector");

    drop(origin);
    *pool.opener().refuses.lock().unwrap() = true;
    relay.say("POST / HTTP/1.1\r\nHost: orders\r\nContent-Length: 0\r\n\r\n").await;
    let answer = head(&mut relay.caller).await;
    assert!(answer.starts_with("HTTP/1.1 502 ") && answer.contains("details=\"origin_refused\""), "{answer}");
    assert!(!answer.contains("10.0.0.7") && !answer.contains("culvert-failure"), "{answer}");
    assert_eq!(relay.faults.lock().unwrap()[0].retry, Retry::Safe);
}

#[tokio::test(start_paused = true)]
async fn leave_to_send_comes_from_the_origin() {
    let Tunnel { mut relay, mut origins, .. } =
        tunnel("PUT / HTTP/1.1\r\nHost: orders\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n").await;
    let mut origin = origins.recv().await.unwrap();
    head(&mut origin).await;
    assert!(tokio::time::timeout(Duration::from_millis(900), relay.caller.read_u8()).await.is_err());
    origin.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.unwrap();
    assert_eq!(head(&mut relay.caller).await, "HTTP/1.1 100 Continue\r\n\r\n");
    relay.say("hi").await;
    assert_eq!(exactly(&mut origin, 2).await, "hi");
}

#[tokio::test(start_paused = true)]
async fn who_goes_away_is_missed_at_the_other_end() {
    for answer in ["", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n"] {
        let Tunnel { mut relay, mut origins, gate, .. } = tunnel("GET / HTTP/1.1\r\nHost: orders\r\n\r\n").await;
        let mut origin = origins.recv().await.unwrap();
        head(&mut origin).await;
        origin.write_all(answer.as_bytes()).await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        let start = Instant::now();
        drop(std::mem::replace(&mut relay.caller, tokio::io::duplex(1).0));
        assert!(is_gone(&mut origin).await);
        gate.await.unwrap();
        assert!(start.elapsed() <= Duration::from_secs(1), "{:?}", start.elapsed());

        let Tunnel { mut relay, mut origins, .. } = tunnel("GET / HTTP/1.1\r\nHost: orders\r\n\r\n").await;
        let mut origin = origins.recv().await.unwrap();
        head(&mut origin).await;
        origin.write_all(answer.as_bytes()).await.unwrap();
        drop(origin);
        let heard = relay.rest().await;
        if answer.is_empty() {
            assert!(heard.contains("details=\"origin_closed\""), "{heard}");
        } else {
            assert!(heard.ends_with("1\r\nx\r\n"), "{heard}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_websocket_crosses_and_is_told_1012_by_the_relay() {
    let Tunnel { mut relay, mut origins, gate, .. } =
        tunnel("GET / HTTP/1.1\r\nHost: orders\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n").await;
    let mut origin = origins.recv().await.unwrap();
    head(&mut origin).await;
    origin
        .write_all(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n\x81\x02hi")
        .await
        .unwrap();
    head(&mut relay.caller).await;
    let mut heard = [0; 4];
    relay.caller.read_exact(&mut heard).await.unwrap();
    assert_eq!(heard, *b"\x81\x02hi");
    relay.say(b"\x81\x80abcd").await;
    let mut said = [0; 6];
    origin.read_exact(&mut said).await.unwrap();
    assert_eq!(said, *b"\x81\x80abcd");
    relay.drain.send_replace(true);
    relay.caller.read_exact(&mut heard).await.unwrap();
    assert_eq!(heard, *b"\x88\x02\x03\xf4");
    relay.caller.shutdown().await.unwrap();
    assert!(is_gone(&mut origin).await);
    gate.await.unwrap();
}
