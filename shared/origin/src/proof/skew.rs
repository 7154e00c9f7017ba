//! A hint for whoever looks for the reason why an origin takes no proof: proofs hold a time.
//!
//! Must never change what becomes of a request, or fill the log.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use culvert_hop::fields::Fields;
use culvert_model::name::ServiceName;
use http::header::DATE;

/// AWS refuses what was signed five minutes ago or later, others sooner.
const APART: u64 = 240;
/// Said so often at most.
const QUIET: Duration = Duration::from_secs(600);

/// When it was last said, in seconds since 1970.
static SAID: AtomicU64 = AtomicU64::new(0);

/// Says it if the origin's `Date` is far from `now`.
pub(super) fn tell(service: &ServiceName, fields: &Fields, now: SystemTime) {
    let Some(apart) = apart(fields, now) else { return };
    let at = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let last = SAID.load(Ordering::Relaxed);
    let is_due = last == 0 || at.abs_diff(last) >= QUIET.as_secs();
    if is_due && SAID.compare_exchange(last, at, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
        tracing::warn!(
            %service,
            ahead_seconds = apart,
            "the origin refuses requests, and its clock is ahead of ours by so much: proofs hold a time, so set this host's clock"
        );
    }
}

/// By how many seconds the origin is ahead, if that is much.
fn apart(fields: &Fields, now: SystemTime) -> Option<i64> {
    let theirs = httpdate::parse_http_date(fields.get(DATE)?.to_str().ok()?).ok()?;
    let (apart, is_ahead) = match theirs.duration_since(now) {
        Ok(ahead) => (ahead, true),
        Err(behind) => (behind.duration(), false),
    };
    let seconds = i64::try_from(apart.as_secs()).ok().filter(|_| apart.as_secs() >= APART)?;
    Some(if is_ahead { seconds } else { -seconds })
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn a_clock_is_far_off_from_four_minutes_on() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        for (date, expected) in [
            ("Sun, 06 Nov 1994 08:54:37 GMT", Some(300)),
            ("Sun, 06 Nov 1994 08:44:37 GMT", Some(-300)),
            ("Sun, 06 Nov 1994 08:52:37 GMT", None),
            ("yesterday", None),
        ] {
            let mut fields = Fields::new();
            fields.append(DATE, HeaderValue::from_static(date));
            assert_eq!(apart(&fields, at), expected, "{date}");
        }
        assert_eq!(apart(&Fields::new(), at), None);
    }
}
