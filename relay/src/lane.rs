//! What a service has of its own on the way of a request: its limits and its counters.
//!
//! Must never know who serves it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use culvert_hop::fault::Fault;
use culvert_hop::limits::{Bounds, InFlight, Permit};
use culvert_model::name::{Label, ServiceName};
use culvert_model::reason::Reason;

use crate::config::{Limits, ServiceLimits};
use crate::metrics::{RelayMetrics, ServiceMetrics};

/// No limit, among body limits.
const ANY: u64 = u64::MAX;

/// One service's.
pub(crate) struct Lane {
    /// Who may run.
    pub(crate) in_flight: InFlight,
    /// What is counted.
    pub(crate) metrics: ServiceMetrics,
    body: AtomicU64,
}

/// Makes lanes, and changes their limits.
pub(crate) struct Lanes {
    metrics: Arc<RelayMetrics>,
    limits: Mutex<Limits>,
}

impl Lane {
    /// The largest request body, if there is one.
    pub(crate) fn body_limit(&self) -> Option<u64> {
        Some(self.body.load(Ordering::Relaxed)).filter(|limit| *limit != ANY)
    }

    /// Takes other limits, for requests from now on.
    pub(crate) fn set(&self, limits: ServiceLimits) {
        self.in_flight.set(limits.bounds);
        self.body.store(limits.body.unwrap_or(ANY), Ordering::Relaxed);
    }
}

impl Lanes {
    /// Lanes under these limits.
    pub(crate) fn new(metrics: Arc<RelayMetrics>, limits: Limits) -> Self {
        Self { metrics, limits: Mutex::new(limits) }
    }

    /// A new lane.
    pub(crate) fn lane(&self, service: &ServiceName) -> Lane {
        let limits = self.limits_of(service);
        Lane {
            in_flight: InFlight::new(limits.bounds, Reason::Overloaded),
            metrics: self.metrics.service(service),
            body: AtomicU64::new(limits.body.unwrap_or(ANY)),
        }
    }

    /// Takes other limits; whoever holds lanes sets them.
    pub(crate) fn set(&self, limits: Limits) {
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner) = limits;
    }

    /// The limits of one connector.
    pub(crate) fn connector(&self) -> Bounds {
        self.limits.lock().unwrap_or_else(PoisonError::into_inner).connector
    }

    /// The limits of one service.
    pub(crate) fn limits_of(&self, service: &ServiceName) -> ServiceLimits {
        self.limits.lock().unwrap_or_else(PoisonError::into_inner).of(service)
    }
}

/// Who may run, of each gateway. Gateways are few and made by the operator, so what is known of one stays.
pub(crate) struct GatewayLanes(Mutex<(Bounds, HashMap<Label, InFlight>)>);

impl GatewayLanes {
    /// Each under these bounds.
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self(Mutex::new((bounds, HashMap::new())))
    }

    /// Takes other bounds, for requests from now on.
    pub(crate) fn set(&self, bounds: Bounds) {
        let mut lanes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lanes.0 = bounds;
        lanes.1.values().for_each(|lane| lane.set(bounds));
    }

    /// Waits for leave to run a request of this gateway, as long as the bounds say.
    ///
    /// # Errors
    /// `gateway_limit`.
    pub(crate) async fn enter(&self, gateway: &Label) -> Result<Permit, Fault> {
        let lane = {
            let mut lanes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let bounds = lanes.0;
            match lanes.1.get(gateway) {
                Some(lane) => lane.clone(),
                None => lanes.1.entry(gateway.clone()).or_insert(InFlight::new(bounds, Reason::GatewayLimit)).clone(),
            }
        };
        lane.enter().await
    }
}

impl std::fmt::Debug for Lane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Lane")
    }
}
