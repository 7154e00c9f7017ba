//! Stock peers: packets between a device in memory and a peer that is nothing but an engine with another device.

use std::net::IpAddr;

use ipnet::IpNet;

use super::*;
use crate::AddPeerError;
use crate::memory::MemoryPort;
use crate::port::Sent;
use crate::shard::TunSide;
use crate::tun::inner::testing::{is_right, packet, tcp};
use crate::tun::inner::{Head, ICMPV6, TCP, UDP};
use crate::tun::pump::pump;
use crate::tun::segment::Segments;
use crate::tun::vnet::{self, Vnet};

const ACK: u8 = 0x10;
const SYN: u8 = 0x02;
/// Behind the stock peer.
const ORIGIN: &str = "fd00:20::5";

/// A plane with a device in memory.
struct Side {
    plane: Plane,
    events: Events,
    port: Arc<MemoryPort>,
    peer: PeerId,
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn side(network: &Network, identity: &Identity, inner: &str, allowed: &str) -> Side {
    let End { plane, events, peer } = start(network, identity);
    // `start` adds a connector: the stock peer takes its place.
    plane.shared().shard().remove_peer(peer);
    let port = Arc::<MemoryPort>::default();
    let tun = TunSide::new(port.clone(), vec![address(inner)], 1408);
    assert!(plane.shared().shard().attach_tun(tun));
    tokio::spawn(pump(plane.shared().clone(), port.clone()));
    let allowed_ips = vec![allowed.parse::<IpNet>().unwrap()];
    let peer = plane.add_stock_peer(PeerConfig { allowed_ips, ..peer_config(identity) }).unwrap();
    Side { plane, events, port, peer }
}

/// The relay, and what stands for a router: what is an origin's address to the one is the other's own.
fn sides(network: &Network) -> (Side, Side) {
    let (relay, router) = identities();
    let router = Identity { role: Role::Relay, ..router };
    (side(network, &relay, "fd43:554c:5645::1", "fd00:20::/64"), side(network, &router, ORIGIN, "fd00:99::/64"))
}

fn frame(packet: &[u8]) -> Vec<u8> {
    [&Vnet::WHOLE[..], packet].concat()
}

fn packets(frames: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    for frame in frames {
        let (mut segments, mut out) = (Segments::read(frame).unwrap(), Vec::new());
        while segments.next(&mut out) {
            packets.push(out.clone());
        }
    }
    packets
}

async fn answer(port: &MemoryPort) -> (Head, Vec<u8>) {
    let frames = soon(port.take()).await;
    let packets = packets(&frames);
    assert!(packets.len() == 1 && is_right(&packets[0]), "{packets:?}");
    (Head::read(&packets[0]).unwrap(), packets[0].clone())
}

#[tokio::test]
async fn a_first_packet_waits_for_its_session_and_bulk_arrives_in_super_packets() {
    let network = Network::new();
    let (relay, router) = identities();
    let router_end = Identity { role: Role::Relay, ..router };
    let near = side(&network, &relay, "fd43:554c:5645::1", "fd00:20::/64");
    // The relay's inner address is not to be had by a stock peer here, so the router knows it as another relay would.
    let End { plane, events: _events, peer } = start(&network, &router_end);
    plane.shared().shard().remove_peer(peer);
    let far = Arc::<MemoryPort>::default();
    assert!(plane.shared().shard().attach_tun(TunSide::new(far.clone(), vec![address(ORIGIN)], 1408)));
    tokio::spawn(pump(plane.shared().clone(), far.clone()));
    plane
        .add_stock_peer(PeerConfig { allowed_ips: vec!["fd00:99::/64".parse().unwrap()], ..peer_config(&router_end) })
        .unwrap();
    let own = address("fd00:99::1");
    let (here, there) = (near.plane.clone(), plane.clone());

    let syn = tcp(own, address(ORIGIN), 1, SYN, b"");
    here.connect(near.peer, Some(router_end.at));
    near.port.put(frame(&syn));
    assert_eq!(packets(&soon(far.take()).await), [syn], "it left as soon as there was a session");
    assert_eq!(here.stats().tun.waited, 0);

    // 40 segments of a super-packet, as the kernel's TCP writes them.
    let payload = bytes(40_000, 3);
    let whole = tcp(own, address(ORIGIN), 2, ACK, &payload);
    let mut bulk = [&Vnet::joined(true, 40, 72, 1000)[..], &whole].concat();
    bulk[vnet::LEN + 40 + 16..vnet::LEN + 40 + 18].fill(0);
    near.port.put(bulk);
    let (mut got, mut frames) = (Vec::new(), 0);
    while got.len() < payload.len() {
        let new = soon(far.take()).await;
        frames += new.len();
        for packet in packets(&new) {
            assert!(is_right(&packet));
            got.extend_from_slice(&packet[72..]);
        }
    }
    assert!(got == payload);
    assert!(frames < 20, "{frames} frames for 40 packets");
    let (out, into) = (here.stats().tun, there.stats().tun);
    assert_eq!((out.packets_out, into.packets_in), (41, 41));
    assert_eq!(out.bytes_out, into.bytes_in);
    assert_eq!(there.stats().plane.hellos_received + here.stats().plane.hellos_received, 0, "no word of ours");
}

#[tokio::test]
async fn what_no_stock_peer_is_routed_for_is_answered_at_once() {
    let network = Network::new();
    let (near, _far) = sides(&network);
    let own = address("fd43:554c:5645::1");
    // A connector of the same relay is nobody here.
    let connector = address("fd43:554c:5645::77");
    let (_, other) = identities();
    let allowed_ips = vec![connector.into()];
    let public_key = PrivateKey::generate().public_key();
    near.plane.add_peer(PeerConfig { public_key, allowed_ips, ..peer_config(&other) }).unwrap();
    for to in [address("fd00:21::1"), connector] {
        near.port.put(frame(&tcp(own, to, 1, SYN, b"")));
        let (head, answer) = answer(&near.port).await;
        assert_eq!((head.source, head.protocol, &answer[40..42]), (to, ICMPV6, &[1, 0][..]));
        near.port.put(frame(&tcp(own, to, 1, ACK, b"data")));
        assert_eq!(self::answer(&near.port).await.0.protocol, TCP, "a reset ends a connection that stands");
    }
    assert_eq!(near.plane.stats().tun.unroutable, 4);
    // What the kernel says to the link is nobody's business.
    near.port.put(frame(&packet(own, address("ff02::2"), ICMPV6, &[133, 0, 0, 0])));
    near.port.put(b"no frame".to_vec());
    soon(async {
        while near.plane.stats().tun.malformed < 2 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(near.plane.stats().plane.quic_sent, 0);
}

#[tokio::test]
async fn a_peer_that_was_never_heard_of_is_unreachable_at_once() {
    let network = Network::new();
    let (near, _far) = sides(&network);
    near.port.put(frame(&tcp(address("fd43:554c:5645::1"), address(ORIGIN), 1, SYN, b"")));
    let (head, answer) = answer(&near.port).await;
    assert_eq!((head.protocol, &answer[40..42]), (ICMPV6, &[1, 3][..]));
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_does_not_answer_is_unreachable_after_three_seconds() {
    let network = Network::new();
    let (near, _far) = sides(&network);
    let silent = "192.0.2.200:1".parse().unwrap();
    near.plane.connect(near.peer, Some(silent));
    let from = tokio::time::Instant::now();
    near.port.put(frame(&tcp(address("fd43:554c:5645::1"), address(ORIGIN), 1, SYN, b"")));
    let (head, answer) = answer(&near.port).await;
    assert_eq!((head.protocol, &answer[40..42]), (ICMPV6, &[1, 3][..]));
    assert!((2900..3500).contains(&from.elapsed().as_millis()), "{:?}", from.elapsed());
    assert_eq!(near.plane.stats().tun.waited, 1);
}

#[tokio::test]
async fn removing_a_peer_answers_what_waits_and_what_comes() {
    let network = Network::new();
    let (mut near, _far) = sides(&network);
    near.plane.connect(near.peer, Some("192.0.2.200:1".parse().unwrap()));
    let own = address("fd43:554c:5645::1");
    near.port.put(frame(&tcp(own, address(ORIGIN), 1, SYN, b"")));
    soon(async {
        while near.plane.stats().tun.reads < 1 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    near.plane.remove_peer(near.peer, CloseCode::Revoked).await;
    assert_eq!(answer(&near.port).await.1[40..42], [1, 0]);
    near.port.put(frame(&tcp(own, address(ORIGIN), 9, ACK, b"more")));
    assert_eq!(answer(&near.port).await.0.protocol, TCP);
    near.events.receiver.close();
}

#[tokio::test]
async fn only_packets_from_allowed_hosts_to_our_own_addresses_come_in() {
    let network = Network::new();
    let (relay, router) = identities();
    let router = Identity { role: Role::Relay, ..router };
    let near = side(&network, &relay, "fd43:554c:5645::1", "fd00:20::/64");
    // A router that believes that everything is behind the relay.
    let far = side(&network, &router, ORIGIN, "fd00::/16");
    far.plane.connect(far.peer, Some(relay.at));
    let wide = far.plane.clone();
    let send = |from: &str, to: &str| {
        let (from, to) = (address(from), address(to));
        far.port.put(frame(&packet(from, to, UDP, &[0, 1, 0, 2, 0, 8, 0, 0])));
    };
    // To the host of another peer, to a group, and in the name of somebody else.
    send(ORIGIN, "fd00:21::9");
    send("fd00:20::6", "fd00:20::7");
    send("fd00:30::1", "fd00:99::1");
    soon(async {
        loop {
            let stats = near.plane.stats();
            if stats.tun.foreign == 2 && stats.engine.dropped(culvert_engine::DropReason::SourceNotAllowed) == 1 {
                break;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!((near.plane.stats().tun.packets_in, wide.stats().tun.packets_out), (0, 3));
}

#[tokio::test]
async fn the_device_is_not_read_while_nothing_can_leave() {
    let network = Network::new();
    let (mut near, far) = sides(&network);
    let at = far.plane.local_addrs()[0];
    near.plane.connect(near.peer, Some(at));
    near.until_up().await;
    network.set_outage(Some(Sent::Blocked));
    let own = address("fd00:99::1");
    for count in 0..40 {
        let whole = tcp(own, address(ORIGIN), count * 60_000, ACK, &vec![1; 60_000]);
        near.port.put([&Vnet::joined(true, 40, 72, 1000)[..], &whole].concat());
    }
    let mut calm = 0;
    soon(async {
        while calm < 100 {
            let before = near.port.unread();
            tokio::task::yield_now().await;
            calm = if before == near.port.unread() { calm + 1 } else { 0 };
        }
    })
    .await;
    let unread = near.port.unread();
    assert!(unread > 20, "{unread}");
    assert!(near.plane.waiting_bytes() < 1 << 20);
    network.set_outage(None);
    let mut got = 0;
    while got < 40 * 60 {
        got += packets(&soon(far.port.take()).await).len();
    }
    assert_eq!((got, near.port.unread()), (40 * 60, 0));
}

#[tokio::test]
async fn without_a_device_a_stock_peer_gets_echoes_and_no_hello_makes_it_a_connector() {
    let network = Network::new();
    let (relay, connector) = identities();
    let near = start(&network, &relay);
    near.plane.shared().shard().remove_peer(near.peer);
    near.plane.add_stock_peer(peer_config(&relay)).unwrap();
    // One of our own connectors has got hold of the stock peer's key: it says hello and would like to dial.
    let end = start(&network, &connector);
    end.plane.connect(end.peer, Some(relay.at));
    let dialled = timeout(Duration::from_secs(1), end.plane.dial(end.peer)).await;
    assert!(dialled.is_err(), "no answer");
    let stats = near.plane.stats();
    assert!(stats.tun.foreign > 0, "{stats:?}");
    assert_eq!((stats.plane.hellos_received, stats.plane.quic_received, stats.plane.echoes), (0, 0, 0));
    let addresses = crate::wrap::Addresses { source: connector.inner, destination: RELAY_INNER };
    let request = crate::icmp::testing::request(&addresses);
    let ping = packet(connector.inner.into(), RELAY_INNER.into(), ICMPV6, &request);
    end.plane.shared().shard().say_raw(end.peer, &ping, crate::shared::now());
    soon(async {
        while near.plane.stats().plane.echoes < 1 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn networks_that_hold_addresses_of_the_relay_or_its_connectors_are_refused() {
    let network = Network::new();
    let (near, _far) = sides(&network);
    let (_, other) = identities();
    for (net, refused) in [
        ("fd43:554c:5645::1/128", true),
        ("fd43:554c:5645::/64", true),
        ("::/0", true),
        ("fd43:554c:5645::9:1234/128", false),
        ("0.0.0.0/0", false),
    ] {
        let public_key = PrivateKey::generate().public_key();
        let allowed_ips = vec![net.parse().unwrap()];
        let added = near.plane.add_stock_peer(PeerConfig { public_key, allowed_ips, ..peer_config(&other) });
        assert_eq!(matches!(added, Err(AddPeerError::Reserved { .. })), refused, "{net}: {added:?}");
    }
    let public_key = PrivateKey::generate().public_key();
    let allowed_ips = vec!["fd00:20::/120".parse().unwrap()];
    let added = near.plane.add_stock_peer(PeerConfig { public_key, allowed_ips, ..peer_config(&other) });
    assert!(matches!(added, Err(AddPeerError::Overlap { with, .. }) if with == near.peer), "{added:?}");
}

impl Side {
    async fn until_up(&mut self) {
        soon(async { while !matches!(self.events.recv().await, Some(Event::SessionUp { .. })) {} }).await;
    }
}
