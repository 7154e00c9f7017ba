//! The benchmark: Culvert beside what a user could pick instead, on the same work, in alternated rounds of one run.
//!
//! It measures release builds only, in two network namespaces joined by a veth pair, and never hides the noise: every
//! sample records the processor time that other work took and the time the hypervisor stole. Compare by ratio.

mod measure;
mod peers;
mod report;
mod site;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Parser;

/// Runs the benchmark; needs root, nginx, wrk, curl, openssl, wireguard-go, and boringtun-cli (see tests/bench/run).
#[derive(Debug, Parser)]
struct Args {
    /// Alternated rounds; the table shows medians.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds of each wrk run.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Size of each bulk body.
    #[arg(long, default_value_t = 256)]
    bulk_mib: u64,
    /// Which peers, in this order.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "direct,culvert,nginx-tls-nginx,boringtun+nginx,wireguard-go+nginx"
    )]
    peers: Vec<String>,
    /// Parts to leave out.
    #[arg(long, value_delimiter = ',')]
    without: Vec<Part>,
    /// Where `bench.json` and `bench.md` go.
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// wrk at concurrency 1.
    C1,
    /// wrk at concurrency 64.
    C64,
    /// Bodies from the origin.
    Down,
    /// Bodies to the origin.
    Up,
}

fn main() -> Result<()> {
    let args = Args::parse();
    if !nix::unistd::geteuid().is_root() {
        bail!("the benchmark needs root: it makes network namespaces");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run(args))
}

async fn run(args: Args) -> Result<()> {
    let site = site::Site::build(args.bulk_mib).await.context("build the two hosts")?;
    let mut peers = Vec::new();
    for name in &args.peers {
        match peers::Peer::start(name, &site).await {
            Ok(peer) => peers.push(peer),
            Err(error) => eprintln!("left out: {name}: {error:#}"),
        }
    }
    let idle: Vec<measure::Memory> = peers.iter().map(peers::Peer::memory).collect();
    let mut samples = Vec::new();
    for round in 1..=args.rounds {
        for peer in &peers {
            eprintln!("round {round} of {}: {}", args.rounds, peer.name);
            let run = Duration::from_secs(args.seconds);
            let has = |part| !args.without.contains(&part);
            let mut sample = measure::Sample::new(peer.name.clone(), round);
            if has(Part::C64) {
                sample.c64 = Some(measure::requests(&site, peer, 64, run)?);
            }
            if has(Part::C1) {
                sample.c1 = Some(measure::requests(&site, peer, 1, run)?);
            }
            for (part, up) in [(Part::Down, false), (Part::Up, true)] {
                if has(part) {
                    for streams in [1, 8] {
                        sample.bulk.push(measure::bulk(&site, peer, streams, up)?);
                    }
                }
            }
            sample.memory = peer.memory();
            samples.push(sample);
        }
    }
    let report = report::Report::of(&args.peers, &idle, samples);
    std::fs::create_dir_all(&args.out)?;
    std::fs::write(args.out.join("bench.json"), serde_json::to_vec_pretty(&report)?)?;
    let table = report.markdown();
    std::fs::write(args.out.join("bench.md"), &table)?;
    println!("{table}");
    Ok(())
}
