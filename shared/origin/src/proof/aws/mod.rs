//! AWS Signature Version 4 (`type = "aws-sigv4"`): for origins that AWS's own identity management guards.
//!
//! Must never send a request that is not signed, or a caller's signature beside ours.

mod answer;
mod canonical;
mod chunked;
mod lender;
mod profile;
mod sign;
mod source;

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use culvert_hop::body::Body;
use culvert_hop::fault::Fault;
use culvert_hop::message::RequestParts;
use culvert_model::proof::Algorithm;
use http::header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderName, HeaderValue};
use http_body::Body as _;

pub use lender::{ContainerToken, IdentityToken, Lender, WebIdentity};
pub use profile::{BadProfile, read as profile};
pub use sign::{Credentials, Scope};
pub use source::CredentialSource;

use self::chunked::{Chunked, STREAMING, encoded_length};
use self::sign::{Signed, Signer, sha256, stamp};
use super::{About, Holder, Proofs, cannot, payload};

const DATE: HeaderName = HeaderName::from_static("x-amz-date");
const CONTENT_SHA256: HeaderName = HeaderName::from_static("x-amz-content-sha256");
const SECURITY_TOKEN: HeaderName = HeaderName::from_static("x-amz-security-token");
const DECODED_LENGTH: HeaderName = HeaderName::from_static("x-amz-decoded-content-length");
const TRAILER: HeaderName = HeaderName::from_static("x-amz-trailer");

const UNSIGNED: &str = "UNSIGNED-PAYLOAD";

/// Whether a body is part of what is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PayloadPolicy {
    /// It is: read whole first, up to a bound.
    Signed,
    /// It streams past unread: for the few services that take it so.
    Unsigned,
    /// It is, piece by piece while it streams: S3 alone takes it so.
    Chunked,
}

/// What `[service.auth]` of type `aws-sigv4` says.
#[derive(Debug, Clone, PartialEq)]
pub struct AwsSettings {
    /// For whom requests are signed.
    pub scope: Scope,
    /// By whom.
    pub credentials: CredentialSource,
    /// Whether bodies are signed.
    pub payload: PayloadPolicy,
    /// The longest body that is read for that.
    pub payload_limit: usize,
    /// Fields that are signed beside those that have to be.
    pub also: Vec<HeaderName>,
}

/// Signs the requests of one service.
pub struct AwsSigV4 {
    settings: AwsSettings,
    signer: Signer,
}

impl AwsSigV4 {
    /// With nothing signed yet.
    pub fn new(settings: AwsSettings) -> Self {
        let signer = Signer::new(settings.scope.clone(), settings.also.clone());
        Self { settings, signer }
    }

    /// Which of the connector's own keys it needs: for tokens that buy credentials.
    pub fn algorithm(&self) -> Option<Algorithm> {
        self.settings.credentials.algorithm()
    }

    /// What holds credentials that are lent.
    pub fn holder(&self) -> Option<&Holder<Lender>> {
        match &self.settings.credentials {
            CredentialSource::Fixed(_) => None,
            CredentialSource::Lent(holder) => Some(holder),
        }
    }

    /// Comes in the place of another: what was lent to that one serves until there is something new, if it is the same
    /// that was lent.
    pub fn take_over(&self, other: &Self) {
        if let (Some(new), Some(old)) = (self.holder(), other.holder())
            && new.source() == old.source()
        {
            new.take_over(old);
        }
    }

    /// The id of the access key, where it is known before it is asked for.
    pub fn key_id(&self) -> Option<&str> {
        self.settings.credentials.key_id()
    }

    /// The names under which no line of a caller's may be left.
    pub fn fields(&self) -> Vec<HeaderName> {
        vec![AUTHORIZATION, DATE, CONTENT_SHA256, SECURITY_TOKEN, DECODED_LENGTH, TRAILER]
    }

    /// Signs a request whose fields are final. The policy of the service has taken out what [`AwsSigV4::fields`] names.
    ///
    /// A request that has to be sent once more goes with the same signature: AWS takes one for five minutes.
    ///
    /// # Errors
    /// A [`Fault`]: `origin_auth`, or `too_large`.
    pub async fn prove(
        &self,
        parts: &mut RequestParts,
        body: Body,
        about: About<'_>,
        proofs: &Proofs,
        now: SystemTime,
    ) -> Result<Body, Fault> {
        let credentials = self.settings.credentials.get(about, proofs).await?;
        if body.is_end_stream() {
            self.sign(parts, &sha256(b""), &credentials, &stamp(now))?;
            return Ok(body);
        }
        match self.settings.payload {
            PayloadPolicy::Unsigned => {
                self.sign(parts, UNSIGNED, &credentials, &stamp(now))?;
                Ok(body)
            }
            PayloadPolicy::Signed => {
                let whole = payload::read(parts, body, self.settings.payload_limit).await?;
                self.sign(parts, &sha256(&whole.bytes), &credentials, &stamp(now))?;
                Ok(whole.body)
            }
            PayloadPolicy::Chunked => self.chunked(parts, body, &credentials, &stamp(now)).await,
        }
    }

    async fn chunked(
        &self,
        parts: &mut RequestParts,
        body: Body,
        credentials: &Arc<Credentials>,
        stamp: &str,
    ) -> Result<Body, Fault> {
        // S3 wants to know the length before the first piece.
        let (body, length) = match body.size_hint().exact() {
            Some(length) => (body, length),
            None => {
                let whole = payload::read(parts, body, self.settings.payload_limit).await?;
                let length = u64::try_from(whole.bytes.len()).unwrap_or(u64::MAX);
                (whole.body, length)
            }
        };
        let coding = match parts.headers.get(CONTENT_ENCODING) {
            Some(coding) => HeaderValue::from_bytes(&[b"aws-chunked,", coding.as_bytes()].concat()).ok(),
            None => Some(HeaderValue::from_static("aws-chunked")),
        };
        parts.headers.insert(CONTENT_ENCODING, coding.ok_or_else(|| cannot("an ill-formed Content-Encoding"))?);
        parts.headers.remove(TRANSFER_ENCODING);
        parts.headers.insert(CONTENT_LENGTH, HeaderValue::from(encoded_length(length)));
        parts.headers.append(DECODED_LENGTH, HeaderValue::from(length));
        let signed = self.sign(parts, STREAMING, credentials, stamp)?;
        Ok(Chunked::of(body, length, &signed, stamp))
    }

    fn sign(
        &self,
        parts: &mut RequestParts,
        payload: &str,
        credentials: &Arc<Credentials>,
        stamp: &str,
    ) -> Result<Signed, Fault> {
        let failed = || cannot("the request could not be signed");
        parts.headers.append(DATE, HeaderValue::from_str(stamp).map_err(|_| failed())?);
        parts.headers.append(CONTENT_SHA256, HeaderValue::from_str(payload).map_err(|_| failed())?);
        if let Some(token) = &credentials.token {
            parts.headers.append(SECURITY_TOKEN, token.clone());
        }
        let signed = self.signer.sign(parts, payload, credentials, stamp).ok_or_else(failed)?;
        parts.headers.append(AUTHORIZATION, signed.authorization.clone());
        Ok(signed)
    }
}

impl PartialEq for AwsSigV4 {
    fn eq(&self, other: &Self) -> bool {
        self.settings == other.settings
    }
}

impl fmt::Debug for AwsSigV4 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AwsSigV4").field("settings", &self.settings).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
