//! The benchmark: Culvert beside what a user could pick instead, on the same work, in alternated rounds of one run.
//!
//! It measures release builds only, in two network namespaces joined by a veth pair, and never hides the noise: every
//! sample records the processor time that other work took and the time the hypervisor stole. Compare by ratio.

mod callers;
mod crowd;
mod measure;
mod meter;
mod peers;
mod report;
mod scale;
mod site;
mod way;
mod work;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::{Parser, Subcommand};
use culvert_ops::resident::START_LASTS;

use measure::{Memory, Sample, Tolerance, sample};
use peers::Peer;
use report::{LeftOut, Machine, PeerMemory, Report, Run, WayTaken};
use site::Site;
use way::{LongWay, Manner};
use work::Work;

/// As in the connector's binary, or the crowd would show another memory than connectors have.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// After so long a peer that has started only waits: what a start alone needs is given back by then.
const SETTLED_AFTER: Duration = START_LASTS.saturating_add(Duration::from_secs(2));

/// Runs the same work over Culvert and over what a user could pick instead, side by side, and writes bench.json,
/// bench.md (tables) and bench.svg (a plot). Needs root for its network namespaces; tests/bench/run installs the peers.
#[derive(Debug, Parser)]
#[command(after_long_help = help(), args_conflicts_with_subcommands = true)]
struct Args {
    #[command(subcommand)]
    other: Option<Other>,
    /// Alternated rounds: every peer does a work once before any does it again.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds of each run of wrk or h2load.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Size of each large body.
    #[arg(long, default_value_t = 256)]
    bulk_mib: u64,
    /// What is done, in this order, by names separated by commas (see below).
    #[arg(long, default_value = "usual")]
    work: String,
    /// Which peers, in this order, or `all`.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "direct,culvert,culvert-peer,nginx-tls-nginx,boringtun+nginx,wireguard-go+nginx"
    )]
    peers: Vec<String>,
    /// Crowds of idle connectors to try on a relay of their own, e.g. 1000,10000.
    #[arg(long, value_delimiter = ',')]
    connectors: Vec<usize>,
    /// Connectors of a crowd on their way in at once; the next start as they are up. All at once they would measure
    /// themselves: they share this machine.
    #[arg(long, default_value_t = 200)]
    joining: usize,
    /// Seconds that a crowd is watched while idle.
    #[arg(long, default_value_t = 20)]
    idle_seconds: u64,
    /// Percent of packets that lossy work loses, each way.
    #[arg(long, default_value_t = 1.0)]
    loss_percent: f64,
    /// Milliseconds there and back that lossy work is delayed by.
    #[arg(long, default_value_t = 50)]
    delay_ms: u64,
    /// Mbit/s that lossy work's way takes at most, each way; it holds 100 ms of that. 0: no limit.
    #[arg(long, default_value_t = 0)]
    rate_mbit: u32,
    /// Foreign load, in percent of the machine, from which on a sample is thrown away.
    #[arg(long, default_value_t = 5.0)]
    max_foreign: f64,
    /// Steal, in percent of the machine, from which on a sample is thrown away.
    #[arg(long, default_value_t = 15.0)]
    max_steal: f64,
    /// How often a sample that was thrown away is taken anew, in its round.
    #[arg(long, default_value_t = 2)]
    retries: usize,
    /// Where bench.json, bench.md and bench.svg go.
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Other {
    /// Many connectors in one process, with the token in the environment; the benchmark starts it.
    #[command(hide = true)]
    Crowd {
        #[arg(long)]
        service: String,
        #[arg(long)]
        user: Option<u32>,
    },
}

fn help() -> String {
    format!("{}\n\n{}\n\nusual: {}\n\nall: {}", peers::ABOUT, work::GRAMMAR, work::USUAL, work::ALL)
}

fn main() -> Result<()> {
    let args = Args::parse();
    if let Some(Other::Crowd { service, user }) = &args.other {
        return crowd::run(service, *user);
    }
    let works = Work::list(&args.work).map_err(anyhow::Error::msg)?;
    if !nix::unistd::geteuid().is_root() {
        bail!("the benchmark needs root: it makes network namespaces");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run(args, works))
}

async fn run(args: Args, works: Vec<Work>) -> Result<()> {
    let tolerance = Tolerance { foreign: args.max_foreign / 100.0, steal: args.max_steal / 100.0 };
    let mut names: Vec<String> = args.peers.clone();
    if names.iter().any(|name| name == "all") {
        names = peers::ALL.split(',').map(str::to_owned).collect();
    }
    let mut report = Report {
        taken: std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |age| age.as_secs()),
        machine: Machine::read(),
        versions: report::versions(&names),
        run: Run { rounds: args.rounds, seconds: args.seconds, bulk_mib: args.bulk_mib, tolerance, way: None },
        left_out: Vec::new(),
        works: works.iter().map(Work::to_string).collect(),
        peers: Vec::new(),
        rows: Vec::new(),
        memory: Vec::new(),
        scale: Vec::new(),
        samples: Vec::new(),
    };
    if !works.is_empty() {
        side_by_side(&args, &names, &works, &mut report).await?;
    }
    for connectors in &args.connectors {
        eprintln!("{connectors} connectors");
        report.scale.push(scale::measure(*connectors, args.joining, Duration::from_secs(args.idle_seconds)).await);
    }
    std::fs::create_dir_all(&args.out)?;
    std::fs::write(args.out.join("bench.json"), serde_json::to_vec_pretty(&report)?)?;
    std::fs::write(args.out.join("bench.svg"), report::svg(&report))?;
    let table = report::markdown(&report);
    std::fs::write(args.out.join("bench.md"), &table)?;
    println!("{table}");
    Ok(())
}

async fn side_by_side(args: &Args, names: &[String], works: &[Work], report: &mut Report) -> Result<()> {
    let tolerance = report.run.tolerance;
    let site = Site::build(args.bulk_mib).await.context("build the two hosts")?;
    let mut peers = Vec::new();
    for name in names {
        match Peer::start(name, &site).await {
            Ok(peer) => peers.push(peer),
            Err(error) => {
                let why = format!("{error:#}");
                eprintln!("LEFT OUT: {name}: {why}");
                report.left_out.push(LeftOut { peer: name.clone(), why });
            }
        }
    }
    tokio::time::sleep(SETTLED_AFTER).await;
    let idle: Vec<Memory> = peers.iter().map(Peer::memory).collect();
    let manner = Manner {
        loss: args.loss_percent / 100.0,
        round_trip: Duration::from_millis(args.delay_ms),
        rate: (args.rate_mbit > 0).then_some(f64::from(args.rate_mbit) * 1e6 / 8.0),
    };
    let long_way = works.iter().any(|work| work.is_lossy).then(|| LongWay::build(&site, manner)).transpose()?;
    for round in 1..=args.rounds {
        for work in works {
            // Every other round the other way about: who comes first is not always the same.
            let order: Vec<&Peer> = if round % 2 == 1 { peers.iter().collect() } else { peers.iter().rev().collect() };
            let _lead = match &long_way {
                Some(way) if work.is_lossy => Some(way.lead(&site)?),
                _ => None,
            };
            for peer in order {
                take(args, &site, peer, *work, round, tolerance, &mut report.samples);
            }
        }
    }
    report.run.way = long_way.map(|way| {
        let [carried, lost, overflowed] = way.counts();
        WayTaken { manner, carried, lost, overflowed }
    });
    report.peers = peers.iter().map(|peer| peer.name.clone()).collect();
    report.memory = peers
        .iter()
        .zip(idle)
        .map(|(peer, idle)| PeerMemory { peer: peer.name.clone(), idle, loaded: peer.memory() })
        .collect();
    report.rows = report::rows(&report.works, &report.peers, &report.samples);
    Ok(())
}

/// Takes a sample, and again while it is noisy; a peer that failed at a work is not asked for it again.
fn take(
    args: &Args,
    site: &Site,
    peer: &Peer,
    work: Work,
    round: usize,
    tolerance: Tolerance,
    samples: &mut Vec<Sample>,
) {
    let name = work.to_string();
    if samples.iter().any(|one| one.peer == peer.name && one.work == name && one.failed.is_some()) {
        return;
    }
    for attempt in 1..=args.retries + 1 {
        eprintln!(
            "round {round} of {}: {name}: {}{}",
            args.rounds,
            peer.name,
            if attempt > 1 { ", again" } else { "" }
        );
        let taken = sample(site, peer, work, Duration::from_secs(args.seconds), round, attempt, tolerance);
        if let Some(why) = &taken.failed {
            eprintln!("FAILED: {name}: {}: {why}", peer.name);
        }
        let is_done = taken.failed.is_some() || !taken.is_noisy;
        samples.push(taken);
        if is_done {
            return;
        }
    }
}
