//! Suspend: while the machine sleeps CLOCK_BOOTTIME goes on and CLOCK_MONOTONIC does not (wire.md §2).

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// A shorter sleep is left to ordinary timers.
const NOTICED: Duration = Duration::from_secs(10);

/// How far the two clocks have drifted apart since the machine started: the time it slept.
pub(crate) fn slept() -> Duration {
    let read = |clock| clock_gettime(clock).map(Duration::from).unwrap_or_default();
    let monotonic = read(ClockId::CLOCK_MONOTONIC);
    read(ClockId::CLOCK_BOOTTIME).saturating_sub(monotonic)
}

/// Notices jumps of [`slept`].
#[derive(Debug)]
pub(crate) struct SuspendWatch {
    slept: Duration,
}

impl SuspendWatch {
    pub(crate) fn new(slept: Duration) -> Self {
        Self { slept }
    }

    /// How long the machine has slept since the last call, if that was long enough to matter.
    pub(crate) fn check(&mut self, slept: Duration) -> Option<Duration> {
        let jump = slept.saturating_sub(self.slept);
        self.slept = slept;
        (jump > NOTICED).then_some(jump)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sleep_of_more_than_ten_seconds_is_noticed_once() {
        let mut watch = SuspendWatch::new(Duration::from_secs(100));
        assert_eq!(watch.check(Duration::from_secs(109)), None);
        assert_eq!(watch.check(Duration::from_secs(130)), Some(Duration::from_secs(21)));
        assert_eq!(watch.check(Duration::from_secs(130)), None);
        assert!(slept() < Duration::from_secs(u64::from(u32::MAX)));
    }
}
