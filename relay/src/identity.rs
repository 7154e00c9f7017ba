//! The relay's own secrets, in its state directory: static key, sealing key, reset secret.
//!
//! Must never leave the host, nor be printed; never be made anew beside a registry that needs the old ones.

use std::fmt;
use std::sync::Arc;

use chacha20poly1305::aead::{Aead as _, KeyInit as _, Payload};
use chacha20poly1305::{Key, XChaCha20Poly1305, XNonce};
use culvert_model::kem::{self, BadKem, KemKey};
use culvert_model::key::{BadKey, PrivateKey, Psk, PublicKey, random};
use culvert_ops::exit::Quit;
use culvert_ops::state::{StateDir, StateError};
use sha2::{Digest as _, Sha256, Sha512};
use zeroize::Zeroizing;

use crate::registry::{Registry, Sealed, Url};
use crate::rotation::Rotation;

/// The static private key, as `wg` writes it.
pub(crate) const PRIVATE_KEY: &str = "private.key";
/// The key that seals pre-shared keys in the registry, written alike.
pub(crate) const STATE_KEY: &str = "state.key";
/// What connection ids and reset tokens are made from, written alike.
pub(crate) const RESET_KEY: &str = "reset.key";

const NONCE_BYTES: usize = 24;
/// Nonce, key and tag.
const SEALED_BYTES: usize = NONCE_BYTES + 32 + 16;

/// What the relay is, to connectors and to its own registry.
pub(crate) struct Identity {
    rotation: Rotation,
    state_key: PrivateKey,
    reset_secret: PrivateKey,
}

/// What sealed bytes belong to: they open under nothing else.
#[derive(Debug, Clone, Copy)]
pub(crate) enum SealedFor<'a> {
    /// A token's bootstrap identity.
    Token(&'a PublicKey),
    /// A connector's pre-shared key.
    Connector(&'a PublicKey),
    /// A stock peer's pre-shared key.
    Peer(&'a PublicKey),
}

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IdentityError {
    /// A file cannot be read or written.
    #[error(transparent)]
    State(#[from] StateError),
    /// A file holds no key.
    #[error("{file} in {directory}: {source}")]
    Malformed {
        /// Which file.
        file: &'static str,
        /// Where.
        directory: String,
        /// What is wrong.
        source: BadKey,
    },
    /// A file is gone that the registry depends on.
    #[error("{file} is missing in {directory}, and the registry there was made with it")]
    Lost {
        /// Which file.
        file: &'static str,
        /// Where.
        directory: String,
    },
}

/// Opens what a state directory holds, the directory's lock being held: the relay's secrets, then its registry.
///
/// # Errors
/// What is wrong with either.
pub(crate) fn open_state(state: &StateDir, registry: &Url) -> Result<(Identity, Arc<dyn Registry>), Quit> {
    let identity = Identity::open(state, registry.is_new(state))?;
    Ok((identity, registry.open(state)?))
}

/// The sealed bytes are not ours, not for this, or changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a sealed key cannot be opened: the registry and the state directory do not belong together")]
pub(crate) struct Unsealable;

impl Identity {
    /// Reads the relay's secrets, and makes those that are missing if `registry_is_new`.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub(crate) fn open(state: &StateDir, registry_is_new: bool) -> Result<Self, IdentityError> {
        let reset_secret = read_or_make(state, RESET_KEY, true)?;
        let state_key = read_or_make(state, STATE_KEY, registry_is_new)?;
        let private_key = read_or_make(state, PRIVATE_KEY, registry_is_new)?;
        let rotation = Rotation::open(state, private_key)?;
        Ok(Self { rotation, state_key, reset_secret })
    }

    /// The newest static private key, for the engine.
    pub(crate) fn private_key(&self) -> PrivateKey {
        self.rotation.newest()
    }

    /// The newest static public key, as tokens name it.
    pub(crate) fn public_key(&self) -> PublicKey {
        self.rotation.public_key()
    }

    /// The static keys: the newest, and the one before it in the grace of a rotation.
    pub(crate) fn rotation(&self) -> &Rotation {
        &self.rotation
    }

    /// The secret from which connection ids and reset tokens are made (wire.md §2).
    pub(crate) fn reset_secret(&self) -> &[u8; 32] {
        self.reset_secret.as_bytes()
    }

    /// Which relay this is among those that share a registry: stays when the static key is rotated. No secret.
    pub(crate) fn relay_tag(&self) -> String {
        relay_tag(&self.state_key)
    }

    /// Seals a pre-shared key for the registry: 24 random bytes of nonce, ciphertext, tag (XChaCha20-Poly1305).
    ///
    /// # Panics
    /// When the system has no random source.
    pub(crate) fn seal(&self, psk: &Psk, of: SealedFor<'_>) -> Sealed {
        Sealed(seal_with(&self.cipher(), psk, of))
    }

    /// Opens what [`Identity::seal`] made here, or [`seal_for`] at another relay for this one.
    ///
    /// # Errors
    /// [`Unsealable`].
    pub(crate) fn unseal(&self, sealed: &Sealed, of: SealedFor<'_>) -> Result<Psk, Unsealable> {
        let (cipher, sealed) = match sealed.0.split_at_checked(SEALED_BYTES) {
            Some((sealed, wrapped)) if !wrapped.is_empty() => {
                let key = self.kem_key().decapsulate(wrapped, of.key(), of.key()).map_err(|_| Unsealable)?;
                (cipher(key.as_bytes()), sealed)
            }
            _ => (self.cipher(), sealed.0.as_slice()),
        };
        let (nonce, ciphertext) = sealed.split_first_chunk::<NONCE_BYTES>().ok_or(Unsealable)?;
        let payload = Payload { msg: ciphertext, aad: &of.context() };
        let opened = cipher.decrypt(XNonce::from_slice(nonce), payload).map_err(|_| Unsealable)?;
        let opened = Zeroizing::new(opened);
        <[u8; 32]>::try_from(opened.as_slice()).map(Psk::from_bytes).map_err(|_| Unsealable)
    }

    /// What other relays of the same registry seal keys for this one with: ML-KEM-768, so that a copy of the database
    /// stays worth nothing to whoever has a quantum computer later.
    pub(crate) fn encapsulation_key(&self) -> Vec<u8> {
        self.kem_key().encapsulation_key()
    }

    fn kem_key(&self) -> KemKey {
        let seed =
            Sha512::new().chain_update(b"culvert relay kem v1").chain_update(self.state_key.as_bytes()).finalize();
        KemKey::from_seed(seed.into())
    }

    fn cipher(&self) -> XChaCha20Poly1305 {
        cipher(self.state_key.as_bytes())
    }
}

/// Seals a pre-shared key for another relay of the same registry, whose [`Identity::encapsulation_key`] this is: what
/// [`Identity::seal`] makes, under a fresh key, and behind it the ML-KEM ciphertext that gives that key.
///
/// # Errors
/// [`BadKem`] when that is no such key.
///
/// # Panics
/// When the system has no random source.
pub(crate) fn seal_for(encapsulation_key: &[u8], psk: &Psk, of: SealedFor<'_>) -> Result<Sealed, BadKem> {
    let (wrapped, key) = kem::encapsulate(encapsulation_key, of.key(), of.key())?;
    let mut sealed = seal_with(&cipher(key.as_bytes()), psk, of);
    sealed.extend_from_slice(&wrapped);
    Ok(Sealed(sealed))
}

fn cipher(key: &[u8; 32]) -> XChaCha20Poly1305 {
    XChaCha20Poly1305::new(Key::from_slice(key))
}

/// [`SEALED_BYTES`] of them.
fn seal_with(cipher: &XChaCha20Poly1305, psk: &Psk, of: SealedFor<'_>) -> Vec<u8> {
    let nonce = random::<NONCE_BYTES>();
    let sealed = cipher
        .encrypt(XNonce::from_slice(&nonce), Payload { msg: psk.as_bytes(), aad: &of.context() })
        .expect("32 bytes are fewer than the cipher's limit of 2^38");
    [nonce.as_slice(), &sealed].concat()
}

/// [`Identity::relay_tag`] of the relay whose sealing key this is.
pub(crate) fn relay_tag(state_key: &PrivateKey) -> String {
    let digest = Sha256::new().chain_update(b"culvert relay tag v1").chain_update(state_key.as_bytes()).finalize();
    digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identity")
    }
}

impl SealedFor<'_> {
    fn key(&self) -> &PublicKey {
        match self {
            Self::Token(key) | Self::Connector(key) | Self::Peer(key) => key,
        }
    }

    /// Bound into the tag, so that a row's key cannot be moved to another row.
    fn context(self) -> Vec<u8> {
        match self {
            Self::Token(key) => [b"culvert token psk".as_slice(), key.as_bytes()].concat(),
            Self::Connector(key) => [b"culvert connector psk".as_slice(), key.as_bytes()].concat(),
            Self::Peer(key) => [b"culvert peer psk".as_slice(), key.as_bytes()].concat(),
        }
    }
}

impl From<IdentityError> for Quit {
    fn from(error: IdentityError) -> Self {
        let text = error.to_string();
        match error {
            IdentityError::State(error) => error.into(),
            IdentityError::Malformed { .. } => Self::config(text).hint("restore the file from a backup"),
            IdentityError::Lost { directory, .. } => Self::config(text).hint(format!(
                "restore the file from a backup; or, to start anew and join every connector again, empty {directory}"
            )),
        }
    }
}

/// Every secret is 32 bytes and written like a private key, so that it is wiped like one too.
fn read_or_make(state: &StateDir, file: &'static str, make: bool) -> Result<PrivateKey, IdentityError> {
    let directory = || state.path().display().to_string();
    if let Some(text) = state.read_text(file)? {
        return text.parse().map_err(|source| IdentityError::Malformed { file, directory: directory(), source });
    }
    if !make {
        return Err(IdentityError::Lost { file, directory: directory() });
    }
    let key = PrivateKey::generate();
    let line = Zeroizing::new(format!("{}\n", *key.to_base64()));
    state.write(file, line.as_bytes())?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use culvert_model::kem::CIPHERTEXT_BYTES;

    use super::*;

    #[test]
    fn an_identity_stays_the_same() {
        let state = StateDir::temporary().unwrap();
        let first = Identity::open(&state, true).unwrap();
        let again = Identity::open(&state, false).unwrap();
        assert_eq!(first.public_key(), again.public_key());
        assert_eq!(first.relay_tag(), again.relay_tag());
        assert_eq!(first.reset_secret(), again.reset_secret());
        assert_ne!(first.reset_secret(), first.private_key().as_bytes());
    }

    #[test]
    fn a_key_that_the_registry_needs_is_not_made_anew() {
        let state = StateDir::temporary().unwrap();
        Identity::open(&state, true).unwrap();
        for file in [PRIVATE_KEY, STATE_KEY] {
            let kept = state.read(file).unwrap().unwrap();
            state.remove(file).unwrap();
            let error = Identity::open(&state, false).unwrap_err();
            assert!(matches!(error, IdentityError::Lost { file: lost, .. } if lost == file), "{error}");
            state.write(file, &kept).unwrap();
        }
    }

    #[test]
    fn a_sealed_key_opens_here_for_its_row_and_nowhere_else() {
        let (mine, other) = (identity(), identity());
        let (row, psk) = (PrivateKey::generate().public_key(), Psk::generate());
        let sealed = mine.seal(&psk, SealedFor::Token(&row));
        assert_eq!(mine.unseal(&sealed, SealedFor::Token(&row)), Ok(psk.clone()));
        assert_eq!(mine.unseal(&sealed, SealedFor::Connector(&row)), Err(Unsealable));
        assert_eq!(mine.unseal(&sealed, SealedFor::Token(&mine.public_key())), Err(Unsealable));
        assert_eq!(other.unseal(&sealed, SealedFor::Token(&row)), Err(Unsealable));
        assert_eq!(mine.unseal(&Sealed(vec![0; 7]), SealedFor::Token(&row)), Err(Unsealable));
        assert_ne!(mine.seal(&psk, SealedFor::Token(&row)), sealed, "a nonce is used once");
        assert!(!sealed.0.windows(32).any(|window| window == psk.as_bytes()));
    }

    #[test]
    fn what_is_sealed_for_another_relay_opens_there_for_its_row_and_nowhere_else() {
        let (mine, other) = (identity(), identity());
        let (row, psk) = (PrivateKey::generate().public_key(), Psk::generate());
        let sealed = seal_for(&other.encapsulation_key(), &psk, SealedFor::Token(&row)).unwrap();
        assert_eq!(sealed.0.len(), SEALED_BYTES + CIPHERTEXT_BYTES);
        assert_eq!(other.unseal(&sealed, SealedFor::Token(&row)), Ok(psk.clone()));
        assert_eq!(other.unseal(&sealed, SealedFor::Connector(&row)), Err(Unsealable));
        assert_eq!(other.unseal(&sealed, SealedFor::Token(&mine.public_key())), Err(Unsealable));
        assert_eq!(mine.unseal(&sealed, SealedFor::Token(&row)), Err(Unsealable));
        let cut = Sealed(sealed.0[..sealed.0.len() - 1].to_vec());
        assert_eq!(other.unseal(&cut, SealedFor::Token(&row)), Err(Unsealable));
        assert!(!sealed.0.windows(32).any(|window| window == psk.as_bytes()));
        assert!(seal_for(&[0; 3], &psk, SealedFor::Token(&row)).is_err());
    }

    #[test]
    fn an_identity_prints_its_type_name_alone() {
        assert_eq!(format!("{:?}", identity()), "Identity");
    }

    fn identity() -> Identity {
        Identity::open(&StateDir::temporary().unwrap(), true).unwrap()
    }
}
