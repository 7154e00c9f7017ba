//! A stream that carries one TCP connection of a service that is raw TCP: asked for by an upgrade, then bytes.
//!
//! Must never join raw bytes to an origin that was declared for requests, or send a request to one that was not.

use culvert_hop::body::Body;
use culvert_hop::fault::{Fault, Retry, Side};
use culvert_hop::fields::Fields;
use culvert_hop::message::{RequestParts as Parts, Response};
use culvert_hop::request::{Head, Upgrade};
use culvert_hop::upgrade::Protocol;
use culvert_model::control::{PEER_FIELD, TCP_PROTOCOL};
use culvert_model::reason::Reason;
use culvert_origin::exchange::connect_raw;
use culvert_origin::origins::Upstream;
use culvert_origin::proxy_protocol::Peer;
use http::header::{CONNECTION, UPGRADE};
use http::{HeaderValue, StatusCode};

use super::{Gate, Upgraded};

/// Whether this is about raw TCP, by what the service is or by what the relay wants.
pub(super) fn is_asked(upstream: &Upstream, head: &Head) -> bool {
    upstream.service.origin.is_tcp() || head.upgrade.as_ref().is_some_and(is_tcp)
}

fn is_tcp(upgrade: &Upgrade) -> bool {
    upgrade.protocol.as_bytes().eq_ignore_ascii_case(TCP_PROTOCOL.as_bytes())
}

impl Gate {
    /// Connects to the origin; after the 101 bytes pass until both directions ended, either side broke off, or nothing
    /// passed for the service's idle time.
    pub(super) async fn connect(
        &self,
        parts: &Parts,
        head: Head,
        upstream: &Upstream,
        upgraded: &Upgraded,
    ) -> Result<Response<Body>, Fault> {
        let service = &upstream.service;
        let is_tcp_service = service.origin.is_tcp();
        let Some(upgrade) = head.upgrade.filter(|upgrade| is_tcp_service && is_tcp(upgrade)) else {
            // Of this kind there is no service of the name. Another connector may have one.
            let why = if is_tcp_service { "the service is raw TCP" } else { "the service is HTTP" };
            return Err(Fault::new(Reason::NoSuchService).side(Side::Here).retry(Retry::Safe).log(why));
        };
        let peer = peer(&parts.headers)?;
        let raw = connect_raw(upstream, peer.as_ref()).await?;
        self.keep(upgrade.on, raw, Protocol::Other, service.timeouts.deadlines().idle, upgraded);
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static(TCP_PROTOCOL));
        Ok(response)
    }
}

/// Who connected at the relay, where it says so.
fn peer(headers: &Fields) -> Result<Option<Peer>, Fault> {
    let mut told = headers.get_all(PEER_FIELD);
    let peer = match (told.next(), told.next()) {
        (None, _) => return Ok(None),
        (Some(peer), None) => peer.to_str().ok().and_then(|text| text.parse().ok()),
        (Some(_), Some(_)) => None,
    };
    peer.map(Some).ok_or_else(|| Fault::new(Reason::BadRequest).side(Side::Tunnel).log("an ill-formed Culvert-Peer"))
}
