//! Our own token where a cloud takes one in place of a secret.

use crate::proof::{Federated, FederatedSettings};
use culvert_model::proof::Algorithm;

/// What clouds take: RS256 is the one that all of them do.
const USUAL: Algorithm = Algorithm::Rs256;

/// What it says.
pub(super) fn federated(
    algorithm: Option<Algorithm>,
    audience: String,
    issuer: Option<String>,
    subject: Option<String>,
) -> Federated {
    Federated::new(FederatedSettings { algorithm: algorithm.unwrap_or(USUAL), audience, issuer, subject })
}
