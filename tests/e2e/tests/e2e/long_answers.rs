//! Answers that last: as long as they speak they live, and one that falls silent is cut where everybody can see it.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use culvert_lab::{Connector, Origin, Relay, client};
use http::Method;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;

/// Stands for the hour that is the default.
const IDLE: Duration = Duration::from_secs(2);

struct Site {
    relay: Relay,
    connector: Connector,
    origin: Origin,
}

/// One service whose streams may be silent for [`IDLE`].
async fn site() -> Result<Site> {
    let mut relay = Relay::new()?;
    relay.start().await?;
    let origin = Origin::start("orders").await?;
    let token = relay.tunnel("main", &["orders"]).await?;
    let mut connector = Connector::new(&token, &[])?;
    let idle = IDLE.as_secs();
    connector.config(&format!(
        "[[service]]\nname = \"orders\"\norigin = \"{}\"\n[service.timeouts]\nidle = \"{idle}s\"\n",
        origin.url()
    ))?;
    connector.start().await?;
    relay.up("orders").await?;
    Ok(Site { relay, connector, origin })
}

async fn event(body: &mut Incoming) -> Result<Option<Bytes>> {
    match body.frame().await.transpose()? {
        Some(frame) => Ok(Some(frame.into_data().ok().context("trailers")?)),
        None => Ok(None),
    }
}

#[tokio::test]
async fn a_streamed_tool_call_outlives_every_pause_and_other_calls_pass_beside_it() -> Result<()> {
    let site = site().await?;
    // As MCP's streamable HTTP does it: a POST whose answer is a stream of events, other POSTs beside it.
    let call = http::Request::post("/sse/16/500")
        .header("host", "orders")
        .header("accept", "application/json, text/event-stream")
        .header("content-type", "application/json")
        .header("mcp-session-id", "one")
        .body(Full::new(Bytes::from_static(b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"tools/call\"}")))?;
    let start = Instant::now();
    let mut stream = client::stream(site.relay.http, call).await?;
    ensure!(stream.status() == 200 && stream.headers()["content-type"] == "text/event-stream", "{stream:?}");
    let mut seen = 0;
    while let Some(data) = event(stream.body_mut()).await? {
        ensure!(data == format!("id: {seen}\ndata: event {seen}\n\n"), "{data:?}");
        let beside = client::post(site.relay.http, "orders", "/hash", "{\"id\":2}").await?;
        ensure!(beside.status == 200, "{beside:?}");
        seen += 1;
    }
    ensure!(seen == 16 && start.elapsed() > 3 * IDLE, "{seen} events in {:?}", start.elapsed());
    Ok(())
}

#[tokio::test]
async fn an_answer_that_falls_silent_is_cut_and_never_ends_cleanly() -> Result<()> {
    let mut site = site().await?;
    let request = client::request(Method::GET, "orders", "/feed", Bytes::new())?;
    let mut stream = client::stream(site.relay.http, request).await?;
    ensure!(event(stream.body_mut()).await?.context("no first event")? == "data: ready\n\n");
    // Whatever comes restarts the wait.
    tokio::time::sleep(IDLE / 2).await;
    site.origin.tell("still here");
    ensure!(event(stream.body_mut()).await?.context("no second event")? == "data: still here\n\n");
    let start = Instant::now();
    let end = tokio::time::timeout(client::LIMIT, event(stream.body_mut())).await;
    let end = end.with_context(|| format!("still open: {}", site.connector.last_words()))?;
    ensure!(end.is_err(), "a clean end, or more: {end:?}");
    ensure!(start.elapsed() > IDLE / 2, "cut after {:?}", start.elapsed());
    site.relay.process()?.line("\"path\":\"/feed\"", Duration::from_secs(5)).await?;
    Ok(())
}
