//! `type = "entra-id"`: a token of Microsoft Entra ID.

use std::path::PathBuf;

use crate::proof::{Carried, CertificateKey, ClientCredential, EntraId, EntraIdSettings, SharedSecret, Wanted};
use culvert_model::proof::Algorithm;
use culvert_ops::config::ConfigError;
use culvert_ops::secret::SecretSpec;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde::Deserialize;

use super::Auth;
use super::federated::federated;

/// What it can say.
pub(super) const KEYS: [&str; 16] = [
    "tenant",
    "client_id",
    "scope",
    "resource",
    "client_secret",
    "certificate",
    "key",
    "federated",
    "audience",
    "algorithm",
    "issuer",
    "subject",
    "endpoint",
    "ca",
    "header",
    "prefix",
];

/// Whom a federated token is for (Microsoft's documentation of federated credentials).
const EXCHANGE: &str = "api://AzureADTokenExchange";
/// The public cloud; the others have endpoints of their own.
const AUTHORITY: &str = "https://login.microsoftonline.com";

#[derive(Debug, Deserialize)]
struct Raw {
    tenant: Option<String>,
    client_id: Option<String>,
    scope: Option<String>,
    resource: Option<String>,
    client_secret: Option<SecretSpec>,
    certificate: Option<PathBuf>,
    key: Option<SecretSpec>,
    #[serde(default)]
    federated: bool,
    audience: Option<String>,
    algorithm: Option<Algorithm>,
    issuer: Option<String>,
    subject: Option<String>,
    endpoint: Option<String>,
    ca: Option<PathBuf>,
    header: Option<String>,
    prefix: Option<String>,
}

/// Says what it means.
///
/// # Errors
/// The first key that is wrong.
pub(super) fn settle(auth: &Auth<'_>) -> Result<Carried<EntraId>, ConfigError> {
    let raw: Raw = auth.read()?;
    let client_id = auth.needed("client_id", raw.client_id.clone(), "the application's id")?;
    auth.one_of(&[("scope", raw.scope.is_some()), ("resource", raw.resource.is_some())])?;
    let wanted = match (&raw.scope, &raw.resource) {
        (_, Some(resource)) => {
            Wanted::Resource(auth.needed("resource", Some(resource.clone()), "whom tokens are for")?)
        }
        (scope, None) => Wanted::Scope(auth.needed("scope", scope.clone(), "as api://APPLICATION/.default")?),
    };
    let url = match &raw.endpoint {
        Some(url) => url.clone(),
        None => {
            let tenant = auth.needed("tenant", raw.tenant.clone(), "the directory's id or domain, or an endpoint")?;
            if !tenant.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.')) {
                return Err(auth.wrong("tenant", "is no directory: its id or one of its domains is expected"));
            }
            match wanted {
                Wanted::Scope(_) => format!("{AUTHORITY}/{tenant}/oauth2/v2.0/token"),
                Wanted::Resource(_) => format!("{AUTHORITY}/{tenant}/oauth2/token"),
            }
        }
    };
    if raw.tenant.is_some() && raw.endpoint.is_some() {
        return Err(auth.wrong("tenant", "does nothing beside endpoint, which names it: take one of them out"));
    }
    let credential = credential(auth, &raw)?;
    let endpoint = auth.endpoint("endpoint", &url, raw.ca.as_deref())?;
    let (header, prefix) = auth.bearer(raw.header.as_deref(), raw.prefix)?;
    Ok(Carried::new(header, EntraId::new(EntraIdSettings { endpoint, client_id, wanted, credential, prefix })))
}

fn credential(auth: &Auth<'_>, raw: &Raw) -> Result<ClientCredential, ConfigError> {
    let (has_secret, has_certificate) = (raw.client_secret.is_some(), raw.certificate.is_some());
    auth.one_of(&[("client_secret", has_secret), ("certificate", has_certificate), ("federated", raw.federated)])?;
    auth.goes_with("key", raw.key.is_some(), "certificate", has_certificate)?;
    for (what, is_given) in [
        ("audience", raw.audience.is_some()),
        ("algorithm", raw.algorithm.is_some()),
        ("issuer", raw.issuer.is_some()),
        ("subject", raw.subject.is_some()),
    ] {
        auth.goes_with(what, is_given, "federated = true", raw.federated)?;
    }
    if let Some(secret) = &raw.client_secret {
        return Ok(ClientCredential::Secret(SharedSecret(auth.secret("client_secret", secret)?)));
    }
    if let Some(path) = &raw.certificate {
        let pem = auth.file("certificate", path)?;
        let certificate =
            CertificateDer::from_pem_slice(&pem).map_err(|_| auth.wrong("certificate", "holds no PEM certificate"))?;
        let key = raw.key.as_ref().ok_or_else(|| auth.wrong("key", "is missing: the certificate's"))?;
        let key = auth.secret("key", key)?;
        let own = CertificateKey::new(&certificate, key.expose()).map_err(|why| auth.wrong("key", why))?;
        return Ok(ClientCredential::Certificate(Box::new(own)));
    }
    let audience = raw.audience.clone().unwrap_or_else(|| EXCHANGE.to_owned());
    let own = federated(raw.algorithm, audience, raw.issuer.clone(), raw.subject.clone());
    Ok(ClientCredential::Federated(Box::new(own)))
}
