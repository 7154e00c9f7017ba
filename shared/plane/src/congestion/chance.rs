//! Whether a way loses packets by chance, or because it is full.
//!
//! It must never take a full way for a bad one: a queue before it, or many losses, say that it is full.

use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

/// Packets after which older ones count half.
const REMEMBERED: u32 = 1024;
/// Losses per thousand packets for which a second copy is worth its way, and past which the way has no room for any.
const WORTH: RangeInclusive<u32> = 2..=50;
/// One loss tells nothing yet.
const FEWEST: u32 = 3;
/// The shortest round trip is looked for anew this often: routes change.
const SPAN: Duration = Duration::from_secs(10);
/// A round trip that is longer than the shortest by a quarter and this has waited in a queue.
const QUEUED: Duration = Duration::from_millis(5);

/// What was lost lately, and how long round trips take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chance {
    acked: u32,
    lost: u32,
    /// The shortest round trip of this span and of the one before.
    shortest: [Duration; 2],
    since: Instant,
}

impl Chance {
    pub(super) fn new(now: Instant) -> Self {
        Self { acked: 0, lost: 0, shortest: [Duration::MAX; 2], since: now }
    }

    /// So many packets arrived, so many did not.
    pub(super) fn count(&mut self, acked: u32, lost: u32) {
        self.acked = self.acked.saturating_add(acked);
        self.lost = self.lost.saturating_add(lost);
        if self.acked.saturating_add(self.lost) > REMEMBERED {
            self.acked /= 2;
            self.lost /= 2;
        }
    }

    /// The smoothed round-trip time is `rtt`.
    pub(super) fn time(&mut self, rtt: Duration, now: Instant) {
        let [shortest, before] = &mut self.shortest;
        if now.saturating_duration_since(self.since) >= SPAN {
            (*before, *shortest, self.since) = (*shortest, Duration::MAX, now);
        }
        *shortest = rtt.min(*shortest);
    }

    /// Some packets are lost, not many, and none waits in a queue.
    pub(super) fn is_met(&self, rtt: Duration) -> bool {
        let shortest = self.shortest.into_iter().min().unwrap_or_default();
        let share = 1000 * u64::from(self.lost) / u64::from(self.acked + self.lost).max(1);
        let is_some = self.lost >= FEWEST && u32::try_from(share).is_ok_and(|share| WORTH.contains(&share));
        is_some && rtt <= shortest.saturating_add(shortest / 4).saturating_add(QUEUED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RTT: Duration = Duration::from_millis(50);

    fn after(acked: u32, lost: u32) -> (Chance, Instant) {
        let now = Instant::now();
        let mut chance = Chance::new(now);
        chance.time(RTT, now);
        chance.count(acked, lost);
        (chance, now)
    }

    #[test]
    fn some_losses_are_chance_and_few_or_many_are_not() {
        for (acked, lost, met) in
            [(1000, 0, false), (1000, 2, false), (500, 3, true), (970, 30, true), (900, 100, false)]
        {
            assert_eq!(after(acked, lost).0.is_met(RTT), met, "{lost} of {acked}");
        }
    }

    #[test]
    fn a_queue_is_no_chance_until_its_length_is_the_way_itself() {
        let (mut chance, mut now) = after(990, 10);
        assert!(chance.is_met(RTT + Duration::from_millis(10)));
        let queued = RTT + Duration::from_millis(20);
        assert!(!chance.is_met(queued));
        for _ in 0..2 {
            now += SPAN;
            chance.time(queued, now);
        }
        assert!(chance.is_met(queued), "the route has changed");
    }

    #[test]
    fn losses_of_long_ago_are_forgotten() {
        let (mut chance, _) = after(900, 20);
        (0..4 * REMEMBERED).for_each(|_| chance.count(1, 0));
        assert!(!chance.is_met(RTT));
    }
}
