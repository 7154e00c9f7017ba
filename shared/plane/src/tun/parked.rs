//! Packets that wait for a session: a first SYN leaves when the handshake is done, not when TCP tries again a second later.
//!
//! It must never hold more than [`PACKETS`] or [`BYTES`] for one peer, nor anything longer than [`PATIENCE`].

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use culvert_engine::PeerId;

/// For one peer; the oldest make room.
pub(crate) const PACKETS: usize = 32;
/// For one peer.
pub(crate) const BYTES: usize = 64 * 1024;
/// A peer that has not answered by then is not to be reached. Longer than the first repetition of a lost initiation could
/// be waited for would help no caller.
pub(crate) const PATIENCE: Duration = Duration::from_secs(3);

/// Those of one shard.
#[derive(Debug, Default)]
pub(crate) struct Parked {
    peers: BTreeMap<PeerId, Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    packets: VecDeque<(Instant, Vec<u8>)>,
    bytes: usize,
}

impl Parked {
    /// Keeps a packet; tells how many older ones were dropped for it.
    pub(crate) fn park(&mut self, peer: PeerId, packet: &[u8], now: Instant) -> u64 {
        let queue = self.peers.entry(peer).or_default();
        let mut dropped = 0;
        while queue.packets.len() >= PACKETS || (queue.bytes + packet.len() > BYTES && !queue.packets.is_empty()) {
            queue.pop();
            dropped += 1;
        }
        queue.bytes += packet.len();
        queue.packets.push_back((now + PATIENCE, packet.to_vec()));
        dropped
    }

    /// Gives back what waits for a peer, oldest first.
    pub(crate) fn take(&mut self, peer: PeerId) -> impl Iterator<Item = Vec<u8>> + use<> {
        self.peers.remove(&peer).unwrap_or_default().packets.into_iter().map(|(_, packet)| packet)
    }

    /// Gives back what has waited long enough.
    pub(crate) fn expire(&mut self, now: Instant) -> Vec<Vec<u8>> {
        let mut expired = Vec::new();
        self.peers.retain(|_, queue| {
            while queue.packets.front().is_some_and(|(ends_at, _)| *ends_at <= now) {
                expired.extend(queue.pop());
            }
            !queue.packets.is_empty()
        });
        expired
    }

    /// When [`Self::expire`] has something.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.peers.values().filter_map(|queue| queue.packets.front()).map(|(ends_at, _)| *ends_at).min()
    }
}

impl Queue {
    fn pop(&mut self) -> Option<Vec<u8>> {
        let (_, packet) = self.packets.pop_front()?;
        self.bytes -= packet.len();
        Some(packet)
    }
}

#[cfg(test)]
mod tests {
    use culvert_engine::{Config, Engine, HandshakeLimits, PeerConfig, Shard};
    use culvert_model::key::PrivateKey;

    use super::*;

    fn peers(now: Instant) -> [PeerId; 2] {
        let (statics, handshakes) = (vec![PrivateKey::generate()], HandshakeLimits::default());
        let mut engine = Engine::new(Config { statics, shard: Shard::default(), handshakes, seed: None }, now);
        [0, 1].map(|_| {
            let public_key = PrivateKey::generate().public_key();
            let (psks, allowed_ips) = (Vec::new(), Vec::new());
            let (path, persistent_keepalive) = (None, None);
            let peer = PeerConfig { public_key, static_index: 0, psks, allowed_ips, path, persistent_keepalive };
            engine.add_peer(peer, now).unwrap()
        })
    }

    #[test]
    fn the_newest_packets_of_each_peer_wait_within_bounds() {
        let now = Instant::now();
        let ([one, other], mut parked) = (peers(now), Parked::default());
        let dropped: u64 = (0..40_u8).map(|count| parked.park(one, &[count; 10], now)).sum();
        assert_eq!(dropped, 8);
        let dropped: u64 = (0..4_u8).map(|count| parked.park(other, &vec![count; 30_000], now)).sum();
        assert_eq!(dropped, 2);
        assert_eq!(parked.take(one).map(|packet| packet[0]).collect::<Vec<_>>(), (8..40).collect::<Vec<_>>());
        assert_eq!(parked.take(other).map(|packet| packet[0]).collect::<Vec<_>>(), [2, 3]);
        assert_eq!((parked.take(one).count(), parked.poll_timeout()), (0, None));
        assert_eq!(parked.park(one, &vec![0; BYTES + 1], now), 0, "one that is longer than all waits alone");
        assert_eq!(parked.park(one, &[1], now), 1);
    }

    #[test]
    fn what_waits_too_long_is_given_back() {
        let now = Instant::now();
        let ([one, other], mut parked) = (peers(now), Parked::default());
        let later = now + Duration::from_secs(1);
        parked.park(one, &[1], now);
        parked.park(other, &[2], later);
        parked.park(one, &[3], later);
        assert_eq!(parked.poll_timeout(), Some(now + PATIENCE));
        assert_eq!(parked.expire(now + PATIENCE), [[1]]);
        assert_eq!(parked.poll_timeout(), Some(later + PATIENCE));
        assert_eq!(parked.expire(later + PATIENCE).len(), 2);
        assert_eq!(parked.poll_timeout(), None);
    }
}
