//! The bootstrap class: many joiners with one key, and the bounds of wire.md §3. And what many peers cost.

use std::time::Duration;

use culvert_engine::{BootstrapConfig, BootstrapId, DropReason, Event, HandshakeLimits, PeerConfig, PeerId, PskEpoch};
use culvert_model::key::{PrivateKey, Psk};
use culvert_sim::{Kind, World, inner_packet};

const RELAY: usize = 0;
const INNER: &str = "fd43:554c:5645::2";
const RELAY_INNER: &str = "fd43:554c:5645::1";

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

struct Scene {
    world: World,
    relay_key: PrivateKey,
    token: PrivateKey,
    bootstrap: BootstrapId,
}

impl Scene {
    fn new(seed: u64) -> Self {
        let mut world = World::new(seed);
        let (relay_key, token) = (PrivateKey::generate(), PrivateKey::generate());
        world.add_host("192.0.2.1:51820", vec![relay_key.clone()], HandshakeLimits::default());
        let bootstrap = world
            .engine(RELAY)
            .add_bootstrap(BootstrapConfig {
                public_key: token.public_key(),
                static_index: 0,
                psk: Psk::from_bytes([7; 32]),
                allowed_ips: vec![format!("{INNER}/128").parse().unwrap()],
            })
            .unwrap();
        Self { world, relay_key, token, bootstrap }
    }

    /// Adds a joiner, all behind one address.
    fn joiner(&mut self, port: u16, psk: u8) -> (usize, PeerId) {
        let address = format!("198.51.100.7:{port}");
        let host = self.world.add_host(&address, vec![self.token.clone()], HandshakeLimits::default());
        let (now, relay) = (self.world.now(), self.world.path_to(RELAY));
        let config = PeerConfig {
            public_key: self.relay_key.public_key(),
            static_index: 0,
            psks: vec![PskEpoch { epoch: 0, psk: Psk::from_bytes([psk; 32]) }],
            allowed_ips: vec![format!("{RELAY_INNER}/128").parse().unwrap()],
            path: Some(relay),
            persistent_keepalive: None,
        };
        let peer = self.world.engine(host).add_peer(config, now).unwrap();
        (host, peer)
    }

    fn ups(&self) -> Vec<PeerId> {
        let up = |event: &Event| match event {
            Event::SessionUp { peer, bootstrap, .. } if *bootstrap == Some(self.bootstrap) => Some(*peer),
            _ => None,
        };
        self.world.events(RELAY).iter().filter_map(|(_, event)| up(event)).collect()
    }

    fn gone(&self) -> usize {
        self.world.events(RELAY).iter().filter(|(_, event)| matches!(event, Event::PeerGone { .. })).count()
    }
}

#[test]
fn joiners_with_one_key_from_one_address_at_one_instant_each_get_their_own_session() {
    let mut scene = Scene::new(1);
    let joiners: Vec<_> = (0..30).map(|n| scene.joiner(40_000 + n, 7)).collect();
    for (host, peer) in &joiners {
        scene.world.connect(*host, *peer, None);
    }
    scene.world.advance(ms(500));
    let ups = scene.ups();
    assert_eq!(ups.len(), 30);
    for (number, (host, peer)) in joiners.iter().enumerate() {
        assert!(scene.world.send(*host, *peer, &inner_packet(INNER, number as u32)));
    }
    scene.world.advance(ms(100));
    let heard = scene.world.take_packets(RELAY);
    assert_eq!(heard.len(), 30);
    for (peer, packet) in heard {
        let number = u32::from_be_bytes(*packet.last_chunk().unwrap());
        assert!(scene.world.send(RELAY, peer, &inner_packet(RELAY_INNER, number)));
    }
    scene.world.advance(ms(100));
    for (number, (host, _)) in joiners.iter().enumerate() {
        let heard = scene.world.take_packets(*host);
        assert_eq!(heard[0].1, inner_packet(RELAY_INNER, number as u32));
        assert_eq!(heard.len(), 1);
    }
    assert_eq!(scene.world.engine(RELAY).route(INNER.parse().unwrap()), None);
}

#[test]
fn an_instance_ends_after_thirty_seconds_and_says_so_once() {
    let mut scene = Scene::new(2);
    let (host, peer) = scene.joiner(40_000, 7);
    scene.world.connect(host, peer, None);
    scene.world.advance(ms(29_900));
    assert_eq!((scene.ups().len(), scene.gone()), (1, 0));
    scene.world.advance(secs(1));
    assert_eq!(scene.gone(), 1);
    assert!(scene.world.send(host, peer, &inner_packet(INNER, 1)));
    scene.world.advance(secs(1));
    assert!(scene.world.take_packets(RELAY).is_empty());
    assert_eq!(scene.world.engine(RELAY).stats().peers, 0);
    // It may try again.
    scene.world.connect(host, peer, None);
    scene.world.advance(secs(1));
    assert_eq!(scene.ups().len(), 2);
}

#[test]
fn an_instance_moves_no_more_than_its_bytes() {
    let mut scene = Scene::new(3);
    let (host, peer) = scene.joiner(40_000, 7);
    scene.world.connect(host, peer, None);
    scene.world.advance(ms(200));
    let mut packet = inner_packet(INNER, 1);
    packet.resize(1000, 0);
    packet[4..6].copy_from_slice(&960_u16.to_be_bytes());
    for _ in 0..100 {
        scene.world.send(host, peer, &packet);
    }
    scene.world.advance(ms(200));
    assert_eq!(scene.world.take_packets(RELAY).len(), 65);
    assert_eq!(scene.world.engine(RELAY).stats().dropped(DropReason::BootstrapLimit), 35);
    let instance = scene.ups()[0];
    assert!(!scene.world.send(RELAY, instance, &packet));
}

#[test]
fn what_never_confirms_makes_room_for_those_who_may_join() {
    // Holders of the token's public half cannot do this; a recorded initiation replayed from many sources can.
    let mut scene = Scene::new(4);
    let (host, peer) = scene.joiner(40_000, 7);
    scene.world.connect(host, peer, None);
    let initiation = scene.world.wire[0].bytes.clone();
    let relay = scene.world.address(RELAY);
    scene.world.advance(ms(200));
    for round in 0..2_u16 {
        for n in 0..90 {
            scene.world.inject(format!("203.0.113.{n}:{}", 1000 + round).parse().unwrap(), relay, initiation.clone());
        }
        scene.world.advance(secs(2));
        let stats = scene.world.engine(RELAY).stats();
        assert_eq!((stats.bootstraps, stats.live), (33, 1), "32 unconfirmed at most, and the confirmed one stays");
    }
    let (late, late_peer) = scene.joiner(40_001, 7);
    scene.world.connect(late, late_peer, None);
    scene.world.advance(ms(200));
    assert_eq!((scene.ups().len(), scene.gone()), (2, 0));
}

#[test]
fn replays_under_one_key_get_as_many_answers_as_may_be_unconfirmed_and_the_rest_wait() {
    let mut scene = Scene::new(5);
    let (host, peer) = scene.joiner(40_000, 7);
    scene.world.connect(host, peer, None);
    let initiation = scene.world.wire[0].bytes.clone();
    scene.world.advance(secs(5));
    let before = scene.world.sent(RELAY, Kind::Response);
    let relay = scene.world.address(RELAY);
    for port in 0..300 {
        scene.world.inject(format!("203.0.113.9:{}", 1000 + port).parse().unwrap(), relay, initiation.clone());
    }
    scene.world.advance(ms(21));
    assert_eq!(scene.world.sent(RELAY, Kind::Response) - before, 32);
    scene.world.advance(secs(10));
    let answered = scene.world.sent(RELAY, Kind::Response) - before;
    assert!((64..=32 * 11).contains(&answered), "{answered}: 32 more each half second, none after five seconds");
}

#[test]
fn two_hundred_joiners_at_one_instant_are_all_in_within_three_seconds() {
    let mut scene = Scene::new(8);
    let joiners: Vec<_> = (0..200).map(|n| scene.joiner(40_000 + n, 7)).collect();
    for (host, peer) in &joiners {
        scene.world.connect(*host, *peer, None);
    }
    scene.world.advance(secs(3));
    assert_eq!(scene.ups().len(), 200);
    assert_eq!(scene.world.engine(RELAY).stats().dropped(DropReason::BootstrapLimit), 0);
}

#[test]
fn a_wrong_secret_gets_no_session_and_a_removed_key_gets_silence() {
    let mut scene = Scene::new(6);
    let (wrong, at_wrong) = scene.joiner(40_000, 8);
    let (right, at_right) = scene.joiner(40_001, 7);
    scene.world.connect(wrong, at_wrong, None);
    scene.world.connect(right, at_right, None);
    scene.world.advance(secs(4));
    assert_eq!(scene.ups().len(), 1);
    let bootstrap = scene.bootstrap;
    scene.world.engine(RELAY).remove_bootstrap(bootstrap);
    let before = scene.world.wire.iter().filter(|sent| sent.by == Some(RELAY)).count();
    assert!(scene.world.send(right, at_right, &inner_packet(INNER, 1)));
    scene.world.connect(right, at_right, None);
    scene.world.advance(secs(20));
    assert_eq!(scene.gone(), 1);
    assert_eq!(scene.world.wire.iter().filter(|sent| sent.by == Some(RELAY)).count(), before);
    assert!(scene.world.take_packets(RELAY).is_empty());
}

#[test]
fn ten_thousand_known_peers_that_are_silent_cost_no_call_at_all() {
    let mut scene = Scene::new(7);
    let now = scene.world.now();
    let key = |n: u32| {
        let mut bytes = [1; 32];
        bytes[..4].copy_from_slice(&n.to_le_bytes());
        culvert_model::key::PublicKey::from_bytes(bytes)
    };
    for n in 0..10_000_u32 {
        let config = PeerConfig {
            public_key: key(n),
            static_index: 0,
            psks: Vec::new(),
            allowed_ips: vec![format!("fd43:554c:5645:1::{n:x}/128").parse().unwrap()],
            path: None,
            persistent_keepalive: None,
        };
        let id = scene.world.engine(RELAY).add_peer(config, now).unwrap();
        assert_eq!(scene.world.engine(RELAY).route(format!("fd43:554c:5645:1::{n:x}").parse().unwrap()), Some(id));
    }
    scene.world.advance(secs(600));
    assert_eq!(scene.world.timer_calls(RELAY), 0);
}

#[test]
fn a_thousand_live_and_idle_peers_cost_a_few_calls_a_second() {
    let mut world = World::new(8);
    let relay_key = PrivateKey::generate();
    let limits = HandshakeLimits { cookies_above_per_second: 100_000, queue: 100_000, ..HandshakeLimits::default() };
    world.add_host("192.0.2.1:51820", vec![relay_key.clone()], limits);
    let relay = world.path_to(RELAY);
    let now = world.now();
    for n in 0..1000_u32 {
        let key = PrivateKey::generate();
        let config = |public_key, inner: String, path| PeerConfig {
            public_key,
            static_index: 0,
            psks: Vec::new(),
            allowed_ips: vec![format!("{inner}/128").parse().unwrap()],
            path,
            persistent_keepalive: None,
        };
        let member = config(key.public_key(), format!("fd43:554c:5645:1::{n:x}"), None);
        world.engine(RELAY).add_peer(member, now).unwrap();
        let host = world.add_host(&format!("198.51.{}.{}:7", n / 250, n % 250), vec![key], HandshakeLimits::default());
        let config = config(relay_key.public_key(), RELAY_INNER.into(), Some(relay));
        let peer = world.engine(host).add_peer(config, now).unwrap();
        world.connect(host, peer, None);
    }
    world.advance(secs(2));
    assert_eq!(world.engine(RELAY).stats().live, 1000);
    let before = world.timer_calls(RELAY);
    world.advance(secs(60));
    let calls = world.timer_calls(RELAY) - before;
    // 1,000 looks each 8 to 10 s, 64 at most in a call, on a grid of 250 ms.
    assert!(calls <= 60 * 8, "{calls}");
}
