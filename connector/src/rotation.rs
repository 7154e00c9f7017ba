//! The change from one key to the next (wire.md §3, "both keys valid for a grace time"): what links and the owner of the
//! identity tell each other about it.
//!
//! ```text
//! made ─ each link: Rekey ─▶ known to its relay ─ each link: handshake under it ─▶ proven ─ owner: takes over ─▶ grace ─ each link: Retire
//! ```
//! Must never let the next key take over before a relay has proven that it knows it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use culvert_model::key::PublicKey;
use culvert_ops::time::rfc3339;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::identity::{Identity, Next};

/// How long a relay that is away holds up the others; then it is left to its token, or to another relay.
pub const WAIT_AT_MOST: Duration = Duration::from_secs(7 * 86_400);
/// What was sealed under the old key is received for so long after the new one took over.
pub const GRACE: Duration = Duration::from_secs(180);

/// Where a rotation stands. Clones share it.
#[derive(Debug, Clone)]
pub struct Rotation(watch::Sender<Stage>);

/// See [`Rotation`].
#[derive(Debug, Clone, Default)]
pub struct Stage {
    /// The next key, while there is one.
    pub next: Option<Next>,
    /// Relays that a handshake under it succeeded with.
    pub proven: BTreeSet<String>,
    /// Why a relay does not take it.
    pub refused: Option<String>,
}

/// What the owner of the identity has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Do {
    /// Nothing now.
    Wait,
    /// Make the next key the connector's own.
    TakeOver,
    /// Drop the next key: a relay refused it for this reason.
    Drop(String),
}

impl Default for Rotation {
    fn default() -> Self {
        Self(watch::Sender::new(Stage::default()))
    }
}

impl Rotation {
    /// Is told at every change.
    pub fn news(&self) -> watch::Receiver<Stage> {
        self.0.subscribe()
    }

    /// The next key, while there is one.
    pub fn next(&self) -> Option<Next> {
        self.0.borrow().next.clone()
    }

    /// Whether one is under way.
    pub fn is_under_way(&self) -> bool {
        self.0.borrow().next.is_some()
    }

    /// A next key was made, or found where an earlier run left it.
    pub fn begin(&self, next: Next) {
        self.0.send_replace(Stage { next: Some(next), ..Stage::default() });
    }

    /// The next key took over, or was dropped.
    pub fn end(&self) {
        self.0.send_replace(Stage::default());
    }

    /// Changes the next key's record, if it is still this one.
    ///
    /// # Errors
    /// As `change` says; nothing is told then.
    pub fn known<E>(&self, key: &PublicKey, change: impl FnOnce(&mut Next) -> Result<(), E>) -> Result<(), E> {
        let mut outcome = Ok(());
        self.0.send_if_modified(|stage| match stage.next.as_mut().filter(|next| next.public_key() == *key) {
            Some(next) => {
                outcome = change(next);
                outcome.is_ok()
            }
            None => false,
        });
        outcome
    }

    /// A handshake under the next key succeeded.
    pub fn proven(&self, relay: &str) {
        self.0.send_if_modified(|stage| stage.next.is_some() && stage.proven.insert(relay.to_owned()));
    }

    /// A relay does not take the next key.
    pub fn refused(&self, key: &PublicKey, why: String) {
        self.0.send_if_modified(|stage| {
            let is_it = stage.next.as_ref().is_some_and(|next| next.public_key() == *key);
            if is_it {
                stage.refused = Some(why);
            }
            is_it
        });
    }

    /// What is to be done now.
    pub fn poll(&self, identity: &Identity, now: SystemTime) -> Do {
        self.0.borrow().poll(identity, now)
    }

    /// As `status` and `key show` tell it; null when none is under way.
    pub fn json(&self, identity_relays: &[String]) -> Value {
        let stage = self.0.borrow();
        let Some(next) = &stage.next else { return Value::Null };
        told(next, identity_relays, Some(&stage.proven))
    }
}

impl Stage {
    fn poll(&self, identity: &Identity, now: SystemTime) -> Do {
        let Some(next) = &self.next else { return Do::Wait };
        if let Some(why) = &self.refused {
            return Do::Drop(why.clone());
        }
        let mut relays = identity.joined.relays.iter().filter(|relay| relay.psk_epoch.is_some());
        let is_proven = |name: &String| next.psks.contains_key(name) && self.proven.contains(name);
        let all = relays.all(|relay| is_proven(&relay.name));
        let late = now.duration_since(next.started).is_ok_and(|since| since >= WAIT_AT_MOST);
        let some = self.proven.iter().any(is_proven);
        if some && (all || late) { Do::TakeOver } else { Do::Wait }
    }
}

/// What may be told of a next key.
pub fn told(next: &Next, relays: &[String], proven: Option<&BTreeSet<String>>) -> Value {
    let relays: BTreeMap<&String, &str> = relays
        .iter()
        .map(|name| {
            let state = match (proven.is_some_and(|proven| proven.contains(name)), next.psks.contains_key(name)) {
                (true, _) => "in_use",
                (false, true) => "known",
                (false, false) => "not_told",
            };
            (name, state)
        })
        .collect();
    json!({ "public_key": next.public_key(), "since": rfc3339(next.started), "relays": relays })
}

#[cfg(test)]
mod tests {
    use culvert_model::id::ConnectorId;
    use culvert_model::key::{PrivateKey, Psk};

    use super::*;
    use crate::identity::{Joined, Relay};
    use crate::psks::Psks;

    const START: SystemTime = SystemTime::UNIX_EPOCH;

    fn identity(relays: &[(&str, bool)]) -> Identity {
        let relays = relays.iter().map(|(name, joined)| {
            let endpoints = vec![format!("{name}:1")];
            let mut relay = Relay::new((*name).to_owned(), PrivateKey::generate().public_key(), endpoints);
            relay.psk_epoch = joined.then_some(1);
            relay
        });
        let joined = Joined {
            version: 1,
            id: ConnectorId::new(),
            inner_address: "fd43:554c:5645::9".parse().unwrap(),
            tunnel: "shop".parse().unwrap(),
            token: String::new(),
            joined_seconds: 0,
            rekeyed_seconds: None,
            relays: relays.collect(),
        };
        Identity { private_key: PrivateKey::generate(), joined, psks: BTreeMap::new() }
    }

    fn begun() -> (Rotation, PublicKey) {
        let rotation = Rotation::default();
        let next = Next { private_key: PrivateKey::generate(), started: START, psks: BTreeMap::new() };
        let key = next.public_key();
        rotation.begin(next);
        (rotation, key)
    }

    fn known(rotation: &Rotation, key: &PublicKey, relay: &str) {
        let psks = Psks::new(1, Psk::generate(), START);
        let change = |next: &mut Next| {
            next.psks.insert(relay.to_owned(), psks);
            Ok::<_, ()>(())
        };
        rotation.known(key, change).unwrap();
    }

    #[test]
    fn the_next_key_takes_over_once_every_relay_has_proven_that_it_knows_it() {
        let identity = identity(&[("a", true), ("b", true), ("never_joined", false)]);
        let (rotation, key) = begun();
        assert_eq!(rotation.poll(&identity, START), Do::Wait);
        for relay in ["a", "b"] {
            known(&rotation, &key, relay);
            assert_eq!(rotation.poll(&identity, START), Do::Wait, "known is not proven");
            rotation.proven(relay);
        }
        assert_eq!(rotation.poll(&identity, START), Do::TakeOver);
        rotation.end();
        assert_eq!(rotation.poll(&identity, START), Do::Wait);
        rotation.proven("a");
        assert!(!rotation.is_under_way());
    }

    #[test]
    fn a_relay_that_is_away_holds_it_up_for_a_week_and_no_longer_and_one_must_have_proven_it() {
        let identity = identity(&[("a", true), ("away", true)]);
        let (rotation, key) = begun();
        let (in_time, late) = (START + WAIT_AT_MOST - Duration::from_secs(1), START + WAIT_AT_MOST);
        assert_eq!(rotation.poll(&identity, late), Do::Wait, "no relay knows it");
        known(&rotation, &key, "a");
        assert_eq!(rotation.poll(&identity, late), Do::Wait, "nobody has used it");
        rotation.proven("a");
        assert_eq!(rotation.poll(&identity, in_time), Do::Wait);
        assert_eq!(rotation.poll(&identity, late), Do::TakeOver);
    }

    #[test]
    fn a_refused_key_is_dropped_and_a_word_about_another_key_is_not_heard() {
        let identity = identity(&[("a", true)]);
        let (rotation, key) = begun();
        rotation.refused(&PrivateKey::generate().public_key(), "no".to_owned());
        assert_eq!(rotation.poll(&identity, START), Do::Wait);
        rotation.refused(&key, "another connector has it".to_owned());
        assert_eq!(rotation.poll(&identity, START), Do::Drop("another connector has it".to_owned()));
    }

    #[test]
    fn what_is_told_of_it_holds_no_secret() {
        let (rotation, key) = begun();
        known(&rotation, &key, "a");
        let secret = rotation.next().unwrap().private_key.to_base64();
        let told = rotation.json(&["a".to_owned(), "b".to_owned()]);
        assert_eq!(told["relays"], json!({ "a": "known", "b": "not_told" }));
        assert!(!told.to_string().contains(secret.as_str()) && !format!("{rotation:?}").contains(secret.as_str()));
    }
}
