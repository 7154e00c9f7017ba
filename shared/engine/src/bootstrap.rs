//! The bootstrap class: keys that many joiners share, and the bounds of wire.md §3 on what a joiner is given.
//!
//! Must never give one joiner's session to another, nor let joiners cost members anything.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use culvert_model::key::{Psk, PublicKey};
use ipnet::IpNet;

use crate::bucket::{Bucket, Rate};
use crate::config::{BootstrapId, Path};
use crate::tunn::INITIATION;

/// Instances at a time.
pub(crate) const INSTANCES: usize = 256;
/// Instances at a time that have not confirmed a session; the oldest of them goes first.
pub(crate) const UNCONFIRMED: usize = 32;
/// How long an instance lives.
pub(crate) const LIFE: Duration = Duration::from_secs(30);
/// Bytes of inner packets, both ways together, that an instance may move.
pub(crate) const BYTES: u64 = 64 * 1024;
/// How long an unconfirmed instance is left alone: its joiner's answer is on its way.
pub(crate) const GRACE: Duration = Duration::from_millis(500);
/// Joiners that wait for room, and how long each: about as long as it would take to ask again.
const WAITING: usize = 256;
const PATIENCE: Duration = Duration::from_secs(5);
/// Handshakes per key: what a fleet that starts at once needs to be in within seconds, and a sixth of a processor for
/// whoever found a token.
const HANDSHAKES: Rate = Rate { burst: 100, every: Duration::from_micros(2500) };

/// One key.
pub(crate) struct Bootstrap {
    pub(crate) public_key: PublicKey,
    pub(crate) home: usize,
    pub(crate) psk: Psk,
    pub(crate) allowed_ips: Vec<IpNet>,
    handshakes: Bucket,
}

/// All keys and their instances, by the slot of the peer that stands for each.
#[derive(Default)]
pub(crate) struct Bootstraps {
    keys: HashMap<u32, Bootstrap>,
    last: u32,
    by_source: HashMap<(BootstrapId, SocketAddr), u32>,
    /// Oldest first, with the time it was made.
    unconfirmed: VecDeque<(u32, Instant)>,
    waiting: VecDeque<Joiner>,
}

/// An initiation under a bootstrap key for which there is no room yet. Many replicas may start at the same instant:
/// dropped, they would ask again only after five seconds, and all together.
pub(crate) struct Joiner {
    pub(crate) id: BootstrapId,
    pub(crate) initiation: [u8; INITIATION],
    pub(crate) path: Path,
    pub(crate) own: usize,
    pub(crate) since: Instant,
}

/// Whether a new instance fits.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Room {
    Yes,
    /// After this one, the oldest unconfirmed, is gone.
    After(u32),
    /// Others are on their way in or in.
    No,
}

impl Bootstraps {
    pub(crate) fn add(&mut self, public_key: PublicKey, home: usize, psk: Psk, allowed_ips: Vec<IpNet>) -> BootstrapId {
        self.last = self.last.wrapping_add(1);
        self.keys.insert(self.last, Bootstrap { public_key, home, psk, allowed_ips, handshakes: Bucket::default() });
        BootstrapId(self.last)
    }

    pub(crate) fn remove(&mut self, id: BootstrapId) -> Option<Bootstrap> {
        self.keys.remove(&id.0)
    }

    /// Has the keys that were added with one key of ours belong to another; those that it moved.
    pub(crate) fn move_home(&mut self, index: usize, instead: usize) -> Vec<(BootstrapId, PublicKey)> {
        let moved = self.keys.iter_mut().filter(|(_, key)| key.home == index);
        let moved = moved.map(|(id, key)| {
            key.home = instead;
            (BootstrapId(*id), key.public_key)
        });
        moved.collect()
    }

    pub(crate) fn key(&self, id: BootstrapId) -> Option<&Bootstrap> {
        self.keys.get(&id.0)
    }

    /// Counts one handshake under a key.
    pub(crate) fn may_answer(&mut self, id: BootstrapId, now: Instant) -> bool {
        self.keys.get_mut(&id.0).is_some_and(|key| key.handshakes.take(HANDSHAKES, now))
    }

    pub(crate) fn instance(&self, id: BootstrapId, source: SocketAddr) -> Option<u32> {
        self.by_source.get(&(id, source)).copied()
    }

    pub(crate) fn room(&self, now: Instant) -> Room {
        let full = self.unconfirmed.len() >= UNCONFIRMED || self.by_source.len() >= INSTANCES;
        match self.unconfirmed.front() {
            _ if !full => Room::Yes,
            Some((oldest, since)) if now.saturating_duration_since(*since) >= GRACE => Room::After(*oldest),
            Some(_) | None => Room::No,
        }
    }

    /// Whether an initiation under this key would be answered now.
    pub(crate) fn admits(&self, id: BootstrapId, now: Instant) -> bool {
        self.room(now) != Room::No && self.keys.get(&id.0).is_some_and(|key| key.handshakes.has_room(HANDSHAKES, now))
    }

    /// Lets a joiner wait; its newest initiation counts. `false`: too many wait.
    pub(crate) fn wait(&mut self, joiner: Joiner) -> bool {
        self.waiting.retain(|other| (other.id, other.path.remote) != (joiner.id, joiner.path.remote));
        let fits = self.waiting.len() < WAITING;
        if fits {
            self.waiting.push_back(joiner);
        }
        fits
    }

    /// The joiner that waited longest, once there is room for it.
    pub(crate) fn admit(&mut self, now: Instant) -> Option<Joiner> {
        self.waiting.retain(|joiner| now.saturating_duration_since(joiner.since) < PATIENCE);
        let next = self.waiting.iter().position(|joiner| self.admits(joiner.id, now))?;
        self.waiting.remove(next)
    }

    pub(crate) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    pub(crate) fn insert(&mut self, id: BootstrapId, source: SocketAddr, peer: u32, now: Instant) {
        self.by_source.insert((id, source), peer);
        self.unconfirmed.push_back((peer, now));
    }

    pub(crate) fn confirm(&mut self, peer: u32) {
        self.unconfirmed.retain(|(unconfirmed, _)| *unconfirmed != peer);
    }

    pub(crate) fn forget(&mut self, id: BootstrapId, source: SocketAddr, peer: u32) {
        self.by_source.remove(&(id, source));
        self.confirm(peer);
    }

    /// The instances of one key.
    pub(crate) fn instances(&self, id: BootstrapId) -> Vec<u32> {
        let mut slots: Vec<u32> =
            self.by_source.iter().filter(|((key, _), _)| *key == id).map(|(_, slot)| *slot).collect();
        slots.sort_unstable();
        slots
    }

    pub(crate) fn len(&self) -> usize {
        self.by_source.len()
    }
}

#[cfg(test)]
mod tests {
    use culvert_model::key::PrivateKey;

    use super::*;

    #[test]
    fn unconfirmed_instances_go_first_once_they_had_their_time_and_confirmed_ones_never() {
        let mut all = Bootstraps::default();
        let id = all.add(PrivateKey::from_bytes([1; 32]).public_key(), 0, Psk::from_bytes([2; 32]), Vec::new());
        let now = Instant::now();
        let source = |n: u32| SocketAddr::from(([10, 0, 0, 1], n as u16));
        for n in 0..32 {
            assert_eq!(all.room(now), Room::Yes);
            all.insert(id, source(n), n, now);
        }
        assert_eq!(all.room(now), Room::No);
        assert_eq!(all.room(now + GRACE), Room::After(0));
        for n in 0..32 {
            all.confirm(n);
        }
        for n in 32..256 {
            assert_eq!(all.room(now), Room::Yes);
            all.insert(id, source(n), n, now);
            all.confirm(n);
        }
        assert_eq!(all.room(now + GRACE), Room::No);
        all.forget(id, source(5), 5);
        assert_eq!(all.room(now), Room::Yes);
        assert_eq!(all.instance(id, source(6)), Some(6));
        assert_eq!(all.instance(id, source(5)), None);
    }

    #[test]
    fn joiners_wait_in_line_for_room_and_not_for_ever() {
        let mut all = Bootstraps::default();
        let id = all.add(PrivateKey::from_bytes([1; 32]).public_key(), 0, Psk::from_bytes([2; 32]), Vec::new());
        let now = Instant::now();
        let path = |n: u16| Path { remote: ([10, 0, 0, 1], n).into(), local: None, socket: 0 };
        let joiner = |n: u16, since: Instant| Joiner { id, initiation: [0; INITIATION], path: path(n), own: 0, since };
        for n in 0..32 {
            all.insert(id, path(n).remote, u32::from(n), now);
        }
        assert!(!all.admits(id, now));
        assert!((100..356).all(|n| all.wait(joiner(n, now))));
        assert!(!all.wait(joiner(1, now)), "the line is bounded");
        assert!(all.admit(now).is_none());
        all.confirm(0);
        assert_eq!(all.admit(now).map(|next| next.path.remote.port()), Some(100));
        assert!(all.wait(joiner(101, now)), "who asks again keeps one place");
        assert_eq!(all.admit(now).map(|next| next.path.remote.port()), Some(102));
        assert!(all.admit(now + PATIENCE).is_none());
        assert!(!all.has_waiting());
    }

    #[test]
    fn one_key_gets_no_more_than_its_rate_of_handshakes() {
        let mut all = Bootstraps::default();
        let id = all.add(PrivateKey::from_bytes([1; 32]).public_key(), 0, Psk::from_bytes([2; 32]), Vec::new());
        let now = Instant::now();
        assert_eq!((0..500).filter(|_| all.may_answer(id, now)).count(), 100);
        assert!(all.may_answer(id, now + Duration::from_millis(20)));
        assert!(!all.may_answer(BootstrapId(9), now));
    }
}
