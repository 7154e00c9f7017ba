//! A relay's static key that is rotated: the newest, and the one before it while that is answered.
//!
//! Must never forget a key that the relay may still be the only one to have.

use std::time::{Duration, SystemTime};

use culvert_model::key::PublicKey;
use serde::{Deserialize, Serialize};

use super::{Identity, IdentityError, JOINED, Joined, Relay, Store, write_joined};

/// The key of a relay before its newest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Former {
    /// The key.
    pub public_key: PublicKey,
    /// Until when the relay answers to it: seconds since 1970.
    pub until_seconds: u64,
}

impl Former {
    /// When it is of no use any more.
    pub fn until(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(self.until_seconds)).unwrap_or(SystemTime::UNIX_EPOCH)
    }
}

impl Store {
    /// Notes a relay's newest key, before it is used; the one before it is kept beside it. False when it is known.
    ///
    /// # Errors
    /// [`IdentityError`]: nothing is noted then.
    pub fn relay_rotated(
        &self,
        identity: &mut Identity,
        relay: &str,
        newest: PublicKey,
        until: SystemTime,
    ) -> Result<bool, IdentityError> {
        let until_seconds = until.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        self.change(identity, relay, |relay| {
            if relay.public_key == newest {
                return false;
            }
            let public_key = std::mem::replace(&mut relay.public_key, newest);
            relay.former = Some(Former { public_key, until_seconds });
            true
        })
    }

    /// Forgets the key of a relay before its newest.
    ///
    /// # Errors
    /// [`IdentityError`]
    pub fn former_forgotten(&self, identity: &mut Identity, relay: &str) -> Result<bool, IdentityError> {
        self.change(identity, relay, |relay| relay.former.take().is_some())
    }

    fn change(
        &self,
        identity: &mut Identity,
        relay: &str,
        change: impl FnOnce(&mut Relay) -> bool,
    ) -> Result<bool, IdentityError> {
        let mut joined: Joined = identity.joined.clone();
        let Some(known) = joined.relays.iter_mut().find(|known| known.name == relay) else { return Ok(false) };
        if !change(known) {
            return Ok(false);
        }
        if let Self::Directory(state) = self {
            write_joined(state, JOINED, &joined)?;
        }
        identity.joined = joined;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use culvert_model::id::ConnectorId;
    use culvert_model::key::PrivateKey;
    use culvert_model::token::{RelayRef, Token};
    use culvert_ops::state::StateDir;

    use super::*;
    use crate::identity::{Admission, relays_of};

    #[test]
    fn a_relays_new_key_is_stored_beside_the_one_before_until_that_is_over() {
        let store = Store::Directory(StateDir::temporary().unwrap());
        let [old, new] = [1, 2].map(|n| PrivateKey::from_bytes([n; 32]).public_key());
        let token = Token::generate(vec![RelayRef { endpoint: "a.example:1".parse().unwrap(), public_key: old }]);
        let relays = relays_of(token.relays());
        let admission = Admission {
            id: ConnectorId::new(),
            inner_address: "fd43:554c:5645::9".parse().unwrap(),
            tunnel: "dc1".parse().unwrap(),
            relay: "a.example".to_owned(),
            psk: culvert_model::key::Psk::generate(),
            psk_epoch: 1,
        };
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let candidate = store.candidate("x").unwrap();
        let mut identity = store.join(&candidate, relays, admission, now).unwrap();
        assert!(store.relay_rotated(&mut identity, "a.example", new, now).unwrap());
        assert!(!store.relay_rotated(&mut identity, "a.example", new, now).unwrap(), "known");
        assert!(!store.relay_rotated(&mut identity, "elsewhere", new, now).unwrap());
        let read = store.load().unwrap().unwrap();
        let relay = &read.joined.relays[0];
        assert_eq!((relay.public_key, relay.psk_epoch), (new, Some(1)));
        let former = relay.former.unwrap();
        assert_eq!((former.public_key, former.until()), (old, now));
        assert!(store.former_forgotten(&mut identity, "a.example").unwrap());
        let read = store.load().unwrap().unwrap();
        assert_eq!((read.joined.relays[0].public_key, read.joined.relays[0].former), (new, None));
        assert_eq!(read.psks, identity.psks);
    }
}
