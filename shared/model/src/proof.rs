//! Public keys by which origins verify what a connector signs, as JSON Web Keys (RFC 7517).
//!
//! Must never hold a private part.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Deserializer, Serialize};
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
    /// RSASSA-PKCS1-v1_5 with SHA-256 (RFC 7518 §3.3): what Azure and Google Cloud federate with.
    #[serde(rename = "RS256")]
    Rs256,
}

/// The exponent of every RSA key of ours: 65537.
const EXPONENT: &str = "AQAB";
/// Bytes of an RSA key's modulus: 2048 bits to 4096.
const MODULUS: std::ops::RangeInclusive<usize> = 256..=512;

/// One public key: numbers in base64url without padding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProofKey {
    /// What it verifies.
    pub alg: Algorithm,
    /// The key, or its first coordinate; of RSA its modulus.
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
            Self::Rs256 => "RS256",
        }
    }

    /// All of them.
    pub const ALL: [Self; 3] = [Self::EdDsa, Self::Es256, Self::Rs256];

    /// Whether relays of every version know it. The others are told to those alone that say so.
    pub const fn is_known_to_all(self) -> bool {
        matches!(self, Self::EdDsa | Self::Es256)
    }
}

/// Reads a list of keys without those of a later version.
///
/// # Errors
/// It is no list.
pub fn known_keys<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<ProofKey>, D::Error> {
    let all = Vec::<Value>::deserialize(deserializer)?;
    Ok(all.into_iter().filter_map(|key| serde_json::from_value(key).ok()).collect())
}

impl ProofKey {
    /// From the bytes of a public key: 32 of Ed25519, an uncompressed point on P-256, or the modulus of an RSA key whose
    /// exponent is 65537.
    pub fn new(alg: Algorithm, bytes: &[u8]) -> Option<Self> {
        let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        match (alg, bytes.len(), bytes.split_first()) {
            (Algorithm::EdDsa, 32, _) => Some(Self { alg, x: text(bytes), y: None }),
            (Algorithm::Es256, 65, Some((4, point))) => {
                let (x, y) = point.split_at_checked(32)?;
                Some(Self { alg, x: text(x), y: Some(text(y)) })
            }
            (Algorithm::Rs256, length, Some((1.., _))) if MODULUS.contains(&length) => {
                Some(Self { alg, x: text(bytes), y: None })
            }
            _ => None,
        }
    }

    /// Whether it has the shape of a key.
    pub fn is_well_formed(&self) -> bool {
        let length = |text: &str| URL_SAFE_NO_PAD.decode(text).map_or(0, |bytes| bytes.len());
        match (self.alg, &self.y) {
            (Algorithm::EdDsa, None) => length(&self.x) == 32,
            (Algorithm::Es256, Some(y)) => length(&self.x) == 32 && length(y) == 32,
            (Algorithm::Rs256, None) => MODULUS.contains(&length(&self.x)),
            (Algorithm::EdDsa | Algorithm::Rs256, Some(_)) | (Algorithm::Es256, None) => false,
        }
    }

    /// Its name: the thumbprint of RFC 7638, so that nobody can call a key by another's.
    pub fn kid(&self) -> String {
        // Members in the order of their names, without white space (RFC 7638 §3).
        let text = match (self.alg, &self.y) {
            (Algorithm::Es256, y) => {
                let y = y.as_deref().unwrap_or_default();
                format!(r#"{{"crv":"P-256","kty":"EC","x":"{}","y":"{y}"}}"#, self.x)
            }
            (Algorithm::Rs256, _) => format!(r#"{{"e":"{EXPONENT}","kty":"RSA","n":"{}"}}"#, self.x),
            (Algorithm::EdDsa, _) => format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{}"}}"#, self.x),
        };
        URL_SAFE_NO_PAD.encode(Sha256::digest(text))
    }

    /// As one member of a JSON Web Key Set.
    pub fn jwk(&self) -> Value {
        let mut jwk = match (self.alg, &self.y) {
            (Algorithm::EdDsa, _) => json!({ "kty": "OKP", "crv": "Ed25519", "x": self.x }),
            (Algorithm::Es256, y) => json!({ "kty": "EC", "crv": "P-256", "x": self.x, "y": y }),
            (Algorithm::Rs256, _) => json!({ "kty": "RSA", "n": self.x, "e": EXPONENT }),
        };
        for (name, value) in [("alg", self.alg.name()), ("use", "sig"), ("kid", &self.kid())] {
            jwk[name] = value.into();
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
    fn an_rsa_key_is_called_by_its_thumbprint() {
        // RFC 7638 §3.1.
        let x = "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCi\
                 FV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d\
                 0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-cs\
                 FCur-kEgU8awapJzKnqDKgw";
        let key = ProofKey { alg: Algorithm::Rs256, x: x.to_owned(), y: None };
        assert!(key.is_well_formed());
        assert_eq!(key.kid(), "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs");
        assert_eq!((&key.jwk()["n"], &key.jwk()["e"], &key.jwk()["alg"]), (&x.into(), &"AQAB".into(), &"RS256".into()));
    }

    #[test]
    fn a_key_of_a_later_version_is_left_out_and_the_others_are_read() {
        let list =
            r#"[{"alg":"ML-DSA-65","pub":"x"},{"alg":"EdDSA","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"},7]"#;
        let keys = known_keys(&mut serde_json::Deserializer::from_str(list)).unwrap();
        assert_eq!(keys.iter().map(|key| key.alg).collect::<Vec<_>>(), [Algorithm::EdDsa]);
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
        assert_eq!(ProofKey::new(Algorithm::Rs256, &[1; 255]), None);
        assert_eq!(ProofKey::new(Algorithm::Rs256, &[0; 256]), None, "fewer bits than it looks");
    }
}
