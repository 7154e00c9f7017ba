use std::os::unix::fs::PermissionsExt as _;

use super::files::rename;
use super::*;

fn token(endpoints: &[&str]) -> Token {
    let refs = endpoints.iter().map(|text| RelayRef {
        endpoint: text.parse().unwrap(),
        public_key: PrivateKey::from_bytes([7; 32]).public_key(),
    });
    Token::generate(refs.collect())
}

fn store() -> (Store, StateDir) {
    let state = StateDir::temporary().unwrap();
    (Store::Directory(state.clone()), state)
}

fn admission(relay: &str) -> Admission {
    Admission {
        id: ConnectorId::new(),
        inner_address: "fd43:554c:5645::9".parse().unwrap(),
        tunnel: "shop".parse().unwrap(),
        relay: relay.to_owned(),
        psk: Psk::generate(),
        psk_epoch: 1,
    }
}

fn joined(store: &Store, token: &Token) -> Identity {
    let relays = relays_of(token.relays());
    let candidate = store.candidate(&fingerprint(token)).unwrap();
    let admission = admission(&relays[0].name);
    store.join(&candidate, relays, admission, SystemTime::now()).unwrap()
}

#[test]
fn endpoints_of_one_key_are_one_relay_and_names_are_distinct() {
    let key = |byte| PrivateKey::from_bytes([byte; 32]).public_key();
    let refs = [("a.example:1", 1), ("[2001:db8::1]:1", 2), ("b.example:1", 1), ("a.example:2", 3), ("a.example:2", 4)]
        .map(|(text, byte)| RelayRef { endpoint: text.parse().unwrap(), public_key: key(byte) });
    let relays = relays_of(&refs);
    let names: Vec<_> = relays.iter().map(|relay| relay.name.as_str()).collect();
    assert_eq!(names, ["a.example", "2001_db8__1", "a.example_2", "a.example_2_"]);
    assert_eq!(relays[0].endpoints, ["a.example:1", "b.example:1"]);
}

#[test]
fn a_relay_that_is_learned_stays_known_and_one_that_is_gone_leaves_nothing() {
    let (store, state) = store();
    let mut identity = joined(&store, &token(&["a.example:1"]));
    let later = Relay::new("b".to_owned(), PrivateKey::from_bytes([9; 32]).public_key(), vec!["b:1".to_owned()]);
    let both = vec![identity.joined.relays[0].clone(), later];
    store.know_relays(&mut identity, both).unwrap();
    store.enrolled_at(&mut identity, &admission("b"), SystemTime::now()).unwrap();
    assert!(!state.path().join(PRESHARED).exists(), "which one would it be");
    let loaded = store.load().unwrap().unwrap();
    assert_eq!((loaded.joined.relays.len(), loaded.psks.len()), (2, 2));
    let first = vec![identity.joined.relays[0].clone()];
    store.know_relays(&mut identity, first).unwrap();
    assert!(!state.path().join("relays/b").exists());
    assert_eq!(identity.psks.len(), 1);
}

#[test]
fn a_candidate_is_the_same_for_the_same_token_and_another_for_another() {
    let (store, state) = store();
    let first = store.candidate("one").unwrap();
    let again = store.candidate("one").unwrap();
    assert!(first.private_key == again.private_key && first.kem.seed() == again.kem.seed());
    let other = store.candidate("two").unwrap();
    assert!(first.private_key != other.private_key);
    let mode = fs::metadata(state.path().join("joining/private.key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn keys_that_were_not_marked_whole_are_not_used() {
    let (store, state) = store();
    let first = store.candidate("one").unwrap();
    state.remove("joining/token").unwrap();
    assert!(store.candidate("one").unwrap().private_key != first.private_key);
}

#[test]
fn an_identity_survives_a_restart_and_needs_no_token() {
    let (store, state) = store();
    let token = token(&["relay.example:51820"]);
    let made = joined(&store, &token);
    let read = store.load().unwrap().unwrap();
    assert_eq!((read.joined.clone(), read.private_key == made.private_key), (made.joined, true));
    assert_eq!(read.psks, made.psks);
    assert_eq!(read.joined.token, fingerprint(&token));
    let text = |name: &str| fs::read_to_string(state.path().join(name)).unwrap();
    assert_eq!(text("preshared.key"), text("relays/relay.example/preshared.key"));
    assert_eq!(text("preshared.key").len(), 45, "as `wg genpsk` writes it");
    assert!(!state.path().join("joining").exists());
}

#[test]
fn a_join_cut_short_at_any_file_is_completed_or_repeated_as_the_same_connector() {
    // Every prefix of the steps of `join`, made by hand: the state after it must lead to the same key.
    for cut in 0..7 {
        let (store, state) = store();
        let token = token(&["relay.example:51820"]);
        let relays = relays_of(token.relays());
        let candidate = store.candidate(&fingerprint(&token)).unwrap();
        let key = candidate.private_key.clone();
        let admission = admission("relay.example");
        if cut > 0 {
            state.create_dir("joining/relays/relay.example").unwrap();
            let psks = Psks::new(1, admission.psk.clone(), SystemTime::UNIX_EPOCH);
            write_psks(&state, JOINING, "relay.example", &psks).unwrap();
        }
        if cut > 1 {
            let mut relays = relays.clone();
            relays[0].psk_epoch = Some(1);
            let joined = Joined {
                version: 1,
                id: admission.id.clone(),
                inner_address: admission.inner_address,
                tunnel: admission.tunnel.clone(),
                token: fingerprint(&token),
                joined_seconds: 0,
                rekeyed_seconds: None,
                relays,
            };
            write_joined(&state, "joining/joined.json", &joined).unwrap();
        }
        if cut > 2 {
            rename(&state, "joining/private.key", "private.key").unwrap();
        }
        for (cut_before, name) in [(3, "preshared.key"), (4, "epochs.key")] {
            if cut > cut_before {
                let name = format!("relays/relay.example/{name}");
                state.create_dir("relays/relay.example").unwrap();
                rename(&state, &format!("joining/{name}"), &name).unwrap();
            }
        }
        if cut > 5 {
            rename(&state, "joining/joined.json", "joined.json").unwrap();
        }
        match store.load().unwrap() {
            None => {
                assert!(cut <= 1, "{cut}");
                assert!(store.candidate(&fingerprint(&token)).unwrap().private_key == key);
            }
            Some(identity) => {
                assert!(cut > 1 && identity.private_key == key, "{cut}");
                let psks = identity.psks.get("relay.example").unwrap();
                assert_eq!(psks.newest_key(), Some(&admission.psk), "{cut}");
            }
        }
    }
}

#[test]
fn another_token_replaces_the_identity_only_once_it_worked() {
    let (store, state) = store();
    let old = joined(&store, &token(&["old.example:1"]));
    let new_token = token(&["new.example:1"]);
    let candidate = store.candidate(&fingerprint(&new_token)).unwrap();
    let read = store.load().unwrap().unwrap();
    assert!(read.private_key == old.private_key && candidate.private_key != old.private_key);
    let new = joined(&store, &new_token);
    assert!(new.private_key == candidate.private_key);
    assert!(store.load().unwrap().unwrap().private_key == new.private_key);
    assert!(!state.path().join("relays/old.example").exists());
}

#[test]
fn a_second_relay_is_noted_beside_the_first() {
    let (store, _state) = store();
    let refs = ["a.example:1", "b.example:1"]
        .map(|text| RelayRef { endpoint: text.parse().unwrap(), public_key: PrivateKey::generate().public_key() });
    let token = Token::generate(refs.to_vec());
    let mut identity = joined(&store, &token);
    assert_eq!(identity.joined.relays[1].psk_epoch, None);
    let second = Admission { id: identity.joined.id.clone(), ..admission("b.example") };
    store.enrolled_at(&mut identity, &second, SystemTime::now()).unwrap();
    let read = store.load().unwrap().unwrap();
    assert_eq!((read.joined, read.psks), (identity.joined, identity.psks));
}

#[test]
fn a_renewed_pre_shared_key_is_kept_beside_the_old_one_until_that_is_forgotten() {
    let (store, state) = store();
    let mut identity = joined(&store, &token(&["relay.example:51820"]));
    let now = SystemTime::now();
    store.renewed(&mut identity, "relay.example", Psk::from_bytes([2; 32]), 2, now).unwrap();
    assert_eq!(store.load().unwrap().unwrap().psks, identity.psks);
    let epochs = |identity: &Identity| identity.psks["relay.example"].for_engine().len();
    assert_eq!(epochs(&identity), 2);
    assert!(store.renewed(&mut identity, "relay.example", Psk::generate(), 5, now).is_err(), "a gap");
    assert!(store.renewed(&mut identity, "elsewhere", Psk::generate(), 2, now).is_err());
    store.used(&mut identity, "relay.example", 2, now).unwrap();
    store.forget_before(&mut identity, "relay.example", 2).unwrap();
    let read = store.load().unwrap().unwrap();
    assert_eq!((epochs(&read), &read.psks), (1, &identity.psks));
    let newest = Psk::from_bytes([2; 32]).to_base64();
    for copy in ["preshared.key", "relays/relay.example/preshared.key"] {
        assert_eq!(state.read_text(copy).unwrap().unwrap(), newest, "{copy}");
    }
    store.renewed(&mut identity, "relay.example", Psk::generate(), 3, now).unwrap();
    store.forget_before(&mut identity, "relay.example", 3).unwrap();
    store.renewed_anew(&mut identity, "relay.example", Psk::generate(), 9, now).unwrap();
    assert_eq!(store.load().unwrap().unwrap().psks, identity.psks);
    assert_eq!(identity.psks["relay.example"].newest(), Some(9));
}

#[test]
fn an_identity_that_an_earlier_version_wrote_is_read() {
    let (store, state) = store();
    let made = joined(&store, &token(&["relay.example:51820"]));
    state.remove("relays/relay.example/epochs.key").unwrap();
    let read = store.load().unwrap().unwrap();
    let psks = |identity: &Identity| identity.psks["relay.example"].newest_key().cloned();
    assert_eq!((psks(&read), read.psks["relay.example"].newest()), (psks(&made), Some(1)));
}

#[test]
fn a_damaged_file_is_named() {
    let (store, state) = store();
    joined(&store, &token(&["relay.example:51820"]));
    state.write("private.key", b"hello\n").unwrap();
    assert!(store.load().unwrap_err().to_string().contains("private.key"));
}
