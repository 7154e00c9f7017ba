//! Who attacks, and what must not come of it (wire.md §2).

use std::net::SocketAddr;
use std::time::Duration;

use culvert_engine::{DropReason, Event, HandshakeLimits, PeerConfig, Replies};
use culvert_model::key::PrivateKey;
use culvert_sim::{Kind, Pair, inner_packet, kind_of};

const RELAY: usize = Pair::RELAY;
const CONNECTOR: usize = Pair::CONNECTOR;

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn attacker() -> SocketAddr {
    "203.0.113.66:6666".parse().unwrap()
}

/// The last datagram of a kind that a host sent.
fn recorded(pair: &Pair, by: usize, kind: Kind) -> Vec<u8> {
    pair.wire.iter().rfind(|sent| sent.by == Some(by) && kind_of(&sent.bytes) == kind).unwrap().bytes.clone()
}

fn sent_to_attacker(pair: &Pair) -> Vec<Kind> {
    pair.wire.iter().filter(|sent| sent.to == attacker()).map(|sent| kind_of(&sent.bytes)).collect()
}

/// Adds a host that holds the connector's key, as a thief or a clone does.
fn add_clone(pair: &mut Pair) -> (usize, culvert_engine::PeerId) {
    let keys = vec![pair.connector_key.clone()];
    let clone = pair.world.add_host("203.0.113.66:6666", keys, HandshakeLimits::default());
    let now = pair.now();
    let relay = PeerConfig {
        public_key: pair.relay_key.public_key(),
        static_index: 0,
        psks: Vec::new(),
        allowed_ips: vec![format!("{}/128", Pair::RELAY_INNER).parse().unwrap()],
        path: Some(pair.path_to(RELAY)),
        persistent_keepalive: None,
    };
    let peer = pair.engine(clone).add_peer(relay, now).unwrap();
    (clone, peer)
}

#[test]
fn a_replayed_initiation_to_a_live_session_gets_silence_and_changes_nothing() {
    let mut pair = Pair::connected(1);
    let initiation = recorded(&pair, CONNECTOR, Kind::Initiation);
    let relay = pair.address(RELAY);
    for _ in 0..50 {
        pair.inject(attacker(), relay, initiation.clone());
        pair.advance(ms(500));
        pair.say(CONNECTOR, 0);
    }
    pair.advance(secs(1));
    assert_eq!(sent_to_attacker(&pair), []);
    assert_eq!(pair.events(RELAY), []);
    pair.assert_talking();
}

#[test]
fn a_recorded_initiation_replayed_to_a_restarted_relay_causes_one_response_and_nothing_else() {
    let mut pair = Pair::connected(2);
    let initiation = recorded(&pair, CONNECTOR, Kind::Initiation);
    let connector = pair.path_to(CONNECTOR);
    pair.restart(RELAY, Some(connector), 0);
    let relay = pair.address(RELAY);
    for _ in 0..10 {
        pair.inject(attacker(), relay, initiation.clone());
        pair.advance(ms(10));
    }
    // What comes twice is stale, and the relay, which has no session, asks its sender once to prove himself.
    assert_eq!(sent_to_attacker(&pair), [Kind::Response, Kind::Initiation]);
    assert!(matches!(pair.events(RELAY), [(_, Event::ClockBehind { .. })]), "{:?}", pair.events(RELAY));
    assert!(!pair.say(RELAY, 1), "an unconfirmed key must never seal");
    let at_relay = pair.at_relay;
    assert_eq!(pair.engine(RELAY).peer_stats(at_relay).unwrap().path, Some(connector));
    pair.advance(ms(200));
    pair.assert_talking();
}

#[test]
fn initiations_in_a_row_never_hurt_a_live_session_and_few_are_answered() {
    // The connector's key in other hands: each initiation is authentic and new. None is ever confirmed.
    let mut pair = Pair::connected(3);
    pair.advance(secs(3));
    let (clone, peer) = add_clone(&mut pair);
    pair.censor = Some(Box::new(move |sent| sent.to == attacker()));
    for _ in 0..8 {
        pair.connect(clone, peer, None);
        pair.advance(ms(1));
    }
    pair.assert_talking();
    assert_eq!(sent_to_attacker(&pair).len(), 3, "a burst of three");
    // One each two seconds, for a minute and a half: enough to go through boringtun's ring of 8 sessions twice.
    let before = sent_to_attacker(&pair).len();
    for _ in 0..45 {
        pair.connect(clone, peer, None);
        pair.advance(secs(1));
        pair.assert_talking();
    }
    let answered = sent_to_attacker(&pair).len() - before;
    assert!((8..=2 + 63 / 5 + 1).contains(&answered), "{answered}");
    assert!(pair.engine(RELAY).stats().dropped(DropReason::TooManyInitiations) > 20);
    assert_eq!(pair.events(RELAY), []);
    assert_eq!(pair.sent(CONNECTOR, Kind::Initiation), 1);
}

#[test]
fn an_unconfirmed_session_in_the_place_of_an_expired_one_seals_nothing() {
    for unconfirmed in 1..=10 {
        let mut pair = Pair::connected(14);
        pair.advance(secs(181));
        let (clone, peer) = add_clone(&mut pair);
        pair.censor = Some(Box::new(move |sent| sent.to == attacker()));
        for _ in 0..unconfirmed {
            pair.connect(clone, peer, None);
            pair.advance(secs(6));
        }
        assert!(sent_to_attacker(&pair).len() >= unconfirmed);
        assert!(!pair.say(RELAY, 1), "sealed under a key that nobody confirmed, after {unconfirmed}");
    }
}

#[test]
fn an_initiator_that_answers_what_nobody_confirms_still_rekeys_in_time() {
    // boringtun forgets that it was the initiator of the live session when it answers another initiation.
    let mut pair = Pair::connected(13);
    let thief = pair.world.add_host("203.0.113.66:6666", vec![pair.relay_key.clone()], HandshakeLimits::default());
    let (now, connector) = (pair.now(), pair.path_to(CONNECTOR));
    let config = PeerConfig {
        public_key: pair.connector_key.public_key(),
        static_index: 0,
        psks: Vec::new(),
        allowed_ips: Vec::new(),
        path: Some(connector),
        persistent_keepalive: None,
    };
    let peer = pair.engine(thief).add_peer(config, now).unwrap();
    pair.censor = Some(Box::new(move |sent| sent.to == attacker()));
    pair.connect(thief, peer, None);
    pair.set_up(thief, false);
    for number in 0..1300 {
        assert!(pair.say(CONNECTOR, number));
        pair.advance(ms(100));
    }
    assert_eq!(sent_to_attacker(&pair), [Kind::Response]);
    assert_eq!(pair.sent(CONNECTOR, Kind::Initiation), 2);
    assert_eq!(pair.heard(RELAY).len(), 1300);
}

#[test]
fn a_flood_of_replays_from_elsewhere_takes_nothing_from_the_peers_own_rekey() {
    let mut pair = Pair::connected(4);
    let initiation = recorded(&pair, CONNECTOR, Kind::Initiation);
    let relay = pair.address(RELAY);
    for number in 0..1400 {
        pair.say(CONNECTOR, number);
        for _ in 0..4 {
            pair.inject(attacker(), relay, initiation.clone());
        }
        pair.advance(ms(100));
    }
    assert!(pair.events(RELAY).iter().any(|(_, event)| matches!(event, Event::SessionUp { first: false, .. })));
    assert!(!pair.events(CONNECTOR).iter().any(|(_, event)| matches!(event, Event::Unanswered { .. })));
    assert_eq!(sent_to_attacker(&pair), []);
}

#[test]
fn a_displaced_session_moves_no_endpoint() {
    // A packet of the old session, delayed on its way, comes after the new session is up and the peer has moved.
    let mut pair = Pair::connected(5);
    pair.link.latency = secs(9);
    pair.say(CONNECTOR, 1);
    pair.link.latency = ms(20);
    pair.advance(secs(6));
    pair.move_host(CONNECTOR, "198.51.100.9:5");
    let peer = pair.at_connector;
    pair.connect(CONNECTOR, peer, None);
    pair.advance(ms(100));
    let at_relay = pair.at_relay;
    let moved = pair.path_to(CONNECTOR);
    assert_eq!(pair.engine(RELAY).peer_stats(at_relay).unwrap().path, Some(moved));
    pair.clear_events(RELAY);
    pair.advance(secs(4));
    assert_eq!(pair.heard(RELAY), [1], "the packet itself is good");
    assert_eq!(pair.engine(RELAY).peer_stats(at_relay).unwrap().path, Some(moved));
    assert_eq!(pair.events(RELAY), []);
}

#[test]
fn a_late_packet_of_the_same_session_moves_no_endpoint_back() {
    let mut pair = Pair::connected(6);
    pair.link.latency = secs(1);
    pair.say(CONNECTOR, 1);
    pair.link.latency = ms(20);
    pair.move_host(CONNECTOR, "198.51.100.9:5");
    pair.say(CONNECTOR, 2);
    pair.advance(secs(2));
    assert_eq!(pair.heard(RELAY), [2, 1]);
    let at_relay = pair.at_relay;
    let moved = pair.path_to(CONNECTOR);
    assert_eq!(pair.engine(RELAY).peer_stats(at_relay).unwrap().path, Some(moved));
}

#[test]
fn replayed_or_mangled_data_is_dropped_and_moves_no_endpoint() {
    let mut pair = Pair::connected(7);
    pair.say(CONNECTOR, 1);
    pair.advance(ms(100));
    let data = recorded(&pair, CONNECTOR, Kind::Data);
    let relay = pair.address(RELAY);
    for at in [usize::MAX, 4, 8, 15, 16, data.len() - 1] {
        let mut data = data.clone();
        if let Some(byte) = data.get_mut(at) {
            *byte ^= 0x80;
        }
        pair.inject(attacker(), relay, data);
    }
    pair.advance(ms(100));
    assert_eq!(pair.heard(RELAY), [1]);
    assert_eq!(pair.events(RELAY), []);
    pair.assert_talking();
    assert_eq!(sent_to_attacker(&pair), []);
}

#[test]
fn no_peer_speaks_for_another() {
    let mut pair = Pair::connected(8);
    let peer = pair.at_connector;
    for source in [Pair::RELAY_INNER, "fd43:554c:5645::78", "::"] {
        assert!(pair.send(CONNECTOR, peer, &inner_packet(source, 5)));
    }
    assert!(pair.send(CONNECTOR, peer, b"no packet at all, but authentic bytes"));
    pair.advance(ms(100));
    assert!(pair.heard(RELAY).is_empty());
    let stats = pair.engine(RELAY).stats();
    assert_eq!((stats.dropped(DropReason::SourceNotAllowed), stats.dropped(DropReason::BadInner)), (3, 1));
    pair.assert_talking();
}

#[test]
fn under_a_flood_cookies_are_demanded_an_honest_peer_gets_through_at_once_and_it_ends() {
    let limits = HandshakeLimits { cookies_above_per_second: 20, ..HandshakeLimits::default() };
    let mut pair = Pair::with(9, None, Default::default(), limits);
    // Somebody who knows the relay's public key and nothing else: mac1 is right, the static key is nobody's.
    let stranger = pair.world.add_host("203.0.113.66:6666", vec![PrivateKey::generate()], HandshakeLimits::default());
    let now = pair.now();
    let relay = PeerConfig {
        public_key: pair.relay_key.public_key(),
        static_index: 0,
        psks: Vec::new(),
        allowed_ips: Vec::new(),
        path: None,
        persistent_keepalive: None,
    };
    let peer = pair.engine(stranger).add_peer(relay, now).unwrap();
    let to = pair.path_to(RELAY);
    let mut replies = Replies::default();
    pair.engine(stranger).connect(peer, Some(to), now, &mut replies);
    let initiation = replies.drain().next().unwrap().1.to_vec();
    let flood = |pair: &mut Pair, ms_long: u64| {
        for _ in 0..ms_long / 5 {
            pair.inject(attacker(), to.remote, initiation.clone());
            pair.advance(ms(5));
        }
    };
    flood(&mut pair, 1000);
    assert!(pair.engine(RELAY).stats().under_load);
    let kinds = sent_to_attacker(&pair);
    assert!(!kinds.is_empty() && kinds.iter().all(|kind| *kind == Kind::Cookie), "{kinds:?}");
    let worked_on = pair.engine(RELAY).stats().dropped(DropReason::UnknownPeer);
    assert!(worked_on <= 21, "{worked_on} of 200 cost a Diffie-Hellman");

    let (connector, from) = (pair.at_connector, pair.time());
    pair.connect(CONNECTOR, connector, None);
    for _ in 0..100 {
        if Pair::is_up(&pair, RELAY) {
            break;
        }
        flood(&mut pair, 5);
    }
    let took = pair.time() - from;
    // Cookie: one round trip; at most 50 ms of jitter; the handshake: one and a half.
    assert!(took <= ms(40 + 50 + 60 + 20), "{took:?}");
    assert_eq!(pair.sent(CONNECTOR, Kind::Initiation), 2);

    pair.advance(secs(3));
    let before = pair.sent(RELAY, Kind::Cookie);
    pair.inject(attacker(), to.remote, initiation.clone());
    pair.advance(ms(100));
    assert_eq!(pair.sent(RELAY, Kind::Cookie), before, "cookie mode ends by itself");
    assert!(!pair.engine(RELAY).stats().under_load);
}

#[test]
fn a_live_tunnel_rekeys_through_cookie_mode() {
    let limits = HandshakeLimits { cookies_above_per_second: 0, ..HandshakeLimits::default() };
    let mut pair = Pair::with(10, None, Default::default(), limits);
    pair.come_up();
    for number in 0..1300 {
        assert!(pair.say(CONNECTOR, number));
        pair.advance(ms(100));
    }
    let ups = pair.events(RELAY).iter().filter(|(_, event)| matches!(event, Event::SessionUp { .. })).count();
    assert_eq!(ups, 1, "the rekey at 120 s");
    assert!(!pair.events(CONNECTOR).iter().any(|(_, event)| matches!(event, Event::Unanswered { .. })));
}

#[test]
fn what_answers_our_own_initiation_needs_no_cookie() {
    // A relay under load that calls its connectors back after a restart.
    let limits = HandshakeLimits { cookies_above_per_second: 0, ..HandshakeLimits::default() };
    let mut pair = Pair::with(11, None, Default::default(), limits);
    let (peer, connector) = (pair.at_relay, pair.address(CONNECTOR));
    pair.connect(RELAY, peer, Some(connector));
    assert_eq!(pair.run_until(secs(1), |world| Pair::is_up(world, RELAY)), Some(ms(40)));
    assert_eq!(pair.sent(RELAY, Kind::Cookie), 0);
}

#[test]
fn garbage_gets_no_answer() {
    let mut pair = Pair::connected(12);
    let relay = pair.address(RELAY);
    for len in 0..300_usize {
        for kind in 0..6 {
            let mut bytes: Vec<u8> = (0..len).map(|n| (n * 31 + len) as u8).collect();
            for (byte, value) in bytes.iter_mut().zip([kind, 0, 0, 0]) {
                *byte = value;
            }
            pair.inject(attacker(), relay, bytes);
        }
    }
    pair.advance(secs(1));
    assert_eq!(sent_to_attacker(&pair), []);
    assert_eq!(pair.engine(RELAY).stats().queued, 0);
    pair.assert_talking();
}
