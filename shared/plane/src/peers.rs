//! The plane's side of each peer: its synthetic QUIC address, what its hellos told, its connection.
//!
//! The address is the only thing by which QUIC knows a peer, and no two peers, no two processes of one peer and no two
//! lives of one table slot ever share one. It must never be made from anything that a packet says.

use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use culvert_engine::{BootstrapId, Path, PeerId};
use culvert_model::id::InstanceId;
use tokio::sync::Notify;

use crate::congestion::Flows;
use crate::connection::Link;
use crate::hello::Greeting;
use crate::plane::Role;
use crate::quic::Key;
use crate::wrap::QUIC_PORT;

/// Former processes of a peer that are remembered, to know a clone when it comes back.
const REMEMBERED: usize = 4;
/// So many processes of one peer may follow each other in this time; a peer that claims more costs nothing more.
const CHANGES: u32 = 4;
const BURST: Duration = Duration::from_secs(1);

/// One peer.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) id: PeerId,
    pub(crate) bootstrap: Option<BootstrapId>,
    /// A stock WireGuard peer: no hello, no QUIC; its packets are the TUN plane's.
    pub(crate) stock: bool,
    /// Where inner packets to it go; none for one without an IPv6 address of its own.
    pub(crate) inner: Option<Ipv6Addr>,
    /// QUIC's remote address for the peer's present process.
    pub(crate) address: SocketAddr,
    /// Where the last datagram to it went; only a guess for the next one.
    pub(crate) path: Option<Path>,
    /// A session is live.
    pub(crate) live: bool,
    /// A handshake was asked for and has not ended in a session.
    pub(crate) asked: bool,
    /// The pre-shared key epoch of the newest session, for our hellos.
    pub(crate) epoch: Option<u32>,
    pub(crate) greeting: Greeting,
    pub(crate) link: Weak<Link>,
    /// What its connection's congestion control says.
    pub(crate) flows: Arc<Flows>,
    /// The one handshake that may be going on.
    pub(crate) handshake: Option<Key>,
    /// Inner packets sealed.
    pub(crate) sealed: u64,
    /// Wakes those who wait for this peer.
    pub(crate) changed: Arc<Notify>,
    /// Its endpoint moved, which is not told yet.
    pub(crate) moved: bool,
    former: Vec<InstanceId>,
    /// Since when, and how often, another process was met.
    met: Option<Instant>,
    changes: u32,
}

/// What the hello's instance id says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Instance {
    /// The same process as before.
    Same,
    /// The first hello of this peer.
    First,
    /// Another process: the peer restarted, or somebody copied its key.
    New,
    /// One that another process has displaced while that one is still here: two processes use one key.
    Displaced,
    /// Processes change faster than processes start: not listened to.
    TooSoon,
}

impl Peer {
    /// Tells which process speaks and, unless it is a displaced one, makes it the present one.
    pub(crate) fn meet(&mut self, instance: InstanceId, role: Role, now: Instant) -> Instance {
        let changes = self.greeting.instance.is_some_and(|known| known != instance);
        if changes {
            match self.met.filter(|met| now.saturating_duration_since(*met) < BURST) {
                Some(_) if self.changes >= CHANGES => return Instance::TooSoon,
                Some(_) => self.changes += 1,
                None => (self.met, self.changes) = (Some(now), 1),
            }
        }
        match self.greeting.instance {
            Some(known) if known == instance => Instance::Same,
            None => {
                self.greeting.instance = Some(instance);
                Instance::First
            }
            Some(_) if role == Role::Relay && self.former.contains(&instance) && self.connected() => {
                Instance::Displaced
            }
            Some(known) => {
                self.former.retain(|former| *former != instance);
                self.former.push(known);
                if self.former.len() > REMEMBERED {
                    self.former.remove(0);
                }
                self.greeting.instance = Some(instance);
                Instance::New
            }
        }
    }

    fn connected(&self) -> bool {
        self.link.upgrade().is_some_and(|link| !link.is_closed())
    }
}

/// The peers of one shard, by the engine's slots.
#[derive(Debug, Default)]
pub(crate) struct Peers {
    slots: Vec<Option<Box<Peer>>>,
    /// Counts addresses ever given.
    serial: u32,
}

impl Peers {
    pub(crate) fn insert(&mut self, id: PeerId, bootstrap: Option<BootstrapId>, inner: Option<Ipv6Addr>) -> &mut Peer {
        let address = self.next_address(id);
        let slot = id.slot() as usize;
        if self.slots.len() <= slot {
            self.slots.resize_with(slot + 1, || None);
        }
        let peer = Peer {
            id,
            bootstrap,
            stock: false,
            inner,
            address,
            path: None,
            live: false,
            asked: false,
            epoch: None,
            greeting: Greeting::default(),
            link: Weak::new(),
            flows: Arc::default(),
            handshake: None,
            sealed: 0,
            changed: Arc::default(),
            moved: false,
            former: Vec::new(),
            met: None,
            changes: 0,
        };
        self.slots[slot].insert(Box::new(peer))
    }

    pub(crate) fn remove(&mut self, id: PeerId) -> Option<Peer> {
        self.get(id)?;
        let peer = self.slots.get_mut(id.slot() as usize)?.take()?;
        Some(*peer)
    }

    pub(crate) fn get(&self, id: PeerId) -> Option<&Peer> {
        self.slots.get(id.slot() as usize)?.as_deref().filter(|peer| peer.id == id)
    }

    pub(crate) fn get_mut(&mut self, id: PeerId) -> Option<&mut Peer> {
        self.slots.get_mut(id.slot() as usize)?.as_deref_mut().filter(|peer| peer.id == id)
    }

    /// Whose present process has this synthetic address.
    pub(crate) fn at(&self, address: SocketAddr) -> Option<&Peer> {
        let SocketAddr::V6(v6) = address else { return None };
        let [.., a, b, c, d, _, _, _, _] = v6.ip().octets();
        let slot = u32::from_be_bytes([a, b, c, d]) as usize;
        self.slots.get(slot)?.as_deref().filter(|peer| peer.address == address)
    }

    /// Gives the peer another address: packets of its old connections lead nowhere from now on.
    pub(crate) fn readdress(&mut self, id: PeerId) {
        let address = self.next_address(id);
        if let Some(peer) = self.get_mut(id) {
            peer.address = address;
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Peer> {
        self.slots.iter().filter_map(|slot| slot.as_deref())
    }

    /// In 100::/64, which leads nowhere (RFC 6666): the table slot, and a number never used before.
    fn next_address(&mut self, id: PeerId) -> SocketAddr {
        self.serial = self.serial.wrapping_add(1);
        let host = (u64::from(id.slot()) << 32) | u64::from(self.serial);
        let ip = Ipv6Addr::from((0x0100_u128 << 112) | u128::from(host));
        SocketAddr::V6(SocketAddrV6::new(ip, QUIC_PORT, 0, 0))
    }
}

#[cfg(test)]
mod tests {
    use culvert_engine::{Config, Engine, HandshakeLimits, PeerConfig, Shard};
    use culvert_model::key::PrivateKey;

    use super::*;

    fn engine_peer(engine: &mut Engine, now: Instant) -> PeerId {
        let public_key = PrivateKey::generate().public_key();
        let (psks, allowed_ips) = (Vec::new(), Vec::new());
        let (path, persistent_keepalive) = (None, None);
        let peer = PeerConfig { public_key, static_index: 0, psks, allowed_ips, path, persistent_keepalive };
        engine.add_peer(peer, now).unwrap()
    }

    #[test]
    fn an_address_is_one_peers_one_process_and_never_comes_back() {
        let now = Instant::now();
        let (statics, handshakes) = (vec![PrivateKey::generate()], HandshakeLimits::default());
        let mut engine = Engine::new(Config { statics, shard: Shard::default(), handshakes, seed: None }, now);
        let (one, other) = (engine_peer(&mut engine, now), engine_peer(&mut engine, now));
        let mut peers = Peers::default();
        let first = peers.insert(one, None, None).address;
        let second = peers.insert(other, None, None).address;
        assert_ne!(first, second);
        assert_eq!(peers.at(first).map(|peer| peer.id), Some(one));
        assert_eq!(peers.at(second).map(|peer| peer.id), Some(other));
        peers.readdress(one);
        assert!(peers.at(first).is_none());
        // The slot gets another peer: neither of the old addresses leads to it.
        let moved = peers.get(one).unwrap().address;
        peers.remove(one).unwrap();
        engine.remove_peer(one);
        let next = engine_peer(&mut engine, now);
        assert_eq!(next.slot(), one.slot(), "the case that matters");
        peers.insert(next, None, None);
        assert!(peers.at(first).is_none() && peers.at(moved).is_none());
        assert!(peers.get(one).is_none() && peers.remove(one).is_none());
        assert!(peers.at("192.0.2.1:5645".parse().unwrap()).is_none());
        let far = Ipv6Addr::from((0x0100_u128 << 112) | (u128::from(u32::MAX) << 32));
        assert!(peers.at((far, QUIC_PORT).into()).is_none());
    }

    #[test]
    fn a_peer_that_claims_a_new_process_each_time_is_not_listened_to() {
        let now = Instant::now();
        let (statics, handshakes) = (vec![PrivateKey::generate()], HandshakeLimits::default());
        let mut engine = Engine::new(Config { statics, shard: Shard::default(), handshakes, seed: None }, now);
        let id = engine_peer(&mut engine, now);
        let mut peers = Peers::default();
        let peer = peers.insert(id, None, None);
        let mut meet = |at: Duration| peer.meet(InstanceId::new(), Role::Relay, now + at);
        assert_eq!(meet(Duration::ZERO), Instance::First);
        let claims: Vec<_> = (0..100).map(|_| meet(Duration::from_millis(1))).collect();
        assert_eq!(claims.iter().filter(|met| **met == Instance::New).count(), CHANGES as usize);
        assert_eq!(claims.last(), Some(&Instance::TooSoon));
        assert_eq!(meet(Duration::from_secs(2)), Instance::New);
    }
}
