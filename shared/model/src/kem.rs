//! ML-KEM-768 (FIPS 203), from which each connector's pre-shared key is made.

use hkdf::Hkdf;
use ml_kem::kem::{Decapsulate as _, Encapsulate as _, KeyExport as _, TryKeyInit as _};
use ml_kem::{B32, MlKem768, Seed, kem, ml_kem_768};
use sha2::Sha256;
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::key::{Psk, PublicKey, random};

/// Bytes of an encapsulation key.
pub const ENCAPSULATION_KEY_BYTES: usize = 1184;
/// Bytes of a ciphertext.
pub const CIPHERTEXT_BYTES: usize = 1088;

/// A connector's decapsulation key, kept as its 64-byte seed. Wiped on drop.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct KemKey([u8; 64]);

/// The bytes are not an encapsulation key or a ciphertext of ML-KEM-768.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an ML-KEM-768 {0}")]
pub struct BadKem(&'static str);

impl KemKey {
    /// Draws a key from the system's random source.
    pub fn generate() -> Self {
        Self(random())
    }

    /// Wraps a stored seed.
    pub const fn from_seed(seed: [u8; 64]) -> Self {
        Self(seed)
    }

    /// The seed, to be stored as secretly as a private key.
    pub const fn seed(&self) -> &[u8; 64] {
        &self.0
    }

    /// The encapsulation key to hand to the relay: 1,184 bytes.
    pub fn encapsulation_key(&self) -> Vec<u8> {
        self.decapsulation_key().encapsulation_key().to_bytes().to_vec()
    }

    /// Derives the pre-shared key from the relay's ciphertext (1,088 bytes).
    ///
    /// A forged ciphertext gives another key, not an error (FIPS 203 §6.3: implicit rejection).
    ///
    /// # Errors
    /// [`BadKem`] when the length is wrong.
    pub fn decapsulate(&self, ciphertext: &[u8], relay: &PublicKey, connector: &PublicKey) -> Result<Psk, BadKem> {
        let shared = self.decapsulation_key().decapsulate_slice(ciphertext).map_err(|_| BadKem("ciphertext"))?;
        Ok(derive(&shared, relay, connector))
    }

    fn decapsulation_key(&self) -> ml_kem_768::DecapsulationKey {
        ml_kem_768::DecapsulationKey::from_seed(Seed::from(self.0))
    }
}

impl std::fmt::Debug for KemKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KemKey")
    }
}

/// Encapsulates toward a connector's key: the ciphertext for it, and the pre-shared key.
///
/// # Errors
/// [`BadKem`] when `encapsulation_key` is malformed (FIPS 203 §7.2).
pub fn encapsulate(
    encapsulation_key: &[u8],
    relay: &PublicKey,
    connector: &PublicKey,
) -> Result<(Vec<u8>, Psk), BadKem> {
    let key = kem::EncapsulationKey::<MlKem768>::new_from_slice(encapsulation_key)
        .map_err(|_| BadKem("encapsulation key"))?;
    let (ciphertext, shared) = key.encapsulate();
    Ok((ciphertext.to_vec(), derive(&shared, relay, connector)))
}

/// Binds the shared secret to both identities, so that it is of no use between any other two.
fn derive(shared: &B32, relay: &PublicKey, connector: &PublicKey) -> Psk {
    let mut info = Vec::with_capacity(80);
    info.extend_from_slice(b"culvert psk v1");
    info.extend_from_slice(relay.as_bytes());
    info.extend_from_slice(connector.as_bytes());
    let mut psk = [0; 32];
    Hkdf::<Sha256>::new(None, shared).expand(&info, &mut psk).expect("32 bytes are fewer than 255 blocks");
    Psk::from_bytes(psk)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::PrivateKey;

    #[test]
    fn both_ends_derive_the_same_key_and_another_pair_does_not() {
        let (relay, connector) = (PrivateKey::generate().public_key(), PrivateKey::generate().public_key());
        let key = KemKey::generate();
        assert_eq!(key.encapsulation_key().len(), ENCAPSULATION_KEY_BYTES);
        let (ciphertext, psk) = encapsulate(&key.encapsulation_key(), &relay, &connector).unwrap();
        assert_eq!(ciphertext.len(), CIPHERTEXT_BYTES);
        assert_eq!(key.decapsulate(&ciphertext, &relay, &connector), Ok(psk.clone()));
        assert_ne!(key.decapsulate(&ciphertext, &connector, &relay), Ok(psk.clone()));
        assert_ne!(KemKey::generate().decapsulate(&ciphertext, &relay, &connector), Ok(psk));
    }

    #[test]
    fn malformed_bytes_are_refused() {
        let public = PrivateKey::generate().public_key();
        assert!(encapsulate(&[0; 3], &public, &public).is_err());
        assert!(encapsulate(&[0xff; ENCAPSULATION_KEY_BYTES], &public, &public).is_err());
        assert!(KemKey::generate().decapsulate(&[0; 7], &public, &public).is_err());
    }
}
