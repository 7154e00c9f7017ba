//! Two processes with one key: each displaces the other, and that is noticed (wire.md §2 "Clones").
//!
//! Must never end a session itself: the newest always wins, this only says when to raise the alarm.

use std::time::{Duration, Instant};

use culvert_model::id::ConnectorId;
use tracing::{debug, info, warn};

/// Two displacements within this time are two processes and not a restart.
const WITHIN: Duration = Duration::from_secs(60);

/// What a displacement means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Displaced {
    /// A restart, most likely.
    Once,
    /// The second within a minute: worth a warning, once per minute.
    Alarm,
    /// More of the same within the minute.
    AlarmedAlready,
}

/// One connector's displacements.
#[derive(Debug, Clone, Default)]
pub(crate) struct Clones {
    last: Option<Instant>,
    alarmed: Option<Instant>,
}

impl Clones {
    /// A live connection was replaced by another one of the same key.
    pub(crate) fn displaced(&mut self, now: Instant) -> Displaced {
        let again = self.last.replace(now).is_some_and(|last| now.duration_since(last) <= WITHIN);
        if again { self.came_back(now) } else { Displaced::Once }
    }

    /// A displaced process came back while its successor is connected: there is no doubt any more.
    pub(crate) fn came_back(&mut self, now: Instant) -> Displaced {
        if self.alarmed.is_some_and(|at| now.duration_since(at) <= WITHIN) {
            return Displaced::AlarmedAlready;
        }
        self.alarmed = Some(now);
        Displaced::Alarm
    }

    /// Whether two processes fought over the key within the last ten minutes (their longest pause).
    pub(crate) fn suspected(&self, now: Instant) -> bool {
        self.alarmed.is_some_and(|at| now.duration_since(at) <= WITHIN * 10)
    }
}

/// Logs a displacement.
pub(super) fn note_displaced(id: &ConnectorId, displaced: Displaced) {
    match displaced {
        Displaced::Once => info!(connector = %id, "connector replaced its session"),
        Displaced::Alarm => warn!(connector = %id, "two processes use the key of one connector"),
        Displaced::AlarmedAlready => debug!(connector = %id, "two processes use the key of one connector"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_displacement_within_a_minute_raises_the_alarm_once() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut clones = Clones::default();
        for (seconds, expected) in [
            (0, Displaced::Once),
            (61, Displaced::Once),
            (100, Displaced::Alarm),
            (110, Displaced::AlarmedAlready),
            (161, Displaced::Alarm),
            (300, Displaced::Once),
        ] {
            assert_eq!(clones.displaced(at(seconds)), expected, "{seconds}");
        }
        assert!(clones.suspected(at(300)));
        assert!(!clones.suspected(at(162 + 600)));
    }
}
