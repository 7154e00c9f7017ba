//! What commands, readiness and metrics are told about the sessions: copies of what is true now.
//!
//! Must never say anything that the directory does not say.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::time::{Instant, SystemTime};

use culvert_model::id::ConnectorId;
use culvert_model::name::{Label, ServiceName};
use culvert_model::proof::ProofKey;

use super::table::Known;
use super::{PairState, Sessions, Shared};
use crate::command::{LiveConnector, LiveService, LiveServiceOfConnector};

/// A key in two places at once is told for so long after it was last noticed.
const FLAPPING_TOLD_FOR: std::time::Duration = std::time::Duration::from_secs(24 * 3_600);
/// A clock that was behind is told for so long.
const CLOCK_TOLD_FOR: std::time::Duration = std::time::Duration::from_secs(3_600);

/// Who signs for a tunnel: `base` is `[issuer] url`, without a slash at its end.
pub(crate) fn issuer_of(base: &str, tunnel: &str) -> String {
    format!("{base}/{tunnel}")
}

impl Sessions {
    /// Connectors with a live session.
    pub(crate) fn connectors(&self) -> HashMap<ConnectorId, LiveConnector> {
        let (now, wall) = (Instant::now(), SystemTime::now());
        let table = self.shared.table();
        let live = table.connectors.iter().filter(|(_, known)| known.live.is_some());
        live.map(|(id, known)| (id.clone(), self.shared.describe(known, now, wall))).collect()
    }

    /// Tells connectors from now on who this relay answers as to those who verify their tokens.
    pub(crate) fn set_issuer(&self, url: &str) {
        self.shared.table().issuer = Some(url.into());
    }

    /// The keys that the connectors of a tunnel sign tokens with; none where there is no such tunnel.
    pub(crate) fn proof_keys(&self, tunnel: &str) -> Option<Vec<ProofKey>> {
        let table = self.shared.table();
        let tunnel = table.tunnels.iter().find(|one| one.name.as_str() == tunnel)?;
        Some(table.proof_keys.of(&tunnel.id))
    }

    /// Connectors whose key was lately in use in two places at once, and where.
    pub(crate) fn flapping(&self) -> HashMap<ConnectorId, [SocketAddr; 2]> {
        let now = Instant::now();
        let table = self.shared.table();
        let known = table.connectors.iter();
        known.filter_map(|(id, known)| Some((id.clone(), known.lately_in_two_places(now)?))).collect()
    }

    /// Services that are known, each with its pairs.
    pub(crate) fn services(&self) -> BTreeMap<ServiceName, LiveService> {
        self.shared.directory.counts()
    }

    /// How many connectors of each tunnel are in which state.
    pub(crate) fn count_by_tunnel(&self) -> BTreeMap<(Label, &'static str), i64> {
        let table = self.shared.table();
        let mut counts = BTreeMap::new();
        for known in table.connectors.values() {
            let Some(tunnel) = table.tunnel(&known.tunnel) else { continue };
            for state in ["up", "draining", "lost"] {
                *counts.entry((tunnel.name.clone(), state)).or_default() += i64::from(state == state_of(known));
            }
        }
        counts
    }

    /// When each known connector last shook hands.
    pub(crate) fn last_handshakes(&self) -> Vec<(ConnectorId, SystemTime)> {
        let table = self.shared.table();
        let known = table.connectors.iter();
        known.filter_map(|(id, known)| Some((id.clone(), known.last_handshake?))).collect()
    }
}

impl Shared {
    fn describe(&self, known: &Known, now: Instant, wall: SystemTime) -> LiveConnector {
        let stats = self.plane.peer_stats(known.peer);
        let last = stats.and_then(|stats| stats.last_handshake);
        let last = last.and_then(|at| wall.checked_sub(now.saturating_duration_since(at))).or(known.last_handshake);
        let mut notes = Vec::new();
        if known.clock_behind.is_some_and(|at| now.duration_since(at) < CLOCK_TOLD_FOR) {
            notes.push("clock behind?".to_owned());
        }
        if known.clones.suspected(now) {
            notes.push("another process uses the same key".to_owned());
        }
        let (pairs, refused) = known.live.as_ref().map_or((&[][..], &[][..]), |live| (&live.pairs, &live.refused));
        let managed_refused = known.live.as_ref().map(|live| live.managed_refused.clone()).unwrap_or_default();
        notes.extend(refused.iter().map(|service| format!("{} refused: {}", service.name, service.why)));
        notes.extend(managed_refused.iter().map(|service| format!("{}, managed here: {}", service.name, service.why)));
        let service = |pair: &std::sync::Arc<super::Pair>| LiveServiceOfConnector {
            name: pair.service.clone(),
            up: pair.state() == PairState::Up,
            source: if pair.managed { "relay" } else { "connector" },
            reason: pair.reason(),
        };
        let lanes = known.live.as_ref().map(|live| self.describe_lanes(&live.member)).unwrap_or_default();
        LiveConnector {
            endpoint: stats.and_then(|stats| stats.path).map(|path| path.remote).or(known.endpoint.map(|(at, _)| at)),
            last_handshake: last,
            version: known.version.clone(),
            name: known.name.clone(),
            draining: known.live.as_ref().is_some_and(|live| live.member.is_draining()),
            services: pairs.iter().map(service).collect(),
            notes,
            not_served: [managed_refused, refused.to_vec()].concat(),
            psk_epoch: stats.and_then(|stats| stats.psk_epoch),
            rx_bytes: lanes.iter().map(|lane| lane.rx_bytes).sum(),
            tx_bytes: lanes.iter().map(|lane| lane.tx_bytes).sum(),
            lanes,
        }
    }
}

impl Known {
    fn lately_in_two_places(&self, now: Instant) -> Option<[SocketAddr; 2]> {
        let (at, places) = **self.flapping.as_ref()?;
        (now.saturating_duration_since(at) < FLAPPING_TOLD_FOR).then_some(places)
    }
}

fn state_of(known: &Known) -> &'static str {
    match &known.live {
        Some(live) if live.member.is_draining() => "draining",
        Some(_) => "up",
        None => "lost",
    }
}
