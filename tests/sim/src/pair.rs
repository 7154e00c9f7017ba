//! The ordinary scene: a relay and a connector that know each other.
//!
//! Must never know more of the engine than its owner would.

use std::net::Ipv6Addr;
use std::num::NonZeroU16;
use std::ops::{Deref, DerefMut};
use std::time::Duration;

use culvert_engine::{Event, HandshakeLimits, Path, PeerConfig, PeerId, PskEpoch};
use culvert_model::key::{PrivateKey, Psk};

use crate::world::{HostId, World};

/// A world with a relay (host 0) and a connector (host 1).
pub struct Pair {
    pub world: World,
    pub relay_key: PrivateKey,
    pub connector_key: PrivateKey,
    /// The connector, at the relay.
    pub at_relay: PeerId,
    /// The relay, at the connector.
    pub at_connector: PeerId,
    pub keepalive: Option<u16>,
    pub psks: [Vec<u32>; 2],
}

/// An IPv6 packet with a number in it, so that packets can be told apart.
pub fn inner_packet(source: &str, number: u32) -> Vec<u8> {
    let source: Ipv6Addr = source.parse().unwrap();
    let mut packet = vec![0x60, 0, 0, 0, 0, 4, 59, 64];
    packet.extend_from_slice(&source.octets());
    packet.extend_from_slice(&Ipv6Addr::LOCALHOST.octets());
    packet.extend_from_slice(&number.to_be_bytes());
    packet
}

impl Pair {
    pub const RELAY: HostId = 0;
    pub const CONNECTOR: HostId = 1;
    pub const RELAY_INNER: &str = "fd43:554c:5645::1";
    pub const CONNECTOR_INNER: &str = "fd43:554c:5645::77";

    /// Two hosts that have not spoken yet. The connector knows where the relay is, the relay knows nothing of it.
    pub fn new(seed: u64) -> Self {
        Self::with(seed, None, [Vec::new(), Vec::new()], HandshakeLimits::default())
    }

    pub fn with(seed: u64, keepalive: Option<u16>, psks: [Vec<u32>; 2], limits: HandshakeLimits) -> Self {
        let mut world = World::new(seed);
        let (relay_key, connector_key) = (PrivateKey::generate(), PrivateKey::generate());
        world.add_host("192.0.2.1:51820", vec![relay_key.clone()], limits);
        world.add_host("198.51.100.7:40000", vec![connector_key.clone()], HandshakeLimits::default());
        let nobody = {
            // Names are overwritten below: a PeerId can only come from an engine.
            let now = world.now();
            let mut config = peer(&PrivateKey::from_bytes([9; 32]), "fd00::9", None, None, &[]);
            config.allowed_ips.clear();
            let id = world.engine(Self::RELAY).add_unrouted_peer(config, now).unwrap();
            world.engine(Self::RELAY).remove_peer(id);
            id
        };
        let mut pair =
            Self { world, relay_key, connector_key, at_relay: nobody, at_connector: nobody, keepalive, psks };
        pair.introduce(Self::RELAY, None);
        pair.introduce(Self::CONNECTOR, Some(pair.world.path_to(Self::RELAY)));
        pair
    }

    /// Two hosts with a live session.
    pub fn connected(seed: u64) -> Self {
        let mut pair = Self::new(seed);
        pair.come_up();
        pair
    }

    /// Lets the connector connect, and waits for both ends to have a session.
    pub fn come_up(&mut self) {
        let peer = self.at_connector;
        self.world.connect(Self::CONNECTOR, peer, None);
        let up = self.world.run_until(Duration::from_secs(20), |world| {
            [Self::RELAY, Self::CONNECTOR].iter().all(|host| world.events(*host).iter().any(is_up))
        });
        assert!(up.is_some(), "no session in 20 s");
        self.world.clear_events(Self::RELAY);
        self.world.clear_events(Self::CONNECTOR);
    }

    /// Tells one end of the other, as after a start.
    pub fn introduce(&mut self, host: HostId, path: Option<Path>) {
        let now = self.world.now();
        let (key, inner) = if host == Self::RELAY {
            (&self.connector_key, Self::CONNECTOR_INNER)
        } else {
            (&self.relay_key, Self::RELAY_INNER)
        };
        let config = peer(key, inner, path, self.keepalive, &self.psks[host]);
        let id = self.world.engine(host).add_peer(config, now).unwrap();
        *if host == Self::RELAY { &mut self.at_relay } else { &mut self.at_connector } = id;
    }

    /// Kills one end's process and starts it again with a clock that is wrong by so many seconds.
    pub fn restart(&mut self, host: HostId, path: Option<Path>, clock_error: i64) {
        let key = if host == Self::RELAY { &self.relay_key } else { &self.connector_key };
        let statics = vec![key.clone()];
        self.world.restart(host, statics, clock_error);
        self.introduce(host, path);
    }

    /// Sends one packet from an end; false when it has no session.
    pub fn say(&mut self, from: HostId, number: u32) -> bool {
        let (peer, source) = if from == Self::RELAY {
            (self.at_relay, Self::RELAY_INNER)
        } else {
            (self.at_connector, Self::CONNECTOR_INNER)
        };
        self.world.send(from, peer, &inner_packet(source, number))
    }

    /// The numbers that an end has heard since it was last asked.
    pub fn heard(&mut self, by: HostId) -> Vec<u32> {
        let number = |(_, packet): (PeerId, Vec<u8>)| packet.last_chunk().map_or(u32::MAX, |n| u32::from_be_bytes(*n));
        self.world.take_packets(by).into_iter().map(number).collect()
    }

    /// Both ends say something and hear each other at once.
    pub fn assert_talking(&mut self) {
        self.heard(Self::RELAY);
        self.heard(Self::CONNECTOR);
        assert!(self.say(Self::CONNECTOR, 1), "the connector has no session");
        self.world.advance(Duration::from_millis(200));
        assert!(self.say(Self::RELAY, 2), "the relay has no session");
        self.world.advance(Duration::from_millis(200));
        assert_eq!((self.heard(Self::RELAY), self.heard(Self::CONNECTOR)), (vec![1], vec![2]));
    }

    /// Has this end reported a session since its events were cleared?
    pub fn is_up(world: &World, host: HostId) -> bool {
        world.events(host).iter().any(is_up)
    }

    pub fn psk(epoch: u32) -> PskEpoch {
        PskEpoch { epoch, psk: Psk::from_bytes([epoch as u8 + 1; 32]) }
    }
}

impl Deref for Pair {
    type Target = World;

    fn deref(&self) -> &World {
        &self.world
    }
}

impl DerefMut for Pair {
    fn deref_mut(&mut self) -> &mut World {
        &mut self.world
    }
}

fn is_up((_, event): &(Duration, Event)) -> bool {
    matches!(event, Event::SessionUp { .. })
}

fn peer(key: &PrivateKey, inner: &str, path: Option<Path>, keepalive: Option<u16>, psks: &[u32]) -> PeerConfig {
    PeerConfig {
        public_key: key.public_key(),
        static_index: 0,
        psks: psks.iter().map(|epoch| Pair::psk(*epoch)).collect(),
        allowed_ips: vec![format!("{inner}/128").parse().unwrap()],
        path,
        persistent_keepalive: keepalive.and_then(NonZeroU16::new),
    }
}
