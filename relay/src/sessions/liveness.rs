//! When to ask a connector whether it is there, and when it is not (wire.md §2 "Liveness").
//!
//! Must never do I/O or read a clock. INVARIANT: one ping is outstanding at most, and a silence that was our own
//! (a late timer: suspend, a starved process) never counts against the connector.

use std::time::{Duration, Instant};

/// Between pings while requests are or were just running.
pub(crate) const ACTIVE_INTERVAL: Duration = Duration::from_millis(1_500);
/// For so long after the last exchange a tunnel counts as active.
pub(crate) const ACTIVE_FOR: Duration = Duration::from_secs(60);
/// All idle tunnels of a relay together.
pub(crate) const PINGS_A_SECOND: u32 = 2_000;
/// An answer is awaited for so long; with the shortest interval a dead connector is known after 4.5 s.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// The same where the interval is stretched: up to 5,000 tunnels "within 5 s" still holds.
const ANSWER_WITHIN_STRETCHED: Duration = Duration::from_millis(2_250);
/// While an answer is awaited, how often one looks whether packets still arrive.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// A control stream this silent ends the session even when other packets still arrive.
const SILENT_AT_MOST: Duration = Duration::from_secs(15);
/// A timer that fires this late says that it was us who were away.
const LATE: Duration = Duration::from_millis(500);

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing before then.
    WaitUntil(Instant),
    /// Send this ping and ask again.
    Ping(u64),
    /// The connector is gone.
    Dead,
}

/// One connector's schedule.
#[derive(Debug, Clone)]
pub(crate) struct Liveness {
    heard: Instant,
    exchanged: Option<Instant>,
    outstanding: Option<(u64, Instant)>,
    next_id: u64,
    planned: Option<Instant>,
    wire_bytes: u64,
    wire_moved: Instant,
    probe: bool,
}

impl Liveness {
    /// A connector that has just been heard.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            heard: now,
            exchanged: None,
            outstanding: None,
            next_id: 0,
            planned: None,
            wire_bytes: 0,
            wire_moved: now,
            probe: false,
        }
    }

    /// A request starts or ends on it.
    pub(crate) fn exchanged(&mut self, now: Instant) {
        self.exchanged = Some(now);
    }

    /// The next step shall be a ping, whatever the schedule says.
    pub(crate) fn probe(&mut self) {
        self.probe = true;
    }

    /// A message came on the control stream. Returns the round trip when it answers the outstanding ping.
    pub(crate) fn heard(&mut self, pong: Option<u64>, now: Instant) -> Option<Duration> {
        self.heard = now;
        let (id, sent) = self.outstanding?;
        if pong != Some(id) {
            return None;
        }
        self.outstanding = None;
        Some(now.duration_since(sent))
    }

    /// How many bytes were received from it so far: packets still arrive when that grows.
    pub(crate) fn wire(&mut self, bytes: u64, now: Instant) {
        if bytes > self.wire_bytes {
            self.wire_bytes = bytes;
            self.wire_moved = now;
        }
    }

    /// Since when an answer is owed.
    pub(crate) fn unanswered_since(&self) -> Option<Instant> {
        self.outstanding.map(|(_, sent)| sent)
    }

    /// Says what is due. `tunnels` shares the relay's budget of pings.
    pub(crate) fn step(&mut self, tunnels: usize, now: Instant) -> Step {
        if self.planned.take().is_some_and(|planned| now.duration_since(planned) > LATE) {
            self.forgive(now);
        }
        let interval = self.interval(tunnels, now);
        let step = match self.outstanding {
            Some((_, sent)) => {
                let patience = if interval > ACTIVE_INTERVAL { ANSWER_WITHIN_STRETCHED } else { ANSWER_WITHIN };
                let dead_at = (sent.max(self.wire_moved) + patience).min(sent + SILENT_AT_MOST);
                if now >= dead_at { Step::Dead } else { Step::WaitUntil(dead_at.min(now + LOOK_EVERY)) }
            }
            None => {
                let due = self.heard + interval;
                if self.probe || now >= due {
                    let id = self.next_id;
                    self.next_id += 1;
                    self.outstanding = Some((id, now));
                    Step::Ping(id)
                } else {
                    Step::WaitUntil(due)
                }
            }
        };
        self.probe = false;
        if let Step::WaitUntil(until) = step {
            self.planned = Some(until);
        }
        step
    }

    fn interval(&self, tunnels: usize, now: Instant) -> Duration {
        if self.exchanged.is_none_or(|at| now.duration_since(at) > ACTIVE_FOR) {
            let share = Duration::from_secs(1) * u32::try_from(tunnels).unwrap_or(u32::MAX) / PINGS_A_SECOND;
            return share.max(ACTIVE_INTERVAL);
        }
        ACTIVE_INTERVAL
    }

    fn forgive(&mut self, now: Instant) {
        self.wire_moved = now;
        if let Some((_, sent)) = &mut self.outstanding {
            *sent = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Runs the schedule without answers; when each ping went out and when it was given up.
    fn silent(mut liveness: Liveness, tunnels: usize, start: Instant) -> (Vec<Duration>, Duration) {
        let (mut now, mut pings) = (start, Vec::new());
        for _ in 0..100 {
            match liveness.step(tunnels, now) {
                Step::WaitUntil(until) => now = until,
                Step::Ping(_) => pings.push(now - start),
                Step::Dead => return (pings, now - start),
            }
        }
        panic!("never given up");
    }

    #[test]
    fn a_silent_connector_is_dead_within_5_seconds_up_to_5_000_tunnels() {
        let start = Instant::now();
        for (tunnels, first, dead) in [(1, 1_500, 4_500), (3_000, 1_500, 4_500), (5_000, 2_500, 4_750)] {
            let (pings, end) = silent(Liveness::new(start), tunnels, start);
            assert_eq!((pings, end), (vec![first * MS], dead * MS), "{tunnels}");
        }
    }

    #[test]
    fn idle_tunnels_share_the_budget_and_active_ones_do_not_wait() {
        let start = Instant::now();
        let mut liveness = Liveness::new(start);
        liveness.exchanged(start);
        assert_eq!(liveness.step(20_000, start), Step::WaitUntil(start + ACTIVE_INTERVAL));
        let later = start + ACTIVE_FOR + MS;
        let mut liveness = Liveness::new(later);
        liveness.exchanged(start);
        assert_eq!(liveness.step(20_000, later), Step::WaitUntil(later + 10_000 * MS));
    }

    #[test]
    fn an_answer_starts_the_interval_anew_and_only_the_right_one_counts() {
        let start = Instant::now();
        let mut liveness = Liveness::new(start);
        let due = start + ACTIVE_INTERVAL;
        assert_eq!(liveness.step(1, due), Step::Ping(0));
        assert_eq!(liveness.heard(Some(7), due + 10 * MS), None);
        assert_eq!(liveness.unanswered_since(), Some(due));
        assert_eq!(liveness.heard(Some(0), due + 20 * MS), Some(20 * MS));
        assert_eq!(liveness.unanswered_since(), None);
        assert_eq!(liveness.step(1, due + 20 * MS), Step::WaitUntil(due + 20 * MS + ACTIVE_INTERVAL));
    }

    #[test]
    fn a_probe_does_not_wait_for_its_turn() {
        let start = Instant::now();
        let mut liveness = Liveness::new(start);
        liveness.probe();
        assert_eq!(liveness.step(1, start), Step::Ping(0));
        liveness.probe();
        assert!(matches!(liveness.step(1, start), Step::WaitUntil(_)), "one at a time");
    }

    #[test]
    fn packets_that_still_arrive_give_a_busy_connector_time_but_not_for_ever() {
        let start = Instant::now();
        let mut liveness = Liveness::new(start);
        let mut now = start + ACTIVE_INTERVAL;
        let sent = now;
        assert_eq!(liveness.step(1, now), Step::Ping(0));
        for bytes in 1..1_000 {
            liveness.wire(bytes, now);
            match liveness.step(1, now) {
                Step::WaitUntil(until) => now = until.min(now + 100 * MS),
                Step::Dead => break,
                Step::Ping(_) => panic!("a second ping"),
            }
        }
        assert_eq!(now - sent, SILENT_AT_MOST);
    }

    #[test]
    fn a_connector_whose_last_packet_came_before_the_ping_gets_no_more_time_for_it() {
        let start = Instant::now();
        let mut liveness = Liveness::new(start);
        let mut now = start + ACTIVE_INTERVAL;
        liveness.wire(1_000, now);
        assert_eq!(liveness.step(1, now), Step::Ping(0));
        while let Step::WaitUntil(until) = liveness.step(1, now) {
            now = until;
            liveness.wire(1_000, now);
        }
        assert_eq!(now, start + ACTIVE_INTERVAL + ANSWER_WITHIN);
    }

    #[test]
    fn a_silence_of_our_own_is_not_held_against_the_connector() {
        let start = Instant::now();
        let mut liveness = Liveness::new(start);
        let now = start + ACTIVE_INTERVAL;
        assert_eq!(liveness.step(1, now), Step::Ping(0));
        let Step::WaitUntil(until) = liveness.step(1, now) else { panic!("not waiting") };
        let back = until + Duration::from_secs(600);
        let mut now = back;
        loop {
            match liveness.step(1, now) {
                Step::WaitUntil(until) => now = until,
                Step::Dead => break,
                Step::Ping(_) => panic!("a second ping"),
            }
        }
        assert_eq!(now, back + ANSWER_WITHIN);
    }
}
