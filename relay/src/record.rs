//! One request from its head to the last byte of its answer: what is held for it, and what is told when it is over.
//!
//! INVARIANT: told exactly once, however the request ends: dropping it is what tells.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use culvert_hop::body::{Ending, Outcome};
use culvert_hop::exchange::Answer;
use culvert_hop::fault::Fault;
use culvert_hop::limits::Permit;
use culvert_hop::message::RequestParts as Parts;
use culvert_hop::request;
use culvert_model::id::ConnectorId;
use culvert_model::reason::Reason;
use http::{HeaderValue, Method, Uri};

use crate::access_log::{AccessLog, Entry};
use crate::far_end::FarEnd;
use crate::front::{Cut, Turn};
use crate::gateways::Gateway;
use crate::metrics::ServiceMetrics;
use crate::send::{Failed, Sent};
use crate::sessions::{Member, Pair, Running, Service, Tunnel};

/// Counts a request as running over a connector until it is dropped.
pub(crate) struct InUse {
    member: Arc<Member>,
    running: Option<Running>,
    ended: Option<Instant>,
    _room: Permit,
}

/// One request.
pub(crate) struct Record {
    /// Bytes of the request's body that were read.
    pub(crate) bytes_in: Arc<AtomicU64>,
    /// Its id, once known.
    pub(crate) request_id: Option<HeaderValue>,
    /// Who calls, where that is asked.
    pub(crate) gateway: Option<Arc<Gateway>>,
    /// The service it is for, once known.
    pub(crate) service: Option<Arc<Service>>,
    /// Leave to run.
    pub(crate) permits: Vec<Permit>,
    /// When the answer's head came from the tunnel.
    pub(crate) origin: Option<Duration>,
    in_use: Option<InUse>,
    turn: Turn,
    log: Arc<AccessLog>,
    no_service: Arc<ServiceMetrics>,
    started: Instant,
    method: Method,
    uri: Uri,
    trace_id: Option<Box<str>>,
    status: Option<u16>,
    reason: Option<Reason>,
    bytes_out: u64,
}

impl InUse {
    /// Counts it; the connector's pair knows when it was silent before ([`Member::begin`]).
    pub(crate) fn new(member: Arc<Member>, room: Permit) -> Self {
        Self { member, running: None, ended: None, _room: room }
    }

    /// It runs over that connection of the connector.
    pub(crate) fn over(&mut self, tunnel: Arc<Tunnel>) -> &Tunnel {
        self.running.insert(Running::over(tunnel)).tunnel()
    }

    /// Whether it runs over a lane whose connection is over.
    pub(crate) fn is_over_lost_lane(&self) -> bool {
        let tunnel = self.running.as_ref().map(Running::tunnel);
        tunnel.is_some_and(|tunnel| tunnel.number > 0 && tunnel.connection.is_closed())
    }

    /// On which shard that connection lives.
    fn shard(&self) -> Option<u8> {
        self.running.as_ref().map(|running| running.tunnel().shard())
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.member.end(self.ended.unwrap_or_else(Instant::now));
    }
}

impl Record {
    /// A request whose head was just read.
    pub(crate) fn new(parts: &Parts, log: &Arc<AccessLog>, no_service: &Arc<ServiceMetrics>, turn: Turn) -> Self {
        Self {
            bytes_in: Arc::default(),
            request_id: None,
            gateway: None,
            service: None,
            permits: Vec::new(),
            origin: None,
            in_use: None,
            started: turn.since(),
            turn,
            log: Arc::clone(log),
            no_service: Arc::clone(no_service),
            method: parts.method.clone(),
            uri: parts.uri.clone(),
            trace_id: request::trace_id(&parts.headers).map(Box::from),
            status: None,
            reason: None,
            bytes_out: 0,
        }
    }

    /// What came of sending it at `start`: the answer, and over which pair.
    ///
    /// # Errors
    /// What to tell the caller.
    pub(crate) fn sent(
        &mut self,
        sent: Result<Sent, Failed>,
        start: Instant,
    ) -> Result<(Answer<FarEnd>, Arc<Pair>), Fault> {
        match sent {
            Ok(Sent { answer, pair, in_use, at }) => {
                if let Some(shard) = in_use.shard() {
                    self.turn.went_to(shard);
                }
                self.in_use = Some(in_use);
                self.origin = Some(at.duration_since(start));
                Ok((answer, pair))
            }
            Err(Failed { fault, in_use }) => {
                if in_use.is_some() {
                    self.in_use = in_use;
                }
                Err(fault)
            }
        }
    }

    /// How it is answered.
    pub(crate) fn answered(&mut self, status: u16, reason: Option<Reason>) {
        self.status = Some(status);
        self.reason = reason;
        self.turn.streaming();
    }

    /// What ends its answer alone, where it shares its connection.
    pub(crate) fn cuttable(&self) -> Option<Cut> {
        self.turn.cuttable()
    }

    /// On which shard the connector lives that has it.
    pub(crate) fn shard(&self) -> Option<u8> {
        self.in_use.as_ref()?.shard()
    }

    /// When it came.
    pub(crate) fn started(&self) -> Instant {
        self.started
    }

    /// How its answer's body ended; then it is over.
    pub(crate) fn ended(mut self: Box<Self>, ending: Ending) {
        self.bytes_out = ending.bytes;
        let reason = match ending.outcome {
            Outcome::Cut(reason) => Some(reason),
            Outcome::Dropped if self.turn.is_unread() => Some(Reason::RequestTimeout),
            Outcome::Dropped | Outcome::Whole => None,
        };
        self.reason = self.reason.or(reason);
    }

    /// How many bytes passed after a change of protocol; then it is over.
    pub(crate) fn switched(mut self, up: u64, down: u64, reason: Option<Reason>) {
        self.bytes_in.fetch_add(up, Ordering::Relaxed);
        self.bytes_out = down;
        self.reason = self.reason.or(reason);
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let now = Instant::now();
        let duration = now.duration_since(self.started);
        if let Some(in_use) = &mut self.in_use {
            in_use.ended = Some(now);
        }
        let member = self.in_use.as_ref().map(|in_use| &in_use.member);
        self.log.record(|| Entry {
            time: SystemTime::now().checked_sub(duration).unwrap_or(SystemTime::UNIX_EPOCH),
            request_id: self.request_id.as_ref().and_then(|id| id.to_str().ok()).unwrap_or_default(),
            gateway: self.gateway.as_ref().map(|gateway| gateway.name.as_str()),
            service: self.service.as_ref().map(|service| service.name().as_str()),
            tunnel: member.map(|member| member.tunnel.as_str()),
            connector: member.and_then(|member| member.connector()).map(ConnectorId::as_str),
            method: self.method.as_str(),
            path: self.uri.path(),
            status: self.status,
            reason: self.reason.map(Reason::name),
            bytes_in: self.bytes_in.load(Ordering::Relaxed),
            bytes_out: self.bytes_out,
            duration_ms: duration,
            origin_ms: self.origin,
            trace_id: self.trace_id.as_deref(),
        });
        let metrics = self.service.as_ref().map_or(&*self.no_service, |service| &service.lane.metrics);
        metrics.count(self.status, self.reason, duration);
    }
}
