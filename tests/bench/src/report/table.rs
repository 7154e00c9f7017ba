//! The tables, as Markdown.

use std::fmt::Write as _;

use super::spread::Spread;
use super::{Report, Row};

pub(crate) fn markdown(report: &Report) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write(report, &mut text);
    text
}

fn write(report: &Report, text: &mut String) -> std::fmt::Result {
    let (machine, run) = (&report.machine, &report.run);
    writeln!(text, "{} processors ({}), Linux {}.", machine.processors, machine.model, machine.kernel)?;
    writeln!(
        text,
        "Medians [low to high] of {} alternated rounds; {} s each; large bodies {} MiB.",
        run.rounds, run.seconds, run.bulk_mib
    )?;
    writeln!(
        text,
        "Samples with more than {:.0} % foreign load or {:.0} % steal of the machine are thrown away; ~ marks a figure that had no other.",
        run.tolerance.foreign * 100.0,
        run.tolerance.steal * 100.0
    )?;
    if let Some(way) = &run.way {
        let rate = way.manner.rate.map_or(String::new(), |rate| format!(", {:.0} Mbit/s", rate * 8e-6));
        writeln!(
            text,
            "lossy: {:.1} % of packets lost each way, {} ms there and back{rate} ({} carried, {} lost, {} did not fit).",
            way.manner.loss * 100.0,
            way.manner.round_trip.as_millis(),
            way.carried,
            way.lost,
            way.overflowed
        )?;
    }
    writeln!(text, "Versions: {}.", report.versions.join("; "))?;
    for out in &report.left_out {
        writeln!(text, "LEFT OUT: {}: {}", out.peer, out.why.lines().next().unwrap_or_default())?;
    }
    for work in &report.works {
        if report.rows.iter().any(|row| &row.work == work) {
            one_work(report, work, text)?;
        }
    }
    memory(report, text)?;
    scale(report, text)
}

fn one_work(report: &Report, work: &str, text: &mut String) -> std::fmt::Result {
    let name = work.strip_prefix("lossy-").unwrap_or(work);
    let is_bulk = name.starts_with("down-") || name.starts_with("up-");
    let culvert = report.row(work, "culvert");
    writeln!(text, "\n### {work}\n")?;
    if is_bulk {
        writeln!(
            text,
            "| | Gbit/s | x culvert | CPU-s/GiB both ends | samples | noise: foreign, steal |\n|---|---|---|---|---|---|"
        )?;
    } else {
        writeln!(
            text,
            "| | req/s | x culvert | p50 ms | p99 ms | CPU us/req gw + vpc | errors | samples | noise: foreign, steal |\n|---|---|---|---|---|---|---|---|---|"
        )?;
    }
    for peer in &report.peers {
        let Some(row) = report.row(work, peer) else { continue };
        let mark = if row.is_noisy { "~" } else { "" };
        let ratio = |pick: fn(&Row) -> Option<Spread>| match (pick(row), culvert.and_then(pick)) {
            (Some(own), Some(culvert)) if culvert.median > 0.0 => format!("{:.2}", own.median / culvert.median),
            _ => "-".to_owned(),
        };
        let samples = format!("{} (-{})", row.counted, row.thrown_away);
        let noise = format!("{:.0} %, {:.0} %", row.worst_noise.foreign * 100.0, row.worst_noise.steal * 100.0);
        if let (Some(why), 0) = (&row.failed, row.counted) {
            let why = why.lines().next().unwrap_or_default().replace('|', "/");
            writeln!(
                text,
                "| {peer} | FAILED: {}{}",
                why.chars().take(80).collect::<String>(),
                if is_bulk { " ||||| " } else { " |||||||| " }
            )?;
        } else if is_bulk {
            writeln!(
                text,
                "| {peer} | {mark}{} | {} | {} | {samples} | {noise} |",
                shown(row.gbit_per_second, 1.0, if work == name { 2 } else { 4 }),
                ratio(|row| row.gbit_per_second),
                shown(row.cpu_seconds_per_gib, 1.0, 1),
            )?;
        } else {
            let median = |spread: Option<Spread>| spread.map_or(0.0, |spread| spread.median);
            let (gateway, private) = (median(row.gateway_cpu_us_per_request), median(row.private_cpu_us_per_request));
            writeln!(
                text,
                "| {peer} | {mark}{} | {} | {} | {} | {:.0} ({gateway:.0} + {private:.0}) | {} | {samples} | {noise} |",
                shown(row.requests_per_second, 1.0, 0),
                ratio(|row| row.requests_per_second),
                shown(row.p50_us, 1e-3, 2),
                shown(row.p99_us, 1e-3, 2),
                gateway + private,
                row.errors,
            )?;
        }
    }
    Ok(())
}

fn memory(report: &Report, text: &mut String) -> std::fmt::Result {
    if report.memory.is_empty() {
        return Ok(());
    }
    writeln!(text, "\n### Resident memory, MiB\n\n| | idle gw / vpc | peak gw / vpc |\n|---|---|---|")?;
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    for one in &report.memory {
        writeln!(
            text,
            "| {} | {:.1} / {:.1} | {:.1} / {:.1} |",
            one.peer,
            mib(one.idle.gateway),
            mib(one.idle.private),
            mib(one.loaded.gateway_peak),
            mib(one.loaded.private_peak),
        )?;
    }
    Ok(())
}

fn scale(report: &Report, text: &mut String) -> std::fmt::Result {
    if report.scale.is_empty() {
        return Ok(());
    }
    writeln!(
        text,
        "\n### Many connectors on one relay\n\n| connectors | all joined after s (half, 99 %) | relay CPU ms each | handshakes/s | \
         relay RSS KiB each, idle | relay CPU idle | connector RSS KiB each | all back after a restart s (half, 99 %) | \
         relay CPU ms each | p50 / p99 ms of requests meanwhile: joining, after the restart |\n|---|---|---|---|---|---|---|---|---|---|"
    )?;
    for one in &report.scale {
        if let Some(why) = &one.failed {
            writeln!(text, "| {} | FAILED: {} |||||||||", one.connectors, why.lines().next().unwrap_or_default())?;
            continue;
        }
        writeln!(
            text,
            "| {} | {:.1} ({:.1}, {:.1}) | {:.2} | {:.0} | {:.1} | {:.2} % | {:.1} | {:.1} ({:.1}, {:.1}) | {:.2} | {:.1} / {:.1}, \
             {:.1} / {:.1} |",
            one.connectors,
            one.joined.all,
            one.joined.half,
            one.joined.most,
            one.joined.relay_cpu_ms_each,
            one.joined.handshakes_per_second,
            one.relay_rss_kib_each,
            one.relay_cpu_idle * 100.0,
            one.connector_rss_kib_each,
            one.back.all,
            one.back.half,
            one.back.most,
            one.back.relay_cpu_ms_each,
            one.joined.requests.p50_ms,
            one.joined.requests.p99_ms,
            one.back.requests.p50_ms,
            one.back.requests.p99_ms,
        )?;
    }
    Ok(())
}

fn shown(spread: Option<Spread>, factor: f64, digits: usize) -> String {
    spread.map_or("-".to_owned(), |spread| {
        let [median, low, high] = [spread.median, spread.low, spread.high].map(|value| value * factor);
        format!("{median:.digits$} [{low:.digits$} to {high:.digits$}]")
    })
}
