//! A token bucket in one instant (the generic cell rate algorithm).
//!
//! Must never be charged for what a stranger can send in another's name without a proof.

use std::time::{Duration, Instant};

/// Lets `burst` pass at once and one more each `every`, as its caller says; the two must not change between calls.
#[derive(Copy, Clone, Debug, Default)]
pub(crate) struct Bucket {
    /// When the bucket will be full again; `None`: full.
    full_at: Option<Instant>,
}

/// How much passes a [`Bucket`].
#[derive(Copy, Clone, Debug)]
pub(crate) struct Rate {
    pub(crate) burst: u32,
    pub(crate) every: Duration,
}

impl Bucket {
    /// Tells whether one would pass now.
    pub(crate) fn has_room(&self, rate: Rate, now: Instant) -> bool {
        let Some(full_at) = self.full_at else { return rate.burst > 0 };
        full_at.saturating_duration_since(now) <= rate.every * rate.burst.saturating_sub(1)
    }

    /// Takes one if it passes.
    pub(crate) fn take(&mut self, rate: Rate, now: Instant) -> bool {
        let passes = self.has_room(rate, now);
        if passes {
            self.full_at = Some(self.full_at.map_or(now, |at| at.max(now)) + rate.every);
        }
        passes
    }

    /// Fills it.
    pub(crate) fn refill(&mut self) {
        self.full_at = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_one_each_interval() {
        let rate = Rate { burst: 3, every: Duration::from_secs(1) };
        let start = Instant::now();
        let mut bucket = Bucket::default();
        let taken = |bucket: &mut Bucket, at: u64| bucket.take(rate, start + Duration::from_millis(at));
        assert_eq!([0, 0, 0, 0].map(|at| taken(&mut bucket, at)), [true, true, true, false]);
        assert_eq!([999, 1000, 1001].map(|at| taken(&mut bucket, at)), [false, true, false]);
        bucket.refill();
        assert!(taken(&mut bucket, 1001));
    }
}
