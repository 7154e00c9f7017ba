//! The relay's own static keys: the newest, and for a while after a rotation the one before it (wire.md §3).
//!
//! The older one stands in a file of its own, with its end, so that a restart in the middle of the grace changes nothing;
//! when the grace is over the file goes. Must never answer for a key past its end, nor print one.

use std::collections::HashSet;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use culvert_model::id::ConnectorId;
use culvert_model::key::{PrivateKey, PublicKey};
use culvert_ops::state::{StateDir, StateError};
use culvert_ops::time::{parse_rfc3339, rfc3339};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::identity::PRIVATE_KEY;

/// The key before the newest, as `wg` writes it, and on a second line until when it is answered.
pub(crate) const PREVIOUS_KEY: &str = "previous.key";
/// Who has confirmed the newest key while the one before it is answered. Public keys and ids alone.
pub(crate) const ROTATION: &str = "rotation.json";

/// The relay's static keys.
pub(crate) struct Rotation {
    state: StateDir,
    keys: Mutex<Keys>,
}

struct Keys {
    newest: PrivateKey,
    public_key: PublicKey,
    previous: Option<Previous>,
    confirmed: HashSet<ConnectorId>,
    /// What is confirmed and not yet written.
    unsaved: bool,
}

/// The key before the newest.
#[derive(Clone)]
pub(crate) struct Previous {
    pub(crate) private_key: PrivateKey,
    pub(crate) public_key: PublicKey,
    /// When it is answered no longer.
    pub(crate) until: SystemTime,
}

/// A key whose grace is over.
#[derive(Debug)]
pub(crate) struct Retired {
    pub(crate) public_key: PublicKey,
    /// Who has used the newest one by then.
    pub(crate) confirmed: HashSet<ConnectorId>,
}

/// What of a rotation is no secret, as it is kept on disk.
#[derive(Serialize, Deserialize)]
struct Record {
    public_key: PublicKey,
    confirmed: HashSet<ConnectorId>,
}

impl Rotation {
    /// Reads what a rotation left beside the newest key.
    ///
    /// # Errors
    /// The directory's. A file that makes no sense is as good as none: connectors of the older key join anew.
    pub(crate) fn open(state: &StateDir, newest: PrivateKey) -> Result<Self, StateError> {
        let public_key = newest.public_key();
        let previous = state.read_text(PREVIOUS_KEY)?.and_then(|text| Previous::read(&text));
        // Cut short between the two files: nothing was rotated.
        let previous = previous.filter(|previous| previous.public_key != public_key);
        let record = match &previous {
            Some(_) => state.read(ROTATION)?.and_then(|bytes| serde_json::from_slice::<Record>(&bytes).ok()),
            None => None,
        };
        let confirmed = record.filter(|record| record.public_key == public_key);
        let confirmed = confirmed.map(|record| record.confirmed).unwrap_or_default();
        let keys = Keys { newest, public_key, previous, confirmed, unsaved: false };
        Ok(Self { state: state.clone(), keys: Mutex::new(keys) })
    }

    /// The newest private key.
    pub(crate) fn newest(&self) -> PrivateKey {
        self.keys().newest.clone()
    }

    /// The newest public key.
    pub(crate) fn public_key(&self) -> PublicKey {
        self.keys().public_key
    }

    /// The key before it, while that is answered.
    pub(crate) fn previous(&self, now: SystemTime) -> Option<Previous> {
        self.keys().previous.clone().filter(|previous| now < previous.until)
    }

    /// Makes a new key and keeps the one before it for `grace`; any before that one is gone.
    ///
    /// # Errors
    /// The directory's: nothing has changed then.
    pub(crate) fn rotate(&self, grace: Duration, now: SystemTime) -> Result<(), StateError> {
        let mut keys = self.keys();
        let newest = PrivateKey::generate();
        let until = now.checked_add(grace).unwrap_or(now);
        let previous = Previous { private_key: keys.newest.clone(), public_key: keys.public_key, until };
        let line = Zeroizing::new(format!("{}\n", *newest.to_base64()));
        let before = Zeroizing::new(format!("{}\nuntil {}\n", *previous.private_key.to_base64(), rfc3339(until)));
        let older = self.state.read(PREVIOUS_KEY)?;
        // The old one is safe before the new one takes its place.
        self.state.write(PREVIOUS_KEY, before.as_bytes())?;
        if let Err(error) = self.state.write(PRIVATE_KEY, line.as_bytes()) {
            let _ = match older {
                Some(older) => self.state.write(PREVIOUS_KEY, &older),
                None => self.state.remove(PREVIOUS_KEY),
            };
            return Err(error);
        }
        let public_key = newest.public_key();
        *keys = Keys { newest, public_key, previous: Some(previous), confirmed: HashSet::new(), unsaved: true };
        Ok(())
    }

    /// Whether the time of the key before the newest is over, and [`Rotation::retire`] has something to do.
    pub(crate) fn is_over(&self, now: SystemTime) -> bool {
        self.keys().previous.as_ref().is_some_and(|previous| previous.until <= now)
    }

    /// Drops the key before the newest if its time is over. Waits for the disk.
    ///
    /// # Errors
    /// The directory's. The key is not answered any more, its file stays until the next try.
    pub(crate) fn retire(&self, now: SystemTime) -> Result<Option<Retired>, StateError> {
        let mut keys = self.keys();
        let Some(previous) = keys.previous.take_if(|previous| previous.until <= now) else { return Ok(None) };
        let removed = self.state.remove(PREVIOUS_KEY).and_then(|()| self.state.remove(ROTATION));
        if let Err(error) = removed {
            keys.previous = Some(previous);
            return Err(error);
        }
        Ok(Some(Retired { public_key: previous.public_key, confirmed: std::mem::take(&mut keys.confirmed) }))
    }

    /// Notes under which key a connector has shaken hands.
    pub(crate) fn note(&self, connector: &ConnectorId, key: &PublicKey) {
        let mut keys = self.keys();
        if keys.previous.is_none() {
            return;
        }
        let changed = if *key == keys.public_key {
            keys.confirmed.insert(connector.clone())
        } else {
            keys.confirmed.remove(connector)
        };
        keys.unsaved |= changed;
    }

    /// Whether a connector has never, or not since, used the newest key while there are two.
    pub(crate) fn uses_previous(&self, connector: &ConnectorId, now: SystemTime) -> bool {
        let keys = self.keys();
        let answered = keys.previous.as_ref().is_some_and(|previous| now < previous.until);
        answered && !keys.confirmed.contains(connector)
    }

    /// Whether [`Rotation::save`] has something to write.
    pub(crate) fn is_unsaved(&self) -> bool {
        self.keys().unsaved
    }

    /// Writes who has confirmed the newest key. Waits for the disk.
    ///
    /// # Errors
    /// The directory's.
    pub(crate) fn save(&self) -> Result<(), StateError> {
        let record = {
            let mut keys = self.keys();
            keys.unsaved = false;
            if keys.previous.is_none() {
                return Ok(());
            }
            Record { public_key: keys.public_key, confirmed: keys.confirmed.clone() }
        };
        let bytes = serde_json::to_vec(&record).unwrap_or_default();
        self.state.write(ROTATION, &bytes).inspect_err(|_| self.keys().unsaved = true)
    }

    fn keys(&self) -> MutexGuard<'_, Keys> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Previous {
    fn read(text: &str) -> Option<Self> {
        let (key, until) = text.trim_end().split_once('\n')?;
        let private_key: PrivateKey = key.parse().ok()?;
        let until = parse_rfc3339(until.strip_prefix("until ")?).ok()?;
        Some(Self { public_key: private_key.public_key(), private_key, until })
    }
}

impl fmt::Debug for Previous {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Previous").field("public_key", &self.public_key).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + 20_000 * DAY
    }

    fn made(state: &StateDir) -> Rotation {
        let key = PrivateKey::generate();
        state.write(PRIVATE_KEY, format!("{}\n", *key.to_base64()).as_bytes()).unwrap();
        Rotation::open(state, key).unwrap()
    }

    fn reopened(state: &StateDir) -> Rotation {
        let key = state.read_text(PRIVATE_KEY).unwrap().unwrap().parse().unwrap();
        Rotation::open(state, key).unwrap()
    }

    #[test]
    fn a_rotation_survives_a_restart_and_its_grace_ends_in_time() {
        let state = StateDir::temporary().unwrap();
        let rotation = made(&state);
        let old = rotation.public_key();
        assert!(rotation.previous(now()).is_none());
        rotation.rotate(DAY, now()).unwrap();
        assert_ne!(rotation.public_key(), old);
        let mode = std::fs::metadata(state.path().join(PREVIOUS_KEY)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);

        let again = reopened(&state);
        assert_eq!(again.public_key(), rotation.public_key());
        let previous = again.previous(now() + DAY / 2).unwrap();
        assert_eq!((previous.public_key, previous.private_key.public_key(), previous.until), (old, old, now() + DAY));
        assert!(again.retire(now() + DAY / 2).unwrap().is_none());
        assert!(again.previous(now() + DAY).is_none(), "not a moment longer");
        assert_eq!(again.retire(now() + DAY).unwrap().unwrap().public_key, old);
        assert!(state.read(PREVIOUS_KEY).unwrap().is_none() && state.read(ROTATION).unwrap().is_none());
        assert!(reopened(&state).previous(now()).is_none());
    }

    #[test]
    fn who_has_confirmed_the_newest_key_is_remembered_until_it_uses_the_older_one_again() {
        let state = StateDir::temporary().unwrap();
        let rotation = made(&state);
        let (one, other) = (ConnectorId::new(), ConnectorId::new());
        let old = rotation.public_key();
        rotation.note(&one, &old);
        assert!(!rotation.uses_previous(&one, now()), "there is one key");
        rotation.rotate(DAY, now()).unwrap();
        rotation.note(&one, &rotation.public_key());
        rotation.note(&other, &old);
        assert!(rotation.is_unsaved());
        rotation.save().unwrap();
        let again = reopened(&state);
        assert_eq!([&one, &other].map(|id| again.uses_previous(id, now())), [false, true]);
        again.note(&one, &old);
        assert!(again.uses_previous(&one, now()));
        assert!(!again.uses_previous(&one, now() + DAY));
        // Another rotation begins with nobody.
        again.note(&one, &again.public_key());
        again.rotate(DAY, now()).unwrap();
        assert!(again.uses_previous(&one, now()) && reopened(&state).uses_previous(&one, now()));
    }

    #[test]
    fn a_rotation_cut_short_before_its_new_key_is_none() {
        let state = StateDir::temporary().unwrap();
        let rotation = made(&state);
        let line = format!("{}\nuntil {}\n", *rotation.newest().to_base64(), rfc3339(now() + DAY));
        state.write(PREVIOUS_KEY, line.as_bytes()).unwrap();
        assert!(reopened(&state).previous(now()).is_none());
        state.write(PREVIOUS_KEY, b"nonsense").unwrap();
        assert!(reopened(&state).previous(now()).is_none());
    }
}
