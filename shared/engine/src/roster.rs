//! Who the engine knows: peers and bootstrap keys come, change their keys and go, in every table at once.
//!
//! Must never touch a packet.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use culvert_model::key::PublicKey;
use ipnet::IpNet;

use crate::config::{AddPeerError, BootstrapConfig, BootstrapId, Holder, Path, PeerConfig, PeerId, PskEpoch};
use crate::engine::{Engine, Known};
use crate::event::Event;
use crate::keys::Keys;
use crate::peer::{Attempt, Instance, Peer};
use crate::routes::Allowed;

/// What a row of the table is made of.
pub(crate) struct NewPeer<'a> {
    pub(crate) public_key: PublicKey,
    pub(crate) own: usize,
    pub(crate) psks: Vec<PskEpoch>,
    pub(crate) allowed_ips: &'a [IpNet],
    pub(crate) path: Option<Path>,
    pub(crate) keepalive: Option<Duration>,
    pub(crate) instance: Option<Instance>,
}

impl Engine {
    /// Adds a peer whose allowed addresses are routed to it.
    ///
    /// # Errors
    /// See [`AddPeerError`]; nothing has changed then.
    pub fn add_peer(&mut self, config: PeerConfig, now: Instant) -> Result<PeerId, AddPeerError> {
        for net in &config.allowed_ips {
            if let Some(with) = self.overlap(net) {
                return Err(AddPeerError::Overlap { net: *net, with });
            }
        }
        self.insert_peer(config, true, now)
    }

    /// Adds a peer that [`route`](Self::route) never returns, so its addresses may be those of another: a connector's
    /// several relays all have the same inner address. Its inner source is checked all the same.
    ///
    /// # Errors
    /// As [`add_peer`](Self::add_peer), but never [`AddPeerError::Overlap`].
    pub fn add_unrouted_peer(&mut self, config: PeerConfig, now: Instant) -> Result<PeerId, AddPeerError> {
        self.insert_peer(config, false, now)
    }

    /// The peer whose addresses a network overlaps.
    pub fn overlap(&self, net: &IpNet) -> Option<PeerId> {
        Some(self.peers.get(self.routes.overlap(net)?)?.id)
    }

    /// Whose a static key is, under any of ours.
    pub fn holder(&self, key: &PublicKey) -> Option<Holder> {
        match self.known_of(*key, 0)? {
            Known::Peer(slot, _) => Some(Holder::Peer(self.peers.get(slot)?.id)),
            Known::Bootstrap(id) => Some(Holder::Bootstrap(id)),
        }
    }

    /// The static key of a bootstrap key.
    pub fn bootstrap_key(&self, bootstrap: BootstrapId) -> Option<PublicKey> {
        self.bootstraps.key(bootstrap).map(|key| key.public_key)
    }

    /// The static keys of a peer.
    pub fn keys_of(&self, peer: PeerId) -> Vec<PublicKey> {
        self.peer(peer).map(|peer| peer.keys.iter().map(|key| key.public_key).collect()).unwrap_or_default()
    }

    /// Forgets a peer: silence from now on.
    pub fn remove_peer(&mut self, peer: PeerId) {
        if self.peer(peer).is_some() {
            self.forget_peer(peer.slot);
        }
    }

    /// Adds a key that many joiners share.
    ///
    /// # Errors
    /// See [`AddPeerError`]; nothing has changed then.
    pub fn add_bootstrap(&mut self, config: BootstrapConfig) -> Result<BootstrapId, AddPeerError> {
        self.check_new_key(&config.public_key, config.static_index)?;
        let BootstrapConfig { public_key, static_index, psk, allowed_ips } = config;
        let id = self.bootstraps.add(public_key, static_index, psk, allowed_ips);
        self.known.insert((public_key, static_index), Known::Bootstrap(id));
        Ok(id)
    }

    /// Forgets a bootstrap key and ends its instances.
    pub fn remove_bootstrap(&mut self, bootstrap: BootstrapId) {
        let Some(key) = self.bootstraps.remove(bootstrap) else { return };
        self.known.remove(&(key.public_key, key.home));
        for slot in self.bootstraps.instances(bootstrap) {
            self.end_instance(slot);
        }
    }

    fn insert_peer(&mut self, config: PeerConfig, routed: bool, now: Instant) -> Result<PeerId, AddPeerError> {
        self.check_new_key(&config.public_key, config.static_index)?;
        if !are_two_epochs_at_most(&config.psks) {
            return Err(AddPeerError::BadPsks);
        }
        let keepalive = config.persistent_keepalive.map(|secs| Duration::from_secs(u64::from(secs.get())));
        let key = (config.public_key, config.static_index);
        let peer = NewPeer {
            public_key: config.public_key,
            own: config.static_index,
            psks: config.psks,
            allowed_ips: &config.allowed_ips,
            path: config.path,
            keepalive,
            instance: None,
        };
        let slot = self.put_peer(peer).ok_or(AddPeerError::Full)?;
        let entry = self.peers.get_mut(slot).ok_or(AddPeerError::Full)?;
        self.known.insert(key, Known::Peer(slot, entry.keys.preferred().serial));
        let id = entry.id;
        entry.routed = routed;
        if routed {
            self.routes.add(&entry.allowed, slot);
        }
        if keepalive.is_some() && config.path.is_some() {
            entry.attempt = Some(Attempt::new(None, now));
        }
        self.rearm(slot, now);
        Ok(id)
    }

    /// Puts a peer into the table, known under no key and routed nowhere.
    pub(crate) fn put_peer(&mut self, new: NewPeer<'_>) -> Option<u32> {
        let shard = self.indices.shard().number;
        let slot = self.peers.insert_with(|slot, generation| Peer {
            id: PeerId { shard, slot, generation },
            keys: Keys::new(new.public_key, new.own, new.psks),
            allowed: Allowed::new(new.allowed_ips),
            routed: false,
            path: new.path,
            flaps: None,
            persistent_keepalive: new.keepalive,
            tunnels: Vec::new(),
            active: None,
            live: false,
            last_handshake: None,
            attempt: None,
            cookie_at: None,
            called_back: None,
            accepted: Default::default(),
            unconfirmed: Default::default(),
            rx_bytes: 0,
            tx_bytes: 0,
            due: None,
            instance: new.instance.map(Box::new),
        })?;
        move_endpoint(&mut self.endpoints, None, new.path);
        Some(slot)
    }

    /// Takes a peer out of every table.
    pub(crate) fn forget_peer(&mut self, slot: u32) -> Option<Peer> {
        let peer = self.peers.remove(slot)?;
        for tunnel in &peer.tunnels {
            if let Some(tunnel) = self.tunnels.remove(*tunnel) {
                self.indices.release(tunnel.base);
            }
        }
        if peer.routed {
            self.routes.remove(&peer.allowed);
        }
        match &peer.instance {
            Some(instance) => self.bootstraps.forget(instance.bootstrap, instance.source, slot),
            None => {
                for key in peer.keys.iter() {
                    self.known.remove(&(key.public_key, key.home));
                }
            }
        }
        self.stats.live -= u32::from(peer.live);
        self.timers.disarm(slot, peer.due);
        move_endpoint(&mut self.endpoints, peer.path, None);
        Some(peer)
    }

    /// Ends a bootstrap instance and says so if it was ever announced.
    pub(crate) fn end_instance(&mut self, slot: u32) {
        if let Some(Peer { id, last_handshake: Some(_), instance: Some(instance), .. }) = self.forget_peer(slot) {
            self.events.push_back(Event::PeerGone { peer: id, bootstrap: instance.bootstrap });
        }
    }

    pub(crate) fn set_path(&mut self, slot: u32, path: Path, now: Instant) {
        if let Some(peer) = self.peers.get_mut(slot).filter(|peer| peer.path != Some(path)) {
            move_peer(peer, path, &mut self.endpoints, &mut self.events, now);
        }
    }

    pub(crate) fn check_new_key(&self, key: &PublicKey, own: usize) -> Result<(), AddPeerError> {
        if self.own.get(own).is_none_or(Option::is_none) {
            return Err(AddPeerError::BadStatic);
        }
        match self.known.get(&(*key, own)) {
            None => Ok(()),
            Some(Known::Bootstrap(id)) => Err(AddPeerError::KnownBootstrap(*id)),
            Some(Known::Peer(slot, _)) => {
                Err(self.peers.get(*slot).map_or(AddPeerError::Full, |peer| AddPeerError::KnownKey(peer.id)))
            }
        }
    }
}

pub(crate) fn are_two_epochs_at_most(psks: &[PskEpoch]) -> bool {
    match psks {
        [] | [_] => true,
        [old, new] => old.epoch & 1 != new.epoch & 1,
        _ => false,
    }
}

/// Gives a peer another way, and notices when it is one that it has just come from.
pub(crate) fn move_peer(
    peer: &mut Peer,
    path: Path,
    endpoints: &mut HashMap<SocketAddr, u32>,
    events: &mut VecDeque<Event>,
    now: Instant,
) {
    let old = peer.path.replace(path);
    move_endpoint(endpoints, old, Some(path));
    if let Some(old) = old.filter(|_| peer.instance.is_none())
        && peer.flaps.get_or_insert_default().moved(old.remote, path.remote, now)
    {
        events.push_back(Event::Flapping { peer: peer.id, paths: [old, path] });
    }
}

/// Counts who is where: the handshakes of known endpoints go first.
pub(crate) fn move_endpoint(endpoints: &mut HashMap<SocketAddr, u32>, old: Option<Path>, new: Option<Path>) {
    if let Some(new) = new {
        *endpoints.entry(new.remote).or_default() += 1;
    }
    if let Some(old) = old
        && let std::collections::hash_map::Entry::Occupied(mut entry) = endpoints.entry(old.remote)
    {
        *entry.get_mut() -= 1;
        if *entry.get() == 0 {
            entry.remove();
        }
    }
}
