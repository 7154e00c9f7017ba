//! RSA: keys of our own, and signatures with these and with an operator's.
//!
//! ring signs, in constant time and with blinding, and looks at every key that it is given; but it makes none. The rsa crate
//! makes them. Must never use that one's own signatures.

use std::fmt;

use getrandom::SysRng;
use ring::rand::SystemRandom;
use ring::rsa::PublicKeyComponents;
use ring::signature::{RSA_PKCS1_SHA256, RSA_PSS_SHA256, RsaEncoding, RsaKeyPair};
use rsa::PrivateKey;
use rsa::pkcs8::EncodePrivateKey as _;
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject as _;
use zeroize::Zeroizing;

/// Of our own keys. Each signs for a month.
const BITS: usize = 2048;

/// How a hash becomes a number (RFC 8017 §8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Padding {
    /// RS256.
    Pkcs1,
    /// PS256.
    Pss,
}

/// An operator's key. Its `Debug` is its name.
pub(super) struct RsaKey(RsaKeyPair);

/// A new key as PKCS#8; it takes some tenths of a second.
pub(super) fn generate() -> Option<Zeroizing<Vec<u8>>> {
    let key = PrivateKey::new(&mut SysRng, BITS).ok()?;
    Some(Zeroizing::new(key.to_pkcs8_der().ok()?.as_bytes().to_vec()))
}

/// The public half, without the exponent, which is 65537.
pub(super) fn modulus(pair: &RsaKeyPair) -> Vec<u8> {
    PublicKeyComponents::<Vec<u8>>::from(pair.public()).n
}

/// Signs with SHA-256; none when the system has no randomness.
pub(super) fn sign(pair: &RsaKeyPair, padding: Padding, text: &[u8]) -> Option<Vec<u8>> {
    let encoding: &'static dyn RsaEncoding = match padding {
        Padding::Pkcs1 => &RSA_PKCS1_SHA256,
        Padding::Pss => &RSA_PSS_SHA256,
    };
    let mut signature = vec![0; pair.public().modulus_len()];
    pair.sign(encoding, &SystemRandom::new(), text, &mut signature).ok()?;
    Some(signature)
}

impl RsaKey {
    /// Reads PKCS#8 or PKCS#1 in PEM.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn from_pem(pem: &str) -> Result<Self, &'static str> {
        if pem.contains("ENCRYPTED") {
            return Err("is encrypted: keep it without a passphrase, readable to this connector alone");
        }
        let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|_| "holds no PEM private key")?;
        let pair = match &key {
            PrivateKeyDer::Pkcs8(der) => RsaKeyPair::from_pkcs8(der.secret_pkcs8_der()),
            PrivateKeyDer::Pkcs1(der) => RsaKeyPair::from_der(der.secret_pkcs1_der()),
            _ => return Err("is no RSA key: the other side takes no other"),
        };
        pair.map(Self).map_err(|_| "is no RSA key of 2048 to 4096 bits: the other side takes no other")
    }

    /// See [`sign`].
    pub(super) fn sign(&self, padding: Padding, text: &[u8]) -> Option<Vec<u8>> {
        sign(&self.0, padding, text)
    }

    /// Whether it is the key of this certificate.
    pub(super) fn is_of(&self, certificate: &[u8]) -> bool {
        // It holds the modulus once, and nothing else that is equal to it.
        let own = modulus(&self.0);
        certificate.windows(own.len()).any(|window| window == own)
    }
}

impl fmt::Debug for RsaKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RsaKey")
    }
}

/// A key of PKCS#8 as PEM.
#[cfg(test)]
pub(super) fn pem(der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN PRIVATE KEY-----\n{text}\n-----END PRIVATE KEY-----\n")
}
