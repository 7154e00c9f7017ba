//! What the plane's owner asks of the shard: peers, keys, handshakes, dials.
//!
//! It must never call into QUIC either: see [`Shard`].

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Instant;

use culvert_engine::{AddPeerError, BootstrapConfig, BootstrapId, Engine, Path, PeerConfig, PeerId, Unclaimed};
use culvert_model::address::{BOOTSTRAP_INNER, PREFIX, RELAY_INNER};
use ipnet::IpNet;
use tokio::sync::futures::OwnedNotified;

use super::{Closing, Shard};
use crate::connection::Ending;
use crate::crypto::PROTOCOL_VERSION;
use crate::plane::Role;
use crate::quic::Key;
use crate::shared::now;

/// How a dial stands.
pub(crate) enum Dial {
    /// Go on to QUIC at this synthetic address; the peer is at that outer one.
    Ready(SocketAddr, IpAddr),
    /// Something has to happen first: wait for the notice, then look again.
    Wait(OwnedNotified),
    Unknown,
    Version(u32),
    Displaced,
}

impl Shard {
    pub(crate) fn add_peer(&mut self, config: PeerConfig, now: Instant) -> Result<PeerId, AddPeerError> {
        let inner = match self.role {
            Role::Connector => Some(RELAY_INNER),
            Role::Relay => config.allowed_ips.iter().find_map(|net| match net.addr() {
                IpAddr::V6(address) if net.prefix_len() == 128 => Some(address),
                _ => None,
            }),
        };
        // All relays of a connector have one inner address, so nothing can be routed by it.
        let id = match self.role {
            Role::Connector => self.engine.0.add_unrouted_peer(config, now)?,
            Role::Relay => self.engine.0.add_peer(config, now)?,
        };
        self.peers.insert(id, None, inner);
        self.after(now);
        Ok(id)
    }

    pub(crate) fn add_stock_peer(&mut self, config: PeerConfig, now: Instant) -> Result<PeerId, AddPeerError> {
        if let Some(net) = config.allowed_ips.iter().find(|net| is_reserved(net)) {
            return Err(AddPeerError::Reserved { net: *net });
        }
        let id = self.engine.0.add_peer(config, now)?;
        // Without an inner address nothing of our own is ever said to it.
        self.peers.insert(id, None, None).stock = true;
        self.after(now);
        Ok(id)
    }

    pub(crate) fn add_bootstrap(&mut self, config: BootstrapConfig) -> Result<BootstrapId, AddPeerError> {
        self.engine.0.add_bootstrap(config)
    }

    pub(crate) fn remove_bootstrap(&mut self, bootstrap: BootstrapId, now: Instant) {
        let links = self.peers.iter().filter(|peer| peer.bootstrap == Some(bootstrap));
        let ids: Vec<_> = links.map(|peer| peer.id).collect();
        self.engine.0.remove_bootstrap(bootstrap);
        self.drain_engine(now);
        for id in ids {
            self.forget(id);
        }
        self.work.notify_one();
    }

    pub(crate) fn remove_peer(&mut self, id: PeerId) {
        self.engine.0.remove_peer(id);
        self.forget(id);
        self.work.notify_one();
    }

    /// Takes an initiation that another shard has found to be for a key of this one. `false`: too many wait.
    pub(crate) fn claim(&mut self, unclaimed: Unclaimed, now: Instant) -> bool {
        let claimed = self.engine.0.claim(unclaimed, now);
        self.work.notify_one();
        claimed
    }

    /// Initiations for keys that nobody here has: those of another shard, or nobody's.
    pub(crate) fn take_unclaimed(&mut self) -> Vec<Unclaimed> {
        std::iter::from_fn(|| self.engine.0.poll_unclaimed()).collect()
    }

    pub(crate) fn engine(&mut self) -> &mut Engine {
        &mut self.engine.0
    }

    /// Changes what the engine knows, and carries on what comes of it.
    pub(crate) fn change<T>(&mut self, change: impl FnOnce(&mut Engine, Instant) -> T) -> T {
        let now = now();
        let changed = change(&mut self.engine.0, now);
        self.drain_engine(now);
        self.after(now);
        changed
    }

    pub(crate) fn connect(&mut self, id: PeerId, path: Option<Path>, now: Instant) {
        if let Some(peer) = self.peers.get_mut(id) {
            peer.asked = true;
            if path.is_some() {
                peer.path = None;
            }
            self.engine.0.connect(id, path, now, &mut self.replies);
            self.drain_engine(now);
            self.after(now);
        }
    }

    /// Connector: how far the way to QUIC is; pushes it on where nothing moves.
    pub(crate) fn prepare_dial(&mut self, id: PeerId, now: Instant) -> Dial {
        let Some(peer) = self.peers.get_mut(id) else { return Dial::Unknown };
        let (changed, address) = (peer.changed.clone().notified_owned(), peer.address);
        if peer.greeting.displaced {
            // Told once; the next dial asks again.
            peer.greeting.stop();
            return Dial::Displaced;
        }
        if !peer.live {
            if !peer.asked {
                self.connect(id, None, now);
            }
            return Dial::Wait(changed);
        }
        if peer.greeting.is_ready(now) {
            let path = peer.path;
            let outer = path.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |path| path.remote.ip());
            return Dial::Ready(address, outer);
        }
        if let Some(theirs) = peer.greeting.version.filter(|version| *version != PROTOCOL_VERSION) {
            peer.greeting.stop();
            return Dial::Version(theirs);
        }
        if !peer.greeting.is_asking() {
            let mut flags = Vec::new();
            peer.greeting.start(now, &mut flags);
            self.say_all(id, &mut flags, now);
            self.work.notify_one();
        }
        Dial::Wait(changed)
    }

    /// Relay: whose QUIC handshake comes from this synthetic address, and where it is outside.
    pub(crate) fn admit(&self, address: SocketAddr) -> Option<(PeerId, IpAddr)> {
        let peer = self.peers.at(address)?;
        Some((peer.id, peer.path?.remote.ip()))
    }

    /// Relay: one handshake for each peer; a newer one ends the older.
    pub(crate) fn handshake_started(&mut self, id: PeerId, handshake: Key) {
        self.abandon_handshake(id);
        match self.peers.get_mut(id) {
            Some(peer) => peer.handshake = Some(handshake),
            None => self.close_later(Closing::Handshake(handshake)),
        }
    }

    /// Everything of the plane about a peer that is gone.
    pub(super) fn forget(&mut self, id: PeerId) {
        self.abandon_handshake(id);
        self.reassembly.forget(id);
        self.refuse_parked(id);
        if let Some(peer) = self.peers.remove(id) {
            self.closing.extend(peer.link.upgrade().map(|link| Closing::Link(link, Ending::Gone)));
            peer.changed.notify_waiters();
            self.work.notify_one();
        }
    }

    pub(crate) fn abandon_handshake(&mut self, id: PeerId) {
        if let Some(handshake) = self.peers.get_mut(id).and_then(|peer| peer.handshake.take()) {
            self.close_later(Closing::Handshake(handshake));
        }
    }

    fn close_later(&mut self, closing: Closing) {
        self.closing.push(closing);
        self.work.notify_one();
    }
}

/// A stock peer may have single addresses behind our prefix, but neither ours nor whole ranges of it: connectors live there.
fn is_reserved(net: &IpNet) -> bool {
    match net {
        IpNet::V4(_) => false,
        IpNet::V6(net) if net.prefix_len() == 128 => [RELAY_INNER, BOOTSTRAP_INNER].contains(&net.addr()),
        IpNet::V6(net) => PREFIX.contains(net) || net.contains(&PREFIX),
    }
}
