//! A raw TCP connection: its bytes to one service and back, with each end's own end.
//!
//! The tunnel stream is asked for by an HTTP/1.1 upgrade to `culvert-tcp`, so that choice of connector, limits, retries
//! and names of failures are those of every request. Must never end cleanly what was cut, nor look into the bytes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use culvert_hop::body::Body;
use culvert_hop::exchange::{Answer, Deadlines};
use culvert_hop::fault::Fault;
use culvert_hop::message::{Handle, Request, RequestParts as Parts};
use culvert_hop::request;
use culvert_hop::upgrade::{Protocol, Raw, Spliced, splice_io};
use culvert_model::control::{PEER_FIELD, SERVICE_FIELD, TCP_PROTOCOL};
use culvert_model::reason::Reason;
use culvert_ops::drain::InFlight;
use http::header::{CONNECTION, HOST, UPGRADE};
use http::{HeaderName, HeaderValue, Method};
use tracing::debug;

use super::Front;
use super::arrival::{Arrived, Manners};
use super::connection::Accepted;
use super::io::Fate;
use super::running::Running;
use super::told::Told;
use crate::door::TcpDoor;
use crate::far_end::FarEnd;
use crate::pick;
use crate::record::Record;
use crate::sessions::Balance;

const SERVICE: HeaderName = HeaderName::from_static(SERVICE_FIELD);
const PEER: HeaderName = HeaderName::from_static(PEER_FIELD);
const CULVERT_TCP: HeaderValue = HeaderValue::from_static(TCP_PROTOCOL);
/// What the access log calls it.
const METHOD: &[u8] = b"TCP";

/// A stream of the tunnel that carries the connection.
struct Carried {
    raw: Raw<FarEnd>,
    idle: Duration,
}

/// Carries it to its service until both sides are done.
pub(super) async fn connection(
    front: Arc<Front>,
    accepted: Accepted,
    door: Arc<TcpDoor>,
    open: InFlight,
    fate: Arc<Fate>,
) {
    let door = door.now();
    let manners = Manners { proxy_protocol: door.proxy_protocol, tls: None };
    let Some((arrived, _permit)) = Box::pin(accepted.arrive(&front, manners)).await else { return };
    let Arrived { io, source, destination, .. } = arrived;
    let mut io = io.share(Arc::clone(&fate));
    let exchanges = &front.exchanges;
    // Whatever cuts this short, the caller has to see it.
    fate.set_reset(true);

    let Some((shown, mut parts)) = head(&door.service) else { return };
    let turn = Arc::<Running>::default().begin(false, Instant::now());
    let mut record = Record::new(&shown, &exchanges.log, &exchanges.no_service, turn);
    match request::check(&mut parts) {
        Ok(head) => record.request_id = Some(head.audience.request_id),
        Err((fault, audience)) => {
            record.request_id = Some(audience.request_id);
            record.answered(fault.reason.status(), Some(fault.reason));
            return;
        }
    }
    let carried = Box::pin(front.carry_tcp(&door.service, parts, (source, destination), &mut record)).await;
    let Carried { raw, idle } = match carried {
        Ok(carried) => carried,
        Err(fault) => {
            debug!(service = %door.service, reason = %fault.reason, detail = fault.detail(), "connection failed");
            record.answered(fault.reason.status(), Some(fault.reason));
            return;
        }
    };
    record.answered(http::StatusCode::SWITCHING_PROTOCOLS.as_u16(), None);
    // It is this connector's for as long as it lasts.
    if let Some(shard) = record.shard() {
        fate.moving().to(shard);
    }
    open.streaming();
    let (drain, long) = (exchanges.drain.clone(), Arc::clone(&exchanges.long));
    let cut = async {
        drain.closing().await;
        // Nothing ends such a connection but its sides: in a drain it runs for long, however young it is.
        let _one = long.one();
        open.cut().await;
    };
    let mut told = Told::new(raw.io);
    let raw = Raw { io: &mut told, first: raw.first };
    let (how, passed) = splice_io(&mut io, raw, Protocol::Other, idle, cut).await;
    let reason = match how {
        Spliced::Done => {
            fate.set_reset(false);
            None
        }
        Spliced::Idle => None,
        Spliced::Ended => Some(Reason::Draining),
        // None: it was the caller that broke off.
        Spliced::Broken => told.reason(),
    };
    record.switched(passed.up, passed.down, reason);
}

impl Front {
    async fn carry_tcp(
        &self,
        name: &culvert_model::name::ServiceName,
        mut parts: Handle<Parts>,
        (source, destination): (Option<SocketAddr>, Option<SocketAddr>),
        record: &mut Record,
    ) -> Result<Carried, Fault> {
        let exchanges = &self.exchanges;
        let service = exchanges.directory.find(name.as_str()).ok_or_else(|| Fault::new(Reason::NoSuchService))?;
        record.service = Some(Arc::clone(&service));
        record.permits.push(exchanges.in_flight.enter().await?);
        record.permits.push(service.lane.in_flight.enter().await?);
        let value = |text: &str| HeaderValue::from_str(text).map_err(|_| Fault::new(Reason::Internal));
        parts.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        parts.headers.insert(UPGRADE, CULVERT_TCP);
        parts.headers.insert(SERVICE, value(name.as_str())?);
        if let Some(id) = &record.request_id {
            parts.headers.insert(request::REQUEST_ID, id.clone());
        }
        if let (Some(source), Some(destination)) = (source, destination) {
            parts.headers.insert(PEER, value(&format!("{source} {destination}"))?);
        }
        let stick = service.sticky(|balance| match balance {
            Balance::ClientIp => source.map(|source| pick::hash(source.ip().to_canonical().to_string().as_bytes())),
            Balance::Header(_) | Balance::Cookie(_) => None,
        });
        let started = Instant::now();
        let sent = exchanges.sender.send(&service, Request::from_parts(parts, Body::empty()), stick, started).await;
        let (answer, pair) = record.sent(sent, started)?;
        match answer {
            Answer::Switched(response, raw) => {
                if response.headers().get(UPGRADE) != Some(&CULVERT_TCP) {
                    return Err(Fault::new(Reason::UpgradeRefused).log("a 101 to another protocol"));
                }
                let idle = pair.timeouts.idle_ms.map(Duration::from_millis);
                Ok(Carried { raw, idle: idle.unwrap_or(Deadlines::default().idle) })
            }
            Answer::Response(response) => {
                let status = response.status();
                Err(Fault::new(Reason::UpgradeRefused).log(format_args!("{status}: the service is not raw TCP")))
            }
        }
    }
}

/// What is logged, and the head that asks the connector.
fn head(service: &culvert_model::name::ServiceName) -> Option<(Handle<Parts>, Handle<Parts>)> {
    let method = Method::from_bytes(METHOD).ok()?;
    let shown = Request::from(http::Request::builder().method(method).body(()).ok()?);
    let asked = Request::from(http::Request::builder().header(HOST, service.as_str()).body(()).ok()?);
    Some((shown.into_parts().0, asked.into_parts().0))
}
