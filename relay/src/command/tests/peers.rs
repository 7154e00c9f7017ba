//! Stock peers and the services behind them, as commands show and change them.

use culvert_model::key::{PrivateKey, Psk};

use super::*;
use crate::registry::RelayRow;

#[tokio::test]
async fn a_peer_is_added_shown_and_deleted() {
    let mut relay = Relay::new();
    let key = PublicKey::from_bytes([7; 32]);
    let psk = Psk::generate();
    let wanted = PeerWanted {
        allowed_ips: nets(&["10.20.0.9/16", "10.20.3.0/24", "fd00:20::/48"]),
        endpoint: Some("branch.example.com:51820".to_owned()),
        psk: Some(GivenPsk(psk.clone())),
        keepalive: std::num::NonZeroU16::new(25),
        dns: Some("10.20.0.53".parse().unwrap()),
        ..wanted("branch", Some(key))
    };
    let outcome = relay.ask(Command::PeerAdd { peer: wanted }).await.unwrap();
    assert_eq!(outcome.text, "", "nothing was made that would have to be shown");
    assert_eq!(outcome.notes[0], "allowed IPs 10.20.0.9/16 are taken as 10.20.0.0/16");
    assert_eq!(outcome.notes[1], "allowed IPs 10.20.3.0/24 are part of 10.20.0.0/16");
    assert_eq!(outcome.json["allowed_ips"], serde_json::json!(["10.20.0.0/16", "fd00:20::/48"]));
    assert_eq!((&outcome.json["state"], &outcome.json["last_handshake"]), (&"never".into(), &Value::Null));
    let row = relay.registry.load().await.unwrap().peers.remove(0);
    assert_eq!(outcome.changes, [Change::PeerAdded(row.id.clone())]);
    let sealed = row.psk.clone().unwrap();
    assert_eq!(relay.identity.unseal(&sealed, crate::identity::SealedFor::Peer(&key)), Ok(psk.clone()));
    relay.ask(Command::PeerAdd { peer: self::wanted("depot", None) }).await.unwrap();
    relay.ask(set("legacy", "http://10.20.0.5:8080", None)).await.unwrap();

    let live = LivePeer {
        runs: true,
        up: true,
        endpoint: Some("192.0.2.7:4000".parse().unwrap()),
        last_handshake: Some(now()),
        rx_bytes: 1234,
        tx_bytes: 56,
        notes: vec!["its key is used in two places".to_owned()],
    };
    relay.live.peers.insert(row.id.clone(), live);
    relay.live.tun_unavailable = Some("no /dev/net/tun".to_owned());
    let mut text = String::new();
    for (line, command) in [
        ("peer list", Command::PeerList),
        ("peer show branch", Command::PeerShow { peer: "branch".to_owned() }),
        ("service list", Command::ServiceList),
        ("service show legacy", Command::ServiceShow { service: "legacy".to_owned() }),
        ("status", Command::Status),
    ] {
        let outcome = relay.ask(command).await.unwrap();
        assert!(!outcome.text.contains(psk.to_base64().as_str()));
        let depot = relay.registry.load().await.unwrap().peers.into_iter().find(|row| row.name.as_str() == "depot");
        let shown = relay.made_plain(&outcome.text).replace(&depot.unwrap().public_key.to_string(), &"d".repeat(44));
        let shown = shown.replace(&row.inner_ipv6().to_string(), "fd43:554c:5645:…");
        let shown = shown.replace(&relay.registry.place().1.to_owned(), "…");
        text.push_str(&format!("$ culvert-relay {line}\n{shown}\n"));
    }
    golden("peers.txt", &text);
    let listed = relay.ask(Command::PeerList).await.unwrap();
    assert!(listed.notes[0].contains("no /dev/net/tun"), "{:?}", listed.notes);
    let [branch, _] = listed.json.as_array().unwrap().as_slice() else { panic!("{}", listed.json) };
    assert_eq!((&branch["state"], &branch["services"]), (&"up".into(), &serde_json::json!(["legacy"])));

    let deleted = relay.ask(Command::PeerDelete { peer: row.id.to_string() }).await.unwrap();
    assert_eq!(
        (&deleted.json["state"], deleted.changes.as_slice()),
        (&"revoked".into(), &[Change::PeerDeleted(row.id)][..])
    );
    assert_eq!(deleted.notes[1], "services behind it are forgotten: legacy");
    let gone = Quit::from(relay.ask(Command::PeerShow { peer: "branch".to_owned() }).await.unwrap_err());
    assert_eq!((gone.exit, gone.message.as_str()), (Exit::Failed, "no peer \"branch\""));
    let audit = relay.ask(Command::Audit { since_seconds: DAY }).await.unwrap();
    for action in ["peer.add", "peer.delete", "service.set"] {
        assert!(audit.text.contains(action), "{}", audit.text);
    }
    assert!(!audit.text.contains(psk.to_base64().as_str()));
}

#[tokio::test]
async fn what_the_other_side_gets_holds_no_secret_but_those_that_were_just_made() {
    let relay = Relay::new();
    let psk = Psk::generate();
    let key = PublicKey::from_bytes([7; 32]);
    let with = PeerWanted { psk: Some(GivenPsk(psk.clone())), ..wanted("branch", Some(key)) };
    relay.ask(Command::PeerAdd { peer: with }).await.unwrap();
    let config = |wanted| Command::PeerConfig { peer: "branch".to_owned(), wanted };
    let plain = relay.ask(config(PeerConfigWanted::default())).await.unwrap();
    assert!(plain.changes.is_empty() && !plain.text.contains(psk.to_base64().as_str()), "{}", plain.text);
    let row = relay.registry.load().await.unwrap().peers.remove(0);
    let shown = relay.made_plain(&plain.text).replace(&row.inner_ipv6().to_string(), "fd43:554c:5645:…");
    golden("peer_config.txt", &shown);

    let both =
        PeerConfigWanted { generate_key: true, generate_psk: true, endpoint: Some("[2001:db8::1]:51820".to_owned()) };
    let made = relay.ask(config(both)).await.unwrap();
    let value =
        |name: &str| made.text.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(" = ")?.to_owned()));
    let private: PrivateKey = value("PrivateKey").unwrap().parse().unwrap();
    let shared: Psk = value("PresharedKey").unwrap().parse().unwrap();
    assert_eq!(value("Endpoint").unwrap(), "[2001:db8::1]:51820");
    let after = relay.registry.load().await.unwrap().peers.remove(0);
    assert_eq!((after.public_key, &after.id), (private.public_key(), &row.id));
    let sealed = after.psk.clone().unwrap();
    assert_eq!(relay.identity.unseal(&sealed, crate::identity::SealedFor::Peer(&after.public_key)), Ok(shared.clone()));
    assert_eq!(made.changes, [Change::PeerChanged(row.id)]);

    // A new public key alone keeps the pre-shared one.
    let key_alone = PeerConfigWanted { generate_key: true, ..PeerConfigWanted::default() };
    let again = relay.ask(config(key_alone)).await.unwrap();
    assert!(!again.text.contains(shared.to_base64().as_str()), "{}", again.text);
    let last = relay.registry.load().await.unwrap().peers.remove(0);
    assert_ne!(last.public_key, after.public_key);
    let sealed = last.psk.clone().unwrap();
    assert_eq!(relay.identity.unseal(&sealed, crate::identity::SealedFor::Peer(&last.public_key)), Ok(shared));
    let audit = relay.ask(Command::Audit { since_seconds: DAY }).await.unwrap();
    assert!(audit.text.contains("peer.key") && !audit.text.contains(private.to_base64().as_str()), "{}", audit.text);
}

#[tokio::test]
async fn a_key_that_is_made_for_a_peer_is_shown_once_with_all_that_it_needs() {
    let relay = Relay::new();
    let outcome = relay.ask(Command::PeerAdd { peer: wanted("branch", None) }).await.unwrap();
    let key = outcome.text.lines().find_map(|line| line.strip_prefix("PrivateKey = ")).unwrap();
    let row = relay.registry.load().await.unwrap().peers.remove(0);
    assert_eq!(key.parse::<PrivateKey>().unwrap().public_key(), row.public_key);
    assert!(outcome.text.contains("Endpoint = relay.example.com:51820"), "{}", outcome.text);
    assert_eq!(outcome.json["config"], outcome.text);
    assert!(!outcome.notes.join("\n").contains(key));
    // Without an endpoint on either side nothing is made, and nothing is lost.
    let lost = Relay { endpoints: Vec::new(), ..Relay::new() };
    let quit = Quit::from(lost.ask(Command::PeerAdd { peer: wanted("branch", None) }).await.unwrap_err());
    assert_eq!(quit.exit, Exit::Config);
    assert!(lost.registry.load().await.unwrap().peers.is_empty());
    let dialled = PeerWanted { endpoint: Some("192.0.2.7:51821".to_owned()), ..wanted("branch", None) };
    let text = lost.ask(Command::PeerAdd { peer: dialled }).await.unwrap().text;
    assert!(text.contains("ListenPort = 51821") && !text.contains("Endpoint"), "{text}");
}

#[tokio::test]
async fn among_several_relays_it_is_said_that_a_peer_speaks_to_one() {
    let relay = Relay::new();
    let warns = |outcome: &Outcome| outcome.notes.iter().any(|note| note.contains("speaks to this relay alone"));
    let added = relay.ask(Command::PeerAdd { peer: wanted("branch", None) }).await.unwrap();
    assert!(!warns(&added), "{:?}", added.notes);
    let tags = [relay.identity.relay_tag(), "b".repeat(16)];
    for (number, tag) in tags.into_iter().enumerate() {
        let public_key = PublicKey::from_bytes([u8::try_from(number).unwrap(); 32]);
        let row = RelayRow { tag, public_key, kem_key: vec![7; 4], endpoints: Vec::new(), seen: now() };
        relay.registry.note_relay(row).await.unwrap();
    }
    let config = Command::PeerConfig { peer: "branch".to_owned(), wanted: PeerConfigWanted::default() };
    let shown = relay.ask(config).await.unwrap();
    assert!(warns(&shown), "{:?}", shown.notes);
}

#[tokio::test]
async fn each_mistake_about_a_peer_says_what_it_is() {
    let relay = Relay::new();
    relay.create("dc1", &["orders"]).await.unwrap();
    relay.ask(Command::PeerAdd { peer: wanted("branch", None) }).await.unwrap();
    let resolver = PeerWanted {
        allowed_ips: nets(&["10.30.0.0/16"]),
        dns: Some("10.30.0.53".parse().unwrap()),
        ..wanted("depot", None)
    };
    relay.ask(Command::PeerAdd { peer: resolver }).await.unwrap();
    relay.ask(set("named", "https://app.internal", Some("depot"))).await.unwrap();
    let add =
        |nets_: &[&str]| Command::PeerAdd { peer: PeerWanted { allowed_ips: nets(nets_), ..wanted("other", None) } };
    let outside = PeerWanted { dns: Some("192.0.2.1".parse().unwrap()), ..wanted("other", None) };
    let with_ca = |origin: &str, ca: &str| match set("legacy", origin, None) {
        Command::ServiceSet { service, tunnel, peer, origin, host, health_path, .. } => {
            Command::ServiceSet { service, tunnel, peer, origin, host, health_path, ca: Some(ca.to_owned()) }
        }
        other => other,
    };
    for (command, message, hint) in [
        (add(&["10.20.7.0/24"]), "allowed IPs 10.20.7.0/24 overlap 10.20.0.0/16 of peer branch", None),
        (add(&["127.0.0.0/8"]), "allowed IPs 127.0.0.0/8 cannot lie behind a peer", Some("as 10.20.0.0/16")),
        (
            add(&["fd43:554c:5645:1::/64"]),
            "overlap fd43:554c:5645::/48, which the relay uses",
            Some("without that one"),
        ),
        (add(&["100.127.81.0/24"]), "overlap 100.127.80.0/20, which the relay uses", Some("inner_ipv4")),
        (Command::PeerAdd { peer: outside }, "the resolver 192.0.2.1 is not in the allowed IPs", Some("--dns")),
        (Command::PeerAdd { peer: wanted("branch", None) }, "a peer named branch exists", None),
        (Command::PeerDelete { peer: "nobody".to_owned() }, "no peer \"nobody\"", Some("`peer list`")),
        (
            set("legacy", "http://10.30.0.5:80", None),
            "10.30.0.5 is not in the allowed IPs of peer branch: 10.20.0.0/16",
            Some("10.20.0.0/16"),
        ),
        (set("legacy", "http://app.internal", None), "app.internal is a name", Some("--dns")),
        (set("legacy", "unix:/run/app.sock", None), "unix:/run/app.sock is a socket of one machine", Some("http://")),
        (set("orders", "http://10.20.0.5", None), "service orders belongs to tunnel dc1", None),
        (set("named", "http://10.20.0.5", None), "service named belongs to peer depot", Some("service delete named")),
        (set("legacy", "http://10.20.0.5", Some("nobody")), "no peer \"nobody\"", Some("`peer list`")),
        (with_ca("http://10.20.0.5", "x"), "has no certificate that --ca could verify", Some("https://")),
        (with_ca("https://10.20.0.5", "x"), "a file without a certificate", Some("PEM")),
    ] {
        let shown = format!("{command:?}");
        let quit = Quit::from(relay.ask(command).await.expect_err(&shown));
        assert_eq!(quit.exit, Exit::Failed, "{shown}");
        assert!(quit.message.contains(message) && !quit.message.contains('\n'), "{shown}: {}", quit.message);
        let told = quit.hint.unwrap_or_default();
        assert!(hint.is_none_or(|words| told.contains(words)), "{shown}: {told}");
    }
    let granted = relay.create("dc2", &["named"]).await.unwrap_err().to_string();
    assert_eq!(granted, "service named belongs to peer depot");
    let deleted = relay.ask(Command::ServiceDelete { service: "named".to_owned() }).await.unwrap();
    assert_eq!(deleted.notes, ["service named behind peer depot forgotten"]);
    relay.create("dc2", &["named"]).await.unwrap();
}

#[test]
fn a_pre_shared_key_travels_with_its_request_and_is_not_printed() {
    let psk = Psk::generate();
    let peer = PeerWanted { psk: Some(GivenPsk(psk.clone())), ..wanted("branch", None) };
    let request = Request { actor: String::new(), command: Command::PeerAdd { peer } };
    assert!(!format!("{request:?}").contains(psk.to_base64().as_str()));
    let back: Request = serde_json::from_str(&serde_json::to_string(&request).unwrap()).unwrap();
    assert_eq!(back, request);
}

fn wanted(name: &str, public_key: Option<PublicKey>) -> PeerWanted {
    PeerWanted {
        name: name.parse().unwrap(),
        public_key,
        allowed_ips: nets(&[if name == "depot" { "10.30.0.0/16" } else { "10.20.0.0/16" }]),
        endpoint: None,
        psk: None,
        keepalive: None,
        dns: None,
    }
}

fn set(service: &str, origin: &str, peer: Option<&str>) -> Command {
    Command::ServiceSet {
        service: service.parse().unwrap(),
        tunnel: None,
        peer: Some(peer.unwrap_or("branch").to_owned()),
        origin: origin.to_owned(),
        host: None,
        health_path: None,
        ca: None,
    }
}

fn nets(nets: &[&str]) -> Vec<IpNet> {
    nets.iter().map(|net| net.parse().unwrap()).collect()
}
