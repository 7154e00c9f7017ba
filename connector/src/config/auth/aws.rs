//! `type = "aws-sigv4"`: a signature of each request, as AWS takes it.

use std::path::PathBuf;
use std::sync::Arc;

use culvert_ops::config::ConfigError;
use culvert_ops::secret::{SecretSource, SecretSpec};
use http::HeaderName;
use serde::Deserialize;

use super::Auth;
use culvert_origin::proof::{AwsSettings, AwsSigV4, CredentialSource, Credentials, PayloadPolicy, Scope, profile};

/// What it can say.
pub(super) const KEYS: [&str; 11] = [
    "service",
    "region",
    "credentials",
    "access_key_id",
    "secret_access_key",
    "session_token",
    "profile",
    "profile_file",
    "payload",
    "payload_limit",
    "signed_headers",
];

#[derive(Debug, Deserialize)]
struct Raw {
    service: Option<String>,
    region: Option<String>,
    credentials: Option<String>,
    access_key_id: Option<SecretSpec>,
    secret_access_key: Option<SecretSpec>,
    session_token: Option<SecretSpec>,
    profile: Option<String>,
    profile_file: Option<PathBuf>,
    payload: Option<String>,
    payload_limit: Option<usize>,
    #[serde(default)]
    signed_headers: Vec<String>,
}

/// Says what it means.
///
/// # Errors
/// The first key that is wrong.
pub(super) fn settle(auth: &Auth<'_, '_>) -> Result<AwsSigV4, ConfigError> {
    let mut raw: Raw = auth.read()?;
    let service = auth.needed("service", raw.service.take(), "whom requests are for, as execute-api or lambda")?;
    let region =
        raw.region.take().or_else(|| auth.variable("AWS_REGION")).or_else(|| auth.variable("AWS_DEFAULT_REGION"));
    let region = auth.needed("region", region, "the service's, as eu-west-1; AWS_REGION is not set either")?;
    for (name, text) in [("service", &service), ("region", &region)] {
        if !text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-') {
            return Err(auth.wrong(name, "is none: small letters, digits and - are expected"));
        }
    }
    let payload = match raw.payload.as_deref() {
        Some("unsigned") => PayloadPolicy::Unsigned,
        Some("chunked") if service != "s3" => {
            return Err(auth.wrong("payload", "\"chunked\" is what S3 alone takes (service = \"s3\")"));
        }
        Some("chunked") => PayloadPolicy::Chunked,
        _ => PayloadPolicy::Signed,
    };
    if payload == PayloadPolicy::Unsigned && raw.payload_limit.is_some() {
        return Err(
            auth.wrong("payload_limit", "is about payloads that are signed, and payload is \"unsigned\": take it out")
        );
    }
    let also = raw.signed_headers.iter().map(|text| {
        let name: HeaderName =
            text.parse().map_err(|_| auth.wrong("signed_headers", "holds what is no header field's name"))?;
        let unfit =
            ["connection", "te", "transfer-encoding", "upgrade", "expect", "authorization"].contains(&name.as_str());
        if unfit { Err(auth.wrong("signed_headers", format_args!("{name} cannot be signed"))) } else { Ok(name) }
    });
    Ok(AwsSigV4::new(AwsSettings {
        also: also.collect::<Result<_, _>>()?,
        credentials: credentials(auth, &raw)?,
        scope: Scope { service, region },
        payload,
        payload_limit: auth.payload_limit(raw.payload_limit)?,
    }))
}

/// Those that are named, else the first that are there, in the order of AWS's own tools.
fn credentials(auth: &Auth<'_, '_>, raw: &Raw) -> Result<CredentialSource, ConfigError> {
    let kind = raw.credentials.as_deref();
    let keys = [
        ("access_key_id", &raw.access_key_id),
        ("secret_access_key", &raw.secret_access_key),
        ("session_token", &raw.session_token),
    ];
    if let Some((name, _)) = keys.iter().find(|(_, given)| given.is_some()) {
        if kind.is_some() {
            return Err(auth.wrong(
                name,
                "names the credentials themselves, and `credentials` where to find others: take one out",
            ));
        }
        return given(auth, raw);
    }
    let has_profile = raw.profile.is_some() || raw.profile_file.is_some();
    if has_profile && kind.is_some_and(|kind| kind != "profile") {
        let name = if raw.profile.is_some() { "profile" } else { "profile_file" };
        return Err(auth.wrong(name, "is for credentials = \"profile\": take it out"));
    }
    let is_set = |name: &str| auth.variable(name).is_some();
    match kind {
        Some("environment") => environment(auth),
        Some("profile") => of_profile(auth, raw),
        _ if has_profile => of_profile(auth, raw),
        _ if is_set("AWS_ACCESS_KEY_ID") => environment(auth),
        _ => of_profile(auth, raw),
    }
}

fn given(auth: &Auth<'_, '_>, raw: &Raw) -> Result<CredentialSource, ConfigError> {
    let read = |name: &str, spec: &Option<SecretSpec>| match spec {
        Some(spec) => auth.secret(name, spec),
        None => Err(auth.wrong(name, "is missing: access_key_id and secret_access_key go together")),
    };
    let id = read("access_key_id", &raw.access_key_id)?;
    let secret = read("secret_access_key", &raw.secret_access_key)?;
    let token = raw.session_token.as_ref().map(|spec| auth.secret("session_token", spec)).transpose()?;
    let made = Credentials::new(id.expose(), secret.expose(), token.as_ref().map(|token| token.expose()), None);
    fixed(made.ok_or_else(|| auth.wrong("secret_access_key", "or what goes with it has characters that no key has"))?)
}

fn environment(auth: &Auth<'_, '_>) -> Result<CredentialSource, ConfigError> {
    let variable = |name: &str| {
        let given = auth.variable(name);
        given.ok_or_else(|| auth.wrong("credentials", format_args!("are in the environment, and {name} is not set")))
    };
    let (id, secret) = (variable("AWS_ACCESS_KEY_ID")?, variable("AWS_SECRET_ACCESS_KEY")?);
    let made = Credentials::new(&id, &secret, auth.variable("AWS_SESSION_TOKEN").as_deref(), None);
    let why = "are in the environment (AWS_ACCESS_KEY_ID), and have characters that no key has";
    fixed(made.ok_or_else(|| auth.wrong("credentials", why))?)
}

fn of_profile(auth: &Auth<'_, '_>, raw: &Raw) -> Result<CredentialSource, ConfigError> {
    let usual = || auth.variable("AWS_SHARED_CREDENTIALS_FILE").map(PathBuf::from);
    let home = || Some(PathBuf::from(auth.variable("HOME")?).join(".aws/credentials"));
    let file = raw.profile_file.clone().or_else(usual).or_else(home);
    let file = file.ok_or_else(|| auth.wrong("profile_file", "is missing, and there is no HOME to look in"))?;
    let name = raw.profile.clone().or_else(|| auth.variable("AWS_PROFILE")).unwrap_or_else(|| "default".to_owned());
    let shown = file.display().to_string();
    let what = if raw.profile_file.is_some() { "profile_file" } else { "credentials" };
    let source = SecretSpec { sources: vec![SecretSource::File(file)], prefix: String::new() };
    let text = auth.secret(what, &source)?;
    let made = profile(text.expose(), &name).map_err(|error| auth.wrong(what, format_args!("{shown} {error}")))?;
    fixed(made)
}

#[expect(clippy::unnecessary_wraps, reason = "the end of each way to credentials")]
fn fixed(credentials: Credentials) -> Result<CredentialSource, ConfigError> {
    Ok(CredentialSource::Fixed(Arc::new(credentials)))
}
