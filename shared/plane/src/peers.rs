//! The plane's side of each peer: its synthetic QUIC address, what its hellos told, its connection.
//!
//! The address is the only thing by which QUIC knows a peer, and no two peers, no two processes of one peer and no two
//! lives of one table slot ever share one. It must never be made from anything that a packet says.

use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::sync::{Arc, Weak};

use culvert_engine::{BootstrapId, Path, PeerId};
use culvert_model::id::InstanceId;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use crate::connection::Link;
use crate::hello::Greeting;
use crate::wrap::QUIC_PORT;

/// Former processes of a peer that are remembered, to know a clone when it comes back.
const REMEMBERED: usize = 4;

/// One peer.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) id: PeerId,
    pub(crate) bootstrap: Option<BootstrapId>,
    /// Where inner packets to it go; none for a stock peer without an IPv6 address of its own.
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
    /// The one handshake that may be going on.
    pub(crate) handshake: Option<AbortHandle>,
    /// Inner packets sealed.
    pub(crate) sealed: u64,
    /// Wakes those who wait for this peer.
    pub(crate) changed: Arc<Notify>,
    former: Vec<InstanceId>,
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
}

impl Peer {
    /// Tells which process speaks and, unless it is a displaced one, makes it the present one.
    pub(crate) fn meet(&mut self, instance: InstanceId) -> Instance {
        match self.greeting.instance {
            Some(known) if known == instance => Instance::Same,
            None => {
                self.greeting.instance = Some(instance);
                Instance::First
            }
            Some(_) if self.former.contains(&instance) && self.connected() => Instance::Displaced,
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
            inner,
            address,
            path: None,
            live: false,
            asked: false,
            epoch: None,
            greeting: Greeting::default(),
            link: Weak::new(),
            handshake: None,
            sealed: 0,
            changed: Arc::default(),
            former: Vec::new(),
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

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Peer> {
        self.slots.iter_mut().filter_map(|slot| slot.as_deref_mut())
    }

    /// In 100::/64, which leads nowhere (RFC 6666): the table slot, and a number never used before.
    fn next_address(&mut self, id: PeerId) -> SocketAddr {
        self.serial = self.serial.wrapping_add(1);
        let host = (u64::from(id.slot()) << 32) | u64::from(self.serial);
        let ip = Ipv6Addr::from((0x0100_u128 << 112) | u128::from(host));
        SocketAddr::V6(SocketAddrV6::new(ip, QUIC_PORT, 0, 0))
    }
}
