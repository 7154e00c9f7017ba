//! What guessing costs: whoever gives wrong proofs waits for each answer, longer every time.
//!
//! Must never make anybody wait who gives a right one, nor remember more addresses than [`ADDRESSES_AT_MOST`].

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

/// So many wrong proofs a minute are a mistake in a configuration and cost nothing.
const FREE: u32 = 5;
/// The first wait; it doubles.
const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(5);
/// Whoever gave none for so long begins anew.
const FORGIVEN_AFTER: Duration = Duration::from_secs(60);
const ADDRESSES_AT_MOST: usize = 4_096;

/// Who failed lately.
#[derive(Debug, Default)]
pub(super) struct Throttle {
    lately: HashMap<Option<IpAddr>, Lately>,
}

/// What one more failure means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Failed {
    /// Before it is answered.
    pub(super) wait: Duration,
    /// It is the address's first for a while: worth a line.
    pub(super) is_news: bool,
}

#[derive(Debug, Clone, Copy)]
struct Lately {
    count: u32,
    last: Instant,
}

impl Throttle {
    /// Counts a wrong proof from an address (none = a unix socket).
    pub(super) fn failed(&mut self, from: Option<IpAddr>, now: Instant) -> Failed {
        if self.lately.len() >= ADDRESSES_AT_MOST {
            self.forget(now);
        }
        let lately = self.lately.entry(from.map(network)).or_insert(Lately { count: 0, last: now });
        if now.saturating_duration_since(lately.last) >= FORGIVEN_AFTER {
            lately.count = 0;
        }
        (lately.count, lately.last) = (lately.count.saturating_add(1), now);
        let beyond = lately.count.saturating_sub(FREE);
        let wait = match beyond.checked_sub(1) {
            None => Duration::ZERO,
            Some(doubled) => FIRST.saturating_mul(1 << doubled.min(16)).min(LONGEST),
        };
        Failed { wait, is_news: lately.count == 1 }
    }

    /// Makes room: first those that are forgiven, then, under an attack from everywhere, all.
    fn forget(&mut self, now: Instant) {
        self.lately.retain(|_, lately| now.saturating_duration_since(lately.last) < FORGIVEN_AFTER);
        if self.lately.len() >= ADDRESSES_AT_MOST {
            self.lately.clear();
        }
    }
}

/// Who has one IPv6 address has 2^64 of them.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(four) => four.into(),
        IpAddr::V6(six) => Ipv6Addr::from(u128::from(six) >> 64 << 64).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_proofs_cost_more_every_time_and_are_forgiven_after_a_minute() {
        let (mut throttle, now) = (Throttle::default(), Instant::now());
        let mut waits = |count: u32, now| -> Vec<u128> {
            (0..count).map(|_| throttle.failed(Some([192, 0, 2, 1].into()), now).wait.as_millis()).collect()
        };
        assert_eq!(waits(14, now), [0, 0, 0, 0, 0, 100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000, 5_000]);
        assert_eq!(waits(1, now + FORGIVEN_AFTER / 2), [5_000]);
        assert_eq!(waits(2, now + FORGIVEN_AFTER / 2 + FORGIVEN_AFTER), [0, 0]);
    }

    #[test]
    fn addresses_are_counted_apart_but_not_those_of_one_network_of_ipv6() {
        let (mut throttle, now) = (Throttle::default(), Instant::now());
        let mut is_news = |text: &str| throttle.failed(Some(text.parse().unwrap()), now).is_news;
        assert!(is_news("192.0.2.1") && is_news("192.0.2.2") && is_news("2001:db8::1"));
        assert!(!is_news("::ffff:192.0.2.1"));
        assert!(!is_news("2001:db8::2"));
        assert!(is_news("2001:db8:0:1::2"));
        assert!(throttle.failed(None, now).is_news);
    }

    #[test]
    fn no_number_of_addresses_fills_the_memory() {
        let (mut throttle, now) = (Throttle::default(), Instant::now());
        for number in 0..3 * u32::try_from(ADDRESSES_AT_MOST).unwrap() {
            throttle.failed(Some(std::net::Ipv4Addr::from(number).into()), now);
            assert!(throttle.lately.len() <= ADDRESSES_AT_MOST);
        }
    }
}
