//! A request's head: refused where it is ambiguous, rewritten for the next hop.
//!
//! Must never forward a field that is for this hop only, or let a caller remove or forge what the next hop relies on.

use std::net::IpAddr;

use http::request::Parts;
use http::{HeaderMap, HeaderValue};
use hyper::upgrade::OnUpgrade;

use crate::fault::{Audience, Fault};

/// What a checked head says about the request.
#[derive(Debug)]
pub struct Head {
    /// For an answer of our own. Its request id is the one to log.
    pub audience: Audience,
    /// The caller asks to change the protocol, and may.
    pub upgrade: Option<Upgrade>,
    /// `Expect: 100-continue`.
    pub expects_continue: bool,
    _private: (),
}

/// An asked change of protocol.
#[derive(Debug)]
pub struct Upgrade {
    /// The value of `Upgrade`, as sent.
    pub protocol: HeaderValue,
    /// The caller's connection, once a 101 was sent.
    pub on: OnUpgrade,
}

/// What becomes of the forwarding fields that the caller sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForwardPolicy {
    /// The caller is a proxy that is believed: its fields are kept and added to.
    Append,
    /// They are dropped first.
    Replace,
}

/// The connection a request came on.
#[derive(Debug, Clone, Copy)]
pub struct Caller {
    /// Its address; none on a unix socket.
    pub address: Option<IpAddr>,
    /// Whether it spoke TLS.
    pub tls: bool,
    /// The port it connected to.
    pub port: Option<u16>,
}

impl Head {
    /// The host that the request is for, as sent, without the port. IPv6 addresses keep their brackets.
    pub fn host(&self) -> &str {
        todo!()
    }

    /// The port in `Host`.
    pub fn port(&self) -> Option<u16> {
        todo!()
    }
}

/// Checks the head of a request as hyper's server hands it over, and takes the offered upgrade out of it.
///
/// Afterwards the target is in origin-form (or `*`), there is one `Host`, and nothing else has changed.
///
/// # Errors
/// A [`Fault`] `bad_request` and whom to tell it.
pub fn check(_parts: &mut Parts) -> Result<Head, (Fault, Audience)> {
    todo!()
}

/// At the relay: strips what is for this hop and every `Culvert-*` field, and adds the forwarding fields.
///
/// `relay` is this relay's id: 1 to 32 of a-z and 0-9.
///
/// # Errors
/// A [`Fault`] `loop`: the request has been here before, or has been through too many Culverts.
pub fn forward(
    _parts: &mut Parts,
    _head: &Head,
    _caller: &Caller,
    _policy: ForwardPolicy,
    _relay: &str,
) -> Result<(), Fault> {
    todo!()
}

/// At the connector: strips what is for this hop and every `Culvert-*` field. Read `Culvert-Service` before.
pub fn deliver(_parts: &mut Parts, _head: &Head) {
    todo!()
}

/// Replaces `Host`.
pub fn set_host(_parts: &mut Parts, _host: HeaderValue) {
    todo!()
}

/// The trace id of a well-formed W3C `traceparent`.
pub fn trace_id(_headers: &HeaderMap) -> Option<&str> {
    todo!()
}
