//! The way of one request: checked, routed, sent through the tunnel, answered, told.
//!
//! Must never let anything but the selected service decide who may call, nor answer a failure without its name.

use std::future::pending;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use culvert_hop::body::Body;
use culvert_hop::exchange::Answer;
use culvert_hop::fault::{self, Audience, Fault, Side};
use culvert_hop::fields::Name;
use culvert_hop::limits::InFlight;
use culvert_hop::message::{Handle, Request, RequestParts as Parts, Response};
use culvert_hop::request::{self, Caller, ForwardPolicy, Head};
use culvert_hop::response;
use culvert_hop::upgrade::{self, Protocol, Spliced};
use culvert_model::control::{CALLER_FIELD, SERVICE_FIELD, TCP_PROTOCOL};
use culvert_model::name::ServiceName;
use culvert_model::reason::Reason;
use culvert_ops::drain::Drain;
use culvert_ops::task::Owner;
use http::{HeaderValue, StatusCode, Version, header};
use http_body::Body as _;
use tokio::time::sleep;

use crate::access_log::AccessLog;
use crate::config::{FrontLimits, Listener};
use crate::door::Door;
use crate::far_end::FarEnd;
use crate::front::{LongRunning, Running, Told, Turn, until};
use crate::gateways::{Gateway, Gateways, PeerCertificate};
use crate::lane::GatewayLanes;
use crate::metrics::ServiceMetrics;
use crate::pick;
use crate::record::Record;
use crate::router::{Ask, Router, Select};
use crate::send::Sender;
use crate::sessions::{Balance, Directory, Service};

/// In a drain a WebSocket's other side gets so long to answer the Close frame.
const FAREWELL_WITHIN: Duration = Duration::from_millis(500);
const FORWARDED_FOR: &str = "x-forwarded-for";

/// What all requests of the process share.
pub(crate) struct Exchanges {
    pub(crate) directory: Arc<Directory>,
    pub(crate) router: Mutex<Arc<Router>>,
    pub(crate) gateways: Arc<Gateways>,
    pub(crate) sender: Sender,
    pub(crate) log: Arc<AccessLog>,
    /// Leave to run, for the whole process.
    pub(crate) in_flight: InFlight,
    /// Leave to run, for each gateway.
    pub(crate) gateway_lanes: GatewayLanes,
    /// What heads and bodies are held to.
    pub(crate) bounds: MessageBounds,
    /// Counts what names no known service.
    pub(crate) no_service: Arc<ServiceMetrics>,
    /// This relay's id in `Via`.
    pub(crate) relay: String,
    pub(crate) drain: Drain,
    pub(crate) long: Arc<LongRunning>,
    /// Connections after a change of protocol.
    pub(crate) switched: Mutex<Owner>,
}

/// What heads and bodies are held to; a reload changes it.
#[derive(Debug)]
pub(crate) struct MessageBounds {
    fields: AtomicUsize,
    head: AtomicUsize,
    body_idle_ms: AtomicU64,
}

impl MessageBounds {
    /// As configured.
    pub(crate) fn new(limits: &FrontLimits) -> Self {
        let bounds = Self { fields: AtomicUsize::new(0), head: AtomicUsize::new(0), body_idle_ms: AtomicU64::new(0) };
        bounds.set(limits);
        bounds
    }

    /// Takes others, for requests from now on.
    pub(crate) fn set(&self, limits: &FrontLimits) {
        self.fields.store(limits.fields, Ordering::Relaxed);
        self.head.store(limits.head, Ordering::Relaxed);
        let millis = u64::try_from(limits.body_idle.as_millis()).unwrap_or(u64::MAX);
        self.body_idle_ms.store(millis, Ordering::Relaxed);
    }

    /// HTTP/1.1 heads are measured while they come in; those of HTTP/2 come unpacked, so they are measured here, as
    /// SETTINGS_MAX_HEADER_LIST_SIZE counts them (RFC 9113 §6.5.2).
    fn hold(&self, parts: &Parts) -> bool {
        let size = |(name, value): (&Name, &HeaderValue)| name.as_bytes().len() + value.len() + 32;
        parts.headers.len() <= self.fields.load(Ordering::Relaxed)
            && (parts.version != Version::HTTP_2
                || parts.headers.iter().map(size).sum::<usize>() <= self.head.load(Ordering::Relaxed))
    }

    fn body_idle(&self) -> Duration {
        Duration::from_millis(self.body_idle_ms.load(Ordering::Relaxed))
    }
}

impl Exchanges {
    /// Carries one request and answers it, whatever happens.
    pub(crate) async fn carry(
        &self,
        door: &Door,
        caller: Caller,
        certificate: Option<&Arc<PeerCertificate>>,
        running: &Arc<Running>,
        request: Request<Body>,
    ) -> Response<Body> {
        // HTTP/2 carries many at once, and says by itself that the connection closes.
        let is_http2 = request.version() == Version::HTTP_2;
        let turn = running.begin(is_http2, Instant::now());
        let mut response = self.answer(door, (&caller, certificate), turn, request).await;
        if self.drain.is_draining() && !is_http2 && response.status() != StatusCode::SWITCHING_PROTOCOLS {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    async fn answer(&self, door: &Door, who: Who<'_>, turn: Turn, request: Request<Body>) -> Response<Body> {
        let (mut parts, body) = request.into_parts();
        // In a box: it is handed on from step to step, and outlives the answer's head.
        let mut record = Box::new(Record::new(&parts, &self.log, &self.no_service, turn));
        let mut head = match request::check(&mut parts) {
            Ok(head) => head,
            Err((fault, audience)) => return fail(record, &fault, &audience),
        };
        record.request_id = Some(head.audience.request_id.clone());
        match self.forward(&door.now(), who, &mut head, parts, body, &mut record).await {
            Ok(Answered::Response(response)) => {
                record.answered(response.status().as_u16(), None);
                let (cut, gateway) = (record.cuttable(), record.gateway.clone());
                response.map(|body| {
                    let body = if let Some(cut) = cut { cut.over(body) } else { body };
                    let body = match gateway {
                        Some(gateway) => until(body, async move { gateway.revoked().await }, Reason::NotAllowed),
                        None => body,
                    };
                    body.on_end(move |ending| record.ended(ending))
                })
            }
            Ok(Answered::Switched(response, sent)) => self.switch(record, head, response, *sent),
            Err(fault) => fail(record, &fault, &head.audience),
        }
    }

    async fn forward(
        &self,
        door: &Listener,
        (caller, certificate): Who<'_>,
        head: &mut Head,
        mut parts: Handle<Parts>,
        body: Body,
        record: &mut Record,
    ) -> Result<Answered, Fault> {
        if !self.bounds.hold(&parts) {
            return Err(Fault::new(Reason::HeadTooLarge));
        }
        if head.upgrade.as_ref().is_some_and(|asked| asks_for_tcp(&asked.protocol)) {
            // Raw TCP has listeners of its own: who may call a service may not take its bytes past them.
            return Err(Fault::new(Reason::UpgradeRefused).side(Side::Caller).log("asked for raw TCP over HTTP"));
        }
        if door.identified {
            let proof = (certificate.map(Arc::as_ref), caller.address);
            record.gateway = Some(self.gateways.admit(&parts.headers, proof, door.gateways.as_deref()).await?);
        }
        let service = self.select(door, record.gateway.as_deref(), head, &parts)?;
        record.service = Some(Arc::clone(&service));
        if let Some(gateway) = &record.gateway {
            let permit = self.gateway_lanes.enter(&gateway.name).await?;
            record.permits.push(permit);
        }
        record.permits.push(self.in_flight.enter().await?);
        record.permits.push(service.lane.in_flight.enter().await?);
        let mut body = body.counted(Arc::clone(&record.bytes_in));
        if !body.is_end_stream() {
            body = body.idle_timeout(self.bounds.body_idle(), Reason::RequestTimeout);
        }
        if let Some(limit) = service.lane.body_limit() {
            if body.size_hint().lower() > limit {
                return Err(Fault::new(Reason::TooLarge));
            }
            body = body.limited(limit);
        }
        // Stickiness is decided on what the caller sent, before our own fields are added.
        let stick = service.sticky(|balance| key(balance, &parts, caller, door.forward));
        request::forward(&mut parts, head, caller, door.forward, &self.relay)?;
        let name = HeaderValue::from_str(service.name().as_str()).map_err(|_| Fault::new(Reason::Internal))?;
        parts.headers.insert(SERVICE_FIELD, name);
        if let Some(gateway) = &record.gateway
            && service.tells_caller()
            && let Ok(name) = HeaderValue::from_str(gateway.name.as_str())
        {
            parts.headers.insert(CALLER_FIELD, name);
        }
        let started = Instant::now();
        let request = Request::from_parts(parts, body);
        let sent = self.sender.send(&service, request, stick, started).await;
        let (answer, pair) = record.sent(sent, started)?;
        match answer {
            Answer::Response(response) => {
                let (mut parts, body) = response.into_parts();
                response::refuse_success(&parts, head)?;
                response::accept(&mut parts)?;
                Ok(Answered::Response(Response::from_parts(parts, body)))
            }
            Answer::Switched(response, raw) => {
                let (mut parts, ()) = response.into_parts();
                let asked = head.upgrade.as_ref().ok_or_else(|| Fault::new(Reason::UpgradeRefused))?;
                response::accept_switch(&mut parts, asked)?;
                let idle = pair.timeouts.idle_ms.map(Duration::from_millis);
                let response = Response::from_parts(parts, Body::empty());
                Ok(Answered::Switched(response, Box::new(Switched { raw, idle })))
            }
        }
    }

    fn select(
        &self,
        door: &Listener,
        gateway: Option<&Gateway>,
        head: &Head,
        parts: &Parts,
    ) -> Result<Arc<Service>, Fault> {
        let mut fields = parts.headers.get_all(SERVICE_FIELD);
        let header = match (fields.next(), fields.next(), door.select) {
            (Some(_), Some(_), Select::Header) => {
                return Err(Fault::new(Reason::BadRequest).log("Culvert-Service twice"));
            }
            (one, None, Select::Header) => one.and_then(|value| value.to_str().ok()),
            (_, _, Select::Host | Select::Header) => None,
        };
        let router = Arc::clone(&self.router.lock().unwrap_or_else(PoisonError::into_inner));
        let ask = Ask { host: Some(head.host()), path: parts.uri.path(), header };
        let name = router.service(door.select, ask).ok_or_else(|| Fault::new(Reason::NoSuchService))?;
        // Before it is looked up: whoever may not call a service is not told whether it exists.
        if door.services.is_some() || gateway.is_some() {
            let name: ServiceName = name.parse().map_err(|_| Fault::new(Reason::NoSuchService))?;
            let here = door.services.as_ref().is_none_or(|globs| globs.iter().any(|glob| glob.matches(&name)));
            if !here || !gateway.is_none_or(|gateway| gateway.may(&name)) {
                return Err(Fault::new(Reason::NotAllowed).log(&name));
            }
        }
        self.directory.find(&name).ok_or_else(|| Fault::new(Reason::NoSuchService))
    }

    /// After the 101 bytes pass both ways until somebody is done.
    fn switch(
        &self,
        mut record: Box<Record>,
        head: Head,
        response: Response<Body>,
        switched: Switched,
    ) -> Response<Body> {
        let Some(asked) = head.upgrade else { return fail(record, &Fault::new(Reason::Internal), &head.audience) };
        record.answered(response.status().as_u16(), None);
        let protocol = match asked.protocol.as_bytes().eq_ignore_ascii_case(b"websocket") {
            true => Protocol::WebSocket,
            false => Protocol::Other,
        };
        let idle = switched.idle.unwrap_or(culvert_hop::exchange::Deadlines::default().idle);
        let running = self.drain.enter(record.started());
        running.streaming();
        let (drain, long) = (self.drain.clone(), Arc::clone(&self.long));
        let gateway = record.gateway.clone();
        self.switched.lock().unwrap_or_else(PoisonError::into_inner).spawn("relay.switched", async move {
            let ended = async {
                drain.closing().await;
                // Nothing ends such a connection but its sides: in a drain it runs for long, however young it is.
                let _one = long.one();
                running.cut().await;
                sleep(FAREWELL_WITHIN).await;
            };
            let mut told = Told::new(switched.raw.io);
            let raw = upgrade::Raw { io: &mut told, first: switched.raw.first };
            let spliced = upgrade::splice(asked.on, raw, protocol, idle, running.cut());
            let revoked = async {
                match &gateway {
                    Some(gateway) => gateway.revoked().await,
                    None => pending().await,
                }
            };
            let (reason, passed) = tokio::select! {
                (how, passed) = spliced => match how {
                    Spliced::Done | Spliced::Idle => (None, passed),
                    Spliced::Ended => (Some(Reason::Draining), passed),
                    // None: it was the caller that broke off.
                    Spliced::Broken => (told.reason(), passed),
                },
                () = ended => (Some(Reason::Draining), upgrade::Passed::default()),
                () = revoked => (Some(Reason::NotAllowed), upgrade::Passed::default()),
            };
            record.switched(passed.up, passed.down, reason);
        });
        response
    }
}

/// The connection a request came on, and what its TLS handshake proved.
type Who<'a> = (&'a Caller, Option<&'a Arc<PeerCertificate>>);

enum Answered {
    Response(Response<Body>),
    Switched(Response<Body>, Box<Switched>),
}

struct Switched {
    raw: upgrade::Raw<FarEnd>,
    idle: Option<Duration>,
}

fn asks_for_tcp(protocol: &HeaderValue) -> bool {
    let mut asked = protocol.as_bytes().split(|byte| *byte == b',');
    asked.any(|one| one.trim_ascii().eq_ignore_ascii_case(TCP_PROTOCOL.as_bytes()))
}

/// The number by which requests alike in what the balance names go to one connector.
fn key(balance: &Balance, parts: &Parts, caller: &Caller, policy: ForwardPolicy) -> Option<u64> {
    match balance {
        Balance::Header(name) => parts.headers.get(name).map(|value| pick::hash(value.as_bytes())),
        Balance::Cookie(name) => {
            let cookies = parts.headers.get_all(header::COOKIE).filter_map(|value| value.to_str().ok());
            let mut pairs = cookies.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
            pairs.find(|(own, _)| own == name).map(|(_, value)| pick::hash(value.as_bytes()))
        }
        Balance::ClientIp => {
            // Behind a gateway that is believed, the client is whom the gateway names last.
            let named = match policy {
                ForwardPolicy::Append => parts.headers.get_all(FORWARDED_FOR).next_back(),
                ForwardPolicy::Replace => None,
            };
            let last = named.and_then(|value| value.to_str().ok()?.rsplit(',').next().map(str::trim));
            match last.filter(|last| !last.is_empty()) {
                Some(last) => Some(pick::hash(last.as_bytes())),
                None => caller.address.map(|address| pick::hash(address.to_string().as_bytes())),
            }
        }
    }
}

fn fail(mut record: Box<Record>, fault: &Fault, audience: &Audience) -> Response<Body> {
    record.request_id = Some(audience.request_id.clone());
    tracing::debug!(
        request_id = audience.request_id.to_str().unwrap_or_default(), reason = %fault.reason, detail = fault.detail(),
        "request failed"
    );
    let response = fault::respond(fault, audience);
    record.answered(response.status().as_u16(), Some(fault.reason));
    response.map(|body| body.on_end(move |ending| record.ended(ending)))
}

#[cfg(test)]
mod tests;
