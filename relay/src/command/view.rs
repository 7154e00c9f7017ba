//! What commands look at: the registry and, where a relay runs, what is live in it; with ids and names resolved.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::time::SystemTime;

use culvert_model::id::{ConnectorId, GatewayId, StockPeerId, TokenId, TunnelId};
use culvert_model::name::{Label, ServiceName};
use culvert_ops::time::rfc3339;
use serde_json::{Value, json};

use super::CommandError;
use super::live::{Live, LiveConnector, LivePeer, LiveService};
use crate::enrol;
use crate::registry::{
    ConnectorRow, GatewayRow, ManagedRow, PeerRow, PeerServiceRow, Registry, RegistryError, Snapshot, TokenRow, Tunnel,
};

/// One moment of a relay.
pub(super) struct View {
    pub(super) snapshot: Snapshot,
    /// Why it is what was known before, if the registry is away.
    pub(super) stale: Option<String>,
    pub(super) now: SystemTime,
    connectors: HashMap<ConnectorId, LiveConnector>,
    services: BTreeMap<ServiceName, LiveService>,
    gateways: HashMap<GatewayId, SystemTime>,
    flapping: HashMap<ConnectorId, [SocketAddr; 2]>,
    peers: HashMap<StockPeerId, LivePeer>,
    tun_unavailable: Option<String>,
    proofs: HashMap<ServiceName, &'static str>,
}

/// A service as far as the relay knows it.
pub(super) struct KnownService {
    pub(super) name: ServiceName,
    pub(super) tunnels: Vec<Label>,
    pub(super) live: LiveService,
    /// Its definitions here.
    pub(super) managed: Vec<ManagedRow>,
    /// Its definition behind a stock peer.
    pub(super) behind: Option<PeerServiceRow>,
}

/// A service as far as one side defined it: the connectors that declare it, the relay that manages it, or has it behind a
/// stock peer.
pub(super) struct Part {
    pub(super) source: &'static str,
    pub(super) up: usize,
    pub(super) total: usize,
}

impl View {
    pub(super) async fn of(registry: &dyn Registry, live: &dyn Live, now: SystemTime) -> Result<Self, CommandError> {
        let (snapshot, stale) = match registry.load().await {
            Ok(snapshot) => (snapshot, None),
            Err(error @ RegistryError::Away { .. }) => match registry.known() {
                Some(known) => (Snapshot::clone(&known), Some(error.to_string())),
                None => return Err(error.into()),
            },
            Err(error) => return Err(error.into()),
        };
        let (connectors, services) = (live.connectors(), live.services());
        let (gateways, flapping) = (live.gateways(), live.flapping());
        let (peers, tun_unavailable) = (live.peers(), live.tun_unavailable());
        let proofs = live.proofs();
        Ok(Self { snapshot, stale, now, connectors, services, gateways, flapping, peers, tun_unavailable, proofs })
    }

    /// What the relay proves requests of a service behind a peer with.
    pub(super) fn proof(&self, service: &ServiceName) -> Option<&'static str> {
        self.proofs.get(service).copied()
    }

    /// The live tunnel of this id or name.
    pub(super) fn tunnel(&self, named: &str) -> Result<&Tunnel, CommandError> {
        let lower = named.to_ascii_lowercase();
        self.snapshot
            .tunnels
            .iter()
            .find(|tunnel| tunnel.id.as_str() == named || tunnel.name.as_str() == lower)
            .ok_or_else(|| CommandError::failed(format!("no tunnel {named:?}")).hint("`tunnel list` shows them"))
    }

    pub(super) fn token(&self, id: &str) -> Result<&TokenRow, CommandError> {
        self.snapshot
            .tokens
            .iter()
            .find(|token| token.id.as_str() == id)
            .ok_or_else(|| CommandError::failed(format!("no token {id:?}")).hint("`token list` shows their ids"))
    }

    /// The connector of this id, or the only one of this name that is not revoked.
    pub(super) fn connector(&self, named: &str) -> Result<&ConnectorRow, CommandError> {
        let unknown = || CommandError::failed(format!("no connector {named:?}")).hint("`connector list` shows them");
        let all = &self.snapshot.connectors;
        if let Some(found) = all.iter().find(|connector| connector.id.as_str() == named) {
            return Ok(found);
        }
        let lower = named.to_ascii_lowercase();
        let has_name = |connector: &&ConnectorRow| {
            connector.revoked.is_none() && self.name(connector).is_some_and(|name| name.as_str() == lower)
        };
        let found: Vec<&ConnectorRow> = all.iter().filter(has_name).collect();
        match found.as_slice() {
            [] => Err(unknown()),
            [one] => Ok(one),
            several => {
                let ids: Vec<&str> = several.iter().map(|connector| connector.id.as_str()).collect();
                Err(CommandError::failed(format!("{} connectors are named {lower}", several.len()))
                    .hint(format!("give one's id: {}", ids.join(", "))))
            }
        }
    }

    /// The gateway of this id or name, unless it is revoked.
    pub(super) fn gateway(&self, named: &str) -> Result<&GatewayRow, CommandError> {
        let lower = named.to_ascii_lowercase();
        self.gateways()
            .find(|gateway| gateway.id.as_str() == named || gateway.name.as_str() == lower)
            .ok_or_else(|| CommandError::failed(format!("no gateway {named:?}")).hint("`gateway list` shows them"))
    }

    /// The stock peer of this id or name, unless it is deleted.
    pub(super) fn peer(&self, named: &str) -> Result<&PeerRow, CommandError> {
        let lower = named.to_ascii_lowercase();
        self.peers()
            .find(|peer| peer.id.as_str() == named || peer.name.as_str() == lower)
            .ok_or_else(|| CommandError::failed(format!("no peer {named:?}")).hint("`peer list` shows them"))
    }

    /// Stock peers that are not deleted.
    pub(super) fn peers(&self) -> impl Iterator<Item = &PeerRow> {
        self.snapshot.peers.iter().filter(|peer| peer.revoked.is_none())
    }

    /// A stock peer's name.
    pub(super) fn peer_name(&self, id: &StockPeerId) -> String {
        self.peers().find(|peer| peer.id == *id).map_or_else(|| id.to_string(), |peer| peer.name.to_string())
    }

    /// Services behind one stock peer.
    pub(super) fn services_of(&self, peer: &StockPeerId) -> impl Iterator<Item = &PeerServiceRow> {
        self.snapshot.peer_services.iter().filter(move |service| service.peer == *peer)
    }

    pub(super) fn live_peer(&self, id: &StockPeerId) -> Option<&LivePeer> {
        self.peers.get(id)
    }

    /// `up`, `lost`, `never` or `revoked`.
    pub(super) fn peer_state(&self, peer: &PeerRow) -> &'static str {
        if peer.revoked.is_some() {
            "revoked"
        } else if self.live_peer(&peer.id).is_some_and(|live| live.up) {
            "up"
        } else if self.peer_last_handshake(peer).is_some() {
            "lost"
        } else {
            "never"
        }
    }

    pub(super) fn peer_last_handshake(&self, peer: &PeerRow) -> Option<SystemTime> {
        self.live_peer(&peer.id).and_then(|live| live.last_handshake).or(peer.last_handshake)
    }

    /// Where it is; where it is dialled while that is not known.
    pub(super) fn peer_endpoint(&self, peer: &PeerRow) -> Option<String> {
        let heard = self.live_peer(&peer.id).and_then(|live| live.endpoint).or(peer.last_endpoint);
        heard.map(|at| at.to_string()).or_else(|| peer.endpoint.as_ref().map(ToString::to_string))
    }

    /// Why nothing behind stock peers can be reached.
    pub(super) fn tun_alarm(&self) -> Option<String> {
        let why = self.tun_unavailable.as_ref()?;
        Some(format!("nothing behind peers can be reached: {why}"))
    }

    /// Gateways that may call.
    pub(super) fn gateways(&self) -> impl Iterator<Item = &GatewayRow> {
        self.snapshot.gateways.iter().filter(|gateway| gateway.revoked.is_none())
    }

    /// When a gateway called last.
    pub(super) fn last_used(&self, gateway: &GatewayRow) -> Option<SystemTime> {
        gateway.last_used.max(self.gateways.get(&gateway.id).copied())
    }

    /// Connectors of one tunnel, or of all that are not deleted.
    pub(super) fn connectors_of(&self, tunnel: Option<&TunnelId>) -> Vec<&ConnectorRow> {
        let shown = |connector: &&ConnectorRow| match tunnel {
            Some(id) => connector.tunnel == *id,
            None => self.snapshot.tunnels.iter().any(|tunnel| tunnel.id == connector.tunnel),
        };
        self.snapshot.connectors.iter().filter(shown).collect()
    }

    pub(super) fn tokens_of(&self, tunnel: Option<&TunnelId>) -> Vec<&TokenRow> {
        let shown = |token: &&TokenRow| match tunnel {
            Some(id) => token.tunnel == *id,
            None => self.snapshot.tunnels.iter().any(|tunnel| tunnel.id == token.tunnel),
        };
        let kept = |token: &&TokenRow| !token.is_forgotten(self.now);
        self.snapshot.tokens.iter().filter(shown).filter(kept).collect()
    }

    /// A tunnel's name; its id when it is deleted.
    pub(super) fn tunnel_name(&self, id: &TunnelId) -> String {
        let found = self.snapshot.tunnels.iter().find(|tunnel| tunnel.id == *id);
        found.map_or_else(|| id.to_string(), |tunnel| tunnel.name.to_string())
    }

    pub(super) fn live(&self, id: &ConnectorId) -> Option<&LiveConnector> {
        self.connectors.get(id)
    }

    /// What an operator has to hear of a connector's key.
    pub(super) fn alarm(&self, connector: &ConnectorRow) -> Option<String> {
        let [one, other] = self.flapping.get(&connector.id).filter(|_| connector.revoked.is_none())?;
        Some(format!("its key is used in two places at once, {one} and {other}: stolen? `connector revoke` ends it"))
    }

    pub(super) fn name<'a>(&'a self, connector: &'a ConnectorRow) -> Option<&'a Label> {
        self.live(&connector.id).and_then(|live| live.name.as_ref()).or(connector.name.as_ref())
    }

    pub(super) fn version(&self, connector: &ConnectorRow) -> Option<String> {
        let told = self.live(&connector.id).and_then(|live| live.version.as_ref()).or(connector.version.as_ref());
        told.map(|version| enrol::program(version))
    }

    pub(super) fn last_handshake(&self, connector: &ConnectorRow) -> Option<SystemTime> {
        self.live(&connector.id).and_then(|live| live.last_handshake).or(connector.last_handshake)
    }

    /// `up`, `draining`, `lost` or `revoked`.
    pub(super) fn state(&self, connector: &ConnectorRow) -> &'static str {
        match self.live(&connector.id) {
            _ if connector.revoked.is_some() => "revoked",
            Some(live) if live.draining || connector.drained => "draining",
            Some(_) => "up",
            None => "lost",
        }
    }

    pub(super) fn endpoint(&self, connector: &ConnectorRow) -> Option<String> {
        let live = self.live(&connector.id).and_then(|live| live.endpoint);
        live.or(connector.last_endpoint).map(|endpoint| endpoint.to_string())
    }

    /// How many of a tunnel's connectors are up, and how many there are.
    pub(super) fn up(&self, tunnel: &TunnelId) -> (usize, usize) {
        let all = self.connectors_of(Some(tunnel));
        let members = all.iter().filter(|connector| connector.revoked.is_none()).count();
        (all.iter().filter(|connector| self.state(connector) == "up").count(), members)
    }

    /// Every service that is granted exactly, was announced, is behind a stock peer, or is live; by name.
    pub(super) fn known_services(&self) -> Vec<KnownService> {
        let mut owners: BTreeMap<ServiceName, BTreeSet<Label>> = BTreeMap::new();
        for tunnel in &self.snapshot.tunnels {
            for name in tunnel.grants.iter().filter_map(culvert_model::name::Grant::exact) {
                owners.entry(name).or_default().insert(tunnel.name.clone());
            }
        }
        for service in &self.snapshot.services {
            let tunnel = self.snapshot.tunnels.iter().find(|tunnel| tunnel.id == service.tunnel);
            owners.entry(service.name.clone()).or_default().extend(tunnel.map(|tunnel| tunnel.name.clone()));
        }
        for row in &self.snapshot.managed {
            let tunnel = self.snapshot.tunnels.iter().find(|tunnel| tunnel.id == row.tunnel);
            owners.entry(row.name.clone()).or_default().extend(tunnel.map(|tunnel| tunnel.name.clone()));
        }
        for row in &self.snapshot.peer_services {
            owners.entry(row.name.clone()).or_default();
        }
        for name in self.services.keys() {
            owners.entry(name.clone()).or_default();
        }
        owners
            .into_iter()
            .map(|(name, tunnels)| {
                let live = self.services.get(&name).copied().unwrap_or_default();
                let managed = self.snapshot.managed.iter().filter(|row| row.name == name).cloned().collect();
                let behind = self.snapshot.peer_services.iter().find(|row| row.name == name).cloned();
                KnownService { name, tunnels: tunnels.into_iter().collect(), live, managed, behind }
            })
            .collect()
    }

    pub(super) fn tunnel_json(&self, tunnel: &Tunnel) -> Value {
        let (up, total) = self.up(&tunnel.id);
        json!({
            "id": tunnel.id,
            "name": tunnel.name,
            "services": tunnel.grants,
            "shared": tunnel.shared,
            "connectors_up": up,
            "connectors_total": total,
            "created": rfc3339(tunnel.created),
        })
    }

    pub(super) fn token_json(&self, token: &TokenRow) -> Value {
        json!({
            "id": token.id,
            "tunnel": self.tunnel_name(&token.tunnel),
            "services": token.services,
            "uses_left": token.uses_left,
            "used": token.used,
            "from": token.sources,
            "expires": token.expires.map(rfc3339),
            "last_used": token.last_used.map(rfc3339),
            "state": token.state(self.now).as_str(),
            "created": rfc3339(token.created),
        })
    }

    pub(super) fn gateway_json(&self, gateway: &GatewayRow) -> Value {
        json!({
            "id": gateway.id,
            "name": gateway.name,
            "services": gateway.grants,
            "certificate": gateway.certificate.as_ref().map(ToString::to_string),
            "secrets": gateway.secrets.iter().filter(|secret| secret.is_valid(self.now)).count(),
            "created": rfc3339(gateway.created),
            "last_used": self.last_used(gateway).map(rfc3339),
        })
    }

    pub(super) fn connector_json(&self, connector: &ConnectorRow) -> Value {
        let live = self.live(&connector.id).filter(|_| connector.revoked.is_none());
        json!({
            "id": connector.id,
            "name": self.name(connector),
            "tunnel": self.tunnel_name(&connector.tunnel),
            "public_key": connector.public_key,
            "inner_address": connector.inner_address,
            "endpoint": self.endpoint(connector),
            "last_handshake": self.last_handshake(connector).map(rfc3339),
            "version": self.version(connector),
            "state": self.state(connector),
            "services": live.map(|live| live.services.as_slice()).unwrap_or_default(),
            "limited_to": connector.services,
            "ephemeral": connector.ephemeral,
            "drained": connector.drained,
            "enrolled": rfc3339(connector.enrolled),
            "key_created": rfc3339(connector.key_since),
            "key_age_seconds": age_seconds(connector.key_since, self.now),
            "next_key": connector.next.as_ref().filter(|_| connector.revoked.is_none()).map(|next| next.public_key),
            "psk_epoch": live.and_then(|live| live.psk_epoch),
            "quantum_safe_since": connector.safe_since.map(rfc3339),
            "lanes": live.map(|live| &live.lanes),
            "rx_bytes": live.map(|live| live.rx_bytes),
            "tx_bytes": live.map(|live| live.tx_bytes),
            "flapping": self.flapping.get(&connector.id).filter(|_| connector.revoked.is_none()),
            "notes": live.map(|live| live.notes.as_slice()).unwrap_or_default(),
        })
    }
}

/// Whole seconds since then; a clock that went back gives none.
fn age_seconds(then: SystemTime, now: SystemTime) -> u64 {
    now.duration_since(then).map_or(0, |age| age.as_secs())
}

impl KnownService {
    /// Who defines it: the connectors' declarations win, where there are any; both where both exist.
    pub(super) fn parts(&self) -> Vec<Part> {
        let LiveService { up, total, managed_up, managed } = self.live;
        if self.behind.is_some() {
            return vec![Part { source: "peer", up, total }];
        }
        let declared = Part { source: "connector", up: up - managed_up, total: total - managed };
        let relay = Part { source: "relay", up: managed_up, total: managed };
        match (self.managed.is_empty() && managed == 0, declared.total > 0) {
            (true, _) => vec![declared],
            (false, true) => vec![declared, relay],
            (false, false) => vec![relay],
        }
    }

    /// One of its parts.
    pub(super) fn part_json(&self, part: &Part) -> Value {
        json!({
            "name": self.name,
            "source": part.source,
            "tunnels": self.tunnels,
            "up": part.up,
            "total": part.total,
        })
    }

    /// All of it, as the part that counts.
    pub(super) fn json(&self) -> Value {
        json!({
            "name": self.name,
            "source": self.parts().first().map(|part| part.source),
            "tunnels": self.tunnels,
            "up": self.live.up,
            "total": self.live.total,
        })
    }
}

/// The ids of a view's tokens that the tunnel has, for what a running relay has to apply.
pub(super) fn token_ids(view: &View, tunnel: &TunnelId) -> Vec<TokenId> {
    view.tokens_of(Some(tunnel)).into_iter().map(|token| token.id.clone()).collect()
}
