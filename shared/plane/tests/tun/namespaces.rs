//! What `tests/tun.rs` runs under several users: two planes, two namespaces, and kernel TCP from the one into the other.
//!
//! ```text
//! tun-namespaces tun-namespace       the keeper (as `culvert-relay tun-namespace`)
//! tun-namespaces transfer WAY BYTES  both ways over IPv6, and an eighth over IPv4; prints what came of it
//! tun-namespaces hold WAY            makes one namespace, prints its keeper's process id, waits for ever
//! ```

use std::io::Write as _;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use culvert_engine::{HandshakeLimits, PeerConfig, Shard};
use culvert_model::address::RELAY_INNER;
use culvert_model::id::InstanceId;
use culvert_model::key::PrivateKey;
use culvert_plane::tun::{CHILD_ARGUMENT, Tun, TunConfig, Way, child_main};
use culvert_plane::{Config, Events, Path, Plane, Role, StreamLimits, bind};
use ipnet::IpNet;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// The near side's and the far side's addresses.
const NEAR: [&str; 2] = ["fd00:99::1/128", "100.64.0.1/32"];
const FAR: [&str; 2] = ["fd00:20::5/128", "10.20.0.5/32"];
/// Behind the far side, in the near one's eyes.
const BEHIND: [&str; 2] = ["fd00:20::/64", "10.20.0.0/16"];

/// The bytes that are sent repeat after so many: prime to every segment's length.
const PERIOD: usize = 1_000_003;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let words: Vec<_> = arguments.iter().map(String::as_str).collect();
    if words == [CHILD_ARGUMENT] {
        return child_main();
    }
    // As the relay does to itself: the child starts from there.
    let _ = nix::sys::prctl::set_dumpable(false);
    let _ = nix::sys::prctl::set_no_new_privs();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let done = runtime.map_err(Into::into).and_then(|runtime| match words[..] {
        ["transfer", way, bytes] => runtime.block_on(transfer(parse(way), bytes.parse()?)),
        ["hold", way] => runtime.block_on(hold(parse(way))),
        _ => Err("tun-namespace | transfer WAY BYTES | hold WAY".into()),
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("failed: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn parse(way: &str) -> Option<Way> {
    match way {
        "thread" => Some(Way::Thread),
        "child" => Some(Way::Child),
        _ => None,
    }
}

fn say(line: &str) {
    let mut out = std::io::stdout();
    let _ = writeln!(out, "{line}");
    let _ = out.flush();
}

fn plane(own: &PrivateKey) -> Outcome<(Plane, Events)> {
    let (statics, handshakes) = (vec![own.clone()], HandshakeLimits::default());
    let config = Config {
        role: Role::Relay,
        sockets: vec![bind("127.0.0.1:0".parse()?)?],
        engine: culvert_engine::Config { statics, shard: Shard::default(), handshakes, seed: None },
        instance: InstanceId::new(),
        inner: RELAY_INNER,
        reset_secret: [1; 32],
        streams: StreamLimits::default(),
    };
    Ok(Plane::start(config)?)
}

fn peer(key: &PrivateKey, allowed: [&str; 2]) -> Outcome<PeerConfig> {
    Ok(PeerConfig {
        public_key: key.public_key(),
        static_index: 0,
        psks: Vec::new(),
        allowed_ips: allowed.iter().map(|net| net.parse()).collect::<Result<_, _>>()?,
        path: None,
        persistent_keepalive: None,
    })
}

async fn tun(plane: &Plane, inner: [&str; 2], way: Option<Way>) -> Outcome<Tun> {
    let inner = inner.iter().map(|net| net.parse()).collect::<Result<_, _>>()?;
    Ok(Tun::start(plane, TunConfig { inner, way, ..TunConfig::new(None) }).await?)
}

async fn hold(way: Option<Way>) -> Outcome<()> {
    let (plane, _events) = plane(&PrivateKey::generate())?;
    let tun = tun(&plane, NEAR, way).await?;
    say(&format!("{:?} {}", tun.way(), tun.child().unwrap_or_else(std::process::id)));
    tun.ended().await;
    say("ended");
    Ok(())
}

async fn transfer(way: Option<Way>, bytes: usize) -> Outcome<()> {
    let (near_key, far_key) = (PrivateKey::generate(), PrivateKey::generate());
    let ((near, _near_events), (far, _far_events)) = (plane(&near_key)?, plane(&far_key)?);
    let from = Instant::now();
    let (near_tun, far_tun) = (tun(&near, NEAR, way).await?, tun(&far, FAR, way).await?);
    say(&format!("way {:?}, both namespaces in {:?}", near_tun.way(), from.elapsed()));
    let known = near.add_stock_peer(peer(&far_key, BEHIND)?)?;
    far.add_stock_peer(peer(&near_key, NEAR)?)?;
    near.connect(known, Some(far.local_addrs()[0]));

    let pattern: Vec<u8> = (0..PERIOD as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    for (v6, at, bytes) in [(true, "[fd00:20::5]:8080", bytes), (false, "10.20.0.5:8080", bytes / 8)] {
        let at: SocketAddr = at.parse()?;
        let listening = far_tun.tcp(v6).await?;
        listening.bind(at)?;
        let listener = listening.listen(8)?;
        let from = Instant::now();
        let (connected, accepted) = tokio::join!(near_tun.tcp(v6).await?.connect(at), listener.accept());
        let (mut connected, (mut accepted, caller)) = (connected?, accepted?);
        say(&format!("{at} connected from {} in {:?}", caller.ip(), from.elapsed()));
        for down in [true, false] {
            let (sender, receiver) =
                if down { (&mut accepted, &mut connected) } else { (&mut connected, &mut accepted) };
            let from = Instant::now();
            let sending = async {
                let mut sent = 0;
                while sent < bytes {
                    let piece = &pattern[sent % PERIOD..];
                    let piece = &piece[..piece.len().min(bytes - sent)];
                    sender.write_all(piece).await?;
                    sent += piece.len();
                }
                std::io::Result::Ok(())
            };
            let receiving = async {
                let (mut piece, mut got) = (vec![0; 256 * 1024], 0);
                while got < bytes {
                    let most = piece.len().min(PERIOD - got % PERIOD);
                    let read = receiver.read(&mut piece[..most]).await?;
                    if read == 0 || piece[..read] != pattern[got % PERIOD..][..read] {
                        return Err(std::io::Error::other(format!("wrong bytes after {got}")));
                    }
                    got += read;
                }
                Ok(())
            };
            let (sent, received) =
                timeout(Duration::from_secs(300), async { tokio::join!(sending, receiving) }).await?;
            sent?;
            received?;
            let rate = bytes as f64 * 8.0 / from.elapsed().as_secs_f64() / 1e6;
            say(&format!("{} {bytes} bytes, {rate:.0} Mbit/s", if down { "down" } else { "up" }));
        }
    }
    say(&format!("{:?}", near.stats().tun));
    say(&format!("{:?}", near.stats().send));
    refusals(&near, &near_tun).await?;
    say("all is well");
    Ok(())
}

/// What leads nowhere fails at once and says why.
async fn refusals(near: &Plane, tun: &Tun) -> Outcome<()> {
    for (to, expected) in [
        ("[fd00:21::1]:80", libc::ENETUNREACH),
        ("10.21.0.1:80", libc::ENETUNREACH),
        ("[fd00:20::5]:81", libc::ECONNREFUSED),
        ("10.20.0.5:81", libc::ECONNREFUSED),
    ] {
        let to: SocketAddr = to.parse()?;
        let from = Instant::now();
        let refused = tun.tcp(to.is_ipv6()).await?.connect(to).await;
        let errno = refused.err().and_then(|error| error.raw_os_error());
        say(&format!("{to}: {errno:?} in {:?}", from.elapsed()));
        if errno != Some(expected) || from.elapsed() > Duration::from_secs(2) {
            return Err(format!("{to}: {errno:?} instead of {expected}").into());
        }
    }
    // A peer whose endpoint nobody knows.
    near.add_stock_peer(peer(&PrivateKey::generate(), ["fd00:30::/64", "10.30.0.0/16"])?)?;
    for to in ["[fd00:30::1]:80", "10.30.0.1:80"] {
        let to: SocketAddr = to.parse()?;
        let refused = tun.tcp(to.is_ipv6()).await?.connect(to).await;
        let errno = refused.err().and_then(|error| error.raw_os_error());
        if errno != Some(libc::EHOSTUNREACH) {
            return Err(format!("{to}: {errno:?}").into());
        }
    }
    // One that does not answer.
    let silent = Path { remote: "127.0.0.1:9".parse()?, local: None, socket: 0 };
    let silent = PeerConfig { path: Some(silent), ..peer(&PrivateKey::generate(), ["fd00:40::/64", "10.40.0.0/16"])? };
    near.add_stock_peer(silent)?;
    let from = Instant::now();
    let refused = tun.tcp(true).await?.connect("[fd00:40::1]:80".parse()?).await;
    let errno = refused.err().and_then(|error| error.raw_os_error());
    say(&format!("a silent peer: {errno:?} in {:?}", from.elapsed()));
    if errno != Some(libc::EHOSTUNREACH) || from.elapsed() > Duration::from_secs(10) {
        return Err("a silent peer is not told of".into());
    }
    let socket = tun.udp(false).await?;
    socket.connect("10.20.0.5:53").await?;
    socket.send(b"to nobody").await?;
    let refused = timeout(Duration::from_secs(5), socket.recv(&mut [0; 10])).await?;
    match refused {
        Err(error) if error.raw_os_error() == Some(libc::ECONNREFUSED) => {}
        other => return Err(format!("a datagram to nobody: {other:?}").into()),
    }
    let own = NEAR.iter().map(|net| Ok(net.parse::<IpNet>()?.addr())).collect::<Outcome<Vec<_>>>()?;
    if tun.inner() != own {
        return Err(format!("{:?}", tun.inner()).into());
    }
    Ok(())
}
