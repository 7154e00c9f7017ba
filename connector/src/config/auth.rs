//! What `[service.auth]` means.

use std::time::Duration;

use culvert_model::proof::Algorithm;
use culvert_ops::config::ConfigError;
use culvert_origin::proof::{JwtSettings, OWN_CLAIMS};
use http::{HeaderValue, header};
use serde_json::Map;

use super::Place;
use super::raw::RawAuth;

/// Keys are published for so long after they signed; and below, clocks and ways take more than a token lives.
const LIFETIMES: std::ops::RangeInclusive<Duration> = Duration::from_secs(10)..=Duration::from_secs(3600);

impl Place<'_> {
    pub(super) fn auth(&self, key: &str, raw: &RawAuth) -> Result<JwtSettings, ConfigError> {
        let wrong = |what: &str, why: &str| self.loaded.wrong(&format!("{key}.{what}"), why);
        if raw.kind.is_none() {
            return Err(wrong("type", "is missing"));
        }
        let audience = raw.audience.clone().filter(|text| !text.is_empty());
        let lifetime = raw.lifetime.unwrap_or(Duration::from_secs(300));
        if !LIFETIMES.contains(&lifetime) {
            return Err(wrong("lifetime", "must be from 10s to 1h"));
        }
        let header = match &raw.header {
            Some(name) => self.header_name(&format!("{key}.header"), name)?,
            None => header::AUTHORIZATION,
        };
        let usual = if header == header::AUTHORIZATION { "Bearer " } else { "" };
        let prefix = raw.prefix.clone().unwrap_or_else(|| usual.to_owned());
        if HeaderValue::from_str(&prefix).is_err() {
            return Err(wrong("prefix", "holds characters that no header field may hold"));
        }
        if let Some(own) = raw.claims.keys().find(|name| OWN_CLAIMS.contains(&name.as_str())) {
            return Err(wrong(&format!("claims.{own}"), "is a claim that the connector makes itself"));
        }
        Ok(JwtSettings {
            algorithm: raw.algorithm.unwrap_or(Algorithm::EdDsa),
            audience: audience.ok_or_else(|| wrong("audience", "is missing: whom tokens are for"))?,
            issuer: raw.issuer.clone(),
            subject: raw.subject.clone(),
            lifetime,
            header,
            prefix,
            is_bound: raw.bind.as_deref() == Some("request"),
            claims: raw.claims.iter().map(|(name, text)| (name.clone(), text.as_str().into())).collect::<Map<_, _>>(),
        })
    }
}
