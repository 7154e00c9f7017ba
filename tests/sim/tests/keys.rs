//! Static keys that change while packets flow, at either end; keys that are taken away; keys in two places (wire.md §3).

use std::time::Duration;

use culvert_engine::{BootstrapConfig, DropReason, Event, HandshakeLimits, KeyError, PeerConfig, PeerId, PeerKey};
use culvert_model::key::{PrivateKey, Psk, PublicKey};
use culvert_sim::{Kind, Link, Pair, inner_packet, kind_of};

const RELAY: usize = Pair::RELAY;
const CONNECTOR: usize = Pair::CONNECTOR;

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn key(public_key: PublicKey, static_index: usize, epochs: &[u32]) -> PeerKey {
    PeerKey { public_key, static_index, psks: epochs.iter().map(|epoch| Pair::psk(*epoch)).collect() }
}

/// Both ends speak every 50 ms for so long; how many each said. Fails when an end has no session.
fn talk(pair: &mut Pair, for_secs: u32, number: &mut u32) -> usize {
    for _ in 0..for_secs * 20 {
        assert!(pair.say(CONNECTOR, *number) && pair.say(RELAY, *number), "no session at {:?}", pair.time());
        *number += 1;
        pair.advance(ms(50));
    }
    for_secs as usize * 20
}

fn static_of(pair: &mut Pair, host: usize) -> (PublicKey, usize) {
    let peer = if host == RELAY { pair.at_relay } else { pair.at_connector };
    let stats = pair.engine(host).peer_stats(peer).unwrap();
    (stats.public_key, stats.static_index)
}

fn promotions(pair: &Pair, host: usize) -> Vec<PublicKey> {
    let promoted = |(_, event): &(Duration, Event)| match event {
        Event::KeyPromoted { public_key, .. } => Some(*public_key),
        _ => None,
    };
    pair.events(host).iter().filter_map(promoted).collect()
}

/// Tells both ends of another key of the relay, as `key rotate` and the message about it do.
fn rotate_relay(pair: &mut Pair, epochs: &[u32]) -> (PrivateKey, usize) {
    let new = PrivateKey::generate();
    let index = pair.engine(RELAY).add_static(&new);
    let (now, peer) = (pair.now(), pair.at_connector);
    pair.engine(CONNECTOR).add_key(peer, key(new.public_key(), 0, epochs), true, now).unwrap();
    (new, index)
}

#[test]
fn the_relays_key_is_rotated_under_load_and_no_packet_is_lost() {
    for seed in 0..5 {
        let mut pair = Pair::with(seed, None, [vec![4], vec![4]], HandshakeLimits::default());
        // Reorder, but lose nothing: what is missing at the end was lost by the change.
        pair.link = Link { jitter: ms(30), ..Link::default() };
        pair.come_up();
        let mut number = 0;
        let mut said = talk(&mut pair, 5, &mut number);
        let (new, index) = rotate_relay(&mut pair, &[4]);
        let peer = pair.at_connector;
        pair.connect(CONNECTOR, peer, None);
        said += talk(&mut pair, 5, &mut number);
        assert_eq!(static_of(&mut pair, CONNECTOR), (new.public_key(), 0));
        assert_eq!(static_of(&mut pair, RELAY), (pair.connector_key.public_key(), index));
        assert_eq!(promotions(&pair, CONNECTOR), [new.public_key()]);
        // Past two rekeys, then the grace is over at both ends.
        said += talk(&mut pair, 250, &mut number);
        let (now, old) = (pair.now(), pair.relay_key.public_key());
        pair.engine(CONNECTOR).remove_key(peer, &old, None, now).unwrap();
        pair.engine(RELAY).remove_static(0, index, now).unwrap();
        said += talk(&mut pair, 130, &mut number);
        pair.advance(secs(1));
        assert_eq!((pair.heard(RELAY).len(), pair.heard(CONNECTOR).len()), (said, said), "seed {seed}");
        assert!(pair.events(RELAY).iter().all(|(_, event)| !matches!(event, Event::SessionLost { .. })));
    }
}

#[test]
fn a_rotation_survives_loss_and_a_roaming_connector() {
    for seed in 10..20 {
        let mut pair = Pair::connected(seed);
        let (new, _) = rotate_relay(&mut pair, &[]);
        pair.link = Link { loss: 0.3, jitter: ms(40), ..Link::default() };
        let peer = pair.at_connector;
        pair.connect(CONNECTOR, peer, None);
        pair.move_host(CONNECTOR, "198.51.100.9:50000");
        for number in 0..400 {
            assert!(pair.say(CONNECTOR, number), "the old session carries data until the new one does");
            pair.advance(ms(500));
        }
        assert_eq!(static_of(&mut pair, CONNECTOR).0, new.public_key(), "seed {seed}");
        pair.link = Link::default();
        pair.advance(secs(1));
        pair.assert_talking();
    }
}

#[test]
fn an_end_that_has_not_heard_of_the_rotation_is_answered_in_the_grace_and_gets_silence_after_it() {
    let mut pair = Pair::new(3);
    let new = PrivateKey::generate();
    let index = pair.engine(RELAY).add_static(&new);
    assert_eq!(pair.engine(RELAY).add_static(&new), index, "the same key is the same");
    pair.come_up();
    pair.assert_talking();
    assert_eq!(static_of(&mut pair, RELAY).1, 0);
    let now = pair.now();
    pair.engine(RELAY).remove_static(0, index, now).unwrap();
    assert!(!pair.say(RELAY, 1), "sessions under a key that is gone are gone");
    pair.clear_events(CONNECTOR);
    let (peer, before) = (pair.at_connector, pair.sent(RELAY, Kind::Response));
    for _ in 0..20 {
        pair.connect(CONNECTOR, peer, None);
        pair.say(CONNECTOR, 7);
        pair.advance(secs(2));
    }
    assert_eq!(pair.sent(RELAY, Kind::Response), before);
    assert_eq!(pair.heard(RELAY).last(), None);
    assert!(pair.engine(RELAY).stats().dropped(DropReason::BadMac) >= 20);
    assert!(!Pair::is_up(&pair, CONNECTOR));
    // Told of the new key, it is welcome as who it is: the relay has not forgotten it.
    let now = pair.now();
    pair.engine(CONNECTOR).add_key(peer, key(new.public_key(), 0, &[]), true, now).unwrap();
    pair.connect(CONNECTOR, peer, None);
    pair.advance(secs(1));
    pair.assert_talking();
}

#[test]
fn a_relay_that_restarts_in_the_grace_calls_back_under_the_key_that_was_confirmed_last() {
    for confirmed in [false, true] {
        let mut pair = Pair::connected(4);
        let (new, _) = rotate_relay(&mut pair, &[]);
        if confirmed {
            let peer = pair.at_connector;
            pair.connect(CONNECTOR, peer, None);
            pair.advance(secs(1));
            pair.say(CONNECTOR, 1);
            pair.advance(secs(1));
            // Its own grace is over already.
            let (now, old) = (pair.now(), pair.relay_key.public_key());
            pair.engine(CONNECTOR).remove_key(peer, &old, None, now).unwrap();
        } else {
            let (now, peer) = (pair.now(), pair.at_connector);
            pair.engine(CONNECTOR).remove_key(peer, &new.public_key(), None, now).unwrap();
        }
        let statics = vec![new.clone(), pair.relay_key.clone()];
        let last = pair.path_to(CONNECTOR);
        pair.world.restart(RELAY, statics, 0);
        let now = pair.now();
        let config = PeerConfig {
            public_key: pair.connector_key.public_key(),
            static_index: if confirmed { 0 } else { 1 },
            psks: Vec::new(),
            allowed_ips: vec![format!("{}/128", Pair::CONNECTOR_INNER).parse().unwrap()],
            path: Some(last),
            persistent_keepalive: None,
        };
        pair.at_relay = pair.world.engine(RELAY).add_peer(config, now).unwrap();
        pair.clear_events(RELAY);
        let peer = pair.at_relay;
        pair.connect(RELAY, peer, None);
        assert_eq!(pair.run_until(secs(1), |world| Pair::is_up(world, RELAY)), Some(ms(40)), "{confirmed}");
        pair.advance(ms(20));
        pair.assert_talking();
    }
}

#[test]
fn tokens_of_both_keys_are_answered_and_joiners_of_the_old_one_only_in_the_grace() {
    let mut pair = Pair::new(5);
    let (joiner, psk) = (PrivateKey::generate(), Psk::from_bytes([6; 32]));
    let bootstrap = BootstrapConfig {
        public_key: joiner.public_key(),
        static_index: 0,
        psk: psk.clone(),
        allowed_ips: vec!["fd00::b/128".parse().unwrap()],
    };
    pair.engine(RELAY).add_bootstrap(bootstrap).unwrap();
    let new = PrivateKey::generate();
    let index = pair.engine(RELAY).add_static(&new);
    let old = pair.relay_key.clone();
    let join = |pair: &mut Pair, relay: &PrivateKey, port: u16| {
        let address = format!("203.0.113.5:{port}");
        let host = pair.world.add_host(&address, vec![joiner.clone()], HandshakeLimits::default());
        let now = pair.now();
        let config = PeerConfig {
            public_key: relay.public_key(),
            static_index: 0,
            psks: vec![culvert_engine::PskEpoch { epoch: 0, psk: psk.clone() }],
            allowed_ips: vec!["::/0".parse().unwrap()],
            path: Some(pair.path_to(RELAY)),
            persistent_keepalive: None,
        };
        let peer = pair.engine(host).add_peer(config, now).unwrap();
        pair.connect(host, peer, None);
        pair.run_until(secs(3), |world| Pair::is_up(world, host)).is_some()
    };
    assert!(join(&mut pair, &old, 1) && join(&mut pair, &new, 2));
    let now = pair.now();
    pair.engine(RELAY).remove_static(0, index, now).unwrap();
    assert!(!join(&mut pair, &old, 3) && join(&mut pair, &new, 4));
}

#[test]
fn the_connectors_key_is_rotated_under_load_and_no_packet_is_lost() {
    for seed in 0..5 {
        let mut pair = Pair::with(seed, None, [vec![4], vec![4]], HandshakeLimits::default());
        pair.link = Link { jitter: ms(30), ..Link::default() };
        pair.come_up();
        let mut number = 0;
        let mut said = talk(&mut pair, 5, &mut number);
        let (new, now) = (PrivateKey::generate(), pair.now());
        let (at_relay, at_connector) = (pair.at_relay, pair.at_connector);
        // The new key has a pre-shared key of its own, whose epochs count from one.
        pair.engine(RELAY).add_key(at_relay, key(new.public_key(), 0, &[1]), false, now).unwrap();
        said += talk(&mut pair, 1, &mut number);
        assert_eq!(static_of(&mut pair, RELAY).0, pair.connector_key.public_key());
        let (relay, now) = (pair.relay_key.public_key(), pair.now());
        let own = pair.engine(CONNECTOR).add_static(&new);
        pair.engine(CONNECTOR).add_key(at_connector, key(relay, own, &[1]), true, now).unwrap();
        pair.connect(CONNECTOR, at_connector, None);
        said += talk(&mut pair, 5, &mut number);
        assert_eq!(promotions(&pair, RELAY), [new.public_key()]);
        assert_eq!(promotions(&pair, CONNECTOR), [relay]);
        assert_eq!(static_of(&mut pair, CONNECTOR), (relay, own));
        let (now, old) = (pair.now(), pair.connector_key.public_key());
        pair.engine(RELAY).remove_key(at_relay, &old, None, now).unwrap();
        pair.engine(CONNECTOR).remove_key(at_connector, &relay, Some(0), now).unwrap();
        pair.engine(CONNECTOR).remove_static(0, own, now).unwrap();
        said += talk(&mut pair, 250, &mut number);
        pair.advance(secs(1));
        assert_eq!((pair.heard(RELAY).len(), pair.heard(CONNECTOR).len()), (said, said), "seed {seed}");
        // Who still has the old key is nobody.
        assert_eq!(pair.engine(RELAY).remove_key(at_relay, &new.public_key(), None, now), Err(KeyError::Last));
    }
}

#[test]
fn a_rotation_survives_clocks_that_jump_and_processes_that_start_anew() {
    const DAY: i64 = 24 * 60 * 60;
    for (seed, jump) in [(40, -DAY), (41, DAY), (42, -7)] {
        let mut pair = Pair::connected(seed);
        let (new, index) = rotate_relay(&mut pair, &[]);
        let peer = pair.at_connector;
        pair.connect(CONNECTOR, peer, None);
        pair.advance(secs(1));
        pair.assert_talking();
        // The connector dies, and comes back with a wrong clock and both keys of the relay on its disk.
        let relay = pair.path_to(RELAY);
        pair.restart(CONNECTOR, Some(relay), jump);
        pair.clear_events(CONNECTOR);
        let (now, peer) = (pair.now(), pair.at_connector);
        pair.engine(CONNECTOR).add_key(peer, key(new.public_key(), 0, &[]), true, now).unwrap();
        let mut took = 0;
        while !Pair::is_up(&pair, CONNECTOR) {
            pair.connect(CONNECTOR, peer, None);
            pair.advance(secs(1));
            took += 1;
            // A relay that heard it a moment ago calls back only once it is silent.
            assert!(took <= 25, "seed {seed}");
        }
        pair.assert_talking();
        // The relay's own clock jumps, and it starts anew with both keys.
        let statics = vec![new.clone(), pair.relay_key.clone()];
        let last = pair.path_to(CONNECTOR);
        pair.world.restart(RELAY, statics, jump);
        pair.introduce(RELAY, Some(last));
        pair.clear_events(RELAY);
        let at_relay = pair.at_relay;
        for _ in 0..5 {
            pair.connect(RELAY, at_relay, None);
            pair.connect(CONNECTOR, peer, None);
            pair.advance(secs(2));
        }
        assert!(Pair::is_up(&pair, RELAY), "seed {seed}");
        pair.assert_talking();
        assert_eq!(static_of(&mut pair, CONNECTOR).0, new.public_key(), "seed {seed}: never {index} again");
    }
}

#[test]
fn both_ends_may_rotate_at_once() {
    for seed in 30..35 {
        let mut pair = Pair::with(seed, None, [vec![4], vec![4]], HandshakeLimits::default());
        pair.come_up();
        pair.link = Link { loss: 0.1, jitter: ms(30), ..Link::default() };
        let (at_relay, at_connector) = (pair.at_relay, pair.at_connector);
        let (own_new, now) = (PrivateKey::generate(), pair.now());
        pair.engine(RELAY).add_key(at_relay, key(own_new.public_key(), 0, &[1]), false, now).unwrap();
        let (relay_new, index) = rotate_relay(&mut pair, &[4]);
        pair.connect(CONNECTOR, at_connector, None);
        let own = pair.engine(CONNECTOR).add_static(&own_new);
        pair.engine(CONNECTOR).add_key(at_connector, key(relay_new.public_key(), own, &[1]), true, now).unwrap();
        pair.connect(CONNECTOR, at_connector, None);
        for number in 0..600 {
            assert!(pair.say(CONNECTOR, number), "seed {seed}");
            pair.advance(ms(500));
        }
        pair.advance(secs(20));
        pair.say(CONNECTOR, 1);
        pair.advance(secs(1));
        assert_eq!(static_of(&mut pair, RELAY), (own_new.public_key(), index), "seed {seed}");
        assert_eq!(static_of(&mut pair, CONNECTOR), (relay_new.public_key(), own), "seed {seed}");
    }
}

#[test]
fn an_end_that_starts_in_the_middle_of_a_rotation_finds_the_key_that_is_answered() {
    // The connector has stored both of its keys, or both of the relay's; the other end knows one of them.
    for knows_new in [false, true] {
        let mut pair = Pair::new(6);
        let (new, peer) = (PrivateKey::generate(), pair.at_connector);
        let (now, at_relay) = (pair.now(), pair.at_relay);
        if knows_new {
            pair.engine(RELAY).add_key(at_relay, key(new.public_key(), 0, &[]), false, now).unwrap();
            let old = pair.connector_key.public_key();
            pair.engine(RELAY).remove_key(at_relay, &old, None, now).unwrap();
        }
        let relay = pair.relay_key.public_key();
        let own = pair.engine(CONNECTOR).add_static(&new);
        pair.engine(CONNECTOR).add_key(peer, key(relay, own, &[]), true, now).unwrap();
        // As a link knocks: every second anew.
        let mut took = 0;
        while !Pair::is_up(&pair, CONNECTOR) {
            pair.connect(CONNECTOR, peer, None);
            pair.advance(secs(1));
            took += 1;
            assert!(took <= 3, "{knows_new}");
        }
        pair.assert_talking();
    }
}

#[test]
fn a_removed_peer_and_a_removed_key_get_silence_for_everything_they_ever_sealed() {
    let mut pair = Pair::connected(7);
    for number in 0..5 {
        assert!(pair.say(CONNECTOR, number));
        pair.advance(ms(100));
    }
    let (peer, at_relay) = (pair.at_connector, pair.at_relay);
    pair.engine(RELAY).remove_peer(at_relay);
    assert_eq!(pair.engine(RELAY).peer_stats(at_relay), None);
    assert_eq!(pair.engine(RELAY).route(Pair::CONNECTOR_INNER.parse().unwrap()), None);
    let recorded: Vec<_> = pair.wire.iter().filter(|sent| sent.by == Some(CONNECTOR)).cloned().collect();
    let before = pair.wire.iter().filter(|sent| sent.by == Some(RELAY)).count();
    pair.heard(RELAY);
    pair.clear_events(RELAY);
    // Under the old session, as recorded, and by new handshakes.
    for number in 0..50 {
        pair.say(CONNECTOR, number);
        pair.connect(CONNECTOR, peer, None);
        for sent in &recorded {
            pair.inject(sent.from, sent.to, sent.bytes.clone());
        }
        pair.advance(secs(2));
    }
    assert_eq!(pair.wire.iter().filter(|sent| sent.by == Some(RELAY)).count(), before, "not one datagram");
    assert!(pair.heard(RELAY).is_empty());
    assert!(pair.events(RELAY).iter().all(|(_, event)| matches!(event, Event::Stranger { .. })));
    let stats = pair.engine(RELAY).stats();
    assert!(stats.dropped(DropReason::UnknownIndex) >= 50 && stats.dropped(DropReason::UnknownPeer) >= 50);
    assert_eq!((stats.peers, stats.live), (0, 0));
}

/// The connector's key in a second place, which shakes hands and speaks from there.
fn add_thief(pair: &mut Pair) -> (usize, PeerId) {
    let keys = vec![pair.connector_key.clone()];
    let thief = pair.world.add_host("203.0.113.66:6666", keys, HandshakeLimits::default());
    let (now, path) = (pair.now(), pair.path_to(RELAY));
    let config = PeerConfig {
        public_key: pair.relay_key.public_key(),
        static_index: 0,
        psks: Vec::new(),
        allowed_ips: vec![format!("{}/128", Pair::RELAY_INNER).parse().unwrap()],
        path: Some(path),
        persistent_keepalive: None,
    };
    let peer = pair.engine(thief).add_peer(config, now).unwrap();
    (thief, peer)
}

fn flappings(pair: &Pair) -> Vec<[String; 2]> {
    let flapping = |(_, event): &(Duration, Event)| match event {
        Event::Flapping { paths, .. } => Some(paths.map(|path| path.remote.to_string())),
        _ => None,
    };
    pair.events(RELAY).iter().filter_map(flapping).collect()
}

#[test]
fn a_key_that_two_hosts_use_in_turn_is_noticed_once_with_both_addresses() {
    let mut pair = Pair::connected(8);
    let (thief, at_thief) = add_thief(&mut pair);
    let at_connector = pair.at_connector;
    for _ in 0..10 {
        for (host, peer) in [(thief, at_thief), (CONNECTOR, at_connector)] {
            pair.connect(host, peer, None);
            pair.advance(ms(1500));
            pair.world.send(host, peer, &inner_packet(Pair::CONNECTOR_INNER, 1));
            pair.advance(ms(1500));
        }
    }
    let told = flappings(&pair);
    assert_eq!(told.len(), 1, "{told:?}");
    let mut addresses = told[0].clone();
    addresses.sort();
    assert_eq!(addresses, ["198.51.100.7:40000", "203.0.113.66:6666"]);
}

#[test]
fn an_honest_connector_on_the_move_raises_no_alarm() {
    let mut pair = Pair::connected(9);
    pair.link = Link { jitter: ms(60), duplication: 0.1, ..Link::default() };
    let speak = |pair: &mut Pair, for_secs: u64| {
        for number in 0..for_secs * 10 {
            pair.say(CONNECTOR, number as u32);
            pair.advance(ms(100));
        }
    };
    // A NAT that rebinds every second, then from home to work and back, with late packets from before.
    for port in 0..60 {
        pair.move_host(CONNECTOR, &format!("198.51.100.7:{}", 41_000 + port));
        speak(&mut pair, 1);
    }
    for address in ["203.0.113.1:1", "198.51.100.7:40000", "203.0.113.1:1"] {
        pair.move_host(CONNECTOR, address);
        speak(&mut pair, 20);
    }
    assert!(pair.events(RELAY).iter().filter(|(_, event)| matches!(event, Event::EndpointMoved { .. })).count() > 60);
    assert_eq!(flappings(&pair), [[""; 2]; 0]);
}

#[test]
fn mac1_names_the_key_and_each_key_has_a_cookie_key_of_its_own() {
    let limits = HandshakeLimits { cookies_above_per_second: 0, ..HandshakeLimits::default() };
    let mut pair = Pair::with(11, None, [Vec::new(), Vec::new()], limits);
    let (new, index) = rotate_relay(&mut pair, &[]);
    let peer = pair.at_connector;
    pair.connect(CONNECTOR, peer, None);
    let took = pair.run_until(secs(2), |world| Pair::is_up(world, RELAY));
    assert!(took.is_some(), "the cookie was sealed for the key that was addressed");
    assert_eq!(pair.sent(RELAY, Kind::Cookie), 1);
    assert_eq!((static_of(&mut pair, RELAY).1, static_of(&mut pair, CONNECTOR).0), (index, new.public_key()));
    // What is meant for a key of somebody else fits none of ours.
    let relay = pair.address(RELAY);
    let response = pair.wire.iter().find(|sent| kind_of(&sent.bytes) == Kind::Response).unwrap().clone();
    pair.inject(response.to, relay, response.bytes);
    pair.advance(secs(1));
    assert!(pair.engine(RELAY).stats().dropped(DropReason::BadMac) >= 1);
}
