//! The TUN plane and a stock router: Debian's `wireguard-go` behind NAT, its own host the origin; our side a plane with
//! its sockets in the kernel's namespace, without a relay around it.
//!
//! ```text
//! gateway's namespace          internet        private namespace
//! plane :51820 ═══════════════ NAT ═══════════ wireguard-go ── 10.20.0.5, fd00:20::5 (origin)
//! tun namespace 100.64.0.1, fd43:554c:5645::1
//! ```

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use culvert_engine::{HandshakeLimits, PeerConfig, Shard};
use culvert_lab::netns::Namespace;
use culvert_lab::skip::{self, Need};
use culvert_lab::topology::{Internet, RELAY_V4, RELAY_V6};
use culvert_lab::wait;
use culvert_model::address::RELAY_INNER;
use culvert_model::close::CloseCode;
use culvert_model::id::InstanceId;
use culvert_model::key::{PrivateKey, Psk};
use culvert_plane::tun::{Tun, TunConfig, Way};
use culvert_plane::{Config, Event, Events, Path, PeerId, Plane, PskEpoch, Role, StreamLimits, bind};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

const PORT: u16 = 51820;
const RELAY_INSIDE_V4: &str = "100.64.0.1/32";
const ORIGINS: [&str; 2] = ["[fd00:20::5]:8080", "10.20.0.5:8080"];
const NEEDS: [Need; 5] =
    [Need::Root, Need::Program("wireguard-go"), Need::Program("wg"), Need::Program("nft"), Need::Program("ping")];
/// Each way.
const BYTES: usize = 16 << 20;

/// A scene's two ends and the way between.
struct Scene {
    internet: Internet,
    relay: PrivateKey,
    router: Router,
}

/// `wireguard-go` and its interface.
struct Router {
    daemon: Child,
    interface: String,
    key: PrivateKey,
    psk: Psk,
    config: tempfile::NamedTempFile,
}

impl Router {
    fn start(place: &Namespace, relay: &PrivateKey, relay_at: SocketAddr) -> Result<Self> {
        let (key, psk) = (PrivateKey::generate(), Psk::generate());
        let interface = format!("wg{}", place.name().rsplit('-').nth(1).unwrap_or("0"));
        let config = tempfile::NamedTempFile::new()?;
        let text = format!(
            "[Interface]\nPrivateKey = {}\n[Peer]\nPublicKey = {}\nPresharedKey = {}\nEndpoint = {relay_at}\nAllowedIPs = 0.0.0.0/0, ::/0\n\
             PersistentKeepalive = 1\n",
            key.to_base64().as_str(),
            relay.public_key(),
            psk.to_base64().as_str()
        );
        std::fs::write(config.path(), text)?;
        let mut router = Self { daemon: daemon(place, &interface)?, interface, key, psk, config };
        router.set_up(place)?;
        Ok(router)
    }

    fn set_up(&mut self, place: &Namespace) -> Result<()> {
        let interface = &self.interface;
        let control = format!("/var/run/wireguard/{interface}.sock");
        let from = Instant::now();
        while !std::path::Path::new(&control).exists() {
            ensure!(from.elapsed() < Duration::from_secs(10), "wireguard-go made no {control}");
            std::thread::yield_now();
        }
        place.run("wg", &["setconf", interface, &self.config.path().display().to_string()])?;
        place.ip(&["addr", "add", "10.20.0.5/16", "dev", interface])?;
        place.ip(&["addr", "add", "fd00:20::5/64", "dev", interface, "nodad"])?;
        place.ip(&["link", "set", interface, "up"])?;
        place.ip(&["route", "add", "100.64.0.1", "dev", interface])?;
        place.ip(&["-6", "route", "add", &RELAY_INNER.to_string(), "dev", interface])?;
        Ok(())
    }

    fn restart(&mut self, place: &Namespace) -> Result<()> {
        self.stop();
        self.daemon = daemon(place, &self.interface)?;
        self.set_up(place)
    }

    fn stop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        let _ = std::fs::remove_file(format!("/var/run/wireguard/{}.sock", self.interface));
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        self.stop();
    }
}

fn daemon(place: &Namespace, interface: &str) -> Result<Child> {
    let prefix = place.prefix();
    let mut command = Command::new(&prefix[0]);
    command.args(&prefix[1..]).args(["wireguard-go", "-f", interface]);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().context("wireguard-go")
}

impl Scene {
    async fn build(v6_outside: bool) -> Result<Arc<Self>> {
        let internet = Internet::build()?;
        let relay = PrivateKey::generate();
        let outside = SocketAddr::new(if v6_outside { RELAY_V6 } else { RELAY_V4 }, PORT);
        let router = Router::start(&internet.private, &relay, outside)?;
        internet.private.begin(serve)?;
        Ok(Arc::new(Self { internet, relay, router }))
    }

    /// Runs a program on the router's host, while the relay's side goes on.
    async fn in_private(self: &Arc<Self>, command: &str) -> Result<String> {
        let (scene, command) = (self.clone(), command.to_owned());
        tokio::task::spawn_blocking(move || scene.internet.private.run("bash", &["-c", &command])).await?
    }

    /// What a host would notice: routes, links, settings.
    fn host(&self) -> Result<String> {
        let host = &self.internet.gateway;
        let settings = ["net.ipv4.ip_local_port_range", "net.ipv4.tcp_mtu_probing", "net.ipv6.conf.default.accept_ra"];
        let links = host.ip(&["-brief", "link"])?;
        Ok(host.ip(&["route", "show", "table", "all"])? + &links + &host.run("sysctl", &settings)?)
    }

    /// Datagrams that went in parts, from the relay's host or from the router on the way.
    fn parts(&self) -> Result<u64> {
        Ok(Self::parts_of(&self.internet.gateway)? + Self::parts_of(&self.internet.internet)?)
    }

    fn parts_of(place: &Namespace) -> Result<u64> {
        let counters = place.run("cat", &["/proc/net/snmp6", "/proc/net/snmp"])?;
        let v6 = counters.lines().find_map(|line| line.strip_prefix("Ip6FragOKs"));
        let v4: Vec<_> = counters.lines().filter(|line| line.starts_with("Ip: ")).collect();
        let [names, values] = v4[..] else { bail!("{counters}") };
        let v4 = names.split(' ').zip(values.split(' ')).find(|(name, _)| *name == "FragOKs").map(|(_, value)| value);
        Ok(v6.context("Ip6FragOKs")?.trim().parse::<u64>()? + v4.context("FragOKs")?.parse::<u64>()?)
    }

    /// Runs on the relay's side.
    async fn at_relay<T, F, Fut>(self: &Arc<Self>, make: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(Arc<Self>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T>>,
    {
        let scene = self.clone();
        self.internet.gateway.within(move || make(scene)).await
    }
}

/// The origin: one byte says whether the rest is to be kept (`u`) or sent (`d`), eight how much; then the answer.
async fn serve() -> Result<()> {
    let mut tasks = Vec::new();
    for at in ORIGINS {
        let listener = TcpListener::bind(at).await.with_context(|| at.to_owned())?;
        tasks.push(tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let _ = answer(&mut stream).await;
                });
            }
        }));
    }
    for task in tasks {
        task.await?;
    }
    Ok(())
}

async fn answer(stream: &mut TcpStream) -> Result<()> {
    loop {
        let what = stream.read_u8().await?;
        let bytes = usize::try_from(stream.read_u64().await?)?;
        if what == b'd' {
            send(stream, bytes).await?;
        } else {
            receive(stream, bytes).await?;
            stream.write_all(b"k").await?;
        }
    }
}

/// Prime to the length of every segment.
const PERIOD: usize = 1_000_003;

fn pattern() -> Vec<u8> {
    (0..PERIOD as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

async fn send(stream: &mut TcpStream, bytes: usize) -> Result<()> {
    let (pattern, mut sent) = (pattern(), 0);
    while sent < bytes {
        let piece = &pattern[sent % PERIOD..];
        let piece = &piece[..piece.len().min(bytes - sent)];
        stream.write_all(piece).await?;
        sent += piece.len();
    }
    Ok(())
}

async fn receive(stream: &mut TcpStream, bytes: usize) -> Result<()> {
    let (pattern, mut piece, mut got) = (pattern(), vec![0; 256 * 1024], 0);
    while got < bytes {
        let most = piece.len().min(PERIOD - got % PERIOD).min(bytes - got);
        let read = stream.read(&mut piece[..most]).await?;
        ensure!(read > 0 && piece[..read] == pattern[got % PERIOD..][..read], "wrong bytes after {got}");
        got += read;
    }
    Ok(())
}

/// The relay's side, as far as it is here.
struct Side {
    plane: Plane,
    events: Events,
    tun: Tun,
    peer: PeerId,
}

impl Side {
    async fn start(scene: &Scene, way: Way, path: Option<Path>) -> Result<Self> {
        let engine = culvert_engine::Config {
            statics: vec![scene.relay.clone()],
            shard: Shard::default(),
            handshakes: HandshakeLimits::default(),
            seed: None,
        };
        let sockets = [RELAY_V4, RELAY_V6].map(|ip| bind(SocketAddr::new(ip, PORT)));
        let (plane, events) = Plane::start(Config {
            role: Role::Relay,
            sockets: sockets.into_iter().collect::<Result<_, _>>()?,
            engine,
            instance: InstanceId::new(),
            inner: RELAY_INNER,
            reset_secret: [1; 32],
            streams: StreamLimits::default(),
        })?;
        let mut config = TunConfig { way: Some(way), ..TunConfig::new(Some(RELAY_INSIDE_V4.parse()?)) };
        if way == Way::Child {
            // This test's binary cannot be the keeper.
            config.program = culvert_lab::binary::own("culvert-relay")?;
        }
        let tun = Tun::start(&plane, config).await?;
        let peer = plane.add_stock_peer(PeerConfig {
            public_key: scene.router.key.public_key(),
            static_index: 0,
            psks: vec![PskEpoch { epoch: 0, psk: scene.router.psk.clone() }],
            allowed_ips: vec!["10.20.0.0/16".parse()?, "fd00:20::/64".parse()?],
            path,
            persistent_keepalive: None,
        })?;
        if let Some(path) = path {
            plane.connect_path(peer, path);
        }
        Ok(Self { plane, events, tun, peer })
    }

    async fn until_up(&mut self) -> Result<Path> {
        let waiting = async {
            loop {
                match self.events.recv().await {
                    Some(Event::SessionUp { path, .. }) => return Ok(path),
                    Some(_) => {}
                    None => bail!("the plane is gone"),
                }
            }
        };
        timeout(Duration::from_secs(20), waiting).await.context("no session")?
    }

    async fn connect(&self, to: &str) -> Result<TcpStream> {
        let to: SocketAddr = to.parse()?;
        let connecting = self.tun.tcp(to.is_ipv6()).await?.connect(to);
        timeout(Duration::from_secs(20), connecting).await?.with_context(|| to.to_string())
    }

    /// Both ways, byte-exact.
    async fn exchange(&self, to: &str, bytes: usize) -> Result<()> {
        let mut stream = self.connect(to).await?;
        let exchange = async {
            let from = Instant::now();
            stream.write_u8(b'd').await?;
            stream.write_u64(bytes as u64).await?;
            receive(&mut stream, bytes).await.context("down")?;
            let down = from.elapsed();
            stream.write_u8(b'u').await?;
            stream.write_u64(bytes as u64).await?;
            send(&mut stream, bytes).await?;
            ensure!(stream.read_u8().await? == b'k', "up");
            println!("{to}: {bytes} bytes down in {down:?}, up in {:?}", from.elapsed() - down);
            anyhow::Ok(())
        };
        timeout(Duration::from_secs(120), exchange).await.with_context(|| format!("{to}: too slow"))?
    }
}

fn skipped(test: &str) -> bool {
    skip::unless(test, &NEEDS)
}

#[tokio::test]
async fn a_stock_router_behind_nat_serves_both_ways_whatever_ip_is_outside() -> Result<()> {
    if skipped("tun plane and a stock router") {
        return Ok(());
    }
    for v6_outside in [false, true] {
        let scene = Scene::build(v6_outside).await?;
        scene
            .at_relay(move |scene| async move {
                // The relay's own binary as the keeper, once.
                let way = if v6_outside { Way::Child } else { Way::Thread };
                let mut side = Side::start(&scene, way, None).await?;
                side.until_up().await?;
                for origin in ORIGINS {
                    side.exchange(origin, BYTES).await?;
                }
                let stats = side.plane.stats();
                println!("{:?} {:?}", stats.tun, stats.send);
                ensure!(stats.tun.writes < stats.tun.packets_in / 2, "packets are joined");
                Ok(())
            })
            .await?;
    }
    Ok(())
}

#[tokio::test]
async fn on_a_path_of_1280_bytes_everything_still_arrives() -> Result<()> {
    if skipped("tun plane on a narrow path") {
        return Ok(());
    }
    for (v6_outside, far) in [(false, false), (true, false), (false, true), (true, true)] {
        let scene = Scene::build(v6_outside).await?;
        if far {
            // The relay's host does not see it: a router takes IPv4 apart, and tells about IPv6.
            scene.internet.internet.ip(&["link", "set", "to-vpc", "mtu", "1280"])?;
            scene.internet.private.ip(&["link", "set", "lan", "mtu", "1280"])?;
        } else {
            scene.internet.narrow(1280)?;
        }
        scene
            .at_relay(|scene| async move {
                let mut side = Side::start(&scene, Way::Thread, None).await?;
                side.until_up().await?;
                for origin in ORIGINS {
                    side.exchange(origin, 1 << 20).await?;
                }
                // Not because TCP found the way out by itself, seconds later.
                ensure!(scene.parts()? > 500, "{} datagrams went in parts", scene.parts()?);
                Ok(())
            })
            .await
            .with_context(|| format!("IPv6 outside: {v6_outside}, far: {far}"))?;
    }
    Ok(())
}

#[tokio::test]
async fn restarts_of_either_side_and_a_move_are_survived() -> Result<()> {
    if skipped("tun plane and restarts") {
        return Ok(());
    }
    let mut scene = Scene::build(false).await?;
    let path = scene
        .at_relay(|scene| async move {
            let mut side = Side::start(&scene, Way::Thread, None).await?;
            let path = side.until_up().await?;
            side.exchange(ORIGINS[1], 1 << 16).await?;
            side.plane.shutdown(CloseCode::Shutdown).await;
            Ok(path)
        })
        .await?;
    // The relay comes back and calls; the first connect waits for the handshake, not for TCP's timer.
    scene
        .at_relay(move |scene| async move {
            let mut side = Side::start(&scene, Way::Thread, Some(path)).await?;
            let from = Instant::now();
            let mut stream = side.connect(ORIGINS[0]).await?;
            ensure!(from.elapsed() < Duration::from_millis(900), "connected after {:?}", from.elapsed());
            side.until_up().await?;
            // It moves: the connection goes on.
            let before = side.plane.peer_stats(side.peer).and_then(|stats| stats.path);
            scene.internet.roam()?;
            let moved = wait::until("another endpoint", Duration::from_secs(20), || async {
                let now = side.plane.peer_stats(side.peer).and_then(|stats| stats.path);
                (now != before).then_some(())
            });
            moved.await?;
            stream.write_all(b"d\0\0\0\0\0\x01\0\0").await?;
            timeout(Duration::from_secs(20), receive(&mut stream, 1 << 16)).await??;
            Ok(())
        })
        .await?;
    let owned = Arc::get_mut(&mut scene).context("nobody else has it")?;
    owned.router.restart(&owned.internet.private)?;
    scene
        .at_relay(|scene| async move {
            let mut side = Side::start(&scene, Way::Thread, None).await?;
            side.until_up().await?;
            side.exchange(ORIGINS[0], 1 << 16).await
        })
        .await
}

#[tokio::test]
async fn a_removed_peers_connections_end_at_once_and_new_ones_find_no_route() -> Result<()> {
    if skipped("tun plane and a removed peer") {
        return Ok(());
    }
    let scene = Scene::build(false).await?;
    scene
        .at_relay(|scene| async move {
            let mut side = Side::start(&scene, Way::Thread, None).await?;
            side.until_up().await?;
            let mut streams = [side.connect(ORIGINS[0]).await?, side.connect(ORIGINS[1]).await?];
            let from = Instant::now();
            side.plane.remove_peer(side.peer, CloseCode::Revoked).await;
            for stream in &mut streams {
                let asking = async {
                    stream.write_all(b"d\0\0\0\0\0\x01\0\0").await?;
                    stream.read(&mut [0; 10]).await
                };
                let kind = timeout(Duration::from_secs(5), asking).await?.map_err(|error| error.kind());
                ensure!(kind == Err(std::io::ErrorKind::ConnectionReset), "{kind:?}");
            }
            for origin in ORIGINS {
                let to: SocketAddr = origin.parse()?;
                let refused = side.tun.tcp(to.is_ipv6()).await?.connect(to).await.map_err(|error| error.kind());
                ensure!(matches!(refused, Err(std::io::ErrorKind::NetworkUnreachable)), "{refused:?}");
            }
            ensure!(from.elapsed() < Duration::from_secs(2), "{:?}", from.elapsed());
            Ok(())
        })
        .await
}

#[tokio::test]
async fn a_peer_reaches_nothing_but_echo_on_the_relays_inner_addresses() -> Result<()> {
    if skipped("tun plane and isolation") {
        return Ok(());
    }
    let scene = Scene::build(false).await?;
    // The relay's host has the same private range itself, and something listens there.
    scene.internet.gateway.ip(&["addr", "add", "10.20.0.5/16", "dev", "wan"])?;
    let before = scene.host()?;
    scene
        .at_relay(move |scene| async move {
            let _listener = TcpListener::bind("0.0.0.0:9000").await?;
            let mut side = Side::start(&scene, Way::Thread, None).await?;
            let other = ["10.30.0.0/16".parse()?, "fd00:30::/64".parse()?].to_vec();
            side.plane.add_stock_peer(PeerConfig {
                public_key: PrivateKey::generate().public_key(),
                static_index: 0,
                psks: Vec::new(),
                allowed_ips: other,
                path: None,
                persistent_keepalive: None,
            })?;
            side.until_up().await?;
            side.exchange(ORIGINS[1], 1 << 16).await.context("the peer's 10.20.0.5, not the host's")?;
            let interface = &scene.router.interface;
            for inside in ["100.64.0.1", &RELAY_INNER.to_string()] {
                scene.in_private(&format!("ping -n -c 2 -i 0.2 -W 1 -I {interface} {inside}")).await?;
            }
            let silent = side.plane.stats().tun.foreign;
            // The relay's host, another peer, a connector, loopback, everybody.
            for to in
                ["203.0.113.2", "10.30.0.1", "fd43:554c:5645::1234", "127.0.0.2", "2001:db8:1::2", "255.255.255.255"]
            {
                let answered = scene.in_private(&format!("ping -n -c 2 -i 0.2 -W 1 -I {interface} {to}")).await;
                ensure!(answered.is_err(), "{to} answered");
            }
            ensure!(side.plane.stats().tun.foreign >= silent + 6, "{:?}", side.plane.stats().tun);
            for port in [22, 80, 5645, 9000, PORT] {
                let refused =
                    scene.in_private(&format!("timeout 5 bash -c 'exec 3<>/dev/tcp/100.64.0.1/{port}'")).await;
                let said = refused.err().map(|error| format!("{error:#}")).unwrap_or_default();
                ensure!(said.contains("refused"), "port {port}: {said}");
            }
            // In somebody else's name.
            scene.in_private(&format!("ip addr add 10.30.0.9/32 dev {interface}")).await?;
            let answered = scene.in_private("ping -n -c 1 -W 1 -I 10.30.0.9 100.64.0.1").await;
            ensure!(answered.is_err(), "another peer's address was believed");
            let dropped = side.plane.stats().engine.dropped(culvert_engine::DropReason::SourceNotAllowed);
            ensure!(dropped > 0, "nothing came in somebody else's name");
            Ok(())
        })
        .await?;
    let after = scene.host()?;
    ensure!(before == after, "the host is as it was: {after}");
    Ok(())
}
