//! Callers that are slow on purpose cost their own connection and nobody else's.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use culvert_lab::load::Plan;
use culvert_lab::{Relay, address, client, wait};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, interval, timeout};

use crate::Setup;

const EACH_KIND: usize = 150;
const READERS: usize = 40;
const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::test]
async fn hundreds_that_stall_at_every_step_delay_nobody_and_get_their_names() -> Result<()> {
    let mut relay = Relay::new()?;
    let proxied = address::at(relay.http.ip(), 31_081);
    relay.config(&format!(
        "[http]\nlisten = [\"{}\"]\n[[http.listener]]\nlisten = \"{proxied}\"\nproxy_protocol = true\n\
         [limits]\nhead_time = \"3s\"\nbody_idle = \"3s\"\nunread_time = \"8s\"\nhandshake_time = \"3s\"\nhandshakes = 50\n",
        relay.http
    ))?;
    relay.start().await?;
    let setup = Setup::behind(relay).await?;
    let http = setup.relay.http;

    // Answers that nobody reads.
    let mut unread = Vec::new();
    for _ in 0..READERS {
        unread.push(stalled(http, "GET /bytes/100000000 HTTP/1.1\r\nhost: orders\r\n\r\n").await?);
    }
    stand_still(&setup.relay).await?;
    // A head that never ends, a body that never comes, a PROXY header that never ends.
    let mut held = Vec::new();
    for (to, said) in [
        (http, "GET / HTTP/1.1\r\nhost: orders\r\nx-slow: "),
        (http, "POST /sink HTTP/1.1\r\nhost: orders\r\ncontent-length: 100\r\n\r\nhalf"),
        (proxied, "PROXY TCP4 192.0.2.7"),
    ] {
        for _ in 0..EACH_KIND {
            held.push(stalled(to, said).await?);
        }
    }
    let load = Plan::gets(http, "orders").per_second(100).start();
    // Who comes to the same listener and is quick about it is served.
    let quick =
        b"PROXY TCP4 192.0.2.7 198.51.100.1 40000 443\r\nGET / HTTP/1.1\r\nhost: orders\r\nconnection: close\r\n\r\n";
    for _ in 0..5 {
        let answer = client::raw(proxied, quick, Duration::from_secs(10)).await?;
        ensure!(answer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&answer));
    }
    for stream in held.iter_mut().take(2 * EACH_KIND) {
        let mut answer = Vec::new();
        timeout(PATIENCE, stream.read_buf(&mut answer)).await??;
        ensure!(answer.starts_with(b"HTTP/1.1 408 "), "{}", String::from_utf8_lossy(&answer));
    }
    let report = load.finish().await?;
    report.all_well(200)?;
    ensure!(report.slowest < Duration::from_secs(5), "somebody waited {:?}", report.slowest);
    let metrics = setup.relay.ask("/metrics").await?.text();
    for (line, at_least) in [
        ("culvert_caller_connections_turned_away_total{reason=\"crowded\"}", EACH_KIND - 50),
        ("culvert_errors_total{service=\"orders\",reason=\"request_timeout\"}", EACH_KIND),
        ("culvert_inflight_requests{service=\"orders\"}", READERS),
    ] {
        let value = figure(&metrics, line).with_context(|| format!("{line} is not in\n{metrics}"))?;
        ensure!(value >= at_least as f64, "{line} {value}");
    }
    // Those that do not read have their end too, a visible one, and free what they held.
    wait::until("the unread answers to be given up", PATIENCE, || async {
        let metrics = setup.relay.ask("/metrics").await.ok()?.text();
        let running = figure(&metrics, "culvert_inflight_requests{service=\"orders\"}")?;
        let named = figure(&metrics, "culvert_errors_total{service=\"orders\",reason=\"request_timeout\"}")?;
        (running == 0.0 && named >= (EACH_KIND + READERS) as f64).then_some(())
    })
    .await?;
    for mut stream in unread {
        let mut sink = tokio::io::sink();
        let end = timeout(PATIENCE, tokio::io::copy(&mut stream, &mut sink)).await?;
        ensure!(end.is_err(), "a cut answer ended cleanly");
    }
    Ok(())
}

/// A caller that says this and no more, and reads nothing.
async fn stalled(to: SocketAddr, said: &str) -> Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(16 * 1024)?;
    let mut stream = socket.connect(to).await?;
    stream.write_all(said.as_bytes()).await?;
    Ok(stream)
}

/// Waits until the tunnel carries next to nothing.
async fn stand_still(relay: &Relay) -> Result<()> {
    let (start, mut last) = (Instant::now(), f64::MAX);
    let mut ticks = interval(Duration::from_millis(300));
    loop {
        ticks.tick().await;
        let metrics = relay.ask("/metrics").await?.text();
        let seen = figure(&metrics, "culvert_datagrams_total").context("datagrams")?;
        if seen > 0.0 && seen - last < 50.0 && seen >= last {
            return Ok(());
        }
        last = seen;
        ensure!(start.elapsed() < PATIENCE, "the tunnel is still busy with what nobody reads");
    }
}

fn figure(metrics: &str, name: &str) -> Option<f64> {
    let line = metrics.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().parse().ok()
}
