//! The figures of one service, looked up once and kept beside its connections.
//!
//! Must never have a label whose values a caller can invent.

use std::sync::Arc;

use culvert_ops::metrics::{Counter, Gauge, Histogram};

/// The handles of one service.
#[derive(Clone)]
pub struct ServiceMetrics {
    /// The label's value.
    pub name: Arc<str>,
    /// From a request's head to its answer's end.
    pub duration: Histogram,
    /// Requests being served.
    pub in_flight: Gauge,
    /// The counter of the usual answer: a look-up spared for most requests.
    pub ok: Counter,
}

impl ServiceMetrics {
    /// One more is being served.
    pub fn enter(&self) {
        self.in_flight.inc();
    }

    /// One less.
    pub fn leave(&self) {
        self.in_flight.dec();
    }
}
