//! What the relay remembers of each connector and token while it runs: the registry's rows and what was seen of them.
//!
//! Must never be the truth about what may be done: that is the registry; this is its copy for the way of a packet.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use culvert_engine::{BootstrapId, PeerId};
use culvert_model::control::{ManagedService, RefusedService, ToConnector};
use culvert_model::id::{ConnectorId, TokenId, TunnelId};
use culvert_model::key::PublicKey;
use culvert_model::name::{Grant, Label, ServiceName};
use culvert_model::proof::ProofKey;

use super::clones::Clones;
use super::directory::Pair;
use super::keys::Keys;
use super::lanes::Lane;
use super::member::Member;
use super::proofs::ProofKeys;
use crate::registry::{ConnectorRow, Forgotten, ManagedRow, RelayRow, ServiceRow, Snapshot, Tunnel};

/// All of it.
#[derive(Debug, Default)]
pub(super) struct Table {
    /// Boxed: a table that grows has room for twice as many, each as large as what it holds.
    pub(super) connectors: HashMap<ConnectorId, Box<Known>>,
    pub(super) by_peer: HashMap<PeerId, ConnectorId>,
    /// Further lanes of live sessions.
    pub(super) lanes: HashMap<PeerId, Lane>,
    pub(super) tokens: HashMap<BootstrapId, TokenId>,
    pub(super) tunnels: Vec<Tunnel>,
    pub(super) services: Vec<ServiceRow>,
    /// Connectors that are gone for good, by the key they had.
    pub(super) revoked: HashMap<PublicKey, ConnectorId>,
    pub(super) relays: Vec<RelayRow>,
    /// What connectors are told of the relays; none where there is one alone.
    pub(super) told: Option<ToConnector>,
    pub(super) managed: Vec<ManagedRow>,
    pub(super) proof_keys: ProofKeys,
    /// Names that stock peers own, and the peers' names.
    pub(super) of_peers: HashMap<ServiceName, Label>,
    /// `[issuer] url`.
    pub(super) issuer: Option<Arc<str>>,
}

/// One connector that may come.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) tunnel: TunnelId,
    /// What it may serve of what its tunnel may; empty = all of that.
    pub(super) narrowed: Vec<Grant>,
    pub(super) peer: PeerId,
    pub(super) keys: Keys,
    pub(super) name: Option<Label>,
    pub(super) version: Option<String>,
    pub(super) drained: bool,
    pub(super) endpoint: Option<(SocketAddr, Option<IpAddr>)>,
    pub(super) last_handshake: Option<SystemTime>,
    pub(super) clock_behind: Option<Instant>,
    pub(super) clones: Clones,
    /// Where it was before.
    pub(super) former: Option<SocketAddr>,
    /// When its key was last found to be used in two places at once, and where.
    pub(super) flapping: Option<Box<(Instant, [SocketAddr; 2])>>,
    pub(super) live: Option<Live>,
    /// Since when this relay knows it; its row is older.
    since: Instant,
}

/// What a connector with a session has.
#[derive(Debug, Clone)]
pub(super) struct Live {
    pub(super) member: Arc<Member>,
    pub(super) pairs: Vec<Arc<Pair>>,
    pub(super) refused: Vec<RefusedService>,
    /// Services that are managed here and that it does not serve, and why.
    pub(super) managed_refused: Vec<RefusedService>,
}

impl Table {
    /// Remembers a connector that the engine knows as `peer` and that was last `heard` there, on our address.
    pub(super) fn insert(&mut self, row: &ConnectorRow, peer: PeerId, heard: Option<(SocketAddr, Option<SocketAddr>)>) {
        self.by_peer.insert(peer, row.id.clone());
        let endpoint = heard.map(|(remote, local)| (remote, local.map(|local| local.ip())));
        self.connectors.insert(
            row.id.clone(),
            Box::new(Known {
                tunnel: row.tunnel.clone(),
                narrowed: row.services.clone(),
                peer,
                keys: Keys::of(row),
                name: row.name.clone(),
                version: row.version.clone(),
                drained: row.drained,
                endpoint,
                last_handshake: row.last_handshake,
                clock_behind: None,
                clones: Clones::default(),
                former: None,
                flapping: None,
                live: None,
                since: Instant::now(),
            }),
        );
    }

    /// Takes a connector's own list. Returns it, if it is news.
    pub(super) fn told_proof_keys(&mut self, id: &ConnectorId, keys: Vec<ProofKey>) -> Option<Vec<ProofKey>> {
        // One that was revoked just now may still be talking.
        let known = self.connectors.get(id)?;
        self.proof_keys.told(id, &known.tunnel, keys)
    }

    /// Takes what the registry holds of the keys that connectors sign with.
    pub(super) fn load_proof_keys(&mut self, rows: &[ConnectorRow]) {
        let connectors = &self.connectors;
        self.proof_keys.load(rows, |id| connectors.get(id).is_some_and(|known| known.live.is_some()));
    }

    /// Forgets one.
    pub(super) fn remove(&mut self, id: &ConnectorId) -> Option<Box<Known>> {
        let known = self.connectors.remove(id)?;
        self.by_peer.remove(&known.peer);
        Some(known)
    }

    /// What is known since before `read_at` and is not in a snapshot that was read no earlier.
    ///
    /// INVARIANT: who joined after that is spared: its row is written before it is known here.
    pub(super) fn not_in(&self, snapshot: &Snapshot, read_at: Instant) -> Forgotten {
        let tokens: HashSet<&TokenId> = snapshot.tokens.iter().map(|row| &row.id).collect();
        let connectors: HashSet<&ConnectorId> = snapshot.connectors.iter().map(|row| &row.id).collect();
        let gone = |id: &ConnectorId, known: &Known| known.since < read_at && !connectors.contains(id);
        Forgotten {
            tokens: self.tokens.values().filter(|id| !tokens.contains(id)).cloned().collect(),
            connectors: self
                .connectors
                .iter()
                .filter(|(id, known)| gone(id, known))
                .map(|(id, _)| id.clone())
                .collect(),
        }
    }

    /// Those with a session.
    pub(super) fn live(&self) -> impl Iterator<Item = &Live> {
        self.connectors.values().filter_map(|known| known.live.as_ref())
    }

    pub(super) fn by_peer(&mut self, peer: PeerId) -> Option<(&ConnectorId, &mut Known)> {
        let id = self.by_peer.get(&peer)?;
        self.connectors.get_mut(id).map(|known| (id, &mut **known))
    }

    pub(super) fn tunnel(&self, id: &TunnelId) -> Option<&Tunnel> {
        self.tunnels.iter().find(|tunnel| tunnel.id == *id)
    }

    /// What a connector is told of the services that are managed here.
    pub(super) fn managed_for(&self, id: &ConnectorId) -> Vec<ManagedService> {
        let Some(known) = self.connectors.get(id) else { return Vec::new() };
        let ours = self.managed.iter().filter(|row| row.tunnel == known.tunnel && known.may_serve(&row.name));
        ours.map(ManagedRow::told).collect()
    }

    /// Services that `managed` defines anew for tunnels with a live connector, and that nobody serves yet.
    pub(super) fn newly_managed(&self, managed: &[ManagedRow]) -> Vec<ServiceName> {
        let is_live =
            |tunnel: &TunnelId| self.connectors.values().any(|one| one.live.is_some() && one.tunnel == *tunnel);
        let is_new = |row: &&ManagedRow| {
            !self.managed.iter().any(|known| known.name == row.name && known.tunnel == row.tunnel)
                && !self.live().any(|live| live.pairs.iter().any(|pair| pair.service == row.name))
        };
        managed.iter().filter(is_new).filter(|row| is_live(&row.tunnel)).map(|row| row.name.clone()).collect()
    }

    /// Services that are known even while nobody serves them: announced once, managed, behind a stock peer, or granted by
    /// their very name.
    pub(super) fn known_services(&self) -> HashSet<ServiceName> {
        let granted = self.tunnels.iter().flat_map(|tunnel| &tunnel.grants).filter_map(|grant| grant.exact());
        let managed = self.managed.iter().map(|row| row.name.clone());
        let of_peers = self.of_peers.keys().cloned();
        self.services.iter().map(|row| row.name.clone()).chain(managed).chain(of_peers).chain(granted).collect()
    }

    /// Services of tunnels whose connectors are on their way back after a restart of the relay.
    pub(super) fn expected_services(&self) -> Vec<ServiceName> {
        let back: HashSet<&TunnelId> =
            self.connectors.values().filter(|known| known.endpoint.is_some()).map(|known| &known.tunnel).collect();
        self.services.iter().filter(|row| back.contains(&row.tunnel)).map(|row| row.name.clone()).collect()
    }

    /// Remembers that a tunnel serves these, as the registry does.
    pub(super) fn note_services(&mut self, tunnel: &TunnelId, names: &[ServiceName], now: SystemTime) {
        for name in names {
            if !self.services.iter().any(|row| row.name == *name && row.tunnel == *tunnel) {
                self.services.push(ServiceRow { name: name.clone(), tunnel: tunnel.clone(), since: now });
            }
        }
    }
}

impl Known {
    /// Whether its token let it serve that name.
    pub(super) fn may_serve(&self, name: &ServiceName) -> bool {
        self.narrowed.is_empty() || self.narrowed.iter().any(|grant| grant.matches(name))
    }
}
