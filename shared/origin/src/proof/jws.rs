//! Signed statements in the one form that all of these take: the compact serialization of RFC 7515 §7.1.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde_json::Value;
use zeroize::Zeroizing;

/// A head and claims, signed, behind `prefix`; none when signing fails.
pub(super) fn compact(
    prefix: &str,
    head: &str,
    claims: &Value,
    sign: impl FnOnce(&[u8]) -> Option<Vec<u8>>,
) -> Option<Zeroizing<String>> {
    let mut token = Zeroizing::new(String::with_capacity(1024 + prefix.len()));
    token.push_str(prefix);
    URL_SAFE_NO_PAD.encode_string(head, &mut token);
    token.push('.');
    URL_SAFE_NO_PAD.encode_string(claims.to_string(), &mut token);
    let signature = sign(token.get(prefix.len()..)?.as_bytes())?;
    token.push('.');
    URL_SAFE_NO_PAD.encode_string(signature, &mut token);
    Some(token)
}

/// An identifier that nobody else has (`jti`).
pub(super) fn unique() -> String {
    URL_SAFE_NO_PAD.encode(rand::random::<[u8; 16]>())
}

/// When somebody else's token was made and when it ends, as it says. Nobody here verifies it: that is its reader's.
#[derive(Debug, Deserialize, PartialEq, Eq)]
pub(super) struct Times {
    #[serde(default)]
    pub(super) iat: Option<u64>,
    pub(super) exp: u64,
}

impl Times {
    /// None: it is no token that says so.
    pub(super) fn of(token: &str) -> Option<Self> {
        let mut parts = token.split('.');
        let (_, claims, _, None) = (parts.next()?, parts.next()?, parts.next()?, parts.next()) else { return None };
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).ok()?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_times_of_a_token_are_read_and_nothing_else_is_one() {
        let token =
            compact("", r#"{"alg":"none"}"#, &serde_json::json!({"iat": 5, "exp": 9}), |_| Some(vec![1])).unwrap();
        assert_eq!(Times::of(&token), Some(Times { iat: Some(5), exp: 9 }));
        for text in ["", "a.b.c", "a.e30.c", "a.b", "a.b.c.d", &format!("{}.x", *token)] {
            assert_eq!(Times::of(text), None, "{text}");
        }
    }
}
