//! One request to an origin behind a peer: what a connector does at its gate, without a tunnel's stream before it.
//!
//! Must never join raw bytes to an origin that was declared for requests, believe a failure that an origin claims to be
//! ours, or go on for a peer that was removed.

use std::sync::Arc;

use culvert_hop::body::Body;
use culvert_hop::exchange::Answer;
use culvert_hop::fault::{Fault, Retry, Side};
use culvert_hop::message::{Request, RequestParts as Parts, Response};
use culvert_hop::request;
use culvert_hop::upgrade::Raw;
use culvert_model::control::{CALLER_FIELD, PEER_FIELD, TCP_PROTOCOL};
use culvert_model::name::ServiceName;
use culvert_model::reason::Reason;
use culvert_origin::exchange::{ask, connect_raw};
use culvert_origin::origin_io::OriginIo;
use culvert_origin::origins::Upstream;
use http::header::{CONNECTION, UPGRADE};
use http::{HeaderValue, StatusCode};

use super::Branch;
use super::severed::{Severed, removed, severed};
use crate::far_end::FarEnd;

/// Sends a request that is in its form for the tunnel.
///
/// # Errors
/// A [`Fault`]; a request that may have been acted on is not safe to repeat.
pub(crate) async fn send(
    branch: &Arc<Branch>,
    service: &ServiceName,
    request: Request<Body>,
) -> Result<Answer<FarEnd>, Fault> {
    let Some(upstream) = branch.origins.table().upstream(service.as_str()).cloned() else {
        return Err(no_service("the service is not behind this peer any more"));
    };
    let answer = tokio::select! {
        biased;
        () = branch.stock.gone() => return Err(removed()),
        answer = carry(&upstream, request) => answer.map_err(|fault| branch.named(fault))?,
    };
    let stock = &branch.stock;
    Ok(match answer {
        Answer::Response(response) => Answer::Response(response.map(|body| severed(body, stock))),
        Answer::Switched(response, Raw { io, first }) => {
            Answer::Switched(response, Raw { io: FarEnd::Origin(Box::new(Severed::new(io, stock))), first })
        }
    })
}

async fn carry(upstream: &Upstream, request: Request<Body>) -> Result<Answer<OriginIo>, Fault> {
    let (mut parts, body) = request.into_parts();
    let asks_for_tcp = parts.headers.get(UPGRADE).is_some_and(|to| to.as_bytes() == TCP_PROTOCOL.as_bytes());
    match (upstream.service.origin.is_tcp(), asks_for_tcp) {
        (true, true) => raw(upstream, &parts).await,
        (false, false) => {
            let caller = upstream.service.auth.as_ref().and_then(|_| parts.headers.get(CALLER_FIELD).cloned());
            request::deliver_forwarded(&mut parts);
            ask(upstream, parts, caller.as_ref(), body).await
        }
        (true, false) => Err(no_service("the service is raw TCP")),
        (false, true) => Err(no_service("the service is HTTP")),
    }
}

/// Connects, and answers as a connector would.
async fn raw(upstream: &Upstream, parts: &Parts) -> Result<Answer<OriginIo>, Fault> {
    let peer = parts.headers.get(PEER_FIELD).and_then(|text| text.to_str().ok()?.parse().ok());
    let raw = connect_raw(upstream, peer.as_ref()).await?;
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static(TCP_PROTOCOL));
    Ok(Answer::Switched(response, raw))
}

fn no_service(why: &str) -> Fault {
    Fault::new(Reason::NoSuchService).side(Side::Here).retry(Retry::Safe).log(why)
}
