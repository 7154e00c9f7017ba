//! Two planes over real sockets on loopback: joining by a token's key, bulk, and a relay on two sockets.

use std::future::Future;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use culvert_engine::{BootstrapConfig, HandshakeLimits, PeerConfig, Shard};
use culvert_model::address::{BOOTSTRAP_INNER, RELAY_INNER, connector_inner};
use culvert_model::close::CloseCode;
use culvert_model::id::{ConnectorId, InstanceId};
use culvert_model::key::{PrivateKey, Psk};
use culvert_plane::{
    Config, Connection, Event, Events, Further, PeerId, Plane, PskEpoch, Role, StreamLimits, bind, bind_group,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

async fn soon<T>(what: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(30), what).await.expect("in time")
}

fn start(role: Role, own: &PrivateKey, inner: Ipv6Addr, at: &[&str]) -> (Plane, Events) {
    let sockets = at.iter().map(|at| bind(at.parse().unwrap()).unwrap()).collect();
    let statics = vec![own.clone()];
    let handshakes = HandshakeLimits::default();
    let engine = culvert_engine::Config { statics, shard: Shard::default(), handshakes, seed: None };
    let (instance, streams) = (InstanceId::new(), StreamLimits::default());
    Plane::start(Config { role, sockets, engine, instance, inner, reset_secret: [1; 32], streams }).unwrap()
}

fn peer(key: &PrivateKey, psk: Option<&Psk>, inner: Ipv6Addr) -> PeerConfig {
    PeerConfig {
        public_key: key.public_key(),
        static_index: 0,
        psks: psk.map(|psk| PskEpoch { epoch: 0, psk: psk.clone() }).into_iter().collect(),
        allowed_ips: vec![IpAddr::V6(inner).into()],
        path: None,
        persistent_keepalive: None,
    }
}

async fn dial(plane: &Plane, peer: PeerId, to: SocketAddr) -> Connection {
    plane.connect(peer, Some(to));
    soon(plane.dial(peer)).await.unwrap()
}

async fn connected(events: &mut Events) -> Connection {
    soon(async {
        loop {
            if let Event::Connected(connection) = events.recv().await.expect("the plane lives") {
                return connection;
            }
        }
    })
    .await
}

#[tokio::test]
async fn megabytes_pass_over_ipv4_and_ipv6_sockets_of_one_relay() {
    let relay_key = PrivateKey::generate();
    let (relay, mut events) = start(Role::Relay, &relay_key, RELAY_INNER, &["127.0.0.1:0", "[::1]:0"]);
    let body: Vec<u8> = (0..4_u32 << 20).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    for (to, from) in relay.local_addrs().into_iter().zip(["127.0.0.1:0", "[::1]:0"]) {
        let (key, psk, inner) = (PrivateKey::generate(), Psk::generate(), connector_inner(&ConnectorId::new()));
        let (connector, _events) = start(Role::Connector, &key, inner, &[from]);
        relay.add_peer(peer(&key, Some(&psk), inner)).unwrap();
        let id = connector.add_peer(peer(&relay_key, Some(&psk), RELAY_INNER)).unwrap();
        let near = dial(&connector, id, to).await;
        let far = connected(&mut events).await;
        for (from, to) in [(&far, &near), (&near, &far)] {
            let sending = async {
                let mut stream = from.open().await.unwrap();
                stream.write_all(&body).await.unwrap();
                stream.shutdown().await.unwrap();
                // Half-closed, not dropped: the other end finishes in its own time.
                assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
            };
            let receiving = async {
                let mut stream = to.accept().await.unwrap();
                let mut got = Vec::new();
                stream.read_to_end(&mut got).await.unwrap();
                stream.shutdown().await.unwrap();
                got
            };
            let ((), got) = soon(async { tokio::join!(sending, receiving) }).await;
            assert!(got == body);
        }
        let stats = near.stats();
        assert!(stats.mtu > 1300, "{stats:?}");
    }
    let send = relay.stats().send;
    assert_eq!(send.refused, 0);
    assert!(send.datagrams > 4 * send.sends, "datagrams share system calls: {send:?}");
}

#[tokio::test]
async fn joiners_with_one_tokens_key_are_kept_apart_and_then_come_as_themselves() {
    let (relay_key, token_key, token_psk) = (PrivateKey::generate(), PrivateKey::generate(), Psk::generate());
    let (relay, mut events) = start(Role::Relay, &relay_key, RELAY_INNER, &["127.0.0.1:0"]);
    let at = relay.local_addrs()[0];
    let bootstrap = BootstrapConfig {
        public_key: token_key.public_key(),
        static_index: 0,
        psk: token_psk.clone(),
        allowed_ips: vec![IpAddr::V6(BOOTSTRAP_INNER).into()],
    };
    let bootstrap = relay.add_bootstrap(bootstrap).unwrap();
    let mut joiners = Vec::new();
    for _ in 0..3 {
        let (plane, events) = start(Role::Connector, &token_key, BOOTSTRAP_INNER, &["127.0.0.1:0"]);
        let id = plane.add_peer(peer(&relay_key, Some(&token_psk), RELAY_INNER)).unwrap();
        plane.connect(id, Some(at));
        joiners.push((plane, events, id));
    }
    let mut near = Vec::new();
    for (plane, _, id) in &joiners {
        near.push(soon(plane.dial(*id)).await.unwrap());
    }
    let mut far = Vec::new();
    for _ in 0..3 {
        far.push(connected(&mut events).await);
    }
    assert!(far.iter().all(|connection| connection.bootstrap() == Some(bootstrap)));
    let mut open = Vec::new();
    for (name, connection) in near.iter().enumerate() {
        let mut stream = soon(connection.open()).await.unwrap();
        soon(stream.write_all(&[name as u8])).await.unwrap();
        soon(stream.shutdown()).await.unwrap();
        open.push(stream);
    }
    let mut said = std::collections::BTreeSet::new();
    for connection in &far {
        let mut word = Vec::new();
        soon(soon(connection.accept()).await.unwrap().read_to_end(&mut word)).await.unwrap();
        said.extend(word);
    }
    assert_eq!(said.len(), 3, "each joiner was heard once");
    let peers: std::collections::BTreeSet<_> = far.iter().map(Connection::peer).collect();
    assert_eq!(peers.len(), 3, "one peer each, although key and inner address are the same");
    relay.remove_bootstrap(bootstrap);
    for near in &near {
        near.close(CloseCode::Enrolled);
    }
    for far in &far {
        soon(far.closed()).await;
    }
}

#[tokio::test]
async fn a_plane_that_shut_down_leaves_its_port_to_the_next_whoever_still_holds_it() {
    for by_drop in [false, true] {
        let (relay_key, key, psk) = (PrivateKey::generate(), PrivateKey::generate(), Psk::generate());
        let inner = connector_inner(&ConnectorId::new());
        let (relay, mut events) = start(Role::Relay, &relay_key, RELAY_INNER, &["127.0.0.1:0"]);
        let at = relay.local_addrs()[0];
        relay.add_peer(peer(&key, Some(&psk), inner)).unwrap();
        let (connector, _connector_events) = start(Role::Connector, &key, inner, &["127.0.0.1:0"]);
        let from = connector.local_addrs()[0];
        let id = connector.add_peer(peer(&relay_key, Some(&psk), RELAY_INNER)).unwrap();
        let near = dial(&connector, id, at).await;
        let far = connected(&mut events).await;
        let stream = far.open().await.unwrap();
        // Another connection that nobody takes out of the events any more.
        let again = dial(&connector, id, at).await;
        if by_drop {
            drop((relay, connector));
        } else {
            relay.shutdown(CloseCode::Shutdown).await;
            connector.shutdown(CloseCode::Shutdown).await;
            assert_eq!((relay.local_addrs(), connector.local_addrs()), (vec![at], vec![from]));
        }
        for address in [at, from] {
            // Without SO_REUSEPORT: any socket that is still there is in the way.
            std::net::UdpSocket::bind(address).expect("the port is free at once");
        }
        drop((near, again, far, stream, events));
    }
}

#[tokio::test]
async fn connectors_of_two_shards_on_two_threads_share_one_port() {
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let (tell, told) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tell.send(runtime.handle().clone()).unwrap();
        let _ = runtime.block_on(ended);
    });
    let relay_key = PrivateKey::generate();
    let mut group = bind_group("127.0.0.1:0".parse().unwrap(), 2).unwrap();
    let others = vec![Further { runtime: told.recv().unwrap(), sockets: vec![group.remove(1)] }];
    let handshakes = HandshakeLimits::default();
    let engine =
        culvert_engine::Config { statics: vec![relay_key.clone()], shard: Shard::default(), handshakes, seed: None };
    let (instance, streams) = (InstanceId::new(), StreamLimits::default());
    let config = Config {
        role: Role::Relay,
        sockets: group,
        engine,
        instance,
        inner: RELAY_INNER,
        reset_secret: [1; 32],
        streams,
    };
    let (relay, mut events) = Plane::start_over(config, others).unwrap();
    let to = relay.local_addrs()[0];
    let body: Vec<u8> = (0..1_u32 << 20).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let mut ends = Vec::new();
    for shard in [0, 1, 0, 1] {
        let (key, psk, inner) = (PrivateKey::generate(), Psk::generate(), connector_inner(&ConnectorId::new()));
        let (connector, connector_events) = start(Role::Connector, &key, inner, &["127.0.0.1:0"]);
        let known = relay.add_peer(peer(&key, Some(&psk), inner)).unwrap();
        assert_eq!(known.shard(), shard);
        let id = connector.add_peer(peer(&relay_key, Some(&psk), RELAY_INNER)).unwrap();
        let near = dial(&connector, id, to).await;
        let far = connected(&mut events).await;
        assert_eq!(far.peer(), known);
        ends.push((connector, connector_events, near, far));
    }
    let before = relay.stats().plane.passed_on;
    for (_, _, near, far) in &ends {
        let sending = async {
            let mut stream = near.open().await.unwrap();
            stream.write_all(&body).await.unwrap();
            stream.shutdown().await.unwrap();
            let mut back = Vec::new();
            stream.read_to_end(&mut back).await.unwrap();
            back
        };
        // This thread reads and writes what the other one carries.
        let answering = async {
            let mut stream = far.accept().await.unwrap();
            let mut got = Vec::new();
            stream.read_to_end(&mut got).await.unwrap();
            stream.write_all(&got).await.unwrap();
            stream.shutdown().await.unwrap();
        };
        let (back, ()) = soon(async { tokio::join!(sending, answering) }).await;
        assert!(back == body);
    }
    assert_eq!(relay.stats().plane.passed_on, before, "the kernel steers data");
    soon(relay.shutdown(CloseCode::Shutdown)).await;
    for (_, _, near, _) in &ends {
        assert_eq!(soon(near.closed()).await.code, Some(CloseCode::Shutdown));
    }
    drop(end);
    thread.join().unwrap();
}
