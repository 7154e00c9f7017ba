//! A connector's next key: from the moment it is made until it takes the place of the one before it.
//!
//! On disk every step can be cut short: `next/started.json` comes last when the key is made, each relay's answer is a
//! file of its own, and `next/joined.json` is the point from which the change is only ever completed.
//! Must never leave a connector without a key that some relay of its own knows.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, SystemTime};

use culvert_model::id::ConnectorId;
use culvert_model::key::{PrivateKey, Psk, PublicKey};
use culvert_ops::state::StateDir;
use serde::{Deserialize, Serialize};

use super::files::{JOINED, NEXT, PRIVATE, epochs_name, promote, read_key, write_joined, write_line, write_psks};
use super::{Identity, IdentityError, Joined, Store};
use crate::psks::Psks;

const STARTED: &str = "next/started.json";

/// A key that relays are being told of.
#[derive(Debug, Clone)]
pub struct Next {
    /// The key.
    pub private_key: PrivateKey,
    /// When it was made.
    pub started: SystemTime,
    /// Its pre-shared keys with the relays that know it.
    pub psks: BTreeMap<String, Psks>,
}

/// Whose next key it is, and since when.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Started {
    id: ConnectorId,
    seconds: u64,
}

impl Next {
    /// The public half.
    pub fn public_key(&self) -> PublicKey {
        self.private_key.public_key()
    }
}

impl Store {
    /// The next key, if one was made and has not taken over yet.
    ///
    /// # Errors
    /// [`IdentityError`]
    pub fn next_key(&self, joined: &Joined) -> Result<Option<Next>, IdentityError> {
        let Self::Directory(state) = self else { return Ok(None) };
        let Some(text) = state.read(STARTED)? else { return Ok(None) };
        let started: Started = serde_json::from_slice(&text).map_err(|_| IdentityError::Damaged(STARTED.to_owned()))?;
        let key = read_key(state, &format!("{NEXT}/{PRIVATE}"))?;
        let Some(private_key) = key.filter(|_| started.id == joined.id) else { return Ok(None) };
        let mut psks = BTreeMap::new();
        for relay in &joined.relays {
            let name = format!("{NEXT}/{}", epochs_name(&relay.name));
            if let Some(text) = state.read_text(&name)? {
                psks.insert(relay.name.clone(), Psks::read(&text).ok_or(IdentityError::Damaged(name))?);
            }
        }
        let started = SystemTime::UNIX_EPOCH + Duration::from_secs(started.seconds);
        Ok(Some(Next { private_key, started, psks }))
    }

    /// Makes a next key and writes it before any relay hears of it; the one that is there already, if there is one.
    ///
    /// # Errors
    /// [`IdentityError`]
    pub fn make_next(&self, joined: &Joined, now: SystemTime) -> Result<Next, IdentityError> {
        if let Some(next) = self.next_key(joined)? {
            return Ok(next);
        }
        let next = Next { private_key: PrivateKey::generate(), started: now, psks: BTreeMap::new() };
        if let Self::Directory(state) = self {
            discard(state);
            state.create_dir(NEXT)?;
            write_line(state, &format!("{NEXT}/{PRIVATE}"), &next.private_key.to_base64())?;
            let seconds = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
            let started = Started { id: joined.id.clone(), seconds };
            let text = serde_json::to_string(&started).map_err(|_| IdentityError::Damaged(STARTED.to_owned()))?;
            write_line(state, STARTED, &text)?;
        }
        Ok(next)
    }

    /// Keeps a relay's answer: it knows the next key, under this pre-shared key. Neither end uses it before.
    ///
    /// # Errors
    /// [`IdentityError`]
    pub fn next_known(
        &self,
        next: &mut Next,
        relay: &str,
        psk: Psk,
        epoch: u32,
        now: SystemTime,
    ) -> Result<(), IdentityError> {
        let known = next.psks.get(relay).and_then(|known| known.with_next(epoch, psk.clone(), now).ok());
        let psks = known.unwrap_or_else(|| Psks::new(epoch, psk, now));
        if let Self::Directory(state) = self {
            write_psks(state, NEXT, relay, &psks)?;
        }
        next.psks.insert(relay.to_owned(), psks);
        Ok(())
    }

    /// Makes the next key this connector's own. Relays that do not know it have to be joined again.
    ///
    /// # Errors
    /// [`IdentityError`]: the key before stands then, or the next start completes the change.
    pub fn take_over(&self, identity: &mut Identity, next: &Next) -> Result<(), IdentityError> {
        let mut joined = identity.joined.clone();
        let seconds = next.started.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        joined.rekeyed_seconds = Some(seconds);
        for relay in &mut joined.relays {
            relay.psk_epoch = next.psks.get(&relay.name).and_then(Psks::newest);
        }
        let mut psks = BTreeMap::new();
        for (relay, new) in &next.psks {
            let safe_since = identity.psks.get(relay).and_then(|old| old.since(None).0);
            psks.insert(relay.clone(), new.clone().safe_since(safe_since));
        }
        if let Self::Directory(state) = self {
            for (relay, psks) in &psks {
                write_psks(state, NEXT, relay, psks)?;
            }
            write_joined(state, &format!("{NEXT}/{JOINED}"), &joined)?;
            promote(state, NEXT)?;
        }
        *identity = Identity { private_key: next.private_key.clone(), joined, psks };
        Ok(())
    }

    /// Drops the next key: a relay does not take it.
    pub fn drop_next(&self) {
        if let Self::Directory(state) = self {
            discard(state);
        }
    }
}

/// The mark goes first: a key without it is nobody's.
fn discard(state: &StateDir) {
    let _ = state.remove(STARTED);
    let _ = fs::remove_dir_all(state.path().join(NEXT));
}

#[cfg(test)]
mod tests;
