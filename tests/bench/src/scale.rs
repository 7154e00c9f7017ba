//! Many connectors on one relay: how fast they join, what they cost while idle, and how fast all of them are back when
//! the relay was killed and started again (the handshake storm).

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use culvert_lab::nginx::Nginx;
use culvert_lab::{Namespace, Relay, client, spawner, usage};
use serde::Serialize;

use crate::crowd;
use crate::site::{self, FETCH, GATEWAY};

/// What a crowd of one size showed.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Scale {
    pub(crate) connectors: usize,
    /// Why there are no figures.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) failed: Option<String>,
    /// From the crowd's start.
    pub(crate) joined: Arrival,
    /// Resident memory over that of the relay without connectors.
    pub(crate) relay_rss_kib_each: f64,
    pub(crate) relay_rss_bytes: u64,
    /// The library in one process: without what a process of its own costs.
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
}

const SERVICE: &str = "orders";
/// How long a crowd may take to come: some seconds, and some for each connector.
const PATIENCE: Duration = Duration::from_secs(120);
const PATIENCE_EACH: Duration = Duration::from_millis(60);

/// Measures a crowd of that size, looked at for `idle` once it is there.
pub(crate) async fn measure(connectors: usize, idle: Duration) -> Scale {
    let mut scale = Scale { connectors, ..Scale::default() };
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
    relay.launch()?;
    arrive(&gateway, &mut relay, 0).await?;
    let empty = relay.usage()?;
    let token = relay.tunnel("crowd", &[SERVICE]).await?;
    let crowd = Crowd::start(&private, scale.connectors, &token)?;
    let cpu = relay.usage()?.cpu;
    scale.joined = arrive(&gateway, &mut relay, scale.connectors).await?;
    scale.joined.relay_cpu_ms_each = each(relay.usage()?.cpu.saturating_sub(cpu).as_secs_f64() * 1e3, scale.connectors);

    let (before, start) = (relay.usage()?, Instant::now());
    tokio::time::sleep(idle).await;
    let after = relay.usage()?;
    scale.relay_cpu_idle = after.cpu.saturating_sub(before.cpu).as_secs_f64() / start.elapsed().as_secs_f64();
    scale.relay_rss_bytes = after.rss_bytes;
    scale.relay_rss_kib_each = each(after.rss_bytes.saturating_sub(empty.rss_bytes) as f64 / 1024.0, scale.connectors);
    scale.connector_rss_kib_each = each(usage::of(crowd.0.id())?.rss_bytes as f64 / 1024.0, scale.connectors);

    relay.kill()?;
    relay.launch()?;
    scale.back = arrive(&gateway, &mut relay, scale.connectors).await?;
    scale.back.relay_cpu_ms_each = each(relay.usage()?.cpu.as_secs_f64() * 1e3, scale.connectors);
    Ok(())
}

/// Waits until as many connectors are up (none: until the relay is ready) and tells when.
async fn arrive(gateway: &Namespace, relay: &mut Relay, connectors: usize) -> Result<Arrival> {
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
        first(&mut arrival.half, connectors / 2);
        first(&mut arrival.most, connectors * 99 / 100);
        if up >= connectors && (connectors > 0 || is_ready) {
            arrival.all = now;
            return Ok(arrival);
        }
        ensure!(relay.process()?.runs(), "the relay ended: {}", relay.last_words());
        ensure!(start.elapsed() < patience, "{up} of {connectors} connectors are up after {patience:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn each(total: f64, connectors: usize) -> f64 {
    total / connectors.max(1) as f64
}

/// The process with the connectors. Dropped: ended.
struct Crowd(Child);

impl Crowd {
    fn start(private: &Namespace, connectors: usize, token: &str) -> Result<Self> {
        let own = std::env::current_exe().context("where is this program?")?;
        let mut command = spawner::command("nsenter");
        command.args(private.prefix().iter().skip(1)).arg(own).arg("crowd");
        command.args(["--connectors", &connectors.to_string()]);
        command.args(["--service", &format!("{SERVICE}=http://127.0.0.1:{FETCH}")]);
        command.env(crowd::TOKEN, token).stdin(Stdio::piped()).stdout(Stdio::null());
        Ok(Self(spawner::spawn(command)?))
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
