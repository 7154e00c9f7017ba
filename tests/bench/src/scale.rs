//! Many connectors on one relay: how fast they join, what they cost while idle, and how fast all of them are back when
//! the relay was killed and started again (the handshake storm).

mod processes;
mod watch;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use culvert_lab::nginx::Nginx;
use culvert_lab::{Namespace, Relay, client};
use serde::Serialize;

use crate::site::{self, FETCH, GATEWAY};
use processes::Crowd;
use watch::{Latency, Watch};

/// What a crowd of one size showed.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Scale {
    pub(crate) connectors: usize,
    /// So many were on their way in at once.
    pub(crate) joining: usize,
    /// Why there are no figures, or no more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) failed: Option<String>,
    /// From the crowd's start.
    pub(crate) joined: Arrival,
    /// Resident memory over that of the relay without connectors.
    pub(crate) relay_rss_kib_each: f64,
    pub(crate) relay_rss_bytes: u64,
    pub(crate) relay_rss_empty_bytes: u64,
    /// The library in a few processes: without what a process of its own costs.
    pub(crate) connector_rss_kib_each: f64,
    /// Share of one processor while nothing is asked.
    pub(crate) relay_cpu_idle: f64,
    /// From the start of a relay that was killed.
    pub(crate) back: Arrival,
}

/// When connectors were up, in seconds, and what that cost the relay.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Arrival {
    pub(crate) half: f64,
    /// 99 of 100.
    pub(crate) most: f64,
    pub(crate) all: f64,
    pub(crate) relay_cpu_ms_each: f64,
    pub(crate) crowd_cpu_ms_each: f64,
    /// Sessions confirmed a second, of joiners and connectors, until all were up.
    pub(crate) handshakes_per_second: f64,
    /// Cookie replies for each connector.
    pub(crate) cookies_each: f64,
    /// Of requests through one connector meanwhile.
    pub(crate) requests: Latency,
}

const SERVICE: &str = "orders";
/// How long a crowd may take to come: some seconds, and some for each connector.
const PATIENCE: Duration = Duration::from_secs(60);
const PATIENCE_EACH: Duration = Duration::from_millis(20);
/// Counting 10,000 pairs costs the relay something too.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Measures a crowd of that size, looked at for `idle` once it is there.
pub(crate) async fn measure(connectors: usize, joining: usize, idle: Duration) -> Scale {
    let mut scale = Scale { connectors, joining, ..Scale::default() };
    if let Err(error) = fill(&mut scale, idle).await {
        scale.failed = Some(format!("{error:#}"));
    }
    scale
}

async fn fill(scale: &mut Scale, idle: Duration) -> Result<()> {
    let (gateway, private) = site::hosts()?;
    let origin = format!("server {{ listen {FETCH} backlog=4096; return 204; }}");
    let _origin = Nginx::start(Some(&private), ([127, 0, 0, 1], FETCH).into(), &origin).await?;
    let mut relay = Relay::within(&gateway, GATEWAY.parse()?)?;
    // A relay does not share its processors with its connectors; here they are dozens of processes beside its one.
    relay.prefix.extend(["nice", "-n", "-15"].map(str::to_owned));
    relay.launch()?;
    arrive(&gateway, &mut relay, None).await?;
    let watched = Watch::prepare(&gateway, &private, &relay).await?;
    let empty = relay.usage()?;
    scale.relay_rss_empty_bytes = empty.rss_bytes;
    let token = relay.tunnel("crowd", &[SERVICE]).await?;
    let before = Counts::read(&gateway, &relay).await?;
    let mut crowd = Crowd::start(&gateway, &private, scale.connectors, SERVICE, &token)?;
    let watch = watched.begin(&gateway, &relay)?;
    scale.joined = arrive(&gateway, &mut relay, Some((&mut crowd, scale.joining))).await?;
    scale.joined.requests = watch.end().await?;
    scale.joined.spent(&before, &Counts::read(&gateway, &relay).await?, &crowd)?;

    let (before, start) = (relay.usage()?, Instant::now());
    tokio::time::sleep(idle).await;
    let after = relay.usage()?;
    scale.relay_cpu_idle = after.cpu.saturating_sub(before.cpu).as_secs_f64() / start.elapsed().as_secs_f64();
    scale.relay_rss_bytes = after.rss_bytes;
    scale.relay_rss_kib_each = crowd.each(after.rss_bytes.saturating_sub(empty.rss_bytes) as f64 / 1024.0);
    scale.connector_rss_kib_each = crowd.each(crowd.rss_bytes()? as f64 / 1024.0);

    let crowd_cpu = crowd.cpu()?;
    relay.kill()?;
    relay.launch()?;
    let watch = watched.begin(&gateway, &relay)?;
    scale.back = arrive(&gateway, &mut relay, Some((&mut crowd, 0))).await?;
    scale.back.requests = watch.end().await?;
    let before = Counts { crowd_cpu, ..Counts::default() };
    scale.back.spent(&before, &Counts::read(&gateway, &relay).await?, &crowd)?;
    Ok(())
}

/// What the relay has counted, and what it and the crowd have used.
#[derive(Debug, Default)]
struct Counts {
    handshakes: f64,
    cookies: f64,
    relay_cpu: Duration,
    crowd_cpu: Duration,
}

impl Counts {
    async fn read(gateway: &Namespace, relay: &Relay) -> Result<Self> {
        let admin = relay.admin;
        let text = gateway
            .within(move || async move { Ok(client::get(admin, &admin.to_string(), "/metrics").await?.text()) })
            .await?;
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.and_then(|value| value.parse().ok()).with_context(|| format!("no {name} in the relay's metrics"))
        };
        Ok(Self {
            handshakes: value("culvert_handshakes_total")?,
            cookies: value("culvert_cookies_total")?,
            relay_cpu: relay.usage()?.cpu,
            crowd_cpu: Duration::ZERO,
        })
    }
}

impl Arrival {
    fn spent(&mut self, before: &Counts, after: &Counts, crowd: &Crowd) -> Result<()> {
        let milliseconds = |spent: Duration| spent.as_secs_f64() * 1e3;
        self.handshakes_per_second = (after.handshakes - before.handshakes) / self.all;
        self.cookies_each = crowd.each(after.cookies - before.cookies);
        self.relay_cpu_ms_each = crowd.each(milliseconds(after.relay_cpu.saturating_sub(before.relay_cpu)));
        self.crowd_cpu_ms_each = crowd.each(milliseconds(crowd.cpu()?.saturating_sub(before.crowd_cpu)));
        Ok(())
    }
}

/// Waits until all of a crowd are up (without one: until the relay is ready) and tells when. Those that did not start yet
/// start as so many are on their way.
async fn arrive(gateway: &Namespace, relay: &mut Relay, mut crowd: Option<(&mut Crowd, usize)>) -> Result<Arrival> {
    let connectors = crowd.as_ref().map_or(0, |(crowd, _)| crowd.connectors);
    let (start, mut arrival) = (Instant::now(), Arrival::default());
    let patience = PATIENCE + PATIENCE_EACH * u32::try_from(connectors).unwrap_or(u32::MAX);
    let admin = relay.admin;
    loop {
        let up = gateway
            .within(move || async move {
                let answer = client::get(admin, &admin.to_string(), "/readyz").await?;
                let up = answer.json().ok().and_then(|body| body.pointer(&format!("/services/{SERVICE}/up"))?.as_u64());
                Ok((answer.status == 200, up.unwrap_or(0)))
            })
            .await;
        let (is_ready, up) = up.unwrap_or((false, 0));
        let (now, up) = (start.elapsed().as_secs_f64(), usize::try_from(up).unwrap_or(0));
        let first = |at: &mut f64, count: usize| {
            if *at == 0.0 && up >= count {
                *at = now;
            }
        };
        if let Some((crowd, joining)) = &mut crowd {
            crowd.start_up_to(up + *joining)?;
        }
        first(&mut arrival.half, connectors / 2);
        first(&mut arrival.most, connectors * 99 / 100);
        if up >= connectors && (connectors > 0 || is_ready) {
            arrival.all = now;
            return Ok(arrival);
        }
        ensure!(relay.process()?.runs(), "the relay ended: {}", relay.last_words());
        ensure!(start.elapsed() < patience, "{up} of {connectors} connectors are up after {patience:?}");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
