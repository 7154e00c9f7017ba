//! A connector of two lanes at a relay of two shards: both carry requests, and what ends one of them ends no other.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use culvert_lab::load::Plan;
use culvert_lab::udp::Forwarder;
use culvert_lab::websocket::{Message, WebSocket};
use culvert_lab::{Connector, Origin, Relay, client, origin, wait};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(20);

/// A relay of two shards and a connector with as many lanes.
struct Laned {
    relay: Relay,
    token: String,
    connector: Connector,
    origin: Origin,
}

impl Laned {
    async fn start() -> Result<Self> {
        Self::at(Relay::new()?).await
    }

    async fn at(mut relay: Relay) -> Result<Self> {
        relay.env.push(("CULVERT_RELAY_SHARDS".to_owned(), "2".to_owned()));
        relay.start().await?;
        let token = relay.tunnel_with("main", &["orders"], &["--uses", "2"]).await?;
        let origin = Origin::start("orders").await?;
        let connector = joined(&token, &origin).await?;
        let laned = Self { relay, token, connector, origin };
        laned.up(2).await?;
        Ok(laned)
    }

    /// The lanes of the first connector that is listed, as the relay tells of them.
    async fn lanes(&self) -> Result<Vec<Value>> {
        let connectors = self.relay.json(&["connector", "list"]).await?;
        let live = connectors.as_array().context("a list")?.iter().find_map(|one| one["lanes"].as_array());
        Ok(live.cloned().unwrap_or_default())
    }

    /// Waits until so many lanes are up, at both ends.
    async fn up(&self, count: usize) -> Result<()> {
        wait::until("the lanes", PATIENCE, || async {
            let status = self.connector.cli(&["status", "--json"]).await.ok()?;
            let status: Value = serde_json::from_str(&status.stdout).ok()?;
            let here = status["relays"][0]["lanes"].as_u64()?;
            let there = self.lanes().await.ok()?.len();
            (usize::try_from(here).ok()? == count && there == count).then_some(())
        })
        .await
        .with_context(|| format!("{}\n{}", self.relay.output(), self.connector.output()))
    }

    async fn requests(&self) -> Result<Vec<u64>> {
        self.lanes().await?.iter().map(|lane| lane["requests"].as_u64().context("a number")).collect()
    }
}

async fn joined(token: &str, origin: &Origin) -> Result<Connector> {
    let mut connector = Connector::new(token, &[&format!("orders={}", origin.url())])?;
    connector.env.extend(
        [("LANES", "2"), ("KEY_RENEW_PSK_AFTER", "10s")]
            .map(|(name, value)| (format!("CULVERT_CONNECTOR_{name}"), value.to_owned())),
    );
    connector.env.push(("CULVERT_LOG".to_owned(), "info,culvert_connector::session=debug".to_owned()));
    connector.start().await?;
    Ok(connector)
}

#[tokio::test]
async fn requests_of_both_threads_run_over_both_lanes() -> Result<()> {
    let laned = Laned::start().await?;
    let shards: Vec<u64> = laned.lanes().await?.iter().filter_map(|lane| lane["shard"].as_u64()).collect();
    ensure!(shards == [0, 1] || shards == [1, 0], "{shards:?}");
    // Each on a connection of its own, so that callers alternate between the threads.
    for _ in 0..20 {
        assert_eq!(laned.relay.get("orders", "/").await?.status, 200);
    }
    let requests = laned.requests().await?;
    ensure!(requests.iter().all(|count| *count >= 8), "{requests:?}");
    let length = 8 << 20;
    let mut sockets = Vec::new();
    for _ in 0..2 {
        let answer = laned.relay.get("orders", &format!("/bytes/{length}")).await?;
        ensure!(answer.body == origin::pattern(0, length), "{} bytes", answer.body.len());
        let answer = client::post(laned.relay.http, "orders", "/hash", origin::pattern(0, length)).await?;
        assert_eq!(answer.text(), format!("{} {length}", origin::pattern_hash(length)));
        sockets.push(WebSocket::open(laned.relay.http, "orders", "/ws").await?);
    }
    for socket in &mut sockets {
        socket.send("hello").await?;
        assert_eq!(socket.receive().await?, Message::Text("hello".to_owned()));
    }
    let shown = laned.relay.json(&["connector", "list"]).await?;
    ensure!(shown.as_array().is_some_and(|all| all.len() == 1), "one connector still: {shown}");
    let status = laned.connector.cli(&["status"]).await?.stdout;
    ensure!(status.contains("2 lanes"), "{status}");
    Ok(())
}

#[tokio::test]
async fn a_restart_of_either_end_opens_the_lanes_again() -> Result<()> {
    let mut laned = Laned::start().await?;
    laned.relay.kill()?;
    laned.relay.start().await?;
    laned.up(2).await?;
    laned.connector.kill()?;
    laned.connector.start().await?;
    laned.up(2).await?;
    for _ in 0..10 {
        assert_eq!(laned.relay.get("orders", "/").await?.status, 200);
    }
    let requests = laned.requests().await?;
    ensure!(requests.iter().all(|count| *count > 0), "{requests:?}");
    ensure!(!laned.relay.output().contains("panicked") && !laned.connector.output().contains("panicked"), "a panic");
    Ok(())
}

#[tokio::test]
async fn a_connector_that_leaves_loses_no_request_of_any_lane() -> Result<()> {
    let mut laned = Laned::start().await?;
    let origin = Origin::start("orders").await?;
    let _other = joined(&laned.token, &origin).await?;
    laned.relay.pairs_up("orders", 2).await?;
    let load = Plan::gets(laned.relay.http, "orders").per_second(200).start();
    let mut slow = Vec::new();
    for _ in 0..8 {
        let to = laned.relay.http;
        slow.push(tokio::spawn(async move { client::get(to, "orders", "/slow/1500").await }));
    }
    wait::until("slow requests", PATIENCE, || async { (laned.origin.requests("/slow/1500") >= 2).then_some(()) })
        .await?;
    let status = laned.connector.terminate(PATIENCE).await?;
    ensure!(status.success(), "{status}: {}", laned.connector.last_words());
    for request in slow {
        assert_eq!(request.await??.status, 200);
    }
    load.finish().await?.all_well(100)
}

#[tokio::test]
async fn a_revocation_ends_every_lane_at_once() -> Result<()> {
    let mut laned = Laned::start().await?;
    let mut running = Vec::new();
    for _ in 0..4 {
        let to = laned.relay.http;
        running.push(tokio::spawn(async move { client::get(to, "orders", "/slow/20000").await }));
    }
    wait::until("the requests", PATIENCE, || async { (laned.origin.requests("/slow/20000") == 4).then_some(()) })
        .await?;
    let connectors = laned.relay.json(&["connector", "list"]).await?;
    let id = connectors[0]["id"].as_str().context("an id")?.to_owned();
    let revoked = laned.relay.cli(&["connector", "revoke", &id]).await?;
    ensure!(revoked.status == 0, "{revoked:?}");
    for request in running {
        let answer = tokio::time::timeout(Duration::from_secs(5), request).await???;
        assert_eq!(answer.status, 502, "{}", answer.header("proxy-status"));
    }
    assert_eq!(laned.relay.get("orders", "/").await?.status, 503);
    let status = laned.connector.process()?.end(PATIENCE).await?;
    assert_eq!(status.code(), Some(78));
    let shards = laned.relay.json(&["status"]).await?;
    let peers: u64 =
        shards["shards"].as_array().context("shards")?.iter().filter_map(|s| s["peers_total"].as_u64()).sum();
    assert_eq!(peers, 0, "the relay answers none of its keys");
    Ok(())
}

#[tokio::test]
async fn a_lane_that_is_cut_off_fails_no_request_and_comes_back() -> Result<()> {
    let mut relay = Relay::new()?;
    let forwarder = Forwarder::start(relay.wireguard.ip(), relay.wireguard).await?;
    relay.endpoint = forwarder.address().to_string();
    let laned = Laned::at(relay).await?;
    let load = Plan::gets(laned.relay.http, "orders").per_second(50).start();
    forwarder.cut(*forwarder.senders().last().context("a sender")?);
    laned.up(1).await?;
    load.finish().await?.all_well(50)?;
    for _ in 0..10 {
        assert_eq!(laned.relay.get("orders", "/").await?.status, 200);
    }
    forwarder.mend();
    laned.up(2).await
}

#[tokio::test]
async fn keys_of_both_ends_change_and_no_lane_ends() -> Result<()> {
    let laned = Laned::start().await?;
    let load = Plan::gets(laned.relay.http, "orders").per_second(50).start();
    let rotated = laned.relay.cli(&["key", "rotate", "--grace", "5s"]).await?;
    ensure!(rotated.status == 0, "{rotated:?}");
    wait::until("the end of the old key", PATIENCE, || async {
        laned.relay.json(&["key", "show"]).await.ok()?["previous"].is_null().then_some(())
    })
    .await?;
    let rotated = laned.connector.cli(&["key", "rotate"]).await?;
    ensure!(rotated.status == 0, "{rotated:?}");
    wait::until("pre-shared keys of lanes", Duration::from_secs(30), || async {
        let output = laned.connector.output();
        (output.matches("lane has a fresh pre-shared key").count() >= 2).then_some(())
    })
    .await?;
    load.finish().await?.all_well(100)?;
    laned.up(2).await?;
    let before = laned.requests().await?;
    for _ in 0..8 {
        assert_eq!(laned.relay.get("orders", "/").await?.status, 200);
    }
    let after = laned.requests().await?;
    ensure!(after.iter().zip(&before).all(|(after, before)| after > before), "{before:?} {after:?}");
    let output = laned.relay.output();
    ensure!(!output.contains("lane is gone") && !output.contains("connector is gone"), "{output}");
    Ok(())
}

#[tokio::test]
async fn a_connector_of_one_lane_is_what_it_was() -> Result<()> {
    let mut relay = Relay::new()?;
    relay.env.push(("CULVERT_RELAY_SHARDS".to_owned(), "2".to_owned()));
    relay.start().await?;
    let token = relay.tunnel("main", &["orders"]).await?;
    let origin = Origin::start("orders").await?;
    let mut connector = Connector::new(&token, &[&format!("orders={}", origin.url())])?;
    connector.env.push(("CULVERT_CONNECTOR_LANES".to_owned(), "1".to_owned()));
    connector.start().await?;
    relay.up("orders").await?;
    assert_eq!(relay.get("orders", "/").await?.status, 200);
    let shown = relay.json(&["connector", "list"]).await?;
    assert_eq!(shown[0]["lanes"].as_array().map(Vec::len), Some(1), "{shown}");
    ensure!(!connector.output().contains("lane"), "{}", connector.output());
    Ok(())
}
