//! A response's head, checked and rewritten for the caller.
//!
//! Must never forward a switch of protocols that nobody asked for, ambiguous framing, or a `Culvert-*` field.

use http::header::SEC_WEBSOCKET_ACCEPT;
use http::{HeaderName, HeaderValue, StatusCode, Version};

use culvert_model::reason::Reason;

use crate::fault::{Fault, PROXY_STATUS, Side, speaks_for_culvert};
use crate::fields::name::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING, UPGRADE};
use crate::fields::{Fields, is_culvert, is_hop_by_hop, is_protected, tokens, two};
use crate::message::ResponseParts as Parts;
use crate::request::{Head, Upgrade};
use crate::server::SwitchAccepted;

const NAMES_UPGRADE: HeaderValue = HeaderValue::from_static("upgrade");

/// Checks the head of an ordinary response and strips what is for this hop. At the relay, call
/// [`crate::failure::take`] before.
///
/// # Errors
/// A [`Fault`] `origin_protocol` or, for a 101, `upgrade_refused`: drop the exchange.
pub fn accept(parts: &mut Parts) -> Result<(), Fault> {
    if parts.status == StatusCode::SWITCHING_PROTOCOLS {
        return Err(Fault::new(Reason::UpgradeRefused).side(Side::Origin).log("a 101 that nobody asked for"));
    }
    check_framing(&parts.headers).map_err(|why| Fault::new(Reason::OriginProtocol).side(Side::Origin).log(why))?;
    // What the origin could switch to is worth knowing only where it insists.
    let insists = parts.status == StatusCode::UPGRADE_REQUIRED && parts.headers.contains_key(UPGRADE);
    strip(parts, insists);
    if insists {
        parts.headers.insert(CONNECTION, NAMES_UPGRADE);
    }
    Ok(())
}

/// Checks the head of a 101 that was asked for, and prepares it to be sent to whoever asked: as 101, or as 200 to an
/// extended CONNECT.
///
/// # Errors
/// A [`Fault`] `upgrade_refused`: the origin switched to something else, or does not say to what.
pub fn accept_switch(parts: &mut Parts, asked: &Upgrade) -> Result<(), Fault> {
    let refused = |why| Fault::new(Reason::UpgradeRefused).side(Side::Origin).log(why);
    let fits = match two(&parts.headers, UPGRADE) {
        (Some(protocol), None) => {
            let protocol = protocol.as_bytes().trim_ascii();
            let mut offered = asked.protocol.as_bytes().split(|byte| *byte == b',');
            offered.any(|one| one.trim_ascii().eq_ignore_ascii_case(protocol))
        }
        _ => false,
    };
    if parts.status != StatusCode::SWITCHING_PROTOCOLS || !fits {
        return Err(refused("a 101 to another protocol"));
    }
    let Some(challenge) = &asked.challenge else {
        strip(parts, true);
        parts.headers.insert(CONNECTION, NAMES_UPGRADE);
        return Ok(());
    };
    if !parts.headers.get(SEC_WEBSOCKET_ACCEPT).is_some_and(|accept| challenge.is_answered_by(accept)) {
        return Err(refused("a 101 with a wrong Sec-WebSocket-Accept"));
    }
    strip(parts, false);
    parts.headers.remove(SEC_WEBSOCKET_ACCEPT);
    parts.status = StatusCode::OK;
    parts.extensions.insert(SwitchAccepted);
    Ok(())
}

/// Refuses a success in answer to an extended CONNECT that is no change of protocol: the caller would take it for one
/// (RFC 8441 §5).
///
/// # Errors
/// A [`Fault`] `upgrade_refused`.
pub fn refuse_success(parts: &Parts, head: &Head) -> Result<(), Fault> {
    if head.is_connect() && parts.status.is_success() {
        let fault = Fault::new(Reason::UpgradeRefused).side(Side::Origin);
        return Err(fault.log(format_args!("{} in place of a change of protocol", parts.status)));
    }
    Ok(())
}

/// Refuses what another client may read differently; the reader of heads lets it through (RFC 9112 §6.3).
fn check_framing(headers: &Fields) -> Result<(), &'static str> {
    let mut codings = headers.get_all(TRANSFER_ENCODING);
    let mut lengths = headers.get_all(CONTENT_LENGTH);
    match (codings.next(), codings.next(), lengths.next(), lengths.next()) {
        (_, Some(_), _, _) => Err("Transfer-Encoding twice"),
        (_, _, _, Some(_)) => Err("Content-Length twice"),
        (Some(_), _, Some(_), _) => Err("Content-Length beside Transfer-Encoding"),
        (Some(coding), ..) if !coding.as_bytes().eq_ignore_ascii_case(b"chunked") => {
            Err("a Transfer-Encoding other than chunked")
        }
        (_, _, Some(length), _) if length.is_empty() || !length.as_bytes().iter().all(u8::is_ascii_digit) => {
            Err("an ill-formed Content-Length")
        }
        _ => Ok(()),
    }
}

fn strip(parts: &mut Parts, keeps_upgrade: bool) {
    let named: Vec<HeaderName> = tokens(&parts.headers, CONNECTION)
        .filter_map(|token| HeaderName::from_bytes(token).ok())
        .filter(|name| !is_protected(name))
        .collect();
    let forged = parts.headers.get_all(PROXY_STATUS).any(speaks_for_culvert);
    parts.headers.drop_named(|name| {
        if keeps_upgrade && (name.is(UPGRADE) || name.is(CONNECTION)) {
            return false;
        }
        is_hop_by_hop(name)
            || is_culvert(name.as_bytes())
            || named.iter().any(|own| name.is(own))
            || forged && name.is(PROXY_STATUS)
    });
    parts.version = Version::HTTP_11;
}
