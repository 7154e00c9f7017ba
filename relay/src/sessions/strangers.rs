//! Keys that nobody has here: who names one gets silence, and the operator is told of those that were somebody's once.
//!
//! Must never answer: a port that tells a stranger anything can be found by asking.

use culvert_engine::Path;
use culvert_model::key::PublicKey;
use tracing::debug;

use super::Shared;
use crate::refusals::Attempt;

impl Shared {
    /// A key that nobody has: only that of a connector that was revoked is worth a word. The answer is silence.
    pub(super) fn stranger(&self, public_key: &PublicKey, path: Path) {
        let from = path.remote.ip();
        if let Some(name) = self.peers.deleted(public_key) {
            return self.refusals.note(Attempt {
                action: "peer.refused",
                actor: name.to_string(),
                subject: name.to_string(),
                detail: format!("a handshake under the key of a deleted peer, from {from}"),
            });
        }
        let Some(id) = self.table().revoked.get(public_key).cloned() else { return };
        debug!(connector = %id, from = %from, "a revoked key was named");
        self.refusals.note(Attempt {
            action: "connector.refused",
            actor: id.to_string(),
            subject: id.to_string(),
            detail: format!("a handshake under its revoked key, from {from}"),
        });
    }
}
