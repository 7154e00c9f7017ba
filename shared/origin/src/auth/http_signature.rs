//! `type = "http-signature"`: a signature of each request (RFC 9421).

use std::time::Duration;

use crate::proof::{Component, HttpSignature, KeySource, SignatureAlgorithm, SignatureSettings, USUAL_COMPONENTS};
use culvert_ops::config::ConfigError;
use culvert_ops::secret::SecretSpec;
use serde::Deserialize;

use super::Auth;

/// Below, clocks and ways take more than a signature lives; above, a recorded request is of use for too long.
const LIFETIMES: std::ops::RangeInclusive<Duration> = Duration::from_secs(10)..=Duration::from_secs(3600);
const USUAL_LABEL: &str = "culvert";

/// What it can say.
pub(super) const KEYS: [&str; 11] = [
    "algorithm",
    "key",
    "encoding",
    "keyid",
    "label",
    "components",
    "lifetime",
    "nonce",
    "tag",
    "digest",
    "payload_limit",
];

#[derive(Debug, Deserialize)]
struct Raw {
    algorithm: Option<String>,
    key: Option<SecretSpec>,
    encoding: Option<String>,
    keyid: Option<String>,
    label: Option<String>,
    components: Option<Vec<String>>,
    #[serde(default, deserialize_with = "culvert_ops::config::given")]
    lifetime: Option<Duration>,
    nonce: Option<bool>,
    tag: Option<String>,
    digest: Option<String>,
    payload_limit: Option<usize>,
}

/// Says what it means.
///
/// # Errors
/// The first key that is wrong.
pub(super) fn settle(auth: &Auth<'_>) -> Result<HttpSignature, ConfigError> {
    let raw: Raw = auth.read()?;
    let why = "hmac-sha256, ed25519 or ecdsa-p256-sha256";
    let algorithm = auth.needed("algorithm", raw.algorithm, why)?;
    let expected = || auth.wrong("algorithm", format_args!("must be {why} for type \"http-signature\""));
    let algorithm = SignatureAlgorithm::named(&algorithm).ok_or_else(expected)?;
    let is_shared = algorithm == SignatureAlgorithm::HmacSha256;
    if raw.encoding.is_some() && !is_shared {
        return Err(auth.wrong("encoding", "is about a shared secret (hmac-sha256): private keys are in PEM"));
    }
    let key = match &raw.key {
        None if is_shared => return Err(auth.wrong("key", "is missing: the secret that the origin knows too")),
        None => KeySource::Own,
        Some(spec) => {
            let secret = auth.secret("key", spec)?;
            let is_base64 = raw.encoding.as_deref() == Some("base64");
            match is_shared {
                true => KeySource::shared(&secret, is_base64).map_err(|error| auth.wrong("key", error))?,
                false => KeySource::Pem(secret),
            }
        }
    };
    for (name, text) in [("keyid", &raw.keyid), ("tag", &raw.tag)] {
        if text.as_ref().is_some_and(|text| !text.bytes().all(|byte| (0x20..0x7f).contains(&byte))) {
            return Err(auth.wrong(name, "holds characters that no string of a field may hold"));
        }
    }
    let label = raw.label.unwrap_or_else(|| USUAL_LABEL.to_owned());
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-.*".contains(&byte);
    if !label.starts_with(|first: char| first.is_ascii_lowercase() || first == '*') || !label.bytes().all(fits) {
        return Err(auth.wrong("label", "must be small letters, digits, _ - . or *, and begin with a letter"));
    }
    let lifetime = raw.lifetime.unwrap_or(Duration::from_secs(300));
    if !LIFETIMES.contains(&lifetime) {
        return Err(auth.wrong("lifetime", "must be from 10s to 1h"));
    }
    let digests = raw.digest.as_deref() != Some("none");
    if !digests && raw.payload_limit.is_some() {
        return Err(
            auth.wrong("payload_limit", "is about bodies whose digest is signed, and digest is \"none\": take it out")
        );
    }
    let made = HttpSignature::new(SignatureSettings {
        label,
        algorithm,
        key,
        keyid: raw.keyid,
        components: components(auth, raw.components, digests)?,
        lifetime,
        has_nonce: raw.nonce.unwrap_or(true),
        tag: raw.tag,
        digests,
        payload_limit: auth.payload_limit(raw.payload_limit)?,
    });
    made.map_err(|error| auth.wrong("key", error))
}

fn components(auth: &Auth<'_>, given: Option<Vec<String>>, digests: bool) -> Result<Vec<Component>, ConfigError> {
    let is_usual = given.is_none();
    let given = given.unwrap_or_else(|| USUAL_COMPONENTS.map(str::to_owned).to_vec());
    let mut components: Vec<Component> = Vec::new();
    for text in &given {
        let component: Component = text.parse().map_err(|error| auth.wrong("components", error))?;
        if components.contains(&component) {
            return Err(auth.wrong("components", format_args!("{component} is there twice")));
        }
        let is_digest = component.to_string() == "content-digest";
        match is_digest && !digests {
            true if is_usual => {}
            true => {
                return Err(
                    auth.wrong("components", "content-digest is the caller's when digest is \"none\": take one out")
                );
            }
            false => components.push(component),
        }
    }
    if components.is_empty() {
        return Err(auth.wrong("components", "is empty: such a signature is of nothing"));
    }
    if digests && !components.iter().any(|component| component.to_string() == "content-digest") {
        return Err(
            auth.wrong("components", "lacks content-digest, which covers the body: add it, or say digest = \"none\"")
        );
    }
    Ok(components)
}
