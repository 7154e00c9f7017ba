//! Who lends credentials, and how each is asked: STS for a role, and the metadata services of EC2, ECS and EKS.
//!
//! Must never follow where an answer leads, but to a role's name.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use culvert_model::name::ServiceName;
use culvert_model::proof::Algorithm;
use culvert_ops::secret::{Secret, SecretSource};
use http::header::{ACCEPT, AUTHORIZATION};
use http::{HeaderName, HeaderValue, Method, StatusCode};
use zeroize::Zeroizing;

use super::answer::{assumed, metadata, refusal};
use super::sign::Credentials;
use crate::proof::exchange::{Answer, Endpoint, Question};
use crate::proof::federated::TheirClock;
use crate::proof::{Federated, Fresh, Proofs, Source, Trouble};

const TOKEN: HeaderName = HeaderName::from_static("x-aws-ec2-metadata-token");
const TOKEN_TTL: HeaderName = HeaderName::from_static("x-aws-ec2-metadata-token-ttl-seconds");
/// Long enough for the two questions that follow.
const TOKEN_SECONDS: HeaderValue = HeaderValue::from_static("60");
/// AWS has new ones five minutes before the old ones end.
const AHEAD: Duration = Duration::from_secs(300);

/// Who lends credentials.
#[derive(Debug, PartialEq)]
pub enum Lender {
    /// STS, for a token: `AssumeRoleWithWebIdentity`.
    WebIdentity(Box<WebIdentity>),
    /// The metadata service of ECS or EKS.
    Container {
        /// Where it is.
        endpoint: Endpoint,
        /// What it wants to see, if anything.
        authorization: Option<ContainerToken>,
    },
    /// The metadata service of EC2, in its second version.
    Instance {
        /// Where it is.
        endpoint: Endpoint,
    },
}

/// A role of STS, and the token that it is lent for. Equal when the settings are.
#[derive(Debug)]
pub struct WebIdentity {
    endpoint: Endpoint,
    role_arn: String,
    /// What the session is called in AWS's logs.
    session_name: String,
    lifetime: Duration,
    token: IdentityToken,
    clock: TheirClock,
}

/// A token that proves who asks.
#[derive(Debug, PartialEq)]
pub enum IdentityToken {
    /// One that this connector signs.
    Own(Federated),
    /// One that something else keeps fresh, as in Kubernetes.
    File(PathBuf),
}

/// What a container's metadata service wants to see.
#[derive(Clone)]
pub enum ContainerToken {
    /// This.
    Text(Secret),
    /// What is in a file at that time.
    File(PathBuf),
}

impl Source for Lender {
    type Item = Arc<Credentials>;

    async fn fetch(&self, service: &ServiceName, proofs: &Proofs) -> Result<Fresh<Arc<Credentials>>, Trouble> {
        let names = proofs.names();
        match self {
            Self::WebIdentity(identity) => {
                let mut answer = identity.ask(service, proofs).await?;
                if answer.status != StatusCode::OK && identity.clock.note(answer.ahead) {
                    // It may have been refused for its time alone.
                    answer = identity.ask(service, proofs).await?;
                }
                if answer.status != StatusCode::OK
                    && let Some(words) = refusal(&answer.body)
                {
                    let (by, rest) = (identity.endpoint.url().into(), answer.rest);
                    return Err(Trouble::Refused { by, status: answer.status.as_u16(), words, rest });
                }
                fresh(&answer, assumed)
            }
            Self::Container { endpoint, authorization } => {
                let mut question = Question::get();
                if let Some(token) = authorization {
                    question = question.with(AUTHORIZATION, token.value()?);
                }
                fresh(&endpoint.ask(question, names).await?, metadata)
            }
            Self::Instance { endpoint } => {
                let below = |path: &str| endpoint.below(path).map_err(|error| Trouble::Here(error.to_string()));
                let wanted = Question::get().by(Method::PUT).with(TOKEN_TTL, TOKEN_SECONDS);
                let token = word(&below("/latest/api/token")?.ask(wanted, names).await?, "a token")?;
                let mut token = HeaderValue::from_str(&token).map_err(|error| Trouble::Here(error.to_string()))?;
                token.set_sensitive(true);
                let shown = || Question::get().with(TOKEN, token.clone());
                let roles = below("/latest/meta-data/iam/security-credentials/")?;
                let role = word(&roles.ask(shown(), names).await?, "a role's name")?;
                let of_role = below(&format!("/latest/meta-data/iam/security-credentials/{role}"))?;
                fresh(&of_role.ask(shown(), names).await?, metadata)
            }
        }
    }
}

/// One word, as of a path or a field.
fn word(answer: &Answer, what: &str) -> Result<String, Trouble> {
    let text = std::str::from_utf8(answer.whole()?).unwrap_or_default().trim();
    let is_word = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic() && !b"/?#".contains(&byte));
    // Tokens are base64, in which a slash stands.
    let is_token = !text.is_empty() && what == "a token" && text.bytes().all(|byte| byte.is_ascii_graphic());
    if is_word || is_token { Ok(text.to_owned()) } else { Err(answer.nonsense(&format!("it is not {what}"))) }
}

fn fresh(
    answer: &Answer,
    read: impl Fn(&[u8]) -> Result<Credentials, String>,
) -> Result<Fresh<Arc<Credentials>>, Trouble> {
    let credentials = read(answer.whole()?).map_err(|why| answer.nonsense(&why))?;
    let ends = credentials.expires.ok_or_else(|| answer.nonsense("it says no Expiration"))?;
    // By the clock of whoever says when it ends.
    let ahead = answer.ahead.unwrap_or_default();
    let theirs = SystemTime::now();
    let apart = Duration::from_secs(ahead.unsigned_abs());
    let theirs = if ahead < 0 { theirs - apart } else { theirs + apart };
    let life = ends.duration_since(theirs).unwrap_or_default();
    let renew_after = life.checked_sub(AHEAD).filter(|after| *after > life / 2);
    Ok(Fresh { item: Arc::new(credentials), asked: answer.asked, life, renew_after })
}

impl WebIdentity {
    /// Not asked yet.
    pub fn new(
        endpoint: Endpoint,
        role_arn: String,
        session_name: String,
        lifetime: Duration,
        token: IdentityToken,
    ) -> Self {
        Self { endpoint, role_arn, session_name, lifetime, token, clock: TheirClock::default() }
    }

    /// Which of the connector's own keys it needs.
    pub(super) fn algorithm(&self) -> Option<Algorithm> {
        match &self.token {
            IdentityToken::Own(federated) => Some(federated.algorithm()),
            IdentityToken::File(_) => None,
        }
    }

    async fn ask(&self, service: &ServiceName, proofs: &Proofs) -> Result<Answer, Trouble> {
        let token = match &self.token {
            IdentityToken::Own(federated) => federated.token(service, proofs, self.clock.now()).await?,
            IdentityToken::File(path) => Zeroizing::new(read(path)?.expose().trim().to_owned()),
        };
        let seconds = self.lifetime.as_secs().to_string();
        let question = Question::form([
            ("Action", "AssumeRoleWithWebIdentity"),
            ("Version", "2011-06-15"),
            ("RoleArn", &self.role_arn),
            ("RoleSessionName", &self.session_name),
            ("DurationSeconds", &seconds),
            ("WebIdentityToken", &token),
        ]);
        // What STS answers is documented as XML alone.
        let question = question.with(ACCEPT, HeaderValue::from_static("text/xml"));
        self.endpoint.ask(question, proofs.names()).await
    }
}

impl PartialEq for WebIdentity {
    fn eq(&self, other: &Self) -> bool {
        (&self.endpoint, &self.role_arn, &self.session_name, self.lifetime, &self.token)
            == (&other.endpoint, &other.role_arn, &other.session_name, other.lifetime, &other.token)
    }
}

impl ContainerToken {
    fn value(&self) -> Result<HeaderValue, Trouble> {
        let secret = match self {
            Self::Text(secret) => secret.clone(),
            Self::File(path) => read(path)?,
        };
        let value = HeaderValue::from_str(secret.expose().trim());
        let mut value = value.map_err(|_| Trouble::Here("the container's token is no field's value".to_owned()))?;
        value.set_sensitive(true);
        Ok(value)
    }
}

/// A small file that something else keeps fresh: read when it is needed.
fn read(path: &Path) -> Result<Secret, Trouble> {
    let secret = SecretSource::File(path.to_path_buf()).read(&BTreeMap::new());
    secret.map_err(|error| Trouble::Here(error.to_string()))
}

impl PartialEq for ContainerToken {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Text(one), Self::Text(other)) => one.expose() == other.expose(),
            (Self::File(one), Self::File(other)) => one == other,
            (Self::Text(_) | Self::File(_), _) => false,
        }
    }
}

impl fmt::Debug for ContainerToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ContainerToken")
    }
}
