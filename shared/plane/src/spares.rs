//! Second copies of small exchanges' packets, on ways that lose some: where QUIC needs a round trip to notice a loss, the
//! copy is a fraction of one behind.
//!
//! As Google's front ends do toward their own servers ("Reducing Web Latency: the Virtue of Gentle Aggression", SIGCOMM
//! 2013, §3.3). The connection's congestion control has the last word on whether there are any ([`Shares`]): they must
//! never go where a queue grows, where much is lost, or past the congestion window (RFC 9265 §2.3).
//!
//! [`Shares`]: crate::congestion::Shares

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// QUIC datagrams that wait to be sent again.
#[derive(Debug, Default)]
pub(crate) struct Spares {
    waiting: BTreeMap<(Instant, u64), Spare>,
    serial: u64,
    buffers: Vec<Vec<u8>>,
}

/// One of them.
#[derive(Debug)]
pub(crate) struct Spare {
    /// QUIC's address of the process that it is for.
    pub(crate) address: SocketAddr,
    pub(crate) payload: Vec<u8>,
}

/// Copies that wait at most, of all peers of a shard: 350 KiB.
const MOST: usize = 256;
/// A shorter datagram holds nothing but acknowledgements, of which the next has all.
const SHORTEST: usize = 64;
/// What QUIC's own detection takes beyond a round trip, and a little more: a loss is noticed, and the window cut for it,
/// before the copy's acknowledgement comes.
const BEHIND: u32 = 8;
const BEHIND_MORE: Duration = Duration::from_millis(1);

impl Spares {
    /// Keeps a copy of a datagram that is sent now.
    pub(crate) fn keep(&mut self, address: SocketAddr, payload: &[u8], rtt: Duration, now: Instant) {
        if payload.len() < SHORTEST || self.waiting.len() >= MOST {
            return;
        }
        let mut copy = self.buffers.pop().unwrap_or_default();
        copy.clear();
        copy.extend_from_slice(payload);
        self.serial += 1;
        let due = now + rtt / BEHIND + BEHIND_MORE;
        self.waiting.insert((due, self.serial), Spare { address, payload: copy });
    }

    /// When the first is due.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.waiting.first_key_value().map(|((due, _), _)| *due)
    }

    /// Takes one that is due.
    pub(crate) fn take(&mut self, now: Instant) -> Option<Spare> {
        let first = self.waiting.first_entry().filter(|first| first.key().0 <= now)?;
        Some(first.remove())
    }

    /// Its memory serves the next one.
    pub(crate) fn give_back(&mut self, spare: Spare) {
        self.buffers.push(spare.payload);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RTT: Duration = Duration::from_millis(80);

    #[test]
    fn a_copy_comes_an_eighth_of_a_round_trip_later_and_once() {
        let (mut spares, now) = (Spares::default(), Instant::now());
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        spares.keep(address, &[1; 100], RTT, now);
        spares.keep(address, &[2; 100], RTT / 2, now);
        spares.keep(address, &[3; SHORTEST - 1], RTT, now);
        let due = spares.poll_timeout().unwrap();
        assert_eq!(due, now + Duration::from_millis(6));
        assert!(spares.take(due - Duration::from_nanos(1)).is_none());
        assert_eq!(spares.take(due).unwrap().payload, [2; 100]);
        assert_eq!(spares.poll_timeout(), Some(now + Duration::from_millis(11)));
        let last = spares.take(now + RTT).unwrap();
        assert_eq!(last.payload, [1; 100]);
        spares.give_back(last);
        assert!(spares.take(now + RTT).is_none() && spares.poll_timeout().is_none());
    }

    #[test]
    fn no_more_wait_than_the_bound() {
        let (mut spares, now) = (Spares::default(), Instant::now());
        for _ in 0..2 * MOST {
            spares.keep(([127, 0, 0, 1], 1).into(), &[1; 100], RTT, now);
        }
        assert_eq!(std::iter::from_fn(|| spares.take(now + RTT)).count(), MOST);
    }
}
