//! One measurement: what the peer did, what it cost, and what else ran meanwhile.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use culvert_lab::{spawner, usage};
use serde::Serialize;

use crate::peers::{Peer, Target};
use crate::site::Site;

/// Everything one peer did in one round.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Sample {
    pub(crate) peer: String,
    pub(crate) round: usize,
    pub(crate) c1: Option<Requests>,
    pub(crate) c64: Option<Requests>,
    pub(crate) bulk: Vec<Bulk>,
    pub(crate) memory: Memory,
}

/// Bytes, both sides, now and at their peak.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Memory {
    pub(crate) gateway: u64,
    pub(crate) gateway_peak: u64,
    pub(crate) private: u64,
    pub(crate) private_peak: u64,
}

/// One wrk run.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Requests {
    pub(crate) connections: u32,
    pub(crate) per_second: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    /// Answers that were not 2xx, and socket errors.
    pub(crate) errors: u64,
    pub(crate) gateway_cpu_us: f64,
    pub(crate) private_cpu_us: f64,
    pub(crate) noise: Noise,
}

/// Bodies one after another are the same for all peers: curl, from and to memory.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Bulk {
    pub(crate) up: bool,
    pub(crate) streams: u32,
    pub(crate) gbit_per_second: f64,
    pub(crate) cpu_seconds_per_gib: f64,
    pub(crate) noise: Noise,
}

/// What disturbed: shares of the whole machine, 0 to 1.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Noise {
    pub(crate) foreign: f64,
    pub(crate) steal: f64,
}

impl Sample {
    pub(crate) fn new(peer: String, round: usize) -> Self {
        Self { peer, round, c1: None, c64: None, bulk: Vec::new(), memory: Memory::default() }
    }
}

/// wrk, one thread, `connections` kept connections, 1 KiB answers.
pub(crate) fn requests(site: &Site, peer: &Peer, connections: u32, run: Duration) -> Result<Requests> {
    // Idle processors halt here, and waking one costs more than the work: at concurrency 1 they are kept awake.
    let spinners = if connections == 1 { Spinners::start()? } else { Spinners(Vec::new()) };
    wrk(site, &peer.fetch, connections, Duration::from_secs(1))?;
    let before = Meter::read(site, peer, &spinners)?;
    let (said, client) = wrk(site, &peer.fetch, connections, run)?;
    let cost = before.until_now(site, peer, &spinners, client)?;
    let number = |name: &str| -> Result<&str> {
        let line = said.lines().map(str::trim).find(|line| line.starts_with(name));
        line.and_then(|line| line[name.len()..].split_whitespace().next()).with_context(|| format!("{name} in {said}"))
    };
    let per_second: f64 = number("Requests/sec:")?.parse()?;
    let done: f64 = said
        .lines()
        .find(|line| line.contains(" requests in "))
        .and_then(|line| line.split_whitespace().next()?.parse().ok())
        .with_context(|| format!("requests in {said}"))?;
    let errors =
        number("Non-2xx or 3xx responses:").ok().and_then(|text| text.parse().ok()).unwrap_or(0) + socket_errors(&said);
    let per_request = |cpu: Duration| cpu.as_secs_f64() * 1e6 / done.max(1.0);
    Ok(Requests {
        connections,
        per_second,
        p50_us: microseconds(number("50%")?)?,
        p99_us: microseconds(number("99%")?)?,
        errors,
        gateway_cpu_us: per_request(cost.gateway),
        private_cpu_us: per_request(cost.private),
        noise: cost.noise,
    })
}

/// `streams` bodies at once, down or up.
pub(crate) fn bulk(site: &Site, peer: &Peer, streams: u32, up: bool) -> Result<Bulk> {
    let nobody = Spinners(Vec::new());
    let before = Meter::read(site, peer, &nobody)?;
    let start = Instant::now();
    let target = if up { &peer.upload } else { &peer.fetch };
    let mut curls = Vec::new();
    for _ in 0..streams {
        let mut command = spawner::command("nsenter");
        command.arg(&site.gateway.prefix()[1]).args(["--", "curl", "-sS", "--fail", "-o", "/dev/null", "-m", "300"]);
        command.args([
            "-w",
            "%{size_download} %{size_upload}",
            "-H",
            &format!("Host: {}", target.host),
            "-H",
            "Expect:",
        ]);
        if up {
            command.arg("-T").arg(site.file("bulk"));
        }
        command.arg(format!("http://{}/{}", target.address, if up { "sink" } else { "bulk" }));
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        curls.push(spawner::spawn(command)?);
    }
    for curl in curls {
        let output = curl.wait_with_output()?;
        let sizes = String::from_utf8_lossy(&output.stdout).into_owned();
        let whole = sizes.split(' ').any(|size| size.parse::<u64>() == Ok(site.bulk_bytes));
        ensure!(output.status.success() && whole, "{}: {sizes} {}", peer.name, String::from_utf8_lossy(&output.stderr));
    }
    let took = start.elapsed().as_secs_f64();
    let cost = before.until_now(site, peer, &nobody, Duration::ZERO)?;
    let bytes = (site.bulk_bytes * u64::from(streams)) as f64;
    Ok(Bulk {
        up,
        streams,
        gbit_per_second: bytes * 8.0 / took / 1e9,
        cpu_seconds_per_gib: (cost.gateway + cost.private).as_secs_f64() / (bytes / f64::from(1 << 30)),
        noise: cost.noise,
    })
}

fn wrk(site: &Site, target: &Target, connections: u32, run: Duration) -> Result<(String, Duration)> {
    let mut command = Command::new("nsenter");
    command.arg(&site.gateway.prefix()[1]).args(["--", "wrk", "-t1", "--latency", "--timeout", "10s"]);
    command.args([&format!("-c{connections}"), &format!("-d{}s", run.as_secs().max(1))]);
    command.args(["-H", &format!("Host: {}", target.host), &format!("http://{}/1k", target.address)]);
    let children = || nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_CHILDREN);
    let before = children()?;
    let output = command.output().context("wrk")?;
    let after = children()?;
    ensure!(output.status.success(), "wrk: {}", String::from_utf8_lossy(&output.stderr));
    let time = |value: nix::sys::time::TimeVal| {
        Duration::from_secs(value.tv_sec().unsigned_abs()) + Duration::from_micros(value.tv_usec().unsigned_abs())
    };
    let total = |usage: &nix::sys::resource::Usage| time(usage.user_time()) + time(usage.system_time());
    Ok((String::from_utf8_lossy(&output.stdout).into_owned(), total(&after).saturating_sub(total(&before))))
}

fn socket_errors(said: &str) -> u64 {
    let line = said.lines().find(|line| line.contains("Socket errors")).unwrap_or_default();
    line.split([' ', ',']).filter_map(|word| word.parse::<u64>().ok()).sum()
}

fn microseconds(text: &str) -> Result<f64> {
    for (unit, factor) in [("us", 1.0), ("ms", 1e3), ("s", 1e6)] {
        if let Some(number) = text.strip_suffix(unit) {
            return Ok(number.parse::<f64>().with_context(|| text.to_owned())? * factor);
        }
    }
    anyhow::bail!("{text:?} is no time")
}

struct Cost {
    gateway: Duration,
    private: Duration,
    noise: Noise,
}

struct Meter {
    at: Instant,
    gateway: Duration,
    private: Duration,
    others_of_ours: Duration,
    machine: Machine,
}

impl Meter {
    fn read(site: &Site, peer: &Peer, spinners: &Spinners) -> Result<Self> {
        let total = |ids: &[u32]| ids.iter().filter_map(|id| usage::cpu(*id).ok()).sum();
        let [gateway, private] = peer.processes().map(|ids| total(&ids));
        let mut ours = site.origin.ids();
        ours.push(std::process::id());
        ours.extend(spinners.0.iter().map(std::process::Child::id));
        Ok(Self { at: Instant::now(), gateway, private, others_of_ours: total(&ours), machine: Machine::read()? })
    }

    fn until_now(&self, site: &Site, peer: &Peer, spinners: &Spinners, client: Duration) -> Result<Cost> {
        let now = Self::read(site, peer, spinners)?;
        let (gateway, private) = (now.gateway - self.gateway, now.private - self.private);
        let ours = gateway + private + now.others_of_ours.saturating_sub(self.others_of_ours) + client;
        let whole = (now.at - self.at).as_secs_f64() * now.machine.processors;
        let busy = now.machine.busy_seconds - self.machine.busy_seconds;
        let noise = Noise {
            foreign: ((busy - ours.as_secs_f64()) / whole).max(0.0),
            steal: (now.machine.steal_seconds - self.machine.steal_seconds) / whole,
        };
        Ok(Cost { gateway, private, noise })
    }
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

/// One idle-priority loop for each processor, so that none halts.
struct Spinners(Vec<std::process::Child>);

impl Spinners {
    fn start() -> Result<Self> {
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
