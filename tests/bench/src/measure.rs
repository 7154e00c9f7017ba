//! One sample: one peer does one piece of work once.

use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use crate::callers::{self, Told};
use crate::meter::{Meter, Noise, Spinners};
use crate::peers::Peer;
use crate::site::Site;
use crate::work::{Load, Work};

/// What a sample may be disturbed by and still count; shares of the machine.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Tolerance {
    pub(crate) foreign: f64,
    pub(crate) steal: f64,
}

/// What one peer did, what it cost, and what else ran.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Sample {
    pub(crate) work: String,
    pub(crate) peer: String,
    pub(crate) round: usize,
    pub(crate) attempt: usize,
    /// Too much else ran: kept in the record, left out of the medians.
    pub(crate) is_noisy: bool,
    pub(crate) noise: Noise,
    /// Why there are no values.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) failed: Option<String>,
    pub(crate) values: Values,
    pub(crate) memory: Memory,
}

/// The figures; what a kind of work does not have is absent.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Values {
    pub(crate) requests_per_second: Option<f64>,
    pub(crate) p50_us: Option<f64>,
    pub(crate) p99_us: Option<f64>,
    /// Bodies alone.
    pub(crate) gbit_per_second: Option<f64>,
    pub(crate) gateway_cpu_us_per_request: Option<f64>,
    pub(crate) private_cpu_us_per_request: Option<f64>,
    /// Both ends.
    pub(crate) cpu_seconds_per_gib: Option<f64>,
    /// Answers that were not 2xx, and socket errors.
    pub(crate) errors: u64,
}

/// Bytes, both sides, now and at their peak.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Memory {
    pub(crate) gateway: u64,
    pub(crate) gateway_peak: u64,
    pub(crate) private: u64,
    pub(crate) private_peak: u64,
}

/// Has `peer` do `work` for about `run`; a failure is part of the sample.
pub(crate) fn sample(
    site: &Site,
    peer: &Peer,
    work: Work,
    run: Duration,
    round: usize,
    attempt: usize,
    tolerance: Tolerance,
) -> Sample {
    let (values, noise, failed) = match measured(site, peer, work, run) {
        Ok((values, noise)) => (values, noise, None),
        Err(error) => (Values::default(), Noise::default(), Some(format!("{error:#}"))),
    };
    Sample {
        work: work.to_string(),
        peer: peer.name.clone(),
        round,
        attempt,
        is_noisy: noise.foreign > tolerance.foreign || noise.steal > tolerance.steal,
        noise,
        failed,
        values,
        memory: peer.memory(),
    }
}

fn measured(site: &Site, peer: &Peer, work: Work, run: Duration) -> Result<(Values, Noise)> {
    // Connections grow their windows first, longest where an answer takes longest.
    let warm_up = Duration::from_secs(if work.is_lossy { 2 } else { 1 });
    let (is_single, body) = match work.load {
        Load::Requests { connections, body, .. } => (connections == 1, body.bytes()),
        Load::Http2 { at_once, body } => (at_once == 1, body.bytes()),
        Load::Bulk { .. } => (false, site.bulk(work.is_lossy).1),
    };
    let spinners = if is_single { Spinners::start()? } else { Spinners::none() };
    let call = |run: Duration| -> Result<Told> {
        match work.load {
            Load::Requests { is_upload, body, connections } => {
                callers::wrk(site, peer, is_upload, body, connections, run)
            }
            Load::Http2 { body, at_once } => callers::h2load(site, peer, body, at_once, run),
            Load::Bulk { is_upload, streams } => callers::curl(site, peer, is_upload, streams, work.is_lossy),
        }
    };
    let _other = work.is_beside.then(|| callers::Other::start(site, peer, work.is_lossy)).transpose()?;
    if !matches!(work.load, Load::Bulk { .. }) {
        call(warm_up)?;
    }
    let before = Meter::read(site, peer, &spinners)?;
    let told = call(run)?;
    let cost = before.until_now(site, peer, &spinners)?;
    let requests = told.requests.max(1.0);
    let bytes = told.requests * body as f64;
    let took = told.seconds.unwrap_or(cost.took.as_secs_f64());
    let per_request = |cpu: Duration| Some(cpu.as_secs_f64() * 1e6 / requests);
    let both = (cost.gateway + cost.private).as_secs_f64();
    let values = Values {
        requests_per_second: Some(told.requests / took),
        p50_us: told.p50_us,
        p99_us: told.p99_us,
        gbit_per_second: Some(bytes * 8.0 / took / 1e9),
        gateway_cpu_us_per_request: per_request(cost.gateway),
        private_cpu_us_per_request: per_request(cost.private),
        cpu_seconds_per_gib: (bytes > 0.0).then(|| both / (bytes / f64::from(1 << 30))),
        errors: told.errors,
    };
    Ok((values, cost.noise))
}
