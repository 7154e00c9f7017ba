//! Join tokens: what `tunnel create` prints and a connector joins with.
//!
//! Text form: `culvert_t1_` and unpadded base64url of: version 1 (1 byte), number of relays (1 byte), for each relay
//! the relay's public key (32 bytes), the length of its endpoint (1 byte) and its endpoint URL, then 32 secret bytes
//! and the first 4 bytes of SHA-256 over all before (so that a mistyped token is found without a packet).

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hkdf::Hkdf;
use sha2::{Digest as _, Sha256};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::key::{PrivateKey, Psk, PublicKey};

/// What every token starts with, so that secret scanners find it.
pub const PREFIX: &str = "culvert_t1_";
/// How many relays one token may name.
pub const MAX_RELAYS: usize = 16;

/// A join token: where the relays are, and the secret that lets a connector enrol there.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    relays: Vec<RelayRef>,
    secret: Secret,
}

/// One relay that a token names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelayRef {
    /// Where it listens.
    pub endpoint: Endpoint,
    /// Its static public key.
    pub public_key: PublicKey,
}

/// How to reach a relay: `udp://HOST:PORT`. Another transport later needs no new token.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    host: String,
    port: u16,
}

/// Why a token's text is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadToken {
    /// Another kind of text.
    #[error("not a Culvert token: it starts with culvert_t1_")]
    NotAToken,
    /// A newer kind of token.
    #[error("this token is of a newer kind: upgrade this connector")]
    Newer,
    /// Characters are missing or changed.
    #[error("the token is damaged: copy it again, whole")]
    Damaged,
}

/// Why an endpoint's text is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an endpoint: HOST:PORT is expected, as in relay.example.com:51820")]
pub struct BadEndpoint(String);

#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
struct Secret([u8; 32]);

impl Token {
    /// Makes a token of fresh secret bytes for these relays (1 to [`MAX_RELAYS`]).
    pub fn generate(relays: Vec<RelayRef>) -> Self {
        Self { relays, secret: Secret(crate::key::random()) }
    }

    /// The relays it names, in order of preference.
    pub fn relays(&self) -> &[RelayRef] {
        &self.relays
    }

    /// The private key of the bootstrap identity; the relay stores only its public half.
    pub fn bootstrap_key(&self) -> PrivateKey {
        PrivateKey::from_bytes(*self.derive(b"culvert bootstrap key v1"))
    }

    /// The pre-shared key of the bootstrap identity.
    pub fn bootstrap_psk(&self) -> Psk {
        Psk::from_bytes(*self.derive(b"culvert bootstrap psk v1"))
    }

    /// The text to hand over. Secret: shown once, never logged.
    pub fn to_text(&self) -> Zeroizing<String> {
        let mut bytes = Zeroizing::new(vec![1, u8::try_from(self.relays.len()).unwrap_or(u8::MAX)]);
        for relay in &self.relays {
            let url = relay.endpoint.url();
            bytes.extend_from_slice(relay.public_key.as_bytes());
            bytes.push(u8::try_from(url.len()).unwrap_or(u8::MAX));
            bytes.extend_from_slice(url.as_bytes());
        }
        bytes.extend_from_slice(&self.secret.0);
        let sum = Sha256::digest(bytes.as_slice());
        bytes.extend_from_slice(&sum[..4]);
        Zeroizing::new(format!("{PREFIX}{}", *Zeroizing::new(URL_SAFE_NO_PAD.encode(bytes.as_slice()))))
    }

    fn derive(&self, label: &[u8]) -> Zeroizing<[u8; 32]> {
        let mut out = Zeroizing::new([0; 32]);
        Hkdf::<Sha256>::new(None, &self.secret.0)
            .expand(label, out.as_mut_slice())
            .expect("32 bytes are fewer than 255 blocks");
        out
    }
}

impl FromStr for Token {
    type Err = BadToken;

    fn from_str(text: &str) -> Result<Self, BadToken> {
        let text = text.trim();
        let Some(body) = text.strip_prefix(PREFIX) else {
            return Err(if text.starts_with("culvert_t") { BadToken::Newer } else { BadToken::NotAToken });
        };
        let bytes = Zeroizing::new(URL_SAFE_NO_PAD.decode(body).map_err(|_| BadToken::Damaged)?);
        let (content, sum) = bytes.split_last_chunk::<4>().ok_or(BadToken::Damaged)?;
        if Sha256::digest(content)[..4] != *sum {
            return Err(BadToken::Damaged);
        }
        parse(content)
    }
}

/// Reads the bytes between prefix and checksum.
fn parse(content: &[u8]) -> Result<Token, BadToken> {
    let (&[version, count], mut rest) = content.split_first_chunk::<2>().ok_or(BadToken::Damaged)?;
    if version != 1 {
        return Err(BadToken::Newer);
    }
    let mut relays = Vec::new();
    for _ in 0..count {
        let (key, after) = rest.split_first_chunk::<32>().ok_or(BadToken::Damaged)?;
        let (&length, after) = after.split_first().ok_or(BadToken::Damaged)?;
        let (url, after) = after.split_at_checked(usize::from(length)).ok_or(BadToken::Damaged)?;
        let url = std::str::from_utf8(url).map_err(|_| BadToken::Damaged)?;
        // A transport this version does not know is skipped: another entry may serve.
        if let Ok(endpoint) = Endpoint::from_url(url) {
            relays.push(RelayRef { endpoint, public_key: PublicKey::from_bytes(*key) });
        }
        rest = after;
    }
    let secret = <[u8; 32]>::try_from(rest).map_err(|_| BadToken::Damaged)?;
    if relays.is_empty() { Err(BadToken::Newer) } else { Ok(Token { relays, secret: Secret(secret) }) }
}

impl Endpoint {
    /// A name or an address without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The UDP port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `udp://HOST:PORT`.
    pub fn url(&self) -> String {
        format!("udp://{self}")
    }

    /// Reads `udp://HOST:PORT`.
    ///
    /// # Errors
    /// [`BadEndpoint`] for another scheme, or no port.
    pub fn from_url(url: &str) -> Result<Self, BadEndpoint> {
        url.strip_prefix("udp://").ok_or_else(|| BadEndpoint(url.to_owned()))?.parse()
    }
}

impl FromStr for Endpoint {
    type Err = BadEndpoint;

    fn from_str(text: &str) -> Result<Self, BadEndpoint> {
        let bad = || BadEndpoint(text.to_owned());
        let (host, port) = text.rsplit_once(':').ok_or_else(bad)?;
        let port: u16 = port.parse().ok().filter(|port| *port != 0).ok_or_else(bad)?;
        let host = if let Some(inner) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            inner.parse::<std::net::Ipv6Addr>().map_err(|_| bad())?.to_string()
        } else {
            let fits = (1..=200).contains(&host.len())
                && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'));
            if !fits {
                return Err(bad());
            }
            host.to_ascii_lowercase()
        };
        Ok(Self { host, port })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> Token {
        let relay = |endpoint: &str| RelayRef {
            endpoint: endpoint.parse().unwrap(),
            public_key: PrivateKey::generate().public_key(),
        };
        Token::generate(vec![relay("relay.example.com:51820"), relay("[2001:db8::1]:51820")])
    }

    #[test]
    fn a_token_survives_its_text() {
        let token = token();
        let read: Token = token.to_text().parse().unwrap();
        assert!(read == token);
        assert_eq!(read.bootstrap_key(), token.bootstrap_key());
        assert_eq!(read.relays()[1].endpoint.to_string(), "[2001:db8::1]:51820");
    }

    #[test]
    fn every_single_changed_character_is_noticed() {
        let text = token().to_text();
        for place in PREFIX.len()..text.len() {
            let mut bytes = text.as_bytes().to_vec();
            bytes[place] = if bytes[place] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(bytes).unwrap();
            assert!(changed.parse::<Token>().is_err(), "at {place}");
        }
        assert_eq!(text[..text.len() - 1].parse::<Token>(), Err(BadToken::Damaged));
    }

    #[test]
    fn the_key_and_the_psk_are_independent_and_the_token_prints_nothing() {
        let token = token();
        assert_ne!(token.bootstrap_key().as_bytes(), token.bootstrap_psk().as_bytes());
        assert_eq!(format!("{token:?}"), "Token");
    }

    #[test]
    fn texts_of_other_kinds_are_told_apart() {
        assert_eq!("hello".parse::<Token>(), Err(BadToken::NotAToken));
        assert_eq!("culvert_t2_abc".parse::<Token>(), Err(BadToken::Newer));
        assert_eq!("culvert_t1_".parse::<Token>(), Err(BadToken::Damaged));
    }

    #[test]
    fn endpoints_need_a_host_and_a_port() {
        for bad in ["", "host", "host:", "host:0", ":1", "a b:1", "host:70000", "[::1:5"] {
            assert!(bad.parse::<Endpoint>().is_err(), "{bad:?}");
        }
    }
}
