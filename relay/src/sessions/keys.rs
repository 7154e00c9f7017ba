//! The keys of a connector that is here: fresh pre-shared keys, its next static key, the end of the one before it.
//!
//! Must never have the plane use a key that the registry does not hold yet, or end a session for the sake of another key.

use std::time::{Duration, Instant, SystemTime};

use culvert_engine::{PeerId, PskEpoch};
use culvert_model::control::{Rekey, ToConnector};
use culvert_model::id::ConnectorId;
use culvert_model::key::PublicKey;
use culvert_plane::PeerKey;
use tracing::{debug, info, warn};

use super::Shared;
use crate::enrol::{self, NotRenewed};
use crate::refusals::Attempt;
use crate::registry::ConnectorRow;

/// A snapshot may be this much older than what was answered meanwhile.
const SNAPSHOT_AGE: Duration = Duration::from_secs(30);

/// The static keys of one connector, as the plane has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Keys {
    /// The one it has.
    pub(super) own: PublicKey,
    /// The one it changes to, and since when the plane answers it.
    next: Option<(PublicKey, Instant)>,
}

impl Keys {
    pub(super) fn of(row: &ConnectorRow) -> Self {
        Self { own: row.public_key, next: None }
    }
}

impl Shared {
    /// Answers a connector that asks for a next key of its own.
    pub(super) async fn rekey(&self, id: &ConnectorId, request: Rekey, now: SystemTime) -> Option<ToConnector> {
        let (peer, under, epoch) = self.session_of(id)?;
        let public_key = request.public_key;
        let asked = enrol::Fresh { connector: id, public_key: &public_key, under: &under, epoch };
        match enrol::rekey(&*self.registry, &self.identity, &asked, &request.kem_key, now).await {
            Ok((answer, row)) => {
                self.set_next(peer, &row);
                info!(connector = %id, public_key = %public_key, "connector has a next key");
                Some(ToConnector::Rekeyed(answer))
            }
            Err(NotRenewed::Later(error)) => {
                debug!(connector = %id, %error, "next key must wait");
                None
            }
            Err(NotRenewed::Refused(why)) => {
                warn!(connector = %id, public_key = %public_key, why, "next key refused");
                self.refusals.note(Attempt {
                    action: "key.refused",
                    actor: id.to_string(),
                    subject: id.to_string(),
                    detail: format!("{public_key}: {why}"),
                });
                Some(ToConnector::RekeyRefused { public_key, why })
            }
            Err(NotRenewed::Broken(error)) => {
                warn!(connector = %id, %error, "next key must wait");
                None
            }
        }
    }

    /// Answers a connector that asks for a fresh pre-shared key.
    pub(super) async fn renew(&self, id: &ConnectorId, kem_key: &str, now: SystemTime) -> Option<ToConnector> {
        let (peer, under, epoch) = self.session_of(id)?;
        let asked = enrol::Fresh { connector: id, public_key: &under, under: &under, epoch };
        match enrol::renew(&*self.registry, &self.identity, &asked, kem_key, now).await {
            Ok((answer, psks)) => {
                if let Err(error) = self.plane.set_key_psks(peer, &under, None, psks) {
                    warn!(connector = %id, %error, "pre-shared keys not changed");
                    return None;
                }
                debug!(connector = %id, "connector has a fresh pre-shared key");
                Some(answer)
            }
            Err(error) => {
                debug!(connector = %id, %error, "fresh pre-shared key must wait");
                None
            }
        }
    }

    /// A connector uses one key alone from now on.
    pub(super) async fn retire(&self, id: &ConnectorId, stays: PublicKey, now: SystemTime) {
        // Only what it just proved to have: else a repeated word could cut it off.
        let Some((_, under, _)) = self.session_of(id).filter(|(_, under, _)| *under == stays) else {
            debug!(connector = %id, "a key was to stay that is not in use");
            return;
        };
        match self.registry.retire_key(id.clone(), under, now).await {
            Ok(Some(row)) => {
                let lost = self.sync_keys(&row, Instant::now());
                debug_assert!(lost.is_none(), "it just proved that it has the key that stays");
            }
            Ok(None) => {}
            Err(error) => debug!(connector = %id, %error, "old key not retired"),
        }
    }

    /// Makes the plane agree with a row about a connector's static keys. A peer that is returned is not known here any more:
    /// whoever calls this has the plane forget it.
    #[must_use = "the plane answers a peer until it is removed"]
    pub(super) fn sync_keys(&self, row: &ConnectorRow, now: Instant) -> Option<PeerId> {
        let (peer, keys) = self.keys_of(&row.id)?;
        let is_known = row.public_key == keys.own || keys.next.is_some_and(|(next, _)| next == row.public_key);
        if !is_known && enrol::psks_of(row, &self.identity).is_ok_and(|psks| psks.is_empty()) {
            // It told another relay of its new key, and this one not: it has to be made known here again.
            info!(connector = %row.id, "connector has another key that is not known here");
            return self.forget_member(&row.id);
        }
        self.set_own(peer, row);
        let (_, keys) = self.keys_of(&row.id)?;
        match (&row.next, keys.next) {
            (Some(next), Some((known, _))) if next.public_key == known => {}
            (_, Some((_, since))) if now.duration_since(since) < SNAPSHOT_AGE => {}
            (Some(_), _) => self.set_next(peer, row),
            (None, Some((known, _))) => {
                if let Err(error) = self.plane.remove_key(peer, &known, None) {
                    debug!(connector = %row.id, %error, "next key not removed");
                }
                self.set_keys(&row.id, Keys { next: None, ..keys });
            }
            (None, None) => {}
        }
        None
    }

    /// Has the plane answer a connector's next key, under its newest pre-shared keys.
    fn set_next(&self, peer: PeerId, row: &ConnectorRow) {
        self.set_own(peer, row);
        let (Some(next), Some((_, keys))) = (&row.next, self.keys_of(&row.id)) else { return };
        let psks = match enrol::next_psks_of(row, &self.identity) {
            // It was told to another relay alone so far.
            Ok(psks) if psks.is_empty() => return,
            Ok(psks) => psks,
            Err(error) => {
                warn!(connector = %row.id, %error, "next key left out");
                return;
            }
        };
        match keys.next {
            Some((known, _)) if known == next.public_key => {
                if let Err(error) = self.plane.set_key_psks(peer, &known, None, psks) {
                    warn!(connector = %row.id, %error, "pre-shared keys of a next key not changed");
                }
            }
            Some((known, _)) => {
                let _ = self.plane.remove_key(peer, &known, None);
                self.add_key(peer, row, &next.public_key, psks);
            }
            None => self.add_key(peer, row, &next.public_key, psks),
        }
        self.set_keys(&row.id, Keys { own: keys.own, next: Some((next.public_key, Instant::now())) });
    }

    /// Has the plane forget the key that a connector had before the one it has.
    fn set_own(&self, peer: PeerId, row: &ConnectorRow) {
        let Some((_, keys)) = self.keys_of(&row.id).filter(|(_, keys)| keys.own != row.public_key) else { return };
        if keys.next.is_none_or(|(next, _)| next != row.public_key) {
            match enrol::psks_of(row, &self.identity) {
                Ok(psks) => self.add_key(peer, row, &row.public_key, psks),
                Err(error) => warn!(connector = %row.id, %error, "a connector's new key is left out"),
            }
        }
        match self.plane.remove_key(peer, &keys.own, None) {
            Ok(()) => info!(connector = %row.id, public_key = %row.public_key, "connector's old key is retired"),
            Err(error) => debug!(connector = %row.id, %error, "old key not removed"),
        }
        let next = keys.next.filter(|(next, _)| *next != row.public_key);
        self.set_keys(&row.id, Keys { own: row.public_key, next });
    }

    fn add_key(&self, peer: PeerId, row: &ConnectorRow, public_key: &PublicKey, psks: Vec<PskEpoch>) {
        let static_index = self.static_of(&row.id, SystemTime::now());
        let key = PeerKey { public_key: *public_key, static_index, psks };
        if let Err(error) = self.plane.add_key(peer, key, false) {
            warn!(connector = %row.id, %error, "a connector's key cannot be answered");
        }
    }

    /// The peer of a connector, and which static key and pre-shared key its session hangs on.
    fn session_of(&self, id: &ConnectorId) -> Option<(PeerId, PublicKey, Option<u32>)> {
        let peer = self.table().connectors.get(id)?.peer;
        let stats = self.plane.peer_stats(peer)?;
        Some((peer, stats.public_key, stats.psk_epoch))
    }

    fn keys_of(&self, id: &ConnectorId) -> Option<(PeerId, Keys)> {
        let table = self.table();
        let known = table.connectors.get(id)?;
        Some((known.peer, known.keys))
    }

    fn set_keys(&self, id: &ConnectorId, keys: Keys) {
        if let Some(known) = self.table().connectors.get_mut(id) {
            known.keys = keys;
        }
    }
}
