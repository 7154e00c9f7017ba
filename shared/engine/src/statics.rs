//! Static and pre-shared keys that change while the engine runs, at either end (wire.md §3).
//!
//! Whatever is added is used beside what is there, and whatever is taken away ends what hangs on it at once: make before
//! break is the owner's to time. Must never leave a tunnel behind whose keys are gone.

use std::time::Instant;

use culvert_model::key::{PrivateKey, PublicKey};

use crate::config::{AddPeerError, KeyError, PeerId, PeerKey, PskEpoch, PskError};
use crate::engine::{Engine, Known};
use crate::event::Event;
use crate::own::Own;
use crate::peer::{Attempt, Peer};
use crate::roster::are_two_epochs_at_most;
use crate::tunn::Under;

impl Engine {
    /// Adds a static key of our own and tells its number; one that is there keeps its number. Every peer may speak to it
    /// from now on, under whichever of our keys it was added.
    pub fn add_static(&mut self, key: &PrivateKey) -> usize {
        let new = Own::new(key);
        let same = |own: &Option<Own>| own.as_ref().is_some_and(|own| own.public == new.public);
        if let Some(known) = self.own.iter().position(same) {
            return known;
        }
        self.own.push(Some(new));
        self.own.len() - 1
    }

    /// Takes a static key of our own away: handshakes to it get silence and sessions under it end. Peers and bootstrap
    /// keys that were added with it speak with `instead` from now on.
    ///
    /// # Errors
    /// [`KeyError::UnknownKey`], for either of them; [`KeyError::Last`], when they are the same.
    pub fn remove_static(&mut self, index: usize, instead: usize, now: Instant) -> Result<(), KeyError> {
        if self.own(index).is_none() || self.own(instead).is_none() {
            return Err(KeyError::UnknownKey);
        }
        if index == instead {
            return Err(KeyError::Last);
        }
        if let Some(own) = self.own.get_mut(index) {
            *own = None;
        }
        let slots: Vec<u32> = self.peers.iter().map(|peer| peer.id.slot).collect();
        for slot in slots {
            self.move_home(slot, index, instead, now);
        }
        for (id, public_key) in self.bootstraps.move_home(index, instead) {
            self.known.remove(&(public_key, index));
            self.known.entry((public_key, instead)).or_insert(Known::Bootstrap(id));
        }
        Ok(())
    }

    /// Adds a static key to a peer, beside those it has: what is live stays, and sessions under any of them are one
    /// peer's. With `prefer` we initiate with it from now on, whatever the peer uses, and with the others while nobody
    /// answers; without, once the peer has used it.
    ///
    /// # Errors
    /// See [`AddPeerError`]; [`AddPeerError::Full`] also when the peer has too many keys. Nothing has changed then.
    pub fn add_key(&mut self, peer: PeerId, key: PeerKey, prefer: bool, now: Instant) -> Result<(), AddPeerError> {
        let PeerKey { public_key, static_index, psks } = key;
        self.check_new_key(&public_key, static_index)?;
        if !are_two_epochs_at_most(&psks) {
            return Err(AddPeerError::BadPsks);
        }
        let entry = self.peers.get_mut(peer.slot).filter(|entry| entry.id == peer).ok_or(AddPeerError::UnknownPeer)?;
        let serial = entry.keys.add(public_key, static_index, psks, prefer).ok_or(AddPeerError::Full)?;
        self.known.insert((public_key, static_index), Known::Peer(peer.slot, serial));
        if let Some(attempt) = entry.attempt.as_mut().filter(|_| prefer) {
            // Whoever is silent to the older key may answer this one.
            (attempt.sent, attempt.at) = (false, now);
        }
        self.rearm(peer.slot, now);
        Ok(())
    }

    /// Takes one of several static keys from a peer: handshakes under it get silence and sessions under it end.
    /// `static_index` says with which of ours it was added, where the same key was added with several.
    ///
    /// # Errors
    /// See [`KeyError`]; nothing has changed then.
    pub fn remove_key(
        &mut self,
        peer: PeerId,
        public_key: &PublicKey,
        static_index: Option<usize>,
        now: Instant,
    ) -> Result<(), KeyError> {
        let entry = self.peers.get_mut(peer.slot).filter(|entry| entry.id == peer).ok_or(KeyError::UnknownPeer)?;
        let serial = entry.keys.iter().find(|key| key.is(public_key, static_index)).map(|key| key.serial);
        let key = entry.keys.remove(serial.ok_or(KeyError::UnknownKey)?).ok_or(KeyError::Last)?;
        self.known.remove(&(key.public_key, key.home));
        self.end_tunnels(peer.slot, |under| under.key == key.serial, now);
        Ok(())
    }

    /// Initiates with one of several static keys of a peer from now on, whatever the peer itself initiated with last.
    ///
    /// # Errors
    /// See [`KeyError`]; nothing has changed then.
    pub fn prefer_key(
        &mut self,
        peer: PeerId,
        public_key: &PublicKey,
        static_index: Option<usize>,
    ) -> Result<(), KeyError> {
        let entry = self.peers.get_mut(peer.slot).filter(|entry| entry.id == peer).ok_or(KeyError::UnknownPeer)?;
        let serial = entry.keys.iter().find(|key| key.is(public_key, static_index)).map(|key| key.serial);
        entry.keys.prefer(serial.ok_or(KeyError::UnknownKey)?);
        Ok(())
    }

    /// Replaces the pre-shared keys of the key that we initiate with, newest last, make before break (wire.md §3): a live
    /// session stays live, and [`connect`](Self::connect) brings up one under the newest.
    ///
    /// # Errors
    /// See [`PskError`].
    pub fn set_psks(&mut self, peer: PeerId, psks: Vec<PskEpoch>, now: Instant) -> Result<(), PskError> {
        let entry = self.peer(peer).ok_or(PskError::UnknownPeer)?;
        let preferred = entry.keys.preferred().serial;
        self.replace_psks(peer, preferred, psks, now)
    }

    /// As [`set_psks`](Self::set_psks), for one key of several.
    ///
    /// # Errors
    /// See [`PskError`].
    pub fn set_key_psks(
        &mut self,
        peer: PeerId,
        public_key: &PublicKey,
        static_index: Option<usize>,
        psks: Vec<PskEpoch>,
        now: Instant,
    ) -> Result<(), PskError> {
        let entry = self.peer(peer).ok_or(PskError::UnknownPeer)?;
        let key = entry.keys.iter().find(|key| key.is(public_key, static_index)).ok_or(PskError::UnknownKey)?;
        let serial = key.serial;
        self.replace_psks(peer, serial, psks, now)
    }

    fn replace_psks(&mut self, id: PeerId, serial: u32, psks: Vec<PskEpoch>, now: Instant) -> Result<(), PskError> {
        let peer = self.peers.get_mut(id.slot).filter(|peer| peer.id == id).ok_or(PskError::UnknownPeer)?;
        if !are_two_epochs_at_most(&psks) {
            return Err(PskError::BadPsks);
        }
        let key = peer.keys.iter_mut().find(|key| key.serial == serial).ok_or(PskError::UnknownKey)?;
        let same = |old: &PskEpoch| psks.iter().any(|new| new.epoch == old.epoch && new.psk == old.psk);
        let gone: Vec<u32> = key.psks.iter().filter(|old| !same(old)).map(|old| old.epoch).collect();
        let had_none = key.psks.is_empty() && !psks.is_empty();
        key.psks = psks;
        key.forget_old_at = None;
        for slot in peer.tunnels.clone() {
            let Some(tunnel) = self.tunnels.get_mut(slot).filter(|tunnel| tunnel.under.key == serial) else { continue };
            if tunnel.under.epoch.map_or(had_none, |epoch| gone.contains(&epoch)) {
                tunnel.retired = true;
            }
        }
        self.rearm(id.slot, now);
        Ok(())
    }

    /// Has a peer's keys that were added with one key of ours belong to another. Where the peer has that pair already, as
    /// while a key of ours is rotated that only this peer knows, the older pair goes.
    fn move_home(&mut self, slot: u32, index: usize, instead: usize, now: Instant) {
        let Some(peer) = self.peers.get_mut(slot) else { return };
        let known = |key: &PublicKey| self.known.contains_key(&(*key, instead));
        let mut gone = Vec::new();
        let mut moved = Vec::new();
        for key in peer.keys.iter_mut() {
            if key.own == index {
                key.own = instead;
            }
            if key.home != index {
                continue;
            }
            if peer.instance.is_none() && known(&key.public_key) {
                gone.push(key.serial);
            } else {
                key.home = instead;
                moved.push((key.public_key, key.serial));
            }
        }
        if peer.instance.is_none() {
            for (public_key, serial) in moved {
                self.known.remove(&(public_key, index));
                self.known.insert((public_key, instead), Known::Peer(slot, serial));
            }
        }
        for serial in &gone {
            let Some(peer) = self.peers.get_mut(slot) else { return };
            match peer.keys.remove(*serial) {
                Some(key) => self.known.remove(&(key.public_key, index)),
                // Another peer has its only pair: nobody can mean this one any more.
                None => return drop(self.forget_peer(slot)),
            };
        }
        self.end_tunnels(slot, |under| under.own == index || gone.contains(&under.key), now);
    }

    /// Ends the tunnels of a peer whose keys are gone, and says so if no live one is left.
    fn end_tunnels(&mut self, slot: u32, gone: impl Fn(Under) -> bool, now: Instant) {
        let tunnels = self.peers.get(slot).map_or(&[][..], |peer| &peer.tunnels);
        let ends = |tunnel: &&u32| self.tunnels.get(**tunnel).is_some_and(|tunnel| gone(tunnel.under));
        for tunnel in tunnels.iter().filter(ends).copied().collect::<Vec<_>>() {
            self.drop_tunnel(slot, tunnel);
        }
        let live = |tunnel: &u32| self.tunnels.get(*tunnel).filter(|tunnel| tunnel.is_live(now));
        let Some(peer) = self.peers.get(slot) else { return };
        let next = peer.tunnels.iter().filter_map(|slot| Some((live(slot)?.newest_started()?, *slot))).max();
        let Some(peer) = self.peers.get_mut(slot) else { return };
        if peer.active.is_none() {
            peer.active = next.map(|(_, tunnel)| tunnel);
            if peer.live && peer.active.is_none() {
                self.stats.live -= 1;
                lose(peer, now);
                self.events.push_back(Event::SessionLost { peer: peer.id });
            }
        }
        self.rearm(slot, now);
    }

    fn own(&self, index: usize) -> Option<&Own> {
        self.own.get(index)?.as_ref()
    }
}

/// A peer has no session any more; one that is to be kept up for ever asks for another.
pub(crate) fn lose(peer: &mut Peer, now: Instant) {
    peer.live = false;
    if peer.persistent_keepalive.is_some() && peer.attempt.is_none() {
        peer.attempt = Some(Attempt::new(None, now));
    }
}
