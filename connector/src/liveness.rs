//! Whether the relay is still there, judged by the control stream: pure, `now` is passed in.
//!
//! The relay pings by a schedule of its own (wire.md §2) that this end learns; a ping that fails to come is asked for.
//! Must never need more than a look every second.

use std::time::{Duration, Instant};

/// The relay's shortest interval.
const USUAL: Duration = Duration::from_millis(1500);
/// The longest interval that is believed: within WireGuard's keepalive of 25 s.
const LONGEST: Duration = Duration::from_secs(25);
/// Late by this much, a ping is asked for.
const LATE: Duration = Duration::from_millis(500);
/// Unanswered for this long, a new handshake is started: the way may have changed.
const KNOCK_AFTER: Duration = Duration::from_millis(1000);
/// Unanswered for this long, the session is dead: 4.9 s after the last word of a relay that pings every 1.5 s.
const DEAD_AFTER: Duration = Duration::from_millis(2900);

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// All is well until then.
    Until(Instant),
    /// Send a ping, then look again.
    Ping,
    /// Start a handshake toward the known endpoint and send another ping, then look again.
    Knock,
    /// Close and redial.
    Dead,
}

/// What is known of one session's liveness.
#[derive(Debug)]
pub struct Liveness {
    heard: Instant,
    ping: Option<Instant>,
    interval: Duration,
    asked: Option<Instant>,
    knocked: bool,
}

impl Liveness {
    /// A session that was just heard from.
    pub fn new(now: Instant) -> Self {
        Self { heard: now, ping: None, interval: USUAL, asked: None, knocked: false }
    }

    /// Anything came in.
    pub fn handle_heard(&mut self, now: Instant) {
        self.heard = now;
        self.asked = None;
        self.knocked = false;
    }

    /// The relay's own ping came: its distance from the last one is what to expect.
    pub fn handle_ping(&mut self, now: Instant) {
        if let Some(last) = self.ping.replace(now) {
            self.interval = now.duration_since(last).clamp(USUAL, LONGEST);
        }
        self.handle_heard(now);
    }

    /// Something changed underneath (an address): ask at once.
    pub fn handle_doubt(&mut self, now: Instant) {
        self.heard = self.heard.min(now.checked_sub(self.interval + LATE).unwrap_or(now));
    }

    /// What to do now.
    pub fn poll(&mut self, now: Instant) -> Check {
        let Some(asked) = self.asked else {
            let late = self.heard + self.interval + LATE;
            if now < late {
                return Check::Until(late);
            }
            self.asked = Some(now);
            return Check::Ping;
        };
        let silent = now.duration_since(asked);
        if silent >= DEAD_AFTER {
            Check::Dead
        } else if silent >= KNOCK_AFTER && !self.knocked {
            self.knocked = true;
            Check::Knock
        } else if self.knocked {
            Check::Until(asked + DEAD_AFTER)
        } else {
            Check::Until(asked + KNOCK_AFTER)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn a_silent_relay_is_asked_then_knocked_at_then_given_up() {
        let start = Instant::now();
        let mut liveness = Liveness::new(start);
        let mut now = start;
        let mut seen = Vec::new();
        loop {
            match liveness.poll(now) {
                Check::Until(then) => now = then,
                check => {
                    seen.push((check, now - start));
                    if check == Check::Dead {
                        break;
                    }
                }
            }
        }
        assert_eq!(seen, [(Check::Ping, ms(2000)), (Check::Knock, ms(3000)), (Check::Dead, ms(4900))]);
    }

    #[test]
    fn an_answer_ends_the_doubt() {
        let start = Instant::now();
        let mut liveness = Liveness::new(start);
        assert_eq!(liveness.poll(start + ms(2000)), Check::Ping);
        assert_eq!(liveness.poll(start + ms(3000)), Check::Knock);
        liveness.handle_heard(start + ms(3100));
        assert_eq!(liveness.poll(start + ms(3200)), Check::Until(start + ms(3100 + 2000)));
    }

    #[test]
    fn a_relay_with_many_tunnels_is_expected_less_often() {
        let start = Instant::now();
        let mut liveness = Liveness::new(start);
        liveness.handle_ping(start);
        liveness.handle_ping(start + ms(10_000));
        assert_eq!(liveness.poll(start + ms(10_000)), Check::Until(start + ms(20_500)));
        liveness.handle_ping(start + ms(110_000));
        let bound = start + ms(110_000) + LONGEST + LATE;
        assert_eq!(liveness.poll(start + ms(110_000)), Check::Until(bound), "no schedule outlives the keepalive");
    }

    #[test]
    fn a_change_of_addresses_asks_at_once() {
        let start = Instant::now();
        let mut liveness = Liveness::new(start);
        let now = start + ms(100_000);
        liveness.handle_heard(now);
        liveness.handle_doubt(now);
        assert_eq!(liveness.poll(now), Check::Ping);
    }
}
