//! Durations as users write them: `250ms`, `25s`, `5m`, `24h`, `30d`, and `never` or `off` where that is allowed.

use std::time::Duration;

/// The text is not a duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a duration: write a whole number and ms, s, m, h or d, as in 250ms, 25s or 24h")]
pub struct BadDuration(String);

/// Reads one duration: a whole number and its unit.
///
/// # Errors
/// [`BadDuration`] for anything else, and past 100 years.
pub fn parse_duration(text: &str) -> Result<Duration, BadDuration> {
    let bad = || BadDuration(text.to_owned());
    let trimmed = text.trim();
    let digits = trimmed.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = trimmed.split_at(digits);
    let number: u64 = number.parse().map_err(|_| bad())?;
    let milliseconds: u64 = match unit.trim_start() {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(bad()),
    };
    let total = number.checked_mul(milliseconds).filter(|total| *total <= 100 * 366 * 86_400_000).ok_or_else(bad)?;
    Ok(Duration::from_millis(total))
}

/// Reads a duration, or `never`, `off` or `0s` as none.
///
/// # Errors
/// As [`parse_duration`].
pub fn parse_optional_duration(text: &str) -> Result<Option<Duration>, BadDuration> {
    match text.trim() {
        "never" | "off" => Ok(None),
        other => Ok(Some(parse_duration(other)?).filter(|duration| !duration.is_zero())),
    }
}

/// Writes a duration in the largest unit that holds it exactly.
pub fn format_duration(duration: Duration) -> String {
    let milliseconds = duration.as_millis();
    for (unit, size) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)] {
        if milliseconds >= size && milliseconds.is_multiple_of(size) {
            return format!("{}{unit}", milliseconds / size);
        }
    }
    if milliseconds == 0 { "0s".to_owned() } else { format!("{milliseconds}ms") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_survive_their_text() {
        for text in ["250ms", "25s", "5m", "24h", "1d", "30d", "90s"] {
            let shown = format_duration(parse_duration(text).unwrap());
            assert_eq!(parse_duration(&shown), parse_duration(text), "{text}");
        }
        assert_eq!(format_duration(Duration::from_secs(86_400)), "1d");
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "5", "s", "5 parsecs", "-5s", "1.5h", "99999999999999999999s", "99999999999d"] {
            assert!(parse_duration(text).is_err(), "{text:?}");
        }
        assert_eq!(parse_optional_duration("never"), Ok(None));
    }
}
