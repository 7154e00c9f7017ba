//! One HTTP hop: the same code at the relay (front → tunnel stream) and at the connector (tunnel stream → origin).
//!
//! Must never repair what is ambiguous, invent or drop what a caller or an origin sent end to end, end a cut body
//! cleanly, or try a request twice by itself.
#![warn(missing_docs)]

pub mod body;
mod client;
pub mod exchange;
mod expect;
pub mod failure;
pub mod fault;
mod fields;
mod forwarded;
mod heads;
mod host;
pub mod limits;
pub mod pool;
pub mod request;
pub mod response;
pub mod retry;
mod served;
pub mod server;
pub mod upgrade;
mod websocket;
