//! Google Cloud: tokens that a service account's key signs, and ID tokens that Google signs.
//!
//! Sources: "Service account credentials", "Get an ID token", "Workload identity federation with other identity providers",
//! "Verifying the identity of instances".

mod id_token;
mod key;

pub use id_token::{
    Account, BadAccount, Federation, GcpIdToken, GcpIdTokenSettings, IAM_CREDENTIALS, IdTokenFrom, METADATA, Pool, STS,
};
pub use key::{BadKeyFile, GcpServiceAccount, KeyFile};
