//! Where credentials come from: settings, or services of AWS that lend them for a while.
//!
//! Must never hand out credentials that have ended.

use std::sync::Arc;
use std::time::SystemTime;

use culvert_hop::fault::Fault;
use culvert_model::proof::Algorithm;

use super::Credentials;
use crate::proof::{About, Proofs};

/// Where credentials come from.
#[derive(Debug, Clone, PartialEq)]
pub enum CredentialSource {
    /// From the settings: a change is a reload.
    Fixed(Arc<Credentials>),
}

impl CredentialSource {
    pub(super) fn algorithm(&self) -> Option<Algorithm> {
        match self {
            Self::Fixed(_) => None,
        }
    }

    pub(super) fn key_id(&self) -> Option<&str> {
        match self {
            Self::Fixed(credentials) => Some(&credentials.id),
        }
    }

    pub(super) async fn get(&self, _: About<'_>, _: &Proofs, _: SystemTime) -> Result<Arc<Credentials>, Fault> {
        match self {
            Self::Fixed(credentials) => Ok(credentials.clone()),
        }
    }
}
