//! The main job: what a gateway sends is what the origin gets, and back.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use culvert_lab::websocket::{Message, WebSocket};
use culvert_lab::{client, origin};
use http::Method;
use http_body_util::BodyExt as _;

use crate::Setup;

#[tokio::test]
async fn a_request_reaches_the_origin_and_its_answer_comes_back() -> Result<()> {
    let setup = Setup::new().await?;
    let answer = setup.relay.get("orders", "/").await?;
    assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "hello from orders\n"));
    for host in ["ORDERS", "orders.internal", "orders:8080", "orders.internal:443"] {
        assert_eq!(setup.relay.get(host, "/").await?.status, 200, "{host}");
    }
    let answer = setup.relay.get("orders", "/status/418").await?;
    assert_eq!((answer.status.as_u16(), answer.header("proxy-status")), (418, ""), "an origin's answer stays its own");
    Ok(())
}

#[tokio::test]
async fn the_origin_sees_the_target_and_fields_as_sent_plus_one_hop() -> Result<()> {
    let setup = Setup::new().await?;
    let target = "/head//a/%7Eb/../c?q=%20&&x";
    let request = http::Request::builder()
        .method(Method::GET)
        .uri(target)
        .header("host", "orders")
        .header("x-twice", "one")
        .header("x-twice", "two")
        .header("culvert-service", "other")
        .header("connection", "close, x-secret")
        .header("x-secret", "for this hop only")
        .header("x-forwarded-for", "198.51.100.7")
        .header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
        .body(http_body_util::Full::new(Bytes::new()))?;
    let answer = client::send(setup.relay.http, request).await?;
    let head = answer.json()?;
    assert_eq!(head["target"], target);
    let fields: Vec<(String, String)> = serde_json::from_value(head["fields"].clone())?;
    let values = |name: &str| -> Vec<&str> {
        fields.iter().filter(|(field, _)| field == name).map(|(_, value)| value.as_str()).collect()
    };
    assert_eq!(values("x-twice"), ["one", "two"]);
    assert!(values("x-secret").is_empty(), "a field that Connection names ends at the hop");
    assert!(fields.iter().all(|(name, _)| !name.starts_with("culvert-")), "{fields:?}");
    let forwarded = values("x-forwarded-for").join(", ");
    assert!(forwarded.starts_with("198.51.100.7, 127."), "{forwarded}");
    assert!(values("via").len() == 1 && values("via")[0].starts_with("1.1 culvert"), "{:?}", values("via"));
    assert_eq!(values("x-request-id").len(), 1);
    assert_eq!(values("traceparent"), ["00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"]);
    assert_eq!(values("host").len(), 1);
    Ok(())
}

#[tokio::test]
async fn bodies_pass_whole_in_both_directions() -> Result<()> {
    let setup = Setup::new().await?;
    let length = 8 * 1024 * 1024;
    let answer = setup.relay.get("orders", &format!("/bytes/{length}")).await?;
    assert_eq!(answer.body, origin::pattern(0, length));
    let answer = client::post(setup.relay.http, "orders", "/hash", origin::pattern(0, length)).await?;
    assert_eq!(answer.text(), format!("{} {length}", origin::pattern_hash(length)));
    Ok(())
}

#[tokio::test]
async fn events_arrive_one_by_one() -> Result<()> {
    let setup = Setup::new().await?;
    let request = client::request(Method::GET, "orders", "/sse/5/200", Bytes::new())?;
    let start = Instant::now();
    let mut response = client::stream(setup.relay.http, request).await?;
    assert!(start.elapsed() < Duration::from_millis(600), "the head waited for the body");
    let mut seen = Vec::new();
    while let Some(frame) = response.body_mut().frame().await {
        if let Ok(data) = frame?.into_data() {
            seen.push((start.elapsed(), data));
        }
    }
    assert!(seen.len() >= 5, "events were joined: {seen:?}");
    let (first, last) = (seen.first().context("none")?.0, seen.last().context("none")?.0);
    assert!(last - first >= Duration::from_millis(600), "events came together: {seen:?}");
    Ok(())
}

#[tokio::test]
async fn a_websocket_echoes_both_ways() -> Result<()> {
    let setup = Setup::new().await?;
    let mut socket = WebSocket::open(setup.relay.http, "orders", "/ws").await?;
    for text in ["one", "two"] {
        socket.send(text).await?;
        assert_eq!(socket.receive().await?, Message::Text(text.to_owned()));
    }
    Ok(())
}

#[tokio::test]
async fn every_request_leaves_one_line_without_its_query() -> Result<()> {
    let setup = Setup::new().await?;
    let request = http::Request::builder()
        .uri("/?password=hunter2")
        .header("host", "orders")
        .header("x-request-id", "line-1")
        .header("authorization", "Bearer hunter3")
        .body(http_body_util::Full::new(Bytes::new()))?;
    client::send(setup.relay.http, request).await?;
    let mut relay = setup.relay;
    let line = relay.process()?.line("line-1", Duration::from_secs(5)).await?;
    let line: serde_json::Value = serde_json::from_str(&line).with_context(|| line.clone())?;
    for field in [
        "time",
        "request_id",
        "gateway",
        "service",
        "tunnel",
        "connector",
        "method",
        "path",
        "status",
        "reason",
        "bytes_in",
        "bytes_out",
        "duration_ms",
        "origin_ms",
        "trace_id",
    ] {
        assert!(line.get(field).is_some(), "no {field} in {line}");
    }
    assert_eq!((line["status"].as_u64(), line["path"].as_str()), (Some(200), Some("/")));
    assert!(!relay.output().contains("hunter"), "a secret was logged");
    Ok(())
}

#[tokio::test]
async fn a_caller_that_goes_away_ends_the_origins_work() -> Result<()> {
    let setup = Setup::new().await?;
    let request = client::request(Method::GET, "orders", "/bytes/10000000000", Bytes::new())?;
    let mut response = client::stream(setup.relay.http, request).await?;
    assert!(response.body_mut().frame().await.is_some());
    drop(response);
    let idle = || async {
        let metrics = setup.relay.ask("/metrics").await.ok()?.text();
        metrics.contains("culvert_inflight_requests{service=\"orders\"} 0").then_some(())
    };
    culvert_lab::wait::until("no request in flight", Duration::from_secs(5), idle).await
}

#[tokio::test]
async fn a_body_cut_short_at_the_origin_is_not_a_clean_end() -> Result<()> {
    let setup = Setup::new().await?;
    let answer = setup.relay.get("orders", "/cut").await;
    assert!(answer.is_err(), "10 of 1000 bytes were taken for a whole body");
    assert_eq!(setup.relay.get("orders", "/").await?.status, 200);
    Ok(())
}
