//! Pre-shared keys as they are renewed: kept on disk before either end uses them (wire.md §3).
//!
//! Must never drop the key that a live session hangs on.

use std::time::SystemTime;

use culvert_model::key::Psk;

use super::files::{PRESHARED, write_line, write_psks};
use super::{Identity, IdentityError, Store};
use crate::psks::{Gap, Psks};

impl Store {
    /// Keeps the next pre-shared key with a relay beside the one before it; neither end uses it before.
    ///
    /// # Errors
    /// [`IdentityError`]: those before stand then.
    pub fn renewed(
        &self,
        identity: &mut Identity,
        relay: &str,
        psk: Psk,
        epoch: u32,
        now: SystemTime,
    ) -> Result<(), IdentityError> {
        let known = identity.psks.get(relay).ok_or(Gap(epoch))?;
        let psks = known.with_next(epoch, psk, now)?;
        self.keep(identity, relay, psks)
    }

    /// Notes a handshake under an epoch, if it is the first.
    ///
    /// # Errors
    /// [`IdentityError`]: it is noted in memory alone.
    pub fn used(&self, identity: &mut Identity, relay: &str, epoch: u32, now: SystemTime) -> Result<(), IdentityError> {
        let Some(psks) = identity.psks.get(relay).and_then(|psks| psks.used(epoch, now)) else { return Ok(()) };
        self.keep(identity, relay, psks)
    }

    /// As [`Self::renewed`], with a relay that knew no other key than the very first.
    ///
    /// # Errors
    /// [`IdentityError`]: those before stand then.
    pub fn renewed_anew(
        &self,
        identity: &mut Identity,
        relay: &str,
        psk: Psk,
        epoch: u32,
        now: SystemTime,
    ) -> Result<(), IdentityError> {
        let psks = identity.psks.get(relay).ok_or(Gap(epoch))?.anew(epoch, psk, now);
        self.keep(identity, relay, psks)
    }

    /// Drops the pre-shared keys before an epoch.
    ///
    /// # Errors
    /// [`IdentityError`]
    pub fn forget_before(&self, identity: &mut Identity, relay: &str, epoch: u32) -> Result<(), IdentityError> {
        let Some(psks) = identity.psks.get(relay).and_then(|psks| psks.from_epoch(epoch)) else { return Ok(()) };
        self.keep(identity, relay, psks)
    }

    fn keep(&self, identity: &mut Identity, relay: &str, psks: Psks) -> Result<(), IdentityError> {
        if let Self::Directory(state) = self {
            write_psks(state, "", relay, &psks)?;
            if let ([only], Some(key)) = (identity.joined.relays.as_slice(), psks.newest_key())
                && only.name == relay
            {
                write_line(state, PRESHARED, &key.to_base64())?;
            }
        }
        identity.psks.insert(relay.to_owned(), psks);
        Ok(())
    }
}
