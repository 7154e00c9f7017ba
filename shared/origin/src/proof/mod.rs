//! Proof to the origin: what tells it that a request came through this connector.
//!
//! Must never let a caller's own field stand where a proof belongs, or let a request pass whose proof could not be made.

use std::fmt;
use std::future::Future;
use std::time::{Duration, SystemTime};

use culvert_hop::body::Body;
use culvert_hop::fault::{Fault, Retry, Side};
use culvert_hop::message::RequestParts;
use culvert_model::name::ServiceName;
use culvert_model::proof::Algorithm;
use culvert_model::reason::Reason;
use http::HeaderName;
use tokio::time::timeout;

mod aws;
pub mod exchange;
mod fields;
mod held;
mod jwt;
mod keys;
mod payload;
mod rsa;
mod signature;
mod trouble;

pub use aws::{AwsSettings, AwsSigV4, BadProfile, CredentialSource, Credentials, PayloadPolicy, Scope, profile};
pub use fields::{FieldPolicy, SetHeader, Untrailed, may_have_trailers, settable};
pub use held::{Fresh, Holder, Holding, Source};
pub use jwt::{Jwt, JwtSettings, OWN_CLAIMS};
pub use keys::{Proofs, SigningKey};
pub use payload::{MOST, USUAL_LIMIT};
pub use signature::{
    BadComponent, BadKey, Component, HttpSignature, KeySource, SignatureAlgorithm, SignatureSettings, USUAL_COMPONENTS,
};
pub use trouble::Trouble;

/// How long a request waits for a proof that others have a part in: then it fails.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// What proves a service's requests: one of several kinds (`[service.auth] type`). Equal when the settings are.
#[derive(Debug, PartialEq)]
pub enum Proof {
    /// A token that this connector signs.
    Jwt(Jwt),
    /// A signature of the request (RFC 9421).
    HttpSignature(HttpSignature),
    /// A signature of the request, as AWS takes it.
    AwsSigV4(AwsSigV4),
}

/// What a proof is about.
#[derive(Debug, Clone, Copy)]
pub struct About<'a> {
    /// The service that is called.
    pub service: &'a ServiceName,
    /// The gateway that the relay found the caller to be.
    pub caller: Option<&'a str>,
}

impl Proof {
    /// What it signs with, of the keys that this connector makes.
    pub fn algorithm(&self) -> Option<Algorithm> {
        match self {
            Self::Jwt(jwt) => Some(jwt.algorithm()),
            Self::HttpSignature(signature) => signature.algorithm(),
            Self::AwsSigV4(signature) => signature.algorithm(),
        }
    }

    /// The fields that are its own: nothing that a caller sent under these names is left.
    pub fn fields(&self) -> Vec<HeaderName> {
        match self {
            Self::Jwt(jwt) => vec![jwt.header().clone()],
            Self::HttpSignature(signature) => signature.fields(),
            Self::AwsSigV4(signature) => signature.fields(),
        }
    }

    /// Makes a request proven: its fields, and its body where that is part of the proof; the body comes back as it is to
    /// be sent. The service's policy has taken out whatever the caller sent under [`Proof::fields`].
    ///
    /// # Errors
    /// A [`Fault`], `origin_auth` for most reasons: nothing may be sent.
    pub async fn prove(
        &self,
        parts: &mut RequestParts,
        body: Body,
        about: About<'_>,
        proofs: &Proofs,
        now: SystemTime,
    ) -> Result<Body, Fault> {
        // Every request passes here: what is rare goes in a box, by `in_time`.
        match self {
            Self::Jwt(jwt) => match jwt.prove(parts, about, proofs, now) {
                Err(_) if proofs.is_making() => {
                    // Whether it is there the next line says.
                    let _ = timeout(PATIENCE, Box::pin(proofs.key_is_made(jwt.algorithm(), now))).await;
                    jwt.prove(parts, about, proofs, now)?;
                }
                proven => proven?,
            },
            Self::HttpSignature(signature) => return Box::pin(signature.prove(parts, body, proofs, now)).await,
            Self::AwsSigV4(signature) => return Box::pin(signature.prove(parts, body, about, proofs, now)).await,
        }
        Ok(body)
    }
}

/// A proof that cannot be made. The words are for the log alone.
pub fn cannot(why: impl fmt::Display) -> Fault {
    Fault::new(Reason::OriginAuth).side(Side::Here).retry(Retry::Safe).log(why)
}

/// Waits for a part of a proof, for [`PATIENCE`] at most.
///
/// # Errors
/// Its own, or that it was not there in time.
pub async fn in_time<T>(making: impl Future<Output = Result<T, Fault>>) -> Result<T, Fault> {
    timeout(PATIENCE, Box::pin(making)).await.unwrap_or_else(|_| Err(cannot("the proof was not there in time")))
}
