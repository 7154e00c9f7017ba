//! Gateway secrets: what `gateway create` prints and a gateway sends as `Culvert-Gateway: NAME:SECRET`.
//!
//! Text form: `culvert_g1_` and unpadded base64url of 32 random bytes and the first 4 bytes of SHA-256 over them, so that
//! a mistyped secret is told apart from a wrong one without looking anything up.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::key::random;
use crate::name::Label;

/// What every gateway secret starts with, so that secret scanners find it.
pub const PREFIX: &str = "culvert_g1_";
/// The request field that carries a [`Credential`].
pub const FIELD: &str = "culvert-gateway";

const TEXT_BYTES: usize = PREFIX.len() + 48;

/// A gateway's bearer secret.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct GatewaySecret([u8; 32]);

/// Enough to know a secret's holder, not enough to be its holder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SecretVerifier {
    /// Random.
    pub salt: [u8; 16],
    /// See [`SecretVerifier::of`].
    pub digest: [u8; 32],
}

/// Who a caller says it is, and its proof.
pub struct Credential {
    /// The gateway's name.
    pub name: Label,
    /// Its secret.
    pub secret: GatewaySecret,
}

/// Why a text is no gateway secret, or no credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadSecret {
    /// Another kind of text.
    #[error("not a gateway secret: it starts with culvert_g1_")]
    NotASecret,
    /// A newer kind of secret.
    #[error("this gateway secret is of a newer kind: upgrade this relay")]
    Newer,
    /// Characters are missing or changed.
    #[error("the gateway secret is damaged: copy it again, whole")]
    Damaged,
    /// Not `NAME:SECRET`.
    #[error("NAME:SECRET is expected")]
    NotACredential,
}

impl GatewaySecret {
    /// Draws a new one: 256 bits.
    pub fn generate() -> Self {
        Self(random())
    }

    /// The text to hand over. Secret: shown once, never logged.
    pub fn to_text(&self) -> Zeroizing<String> {
        let mut bytes = Zeroizing::new([0; 36]);
        let (secret, sum) = bytes.split_at_mut(32);
        secret.copy_from_slice(&self.0);
        sum.copy_from_slice(&Sha256::digest(self.0)[..4]);
        Zeroizing::new(format!("{PREFIX}{}", *Zeroizing::new(URL_SAFE_NO_PAD.encode(bytes.as_slice()))))
    }
}

impl FromStr for GatewaySecret {
    type Err = BadSecret;

    fn from_str(text: &str) -> Result<Self, BadSecret> {
        let Some(body) = text.strip_prefix(PREFIX) else {
            return Err(if text.starts_with("culvert_g") { BadSecret::Newer } else { BadSecret::NotASecret });
        };
        if text.len() != TEXT_BYTES {
            return Err(BadSecret::Damaged);
        }
        let bytes = Zeroizing::new(URL_SAFE_NO_PAD.decode(body).map_err(|_| BadSecret::Damaged)?);
        let (secret, sum) = bytes.split_first_chunk::<32>().ok_or(BadSecret::Damaged)?;
        if Sha256::digest(secret)[..4] != *sum {
            return Err(BadSecret::Damaged);
        }
        Ok(Self(*secret))
    }
}

impl SecretVerifier {
    /// Makes the verifier of a new secret.
    pub fn new(secret: &GatewaySecret) -> Self {
        Self::of(secret, random())
    }

    /// The verifier of a secret under a salt.
    ///
    /// One SHA-256, not a slow password hash: what is hashed is 256 random bits, which nobody tries out, whatever a try
    /// costs; and the hash is made for every request. The salt keeps equal secrets of two registries apart.
    pub fn of(secret: &GatewaySecret, salt: [u8; 16]) -> Self {
        let hash = Sha256::new().chain_update(b"culvert gateway secret v1").chain_update(salt).chain_update(secret.0);
        Self { salt, digest: hash.finalize().into() }
    }

    /// Whether this is the verifier of `secret`; takes the same time for every wrong one.
    pub fn is_of(&self, secret: &GatewaySecret) -> bool {
        Self::of(secret, self.salt).digest.ct_eq(&self.digest).into()
    }
}

impl FromStr for Credential {
    type Err = BadSecret;

    fn from_str(text: &str) -> Result<Self, BadSecret> {
        let (name, secret) = text.split_once(':').ok_or(BadSecret::NotACredential)?;
        let name = name.parse().map_err(|_| BadSecret::NotACredential)?;
        Ok(Self { name, secret: secret.parse()? })
    }
}

impl fmt::Debug for GatewaySecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GatewaySecret")
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credential")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_survives_its_text_and_its_verifier_knows_it_alone() {
        let secret = GatewaySecret::generate();
        let text = secret.to_text();
        assert_eq!(text.len(), TEXT_BYTES);
        let read: GatewaySecret = text.parse().unwrap();
        let verifier = SecretVerifier::new(&secret);
        assert!(verifier.is_of(&read));
        assert!(!verifier.is_of(&GatewaySecret::generate()));
        assert_ne!(verifier, SecretVerifier::new(&secret), "a salt is used once");
        assert!(!verifier.digest.windows(8).any(|part| secret.0.windows(8).any(|own| own == part)));
    }

    #[test]
    fn every_single_changed_character_is_noticed() {
        let text = GatewaySecret::generate().to_text();
        for place in PREFIX.len()..text.len() {
            let mut bytes = text.as_bytes().to_vec();
            bytes[place] = if bytes[place] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(bytes).unwrap();
            assert_eq!(changed.parse::<GatewaySecret>().err(), Some(BadSecret::Damaged), "at {place}");
        }
        assert_eq!(text[..text.len() - 1].parse::<GatewaySecret>().err(), Some(BadSecret::Damaged));
        assert_eq!(format!("{}A", *text).parse::<GatewaySecret>().err(), Some(BadSecret::Damaged));
    }

    #[test]
    fn texts_of_other_kinds_are_told_apart() {
        let bad = |text: &str| text.parse::<Credential>().err();
        let secret = GatewaySecret::generate().to_text();
        assert_eq!(bad(&format!("kong:{}", *secret)), None);
        assert_eq!(bad(&format!("Kong:{}", *secret)), None, "names are compared in lower case");
        for text in ["", "kong", &*secret, &format!(":{}", *secret), &format!("a b:{}", *secret)] {
            assert_eq!(bad(text), Some(BadSecret::NotACredential), "{text}");
        }
        assert_eq!(bad("kong:hunter2"), Some(BadSecret::NotASecret));
        assert_eq!(bad("kong:culvert_g2_abc"), Some(BadSecret::Newer));
        assert_eq!(bad("kong:culvert_g1_"), Some(BadSecret::Damaged));
        assert_eq!(bad(&format!("kong:{} ", *secret)), Some(BadSecret::Damaged));
    }

    #[test]
    fn a_secret_prints_its_type_name_alone() {
        let secret = GatewaySecret::generate();
        let credential: Credential = format!("kong:{}", *secret.to_text()).parse().unwrap();
        assert_eq!(format!("{secret:?} {credential:?}"), "GatewaySecret Credential");
    }
}
