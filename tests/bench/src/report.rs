//! The account of a run: medians with their spread, and the ratios to Culvert.

use serde::Serialize;

use crate::measure::{Bulk, Memory, Noise, Requests, Sample};

/// Everything measured, and the medians.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// Seconds since 1970.
    taken: u64,
    processors: usize,
    versions: Vec<String>,
    rows: Vec<Row>,
    samples: Vec<Sample>,
}

#[derive(Debug, Serialize)]
struct Row {
    peer: String,
    c64_per_second: Option<Spread>,
    c64_p50_us: Option<Spread>,
    c64_p99_us: Option<Spread>,
    c64_gateway_cpu_us: Option<Spread>,
    c64_private_cpu_us: Option<Spread>,
    c1_per_second: Option<Spread>,
    c1_p50_us: Option<Spread>,
    c1_p99_us: Option<Spread>,
    down_1: Option<Spread>,
    down_8: Option<Spread>,
    up_1: Option<Spread>,
    up_8: Option<Spread>,
    down_8_cpu: Option<Spread>,
    up_8_cpu: Option<Spread>,
    idle: Memory,
    loaded: Memory,
    errors: u64,
    worst_noise: Noise,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct Spread {
    median: f64,
    low: f64,
    high: f64,
}

impl Report {
    pub(crate) fn of(order: &[String], idle: &[Memory], samples: Vec<Sample>) -> Self {
        let mut rows = Vec::new();
        let mut idle = idle.iter();
        for peer in order {
            let own: Vec<&Sample> = samples.iter().filter(|sample| &sample.peer == peer).collect();
            if let Some(last) = own.last() {
                rows.push(row(peer, &own, *idle.next().unwrap_or(&Memory::default()), last.memory));
            }
        }
        let taken = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |age| age.as_secs());
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self { taken, processors, versions: versions(), rows, samples }
    }

    pub(crate) fn markdown(&self) -> String {
        let mut text = format!("{} processors, medians of alternated rounds; [low to high].\n\n", self.processors);
        text += &format!("Versions: {}.\n\n", self.versions.join("; "));
        text += "| | req/s c64 | x culvert | CPU us/req gw+vpc | p50 / p99 ms c64 | req/s c1 | p50 / p99 us c1 | errors |\n";
        text += "|---|---|---|---|---|---|---|---|\n";
        let culvert = self.rows.iter().find(|row| row.peer == "culvert");
        for row in &self.rows {
            let ratio = match (row.c64_per_second, culvert.and_then(|row| row.c64_per_second)) {
                (Some(own), Some(culvert)) => format!("{:.2}", own.median / culvert.median),
                _ => "-".to_owned(),
            };
            let cpu = match (row.c64_gateway_cpu_us, row.c64_private_cpu_us) {
                (Some(gateway), Some(private)) => {
                    format!("{:.0} ({:.0}+{:.0})", gateway.median + private.median, gateway.median, private.median)
                }
                _ => "-".to_owned(),
            };
            text += &format!(
                "| {} | {} | {ratio} | {cpu} | {} / {} | {} | {} / {} | {} |\n",
                row.peer,
                shown(row.c64_per_second, 1.0, 0),
                median(row.c64_p50_us, 1e-3, 2),
                median(row.c64_p99_us, 1e-3, 2),
                shown(row.c1_per_second, 1.0, 0),
                median(row.c1_p50_us, 1.0, 0),
                median(row.c1_p99_us, 1.0, 0),
                row.errors,
            );
        }
        text += "\n| Gbit/s | down 1 | down 8 | up 1 | up 8 | CPU-s/GiB down 8 / up 8 |\n|---|---|---|---|---|---|\n";
        for row in &self.rows {
            text += &format!(
                "| {} | {} | {} | {} | {} | {} / {} |\n",
                row.peer,
                shown(row.down_1, 1.0, 2),
                shown(row.down_8, 1.0, 2),
                shown(row.up_1, 1.0, 2),
                shown(row.up_8, 1.0, 2),
                median(row.down_8_cpu, 1.0, 1),
                median(row.up_8_cpu, 1.0, 1),
            );
        }
        text += "\n| RSS MiB | idle gw / vpc | peak gw / vpc | worst noise: foreign, steal |\n|---|---|---|---|\n";
        for row in &self.rows {
            let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
            text += &format!(
                "| {} | {:.1} / {:.1} | {:.1} / {:.1} | {:.0} %, {:.0} % |\n",
                row.peer,
                mib(row.idle.gateway),
                mib(row.idle.private),
                mib(row.loaded.gateway_peak),
                mib(row.loaded.private_peak),
                row.worst_noise.foreign * 100.0,
                row.worst_noise.steal * 100.0,
            );
        }
        text
    }
}

/// What each program says of itself, first line.
fn versions() -> Vec<String> {
    let programs = [("nginx", "-v"), ("wireguard-go", "--version"), ("wrk", "-v"), ("uname", "-r")];
    let mut versions = vec![format!("culvert {}", env!("CARGO_PKG_VERSION")), "boringtun-cli 0.7.1".to_owned()];
    for (program, flag) in programs {
        if let Ok(output) = std::process::Command::new(program).arg(flag).output() {
            let said = [output.stdout, output.stderr].concat();
            let said = String::from_utf8_lossy(&said).lines().next().unwrap_or_default().to_owned();
            versions.push(said.split("Copyright").next().unwrap_or_default().trim().to_owned());
        }
    }
    versions
}

fn row(peer: &str, own: &[&Sample], idle: Memory, loaded: Memory) -> Row {
    let of = |pick: &dyn Fn(&Sample) -> Option<f64>| Spread::of(own.iter().filter_map(|sample| pick(sample)).collect());
    let c64 = |field: &dyn Fn(&Requests) -> f64| of(&|sample| sample.c64.as_ref().map(field));
    let c1 = |field: &dyn Fn(&Requests) -> f64| of(&|sample| sample.c1.as_ref().map(field));
    let bulk = |up: bool, streams: u32, field: &dyn Fn(&Bulk) -> f64| {
        of(&|sample| sample.bulk.iter().find(|bulk| bulk.up == up && bulk.streams == streams).map(field))
    };
    let rate = |bulk: &Bulk| bulk.gbit_per_second;
    let noises = own.iter().flat_map(|sample| {
        let requests = sample.c64.iter().chain(&sample.c1).map(|requests| requests.noise);
        requests.chain(sample.bulk.iter().map(|bulk| bulk.noise))
    });
    let worst_noise = noises.fold(Noise { foreign: 0.0, steal: 0.0 }, |worst, noise| Noise {
        foreign: worst.foreign.max(noise.foreign),
        steal: worst.steal.max(noise.steal),
    });
    Row {
        peer: peer.to_owned(),
        c64_per_second: c64(&|requests| requests.per_second),
        c64_p50_us: c64(&|requests| requests.p50_us),
        c64_p99_us: c64(&|requests| requests.p99_us),
        c64_gateway_cpu_us: c64(&|requests| requests.gateway_cpu_us),
        c64_private_cpu_us: c64(&|requests| requests.private_cpu_us),
        c1_per_second: c1(&|requests| requests.per_second),
        c1_p50_us: c1(&|requests| requests.p50_us),
        c1_p99_us: c1(&|requests| requests.p99_us),
        down_1: bulk(false, 1, &rate),
        down_8: bulk(false, 8, &rate),
        up_1: bulk(true, 1, &rate),
        up_8: bulk(true, 8, &rate),
        down_8_cpu: bulk(false, 8, &|bulk| bulk.cpu_seconds_per_gib),
        up_8_cpu: bulk(true, 8, &|bulk| bulk.cpu_seconds_per_gib),
        idle,
        loaded,
        errors: own.iter().flat_map(|sample| sample.c64.iter().chain(&sample.c1)).map(|requests| requests.errors).sum(),
        worst_noise,
    }
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (low, high) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            *values.get(middle)?
        } else {
            (values.get(middle - 1)? + values.get(middle)?) / 2.0
        };
        Some(Self { median, low, high })
    }
}

fn shown(spread: Option<Spread>, factor: f64, digits: usize) -> String {
    spread.map_or("-".to_owned(), |spread| {
        let [median, low, high] = [spread.median, spread.low, spread.high].map(|value| value * factor);
        format!("{median:.digits$} [{low:.digits$} to {high:.digits$}]")
    })
}

fn median(spread: Option<Spread>, factor: f64, digits: usize) -> String {
    spread.map_or("-".to_owned(), |spread| format!("{:.digits$}", spread.median * factor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_count_lies_between_the_middle_two() {
        let spread = Spread::of(vec![4.0, 1.0, 3.0, 2.0]).unwrap();
        assert!((spread.median - 2.5).abs() < 1e-9 && spread.low < 1.1 && spread.high > 3.9);
        assert!(Spread::of(Vec::new()).is_none());
    }
}
