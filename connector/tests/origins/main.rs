//! Origins as they are in the field, behind a gate: how they answer, break off, and prove who they are.
#![expect(unreachable_pub, reason = "modules of one test binary")]

mod behaviour;
mod http2;
mod pki;
mod scripted;
mod stand;
mod tls;
