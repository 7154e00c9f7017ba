//! The plot: a panel of bars for each piece of work, drawn as SVG without anybody's help.

use std::fmt::Write as _;

use super::spread::Spread;
use super::{Report, Row};

const LABEL: f64 = 150.0;
const BAR: f64 = 260.0;
const PANEL: f64 = LABEL + BAR + 110.0;
const LINE: f64 = 20.0;
const COLUMNS: usize = 2;

/// A figure that a panel shows.
struct Figure {
    title: &'static str,
    pick: fn(&Row) -> Option<Spread>,
    factor: f64,
    digits: usize,
}

const PER_SECOND: Figure = Figure { title: "requests/s", pick: |row| row.requests_per_second, factor: 1.0, digits: 0 };
const P99: Figure = Figure { title: "p99 ms (less is better)", pick: |row| row.p99_us, factor: 1e-3, digits: 2 };
const GBIT: Figure = Figure { title: "Gbit/s", pick: |row| row.gbit_per_second, factor: 1.0, digits: 2 };
const CPU: Figure = Figure {
    title: "CPU us per request, both ends (less is better)",
    pick: |row| {
        let (one, other) = (row.gateway_cpu_us_per_request?, row.private_cpu_us_per_request?);
        let sum = |pick: fn(Spread) -> f64| pick(one) + pick(other);
        Some(Spread { median: sum(|one| one.median), low: sum(|one| one.low), high: sum(|one| one.high) })
    },
    factor: 1.0,
    digits: 0,
};
const CPU_GIB: Figure = Figure {
    title: "CPU s per GiB, both ends (less is better)",
    pick: |row| row.cpu_seconds_per_gib,
    factor: 1.0,
    digits: 1,
};

/// The whole drawing.
pub(crate) fn svg(report: &Report) -> String {
    let mut panels = Vec::new();
    for work in &report.works {
        let rows: Vec<&Row> = report.peers.iter().filter_map(|peer| report.row(work, peer)).collect();
        let name = work.strip_prefix("lossy-").unwrap_or(work);
        let figures = if name.starts_with("down-") || name.starts_with("up-") {
            vec![GBIT, CPU_GIB]
        } else if name.ends_with("-c1") {
            vec![PER_SECOND, P99]
        } else {
            vec![PER_SECOND, P99, CPU]
        };
        for figure in figures {
            if rows.iter().any(|row| (figure.pick)(row).is_some()) {
                panels.push(panel(work, &figure, &rows));
            }
        }
    }
    let height = LINE * (report.peers.len() as f64 + 3.0);
    let lines = panels.len().div_ceil(COLUMNS) as f64;
    let (width, total) = (PANEL * COLUMNS as f64 + 20.0, lines * height + 40.0);
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{total}\" viewBox=\"0 0 {width} {total}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
    );
    let head = format!(
        "{}; {} processors; medians of {} rounds, lines from lowest to highest; pale: noisy",
        report.versions.first().map_or("culvert", String::as_str),
        report.machine.processors,
        report.run.rounds
    );
    // Writing to a String cannot fail.
    let _ = writeln!(text, "<text x=\"10\" y=\"20\" fill=\"#555555\">{}</text>", escaped(&head));
    for (place, panel) in panels.iter().enumerate() {
        let (column, line) = (place % COLUMNS, place / COLUMNS);
        let (x, y) = (10.0 + column as f64 * PANEL, 40.0 + line as f64 * height);
        let _ = writeln!(text, "<g transform=\"translate({x},{y})\">\n{panel}</g>");
    }
    text + "</svg>\n"
}

fn panel(work: &str, figure: &Figure, rows: &[&Row]) -> String {
    let highest = rows
        .iter()
        .filter_map(|row| (figure.pick)(row))
        .fold(f64::MIN_POSITIVE, |highest, spread| highest.max(spread.high));
    let mut text = format!("<text y=\"12\" font-weight=\"bold\">{}: {}</text>\n", escaped(work), escaped(figure.title));
    for (place, row) in rows.iter().enumerate() {
        let top = LINE * (place as f64 + 1.0);
        let base = top + 13.0;
        let _ = writeln!(
            text,
            "<text x=\"{}\" y=\"{base}\" text-anchor=\"end\">{}</text>",
            LABEL - 6.0,
            escaped(&row.peer)
        );
        let Some(spread) = (figure.pick)(row) else {
            let _ = writeln!(text, "<text x=\"{LABEL}\" y=\"{base}\" fill=\"#aa0000\">failed</text>");
            continue;
        };
        let at = |value: f64| value / highest * BAR;
        let color = if row.peer == "culvert" { "#0b6e4f" } else { "#7a8b99" };
        let pale = if row.is_noisy { 0.4 } else { 1.0 };
        let middle = top + 8.0;
        let _ = writeln!(
            text,
            "<rect x=\"{LABEL}\" y=\"{}\" width=\"{:.1}\" height=\"12\" fill=\"{color}\" opacity=\"{pale}\"/>",
            top + 2.0,
            at(spread.median)
        );
        let _ = writeln!(
            text,
            "<line x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{middle}\" y2=\"{middle}\" stroke=\"#222222\"/>",
            LABEL + at(spread.low),
            LABEL + at(spread.high)
        );
        let digits = figure.digits;
        let _ = writeln!(
            text,
            "<text x=\"{:.1}\" y=\"{base}\">{:.digits$}</text>",
            LABEL + at(spread.high) + 6.0,
            spread.median * figure.factor
        );
    }
    text
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
