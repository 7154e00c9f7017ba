//! The account of a run: medians with their spread, for people (a table, a plot) and for programs (JSON).

mod plot;
mod spread;
mod table;

use serde::Serialize;

pub(crate) use plot::svg;
pub(crate) use table::markdown;

use crate::measure::{Memory, Sample, Tolerance, Values};
use crate::meter::Noise;
use crate::scale::Scale;
use crate::way::Manner;
use spread::Spread;

/// Everything measured, and the medians.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// Seconds since 1970.
    pub(crate) taken: u64,
    pub(crate) machine: Machine,
    pub(crate) versions: Vec<String>,
    pub(crate) run: Run,
    /// Peers that were asked for and could not run here, and why.
    pub(crate) left_out: Vec<LeftOut>,
    /// In the order in which they ran.
    pub(crate) works: Vec<String>,
    pub(crate) peers: Vec<String>,
    pub(crate) rows: Vec<Row>,
    pub(crate) memory: Vec<PeerMemory>,
    pub(crate) scale: Vec<Scale>,
    pub(crate) samples: Vec<Sample>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    pub(crate) processors: usize,
    pub(crate) model: String,
    pub(crate) kernel: String,
}

/// How it was run.
#[derive(Debug, Serialize)]
pub(crate) struct Run {
    pub(crate) rounds: usize,
    pub(crate) seconds: u64,
    pub(crate) bulk_mib: u64,
    pub(crate) tolerance: Tolerance,
    pub(crate) way: Option<WayTaken>,
}

/// The way with loss and delay, and what it did.
#[derive(Debug, Serialize)]
pub(crate) struct WayTaken {
    pub(crate) manner: Manner,
    pub(crate) carried: u64,
    pub(crate) lost: u64,
    pub(crate) overflowed: u64,
}

#[derive(Debug, Serialize)]
pub(crate) struct LeftOut {
    pub(crate) peer: String,
    pub(crate) why: String,
}

/// One peer at one piece of work.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) work: String,
    pub(crate) peer: String,
    /// Samples behind the figures, and those thrown away for noise.
    pub(crate) counted: usize,
    pub(crate) thrown_away: usize,
    /// Every sample was noisy: the figures are of noisy ones.
    pub(crate) is_noisy: bool,
    pub(crate) worst_noise: Noise,
    pub(crate) failed: Option<String>,
    pub(crate) requests_per_second: Option<Spread>,
    pub(crate) p50_us: Option<Spread>,
    pub(crate) p99_us: Option<Spread>,
    pub(crate) gbit_per_second: Option<Spread>,
    pub(crate) gateway_cpu_us_per_request: Option<Spread>,
    pub(crate) private_cpu_us_per_request: Option<Spread>,
    pub(crate) cpu_seconds_per_gib: Option<Spread>,
    pub(crate) errors: u64,
}

/// Resident memory of one peer's two sides.
#[derive(Debug, Serialize)]
pub(crate) struct PeerMemory {
    pub(crate) peer: String,
    pub(crate) idle: Memory,
    pub(crate) loaded: Memory,
}

impl Machine {
    pub(crate) fn read() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        let model =
            cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map(|pair| pair.1);
        Self {
            processors: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            model: model.unwrap_or("unknown").to_owned(),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        }
    }
}

impl Report {
    pub(crate) fn row(&self, work: &str, peer: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.work == work && row.peer == peer)
    }
}

/// The medians of every peer at every work.
pub(crate) fn rows(works: &[String], peers: &[String], samples: &[Sample]) -> Vec<Row> {
    let mut rows = Vec::new();
    for work in works {
        for peer in peers {
            let own: Vec<&Sample> =
                samples.iter().filter(|sample| &sample.peer == peer && &sample.work == work).collect();
            if !own.is_empty() {
                rows.push(row(work, peer, &own));
            }
        }
    }
    rows
}

fn row(work: &str, peer: &str, own: &[&Sample]) -> Row {
    let done: Vec<&&Sample> = own.iter().filter(|sample| sample.failed.is_none()).collect();
    let quiet: Vec<&&Sample> = done.iter().copied().filter(|sample| !sample.is_noisy).collect();
    let counted = if quiet.is_empty() { &done } else { &quiet };
    let of = |pick: fn(&Values) -> Option<f64>| {
        Spread::of(counted.iter().filter_map(|sample| pick(&sample.values)).collect())
    };
    let worst_noise = counted.iter().fold(Noise::default(), |worst, sample| Noise {
        foreign: worst.foreign.max(sample.noise.foreign),
        steal: worst.steal.max(sample.noise.steal),
    });
    Row {
        work: work.to_owned(),
        peer: peer.to_owned(),
        counted: counted.len(),
        thrown_away: done.len() - counted.len(),
        is_noisy: quiet.is_empty() && !done.is_empty(),
        worst_noise,
        failed: own.iter().find_map(|sample| sample.failed.clone()),
        requests_per_second: of(|values| values.requests_per_second),
        p50_us: of(|values| values.p50_us),
        p99_us: of(|values| values.p99_us),
        gbit_per_second: of(|values| values.gbit_per_second),
        gateway_cpu_us_per_request: of(|values| values.gateway_cpu_us_per_request),
        private_cpu_us_per_request: of(|values| values.private_cpu_us_per_request),
        cpu_seconds_per_gib: of(|values| values.cpu_seconds_per_gib),
        errors: counted.iter().map(|sample| sample.values.errors).sum(),
    }
}

/// What each program says of itself, first line.
pub(crate) fn versions(peers: &[String]) -> Vec<String> {
    let programs = [
        ("nginx", "-v", "nginx"),
        ("boringtun-cli", "--version", "boringtun"),
        ("wireguard-go", "--version", "wireguard-go"),
        ("rathole", "--version", "rathole"),
        ("onetun", "--version", "onetun"),
        ("wrk", "-v", ""),
        ("h2load", "--version", ""),
        ("curl", "--version", ""),
    ];
    let mut versions = vec![format!("culvert {}", env!("CARGO_PKG_VERSION"))];
    for (program, flag, of) in programs {
        if !peers.iter().any(|peer| peer.contains(of)) {
            continue;
        }
        let Ok(path) = crate::peers::installed(program) else { continue };
        if let Ok(output) = std::process::Command::new(path).arg(flag).output() {
            let said = [output.stdout, output.stderr].concat();
            let said = String::from_utf8_lossy(&said);
            let has_digit = |line: &&str| line.contains(|letter: char| letter.is_ascii_digit());
            let own = said.lines().find(|line| line.starts_with("Build Version"));
            let line = own
                .or_else(|| said.lines().find(has_digit))
                .unwrap_or_default()
                .split("Copyright")
                .next()
                .unwrap_or_default()
                .trim();
            let line = if line.starts_with(|letter: char| letter.is_ascii_digit()) || program == "rathole" {
                format!("{program} {}", line.trim_start_matches("Build Version:").trim())
            } else {
                line.to_owned()
            };
            versions.push(line.get(..60).unwrap_or(&line).to_owned());
        }
    }
    versions
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(peer: &str, per_second: f64, is_noisy: bool) -> Sample {
        Sample {
            work: "get-1k-c64".to_owned(),
            peer: peer.to_owned(),
            round: 1,
            attempt: 1,
            is_noisy,
            noise: Noise::default(),
            failed: None,
            values: Values { requests_per_second: Some(per_second), ..Values::default() },
            memory: Memory::default(),
        }
    }

    #[test]
    fn a_noisy_sample_counts_only_where_there_is_no_quiet_one() {
        let samples = [
            sample("a", 1.0, true),
            sample("a", 10.0, false),
            sample("a", 30.0, false),
            sample("b", 5.0, true),
            Sample { failed: Some("closed".to_owned()), ..sample("b", 0.0, false) },
        ];
        let rows = rows(&["get-1k-c64".to_owned()], &["a".to_owned(), "b".to_owned()], &samples);
        let medians: Vec<f64> =
            rows.iter().filter_map(|row| row.requests_per_second).map(|spread| spread.median).collect();
        assert!((medians[0] - 20.0).abs() < 1e-9 && (medians[1] - 5.0).abs() < 1e-9, "{medians:?}");
        assert_eq!((rows[0].counted, rows[0].thrown_away, rows[0].is_noisy), (2, 1, false));
        assert_eq!((rows[1].counted, rows[1].is_noisy, rows[1].failed.as_deref()), (1, true, Some("closed")));
    }
}
