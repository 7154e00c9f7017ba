//! HTTP Message Signatures (RFC 9421, `type = "http-signature"`): for origins that check a signature themselves.
//!
//! Must never send a request that is not signed, or a caller's signature beside ours.
//!
//! What is written of structured fields (RFC 9651) is a list of strings and numbers, so it is written here.

mod base;
mod key;

use std::fmt;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use culvert_hop::body::Body;
use culvert_hop::fault::Fault;
use culvert_hop::message::RequestParts;
use culvert_model::proof::Algorithm;
use http::{HeaderName, HeaderValue};
use ring::digest;
use ring::rand::SystemRandom;

pub use base::{BadComponent, Component};
pub use key::{BadKey, KeySource, SignatureAlgorithm};

use self::base::{Base, Params};
use self::key::Key;
use super::{Proofs, cannot, payload};

/// `Signature`
const SIGNATURE: HeaderName = HeaderName::from_static("signature");
/// `Signature-Input`
const SIGNATURE_INPUT: HeaderName = HeaderName::from_static("signature-input");
/// `Content-Digest` (RFC 9530)
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("content-digest");

/// `keyid` of a key that has no name of its own: common verifiers ask for one.
const USUAL_KEYID: &str = "culvert";
/// What is covered unless a setting says otherwise: what a request asks for, and its body.
pub const USUAL_COMPONENTS: [&str; 6] = ["@method", "@authority", "@path", "@query", "content-digest", "content-type"];

/// What `[service.auth]` of type `http-signature` says.
#[derive(Debug, Clone, PartialEq)]
pub struct SignatureSettings {
    /// What the signature is called among others.
    pub label: String,
    /// What it is made with.
    pub algorithm: SignatureAlgorithm,
    /// Its key.
    pub key: KeySource,
    /// `keyid`; none: the own key's, or `culvert`.
    pub keyid: Option<String>,
    /// What it covers, of that what a request has.
    pub components: Vec<Component>,
    /// From `created` to `expires`.
    pub lifetime: Duration,
    /// Whether each has a `nonce`.
    pub has_nonce: bool,
    /// `tag`
    pub tag: Option<String>,
    /// Whether a body is covered by its SHA-256, in `Content-Digest`.
    pub digests: bool,
    /// The longest body that is read for that.
    pub payload_limit: usize,
}

/// Signs the requests of one service.
pub struct HttpSignature {
    settings: SignatureSettings,
    key: Key,
}

impl HttpSignature {
    /// # Errors
    /// [`BadKey`]
    pub fn new(settings: SignatureSettings) -> Result<Self, BadKey> {
        let key = Key::of(settings.algorithm, &settings.key)?;
        Ok(Self { settings, key })
    }

    /// Which of the connector's own keys it signs with.
    pub const fn algorithm(&self) -> Option<Algorithm> {
        match self.key {
            Key::Own(algorithm) => Some(algorithm),
            Key::Hmac(_) | Key::Ed25519(_) | Key::Ecdsa(_) => None,
        }
    }

    /// The names under which no line of a caller's may be left.
    pub fn fields(&self) -> Vec<HeaderName> {
        [SIGNATURE, SIGNATURE_INPUT].into_iter().chain(self.settings.digests.then_some(CONTENT_DIGEST)).collect()
    }

    /// Signs a request whose fields are final. The policy of the service has taken out what [`HttpSignature::fields`]
    /// names.
    ///
    /// A request that has to be sent once more goes with the same nonce: what was sent before was not looked at.
    ///
    /// # Errors
    /// A [`Fault`]: `origin_auth`, `too_large`, or `bad_request` for a covered field of more than ASCII.
    pub async fn prove(
        &self,
        parts: &mut RequestParts,
        body: Body,
        is_tls: bool,
        proofs: &Proofs,
        now: SystemTime,
    ) -> Result<Body, Fault> {
        let body = if self.settings.digests && payload::is_there(parts, &body) {
            let whole = payload::read(parts, body, self.settings.payload_limit).await?;
            let hash = STANDARD.encode(digest::digest(&digest::SHA256, &whole.bytes));
            let value = HeaderValue::try_from(format!("sha-256=:{hash}:")).map_err(|_| cannot("no digest"))?;
            parts.headers.append(CONTENT_DIGEST, value);
            whole.body
        } else {
            body
        };
        let nonce = self.settings.has_nonce.then(|| URL_SAFE_NO_PAD.encode(rand::random::<[u8; 16]>()));
        self.sign(parts, nonce.as_deref(), is_tls, proofs, now)?;
        Ok(body)
    }

    fn sign(
        &self,
        parts: &mut RequestParts,
        nonce: Option<&str>,
        is_tls: bool,
        proofs: &Proofs,
        now: SystemTime,
    ) -> Result<(), Fault> {
        let settings = &self.settings;
        let own = match self.key {
            Key::Own(kind) => Some(proofs.signing(kind, now).ok_or_else(|| cannot("no signing key could be made"))?),
            Key::Hmac(_) | Key::Ed25519(_) | Key::Ecdsa(_) => None,
        };
        let created =
            now.duration_since(SystemTime::UNIX_EPOCH).map_err(|_| cannot("the clock is before 1970"))?.as_secs();
        let params = Params {
            created: Some(created),
            expires: Some(created + settings.lifetime.as_secs()),
            keyid: settings.keyid.as_deref().or(own.as_ref().map(|key| key.kid.as_str())).or(Some(USUAL_KEYID)),
            alg: Some(settings.algorithm.name()),
            nonce,
            tag: settings.tag.as_deref(),
        };
        let base = Base::of(parts, &settings.components, &params, is_tls)?;
        let signature = match &self.key {
            Key::Own(_) => own.and_then(|key| key.sign(&base.text)),
            key => key.sign(&base.text),
        };
        let signature = signature.ok_or_else(|| cannot("the request could not be signed"))?;
        let label = &settings.label;
        for (name, text) in [
            (SIGNATURE_INPUT, format!("{label}={}", base.input)),
            (SIGNATURE, format!("{label}=:{}:", STANDARD.encode(signature))),
        ] {
            parts
                .headers
                .append(name, HeaderValue::try_from(text).map_err(|_| cannot("keyid or tag is no field's value"))?);
        }
        Ok(())
    }
}

impl Key {
    /// Signs; none when the system has no randomness, or the key is not here.
    fn sign(&self, text: &[u8]) -> Option<Vec<u8>> {
        match self {
            Self::Hmac(key) => Some(ring::hmac::sign(key, text).as_ref().to_vec()),
            Self::Ed25519(pair) => Some(pair.sign(text).as_ref().to_vec()),
            Self::Ecdsa(pair) => {
                pair.sign(&SystemRandom::new(), text).ok().map(|signature| signature.as_ref().to_vec())
            }
            Self::Own(_) => None,
        }
    }
}

impl PartialEq for HttpSignature {
    fn eq(&self, other: &Self) -> bool {
        self.settings == other.settings
    }
}

impl fmt::Debug for HttpSignature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpSignature").field("settings", &self.settings).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
