//! One connector's key in two places at once: a stolen one, or a copied state directory.
//!
//! Must never end a session: which of the two is right only an operator can tell. It is said, shown and written down.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use culvert_engine::PeerId;
use tokio::task::JoinSet;
use tracing::{debug, warn};

use super::Shared;
use crate::registry::AuditRow;

/// It is told again after this time.
const TOLD_AGAIN: Duration = Duration::from_secs(600);

impl Shared {
    /// Authenticated packets of one peer came from both places in turn.
    pub(super) fn in_two_places(
        self: &Arc<Self>,
        peer: PeerId,
        places: [SocketAddr; 2],
        tasks: &mut JoinSet<()>,
        now: Instant,
    ) {
        let mut table = self.table();
        let Some((id, known)) = table.by_peer(peer) else { return };
        let [one, other] = places;
        let told = known.flapping.replace(Box::new((now, places)));
        if told.is_some_and(|told| now.saturating_duration_since(told.0) < TOLD_AGAIN) {
            return;
        }
        warn!(connector = %id, one = %one, other = %other, "one connector's key is used in two places at once");
        let row = AuditRow {
            at: SystemTime::now(),
            actor: "relay".to_owned(),
            action: "connector.flapping".to_owned(),
            subject: id.to_string(),
            detail: format!("its key is used at {one} and at {other} in turn"),
        };
        let shared = Arc::clone(self);
        tasks.spawn(async move {
            if let Err(error) = shared.registry.audit(row).await {
                debug!(%error, "a key in two places not written to the audit trail");
            }
        });
    }

    /// A process that another one had displaced is back while that one is here: two hosts have the key.
    pub(super) fn came_back(self: &Arc<Self>, peer: PeerId, tasks: &mut JoinSet<()>, now: Instant) {
        let places = {
            let mut table = self.table();
            table.by_peer(peer).and_then(|(_, known)| Some([known.former?, known.endpoint?.0]))
        };
        if let Some(places) = places {
            self.in_two_places(peer, places, tasks, now);
        }
    }
}
