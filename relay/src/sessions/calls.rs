//! How many connectors are called back at once after a restart.
//!
//! A call costs this relay three X25519 and the connector five, and what follows it as much again: thousands at once would
//! wait for each other until nobody's answer is in time. So as many are out as can be worked on, and the next follows when one
//! is back; one that says nothing is waited for no longer than a second. Must never do I/O or read a clock.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::time::{Duration, Instant, SystemTime};

/// Calls without an answer at once.
const OUT: usize = 256;
/// So many are started at once (about a millisecond), so that handshakes do not hold up what already runs.
const AT_ONCE: usize = 4;
/// While more handshake messages than this wait to be worked off, nobody else is called.
const WAITING: usize = 16;
/// An answer is waited for so long.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);

/// Calls on their way.
#[derive(Debug)]
pub(super) struct Calls<T> {
    out: VecDeque<(T, Instant)>,
}

/// Whom to call, those first who shook hands last: whoever is away for good holds up nobody who is there.
pub(super) fn in_order<T>(mut known: Vec<(T, Option<SystemTime>)>) -> Vec<T> {
    known.sort_by_key(|(_, last_handshake)| Reverse(*last_handshake));
    known.into_iter().map(|(who, _)| who).collect()
}

impl<T: Copy> Calls<T> {
    pub(super) fn new() -> Self {
        Self { out: VecDeque::new() }
    }

    /// How many may be called now. `waiting` handshake messages are not worked off yet.
    pub(super) fn room(&mut self, waiting: usize, now: Instant, is_back: impl Fn(T) -> bool) -> usize {
        self.out.retain(|(who, at)| now.saturating_duration_since(*at) < ANSWER_WITHIN && !is_back(*who));
        if waiting > WAITING { 0 } else { AT_ONCE.min(OUT - self.out.len()) }
    }

    /// One was called.
    pub(super) fn note(&mut self, who: T, now: Instant) {
        self.out.push_back((who, now));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn who_was_there_last_is_called_first() {
        let at = |seconds| Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(in_order(vec![("away", at(5)), ("never", None), ("there", at(900))]), ["there", "away", "never"]);
    }

    #[test]
    fn the_next_are_called_when_some_are_back_or_have_been_waited_for() {
        let (mut calls, start) = (Calls::new(), Instant::now());
        let mut called = 0;
        let nobody = |_| false;
        while calls.room(0, start, nobody) > 0 {
            for _ in 0..calls.room(0, start, nobody) {
                calls.note(called, start);
                called += 1;
            }
        }
        assert_eq!(called, OUT);
        let back: HashSet<usize> = (0..3).collect();
        assert_eq!(calls.room(0, start, |who| back.contains(&who)), 3);
        assert_eq!(calls.room(WAITING + 1, start, nobody), 0, "answers go first");
        assert_eq!(calls.room(0, start + ANSWER_WITHIN, nobody), AT_ONCE);
    }
}
