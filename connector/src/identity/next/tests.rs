use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use culvert_model::token::{RelayRef, Token};

use super::super::files::rename;
use super::super::{Admission, fingerprint, relays_of};
use super::*;

const START: SystemTime = SystemTime::UNIX_EPOCH;

/// A connector that joined at two relays.
struct Host {
    store: Store,
    state: StateDir,
    identity: Identity,
}

impl Host {
    fn new() -> Self {
        let state = StateDir::temporary().unwrap();
        let store = Store::Directory(state.clone());
        let refs = ["a.example:1", "b.example:1"]
            .map(|text| RelayRef { endpoint: text.parse().unwrap(), public_key: PrivateKey::generate().public_key() });
        let token = Token::generate(refs.to_vec());
        let candidate = store.candidate(&fingerprint(&token)).unwrap();
        let admission = |relay: &str| Admission {
            id: "con_aaaaaaaaaaaaaaaa".parse().unwrap(),
            inner_address: "fd43:554c:5645::9".parse().unwrap(),
            tunnel: "shop".parse().unwrap(),
            relay: relay.to_owned(),
            psk: Psk::generate(),
            psk_epoch: 1,
        };
        let relays = relays_of(token.relays());
        let mut identity = store.join(&candidate, relays, admission("a.example"), START).unwrap();
        store.enrolled_at(&mut identity, &admission("b.example"), START).unwrap();
        Self { store, state, identity }
    }

    fn reload(&self) -> Identity {
        self.store.load().unwrap().unwrap()
    }

    fn next(&self) -> Option<Next> {
        self.store.next_key(&self.reload().joined).unwrap()
    }

    /// With both relays told of a next key.
    fn with_next() -> (Self, Next) {
        let host = Self::new();
        let mut next = host.store.make_next(&host.identity.joined, START).unwrap();
        for relay in ["a.example", "b.example"] {
            host.store.next_known(&mut next, relay, Psk::generate(), 1, START).unwrap();
        }
        (host, next)
    }
}

/// One change of one file.
type Step<'a> = Box<dyn Fn(&StateDir) + 'a>;

/// The same directory, elsewhere.
fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            fs::create_dir_all(&target).unwrap();
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), &target).unwrap();
        }
    }
}

#[test]
fn a_next_key_is_written_before_anybody_hears_of_it_and_stays_the_same() {
    let host = Host::new();
    assert!(host.next().is_none());
    let made = host.store.make_next(&host.identity.joined, START).unwrap();
    assert_eq!(host.next().unwrap().public_key(), made.public_key());
    assert_eq!(host.store.make_next(&host.identity.joined, START).unwrap().public_key(), made.public_key());
    let mode = fs::metadata(host.state.path().join("next/private.key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(host.reload().private_key.public_key(), host.identity.private_key.public_key(), "it is not in use yet");
    host.store.drop_next();
    assert!(host.next().is_none() && !host.state.path().join("next").exists());
}

#[test]
fn a_key_without_its_mark_or_with_anothers_is_not_used() {
    let host = Host::new();
    let made = host.store.make_next(&host.identity.joined, START).unwrap();
    host.state.remove(STARTED).unwrap();
    assert!(host.next().is_none());
    assert_ne!(host.store.make_next(&host.identity.joined, START).unwrap().public_key(), made.public_key());
    let other = Joined { id: ConnectorId::new(), ..host.identity.joined.clone() };
    assert!(host.store.next_key(&other).unwrap().is_none());
}

#[test]
fn what_each_relay_answered_survives_a_restart() {
    let host = Host::new();
    let mut next = host.store.make_next(&host.identity.joined, START).unwrap();
    host.store.next_known(&mut next, "b.example", Psk::from_bytes([1; 32]), 1, START).unwrap();
    assert_eq!(host.next().unwrap().psks, next.psks);
    host.store.next_known(&mut next, "b.example", Psk::from_bytes([2; 32]), 2, START).unwrap();
    let psks = host.next().unwrap().psks.remove("b.example").unwrap();
    assert_eq!(psks.for_engine().iter().map(|psk| psk.epoch).collect::<Vec<_>>(), [1, 2], "the relay answers both");
}

#[test]
fn a_change_of_keys_cut_short_at_any_file_leaves_a_connector_that_comes_back_as_itself() {
    let (host, next) = Host::with_next();
    let (old_key, new_key) = (host.identity.private_key.public_key(), next.public_key());
    // What it comes to when nothing goes wrong.
    let whole = StateDir::temporary().unwrap();
    copy(host.state.path(), whole.path());
    let mut identity = host.identity.clone();
    Store::Directory(whole.clone()).take_over(&mut identity, &next).unwrap();
    let joined = whole.read(JOINED).unwrap().unwrap();
    // Every prefix of its steps, made by hand.
    let of = |relay: &str, file: &str| format!("relays/{relay}/{file}");
    let mut steps: Vec<Step<'_>> = vec![Box::new(|state| state.write("next/joined.json", &joined).unwrap())];
    steps.push(Box::new(|state| rename(state, "next/private.key", "private.key").unwrap()));
    for name in
        ["a.example", "b.example"].iter().flat_map(|relay| [of(relay, "preshared.key"), of(relay, "epochs.key")])
    {
        steps.push(Box::new(move |state| rename(state, &format!("next/{name}"), &name).unwrap()));
    }
    steps.push(Box::new(|state| rename(state, "next/joined.json", "joined.json").unwrap()));
    steps.push(Box::new(|state| state.remove("next/started.json").unwrap()));
    for cut in 0..=steps.len() {
        let state = StateDir::temporary().unwrap();
        copy(host.state.path(), state.path());
        steps.iter().take(cut).for_each(|step| step(&state));
        let store = Store::Directory(state.clone());
        let (peeked, _) = store.peek().unwrap().unwrap();
        let loaded = store.load().unwrap().unwrap();
        assert_eq!(loaded.private_key.public_key(), if cut == 0 { old_key } else { new_key }, "{cut}");
        assert_eq!(peeked, loaded.private_key.public_key(), "{cut}");
        assert_eq!((&loaded.joined.id, loaded.psks.len()), (&host.identity.joined.id, 2), "{cut}");
        let expected = if cut == 0 { &host.identity.psks } else { &next.psks };
        let keys = |psks: &BTreeMap<String, Psks>| {
            psks.iter().map(|(relay, psks)| (relay.clone(), psks.newest_key().cloned())).collect::<Vec<_>>()
        };
        assert_eq!(keys(&loaded.psks), keys(expected), "{cut}");
        assert_eq!(store.next_key(&loaded.joined).unwrap().is_some(), cut == 0, "{cut}");
        assert_eq!(loaded.joined.rekeyed_seconds.is_some(), cut > 0, "{cut}");
    }
}

#[test]
fn making_a_next_key_cut_short_at_any_file_changes_nothing() {
    for cut in 0..3 {
        let host = Host::new();
        if cut > 0 {
            host.state.create_dir("next").unwrap();
            write_line(&host.state, "next/private.key", &PrivateKey::generate().to_base64()).unwrap();
        }
        if cut > 1 {
            host.state.write(".unfinished-x", b"half a mark").unwrap();
        }
        assert!(host.next().is_none());
        assert_eq!(host.reload().private_key.public_key(), host.identity.private_key.public_key());
        assert!(host.store.make_next(&host.identity.joined, START).is_ok());
    }
}

#[test]
fn a_relay_that_never_heard_of_the_new_key_has_to_be_joined_again_and_the_others_stay_as_safe_as_they_were() {
    let host = Host::new();
    let mut identity = host.identity.clone();
    let used = START + Duration::from_secs(5);
    host.store.used(&mut identity, "a.example", 1, used).unwrap();
    let mut next = host.store.make_next(&identity.joined, START).unwrap();
    host.store.next_known(&mut next, "a.example", Psk::generate(), 1, START).unwrap();
    host.store.take_over(&mut identity, &next).unwrap();
    let loaded = host.reload();
    assert_eq!((&loaded.joined, &loaded.psks), (&identity.joined, &identity.psks));
    assert_eq!(loaded.psks.keys().collect::<Vec<_>>(), ["a.example"]);
    assert_eq!(loaded.psks["a.example"].since(None).0, Some(used));
    assert_eq!(loaded.joined.relays.iter().map(|relay| relay.psk_epoch).collect::<Vec<_>>(), [Some(1), None]);
    assert!(!host.state.path().join("relays/b.example/epochs.key").exists(), "the old key is of no use with the new");
}

#[test]
fn joining_anew_ends_a_change_of_keys() {
    let (host, _) = Host::with_next();
    let refs =
        vec![RelayRef { endpoint: "c.example:1".parse().unwrap(), public_key: PrivateKey::generate().public_key() }];
    let token = Token::generate(refs);
    let candidate = host.store.candidate(&fingerprint(&token)).unwrap();
    let admission = Admission {
        id: ConnectorId::new(),
        inner_address: "fd43:554c:5645::7".parse().unwrap(),
        tunnel: "shop".parse().unwrap(),
        relay: "c.example".to_owned(),
        psk: Psk::generate(),
        psk_epoch: 1,
    };
    let joined = host.store.join(&candidate, relays_of(token.relays()), admission, START).unwrap();
    assert!(host.next().is_none());
    assert_eq!(host.reload().private_key.public_key(), joined.private_key.public_key());
}

#[test]
fn a_next_key_that_others_can_read_is_refused() {
    let (host, _) = Host::with_next();
    let path = host.state.path().join("next/private.key");
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(host.store.next_key(&host.identity.joined).is_err());
}
