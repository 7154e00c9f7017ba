//! Keys change while requests run: the connector's own, and the pre-shared keys under it.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use culvert_lab::load::{Load, Plan};
use culvert_lab::skip::{self, Need};
use culvert_lab::{Connector, Origin, Postgres, Relay, client, wait};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(30);
/// What the issue asks for.
const RATE: u32 = 200;

/// A relay, and a connector that renews its pre-shared keys as often as it may.
struct Site {
    relay: Relay,
    connector: Connector,
    _origin: Origin,
}

impl Site {
    async fn new() -> Result<Self> {
        let mut relay = Relay::new()?;
        relay.start().await?;
        let origin = Origin::start("orders").await?;
        let token = relay.tunnel("main", &["orders"]).await?;
        let mut connector = Connector::new(&token, &[&format!("orders={}", origin.url())])?;
        connector.config("[key]\nrenew_psk_after = \"10s\"\n")?;
        connector.start().await?;
        relay.up("orders").await?;
        Ok(Self { relay, connector, _origin: origin })
    }

    fn load(&self) -> Load {
        Plan::gets(self.relay.http, "orders").per_second(RATE).start()
    }

    async fn key(&self) -> Result<Value> {
        let said = self.connector.cli(&["key", "show", "--json"]).await?;
        ensure!(said.status == 0, "{said:?}");
        Ok(serde_json::from_str(&said.stdout)?)
    }

    async fn rotate(&self) -> Result<String> {
        let words = || format!("{}\n{}", self.connector.last_words(), self.relay.last_words());
        let said = self.connector.cli(&["key", "rotate"]).await.with_context(words)?;
        ensure!(said.status == 0, "{said:?}\n{}", words());
        ensure!(said.stderr.contains("is in use"), "{said:?}\n{}", self.connector.last_words());
        Ok(said.stdout.trim().to_owned())
    }

    /// How the connector sees its one relay.
    async fn relay_seen(&self) -> Result<Value> {
        let said = self.connector.cli(&["status", "--json"]).await?;
        let status: Value = serde_json::from_str(&said.stdout)?;
        Ok(status["relays"][0].clone())
    }

    async fn epoch_from(&self, at_least: u64) -> Result<Value> {
        let seen = wait::until("a renewed pre-shared key", PATIENCE, || async {
            let seen = self.relay_seen().await.ok()?;
            (seen["psk_epoch"].as_u64()? >= at_least && !seen["psk_since"].is_null()).then_some(seen)
        });
        seen.await.with_context(|| self.connector.last_words())
    }

    /// The connector as the relay lists it.
    async fn listed(&self) -> Result<Value> {
        let list = self.relay.json(&["connector", "list"]).await?;
        ensure!(list.as_array().is_some_and(|list| list.len() == 1), "{list}");
        Ok(list[0].clone())
    }

    async fn restart_relay(&mut self) -> Result<()> {
        self.relay.terminate(PATIENCE).await?;
        self.relay.start().await?;
        // No load runs between: what the first request finds is tested elsewhere.
        self.relay.up("orders").await
    }
}

async fn well(load: Load, at_least: usize) -> Result<()> {
    load.finish().await?.all_well(at_least)
}

#[tokio::test]
async fn a_connector_changes_its_key_and_renews_its_pre_shared_keys_under_load_and_no_request_fails() -> Result<()> {
    let mut site = Site::new().await?;
    let before = site.listed().await?;
    let mut keys = vec![site.key().await?["public_key"].as_str().unwrap_or_default().to_owned()];
    let first = site.relay_seen().await?;
    assert_eq!(first["psk_epoch"], 1);
    let safe_since = first["quantum_safe_since"].clone();
    assert!(safe_since.is_string(), "{first}");

    let load = site.load();
    site.epoch_from(2).await?;
    keys.push(site.rotate().await?);
    assert_eq!(site.key().await?["public_key"], keys[1].as_str());
    site.epoch_from(2).await?;
    well(load, 5 * RATE as usize).await?;

    // Both ends come back as what they were.
    site.restart_relay().await?;
    let load = site.load();
    keys.push(site.rotate().await?);
    well(load, 20).await?;
    site.restart_relay().await?;
    let load = site.load();
    site.epoch_from(2).await?;
    well(load, 20).await?;

    // A new process has the new key alone, and says so.
    site.connector.terminate(PATIENCE).await?;
    site.connector.start().await?;
    site.relay.up("orders").await?;
    let listed = wait::until("the old key to be retired", PATIENCE, || async {
        let listed = site.listed().await.ok()?;
        (listed["public_key"] == keys[2].as_str()).then_some(listed)
    })
    .await?;
    assert_eq!((&listed["id"], &listed["inner_address"]), (&before["id"], &before["inner_address"]));
    assert_eq!(site.relay_seen().await?["quantum_safe_since"], safe_since);
    keys.dedup();
    assert_eq!(keys.len(), 3, "each change made another key");

    let audit = site.relay.cli(&["audit"]).await?.stdout;
    assert_eq!(audit.matches("connector.rotate ").count(), 2, "{audit}");
    assert_eq!(audit.matches("connector.rotated").count(), 2, "{audit}");
    for key in &keys[1..] {
        assert!(audit.contains(key.as_str()), "{audit}");
    }
    Ok(())
}

#[tokio::test]
async fn a_request_in_flight_outlives_the_change_of_keys() -> Result<()> {
    let site = Site::new().await?;
    let http = site.relay.http;
    let slow = tokio::spawn(async move { client::get(http, "orders", "/slow/4000").await });
    wait::until("the request at the origin", PATIENCE, || async {
        (site._origin.requests("/slow/4000") == 1).then_some(())
    })
    .await?;
    site.rotate().await?;
    assert!(!slow.is_finished(), "the change took longer than the request");
    assert_eq!(slow.await??.status, 200);
    assert_eq!(site._origin.requests("/slow/4000"), 1, "it was not sent again");
    Ok(())
}

#[tokio::test]
async fn a_change_of_keys_that_a_killed_process_began_is_finished_by_the_next() -> Result<()> {
    let mut site = Site::new().await?;
    let old = site.key().await?;
    site.connector.kill()?;
    let said = site.connector.cli(&["key", "rotate", "--json"]).await?;
    assert_eq!(said.status, 0, "{said:?}");
    let prepared: Value = serde_json::from_str(&said.stdout)?;
    assert_eq!(prepared["public_key"], old["public_key"], "it is not in use yet");
    let next = prepared["rotation"]["public_key"].clone();
    assert!(next.is_string(), "{prepared}");
    // Killed again and again, at whatever moment: it stays the same connector.
    for wait in [5, 20, 60, 120, 250, 500] {
        site.connector.launch()?;
        tokio::time::sleep(Duration::from_millis(wait)).await;
        site.connector.kill()?;
    }
    site.connector.start().await?;
    site.relay.up("orders").await?;
    wait::until("the next key in use", PATIENCE, || async {
        (site.key().await.ok()?["public_key"] == next).then_some(())
    })
    .await
    .with_context(|| site.connector.last_words())?;
    assert_eq!(site.relay.get("orders", "/").await?.status, 200);
    assert_eq!(site.relay.json(&["connector", "list"]).await?.as_array().map(Vec::len), Some(1));
    Ok(())
}

#[tokio::test]
async fn an_old_key_is_changed_by_its_age() -> Result<()> {
    let mut site = Site::new().await?;
    let old = site.key().await?;
    site.connector.terminate(PATIENCE).await?;
    let path = site.connector.state().join("joined.json");
    let mut joined: Value = serde_json::from_str(&std::fs::read_to_string(&path)?)?;
    joined["joined_seconds"] = (joined["joined_seconds"].as_u64().unwrap_or_default() - 31 * 86_400).into();
    std::fs::write(&path, joined.to_string())?;
    site.connector.start().await?;
    wait::until("another key", PATIENCE, || async {
        (site.key().await.ok()?["public_key"] != old["public_key"]).then_some(())
    })
    .await
    .with_context(|| site.connector.last_words())?;
    assert!(site.key().await?["age_seconds"].as_u64().is_some_and(|age| age < 60));
    Ok(())
}

#[tokio::test]
async fn every_relay_is_told_of_a_new_key_and_one_that_is_away_is_waited_for() -> Result<()> {
    if skip::unless("a new key at two relays", &[Need::Postgres]) {
        return Ok(());
    }
    let postgres = Postgres::start().await?;
    let (mut one, mut two) = (Relay::sharing(&postgres)?, Relay::sharing(&postgres)?);
    one.start().await?;
    two.start().await?;
    let origin = Origin::start("orders").await?;
    let token = one.tunnel("main", &["orders"]).await?;
    let mut connector = Connector::new(&token, &[&format!("orders={}", origin.url())])?;
    connector.start().await?;
    one.up("orders").await?;
    two.up("orders").await?;
    let words = |connector: &Connector, two: &Relay| format!("{}\nTWO\n{}", connector.last_words(), two.last_words());

    let said = connector.cli(&["key", "rotate"]).await?;
    assert_eq!(said.status, 0, "{said:?}");
    assert!(said.stderr.contains("is in use"), "{said:?}\n{}", words(&connector, &two));
    let first = said.stdout.trim().to_owned();
    for relay in [&one, &two] {
        assert_eq!(relay.get("orders", "/").await?.status, 200, "{}", words(&connector, &two));
    }

    two.terminate(PATIENCE).await?;
    let load = Plan::gets(one.http, "orders").per_second(RATE).start();
    let state = connector.state().to_owned();
    let rotating = connector.cli(&["key", "rotate"]);
    let told = wait::until("the first relay to know the next key", PATIENCE, || async {
        let said = connector.cli(&["key", "show", "--json"]).await.ok()?;
        let key: Value = serde_json::from_str(&said.stdout).ok()?;
        let relays = key["rotation"]["relays"].as_object()?.values().filter_map(Value::as_str).collect::<Vec<_>>();
        (relays.contains(&"in_use") && relays.contains(&"not_told")).then_some(key)
    });
    let back = async {
        let key = told.await.with_context(|| connector.last_words())?;
        ensure!(key["public_key"] == first.as_str(), "a relay is away, and its key is taken from it: {key}");
        two.start().await
    };
    let (said, back) = tokio::join!(rotating, back);
    back?;
    let said = said?;
    assert!(said.stderr.contains("is in use"), "{said:?}\n{}", words(&connector, &two));
    well(load, 20).await?;
    two.up("orders").await?;
    for relay in [&one, &two] {
        assert_eq!(relay.get("orders", "/").await?.status, 200, "{}", words(&connector, &two));
    }
    assert!(!state.join("next").exists());
    Ok(())
}
