//! A request's head between the versions of HTTP: what only HTTP/2 has becomes what all hops read, and back.
//!
//! Inside a hop every request looks alike: a target in origin-form, one `Host`. Must never let `:authority` and `Host`
//! name different places, or send a field that is about a connection over HTTP/2 (RFC 9113 §8.2.2).
//!
//! h2 refuses before: fields about the connection and a `TE` other than `trailers`, names in capitals, missing or doubled
//! pseudo-fields, a body that is not as long as `Content-Length` says.

use bytes::Bytes;
use h2::ext::Protocol;
use http::header::COOKIE;
use http::uri::{Authority, PathAndQuery, Scheme, Uri};
use http::{HeaderValue, Method, Version};

use culvert_model::reason::Reason;

use crate::fault::Fault;
use crate::fields::name::{CONNECTION, CONTENT_LENGTH, HOST, TE, TRANSFER_ENCODING, UPGRADE};
use crate::fields::{Fields, is_hop_by_hop, two};
use crate::host::HostPort;
use crate::message::RequestParts as Parts;

/// The only protocol that an extended CONNECT may ask for.
pub(crate) const WEBSOCKET: HeaderValue = HeaderValue::from_static("websocket");
const CHUNKED: HeaderValue = HeaderValue::from_static("chunked");
const NAMES_TE: HeaderValue = HeaderValue::from_static("te");

/// Brings a received HTTP/2 head into the form of all heads; the host it is for.
pub(crate) fn settle(parts: &mut Parts) -> Result<HeaderValue, &'static str> {
    if parts.method == Method::CONNECT {
        match parts.extensions.get::<Protocol>() {
            None => return Err("CONNECT"),
            Some(protocol) if !protocol.as_str().eq_ignore_ascii_case("websocket") => {
                return Err("CONNECT to a protocol other than websocket");
            }
            Some(_) => {}
        }
    }
    let default_port = match parts.uri.scheme_str() {
        None | Some("http") => 80,
        Some("https") => 443,
        Some(_) => return Err("a target of another scheme"),
    };
    // Shown as "/" is also what is empty, because it was a fragment alone; and `path()` hides that a query stands alone.
    let root = PathAndQuery::from_static("/");
    match parts.uri.path_and_query().map(|path| (path.as_str(), path)) {
        Some(("*", _)) if parts.method == Method::OPTIONS => {}
        Some(("/", path)) if *path == root => {}
        Some((text, _)) if text.len() > 1 && text.starts_with('/') => {}
        _ => return Err("a target that is no path"),
    }
    // The one character that the crate http takes in a name and that no token has (RFC 9110 §5.6.2).
    if parts.headers.iter().any(|(name, _)| name.as_bytes().contains(&b'"')) {
        return Err("a name that is no token");
    }
    let (host, second) = two(&parts.headers, HOST);
    let authority = match (parts.uri.authority(), host, second) {
        (_, _, Some(_)) => return Err("Host twice"),
        (None, None, None) => return Err("no :authority"),
        (None, Some(host), None) => host.clone(),
        (Some(authority), host, None) => {
            let target = HostPort::parse(authority.as_str().as_bytes()).ok_or("an ill-formed :authority")?;
            if let Some(host) = host {
                let host = HostPort::parse(host.as_bytes()).ok_or("an ill-formed Host")?;
                if !target.is_same(host, default_port) {
                    return Err("an :authority that disagrees with Host");
                }
            }
            HeaderValue::from_str(authority.as_str()).map_err(|_| "an ill-formed :authority")?
        }
    };
    if let Some(crumbs) = join_cookies(&parts.headers) {
        parts.headers.insert(COOKIE, crumbs);
    }
    parts.headers.remove(HOST);
    // First, as HTTP/1.1 wants it (RFC 9110 §7.2).
    parts.headers.put_first(HOST, authority.clone());
    let path = parts.uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
    parts.uri = Uri::from(path);
    Ok(authority)
}

/// Cookies that came in several fields, as one (RFC 9113 §8.2.3). None if there is nothing to join.
fn join_cookies(headers: &Fields) -> Option<HeaderValue> {
    let mut crumbs = headers.get_all(COOKIE);
    let (first, second) = (crumbs.next()?, crumbs.next()?);
    let mut whole = first.as_bytes().to_vec();
    for crumb in std::iter::once(second).chain(crumbs) {
        whole.extend_from_slice(b"; ");
        whole.extend_from_slice(crumb.as_bytes());
    }
    HeaderValue::from_maybe_shared(Bytes::from(whole)).ok()
}

/// Dresses a head for an HTTP/1.1 connection. `is_empty` says that no body follows.
pub(crate) fn for_http1(parts: &mut Parts, is_empty: bool) {
    if parts.version != Version::HTTP_2 {
        return;
    }
    parts.version = Version::HTTP_11;
    if parts.headers.contains_key(TE) {
        parts.headers.insert(CONNECTION, NAMES_TE);
    }
    if !is_empty && !parts.headers.contains_key(CONTENT_LENGTH) {
        parts.headers.insert(TRANSFER_ENCODING, CHUNKED);
    }
}

/// Dresses a head for an HTTP/2 connection.
///
/// # Errors
/// `upgrade_refused`: it asks for a change of protocol, which HTTP/2 has no word for. `bad_request`: no host is named.
pub(crate) fn for_http2(parts: &mut Parts, scheme: Scheme) -> Result<(), Fault> {
    if parts.headers.contains_key(UPGRADE) {
        return Err(Fault::new(Reason::UpgradeRefused).log("the origin speaks HTTP/2 only"));
    }
    let refused = |why: &str| Fault::new(Reason::BadRequest).log(why);
    let host = parts.headers.get(HOST).ok_or_else(|| refused("no Host"))?;
    let authority = Authority::try_from(host.as_bytes()).map_err(|_| refused("an ill-formed Host"))?;
    let mut uri = std::mem::take(&mut parts.uri).into_parts();
    uri.scheme = Some(scheme);
    uri.authority = Some(authority);
    uri.path_and_query.get_or_insert(PathAndQuery::from_static("/"));
    parts.uri = Uri::from_parts(uri).map_err(|_| refused("an ill-formed target"))?;
    // TE stays: `trailers` is all that a hop ever writes there.
    parts.headers.drop_named(|name| name.is(HOST) || !name.is(TE) && is_hop_by_hop(name));
    parts.version = Version::HTTP_2;
    Ok(())
}
