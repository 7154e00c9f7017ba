//! ID tokens that Google signs for an audience (Cloud Run, functions, IAP): for a service account's key, for our own token
//! (workload identity federation), or for being a machine of Google's.
//!
//! Must never send a key, a token, or more than a question about an audience to the metadata service.

use std::fmt::Write as _;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use culvert_model::name::ServiceName;
use culvert_ops::time::unix_seconds;
use http::{HeaderName, HeaderValue, header};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde_json::json;
use zeroize::Zeroizing;

use super::KeyFile;
use crate::proof::carried::field;
use crate::proof::exchange::{Answer, Endpoint, Question};
use crate::proof::federated::{Federated, TheirClock};
use crate::proof::jws::Times;
use crate::proof::trouble::Trouble;
use crate::proof::{Fresh, Proofs, Source};

/// Where our own token becomes one of Google's.
pub const STS: &str = "https://sts.googleapis.com/v1/token";
/// Who makes ID tokens for service accounts.
pub const IAM_CREDENTIALS: &str = "https://iamcredentials.googleapis.com";
/// Who does it for a machine's own.
pub const METADATA: &str =
    "http://metadata.google.internal/computeMetadata/v1/instance/service-accounts/default/identity";

const METADATA_FLAVOR: HeaderName = HeaderName::from_static("metadata-flavor");
const GOOGLE: HeaderValue = HeaderValue::from_static("Google");

/// What `[service.auth]` of type `gcp-id-token` says.
#[derive(Debug, PartialEq)]
pub struct GcpIdTokenSettings {
    /// Who is to take it.
    pub audience: String,
    /// What Google gives it for.
    pub from: IdTokenFrom,
    /// What stands before the token.
    pub prefix: String,
}

/// What Google gives an ID token for.
#[derive(Debug, PartialEq)]
pub enum IdTokenFrom {
    /// A service account's key.
    Key {
        /// The key.
        key: KeyFile,
        /// Where it is exchanged.
        endpoint: Endpoint,
    },
    /// Our own token.
    Federation(Box<Federation>),
    /// Being one of Google's machines.
    Metadata(Endpoint),
}

/// A pool that trusts our issuer, and the account that its members may speak for.
#[derive(Debug, PartialEq)]
pub struct Federation {
    /// Our own token.
    pub federated: Federated,
    /// Who is asked to take it.
    pub pool: Pool,
    /// For whom the ID token is.
    pub account: Account,
    /// Where our token is exchanged.
    pub sts: Endpoint,
    /// Who makes ID tokens.
    pub iam_credentials: Endpoint,
}

/// A provider of a workload identity pool: `projects/N/locations/global/workloadIdentityPools/POOL/providers/PROVIDER`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool(String);

/// A service account's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account(String);

/// The text names no provider, or no account.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadAccount {
    /// No provider.
    #[error(
        "{0:?} is no provider: projects/NUMBER/locations/global/workloadIdentityPools/POOL/providers/PROVIDER is expected"
    )]
    Pool(String),
    /// No account.
    #[error("{0:?} is no service account: NAME@PROJECT.iam.gserviceaccount.com is expected")]
    Account(String),
}

impl Pool {
    /// The audience at STS.
    pub fn resource(&self) -> String {
        format!("//iam.googleapis.com/{}", self.0)
    }

    /// The `aud` of our own token that a provider takes unless it was told others.
    pub fn audience(&self) -> String {
        format!("https://iam.googleapis.com/{}", self.0)
    }
}

impl FromStr for Pool {
    type Err = BadAccount;

    fn from_str(text: &str) -> Result<Self, BadAccount> {
        let name = text.trim_start_matches("https:").trim_start_matches("//iam.googleapis.com/");
        let parts: Vec<&str> = name.split('/').collect();
        match parts.as_slice() {
            ["projects", project, "locations", place, "workloadIdentityPools", pool, "providers", provider]
                if [project, place, pool, provider].iter().all(|part| !part.is_empty()) =>
            {
                Ok(Self(name.to_owned()))
            }
            _ => Err(BadAccount::Pool(text.to_owned())),
        }
    }
}

impl FromStr for Account {
    type Err = BadAccount;

    fn from_str(text: &str) -> Result<Self, BadAccount> {
        let is_plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'@' | b'.' | b'-' | b'_'));
        let fits =
            is_plain && matches!(text.split_once('@'), Some((name, place)) if !name.is_empty() && place.contains('.'));
        if fits { Ok(Self(text.to_owned())) } else { Err(BadAccount::Account(text.to_owned())) }
    }
}

/// Asks Google.
#[derive(Debug)]
pub struct GcpIdToken {
    settings: GcpIdTokenSettings,
    clock: TheirClock,
}

#[derive(Deserialize)]
struct Exchanged {
    id_token: Zeroizing<String>,
}

#[derive(Deserialize)]
struct Federal {
    access_token: Zeroizing<String>,
    token_type: String,
}

#[derive(Deserialize)]
struct Generated {
    token: Zeroizing<String>,
}

impl GcpIdToken {
    /// With these settings.
    pub fn new(settings: GcpIdTokenSettings) -> Self {
        Self { settings, clock: TheirClock::default() }
    }

    /// What it says.
    pub const fn settings(&self) -> &GcpIdTokenSettings {
        &self.settings
    }

    /// Whether it is the same account for the same audience, by whatever key.
    pub fn is_for_the_same(&self, other: &Self) -> bool {
        let (own, others) = (&self.settings, &other.settings);
        let same = match (&own.from, &others.from) {
            (IdTokenFrom::Key { key, endpoint }, IdTokenFrom::Key { key: other, endpoint: from }) => {
                key.email() == other.email() && endpoint.url() == from.url()
            }
            (one, other) => one == other,
        };
        same && (&own.audience, &own.prefix) == (&others.audience, &others.prefix)
    }

    /// What was signed for another time is signed once more; the token, and who gave it.
    async fn ask(&self, service: &ServiceName, proofs: &Proofs) -> Result<(Zeroizing<String>, Answer), Trouble> {
        let mut is_again = false;
        loop {
            let mut has_moved = false;
            match self.ask_once(service, proofs, &mut has_moved).await {
                Err(trouble) if trouble.is_refusal() && has_moved && !is_again => is_again = true,
                done => return done,
            }
        }
    }

    async fn ask_once(
        &self,
        service: &ServiceName,
        proofs: &Proofs,
        has_moved: &mut bool,
    ) -> Result<(Zeroizing<String>, Answer), Trouble> {
        let (audience, now, names) = (self.settings.audience.as_str(), self.clock.now(), proofs.names());
        match &self.settings.from {
            IdTokenFrom::Key { key, endpoint } => {
                let assertion = key.sign(endpoint.url(), Some(("target_audience", audience)), now)?;
                let question = Question::form([
                    ("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer"),
                    ("assertion", assertion.as_str()),
                ]);
                let answer = endpoint.ask(question, names).await?;
                *has_moved = self.clock.note(answer.ahead);
                Ok((answer.read::<Exchanged>()?.id_token, answer))
            }
            IdTokenFrom::Federation(federation) => {
                let own = federation.federated.token(service, proofs, now).await?;
                let question = Question::form([
                    ("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"),
                    ("audience", &federation.pool.resource()),
                    ("scope", "https://www.googleapis.com/auth/cloud-platform"),
                    ("requested_token_type", "urn:ietf:params:oauth:token-type:access_token"),
                    ("subject_token_type", "urn:ietf:params:oauth:token-type:jwt"),
                    ("subject_token", own.as_str()),
                ]);
                let answer = federation.sts.ask(question, names).await?;
                *has_moved = self.clock.note(answer.ahead);
                let federal: Federal = answer.read()?;
                if !federal.token_type.eq_ignore_ascii_case("bearer") {
                    return Err(answer.nonsense("it is no bearer token"));
                }
                let bearer = field("Bearer ", &federal.access_token);
                let bearer = bearer.ok_or_else(|| answer.nonsense("the token holds what no field may hold"))?;
                let path = format!("/v1/projects/-/serviceAccounts/{}:generateIdToken", federation.account.0);
                let endpoint = federation.iam_credentials.below(&path);
                let endpoint = endpoint.map_err(|error| Trouble::Here(error.to_string()))?;
                let question = Question::json(&json!({ "audience": audience, "includeEmail": true }));
                let answer = endpoint.ask(question.with(header::AUTHORIZATION, bearer), names).await?;
                Ok((answer.read::<Generated>()?.token, answer))
            }
            IdTokenFrom::Metadata(endpoint) => {
                let mut query = String::from("?audience=");
                let _ = write!(query, "{}&format=full", utf8_percent_encode(audience, NON_ALPHANUMERIC));
                let endpoint = endpoint.below(&query).map_err(|error| Trouble::Here(error.to_string()))?;
                let answer = endpoint.ask(Question::get().with(METADATA_FLAVOR, GOOGLE), names).await?;
                let token = std::str::from_utf8(answer.whole()?).map_err(|_| answer.nonsense("it is no text"))?;
                Ok((Zeroizing::new(token.trim().to_owned()), answer))
            }
        }
    }
}

impl Source for GcpIdToken {
    type Item = HeaderValue;

    async fn fetch(&self, service: &ServiceName, proofs: &Proofs) -> Result<Fresh<HeaderValue>, Trouble> {
        let (token, answer) = self.ask(service, proofs).await?;
        let times = Times::of(&token).ok_or_else(|| answer.nonsense("it is no token that says when it ends"))?;
        let life = life(&times, answer.ahead, SystemTime::now());
        let item = field(&self.settings.prefix, &token);
        let item = item.ok_or_else(|| answer.nonsense("the token holds what no field may hold"))?;
        Ok(Fresh { item, asked: answer.asked, life, renew_after: None })
    }
}

/// How long a token lives from now on: by the clock of who gave it, if that was told. It may have been made a while ago.
fn life(times: &Times, ahead: Option<i64>, now: SystemTime) -> Duration {
    let now = unix_seconds(now).saturating_add(ahead.unwrap_or(0));
    let left = times.exp.saturating_sub(u64::try_from(now).unwrap_or(0));
    let whole = times.iat.map_or(left, |iat| times.exp.saturating_sub(iat));
    Duration::from_secs(left.min(whole))
}

impl PartialEq for GcpIdToken {
    fn eq(&self, other: &Self) -> bool {
        self.settings == other.settings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_provider_and_an_account_are_read_in_every_spelling_that_google_uses() {
        let name = "projects/123/locations/global/workloadIdentityPools/culvert/providers/relay";
        for text in
            [name.to_owned(), format!("//iam.googleapis.com/{name}"), format!("https://iam.googleapis.com/{name}")]
        {
            let pool: Pool = text.parse().unwrap();
            assert_eq!(pool.resource(), format!("//iam.googleapis.com/{name}"));
            assert_eq!(pool.audience(), format!("https://iam.googleapis.com/{name}"));
        }
        for text in
            ["", "projects/123", &format!("{name}/x"), "projects//locations/global/workloadIdentityPools/a/providers/b"]
        {
            assert!(text.parse::<Pool>().is_err(), "{text}");
        }
        assert!("orders@p.iam.gserviceaccount.com".parse::<Account>().is_ok());
        for text in ["", "orders", "@x.y", "a@b", "a@b.c/../x", "a@b.c:generateAccessToken"] {
            assert!(text.parse::<Account>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_token_that_was_made_before_or_by_another_clock_lives_as_long_as_it_does_there() {
        let at = |seconds: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let times = |iat, exp| Times { iat: Some(iat), exp };
        for (token, ahead, seconds) in [
            (times(1000, 4600), Some(0), 3600),
            (times(400, 4000), Some(0), 3000),
            (times(1300, 4900), Some(300), 3600),
            (times(700, 4300), Some(-300), 3600),
            (times(1300, 4900), None, 3600),
            (times(0, 900), Some(0), 0),
            (Times { iat: None, exp: 1500 }, Some(0), 500),
        ] {
            assert_eq!(life(&token, ahead, at(1000)).as_secs(), seconds, "{token:?} {ahead:?}");
        }
    }
}
