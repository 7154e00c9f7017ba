//! The bootstrap class: keys that many joiners share, and the bounds of wire.md §3 on what a joiner is given.
//!
//! Must never give one joiner's session to another, nor let joiners cost members anything.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use culvert_model::key::Psk;
use ipnet::IpNet;

use crate::bucket::{Bucket, Rate};
use crate::config::BootstrapId;

/// Instances at a time.
pub(crate) const INSTANCES: usize = 256;
/// Instances at a time that have not confirmed a session; the oldest of them goes first.
pub(crate) const UNCONFIRMED: usize = 32;
/// How long an instance lives.
pub(crate) const LIFE: Duration = Duration::from_secs(30);
/// Bytes of inner packets, both ways together, that an instance may move.
pub(crate) const BYTES: u64 = 64 * 1024;
/// Handshakes per key.
const HANDSHAKES: Rate = Rate { burst: 100, every: Duration::from_millis(10) };

/// One key.
pub(crate) struct Bootstrap {
    pub(crate) public_key: culvert_model::key::PublicKey,
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
    /// Oldest first.
    unconfirmed: VecDeque<u32>,
}

/// Whether a new instance fits.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Room {
    Yes,
    /// After this one, the oldest unconfirmed, is gone.
    After(u32),
    No,
}

impl Bootstraps {
    pub(crate) fn add(
        &mut self,
        public_key: culvert_model::key::PublicKey,
        home: usize,
        psk: Psk,
        allowed_ips: Vec<IpNet>,
    ) -> BootstrapId {
        self.last = self.last.wrapping_add(1);
        self.keys.insert(self.last, Bootstrap { public_key, home, psk, allowed_ips, handshakes: Bucket::default() });
        BootstrapId(self.last)
    }

    pub(crate) fn remove(&mut self, id: BootstrapId) -> Option<Bootstrap> {
        self.keys.remove(&id.0)
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

    pub(crate) fn room(&self) -> Room {
        let full = self.unconfirmed.len() >= UNCONFIRMED || self.by_source.len() >= INSTANCES;
        match self.unconfirmed.front() {
            _ if !full => Room::Yes,
            Some(oldest) => Room::After(*oldest),
            None => Room::No,
        }
    }

    pub(crate) fn insert(&mut self, id: BootstrapId, source: SocketAddr, peer: u32) {
        self.by_source.insert((id, source), peer);
        self.unconfirmed.push_back(peer);
    }

    pub(crate) fn confirm(&mut self, peer: u32) {
        self.unconfirmed.retain(|unconfirmed| *unconfirmed != peer);
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
    fn unconfirmed_instances_go_first_and_confirmed_ones_never() {
        let mut all = Bootstraps::default();
        let id = all.add(PrivateKey::from_bytes([1; 32]).public_key(), 0, Psk::from_bytes([2; 32]), Vec::new());
        let source = |n: u32| SocketAddr::from(([10, 0, 0, 1], n as u16));
        for n in 0..32 {
            assert_eq!(all.room(), Room::Yes);
            all.insert(id, source(n), n);
        }
        assert_eq!(all.room(), Room::After(0));
        for n in 0..32 {
            all.confirm(n);
        }
        for n in 32..256 {
            assert_eq!(all.room(), Room::Yes);
            all.insert(id, source(n), n);
            all.confirm(n);
        }
        assert_eq!(all.room(), Room::No);
        all.forget(id, source(5), 5);
        assert_eq!(all.room(), Room::Yes);
        assert_eq!(all.instance(id, source(6)), Some(6));
        assert_eq!(all.instance(id, source(5)), None);
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
