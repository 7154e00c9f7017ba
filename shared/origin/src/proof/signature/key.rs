//! What HTTP messages are signed with: a secret that both ends know, or a private key.
//!
//! Must never be printed.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use culvert_model::proof::Algorithm;
use culvert_ops::secret::Secret;
use ring::hmac;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair};
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject as _;
use zeroize::Zeroizing;

/// An algorithm of RFC 9421 §3.3.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignatureAlgorithm {
    /// With a secret that both ends know.
    HmacSha256,
    /// Ed25519.
    Ed25519,
    /// ECDSA on P-256.
    EcdsaP256Sha256,
}

/// Where a key is from.
#[derive(Clone)]
pub enum KeySource {
    /// The bytes of a shared secret.
    Shared(Zeroizing<Vec<u8>>),
    /// A private key in PEM (PKCS#8).
    Pem(Secret),
    /// One of the connector's own, which it makes and rotates.
    Own,
}

/// The secret cannot be used as a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadKey {
    /// Not what `encoding` says.
    #[error("holds no base64, which `encoding` says it does")]
    Base64,
    /// Guessable.
    #[error("is shorter than 16 bytes, which can be guessed. Make one with: openssl rand -base64 32")]
    Short,
    /// No key of this kind.
    #[error("holds no PKCS#8 private key of this algorithm in PEM. Make one with: openssl genpkey -algorithm {0}")]
    Pem(&'static str),
}

/// A key that is ready to sign.
pub(super) enum Key {
    Hmac(hmac::Key),
    Ed25519(Ed25519KeyPair),
    Ecdsa(EcdsaKeyPair),
    Own(Algorithm),
}

impl SignatureAlgorithm {
    /// As it is registered.
    pub const fn name(self) -> &'static str {
        match self {
            Self::HmacSha256 => "hmac-sha256",
            Self::Ed25519 => "ed25519",
            Self::EcdsaP256Sha256 => "ecdsa-p256-sha256",
        }
    }

    /// The one of this name.
    pub fn named(name: &str) -> Option<Self> {
        [Self::HmacSha256, Self::Ed25519, Self::EcdsaP256Sha256].into_iter().find(|one| one.name() == name)
    }
}

impl KeySource {
    /// A shared secret, as text or in base64.
    ///
    /// # Errors
    /// [`BadKey`]
    pub fn shared(secret: &Secret, is_base64: bool) -> Result<Self, BadKey> {
        let text = secret.expose();
        let bytes = match is_base64 {
            true => STANDARD.decode(text).map_err(|_| BadKey::Base64)?,
            false => text.as_bytes().to_vec(),
        };
        let bytes = Zeroizing::new(bytes);
        if bytes.len() < 16 { Err(BadKey::Short) } else { Ok(Self::Shared(bytes)) }
    }
}

impl Key {
    /// # Errors
    /// [`BadKey`]
    pub(super) fn of(algorithm: SignatureAlgorithm, source: &KeySource) -> Result<Self, BadKey> {
        let hint =
            if algorithm == SignatureAlgorithm::Ed25519 { "ed25519" } else { "EC -pkeyopt ec_paramgen_curve:P-256" };
        let bad = BadKey::Pem(hint);
        match (algorithm, source) {
            (SignatureAlgorithm::HmacSha256, KeySource::Shared(secret)) => {
                Ok(Self::Hmac(hmac::Key::new(hmac::HMAC_SHA256, secret)))
            }
            (SignatureAlgorithm::Ed25519, KeySource::Own) => Ok(Self::Own(Algorithm::EdDsa)),
            (SignatureAlgorithm::EcdsaP256Sha256, KeySource::Own) => Ok(Self::Own(Algorithm::Es256)),
            (SignatureAlgorithm::Ed25519, KeySource::Pem(text)) => {
                let der = PrivatePkcs8KeyDer::from_pem_slice(text.expose().as_bytes()).map_err(|_| bad)?;
                // What openssl writes holds no public half that could be checked.
                Ed25519KeyPair::from_pkcs8_maybe_unchecked(der.secret_pkcs8_der()).map(Self::Ed25519).map_err(|_| bad)
            }
            (SignatureAlgorithm::EcdsaP256Sha256, KeySource::Pem(text)) => {
                let der = PrivatePkcs8KeyDer::from_pem_slice(text.expose().as_bytes()).map_err(|_| bad)?;
                let random = SystemRandom::new();
                let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der.secret_pkcs8_der(), &random);
                pair.map(Self::Ecdsa).map_err(|_| bad)
            }
            (SignatureAlgorithm::HmacSha256, KeySource::Pem(_) | KeySource::Own) | (_, KeySource::Shared(_)) => {
                Err(bad)
            }
        }
    }
}

impl PartialEq for KeySource {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Shared(one), Self::Shared(other)) => one == other,
            (Self::Pem(one), Self::Pem(other)) => one.expose() == other.expose(),
            (Self::Own, Self::Own) => true,
            (Self::Shared(_) | Self::Pem(_) | Self::Own, _) => false,
        }
    }
}

impl fmt::Debug for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Shared(_) => "Shared",
            Self::Pem(_) => "Pem",
            Self::Own => "Own",
        })
    }
}
