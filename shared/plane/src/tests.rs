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

mod lives;
mod loss;
mod paths;
mod shards;
mod stock;
mod strangers;
mod streams;

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
    let (plane, events) =
        Plane::start_on(vec![(tokio::runtime::Handle::current(), vec![network.carrier(identity.at)])], config, version)
            .unwrap();
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
