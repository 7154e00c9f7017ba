//! Proof to the origin: what tells it that a request came through this connector.
//!
//! Must never let a caller's own field stand where a proof belongs, or let a request pass whose proof could not be made.

mod fields;
mod jwt;
mod keys;

pub use fields::{FieldPolicy, SetHeader, Untrailed, may_have_trailers};
pub use jwt::{About, Jwt, JwtSettings, OWN_CLAIMS};
pub use keys::{Proofs, SigningKey};
