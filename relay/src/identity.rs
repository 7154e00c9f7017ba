//! The relay's own secrets, in its state directory: static key, sealing key, reset secret.
//!
//! Must never leave the host, nor be printed.

use culvert_model::key::{PrivateKey, Psk, PublicKey};
use zeroize::Zeroizing;

use crate::registry::Sealed;

/// What the relay is, to connectors and to its own registry.
pub struct Identity {
    private_key: PrivateKey,
    public_key: PublicKey,
    state_key: Zeroizing<[u8; 32]>,
    reset_secret: Zeroizing<[u8; 32]>,
}

/// What sealed bytes belong to: they open under nothing else.
#[derive(Debug, Clone, Copy)]
pub enum SealedFor<'a> {
    /// A token's bootstrap identity.
    Token(&'a PublicKey),
    /// A connector's pre-shared key.
    Connector(&'a PublicKey),
}

/// The sealed bytes are not ours, not for this, or changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a sealed key cannot be opened: the registry and the state directory do not belong together")]
pub struct Unsealable;

impl Identity {
    /// The static private key, for the engine.
    pub fn private_key(&self) -> &PrivateKey {
        &self.private_key
    }

    /// The static public key, as tokens name it.
    pub fn public_key(&self) -> PublicKey {
        self.public_key
    }

    /// The secret from which connection ids and reset tokens are made (wire.md §2).
    pub fn reset_secret(&self) -> &[u8; 32] {
        &self.reset_secret
    }

    /// Which relay this is among those that share a registry: stays when the static key is rotated. No secret.
    pub fn relay_tag(&self) -> String {
        todo!()
    }

    /// Seals a pre-shared key for the registry.
    pub fn seal(&self, psk: &Psk, of: SealedFor<'_>) -> Sealed {
        todo!()
    }

    /// Opens what [`Identity::seal`] made.
    ///
    /// # Errors
    /// [`Unsealable`].
    pub fn unseal(&self, sealed: &Sealed, of: SealedFor<'_>) -> Result<Psk, Unsealable> {
        todo!()
    }
}
