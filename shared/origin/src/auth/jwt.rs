//! `type = "jwt"`: a token that this connector signs.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::proof::{Jwt, JwtSettings, OWN_CLAIMS};
use culvert_model::proof::Algorithm;
use culvert_ops::config::ConfigError;
use serde::Deserialize;
use serde_json::Map;

use super::Auth;

/// Keys are published for so long after they signed; and below, clocks and ways take more than a token lives.
const LIFETIMES: std::ops::RangeInclusive<Duration> = Duration::from_secs(10)..=Duration::from_secs(3600);

/// What it can say.
pub(super) const KEYS: [&str; 9] =
    ["algorithm", "audience", "issuer", "subject", "lifetime", "header", "prefix", "bind", "claims"];

#[derive(Debug, Deserialize)]
struct Raw {
    algorithm: Option<Algorithm>,
    audience: Option<String>,
    issuer: Option<String>,
    subject: Option<String>,
    #[serde(default, deserialize_with = "culvert_ops::config::given")]
    lifetime: Option<Duration>,
    header: Option<String>,
    prefix: Option<String>,
    bind: Option<String>,
    #[serde(default)]
    claims: BTreeMap<String, String>,
}

/// Says what it means.
///
/// # Errors
/// The first key that is wrong.
pub(super) fn settle(auth: &Auth<'_>) -> Result<Jwt, ConfigError> {
    let raw: Raw = auth.read()?;
    let lifetime = raw.lifetime.unwrap_or(Duration::from_secs(300));
    if !LIFETIMES.contains(&lifetime) {
        return Err(auth.wrong("lifetime", "must be from 10s to 1h"));
    }
    if let Some(own) = raw.claims.keys().find(|name| OWN_CLAIMS.contains(&name.as_str())) {
        return Err(auth.wrong(&format!("claims.{own}"), "is a claim that the connector makes itself"));
    }
    let (header, prefix) = auth.header_and_prefix(raw.header.as_deref(), raw.prefix)?;
    Ok(Jwt::new(JwtSettings {
        algorithm: raw.algorithm.unwrap_or(Algorithm::EdDsa),
        audience: auth.needed("audience", raw.audience, "whom tokens are for")?,
        issuer: raw.issuer,
        subject: raw.subject,
        lifetime,
        header,
        prefix,
        is_bound: raw.bind.as_deref() == Some("request"),
        claims: raw.claims.iter().map(|(name, text)| (name.clone(), text.as_str().into())).collect::<Map<_, _>>(),
    }))
}
