//! Where callers come in: listeners, their connections, and how those end.
//!
//! Step by step: [`listen`] accepts, [`arrival`] reads what comes before the first word, [`connection`] keeps an HTTP
//! connection and [`tcp`] a raw one, [`running`] ends them in a drain.
//!
//! Must never let a connection that waits or stalls cost another one anything, nor end an answer that is cut short as if
//! it were whole.

mod arrival;
mod connection;
mod io;
mod listen;
mod long;
mod moving;
mod proxy_protocol;
mod running;
mod seats;
mod tcp;
pub(crate) mod tls;
mod told;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use culvert_hop::server::{Http2, ServerSettings};
use culvert_model::reason::Reason;
use tokio::sync::Semaphore;

use crate::access_log::Entry;
use crate::config::FrontLimits;
use crate::door::{Door, TcpDoor};
use crate::exchange::Exchanges;
use connection::Speaks;

pub(crate) use arrival::{Arrivals, Manners, TurnedAwayCounts};
pub(crate) use io::{Bound, Socket};
pub(crate) use long::LongRunning;
pub(crate) use running::{Cut, Running, Turn, until};
pub(crate) use seats::Seats;
pub(crate) use told::Told;

/// All listeners of the process.
pub(crate) struct Front {
    exchanges: Arc<Exchanges>,
    settings: Mutex<Arc<Settings>>,
    arrivals: Arrivals,
    seats: Arc<Seats>,
    connections: Arc<Semaphore>,
    most: usize,
}

/// Where a listener's connections lead.
pub(crate) enum Leads {
    Http(Arc<Door>),
    Tcp(Arc<TcpDoor>),
}

/// How HTTP is served, by what is spoken.
struct Settings {
    either: Arc<ServerSettings>,
    http1: Arc<ServerSettings>,
    http2: Arc<ServerSettings>,
}

impl Front {
    /// A front over these exchanges, for so many connections at once, on the threads of these seats.
    pub(crate) fn new(exchanges: Arc<Exchanges>, connections: usize, limits: FrontLimits, seats: Seats) -> Self {
        Self {
            seats: Arc::new(seats),
            settings: Mutex::new(Arc::new(Settings::new(&exchanges, limits))),
            arrivals: Arrivals::new(limits.arrival),
            exchanges,
            connections: Arc::new(Semaphore::new(connections)),
            most: connections,
        }
    }

    /// Takes other limits, for connections from now on.
    pub(crate) fn set(&self, limits: FrontLimits) {
        self.arrivals.set(limits.arrival);
        let settings = Arc::new(Settings::new(&self.exchanges, limits));
        *self.settings.lock().unwrap_or_else(PoisonError::into_inner) = settings;
    }

    /// Connections open now.
    pub(crate) fn open(&self) -> usize {
        self.most.saturating_sub(self.connections.available_permits())
    }

    /// Connections open now, by the shard whose thread serves them.
    pub(crate) fn open_by_shard(&self) -> Vec<usize> {
        self.seats.taken()
    }

    /// Connections that never came to speak.
    pub(crate) fn turned_away(&self) -> &TurnedAwayCounts {
        self.arrivals.turned_away()
    }

    fn settings(&self, speaks: Speaks) -> Arc<ServerSettings> {
        let settings = self.settings.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(match speaks {
            Speaks::Either => &settings.either,
            Speaks::Http1 => &settings.http1,
            Speaks::Http2 => &settings.http2,
        })
    }
}

impl Settings {
    fn new(exchanges: &Arc<Exchanges>, limits: FrontLimits) -> Self {
        let refusing = Arc::clone(exchanges);
        let either = ServerSettings {
            head_timeout: limits.head_time,
            keep_alive: limits.keep_alive,
            max_head: limits.head,
            max_streams: limits.streams,
            unread_timeout: limits.unread_time,
            refused: Some(Arc::new(move |reason| refused(&refusing, reason))),
            ..ServerSettings::front()
        };
        let http1 = ServerSettings { http2: Http2::Never, ..either.clone() };
        let http2 = ServerSettings { http2: Http2::Always, ..either.clone() };
        Self { either: Arc::new(either), http1: Arc::new(http1), http2: Arc::new(http2) }
    }
}

impl Door {
    fn manners(&self) -> Manners {
        let tls = self.shown().tls().map(|tls| tls.config());
        Manners { proxy_protocol: self.now().proxy_protocol, tls }
    }
}

/// A request that was refused before it became one.
fn refused(exchanges: &Exchanges, reason: Reason) {
    exchanges.log.record(|| Entry {
        time: SystemTime::now(),
        request_id: "",
        gateway: None,
        service: None,
        tunnel: None,
        connector: None,
        method: "",
        path: "",
        status: Some(reason.status()),
        reason: Some(reason.name()),
        bytes_in: 0,
        bytes_out: 0,
        duration_ms: Duration::ZERO,
        origin_ms: None,
        trace_id: None,
    });
    exchanges.no_service.count(Some(reason.status()), Some(reason), Duration::ZERO);
}
