//! Enrolment: from a token's holder to a member with a key of its own (wire.md §3).
//!
//! Must never let one token use count twice, nor a secret reach the registry in clear.

use std::net::SocketAddr;
use std::time::SystemTime;

use culvert_model::control::{Enrol, Enrolled, Refusal};
use culvert_model::id::TokenId;
use culvert_model::key::{Psk, PublicKey};

use crate::identity::{Identity, Unsealable};
use crate::registry::{ConnectorRow, Registry, RegistryError, TokenRow};

/// One pre-shared key and its epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PskEpoch {
    /// Counts from 1.
    pub epoch: u32,
    /// The key.
    pub psk: Psk,
}

/// A connector that was let in.
#[derive(Debug)]
pub struct Admitted {
    /// What to answer.
    pub answer: Enrolled,
    /// Its row.
    pub connector: ConnectorRow,
    /// Its pre-shared keys with this relay, newest last; at most two.
    pub psks: Vec<PskEpoch>,
    /// Whether it had been let in before (then its peer may exist, and only its keys changed).
    pub repeated: bool,
}

/// Why a connector is not enrolled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// For good: tell it, as `ToConnector::Refused`.
    #[error("refused for good")]
    ForGood {
        /// Why.
        refusal: Refusal,
        /// RFC 3339, where known.
        at: Option<String>,
    },
    /// The token is not known any more: close without a word.
    #[error("no such token")]
    Unknown,
    /// Not now: close without an answer, it comes again.
    #[error(transparent)]
    Later(#[from] RegistryError),
}

/// Enrols the holder of `token`, or repeats what was answered before.
///
/// Cancel safe: a dropped future loses the answer at most, and the connector asks again.
///
/// # Errors
/// [`Refused`].
pub async fn enrol(
    registry: &dyn Registry,
    identity: &Identity,
    token: &TokenId,
    request: Enrol,
    source: SocketAddr,
    now: SystemTime,
) -> Result<Admitted, Refused> {
    todo!()
}

/// The bootstrap identity of a token: public key and pre-shared key.
///
/// # Errors
/// [`Unsealable`]: leave the token out and say so.
pub fn bootstrap_of(row: &TokenRow, identity: &Identity) -> Result<(PublicKey, Psk), Unsealable> {
    todo!()
}

/// A connector's pre-shared keys with this relay, newest last; at most two, none if it joined at another relay.
///
/// # Errors
/// [`Unsealable`]: leave the connector out and say so.
pub fn psks_of(row: &ConnectorRow, identity: &Identity) -> Result<Vec<PskEpoch>, Unsealable> {
    todo!()
}
