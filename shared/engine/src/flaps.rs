//! An endpoint that goes back and forth: one key used in two places at once, most likely a stolen one.
//!
//! Must never take a host that moves on for it: only coming back to where the peer has just been counts.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Places that are remembered.
const PLACES: usize = 4;
/// So much within [`WITHIN`] is no roaming any more: A, B, A, B, A, B holds four returns.
const TOO_MUCH: u8 = 8;
const RETURN: u8 = 2;
/// A host that has both IPv4 and IPv6 tries both at each new connection, and where both are slow both answer.
const RETURN_TO_OTHER_FAMILY: u8 = 1;
const WITHIN: Duration = Duration::from_secs(60);
/// It is told once in this time.
const QUIET: Duration = Duration::from_secs(600);

/// Where a peer has been lately.
#[derive(Debug, Default)]
pub(crate) struct Flaps {
    /// Newest last.
    places: Vec<SocketAddr>,
    returns: u8,
    since: Option<Instant>,
    told: Option<Instant>,
}

impl Flaps {
    /// The authenticated endpoint moved. True when that is to be told.
    pub(crate) fn moved(&mut self, from: SocketAddr, to: SocketAddr, now: Instant) -> bool {
        self.places.retain(|place| *place != from);
        self.places.push(from);
        if self.places.len() > PLACES {
            self.places.remove(0);
        }
        if !self.places.contains(&to) || from == to {
            return false;
        }
        if self.since.is_none_or(|since| now.saturating_duration_since(since) > WITHIN) {
            (self.since, self.returns) = (Some(now), 0);
        }
        let weight = if from.is_ipv4() == to.is_ipv4() { RETURN } else { RETURN_TO_OTHER_FAMILY };
        self.returns = self.returns.saturating_add(weight);
        let quiet = self.told.is_some_and(|told| now.saturating_duration_since(told) < QUIET);
        if self.returns < TOO_MUCH || quiet {
            return false;
        }
        self.told = Some(now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(port: u16) -> SocketAddr {
        ([192, 0, 2, 1], port).into()
    }

    #[test]
    fn who_moves_on_is_roaming_and_who_comes_back_again_and_again_is_in_two_places() {
        let start = Instant::now();
        let mut flaps = Flaps::default();
        let told = |flaps: &mut Flaps, moves: &[u16], every: Duration, from: Instant| {
            let pairs = moves.windows(2).zip(0u32..);
            pairs.filter(|(pair, n)| flaps.moved(at(pair[0]), at(pair[1]), from + every * *n)).count()
        };
        let onward: Vec<u16> = (1..200).collect();
        assert_eq!(told(&mut flaps, &onward, Duration::from_millis(10), start), 0);
        // Out of the door and back: two networks, once each way.
        assert_eq!(told(&mut flaps, &[1, 2, 1, 2], Duration::from_secs(1), start), 0);
        let mut flaps = Flaps::default();
        assert_eq!(told(&mut flaps, &[1, 2, 1, 2, 1, 2, 1, 2], Duration::from_secs(31), start), 0, "slow enough");
        let mut flaps = Flaps::default();
        let forth: Vec<u16> = (0..40).map(|n| n % 2).collect();
        assert_eq!(told(&mut flaps, &forth, Duration::from_secs(1), start), 1, "once for ten minutes");
        assert_eq!(told(&mut flaps, &forth, Duration::from_secs(1), start + QUIET + WITHIN), 1);
    }

    #[test]
    fn a_host_of_both_families_that_connects_again_and_again_is_one_host() {
        let start = Instant::now();
        let mut flaps = Flaps::default();
        let (four, six) = (at(1), SocketAddr::from(([0xfd00, 0, 0, 0, 0, 0, 0, 1], 1)));
        let moves = (0..8u32).map(|n| if n % 2 == 0 { (four, six, n) } else { (six, four, n) });
        let told = moves.filter(|(from, to, n)| flaps.moved(*from, *to, start + Duration::from_secs(1) * *n));
        assert_eq!(told.count(), 0);
        let more = (0..2u32).map(|n| if n % 2 == 0 { (four, six) } else { (six, four) });
        assert_eq!(more.filter(|(from, to)| flaps.moved(*from, *to, start + Duration::from_secs(9))).count(), 1);
    }

    #[test]
    fn three_places_in_turn_are_noticed_too() {
        let start = Instant::now();
        let mut flaps = Flaps::default();
        let moves = (0..12).map(|n| (at(n % 3), at((n + 1) % 3)));
        assert_eq!(moves.filter(|(from, to)| flaps.moved(*from, *to, start)).count(), 1);
    }
}
