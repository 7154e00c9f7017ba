//! How many exchanges run at once, and how many wait, for how long, to be next.
//!
//! Must never let a queue grow without a bound, or keep anybody waiting longer than it says.

use std::sync::Arc;
use std::time::Duration;

use culvert_model::reason::Reason;

use crate::fault::Fault;

/// Bounds of [`InFlight`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Exchanges at once.
    pub running: usize,
    /// Exchanges waiting.
    pub waiting: usize,
    /// The longest wait.
    pub wait: Duration,
}

/// A counter of running exchanges with a bounded queue. Clones share it.
#[derive(Debug, Clone)]
pub struct InFlight {
    _inner: Arc<()>,
}

/// Leave to run one exchange; given back when dropped.
#[derive(Debug)]
pub struct Permit {
    _private: (),
}

impl InFlight {
    /// Full when `bounds.running` permits are out; past it `reason` (`overloaded` or `gateway_limit`).
    pub fn new(_bounds: Bounds, _reason: Reason) -> Self {
        todo!()
    }

    /// Waits for a permit, at most as long as the bounds say.
    ///
    /// # Errors
    /// The queue is full, or the wait was in vain.
    pub async fn enter(&self) -> Result<Permit, Fault> {
        todo!()
    }

    /// Permits out now.
    pub fn running(&self) -> usize {
        todo!()
    }

    /// Changes the bounds for those who come from now on (reload).
    pub fn set(&self, _bounds: Bounds) {
        todo!()
    }
}
