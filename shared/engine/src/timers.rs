//! When each peer is due: a turn costs what is due, not what exists.
//!
//! Must never be touched by an ordinary data packet: dues lie at most [`MOST`] ahead while a session lives, so what a
//! packet makes due in ten seconds or more is noticed in time without it.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// The longest time between two looks at a peer with a session. WireGuard's shortest timer that a data packet starts,
/// KEEPALIVE_TIMEOUT (paper §6.5), is as long.
pub(crate) const MOST: Duration = Duration::from_secs(10);

/// Dues far ahead are rounded up to this, so that one wake-up serves many peers.
const GRID: Duration = Duration::from_millis(250);

/// Peers by due.
#[derive(Debug)]
pub(crate) struct Timers {
    start: Instant,
    dues: BTreeSet<(Instant, u32)>,
}

impl Timers {
    pub(crate) fn new(now: Instant) -> Self {
        Self { start: now, dues: BTreeSet::new() }
    }

    /// Moves a peer from one due to another and tells the due it got.
    pub(crate) fn arm(&mut self, peer: u32, old: Option<Instant>, new: Option<Instant>) -> Option<Instant> {
        if old != new {
            if let Some(old) = old {
                self.dues.remove(&(old, peer));
            }
            if let Some(new) = new {
                self.dues.insert((new, peer));
            }
        }
        new
    }

    /// Forgets a peer's due.
    pub(crate) fn disarm(&mut self, peer: u32, due: Option<Instant>) {
        if let Some(due) = due {
            self.dues.remove(&(due, peer));
        }
    }

    /// The first due of all.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.dues.first().map(|(due, _)| *due)
    }

    /// Takes one peer that is due. It has no due from then on.
    pub(crate) fn pop(&mut self, now: Instant) -> Option<u32> {
        let (due, peer) = *self.dues.first()?;
        if due > now {
            return None;
        }
        self.dues.pop_first();
        Some(peer)
    }

    /// Rounds up a due that need not be exact, if it lies a second or more ahead.
    pub(crate) fn coarse(&self, due: Instant, now: Instant) -> Instant {
        if due.saturating_duration_since(now) < 4 * GRID {
            return due;
        }
        let since = due.saturating_duration_since(self.start).as_nanos();
        let past = since % GRID.as_nanos();
        if past == 0 { due } else { due + GRID - Duration::from_nanos(past as u64) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_due_is_taken_and_far_dues_share_a_wake_up() {
        let start = Instant::now();
        let ms = |ms: u64| start + Duration::from_millis(ms);
        let mut timers = Timers::new(start);
        let first = timers.arm(1, None, Some(timers.coarse(ms(5_010), start)));
        let second = timers.arm(2, None, Some(timers.coarse(ms(5_200), start)));
        timers.arm(3, None, Some(timers.coarse(ms(90), start)));
        assert_eq!((first, second), (Some(ms(5_250)), Some(ms(5_250))));
        assert_eq!(timers.next(), Some(ms(90)));
        assert_eq!((timers.pop(ms(89)), timers.pop(ms(90)), timers.pop(ms(90))), (None, Some(3), None));
        assert_eq!(timers.arm(1, first, None), None);
        assert_eq!((timers.pop(ms(6_000)), timers.pop(ms(6_000))), (Some(2), None));
        assert_eq!(timers.next(), None);
    }
}
