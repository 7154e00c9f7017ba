//! Listings for people: aligned columns, no wider than needed.
//!
//! Must never decide what is shown, only how.

use std::time::{Duration, SystemTime};

/// Two spaces between columns; nothing after the last.
const GAP: usize = 2;

/// A heading and its rows, each line ended.
pub(super) fn table<const N: usize>(heading: [&str; N], rows: &[[String; N]]) -> String {
    let heading = heading.map(str::to_owned);
    let mut widths = [0; N];
    for row in std::iter::once(&heading).chain(rows) {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for row in std::iter::once(&heading).chain(rows) {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', width + GAP - cell.chars().count()));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Names and values, one a line; a value of several lines is indented below itself.
pub(super) fn facts(pairs: &[(&str, String)]) -> String {
    let width = pairs.iter().map(|(name, _)| name.len() + 1).max().unwrap_or(0) + GAP;
    let mut text = String::new();
    for (name, value) in pairs {
        let mut name = format!("{name}:");
        for line in value.lines() {
            text.push_str(&format!("{name:width$}{line}\n"));
            name.clear();
        }
    }
    text
}

/// `-` for what is not there.
pub(super) fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// `5m ago`, or `in 5m`: the largest unit alone.
pub(super) fn relative(time: SystemTime, now: SystemTime) -> String {
    match now.duration_since(time) {
        Ok(past) => format!("{} ago", rough(past)),
        Err(ahead) => format!("in {}", rough(ahead.duration())),
    }
}

/// The largest unit alone, rounded: `59s`, `5m`, `23h`, `40d`.
pub(super) fn rough(duration: Duration) -> String {
    let seconds = duration.as_secs_f64().round() as u64;
    for (unit, size) in [("d", 86_400), ("h", 3_600), ("m", 60)] {
        // Two of a unit at least: 90 minutes are not "1h".
        if seconds >= 2 * size {
            return format!("{}{unit}", (seconds + size / 2) / size);
        }
    }
    format!("{seconds}s")
}

/// Bytes in the largest unit that they fill: `980`, `1.2k`, `34M`.
pub(super) fn bytes(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["", "k", "M", "G", "T"] {
        match value {
            // Rounded up, it would be a thousand of the next.
            ..9.95 if !unit.is_empty() => return format!("{value:.1}{unit}"),
            ..999.5 => return format!("{value:.0}{unit}"),
            _ => value /= 1000.0,
        }
    }
    format!("{value:.0}P")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_and_lines_end_without_blanks() {
        let rows = [["a".to_owned(), String::new()], ["wider".to_owned(), "x".to_owned()]];
        assert_eq!(table(["ID", "NAME"], &rows), "ID     NAME\na\nwider  x\n");
    }

    #[test]
    fn facts_are_aligned_and_their_further_lines_too() {
        let shown = facts(&[("id", "con_1".to_owned()), ("services", "a up\nb down".to_owned())]);
        assert_eq!(shown, "id:        con_1\nservices:  a up\n           b down\n");
    }

    #[test]
    fn bytes_are_told_roughly() {
        for (number, shown) in [
            (0, "0"),
            (999, "999"),
            (1_000, "1.0k"),
            (9_949, "9.9k"),
            (9_950, "10k"),
            (999_499, "999k"),
            (999_500, "1.0M"),
            (34_000_000_000, "34G"),
            (u64::MAX, "18447P"),
        ] {
            assert_eq!(bytes(number), shown, "{number}");
        }
    }

    #[test]
    fn times_are_told_roughly() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(10_000_000);
        for (seconds, shown) in [(0, "0s"), (119, "119s"), (120, "2m"), (7_200, "2h"), (86_400, "24h"), (172_800, "2d")]
        {
            assert_eq!(rough(Duration::from_secs(seconds)), shown);
        }
        assert_eq!(relative(now - Duration::from_secs(300), now), "5m ago");
        assert_eq!(relative(now + Duration::from_secs(300), now), "in 5m");
    }
}
