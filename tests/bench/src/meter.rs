//! What a piece of work costs, by side, and what else ran meanwhile; all of it from `/proc`.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use culvert_lab::{spawner, usage};
use nix::sys::resource::{Usage, UsageWho, getrusage};
use serde::Serialize;

use crate::peers::Peer;
use crate::site::Site;

/// What disturbed: shares of the whole machine, 0 to 1.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Noise {
    /// Processor time that nobody of this run took.
    pub(crate) foreign: f64,
    /// Processor time that the hypervisor kept.
    pub(crate) steal: f64,
}

/// Processor time of both sides, and the noise.
pub(crate) struct Cost {
    pub(crate) gateway: Duration,
    pub(crate) private: Duration,
    pub(crate) noise: Noise,
    pub(crate) took: Duration,
}

/// A reading before the work.
pub(crate) struct Meter {
    at: Instant,
    gateway: Duration,
    private: Duration,
    others_of_ours: Duration,
    machine: Machine,
}

impl Meter {
    pub(crate) fn read(site: &Site, peer: &Peer, spinners: &Spinners) -> Result<Self> {
        let total = |ids: &[u32]| ids.iter().filter_map(|id| usage::cpu(*id).ok()).sum();
        let [gateway, private] = peer.processes().map(|ids| total(&ids));
        let mut ours = site.origin.ids();
        ours.push(std::process::id());
        ours.extend(spinners.0.iter().map(std::process::Child::id));
        // Callers that have ended: wrk, h2load, curl.
        let callers = busy(&getrusage(UsageWho::RUSAGE_CHILDREN)?);
        let others_of_ours = total(&ours) + callers;
        Ok(Self { at: Instant::now(), gateway, private, others_of_ours, machine: Machine::read()? })
    }

    pub(crate) fn until_now(&self, site: &Site, peer: &Peer, spinners: &Spinners) -> Result<Cost> {
        let now = Self::read(site, peer, spinners)?;
        let gateway = now.gateway.saturating_sub(self.gateway);
        let private = now.private.saturating_sub(self.private);
        let ours = gateway + private + now.others_of_ours.saturating_sub(self.others_of_ours);
        let took = now.at - self.at;
        let whole = took.as_secs_f64() * now.machine.processors;
        let foreign = now.machine.busy_seconds - self.machine.busy_seconds - ours.as_secs_f64();
        let noise = Noise {
            foreign: (foreign / whole).max(0.0),
            steal: (now.machine.steal_seconds - self.machine.steal_seconds) / whole,
        };
        Ok(Cost { gateway, private, noise, took })
    }
}

fn busy(usage: &Usage) -> Duration {
    [usage.user_time(), usage.system_time()]
        .into_iter()
        .map(|time| {
            Duration::from_secs(time.tv_sec().unsigned_abs()) + Duration::from_micros(time.tv_usec().unsigned_abs())
        })
        .sum()
}

struct Machine {
    processors: f64,
    busy_seconds: f64,
    steal_seconds: f64,
}

impl Machine {
    fn read() -> Result<Self> {
        let text = std::fs::read_to_string("/proc/stat")?;
        let line = text.lines().next().context("/proc/stat is empty")?;
        // user nice system idle iowait irq softirq steal, in hundredths of a second
        let fields: Vec<f64> = line.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
        let field = |place: usize| fields.get(place).copied().unwrap_or(0.0) / 100.0;
        Ok(Self {
            processors: text.lines().filter(|line| line.starts_with("cpu") && !line.starts_with("cpu ")).count() as f64,
            busy_seconds: [0, 1, 2, 5, 6].into_iter().map(field).sum(),
            steal_seconds: field(7),
        })
    }
}

/// One idle-priority loop for each processor, so that none halts: waking an idle one can cost more than the work.
pub(crate) struct Spinners(Vec<std::process::Child>);

impl Spinners {
    pub(crate) fn none() -> Self {
        Self(Vec::new())
    }

    pub(crate) fn start() -> Result<Self> {
        let count = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let mut spinners = Vec::new();
        for _ in 0..count {
            let mut command = spawner::command("chrt");
            command.args(["-i", "0", "sh", "-c", "while :; do :; done"]);
            spinners.push(spawner::spawn(command)?);
        }
        Ok(Self(spinners))
    }
}

impl Drop for Spinners {
    fn drop(&mut self) {
        for spinner in &mut self.0 {
            let _ = spinner.kill();
            let _ = spinner.wait();
        }
    }
}
