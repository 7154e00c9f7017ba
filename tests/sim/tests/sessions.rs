//! Sessions over time: handshakes on bad links, rekeys, expiry, keepalives.

use std::time::Duration;

use culvert_engine::{Event, HandshakeLimits};
use culvert_sim::{Kind, Link, Pair};

const RELAY: usize = Pair::RELAY;
const CONNECTOR: usize = Pair::CONNECTOR;

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[test]
fn a_handshake_takes_one_round_trip_and_one_message_of_each_kind() {
    let mut pair = Pair::new(1);
    let peer = pair.at_connector;
    pair.connect(CONNECTOR, peer, None);
    let took = pair.run_until(secs(1), |world| Pair::is_up(world, CONNECTOR));
    assert_eq!(took, Some(ms(40)));
    let took = pair.run_until(secs(1), |world| Pair::is_up(world, RELAY));
    assert_eq!(took, Some(ms(20)));
    pair.advance(secs(5));
    let kinds: Vec<Kind> = pair.wire.iter().map(|sent| culvert_sim::kind_of(&sent.bytes)).collect();
    assert_eq!(kinds, [Kind::Initiation, Kind::Response, Kind::Keepalive]);
    pair.assert_talking();
}

#[test]
fn a_session_comes_up_and_lives_on_a_link_that_loses_reorders_and_duplicates() {
    for seed in 0..40 {
        let mut pair = Pair::new(seed);
        pair.link = Link { latency: ms(30), jitter: ms(80), loss: 0.3, duplication: 0.2 };
        let peer = pair.at_connector;
        pair.connect(CONNECTOR, peer, None);
        let up = pair.run_until(secs(89), |world| Pair::is_up(world, CONNECTOR));
        assert!(up.is_some(), "seed {seed}: no session");
        let (mut said, mut heard) = (0, 0);
        for number in 0..1500 {
            let from = [CONNECTOR, RELAY][number as usize % 2];
            said += u32::from(pair.say(from, number));
            pair.advance(ms(200));
            heard += pair.heard(1 - from).len() as u32;
        }
        assert!(said > 1400, "seed {seed}: sealed {said}");
        assert!(heard > said * 6 / 10 && heard <= said, "seed {seed}: {heard} of {said}");
    }
}

#[test]
fn no_packet_is_delivered_twice() {
    let mut pair = Pair::connected(3);
    pair.link = Link { latency: ms(20), jitter: ms(200), loss: 0.0, duplication: 0.9 };
    for number in 0..500 {
        pair.say(CONNECTOR, number);
        pair.advance(ms(3));
    }
    pair.advance(secs(1));
    let mut heard = pair.heard(RELAY);
    heard.sort_unstable();
    assert_eq!(heard, (0..500).collect::<Vec<_>>());
}

#[test]
fn a_busy_tunnel_rekeys_every_two_minutes_by_its_initiator_alone_and_loses_nothing() {
    let mut pair = Pair::connected(4);
    let before = pair.wire.len();
    for number in 0..5900 {
        assert!(pair.say(CONNECTOR, number) && pair.say(RELAY, number), "at {:?}", pair.time());
        pair.advance(ms(100));
    }
    pair.advance(secs(1));
    assert_eq!((pair.heard(RELAY).len(), pair.heard(CONNECTOR).len()), (5900, 5900));
    assert_eq!(pair.sent(RELAY, Kind::Initiation), 0);
    // Ten minutes: the first handshake and those at 120, 240, 360, 480 s.
    assert_eq!(pair.sent(CONNECTOR, Kind::Initiation), 5);
    let keepalives = pair.wire[before..].iter().filter(|sent| culvert_sim::kind_of(&sent.bytes) == Kind::Keepalive);
    assert_eq!(keepalives.count(), 4, "only those that confirm a new session");
}

#[test]
fn whoever_only_receives_sends_a_keepalive_after_ten_seconds_and_nobody_shakes_hands_again() {
    let mut pair = Pair::connected(5);
    let (initiations, from) = (pair.sent(CONNECTOR, Kind::Initiation), pair.time());
    pair.say(CONNECTOR, 1);
    let sent = pair.sent(RELAY, Kind::Keepalive);
    pair.advance(secs(60));
    assert_eq!(pair.sent(RELAY, Kind::Keepalive), sent + 1);
    let at = pair.wire.iter().rfind(|sent| sent.by == Some(RELAY)).unwrap().at - from;
    assert!((secs(10)..ms(10_600)).contains(&at), "{at:?}");
    assert_eq!(pair.sent(CONNECTOR, Kind::Initiation), initiations);
}

#[test]
fn requests_that_are_answered_at_once_start_no_handshake_and_an_idle_tunnel_says_nothing() {
    let mut pair = Pair::connected(6);
    for _ in 0..3 {
        pair.assert_talking();
        pair.advance(secs(20));
    }
    assert_eq!(pair.sent(CONNECTOR, Kind::Initiation) + pair.sent(RELAY, Kind::Initiation), 1);
    let before = pair.wire.len();
    pair.advance(secs(50));
    assert_eq!(pair.wire.len(), before);
}

#[test]
fn data_without_an_answer_starts_a_handshake_after_fifteen_seconds() {
    let mut pair = Pair::connected(7);
    pair.set_up(RELAY, false);
    let from = pair.time();
    pair.say(CONNECTOR, 1);
    pair.run_until(secs(30), |world| world.sent(CONNECTOR, Kind::Initiation) == 2).unwrap();
    let took = pair.time() - from;
    assert!((secs(14)..secs(16)).contains(&took), "{took:?}");
}

#[test]
fn an_idle_session_ends_after_three_minutes_and_the_next_packet_brings_up_another() {
    let mut pair = Pair::connected(8);
    pair.advance(secs(181));
    for host in [RELAY, CONNECTOR] {
        assert!(matches!(pair.events(host), [(_, Event::SessionLost { .. })]), "{:?}", pair.events(host));
        pair.clear_events(host);
    }
    assert!(!pair.say(CONNECTOR, 1));
    assert!(pair.run_until(ms(100), |world| Pair::is_up(world, RELAY)).is_some());
    pair.assert_talking();
}

#[test]
fn a_session_whose_rekey_fails_carries_nothing_past_three_minutes() {
    let mut pair = Pair::with(15, None, [vec![4], vec![4]], HandshakeLimits::default());
    pair.come_up();
    let (now, at_relay) = (pair.now(), pair.at_relay);
    pair.engine(RELAY).set_psks(at_relay, vec![Pair::psk(6)], now).unwrap();
    for _ in 0..178 {
        assert!(pair.say(CONNECTOR, 1) && pair.say(RELAY, 1), "at {:?}", pair.time());
        pair.advance(secs(1));
    }
    pair.advance(secs(3));
    pair.heard(RELAY);
    pair.heard(CONNECTOR);
    assert!(!pair.say(CONNECTOR, 1) && !pair.say(RELAY, 1));
    for host in [RELAY, CONNECTOR] {
        assert!(pair.events(host).iter().any(|(_, event)| matches!(event, Event::SessionLost { .. })));
    }
}

#[test]
fn an_expired_tunnel_with_keepalive_shakes_hands_again_without_traffic() {
    let mut pair = Pair::with(9, Some(25), Default::default(), HandshakeLimits::default());
    pair.come_up();
    pair.set_up(RELAY, false);
    pair.advance(3 * secs(180));
    pair.set_up(RELAY, true);
    let took = pair.run_until(secs(30), |world| Pair::is_up(world, CONNECTOR)).unwrap();
    assert!(took <= secs(6), "{took:?}");
    pair.assert_talking();
}

#[test]
fn a_persistent_keepalive_speaks_on_a_silent_tunnel_alone() {
    let mut pair = Pair::with(10, Some(25), Default::default(), HandshakeLimits::default());
    pair.come_up();
    let sent = |pair: &Pair| pair.sent(CONNECTOR, Kind::Keepalive) + pair.sent(RELAY, Kind::Keepalive);
    let before = sent(&pair);
    pair.advance(secs(110));
    assert!((4..=6).contains(&(sent(&pair) - before)), "{}", sent(&pair) - before);
    let before = sent(&pair);
    for number in 0..60 {
        pair.say(CONNECTOR, number);
        pair.say(RELAY, number);
        pair.advance(secs(1));
    }
    assert!(sent(&pair) - before <= 1, "only the one that confirms a rekey");
}

#[test]
fn an_unanswered_attempt_is_repeated_every_five_seconds_with_jitter_and_ends_after_ninety() {
    let mut pair = Pair::new(11);
    pair.set_up(RELAY, false);
    let peer = pair.at_connector;
    pair.connect(CONNECTOR, peer, None);
    pair.advance(secs(300));
    let at: Vec<Duration> = pair.wire.iter().map(|sent| sent.at).collect();
    assert!((17..=18).contains(&at.len()), "{}", at.len());
    let gaps: Vec<Duration> = at.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(gaps.iter().all(|gap| (secs(5)..=ms(5_340)).contains(gap)), "{gaps:?}");
    assert!(gaps.iter().any(|gap| *gap > ms(5_050)), "no jitter");
    let attempts: Vec<u32> = pair
        .events(CONNECTOR)
        .iter()
        .map(|(_, event)| match event {
            Event::Unanswered { attempts, .. } => *attempts,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(attempts, (1..=at.len() as u32).collect::<Vec<_>>());
}

#[test]
fn a_handshake_asked_for_on_a_live_tunnel_replaces_its_session_and_never_ends_it() {
    let mut pair = Pair::connected(12);
    pair.advance(secs(10));
    let (peer, dead_end) = (pair.at_connector, "203.0.113.1:1".parse().unwrap());
    pair.connect(CONNECTOR, peer, Some(dead_end));
    // Long past the 90 s after which boringtun clears all sessions of a tunnel that gets no answer.
    for _ in 0..110 {
        pair.say(CONNECTOR, 1);
        pair.say(RELAY, 1);
        pair.advance(secs(1));
    }
    pair.assert_talking();
    assert!(!Pair::is_up(&pair, CONNECTOR));
    pair.connect(CONNECTOR, peer, None);
    pair.run_until(ms(100), |world| Pair::is_up(world, RELAY)).unwrap();
    pair.assert_talking();
}

#[test]
fn both_ends_that_connect_at_once_agree_and_follow_each_other() {
    for seed in 0..20 {
        let mut pair = Pair::new(seed);
        pair.link = Link { jitter: ms(15), ..Link::default() };
        let (at_relay, at_connector) = (pair.at_relay, pair.at_connector);
        let connector = pair.address(CONNECTOR);
        pair.connect(RELAY, at_relay, Some(connector));
        pair.connect(CONNECTOR, at_connector, None);
        pair.advance(ms(500));
        pair.link = Link::default();
        pair.assert_talking();
        pair.move_host(CONNECTOR, "198.51.100.8:1234");
        pair.assert_talking();
        let initiations = pair.sent(RELAY, Kind::Initiation) + pair.sent(CONNECTOR, Kind::Initiation);
        assert_eq!(initiations, 2, "seed {seed}");
    }
}

#[test]
fn ends_of_a_live_tunnel_that_connect_at_once_still_follow_each_other() {
    for seed in 0..40 {
        let mut pair = Pair::connected(seed);
        pair.advance(secs(3));
        pair.link = Link { jitter: ms(15), ..Link::default() };
        let (at_relay, at_connector) = (pair.at_relay, pair.at_connector);
        pair.connect(RELAY, at_relay, None);
        pair.connect(CONNECTOR, at_connector, None);
        pair.advance(ms(500));
        pair.link = Link::default();
        pair.move_host(CONNECTOR, "198.51.100.8:1234");
        pair.assert_talking();
    }
}
