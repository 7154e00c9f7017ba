//! What a service is, once its configuration has been understood: true for ever, or refused before.
//!
//! Must never hold anything that is still to be read or looked up, but names that are resolved at every connect.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use culvert_hop::exchange::Deadlines;
use culvert_model::control::ServiceTimeouts;
use culvert_model::name::ServiceName;
use http::{HeaderName, HeaderValue};

use crate::origin::{Origin, split_authority};
use crate::proof::{FieldPolicy, Proof};
use crate::proxy_protocol::ProxyProtocol;
use crate::tls::{ClientTls, Expiry};

/// A named origin.
#[derive(Debug, Clone, PartialEq)]
pub struct Service {
    /// What gateways call it.
    pub name: ServiceName,
    /// Where it is.
    pub origin: Origin,
    /// What the origin sees as `Host`.
    pub host: HostPolicy,
    /// What becomes of requests' fields.
    pub fields: FieldPolicy,
    /// What proves to the origin that a request came through here; none: nothing beside `fields` and `tls`.
    pub auth: Option<Arc<Proof>>,
    /// How an https origin is verified; none for the others.
    pub tls: Option<ClientTls>,
    /// What a raw TCP origin is told of who connected.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// How its health is checked.
    pub health: HealthCheck,
    /// What the relay keeps requests together by.
    pub balance: Option<Balance>,
    /// Its deadlines.
    pub timeouts: Timeouts,
}

/// What the origin sees as `Host`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostPolicy {
    /// The origin's own authority.
    Origin,
    /// As the caller sent it.
    Preserve,
    /// Always this.
    Literal(HeaderValue),
}

/// How an origin is found to be up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthCheck {
    /// `GET` this path and expect 2xx or 3xx; none: a TCP connection is enough.
    pub path: Option<http::uri::PathAndQuery>,
    /// The time between checks.
    pub interval: Duration,
    /// The time one check may take.
    pub timeout: Duration,
}

/// What the relay keeps requests together by (`[service.balance]`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Balance {
    /// A request field's value.
    Header(HeaderName),
    /// A cookie's value.
    Cookie(String),
    /// The caller's address.
    ClientIp,
}

/// A service's deadlines. What the relay enforces is absent unless it was set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// Until the origin accepted a connection, TLS included.
    pub connect: Duration,
    /// Until the response's head.
    pub first_byte: Option<Duration>,
    /// Without a byte either way.
    pub idle: Option<Duration>,
    /// The whole exchange.
    pub request: Option<Duration>,
    /// Waiting for a connector, at the relay.
    pub queue: Option<Duration>,
}

/// The text is no Host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("\"origin\", \"preserve\" or a host name is expected")]
pub struct BadHost;

/// The text is no balance.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is nothing to balance by: \"header:NAME\", \"cookie:NAME\" or \"client-ip\" is expected")]
pub struct BadBalance(String);

impl Service {
    /// A service at `origin` with every other setting as by default.
    pub fn new(name: ServiceName, origin: Origin, tls: Option<ClientTls>) -> Self {
        Self {
            name,
            origin,
            host: HostPolicy::Origin,
            fields: FieldPolicy::default(),
            auth: None,
            tls,
            proxy_protocol: None,
            health: HealthCheck::default(),
            balance: None,
            timeouts: Timeouts::default(),
        }
    }
}

impl Service {
    /// When the certificates end that it is reached or proven with.
    pub fn expiries(&self) -> impl Iterator<Item = Expiry> {
        let tls = self.tls.iter().flat_map(|tls| tls.expiries().iter().copied());
        tls.chain(self.auth.iter().filter_map(|auth| auth.expiry()))
    }
}

impl Default for HealthCheck {
    fn default() -> Self {
        Self { path: None, interval: Duration::from_secs(10), timeout: Duration::from_secs(5) }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { connect: Duration::from_secs(5), first_byte: None, idle: None, request: None, queue: None }
    }
}

impl Timeouts {
    /// What this end enforces.
    pub fn deadlines(&self) -> Deadlines {
        let usual = Deadlines::default();
        Deadlines {
            first_byte: self.first_byte.unwrap_or(usual.first_byte),
            idle: self.idle.unwrap_or(usual.idle),
            request: self.request,
        }
    }

    /// What the relay is told.
    pub fn announced(&self) -> ServiceTimeouts {
        let ms = |time: Option<Duration>| time.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
        ServiceTimeouts {
            first_byte_ms: ms(self.first_byte),
            idle_ms: ms(self.idle),
            request_ms: ms(self.request),
            queue_ms: ms(self.queue),
        }
    }
}

impl std::str::FromStr for HostPolicy {
    type Err = BadHost;

    fn from_str(text: &str) -> Result<Self, BadHost> {
        match text {
            "origin" => Ok(Self::Origin),
            "preserve" => Ok(Self::Preserve),
            literal => {
                let value = HeaderValue::from_str(literal).ok().filter(|_| split_authority(literal).is_some());
                value.map(Self::Literal).ok_or(BadHost)
            }
        }
    }
}

/// Reads the path of a health check.
///
/// # Errors
/// What is expected.
pub fn health_path(text: &str) -> Result<http::uri::PathAndQuery, &'static str> {
    let path = text.parse().ok().filter(|_| text.starts_with('/'));
    path.ok_or("a path that starts with / is expected")
}

impl std::str::FromStr for Balance {
    type Err = BadBalance;

    fn from_str(text: &str) -> Result<Self, BadBalance> {
        let bad = || BadBalance(text.to_owned());
        match text.split_once(':') {
            None if text == "client-ip" => Ok(Self::ClientIp),
            Some(("header", name)) => name.parse().map(Self::Header).map_err(|_| bad()),
            Some(("cookie", name)) if name.parse::<HeaderName>().is_ok() => Ok(Self::Cookie(name.to_owned())),
            _ => Err(bad()),
        }
    }
}

impl fmt::Display for Balance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header(name) => write!(f, "header:{name}"),
            Self::Cookie(name) => write!(f, "cookie:{name}"),
            Self::ClientIp => f.write_str("client-ip"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_balance_survives_its_text_and_nonsense_is_refused() {
        for text in ["header:x-tenant", "cookie:SID", "client-ip"] {
            assert_eq!(text.parse::<Balance>().unwrap().to_string(), text);
        }
        for text in ["", "header:", "header:a b", "cookie:", "cookie:a=b", "ip", "client-ip:x"] {
            assert!(text.parse::<Balance>().is_err(), "{text:?}");
        }
    }
}
