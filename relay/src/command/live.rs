//! What only a running relay knows.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::time::SystemTime;

use culvert_model::control::RefusedService;
use culvert_model::id::{ConnectorId, GatewayId, StockPeerId};
use culvert_model::name::{Label, ServiceName};
use serde::Serialize;

/// The running relay, as commands see it: a copy of what is true now.
pub(crate) trait Live: Send + Sync {
    /// The process; none when no relay runs.
    fn status(&self) -> Option<LiveStatus>;
    /// Connectors with a live session.
    fn connectors(&self) -> HashMap<ConnectorId, LiveConnector>;
    /// Services that a live connector serves.
    fn services(&self) -> BTreeMap<ServiceName, LiveService>;
    /// Connectors, live or not, whose key was lately in use in two places at once, and where.
    fn flapping(&self) -> HashMap<ConnectorId, [SocketAddr; 2]>;
    /// When gateways called last, where that is not written yet.
    fn gateways(&self) -> HashMap<GatewayId, SystemTime>;
    /// Stock peers, also those that could not be started.
    fn peers(&self) -> HashMap<StockPeerId, LivePeer>;
    /// Why what is behind stock peers cannot be reached; none where it can, or where there is no peer.
    fn tun_unavailable(&self) -> Option<String>;
    /// What this relay proves requests with, where a service of that name is behind a stock peer: kinds.
    fn proofs(&self) -> HashMap<ServiceName, &'static str>;
}

/// A stock peer in a running relay.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct LivePeer {
    /// Whether it could be started here.
    pub(crate) runs: bool,
    /// Whether it has a live session.
    pub(crate) up: bool,
    /// Where it is.
    pub(crate) endpoint: Option<SocketAddr>,
    /// Its last handshake.
    pub(crate) last_handshake: Option<SystemTime>,
    /// Bytes received, inside the tunnel.
    pub(crate) rx_bytes: u64,
    /// Bytes sent, inside the tunnel.
    pub(crate) tx_bytes: u64,
    /// What an operator should know.
    pub(crate) notes: Vec<String>,
}

/// One shard of a running relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct LiveShard {
    /// Peers that live on it and have a session: connectors, joiners, stock peers.
    pub(crate) peers_up: u32,
    /// All peers that live on it.
    pub(crate) peers_total: u32,
    /// Connections of callers that its thread serves.
    pub(crate) callers: usize,
    /// Datagrams that landed on it and were another shard's.
    pub(crate) passed_on: u64,
}

/// A relay process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct LiveStatus {
    /// Its process id.
    pub(crate) pid: u32,
    /// Its version.
    pub(crate) version: String,
    /// Its shards, in their order.
    pub(crate) shards: Vec<LiveShard>,
    /// Since when it runs.
    #[serde(skip)]
    pub(crate) started: SystemTime,
    /// Whether it answers `/readyz` with 200.
    pub(crate) ready: bool,
    /// Whether it is on its way out.
    pub(crate) draining: bool,
    /// Why it is not ready, or what is amiss.
    pub(crate) reasons: Vec<String>,
    /// What it listens on: `wireguard`, `http`, `admin` and the address.
    pub(crate) listeners: Vec<(String, String)>,
}

/// A connector with a live session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LiveConnector {
    /// Where it is.
    pub(crate) endpoint: Option<SocketAddr>,
    /// Its last handshake.
    pub(crate) last_handshake: Option<SystemTime>,
    /// Its version.
    pub(crate) version: Option<String>,
    /// Its name.
    pub(crate) name: Option<Label>,
    /// Whether it, or the operator, wants no new requests there.
    pub(crate) draining: bool,
    /// Its services that were accepted.
    pub(crate) services: Vec<LiveServiceOfConnector>,
    /// What an operator should know: a clock behind, a second process with the same key, refused names.
    pub(crate) notes: Vec<String>,
    /// Services that it does not serve and why: those managed at the relay that it refuses, and those that it announces and
    /// may not serve.
    pub(crate) not_served: Vec<RefusedService>,
    /// The epoch of the pre-shared key that its session hangs on.
    pub(crate) psk_epoch: Option<u32>,
    /// Bytes received, inside the tunnel.
    pub(crate) rx_bytes: u64,
    /// Bytes sent, inside the tunnel.
    pub(crate) tx_bytes: u64,
    /// Its connections, its session's own first.
    pub(crate) lanes: Vec<LiveLane>,
}

/// One connection of a connector.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct LiveLane {
    /// Which; 0 is the session's own.
    pub(crate) number: u8,
    /// The shard that it lives on.
    pub(crate) shard: u8,
    /// Requests that run over it.
    pub(crate) in_flight: u32,
    /// Requests that it got.
    pub(crate) requests: u64,
    /// Bytes received, inside the tunnel.
    pub(crate) rx_bytes: u64,
    /// Bytes sent, inside the tunnel.
    pub(crate) tx_bytes: u64,
}

/// One service of one connector.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct LiveServiceOfConnector {
    /// Its name.
    pub(crate) name: ServiceName,
    /// Whether the pair is up (design.md §3 One health truth).
    pub(crate) up: bool,
    /// Why not.
    pub(crate) reason: Option<String>,
    /// Who defined it: `connector`, or the `relay` that manages it.
    pub(crate) source: &'static str,
}

/// One service over all its live connectors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct LiveService {
    /// Pairs that are up.
    pub(crate) up: usize,
    /// Live connectors that announce it.
    pub(crate) total: usize,
    /// Of those that are up: where the relay manages it.
    pub(crate) managed_up: usize,
    /// Of all: where the relay manages it.
    pub(crate) managed: usize,
}

/// No relay runs.
pub(crate) struct Offline;

impl Live for Offline {
    fn status(&self) -> Option<LiveStatus> {
        None
    }

    fn connectors(&self) -> HashMap<ConnectorId, LiveConnector> {
        HashMap::new()
    }

    fn services(&self) -> BTreeMap<ServiceName, LiveService> {
        BTreeMap::new()
    }

    fn flapping(&self) -> HashMap<ConnectorId, [SocketAddr; 2]> {
        HashMap::new()
    }

    fn gateways(&self) -> HashMap<GatewayId, SystemTime> {
        HashMap::new()
    }

    fn peers(&self) -> HashMap<StockPeerId, LivePeer> {
        HashMap::new()
    }

    fn tun_unavailable(&self) -> Option<String> {
        None
    }

    fn proofs(&self) -> HashMap<ServiceName, &'static str> {
        HashMap::new()
    }
}
