//! The callers: wrk, h2load and curl on the gateway's side, and what they tell.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use culvert_lab::spawner;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::peers::{Peer, Target};
use crate::site::Site;
use crate::work::{Load, Size};

/// What a caller told.
#[derive(Debug, Default)]
pub(crate) struct Told {
    /// Whole answers.
    pub(crate) requests: f64,
    /// How long it called, if it says so itself.
    pub(crate) seconds: Option<f64>,
    pub(crate) p50_us: Option<f64>,
    pub(crate) p99_us: Option<f64>,
    pub(crate) errors: u64,
}

/// How much longer than asked a caller may take before it is ended.
const PATIENCE: &str = "120";

/// wrk, one thread, kept connections.
pub(crate) fn wrk(
    site: &Site,
    peer: &Peer,
    is_upload: bool,
    body: Size,
    connections: u32,
    run: Duration,
) -> Result<Told> {
    let target = if is_upload { &peer.upload } else { &peer.fetch };
    let mut command = inside(site);
    command.args(["timeout", PATIENCE, "wrk", "-t1", "--latency", "--timeout", "10s"]);
    command.args([format!("-c{connections}"), format!("-d{}s", run.as_secs().max(1))]);
    if is_upload {
        let script = site.file(&format!("put-{}.lua", body.name()));
        let text = format!("wrk.method = \"PUT\"\nwrk.body = string.rep(\"x\", {})\n", body.bytes());
        std::fs::write(&script, text)?;
        command.arg("-s").arg(script);
    }
    let path = if is_upload { "sink" } else { body.name() };
    command.args(["-H", &format!("Host: {}", target.host), &format!("http://{}/{path}", target.address)]);
    let said = output(command)?;
    read_wrk(&said).with_context(|| format!("wrk said: {said}"))
}

/// h2load, one thread: streams on a few connections.
pub(crate) fn h2load(site: &Site, peer: &Peer, body: Size, at_once: u32, run: Duration) -> Result<Told> {
    let (connections, streams) = Load::http2_shape(at_once);
    let Target { address, host } = &peer.http2;
    let log = site.file("h2load.log");
    let _ = std::fs::remove_file(&log);
    let mut command = inside(site);
    command.args(["timeout", PATIENCE, "h2load", "-t1"]);
    command.args([format!("-c{connections}"), format!("-m{streams}"), format!("-D{}", run.as_secs().max(1))]);
    command.arg(format!("--log-file={}", log.display()));
    command.args(["-H", &format!(":authority: {host}"), &format!("http://{address}/{}", body.name())]);
    let said = output(command)?;
    let lines = std::fs::read_to_string(&log).context("h2load's log")?;
    read_h2load(&said, &lines).with_context(|| format!("h2load said: {said}"))
}

/// Whole large bodies by curl, from and to memory, `streams` at once.
pub(crate) fn curl(site: &Site, peer: &Peer, is_upload: bool, streams: u32, is_lossy: bool) -> Result<Told> {
    let target = if is_upload { &peer.upload } else { &peer.fetch };
    let (file, bytes) = site.bulk(is_lossy);
    let start = Instant::now();
    let mut curls = Vec::new();
    for _ in 0..streams {
        let mut command = spawner::command("nsenter");
        command.args(site.gateway.prefix().iter().skip(1));
        command.args(["curl", "-sS", "--fail", "-o", "/dev/null", "-m", PATIENCE]);
        command.args([
            "-w",
            "%{size_download} %{size_upload}",
            "-H",
            &format!("Host: {}", target.host),
            "-H",
            "Expect:",
        ]);
        if is_upload {
            command.arg("-T").arg(site.file(file));
        }
        command.arg(format!("http://{}/{}", target.address, if is_upload { "sink" } else { file }));
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        curls.push(spawner::spawn(command)?);
    }
    let mut failure = None;
    for curl in curls {
        let output = curl.wait_with_output()?;
        let sizes = String::from_utf8_lossy(&output.stdout).into_owned();
        let is_whole = sizes.split(' ').any(|size| size.parse::<u64>() == Ok(bytes));
        if !output.status.success() || !is_whole {
            failure = Some(format!("curl: {sizes} {}", String::from_utf8_lossy(&output.stderr)));
        }
    }
    if let Some(failure) = failure {
        bail!(failure);
    }
    Ok(Told { requests: f64::from(streams), seconds: Some(start.elapsed().as_secs_f64()), ..Told::default() })
}

/// Somebody who fetches large bodies one after the other until this is dropped.
pub(crate) struct Other(std::process::Child);

impl Other {
    pub(crate) fn start(site: &Site, peer: &Peer, is_lossy: bool) -> Result<Self> {
        let Target { address, host } = &peer.fetch;
        let mut command = spawner::command("nsenter");
        command.args(site.gateway.prefix().iter().skip(1));
        // `timeout` hands a signal on to everything below it.
        command.args(["timeout", PATIENCE, "sh", "-c"]);
        command.args(["while curl -s --fail -o /dev/null -H \"Host: $1\" \"$2\"; do :; done", "sh", host]);
        command.arg(format!("http://{address}/{}", site.bulk(is_lossy).0));
        Ok(Self(spawner::spawn(command)?))
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        if let Ok(id) = i32::try_from(self.0.id()) {
            let _ = kill(Pid::from_raw(id), Signal::SIGTERM);
        }
        let _ = self.0.wait();
    }
}

fn inside(site: &Site) -> Command {
    let prefix = site.gateway.prefix();
    let mut words = prefix.iter();
    let mut command = Command::new(words.next().map_or("nsenter", String::as_str));
    command.args(words);
    command
}

fn output(mut command: Command) -> Result<String> {
    let shown = format!("{command:?}");
    let output = command.output().with_context(|| shown.clone())?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{shown}: {text} {}", String::from_utf8_lossy(&output.stderr));
    Ok(text)
}

fn read_wrk(said: &str) -> Result<Told> {
    let lines = || said.lines().map(str::trim);
    let after = |name: &str| {
        let line = lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.get(name.len()..)?.split_whitespace().next())
    };
    let done = lines().find(|line| line.contains(" requests in ")).context("no line of requests")?;
    let mut words = done.split([' ', ',']).filter(|word| !word.is_empty());
    let requests: f64 = words.next().context("no number of requests")?.parse()?;
    let took = words.nth(2).context("no time")?;
    let refused = after("Non-2xx or 3xx responses:").and_then(|text| text.parse().ok()).unwrap_or(0);
    let broken: u64 = lines()
        .find(|line| line.starts_with("Socket errors"))
        .map(|line| line.split([' ', ',']).filter_map(|word| word.parse::<u64>().ok()).sum())
        .unwrap_or(0);
    ensure!(requests > 0.0, "no request was answered");
    Ok(Told {
        requests,
        seconds: Some(microseconds(took)? / 1e6),
        p50_us: Some(microseconds(after("50%").context("no p50")?)?),
        p99_us: Some(microseconds(after("99%").context("no p99")?)?),
        errors: refused + broken,
    })
}

/// What h2load says, and its log: start, status and microseconds of each request.
fn read_h2load(said: &str, log: &str) -> Result<Told> {
    let finished = said.lines().find(|line| line.starts_with("finished in ")).context("it did not finish")?;
    let took = finished.split([' ', ',']).nth(2).context("no time")?;
    let mut times = Vec::new();
    let mut errors = 0;
    for line in log.lines() {
        let mut words = line.split_whitespace().skip(1);
        let (status, time) = (words.next(), words.next().and_then(|text| text.parse::<f64>().ok()));
        match (status, time) {
            (Some(status), Some(time)) if status.starts_with('2') => times.push(time),
            _ => errors += 1,
        }
    }
    ensure!(!times.is_empty(), "no request was answered");
    times.sort_by(f64::total_cmp);
    let quantile = |share: f64| times.get(((times.len() - 1) as f64 * share) as usize).copied();
    Ok(Told {
        requests: times.len() as f64,
        seconds: Some(microseconds(took)? / 1e6),
        p50_us: quantile(0.5),
        p99_us: quantile(0.99),
        errors,
    })
}

fn microseconds(text: &str) -> Result<f64> {
    for (unit, factor) in [("us", 1.0), ("ms", 1e3), ("s", 1e6), ("m", 6e7)] {
        if let Some(number) = text.strip_suffix(unit) {
            return Ok(number.parse::<f64>().with_context(|| text.to_owned())? * factor);
        }
    }
    bail!("{text:?} is no time")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_wrk_says_is_read_with_its_errors() {
        let said = "Running 5s test @ http://127.0.0.1:8100/1k\n  1 threads and 64 connections\n  Thread Stats   Avg\n  \
            Latency Distribution\n     50%    3.50ms\n     75%    4.10ms\n     90%    5.00ms\n     99%   12.00ms\n  \
            85080 requests in 5.00s, 103.11MB read\n  Socket errors: connect 0, read 2, write 0, timeout 1\n  \
            Non-2xx or 3xx responses: 4\nRequests/sec:  17016.00\nTransfer/sec:     20.62MB\n";
        let told = read_wrk(said).unwrap();
        assert!((told.requests - 85_080.0).abs() < 0.5 && told.errors == 7, "{told:?}");
        assert_eq!((told.p50_us, told.p99_us, told.seconds), (Some(3500.0), Some(12_000.0), Some(5.0)));
        assert!(read_wrk("0 requests in 5.00s, 0B read").is_err());
    }

    #[test]
    fn what_h2load_logs_becomes_quantiles_of_good_answers() {
        let log: String = (1..=100).map(|time| format!("1700000000000000\t200\t{time}\n")).collect();
        let said = "finished in 2.00s, 50.00 req/s, 60KB/s\nrequests: 101 total\n";
        let told = read_h2load(said, &format!("{log}1700000000000000\t503\t1\n1700000000000000\t-1\t1\n")).unwrap();
        assert_eq!((told.p50_us, told.p99_us, told.seconds), (Some(50.0), Some(99.0), Some(2.0)));
        assert!((told.requests - 100.0).abs() < 0.5 && told.errors == 2, "{told:?}");
    }
}
