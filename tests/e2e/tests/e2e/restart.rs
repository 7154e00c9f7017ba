//! Either end dies or restarts: how soon requests succeed again.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use culvert_lab::{Relay, client, wait};

use crate::Setup;

/// From the first moment the port accepts to the first good answer.
async fn first_good_answer(http: std::net::SocketAddr) -> Result<Duration> {
    wait::until("the front to listen", Duration::from_secs(10), || async {
        tokio::net::TcpStream::connect(http).await.ok().map(drop)
    })
    .await?;
    let start = Instant::now();
    wait::until("a good answer", Duration::from_secs(10), || async {
        let answer = client::get(http, "orders", "/").await.ok()?;
        (answer.status == 200).then_some(())
    })
    .await?;
    Ok(start.elapsed())
}

#[tokio::test]
async fn a_killed_relay_serves_within_a_second_of_listening_again() -> Result<()> {
    let mut setup = Setup::new().await?;
    setup.relay.kill()?;
    setup.relay.launch()?;
    let took = first_good_answer(setup.relay.http).await.with_context(|| setup.relay.last_words())?;
    assert!(took < Duration::from_secs(1), "{took:?}\n{}\n{}", setup.relay.output(), setup.connector.output());
    Ok(())
}

#[tokio::test]
async fn the_first_request_after_a_restart_waits_for_the_connectors_instead_of_failing() -> Result<()> {
    let mut setup = Setup::new().await?;
    assert_eq!(setup.relay.terminate(Duration::from_secs(20)).await?.code(), Some(0));
    setup.relay.launch()?;
    wait::until("the front to listen", Duration::from_secs(10), || async {
        tokio::net::TcpStream::connect(setup.relay.http).await.ok().map(drop)
    })
    .await?;
    let answer = setup.relay.get("orders", "/").await?;
    assert_eq!(answer.status, 200, "{} {}", answer.header("proxy-status"), setup.relay.output());
    Ok(())
}

#[tokio::test]
async fn a_killed_connector_serves_within_a_second_of_its_return() -> Result<()> {
    let mut setup = Setup::new().await?;
    setup.connector.kill()?;
    let start = Instant::now();
    setup.connector.launch()?;
    // "Listening" of a connector is its admin port: it has read its identity.
    wait::until("the connector's admin port", Duration::from_secs(10), || async {
        tokio::net::TcpStream::connect(setup.connector.admin).await.ok().map(drop)
    })
    .await?;
    let listening = Instant::now();
    wait::until("a good answer", Duration::from_secs(10), || async {
        let answer = setup.relay.get("orders", "/").await.ok()?;
        (answer.status == 200).then_some(())
    })
    .await
    .with_context(|| setup.relay.last_words())?;
    let took = listening.elapsed();
    assert!(took < Duration::from_secs(1), "{took:?} after its port, {:?} after its start", start.elapsed());
    assert!(!setup.relay.output().contains("panicked"));
    Ok(())
}

#[tokio::test]
async fn what_a_killed_connector_was_at_is_asked_again_on_its_return() -> Result<()> {
    let mut setup = Setup::new().await?;
    let http = setup.relay.http;
    let slow = tokio::spawn(async move { client::get(http, "orders", "/slow/1000").await });
    wait::until("the request at the origin", Duration::from_secs(5), || async {
        (setup.origin.requests("/slow/1000") == 1).then_some(())
    })
    .await?;
    setup.connector.kill()?;
    setup.connector.launch()?;
    let answer = slow.await?.with_context(|| setup.relay.last_words())?;
    assert_eq!(answer.status, 200, "{} {}", answer.header("proxy-status"), setup.relay.last_words());
    assert_eq!(setup.origin.requests("/slow/1000"), 2);
    Ok(())
}

#[tokio::test]
async fn an_idle_relay_stops_at_once_and_a_second_process_on_its_state_is_refused() -> Result<()> {
    let mut relay = Relay::new()?;
    relay.start().await?;
    let first = relay.process()?.id().to_string();
    let said = relay.cli(&["run", "--http-listen", "127.0.0.1:0", "--wireguard-listen", "127.0.0.1:0"]).await?;
    assert_eq!(said.status, 1, "{said:?}");
    assert!(said.stderr.contains(&first), "names no pid {first}: {said:?}");
    let start = Instant::now();
    assert_eq!(relay.terminate(Duration::from_secs(5)).await?.code(), Some(0));
    assert!(start.elapsed() < Duration::from_secs(2), "an idle drain took {:?}", start.elapsed());
    Ok(())
}

#[tokio::test]
async fn a_second_signal_ends_a_drain_at_once() -> Result<()> {
    let mut setup = Setup::new().await?;
    let http = setup.relay.http;
    let slow = tokio::spawn(async move { client::get(http, "orders", "/slow/8000").await });
    wait::until("the request at the origin", Duration::from_secs(5), || async {
        (setup.origin.requests("/slow/8000") == 1).then_some(())
    })
    .await?;
    let process = setup.relay.process()?;
    process.signal(nix::sys::signal::Signal::SIGTERM)?;
    wait::until("draining", Duration::from_secs(3), || async {
        // Draining shows as not ready, or no longer listening.
        match client::get(setup.relay.admin, &setup.relay.admin.to_string(), "/readyz").await {
            Ok(answer) => (answer.status == 503).then_some(()),
            Err(_) => Some(()),
        }
    })
    .await?;
    let process = setup.relay.process()?;
    assert!(process.runs(), "it did not wait for the request in flight:\n{}", process.output());
    process.signal(nix::sys::signal::Signal::SIGTERM)?;
    process.end(Duration::from_secs(2)).await?;
    drop(slow);
    Ok(())
}

#[tokio::test]
async fn a_draining_relay_finishes_what_is_in_flight() -> Result<()> {
    let mut setup = Setup::new().await?;
    let http = setup.relay.http;
    let slow = tokio::spawn(async move { client::get(http, "orders", "/slow/2000").await });
    wait::until("the request at the origin", Duration::from_secs(5), || async {
        (setup.origin.requests("/slow/2000") == 1).then_some(())
    })
    .await?;
    let start = Instant::now();
    assert_eq!(setup.relay.terminate(Duration::from_secs(20)).await?.code(), Some(0));
    assert_eq!(slow.await??.status, 200);
    assert!(start.elapsed() < Duration::from_secs(4), "it waited on after the last request: {:?}", start.elapsed());
    Ok(())
}
