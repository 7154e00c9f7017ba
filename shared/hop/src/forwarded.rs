//! The fields that tell the origin who called whom through what: `Forwarded`, `X-Forwarded-*`, `Via`.
//!
//! Must never change what a believed caller sent in them, only add to it.

use std::fmt::Write as _;
use std::net::IpAddr;

use http::HeaderValue;

use crate::fields::name::{FORWARDED, VIA};
use crate::fields::{Fields, Name, tokens};
use crate::request::Caller;

const FOR: &str = "x-forwarded-for";
const PROTO: &str = "x-forwarded-proto";
const HOST: &str = "x-forwarded-host";
const PORT: &str = "x-forwarded-port";

const VIA_CULVERT: HeaderValue = HeaderValue::from_static("1.1 culvert");
/// Through how many Culverts a request may have come: relays may stand behind each other, but not in a ring.
pub(crate) const MAX_HOPS: usize = 8;

/// Whether the field says how a request came here, or says it to programs that read fields as variables, where `_` stands
/// for `-` (RFC 3875 §4.1.18).
pub(crate) fn is_forwarding(name: &Name) -> bool {
    let is_known = |name: &str| matches!(name, "forwarded" | "via" | "x-real-ip") || name.starts_with("x-forwarded-");
    let Some(name) = name.to_lower() else { return false };
    let name = name.as_str();
    is_known(name) || name.contains('_') && is_known(&name.replace('_', "-"))
}

/// Whether a request has been at the relay of this id, or through too many Culverts.
///
/// The relay signs its `Forwarded` element with `by=_culvert-ID` (RFC 7239 §6.3).
pub(crate) fn is_loop(headers: &Fields, relay: &str) -> bool {
    let hops = tokens(headers, VIA).filter(|via| via.split(|b| *b == b' ').nth(1) == Some(b"culvert")).count();
    hops >= MAX_HOPS
        || headers.get_all(FORWARDED).any(|value| {
            value.as_bytes().split(|byte| matches!(byte, b';' | b',')).any(|pair| {
                let (name, by) = pair.trim_ascii().split_at_checked(3).unwrap_or_default();
                let by = by.strip_prefix(b"\"").and_then(|by| by.strip_suffix(b"\"")).unwrap_or(by);
                name.eq_ignore_ascii_case(b"by=") && by.strip_prefix(b"_culvert-") == Some(relay.as_bytes())
            })
        })
}

/// Adds this hop to the fields. What was not to be believed has been dropped before.
pub(crate) fn add(headers: &mut Fields, caller: &Caller, host: &HeaderValue, port: u16, relay: &str) {
    headers.reserve(8);
    let address = caller.address.map(address_text);
    let proto = if caller.tls { "https" } else { "http" };
    let element = element(address.as_deref(), host, proto, relay);
    if let Some(address) = address {
        append(headers, FOR, address);
    }
    for (name, value) in
        [(PROTO, HeaderValue::from_static(proto)), (HOST, host.clone()), (PORT, HeaderValue::from(port))]
    {
        if !headers.contains_key(name) {
            headers.append(name, value);
        }
    }
    append(headers, FORWARDED, element);
    if headers.contains_key(VIA) {
        append(headers, VIA, "1.1 culvert".to_owned());
    } else {
        headers.append(VIA, VIA_CULVERT);
    }
}

/// One `Forwarded` element (RFC 7239 §4). Put together by hand: formatting costs more than the rest of the hop's fields.
fn element(address: Option<&str>, host: &HeaderValue, proto: &str, relay: &str) -> String {
    let host = host.to_str().unwrap_or_default();
    let quote = if host.contains([':', '[']) { "\"" } else { "" };
    let (open, address, close) = match address {
        Some(address) if address.contains(':') => ("\"[", address, "]\""),
        Some(address) => ("", address, ""),
        None => ("", "unknown", ""),
    };
    let parts = ["for=", open, address, close, ";by=_culvert-", relay, ";host=", quote, host, quote, ";proto=", proto];
    let mut out = String::with_capacity(parts.iter().map(|part| part.len()).sum());
    parts.iter().for_each(|part| out.push_str(part));
    out
}

fn address_text(address: IpAddr) -> String {
    let mut out = String::with_capacity(40);
    match address {
        IpAddr::V4(address) => {
            for (place, octet) in address.octets().into_iter().enumerate() {
                if place > 0 {
                    out.push('.');
                }
                for (weight, from) in [(100, 100), (10, 10), (1, 0)] {
                    if octet >= from {
                        out.push(char::from(b'0' + octet / weight % 10));
                    }
                }
            }
        }
        IpAddr::V6(address) => {
            let _ = write!(out, "{address}");
        }
    }
    out
}

/// Adds an element to a list field, on the last of its lines.
fn append(headers: &mut Fields, name: &'static str, element: String) {
    let Some(last) = headers.last_mut(name) else {
        if let Ok(value) = HeaderValue::try_from(element) {
            headers.append(name, value);
        }
        return;
    };
    let mut joined = Vec::with_capacity(last.len() + 2 + element.len());
    joined.extend_from_slice(last.as_bytes());
    if !joined.is_empty() {
        joined.extend_from_slice(b", ");
    }
    joined.extend_from_slice(element.as_bytes());
    if let Ok(value) = HeaderValue::from_maybe_shared(bytes::Bytes::from(joined)) {
        *last = value;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_address_is_written_as_everybody_writes_it(v4 in any::<std::net::Ipv4Addr>(), v6 in any::<std::net::Ipv6Addr>()) {
            prop_assert_eq!(address_text(v4.into()), v4.to_string());
            prop_assert_eq!(address_text(v6.into()), v6.to_string());
        }
    }

    #[test]
    fn an_element_quotes_what_is_no_token() {
        let host = |text| HeaderValue::from_static(text);
        assert_eq!(element(Some("1.2.3.4"), &host("a"), "http", "r"), "for=1.2.3.4;by=_culvert-r;host=a;proto=http");
        assert_eq!(
            element(Some("::1"), &host("[::1]:8"), "https", "r"),
            "for=\"[::1]\";by=_culvert-r;host=\"[::1]:8\";proto=https"
        );
        assert_eq!(element(None, &host("a"), "http", "r"), "for=unknown;by=_culvert-r;host=a;proto=http");
    }
}
