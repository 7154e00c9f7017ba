//! Who carries requests to origins: a live connector, one connection that has announced itself; or a stock peer, behind
//! which this relay reaches origins itself.
//!
//! Must never outlive its connection's use: whoever picks it checks [`Member::is_open`] first. Every figure here is read
//! on the way of a request, so they are plain atomics.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use culvert_hop::limits::InFlight;
use culvert_model::close::CloseCode;
use culvert_model::control::ToConnector;
use culvert_model::id::{ConnectorId, StockPeerId};
use culvert_model::name::{Label, ServiceName};
use culvert_plane::Connection;
use tokio::sync::Notify;

use super::tunnels::{Tunnel, Tunnels};
use crate::behind::Branch;
use crate::pick;

/// A tunnel not heard of for this long, with nothing in flight, is asked before it is trusted with a request.
const ASK_AFTER: Duration = Duration::from_millis(500);

/// One connector's session, or one peer.
pub(crate) struct Member {
    /// Which.
    pub(crate) who: Who,
    /// The tunnel's name, or the peer's.
    pub(crate) tunnel: Label,
    /// Requests go this way.
    pub(crate) via: Via,
    /// Leave to run over it.
    pub(crate) room: InFlight,
    /// Counts members of this process: a newer one's is greater.
    serial: u64,
    /// What it serves, as the directory knows it.
    services: Mutex<Box<[ServiceName]>>,
    identity: u64,
    in_flight: AtomicU32,
    /// It said that it is leaving.
    leaving: AtomicBool,
    /// An operator took it out of service.
    drained: AtomicBool,
    ended: AtomicBool,
    base: Instant,
    heard: AtomicU64,
    exchanged: AtomicU64,
    unanswered_since: AtomicU64,
    probe: AtomicBool,
    anew: AtomicBool,
    manage: AtomicBool,
    outbox: Mutex<Vec<ToConnector>>,
    wake: Notify,
    /// Told at every pong.
    answered: Notify,
}

/// Whose session it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Who {
    /// A connector's.
    Connector(ConnectorId),
    /// A stock peer's.
    Peer(StockPeerId),
}

/// The way that requests go.
pub(crate) enum Via {
    /// Streams of a connector's connections.
    Tunnels(Tunnels),
    /// Connections of this relay's own, through a peer.
    Branch(Arc<Branch>),
}

/// "Never", among the milliseconds since `base`.
const NEVER: u64 = u64::MAX;

impl Member {
    /// A connector whose announcement has just been read.
    pub(crate) fn new(
        id: ConnectorId,
        tunnel: Label,
        connection: Connection,
        drained: bool,
        room: InFlight,
        now: Instant,
    ) -> Self {
        let identity = pick::hash(id.as_str().as_bytes());
        let via = Via::Tunnels(Tunnels::new(Tunnel::new(0, connection, now)));
        let member = Self::idle(Who::Connector(id), tunnel, via, identity, room, now);
        member.set_drained(drained);
        member
    }

    /// A stock peer behind which there are services.
    pub(crate) fn behind(branch: Arc<Branch>, room: InFlight, now: Instant) -> Self {
        let row = &branch.stock.row;
        let (who, tunnel) = (Who::Peer(row.id.clone()), row.name.clone());
        let identity = pick::hash(row.id.as_str().as_bytes());
        Self::idle(who, tunnel, Via::Branch(branch), identity, room, now)
    }

    fn idle(who: Who, tunnel: Label, via: Via, identity: u64, room: InFlight, now: Instant) -> Self {
        static SERIAL: AtomicU64 = AtomicU64::new(0);
        Self {
            who,
            tunnel,
            via,
            room,
            serial: SERIAL.fetch_add(1, Ordering::Relaxed),
            services: Mutex::default(),
            identity,
            in_flight: AtomicU32::new(0),
            leaving: AtomicBool::new(false),
            drained: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            base: now,
            heard: AtomicU64::new(0),
            exchanged: AtomicU64::new(NEVER),
            unanswered_since: AtomicU64::new(NEVER),
            probe: AtomicBool::new(false),
            anew: AtomicBool::new(false),
            manage: AtomicBool::new(false),
            outbox: Mutex::new(Vec::new()),
            wake: Notify::new(),
            answered: Notify::new(),
        }
    }

    /// Which connector it is; none for a peer.
    pub(crate) fn connector(&self) -> Option<&ConnectorId> {
        match &self.who {
            Who::Connector(id) => Some(id),
            Who::Peer(_) => None,
        }
    }

    /// Whether requests may still be sent over it at all.
    pub(crate) fn is_open(&self) -> bool {
        let is_there = match &self.via {
            Via::Tunnels(tunnels) => !tunnels.first().connection.is_closed(),
            Via::Branch(branch) => branch.is_there(),
        };
        is_there && !self.ended.load(Ordering::Relaxed)
    }

    /// Whether requests of this thread reach it without another one. A peer's origins are reached from any.
    pub(crate) fn is_near(&self) -> bool {
        self.tunnels().is_none_or(Tunnels::is_near)
    }

    /// A connector's connections; none for a peer.
    pub(super) fn tunnels(&self) -> Option<&Tunnels> {
        match &self.via {
            Via::Tunnels(tunnels) => Some(tunnels),
            Via::Branch(_) => None,
        }
    }

    /// Closes a connector's streams that were idle for too long; to be called every few seconds.
    pub(super) fn sweep(&self, now: tokio::time::Instant) {
        if let Some(tunnels) = self.tunnels() {
            tunnels.sweep(now);
        }
    }

    /// Ends a connector's connections. Who has none goes with its peer.
    pub(super) fn close(&self, code: CloseCode) {
        if let Some(tunnels) = self.tunnels() {
            tunnels.close(code);
        }
    }

    /// Whether it is a peer without a session: then what is found of its origins is not their doing.
    pub(super) fn is_silent(&self) -> bool {
        matches!(&self.via, Via::Branch(branch) if !branch.stock.is_up())
    }

    /// Whether it takes no new requests.
    pub(crate) fn is_draining(&self) -> bool {
        self.leaving.load(Ordering::Relaxed) || self.drained.load(Ordering::Relaxed)
    }

    /// Requests that run over it.
    pub(crate) fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Its place among the members of this process, by age.
    pub(super) fn serial(&self) -> u64 {
        self.serial
    }

    /// Takes what it serves from now on; what it served before.
    pub(super) fn set_services(&self, names: Box<[ServiceName]>) -> Box<[ServiceName]> {
        std::mem::replace(&mut *self.services.lock().unwrap_or_else(PoisonError::into_inner), names)
    }

    /// What it serves.
    pub(super) fn services(&self) -> Box<[ServiceName]> {
        self.services.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A number that stands for the connector for ever.
    pub(crate) fn identity(&self) -> u64 {
        self.identity
    }

    /// Since when it owes an answer.
    pub(crate) fn unanswered_since(&self) -> Option<Instant> {
        self.moment(&self.unanswered_since)
    }

    /// When it was last heard: a control message or a response.
    pub(crate) fn heard(&self) -> Instant {
        self.moment(&self.heard).unwrap_or(self.base)
    }

    /// When a request last started or ended on it.
    pub(crate) fn exchanged(&self) -> Option<Instant> {
        self.moment(&self.exchanged)
    }

    /// A request starts. True when the tunnel was silent for a while: it is being asked at the same time, and
    /// [`Member::answered`] tells.
    pub(crate) fn begin(&self, now: Instant) -> bool {
        let alone = self.in_flight.fetch_add(1, Ordering::Relaxed) == 0;
        self.exchanged.store(self.millis(now), Ordering::Relaxed);
        let silent = alone && now.duration_since(self.heard()) > ASK_AFTER;
        if silent {
            self.probe.store(true, Ordering::Relaxed);
            self.wake.notify_one();
        }
        silent
    }

    /// A request is over.
    pub(crate) fn end(&self, now: Instant) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.exchanged.store(self.millis(now), Ordering::Relaxed);
    }

    /// Something came from it.
    pub(crate) fn note_heard(&self, now: Instant) {
        self.heard.store(self.millis(now), Ordering::Relaxed);
    }

    /// Waits for its next pong.
    pub(crate) async fn answered(&self) {
        self.answered.notified().await;
    }

    /// Has a message sent on the control stream.
    pub(crate) fn tell(&self, message: ToConnector) {
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner).push(message);
        self.wake.notify_one();
    }

    /// Has its announcement decided anew.
    pub(super) fn decide_anew(&self) {
        self.anew.store(true, Ordering::Relaxed);
        self.wake.notify_one();
    }

    /// Has it told what is managed for it now.
    pub(super) fn manage_anew(&self) {
        self.manage.store(true, Ordering::Relaxed);
        self.wake.notify_one();
    }

    pub(super) fn take_manage_anew(&self) -> bool {
        self.manage.swap(false, Ordering::Relaxed)
    }

    pub(super) fn take_decide_anew(&self) -> bool {
        self.anew.swap(false, Ordering::Relaxed)
    }

    pub(super) fn set_drained(&self, drained: bool) {
        self.drained.store(drained, Ordering::Relaxed);
    }

    pub(super) fn set_leaving(&self) {
        self.leaving.store(true, Ordering::Relaxed);
    }

    /// Takes no request any more; idle streams close now, and those in use when their exchange is over.
    pub(crate) fn set_ended(&self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(tunnels) = self.tunnels() {
            tunnels.retire();
        }
    }

    pub(super) fn set_unanswered(&self, since: Option<Instant>) {
        let millis = since.map_or(NEVER, |since| self.millis(since));
        self.unanswered_since.store(millis, Ordering::Relaxed);
    }

    pub(super) fn note_answer(&self) {
        self.answered.notify_waiters();
    }

    pub(super) fn take_probe(&self) -> bool {
        self.probe.swap(false, Ordering::Relaxed)
    }

    pub(super) fn take_outbox(&self) -> Vec<ToConnector> {
        std::mem::take(&mut *self.outbox.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until there is a message to send or a probe to make. Cancel safe.
    pub(super) async fn woken(&self) {
        self.wake.notified().await;
    }

    fn millis(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.base).as_millis()).unwrap_or(NEVER - 1)
    }

    fn moment(&self, millis: &AtomicU64) -> Option<Instant> {
        let millis = millis.load(Ordering::Relaxed);
        (millis != NEVER).then(|| self.base + Duration::from_millis(millis))
    }
}

impl std::fmt::Display for Who {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Connector(id) => id.fmt(f),
            Self::Peer(id) => id.fmt(f),
        }
    }
}

impl std::fmt::Debug for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Member").field("who", &self.who).field("tunnel", &self.tunnel).finish_non_exhaustive()
    }
}
