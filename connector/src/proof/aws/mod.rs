//! AWS Signature Version 4 (`type = "aws-sigv4"`): for origins that AWS's own identity management guards.
//!
//! Must never send a request that is not signed, or a caller's signature beside ours.

mod canonical;
mod sign;

pub use sign::{Credentials, Scope};
