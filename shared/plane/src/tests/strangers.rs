//! A connector that was taken over speaks inside its own session as it likes.

use super::*;

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
        let mut engine = culvert_engine::Engine::new(config, crate::shared::now());
        let peer = engine.add_peer(peer_config(&identity), crate::shared::now()).unwrap();
        let mut rogue = Self { engine, peer, network: network.clone(), at, inner, carrier: network.carrier(at) };
        let mut replies = culvert_engine::Replies::default();
        let path = crate::Path { remote: relay_id.at, local: None, socket: 0 };
        rogue.engine.connect(peer, Some(path), crate::shared::now(), &mut replies);
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
        let sealed = self.engine.seal(self.peer, &mut packet, crate::shared::now(), &mut out).unwrap();
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
        let now = crate::shared::now();
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
