//! The suite's part on stock peers and the services behind them.

use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU16;

use culvert_model::address;
use culvert_model::id::StockPeerId;
use culvert_model::key::PublicKey;
use ipnet::IpNet;

use super::super::managed::MANAGED_AT_MOST;
use super::super::rows::{ManagedRow, PeerRow, PeerSealRow, PeerServiceRow, RelayRow, TokenRow};
use super::super::{Enrolment, Note, PeerKeys, RegistryError, Reserved, Rule, TOMBSTONE};
use super::{MINUTE, START, Subject, candidate, create, join, key, names, root, sealed, token, tunnel};

pub(in crate::registry) async fn a_peer_is_loaded_as_it_was_added_and_free_again_when_it_is_deleted(registry: Subject) {
    let whole = PeerRow {
        endpoint: Some("branch.example.com:51820".parse().unwrap()),
        psk: Some(sealed()),
        keepalive: NonZeroU16::new(25),
        dns: Some("10.20.0.53".parse().unwrap()),
        ..peer("branch", &["10.20.0.0/16", "fd00:20::/48"])
    };
    let added = registry.add_peer(whole.clone(), reserved(), root()).await.unwrap();
    assert_eq!(added.inner_ipv4, Some(Ipv4Addr::new(100, 127, 80, 2)), "the relay's own address is skipped");
    assert_eq!(PeerRow { inner_ipv4: None, ..added.clone() }, whole);
    let other = registry.add_peer(peer("depot", &["10.30.0.0/16"]), reserved(), root()).await.unwrap();
    assert_eq!(other.inner_ipv4, Some(Ipv4Addr::new(100, 127, 80, 3)));
    assert_eq!(registry.load().await.unwrap().peers, [added.clone(), other]);
    registry.set_peer_service(service("legacy", &added), root()).await.unwrap();
    let gone = registry.delete_peer(added.id.clone(), root(), START + MINUTE).await.unwrap();
    assert_eq!(gone, names(&["legacy"]), "services go with their peer");
    let again = registry.delete_peer(added.id.clone(), root(), START).await;
    assert_eq!(again, Err(Rule::NoSuchPeer(added.id.clone()).into()));
    let snapshot = registry.load().await.unwrap();
    assert!(snapshot.peer_services.is_empty());
    let ended = snapshot.peers.iter().find(|row| row.id == added.id).unwrap();
    assert_eq!((ended.revoked, &ended.psk), (Some(START + MINUTE), &None));
    // Name, key and networks are free.
    let back = registry.add_peer(PeerRow { id: StockPeerId::new(), ..whole }, reserved(), root()).await.unwrap();
    assert_eq!(back.inner_ipv4, added.inner_ipv4);
    registry.forget(Vec::new(), START + MINUTE + TOMBSTONE).await.unwrap();
    let left: Vec<_> = registry.load().await.unwrap().peers.into_iter().map(|row| row.id).collect();
    assert!(!left.contains(&added.id) && left.contains(&back.id));
}

pub(in crate::registry) async fn networks_of_two_peers_never_overlap_and_the_relays_are_nobodys(registry: Subject) {
    let add = async |name: &str, nets: &[&str]| registry.add_peer(peer(name, nets), reserved(), root()).await;
    let branch = add("branch", &["10.20.0.0/16", "fd00:20::/48"]).await.unwrap();
    let overlap = |net: &str, theirs: &str| -> RegistryError {
        let (net, theirs) = (net.parse().unwrap(), theirs.parse().unwrap());
        Rule::PeerOverlap { net, theirs, other: "branch".parse().unwrap() }.into()
    };
    for (net, theirs) in [
        ("10.20.3.0/24", "10.20.0.0/16"),
        ("10.0.0.0/8", "10.20.0.0/16"),
        ("fd00:20:0:1::/64", "fd00:20::/48"),
        ("0.0.0.0/0", "10.20.0.0/16"),
    ] {
        let refused = add("depot", &["192.168.0.0/24", net]).await.unwrap_err();
        assert_eq!(refused, overlap(net, theirs));
        assert!(refused.to_string().contains("branch"), "{refused}");
    }
    for (net, own) in [
        ("fd43:554c:5645:7::/64", address::PREFIX.to_string()),
        ("::/0", address::PREFIX.to_string()),
        ("100.64.0.0/10", "100.127.80.0/20".to_owned()),
        ("100.127.80.9/32", "100.127.80.0/20".to_owned()),
    ] {
        let refused = add("depot", &[net]).await.unwrap_err();
        let rule = Rule::PeerOverlapsRelay { net: net.parse().unwrap(), own: own.parse().unwrap() };
        assert_eq!(refused, rule.into());
    }
    assert_eq!(registry.load().await.unwrap().peers.len(), 1, "nothing of what is refused stays");
    registry.delete_peer(branch.id, root(), START).await.unwrap();
    // All of IPv4 behind one peer: another gets no address of its own there.
    let all = add("branch", &["0.0.0.0/0"]).await.unwrap();
    assert_eq!(all.inner_networks(), ["0.0.0.0/0".parse().unwrap(), IpNet::from(IpAddr::from(all.inner_ipv6()))]);
    let other = add("depot", &["fd00:30::/48"]).await.unwrap();
    assert_eq!(other.inner_ipv4, None);
    assert_eq!(add("third", &["10.1.0.0/16"]).await.unwrap_err(), overlap("10.1.0.0/16", "0.0.0.0/0"));
}

pub(in crate::registry) async fn a_name_and_a_key_are_one_peers_alone(registry: Subject) {
    let (tunnel, spare) = create(&registry, "dc1", &["orders"]).await;
    let member = candidate(&spare, START);
    let connector = join(&registry, member.clone()).await;
    let relay =
        RelayRow { tag: "b".repeat(16), public_key: key(), kem_key: vec![7; 4], endpoints: Vec::new(), seen: START };
    registry.note_relay(relay.clone()).await.unwrap();
    let branch = registry.add_peer(peer("branch", &["10.20.0.0/16"]), reserved(), root()).await.unwrap();
    let named = registry.add_peer(peer("branch", &["10.30.0.0/16"]), reserved(), root()).await;
    assert_eq!(named, Err(Rule::PeerExists(branch.name.clone()).into()));
    let own = reserved().keys[0];
    for (taken, owner) in [
        (branch.public_key, "peer branch's".to_owned()),
        (member.public_key, format!("connector {connector}'s")),
        (spare.bootstrap_key, format!("token {}'s", spare.id)),
        (relay.public_key, "a relay's own: the other side's is expected".to_owned()),
        (own, "a relay's own: the other side's is expected".to_owned()),
    ] {
        let wanted = PeerRow { public_key: taken, ..peer("depot", &["10.30.0.0/16"]) };
        let refused = registry.add_peer(wanted, reserved(), root()).await;
        assert_eq!(refused, Err(Rule::PeerKeyTaken { owner }.into()));
    }
    // Nor does a connector come with a peer's key.
    let token = TokenRow { uses_left: None, ..token(&tunnel, None) };
    registry.create_token(token.clone(), root()).await.unwrap();
    let impostor = super::super::Candidate { public_key: branch.public_key, ..candidate(&token, START) };
    assert!(matches!(registry.enrol(impostor).await.unwrap(), Enrolment::Refused { .. }));
}

pub(in crate::registry) async fn a_peers_keys_change_and_what_other_relays_had_of_them_goes(registry: Subject) {
    let with = PeerRow { psk: Some(sealed()), ..peer("branch", &["10.20.0.0/16"]) };
    let branch = registry.add_peer(with, reserved(), root()).await.unwrap();
    let depot = registry.add_peer(peer("depot", &["10.30.0.0/16"]), reserved(), root()).await.unwrap();
    let relay =
        RelayRow { tag: "b".repeat(16), public_key: key(), kem_key: vec![7; 4], endpoints: Vec::new(), seen: START };
    registry.note_relay(relay.clone()).await.unwrap();
    let seal = PeerSealRow { peer: branch.id.clone(), relay: relay.tag.clone(), sealed: sealed() };
    let needless = PeerSealRow { peer: depot.id.clone(), ..seal.clone() };
    registry.seal_peers(vec![seal.clone(), needless]).await.unwrap();
    let other = PeerSealRow { sealed: sealed(), ..seal.clone() };
    registry.seal_peers(vec![other]).await.unwrap();
    let kept = registry.load().await.unwrap().peer_seals;
    assert_eq!(kept, std::slice::from_ref(&seal), "what is there stays");
    let keys = PeerKeys { public_key: key(), psk: Some(sealed()), action: "peer.key" };
    let now = START + MINUTE;
    let after = registry.set_peer_keys(branch.id.clone(), keys.clone(), reserved(), root(), now).await.unwrap();
    assert_eq!((after.public_key, &after.psk), (keys.public_key, &keys.psk));
    let snapshot = registry.load().await.unwrap();
    assert_eq!((&snapshot.peers[0], snapshot.peer_seals.len()), (&after, 0));
    let taken = PeerKeys { public_key: depot.public_key, ..keys };
    let refused = registry.set_peer_keys(branch.id.clone(), taken, reserved(), root(), now).await;
    assert_eq!(refused, Err(Rule::PeerKeyTaken { owner: "peer depot's".to_owned() }.into()));
    registry.seal_peers(vec![seal]).await.unwrap();
    let lost = RelayRow { kem_key: vec![8; 4], ..relay };
    registry.note_relay(lost).await.unwrap();
    assert!(registry.load().await.unwrap().peer_seals.is_empty(), "a relay that lost its key needs another seal");
}

pub(in crate::registry) async fn a_service_behind_a_peer_is_owned_like_an_exact_grant(registry: Subject) {
    let branch = registry.add_peer(peer("branch", &["10.20.0.0/16"]), reserved(), root()).await.unwrap();
    let depot = registry.add_peer(peer("depot", &["10.30.0.0/16"]), reserved(), root()).await.unwrap();
    create(&registry, "dc1", &["orders"]).await;
    let (wide, _) = create(&registry, "dc2", &["*"]).await;
    let taken = registry.set_peer_service(service("orders", &branch), root()).await;
    assert_eq!(taken, Err(Rule::Owned { service: "orders".parse().unwrap(), owner: "dc1".parse().unwrap() }.into()));
    let managed = ManagedRow {
        name: "billing".parse().unwrap(),
        tunnel: wide.id.clone(),
        origin: "http://a:1".to_owned(),
        host: None,
        health_path: None,
        since: START,
    };
    registry.set_managed(managed, root()).await.unwrap();
    let taken = registry.set_peer_service(service("billing", &branch), root()).await;
    assert_eq!(taken, Err(Rule::Owned { service: "billing".parse().unwrap(), owner: wide.name.clone() }.into()));
    // A pattern that came first loses the name, and gets it no more.
    assert_eq!(registry.announce(wide.id.clone(), names(&["legacy"]), START).await.unwrap().accepted.len(), 1);
    registry.set_peer_service(service("legacy", &branch), root()).await.unwrap();
    let decision = registry.announce(wide.id.clone(), names(&["legacy"]), START).await.unwrap();
    assert_eq!(decision.refused, [("legacy".parse().unwrap(), "legacy belongs to peer branch".to_owned())]);
    let other = registry.set_peer_service(service("legacy", &depot), root()).await;
    let owned: RegistryError =
        Rule::OwnedByPeer { service: "legacy".parse().unwrap(), owner: branch.name.clone() }.into();
    assert_eq!(other, Err(owned.clone()));
    let tunnel = tunnel("dc3", &["legacy"]);
    let token = token(&tunnel, None);
    assert_eq!(registry.create_tunnel(tunnel, token, root()).await, Err(owned));
    let whole = PeerServiceRow {
        host: Some("legacy.example".to_owned()),
        health_path: Some("/healthz".to_owned()),
        ca: Some("-----BEGIN".to_owned()),
        since: START + MINUTE,
        ..service("legacy", &branch)
    };
    registry.set_peer_service(whole.clone(), root()).await.unwrap();
    let snapshot = registry.load().await.unwrap();
    assert_eq!(snapshot.peer_services, [whole]);
    assert!(snapshot.services.iter().all(|row| row.name.as_str() != "legacy"));
    let trail = registry.audit_since(START + MINUTE).await.unwrap();
    let detail = "peer branch, http://10.20.0.5:8080, host legacy.example, health path /healthz, own authorities";
    assert!(trail.iter().any(|row| row.action == "service.set" && row.detail == detail), "{trail:?}");
    assert_eq!(registry.delete_service("legacy".parse().unwrap(), root(), START).await, Ok(Vec::new()));
    assert!(registry.load().await.unwrap().peer_services.is_empty());
    assert_eq!(registry.announce(wide.id, names(&["legacy"]), START).await.unwrap().accepted.len(), 1, "free again");
}

pub(in crate::registry) async fn what_was_noticed_of_a_peer_is_kept_for_each_relay(registry: Subject) {
    let branch = registry.add_peer(peer("branch", &["10.20.0.0/16"]), reserved(), root()).await.unwrap();
    let (remote, local) = ("192.0.2.7:1234".parse().unwrap(), "198.51.100.1:51820".parse().unwrap());
    let heard =
        |relay: &str, remote| Note::PeerEndpoint { peer: branch.id.clone(), relay: relay.to_owned(), remote, local };
    let elsewhere = "192.0.2.9:5".parse().unwrap();
    let unknown = Note::PeerHandshake { peer: StockPeerId::new(), at: START };
    let notes = vec![
        heard("a", elsewhere),
        heard("a", remote),
        unknown,
        heard("b", elsewhere),
        Note::PeerHandshake { peer: branch.id.clone(), at: START + MINUTE },
    ];
    registry.note(notes).await.unwrap();
    let row = registry.load().await.unwrap().peers.remove(0);
    assert_eq!(row.heard_by("a"), Some((remote, local)));
    assert_eq!(row.heard_by("b"), Some((elsewhere, local)));
    assert_eq!(row.heard_by("c"), None);
    assert_eq!((row.last_endpoint, row.last_handshake), (Some(elsewhere), Some(START + MINUTE)));
}

pub(in crate::registry) async fn two_relays_that_add_overlapping_peers_at_once_add_one(registry: Subject) {
    let rivals = (0..8).map(|number| {
        let registry = registry.clone();
        let wanted = peer(&format!("p{number}"), &["10.0.0.0/8"]);
        tokio::spawn(async move { registry.add_peer(wanted, reserved(), root()).await.is_ok() })
    });
    let mut added = 0;
    for rival in rivals.collect::<Vec<_>>() {
        added += usize::from(rival.await.unwrap());
    }
    assert_eq!((added, registry.load().await.unwrap().peers.len()), (1, 1));
}

pub(in crate::registry) async fn services_behind_a_peer_are_so_many_at_most(registry: Subject) {
    let branch = registry.add_peer(peer("branch", &["10.20.0.0/16"]), reserved(), root()).await.unwrap();
    for number in 0..MANAGED_AT_MOST {
        registry.set_peer_service(service(&format!("s{number}"), &branch), root()).await.unwrap();
    }
    let beyond = registry.set_peer_service(service("beyond", &branch), root()).await;
    assert_eq!(beyond, Err(Rule::NoRoomForPeerServices(branch.name.clone()).into()));
    registry.set_peer_service(service("s3", &branch), root()).await.expect("one that is there is changed");
}

fn reserved() -> Reserved {
    Reserved { inner_ipv4: "100.127.80.1/20".parse().unwrap(), keys: vec![PublicKey::from_bytes([9; 32])] }
}

fn peer(name: &str, nets: &[&str]) -> PeerRow {
    PeerRow {
        id: StockPeerId::new(),
        name: name.parse().unwrap(),
        public_key: key(),
        allowed_ips: nets.iter().map(|net| net.parse().unwrap()).collect(),
        inner_ipv4: None,
        endpoint: None,
        psk: None,
        keepalive: None,
        dns: None,
        created: START,
        heard: Vec::new(),
        last_endpoint: None,
        last_handshake: None,
        revoked: None,
    }
}

fn service(name: &str, peer: &PeerRow) -> PeerServiceRow {
    PeerServiceRow {
        name: name.parse().unwrap(),
        peer: peer.id.clone(),
        origin: "http://10.20.0.5:8080".to_owned(),
        host: None,
        health_path: None,
        ca: None,
        since: START,
    }
}
