//! Wall-clock times as RFC 3339 text in UTC, for JSON and listings.
//!
//! Must never decide anything: deadlines are `Instant`s of whoever holds them.

use std::time::{Duration, SystemTime};

use jiff::{Timestamp, Unit};

/// The text is not a time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a time: RFC 3339 is expected, as in 2026-01-31T12:00:00Z")]
pub struct BadTime(String);

/// Writes a time to the second, as `2026-01-31T12:00:00Z`.
pub fn rfc3339(time: SystemTime) -> String {
    let stamp = timestamp(time);
    Timestamp::from_second(stamp.as_duration().as_secs()).unwrap_or(stamp).to_string()
}

/// Writes a time to the millisecond, as `2026-01-31T12:00:00.250Z`.
pub fn rfc3339_millis(time: SystemTime) -> String {
    let stamp = timestamp(time);
    format!("{:.3}", stamp.round(Unit::Millisecond).unwrap_or(stamp))
}

/// Reads RFC 3339 text of any offset.
///
/// # Errors
/// [`BadTime`] for anything else.
pub fn parse_rfc3339(text: &str) -> Result<SystemTime, BadTime> {
    text.trim().parse::<Timestamp>().map(SystemTime::from).map_err(|_| BadTime(text.to_owned()))
}

/// Whole seconds since 1970, as databases keep them; a time before that is 0.
pub fn unix_seconds(time: SystemTime) -> i64 {
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    i64::try_from(seconds).unwrap_or(i64::MAX)
}

/// The time of whole seconds since 1970; a negative count is 1970, one past the year 9999 is the year 9999.
pub fn from_unix_seconds(seconds: i64) -> SystemTime {
    let last = Timestamp::MAX.as_second();
    let seconds = u64::try_from(seconds.clamp(0, last)).unwrap_or_default();
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn timestamp(time: SystemTime) -> Timestamp {
    let limit = if time > SystemTime::UNIX_EPOCH { Timestamp::MAX } else { Timestamp::MIN };
    Timestamp::try_from(time).unwrap_or(limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_survive_their_text() {
        let time = from_unix_seconds(1_769_860_800);
        assert_eq!(rfc3339(time), "2026-01-31T12:00:00Z");
        assert_eq!(parse_rfc3339(&rfc3339(time)), Ok(time));
        assert_eq!(parse_rfc3339("2026-01-31T14:00:00+02:00"), Ok(time));
        assert_eq!(unix_seconds(time), 1_769_860_800);
    }

    #[test]
    fn milliseconds_are_always_three_digits() {
        let time = from_unix_seconds(1_769_860_800);
        assert_eq!(rfc3339_millis(time), "2026-01-31T12:00:00.000Z");
        assert_eq!(rfc3339_millis(time + Duration::from_micros(250_400)), "2026-01-31T12:00:00.250Z");
        assert_eq!(rfc3339(time + Duration::from_micros(999_999)), "2026-01-31T12:00:00Z");
    }

    #[test]
    fn times_out_of_range_are_held_at_the_edge() {
        assert_eq!(unix_seconds(from_unix_seconds(-5)), 0);
        assert!(rfc3339(from_unix_seconds(i64::MAX)).starts_with("9999-12-30"));
        assert_eq!(unix_seconds(SystemTime::UNIX_EPOCH - Duration::from_secs(9)), 0);
    }

    #[test]
    fn nonsense_is_no_time() {
        for text in ["", "yesterday", "2026-01-31", "2026-13-01T00:00:00Z"] {
            assert!(parse_rfc3339(text).is_err(), "{text:?}");
        }
    }
}
