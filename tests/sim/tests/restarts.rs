//! Hosts that move, die, come back, and have wrong clocks.

use std::time::Duration;

use culvert_engine::{Event, HandshakeLimits};
use culvert_sim::{Kind, Pair};

const RELAY: usize = Pair::RELAY;
const CONNECTOR: usize = Pair::CONNECTOR;
const DAY: i64 = 24 * 60 * 60;

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[test]
fn a_connector_behind_a_rebinding_nat_keeps_its_session() {
    for seed in 0..10 {
        let mut pair = Pair::connected(seed);
        for round in 0..20_u32 {
            pair.move_host(CONNECTOR, &format!("198.51.100.7:{}", 40_001 + round));
            assert!(pair.say(CONNECTOR, round));
            pair.advance(ms(21));
            assert!(pair.say(RELAY, round));
            pair.advance(ms(200));
            assert_eq!((pair.heard(RELAY), pair.heard(CONNECTOR)), (vec![round], vec![round]));
        }
        let moved = pair.events(RELAY).iter().filter(|(_, event)| matches!(event, Event::EndpointMoved { .. })).count();
        assert_eq!((moved, pair.events(CONNECTOR).len()), (20, 0));
        assert_eq!(pair.sent(CONNECTOR, Kind::Initiation) + pair.sent(RELAY, Kind::Initiation), 1);
    }
}

#[test]
fn an_endpoint_moves_on_authenticated_data_and_not_on_an_initiation() {
    let mut pair = Pair::connected(1);
    let at_relay = pair.at_relay;
    let old = pair.path_to(CONNECTOR);
    // The answer to a handshake from the new address is lost: nothing may have changed at the relay.
    pair.move_host(CONNECTOR, "198.51.100.9:9");
    pair.censor = Some(Box::new(|sent| sent.by == Some(RELAY)));
    let peer = pair.at_connector;
    pair.connect(CONNECTOR, peer, None);
    pair.advance(secs(2));
    assert_eq!(pair.sent(RELAY, Kind::Response), 2);
    assert_eq!(pair.engine(RELAY).peer_stats(at_relay).unwrap().path, Some(old));
    assert_eq!(pair.events(RELAY), []);
    pair.censor = None;
    pair.advance(secs(5));
    let new = pair.path_to(CONNECTOR);
    assert_eq!(pair.engine(RELAY).peer_stats(at_relay).unwrap().path, Some(new));
    pair.assert_talking();
}

#[test]
fn a_restarted_connector_replaces_its_session_in_one_round_trip_and_the_relay_forgets_nothing() {
    let mut pair = Pair::connected(2);
    for _ in 0..20 {
        let relay = pair.path_to(RELAY);
        pair.clear_events(RELAY);
        pair.restart(CONNECTOR, Some(relay), 0);
        let peer = pair.at_connector;
        pair.connect(CONNECTOR, peer, None);
        let took = pair.run_until(secs(1), |world| Pair::is_up(world, RELAY));
        assert_eq!(took, Some(ms(60)));
        pair.assert_talking();
        pair.advance(ms(1000));
    }
    assert_eq!(pair.engine(RELAY).stats().live, 1);
}

#[test]
fn the_late_first_packet_of_an_older_session_displaces_no_newer_one() {
    let mut pair = Pair::new(11);
    let peer = pair.at_connector;
    pair.connect(CONNECTOR, peer, None);
    pair.advance(ms(30));
    // The keepalive that confirms this session stays on its way for nine seconds.
    pair.link.latency = secs(9);
    pair.advance(ms(30));
    pair.link.latency = ms(20);
    let relay = pair.path_to(RELAY);
    pair.restart(CONNECTOR, Some(relay), 0);
    pair.move_host(CONNECTOR, "198.51.100.9:9");
    let peer = pair.at_connector;
    pair.connect(CONNECTOR, peer, None);
    pair.advance(secs(10));
    let expected = pair.path_to(CONNECTOR);
    assert!(
        matches!(pair.events(RELAY), [(_, Event::SessionUp { path, .. })] if *path == expected),
        "{:?}",
        pair.events(RELAY)
    );
    assert!(pair.say(RELAY, 7));
    pair.advance(ms(100));
    assert_eq!(pair.heard(CONNECTOR), [7], "the relay must not seal for the process that is gone");
    pair.assert_talking();
}

#[test]
fn a_restarted_relay_calls_its_connector_back_in_one_round_trip() {
    let mut pair = Pair::connected(3);
    pair.advance(secs(30));
    let last = pair.path_to(CONNECTOR);
    pair.restart(RELAY, Some(last), 0);
    let peer = pair.at_relay;
    pair.connect(RELAY, peer, None);
    assert_eq!(pair.run_until(secs(1), |world| Pair::is_up(world, RELAY)), Some(ms(40)));
    pair.advance(ms(20));
    pair.assert_talking();
    let first = |event: &Event| matches!(event, Event::SessionUp { first: false, initiated: false, .. });
    assert!(pair.events(CONNECTOR).iter().any(|(_, event)| first(event)));
}

#[test]
fn a_connector_with_its_clock_a_day_behind_is_up_in_two_round_trips() {
    // Its last session is long over, but the relay knows the timestamp of its last initiation.
    let mut pair = Pair::connected(4);
    pair.advance(secs(200));
    pair.clear_events(RELAY);
    let relay = pair.path_to(RELAY);
    pair.restart(CONNECTOR, Some(relay), -DAY);
    let peer = pair.at_connector;
    pair.connect(CONNECTOR, peer, None);
    let took = pair.run_until(secs(10), |world| Pair::is_up(world, RELAY)).unwrap();
    assert!(took <= ms(100), "{took:?}");
    assert!(matches!(pair.events(RELAY)[0].1, Event::ClockBehind { .. }), "{:?}", pair.events(RELAY));
    pair.advance(ms(20));
    pair.assert_talking();
}

#[test]
fn a_connector_that_reboots_into_an_old_clock_is_back_once_it_is_silent_for_fifteen_seconds() {
    let mut pair = Pair::connected(5);
    pair.assert_talking();
    let relay = pair.path_to(RELAY);
    pair.restart(CONNECTOR, Some(relay), -DAY);
    let (peer, from) = (pair.at_connector, pair.time());
    pair.connect(CONNECTOR, peer, None);
    pair.run_until(secs(60), |world| Pair::is_up(world, CONNECTOR)).unwrap();
    assert!(pair.time() - from <= secs(22), "{:?}", pair.time() - from);
    pair.assert_talking();
}

#[test]
fn stale_initiations_are_called_back_at_most_every_five_seconds() {
    let mut pair = Pair::connected(6);
    let initiation = pair.wire[0].bytes.clone();
    pair.advance(secs(200));
    pair.set_up(CONNECTOR, false);
    let (relay, elsewhere) = (pair.address(RELAY), "203.0.113.66:6666".parse().unwrap());
    for _ in 0..200 {
        pair.inject(elsewhere, relay, initiation.clone());
        pair.advance(ms(100));
    }
    let answers: Vec<_> = pair.wire.iter().filter(|sent| sent.to == elsewhere).map(|sent| sent.bytes.len()).collect();
    assert!((3..=5).contains(&answers.len()), "{answers:?}");
    assert!(answers.iter().all(|len| *len == 148), "no more than was sent");
    let at_relay = pair.at_relay;
    let connector = pair.path_to(CONNECTOR);
    assert_eq!(pair.engine(RELAY).peer_stats(at_relay).unwrap().path, Some(connector));
    // Nor do the call-backs go on by themselves.
    let before = pair.wire.len();
    pair.advance(secs(60));
    assert_eq!(pair.wire.len(), before);
}

#[test]
fn a_clock_set_right_cures_a_connector_that_nobody_calls_back() {
    let mut pair = Pair::connected(7);
    pair.advance(secs(200));
    // A peer that does not call back, as a stock one.
    pair.censor =
        Some(Box::new(|sent| sent.by == Some(RELAY) && culvert_sim::kind_of(&sent.bytes) == Kind::Initiation));
    let relay = pair.path_to(RELAY);
    pair.restart(CONNECTOR, Some(relay), -DAY);
    let peer = pair.at_connector;
    pair.connect(CONNECTOR, peer, None);
    pair.advance(secs(7));
    assert!(!Pair::is_up(&pair, CONNECTOR));
    pair.set_clock_error(CONNECTOR, 0);
    let took = pair.run_until(secs(60), |world| Pair::is_up(world, CONNECTOR)).unwrap();
    assert!(took <= secs(11), "the tunnel is built anew after two unanswered initiations: {took:?}");
}

#[test]
fn a_relay_whose_own_clock_went_back_is_called_back_by_its_connectors() {
    let mut pair = Pair::new(8);
    let (at_relay, connector) = (pair.at_relay, pair.path_to(CONNECTOR));
    // The connector has answered this relay before, so it knows a later timestamp.
    pair.connect(RELAY, at_relay, Some(connector.remote));
    pair.advance(secs(200));
    pair.restart(RELAY, Some(connector), -DAY);
    pair.clear_events(RELAY);
    let at_relay = pair.at_relay;
    pair.connect(RELAY, at_relay, None);
    let took = pair.run_until(secs(10), |world| Pair::is_up(world, RELAY)).unwrap();
    assert!(took <= ms(100), "{took:?}");
    pair.assert_talking();
}

#[test]
fn a_clone_displaces_the_other_and_both_sides_tell() {
    let mut pair = Pair::connected(9);
    let keys = vec![pair.connector_key.clone()];
    let clone = pair.world.add_host("203.0.113.5:5", keys, HandshakeLimits::default());
    let (now, to) = (pair.now(), pair.path_to(RELAY));
    let config = culvert_engine::PeerConfig {
        public_key: pair.relay_key.public_key(),
        static_index: 0,
        psks: Vec::new(),
        allowed_ips: Vec::new(),
        path: Some(to),
        persistent_keepalive: None,
    };
    let at_clone = pair.engine(clone).add_peer(config, now).unwrap();
    for round in 0..4 {
        pair.clear_events(RELAY);
        let expected = if round % 2 == 0 {
            pair.connect(clone, at_clone, None);
            pair.path_to(clone)
        } else {
            let peer = pair.at_connector;
            pair.connect(CONNECTOR, peer, None);
            pair.path_to(CONNECTOR)
        };
        pair.advance(secs(2));
        let moved = pair.events(RELAY).iter().any(|(_, event)| {
            matches!(event, Event::SessionUp { path, first: false, initiated: false, .. } if *path == expected)
        });
        assert!(moved, "round {round}: {:?}", pair.events(RELAY));
    }
}

#[test]
fn what_a_removed_peer_sends_gets_silence() {
    let mut pair = Pair::connected(10);
    let (at_relay, at_connector) = (pair.at_relay, pair.at_connector);
    pair.engine(RELAY).remove_peer(at_relay);
    let before = pair.wire.iter().filter(|sent| sent.by == Some(RELAY)).count();
    pair.say(CONNECTOR, 1);
    pair.connect(CONNECTOR, at_connector, None);
    pair.advance(secs(100));
    assert_eq!(pair.wire.iter().filter(|sent| sent.by == Some(RELAY)).count(), before);
    assert!(pair.heard(RELAY).is_empty());
    assert_eq!(pair.engine(RELAY).stats().live, 0);
}
