//! Many connectors at the same instant with one token.

use std::time::{Duration, Instant};

use anyhow::Result;
use culvert_lab::{Connector, Origin, Relay};

#[tokio::test]
async fn ten_processes_join_with_one_token_at_the_same_instant() -> Result<()> {
    let mut relay = Relay::new()?;
    relay.start().await?;
    let origin = Origin::start("orders").await?;
    let token = relay.tunnel("main", &["orders"]).await?;
    let start = Instant::now();
    let mut connectors = Vec::new();
    for _ in 0..10 {
        let mut connector = Connector::new(&token, &[&format!("orders={}", origin.url())])?;
        connector.launch()?;
        connectors.push(connector);
    }
    relay.pairs_up("orders", 10).await?;
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    // Load spreads over all of them.
    for _ in 0..100 {
        assert_eq!(relay.get("orders", "/").await?.status, 200);
    }
    let listed = relay.json(&["connector", "list"]).await?;
    let mut inner: Vec<&str> =
        listed.as_array().into_iter().flatten().filter_map(|one| one["inner_address"].as_str()).collect();
    inner.sort_unstable();
    inner.dedup();
    assert_eq!(inner.len(), 10);
    Ok(())
}
