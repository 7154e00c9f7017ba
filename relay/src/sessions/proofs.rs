//! The public keys of what connectors sign for their origins, as verifiers are given them.
//!
//! Those of every connector of the registry, here or away, known at this relay or at another: a verifier that asks after a
//! restart must not find fewer. Must never hold those of one that was revoked.

use std::collections::HashMap;

use culvert_model::id::{ConnectorId, TunnelId};
use culvert_model::proof::{Algorithm, ProofKey};

use crate::registry::ConnectorRow;

/// Of each kind three: one that signs, the next, and one whose tokens still live.
const KEYS_AT_MOST: usize = 3 * Algorithm::ALL.len();

/// All of them.
#[derive(Debug, Default)]
pub(super) struct ProofKeys(HashMap<ConnectorId, (TunnelId, Vec<ProofKey>)>);

impl ProofKeys {
    /// Takes a connector's own list: those that are keys, and no more than it can need. Returns it, if it is news.
    pub(super) fn told(&mut self, id: &ConnectorId, tunnel: &TunnelId, keys: Vec<ProofKey>) -> Option<Vec<ProofKey>> {
        let keys: Vec<ProofKey> = keys.into_iter().filter(ProofKey::is_well_formed).take(KEYS_AT_MOST).collect();
        let known = self.0.get(id).map_or(&[][..], |(_, keys)| keys);
        if *known == keys {
            return None;
        }
        self.0.insert(id.clone(), (tunnel.clone(), keys.clone()));
        Some(keys)
    }

    /// Takes what the registry holds. What connectors that are `live` here said themselves may not be written yet: it stays.
    pub(super) fn load(&mut self, rows: &[ConnectorRow], is_live: impl Fn(&ConnectorId) -> bool) {
        let mut before = std::mem::take(&mut self.0);
        before.retain(|id, _| is_live(id));
        for row in rows {
            let told = before.remove(&row.id);
            if row.revoked.is_none() {
                let kept = || (row.tunnel.clone(), row.proof_keys.clone());
                self.0.insert(row.id.clone(), told.unwrap_or_else(kept));
            }
        }
        // Who joined since the rows were read.
        self.0.extend(before);
        self.0.retain(|_, (_, keys)| !keys.is_empty());
    }

    /// Forgets a connector's.
    pub(super) fn forget(&mut self, id: &ConnectorId) {
        self.0.remove(id);
    }

    /// Those of a tunnel's connectors, in an order that stays.
    pub(super) fn of(&self, tunnel: &TunnelId) -> Vec<ProofKey> {
        let mut own: Vec<_> = self.0.iter().filter(|(_, (of, _))| of == tunnel).collect();
        own.sort_by_key(|(id, _)| *id);
        own.into_iter().flat_map(|(_, (_, keys))| keys.iter().cloned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> ProofKey {
        ProofKey::new(Algorithm::EdDsa, &[byte; 32]).unwrap()
    }

    #[test]
    fn what_is_no_key_or_one_too_many_is_left_out_and_only_a_change_is_news() {
        let (mut keys, id, tunnel) = (ProofKeys::default(), ConnectorId::new(), TunnelId::new());
        let broken = ProofKey { alg: Algorithm::EdDsa, x: "short".to_owned(), y: None };
        let list: Vec<ProofKey> = std::iter::once(broken).chain((0..20).map(key)).collect();
        let most: Vec<ProofKey> = (0..20).take(KEYS_AT_MOST).map(key).collect();
        assert_eq!(keys.told(&id, &tunnel, list.clone()), Some(most));
        assert_eq!(keys.told(&id, &tunnel, list), None);
        assert_eq!(keys.of(&tunnel).len(), KEYS_AT_MOST);
        assert_eq!(keys.told(&id, &tunnel, Vec::new()), Some(Vec::new()), "one that signs no more has none");
        assert_eq!((keys.of(&tunnel), keys.of(&TunnelId::new())), (Vec::new(), Vec::new()));
    }
}
