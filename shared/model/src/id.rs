//! Ids: a prefix that tells what it names, and sixteen characters of base 32.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::key::random;

/// The text is not an id of this kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an id: {prefix} and 16 characters a-z, 2-7 are expected")]
pub struct BadId {
    prefix: &'static str,
}

/// Characters of a prefix, of what follows it, and of both: an id stands where it is used and costs no allocation.
const PREFIX: usize = 4;
const RANDOM: usize = 16;
const LENGTH: usize = PREFIX + RANDOM;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name([u8; LENGTH]);

        impl $name {
            /// What every id of this kind starts with.
            pub const PREFIX: &'static str = $prefix;

            /// Draws a new id (80 bits).
            #[allow(clippy::new_without_default, reason = "every call draws another one")]
            pub fn new() -> Self {
                Self(text($prefix, base32(&random::<10>()).as_bytes()))
            }

            /// The whole text, prefix included.
            pub fn as_str(&self) -> &str {
                // INVARIANT: made of a prefix and of characters of the alphabet only.
                str::from_utf8(&self.0).unwrap_or_default()
            }
        }

        impl FromStr for $name {
            type Err = BadId;

            fn from_str(text: &str) -> Result<Self, BadId> {
                let rest = text.strip_prefix($prefix).ok_or(BadId { prefix: $prefix })?;
                if rest.len() == RANDOM && rest.bytes().all(|b| ALPHABET.contains(&b)) {
                    Ok(Self(self::text($prefix, rest.as_bytes())))
                } else {
                    Err(BadId { prefix: $prefix })
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = BadId;

            fn try_from(text: String) -> Result<Self, BadId> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.as_str().to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_tuple(stringify!($name)).field(&self.as_str()).finish()
            }
        }
    };
}

id!(
    /// A tunnel: a named group of connectors.
    TunnelId,
    "tnl_"
);
id!(
    /// A join token; not the token itself, which is secret.
    TokenId,
    "tok_"
);
id!(
    /// A connector: one key, one inner address.
    ConnectorId,
    "con_"
);
id!(
    /// A gateway that may call.
    GatewayId,
    "gtw_"
);
id!(
    /// A stock WireGuard peer: somebody else's WireGuard with a network behind it, and no connector.
    StockPeerId,
    "per_"
);

/// Which run of a process this is: random, told by the first datagram after a handshake (wire.md §2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct InstanceId([u8; 16]);

impl InstanceId {
    /// Draws a new one; once per process.
    #[allow(clippy::new_without_default, reason = "every call draws another one")]
    pub fn new() -> Self {
        Self(random())
    }

    /// Reads the 16 bytes of a hello.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The 16 bytes of a hello.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

/// A prefix of [`PREFIX`] bytes and [`RANDOM`] more, as one.
fn text(prefix: &'static str, random: &[u8]) -> [u8; LENGTH] {
    let mut text = [0; LENGTH];
    text[..PREFIX].copy_from_slice(prefix.as_bytes());
    text[PREFIX..].copy_from_slice(random);
    text
}

const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// RFC 4648 §6 in lower case, for lengths that need no padding.
fn base32(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(5) * 8);
    for chunk in bytes.chunks(5) {
        let mut word = 0u64;
        for i in 0..5 {
            word = (word << 8) | u64::from(chunk.get(i).copied().unwrap_or(0));
        }
        for i in (0..8).rev() {
            text.push(char::from(ALPHABET[((word >> (5 * i)) & 31) as usize]));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_survives_its_text() {
        let id = ConnectorId::new();
        assert_eq!(id.as_str().parse::<ConnectorId>(), Ok(id));
    }

    #[test]
    fn an_id_of_another_kind_is_refused() {
        assert!(TunnelId::new().as_str().parse::<ConnectorId>().is_err());
        assert!("con_".parse::<ConnectorId>().is_err());
        assert!("con_AAAAAAAAAAAAAAAA".parse::<ConnectorId>().is_err());
    }

    #[test]
    fn base32_agrees_with_rfc_4648() {
        assert_eq!(base32(b"fooba"), "mzxw6ytb");
    }
}
