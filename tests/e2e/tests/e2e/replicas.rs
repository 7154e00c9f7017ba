//! Several connectors behind one tunnel: one may die, drain or be revoked.

use std::time::Duration;

use anyhow::Result;
use culvert_lab::load::Plan;
use culvert_lab::{Connector, wait};

use crate::Setup;

async fn with_a_second() -> Result<(Setup, Connector)> {
    let setup = Setup::new().await?;
    let mut second = Connector::new(&setup.token, &[&format!("orders={}", setup.origin.url())])?;
    second.start().await?;
    setup.relay.pairs_up("orders", 2).await?;
    Ok((setup, second))
}

async fn answered(relay: &culvert_lab::Relay, at_least: u64) -> Result<()> {
    wait::until("answers", Duration::from_secs(10), || async {
        let metrics = relay.ask("/metrics").await.ok()?.text();
        let line =
            metrics.lines().find(|line| line.contains("culvert_requests_total{service=\"orders\",code=\"200\"}"))?;
        (line.rsplit(' ').next()?.parse::<f64>().ok()? >= at_least as f64).then_some(())
    })
    .await
}

#[tokio::test]
async fn a_killed_connector_fails_no_request_while_another_lives() -> Result<()> {
    let (mut setup, _second) = with_a_second().await?;
    let load = Plan::gets(setup.relay.http, "orders").start();
    answered(&setup.relay, 25).await?;
    setup.connector.kill()?;
    setup.relay.pairs_up("orders", 1).await?;
    answered(&setup.relay, 150).await?;
    let report = load.finish().await?;
    report.all_well(150)
}

#[tokio::test]
async fn a_connector_that_is_told_to_stop_fails_no_request_and_ends_with_0() -> Result<()> {
    let (mut setup, _second) = with_a_second().await?;
    let load = Plan { path: "/slow/50".to_owned(), ..Plan::gets(setup.relay.http, "orders") }.start();
    answered(&setup.relay, 25).await?;
    let status = setup.connector.terminate(Duration::from_secs(20)).await?;
    assert_eq!(status.code(), Some(0), "{status:?}");
    answered(&setup.relay, 100).await?;
    load.finish().await?.all_well(100)
}

#[tokio::test]
async fn a_drained_connector_gets_no_new_requests_until_undrained() -> Result<()> {
    let setup = Setup::new().await?;
    let connectors = setup.relay.json(&["connector", "list"]).await?;
    let id = connectors[0]["id"].as_str().unwrap_or_default().to_owned();
    assert_eq!(setup.relay.cli(&["connector", "drain", &id]).await?.status, 0);
    let answer = setup.relay.get("orders", "/").await?;
    assert_eq!(answer.status, 503, "{}", answer.header("proxy-status"));
    assert_eq!(setup.relay.json(&["connector", "list"]).await?[0]["state"], "draining");
    assert_eq!(setup.relay.cli(&["connector", "undrain", &id]).await?.status, 0);
    assert_eq!(setup.relay.get("orders", "/").await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn a_revoked_connector_stops_for_good_and_its_streams_end() -> Result<()> {
    let mut setup = Setup::new().await?;
    let http = setup.relay.http;
    let streaming = tokio::spawn(async move { culvert_lab::client::get(http, "orders", "/sse/1000/100").await });
    wait::until("the stream at the origin", Duration::from_secs(5), || async {
        (setup.origin.requests("/sse/1000/100") == 1).then_some(())
    })
    .await?;
    let connectors = setup.relay.json(&["connector", "list"]).await?;
    let id = connectors[0]["id"].as_str().unwrap_or_default().to_owned();
    let start = std::time::Instant::now();
    assert_eq!(setup.relay.cli(&["connector", "revoke", &id]).await?.status, 0);
    let status = setup.connector.process()?.end(Duration::from_secs(5)).await?;
    assert_eq!(status.code(), Some(78), "{}", setup.connector.output());
    assert!(setup.connector.output().contains("revoked"), "{}", setup.connector.output());
    assert!(streaming.await?.is_err(), "a revoked connector's stream ended cleanly");
    assert!(start.elapsed() < Duration::from_secs(5));
    // It still holds its token, and must not come back with it.
    setup.connector.launch()?;
    let status = setup.connector.process()?.end(Duration::from_secs(15)).await?;
    assert_eq!(status.code(), Some(78), "{}", setup.connector.output());
    Ok(())
}
