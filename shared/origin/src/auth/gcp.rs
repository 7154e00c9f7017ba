//! `type = "gcp-id-token"` and `"gcp-service-account"`: tokens of Google Cloud.

use std::path::PathBuf;

use crate::proof::Carried;
use crate::proof::gcp::{
    Federation, GcpIdToken, GcpIdTokenSettings, GcpServiceAccount, IAM_CREDENTIALS, IdTokenFrom, KeyFile, METADATA,
    Pool, STS,
};
use culvert_model::proof::Algorithm;
use culvert_ops::config::ConfigError;
use culvert_ops::secret::SecretSpec;
use serde::Deserialize;

use super::Auth;
use super::federated::federated;

/// What the first can say.
pub(super) const ID_TOKEN_KEYS: [&str; 14] = [
    "audience",
    "key",
    "provider",
    "service_account",
    "provider_audience",
    "metadata",
    "algorithm",
    "issuer",
    "subject",
    "endpoint",
    "impersonation_endpoint",
    "ca",
    "header",
    "prefix",
];
/// And the other.
pub(super) const SERVICE_ACCOUNT_KEYS: [&str; 4] = ["audience", "key", "header", "prefix"];

#[derive(Debug, Deserialize)]
struct Raw {
    audience: Option<String>,
    key: Option<SecretSpec>,
    provider: Option<String>,
    service_account: Option<String>,
    provider_audience: Option<String>,
    #[serde(default)]
    metadata: bool,
    algorithm: Option<Algorithm>,
    issuer: Option<String>,
    subject: Option<String>,
    endpoint: Option<String>,
    impersonation_endpoint: Option<String>,
    ca: Option<PathBuf>,
    header: Option<String>,
    prefix: Option<String>,
}

/// Says what the first means.
///
/// # Errors
/// The first key that is wrong.
pub(super) fn id_token(auth: &Auth<'_>) -> Result<Carried<GcpIdToken>, ConfigError> {
    let raw: Raw = auth.read()?;
    let audience = auth.needed("audience", raw.audience.clone(), "the URL of the service, or IAP's client id")?;
    let from = from(auth, &raw)?;
    let (header, prefix) = auth.bearer(raw.header.as_deref(), raw.prefix)?;
    Ok(Carried::new(header, GcpIdToken::new(GcpIdTokenSettings { audience, from, prefix })))
}

fn from(auth: &Auth<'_>, raw: &Raw) -> Result<IdTokenFrom, ConfigError> {
    let is_federated = raw.provider.is_some();
    auth.one_of(&[("key", raw.key.is_some()), ("provider", is_federated), ("metadata", raw.metadata)])?;
    for (what, is_given) in [
        ("service_account", raw.service_account.is_some()),
        ("provider_audience", raw.provider_audience.is_some()),
        ("algorithm", raw.algorithm.is_some()),
        ("issuer", raw.issuer.is_some()),
        ("subject", raw.subject.is_some()),
        ("impersonation_endpoint", raw.impersonation_endpoint.is_some()),
    ] {
        auth.goes_with(what, is_given, "provider", is_federated)?;
    }
    let ca = raw.ca.as_deref();
    let endpoint = |usual: &str| auth.endpoint("endpoint", raw.endpoint.as_deref().unwrap_or(usual), ca);
    if let Some(key) = &raw.key {
        let key = key_file(auth, key)?;
        return Ok(IdTokenFrom::Key { endpoint: endpoint(key.token_uri())?, key });
    }
    let Some(provider) = &raw.provider else { return Ok(IdTokenFrom::Metadata(endpoint(METADATA)?)) };
    let pool: Pool = provider.parse().map_err(|error| auth.wrong("provider", error))?;
    let account = auth.needed("service_account", raw.service_account.clone(), "for whom the ID token is")?;
    let own = raw.provider_audience.clone().unwrap_or_else(|| pool.audience());
    let iam = raw.impersonation_endpoint.as_deref().unwrap_or(IAM_CREDENTIALS);
    Ok(IdTokenFrom::Federation(Box::new(Federation {
        federated: federated(raw.algorithm, own, raw.issuer.clone(), raw.subject.clone()),
        pool,
        account: account.parse().map_err(|error| auth.wrong("service_account", error))?,
        sts: endpoint(STS)?,
        iam_credentials: auth.endpoint("impersonation_endpoint", iam, ca)?,
    })))
}

/// Says what the other means.
///
/// # Errors
/// The first key that is wrong.
pub(super) fn service_account(auth: &Auth<'_>) -> Result<Carried<GcpServiceAccount>, ConfigError> {
    let raw: Raw = auth.read()?;
    let audience = auth.needed("audience", raw.audience, "whom tokens are for")?;
    let key =
        raw.key.ok_or_else(|| auth.wrong("key", "is missing: the account's key file, as { file = \"key.json\" }"))?;
    let key = key_file(auth, &key)?;
    let (header, prefix) = auth.bearer(raw.header.as_deref(), raw.prefix)?;
    Ok(Carried::new(header, GcpServiceAccount { key, audience, prefix }))
}

fn key_file(auth: &Auth<'_>, spec: &SecretSpec) -> Result<KeyFile, ConfigError> {
    let text = auth.secret("key", spec)?;
    KeyFile::read(text.expose()).map_err(|error| auth.wrong("key", error))
}
