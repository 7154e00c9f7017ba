//! Where credentials come from: settings, or services of AWS that lend them for a while.
//!
//! Must never hand out credentials that have ended.

use std::fmt;
use std::sync::Arc;

use culvert_hop::fault::Fault;
use culvert_model::proof::Algorithm;

use super::lender::Lender;
use super::sign::Credentials;
use crate::proof::{About, Holder, Proofs};

/// Where credentials come from.
#[derive(Clone)]
pub enum CredentialSource {
    /// From the settings: a change is a reload.
    Fixed(Arc<Credentials>),
    /// For a while.
    Lent(Arc<Holder<Lender>>),
}

impl CredentialSource {
    /// From a lender that is not asked yet.
    pub fn lent(lender: Lender) -> Self {
        Self::Lent(Arc::new(Holder::new(lender)))
    }

    pub(super) fn algorithm(&self) -> Option<Algorithm> {
        match self {
            Self::Lent(holder) => match holder.source() {
                Lender::WebIdentity(identity) => identity.algorithm(),
                Lender::Container { .. } | Lender::Instance { .. } => None,
            },
            Self::Fixed(_) => None,
        }
    }

    /// The id of the access key, where it is known before it is asked for.
    pub(super) fn key_id(&self) -> Option<&str> {
        match self {
            Self::Fixed(credentials) => Some(&credentials.id),
            Self::Lent(_) => None,
        }
    }

    pub(super) async fn get(&self, about: About<'_>, proofs: &Proofs) -> Result<Arc<Credentials>, Fault> {
        match self {
            Self::Fixed(credentials) => Ok(credentials.clone()),
            Self::Lent(holder) => holder.get(about.service, proofs).await,
        }
    }
}

impl PartialEq for CredentialSource {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Fixed(one), Self::Fixed(other)) => one == other,
            (Self::Lent(one), Self::Lent(other)) => one.source() == other.source(),
            (Self::Fixed(_) | Self::Lent(_), _) => false,
        }
    }
}

impl fmt::Debug for CredentialSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(_) => f.write_str("Fixed"),
            Self::Lent(holder) => f.debug_tuple("Lent").field(holder.source()).finish(),
        }
    }
}
