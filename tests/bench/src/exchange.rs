//! A fixed exchange in memory, for counting instructions: a gateway's bytes, the relay's hop, WireGuard both ways, the
//! connector's hop, and back.
//!
//! Must stay deterministic: no socket, no thread, no chance, one request after the other. QUIC is not in it, because its
//! work depends on the time.

use std::convert::Infallible;
use std::future::pending;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use culvert_engine::{Config, Engine, HandshakeLimits, Path, PeerConfig, PeerId, Received, Replies, Shard};
use culvert_hop::body::Body;
use culvert_hop::exchange::{Answer, Deadlines};
use culvert_hop::fault::Fault;
use culvert_hop::message::{Request, Response};
use culvert_hop::pool::{Lost, Opener, Pool, PoolSettings};
use culvert_hop::request::{self, Caller, ForwardPolicy};
use culvert_hop::server::{ServerSettings, serve};
use culvert_model::key::PrivateKey;
use culvert_model::reason::Reason;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, duplex};

/// The gateway's request; its answer's body is [`BODY`] bytes.
const REQUEST: &[u8] = b"GET /orders/42?expand=lines HTTP/1.1\r\nHost: orders.internal\r\nUser-Agent: gateway/1.0\r\n\
    Accept: application/json\r\nX-Forwarded-For: 198.51.100.7\r\nX-Request-Id: 0123456789abcdef\r\n\r\n";
const BODY: usize = 1024;
/// What one inner packet carries, as on a path of 1500 bytes.
const PIECE: usize = 1344;
const INNER_HEAD: usize = 40;

fn main() -> Result<()> {
    let count: usize = std::env::args().nth(1).context("how many exchanges?")?.parse()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    runtime.block_on(run(count))
}

async fn run(count: usize) -> Result<()> {
    let (relay_stream, relay_wire) = duplex(64 * 1024);
    let (connector_wire, connector_stream) = duplex(64 * 1024);
    let tunnel = Tunnel::up()?;
    let (mut gateway, front) = duplex(64 * 1024);
    let once = std::sync::Mutex::new(Some(relay_stream));
    let pool = Pool::new(OneStream(once), PoolSettings::default());
    let front_settings = ServerSettings::front();
    let gate_settings = ServerSettings::gate();
    let relay = serve(front, &front_settings, |request| forward(&pool, request), pending());
    let connector = serve(connector_stream, &gate_settings, answer, pending());
    let callers = async {
        for _ in 0..count {
            gateway.write_all(REQUEST).await?;
            read_answer(&mut gateway).await?;
        }
        Ok(())
    };
    tokio::select! {
                biased;
        done = callers => done,
        () = relay => bail!("the relay's hop ended"),
        () = connector => bail!("the connector's hop ended"),
        broken = tunnel.carry(relay_wire, connector_wire) => broken,
    }
}

async fn forward(pool: &Pool<OneStream>, request: Request<Body>) -> Result<Response<Body>, Infallible> {
    let (mut parts, body) = request.into_parts();
    let caller = Caller { address: Some(IpAddr::from([127, 0, 0, 1])), tls: false, port: Some(8080) };
    let checked = request::check(&mut parts).map_err(|(fault, _)| fault);
    let forwarded = checked.and_then(|head| request::forward(&mut parts, &head, &caller, ForwardPolicy::Append, "r1"));
    if forwarded.is_err() {
        return Ok(Response::new(Body::full("refused")));
    }
    match pool.send(Request::from_parts(parts, body), &Deadlines::default()).await {
        Ok(Answer::Response(response)) => Ok(response),
        Ok(Answer::Switched(..)) | Err(_) => Ok(Response::new(Body::full("lost"))),
    }
}

async fn answer(request: Request<Body>) -> Result<Response<Body>, Infallible> {
    let (mut parts, _) = request.into_parts();
    if let Ok(head) = request::check(&mut parts) {
        request::deliver(&mut parts, &head);
    }
    let mut response = Response::new(Body::full(vec![b'x'; BODY]));
    response.headers_mut().append("content-type", http::HeaderValue::from_static("application/json"));
    Ok(response)
}

async fn read_answer(gateway: &mut DuplexStream) -> Result<()> {
    let mut answer = Vec::with_capacity(4096);
    loop {
        let head = answer.windows(4).position(|window| window == b"\r\n\r\n");
        if let Some(head) = head
            && answer.len() >= head + 4 + BODY
        {
            ensure!(answer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&answer));
            ensure!(answer.len() == head + 4 + BODY, "{} bytes too many", answer.len() - head - 4 - BODY);
            return Ok(());
        }
        ensure!(gateway.read_buf(&mut answer).await? > 0, "closed after {}", String::from_utf8_lossy(&answer));
    }
}

/// A pool's only stream.
struct OneStream(std::sync::Mutex<Option<DuplexStream>>);

impl Opener for OneStream {
    type Io = DuplexStream;

    async fn open(&self) -> Result<DuplexStream, Fault> {
        let stream = self.0.lock().ok().and_then(|mut only| only.take());
        stream.ok_or_else(|| Fault::new(Reason::ConnectorLost))
    }

    fn lost(&self, _: Lost<'_>) -> Fault {
        Fault::new(Reason::ConnectorLost)
    }
}

/// Two engines that have shaken hands.
struct Tunnel {
    ends: [(Engine, PeerId, Path); 2],
    now: Instant,
}

impl Tunnel {
    fn up() -> Result<Self> {
        let now = Instant::now();
        let keys = [PrivateKey::from_bytes([1; 32]), PrivateKey::from_bytes([2; 32])];
        let path = |last: u8| Path { remote: SocketAddr::from(([192, 0, 2, last], 51_820)), local: None, socket: 0 };
        let [relay_key, connector_key] = &keys;
        let end = |own: &PrivateKey, other: &PrivateKey, inner: u16, path: Path| -> Result<(Engine, PeerId, Path)> {
            let config = Config {
                statics: vec![own.clone()],
                shard: Shard::default(),
                handshakes: HandshakeLimits::default(),
                seed: Some(1),
            };
            let mut engine = Engine::new(config, now);
            let peer = engine.add_peer(
                PeerConfig {
                    public_key: other.public_key(),
                    static_index: 0,
                    psks: Vec::new(),
                    allowed_ips: vec![IpAddr::V6(inner_address(inner)).into()],
                    path: Some(path),
                    persistent_keepalive: None,
                },
                now,
            )?;
            Ok((engine, peer, path))
        };
        let mut tunnel = Self {
            ends: [end(relay_key, connector_key, 2, path(2))?, end(connector_key, relay_key, 1, path(1))?],
            now,
        };
        tunnel.shake_hands()?;
        Ok(tunnel)
    }

    fn shake_hands(&mut self) -> Result<()> {
        let [relay, connector] = &mut self.ends;
        let mut inner = Vec::new();
        let mut replies = Replies::default();
        connector.0.connect(connector.1, None, self.now, &mut replies);
        for turn in 0..4 {
            let datagrams: Vec<Vec<u8>> = replies.drain().map(|(_, datagram)| datagram.to_vec()).collect();
            let (to, path) = if turn % 2 == 0 { (&mut relay.0, relay.2) } else { (&mut connector.0, connector.2) };
            for datagram in datagrams {
                to.handle_datagram(&datagram, path, self.now, &mut inner, &mut replies);
            }
            while to.handle_handshakes(8, self.now, &mut replies) {}
        }
        Ok(())
    }

    /// Carries bytes both ways, each piece sealed and opened as an inner packet.
    async fn carry(mut self, mut relay: DuplexStream, mut connector: DuplexStream) -> Result<()> {
        let (mut down, mut up) = (vec![0; PIECE], vec![0; PIECE]);
        loop {
            tokio::select! {
                biased;
                read = relay.read(&mut down) => self.pass(0, piece(&down, read)?, &mut connector).await?,
                read = connector.read(&mut up) => self.pass(1, piece(&up, read)?, &mut relay).await?,
            }
        }
    }

    async fn pass<W: AsyncRead + AsyncWrite + Unpin>(&mut self, from: usize, bytes: &[u8], to: &mut W) -> Result<()> {
        let (mut datagram, mut inner, mut replies) = (Vec::new(), Vec::new(), Replies::default());
        let mut packet = packet(from, bytes);
        let [relay, connector] = &mut self.ends;
        let (sender, receiver) = if from == 0 { (relay, connector) } else { (connector, relay) };
        sender.0.seal(sender.1, &mut packet, self.now, &mut datagram)?;
        match receiver.0.handle_datagram(&datagram, receiver.2, self.now, &mut inner, &mut replies) {
            Received::Packet { .. } => {}
            other => bail!("a sealed packet was {other:?}"),
        }
        let opened = inner.get(INNER_HEAD..INNER_HEAD + bytes.len()).context("a short packet")?;
        to.write_all(opened).await?;
        Ok(())
    }
}

fn piece(buffer: &[u8], read: io::Result<usize>) -> Result<&[u8]> {
    let read = read?;
    ensure!(read > 0, "a stream ended");
    buffer.get(..read).context("more was read than fits")
}

fn inner_address(last: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd43, 0x554c, 0x5645, 0, 0, 0, 0, last)
}

/// An IPv6 packet (RFC 8200 §3) with no next header.
fn packet(from: usize, bytes: &[u8]) -> Vec<u8> {
    let (source, destination) = if from == 0 { (1, 2) } else { (2, 1) };
    let mut packet = Vec::with_capacity(INNER_HEAD + bytes.len() + 64);
    packet.extend_from_slice(&[0x60, 0, 0, 0]);
    packet.extend_from_slice(&u16::try_from(bytes.len()).unwrap_or(0).to_be_bytes());
    packet.extend_from_slice(&[59, 64]);
    packet.extend_from_slice(&inner_address(source).octets());
    packet.extend_from_slice(&inner_address(destination).octets());
    packet.extend_from_slice(bytes);
    packet
}
