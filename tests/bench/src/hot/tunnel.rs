//! Two engines in memory: sealing, opening, shaking hands.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use culvert_engine::{Config, Engine, HandshakeLimits, Path, PeerConfig, PeerId, Received, Replies, Shard};
use culvert_model::key::PrivateKey;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream};

/// What one inner packet carries, as on a path of 1500 bytes.
pub const PIECE: usize = 1344;
const INNER_HEAD: usize = 40;

/// Two engines that have shaken hands: the relay's first, the connector's second.
pub struct Tunnel {
    ends: [(Engine, PeerId, Path); 2],
    now: Instant,
    buffers: Buffers,
}

#[derive(Default)]
struct Buffers {
    packet: Vec<u8>,
    datagram: Vec<u8>,
    inner: Vec<u8>,
    replies: Replies,
}

impl Tunnel {
    /// One that is up.
    ///
    /// # Errors
    /// The engines could not be made.
    pub fn up() -> Result<Self> {
        let now = Instant::now();
        let keys = [PrivateKey::from_bytes([1; 32]), PrivateKey::from_bytes([2; 32])];
        let path = |last: u8| Path { remote: SocketAddr::from(([192, 0, 2, last], 51_820)), local: None, socket: 0 };
        let [relay_key, connector_key] = &keys;
        let end = |own: &PrivateKey, other: &PrivateKey, inner: u16, path: Path| -> Result<(Engine, PeerId, Path)> {
            let mut engine = engine(own, 1, now);
            let peer = engine.add_peer(peer(other, inner, path), now)?;
            Ok((engine, peer, path))
        };
        let mut tunnel = Self {
            ends: [end(relay_key, connector_key, 2, path(2))?, end(connector_key, relay_key, 1, path(1))?],
            now,
            buffers: Buffers::default(),
        };
        tunnel.shake_hands();
        ensure!(tunnel.pass_one(0, &[0; 64])? == 64, "no session");
        Ok(tunnel)
    }

    /// The connector asks for a new session and gets it: both ends' work.
    pub fn shake_hands(&mut self) {
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
        while self.ends.iter_mut().any(|end| end.0.poll_event().is_some()) {}
    }

    /// Time goes on, so that nothing is too soon.
    pub fn wait(&mut self, time: Duration) {
        self.now += time;
    }

    /// Handshakes that the relay's end has completed.
    pub fn handshakes(&self) -> u64 {
        self.ends[0].0.stats().sessions
    }

    /// Seals a packet with `bytes` at one end; its datagram is kept for [`Tunnel::open_one`].
    ///
    /// # Errors
    /// There is no session.
    pub fn seal_one(&mut self, from: usize, bytes: &[u8]) -> Result<usize> {
        let Buffers { packet, datagram, .. } = &mut self.buffers;
        write_packet(from, bytes, packet);
        datagram.clear();
        let [relay, connector] = &mut self.ends;
        let sender = if from == 0 { relay } else { connector };
        Ok(sender.0.seal(sender.1, packet, self.now, datagram)?.len)
    }

    /// Opens what [`Tunnel::seal_one`] has sealed at the other end, and gives what it carried.
    ///
    /// # Errors
    /// It is not a packet.
    pub fn open_one(&mut self, from: usize, length: usize) -> Result<&[u8]> {
        let Buffers { datagram, inner, replies, .. } = &mut self.buffers;
        let [relay, connector] = &mut self.ends;
        let receiver = if from == 0 { connector } else { relay };
        inner.clear();
        match receiver.0.handle_datagram(datagram, receiver.2, self.now, inner, replies) {
            Received::Packet { .. } => {}
            other => bail!("a sealed packet was {other:?}"),
        }
        inner.get(INNER_HEAD..INNER_HEAD + length).context("a short packet")
    }

    /// Seals at one end and opens at the other.
    ///
    /// # Errors
    /// As both.
    pub fn pass_one(&mut self, from: usize, bytes: &[u8]) -> Result<usize> {
        self.seal_one(from, bytes)?;
        Ok(self.open_one(from, bytes.len())?.len())
    }

    /// Carries bytes both ways, each piece sealed and opened as an inner packet.
    ///
    /// # Errors
    /// A stream ended.
    pub async fn carry(mut self, mut relay: DuplexStream, mut connector: DuplexStream) -> Result<()> {
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
        // New buffers for each packet, so that what allocation costs stays in the count.
        self.buffers = Buffers::default();
        self.seal_one(from, bytes)?;
        to.write_all(self.open_one(from, bytes.len())?).await?;
        Ok(())
    }
}

/// A responder with many peers, and an initiation of each that it has not seen.
pub struct Storm {
    responder: Engine,
    initiations: Vec<(Path, Vec<u8>)>,
    now: Instant,
    replies: Replies,
}

impl Storm {
    /// One with that many initiators.
    ///
    /// # Errors
    /// An engine could not be made, or did not begin.
    pub fn of(initiators: u16) -> Result<Self> {
        let now = Instant::now();
        let responder_key = PrivateKey::from_bytes([1; 32]);
        let mut responder = engine(&responder_key, 1, now);
        let mut initiations = Vec::new();
        for number in 0..initiators {
            let key = PrivateKey::generate();
            let path = Path { remote: SocketAddr::from(([198, 51, 100, 1], 1024 + number)), local: None, socket: 0 };
            responder.add_peer(peer(&key, 2 + number, path), now)?;
            let mut initiator = engine(&key, u64::from(number) + 2, now);
            let toward = initiator.add_peer(peer(&responder_key, 1, path), now)?;
            let mut replies = Replies::default();
            initiator.connect(toward, None, now, &mut replies);
            let first = replies.drain().next().map(|(_, datagram)| datagram.to_vec());
            initiations.push((path, first.context("no initiation")?));
        }
        Ok(Self { responder, initiations, now, replies: Replies::default() })
    }

    /// Answers one of the initiations; false: all are answered.
    pub fn answer_one(&mut self) -> bool {
        let Some((path, datagram)) = self.initiations.pop() else { return false };
        // A second for each: neither cookies nor limits of addresses come into it.
        self.now += Duration::from_secs(1);
        self.responder.handle_datagram(&datagram, path, self.now, &mut Vec::new(), &mut self.replies);
        while self.responder.handle_handshakes(8, self.now, &mut self.replies) {}
        let answers = self.replies.len();
        drop(self.replies.drain());
        while self.responder.poll_event().is_some() {}
        answers == 1
    }
}

fn engine(own: &PrivateKey, seed: u64, now: Instant) -> Engine {
    let config = Config {
        statics: vec![own.clone()],
        shard: Shard::default(),
        handshakes: HandshakeLimits::default(),
        seed: Some(seed),
    };
    Engine::new(config, now)
}

fn peer(other: &PrivateKey, inner: u16, path: Path) -> PeerConfig {
    PeerConfig {
        public_key: other.public_key(),
        static_index: 0,
        psks: Vec::new(),
        allowed_ips: vec![IpAddr::V6(inner_address(inner)).into()],
        path: Some(path),
        persistent_keepalive: None,
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
fn write_packet(from: usize, bytes: &[u8], packet: &mut Vec<u8>) {
    let (source, destination) = if from == 0 { (1, 2) } else { (2, 1) };
    packet.clear();
    packet.reserve(INNER_HEAD + bytes.len() + 64);
    packet.extend_from_slice(&[0x60, 0, 0, 0]);
    packet.extend_from_slice(&u16::try_from(bytes.len()).unwrap_or(0).to_be_bytes());
    packet.extend_from_slice(&[59, 64]);
    packet.extend_from_slice(&inner_address(source).octets());
    packet.extend_from_slice(&inner_address(destination).octets());
    packet.extend_from_slice(bytes);
}
