//! What a process uses of the machine, read from /proc.

use std::time::Duration;

use anyhow::{Context as _, Result};

/// Memory and processor time of one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Resident memory now.
    pub rss_bytes: u64,
    /// The most resident memory it ever had.
    pub peak_rss_bytes: u64,
    /// User and system time together.
    pub cpu: Duration,
    /// Open descriptors.
    pub descriptors: usize,
}

/// Reads it.
///
/// # Errors
/// No such process.
pub fn of(id: u32) -> Result<Usage> {
    let status = read(id, "status")?;
    let descriptors = std::fs::read_dir(format!("/proc/{id}/fd")).map(Iterator::count).unwrap_or(0);
    Ok(Usage {
        rss_bytes: kib(&status, "VmRSS:")? * 1024,
        peak_rss_bytes: kib(&status, "VmHWM:")? * 1024,
        cpu: cpu(id)?,
        descriptors,
    })
}

/// Forgets the peak so far, so that the next reading tells the peak from here on.
pub fn reset_peak(id: u32) {
    let _ = std::fs::write(format!("/proc/{id}/clear_refs"), "5");
}

/// User and system time of a process and its waited-for children, exact to the scheduler's clock.
///
/// # Errors
/// No such process.
pub fn cpu(id: u32) -> Result<Duration> {
    let mut nanoseconds = 0;
    for task in std::fs::read_dir(format!("/proc/{id}/task")).with_context(|| format!("process {id}"))?.flatten() {
        // schedstat's first number is the time on a processor, in nanoseconds (stat has only 10 ms ticks).
        let text = std::fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        nanoseconds += text.split(' ').next().and_then(|number| number.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(Duration::from_nanos(nanoseconds))
}

fn read(id: u32, what: &str) -> Result<String> {
    std::fs::read_to_string(format!("/proc/{id}/{what}")).with_context(|| format!("process {id}"))
}

fn kib(status: &str, field: &str) -> Result<u64> {
    let line = status.lines().find(|line| line.starts_with(field)).with_context(|| format!("no {field}"))?;
    let number = line.split_whitespace().nth(1).with_context(|| format!("no number in {line:?}"))?;
    number.parse().with_context(|| format!("{line:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_memory_and_descriptors() {
        let usage = of(std::process::id()).unwrap();
        assert!(usage.rss_bytes > 100_000 && usage.peak_rss_bytes >= usage.rss_bytes);
        assert!(usage.descriptors > 2);
    }
}
