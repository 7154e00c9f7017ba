//! Thousands of open streams through one connector: nobody waits for those who stopped reading, and memory stays flat.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use culvert_lab::websocket::{Message, WebSocket};
use culvert_lab::{Connector, Origin, Relay, client};
use http::Method;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::task::JoinSet;

const EACH_KIND: usize = 1_000;
const STALLED_EACH_KIND: usize = 25;
const ROUNDS_BEFORE: usize = 3;
const ROUNDS_BESIDE: usize = 10;
/// A round is 1,950 messages there and back. A stalled stream that holds up others would hold them for ever.
const ROUND_LIMIT: Duration = Duration::from_secs(10);
const STALL_LIMIT: Duration = Duration::from_secs(60);
const MEMORY: u64 = 128 << 20;
/// Callers and origin are both in this process.
const DESCRIPTORS: u64 = 6 * EACH_KIND as u64;

#[tokio::test]
async fn a_thousand_websockets_and_a_thousand_event_streams_do_not_wait_for_fifty_that_stop_reading() -> Result<()> {
    raise_descriptors()?;
    let mut relay = Relay::new()?;
    relay.start().await?;
    let origin = Origin::start("orders").await?;
    let token = relay.tunnel("main", &["orders"]).await?;
    let mut connector = Connector::new(&token, &[&format!("orders={}", origin.url())])?;
    connector.start().await?;
    relay.up("orders").await?;

    let begun = Instant::now();
    let mut sockets = open(EACH_KIND, || open_socket(relay.http)).await?;
    let mut feeds = open(EACH_KIND - STALLED_EACH_KIND, || open_feed(relay.http)).await?;
    for round in 0..ROUNDS_BEFORE {
        in_time(round, &origin, &mut sockets, &mut feeds).await?;
    }

    eprintln!(
        "relay {} MiB, connector {} MiB",
        relay.usage()?.peak_rss_bytes >> 20,
        connector.usage()?.peak_rss_bytes >> 20
    );
    // These are sent as fast as they are taken, and nobody takes them.
    let floods = open(STALLED_EACH_KIND, || open_flood(relay.http)).await?;
    let mut stalling: JoinSet<_> = sockets.split_off(EACH_KIND - STALLED_EACH_KIND).into_iter().map(stall).collect();
    let mut stalled = Vec::new();
    while let Some(socket) = stalling.join_next().await {
        stalled.push(socket??);
    }

    eprintln!("2,000 open, 50 of them stalled: {:.1?}", begun.elapsed());
    for round in ROUNDS_BEFORE..ROUNDS_BEFORE + ROUNDS_BESIDE {
        in_time(round, &origin, &mut sockets, &mut feeds).await?;
        let answer = relay.get("orders", "/").await?;
        ensure!(answer.status == 200, "a new request beside them: {answer:?}");
    }
    for (name, usage) in [("relay", relay.usage()?), ("connector", connector.usage()?)] {
        eprintln!("{name}: {} MiB at most, {} descriptors", usage.peak_rss_bytes >> 20, usage.descriptors);
        ensure!(usage.peak_rss_bytes < MEMORY, "{name} used {} MiB", usage.peak_rss_bytes >> 20);
        ensure!(usage.descriptors >= 2 * EACH_KIND, "{name} holds only {} descriptors", usage.descriptors);
    }
    drop((floods, stalled));
    Ok(())
}

/// One message to and from every WebSocket, one event to every stream.
async fn in_time(round: usize, origin: &Origin, sockets: &mut [WebSocket], feeds: &mut [Feed]) -> Result<()> {
    let start = Instant::now();
    let text = format!("round {round}");
    let all = async {
        origin.tell(&text);
        for socket in sockets.iter_mut() {
            socket.send(&text).await?;
        }
        for (number, socket) in sockets.iter_mut().enumerate() {
            let echoed = socket.receive().await.with_context(|| format!("WebSocket {number}"))?;
            ensure!(echoed == Message::Text(text.clone()), "WebSocket {number}: {echoed:?}");
        }
        for (number, feed) in feeds.iter_mut().enumerate() {
            feed.event(&text).await.with_context(|| format!("event stream {number}"))?;
        }
        Ok(())
    };
    tokio::time::timeout(ROUND_LIMIT, all)
        .await
        .with_context(|| format!("{text} is not over in {ROUND_LIMIT:?}"))??;
    eprintln!("{text}: {:.0?}", start.elapsed());
    Ok(())
}

/// A stream of events, read one by one.
struct Feed {
    body: Incoming,
    left: Vec<u8>,
}

impl Feed {
    async fn event(&mut self, data: &str) -> Result<()> {
        let wanted = format!("data: {data}\n\n");
        while self.left.len() < wanted.len() {
            let frame = self.body.frame().await.context("the stream ended")??;
            self.left.extend_from_slice(frame.data_ref().context("trailers")?);
        }
        let rest = self.left.split_off(wanted.len());
        ensure!(self.left == wanted.as_bytes(), "{:?}", String::from_utf8_lossy(&self.left));
        self.left = rest;
        Ok(())
    }
}

async fn open_feed(to: std::net::SocketAddr) -> Result<Feed> {
    let response = client::stream(to, client::request(Method::GET, "orders", "/feed", Bytes::new())?).await?;
    ensure!(response.status() == 200, "{response:?}");
    let mut feed = Feed { body: response.into_body(), left: Vec::new() };
    feed.event("ready").await?;
    Ok(feed)
}

async fn open_socket(to: std::net::SocketAddr) -> Result<WebSocket> {
    WebSocket::open(to, "orders", "/ws").await
}

async fn open_flood(to: std::net::SocketAddr) -> Result<Incoming> {
    let request = client::request(Method::GET, "orders", "/flood", Bytes::new())?;
    let response = client::stream(to, request).await?;
    ensure!(response.status() == 200, "{response:?}");
    Ok(response.into_body())
}

/// Fills every buffer on the way there and back.
async fn stall(mut socket: WebSocket) -> Result<WebSocket> {
    let full = tokio::time::timeout(STALL_LIMIT, socket.fill(Duration::from_millis(500))).await;
    full.context("a WebSocket whose echo nobody reads still takes messages")??;
    Ok(socket)
}

/// Opens `count` of them, some at a time.
async fn open<T, F, Fut>(count: usize, one: F) -> Result<Vec<T>>
where
    T: Send + 'static,
    F: Fn() -> Fut,
    Fut: Future<Output = Result<T>> + Send + 'static,
{
    let mut opening = JoinSet::new();
    let mut opened = Vec::with_capacity(count);
    for started in 0..count {
        if started >= 50 {
            opened.push(opening.join_next().await.context("nothing is opening")???);
        }
        opening.spawn(one());
    }
    while let Some(one) = opening.join_next().await {
        opened.push(one??);
    }
    Ok(opened)
}

/// As many descriptors as this needs, for this process and those it starts.
fn raise_descriptors() -> Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < DESCRIPTORS {
        // Root may raise the hard limit too.
        setrlimit(Resource::RLIMIT_NOFILE, DESCRIPTORS.min(hard.max(soft)).max(DESCRIPTORS), hard.max(DESCRIPTORS))
            .with_context(|| format!("{DESCRIPTORS} descriptors of {hard} that are allowed"))?;
    }
    Ok(())
}
