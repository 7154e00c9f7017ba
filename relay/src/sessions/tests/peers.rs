//! Stock peers beside connectors: when they run, when they are gone, and whose a name is.

use super::*;
use crate::command::{GivenPsk, PeerConfigWanted, PeerWanted};

#[tokio::test]
async fn a_stock_peer_is_up_when_it_shook_hands_and_gone_when_it_has_another_key_or_is_deleted() {
    let rig = Rig::new(&["orders"]).await;
    let (key, psk) = (PrivateKey::generate(), Psk::generate());
    let changes = rig.sessions.peers().changes();
    rig.command(add(&key, &psk)).await;
    rig.command(behind("legacy")).await;
    assert_eq!(*changes.borrow(), 2, "once for the peer, once for the service");
    let only = || rig.sessions.peers().services().remove(0).0;
    let stock = only();
    assert!(!stock.is_up() && !stock.is_gone());
    assert_eq!(rig.sessions.peers().count(), [("up", 0), ("lost", 0), ("never", 1)]);
    let far = come(&rig, key.clone(), psk.clone());
    rig.until("it is up", || stock.is_up()).await;
    let live = rig.sessions.peers().live().remove(&stock.row.id).unwrap();
    assert!(live.up && live.runs && live.last_handshake.is_some() && live.endpoint.is_some(), "{live:?}");
    let deadline = Instant::now() + SOON;
    let heard = loop {
        let row = rig.registry.load().await.unwrap().peers.remove(0);
        if let (Some(heard), Some(_)) = (row.heard.first().cloned(), row.last_handshake) {
            break heard;
        }
        assert!(Instant::now() < deadline, "where it was heard is not written");
        tokio::task::yield_now().await;
    };
    assert_eq!((heard.relay, Some(heard.remote)), (rig.identity.relay_tag(), live.endpoint));

    // What was noticed makes it no other peer; another key does.
    rig.command(Command::PeerList).await;
    assert!(Arc::ptr_eq(&stock, &only()));
    let wanted =
        PeerConfigWanted { generate_key: true, endpoint: Some("127.0.0.1:1".to_owned()), ..Default::default() };
    rig.command(Command::PeerConfig { peer: "branch".to_owned(), wanted }).await;
    assert!(stock.is_gone() && !only().is_gone() && !only().is_up());
    let now = rig.registry.load().await.unwrap().peers.remove(0).public_key;
    let renewed = only();
    rig.command(Command::PeerDelete { peer: "branch".to_owned() }).await;
    tokio::time::timeout(SOON, renewed.gone()).await.unwrap();
    assert!(rig.sessions.peers().services().is_empty() && rig.directory.find("legacy").is_none());
    assert_eq!(rig.sessions.peers().deleted(&now).map(|name| name.to_string()).as_deref(), Some("branch"));
    far.shutdown(CloseCode::Shutdown).await;
}

#[tokio::test]
async fn a_pattern_loses_a_name_to_a_peer_and_has_it_again_when_the_peer_is_gone() {
    let rig = Rig::new(&["*"]).await;
    let _run = rig.join("a").await.come(&rig, &["legacy", "orders"]).await;
    rig.until("both are served", || rig.count("legacy") == (1, 1) && rig.count("orders") == (1, 1)).await;
    rig.command(add(&PrivateKey::generate(), &Psk::generate())).await;
    rig.command(behind("legacy")).await;
    rig.until("the peer has its name alone", || rig.count("legacy") == (0, 0)).await;
    assert_eq!(rig.count("orders"), (1, 1), "the others stay");
    rig.command(Command::PeerDelete { peer: "branch".to_owned() }).await;
    rig.until("the connector has it back", || rig.count("legacy") == (1, 1)).await;
}

fn add(key: &PrivateKey, psk: &Psk) -> Command {
    let peer = PeerWanted {
        name: "branch".parse().unwrap(),
        public_key: Some(key.public_key()),
        allowed_ips: vec!["10.20.0.0/16".parse().unwrap()],
        endpoint: None,
        psk: Some(GivenPsk(psk.clone())),
        keepalive: None,
        dns: None,
    };
    Command::PeerAdd { peer }
}

fn behind(service: &str) -> Command {
    Command::ServiceSet {
        service: service.parse().unwrap(),
        tunnel: None,
        peer: Some("branch".to_owned()),
        origin: "http://10.20.0.5:8080".to_owned(),
        host: None,
        health_path: None,
        ca: None,
    }
}

/// The other side: it shakes hands with the relay.
fn come(rig: &Rig, key: PrivateKey, psk: Psk) -> Plane {
    let mine = culvert_plane::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let (plane, _events) = plane(Role::Connector, key, BOOTSTRAP_INNER, mine);
    let peer = plane.add_peer(rig.peer(rig.identity.public_key(), 0, psk)).unwrap();
    plane.connect(peer, None);
    plane
}
