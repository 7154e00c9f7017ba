//! When a link asks for its next pre-shared key: pure, `now` is passed in.
//!
//! Must never ask twice at once, or let many connectors that come back together ask together.

use std::time::{Duration, Instant};

use culvert_model::kem::KemKey;

/// An answer that has not come after this time is asked for again, later.
const PATIENCE: Duration = Duration::from_secs(30);
/// And the next try comes so much later at most.
const AGAIN: Duration = Duration::from_secs(300);
/// A key that is overdue when its session comes up is renewed within this time.
const OVERDUE: Duration = Duration::from_secs(60);

/// The schedule of one link.
#[derive(Debug)]
pub struct Renewal {
    every: Duration,
    due: Instant,
    asked: Option<(KemKey, Instant)>,
}

impl Renewal {
    /// For a key of this age. `spread` in 0..1 sets this link apart from others.
    pub fn new(every: Duration, age: Duration, spread: f64, now: Instant) -> Self {
        let whole = every.mul_f64(0.9 + spread / 5.0);
        let soonest = OVERDUE.min(every).mul_f64(spread);
        Self { every, due: now + whole.saturating_sub(age).max(soonest), asked: None }
    }

    /// Asks now, whatever the age.
    pub fn hurry(&mut self, now: Instant) {
        self.due = now;
    }

    /// The key to ask with, when it is time.
    pub fn poll(&mut self, now: Instant) -> Option<&KemKey> {
        if self.asked.take_if(|(_, at)| now >= *at + PATIENCE).is_some() {
            self.due = now + self.every.min(AGAIN);
        }
        if self.asked.is_some() || now < self.due {
            return None;
        }
        Some(&self.asked.insert((KemKey::generate(), now)).0)
    }

    /// When to poll again.
    pub fn next(&self) -> Instant {
        self.asked.as_ref().map_or(self.due, |(_, at)| *at + PATIENCE)
    }

    /// An answer came: what it is to be opened with, if it was asked for.
    pub fn answered(&mut self, spread: f64, now: Instant) -> Option<KemKey> {
        let (kem, _) = self.asked.take()?;
        self.due = now + self.every.mul_f64(0.9 + spread / 5.0);
        Some(kem)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn a_key_is_renewed_when_its_time_has_come_give_or_take_a_tenth() {
        let start = Instant::now();
        for (spread, age, expected) in [
            (0.0, Duration::ZERO, HOUR * 9 / 10),
            (0.5, Duration::ZERO, HOUR),
            (1.0, Duration::ZERO, HOUR * 11 / 10),
            (0.5, HOUR / 2, HOUR / 2),
            (0.5, 10 * HOUR, MINUTE / 2),
            (0.0, 10 * HOUR, Duration::ZERO),
        ] {
            let mut renewal = Renewal::new(HOUR, age, spread, start);
            let due = renewal.next() - start;
            assert!(due.abs_diff(expected) < Duration::from_millis(1), "{spread} {age:?}: {due:?}");
            assert!(due == Duration::ZERO || renewal.poll(start + due - Duration::from_millis(1)).is_none());
            assert!(renewal.poll(start + due).is_some());
        }
    }

    #[test]
    fn one_question_is_out_at_a_time_and_one_without_an_answer_is_put_again_later() {
        let start = Instant::now();
        let mut renewal = Renewal::new(HOUR, 2 * HOUR, 0.0, start);
        assert!(renewal.answered(0.5, start).is_none(), "nobody asked");
        let first = *renewal.poll(start).unwrap().seed();
        assert!(renewal.poll(start + PATIENCE / 2).is_none());
        assert!(renewal.poll(start + PATIENCE).is_none());
        assert!(renewal.answered(0.5, start + PATIENCE).is_none(), "an answer that late opens nothing");
        let again = start + PATIENCE + AGAIN;
        assert_eq!(renewal.next(), again);
        let second = *renewal.poll(again).unwrap().seed();
        assert!(first != second, "each question has a key of its own");
        assert!(renewal.answered(0.5, again).is_some_and(|kem| *kem.seed() == second));
        assert_eq!(renewal.next(), again + HOUR);
    }
}
