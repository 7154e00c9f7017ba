//! Why Culvert itself failed a request: one enum, and everything that follows from it.
//!
//! `shared/hop` turns a reason into a response; nobody else does.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What went wrong, as users see it in `Proxy-Status`, logs and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// No such service is known.
    NoSuchService,
    /// The caller did not say who it is.
    Unauthenticated,
    /// The caller may not call this service.
    NotAllowed,
    /// No connector that announces the service is live.
    NoConnector,
    /// This end is on its way out.
    Draining,
    /// The connector vanished while it had the request.
    ConnectorLost,
    /// Too much at once, for the service or the process.
    Overloaded,
    /// Too much at once, for this gateway.
    GatewayLimit,
    /// The origin's name does not resolve.
    OriginDns,
    /// The origin refused the connection.
    OriginRefused,
    /// The origin's network cannot be reached.
    OriginUnreachable,
    /// TLS with the origin failed: the certificate.
    OriginTlsCertificate,
    /// TLS with the origin failed: the protocol.
    OriginTls,
    /// The origin did not accept the connection in time.
    OriginConnectTimeout,
    /// The origin did not answer in time.
    OriginTimeout,
    /// The origin closed before its answer was whole.
    OriginClosed,
    /// The origin's answer is not HTTP.
    OriginProtocol,
    /// The origin did not agree to the upgrade, or switched unasked.
    UpgradeRefused,
    /// The connector's allow-list forbids the origin.
    OriginDenied,
    /// The proof for the origin could not be made.
    OriginAuth,
    /// The request is malformed or ambiguous.
    BadRequest,
    /// The request's body is over its limit.
    TooLarge,
    /// The request's head is over its limit.
    HeadTooLarge,
    /// The caller was too slow.
    RequestTimeout,
    /// The whole-request deadline passed.
    Deadline,
    /// The request came through this relay before.
    Loop,
    /// A defect of Culvert.
    Internal,
}

impl Reason {
    /// Every reason, in the order of the documentation.
    pub const ALL: [Self; 27] = [
        Self::NoSuchService,
        Self::Unauthenticated,
        Self::NotAllowed,
        Self::NoConnector,
        Self::Draining,
        Self::ConnectorLost,
        Self::Overloaded,
        Self::GatewayLimit,
        Self::OriginDns,
        Self::OriginRefused,
        Self::OriginUnreachable,
        Self::OriginTlsCertificate,
        Self::OriginTls,
        Self::OriginConnectTimeout,
        Self::OriginTimeout,
        Self::OriginClosed,
        Self::OriginProtocol,
        Self::UpgradeRefused,
        Self::OriginDenied,
        Self::OriginAuth,
        Self::BadRequest,
        Self::TooLarge,
        Self::HeadTooLarge,
        Self::RequestTimeout,
        Self::Deadline,
        Self::Loop,
        Self::Internal,
    ];

    /// The name users see. Two reasons may share one name where the RFC 9209 type tells them apart.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoSuchService => "no_such_service",
            Self::Unauthenticated => "unauthenticated",
            Self::NotAllowed => "not_allowed",
            Self::NoConnector => "no_connector",
            Self::Draining => "draining",
            Self::ConnectorLost => "connector_lost",
            Self::Overloaded => "overloaded",
            Self::GatewayLimit => "gateway_limit",
            Self::OriginDns => "origin_dns",
            Self::OriginRefused => "origin_refused",
            Self::OriginUnreachable => "origin_unreachable",
            Self::OriginTlsCertificate | Self::OriginTls => "origin_tls",
            Self::OriginConnectTimeout | Self::OriginTimeout => "origin_timeout",
            Self::OriginClosed => "origin_closed",
            Self::OriginProtocol => "origin_protocol",
            Self::UpgradeRefused => "upgrade_refused",
            Self::OriginDenied => "origin_denied",
            Self::OriginAuth => "origin_auth",
            Self::BadRequest => "bad_request",
            Self::TooLarge | Self::HeadTooLarge => "too_large",
            Self::RequestTimeout => "request_timeout",
            Self::Deadline => "deadline",
            Self::Loop => "loop",
            Self::Internal => "internal",
        }
    }

    /// The HTTP status of the response that Culvert makes.
    pub const fn status(self) -> u16 {
        match self {
            Self::NoSuchService => 404,
            Self::Unauthenticated => 401,
            Self::NotAllowed | Self::OriginDenied => 403,
            Self::NoConnector | Self::Draining | Self::Overloaded => 503,
            Self::GatewayLimit => 429,
            Self::ConnectorLost
            | Self::OriginDns
            | Self::OriginRefused
            | Self::OriginUnreachable
            | Self::OriginTlsCertificate
            | Self::OriginTls
            | Self::OriginClosed
            | Self::OriginProtocol
            | Self::UpgradeRefused
            | Self::OriginAuth => 502,
            Self::OriginConnectTimeout | Self::OriginTimeout | Self::Deadline => 504,
            Self::BadRequest => 400,
            Self::TooLarge => 413,
            Self::HeadTooLarge => 431,
            Self::RequestTimeout => 408,
            Self::Loop => 508,
            Self::Internal => 500,
        }
    }

    /// The proxy error type (RFC 9209 §2.3).
    pub const fn proxy_error(self) -> &'static str {
        match self {
            Self::NoSuchService => "destination_not_found",
            Self::Unauthenticated | Self::NotAllowed => "http_request_denied",
            Self::NoConnector | Self::Draining => "destination_unavailable",
            Self::ConnectorLost => "connection_terminated",
            Self::Overloaded | Self::GatewayLimit => "connection_limit_reached",
            Self::OriginDns => "dns_error",
            Self::OriginRefused => "connection_refused",
            Self::OriginUnreachable => "destination_ip_unroutable",
            Self::OriginTlsCertificate => "tls_certificate_error",
            Self::OriginTls => "tls_protocol_error",
            Self::OriginConnectTimeout => "connection_timeout",
            Self::OriginTimeout | Self::Deadline => "http_response_timeout",
            Self::OriginClosed => "http_response_incomplete",
            Self::OriginProtocol => "http_protocol_error",
            Self::UpgradeRefused => "http_upgrade_failed",
            Self::OriginDenied => "destination_ip_prohibited",
            Self::OriginAuth | Self::Internal => "proxy_internal_error",
            Self::BadRequest | Self::TooLarge | Self::HeadTooLarge | Self::RequestTimeout => "http_request_error",
            Self::Loop => "proxy_loop_detected",
        }
    }

    /// The gRPC status code that a gRPC caller gets.
    pub const fn grpc_status(self) -> u8 {
        match self {
            Self::NoSuchService => 12,
            Self::Unauthenticated => 16,
            Self::NotAllowed | Self::OriginDenied => 7,
            Self::GatewayLimit => 8,
            Self::OriginConnectTimeout | Self::OriginTimeout | Self::RequestTimeout | Self::Deadline => 4,
            Self::BadRequest | Self::TooLarge | Self::HeadTooLarge | Self::Loop | Self::Internal => 13,
            Self::NoConnector
            | Self::Draining
            | Self::ConnectorLost
            | Self::Overloaded
            | Self::OriginDns
            | Self::OriginRefused
            | Self::OriginUnreachable
            | Self::OriginTlsCertificate
            | Self::OriginTls
            | Self::OriginClosed
            | Self::OriginProtocol
            | Self::UpgradeRefused
            | Self::OriginAuth => 14,
        }
    }

    /// The number that stands for it in a stream reset (QUIC application error code): its place in [`Reason::ALL`],
    /// from 0x100 on.
    pub fn reset_code(self) -> u32 {
        let place = Self::ALL.iter().position(|reason| *reason == self).unwrap_or(Self::ALL.len() - 1);
        0x100 + u32::try_from(place).unwrap_or(0)
    }

    /// Reads a stream reset's code.
    pub fn from_reset_code(code: u32) -> Option<Self> {
        Self::ALL.get(usize::try_from(code.checked_sub(0x100)?).ok()?).copied()
    }

    /// The unambiguous text that travels between relay and connector; [`FromStr`] reads it.
    pub const fn wire_name(self) -> &'static str {
        match self {
            Self::OriginTlsCertificate => "origin_tls_certificate",
            Self::OriginConnectTimeout => "origin_connect_timeout",
            Self::HeadTooLarge => "head_too_large",
            other => other.name(),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The text names no reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no such reason")]
pub struct UnknownReason;

impl FromStr for Reason {
    type Err = UnknownReason;

    fn from_str(text: &str) -> Result<Self, UnknownReason> {
        Self::ALL.into_iter().find(|reason| reason.wire_name() == text).ok_or(UnknownReason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_survives_the_wire() {
        for reason in Reason::ALL {
            assert_eq!(reason.wire_name().parse(), Ok(reason));
            assert_eq!(Reason::from_reset_code(reason.reset_code()), Some(reason));
        }
        assert_eq!(Reason::from_reset_code(0), None);
        assert_eq!(Reason::from_reset_code(0x100 + 27), None);
    }
}
