//! The keys of one session while it lives: pre-shared keys are renewed, a next key is made known and taken into use, an
//! old one is retired (wire.md §3).
//!
//! Must never use a key that is not on disk at both ends, or end a session for the sake of another key.

use std::time::{Duration, Instant, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use culvert_model::control::{Rekey, Rekeyed, ToRelay};
use culvert_model::kem::KemKey;
use culvert_model::key::PublicKey;
use culvert_ops::runtime::now;

use super::Session;
use crate::control::ControlError;
use crate::renewal::Renewal;
use crate::rotation::GRACE;

/// A relay that does not answer to a next key is asked again after this time.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// An older pre-shared key is deleted so long after the newer one was used.
const OLD_EPOCH_FOR: Duration = Duration::from_secs(180);
/// Nothing to do.
const LONG: Duration = Duration::from_secs(3600);

/// What one session knows of its keys.
#[derive(Debug)]
pub(super) struct Keys {
    renewal: Option<Renewal>,
    /// The question about the next key that is out, and when it was put.
    rekeying: Option<(KemKey, Instant)>,
    /// The WireGuard session may be another one than before.
    look: bool,
    /// When pre-shared keys before this epoch are deleted.
    forget: Option<(Instant, u32)>,
    /// The relay was told which key stays.
    told: bool,
    /// When a session under the key that stays was last asked for.
    steered: Option<Instant>,
}

impl Keys {
    pub(super) fn new() -> Self {
        Self { renewal: None, rekeying: None, look: true, forget: None, told: false, steered: None }
    }

    /// A handshake succeeded.
    pub(super) fn handshaken(&mut self) {
        self.look = true;
    }
}

impl Session<'_> {
    /// Does what the keys want done now; when to look again.
    pub(super) async fn care(&mut self) -> Result<Instant, ControlError> {
        if !self.welcomed {
            return Ok(now() + LONG);
        }
        if std::mem::take(&mut self.keys.look) {
            self.look_at_epoch().await;
        }
        // A relay that was started anew calls back under a key that is on its way out: questions are asked under the one
        // that stays, or they would be answered for the other.
        if !self.way.is_under_own() && !self.way.is_under_next() {
            if self.keys.steered.is_none_or(|at| now() >= at + ASK_AGAIN) {
                self.keys.steered = Some(now());
                self.way.steer();
            }
            return Ok(now() + ASK_AGAIN);
        }
        let mut wake = now() + LONG;
        if self.shared.rotation.is_under_way() {
            wake = wake.min(self.rotate().await?);
        } else {
            self.settle_next().await;
            wake = wake.min(self.renew().await?);
        }
        wake = wake.min(self.retire().await?);
        if let Some((at, epoch)) = self.keys.forget {
            if now() >= at {
                self.keys.forget = None;
                let mut identity = self.identity.lock().await;
                let forgotten = self.shared.store.forget_before(&mut identity, self.way.name(), epoch);
                if let Err(error) = forgotten {
                    tracing::warn!(relay = self.way.name(), %error, "an old pre-shared key cannot be deleted");
                }
            } else {
                wake = wake.min(at);
            }
        }
        Ok(wake)
    }

    /// Tells this relay of the next key, or shakes hands under it.
    async fn rotate(&mut self) -> Result<Instant, ControlError> {
        let Some(next) = self.shared.rotation.next() else { return Ok(now() + LONG) };
        if let Some(psks) = next.psks.get(self.way.name()) {
            self.keys.rekeying = None;
            match self.way.take_next(&next.private_key, psks.for_engine()) {
                Ok(true) => {
                    tracing::info!(relay = self.way.name(), "shaking hands under the next key");
                    self.way.plane.connect(self.way.peer, self.way.remote());
                }
                Ok(false) => {}
                Err(error) => tracing::warn!(relay = self.way.name(), %error, "the next key cannot be used"),
            }
            if self.way.is_under_next() {
                self.shared.rotation.proven(self.way.name());
            }
            return Ok(now() + LONG);
        }
        if let Some((_, at)) = &self.keys.rekeying
            && now() < *at + ASK_AGAIN
        {
            return Ok(*at + ASK_AGAIN);
        }
        let kem = KemKey::generate();
        let kem_key = STANDARD.encode(kem.encapsulation_key());
        self.keys.rekeying = Some((kem, now()));
        self.send(&ToRelay::Rekey(Rekey { public_key: next.public_key(), kem_key })).await?;
        Ok(now() + ASK_AGAIN)
    }

    /// The relay knows the next key: on disk first.
    pub(super) fn rekeyed(&mut self, answer: &Rekeyed) {
        let Some((kem, _)) = self.keys.rekeying.take() else { return };
        let relay_key = answer.relay_key.unwrap_or(self.way.relay_key);
        let psk = STANDARD.decode(&answer.ciphertext).ok();
        let psk = psk.and_then(|ciphertext| kem.decapsulate(&ciphertext, &relay_key, &answer.public_key).ok());
        let Some(psk) = psk else {
            tracing::warn!(relay = self.way.name(), "the relay's answer to a next key makes no sense");
            return;
        };
        let (store, relay) = (&self.shared.store, self.way.name());
        let kept = self
            .shared
            .rotation
            .known(&answer.public_key, |next| store.next_known(next, relay, psk, answer.psk_epoch, SystemTime::now()));
        match kept {
            Ok(()) => tracing::info!(relay, "the relay knows the next key"),
            Err(error) => tracing::warn!(relay, %error, "the relay's answer cannot be kept"),
        }
    }

    /// The relay does not take the next key.
    pub(super) fn rekey_refused(&mut self, key: &PublicKey, why: String) {
        self.keys.rekeying = None;
        self.shared.rotation.refused(key, why);
    }

    /// What became of the next key that this session uses, once no rotation is under way: it is the key now, or nothing.
    async fn settle_next(&mut self) {
        self.keys.rekeying = None;
        if !self.way.has_next() {
            return;
        }
        let own = self.identity.lock().await.private_key.public_key();
        if self.way.settle_next(&own, now() + GRACE) {
            self.keys.renewal = None;
            self.keys.look = true;
        }
    }

    /// Retires the old key when its grace is over, and says which one stays.
    async fn retire(&mut self) -> Result<Instant, ControlError> {
        match self.way.retire_at() {
            Some(at) if now() < at => return Ok(at),
            Some(_) => {
                self.way.retire();
                self.keys.told = false;
            }
            None => {}
        }
        if !self.keys.told && !self.shared.rotation.is_under_way() {
            self.keys.told = true;
            // What never had another key has none to retire; older relays are spared the word.
            if self.identity.lock().await.joined.rekeyed_seconds.is_some() {
                self.send(&ToRelay::Retire { public_key: self.way.public_key }).await?;
            }
        }
        Ok(now() + LONG)
    }

    /// Asks for a fresh pre-shared key when it is time.
    async fn renew(&mut self) -> Result<Instant, ControlError> {
        let every = *self.shared.renew_psk_after.borrow();
        if self.keys.renewal.is_none() {
            let made = self.identity.lock().await.psks.get(self.way.name()).and_then(|psks| psks.made());
            let age = made.and_then(|made| SystemTime::now().duration_since(made).ok()).unwrap_or_default();
            self.keys.renewal = Some(Renewal::new(every, age, rand::random(), now()));
        }
        let Some(renewal) = &mut self.keys.renewal else { return Ok(now() + LONG) };
        if let Some(kem) = renewal.poll(now()) {
            let kem_key = STANDARD.encode(kem.encapsulation_key());
            let next = renewal.next();
            self.send(&ToRelay::Renew { kem_key }).await?;
            return Ok(next);
        }
        Ok(renewal.next())
    }

    /// The relay stored the next pre-shared key: so does this end, and only then it is used.
    pub(super) async fn renewed(
        &mut self,
        ciphertext: &str,
        epoch: u32,
        relay_key: Option<PublicKey>,
        for_key: Option<PublicKey>,
    ) {
        let Some(kem) = self.keys.renewal.as_mut().and_then(|renewal| renewal.answered(rand::random(), now())) else {
            return;
        };
        if for_key.is_some_and(|key| key != self.way.public_key) {
            tracing::debug!(relay = self.way.name(), "a pre-shared key for the key before this one");
            return;
        }
        let relay_key = relay_key.unwrap_or(self.way.relay_key);
        let ciphertext = STANDARD.decode(ciphertext).ok();
        let psk = ciphertext.and_then(|bytes| kem.decapsulate(&bytes, &relay_key, &self.way.public_key).ok());
        let Some(psk) = psk else {
            tracing::warn!(relay = self.way.name(), "the relay's next pre-shared key makes no sense");
            return;
        };
        let relay = self.way.name();
        let mut identity = self.identity.lock().await;
        // Another identity took this one's place meanwhile.
        if identity.private_key.public_key() != self.way.public_key {
            return;
        }
        let (store, now_kept) = (&self.shared.store, SystemTime::now());
        let kept = match self.way.is_at_first() {
            true => store.renewed_anew(&mut identity, relay, psk, epoch, now_kept),
            false => store.renewed(&mut identity, relay, psk, epoch, now_kept),
        };
        if let Err(error) = kept {
            tracing::warn!(relay, %error, "a pre-shared key cannot be kept: the one before stays in use");
            return;
        }
        let psks = identity.psks.get(relay).map(|psks| psks.for_engine()).unwrap_or_default();
        drop(identity);
        if let Err(error) = self.way.set_psks(psks) {
            tracing::warn!(relay, %error, "a pre-shared key cannot be used");
            return;
        }
        tracing::debug!(relay, epoch, "pre-shared key renewed");
        if self.way.is_at_first() {
            self.way.set_at_first(false);
            // The schedule begins anew: the one it had was made to hurry.
            self.keys.renewal = None;
        }
        self.way.plane.connect(self.way.peer, self.way.remote());
    }

    /// Notes which pre-shared key the WireGuard session hangs on.
    async fn look_at_epoch(&mut self) {
        let Some(stats) = self.way.plane.peer_stats(self.way.peer) else { return };
        let (Some(epoch), false) = (stats.psk_epoch, self.way.is_under_next()) else { return };
        let relay = self.way.name().to_owned();
        let relay = relay.as_str();
        let mut identity = self.identity.lock().await;
        if identity.private_key.public_key() != self.way.public_key {
            return;
        }
        if self.way.is_at_first() {
            tracing::warn!(relay, "the relay knows the first pre-shared key alone: it came back from a backup");
            match &mut self.keys.renewal {
                Some(renewal) => renewal.hurry(now()),
                None => self.keys.renewal = Some(Renewal::new(Duration::ZERO, Duration::ZERO, 0.0, now())),
            }
            return;
        }
        if let Err(error) = self.shared.store.used(&mut identity, relay, epoch, SystemTime::now()) {
            tracing::warn!(relay, %error, "the use of a pre-shared key cannot be noted");
        }
        let Some(psks) = identity.psks.get(relay) else { return };
        if psks.newest() == Some(epoch) && psks.for_engine().len() > 1 {
            self.keys.forget.get_or_insert((now() + OLD_EPOCH_FOR, epoch)).1 = epoch;
        }
        let (safe_since, used) = psks.since(Some(epoch));
        self.shared.board.set_psk(relay, epoch, used, safe_since);
    }
}
