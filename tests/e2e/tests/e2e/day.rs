//! A day of an operator: a tunnel is made, three replicas join at once, every key is rotated while requests come without
//! a break, one replica is revoked, the tunnel is deleted. No request fails that was not in flight on the revoked one, and
//! the audit trail tells the story.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use culvert_lab::load::Plan;
use culvert_lab::{Connector, Origin, Relay, client, wait};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(60);
/// What the issue asks for.
const RATE: f64 = 200.0;
/// Requests on the replica that is to be revoked, of three that get as many.
const SLOW: usize = 9;

/// One replica, with an origin of its own so that it is known who served what.
struct Replica {
    connector: Connector,
    origin: Origin,
}

impl Replica {
    async fn id(&self) -> Result<String> {
        Ok(self.status().await?["id"].as_str().context("an id")?.to_owned())
    }

    async fn status(&self) -> Result<Value> {
        let said = self.connector.cli(&["status", "--json"]).await?;
        serde_json::from_str(&said.stdout).with_context(|| format!("{said:?}"))
    }

    /// Rotates its key; the new one.
    async fn rotate(&self) -> Result<String> {
        let said = self.connector.cli(&["key", "rotate"]).await?;
        ensure!(said.status == 0, "{said:?}\n{}", self.connector.last_words());
        Ok(said.stdout.trim().to_owned())
    }

    /// Waits until its pre-shared key is of this epoch or a later one.
    async fn epoch(&self, at_least: u64) -> Result<()> {
        let seen = wait::until("a renewed pre-shared key", PATIENCE, || async {
            let status = self.status().await.ok()?;
            (status["relays"][0]["psk_epoch"].as_u64()? >= at_least).then_some(())
        });
        seen.await.with_context(|| self.connector.last_words())
    }
}

/// Three replicas that join at the same moment.
async fn three(token: &str) -> Result<Vec<Replica>> {
    let mut replicas = Vec::new();
    for _ in 0..3 {
        let origin = Origin::start("orders").await?;
        let mut connector = Connector::new(token, &[&format!("orders={}", origin.url())])?;
        connector.config("[key]\nrenew_psk_after = \"10s\"\n")?;
        replicas.push(Replica { connector, origin });
    }
    for replica in &mut replicas {
        replica.connector.launch()?;
    }
    Ok(replicas)
}

/// One line of the audit trail, without its time.
#[derive(Debug)]
struct Line {
    actor: String,
    action: &'static str,
    subject: String,
    /// What the detail has to tell.
    says: String,
}

impl Line {
    fn new(actor: &str, action: &'static str, subject: &str, says: &str) -> Self {
        Self { actor: actor.to_owned(), action, subject: subject.to_owned(), says: says.to_owned() }
    }

    fn is_told_by(&self, row: &Value) -> bool {
        row["actor"] == *self.actor
            && row["action"] == *self.action
            && row["subject"] == *self.subject
            && row["detail"].as_str().is_some_and(|detail| detail.contains(&self.says))
    }
}

#[tokio::test]
async fn a_day_of_joins_rotations_and_a_revocation_fails_no_request_but_those_of_the_revoked_one() -> Result<()> {
    let mut relay = Relay::new()?;
    relay.start().await?;
    let token = relay.tunnel_with("main", &["orders"], &["--uses", "3"]).await?;
    let mut replicas = three(&token).await?;
    relay.pairs_up("orders", 3).await?;
    let mut ids = Vec::new();
    for replica in &replicas {
        ids.push(replica.id().await?);
    }

    let begun = Instant::now();
    let load = Plan::gets(relay.http, "orders").per_second(220).start();
    // Connectors' keys, one after the other.
    let mut keys = Vec::new();
    for replica in &replicas {
        keys.push(replica.rotate().await?);
    }
    // Pre-shared keys under the new ones, by the schedule.
    for replica in &replicas {
        replica.epoch(2).await?;
    }
    // The relay's.
    let rotated = relay.json(&["key", "rotate", "--grace", "1h"]).await?;
    wait::until("everybody under the relay's new key", PATIENCE, || async {
        let shown = relay.json(&["key", "show"]).await.ok()?;
        shown["previous"]["used_by"].as_array()?.is_empty().then_some(())
    })
    .await
    .with_context(|| relay.last_words())?;

    // One replica goes, with requests in flight on each that may not be sent twice.
    let http = relay.http;
    let slow: Vec<_> = (0..SLOW)
        .map(|_| tokio::spawn(async move { client::post(http, "orders", "/slow/3000", "once").await }))
        .collect();
    wait::until("the slow requests at the origins", PATIENCE, || async {
        let there: usize = replicas.iter().map(|replica| replica.origin.requests("/slow/3000")).sum();
        (there == SLOW).then_some(())
    })
    .await?;
    let gone = replicas.remove(1);
    let on_it = gone.origin.requests("/slow/3000");
    ensure!(on_it > 0, "the load is spread over all three");
    let said = relay.cli(&["connector", "revoke", &ids[1]]).await?;
    ensure!(said.status == 0, "{said:?}");
    let mut lost = 0;
    for answer in slow {
        let answer = answer.await??;
        if answer.status != 200 {
            let why = answer.header("proxy-status");
            ensure!(answer.status == 502 && why.contains("connector_lost"), "{} {why}", answer.status);
            lost += 1;
        }
    }
    assert_eq!(lost, on_it, "those in flight on the revoked one, and no other");
    let Replica { mut connector, .. } = gone;
    let ended = connector.process()?.end(PATIENCE).await?;
    assert_eq!(ended.code(), Some(78), "{}", connector.last_words());

    let report = load.finish().await?;
    let rate = report.answered as f64 / begun.elapsed().as_secs_f64();
    report.all_well(1000).with_context(|| relay.last_words())?;
    ensure!(rate >= RATE, "{rate:.0} requests a second");

    let said = relay.cli(&["tunnel", "delete", "main"]).await?;
    ensure!(said.status == 0, "{said:?}");
    assert_eq!(relay.get("orders", "/").await?.status, 404);
    for Replica { connector, .. } in &mut replicas {
        let ended = connector.process()?.end(PATIENCE).await?;
        assert_eq!(ended.code(), Some(78), "{}", connector.last_words());
    }
    tells_the_story(&relay, &ids, &keys, &rotated).await
}

/// Row by row. Renewed pre-shared keys are no event: nobody asked for them.
async fn tells_the_story(relay: &Relay, ids: &[String], keys: &[String], rotated: &Value) -> Result<()> {
    let trail = relay.json(&["audit", "--since", "1h"]).await?;
    let trail = trail.as_array().context("rows")?;
    let token = trail.get(1).and_then(|row| row["subject"].as_str()).context("the token's row")?.to_owned();
    let own = format!("uid {}", nix::unistd::getuid());
    let text = |value: &Value| value.as_str().map(str::to_owned).context("a text");
    let mut story = vec![
        Line::new(&own, "tunnel.create", "main", "services orders"),
        Line::new(&own, "token.create", &token, "uses 3"),
    ];
    let mut joins: Vec<Line> = ids.iter().map(|id| Line::new(&token, "connector.join", id, "from 127.0.0.1")).collect();
    // All three at once: in the order in which they came.
    joins.sort_by_key(|join| trail.iter().position(|row| join.is_told_by(row)));
    story.extend(joins);
    story.extend(ids.iter().zip(keys).map(|(id, key)| Line::new(id, "connector.rotate", id, key)));
    let (new, old) = (text(&rotated["public_key"])?, text(&rotated["previous"]["public_key"])?);
    story.push(Line::new(&own, "key.rotate", &new, &old));
    story.push(Line::new(&own, "connector.revoke", &ids[1], ""));
    story.push(Line::new(&own, "tunnel.delete", "main", ""));
    for (place, line) in story.iter().enumerate() {
        let row = trail.get(place).with_context(|| format!("no row for {line:?}: {trail:#?}"))?;
        ensure!(line.is_told_by(row), "row {place} is {row}, and not {line:?}");
    }
    ensure!(trail.len() == story.len(), "more than the story: {:#?}", trail.get(story.len()..));
    let times: Vec<&str> = trail.iter().filter_map(|row| row["time"].as_str()).collect();
    ensure!(times.len() == trail.len() && times.is_sorted(), "{times:?}");
    Ok(())
}
