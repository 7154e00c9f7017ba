//! Limits and deadlines: each is reached by its own caller, answers with its name, and leaves the others alone.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use culvert_lab::client::{self, Answer};
use culvert_lab::{Connector, Origin, Relay, address, wait};
use http::{HeaderName, Method};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::Setup;

/// A relay with these lines in its configuration, and two services of one connector behind it.
struct Limited {
    relay: Relay,
    _connector: Connector,
    origin: Origin,
}

impl Limited {
    async fn to(mut relay: Relay, limits: &str) -> Result<Self> {
        relay.config(&format!("[http]\nlisten = [\"{}\"]\n{limits}", relay.http))?;
        relay.start().await?;
        let origin = Origin::start("both").await?;
        let token = relay.tunnel("main", &["orders", "other"]).await?;
        let services = [format!("orders={}", origin.url()), format!("other={}", origin.url())];
        let mut connector = Connector::new(&token, &[&services[0], &services[1]])?;
        connector.start().await?;
        relay.up("orders").await?;
        relay.up("other").await?;
        Ok(Self { relay, _connector: connector, origin })
    }

    /// A request that runs for so long, once the origin has it.
    async fn slow(&self, to: SocketAddr, millis: u32, fields: &[(&str, &str)]) -> Result<JoinHandle<Result<Answer>>> {
        let path = format!("/slow/{millis}");
        let running = tokio::spawn(client::send(to, with(&path, fields)?));
        wait::until("the slow request", Duration::from_secs(5), || async {
            (self.origin.requests(&path) == 1).then_some(())
        })
        .await?;
        Ok(running)
    }
}

fn with(path: &str, fields: &[(&str, &str)]) -> Result<http::Request<http_body_util::Full<Bytes>>> {
    let mut request = client::request(Method::GET, "orders", path, Bytes::new())?;
    for (name, value) in fields {
        request.headers_mut().append(HeaderName::from_bytes(name.as_bytes())?, value.parse()?);
    }
    Ok(request)
}

fn is(answer: &Answer, status: u16, reason: &str) -> Result<()> {
    let told = answer.header("proxy-status");
    ensure!(answer.status == status && told.contains(&format!("details=\"{reason}\"")), "{answer:?}");
    Ok(())
}

#[tokio::test]
async fn a_full_connector_lets_a_bounded_queue_wait_a_bounded_time() -> Result<()> {
    let limits = "[limits]\nconnector_concurrent = 1\nqueue = 1\nqueue_time = \"700ms\"\n";
    let limited = Limited::to(Relay::new()?, limits).await?;
    let http = limited.relay.http;
    let running = limited.slow(http, 3_000, &[]).await?;
    // One place in the queue: of two, one waits for it in vain and the other is told at once.
    let ask = || async move {
        let start = Instant::now();
        let answer = client::get(http, "other", "/").await?;
        is(&answer, 503, "overloaded")?;
        ensure!(!answer.header("retry-after").is_empty(), "{answer:?}");
        Ok(start.elapsed())
    };
    let (one, other) = tokio::try_join!(ask(), ask())?;
    ensure!(one.max(other) >= Duration::from_millis(690), "nobody waited: {one:?}, {other:?}");
    ensure!(one.min(other) < Duration::from_millis(600), "both waited: {one:?}, {other:?}");
    ensure!(running.await??.status == 200);
    ensure!(limited.relay.get("other", "/").await?.status == 200);
    Ok(())
}

#[tokio::test]
async fn a_gateway_past_its_limit_gets_429_and_the_others_do_not() -> Result<()> {
    let relay = Relay::new()?;
    let guarded = address::at(relay.http.ip(), 31_082);
    let limits = format!(
        "[[http.listener]]\nlisten = \"{guarded}\"\ngateways = [\"kong\", \"envoy\"]\n\
         [limits]\ngateway_concurrent = 1\nqueue = 0\n"
    );
    let limited = Limited::to(relay, &limits).await?;
    let mut credentials = Vec::new();
    for gateway in ["kong", "envoy"] {
        let said = limited.relay.cli(&["gateway", "create", gateway, "--service", "orders"]).await?;
        ensure!(said.status == 0, "{said:?}");
        credentials.push(said.stdout.trim().to_owned());
    }
    let kong = [("culvert-gateway", credentials[0].as_str())];
    let envoy = [("culvert-gateway", credentials[1].as_str())];
    let running = limited.slow(guarded, 1_500, &kong).await?;
    is(&client::send(guarded, with("/", &kong)?).await?, 429, "gateway_limit")?;
    ensure!(client::send(guarded, with("/", &envoy)?).await?.status == 200);
    ensure!(limited.relay.get("orders", "/").await?.status == 200, "who is nobody's gateway");
    ensure!(running.await??.status == 200);
    ensure!(client::send(guarded, with("/", &kong)?).await?.status == 200);
    let metrics = limited.relay.ask("/metrics").await?.text();
    ensure!(metrics.contains("culvert_errors_total{service=\"orders\",reason=\"gateway_limit\"} 1"), "{metrics}");
    Ok(())
}

#[tokio::test]
async fn heads_have_a_size_and_a_number_of_fields_and_both_change_by_reload() -> Result<()> {
    let limited = Limited::to(Relay::new()?, "[limits]\nhead = \"8KiB\"\nfields = 10\n").await?;
    let http = limited.relay.http;
    let names: Vec<String> = (0..9).map(|number| format!("x-{number}")).collect();
    // `host` and nine more are ten.
    let nine: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "v")).collect();
    ensure!(client::send(http, with("/", &nine)?).await?.status == 200);
    let ten = [nine.as_slice(), &[("x-9", "v")]].concat();
    is(&client::send(http, with("/", &ten)?).await?, 431, "too_large")?;
    let long = "v".repeat(9 << 10);
    is(&client::send(http, with("/", &[("x-long", &long)])?).await?, 431, "too_large")?;
    let stream = tokio::net::TcpStream::connect(http).await?;
    let (mut sender, connection) = h2::client::handshake(stream).await?;
    tokio::spawn(connection);
    let unpacked = http::Request::get("http://orders/").header("x-long", &long).body(())?;
    let answer = sender.send_request(unpacked, true)?.0.await?;
    let named = answer.headers().get("proxy-status").and_then(|value| value.to_str().ok()).unwrap_or_default();
    ensure!(answer.status() == 431 && named.contains("\"too_large\""), "{answer:?}");

    let file = limited.relay.directory().join("relay.toml");
    let text = std::fs::read_to_string(&file)?.replace("8KiB", "64KiB").replace("fields = 10", "fields = 11");
    std::fs::write(&file, text)?;
    let said = limited.relay.cli(&["reload"]).await?;
    ensure!(said.status == 0 && !said.stderr.contains("restart"), "{said:?}");
    ensure!(client::send(http, with("/", &ten)?).await?.status == 200);
    ensure!(client::send(http, with("/", &[("x-long", &long)])?).await?.status == 200);

    let said = limited.relay.cli_bare(&["check", "--config", &file.display().to_string()]).await?;
    for key in [
        "limits.connections",
        "limits.concurrent",
        "limits.queue",
        "limits.queue_time",
        "limits.body",
        "limits.connector_concurrent",
        "limits.gateway_concurrent",
        "limits.head",
        "limits.fields",
        "limits.head_time",
        "limits.body_idle",
        "limits.keep_alive",
        "limits.streams",
        "limits.unread_time",
        "limits.handshake_time",
        "limits.handshakes",
    ] {
        ensure!(said.stdout.lines().any(|line| line.starts_with(&format!("{key} "))), "{key}: {}", said.stdout);
    }
    Ok(())
}

#[tokio::test]
async fn in_a_drain_an_old_stream_of_an_http2_connection_ends_alone_and_a_request_beside_it_is_answered() -> Result<()>
{
    let mut relay = Relay::new()?;
    relay.args.extend(["--drain-timeout", "10s", "--drain-streams", "1s"].map(str::to_owned));
    relay.start().await?;
    let mut setup = Setup::behind(relay).await?;
    let stream = TcpStream::connect(setup.relay.http).await?;
    let (mut sender, connection) = h2::client::handshake(stream).await?;
    let connection = tokio::spawn(connection);
    let mut ask = |path: &str| -> Result<h2::client::ResponseFuture> {
        let request = http::Request::get(format!("http://orders{path}")).body(())?;
        Ok(sender.send_request(request, true)?.0)
    };
    let mut events = ask("/sse/1000/100")?.await?.into_body();
    let start = Instant::now();
    // Older than what counts as running for long.
    while start.elapsed() < Duration::from_millis(5_500) {
        let event = events.data().await.context("an event")??;
        events.flow_control().release_capacity(event.len())?;
    }
    let slow = ask("/slow/4000")?;
    wait::until("the slow request", Duration::from_secs(5), || async {
        (setup.origin.requests("/slow/4000") == 1).then_some(())
    })
    .await?;
    setup.relay.process()?.signal(nix::sys::signal::Signal::SIGTERM)?;
    let drained = Instant::now();
    let cut = loop {
        match events.data().await {
            Some(Ok(event)) => events.flow_control().release_capacity(event.len())?,
            Some(Err(error)) => break error,
            None => anyhow::bail!("a stream that was cut ended cleanly"),
        }
        ensure!(drained.elapsed() < Duration::from_secs(5), "the old stream goes on");
    };
    ensure!(cut.is_reset() && cut.is_remote(), "the stream alone is reset: {cut}");
    ensure!(drained.elapsed() >= Duration::from_millis(900), "it had its time: {:?}", drained.elapsed());
    let answer = slow.await?;
    ensure!(answer.status() == 200, "{answer:?}");
    let mut body = answer.into_body();
    ensure!(body.data().await.context("a body")??.as_ref() == b"slow");
    drop((body, events, ask));
    tokio::time::timeout(Duration::from_secs(5), connection).await???;
    Ok(())
}
