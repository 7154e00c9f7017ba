//! A relay of two shards: connectors live on both, callers are served on both, and every way between them works.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use culvert_lab::load::Plan;
use culvert_lab::websocket::{Message, WebSocket};
use culvert_lab::{Connector, Origin, Relay, client, origin, wait};
use http::Method;
use http_body_util::BodyExt as _;
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(20);

/// A relay of two shards, and connectors that each serve a name of their own: half of them live on each shard.
struct Two {
    relay: Relay,
    replicas: Vec<(Connector, Origin)>,
}

impl Two {
    async fn start(names: &[&str]) -> Result<Self> {
        Self::configured(names, "").await
    }

    async fn configured(names: &[&str], config: &str) -> Result<Self> {
        let mut relay = Relay::new()?;
        relay.env.push(("CULVERT_RELAY_SHARDS".to_owned(), "2".to_owned()));
        if !config.is_empty() {
            let http = relay.http;
            relay.config(&format!("[http]\nlisten = [\"{http}\"]\n{config}"))?;
        }
        relay.start().await?;
        let mut known = names.to_vec();
        known.sort_unstable();
        known.dedup();
        let token = relay.tunnel_with("main", &known, &["--uses", &names.len().to_string()]).await?;
        let mut replicas = Vec::new();
        for name in names {
            let origin = Origin::start(name).await?;
            let mut connector = Connector::new(&token, &[&format!("{name}={}", origin.url())])?;
            connector.start().await?;
            replicas.push((connector, origin));
        }
        for name in &known {
            let count = names.iter().filter(|other| *other == name).count();
            relay.pairs_up(name, u64::try_from(count)?).await?;
        }
        Ok(Self { relay, replicas })
    }

    /// What `status` tells of each shard.
    async fn shards(&self) -> Result<Vec<Value>> {
        let status = self.relay.json(&["status"]).await?;
        Ok(status["shards"].as_array().context("shards")?.clone())
    }

    async fn figures(&self, name: &str) -> Result<Vec<u64>> {
        self.shards().await?.iter().map(|shard| shard[name].as_u64().context("a number")).collect()
    }
}

#[tokio::test]
async fn connectors_of_both_shards_are_reached_by_callers_of_both() -> Result<()> {
    let names = ["a", "b", "c", "d"];
    let two = Two::start(&names).await?;
    wait::until("joiners to be gone", Duration::from_secs(40), || async {
        (two.figures("peers_up").await.ok()? == [2, 2]).then_some(())
    })
    .await?;
    let mut callers = Vec::new();
    for _ in 0..4 {
        callers.push(client::connect(two.relay.http).await?);
    }
    for round in 0..5 {
        for caller in &mut callers {
            for name in names {
                let request = client::request(Method::GET, name, "/", Bytes::new())?;
                let answer = client::whole(caller.send_request(request).await?).await?;
                assert_eq!((answer.status.as_u16(), answer.text()), (200, format!("hello from {name}\n")), "{round}");
            }
        }
    }
    assert_eq!(two.figures("callers").await?, [2, 2]);
    // The kernel steers: what lands on the wrong shard are initiations alone, a few of each connector.
    let passed: u64 = two.figures("passed_on").await?.iter().sum();
    ensure!(passed <= 40, "{passed} datagrams passed on");
    let text = two.relay.cli(&["status"]).await?.stdout;
    ensure!(text.contains("0: 2 of ") && text.contains("1: 2 of "), "{text}");
    let metrics = two.relay.ask("/metrics").await?.text();
    ensure!(metrics.contains("culvert_shard_peers{shard=\"1\"} 2"), "{metrics}");
    Ok(())
}

#[tokio::test]
async fn bodies_events_and_websockets_pass_between_any_two_threads() -> Result<()> {
    let names = ["a", "b"];
    let two = Two::start(&names).await?;
    let length = 8 << 20;
    // Each on a connection of its own, so that callers alternate between the threads.
    for name in [names, ["b", "a"]].concat() {
        let answer = two.relay.get(name, &format!("/bytes/{length}")).await?;
        ensure!(answer.body == origin::pattern(0, length), "{name}: {} bytes", answer.body.len());
        let answer = client::post(two.relay.http, name, "/hash", origin::pattern(0, length)).await?;
        assert_eq!(answer.text(), format!("{} {length}", origin::pattern_hash(length)), "{name}");
    }
    let mut sockets = Vec::new();
    for name in [names, names, ["b", "a"]].concat() {
        sockets.push(WebSocket::open(two.relay.http, name, "/ws").await?);
    }
    let mut streams = Vec::new();
    for name in [names, ["b", "a"]].concat() {
        let request = client::request(Method::GET, name, "/sse/5/50", Bytes::new())?;
        streams.push(client::stream(two.relay.http, request).await?);
    }
    for text in ["one", "two", "three"] {
        for socket in &mut sockets {
            socket.send(text).await?;
            assert_eq!(socket.receive().await?, Message::Text(text.to_owned()));
        }
    }
    for mut stream in streams {
        let mut seen = 0;
        while let Some(frame) = stream.body_mut().frame().await {
            seen += usize::from(frame?.is_data());
        }
        ensure!(seen >= 5, "{seen} events");
    }
    Ok(())
}

#[tokio::test]
async fn a_drain_lets_both_threads_finish_and_both_tunnels_close() -> Result<()> {
    let names = ["a", "b"];
    let mut two = Two::start(&names).await?;
    let mut running = Vec::new();
    for name in [names, ["b", "a"]].concat() {
        let to = two.relay.http;
        running.push(tokio::spawn(async move { client::get(to, name, "/slow/1500").await }));
    }
    wait::until("the requests to run", PATIENCE, || async {
        let callers = two.figures("callers").await.ok()?;
        let at_origins = two.replicas.iter().all(|(_, origin)| origin.requests("/slow/1500") >= 2);
        (callers == [2, 2] && at_origins).then_some(())
    })
    .await?;
    let status = two.relay.terminate(PATIENCE).await?;
    ensure!(status.success(), "{status}: {}", two.relay.last_words());
    for request in running {
        assert_eq!(request.await??.status, 200);
    }
    Ok(())
}

#[tokio::test]
async fn a_revocation_and_a_reload_under_load_cost_nothing_on_the_other_shard() -> Result<()> {
    let two = Two::configured(&["a", "b", "c", "d"], "[limits]\nqueue = 500\n").await?;
    let loads = ["a", "b", "c"].map(|name| Plan::gets(two.relay.http, name).per_second(60).start());
    let said = two.replicas[3].0.cli(&["status", "--json"]).await?;
    let status: Value = serde_json::from_str(&said.stdout).with_context(|| format!("{said:?}"))?;
    let id = status["id"].as_str().context("an id")?.to_owned();
    let reloaded = two.relay.cli(&["reload"]).await?;
    ensure!(reloaded.status == 0, "{reloaded:?}");
    let revoked = two.relay.cli(&["connector", "revoke", &id]).await?;
    ensure!(revoked.status == 0, "{revoked:?}");
    let answer = two.relay.get("d", "/").await.with_context(|| two.relay.last_words())?;
    assert_eq!(answer.status, 503);
    let reloaded = two.relay.cli(&["reload"]).await?;
    ensure!(reloaded.status == 0, "{reloaded:?}");
    for load in loads {
        load.finish().await?.all_well(3)?;
    }
    Ok(())
}

#[tokio::test]
async fn replicas_on_both_shards_come_back_after_a_crash_of_the_relay() -> Result<()> {
    let mut two = Two::start(&["a", "a", "a", "a"]).await?;
    two.relay.kill()?;
    two.relay.start().await?;
    two.relay.pairs_up("a", 4).await?;
    assert_eq!(two.figures("peers_total").await?, [2, 2]);
    for _ in 0..40 {
        assert_eq!(two.relay.get("a", "/").await?.status, 200);
    }
    for (_, origin) in &two.replicas {
        ensure!(origin.all_requests() > 0, "every replica gets its share");
    }
    Ok(())
}
