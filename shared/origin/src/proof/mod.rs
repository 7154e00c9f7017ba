//! Proof to the origin: what tells it that a request came through this connector.
//!
//! Must never let a caller's own field stand where a proof belongs, or let a request pass whose proof could not be made.

use std::fmt;
use std::future::Future;
use std::time::{Duration, SystemTime};

use culvert_hop::body::Body;
use culvert_hop::fault::{Fault, Retry, Side};
use culvert_hop::fields::Fields;
use culvert_hop::message::RequestParts;
use culvert_model::name::ServiceName;
use culvert_model::proof::Algorithm;
use culvert_model::reason::Reason;
use http::{HeaderName, StatusCode};
use tokio::time::timeout;

mod aws;
mod carried;
mod entra_id;
pub mod exchange;
mod federated;
mod fields;
pub mod gcp;
mod held;
mod jws;
mod jwt;
mod keys;
mod payload;
mod rsa;
mod signature;
mod skew;
mod trouble;

pub use aws::{
    AwsSettings, AwsSigV4, BadProfile, ContainerToken, CredentialSource, Credentials, IdentityToken, Lender,
    PayloadPolicy, Scope, WebIdentity, profile,
};
pub use carried::Carried;
pub use entra_id::{CertificateKey, ClientCredential, EntraId, EntraIdSettings, SharedSecret, Wanted};
pub use federated::{Federated, FederatedSettings};
pub use fields::{FieldPolicy, SetHeader, Untrailed, may_have_trailers, settable};
pub use held::{Fresh, Holder, Holding, Source};
pub use jwt::{Jwt, JwtSettings, OWN_CLAIMS};
pub use keys::{Proofs, SigningKey};
pub use payload::{MOST, USUAL_LIMIT};
pub use signature::{
    BadComponent, BadKey, Component, HttpSignature, KeySource, SignatureAlgorithm, SignatureSettings, USUAL_COMPONENTS,
};
pub use trouble::Trouble;

use crate::tls::Expiry;
use gcp::{GcpIdToken, GcpServiceAccount, IdTokenFrom};

/// How long a request waits for a proof that others have a part in: then it fails.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// What proves a service's requests: one of several kinds (`[service.auth] type`). Equal when the settings are.
#[derive(Debug, PartialEq)]
pub enum Proof {
    /// A token that this connector signs.
    Jwt(Jwt),
    /// A token of Microsoft Entra ID.
    EntraId(Carried<EntraId>),
    /// A token that Google signs.
    GcpIdToken(Carried<GcpIdToken>),
    /// A token that a Google service account's key signs.
    GcpServiceAccount(Carried<GcpServiceAccount>),
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
    /// Whether the origin is reached by https.
    pub is_tls: bool,
}

impl Proof {
    /// What it signs with, of the keys that this connector makes.
    pub fn algorithm(&self) -> Option<Algorithm> {
        match self {
            Self::Jwt(jwt) => Some(jwt.algorithm()),
            Self::EntraId(carried) => match &carried.holder().source().settings().credential {
                ClientCredential::Federated(federated) => Some(federated.algorithm()),
                ClientCredential::Secret(_) | ClientCredential::Certificate(_) => None,
            },
            Self::GcpIdToken(carried) => match &carried.holder().source().settings().from {
                IdTokenFrom::Federation(federation) => Some(federation.federated.algorithm()),
                IdTokenFrom::Key { .. } | IdTokenFrom::Metadata(_) => None,
            },
            Self::GcpServiceAccount(_) => None,
            Self::HttpSignature(signature) => signature.algorithm(),
            Self::AwsSigV4(signature) => signature.algorithm(),
        }
    }

    /// The fields that are its own: nothing that a caller sent under these names is left.
    pub fn fields(&self) -> Vec<HeaderName> {
        match self {
            Self::Jwt(jwt) => vec![jwt.header().clone()],
            Self::EntraId(carried) => vec![carried.header().clone()],
            Self::GcpIdToken(carried) => vec![carried.header().clone()],
            Self::GcpServiceAccount(carried) => vec![carried.header().clone()],
            Self::HttpSignature(signature) => signature.fields(),
            Self::AwsSigV4(signature) => signature.fields(),
        }
    }

    /// Sees to it that what is needed is there before a request comes.
    pub fn tend(&self, service: &ServiceName, proofs: &Proofs) {
        match self {
            Self::Jwt(_) | Self::HttpSignature(_) => {}
            Self::AwsSigV4(signature) => {
                let _ = signature.holder().map(|holder| holder.at_hand(service, proofs));
            }
            Self::EntraId(carried) => drop(carried.holder().at_hand(service, proofs)),
            Self::GcpIdToken(carried) => drop(carried.holder().at_hand(service, proofs)),
            Self::GcpServiceAccount(carried) => drop(carried.holder().at_hand(service, proofs)),
        }
    }

    /// Comes in the place of another: what that one holds serves until there is something new, if it is for the same.
    pub fn take_over(&self, other: &Self) {
        match (self, other) {
            (Self::EntraId(new), Self::EntraId(old))
                if new.holder().source().is_for_the_same(old.holder().source()) =>
            {
                new.holder().take_over(old.holder());
            }
            (Self::GcpIdToken(new), Self::GcpIdToken(old))
                if new.holder().source().is_for_the_same(old.holder().source()) =>
            {
                new.holder().take_over(old.holder());
            }
            (Self::GcpServiceAccount(new), Self::GcpServiceAccount(old))
                if new.holder().source().is_for_the_same(old.holder().source()) =>
            {
                new.holder().take_over(old.holder());
            }
            (Self::AwsSigV4(new), Self::AwsSigV4(old)) => new.take_over(old),
            _ => {}
        }
    }

    /// What it holds of others; none for a kind that needs nobody.
    pub fn holding(&self) -> Option<Holding> {
        match self {
            Self::Jwt(_) | Self::HttpSignature(_) => None,
            Self::AwsSigV4(signature) => signature.holder().map(Holder::holding),
            Self::EntraId(carried) => Some(carried.holder().holding()),
            Self::GcpIdToken(carried) => Some(carried.holder().holding()),
            Self::GcpServiceAccount(carried) => Some(carried.holder().holding()),
        }
    }

    /// When a certificate ends that it is made with.
    pub fn expiry(&self) -> Option<Expiry> {
        match self {
            Self::EntraId(carried) => match &carried.holder().source().settings().credential {
                ClientCredential::Certificate(certificate) => certificate.expiry(),
                ClientCredential::Secret(_) | ClientCredential::Federated(_) => None,
            },
            Self::Jwt(_)
            | Self::GcpIdToken(_)
            | Self::GcpServiceAccount(_)
            | Self::HttpSignature(_)
            | Self::AwsSigV4(_) => None,
        }
    }

    /// The origin answered: if it refused, and its clock is far from this host's, the log says so.
    pub fn answered(&self, service: &ServiceName, status: StatusCode, fields: &Fields, now: SystemTime) {
        if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            skew::tell(service, fields, now);
        }
    }

    /// As `type` names it.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Jwt(_) => "jwt",
            Self::EntraId(_) => "entra-id",
            Self::GcpIdToken(_) => "gcp-id-token",
            Self::GcpServiceAccount(_) => "gcp-service-account",
            Self::HttpSignature(_) => "http-signature",
            Self::AwsSigV4(_) => "aws-sigv4",
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
            Self::EntraId(carried) => carried.prove(parts, about, proofs).await?,
            Self::GcpIdToken(carried) => carried.prove(parts, about, proofs).await?,
            Self::GcpServiceAccount(carried) => carried.prove(parts, about, proofs).await?,
            Self::HttpSignature(signature) => {
                return Box::pin(signature.prove(parts, body, about.is_tls, proofs, now)).await;
            }
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

#[cfg(test)]
mod tests;
