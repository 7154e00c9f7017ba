//! Two engines in one process, without a simulated clock: what can be said at one instant. `tests/sim` has the rest.

use std::time::Instant;

use culvert_engine::{
    Config, DropReason, Engine, Event, HandshakeLimits, Path, PeerConfig, PeerId, PskEpoch, Received, Replies,
    SealError, Shard,
};
use culvert_model::key::{PrivateKey, Psk};

struct Pair {
    engines: [Engine; 2],
    peers: [PeerId; 2],
    keys: [PrivateKey; 2],
    now: Instant,
}

fn path(port: u16) -> Path {
    Path { remote: ([10, 0, 0, 1], port).into(), local: None, socket: 0 }
}

/// An IPv6 packet of `len` bytes, 40 or more.
fn packet(source: &str, len: usize) -> Vec<u8> {
    let mut packet = vec![7; len];
    packet[..8].copy_from_slice(&[0x60, 0, 0, 0, 0, 0, 59, 64]);
    packet[4..6].copy_from_slice(&((len - 40) as u16).to_be_bytes());
    packet[8..24].copy_from_slice(&source.parse::<std::net::Ipv6Addr>().unwrap().octets());
    packet
}

fn engine(key: &PrivateKey, now: Instant) -> Engine {
    Engine::new(
        Config {
            statics: vec![key.clone()],
            shard: Shard::default(),
            handshakes: HandshakeLimits::default(),
            seed: None,
        },
        now,
    )
}

impl Pair {
    /// `psks`: the epochs that each end has.
    fn new(psks: [&[u32]; 2]) -> Self {
        let now = Instant::now();
        let keys = [PrivateKey::generate(), PrivateKey::generate()];
        let mut engines = [engine(&keys[0], now), engine(&keys[1], now)];
        let peers = [0, 1].map(|end| {
            let other = 1 - end;
            engines[end]
                .add_peer(
                    PeerConfig {
                        public_key: keys[other].public_key(),
                        static_index: 0,
                        psks: psks[end]
                            .iter()
                            .map(|epoch| PskEpoch { epoch: *epoch, psk: Psk::from_bytes([*epoch as u8; 32]) })
                            .collect(),
                        allowed_ips: vec![format!("fd00::{other}/128").parse().unwrap()],
                        path: None,
                        persistent_keepalive: None,
                    },
                    now,
                )
                .unwrap()
        });
        Self { engines, peers, keys, now }
    }

    /// Lets end 0 initiate and carries what follows until nothing does. `wire` sees every datagram first.
    fn connect(&mut self, wire: &mut dyn FnMut(usize, &[u8])) {
        let mut replies = Replies::default();
        self.engines[0].connect(self.peers[0], Some(path(1)), self.now, &mut replies);
        let mut from = 0;
        while !replies.is_empty() {
            let mut next = Replies::default();
            let to = 1 - from;
            for (_, datagram) in replies.drain() {
                wire(from, datagram);
                let source = path(from as u16);
                self.engines[to].handle_datagram(datagram, source, self.now, &mut Vec::new(), &mut next);
            }
            self.engines[to].handle_handshakes(usize::MAX, self.now, &mut next);
            replies = next;
            from = to;
        }
    }

    fn send(&mut self, from: usize, mut inner: Vec<u8>) -> Result<(Received, Vec<u8>), SealError> {
        let mut out = Vec::new();
        self.engines[from].seal(self.peers[from], &mut inner, self.now, &mut out)?;
        let mut opened = Vec::new();
        let source = path(from as u16);
        let received =
            self.engines[1 - from].handle_datagram(&out, source, self.now, &mut opened, &mut Replies::default());
        Ok((received, opened))
    }
}

#[test]
fn two_engines_shake_hands_and_packets_pass_both_ways() {
    for psks in [[&[][..], &[]], [&[0], &[0]], [&[7], &[7]], [&[3, 4], &[3, 4]], [&[3, 4], &[4]]] {
        let mut pair = Pair::new(psks);
        pair.connect(&mut |_, _| {});
        let epoch = psks[0].last().copied();
        for end in [0, 1] {
            let ups: Vec<Event> = std::iter::from_fn(|| pair.engines[end].poll_event()).collect();
            let expected = Event::SessionUp {
                peer: pair.peers[end],
                bootstrap: None,
                path: path(1 - end as u16),
                epoch,
                initiated: end == 0,
                first: true,
            };
            assert_eq!(ups[0], expected, "{psks:?}");
            let promoted = ups.contains(&Event::EpochPromoted { peer: pair.peers[end], epoch: 4 });
            assert_eq!(promoted, psks[end].len() == 2);
            let inner = packet(&format!("fd00::{end}"), 101);
            let peer = pair.peers[1 - end];
            assert_eq!(pair.send(end, inner.clone()).unwrap(), (Received::Packet { peer }, inner));
        }
    }
}

#[test]
fn different_pre_shared_keys_make_no_session() {
    let mut pair = Pair::new([&[1], &[2]]);
    pair.connect(&mut |_, _| {});
    assert_eq!(pair.send(0, packet("fd00::0", 40)).unwrap_err(), SealError::NoSession);
    assert_eq!(pair.engines[0].poll_event(), None);
}

#[test]
fn an_inner_source_of_somebody_else_is_dropped() {
    let mut pair = Pair::new([&[], &[]]);
    pair.connect(&mut |_, _| {});
    let refused = (Received::Dropped(DropReason::SourceNotAllowed), Vec::new());
    assert_eq!(pair.send(0, packet("fd00::1", 64)).unwrap(), refused);
    assert_eq!(pair.send(1, packet("fd00::2", 64)).unwrap(), refused);
    assert!(matches!(pair.send(0, packet("fd00::0", 64)).unwrap(), (Received::Packet { .. }, _)));
}

#[test]
fn packets_are_padded_to_sixteen_bytes_and_come_out_as_they_went_in() {
    let mut pair = Pair::new([&[], &[]]);
    pair.connect(&mut |_, _| {});
    for len in [40, 47, 48, 49, 1280, 1281] {
        let mut inner = packet("fd00::0", len);
        let mut out = vec![1, 2, 3];
        let sealed = pair.engines[0].seal(pair.peers[0], &mut inner, pair.now, &mut out).unwrap();
        assert_eq!((sealed.len, out.len()), (len.next_multiple_of(16) + 32, sealed.len + 3));
        assert_eq!(out[..3], [1, 2, 3]);
        let mut opened = vec![9];
        pair.engines[1].handle_datagram(&out[3..], path(0), pair.now, &mut opened, &mut Replies::default());
        assert_eq!(opened[1..], packet("fd00::0", len)[..]);
    }
}

#[test]
fn no_datagram_without_a_right_mac_gets_an_answer_and_none_panics() {
    let mut pair = Pair::new([&[], &[]]);
    let mut seen = Vec::new();
    pair.connect(&mut |_, datagram| seen.push(datagram.to_vec()));
    let mut fresh = Pair::new([&[], &[]]);
    for datagram in &seen {
        for len in 0..datagram.len() + 1 {
            // The last 16 bytes are mac2, which says nothing while no cookie is demanded.
            for flip in [0, len / 2, len.saturating_sub(17)] {
                let mut mangled = datagram[..len].to_vec();
                if let Some(byte) = mangled.get_mut(flip) {
                    *byte ^= 0x5a;
                }
                for pair in [&mut pair, &mut fresh] {
                    let (mut inner, mut replies) = (Vec::new(), Replies::default());
                    let engine = &mut pair.engines[1];
                    let taken = engine.handle_datagram(&mangled, path(0), pair.now, &mut inner, &mut replies);
                    assert!(matches!(taken, Received::Dropped(_)), "{taken:?}");
                    engine.handle_handshakes(usize::MAX, pair.now, &mut replies);
                    assert!(replies.is_empty() && inner.is_empty());
                }
            }
        }
    }
}

#[test]
fn a_handshake_from_a_known_endpoint_goes_before_those_of_strangers() {
    let mut pair = Pair::new([&[], &[]]);
    pair.connect(&mut |_, _| {});
    let mut strangers = Vec::new();
    for _ in 0..5 {
        let mut stranger = engine(&PrivateKey::generate(), pair.now);
        let public_key = pair.keys[1].public_key();
        let config = PeerConfig {
            public_key,
            static_index: 0,
            psks: Vec::new(),
            allowed_ips: Vec::new(),
            path: None,
            persistent_keepalive: None,
        };
        let peer = stranger.add_peer(config, pair.now).unwrap();
        let mut replies = Replies::default();
        stranger.connect(peer, Some(path(1)), pair.now, &mut replies);
        strangers.extend(replies.drain().map(|(_, bytes)| bytes.to_vec()));
    }
    let mut replies = Replies::default();
    pair.engines[0].connect(pair.peers[0], None, pair.now, &mut replies);
    let own = replies.drain().next().unwrap().1.to_vec();
    let (now, engine) = (pair.now, &mut pair.engines[1]);
    let mut replies = Replies::default();
    for initiation in &strangers {
        engine.handle_datagram(initiation, path(77), now, &mut Vec::new(), &mut replies);
    }
    engine.handle_datagram(&own, path(0), now, &mut Vec::new(), &mut replies);
    assert_eq!(engine.stats().queued, 6);
    assert!(engine.handle_handshakes(1, now, &mut replies));
    assert_eq!(replies.drain().map(|(to, bytes)| (to, bytes.len())).collect::<Vec<_>>(), [(path(0), 92)]);
    assert!(!engine.handle_handshakes(5, now, &mut replies));
    assert_eq!((replies.len(), engine.stats().dropped(DropReason::UnknownPeer)), (0, 5));
}

#[test]
fn a_counter_past_the_limit_of_messages_is_refused_before_it_is_decrypted() {
    // Near 2^64 boringtun's replay window would overflow, and a peer may seal whatever it likes.
    let mut pair = Pair::new([&[], &[]]);
    pair.connect(&mut |_, _| {});
    let mut out = Vec::new();
    pair.engines[0].seal(pair.peers[0], &mut packet("fd00::0", 64), pair.now, &mut out).unwrap();
    for (counter, expected) in [
        (u64::MAX, DropReason::Expired),
        (u64::MAX - (1 << 13), DropReason::Expired),
        (u64::MAX - (1 << 13) - 1, DropReason::BadSeal),
    ] {
        out[8..16].copy_from_slice(&counter.to_le_bytes());
        let engine = &mut pair.engines[1];
        let taken = engine.handle_datagram(&out, path(0), pair.now, &mut Vec::new(), &mut Replies::default());
        assert_eq!(taken, Received::Dropped(expected));
    }
}

#[test]
fn a_removed_peer_gets_silence() {
    let mut pair = Pair::new([&[], &[]]);
    pair.connect(&mut |_, _| {});
    let peer = pair.peers[1];
    pair.engines[1].remove_peer(peer);
    let (received, _) = pair.send(0, packet("fd00::0", 64)).unwrap();
    assert_eq!(received, Received::Dropped(DropReason::UnknownIndex));
    let mut answers = 0;
    pair.connect(&mut |from, _| answers += from);
    assert_eq!(answers, 0);
    assert_eq!(pair.engines[1].peer_stats(peer), None);
    assert_eq!(pair.engines[1].stats().peers, 0);
}

#[test]
fn overlapping_networks_and_known_keys_are_refused_by_name() {
    use culvert_engine::AddPeerError;
    let mut pair = Pair::new([&[], &[]]);
    let config = |key: u8, net: &str| PeerConfig {
        public_key: PrivateKey::from_bytes([key; 32]).public_key(),
        static_index: 0,
        psks: Vec::new(),
        allowed_ips: vec![net.parse().unwrap()],
        path: None,
        persistent_keepalive: None,
    };
    let now = pair.now;
    let engine = &mut pair.engines[0];
    let second = engine.add_peer(config(1, "10.0.0.0/8"), now).unwrap();
    assert_eq!(engine.route("10.1.2.3".parse().unwrap()), Some(second));
    let net = "10.9.0.0/16".parse().unwrap();
    assert_eq!(engine.add_peer(config(2, "10.9.0.0/16"), now), Err(AddPeerError::Overlap { net, with: second }));
    assert_eq!(engine.add_peer(config(1, "11.0.0.0/8"), now), Err(AddPeerError::KnownKey(second)));
    assert!(engine.add_unrouted_peer(config(2, "10.9.0.0/16"), now).is_ok());
    engine.remove_peer(second);
    assert_eq!(engine.route("10.1.2.3".parse().unwrap()), None);
    assert!(engine.add_peer(config(1, "10.0.0.0/8"), now).is_ok());
}
