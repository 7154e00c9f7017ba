//! One HTTP hop: the same code at the relay (front → tunnel stream) and at the connector (tunnel stream → origin).
//!
//! Must never repair what is ambiguous, invent or drop what a caller or an origin sent end to end, end a cut body
//! cleanly, or try a request twice by itself.
//!
//! # A request's way
//!
//! 1. [`server::serve`] reads heads from a connection and calls a service with each request.
//! 2. [`request::check`] refuses what is ambiguous; its `Head` says for whom the request is, and whom an answer of our
//!    own is for.
//! 3. At the relay [`request::forward`], at the connector [`request::deliver`], makes the head that the next hop gets.
//! 4. [`retry::Again::keep`], where there is somewhere else to send it; [`pool::Pool::send`].
//! 5. At the relay [`failure::take`]; at both [`response::accept`], or [`response::accept_switch`] and
//!    [`upgrade::splice`] after a 101.
//! 6. What fails is a [`fault::Fault`]: told by [`fault::respond`] at the relay, by [`failure::respond`] at the
//!    connector, and by a cut stream once a response's head was sent.
//!
//! Whoever holds a [`body::Body`] or awaits [`pool::Pool::send`] drives an HTTP/1.1 connection below; one of HTTP/2 has a
//! small task. Dropping either cancels the exchange: its connection, or HTTP/2 stream, ends without a clean end.
//!
//! # Versions
//!
//! In between, every request looks alike: a target in origin-form and one `Host` ([`request::check`]). Its
//! [`http::Request::version`] stays that of the caller, and the pool dresses it for the connection that it goes over. A
//! WebSocket by extended CONNECT (RFC 8441) becomes an HTTP/1.1 upgrade at the first hop, and its 101 a 200.
//!
//! HTTP/2 stands on the crate h2 itself. It cannot tell a target's fragment, which the crate http drops, nor a head that it
//! refuses by itself: one over twice the limit (431 without our words), a malformed one (the stream is reset).
//!
//! HTTP/1.1 is read and written here (`http1`, on the parser httparse): no library keeps fields in their order and as they
//! are spelled, passes 103 and unannounced trailers, or tells a caller that stopped sending from one that is gone. What it
//! does not keep: spaces around a value, the spelling of trailers' names, and whether a head's line ended in LF alone.
#![warn(missing_docs)]
#![forbid(unsafe_code)]

mod alarm;
pub mod body;
mod client;
pub mod exchange;
mod expect;
pub mod failure;
pub mod fault;
pub mod fields;
mod forwarded;
mod host;
mod http1;
mod http2;
mod interim;
pub mod limits;
mod lines;
pub mod message;
mod multiplexed;
pub mod pool;
mod pulse;
pub mod request;
pub mod response;
pub mod retry;
pub mod server;
mod stream;
pub mod upgrade;
pub mod wakes;
mod websocket;
mod wire;
