//! The relay's own key changes while requests run: connectors follow, those that are away come back, or are told what to do.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use culvert_lab::load::Plan;
use culvert_lab::{Connector, wait};
use serde_json::Value;

use crate::Setup;

const PATIENCE: Duration = Duration::from_secs(30);
/// What the issue asks for.
const RATE: u32 = 200;

async fn rotate(setup: &Setup, grace: &str) -> Result<Value> {
    setup.relay.json(&["key", "rotate", "--grace", grace]).await
}

/// Waits until nobody uses the key before the newest.
async fn followed(setup: &Setup) -> Result<Value> {
    let followed = wait::until("every connector under the new key", PATIENCE, || async {
        let shown = setup.relay.json(&["key", "show"]).await.ok()?;
        (shown["previous"]["used_by"].as_array()?.is_empty()).then_some(shown)
    });
    followed.await.with_context(|| format!("{}\n{}", setup.connector.last_words(), setup.relay.last_words()))
}

fn relay_of(connector: &Connector) -> Result<Value> {
    let text = std::fs::read_to_string(connector.state().join("joined.json"))?;
    Ok(serde_json::from_str::<Value>(&text)?["relays"][0].clone())
}

async fn status(connector: &Connector) -> Result<Value> {
    Ok(serde_json::from_str(&connector.cli(&["status", "--json"]).await?.stdout)?)
}

#[tokio::test]
async fn the_relays_key_is_rotated_under_load_and_no_request_fails() -> Result<()> {
    let mut setup = Setup::new().await?;
    let old = setup.relay.json(&["key", "show"]).await?;
    assert!(old["previous"].is_null(), "{old}");
    let load = Plan::gets(setup.relay.http, "orders").per_second(RATE).start();
    let mut keys = vec![old["public_key"].clone()];
    for _ in 0..3 {
        let rotated = rotate(&setup, "1h").await?;
        ensure!(rotated["previous"]["public_key"] == *keys.last().unwrap_or(&Value::Null), "{rotated}");
        keys.push(rotated["public_key"].clone());
        followed(&setup).await?;
    }
    load.finish().await?.all_well(10)?;
    assert_eq!(relay_of(&setup.connector)?["public_key"], keys[3]);
    assert_eq!(status(&setup.connector).await?["relays"][0]["public_key"], keys[3]);
    keys.dedup();
    assert_eq!(keys.len(), 4);

    // In the middle of the grace the relay starts anew: it has both keys, and knows who uses which.
    setup.relay.terminate(PATIENCE).await?;
    let shown = setup.relay.json(&["key", "show"]).await?;
    assert_eq!((&shown["public_key"], &shown["previous"]["public_key"]), (&keys[3], &keys[2]));
    assert_eq!(shown["previous"]["used_by"], serde_json::json!([]));
    setup.relay.start().await?;
    setup.relay.up("orders").await?;
    assert_eq!(setup.relay.get("orders", "/").await?.status, 200);
    let audit = setup.relay.cli(&["audit"]).await?.stdout;
    assert_eq!(audit.matches("key.rotate").count(), 3, "{audit}");
    Ok(())
}

#[tokio::test]
async fn a_relay_that_is_killed_right_after_a_rotation_goes_on_with_it() -> Result<()> {
    let mut setup = Setup::new().await?;
    for round in 0..4 {
        let rotated = rotate(&setup, "1h").await?;
        // At once, when connectors have been told, when they have followed, when that is written.
        tokio::time::sleep(Duration::from_millis([0, 20, 150, 1500][round])).await;
        setup.relay.kill()?;
        setup.relay.start().await?;
        setup.relay.up("orders").await?;
        assert_eq!(setup.relay.get("orders", "/").await?.status, 200);
        followed(&setup).await?;
        assert_eq!(relay_of(&setup.connector)?["public_key"], rotated["public_key"], "round {round}");
    }
    Ok(())
}

#[tokio::test]
async fn a_connector_that_was_away_within_the_grace_comes_back_and_old_tokens_work_as_long() -> Result<()> {
    let mut setup = Setup::new().await?;
    let token = setup.relay.cli(&["token", "create", "main", "--uses", "2"]).await?.stdout.trim().to_owned();
    setup.connector.terminate(PATIENCE).await?;
    // Without a running relay it works as well.
    setup.relay.terminate(PATIENCE).await?;
    let rotated = rotate(&setup, "1h").await?;
    assert_eq!(rotated["previous"]["used_by"].as_array().map(Vec::len), Some(1));
    let again = setup.relay.cli(&["key", "rotate"]).await?;
    assert_eq!(again.status, 1, "{again:?}");
    assert!(again.stderr.contains("locked out") && again.stderr.contains("--force"), "{again:?}");
    setup.relay.start().await?;
    setup.connector.start().await?;
    setup.relay.up("orders").await?;
    followed(&setup).await?;
    let service = format!("orders={}", setup.origin.url());
    let mut second = Connector::new(&token, &[&service])?;
    second.start().await?;
    setup.relay.pairs_up("orders", 2).await?;
    followed(&setup).await?;
    assert_eq!(relay_of(&second)?["public_key"], rotated["public_key"]);
    Ok(())
}

#[tokio::test]
async fn a_connector_that_was_away_longer_than_the_grace_says_what_to_do() -> Result<()> {
    let mut setup = Setup::new().await?;
    setup.connector.terminate(PATIENCE).await?;
    rotate(&setup, "2s").await?;
    let previous = setup.relay.state().join("previous.key");
    assert!(previous.exists());
    wait::until("the end of the grace", PATIENCE, || async { (!previous.exists()).then_some(()) }).await?;
    assert!(setup.relay.json(&["key", "show"]).await?["previous"].is_null());
    let audit = setup.relay.cli(&["audit"]).await?.stdout;
    assert!(audit.contains("key.retire") && audit.contains("left behind: con_"), "{audit}");

    setup.connector.launch()?;
    wait::until("words about it", PATIENCE, || async {
        let status = status(&setup.connector).await.ok()?;
        let why = status["relays"][0]["reason"].as_str()?.to_owned();
        (why.contains("rotated while this connector was away") && why.contains("token create")).then_some(())
    })
    .await
    .with_context(|| setup.connector.last_words())?;
    assert!(setup.connector.process()?.runs(), "silence may pass: it does not end the process");
    setup.connector.kill()?;

    let token = setup.relay.cli(&["token", "create", "main"]).await?.stdout.trim().to_owned();
    let mut again = Connector::new(&token, &[&format!("orders={}", setup.origin.url())])?;
    again.start().await?;
    setup.relay.up("orders").await?;
    Ok(())
}
