//! A request's head: refused where it is ambiguous, rewritten for the next hop.
//!
//! Must never forward a field that is for this hop only, or let a caller remove or forge what the next hop relies on.
//!
//! What [`crate::server`] has refused before: bytes that are no head of RFC 9112, and framing that may be read in two ways.

use std::net::IpAddr;

use http::header::SEC_WEBSOCKET_KEY;
use http::uri::{PathAndQuery, Uri};
use http::{HeaderName, HeaderValue, Method, Version};

use culvert_model::reason::Reason;

use crate::fault::{Audience, Fault, Side};
use crate::fields::name::{CONNECTION, CONTENT_LENGTH, EXPECT, HOST, TE, TRANSFER_ENCODING, UPGRADE};
use crate::fields::{Fields, Name, is_culvert, is_hop_by_hop, is_protected, tokens, two};
use crate::forwarded;
use crate::host::HostPort;
use crate::http2;
use crate::message::RequestParts as Parts;
use crate::upgrade::OnUpgrade;
use crate::websocket::Challenge;

/// `X-Request-Id`.
pub const REQUEST_ID: &str = "x-request-id";

const CHUNKED: HeaderValue = HeaderValue::from_static("chunked");
const TRAILERS: HeaderValue = HeaderValue::from_static("trailers");
const NAMES_TE: HeaderValue = HeaderValue::from_static("te");
const NAMES_UPGRADE: HeaderValue = HeaderValue::from_static("upgrade");

/// What a checked head says about the request.
#[derive(Debug)]
pub struct Head {
    /// For an answer of our own. Its request id is the one to log.
    pub audience: Audience,
    /// The caller asks to change the protocol, and may.
    pub upgrade: Option<Upgrade>,
    /// `Expect: 100-continue`, with a body to wait for it.
    pub expects_continue: bool,
    authority: HeaderValue,
    host_len: usize,
    port: Option<u16>,
    chunked: bool,
}

/// An asked change of protocol.
#[derive(Debug)]
pub struct Upgrade {
    /// The value of `Upgrade`, as sent.
    pub protocol: HeaderValue,
    /// The caller's connection, once it was told.
    pub on: OnUpgrade,
    /// Asked by extended CONNECT (RFC 8441): what this hop asks the next one in its place, by HTTP/1.1.
    pub(crate) challenge: Option<Challenge>,
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
        self.authority.to_str().ok().and_then(|text| text.get(..self.host_len)).unwrap_or_default()
    }

    /// The port in `Host`.
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// Whether the caller takes any success for a change of protocol: it asked by extended CONNECT.
    pub fn is_connect(&self) -> bool {
        self.upgrade.as_ref().is_some_and(|upgrade| upgrade.challenge.is_some())
    }

    /// `Host`, or `:authority`, as sent.
    pub fn authority(&self) -> &HeaderValue {
        &self.authority
    }
}

/// Checks the head of a request as the server hands it over, and takes the offered upgrade out of it.
///
/// Afterwards the target is in origin-form (or `*`), there is one `Host`, and nothing else has changed; of an HTTP/2
/// request the `Host` is its `:authority`, and cookie crumbs are one field (RFC 9113 §8.2.3).
///
/// # Errors
/// A [`Fault`] `bad_request` and whom to tell it.
pub fn check(parts: &mut Parts) -> Result<Head, (Fault, Audience)> {
    let audience = Audience::of(&parts.headers, request_id(&parts.headers));
    match inspect(parts) {
        Ok((host_len, port, authority)) => {
            let has_body = has_body(&parts.headers);
            let upgrade = asked(parts, has_body);
            let expects_continue = has_body
                && parts.version > Version::HTTP_10
                && parts
                    .headers
                    .get(EXPECT)
                    .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
            let chunked = parts.headers.contains_key(TRANSFER_ENCODING);
            Ok(Head { audience, upgrade, expects_continue, authority, host_len, port, chunked })
        }
        Err(why) => Err((Fault::new(Reason::BadRequest).side(Side::Caller).log(why), audience)),
    }
}

/// At the relay: strips what is for this hop and every `Culvert-*` field, and adds the forwarding fields.
///
/// `relay` is this relay's id: 1 to 32 of a-z and 0-9.
///
/// # Errors
/// A [`Fault`] `loop`: the request has been here before, or has been through too many Culverts.
pub fn forward(
    parts: &mut Parts,
    head: &Head,
    caller: &Caller,
    policy: ForwardPolicy,
    relay: &str,
) -> Result<(), Fault> {
    if forwarded::is_loop(&parts.headers, relay) {
        return Err(Fault::new(Reason::Loop));
    }
    strip(parts, head, Leg::Tunnel, |name| policy == ForwardPolicy::Replace && forwarded::is_forwarding(name));
    let port = head.port.or(caller.port).unwrap_or(if caller.tls { 443 } else { 80 });
    forwarded::add(&mut parts.headers, caller, &head.authority, port, relay);
    parts.headers.insert(REQUEST_ID, head.audience.request_id.clone());
    Ok(())
}

/// At the connector: strips what is for this hop and every `Culvert-*` field. Read `Culvert-Service` before.
pub fn deliver(parts: &mut Parts, head: &Head) {
    strip(parts, head, Leg::Origin, |_| false);
}

/// At a relay that takes the last hop itself: of what [`forward`] wrote for the tunnel, makes what an origin is to see.
/// Read `Culvert-*` fields before.
pub fn deliver_forwarded(parts: &mut Parts) {
    parts.headers.drop_named(|name| is_culvert(name.as_bytes()));
    if !parts.headers.contains_key(UPGRADE) {
        ask_for_trailers(parts);
    }
}

/// Replaces `Host`.
pub fn set_host(parts: &mut Parts, host: HeaderValue) {
    parts.headers.insert(HOST, host);
}

/// The trace id of a well-formed W3C `traceparent`.
pub fn trace_id(headers: &Fields) -> Option<&str> {
    let value = headers.get("traceparent")?.to_str().ok()?;
    let mut parts = value.split('-');
    let (version, trace, parent, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let is_hex =
        |text: &str, len| text.len() == len && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let well_formed =
        is_hex(version, 2) && version != "ff" && is_hex(trace, 32) && is_hex(parent, 16) && is_hex(flags, 2);
    let ends = version != "00" || parts.next().is_none();
    let is_zero = |text: &str| text.bytes().all(|byte| byte == b'0');
    (well_formed && ends && !is_zero(trace) && !is_zero(parent)).then_some(trace)
}

/// The caller's request id if it is one visible word, else a new one.
fn request_id(headers: &Fields) -> HeaderValue {
    let mut sent = headers.get_all(REQUEST_ID);
    if let (Some(id), None) = (sent.next(), sent.next())
        && (1..=128).contains(&id.len())
        && id.as_bytes().iter().all(u8::is_ascii_graphic)
    {
        return id.clone();
    }
    let mut id = [0; 32];
    let random = rand::random::<[u8; 16]>();
    for (digits, byte) in id.chunks_exact_mut(2).zip(random) {
        digits.copy_from_slice(&[hex_digit(byte >> 4), hex_digit(byte & 15)]);
    }
    HeaderValue::from_bytes(&id).unwrap_or(HeaderValue::from_static("-"))
}

const fn hex_digit(nibble: u8) -> u8 {
    if nibble < 10 { b'0' + nibble } else { b'a' + nibble - 10 }
}

/// The rules; on success where in `Host` the name ends, the port, and `Host`.
fn inspect(parts: &mut Parts) -> Result<(usize, Option<u16>, HeaderValue), &'static str> {
    if parts.version == Version::HTTP_2 {
        let authority = http2::settle(parts)?;
        let Some(HostPort { host, port }) = HostPort::parse(authority.as_bytes()) else {
            return Err("an ill-formed :authority");
        };
        let host_len = host.len();
        check_framing(&parts.headers, parts.version)?;
        return Ok((host_len, port, authority));
    }
    if parts.method == Method::CONNECT {
        return Err("CONNECT");
    }
    let host = match two(&parts.headers, HOST) {
        (Some(host), None) => Some(host.clone()),
        (None, _) => None,
        (Some(_), Some(_)) => return Err("Host twice"),
    };
    let authority = settle_target(parts, host)?;
    let Some(HostPort { host, port }) = HostPort::parse(authority.as_bytes()) else { return Err("an ill-formed Host") };
    let host_len = host.len();
    check_framing(&parts.headers, parts.version)?;
    check_connection(&parts.headers)?;
    Ok((host_len, port, authority))
}

/// Brings the target into origin-form; the host it is for.
fn settle_target(parts: &mut Parts, host: Option<HeaderValue>) -> Result<HeaderValue, &'static str> {
    let uri = &parts.uri;
    let Some(scheme) = uri.scheme_str() else {
        return match (uri.authority(), uri.path()) {
            (Some(_), _) => Err("a target in authority-form"),
            (None, "*") if parts.method != Method::OPTIONS => Err("the target * without OPTIONS"),
            (None, "*") => host.ok_or("no Host"),
            (None, path) if path.starts_with('/') => host.ok_or("no Host"),
            (None, _) => Err("a target that is no path"),
        };
    };
    let default_port = match scheme {
        "http" => 80,
        "https" => 443,
        _ => return Err("a target of another scheme"),
    };
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let target = HostPort::parse(authority.as_bytes()).ok_or("an ill-formed host in the target")?;
    let host = match host {
        Some(host) => {
            let named = HostPort::parse(host.as_bytes()).ok_or("an ill-formed Host")?;
            if !target.is_same(named, default_port) {
                return Err("a target that disagrees with Host");
            }
            host
        }
        None if parts.version == Version::HTTP_10 => {
            let host = HeaderValue::from_str(authority).map_err(|_| "an ill-formed host in the target")?;
            parts.headers.insert(HOST, host.clone());
            host
        }
        None => return Err("no Host"),
    };
    let path = parts.uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
    parts.uri = Uri::from(path);
    Ok(host)
}

/// Refuses framing that another parser may read differently (RFC 9112 §6, §11.2).
fn check_framing(headers: &Fields, version: Version) -> Result<(), &'static str> {
    let mut codings = headers.get_all(TRANSFER_ENCODING);
    let coding = codings.next();
    if codings.next().is_some() {
        return Err("Transfer-Encoding twice");
    }
    let mut lengths = headers.get_all(CONTENT_LENGTH);
    let length = lengths.next();
    if lengths.next().is_some() {
        return Err("Content-Length twice");
    }
    match (coding, length) {
        (Some(_), Some(_)) => Err("Content-Length beside Transfer-Encoding"),
        (Some(coding), None) if !coding.as_bytes().eq_ignore_ascii_case(b"chunked") => {
            Err("a Transfer-Encoding other than chunked")
        }
        (Some(_), None) if version < Version::HTTP_11 => Err("Transfer-Encoding before HTTP/1.1"),
        (None, Some(length)) if length.is_empty() || !length.as_bytes().iter().all(u8::is_ascii_digit) => {
            Err("an ill-formed Content-Length")
        }
        _ => Ok(()),
    }
}

/// Refuses connection options that are no names, or that would take away what the next hop relies on.
fn check_connection(headers: &Fields) -> Result<(), &'static str> {
    for token in tokens(headers, CONNECTION) {
        match HeaderName::from_bytes(token) {
            Err(_) => return Err("an ill-formed Connection"),
            Ok(name) if is_protected(&name) => return Err("a Connection that names a field of the request"),
            Ok(_) => {}
        }
    }
    Ok(())
}

fn has_body(headers: &Fields) -> bool {
    headers.contains_key(TRANSFER_ENCODING)
        || headers.get(CONTENT_LENGTH).is_some_and(|length| length.as_bytes().iter().any(|digit| *digit != b'0'))
}

/// The change of protocol that the caller asks for, if it may be passed on.
fn asked(parts: &mut Parts, has_body: bool) -> Option<Upgrade> {
    let on = parts.extensions.remove::<OnUpgrade>()?;
    if parts.version == Version::HTTP_2 {
        return Some(Upgrade { protocol: http2::WEBSOCKET, on, challenge: Some(Challenge::new()) });
    }
    let protocol = offered(&parts.headers, has_body)?;
    Some(Upgrade { protocol, on, challenge: None })
}

/// The protocol that the caller wants to change to, if it may be passed on.
///
/// Not with a body: what follows it could be read before or after the change. Not another HTTP (`h2c`): the hop would
/// lose sight of the requests.
fn offered(headers: &Fields, has_body: bool) -> Option<HeaderValue> {
    let mut lines = headers.get_all(UPGRADE);
    let protocol = lines.next()?;
    let is_http = |protocol: &[u8]| {
        protocol.eq_ignore_ascii_case(b"h2c")
            || protocol.get(..4).is_some_and(|start| start.eq_ignore_ascii_case(b"http"))
    };
    let wanted = tokens(headers, CONNECTION).any(|token| token.eq_ignore_ascii_case(b"upgrade"));
    let fits =
        wanted && !has_body && !protocol.is_empty() && lines.next().is_none() && !tokens(headers, UPGRADE).any(is_http);
    fits.then(|| protocol.clone())
}

/// Where a head goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leg {
    /// To the other hop, which passes trailers on in any case.
    Tunnel,
    /// To an origin, which has to be asked for them (RFC 9110 §6.5.1).
    Origin,
}

/// Drops what ends here and what `is_unwanted` says, and writes this hop's own fields in its place.
fn strip(parts: &mut Parts, head: &Head, leg: Leg, is_unwanted: impl Fn(&Name) -> bool) {
    let named: Vec<HeaderName> = tokens(&parts.headers, CONNECTION)
        .filter(|token| {
            ![&b"close"[..], b"keep-alive", b"upgrade", b"te"].iter().any(|usual| token.eq_ignore_ascii_case(usual))
        })
        .filter_map(|token| HeaderName::from_bytes(token).ok())
        .collect();
    let old = parts.version < Version::HTTP_11;
    let is_http2 = parts.version == Version::HTTP_2;
    let asks_for_trailers = head.upgrade.is_none() && (is_http2 || leg == Leg::Origin);
    // Fields that are written anew below keep their place.
    let is_rewritten = |name: &Name| {
        name.is(CONNECTION) && !is_http2 && (asks_for_trailers || head.upgrade.is_some())
            || name.is(TE) && asks_for_trailers
            || name.is(UPGRADE) && head.upgrade.is_some()
            || name.is(TRANSFER_ENCODING) && head.chunked
    };
    parts.headers.drop_named(|name| {
        if is_hop_by_hop(name) {
            return !is_rewritten(name);
        }
        is_culvert(name.as_bytes())
            || named.iter().any(|own| name.is(own))
            || old && name.is(EXPECT)
            || is_unwanted(name)
    });
    if head.chunked {
        parts.headers.insert(TRANSFER_ENCODING, CHUNKED);
    }
    if let Some(upgrade) = &head.upgrade {
        parts.headers.insert(CONNECTION, NAMES_UPGRADE);
        parts.headers.insert(UPGRADE, upgrade.protocol.clone());
        if let Some(challenge) = &upgrade.challenge {
            parts.method = Method::GET;
            parts.headers.insert(SEC_WEBSOCKET_KEY, challenge.key());
        }
        parts.version = Version::HTTP_11;
        return;
    }
    if asks_for_trailers {
        ask_for_trailers(parts);
    }
    if !is_http2 {
        parts.version = Version::HTTP_11;
    }
}

fn ask_for_trailers(parts: &mut Parts) {
    parts.headers.insert(TE, TRAILERS);
    if parts.version != Version::HTTP_2 {
        // It has to be named (RFC 9110 §10.1.4).
        parts.headers.insert(CONNECTION, NAMES_TE);
    }
}
