//! Joining costs exactly one use of a token, whatever happens on the way.

use std::time::Duration;

use anyhow::{Context as _, Result};
use culvert_lab::udp::Forwarder;
use culvert_lab::{Connector, Origin, Relay, address, wait};

#[tokio::test]
async fn a_connector_killed_at_any_datagram_of_joining_costs_no_second_use() -> Result<()> {
    let origin = Origin::start("orders").await?;
    let mut relay = Relay::new()?;
    let forwarder = Forwarder::start(address::own_loopback(), relay.wireguard).await?;
    relay.endpoint = forwarder.address().to_string();
    relay.start().await?;
    relay.tunnel("main", &["orders"]).await?;
    let service = format!("orders={}", origin.url());
    for kill_after in 1..=14 {
        let made = relay.json(&["token", "create", "main", "--uses", "1"]).await?;
        let (token, id) = (made["token"].as_str().context("token")?, made["id"].as_str().context("id")?);
        let (up, down) = forwarder.count();
        let target = up + down + kill_after;
        let mut connector = Connector::new(token, &[&service])?;
        connector.launch()?;
        wait::until(&format!("datagram {kill_after}"), Duration::from_secs(10), || async {
            let (up, down) = forwarder.count();
            (up + down >= target).then_some(())
        })
        .await?;
        connector.kill()?;
        connector.start().await.with_context(|| format!("killed after datagram {kill_after}"))?;
        let tokens = relay.json(&["token", "list"]).await?;
        let token = tokens.as_array().and_then(|all| all.iter().find(|token| token["id"] == *id)).cloned();
        assert_eq!(token.context("the token")?["uses_left"], 0, "killed after datagram {kill_after}");
        connector.terminate(Duration::from_secs(10)).await?;
    }
    let connectors = relay.json(&["connector", "list"]).await?;
    assert_eq!(connectors.as_array().map(Vec::len), Some(14), "one connector for each token: {connectors}");
    Ok(())
}

#[tokio::test]
async fn a_connector_killed_at_any_change_of_its_state_directory_costs_no_second_use() -> Result<()> {
    let origin = Origin::start("orders").await?;
    let mut relay = Relay::new()?;
    relay.start().await?;
    relay.tunnel("main", &["orders"]).await?;
    let service = format!("orders={}", origin.url());
    for files in 1..=8 {
        let said = relay.cli(&["token", "create", "main", "--uses", "1"]).await?;
        let mut connector = Connector::new(said.stdout.trim(), &[&service])?;
        connector.launch()?;
        // Waiting ends with the file or with the finished join, whichever comes first.
        let complete = wait::until(&format!("{files} files"), Duration::from_secs(10), || async {
            if count(connector.state()) >= files {
                return Some(false);
            }
            connector.ask("/readyz").await.is_ok_and(|answer| answer.status == 200).then_some(true)
        })
        .await?;
        connector.kill()?;
        connector.start().await.with_context(|| format!("killed at {files} files"))?;
        connector.terminate(Duration::from_secs(10)).await?;
        if complete {
            break;
        }
    }
    Ok(())
}

fn count(directory: &std::path::Path) -> usize {
    let Ok(entries) = std::fs::read_dir(directory) else { return 0 };
    entries.flatten().map(|entry| if entry.path().is_dir() { count(&entry.path()) } else { 1 }).sum()
}

#[tokio::test]
async fn a_joined_connector_needs_no_token_and_keeps_its_id() -> Result<()> {
    let mut setup = crate::Setup::new().await?;
    let id = |listed: &serde_json::Value| listed[0]["id"].as_str().unwrap_or_default().to_owned();
    let before = id(&setup.relay.json(&["connector", "list"]).await?);
    setup.connector.terminate(Duration::from_secs(10)).await?;
    setup.connector.env.retain(|(name, _)| name != "CULVERT_TOKEN");
    setup.connector.start().await?;
    setup.relay.up("orders").await?;
    let listed = setup.relay.json(&["connector", "list"]).await?;
    assert_eq!((listed.as_array().map(Vec::len), id(&listed)), (Some(1), before));
    Ok(())
}

#[tokio::test]
async fn a_token_with_three_uses_lets_exactly_three_of_six_join_at_the_same_instant() -> Result<()> {
    let mut relay = Relay::new()?;
    relay.start().await?;
    let token = relay.tunnel_with("main", &["orders"], &["--uses", "3"]).await?;
    let mut connectors = Vec::new();
    for _ in 0..6 {
        let mut connector = Connector::new(&token, &["orders=http://127.0.0.1:1"])?;
        connector.launch()?;
        connectors.push(connector);
    }
    let mut refused = 0;
    let start = std::time::Instant::now();
    while refused < 3 && start.elapsed() < Duration::from_secs(15) {
        refused = 0;
        for connector in &mut connectors {
            if !connector.process()?.runs() {
                refused += 1;
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    wait::until("three connectors", Duration::from_secs(10), || async {
        let listed = relay.json(&["connector", "list"]).await.ok()?;
        (listed.as_array()?.iter().filter(|one| one["state"] == "up").count() == 3).then_some(())
    })
    .await?;
    let mut ended = 0;
    for connector in &mut connectors {
        if !connector.process()?.runs() {
            let status = connector.process()?.end(Duration::from_secs(1)).await?;
            assert_eq!(status.code(), Some(78), "{}", connector.output());
            ended += 1;
        }
    }
    assert_eq!(ended, 3);
    Ok(())
}

#[tokio::test]
async fn a_connector_whose_clock_is_behind_is_up_and_says_so() -> Result<()> {
    if culvert_lab::skip::unless("a connector with the wrong clock", &[culvert_lab::skip::Need::Program("faketime")]) {
        return Ok(());
    }
    let mut setup = crate::Setup::new().await?;
    setup.connector.terminate(Duration::from_secs(10)).await?;
    // faketime forks: what it starts has to end with it.
    let prefix = ["faketime", "-f", "-30d", "setpriv", "--pdeathsig", "KILL", "--"];
    setup.connector.prefix = prefix.map(str::to_owned).to_vec();
    setup.connector.env.push(("FAKETIME_DONT_FAKE_MONOTONIC".to_owned(), "1".to_owned()));
    setup.connector.start().await?;
    setup.relay.up("orders").await?;
    assert_eq!(setup.relay.get("orders", "/").await?.status, 200);
    let relay = setup.relay.cli(&["status"]).await?.stdout;
    let connector = setup.connector.cli(&["status"]).await?.stdout;
    assert!((relay + &connector).to_lowercase().contains("clock"), "status does not say that a clock is behind");
    Ok(())
}
