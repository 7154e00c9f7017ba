//! Which connector gets a request: least in flight over the pairs that are up, or the one a key sticks to.
//!
//! Must never do I/O, read a clock or keep state: what is alive is decided elsewhere and passed in.

use std::time::{Duration, Instant};

/// Past this age a pair that has been asked and has not answered yet is chosen only when nothing better is there.
const SUSPECT_AFTER: Duration = Duration::from_secs(2);

/// A connector of another thread has to have so many requests less, and a fifth of them, to be taken.
const FAR: u32 = 4;

/// One (connector, service) pair, as the choice sees it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Candidate {
    /// The origin's check passes.
    pub(crate) up: bool,
    /// The connector, or the operator, wants no new requests on it.
    pub(crate) draining: bool,
    /// Requests that run over its connector now.
    pub(crate) in_flight: u32,
    /// Since when the connector owes an answer to a ping.
    pub(crate) unanswered_since: Option<Instant>,
    /// A number that stands for the connector for ever (see [`hash`]).
    pub(crate) identity: u64,
    /// Requests reach it without changing threads.
    pub(crate) near: bool,
}

/// How to choose.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Wish {
    /// Requests alike in this number go to one connector while it is up.
    pub(crate) stick_to: Option<u64>,
    /// The place of a candidate that was tried already.
    pub(crate) not: Option<usize>,
    /// Turns with every choice, so that equals take turns.
    pub(crate) turn: u32,
}

/// The place of the one to ask, or none when every candidate drains or was tried.
///
/// When no origin check passes, one is tried all the same: its own reason is a better answer than ours.
pub(crate) fn pick(candidates: &[Candidate], wish: Wish, now: Instant) -> Option<usize> {
    let eligible = |place: usize, candidate: &Candidate| !candidate.draining && wish.not != Some(place);
    let rank = |candidate: &Candidate| {
        let suspect = candidate.unanswered_since.is_some_and(|since| now.duration_since(since) > SUSPECT_AFTER);
        (!candidate.up, suspect)
    };
    let best = candidates.iter().enumerate().filter(|(place, c)| eligible(*place, c)).map(|(_, c)| rank(c)).min()?;
    let of_best = candidates.iter().enumerate().filter(|(place, c)| eligible(*place, c) && rank(c) == best);
    match wish.stick_to {
        Some(key) => of_best.max_by_key(|(_, candidate)| mix(key ^ candidate.identity)).map(|(place, _)| place),
        None => {
            let count = candidates.len();
            // Among some of the candidates plain turns would favour whoever stands after those that are left out, and
            // threads that take turns themselves would share their rhythm.
            let far = candidates.iter().any(|candidate| !candidate.near);
            let start = usize::try_from(wish.turn).unwrap_or(0) % count.max(1);
            let order = |place: usize| match far {
                true => mix((u64::from(wish.turn) << 32) ^ u64::try_from(place).unwrap_or(0)),
                false => u64::try_from((place + count - start) % count).unwrap_or(0),
            };
            of_best
                .min_by_key(|(place, candidate)| {
                    (weight(candidate.in_flight, candidate.near), !candidate.near, order(*place))
                })
                .map(|(place, _)| place)
        }
    }
}

/// What it is to send one more there. Another thread costs about as much as the request itself, so a near connector is
/// taken until it is notably busier.
pub(crate) fn weight(in_flight: u32, near: bool) -> u32 {
    match near {
        true => in_flight,
        false => in_flight.saturating_add(in_flight / 4 + FAR),
    }
}

/// A number for some bytes, the same in every process and release (FNV-1a, then mixed).
pub(crate) fn hash(bytes: &[u8]) -> u64 {
    let fnv = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3));
    mix(fnv)
}

/// The finalizer of SplitMix64: every input bit moves every output bit.
fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn up(in_flight: u32) -> Candidate {
        let identity = u64::from(in_flight);
        Candidate { up: true, draining: false, in_flight, unanswered_since: None, identity, near: true }
    }

    #[test]
    fn the_least_busy_pair_that_is_up_gets_the_request() {
        let now = Instant::now();
        let down = Candidate { up: false, ..up(0) };
        let draining = Candidate { draining: true, ..up(0) };
        for (candidates, not, expected) in [
            (vec![up(3), up(1), up(2)], None, Some(1)),
            (vec![up(3), up(1), up(2)], Some(1), Some(2)),
            (vec![down, up(9)], None, Some(1)),
            (vec![draining, up(9)], None, Some(1)),
            (vec![draining, down], None, Some(1)),
            (vec![down, Candidate { in_flight: 2, ..down }], None, Some(0)),
            (vec![draining], None, None),
            (vec![up(0)], Some(0), None),
            (vec![], None, None),
        ] {
            assert_eq!(pick(&candidates, Wish { not, ..Wish::default() }, now), expected, "{candidates:?} {not:?}");
        }
    }

    #[test]
    fn those_of_the_same_thread_come_first_until_they_are_notably_busier() {
        let far = |in_flight| Candidate { near: false, ..up(in_flight) };
        for turn in 0..4 {
            let at = |candidates: &[Candidate]| pick(candidates, Wish { turn, ..Wish::default() }, Instant::now());
            assert_eq!(at(&[far(2), up(2), far(2)]), Some(1));
            assert_eq!(at(&[up(6), far(2)]), Some(0));
            assert_eq!(at(&[up(7), far(2)]), Some(1), "then the other gets it");
            assert_eq!(at(&[up(32), far(25)]), Some(0));
            assert_eq!(at(&[up(32), far(20)]), Some(1));
        }
    }

    #[test]
    fn threads_that_take_turns_reach_all_that_are_near() {
        let mut chosen = [0; 4];
        for turn in 0..400 {
            // The first two live on one thread, the others on the other, and callers alternate.
            let candidates = std::array::from_fn::<_, 4, _>(|at| Candidate { near: at / 2 == turn % 2, ..up(0) });
            let wish = Wish { turn: turn as u32, ..Wish::default() };
            chosen[pick(&candidates, wish, Instant::now()).unwrap()] += 1;
        }
        assert!(chosen.iter().all(|count| (70..=130).contains(count)), "{chosen:?}");
    }

    #[test]
    fn equals_take_turns() {
        let candidates = [up(0), up(0), up(0)];
        let mut chosen = [0; 3];
        for turn in 0..9 {
            chosen[pick(&candidates, Wish { turn, ..Wish::default() }, Instant::now()).unwrap()] += 1;
        }
        assert_eq!(chosen, [3, 3, 3]);
    }

    #[test]
    fn a_pair_that_owes_an_answer_for_long_is_the_last_resort() {
        let start = Instant::now();
        let late = Candidate { unanswered_since: Some(start), ..up(0) };
        let at = |after| pick(&[late, up(5)], Wish::default(), start + after);
        assert_eq!(at(SUSPECT_AFTER), Some(0));
        assert_eq!(at(SUSPECT_AFTER + Duration::from_millis(1)), Some(1));
        assert_eq!(pick(&[late], Wish::default(), start + SUSPECT_AFTER * 2), Some(0));
    }

    #[test]
    fn a_key_sticks_to_its_connector_and_moves_only_when_that_one_goes() {
        let identity = |name: &str| Candidate { identity: hash(name.as_bytes()), ..up(0) };
        let all = [identity("con_a"), identity("con_b"), identity("con_c")];
        let mut share = [0; 3];
        for key in 0..300_u32 {
            let wish = Wish { stick_to: Some(hash(&key.to_be_bytes())), turn: key, ..Wish::default() };
            let home = pick(&all, wish, Instant::now()).unwrap();
            share[home] += 1;
            for gone in (0..3).filter(|gone| *gone != home) {
                let mut fewer = all;
                fewer[gone].up = false;
                assert_eq!(pick(&fewer, wish, Instant::now()), Some(home));
            }
        }
        assert!(share.iter().all(|count| (60..=140).contains(count)), "{share:?}");
    }

    #[test]
    fn the_hash_is_the_same_for_ever() {
        assert_eq!(hash(b"con_aaaaaaaaaaaaaaaa"), hash(b"con_aaaaaaaaaaaaaaaa"));
        assert_eq!(hash(b""), 0xf52a_15e9_a9b5_e89b);
    }
}
