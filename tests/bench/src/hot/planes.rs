//! Two planes in one process, over a network in memory: QUIC streams, with all that lies under them but the socket.
//!
//! For a runtime with a paused clock: time goes on only where nobody has anything to do, so that QUIC's timers, and with
//! them its packets, are the same in every run.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use culvert_model::address::{RELAY_INNER, connector_inner};
use culvert_model::close::CloseCode;
use culvert_model::id::{ConnectorId, InstanceId};
use culvert_model::key::PrivateKey;
use culvert_plane::memory::Network;
use culvert_plane::{Config, Connection, Event, Events, PeerConfig, Plane, Role, Stream, StreamLimits};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// As long as a gateway's request with its head.
const QUESTION: usize = 300;
const RELAY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 51_820);
const CONNECTOR: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2)), 40_000);

/// `count` questions and answers of `answer` bytes, `at_once` at a time, each on one of as many streams that stay open.
///
/// # Errors
/// One did not end well.
pub async fn streamed(count: usize, answer: usize, at_once: usize) -> Result<()> {
    let (relay_key, connector_key) = (PrivateKey::from_bytes([1; 32]), PrivateKey::from_bytes([2; 32]));
    let inner = connector_inner(&ConnectorId::new());
    let network = Network::new();
    let (relay, mut events) = start(&network, Role::Relay, RELAY, &relay_key, RELAY_INNER)?;
    let (connector, _events) = start(&network, Role::Connector, CONNECTOR, &connector_key, inner)?;
    relay.add_peer(peer(&connector_key, inner))?;
    let peer = connector.add_peer(peer(&relay_key, RELAY_INNER))?;
    connector.connect(peer, Some(RELAY));
    let near = connector.dial(peer).await?;
    let far = loop {
        if let Event::Connected(connection) = events.recv().await.context("no connection")? {
            break connection;
        }
    };
    near.permit_streams(u32::try_from(at_once)?);
    let answering = tokio::spawn(serve(near, answer));
    let mut callers = tokio::task::JoinSet::new();
    for caller in 0..at_once {
        let share = count / at_once + usize::from(caller < count % at_once);
        callers.spawn(ask(far.clone(), share, answer));
    }
    while let Some(done) = callers.join_next().await {
        done??;
    }
    far.close(CloseCode::Shutdown);
    answering.await?;
    Ok(())
}

async fn ask(connection: Connection, count: usize, answer: usize) -> Result<()> {
    let mut stream = connection.open().await?;
    let mut buffer = vec![0; 64 * 1024];
    for _ in 0..count {
        stream.write_all(&[7; QUESTION]).await?;
        let mut left = answer;
        while left > 0 {
            let read = stream.read(&mut buffer).await?;
            ensure!(read > 0 && read <= left, "{read} bytes with {left} left");
            left -= read;
        }
    }
    Ok(())
}

async fn serve(connection: Connection, answer: usize) {
    while let Ok(stream) = connection.accept().await {
        tokio::spawn(reply(stream, answer));
    }
}

async fn reply(mut stream: Stream, answer: usize) {
    let piece = vec![9; answer.min(64 * 1024)];
    let mut question = [0; QUESTION];
    while stream.read_exact(&mut question).await.is_ok() {
        let mut left = answer;
        while left > 0 {
            let part = left.min(piece.len());
            if stream.write_all(piece.get(..part).unwrap_or_default()).await.is_err() {
                return;
            }
            left -= part;
        }
    }
}

fn start(network: &Network, role: Role, at: SocketAddr, own: &PrivateKey, inner: Ipv6Addr) -> Result<(Plane, Events)> {
    let engine = culvert_engine::Config {
        statics: vec![own.clone()],
        shard: culvert_engine::Shard::default(),
        handshakes: culvert_engine::HandshakeLimits::default(),
        seed: Some(1),
    };
    let (instance, streams) = (InstanceId::new(), StreamLimits::default());
    let config = Config { role, sockets: Vec::new(), engine, instance, inner, reset_secret: [1; 32], streams };
    Ok(network.start(at, config)?)
}

fn peer(key: &PrivateKey, inner: Ipv6Addr) -> PeerConfig {
    PeerConfig {
        public_key: key.public_key(),
        static_index: 0,
        psks: Vec::new(),
        allowed_ips: vec![IpAddr::V6(inner).into()],
        path: None,
        persistent_keepalive: None,
    }
}
