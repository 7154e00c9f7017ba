//! `type = "aws-sigv4"`: a signature of each request, as AWS takes it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::proof::{
    AwsSettings, AwsSigV4, ContainerToken, CredentialSource, Credentials, IdentityToken, Lender, PayloadPolicy, Scope,
    WebIdentity, profile,
};
use culvert_model::proof::Algorithm;
use culvert_ops::config::ConfigError;
use culvert_ops::secret::{Secret, SecretSource, SecretSpec};
use http::HeaderName;
use serde::Deserialize;

use super::Auth;
use super::federated::federated;

/// How long STS lends a role.
const SESSIONS: std::ops::RangeInclusive<Duration> = Duration::from_secs(900)..=Duration::from_secs(12 * 3600);
/// EC2's metadata service, and the one of ECS.
const INSTANCE: &str = "http://169.254.169.254";
const CONTAINER: &str = "http://169.254.170.2";
const FULL_URI: &str = "AWS_CONTAINER_CREDENTIALS_FULL_URI";
const RELATIVE_URI: &str = "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI";

/// What it can say.
pub(super) const KEYS: [&str; 21] = [
    "service",
    "region",
    "credentials",
    "access_key_id",
    "secret_access_key",
    "session_token",
    "profile",
    "profile_file",
    "role_arn",
    "session_name",
    "session_lifetime",
    "token_file",
    "endpoint",
    "ca",
    "algorithm",
    "audience",
    "issuer",
    "subject",
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
    role_arn: Option<String>,
    session_name: Option<String>,
    #[serde(default, deserialize_with = "culvert_ops::config::given")]
    session_lifetime: Option<Duration>,
    token_file: Option<PathBuf>,
    endpoint: Option<String>,
    ca: Option<PathBuf>,
    algorithm: Option<Algorithm>,
    audience: Option<String>,
    issuer: Option<String>,
    subject: Option<String>,
    payload: Option<String>,
    payload_limit: Option<usize>,
    #[serde(default)]
    signed_headers: Vec<String>,
}

/// Says what it means.
///
/// # Errors
/// The first key that is wrong.
pub(super) fn settle(auth: &Auth<'_>) -> Result<AwsSigV4, ConfigError> {
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
        credentials: credentials(auth, &raw, &region)?,
        scope: Scope { service, region },
        payload,
        payload_limit: auth.payload_limit(raw.payload_limit)?,
    }))
}

/// Those that are named, else the first that are there, in the order of AWS's own tools.
fn credentials(auth: &Auth<'_>, raw: &Raw, region: &str) -> Result<CredentialSource, ConfigError> {
    let keys = [
        ("access_key_id", raw.access_key_id.is_some()),
        ("secret_access_key", raw.secret_access_key.is_some()),
        ("session_token", raw.session_token.is_some()),
    ];
    let of_profile = [("profile", raw.profile.is_some()), ("profile_file", raw.profile_file.is_some())];
    let of_role = [
        ("role_arn", raw.role_arn.is_some()),
        ("session_name", raw.session_name.is_some()),
        ("session_lifetime", raw.session_lifetime.is_some()),
        ("token_file", raw.token_file.is_some()),
        ("algorithm", raw.algorithm.is_some()),
        ("audience", raw.audience.is_some()),
        ("issuer", raw.issuer.is_some()),
        ("subject", raw.subject.is_some()),
    ];
    let is_set = |name: &str| auth.variable(name).is_some();
    let is_given = |keys: &[(&str, bool)]| keys.iter().any(|(_, is_given)| *is_given);
    let kind = match raw.credentials.as_deref() {
        Some(kind) => kind,
        None if is_given(&keys) => "keys",
        None if is_given(&of_profile) => "profile",
        None if is_given(&of_role) => "web-identity",
        None if is_set("AWS_ACCESS_KEY_ID") => "environment",
        None if is_set("AWS_WEB_IDENTITY_TOKEN_FILE") => "web-identity",
        None if usual_file(auth).is_some_and(|file| file.exists()) => "profile",
        None if is_set(FULL_URI) || is_set(RELATIVE_URI) => "container",
        None => "instance",
    };
    let others: [(&str, &[(&str, bool)]); 3] = [("keys", &keys), ("profile", &of_profile), ("web-identity", &of_role)];
    for (owner, keys) in others {
        if let Some((name, _)) = keys.iter().find(|(_, is_given)| *is_given && owner != kind) {
            return Err(auth.wrong(name, format_args!("is not for credentials that come from {kind:?}: take it out")));
        }
    }
    let asked = [("endpoint", raw.endpoint.is_some()), ("ca", raw.ca.is_some())];
    if let Some((name, _)) = asked.iter().find(|(_, is_given)| *is_given)
        && !["web-identity", "instance", "container"].contains(&kind)
    {
        return Err(auth.wrong(name, format_args!("is not for credentials that come from {kind:?}: take it out")));
    }
    match kind {
        "keys" => given_keys(auth, raw),
        "environment" => environment(auth),
        "profile" => profiled(auth, raw),
        "web-identity" => web_identity(auth, raw, region),
        "container" => container(auth, raw),
        _ => {
            let usual = || auth.variable("AWS_EC2_METADATA_SERVICE_ENDPOINT");
            let url = raw.endpoint.clone().or_else(usual).unwrap_or_else(|| INSTANCE.to_owned());
            Ok(CredentialSource::lent(Lender::Instance { endpoint: auth.endpoint("endpoint", &url, None)? }))
        }
    }
}

fn web_identity(auth: &Auth<'_>, raw: &Raw, region: &str) -> Result<CredentialSource, ConfigError> {
    let role = raw.role_arn.clone().or_else(|| auth.variable("AWS_ROLE_ARN"));
    let role_arn = auth.needed("role_arn", role, "the role to take, as arn:aws:iam::123456789012:role/origins")?;
    if !role_arn.starts_with("arn:") {
        return Err(auth.wrong("role_arn", "is none: arn:aws:iam::ACCOUNT:role/NAME is expected"));
    }
    let session = raw.session_name.clone().or_else(|| auth.variable("AWS_ROLE_SESSION_NAME"));
    let session_name = session.unwrap_or_else(|| "culvert".to_owned());
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"_+=,.@-".contains(&byte);
    if !(2..=64).contains(&session_name.len()) || !session_name.bytes().all(fits) {
        return Err(auth.wrong("session_name", "must be 2 to 64 letters, digits and _+=,.@-"));
    }
    let lifetime = raw.session_lifetime.unwrap_or(Duration::from_secs(3600));
    if !SESSIONS.contains(&lifetime) {
        return Err(auth.wrong("session_lifetime", "must be from 15m to 12h, as STS lends roles"));
    }
    let of_token = [("audience", &raw.audience), ("issuer", &raw.issuer), ("subject", &raw.subject)];
    let is_ours = raw.token_file.is_none() && of_token.iter().any(|(_, given)| given.is_some());
    let environment = || auth.variable("AWS_WEB_IDENTITY_TOKEN_FILE").map(PathBuf::from).filter(|_| !is_ours);
    let token = match raw.token_file.clone().or_else(environment) {
        Some(file) => {
            if let Some((name, _)) = of_token.iter().find(|(_, given)| given.is_some()) {
                return Err(
                    auth.wrong(name, "is about the connector's own token, and token_file names another: take one out")
                );
            }
            IdentityToken::File(file)
        }
        None => {
            if raw.algorithm == Some(Algorithm::EdDsa) {
                return Err(auth.wrong("algorithm", "must be RS256 or ES256: STS takes no EdDSA"));
            }
            let audience = raw.audience.clone().unwrap_or_else(|| "sts.amazonaws.com".to_owned());
            IdentityToken::Own(federated(raw.algorithm, audience, raw.issuer.clone(), raw.subject.clone()))
        }
    };
    let url = raw.endpoint.clone().unwrap_or_else(|| {
        let china = if region.starts_with("cn-") { ".cn" } else { "" };
        format!("https://sts.{region}.amazonaws.com{china}/")
    });
    let endpoint = auth.endpoint("endpoint", &url, raw.ca.as_deref())?;
    let identity = WebIdentity::new(endpoint, role_arn, session_name, lifetime, token);
    Ok(CredentialSource::lent(Lender::WebIdentity(Box::new(identity))))
}

fn container(auth: &Auth<'_>, raw: &Raw) -> Result<CredentialSource, ConfigError> {
    let relative = || auth.variable(RELATIVE_URI).map(|path| format!("{CONTAINER}{path}"));
    let url = raw.endpoint.clone().or_else(|| auth.variable(FULL_URI)).or_else(relative);
    let why = "are a container's, and neither endpoint nor AWS_CONTAINER_CREDENTIALS_FULL_URI says where";
    let endpoint = auth.endpoint("endpoint", &url.ok_or_else(|| auth.wrong("credentials", why))?, raw.ca.as_deref())?;
    let file = auth.variable("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE").map(PathBuf::from).map(ContainerToken::File);
    let text = || auth.variable("AWS_CONTAINER_AUTHORIZATION_TOKEN").map(Secret::new).map(ContainerToken::Text);
    Ok(CredentialSource::lent(Lender::Container { endpoint, authorization: file.or_else(text) }))
}

fn given_keys(auth: &Auth<'_>, raw: &Raw) -> Result<CredentialSource, ConfigError> {
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

fn environment(auth: &Auth<'_>) -> Result<CredentialSource, ConfigError> {
    let variable = |name: &str| {
        let given = auth.variable(name);
        given.ok_or_else(|| auth.wrong("credentials", format_args!("are in the environment, and {name} is not set")))
    };
    let (id, secret) = (variable("AWS_ACCESS_KEY_ID")?, variable("AWS_SECRET_ACCESS_KEY")?);
    let made = Credentials::new(&id, &secret, auth.variable("AWS_SESSION_TOKEN").as_deref(), None);
    let why = "are in the environment (AWS_ACCESS_KEY_ID), and have characters that no key has";
    fixed(made.ok_or_else(|| auth.wrong("credentials", why))?)
}

fn profiled(auth: &Auth<'_>, raw: &Raw) -> Result<CredentialSource, ConfigError> {
    let file = raw.profile_file.clone().or_else(|| usual_file(auth));
    let file = file.ok_or_else(|| auth.wrong("profile_file", "is missing, and there is no HOME to look in"))?;
    let name = raw.profile.clone().or_else(|| auth.variable("AWS_PROFILE")).unwrap_or_else(|| "default".to_owned());
    let shown = file.display().to_string();
    let what = if raw.profile_file.is_some() { "profile_file" } else { "credentials" };
    let source = SecretSpec { sources: vec![SecretSource::File(file)], prefix: String::new() };
    let text = auth.secret(what, &source)?;
    let made = profile(text.expose(), &name).map_err(|error| auth.wrong(what, format_args!("{shown} {error}")))?;
    fixed(made)
}

fn usual_file(auth: &Auth<'_>) -> Option<PathBuf> {
    let named = auth.variable("AWS_SHARED_CREDENTIALS_FILE").map(PathBuf::from);
    named.or_else(|| Some(PathBuf::from(auth.variable("HOME")?).join(".aws/credentials")))
}

#[expect(clippy::unnecessary_wraps, reason = "the end of each way to credentials")]
fn fixed(credentials: Credentials) -> Result<CredentialSource, ConfigError> {
    Ok(CredentialSource::Fixed(Arc::new(credentials)))
}
