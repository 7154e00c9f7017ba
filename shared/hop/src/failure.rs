//! How a connector's failure reaches the relay before a response's head: `Culvert-Failure: REASON; sent=0|1`.
//!
//! Must never be believed from an origin or a caller: the field is dropped from both.

use culvert_model::control::FAILURE_FIELD;
use culvert_model::reason::Reason;
use http::{HeaderValue, StatusCode};

use crate::body::Body;
use crate::fault::{Fault, Retry, Side};
use crate::fields::Fields;
use crate::message::Response;

/// `Culvert-Failure`.
pub const FAILURE: &str = FAILURE_FIELD;

/// The connector's answer to the relay in place of the origin's.
pub fn respond(fault: &Fault) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::from_u16(fault.reason.status()).unwrap_or(StatusCode::BAD_GATEWAY);
    let value = HeaderValue::try_from(encode(fault)).unwrap_or(HeaderValue::from_static("internal; sent=1"));
    response.headers_mut().insert(FAILURE, value);
    response
}

/// At the relay: takes the connector's failure out of a response's head. What it cannot read is `internal`.
pub fn take(headers: &mut Fields) -> Option<Fault> {
    let value = headers.remove(FAILURE)?;
    Some(parse(value.as_bytes()).map_or_else(
        || Fault::new(Reason::Internal).side(Side::Tunnel).log("the connector's failure cannot be read"),
        |(reason, sent)| {
            let retry = match (sent, is_final(reason)) {
                (_, true) => Retry::Never,
                (false, false) => Retry::Safe,
                (true, false) => Retry::IfIdempotent,
            };
            Fault::new(reason).retry(retry)
        },
    ))
}

/// The field's value.
pub fn encode(fault: &Fault) -> String {
    format!("{}; sent={}", fault.reason.wire_name(), u8::from(fault.retry != Retry::Safe))
}

/// Reads the field's value: the reason, and whether anything of the request was sent to the origin.
pub fn parse(value: &[u8]) -> Option<(Reason, bool)> {
    let (reason, sent) = std::str::from_utf8(value).ok()?.split_once(';')?;
    let sent = match sent.trim() {
        "sent=0" => false,
        "sent=1" => true,
        _ => return None,
    };
    Some((reason.trim().parse().ok()?, sent))
}

/// Whether another connector would say the same, or there is no time to ask it.
fn is_final(reason: Reason) -> bool {
    match reason {
        Reason::BadRequest
        | Reason::TooLarge
        | Reason::HeadTooLarge
        | Reason::RequestTimeout
        | Reason::Deadline
        | Reason::OriginTimeout
        | Reason::Loop
        | Reason::GatewayLimit => true,
        // Another connector may have the service: this one may just have been told to drop it.
        Reason::NoSuchService
        | Reason::Unauthenticated
        | Reason::NotAllowed
        | Reason::NoConnector
        | Reason::Draining
        | Reason::ConnectorLost
        | Reason::Overloaded
        | Reason::OriginDns
        | Reason::OriginRefused
        | Reason::OriginUnreachable
        | Reason::OriginTlsCertificate
        | Reason::OriginTls
        | Reason::OriginConnectTimeout
        | Reason::OriginClosed
        | Reason::OriginProtocol
        | Reason::UpgradeRefused
        | Reason::OriginDenied
        | Reason::OriginAuth
        | Reason::Internal => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failure_survives_the_tunnel() {
        for reason in Reason::ALL {
            for retry in [Retry::Never, Retry::IfIdempotent, Retry::Safe] {
                let mut response = respond(&Fault::new(reason).retry(retry).log("10.0.0.7:8080"));
                assert_eq!(response.status().as_u16(), reason.status());
                let value = format!("{response:?}");
                assert!(!value.contains("10.0.0.7"), "the detail left the process: {value}");
                let back = take(response.headers_mut()).unwrap();
                assert_eq!(back.reason, reason);
                assert_eq!(back.retry == Retry::Safe, retry == Retry::Safe && !is_final(reason));
                assert!(take(response.headers_mut()).is_none(), "the field stayed in the head");
            }
        }
    }

    #[test]
    fn what_cannot_be_read_is_internal_and_never_tried_again() {
        for bad in
            ["", "origin_closed", "origin_closed; sent=2", "nonsense; sent=0", "origin_closed; sent=", "\u{e9}; sent=0"]
        {
            assert_eq!(parse(bad.as_bytes()), None, "{bad:?}");
            let mut headers = Fields::new();
            headers.insert(FAILURE, HeaderValue::from_bytes(bad.as_bytes()).unwrap());
            let fault = take(&mut headers).unwrap();
            assert_eq!((fault.reason, fault.retry), (Reason::Internal, Retry::Never));
        }
    }
}
