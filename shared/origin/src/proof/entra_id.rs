//! Access tokens of Microsoft Entra ID, by the client credentials flow: with a secret, a certificate's key, or our own token.
//!
//! Sources: "OAuth 2.0 client credentials flow on the Microsoft identity platform", "Application authentication certificate
//! credentials". Must never send a secret anywhere but to the token endpoint.

use std::fmt;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use culvert_model::name::ServiceName;
use culvert_ops::secret::Secret;
use culvert_ops::time::unix_seconds;
use http::HeaderValue;
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::carried::field;
use super::exchange::{Endpoint, Question};
use super::federated::{Federated, TheirClock};
use super::rsa::{Padding, RsaKey};
use super::trouble::Trouble;
use super::{Fresh, Proofs, Source, jws};
use crate::tls::Expiry;

/// Microsoft: "short, 5-10 minutes after nbf at most".
const ASSERTION: u64 = 300;
/// RFC 7523 §2.2.
const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// What `[service.auth]` of type `entra-id` says.
#[derive(Debug, PartialEq)]
pub struct EntraIdSettings {
    /// The token endpoint.
    pub endpoint: Endpoint,
    /// The application that asks.
    pub client_id: String,
    /// What for.
    pub wanted: Wanted,
    /// How it proves to be that application.
    pub credential: ClientCredential,
    /// What stands before the token.
    pub prefix: String,
}

/// What a token is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// As endpoints of version 2 have it: `api://…/.default`.
    Scope(String),
    /// As endpoints of version 1 have it.
    Resource(String),
}

/// How an application proves itself.
#[derive(PartialEq)]
pub enum ClientCredential {
    /// By a text that both know.
    Secret(SharedSecret),
    /// By a certificate's key.
    Certificate(Box<CertificateKey>),
    /// By our own token.
    Federated(Box<Federated>),
}

/// A text that both know.
pub struct SharedSecret(pub Secret);

/// A certificate that Entra ID has been given, and its key.
pub struct CertificateKey {
    key: RsaKey,
    /// `x5t#S256`
    thumbprint: String,
    expiry: Option<Expiry>,
}

/// Asks Entra ID.
#[derive(Debug)]
pub struct EntraId {
    settings: EntraIdSettings,
    clock: TheirClock,
}

/// What Entra ID answers. Endpoints of version 1 write numbers as texts.
#[derive(Deserialize)]
struct Said {
    access_token: Zeroizing<String>,
    token_type: String,
    expires_in: Value,
    #[serde(default)]
    refresh_in: Value,
}

impl CertificateKey {
    /// From a certificate (DER) and its key (PEM).
    ///
    /// # Errors
    /// What is wrong with the key.
    pub fn new(certificate: &[u8], key: &str) -> Result<Self, &'static str> {
        let key = RsaKey::from_pem(key)?;
        if !key.is_of(certificate) {
            return Err("is not the certificate's");
        }
        let thumbprint = URL_SAFE_NO_PAD.encode(Sha256::digest(certificate));
        Ok(Self { key, thumbprint, expiry: Expiry::of_one("certificate", certificate) })
    }

    /// When the certificate ends.
    pub const fn expiry(&self) -> Option<Expiry> {
        self.expiry
    }

    fn assertion(&self, client_id: &str, audience: &str, now: SystemTime) -> Option<Zeroizing<String>> {
        let seconds = u64::try_from(unix_seconds(now)).ok()?;
        let head = json!({ "alg": "PS256", "typ": "JWT", "x5t#S256": self.thumbprint }).to_string();
        let claims = json!({
            "aud": audience, "iss": client_id, "sub": client_id, "jti": jws::unique(),
            "iat": seconds, "nbf": seconds, "exp": seconds + ASSERTION,
        });
        jws::compact("", &head, &claims, |text| self.key.sign(Padding::Pss, text))
    }
}

impl EntraId {
    /// With these settings.
    pub fn new(settings: EntraIdSettings) -> Self {
        Self { settings, clock: TheirClock::default() }
    }

    /// What it says.
    pub const fn settings(&self) -> &EntraIdSettings {
        &self.settings
    }

    /// Whether it is the same application that asks the same endpoint for the same thing, by whatever credential.
    pub fn is_for_the_same(&self, other: &Self) -> bool {
        let purpose = |of: &Self| {
            let EntraIdSettings { endpoint, client_id, wanted, prefix, .. } = &of.settings;
            (endpoint.url().to_owned(), client_id.clone(), wanted.clone(), prefix.clone())
        };
        purpose(self) == purpose(other)
    }

    async fn question(&self, service: &ServiceName, proofs: &Proofs) -> Result<Question, Trouble> {
        let EntraIdSettings { endpoint, client_id, wanted, credential, .. } = &self.settings;
        let wanted = match wanted {
            Wanted::Scope(scope) => ("scope", scope.as_str()),
            Wanted::Resource(resource) => ("resource", resource.as_str()),
        };
        let common = [("grant_type", "client_credentials"), ("client_id", client_id.as_str()), wanted];
        let now = self.clock.now();
        let assertion = match credential {
            ClientCredential::Secret(SharedSecret(secret)) => {
                return Ok(Question::form(common.into_iter().chain([("client_secret", secret.expose())])));
            }
            ClientCredential::Certificate(certificate) => certificate
                .assertion(client_id, endpoint.url(), now)
                .ok_or_else(|| Trouble::Here("the assertion could not be signed".to_owned()))?,
            ClientCredential::Federated(federated) => federated.token(service, proofs, now).await?,
        };
        let assertion = [("client_assertion_type", ASSERTION_TYPE), ("client_assertion", assertion.as_str())];
        Ok(Question::form(common.into_iter().chain(assertion)))
    }
}

impl Source for EntraId {
    type Item = HeaderValue;

    async fn fetch(&self, service: &ServiceName, proofs: &Proofs) -> Result<Fresh<HeaderValue>, Trouble> {
        let mut is_again = false;
        loop {
            let question = self.question(service, proofs).await?;
            let answer = self.settings.endpoint.ask(question, proofs.names()).await?;
            let has_moved = self.clock.note(answer.ahead);
            let said: Said = match answer.read() {
                // What was signed was for another time.
                Err(trouble) if trouble.is_refusal() && has_moved && !is_again => {
                    is_again = true;
                    continue;
                }
                said => said?,
            };
            if !said.token_type.eq_ignore_ascii_case("bearer") {
                return Err(answer.nonsense("it is no bearer token"));
            }
            let life = seconds(&said.expires_in).ok_or_else(|| answer.nonsense("expires_in is no number"))?;
            let item = field(&self.settings.prefix, &said.access_token);
            let item = item.ok_or_else(|| answer.nonsense("the token holds what no field may hold"))?;
            return Ok(Fresh { item, asked: answer.asked, life, renew_after: seconds(&said.refresh_in) });
        }
    }
}

/// A number, or a text that is one.
pub(super) fn seconds(value: &Value) -> Option<Duration> {
    let number = value.as_u64().or_else(|| value.as_str()?.parse().ok());
    number.map(Duration::from_secs)
}

impl PartialEq for EntraId {
    fn eq(&self, other: &Self) -> bool {
        self.settings == other.settings
    }
}

impl PartialEq for SharedSecret {
    fn eq(&self, other: &Self) -> bool {
        self.0.expose() == other.0.expose()
    }
}

impl PartialEq for CertificateKey {
    fn eq(&self, other: &Self) -> bool {
        // The key is the certificate's.
        self.thumbprint == other.thumbprint
    }
}

impl fmt::Debug for ClientCredential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Secret(_) => "Secret",
            Self::Certificate(_) => "Certificate",
            Self::Federated(_) => "Federated",
        })
    }
}
