//! Which of the relay's own static keys each connector speaks to, while one is rotated (wire.md §3).
//!
//! Connectors are told of the newest key through their tunnels and shake hands under it by themselves. Must never end a
//! session before the grace of its key is over.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use culvert_engine::PeerId;
use culvert_model::close::CloseCode;
use culvert_model::control::ToConnector;
use culvert_model::id::ConnectorId;
use culvert_model::key::PublicKey;
use culvert_ops::time::rfc3339;
use culvert_plane::Plane;
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

use super::table::Known;
use super::{Sessions, Shared};
use crate::identity::Identity;
use crate::peers::OwnKeys;
use crate::registry::AuditRow;
use crate::rotation::Retired;

/// A session that ends with its key gets so long to be told.
const LAST_WORD: Duration = Duration::from_millis(100);

/// The relay's static keys, as the engine numbers them.
pub(super) struct Statics {
    numbered: Mutex<Numbered>,
    complained: AtomicBool,
}

struct Numbered {
    newest: usize,
    /// All that are answered.
    keys: Vec<(usize, PublicKey)>,
}

impl Statics {
    /// Gives the plane all keys that are answered now.
    pub(super) fn new(plane: &Plane, identity: &Identity, now: SystemTime) -> Self {
        Self { numbered: Mutex::new(Numbered::of(plane, identity, now)), complained: AtomicBool::new(false) }
    }

    /// The number of the key that peers are added with.
    pub(super) fn newest(&self) -> usize {
        self.lock().newest
    }

    /// All that are answered.
    pub(super) fn answered(&self) -> OwnKeys {
        let own = self.lock();
        let previous = own.keys.iter().map(|(index, _)| *index).find(|index| *index != own.newest);
        OwnKeys { newest: own.newest, previous }
    }

    /// The key of a number.
    pub(super) fn key(&self, index: usize) -> Option<PublicKey> {
        self.lock().keys.iter().find(|(known, _)| *known == index).map(|(_, key)| *key)
    }

    fn number(&self, key: &PublicKey) -> Option<usize> {
        self.lock().keys.iter().find(|(_, known)| known == key).map(|(index, _)| *index)
    }

    /// Has the plane answer what is to be answered now, and nothing else.
    fn renew(&self, plane: &Plane, identity: &Identity, now: SystemTime) {
        let mut own = self.lock();
        let renewed = Numbered::of(plane, identity, now);
        for (index, _) in own.keys.iter().filter(|old| !renewed.keys.contains(old)) {
            if let Err(error) = plane.remove_static(*index, renewed.newest) {
                debug!(%error, "key not removed");
            }
        }
        *own = renewed;
    }

    fn lock(&self) -> MutexGuard<'_, Numbered> {
        self.numbered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Numbered {
    fn of(plane: &Plane, identity: &Identity, now: SystemTime) -> Self {
        let newest = plane.add_static(&identity.private_key());
        let mut keys = vec![(newest, identity.public_key())];
        if let Some(previous) = identity.rotation().previous(now) {
            keys.push((plane.add_static(&previous.private_key), previous.public_key));
        }
        Self { newest, keys }
    }
}

impl Sessions {
    /// The relay has a new key: it is answered from now on, and every connector is told.
    pub(crate) fn rotated(&self) {
        let shared = &self.shared;
        let now = SystemTime::now();
        shared.statics.renew(&shared.plane, &shared.identity, now);
        let message = shared.relay_key(now);
        let table = shared.table();
        let mut told = 0;
        for live in table.connectors.values().filter_map(|known| known.live.as_ref()) {
            live.member.tell(message.clone());
            told += 1;
        }
        info!(public_key = %shared.identity.public_key(), connectors = told, "the relay has a new key");
    }
}

impl Shared {
    /// What a connector has to know that does not use the newest key yet: sent after its welcome.
    pub(super) fn news_of_key(&self, peer: PeerId) -> Option<ToConnector> {
        let stats = self.plane.peer_stats(peer)?;
        (stats.static_index != self.statics.newest()).then(|| self.relay_key(SystemTime::now()))
    }

    fn relay_key(&self, now: SystemTime) -> ToConnector {
        ToConnector::RelayKey {
            public_key: self.identity.public_key(),
            previous_until: self.identity.rotation().previous(now).map(|previous| rfc3339(previous.until)),
        }
    }

    /// The key of ours that a connector is called back under: the last one that it has confirmed.
    pub(super) fn static_of(&self, connector: &ConnectorId, now: SystemTime) -> usize {
        let rotation = self.identity.rotation();
        let previous = rotation.previous(now).filter(|_| rotation.uses_previous(connector, now));
        previous.and_then(|previous| self.statics.number(&previous.public_key)).unwrap_or_else(|| self.statics.newest())
    }

    /// A session came up: under which key of ours.
    pub(super) fn note_static(&self, peer: PeerId) {
        let Some(key) = self.plane.peer_stats(peer).and_then(|stats| self.statics.key(stats.static_index)) else {
            return;
        };
        let found = self.table().by_peer(peer).map(|(id, known)| (id.clone(), known.live.clone()));
        let Some((connector, live)) = found else { return };
        self.identity.rotation().note(&connector, &key);
        if let (Some(live), Some(news)) = (live, self.news_of_key(peer)) {
            live.member.tell(news);
        }
    }
}

/// Writes who uses which key, and ends the older one's grace when it is over. What waits for a disk has a thread of its own.
pub(super) fn keep(shared: &Arc<Shared>, tasks: &mut JoinSet<()>, now: SystemTime) {
    let rotation = shared.identity.rotation();
    let over = rotation.is_over(now);
    if !over && !rotation.is_unsaved() {
        return;
    }
    let shared = Arc::clone(shared);
    tasks.spawn(async move {
        if over {
            if shared.end_sessions_of_older_keys() > 0 {
                tokio::time::sleep(LAST_WORD).await;
            }
            shared.statics.renew(&shared.plane, &shared.identity, now);
        }
        let identity = Arc::clone(&shared.identity);
        let kept = tokio::task::spawn_blocking(move || {
            let rotation = identity.rotation();
            if over { rotation.retire(now) } else { rotation.save().map(|()| None) }
        });
        match kept.await {
            Ok(Ok(Some(retired))) => shared.retired(&retired, now).await,
            Ok(Ok(None)) => shared.statics.complained.store(false, Ordering::Relaxed),
            Err(_) => {}
            // Tried again every second: said once.
            Ok(Err(error)) if !shared.statics.complained.swap(true, Ordering::Relaxed) => {
                warn!(%error, "state of the key's rotation not written");
            }
            Ok(Err(error)) => debug!(%error, "state of the key's rotation not written"),
        }
    });
}

/// Writes who uses which key, if that is not written.
pub(super) async fn save(identity: Arc<Identity>) {
    if identity.rotation().is_unsaved() {
        // Who could not be written is called back under the older key, which it knows too.
        let _ = tokio::task::spawn_blocking(move || identity.rotation().save()).await;
    }
}

impl Shared {
    /// Ends what runs over sessions that are about to have no key, while that can still be said; how many there were.
    fn end_sessions_of_older_keys(&self) -> usize {
        let newest = self.statics.newest();
        let under_older = |known: &Known| {
            self.plane.peer_stats(known.peer).is_some_and(|stats| stats.live && stats.static_index != newest)
        };
        let table = self.table();
        let members: Vec<_> =
            table.connectors.values().filter(|known| under_older(known)).filter_map(|k| k.live.clone()).collect();
        drop(table);
        for live in &members {
            warn!(connector = %live.member.who, "connector did not follow the relay's key, its session ends");
            self.ended(&live.member, None);
            live.member.close(CloseCode::Shutdown);
        }
        members.len()
    }

    async fn retired(&self, retired: &Retired, now: SystemTime) {
        info!(public_key = %retired.public_key, "the key before the newest is answered no longer");
        let rows = self.registry.load().await.map(|snapshot| snapshot.connectors).unwrap_or_default();
        let here = self.identity.relay_tag();
        let left = rows.iter().filter(|row| row.is_of(&here) && !retired.confirmed.contains(&row.id));
        let left: Vec<&str> = left.map(|row| row.id.as_str()).collect();
        if !left.is_empty() {
            warn!(
                connectors = left.join(" "),
                "connectors never used the newest key and have to join again with a new token"
            );
        }
        let row = AuditRow {
            at: now,
            actor: "relay".to_owned(),
            action: "key.retire".to_owned(),
            subject: retired.public_key.to_string(),
            detail: format!("left behind: {}", if left.is_empty() { "nobody".to_owned() } else { left.join(" ") }),
        };
        if let Err(error) = self.registry.audit(row).await {
            debug!(%error, "end of a key not written to the audit trail");
        }
    }
}
