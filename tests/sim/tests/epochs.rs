//! Pre-shared keys: rotation without loss, ends that disagree, two static keys of one relay (wire.md §3).

use std::time::Duration;

use culvert_engine::{DropReason, Event, HandshakeLimits, PeerConfig, PskEpoch};
use culvert_model::key::{PrivateKey, Psk};
use culvert_sim::{Kind, Link, Pair};

const RELAY: usize = Pair::RELAY;
const CONNECTOR: usize = Pair::CONNECTOR;

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn pair(seed: u64, relay: &[u32], connector: &[u32]) -> Pair {
    Pair::with(seed, None, [relay.to_vec(), connector.to_vec()], HandshakeLimits::default())
}

fn set_psks(pair: &mut Pair, host: usize, epochs: &[u32]) {
    let peer = if host == RELAY { pair.at_relay } else { pair.at_connector };
    let now = pair.now();
    let psks = epochs.iter().map(|epoch| Pair::psk(*epoch)).collect();
    pair.engine(host).set_psks(peer, psks, now).unwrap();
}

fn epoch(pair: &mut Pair, host: usize) -> Option<u32> {
    let peer = if host == RELAY { pair.at_relay } else { pair.at_connector };
    pair.engine(host).peer_stats(peer).unwrap().psk_epoch
}

#[test]
fn a_pre_shared_key_is_rotated_under_load_and_no_packet_is_lost() {
    for seed in 0..5 {
        let mut pair = pair(seed, &[4], &[4]);
        pair.link = Link { jitter: ms(30), ..Link::default() };
        pair.come_up();
        let mut number = 0;
        let mut talk = |pair: &mut Pair, for_secs: u32| {
            for _ in 0..for_secs * 20 {
                assert!(pair.say(CONNECTOR, number) && pair.say(RELAY, number), "seed {seed} at {:?}", pair.time());
                number += 1;
                pair.advance(ms(50));
            }
            number as usize
        };
        talk(&mut pair, 5);
        for new in 5..9 {
            set_psks(&mut pair, RELAY, &[new - 1, new]);
            talk(&mut pair, 1);
            set_psks(&mut pair, CONNECTOR, &[new - 1, new]);
            talk(&mut pair, 1);
            assert_eq!(epoch(&mut pair, RELAY), Some(new - 1));
            let peer = pair.at_connector;
            pair.connect(CONNECTOR, peer, None);
            talk(&mut pair, 1);
            for host in [RELAY, CONNECTOR] {
                assert_eq!(epoch(&mut pair, host), Some(new));
                let promoted = |event: &Event| matches!(event, Event::EpochPromoted { epoch, .. } if *epoch == new);
                assert_eq!(pair.events(host).iter().filter(|(_, event)| promoted(event)).count(), 1);
            }
            talk(&mut pair, 185);
        }
        let said = talk(&mut pair, 200);
        pair.advance(secs(1));
        assert_eq!((pair.heard(RELAY).len(), pair.heard(CONNECTOR).len()), (said, said), "seed {seed}");
    }
}

#[test]
fn the_old_key_is_answered_for_three_minutes_after_promotion_and_then_no_more() {
    let mut pair = pair(1, &[4, 5], &[4, 5]);
    pair.come_up();
    assert_eq!(epoch(&mut pair, RELAY), Some(5));
    // A thief of the old key alone, or a peer restored from a backup.
    let relay = pair.path_to(RELAY);
    pair.psks[CONNECTOR] = vec![4];
    pair.advance(secs(170));
    pair.restart(CONNECTOR, Some(relay), 0);
    let peer = pair.at_connector;
    pair.connect(CONNECTOR, peer, None);
    pair.advance(secs(1));
    assert_eq!(epoch(&mut pair, RELAY), Some(4));
    pair.advance(secs(12));
    pair.restart(CONNECTOR, Some(relay), 0);
    pair.clear_events(RELAY);
    pair.clear_events(CONNECTOR);
    let peer = pair.at_connector;
    pair.connect(CONNECTOR, peer, None);
    pair.advance(secs(60));
    assert!(!Pair::is_up(&pair, RELAY) && !Pair::is_up(&pair, CONNECTOR));
}

#[test]
fn an_end_that_starts_with_two_epochs_tries_both() {
    for (relay, connector, agreed) in [(&[4][..], &[4, 5][..], 4), (&[5], &[4, 5], 5), (&[4, 5], &[4, 5], 5)] {
        let mut pair = pair(2, relay, connector);
        let peer = pair.at_connector;
        pair.connect(CONNECTOR, peer, None);
        let took = pair.run_until(secs(30), |world| Pair::is_up(world, RELAY)).unwrap();
        assert!(took <= secs(6), "{relay:?}: {took:?}");
        assert_eq!(epoch(&mut pair, CONNECTOR), Some(agreed));
        pair.assert_talking();
    }
}

#[test]
fn the_relay_picks_the_key_by_the_index_of_the_initiation() {
    for (connector, expected) in [(4, Some(4)), (5, Some(5)), (6, None)] {
        let mut pair = pair(3, &[4, 5], &[connector]);
        let peer = pair.at_connector;
        pair.connect(CONNECTOR, peer, None);
        pair.advance(secs(3));
        assert_eq!(epoch(&mut pair, RELAY), expected);
    }
}

#[test]
fn a_pre_shared_key_taken_away_ends_no_session_before_its_time() {
    let mut pair = pair(4, &[4], &[4]);
    pair.come_up();
    set_psks(&mut pair, RELAY, &[5]);
    set_psks(&mut pair, CONNECTOR, &[5]);
    pair.assert_talking();
    assert_eq!(epoch(&mut pair, RELAY), Some(4));
    // Nobody asks for the new one: the rekey brings it.
    pair.advance(secs(122));
    assert_eq!((epoch(&mut pair, RELAY), epoch(&mut pair, CONNECTOR)), (Some(5), Some(5)));
    pair.assert_talking();
}

#[test]
fn two_keys_of_a_relay_live_on_one_port() {
    let mut pair = Pair::new(5);
    let new = PrivateKey::generate();
    let statics = vec![new.clone(), pair.relay_key.clone()];
    pair.world.restart(RELAY, statics, 0);
    pair.introduce(RELAY, None);
    let (now, relay) = (pair.now(), pair.path_to(RELAY));
    // The connector was told of the new key; the old one still answers.
    let mut names = Vec::new();
    for key in [&new, &pair.relay_key.clone()] {
        let config = PeerConfig {
            public_key: key.public_key(),
            static_index: 0,
            psks: Vec::new(),
            allowed_ips: vec![format!("{}/128", Pair::RELAY_INNER).parse().unwrap()],
            path: Some(relay),
            persistent_keepalive: None,
        };
        let old = pair.at_connector;
        pair.engine(CONNECTOR).remove_peer(old);
        pair.at_connector = pair.engine(CONNECTOR).add_peer(config, now).unwrap();
        let peer = pair.at_connector;
        pair.connect(CONNECTOR, peer, None);
        pair.advance(secs(2));
        pair.assert_talking();
        names.push(pair.events(RELAY).len());
    }
    assert_eq!(names, [1, 2]);
    // A call-back uses the key that the connector confirmed last: the old one.
    pair.advance(secs(200));
    pair.clear_events(CONNECTOR);
    let peer = pair.at_relay;
    pair.connect(RELAY, peer, None);
    pair.advance(ms(100));
    assert!(Pair::is_up(&pair, CONNECTOR));
}

#[test]
fn a_wrong_pre_shared_key_makes_no_session_and_the_attempt_says_so() {
    let mut pair = pair(6, &[4], &[4]);
    let (now, peer) = (pair.now(), pair.at_connector);
    let wrong = vec![PskEpoch { epoch: 4, psk: Psk::from_bytes([0xee; 32]) }];
    pair.engine(CONNECTOR).set_psks(peer, wrong, now).unwrap();
    pair.connect(CONNECTOR, peer, None);
    pair.advance(secs(20));
    assert!(!Pair::is_up(&pair, RELAY) && !Pair::is_up(&pair, CONNECTOR));
    assert!(pair.engine(CONNECTOR).stats().dropped(DropReason::BadSeal) >= 3);
    assert!(pair.events(CONNECTOR).iter().all(|(_, event)| matches!(event, Event::Unanswered { .. })));
    assert!(pair.sent(RELAY, Kind::Response) >= 3);
}
