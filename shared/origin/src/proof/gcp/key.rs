//! A service account's key file, and what its key signs by itself.
//!
//! Must never show the key to anybody, or sign for longer than Google takes it.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use culvert_model::name::ServiceName;
use culvert_ops::time::unix_seconds;
use http::HeaderValue;
use serde::Deserialize;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::proof::carried::field;
use crate::proof::rsa::{Padding, RsaKey};
use crate::proof::trouble::Trouble;
use crate::proof::{Fresh, Proofs, Source, jws};
use culvert_ops::runtime::now;

/// The longest that Google takes.
const LIFETIME: Duration = Duration::from_secs(3600);

/// What a key file says. Clones share it; equal when it is the same key of the same account.
#[derive(Clone)]
pub struct KeyFile(Arc<Parts>);

struct Parts {
    key: RsaKey,
    key_id: String,
    email: String,
    token_uri: String,
}

/// Why a text is no key file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadKeyFile {
    /// No JSON, or without one of its members.
    #[error(
        "is no key file of a service account: the JSON that Google Cloud made is expected, whole (type, client_email, private_key, private_key_id)"
    )]
    Shape,
    /// Of another kind.
    #[error("is a file of the type {0:?}: \"service_account\" is expected")]
    Kind(String),
    /// Its key.
    #[error("its private_key {0}")]
    Key(&'static str),
}

#[derive(Deserialize)]
struct Raw {
    r#type: String,
    client_email: String,
    private_key: Zeroizing<String>,
    private_key_id: String,
    #[serde(default = "google")]
    token_uri: String,
}

fn google() -> String {
    "https://oauth2.googleapis.com/token".to_owned()
}

impl KeyFile {
    /// Reads the JSON that Google Cloud made.
    ///
    /// # Errors
    /// [`BadKeyFile`]
    pub fn read(text: &str) -> Result<Self, BadKeyFile> {
        if let Some(kind) = serde_json::from_str::<Value>(text).ok().as_ref().and_then(|file| file["type"].as_str())
            && kind != "service_account"
        {
            return Err(BadKeyFile::Kind(kind.chars().take(40).collect()));
        }
        let raw: Raw = serde_json::from_str(text).map_err(|_| BadKeyFile::Shape)?;
        debug_assert_eq!(raw.r#type, "service_account");
        let key = RsaKey::from_pem(&raw.private_key).map_err(BadKeyFile::Key)?;
        let Raw { client_email: email, private_key_id: key_id, token_uri, .. } = raw;
        Ok(Self(Arc::new(Parts { key, key_id, email, token_uri })))
    }

    /// Where it is exchanged.
    pub fn token_uri(&self) -> &str {
        &self.0.token_uri
    }

    /// Whose it is.
    pub fn email(&self) -> &str {
        &self.0.email
    }

    /// A token of an hour for `audience`, with one more claim or none.
    pub(super) fn sign(
        &self,
        audience: &str,
        more: Option<(&str, &str)>,
        now: SystemTime,
    ) -> Result<Zeroizing<String>, Trouble> {
        let Parts { key, key_id, email, .. } = &*self.0;
        let unsigned = || Trouble::Here("the token could not be signed".to_owned());
        let seconds = u64::try_from(unix_seconds(now)).map_err(|_| unsigned())?;
        let head = json!({ "alg": "RS256", "kid": key_id, "typ": "JWT" }).to_string();
        let mut claims = json!({
            "iss": email, "sub": email, "aud": audience, "iat": seconds, "exp": seconds + LIFETIME.as_secs(),
        });
        if let Some((name, value)) = more {
            claims[name] = value.into();
        }
        jws::compact("", &head, &claims, |text| key.sign(Padding::Pkcs1, text)).ok_or_else(unsigned)
    }
}

impl PartialEq for KeyFile {
    fn eq(&self, other: &Self) -> bool {
        let parts = |of: &Self| (of.0.key_id.clone(), of.0.email.clone(), of.0.token_uri.clone());
        parts(self) == parts(other)
    }
}

impl fmt::Debug for KeyFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyFile").field("email", &self.0.email).field("key_id", &self.0.key_id).finish_non_exhaustive()
    }
}

/// Signs for one audience: what Google's own APIs, API gateways and IAP take without any exchange.
#[derive(Debug, PartialEq)]
pub struct GcpServiceAccount {
    /// The key.
    pub key: KeyFile,
    /// `aud`
    pub audience: String,
    /// What stands before the token.
    pub prefix: String,
}

impl GcpServiceAccount {
    /// Whether it is the same account for the same audience, by whatever key.
    pub fn is_for_the_same(&self, other: &Self) -> bool {
        (self.key.email(), &self.audience, &self.prefix) == (other.key.email(), &other.audience, &other.prefix)
    }
}

impl Source for GcpServiceAccount {
    type Item = HeaderValue;

    async fn fetch(&self, _: &ServiceName, _: &Proofs) -> Result<Fresh<HeaderValue>, Trouble> {
        let asked = now();
        let token = self.key.sign(&self.audience, None, SystemTime::now())?;
        let item = field(&self.prefix, &token)
            .ok_or_else(|| Trouble::Here("the prefix holds what no field may hold".to_owned()))?;
        // Half of it is left for clocks and ways, as with tokens of our own.
        Ok(Fresh { item, asked, life: LIFETIME, renew_after: Some(LIFETIME / 2) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proof::rsa::{generate, pem};

    fn file(kind: &str, key: &str) -> String {
        json!({
            "type": kind, "project_id": "p", "private_key_id": "k1", "private_key": key,
            "client_email": "orders@p.iam.gserviceaccount.com", "client_id": "1",
        })
        .to_string()
    }

    #[test]
    fn a_key_file_is_read_as_google_makes_it_and_nothing_else_is() {
        let key = pem(&generate().unwrap());
        let read = KeyFile::read(&file("service_account", &key)).unwrap();
        assert_eq!(
            (read.email(), read.token_uri()),
            ("orders@p.iam.gserviceaccount.com", "https://oauth2.googleapis.com/token")
        );
        assert!(!format!("{read:?}").contains("PRIVATE"));
        let kind = |text: &str| KeyFile::read(text).unwrap_err();
        assert_eq!(kind(&file("authorized_user", &key)), BadKeyFile::Kind("authorized_user".to_owned()));
        assert!(matches!(kind(&file("service_account", "x")), BadKeyFile::Key(_)));
        for text in ["", "{}", "[]", r#"{"type":"service_account"}"#] {
            assert_eq!(kind(text), BadKeyFile::Shape, "{text}");
        }
    }
}
