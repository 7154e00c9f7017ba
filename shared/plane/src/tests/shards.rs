//! Several shards of one relay: a peer lives on one of them, wherever its datagrams land.

use culvert_engine::{AddPeerError, BootstrapConfig};
use culvert_model::address::BOOTSTRAP_INNER;
use culvert_model::key::Psk;
use tokio::runtime::Handle;

use super::*;
use crate::{KeyError, PeerKey};

const SHARDS: usize = 2;
const AT: &str = "192.0.2.1:51820";

/// A relay of two shards, on the test's own runtime.
struct Relay {
    plane: Plane,
    events: Events,
    own: PrivateKey,
}

impl Relay {
    fn start(network: &Network) -> Self {
        Self::start_with(network, PrivateKey::generate(), HandshakeLimits::default())
    }

    fn start_with(network: &Network, own: PrivateKey, handshakes: HandshakeLimits) -> Self {
        let statics = vec![own.clone()];
        let config = Config {
            role: Role::Relay,
            sockets: Vec::new(),
            engine: culvert_engine::Config { statics, shard: Shard::default(), handshakes, seed: None },
            instance: InstanceId::new(),
            inner: RELAY_INNER,
            reset_secret: [7; 32],
            streams: StreamLimits::default(),
        };
        let carriers = network.group(AT.parse().unwrap(), SHARDS);
        let seats = carriers.into_iter().map(|carrier| (Handle::current(), vec![carrier])).collect();
        let (plane, events) = Plane::start_on(seats, config, PROTOCOL_VERSION).unwrap();
        Self { plane, events, own }
    }

    /// A connector that this relay knows.
    fn add(&self, number: u8) -> (PeerId, Identity) {
        let identity = self.connector(number);
        (self.plane.add_peer(self.known(&identity)).unwrap(), identity)
    }

    /// A connector.
    fn connector(&self, number: u8) -> Identity {
        Identity {
            role: Role::Connector,
            own: PrivateKey::generate(),
            peer: self.own.clone(),
            at: SocketAddr::from(([192, 0, 2, 100 + number], 40_000)),
            inner: connector_inner(&ConnectorId::new()),
            peer_inner: RELAY_INNER,
        }
    }

    /// How the relay knows a connector.
    fn known(&self, connector: &Identity) -> PeerConfig {
        let identity = Identity {
            role: Role::Relay,
            own: self.own.clone(),
            peer: connector.own.clone(),
            at: AT.parse().unwrap(),
            inner: RELAY_INNER,
            peer_inner: connector.inner,
        };
        peer_config(&identity)
    }

    async fn connected(&mut self) -> Connection {
        soon(async {
            loop {
                if let Event::Connected(connection) = self.events.recv().await.expect("the plane lives") {
                    return connection;
                }
            }
        })
        .await
    }

    fn passed(&self) -> (u64, u64) {
        let plane = self.plane.stats().plane;
        (plane.passed_on, plane.passed_lost)
    }
}

/// As a kernel that steers, with initiations on this shard.
fn steered(initiations: usize) -> impl FnMut(&[u8]) -> usize {
    let bits = Shard::bits_for(SHARDS);
    move |datagram| Shard::of_datagram(datagram, bits).map_or(initiations, usize::from)
}

/// Bytes go over and come back.
async fn echo(near: &Connection, far: &Connection, length: usize) {
    let body = bytes(length, 9);
    let asking = async {
        let mut stream = near.open().await.unwrap();
        stream.write_all(&body).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut back = Vec::new();
        stream.read_to_end(&mut back).await.unwrap();
        back
    };
    let answering = async {
        let mut stream = far.accept().await.unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.unwrap();
        stream.write_all(&all).await.unwrap();
        stream.shutdown().await.unwrap();
    };
    let (back, ()) = soon(async { tokio::join!(asking, answering) }).await;
    assert!(back == body);
}

#[tokio::test]
async fn a_peer_comes_up_wherever_its_datagrams_land() {
    for landing in 0..SHARDS {
        let network = Network::new();
        // Nothing steers: everything lands on one shard.
        network.set_landing(move |_| landing);
        let mut relay = Relay::start(&network);
        let mut shards = Vec::new();
        for number in 0..2 {
            let (peer, identity) = relay.add(number);
            let connector = start(&network, &identity);
            let near = connector.dial(AT.parse().unwrap()).await;
            let far = relay.connected().await;
            assert_eq!(far.peer(), peer);
            shards.push(peer.shard());
            let before = relay.passed();
            echo(&near, &far, 300_000).await;
            let passed = relay.passed();
            assert_eq!(passed.0 > before.0, usize::from(peer.shard()) != landing, "{passed:?}");
            assert_eq!(passed.1, 0);
        }
        shards.sort_unstable();
        assert_eq!(shards, [0, 1], "peers are spread");
    }
}

#[tokio::test]
async fn steered_datagrams_need_no_passing_on_but_the_initiation_does() {
    let network = Network::new();
    let mut relay = Relay::start(&network);
    let (first, _) = relay.add(0);
    let (second, identity) = relay.add(1);
    assert_eq!((first.shard(), second.shard()), (0, 1));
    network.set_landing(steered(0));
    let connector = start(&network, &identity);
    let near = connector.dial(AT.parse().unwrap()).await;
    let far = relay.connected().await;
    echo(&near, &far, 300_000).await;
    assert_eq!(relay.passed(), (1, 0));
    assert_eq!(relay.plane.stats_by_shard()[1].engine.live, 1);
    // The next session's, too.
    connector.plane.connect(connector.peer, None);
    relay
        .until(|event| match event {
            Event::SessionUp { peer, first: false, .. } => Some(peer),
            _ => None,
        })
        .await;
    assert_eq!(relay.passed(), (2, 0));
}

#[tokio::test]
async fn a_restarted_relay_calls_a_peer_of_any_shard_back() {
    let network = Network::new();
    let mut relay = Relay::start(&network);
    relay.add(0);
    let (peer, identity) = relay.add(1);
    let connector = start(&network, &identity);
    // The answer lands on the wrong shard; its index tells.
    network.set_landing(|_| 0);
    relay.plane.connect(peer, Some(identity.at));
    let near = soon(connector.plane.dial(connector.peer)).await.unwrap();
    let far = relay.connected().await;
    assert_eq!(far.peer().shard(), 1);
    echo(&near, &far, 1000).await;
}

#[tokio::test]
async fn a_joiner_lives_on_the_first_shard_wherever_it_knocks() {
    let network = Network::new();
    network.set_landing(steered(1));
    let mut relay = Relay::start(&network);
    let (token, psk) = (PrivateKey::generate(), Psk::generate());
    let allowed_ips = vec![std::net::IpAddr::V6(BOOTSTRAP_INNER).into()];
    let bootstrap = BootstrapConfig { public_key: token.public_key(), static_index: 0, psk: psk.clone(), allowed_ips };
    let bootstrap = relay.plane.add_bootstrap(bootstrap).unwrap();
    let identity = Identity {
        role: Role::Connector,
        own: token,
        peer: relay.own.clone(),
        at: "192.0.2.9:9".parse().unwrap(),
        inner: BOOTSTRAP_INNER,
        peer_inner: RELAY_INNER,
    };
    let joiner = start(&network, &identity);
    joiner.plane.set_psks(joiner.peer, vec![crate::PskEpoch { epoch: 0, psk }]).unwrap();
    let near = joiner.dial(AT.parse().unwrap()).await;
    let far = relay.connected().await;
    assert_eq!((far.peer().shard(), far.bootstrap()), (0, Some(bootstrap)));
    echo(&near, &far, 1000).await;
    // Its key is worth nothing once the token is gone, on any shard.
    relay.plane.remove_bootstrap(bootstrap);
    relay.knocks(&joiner).await;
}

#[tokio::test]
async fn a_stranger_is_told_of_once_and_passed_to_nobody() {
    let network = Network::new();
    let mut relay = Relay::start(&network);
    let (peer, identity) = relay.add(0);
    soon(relay.plane.remove_peer(peer, CloseCode::Revoked)).await;
    network.set_landing(steered(1));
    let connector = start(&network, &identity);
    connector.plane.connect(connector.peer, Some(AT.parse().unwrap()));
    let key = relay
        .until(|event| match event {
            Event::Stranger { public_key, .. } => Some(public_key),
            _ => None,
        })
        .await;
    assert_eq!(key, identity.own.public_key());
    assert_eq!(relay.passed(), (0, 0));
    assert_eq!(relay.plane.stats().engine.responses, 0);
}

#[tokio::test]
async fn a_peers_next_key_is_known_on_its_shard_and_its_old_one_nowhere() {
    let network = Network::new();
    network.set_landing(steered(0));
    let mut relay = Relay::start(&network);
    relay.add(0);
    let (peer, identity) = relay.add(1);
    assert_eq!(peer.shard(), 1);
    let connector = start(&network, &identity);
    let near = connector.dial(AT.parse().unwrap()).await;
    let far = relay.connected().await;
    // A second key of the connector and of the relay, used by another process of it.
    let (next, own) = (PrivateKey::generate(), PrivateKey::generate());
    let numbered = relay.plane.add_static(&own);
    assert_eq!(numbered, 1);
    let key = PeerKey { public_key: next.public_key(), static_index: numbered, psks: Vec::new() };
    relay.plane.add_key(peer, key.clone(), false).unwrap();
    assert!(
        matches!(relay.plane.add_peer(renamed(&relay.known(&identity), &next)), Err(AddPeerError::KnownKey(p)) if p == peer)
    );
    drop(connector);
    let renewed = Identity { own: next.clone(), peer: own.clone(), ..identity.clone() };
    let connector = start(&network, &renewed);
    let again = connector.dial(AT.parse().unwrap()).await;
    let far_again = relay.connected().await;
    assert_eq!(far_again.peer(), peer);
    echo(&again, &far_again, 1000).await;
    drop((near, far));
    relay.plane.remove_key(peer, &identity.own.public_key(), None).unwrap();
    assert_eq!(relay.plane.remove_key(peer, &next.public_key(), None), Err(KeyError::Last));
    relay.plane.remove_static(0, numbered).unwrap();
    assert_eq!(relay.plane.remove_static(0, numbered), Err(KeyError::UnknownKey));
    echo(&again, &far_again, 1000).await;
    // The old key may be another peer's now, on another shard.
    let other = relay.plane.add_peer(PeerConfig {
        static_index: numbered,
        allowed_ips: vec![std::net::IpAddr::V6(connector_inner(&ConnectorId::new())).into()],
        ..relay.known(&identity)
    });
    assert_eq!(other.unwrap().shard(), 0);
}

fn renamed(peer: &PeerConfig, key: &PrivateKey) -> PeerConfig {
    PeerConfig { public_key: key.public_key(), static_index: 1, allowed_ips: Vec::new(), ..peer.clone() }
}

#[tokio::test]
async fn two_shards_do_not_hold_one_address_twice() {
    let network = Network::new();
    let relay = Relay::start(&network);
    let (first, identity) = relay.add(0);
    let twin = PeerConfig { public_key: PrivateKey::generate().public_key(), ..relay.known(&identity) };
    let net = twin.allowed_ips[0];
    assert_eq!(relay.plane.add_peer(twin.clone()), Err(AddPeerError::Overlap { net, with: first }));
    let (_, other) = relay.add(1);
    let stock = relay.plane.add_stock_peer(PeerConfig { allowed_ips: relay.known(&other).allowed_ips, ..twin });
    assert!(matches!(stock, Err(AddPeerError::Overlap { .. })), "{stock:?}");
    let known = relay
        .plane
        .add_stock_peer(PeerConfig { allowed_ips: vec!["10.0.0.0/24".parse().unwrap()], ..relay.known(&other) });
    assert!(matches!(known, Err(AddPeerError::KnownKey(_))), "{known:?}");
}

#[tokio::test]
async fn a_peer_that_is_to_be_apart_goes_where_the_others_are_not_however_full_that_is() {
    let network = Network::new();
    let relay = Relay::start(&network);
    let ids: Vec<PeerId> = (0..3).map(|number| relay.add(number).0).collect();
    assert_eq!(ids.iter().map(|id| id.shard()).collect::<Vec<_>>(), [0, 1, 0]);
    let apart = |others: &[PeerId]| relay.plane.add_peer_apart(relay.known(&relay.connector(9)), others).unwrap();
    let first = apart(&ids[1..2]);
    assert_eq!(first.shard(), 0, "which has two already");
    assert_eq!(apart(&[ids[0], first]).shard(), 1);
    assert_eq!(apart(&[ids[0], first, ids[1]]).shard(), 1, "which has fewer of the others");
    assert_eq!(apart(&[]).shard(), 0, "then the one with the fewest");
}

#[tokio::test]
async fn a_cookie_is_asked_for_once_by_the_shard_that_was_knocked_at() {
    let network = Network::new();
    network.set_landing(steered(0));
    let always = HandshakeLimits { cookies_above_per_second: 0, ..HandshakeLimits::default() };
    let mut relay = Relay::start_with(&network, PrivateKey::generate(), always);
    relay.add(0);
    let (peer, identity) = relay.add(1);
    assert_eq!(peer.shard(), 1);
    let connector = start(&network, &identity);
    let near = connector.dial(AT.parse().unwrap()).await;
    let far = relay.connected().await;
    echo(&near, &far, 1000).await;
    let cookies: Vec<_> = relay.plane.stats_by_shard().iter().map(|stats| stats.engine.cookies).collect();
    assert_eq!(cookies, [1, 0]);
    assert!(relay.plane.stats_by_shard()[1].engine.under_load, "what was passed on counts there");
}

#[tokio::test]
async fn shutdown_and_removal_reach_peers_of_every_shard() {
    let network = Network::new();
    network.set_landing(steered(0));
    let mut relay = Relay::start(&network);
    let mut ends = Vec::new();
    for number in 0..3 {
        let (peer, identity) = relay.add(number);
        let connector = start(&network, &identity);
        let near = connector.dial(AT.parse().unwrap()).await;
        ends.push((peer, connector, near, relay.connected().await));
    }
    assert_eq!(ends.iter().map(|(peer, ..)| peer.shard()).collect::<Vec<_>>(), [0, 1, 0]);
    soon(relay.plane.remove_peer(ends[1].0, CloseCode::Revoked)).await;
    assert_eq!(soon(ends[1].2.closed()).await.code, Some(CloseCode::Revoked));
    assert_eq!(relay.plane.peer_stats(ends[1].0), None);
    let (_, identity) = relay.add(9);
    let connector = start(&network, &identity);
    let near = connector.dial(AT.parse().unwrap()).await;
    assert_eq!(relay.connected().await.peer().shard(), 1, "there is room again");
    soon(relay.plane.shutdown(CloseCode::Shutdown)).await;
    for near in [&ends[0].2, &ends[2].2, &near] {
        assert_eq!(soon(near.closed()).await.code, Some(CloseCode::Shutdown));
    }
}

impl Relay {
    async fn until<T>(&mut self, mut wanted: impl FnMut(Event) -> Option<T>) -> T {
        soon(async {
            loop {
                let event = self.events.recv().await.expect("the plane lives");
                if let Some(found) = wanted(event) {
                    return found;
                }
            }
        })
        .await
    }

    /// The end knocks, and nobody answers but the word that a stranger came.
    async fn knocks(&mut self, end: &End) {
        let before = self.plane.stats().engine.responses;
        end.plane.connect(end.peer, Some(AT.parse().unwrap()));
        self.until(|event| matches!(event, Event::Stranger { .. }).then_some(())).await;
        assert_eq!(self.plane.stats().engine.responses, before);
    }
}
