//! One request to the origin of its service, and the answer back: how both ends of a tunnel take the last hop.
//!
//! Must never follow a redirect, send a request whose proof could not be made, or send one twice that may have been read.

use std::time::SystemTime;

use culvert_hop::body::Body;
use culvert_hop::exchange::{Answer, Deadlines, SendError};
use culvert_hop::fault::{Fault, Retry, Side};
use culvert_hop::message::{Handle, Request, RequestParts as Parts, Response};
use culvert_hop::request::{self, Head};
use culvert_hop::response;
use culvert_hop::retry::{Again, is_idempotent};
use culvert_hop::upgrade::{OnUpgrade, Protocol, Raw};
use culvert_model::control::CALLER_FIELD;
use culvert_model::reason::Reason;
use culvert_ops::runtime::now;
use http::HeaderValue;
use http_body::Body as _;
use tokio::io::AsyncWriteExt as _;

use crate::origin_io::OriginIo;
use crate::origins::Upstream;
use crate::proof::{Untrailed, may_have_trailers};
use crate::proxy_protocol::Peer;
use crate::service::HostPolicy;

/// How often a request that was refused unread is sent again.
const REFUSALS: u32 = 4;

/// What became of a request.
pub enum Carried {
    /// An answer.
    Response(Response<Body>),
    /// The origin changed the protocol, as the caller had asked.
    Switched(Response<Body>, Switch),
}

/// Two ends whose bytes are to be passed on.
pub struct Switch {
    /// The caller's end, once its answer was written.
    pub caller: OnUpgrade,
    /// The origin's.
    pub origin: Raw<OriginIo>,
    /// What they speak now.
    pub protocol: Protocol,
}

/// Takes a request that was checked to the service's origin.
///
/// # Errors
/// A [`Fault`], of the origin's side or of this one.
pub async fn exchange(upstream: &Upstream, mut parts: Handle<Parts>, head: Head, body: Body) -> Result<Carried, Fault> {
    let service = &upstream.service;
    // Before it is taken out with everything that is between relay and connector alone.
    let caller = service.auth.as_ref().and_then(|_| parts.headers.get(CALLER_FIELD).cloned());
    request::deliver(&mut parts, &head);
    match ask(upstream, parts, caller.as_ref(), body).await? {
        Answer::Response(response) => {
            let (mut parts, body) = response.into_parts();
            response::accept(&mut parts)?;
            Ok(Carried::Response(Response::from_parts(parts, body)))
        }
        Answer::Switched(response, raw) => {
            let (mut parts, ()) = response.into_parts();
            let Some(upgrade) = head.upgrade else {
                return Err(Fault::new(Reason::UpgradeRefused).side(Side::Origin));
            };
            response::accept_switch(&mut parts, &upgrade)?;
            let protocol = Protocol::of(&upgrade.protocol);
            let switch = Switch { caller: upgrade.on, origin: raw, protocol };
            Ok(Carried::Switched(Response::from_parts(parts, Body::empty()), switch))
        }
    }
}

/// Takes a request whose hop-by-hop fields are settled to the service's origin, in the name of the gateway `caller`. The
/// answer is as the origin gave it.
///
/// # Errors
/// As [`exchange`].
pub async fn ask(
    upstream: &Upstream,
    mut parts: Handle<Parts>,
    caller: Option<&HeaderValue>,
    body: Body,
) -> Result<Answer<OriginIo>, Fault> {
    let service = &upstream.service;
    match &service.host {
        HostPolicy::Preserve => {}
        HostPolicy::Origin => request::set_host(&mut parts, upstream.authority.clone()),
        HostPolicy::Literal(host) => request::set_host(&mut parts, host.clone()),
    }
    let body = upstream.prove(&mut parts, body, caller).await?;
    let body = match may_have_trailers(&parts, &body) && !service.fields.is_empty() {
        true => Untrailed::of(body, &service.fields),
        false => body,
    };
    let deadlines = service.timeouts.deadlines();
    let answer = send(upstream, Request::from_parts(parts, body), &deadlines).await?;
    if let (Some(auth), Answer::Response(response)) = (&service.auth, &answer) {
        auth.answered(&service.name, response.status(), response.headers(), SystemTime::now());
    }
    Ok(answer)
}

/// Connects to an origin that is raw TCP, and tells it who connected where it is set to be told.
///
/// # Errors
/// A [`Fault`]; nothing of the caller's was sent.
pub async fn connect_raw(upstream: &Upstream, peer: Option<&Peer>) -> Result<Raw<OriginIo>, Fault> {
    let service = &upstream.service;
    let mut io = upstream.open().await?;
    if let Some(version) = service.proxy_protocol {
        let header = version.header(peer);
        let sent = tokio::time::timeout(service.timeouts.connect, io.write_all(&header)).await;
        if !matches!(sent, Ok(Ok(()))) {
            let why = "the connection was lost at its PROXY header";
            return Err(Fault::new(Reason::OriginClosed).side(Side::Origin).retry(Retry::Safe).log(why));
        }
    }
    Ok(Raw { io, first: bytes::Bytes::new() })
}

/// Sends once; once more where the first try met an idle connection that the origin had closed meanwhile; and a few
/// times where it was refused unread on a shared one, which an origin does that ends its connections now and then.
async fn send(
    upstream: &Upstream,
    mut request: Request<Body>,
    deadlines: &Deadlines,
) -> Result<Answer<OriginIo>, Fault> {
    let mut stale_is_possible = upstream.may_be_stale(now());
    let mut left = if upstream.is_shared() { REFUSALS } else { 0 };
    loop {
        let keep = left > 0 || stale_is_possible && is_idempotent(request.method()) && request.body().is_end_stream();
        let again = if keep {
            let (kept, again) = Again::keep(request);
            request = kept;
            Some(again)
        } else {
            None
        };
        let SendError { fault, request: untouched } = match upstream.pools.here().send(request, deadlines).await {
            Ok(answer) => {
                upstream.note_used(now());
                return Ok(answer);
            }
            Err(error) => error,
        };
        let is_refused = left > 0 && fault.retry == Retry::Safe;
        if fault.reason != Reason::OriginClosed || !(stale_is_possible || is_refused) {
            return Err(fault);
        }
        left = left.saturating_sub(1);
        stale_is_possible = false;
        let next = untouched.map(|request| *request).or_else(|| again.and_then(|again| again.request(&fault)));
        request = next.ok_or(fault)?;
    }
}
