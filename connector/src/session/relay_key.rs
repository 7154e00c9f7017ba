//! The relay has another static key: it is stored, then this session goes over to it, make before break (wire.md §3).
//!
//! Must never use a key that is not on disk, or end a session for the sake of another key.

use std::time::{Duration, SystemTime};

use culvert_model::key::PublicKey;
use culvert_ops::time::parse_rfc3339;

use super::Session;

/// How long the key before is kept where the relay does not say.
const OVERLAP: Duration = Duration::from_secs(180);

/// What the relay told of its key, while it cannot be acted on: the key, and until when the one before is answered.
pub(super) type Told = (PublicKey, SystemTime);

impl Session<'_> {
    /// Takes the relay's word for its newest key: it came through the tunnel, so it is the relay's.
    pub(super) async fn relay_key(&mut self, newest: PublicKey, previous_until: Option<&str>) {
        let until = previous_until.and_then(|text| parse_rfc3339(text).ok());
        self.told_key = Some((newest, until.unwrap_or_else(|| SystemTime::now() + OVERLAP)));
        self.follow_relay_key().await;
    }

    /// Goes over to the key that was told, and forgets the one before it when its time is over. Called often.
    pub(super) async fn follow_relay_key(&mut self) {
        let relay = self.way.name().to_owned();
        let over = self.way.former().filter(|former| former.until() <= SystemTime::now());
        // A clock that is ahead must not cost the session.
        if let Some(former) = over.filter(|former| !self.way.is_under(&former.public_key)) {
            self.way.forget_former();
            let mut identity = self.identity.lock().await;
            match self.shared.store.former_forgotten(&mut identity, &relay) {
                Ok(_) => tracing::info!(relay, public_key = %former.public_key, "the relay's former key is over"),
                Err(error) => tracing::warn!(relay, %error, "the relay's former key cannot be forgotten"),
            }
        }
        // While this end changes its own key, one thing after the other.
        let Some((newest, until)) = self.told_key.take_if(|_| !self.way.has_next()) else { return };
        if newest == self.way.relay_key {
            // The relay called back under the key before, not knowing better: it does after another handshake.
            if !self.way.is_under(&newest) {
                self.way.plane.connect(self.way.peer, self.way.remote());
            }
            return;
        }
        let mut identity = self.identity.lock().await;
        if let Err(error) = self.shared.store.relay_rotated(&mut identity, &relay, newest, until) {
            tracing::warn!(relay, %error, "the relay's new key cannot be kept: the one before stays in use");
            return;
        }
        let psks = identity.psks.get(&relay).map(|psks| psks.for_engine()).unwrap_or_default();
        drop(identity);
        match self.way.take_relay_key(newest, until, psks) {
            Ok(()) => {
                tracing::info!(relay, public_key = %newest, "the relay has a new key, shaking hands under it");
                self.shared.board.set_public_key(&relay, &newest.to_string());
                self.way.plane.connect(self.way.peer, self.way.remote());
                self.lanes_follow(newest, until);
            }
            Err(error) => tracing::warn!(relay, %error, "the relay's new key cannot be used"),
        }
    }
}
