//! Two planes over a network in memory: everything a rule about datagrams is needed for.

use std::future::Future;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use culvert_engine::{HandshakeLimits, PeerConfig, PeerId, Shard};
use culvert_model::address::{RELAY_INNER, connector_inner};
use culvert_model::close::CloseCode;
use culvert_model::id::{ConnectorId, InstanceId};
use culvert_model::key::PrivateKey;
use culvert_model::reason::Reason;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use crate::connection::{Connection, DialError};
use crate::crypto::PROTOCOL_VERSION;
use crate::event::{Event, Events};
use crate::memory::Network;
use crate::plane::{Config, Plane, Role, StreamLimits};
use crate::stream::StreamReset;

/// No test waits longer for anything.
const DEADLINE: Duration = Duration::from_secs(20);

async fn soon<T>(what: impl Future<Output = T>) -> T {
    timeout(DEADLINE, what).await.expect("in time")
}

/// One end with its key and address.
struct End {
    plane: Plane,
    events: Events,
    peer: PeerId,
}

/// What is needed to start an end again as another process.
#[derive(Clone)]
struct Identity {
    role: Role,
    own: PrivateKey,
    peer: PrivateKey,
    at: SocketAddr,
    inner: Ipv6Addr,
    peer_inner: Ipv6Addr,
}

fn identities() -> (Identity, Identity) {
    let (relay, connector) = (PrivateKey::generate(), PrivateKey::generate());
    let inner = connector_inner(&ConnectorId::new());
    let relay_end = Identity {
        role: Role::Relay,
        own: relay.clone(),
        peer: connector.clone(),
        at: "192.0.2.1:51820".parse().unwrap(),
        inner: RELAY_INNER,
        peer_inner: inner,
    };
    let connector_end = Identity {
        role: Role::Connector,
        own: connector,
        peer: relay,
        at: "192.0.2.2:40000".parse().unwrap(),
        inner,
        peer_inner: RELAY_INNER,
    };
    (relay_end, connector_end)
}

fn start(network: &Network, identity: &Identity) -> End {
    start_with(network, identity, PROTOCOL_VERSION, StreamLimits::default())
}

fn start_with(network: &Network, identity: &Identity, version: u32, streams: StreamLimits) -> End {
    let config = Config {
        role: identity.role,
        sockets: Vec::new(),
        engine: culvert_engine::Config {
            statics: vec![identity.own.clone()],
            shard: Shard::default(),
            handshakes: HandshakeLimits::default(),
            seed: None,
        },
        instance: InstanceId::new(),
        inner: identity.inner,
        reset_secret: [7; 32],
        streams,
    };
    let (plane, events) = Plane::start_on(vec![network.carrier(identity.at)], config, version).unwrap();
    let peer = plane.add_peer(peer_config(identity)).unwrap();
    End { plane, events, peer }
}

fn peer_config(identity: &Identity) -> PeerConfig {
    PeerConfig {
        public_key: identity.peer.public_key(),
        static_index: 0,
        psks: Vec::new(),
        allowed_ips: vec![std::net::IpAddr::V6(identity.peer_inner).into()],
        path: None,
        persistent_keepalive: None,
    }
}

impl End {
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

    async fn connected(&mut self) -> Connection {
        self.until(|event| match event {
            Event::Connected(connection) => Some(connection),
            _ => None,
        })
        .await
    }

    async fn dial(&self, relay: SocketAddr) -> Connection {
        self.plane.connect(self.peer, Some(relay));
        soon(self.plane.dial(self.peer)).await.unwrap()
    }
}

/// Both ends, connected.
async fn joined(network: &Network) -> (End, Connection, End, Connection, (Identity, Identity)) {
    let (relay_id, connector_id) = identities();
    let (mut relay, connector) = (start(network, &relay_id), start(network, &connector_id));
    let near = connector.dial(relay_id.at).await;
    let far = relay.connected().await;
    (relay, far, connector, near, (relay_id, connector_id))
}

/// The same bytes for the same seed.
fn bytes(length: usize, seed: u32) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as u8
    };
    (0..length).map(|_| next()).collect()
}

#[tokio::test]
async fn streams_run_both_ways_with_half_close() {
    let network = Network::new();
    let (relay, far, connector, near, _) = joined(&network).await;
    assert_eq!((far.peer(), near.peer()), (relay.peer, connector.peer));
    assert_eq!(far.bootstrap(), None);
    for (opener, acceptor) in [(&far, &near), (&near, &far)] {
        let mut asking = soon(opener.open()).await.unwrap();
        soon(asking.write_all(b"ping")).await.unwrap();
        soon(asking.shutdown()).await.unwrap();
        let mut answering = soon(acceptor.accept()).await.unwrap();
        let mut request = Vec::new();
        soon(answering.read_to_end(&mut request)).await.unwrap();
        assert_eq!(request, b"ping");
        // The other direction is still open after the FIN of the first.
        soon(answering.write_all(b"pong")).await.unwrap();
        soon(answering.shutdown()).await.unwrap();
        let mut response = Vec::new();
        soon(asking.read_to_end(&mut response)).await.unwrap();
        assert_eq!(response, b"pong");
    }
}

#[tokio::test]
async fn megabytes_pass_unchanged_in_both_directions_at_once() {
    let network = Network::new();
    let (_relay, far, _connector, near, _) = joined(&network).await;
    let (up, down) = (bytes(3 << 20, 1), bytes(3 << 20, 2));
    let mut asking = soon(far.open()).await.unwrap();
    asking.write_all(b"x").await.unwrap();
    let mut answering = soon(near.accept()).await.unwrap();
    let (mut far_read, mut far_write) = tokio::io::split(&mut asking);
    let (mut near_read, mut near_write) = tokio::io::split(&mut answering);
    let (mut got_down, mut got_up) = (Vec::new(), Vec::new());
    let all = async {
        let (a, b, c, d) = tokio::join!(
            async {
                far_write.write_all(&down).await.unwrap();
                far_write.shutdown().await.unwrap();
            },
            near_read.read_to_end(&mut got_down),
            async {
                near_write.write_all(&up).await.unwrap();
                near_write.shutdown().await.unwrap();
            },
            far_read.read_to_end(&mut got_up),
        );
        b.unwrap();
        d.unwrap();
        (a, c)
    };
    soon(all).await;
    assert!(got_down[1..] == down[..] && got_up == up);
    assert!(far.stats().mtu > 1200, "the path's MTU was found: {:?}", far.stats());
}

#[tokio::test]
async fn a_stream_dropped_without_a_fin_is_a_reset_and_not_an_end() {
    let network = Network::new();
    let (_relay, far, _connector, near, _) = joined(&network).await;
    let mut asking = soon(far.open()).await.unwrap();
    soon(asking.write_all(b"half a requ")).await.unwrap();
    let mut answering = soon(near.accept()).await.unwrap();
    let mut start = [0; 4];
    soon(answering.read_exact(&mut start)).await.unwrap();
    drop(asking);
    let error = soon(answering.read_to_end(&mut Vec::new())).await.unwrap_err();
    let reset = StreamReset::of(&error).expect("a reset");
    assert_eq!(reset.reason(), Some(Reason::ConnectorLost));
    assert!(!reset.is_refused_unread());
}

#[tokio::test]
async fn cancel_carries_its_reason_in_both_directions() {
    let network = Network::new();
    let (_relay, far, _connector, near, _) = joined(&network).await;
    let mut asking = soon(far.open()).await.unwrap();
    soon(asking.write_all(b"request")).await.unwrap();
    let mut answering = soon(near.accept()).await.unwrap();
    soon(answering.read_exact(&mut [0; 7])).await.unwrap();
    asking.cancel(Reason::Deadline);
    let read = soon(answering.read_to_end(&mut Vec::new())).await.unwrap_err();
    assert_eq!(StreamReset::of(&read).and_then(StreamReset::reason), Some(Reason::Deadline));
    let written = soon(async {
        loop {
            if let Err(error) = answering.write_all(&[0; 1024]).await {
                return error;
            }
            tokio::task::yield_now().await;
        }
    });
    assert_eq!(StreamReset::of(&written.await).and_then(StreamReset::reason), Some(Reason::Deadline));
}

#[tokio::test]
async fn a_stream_that_nobody_read_tells_its_opener_so() {
    let network = Network::new();
    let (_relay, far, _connector, near, _) = joined(&network).await;
    for explicit in [true, false] {
        let mut asking = soon(far.open()).await.unwrap();
        soon(asking.write_all(b"request")).await.unwrap();
        let answering = soon(near.accept()).await.unwrap();
        if explicit {
            answering.refuse();
        } else {
            drop(answering);
        }
        let error = soon(asking.read_to_end(&mut Vec::new())).await.unwrap_err();
        assert!(StreamReset::of(&error).expect("a reset").is_refused_unread());
    }
}

#[tokio::test]
async fn a_stream_that_was_read_is_never_called_unread() {
    let network = Network::new();
    let (_relay, far, _connector, near, _) = joined(&network).await;
    let mut asking = soon(far.open()).await.unwrap();
    soon(asking.write_all(b"request")).await.unwrap();
    let mut answering = soon(near.accept()).await.unwrap();
    soon(answering.read_exact(&mut [0; 1])).await.unwrap();
    answering.refuse();
    let error = soon(asking.read_to_end(&mut Vec::new())).await.unwrap_err();
    assert!(!StreamReset::of(&error).expect("a reset").is_refused_unread());
}

#[tokio::test]
async fn closing_tells_the_code_to_both_ends_and_to_every_stream() {
    let network = Network::new();
    let (_relay, far, _connector, near, _) = joined(&network).await;
    let mut asking = soon(far.open()).await.unwrap();
    soon(asking.write_all(b"request")).await.unwrap();
    let mut answering = soon(near.accept()).await.unwrap();
    far.close(CloseCode::Overloaded);
    let ours = soon(far.closed()).await;
    assert_eq!((ours.code, ours.by_peer), (Some(CloseCode::Overloaded), false));
    let theirs = soon(near.closed()).await;
    assert_eq!((theirs.code, theirs.by_peer), (Some(CloseCode::Overloaded), true));
    assert!(near.is_closed());
    let mut rest = Vec::new();
    let error = soon(answering.read_to_end(&mut rest)).await.unwrap_err();
    let closed = error.get_ref().and_then(|inner| inner.downcast_ref::<crate::Closed>()).expect("a closed connection");
    assert_eq!(closed.code, Some(CloseCode::Overloaded));
    assert!(soon(near.open()).await.is_err());
    assert!(soon(near.accept()).await.is_err());
}

#[tokio::test]
async fn a_restarted_connector_is_noticed_by_its_hello_and_replaces_its_past() {
    let network = Network::new();
    let (mut relay, far, connector, near, (relay_id, connector_id)) = joined(&network).await;
    // As a crash: nothing is said, the new process comes from the same address.
    network.set_rule(|_, _, _| false);
    drop((connector, near));
    tokio::task::yield_now().await;
    network.set_rule(|_, _, _| true);
    let again = start(&network, &connector_id);
    let near = again.dial(relay_id.at).await;
    let old = soon(far.closed()).await;
    assert_eq!((old.code, old.by_peer, old.cause.as_str()), (None, false, "the peer has restarted"));
    relay.until(|event| matches!(event, Event::NewInstance { .. }).then_some(())).await;
    let far = relay.connected().await;
    let mut stream = soon(near.open()).await.unwrap();
    soon(stream.write_all(b"back")).await.unwrap();
    let mut word = [0; 4];
    soon(soon(far.accept()).await.unwrap().read_exact(&mut word)).await.unwrap();
    assert_eq!(&word, b"back");
}

#[tokio::test]
async fn a_restarted_relay_calls_back_and_is_dialled_again() {
    let network = Network::new();
    let (relay, far, mut connector, near, (relay_id, connector_id)) = joined(&network).await;
    network.set_rule(|_, _, _| false);
    drop((relay, far));
    tokio::task::yield_now().await;
    network.set_rule(|_, _, _| true);
    let mut again = start(&network, &relay_id);
    again.plane.connect(again.peer, Some(connector_id.at));
    let old = soon(near.closed()).await;
    assert_eq!((old.code, old.by_peer), (None, false));
    connector.until(|event| matches!(event, Event::NewInstance { .. }).then_some(())).await;
    let near = soon(connector.plane.dial(connector.peer)).await.unwrap();
    let far = again.connected().await;
    assert!(!near.is_closed() && !far.is_closed());
}

#[tokio::test]
async fn dialling_again_replaces_the_connection_of_the_same_process() {
    let network = Network::new();
    let (mut relay, far, connector, near, _) = joined(&network).await;
    let second = soon(connector.plane.dial(connector.peer)).await.unwrap();
    let far_second = relay.connected().await;
    let old = soon(near.closed()).await;
    assert_eq!((old.code, old.by_peer), (Some(CloseCode::Shutdown), false));
    soon(far.closed()).await;
    assert!(!second.is_closed() && !far_second.is_closed());
}

#[tokio::test]
async fn a_clone_that_comes_back_is_told_and_the_connected_process_stays() {
    let network = Network::new();
    let (mut relay, _far, first, near, (relay_id, connector_id)) = joined(&network).await;
    // A second process with the same key, elsewhere: newest wins.
    let elsewhere = Identity { at: "192.0.2.3:40000".parse().unwrap(), ..connector_id };
    let second = start(&network, &elsewhere);
    let second_near = second.dial(relay_id.at).await;
    let second_far = relay.connected().await;
    // The first one comes back while the second is connected.
    first.plane.connect(first.peer, Some(relay_id.at));
    let told = soon(near.closed()).await;
    assert_eq!((told.code, told.by_peer), (Some(CloseCode::Replaced), true));
    relay.until(|event| matches!(event, Event::Clone { .. }).then_some(())).await;
    assert_eq!(soon(first.plane.dial(first.peer)).await.unwrap_err(), DialError::Displaced);
    assert!(!second_far.is_closed());
    // The second handshakes again and goes on over the connection it has.
    second.plane.connect(second.peer, Some(relay_id.at));
    let mut stream = soon(second_near.open()).await.unwrap();
    soon(stream.write_all(b"still here")).await.unwrap();
    let mut word = [0; 10];
    soon(soon(second_far.accept()).await.unwrap().read_exact(&mut word)).await.unwrap();
    assert_eq!(&word, b"still here");
}

#[tokio::test]
async fn another_protocol_version_is_refused_by_name() {
    let network = Network::new();
    let (relay_id, connector_id) = identities();
    let _relay = start(&network, &relay_id);
    let connector = start_with(&network, &connector_id, PROTOCOL_VERSION + 1, StreamLimits::default());
    connector.plane.connect(connector.peer, Some(relay_id.at));
    let Err(DialError::Failed(closed)) = soon(connector.plane.dial(connector.peer)).await else {
        panic!("a refusal");
    };
    assert_eq!((closed.code, closed.by_peer), (Some(CloseCode::Version), true));
    assert!(closed.cause.contains("version 2 met version 1"), "{}", closed.cause);
}

#[tokio::test]
async fn where_full_size_packets_vanish_both_ends_send_halves() {
    let network = Network::new();
    let (relay_id, connector_id) = identities();
    // What is left of a UDP payload on a path of 1280 bytes over IPv4.
    const PATH: usize = 1280 - 28;
    let lost = Arc::new(AtomicUsize::new(0));
    let count = lost.clone();
    network.set_rule(move |_, _, bytes| {
        let passes = bytes.len() <= PATH;
        count.fetch_add(usize::from(!passes), Ordering::Relaxed);
        passes
    });
    let (mut relay, connector) = (start(&network, &relay_id), start(&network, &connector_id));
    let near = connector.dial(relay_id.at).await;
    let far = relay.connected().await;
    let after_dial = lost.load(Ordering::Relaxed);
    assert_eq!(after_dial, 2, "the padded hello, twice");
    for (opener, acceptor) in [(&far, &near), (&near, &far)] {
        let body = bytes(1 << 20, 5);
        let mut asking = soon(opener.open()).await.unwrap();
        let sending = async {
            asking.write_all(&body).await.unwrap();
            asking.shutdown().await.unwrap();
        };
        let receiving = async {
            let mut got = Vec::new();
            acceptor.accept().await.unwrap().read_to_end(&mut got).await.unwrap();
            got
        };
        let ((), got) = soon(async { tokio::join!(sending, receiving) }).await;
        assert!(got == body);
    }
    assert!(relay.plane.stats().plane.split > 500 && connector.plane.stats().plane.split > 500);
    assert_eq!(lost.load(Ordering::Relaxed), after_dial, "nothing too long was sent any more");
}

#[tokio::test]
async fn on_an_ordinary_path_nothing_is_split() {
    let network = Network::new();
    let (relay, _far, connector, _near, _) = joined(&network).await;
    assert_eq!(relay.plane.stats().plane.split + connector.plane.stats().plane.split, 0);
}

#[tokio::test]
async fn lost_hellos_are_said_again() {
    let network = Network::new();
    let (relay_id, connector_id) = identities();
    let (mut relay, connector) = (start(&network, &relay_id), start(&network, &connector_id));
    // The relay's first data packets are lost: its hello and its answers.
    let mut lose = 3;
    network.set_rule(move |from, _, bytes| {
        let lost = from == relay_id.at && bytes.first() == Some(&4) && lose > 0;
        lose -= i32::from(lost);
        !lost
    });
    let near = connector.dial(relay_id.at).await;
    relay.connected().await;
    assert!(!near.is_closed());
    assert_eq!(relay.plane.stats().plane.split, 0, "loss is not taken for a small path");
}

#[tokio::test]
async fn a_removed_peer_learns_the_code_and_then_meets_silence() {
    let network = Network::new();
    let (relay, far, connector, near, (relay_id, _)) = joined(&network).await;
    soon(relay.plane.remove_peer(relay.peer, CloseCode::Revoked)).await;
    let told = soon(near.closed()).await;
    assert_eq!((told.code, told.by_peer), (Some(CloseCode::Revoked), true));
    assert!(far.is_closed());
    let answers = Arc::new(AtomicUsize::new(0));
    let (count, attempts) = (answers.clone(), Arc::new(tokio::sync::Notify::new()));
    let attempt = attempts.clone();
    network.set_rule(move |from, _, _| {
        if from == relay_id.at {
            count.fetch_add(1, Ordering::Relaxed);
        } else {
            attempt.notify_one();
        }
        true
    });
    connector.plane.connect(connector.peer, Some(relay_id.at));
    soon(attempts.notified()).await;
    for _ in 0..64 {
        tokio::task::yield_now().await;
    }
    assert_eq!(answers.load(Ordering::Relaxed), 0);
    assert_eq!(relay.plane.peer_stats(relay.peer), None);
}

#[tokio::test]
async fn shutdown_tells_the_code_before_the_tasks_stop() {
    let network = Network::new();
    let (relay, _far, connector, near, _) = joined(&network).await;
    soon(relay.plane.shutdown(CloseCode::Shutdown)).await;
    let told = soon(near.closed()).await;
    assert_eq!((told.code, told.by_peer), (Some(CloseCode::Shutdown), true));
    soon(connector.plane.shutdown(CloseCode::Shutdown)).await;
    assert_eq!(soon(connector.plane.dial(connector.peer)).await.unwrap_err(), DialError::Stopped);
}

#[tokio::test]
async fn streams_past_the_budget_wait_for_others_to_end() {
    let network = Network::new();
    let (relay_id, connector_id) = identities();
    let streams = StreamLimits { incoming: 16, window: 64 * 1024, budget: 2 * 64 * 1024 };
    let mut relay = start_with(&network, &relay_id, PROTOCOL_VERSION, streams);
    let connector = start(&network, &connector_id);
    let _near = connector.dial(relay_id.at).await;
    let far = relay.connected().await;
    let (first, _second) = (soon(far.open()).await.unwrap(), soon(far.open()).await.unwrap());
    let third = far.open();
    tokio::pin!(third);
    assert!(futures_poll(third.as_mut()).await.is_none());
    drop(first);
    soon(third).await.unwrap();
}

/// One poll.
async fn futures_poll<F: Future + Unpin>(mut future: F) -> Option<F::Output> {
    std::future::poll_fn(|cx| {
        std::task::Poll::Ready(match std::pin::Pin::new(&mut future).poll(cx) {
            std::task::Poll::Ready(output) => Some(output),
            std::task::Poll::Pending => None,
        })
    })
    .await
}

/// Seals inner packets as one connector, without a plane: a connector that was taken over.
struct Rogue {
    engine: culvert_engine::Engine,
    peer: PeerId,
    network: Network,
    at: SocketAddr,
    inner: Ipv6Addr,
    carrier: Arc<dyn crate::port::Carrier>,
}

impl Rogue {
    /// Adds a second connector to the relay and shakes hands with it.
    async fn join(network: &Network, relay: &End, relay_id: &Identity) -> Self {
        let mut rogue = Self::shake_hands(network, relay, relay_id).await;
        // A hello, as any connector says it.
        let mut payload = Vec::new();
        crate::hello::compose(crate::hello::Flags::PLAIN, InstanceId::new(), None).write(&mut payload);
        rogue.send(crate::wrap::HELLO_PORT, &payload);
        rogue
    }

    async fn shake_hands(network: &Network, relay: &End, relay_id: &Identity) -> Self {
        let own = PrivateKey::generate();
        let inner = connector_inner(&ConnectorId::new());
        let at = "192.0.2.66:6666".parse().unwrap();
        let identity = Identity {
            role: Role::Connector,
            own: own.clone(),
            peer: relay_id.own.clone(),
            at,
            inner,
            peer_inner: RELAY_INNER,
        };
        let known = Identity { peer: own, peer_inner: inner, ..relay_id.clone() };
        relay.plane.add_peer(peer_config(&known)).unwrap();
        let statics = vec![identity.own.clone()];
        let handshakes = HandshakeLimits::default();
        let config = culvert_engine::Config { statics, shard: Shard::default(), handshakes, seed: None };
        let mut engine = culvert_engine::Engine::new(config, crate::socket::now());
        let peer = engine.add_peer(peer_config(&identity), crate::socket::now()).unwrap();
        let mut rogue = Self { engine, peer, network: network.clone(), at, inner, carrier: network.carrier(at) };
        let mut replies = culvert_engine::Replies::default();
        let path = crate::Path { remote: relay_id.at, local: None, socket: 0 };
        rogue.engine.connect(peer, Some(path), crate::socket::now(), &mut replies);
        for (path, datagram) in replies.drain() {
            network.send(at, path.remote, datagram);
        }
        rogue.receive().await;
        rogue
    }

    fn send(&mut self, port: u16, payload: &[u8]) {
        let addresses = crate::wrap::Addresses { source: self.inner, destination: RELAY_INNER };
        let mut packet = Vec::new();
        assert!(crate::wrap::write_udp(&addresses, port, payload, &mut packet));
        self.send_packet(packet);
    }

    fn send_packet(&mut self, mut packet: Vec<u8>) {
        let mut out = Vec::new();
        let sealed = self.engine.seal(self.peer, &mut packet, crate::socket::now(), &mut out).unwrap();
        self.network.send(self.at, sealed.path.remote, &out);
    }

    /// Takes datagrams until inner packets come; without one only the handshake is driven.
    async fn receive(&mut self) -> Vec<Vec<u8>> {
        let mut memory = vec![0; 65_536];
        let mut packets = Vec::new();
        while packets.is_empty() && self.engine.peer_stats(self.peer).is_none_or(|stats| !stats.live) {
            packets = self.receive_some(&mut memory).await;
        }
        packets
    }

    async fn receive_some(&mut self, memory: &mut [u8]) -> Vec<Vec<u8>> {
        let mut metas = [quinn_udp::RecvMeta::default()];
        let carrier = self.carrier.clone();
        soon(std::future::poll_fn(|cx| carrier.poll_recv(cx, &mut [std::io::IoSliceMut::new(memory)], &mut metas)))
            .await;
        let [meta] = metas;
        let now = crate::socket::now();
        let path = crate::Path { remote: meta.addr, local: None, socket: 0 };
        let (mut inner, mut replies) = (Vec::new(), culvert_engine::Replies::default());
        let received = self.engine.handle_datagram(&memory[..meta.len], path, now, &mut inner, &mut replies);
        self.engine.handle_handshakes(8, now, &mut replies);
        for (path, datagram) in replies.drain() {
            self.network.send(self.at, path.remote, datagram);
        }
        if matches!(received, culvert_engine::Received::Packet { .. }) { vec![inner] } else { Vec::new() }
    }
}

#[tokio::test]
async fn another_connectors_connection_id_is_of_no_use() {
    let network = Network::new();
    let (relay, far, connector, near, (relay_id, _)) = joined(&network).await;
    // The rogue is told (it could only guess) the connection id under which the relay knows the victim.
    let seen = connector.plane.tap();
    let mut stream = soon(near.open()).await.unwrap();
    soon(stream.write_all(b"one")).await.unwrap();
    let mut accepted = soon(far.accept()).await.unwrap();
    soon(accepted.read_exact(&mut [0; 3])).await.unwrap();
    let mut rogue = Rogue::join(&network, &relay, &relay_id).await;
    let taken = seen.lock().unwrap().clone();
    assert!(taken.iter().any(|packet| packet.first().is_some_and(|first| first & 0x80 == 0)), "a short header");
    for packet in &taken {
        // The victim's own packets again, and a CONNECTION_CLOSE under every connection id seen.
        rogue.send(crate::wrap::QUIC_PORT, packet);
        for number in 0..=u8::MAX {
            let mut close = packet[..9.min(packet.len())].to_vec();
            close[0] &= !3;
            close.extend([number, 0x1c, 0, 0, 0]);
            close.extend(*b"clvt");
            rogue.send(crate::wrap::QUIC_PORT, &close);
        }
    }
    let before = relay.plane.stats().plane.quic_received;
    soon(async {
        while relay.plane.stats().plane.quic_received < before + taken.len() as u64 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    soon(stream.write_all(b"two")).await.unwrap();
    soon(accepted.read_exact(&mut [0; 3])).await.unwrap();
    assert!(!far.is_closed() && !near.is_closed());
}

#[tokio::test]
async fn the_relay_answers_echo_to_any_peer_and_drops_the_rest() {
    let network = Network::new();
    let (relay_id, _) = identities();
    let relay = start(&network, &relay_id);
    let mut rogue = Rogue::join(&network, &relay, &relay_id).await;
    let addresses = crate::wrap::Addresses { source: rogue.inner, destination: RELAY_INNER };
    let request = crate::icmp::testing::request(&addresses);
    let mut packet = Vec::new();
    crate::wrap::write_ipv6(&addresses, crate::wrap::NEXT_ICMPV6, request.len() as u16, &mut packet);
    packet.extend_from_slice(&request);
    rogue.send_packet(packet);
    let mut memory = vec![0; 65_536];
    let reply = soon(async {
        loop {
            for packet in rogue.receive_some(&mut memory).await {
                let opened = crate::wrap::open(&packet).unwrap();
                if opened.next == crate::wrap::NEXT_ICMPV6 {
                    return opened.body.to_vec();
                }
            }
        }
    });
    let reply = reply.await;
    assert_eq!((reply[0], &reply[4..]), (129, &request[4..]));

    // To another address inside, another port, another protocol, and not IP at all.
    let before = relay.plane.stats().plane.inner_dropped;
    let elsewhere = crate::wrap::Addresses { destination: rogue.inner, ..addresses };
    for (addresses, port) in [(elsewhere, crate::wrap::QUIC_PORT), (addresses, 53)] {
        let mut packet = Vec::new();
        assert!(crate::wrap::write_udp(&addresses, port, b"junk", &mut packet));
        rogue.send_packet(packet);
    }
    let mut tcp = Vec::new();
    crate::wrap::write_ipv6(&addresses, 6, 20, &mut tcp);
    tcp.resize(60, 0);
    rogue.send_packet(tcp);
    soon(async {
        while relay.plane.stats().plane.inner_dropped < before + 3 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn junk_inside_a_session_changes_nothing_for_others() {
    let network = Network::new();
    let (relay, far, _connector, near, (relay_id, _)) = joined(&network).await;
    let mut rogue = Rogue::join(&network, &relay, &relay_id).await;
    let addresses = crate::wrap::Addresses { source: rogue.inner, destination: RELAY_INNER };
    for seed in 0..2000_u32 {
        let length = (seed % 257) as usize;
        let junk = bytes(length, seed.wrapping_mul(2_654_435_761));
        match seed % 4 {
            0 => rogue.send(crate::wrap::QUIC_PORT, &junk),
            1 => rogue.send(crate::wrap::HELLO_PORT, &junk),
            next => {
                let next = if next == 2 { crate::wrap::NEXT_FRAGMENT } else { crate::wrap::NEXT_ICMPV6 };
                let mut packet = Vec::new();
                crate::wrap::write_ipv6(&addresses, next, length as u16, &mut packet);
                packet.extend_from_slice(&junk);
                rogue.send_packet(packet);
            }
        }
    }
    let mut stream = soon(near.open()).await.unwrap();
    soon(stream.write_all(b"as ever")).await.unwrap();
    let mut word = [0; 7];
    soon(soon(far.accept()).await.unwrap().read_exact(&mut word)).await.unwrap();
    assert_eq!(&word, b"as ever");
}

#[tokio::test]
async fn the_first_inner_datagram_of_each_session_is_a_hello() {
    let network = Network::new();
    let (relay, _far, connector, _near, (relay_id, _)) = joined(&network).await;
    let before = (relay.plane.stats().plane.hellos_received, connector.plane.stats().plane.hellos_received);
    let first = Arc::new(Mutex::new(Vec::new()));
    let watch = first.clone();
    network.set_rule(move |from, _, bytes| {
        watch.lock().unwrap().push((from == relay_id.at, bytes[0], bytes.len()));
        true
    });
    // A rekey: the peers know each other, nothing else changes.
    connector.plane.connect(connector.peer, None);
    soon(async {
        while relay.plane.stats().plane.hellos_received == before.0
            || connector.plane.stats().plane.hellos_received == before.1
        {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let seen = first.lock().unwrap().clone();
    let response = seen.iter().position(|(_, kind, _)| *kind == 2).expect("a response");
    let hello = (29 + crate::wrap::OVERHEAD).next_multiple_of(16) + 32;
    // 32 bytes are WireGuard's own keepalive: no inner datagram.
    let data = |relay: bool| move |(from, kind, length): &&_| (*from, *kind) == (relay, 4) && *length > 32;
    let after = |relay: bool| seen.iter().skip(response).find(data(relay));
    assert_eq!(after(false), Some(&(false, 4, hello)));
    assert_eq!(after(true), Some(&(true, 4, hello)));
}

#[tokio::test]
async fn a_relay_that_forgot_a_connection_resets_it_even_when_its_hello_is_lost() {
    let network = Network::new();
    let (relay, far, connector, near, (relay_id, connector_id)) = joined(&network).await;
    let idle = soon(near.open()).await.unwrap();
    network.set_rule(|_, _, _| false);
    drop((relay, far));
    tokio::task::yield_now().await;
    // None of the new relay's hellos arrives, neither the short nor the padded ones.
    let hello = (29 + crate::wrap::OVERHEAD).next_multiple_of(16) + 32;
    network.set_rule(move |from, _, bytes| from != relay_id.at || (bytes.len() != hello && bytes.len() != 1280));
    let again = start(&network, &relay_id);
    again.plane.connect(again.peer, Some(connector_id.at));
    let mut stream = idle;
    let writing = async {
        // Speaks into the old connection until that is over.
        while stream.write_all(b"anybody there?").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let (closed, ()) = soon(async { tokio::join!(near.closed(), writing) }).await;
    assert_eq!((closed.code, closed.cause.as_str()), (None, "reset by peer"));
    assert!(again.plane.stats().plane.hellos_received > 0);
    drop(connector);
}

#[tokio::test]
async fn a_peer_that_moves_is_told_of_once_with_its_newest_address() {
    let network = Network::new();
    let (mut relay, _far, connector, near, (relay_id, connector_id)) = joined(&network).await;
    // A NAT that gives the connector a new port for every datagram.
    let port = Arc::new(AtomicUsize::new(50_000));
    let (again, next) = (network.clone(), port.clone());
    network.set_rule(move |from, to, bytes| {
        if from == connector_id.at {
            let port = next.fetch_add(1, Ordering::Relaxed) as u16;
            again.send_unruled((from.ip(), port).into(), to, bytes);
            return false;
        }
        // And that takes answers to any of them.
        if from == relay_id.at && to.ip() == connector_id.at.ip() && to.port() >= 50_000 {
            again.send_unruled(from, connector_id.at, bytes);
            return false;
        }
        true
    });
    let mut stream = soon(near.open()).await.unwrap();
    for _ in 0..50 {
        soon(stream.write_all(b"moving")).await.unwrap();
        tokio::task::yield_now().await;
    }
    let path = relay
        .until(|event| match event {
            Event::EndpointMoved { path, .. } => Some(path),
            _ => None,
        })
        .await;
    assert!(path.remote.port() >= 50_000);
    let known = relay.plane.peer_stats(relay.peer).and_then(|stats| stats.path).unwrap();
    assert!(known.remote.port() >= path.remote.port());
    assert!(!near.is_closed());
    drop(connector);
}

#[tokio::test]
async fn quic_before_the_hello_is_dropped() {
    let network = Network::new();
    let (relay_id, _) = identities();
    let relay = start(&network, &relay_id);
    let mut rogue = Rogue::shake_hands(&network, &relay, &relay_id).await;
    rogue.send(crate::wrap::QUIC_PORT, &[0xc0; 1200]);
    soon(async {
        while relay.plane.stats().plane.inner_dropped == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(relay.plane.stats().plane.quic_received, 0);
}

#[tokio::test]
async fn what_the_system_refuses_for_a_while_is_only_loss() {
    let network = Network::new();
    let (relay, far, _connector, near, _) = joined(&network).await;
    for errno in [libc::EPERM, libc::ENETUNREACH, libc::EMSGSIZE] {
        network.set_outage(Some(crate::port::Sent::Refused(errno)));
        let mut stream = soon(far.open()).await.unwrap();
        soon(stream.write_all(b"in vain at first")).await.unwrap();
        soon(async {
            while relay.plane.stats().send.last_refusal != Some(errno) {
                tokio::task::yield_now().await;
            }
        })
        .await;
        network.set_outage(None);
        let mut word = [0; 16];
        soon(soon(near.accept()).await.unwrap().read_exact(&mut word)).await.unwrap();
        assert_eq!(&word, b"in vain at first");
    }
}

#[tokio::test]
async fn a_blocked_carrier_makes_writers_wait_within_bounds_and_then_all_arrives() {
    let network = Network::new();
    let (relay_id, connector_id) = identities();
    // Wide windows: nothing but the carrier holds the writer back.
    let wide = StreamLimits { window: 8 << 20, ..StreamLimits::default() };
    let mut relay = start_with(&network, &relay_id, PROTOCOL_VERSION, wide);
    let connector = start_with(&network, &connector_id, PROTOCOL_VERSION, wide);
    let near = connector.dial(relay_id.at).await;
    let far = relay.connected().await;
    let body = bytes(4 << 20, 9);
    let sending = async {
        let mut stream = far.open().await.unwrap();
        // Half of it opens the congestion window.
        stream.write_all(&body[..2 << 20]).await.unwrap();
        while far.stats().window < 1 << 20 {
            tokio::task::yield_now().await;
        }
        network.set_outage(Some(crate::port::Sent::Blocked));
        let rest = stream.write_all(&body[2 << 20..]);
        tokio::pin!(rest);
        let mut done = false;
        for _ in 0..1000 {
            done = done || futures_poll(rest.as_mut()).await.is_some();
            tokio::task::yield_now().await;
        }
        let waiting = relay.plane.waiting_bytes();
        assert!((1..=crate::outbox::LIMIT + 65_536).contains(&waiting), "{waiting}");
        network.set_outage(None);
        if !done {
            rest.await.unwrap();
        }
        stream.shutdown().await.unwrap();
        stream.read(&mut [0]).await.unwrap();
    };
    let receiving = async {
        let mut stream = near.accept().await.unwrap();
        let mut got = Vec::new();
        stream.read_to_end(&mut got).await.unwrap();
        stream.shutdown().await.unwrap();
        got
    };
    let ((), got) = soon(async { tokio::join!(sending, receiving) }).await;
    assert!(got == body);
}
