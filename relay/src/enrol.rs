//! Enrolment: from a token's holder to a member with a key of its own (wire.md §3).
//!
//! Must never let one token use count twice, nor a secret reach the registry in clear.

use std::net::SocketAddr;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use culvert_engine::PskEpoch;
use culvert_model::control::{Enrol, Enrolled, Refusal, VERSION};
use culvert_model::id::{ConnectorId, TokenId};
use culvert_model::kem;
use culvert_model::key::{Psk, PublicKey};
use culvert_ops::time::rfc3339;

use crate::identity::{Identity, SealedFor, Unsealable};
use crate::registry::{Candidate, ConnectorRow, Enrolment, Registry, RegistryError, TokenRow};

/// The longest program version that is remembered.
const PROGRAM_BYTES: usize = 64;

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
    /// Not now, and not before somebody repaired the state directory.
    #[error(transparent)]
    Broken(#[from] Unsealable),
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
    let for_good = |refusal| Refused::ForGood { refusal, at: None };
    if request.version != VERSION {
        return Err(for_good(Refusal::Version));
    }
    let kem_key = STANDARD.decode(&request.kem_key).map_err(|_| for_good(Refusal::Malformed))?;
    let (ciphertext, psk) = kem::encapsulate(&kem_key, &identity.public_key(), &request.public_key)
        .map_err(|_| for_good(Refusal::Malformed))?;
    let candidate = Candidate {
        token: token.clone(),
        id: ConnectorId::new(),
        public_key: request.public_key,
        relay: identity.relay_tag(),
        psk: identity.seal(&psk, SealedFor::Connector(&request.public_key)),
        name: request.name,
        ephemeral: request.ephemeral,
        program: program(&request.program),
        source,
        now,
    };
    match registry.enrol(candidate).await? {
        Enrolment::Joined { connector, tunnel, epoch, repeated } => {
            let answer = Enrolled {
                id: connector.id.clone(),
                inner_address: connector.inner_address,
                ciphertext: STANDARD.encode(ciphertext),
                psk_epoch: epoch,
                tunnel: tunnel.name,
            };
            let psks = psks_of(&connector, identity)?;
            Ok(Admitted { answer, connector, psks, repeated })
        }
        Enrolment::Refused { refusal, at } => Err(Refused::ForGood { refusal, at: at.map(rfc3339) }),
        Enrolment::Unknown => Err(Refused::Unknown),
    }
}

/// The bootstrap identity of a token: public key and pre-shared key.
///
/// # Errors
/// [`Unsealable`]: leave the token out and say so.
pub fn bootstrap_of(row: &TokenRow, identity: &Identity) -> Result<(PublicKey, Psk), Unsealable> {
    let psk = identity.unseal(&row.psk, SealedFor::Token(&row.bootstrap_key))?;
    Ok((row.bootstrap_key, psk))
}

/// A connector's pre-shared keys with this relay, newest last; at most two, none if it joined at another relay.
///
/// # Errors
/// [`Unsealable`]: leave the connector out and say so.
pub fn psks_of(row: &ConnectorRow, identity: &Identity) -> Result<Vec<PskEpoch>, Unsealable> {
    let here = identity.relay_tag();
    row.psks
        .iter()
        .filter(|sealed| sealed.relay == here)
        .map(|sealed| {
            let psk = identity.unseal(&sealed.sealed, SealedFor::Connector(&row.public_key))?;
            Ok(PskEpoch { epoch: sealed.epoch, psk })
        })
        .collect()
}

/// What a peer says of its version, fit for listings and logs.
pub fn program(told: &str) -> String {
    told.chars().filter(|c| c.is_ascii_graphic()).take(PROGRAM_BYTES).collect()
}
