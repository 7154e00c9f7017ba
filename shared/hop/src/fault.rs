//! A failure with its name, and the only place that makes Culvert's own responses (interface.md §5).
//!
//! Must never show a caller what is for the log: addresses, keys, causes.

use std::fmt::{self, Write as _};

use bytes::Bytes;
use culvert_model::reason::Reason;
use http::header::{CACHE_CONTROL, CONNECTION, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderName, HeaderValue, StatusCode, header};

use crate::body::Body;
use crate::fields::Fields;
use crate::message::Response;

/// `Proxy-Status` (RFC 9209).
pub const PROXY_STATUS: &str = "proxy-status";
/// The name under which Culvert speaks in `Proxy-Status`.
pub const PROXY_NAME: &str = "culvert-relay";

const RETRY_AFTER_SECONDS: HeaderValue = HeaderValue::from_static("1");

/// Who caused a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Whoever sent the request.
    Caller,
    /// This process.
    Here,
    /// The tunnel, or the process at its other end.
    Tunnel,
    /// The origin.
    Origin,
}

/// Whether the same request may be tried once more, elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// Another try fails as well, or has no time left.
    Never,
    /// The request may have been acted on: only if it is idempotent and its body is still whole.
    IfIdempotent,
    /// Nothing of the request was sent to anyone who acts on it.
    Safe,
}

/// A failed request: what the caller is told ([`Reason`]) and what only the log is told (the detail).
#[derive(Debug)]
pub struct Fault {
    /// Its name.
    pub reason: Reason,
    /// Who caused it.
    pub side: Side,
    /// Whether to try again.
    pub retry: Retry,
    detail: Option<Box<str>>,
}

/// Whom an answer is for: kept from the request's head, for the case that Culvert has to answer itself.
#[derive(Debug, Clone)]
pub struct Audience {
    /// `X-Request-Id`, as kept or made.
    pub request_id: HeaderValue,
    /// `Accept`.
    pub accept: Option<HeaderValue>,
    /// Whether it is a gRPC call.
    pub grpc: bool,
}

impl Fault {
    /// A fault with the side that usually causes it, and no other try.
    pub const fn new(reason: Reason) -> Self {
        Self { reason, side: usual_side(reason), retry: Retry::Never, detail: None }
    }

    /// Says who caused it.
    #[must_use]
    pub fn side(mut self, side: Side) -> Self {
        self.side = side;
        self
    }

    /// Says whether to try again.
    #[must_use]
    pub fn retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    /// Adds what only the log may know.
    #[must_use]
    pub fn log(mut self, detail: impl fmt::Display) -> Self {
        self.detail = Some(detail.to_string().into());
        self
    }

    /// What only the log may know.
    pub fn detail(&self) -> Option<&str> {
        self.detail.as_deref()
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.reason)?;
        self.detail.as_ref().map_or(Ok(()), |detail| write!(f, ": {detail}"))
    }
}

impl std::error::Error for Fault {}

impl Audience {
    /// From a request's header fields and its request id.
    pub fn of(headers: &Fields, request_id: HeaderValue) -> Self {
        let grpc = headers.get(CONTENT_TYPE).is_some_and(|kind| {
            let kind = kind.as_bytes();
            kind.strip_prefix(b"application/grpc")
                .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';' | b' ')))
        });
        Self { request_id, accept: headers.get(header::ACCEPT).cloned(), grpc }
    }
}

/// Makes the response to a request that failed here.
///
/// Where the request's framing is in doubt (`bad_request`, a head over its limit, a caller too slow), it also closes
/// the connection.
pub fn respond(fault: &Fault, audience: &Audience) -> Response<Body> {
    let reason = fault.reason;
    let mut response;
    if audience.grpc {
        response = Response::new(Body::empty());
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(HeaderName::from_static("grpc-status"), HeaderValue::from(u16::from(reason.grpc_status())));
        headers.insert(HeaderName::from_static("grpc-message"), HeaderValue::from_static(reason.name()));
    } else {
        let json = audience.accept.as_ref().is_some_and(|accept| prefers_json(accept.as_bytes()));
        let id = audience.request_id.to_str().unwrap_or("-");
        response = Response::new(Body::full(if json { problem(reason, id) } else { text(reason, id) }));
        *response.status_mut() = status(reason);
        let kind = if json { "application/problem+json" } else { "text/plain; charset=utf-8" };
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    }
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(PROXY_STATUS, proxy_status(reason));
    if reason == Reason::Unauthenticated {
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Culvert-Gateway realm=\"culvert\""));
    }
    if matches!(reason, Reason::Overloaded | Reason::GatewayLimit) {
        headers.insert(RETRY_AFTER, RETRY_AFTER_SECONDS);
    }
    if matches!(reason, Reason::BadRequest | Reason::HeadTooLarge | Reason::RequestTimeout) {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// The same response as bytes, for a head that never became a request.
pub(crate) fn refusal(reason: Reason) -> Bytes {
    let status = status(reason);
    let body = text(reason, "-");
    let mut out = String::with_capacity(256 + body.len());
    let _ = write!(
        out,
        "HTTP/1.1 {} {}\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: {}\r\ncache-control: no-store\r\n\
         proxy-status: {}\r\nconnection: close\r\n\r\n{body}",
        status.as_str(),
        status.canonical_reason().unwrap_or("Error"),
        body.len(),
        status_text(reason),
    );
    out.into()
}

/// Whether a `Proxy-Status` value speaks in Culvert's name.
pub(crate) fn speaks_for_culvert(value: &HeaderValue) -> bool {
    value.as_bytes().windows(PROXY_NAME.len()).any(|part| part.eq_ignore_ascii_case(PROXY_NAME.as_bytes()))
}

fn proxy_status(reason: Reason) -> HeaderValue {
    HeaderValue::try_from(status_text(reason)).unwrap_or(HeaderValue::from_static(PROXY_NAME))
}

fn status_text(reason: Reason) -> String {
    format!("{PROXY_NAME}; error={}; details=\"{}\"", reason.proxy_error(), reason.name())
}

fn status(reason: Reason) -> StatusCode {
    StatusCode::from_u16(reason.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

fn text(reason: Reason, request_id: &str) -> String {
    format!("{} {reason}: {}\nrequest id: {request_id}\n", reason.status(), sentence(reason))
}

fn problem(reason: Reason, request_id: &str) -> String {
    let mut id = String::with_capacity(request_id.len());
    for character in request_id.chars() {
        if matches!(character, '"' | '\\') {
            id.push('\\');
        }
        id.push(character);
    }
    format!(
        "{{\"type\":\"about:blank\",\"title\":\"{}\",\"status\":{},\"detail\":\"{}\",\"reason\":\"{reason}\",\"request_id\":\"{id}\"}}\n",
        status(reason).canonical_reason().unwrap_or("Error"),
        reason.status(),
        sentence(reason),
    )
}

/// Whether `Accept` names JSON before, or with more weight than, anything textual.
fn prefers_json(accept: &[u8]) -> bool {
    let (mut json, mut other) = (0, 0);
    for range in accept.split(|byte| *byte == b',') {
        let mut parts = range.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
        let kind = parts.next().unwrap_or_default().to_ascii_lowercase();
        let weight = parts.find_map(|part| part.strip_prefix(b"q=")).map_or(1000, weight);
        match kind.as_slice() {
            b"application/json" | b"application/problem+json" => json = json.max(weight),
            kind if kind.starts_with(b"application/") && kind.ends_with(b"+json") => json = json.max(weight),
            kind if kind.starts_with(b"text/") => other = other.max(weight),
            _ => {}
        }
    }
    json > other
}

/// A quality value (RFC 9110 §12.4.2) in thousandths.
fn weight(text: &[u8]) -> u32 {
    let digit = |at: usize| match text.get(at) {
        Some(digit @ b'0'..=b'9') => u32::from(digit - b'0'),
        _ => 0,
    };
    (digit(0) * 1000 + digit(2) * 100 + digit(3) * 10 + digit(4)).min(1000)
}

const fn usual_side(reason: Reason) -> Side {
    match reason {
        Reason::NoSuchService
        | Reason::Unauthenticated
        | Reason::NotAllowed
        | Reason::GatewayLimit
        | Reason::BadRequest
        | Reason::TooLarge
        | Reason::HeadTooLarge
        | Reason::RequestTimeout
        | Reason::Loop => Side::Caller,
        Reason::NoConnector | Reason::ConnectorLost => Side::Tunnel,
        Reason::Draining | Reason::Overloaded | Reason::OriginDenied | Reason::OriginAuth | Reason::Internal => {
            Side::Here
        }
        Reason::OriginDns
        | Reason::OriginRefused
        | Reason::OriginUnreachable
        | Reason::OriginTlsCertificate
        | Reason::OriginTls
        | Reason::OriginConnectTimeout
        | Reason::OriginTimeout
        | Reason::OriginClosed
        | Reason::OriginProtocol
        | Reason::UpgradeRefused
        | Reason::Deadline => Side::Origin,
    }
}

const fn sentence(reason: Reason) -> &'static str {
    match reason {
        Reason::NoSuchService => "no service of this name is known here",
        Reason::Unauthenticated => "say who is calling: the Culvert-Gateway field, or a client certificate",
        Reason::NotAllowed => "this caller may not call this service",
        Reason::NoConnector => "no connector that serves this service is connected",
        Reason::Draining => "this end is shutting down",
        Reason::ConnectorLost => "the connector vanished while it had the request",
        Reason::Overloaded => "too many requests at once",
        Reason::GatewayLimit => "too many requests at once from this gateway",
        Reason::OriginDns => "the origin's name does not resolve",
        Reason::OriginRefused => "the origin refused the connection",
        Reason::OriginUnreachable => "the origin's network cannot be reached",
        Reason::OriginTlsCertificate => "the origin's certificate was not accepted, or ours was not",
        Reason::OriginTls => "TLS with the origin failed",
        Reason::OriginConnectTimeout => "the origin did not accept the connection in time",
        Reason::OriginTimeout => "the origin did not answer in time",
        Reason::OriginClosed => "the origin closed the connection before its answer was whole",
        Reason::OriginProtocol => "the origin's answer is not proper HTTP",
        Reason::UpgradeRefused => "the change of protocol failed",
        Reason::OriginDenied => "the connector may not call this origin",
        Reason::OriginAuth => "the proof that the origin asks for could not be made",
        Reason::BadRequest => "the request is malformed or ambiguous",
        Reason::TooLarge => "the request's body is over its limit",
        Reason::HeadTooLarge => "the request's head is over its limit",
        Reason::RequestTimeout => "the request did not arrive in time",
        Reason::Deadline => "the request took longer than it may",
        Reason::Loop => "the request has been here before",
        Reason::Internal => "a defect of Culvert; the log says more",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn audience(fields: &[(&'static str, &'static str)]) -> Audience {
        let mut headers = Fields::new();
        for (name, value) in fields {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        Audience::of(&headers, HeaderValue::from_static("id-\"1\\"))
    }

    async fn body(response: Response<Body>) -> String {
        String::from_utf8(response.into_body().read(10_000).await.unwrap().to_vec()).unwrap()
    }

    #[tokio::test]
    async fn every_reason_is_told_and_nothing_else() {
        for reason in Reason::ALL {
            let fault = Fault::new(reason).log("10.0.0.7:8080 private");
            let response = respond(&fault, &audience(&[]));
            assert_eq!(response.status().as_u16(), reason.status());
            assert_eq!(
                *response.headers().get(PROXY_STATUS).unwrap(),
                format!("culvert-relay; error={}; details=\"{}\"", reason.proxy_error(), reason.name())
            );
            assert_eq!(response.headers().contains_key(WWW_AUTHENTICATE), reason == Reason::Unauthenticated);
            let is_overload = matches!(reason, Reason::Overloaded | Reason::GatewayLimit);
            assert_eq!(response.headers().contains_key(RETRY_AFTER), is_overload);
            assert_eq!(response.headers().get(CONTENT_TYPE).unwrap(), "text/plain; charset=utf-8");
            assert!(!format!("{response:?}").contains("10.0.0.7"));
            let text = body(response).await;
            assert!(text.starts_with(&format!("{} {}: ", reason.status(), reason.name())), "{text}");
            assert!(text.contains("id-\"1\\") && !text.contains("10.0.0.7"), "{text}");
        }
    }

    #[tokio::test]
    async fn who_prefers_json_gets_a_problem() {
        for (accept, json) in [
            ("application/json", true),
            ("application/problem+json", true),
            ("application/vnd.api+json; q=0.5", true),
            ("text/html, application/json;q=0.9", false),
            ("text/plain;q=0.1, APPLICATION/JSON;q=0.95", true),
            ("application/json;q=0", false),
            ("application/json, text/html", false),
            ("*/*", false),
            ("", false),
            (";;,q=,application/json;q=zz", false),
        ] {
            let response = respond(&Fault::new(Reason::NoConnector), &audience(&[("accept", accept)]));
            let kind = response.headers().get(CONTENT_TYPE).unwrap().to_str().unwrap().to_owned();
            assert_eq!(kind == "application/problem+json", json, "{accept:?}: {kind}");
            if json {
                assert_eq!(
                    body(response).await,
                    "{\"type\":\"about:blank\",\"title\":\"Service Unavailable\",\"status\":503,\"detail\":\"no connector \
                     that serves this service is connected\",\"reason\":\"no_connector\",\"request_id\":\"id-\\\"1\\\\\"}\n"
                );
            }
        }
    }

    #[tokio::test]
    async fn a_grpc_caller_gets_a_status_of_its_own() {
        for (kind, grpc) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc; x=y", true),
            ("application/grpc-web", false),
            ("application/json", false),
        ] {
            let response = respond(&Fault::new(Reason::NotAllowed), &audience(&[("content-type", kind)]));
            assert_eq!(response.status().as_u16() == 200, grpc, "{kind}");
            assert!(response.headers().contains_key(PROXY_STATUS));
            if grpc {
                assert_eq!(response.headers().get("grpc-status").unwrap(), "7");
                assert_eq!(body(response).await, "");
            }
        }
    }

    #[test]
    fn a_refusal_is_a_whole_response() {
        let text = String::from_utf8(refusal(Reason::BadRequest).to_vec()).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 400 Bad Request\r\n") && head.ends_with("connection: close"), "{head}");
        assert!(head.contains(&format!("content-length: {}\r\n", body.len())), "{head}");
    }
}
