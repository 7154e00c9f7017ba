//! What the owner tells the engine: keys, peers, limits, and the names it gets back for them.
//!
//! Must never hold state that changes with packets.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;

use culvert_model::key::{PrivateKey, Psk, PublicKey};
use ipnet::IpNet;

/// How an [`Engine`](crate::Engine) is made.
#[derive(Clone, Debug)]
pub struct Config {
    /// Our own static keys, newest first. Several of them live on one port (wire.md §3).
    pub statics: Vec<PrivateKey>,
    /// Which part of the session index space is ours.
    pub shard: Shard,
    /// When cookies are demanded and how much may wait.
    pub handshakes: HandshakeLimits,
    /// Makes index bases and jitter repeatable in a simulation. `None` outside of one.
    pub seed: Option<u64>,
}

/// The top bits of the session indices that one shard draws (wire.md §5).
#[derive(Copy, Clone, Eq, PartialEq, Debug, Default)]
pub struct Shard {
    /// This shard's number, below 2^`bits`.
    pub number: u8,
    /// How many top bits hold it, 0..=8. 0: one shard alone.
    pub bits: u8,
}

impl Shard {
    /// So many top bits tell `shards` shards apart, 1..=256 of them.
    pub const fn bits_for(shards: usize) -> u8 {
        let last = if shards > 256 { 255 } else { shards.saturating_sub(1) };
        (usize::BITS - last.leading_zeros()) as u8
    }

    /// Tells which shard drew the receiver index of a data packet, response or cookie reply.
    ///
    /// `None` for an initiation, which any shard may answer, for what is too short, and when `bits` is 0.
    pub fn of_datagram(datagram: &[u8], bits: u8) -> Option<u8> {
        let at = match (datagram.first()?, bits) {
            (_, 0) => return None,
            (2, _) => 8,
            (3 | 4, _) => 4,
            _ => return None,
        };
        let index = u32::from_le_bytes(datagram.get(at..at + 4)?.try_into().ok()?);
        u8::try_from(index >> (32 - u32::from(bits.min(8)))).ok()
    }
}

/// Bounds on handshake work.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct HandshakeLimits {
    /// Handshake messages with a right mac1 in one second above which cookies are demanded.
    pub cookies_above_per_second: u32,
    /// Messages with a right cookie taken from one address in one second while cookies are demanded.
    pub per_address_per_second: u32,
    /// Messages that may wait for [`Engine::handle_handshakes`](crate::Engine::handle_handshakes), in each of two
    /// queues: those from known endpoints, and the rest.
    pub queue: usize,
}

impl Default for HandshakeLimits {
    fn default() -> Self {
        Self { cookies_above_per_second: 1000, per_address_per_second: 500, queue: 4096 }
    }
}

/// Names one peer of one process. A removed peer's name is never given again.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Ord, PartialOrd, Debug)]
pub struct PeerId {
    pub(crate) shard: u8,
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

impl PeerId {
    /// The number of the shard whose engine has it.
    pub const fn shard(self) -> u8 {
        self.shard
    }

    /// The place in the engine's table; reused after the peer is gone.
    pub const fn slot(self) -> u32 {
        self.slot
    }

    /// Tells apart the peers that used the same slot one after the other.
    pub const fn generation(self) -> u32 {
        self.generation
    }
}

/// Names one bootstrap key of one engine. A removed key's name is never given again.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Ord, PartialOrd, Debug)]
pub struct BootstrapId(pub(crate) u32);

/// Whose a static key is.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Holder {
    /// A peer's.
    Peer(PeerId),
    /// That of a bootstrap key.
    Bootstrap(BootstrapId),
}

/// A way between two hosts: where the peer is, and from which of our addresses and sockets we speak to it (wire.md §2).
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
pub struct Path {
    /// The peer's address and port.
    pub remote: SocketAddr,
    /// Our address that it speaks to; `None` lets the system choose.
    pub local: Option<IpAddr>,
    /// Which of our sockets, as the owner numbers them.
    pub socket: u8,
}

/// A pre-shared key and its number in the line of keys that one peer gets.
#[derive(Clone, Debug)]
pub struct PskEpoch {
    /// Counts up by one at each rotation; its parity travels in our session indices (wire.md §3).
    pub epoch: u32,
    /// The key.
    pub psk: Psk,
}

/// One peer that we know by its static key.
#[derive(Clone, Debug)]
pub struct PeerConfig {
    /// The peer's static key.
    pub public_key: PublicKey,
    /// Which of our own keys we initiate with until the peer confirms another.
    pub static_index: usize,
    /// No, one or two pre-shared keys, newest last; two differ in parity.
    pub psks: Vec<PskEpoch>,
    /// The inner addresses that the peer may send from and that are routed to it.
    pub allowed_ips: Vec<IpNet>,
    /// The last known endpoint.
    pub path: Option<Path>,
    /// Seconds of silence after which an empty packet keeps the way open; also keeps a session up for ever.
    pub persistent_keepalive: Option<NonZeroU16>,
}

/// One more static key of a peer that has one (wire.md §3): a rotation at either end is two of them for a while.
#[derive(Clone, Debug)]
pub struct PeerKey {
    /// The peer's static key.
    pub public_key: PublicKey,
    /// Which of our own keys we initiate with under it until the peer confirms another.
    pub static_index: usize,
    /// No, one or two pre-shared keys, newest last; two differ in parity.
    pub psks: Vec<PskEpoch>,
}

/// A key that many joiners share (wire.md §3).
#[derive(Clone, Debug)]
pub struct BootstrapConfig {
    /// The static key that all holders of one token derive from it.
    pub public_key: PublicKey,
    /// Which of our own keys the instances initiate with; they answer under any.
    pub static_index: usize,
    /// The pre-shared key derived from the token.
    pub psk: Psk,
    /// The inner addresses that an instance may send from. Never routed.
    pub allowed_ips: Vec<IpNet>,
}

/// Why a peer or a bootstrap key was not added. Nothing has changed then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddPeerError {
    /// Another peer has this static key under the same key of ours.
    #[error("the public key belongs to another peer")]
    KnownKey(PeerId),
    /// A bootstrap key with these bytes exists.
    #[error("the public key belongs to a bootstrap key")]
    KnownBootstrap(BootstrapId),
    /// Addresses of two peers overlap.
    #[error("allowed addresses {net} overlap another peer's")]
    Overlap {
        /// The network that was asked for.
        net: IpNet,
        /// The peer that has it, or part of it.
        with: PeerId,
    },
    /// The network holds addresses that are ours to give: the relay's own or its connectors'.
    #[error("allowed addresses {net} hold inner addresses of the relay or its connectors")]
    Reserved {
        /// The network that was asked for.
        net: IpNet,
    },
    /// The engine has no own static key of that number.
    #[error("there is no own key of that number")]
    BadStatic,
    /// More than two pre-shared keys, or two of the same parity.
    #[error("at most two pre-shared keys, of different parity, newest last")]
    BadPsks,
    /// The peer that was to get another key is gone.
    #[error("there is no such peer")]
    UnknownPeer,
    /// No more peers fit this shard's index space.
    #[error("the table of peers is full")]
    Full,
}

/// Why a key was not taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The peer is gone.
    #[error("there is no such peer")]
    UnknownPeer,
    /// It is not there, or no longer.
    #[error("there is no such key")]
    UnknownKey,
    /// It is the only one.
    #[error("it is the last key")]
    Last,
}

/// Why the pre-shared keys of a peer were not changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PskError {
    /// The peer is gone.
    #[error("there is no such peer")]
    UnknownPeer,
    /// The peer has no such static key.
    #[error("the peer has no such key")]
    UnknownKey,
    /// More than two pre-shared keys, or two of the same parity.
    #[error("at most two pre-shared keys, of different parity, newest last")]
    BadPsks,
}
