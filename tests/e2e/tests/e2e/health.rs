//! One health truth: readiness, status, listings and metrics say the same.

use std::time::Duration;

use anyhow::Result;
use culvert_lab::{Connector, Origin, Relay, wait};

#[tokio::test]
async fn one_origin_down_shows_the_same_everywhere() -> Result<()> {
    let mut relay = Relay::new()?;
    relay.start().await?;
    assert_eq!(relay.ask("/readyz").await?.status, 200, "a relay without connectors is ready");
    assert_eq!(relay.ask("/livez").await?.status, 200);
    let token = relay.tunnel("main", &["orders", "down"]).await?;
    assert_eq!(relay.ask("/readyz?service=orders").await?.status, 503);
    let origin = Origin::start("orders").await?;
    let closed = std::net::TcpListener::bind("127.0.0.1:0")?;
    let down = format!("down=http://{}", closed.local_addr()?);
    drop(closed);
    let mut connector = Connector::new(&token, &[&format!("orders={}", origin.url()), &down])?;
    connector.start().await?;
    relay.up("orders").await?;
    relay.pairs_up("down", 0).await?;

    assert_eq!(relay.ask("/readyz").await?.status, 200);
    assert_eq!(relay.ask("/readyz?service=orders").await?.status, 200);
    assert_eq!(relay.ask("/readyz?service=down").await?.status, 503);
    let body = relay.ask("/readyz").await?.json()?;
    assert_eq!(body["ready"], true);
    assert_eq!(body["draining"], false);
    assert!(body["reasons"].is_array(), "{body}");
    assert_eq!(body["services"]["orders"], serde_json::json!({"up": 1, "total": 1}));
    assert_eq!(body["services"]["down"], serde_json::json!({"up": 0, "total": 1}));

    let services = relay.json(&["service", "list"]).await?;
    let of = |name: &str| services.as_array().and_then(|all| all.iter().find(|one| one["name"] == name)).cloned();
    assert_eq!(
        of("orders").map(|service| (service["up"].clone(), service["total"].clone())),
        Some((1.into(), 1.into()))
    );
    assert_eq!(of("down").map(|service| service["up"].clone()), Some(0.into()));
    let connectors = relay.json(&["connector", "list"]).await?;
    assert_eq!(connectors[0]["state"], "up");
    let listed = connectors[0]["services"].as_array().cloned().unwrap_or_default();
    let reason = listed.iter().find(|service| service["name"] == "down").map(|service| service["reason"].clone());
    assert_eq!(reason, Some("origin_refused".into()), "{listed:?}");
    let metrics = relay.ask("/metrics").await?.text();
    for line in ["culvert_service_up{service=\"orders\"} 1", "culvert_service_up{service=\"down\"} 0"] {
        assert!(metrics.contains(line), "no {line} in\n{metrics}");
    }
    assert_eq!(relay.cli(&["ready", "--service", "orders"]).await?.status, 0);
    assert_eq!(relay.cli(&["ready", "--service", "down"]).await?.status, 1);
    assert_eq!(connector.cli(&["ready"]).await?.status, 0);

    // The same origin answers again on its old address: everything follows.
    let address = down.trim_start_matches("down=http://").parse()?;
    let _back = Origin::start_at("back", address, None).await?;
    wait::until("the origin's return", Duration::from_secs(15), || async {
        let answer = relay.get("down", "/").await.ok()?;
        (answer.status == 200).then_some(())
    })
    .await?;
    relay.up("down").await
}

#[tokio::test]
async fn a_connector_without_a_relay_is_alive_but_not_ready() -> Result<()> {
    let mut relay = Relay::new()?;
    relay.start().await?;
    let token = relay.tunnel("main", &["orders"]).await?;
    relay.kill()?;
    let mut connector = Connector::new(&token, &["orders=http://127.0.0.1:1"])?;
    connector.launch()?;
    wait::until("the admin port", Duration::from_secs(5), || async { connector.ask("/livez").await.ok() }).await?;
    let answer = connector.ask("/readyz").await?;
    assert_eq!(answer.status, 503);
    assert_eq!(answer.json()?["ready"], false);
    assert_eq!(connector.cli(&["ready"]).await?.status, 1);
    relay.start().await?;
    connector.ready().await
}

#[tokio::test]
async fn the_admin_port_reads_only_and_believes_no_foreign_name() -> Result<()> {
    use bytes::Bytes;
    use culvert_lab::client;
    let mut relay = Relay::new()?;
    relay.start().await?;
    for path in ["/readyz", "/metrics", "/api/v1/status"] {
        let request = client::request(http::Method::POST, &relay.admin.to_string(), path, Bytes::new())?;
        let answer = client::send(relay.admin, request).await?;
        assert!([403, 404, 405].contains(&answer.status.as_u16()), "POST {path}: {}", answer.status);
    }
    let answer = client::get(relay.admin, "evil.example", "/api/v1/status").await?;
    assert!([403, 421].contains(&answer.status.as_u16()), "DNS rebinding: {}", answer.status);
    assert_eq!(client::get(relay.admin, "localhost", "/api/v1/status").await?.status, 200);
    Ok(())
}
