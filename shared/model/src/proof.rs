//! Public keys by which origins verify what a connector signs, as JSON Web Keys (RFC 7517).
//!
//! Must never hold a private part.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// What a connector signs with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Algorithm {
    /// Ed25519 (RFC 8037).
    #[serde(rename = "EdDSA")]
    EdDsa,
    /// ECDSA with P-256 and SHA-256 (RFC 7518 §3.4).
    #[serde(rename = "ES256")]
    Es256,
}

/// One public key: coordinates in base64url without padding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProofKey {
    /// What it verifies.
    pub alg: Algorithm,
    /// The key, or its first coordinate.
    pub x: String,
    /// The second coordinate, on P-256.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub y: Option<String>,
}

impl Algorithm {
    /// As `alg` in a token's head.
    pub const fn name(self) -> &'static str {
        match self {
            Self::EdDsa => "EdDSA",
            Self::Es256 => "ES256",
        }
    }
}

impl ProofKey {
    /// From the bytes of a public key: 32 of Ed25519, or an uncompressed point on P-256.
    pub fn new(alg: Algorithm, bytes: &[u8]) -> Option<Self> {
        let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        match (alg, bytes.len(), bytes.split_first()) {
            (Algorithm::EdDsa, 32, _) => Some(Self { alg, x: text(bytes), y: None }),
            (Algorithm::Es256, 65, Some((4, point))) => {
                let (x, y) = point.split_at_checked(32)?;
                Some(Self { alg, x: text(x), y: Some(text(y)) })
            }
            _ => None,
        }
    }

    /// Whether it has the shape of a key.
    pub fn is_well_formed(&self) -> bool {
        let is_number =
            |text: &str| text.len() == 43 && URL_SAFE_NO_PAD.decode(text).is_ok_and(|bytes| bytes.len() == 32);
        let y_fits = match (self.alg, &self.y) {
            (Algorithm::EdDsa, None) => true,
            (Algorithm::Es256, Some(y)) => is_number(y),
            (Algorithm::EdDsa, Some(_)) | (Algorithm::Es256, None) => false,
        };
        is_number(&self.x) && y_fits
    }

    /// Its name: the thumbprint of RFC 7638, so that nobody can call a key by another's.
    pub fn kid(&self) -> String {
        // Members in the order of their names, without white space (RFC 7638 §3).
        let text = match (self.alg, &self.y) {
            (Algorithm::Es256, y) => {
                let y = y.as_deref().unwrap_or_default();
                format!(r#"{{"crv":"P-256","kty":"EC","x":"{}","y":"{y}"}}"#, self.x)
            }
            (Algorithm::EdDsa, _) => format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{}"}}"#, self.x),
        };
        URL_SAFE_NO_PAD.encode(Sha256::digest(text))
    }

    /// As one member of a JSON Web Key Set.
    pub fn jwk(&self) -> Value {
        let (kty, crv) = match self.alg {
            Algorithm::EdDsa => ("OKP", "Ed25519"),
            Algorithm::Es256 => ("EC", "P-256"),
        };
        let mut jwk = json!({ "kty": kty, "crv": crv, "alg": self.alg, "use": "sig", "kid": self.kid(), "x": self.x });
        if let (Some(y), Some(members)) = (&self.y, jwk.as_object_mut()) {
            members.insert("y".to_owned(), y.as_str().into());
        }
        jwk
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_called_by_its_thumbprint() {
        // RFC 8037 appendix A.3.
        let x = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo".to_owned();
        let key = ProofKey { alg: Algorithm::EdDsa, x, y: None };
        assert!(key.is_well_formed());
        assert_eq!(key.kid(), "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k");
        assert_eq!(key.jwk()["kty"], "OKP");
    }

    #[test]
    fn what_is_no_key_is_not_taken_for_one() {
        let x = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";
        for (alg, x, y) in [
            (Algorithm::EdDsa, "short", None),
            (Algorithm::EdDsa, x, Some(x)),
            (Algorithm::Es256, x, None),
            (Algorithm::Es256, x, Some("\"},{\"kid\":\"x")),
        ] {
            assert!(!ProofKey { alg, x: x.to_owned(), y: y.map(str::to_owned) }.is_well_formed(), "{alg:?} {y:?}");
        }
        assert_eq!(ProofKey::new(Algorithm::EdDsa, &[1; 31]), None);
        assert_eq!(ProofKey::new(Algorithm::Es256, &[4; 64]), None);
        assert!(ProofKey::new(Algorithm::Es256, &[4; 65]).unwrap().is_well_formed());
    }
}
