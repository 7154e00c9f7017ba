//! A stock WireGuard peer and the engine: `wireguard-go` and `wg`, as packaged, in a network namespace of their own.
//!
//! ```text
//!   this thread's namespace                      the peer's namespace
//!   engine + UdpSocket 10.77.0.1:51820 ══ veth ══ 10.77.0.2:51900 wireguard-go ── wg interface fd43:554c:5645::99
//!   fd43:554c:5645::1 (echo, answered here)                                       ping, a UDP socket
//! ```
//!
//! Real time: each test lasts as long as WireGuard needs for a rekey. They run beside each other.

use std::io::Write as _;
use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd as _;
use std::path::Path as File;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use culvert_engine::{
    Config, DropReason, Engine, Event, HandshakeLimits, Path, PeerConfig, PeerId, PskEpoch, Received, Replies, Shard,
};
use culvert_model::key::{PrivateKey, Psk};
use nix::sched::{CloneFlags, setns, unshare};

const RELAY: Ipv6Addr = Ipv6Addr::new(0xfd43, 0x554c, 0x5645, 0, 0, 0, 0, 1);
const STOCK: Ipv6Addr = Ipv6Addr::new(0xfd43, 0x554c, 0x5645, 0, 0, 0, 0, 0x99);
const STOCK_PORT: u16 = 51900;
const UDP_PORT: u16 = 9999;

/// Half a second apart, this many pings go past WireGuard's REKEY_AFTER_TIME of 120 s.
const PINGS: u32 = 264;

#[test]
fn a_stock_peer_shakes_hands_with_the_engine_and_rekeys() {
    run(|| {
        let mut scene = Scene::new("a", Some(Psk::generate()));
        // The first ping makes the stock peer initiate.
        scene.ping_through_a_rekey();
        let ups = scene.ups();
        assert!(ups.len() >= 2 && ups.iter().all(|initiated| !initiated), "sessions: {ups:?}");
    });
}

#[test]
fn the_engine_shakes_hands_with_a_stock_peer_and_rekeys() {
    run(|| {
        let mut scene = Scene::new("b", None);
        scene.connect();
        scene.ping_through_a_rekey();
        let ups = scene.ups();
        assert!(ups.len() >= 2 && ups.iter().all(|initiated| *initiated), "sessions: {ups:?}");
    });
}

#[test]
fn a_pre_shared_key_that_differs_lets_nothing_through() {
    run(|| {
        let mut scene = Scene::new("c", Some(Psk::generate()));
        scene.engine.set_psks(scene.peer, vec![PskEpoch { epoch: 0, psk: Psk::generate() }], Instant::now()).unwrap();
        scene.connect();
        let from = Instant::now();
        scene.run_until(|_| from.elapsed() > Duration::from_secs(6));
        assert_eq!(scene.ups(), [] as [bool; 0]);
        let refused = scene.engine.stats().dropped(DropReason::BadSeal);
        assert!(refused >= 1, "the stock peer answered, and its answer was refused");
    });
}

struct Scene {
    engine: Engine,
    peer: PeerId,
    socket: UdpSocket,
    /// In the peer's namespace, on the far side of its tunnel.
    far: UdpSocket,
    stock: Stock,
    events: Vec<Event>,
    echoed: u32,
    udp_sent: u32,
    udp_heard: u32,
}

/// `wireguard-go`, its interface and the namespace that lives as long as it.
struct Stock {
    daemon: Child,
    interface: String,
}

impl Scene {
    fn new(name: &str, psk: Option<Psk>) -> Self {
        unshare(CloneFlags::CLONE_NEWNET).expect("root may make a network namespace");
        let interface = format!("cvs{name}{}", std::process::id());
        let daemon = Command::new("unshare")
            .args(["--net", "wireguard-go", "-f", &interface])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("wireguard-go starts");
        let stock = Stock { daemon, interface };
        let control = format!("/var/run/wireguard/{}.sock", stock.interface);
        let from = Instant::now();
        while !File::new(&control).exists() {
            assert!(from.elapsed() < Duration::from_secs(10), "wireguard-go made no control socket");
            std::thread::yield_now();
        }

        let pid = stock.daemon.id().to_string();
        here("ip link set lo up");
        here("ip link add veth0 type veth peer name veth1");
        here(&format!("ip link set veth1 netns {pid}"));
        here("ip addr add 10.77.0.1/24 dev veth0");
        here("ip link set veth0 up");
        stock.there("ip addr add 10.77.0.2/24 dev veth1");
        stock.there("ip link set veth1 up");
        stock.there(&format!("ip addr add {STOCK}/64 dev {} nodad", stock.interface));
        stock.there(&format!("ip link set {} up", stock.interface));

        let (our_key, stock_key) = (PrivateKey::generate(), PrivateKey::generate());
        stock.configure(&our_key, &stock_key, psk.as_ref());

        let now = Instant::now();
        let config = Config {
            statics: vec![our_key],
            shard: Shard::default(),
            handshakes: HandshakeLimits::default(),
            seed: None,
        };
        let mut engine = Engine::new(config, now);
        let peer = PeerConfig {
            public_key: stock_key.public_key(),
            static_index: 0,
            psks: psk.map(|psk| PskEpoch { epoch: 0, psk }).into_iter().collect(),
            allowed_ips: vec![format!("{STOCK}/128").parse().unwrap()],
            path: None,
            persistent_keepalive: None,
        };
        let peer = engine.add_peer(peer, now).unwrap();
        let socket = UdpSocket::bind("10.77.0.1:51820").expect("the address is ours");
        socket.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
        let far = stock.udp_socket();
        Self { engine, peer, socket, far, stock, events: Vec::new(), echoed: 0, udp_sent: 0, udp_heard: 0 }
    }

    fn connect(&mut self) {
        let remote = SocketAddr::from(([10, 77, 0, 2], STOCK_PORT));
        let path = Path { remote, local: None, socket: 0 };
        let mut replies = Replies::default();
        self.engine.connect(self.peer, Some(path), Instant::now(), &mut replies);
        self.send(&mut replies);
    }

    /// Pings from the stock side, with UDP the other way beside it, until WireGuard must have rekeyed.
    fn ping_through_a_rekey(&mut self) {
        let ping = format!("ping -6 -i 0.5 -W 2 -c {PINGS} {RELAY}");
        let mut ping = self.stock.command(&ping).stdout(Stdio::piped()).spawn().expect("ping starts");
        let mut next_udp = Instant::now() + Duration::from_secs(2);
        self.run_until(|scene| {
            if Instant::now() >= next_udp {
                next_udp += Duration::from_secs(1);
                scene.send_udp();
            }
            matches!(ping.try_wait(), Ok(Some(_)))
        });
        let out = ping.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&out.stdout);
        assert!(said.contains(" 0% packet loss"), "{said}");
        assert_eq!(self.echoed, PINGS);
        assert!(self.udp_sent > 120 && self.udp_heard == self.udp_sent, "{} of {}", self.udp_heard, self.udp_sent);
        let seen = self.stock.wg(&["show", &self.stock.interface, "transfer"]);
        let received: u64 = seen.split_whitespace().nth(1).and_then(|bytes| bytes.parse().ok()).unwrap_or(0);
        assert!(received > u64::from(PINGS) * 100, "{seen}");
        println!("{} pings answered, {} of {} UDP packets heard", self.echoed, self.udp_heard, self.udp_sent);
    }

    /// For each session, whether the engine initiated it.
    fn ups(&self) -> Vec<bool> {
        let up = |event: &Event| match event {
            Event::SessionUp { initiated, .. } => Some(*initiated),
            _ => None,
        };
        self.events.iter().filter_map(up).collect()
    }

    fn run_until(&mut self, mut done: impl FnMut(&mut Self) -> bool) {
        let mut datagram = vec![0; 65_536];
        let (mut inner, mut replies) = (Vec::new(), Replies::default());
        while !done(self) {
            if let Ok((len, remote)) = self.socket.recv_from(&mut datagram) {
                let path = Path { remote, local: None, socket: 0 };
                inner.clear();
                let now = Instant::now();
                let taken = self.engine.handle_datagram(&datagram[..len], path, now, &mut inner, &mut replies);
                if matches!(taken, Received::Packet { .. }) {
                    self.answer_echo(&inner);
                }
            }
            let now = Instant::now();
            while self.engine.handle_handshakes(8, now, &mut replies) {}
            if self.engine.poll_timeout().is_some_and(|at| at <= now) {
                self.engine.handle_timeout(now, &mut replies);
            }
            self.send(&mut replies);
            self.events.extend(std::iter::from_fn(|| self.engine.poll_event()));
            let mut heard = [0; 64];
            while self.far.recv(&mut heard).is_ok() {
                self.udp_heard += 1;
            }
        }
    }

    fn send(&mut self, replies: &mut Replies) {
        for (path, datagram) in replies.drain() {
            self.socket.send_to(datagram, path.remote).unwrap();
        }
    }

    fn seal(&mut self, mut packet: Vec<u8>) {
        let mut out = Vec::new();
        if let Ok(sealed) = self.engine.seal(self.peer, &mut packet, Instant::now(), &mut out) {
            self.socket.send_to(&out, sealed.path.remote).unwrap();
        }
    }

    fn answer_echo(&mut self, packet: &[u8]) {
        let (Some(58), Some(128)) = (packet.get(6), packet.get(40)) else { return };
        let mut echo = packet[40..].to_vec();
        echo[0] = 129;
        self.echoed += 1;
        self.seal(ipv6(58, 2, echo));
    }

    fn send_udp(&mut self) {
        let payload = self.udp_sent.to_be_bytes();
        let mut udp = [1234_u16.to_be_bytes(), UDP_PORT.to_be_bytes(), 12_u16.to_be_bytes(), [0; 2]].concat();
        udp.extend_from_slice(&payload);
        self.udp_sent += 1;
        self.seal(ipv6(17, 6, udp));
    }
}

impl Stock {
    fn configure(&self, ours: &PrivateKey, stock: &PrivateKey, psk: Option<&Psk>) {
        let dir = tempfile::tempdir().unwrap();
        let secret = |name: &str, text: &str| {
            let path = dir.path().join(name);
            let mut file = std::fs::File::create(&path).unwrap();
            file.write_all(text.as_bytes()).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let key = secret("key", &stock.to_base64());
        let psk = psk.map(|psk| secret("psk", &psk.to_base64()));
        let (peer, port, allowed) = (ours.public_key().to_string(), STOCK_PORT.to_string(), format!("{RELAY}/128"));
        let mut args = vec![
            "set",
            &self.interface,
            "private-key",
            &key,
            "listen-port",
            &port,
            "peer",
            &peer,
            "allowed-ips",
            &allowed,
        ];
        args.extend(["endpoint", "10.77.0.1:51820"]);
        if let Some(psk) = &psk {
            args.extend(["preshared-key", psk]);
        }
        self.wg(&args);
    }

    fn wg(&self, args: &[&str]) -> String {
        let out = Command::new("wg").args(args).output().expect("wg runs");
        assert!(out.status.success(), "wg {args:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.daemon.id().to_string(), "--net", "--"]).args(line.split(' '));
        command
    }

    fn there(&self, line: &str) {
        let status = self.command(line).status().expect("nsenter runs");
        assert!(status.success(), "{line}");
    }

    /// A socket of the stock peer's namespace.
    fn udp_socket(&self) -> UdpSocket {
        let namespace = std::fs::File::open(format!("/proc/{}/ns/net", self.daemon.id())).unwrap();
        let bind = move || {
            setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
            let socket = UdpSocket::bind((STOCK, UDP_PORT)).unwrap();
            socket.set_nonblocking(true).unwrap();
            socket
        };
        std::thread::spawn(bind).join().unwrap()
    }
}

impl Drop for Stock {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        let _ = std::fs::remove_file(format!("/var/run/wireguard/{}.sock", self.interface));
    }
}

/// Runs a scene on a thread that may change its namespace, or says loudly why it cannot.
fn run(scene: impl FnOnce() + Send + 'static) {
    if let Some(lacking) = lacking() {
        println!("SKIPPED: the stock peer test needs {lacking}");
        eprintln!("SKIPPED: the stock peer test needs {lacking}");
        return;
    }
    if let Err(panic) = std::thread::spawn(scene).join() {
        std::panic::resume_unwind(panic);
    }
}

fn lacking() -> Option<&'static str> {
    let runs = |program: &str| {
        Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
    };
    if !nix::unistd::geteuid().is_root() {
        return Some("root");
    }
    if std::fs::File::options().read(true).write(true).open("/dev/net/tun").is_err() {
        return Some("/dev/net/tun");
    }
    let programs = ["wireguard-go", "wg", "ip", "ping", "nsenter", "unshare"];
    if let Some(program) = programs.into_iter().find(|program| !runs(program)) {
        return Some(program);
    }
    let namespace = std::thread::spawn(|| unshare(CloneFlags::CLONE_NEWNET).is_ok()).join();
    if namespace.is_ok_and(|made| made) { None } else { Some("network namespaces") }
}

fn here(line: &str) {
    let mut words = line.split(' ');
    let status = Command::new(words.next().unwrap()).args(words).status().expect("ip runs");
    assert!(status.success(), "{line}");
}

/// A packet from the relay's inner address to the stock peer's, with the checksum put at `at` in the payload.
fn ipv6(next_header: u8, at: usize, mut payload: Vec<u8>) -> Vec<u8> {
    payload[at..at + 2].fill(0);
    let len = payload.len() as u16;
    let pseudo =
        [&RELAY.octets()[..], &STOCK.octets(), &u32::from(len).to_be_bytes(), &[0, 0, 0, next_header]].concat();
    let sum = [pseudo.as_slice(), &payload]
        .iter()
        .flat_map(|part| part.chunks(2))
        .fold(0_u32, |sum, pair| sum + (u32::from(pair[0]) << 8) + u32::from(pair.get(1).copied().unwrap_or(0)));
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !(((folded & 0xffff) + (folded >> 16)) as u16);
    payload[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend_from_slice(&len.to_be_bytes());
    packet.extend_from_slice(&[next_header, 64]);
    packet.extend_from_slice(&RELAY.octets());
    packet.extend_from_slice(&STOCK.octets());
    packet.extend_from_slice(&payload);
    packet
}
