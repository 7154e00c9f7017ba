//! systemd's sequence, stop then start, under load: callers wait in the socket's backlog and nobody fails.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use culvert_lab::load::Plan;
use culvert_lab::websocket::{Message, WebSocket};
use culvert_lab::{Relay, client, wait};
use http_body_util::BodyExt as _;

use crate::Setup;

#[tokio::test]
async fn a_restart_under_200_requests_a_second_fails_none_and_streams_end_visibly() -> Result<()> {
    let mut relay = Relay::new()?;
    relay.activate()?;
    relay.start().await?;
    let mut setup = Setup::behind(relay).await?;
    let http = setup.relay.http;
    assert_eq!(setup.relay.get("orders", "/").await?.status, 200);

    let request = client::request(http::Method::GET, "orders", "/sse/1000/100", Bytes::new())?;
    let mut events = client::stream(http, request).await?;
    let mut socket = WebSocket::open(http, "orders", "/ws").await?;
    socket.send("before").await?;
    assert_eq!(socket.receive().await?, Message::Text("before".to_owned()));
    let begun = Instant::now();
    let load = Plan::gets(http, "orders").per_second(200).start();
    // Streams count as long-lived after 5 s.
    while begun.elapsed() < Duration::from_millis(5500) {
        events.body_mut().frame().await.context("the events ended early")??;
    }
    let reader = tokio::spawn(async move {
        loop {
            match events.body_mut().frame().await {
                Some(Ok(_)) => {}
                Some(Err(_)) => return false,
                None => return true,
            }
        }
    });
    let stopping = Instant::now();
    let status = setup.relay.terminate(Duration::from_secs(20)).await?;
    let stopped = stopping.elapsed();
    assert_eq!(status.code(), Some(0));
    setup.relay.launch()?;
    assert!(stopped < Duration::from_secs(9), "the drain took {stopped:?}");
    assert!(!reader.await?, "the event stream ended as if it were whole");
    match socket.receive().await? {
        Message::Close(code) => assert_eq!(code, Some(1012)),
        other => panic!("the WebSocket ended with {other:?}"),
    }
    setup.relay.ready().await?;
    let before = setup.origin.requests("/");
    wait::until("a second of load after the restart", Duration::from_secs(10), || async {
        (setup.origin.requests("/") > before + 200).then_some(())
    })
    .await?;
    let report = load.finish().await?;
    eprintln!("{} answered, slowest {:?}, drain {stopped:?}", report.answered, report.slowest);
    report.all_well(1000).with_context(|| setup.relay.last_words())
}
