//! The connections of one connector: its session's own, and a further one for each lane that it has opened.
//!
//! Read on the way of every request: a connector without lanes costs it no lock. Must never choose a lane whose connection
//! is over.

use std::cmp::Reverse;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use culvert_model::close::CloseCode;
use culvert_plane::Connection;
use tokio::sync::Notify;

use crate::cores;
use crate::pick;
use crate::upstream::Upstream;

/// A lane without a request for this long is asked whether it is there when the next one comes.
const ASK_AFTER: Duration = Duration::from_millis(500);

/// One connection.
pub(crate) struct Tunnel {
    /// 0: the session's own.
    pub(crate) number: u8,
    pub(crate) connection: Connection,
    pub(crate) upstream: Upstream,
    in_flight: AtomicU32,
    requests: AtomicU64,
    base: Instant,
    /// A lane: when a request last started or ended on it, in milliseconds since `base`.
    exchanged: AtomicU64,
    /// A request came after a silence.
    wake: Notify,
}

/// All of them.
pub(crate) struct Tunnels {
    first: Arc<Tunnel>,
    has_lanes: AtomicBool,
    lanes: RwLock<Vec<Arc<Tunnel>>>,
}

/// A request that runs over a tunnel, until it is dropped.
pub(crate) struct Running(Arc<Tunnel>);

impl Tunnel {
    /// Nothing runs over it yet.
    pub(super) fn new(number: u8, connection: Connection, now: Instant) -> Arc<Self> {
        Arc::new(Self {
            number,
            upstream: Upstream::new(connection.clone()),
            connection,
            in_flight: AtomicU32::new(0),
            requests: AtomicU64::new(0),
            base: now,
            exchanged: AtomicU64::new(0),
            wake: Notify::new(),
        })
    }

    /// The shard that it lives on.
    pub(crate) fn shard(&self) -> u8 {
        self.connection.peer().shard()
    }

    /// Requests that run over it.
    pub(crate) fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Requests that it got so far.
    pub(crate) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// A lane: when a request last started or ended on it.
    pub(super) fn exchanged(&self) -> Instant {
        self.base + Duration::from_millis(self.exchanged.load(Ordering::Relaxed))
    }

    /// Waits until a request comes after a silence. Cancel safe.
    pub(super) async fn woken(&self) {
        self.wake.notified().await;
    }

    fn note(&self, now: Instant) {
        let millis = now.saturating_duration_since(self.base).as_millis();
        self.exchanged.store(u64::try_from(millis).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

impl Tunnels {
    /// The session's own alone.
    pub(super) fn new(first: Arc<Tunnel>) -> Self {
        Self { first, has_lanes: AtomicBool::new(false), lanes: RwLock::default() }
    }

    /// The session's own.
    pub(crate) fn first(&self) -> &Arc<Tunnel> {
        &self.first
    }

    /// The one for a request of this thread: one of the same thread until it is notably busier than another.
    pub(crate) fn choose(&self) -> Arc<Tunnel> {
        if !self.has_lanes() {
            return Arc::clone(&self.first);
        }
        let here = cores::here();
        let lanes = self.lanes.read().unwrap_or_else(PoisonError::into_inner);
        let open = std::iter::once(&self.first).chain(&*lanes).filter(|tunnel| !tunnel.connection.is_closed());
        let best = open.min_by_key(|tunnel| {
            let near = tunnel.shard() == here;
            (pick::weight(tunnel.in_flight(), near), Reverse(near), tunnel.requests())
        });
        Arc::clone(best.unwrap_or(&self.first))
    }

    /// Whether one of them lives on this thread.
    pub(super) fn is_near(&self) -> bool {
        let here = cores::here();
        let lanes = || self.lanes.read().unwrap_or_else(PoisonError::into_inner);
        self.first.shard() == here || self.has_lanes() && lanes().iter().any(|lane| lane.shard() == here)
    }

    /// Whether there are more than the session's own.
    fn has_lanes(&self) -> bool {
        self.has_lanes.load(Ordering::Relaxed)
    }

    /// All of them, the session's own first.
    pub(super) fn all(&self) -> Vec<Arc<Tunnel>> {
        let lanes = self.lanes.read().unwrap_or_else(PoisonError::into_inner);
        std::iter::once(&self.first).chain(&*lanes).cloned().collect()
    }

    /// A lane is there; one before it of the same number takes no request any more.
    pub(super) fn add(&self, lane: &Arc<Tunnel>) {
        let mut lanes = self.lanes.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = lanes.iter().position(|other| other.number == lane.number) {
            lanes.remove(place).upstream.close();
        }
        lanes.push(Arc::clone(lane));
        self.has_lanes.store(true, Ordering::Relaxed);
    }

    /// A lane is gone.
    pub(super) fn remove(&self, lane: &Arc<Tunnel>) {
        let mut lanes = self.lanes.write().unwrap_or_else(PoisonError::into_inner);
        lanes.retain(|other| !Arc::ptr_eq(other, lane));
        self.has_lanes.store(!lanes.is_empty(), Ordering::Relaxed);
        drop(lanes);
        lane.upstream.close();
    }

    /// Ends all connections.
    pub(super) fn close(&self, code: CloseCode) {
        self.all().iter().for_each(|tunnel| tunnel.connection.close(code));
    }

    /// Closes streams that are idle, and those in use when their exchange is over.
    pub(super) fn retire(&self) {
        self.all().iter().for_each(|tunnel| tunnel.upstream.close());
    }

    /// Closes streams that were idle for too long.
    pub(super) fn sweep(&self, now: tokio::time::Instant) {
        self.all().iter().for_each(|tunnel| tunnel.upstream.sweep(now));
    }
}

impl Running {
    /// A request starts. Of the session's own connection the session itself knows when it was used.
    pub(crate) fn over(tunnel: Arc<Tunnel>) -> Self {
        let alone = tunnel.in_flight.fetch_add(1, Ordering::Relaxed) == 0;
        tunnel.requests.fetch_add(1, Ordering::Relaxed);
        if tunnel.number > 0 {
            let now = Instant::now();
            if alone && now.saturating_duration_since(tunnel.exchanged()) > ASK_AFTER {
                tunnel.wake.notify_one();
            }
            tunnel.note(now);
        }
        Self(tunnel)
    }

    /// Over which one.
    pub(crate) fn tunnel(&self) -> &Tunnel {
        &self.0
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
        if self.0.number > 0 {
            self.0.note(Instant::now());
        }
    }
}
