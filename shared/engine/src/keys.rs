//! The static keys that one peer has at once, and under which of them the next handshake goes.
//!
//! Most peers have one. While a key is rotated, at either end, there are two: the newest is tried first, both are answered,
//! and what a session carries does not notice (wire.md §3). Must never forget the last key of a peer.

use std::net::SocketAddr;
use std::time::Instant;

use culvert_model::key::PublicKey;

use crate::config::PskEpoch;
use crate::tunn::{REJECT_AFTER_TIME, Under};

/// Keys that a peer may have at once: both ends may be in the middle of a rotation.
pub(crate) const MOST: usize = 4;
/// Addresses for which unanswered initiations are counted.
const TARGETS: usize = 16;

/// One static key of a peer.
pub(crate) struct Key {
    /// Tells it from every other that this peer ever had.
    pub(crate) serial: u32,
    pub(crate) public_key: PublicKey,
    /// The key of ours that it was added with.
    pub(crate) home: usize,
    /// The key of ours that the peer last confirmed under it.
    pub(crate) own: usize,
    /// Newest last.
    pub(crate) psks: Vec<PskEpoch>,
    /// When the old one of two is forgotten.
    pub(crate) forget_old_at: Option<Instant>,
    /// A session under it was confirmed.
    promoted: bool,
}

/// The keys of one peer.
pub(crate) struct Keys {
    first: Key,
    /// Newest last.
    more: Vec<Key>,
    /// Which one we initiate with.
    preferred: u32,
    /// It is the owner's choice: what the peer uses does not change it.
    chosen: bool,
    last: u32,
    /// Initiations without an answer since the last session, for each address.
    tries: Vec<(SocketAddr, u32)>,
}

/// What a session that is confirmed has changed.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Confirmed {
    /// It is the first under this key, which was added beside another.
    pub(crate) key: Option<PublicKey>,
    /// It is the first under the newest pre-shared key.
    pub(crate) epoch: Option<u32>,
}

impl Key {
    /// The epoch of the newest pre-shared key.
    pub(crate) fn newest_epoch(&self) -> Option<u32> {
        self.psks.last().map(|psk| psk.epoch)
    }

    /// Whether it is this one: of the peer, and where it matters of ours.
    pub(crate) fn is(&self, public_key: &PublicKey, home: Option<usize>) -> bool {
        self.public_key == *public_key && home.is_none_or(|home| home == self.home)
    }

    fn under(&self, epoch: Option<u32>) -> Under {
        Under { key: self.serial, own: self.own, epoch }
    }
}

impl Keys {
    pub(crate) fn new(public_key: PublicKey, home: usize, psks: Vec<PskEpoch>) -> Self {
        let first = Key { serial: 0, public_key, home, own: home, psks, forget_old_at: None, promoted: false };
        Self { first, more: Vec::new(), preferred: 0, chosen: false, last: 0, tries: Vec::new() }
    }

    /// Adds one; none past [`MOST`].
    pub(crate) fn add(&mut self, public_key: PublicKey, home: usize, psks: Vec<PskEpoch>, prefer: bool) -> Option<u32> {
        if self.more.len() + 1 >= MOST {
            return None;
        }
        self.last = self.last.wrapping_add(1);
        let serial = self.last;
        self.more.push(Key { serial, public_key, home, own: home, psks, forget_old_at: None, promoted: false });
        if prefer {
            (self.preferred, self.chosen) = (serial, true);
            self.tries.clear();
        }
        Some(serial)
    }

    /// Initiates with one from now on.
    pub(crate) fn prefer(&mut self, serial: u32) {
        self.preferred = serial;
        self.tries.clear();
    }

    /// Takes one out, unless it is the last.
    pub(crate) fn remove(&mut self, serial: u32) -> Option<Key> {
        let removed = match self.more.iter().position(|key| key.serial == serial) {
            Some(place) => self.more.remove(place),
            None if self.first.serial == serial && !self.more.is_empty() => {
                std::mem::replace(&mut self.first, self.more.remove(0))
            }
            None => return None,
        };
        if self.preferred == serial {
            (self.preferred, self.chosen) = (self.more.last().unwrap_or(&self.first).serial, false);
        }
        Some(removed)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Key> {
        std::iter::once(&self.first).chain(&self.more)
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Key> {
        std::iter::once(&mut self.first).chain(&mut self.more)
    }

    pub(crate) fn get(&self, serial: u32) -> Option<&Key> {
        self.iter().find(|key| key.serial == serial)
    }

    /// The one that we initiate with.
    pub(crate) fn preferred(&self) -> &Key {
        self.iter().find(|key| key.serial == self.preferred).unwrap_or(&self.first)
    }

    /// What an ordinary initiation goes under: the preferred key and its newest pre-shared key.
    pub(crate) fn newest(&self) -> Under {
        let key = self.preferred();
        key.under(key.newest_epoch())
    }

    /// What the next initiation to an address goes under: the newest, and while nobody answers there, in every other turn
    /// each of the others. While a session is `live` only in every fourth: it is the newest that is wanted then.
    pub(crate) fn initiating(&self, target: SocketAddr, live: bool) -> Under {
        let newest = self.newest();
        let tries = self.tries.iter().find(|(known, _)| *known == target).map_or(0, |(_, tries)| *tries);
        let every = if live { 4 } else { 2 };
        if tries % every + 1 < every {
            return newest;
        }
        let older = self.iter().flat_map(|key| {
            let kept = key.forget_old_at.is_none();
            key.psks
                .iter()
                .rev()
                .filter(move |psk| kept || Some(psk.epoch) == key.newest_epoch())
                .map(|psk| psk.epoch)
                .map(Some)
                .chain(key.psks.is_empty().then_some(None))
                .map(|epoch| key.under(epoch))
        });
        let older: Vec<Under> = older.filter(|under| *under != newest).collect();
        older.get((tries / every) as usize % older.len().max(1)).copied().unwrap_or(newest)
    }

    /// An initiation to an address had no answer.
    pub(crate) fn note_unanswered(&mut self, target: SocketAddr) {
        if self.more.is_empty() && self.first.psks.len() < 2 {
            return;
        }
        match self.tries.iter_mut().find(|(known, _)| *known == target) {
            Some((_, tries)) => *tries = tries.wrapping_add(1),
            None => {
                if self.tries.len() >= TARGETS {
                    self.tries.remove(0);
                }
                self.tries.push((target, 1));
            }
        }
    }

    /// A session under these keys is confirmed, and the newest. `initiated`: it was we who chose them.
    pub(crate) fn confirm(&mut self, under: Under, initiated: bool, now: Instant) -> Confirmed {
        self.tries.clear();
        let several = !self.more.is_empty();
        // Without a choice of our own we follow what the peer initiates with. An older key that answered us first, or
        // alone, is not what we want next time.
        let keep = initiated || self.chosen;
        let Some(key) = self.iter_mut().find(|key| key.serial == under.key) else {
            return Confirmed { key: None, epoch: None };
        };
        key.own = under.own;
        let added = (!std::mem::replace(&mut key.promoted, true) && several).then_some(key.public_key);
        let newest = key.psks.len() == 2 && under.epoch == key.newest_epoch() && key.forget_old_at.is_none();
        if newest {
            key.forget_old_at = Some(now + REJECT_AFTER_TIME);
        }
        if !keep {
            self.preferred = under.key;
        }
        Confirmed { key: added, epoch: under.epoch.filter(|_| newest) }
    }

    /// The epoch that an index parity names; with one pre-shared key or none there is no choice.
    pub(crate) fn epoch_of(&self, serial: u32, parity: u32) -> Option<u32> {
        let psks = &self.get(serial)?.psks;
        let named = psks.iter().find(|psk| psks.len() > 1 && psk.epoch & 1 == parity);
        named.or(psks.last()).map(|psk| psk.epoch)
    }

    /// When the next old pre-shared key is to be forgotten.
    pub(crate) fn forget_old_at(&self) -> Option<Instant> {
        self.iter().filter_map(|key| key.forget_old_at).min()
    }

    /// Forgets old pre-shared keys whose time is over; true when there was one.
    pub(crate) fn forget_old(&mut self, now: Instant) -> bool {
        let mut some = false;
        for key in self.iter_mut().filter(|key| key.forget_old_at.is_some_and(|at| at <= now)) {
            key.forget_old_at = None;
            let newest = key.newest_epoch();
            key.psks.retain(|psk| Some(psk.epoch) == newest);
            some = true;
        }
        some
    }

    /// Whether there still is what this tunnel speaks under.
    pub(crate) fn has(&self, under: Under) -> bool {
        self.get(under.key).is_some_and(|key| match under.epoch {
            None => key.psks.is_empty(),
            Some(epoch) => key.psks.iter().any(|psk| psk.epoch == epoch),
        })
    }
}

#[cfg(test)]
mod tests {
    use culvert_model::key::Psk;

    use super::*;

    fn public(n: u8) -> PublicKey {
        PublicKey::from_bytes([n; 32])
    }

    fn psks(epochs: &[u32]) -> Vec<PskEpoch> {
        epochs.iter().map(|epoch| PskEpoch { epoch: *epoch, psk: Psk::from_bytes([1; 32]) }).collect()
    }

    fn tried(keys: &mut Keys, count: usize) -> Vec<(u32, Option<u32>)> {
        let target = ([192, 0, 2, 1], 1).into();
        let mut next = || {
            let under = keys.initiating(target, false);
            keys.note_unanswered(target);
            (under.key, under.epoch)
        };
        (0..count).map(|_| next()).collect()
    }

    #[test]
    fn the_newest_is_tried_every_other_time_and_all_others_in_turn() {
        let mut keys = Keys::new(public(1), 0, psks(&[4, 5]));
        assert_eq!(tried(&mut keys, 3), [(0, Some(5)), (0, Some(4)), (0, Some(5))]);
        keys.add(public(2), 0, psks(&[7]), true).unwrap();
        let expected = [(1, 7), (0, 5), (1, 7), (0, 4), (1, 7), (0, 5)].map(|(key, epoch)| (key, Some(epoch)));
        assert_eq!(tried(&mut keys, 6), expected);
        let mut single = Keys::new(public(1), 0, Vec::new());
        assert_eq!(tried(&mut single, 2), [(0, None); 2]);
    }

    #[test]
    fn addresses_take_turns_of_their_own() {
        let mut keys = Keys::new(public(1), 0, Vec::new());
        keys.add(public(2), 0, Vec::new(), true).unwrap();
        let [a, b] = [1, 2].map(|port| SocketAddr::from(([192, 0, 2, 1], port)));
        for address in [a, b, a, b] {
            let turn = keys.tries.iter().find(|(known, _)| *known == address).map_or(0, |(_, tries)| *tries);
            assert_eq!(keys.initiating(address, false).key, if turn == 0 { 1 } else { 0 });
            assert_eq!(keys.initiating(address, true).key, 1, "what is live is not given up for it");
            keys.note_unanswered(address);
        }
    }

    #[test]
    fn the_owners_choice_stays_and_without_one_the_peers_counts() {
        let now = Instant::now();
        let mut keys = Keys::new(public(1), 0, Vec::new());
        let under = |key| Under { key, own: 0, epoch: None };
        assert!(keys.confirm(under(0), true, now).key.is_none(), "the only one");
        keys.add(public(2), 0, Vec::new(), true).unwrap();
        assert!(keys.confirm(under(0), false, now).key.is_none());
        assert_eq!(keys.newest().key, 1, "never used");
        assert_eq!(keys.confirm(under(1), true, now).key, Some(public(2)));
        assert!(keys.confirm(under(1), true, now).key.is_none(), "told once");
        // The answer to an initiation under the older key comes late; or the peer calls back under it.
        keys.confirm(under(0), true, now);
        keys.confirm(under(0), false, now);
        assert_eq!(keys.newest().key, 1);

        let mut keys = Keys::new(public(1), 0, Vec::new());
        keys.add(public(2), 0, Vec::new(), false).unwrap();
        assert_eq!(keys.newest().key, 0, "only answered until the peer uses it");
        assert_eq!(keys.confirm(under(1), false, now).key, Some(public(2)));
        assert_eq!(keys.newest().key, 1);
        keys.confirm(under(0), false, now);
        assert_eq!(keys.newest().key, 0);
    }

    #[test]
    fn the_last_key_of_a_peer_stays() {
        let mut keys = Keys::new(public(1), 0, Vec::new());
        assert!(keys.remove(0).is_none());
        keys.add(public(2), 0, Vec::new(), false).unwrap();
        assert!(keys.remove(0).is_some());
        assert_eq!((keys.newest().key, keys.remove(1).is_none(), keys.remove(0).is_none()), (1, true, true));
        assert_eq!((0..9).filter(|n| keys.add(public(*n), 0, Vec::new(), false).is_some()).count(), MOST - 1);
    }
}
