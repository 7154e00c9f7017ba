//! How many exchanges run at once, and how many wait, for how long, to be next.
//!
//! Must never let a queue grow without a bound, or keep anybody waiting longer than it says.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use culvert_model::reason::Reason;
use tokio::sync::oneshot;

use crate::fault::{Fault, Retry};

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

/// A counter of running exchanges with a bounded queue, first come, first served. Clones share it.
#[derive(Debug, Clone)]
pub struct InFlight(Arc<Shared>);

/// Leave to run one exchange; given back when dropped.
#[derive(Debug)]
pub struct Permit(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    reason: Reason,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    bounds: Bounds,
    running: usize,
    /// Each gets a permit sent. Those that gave up are closed, and skipped.
    queue: VecDeque<oneshot::Sender<Permit>>,
}

impl InFlight {
    /// Full when `bounds.running` permits are out; past it `reason` (`overloaded` or `gateway_limit`).
    pub fn new(bounds: Bounds, reason: Reason) -> Self {
        let state = Mutex::new(State { bounds, running: 0, queue: VecDeque::new() });
        Self(Arc::new(Shared { reason, state }))
    }

    /// Waits for a permit, at most as long as the bounds say. Cancel safe: a place in the queue is given up.
    ///
    /// # Errors
    /// The queue is full, or the wait was in vain.
    pub async fn enter(&self) -> Result<Permit, Fault> {
        let (mut turn, wait) = {
            let mut state = self.0.lock();
            if state.running < state.bounds.running {
                state.running += 1;
                return Ok(Permit(self.0.clone()));
            }
            if state.queue.len() >= state.bounds.waiting {
                state.queue.retain(|waiting| !waiting.is_closed());
            }
            if state.queue.len() >= state.bounds.waiting {
                return Err(self.0.full("no place in the queue"));
            }
            let (sender, turn) = oneshot::channel();
            state.queue.push_back(sender);
            (turn, state.bounds.wait)
        };
        match tokio::time::timeout(wait, &mut turn).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) => Err(self.0.full("the queue was dropped")),
            Err(_) => Err(self.0.full("waited too long")),
        }
    }

    /// Permits out now.
    pub fn running(&self) -> usize {
        self.0.lock().running
    }

    /// Exchanges waiting now.
    pub fn waiting(&self) -> usize {
        self.0.lock().queue.iter().filter(|waiting| !waiting.is_closed()).count()
    }

    /// Changes the bounds for those who come from now on (reload).
    pub fn set(&self, bounds: Bounds) {
        self.0.lock().bounds = bounds;
        while self.0.hand_on() {}
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn full(&self, why: &str) -> Fault {
        Fault::new(self.reason).retry(Retry::Safe).log(why)
    }

    /// Gives a free permit to the first who still waits for it.
    fn hand_on(self: &Arc<Self>) -> bool {
        let waiting = {
            let mut state = self.lock();
            if state.running >= state.bounds.running {
                return false;
            }
            let Some(waiting) = state.queue.pop_front() else { return false };
            state.running += 1;
            waiting
        };
        // Given back by its drop if nobody takes it, which hands it on in turn.
        drop(waiting.send(Permit(self.clone())));
        true
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        {
            let mut state = self.0.lock();
            state.running = state.running.saturating_sub(1);
            // Skipped here and not by handing a permit to each: that would recurse once for each.
            while state.queue.front().is_some_and(oneshot::Sender::is_closed) {
                state.queue.pop_front();
            }
        }
        self.0.hand_on();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_flight(running: usize, waiting: usize) -> InFlight {
        InFlight::new(Bounds { running, waiting, wait: Duration::from_secs(1) }, Reason::Overloaded)
    }

    #[tokio::test(start_paused = true)]
    async fn the_queue_is_bounded_in_length() {
        let limit = in_flight(1, 1);
        let first = limit.enter().await.unwrap();
        let queued = tokio::spawn({
            let limit = limit.clone();
            async move { limit.enter().await }
        });
        tokio::task::yield_now().await;
        let fault = limit.enter().await.unwrap_err();
        assert_eq!((fault.reason, fault.retry), (Reason::Overloaded, Retry::Safe));
        drop(first);
        let second = queued.await.unwrap().unwrap();
        assert_eq!(limit.running(), 1);
        drop(second);
        assert_eq!(limit.running(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_in_time_and_leaves_its_place() {
        let limit = in_flight(1, 1);
        let held = limit.enter().await.unwrap();
        let start = tokio::time::Instant::now();
        assert!(limit.enter().await.is_err());
        assert_eq!(start.elapsed(), Duration::from_secs(1));
        assert_eq!(limit.waiting(), 0);
        drop(held);
        limit.enter().await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_permit_passes_over_those_who_gave_up() {
        let limit = in_flight(1, 10);
        let held = limit.enter().await.unwrap();
        let mut gone = Vec::new();
        for _ in 0..5 {
            let mut waiting = Box::pin(limit.enter());
            assert!(is_waiting(&mut waiting));
            gone.push(waiting);
        }
        let mut last = Box::pin(limit.enter());
        assert!(is_waiting(&mut last));
        drop(gone);
        drop(held);
        let permit = last.await.unwrap();
        assert_eq!(limit.running(), 1);
        drop(permit);
        assert_eq!(limit.running(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn more_room_lets_the_queue_in() {
        let limit = in_flight(0, 3);
        let mut waiting: Vec<_> = (0..3).map(|_| Box::pin(limit.enter())).collect();
        for one in &mut waiting {
            assert!(is_waiting(one));
        }
        limit.set(Bounds { running: 2, waiting: 3, wait: Duration::from_secs(1) });
        assert_eq!(limit.running(), 2);
        let third = waiting.pop().unwrap();
        let mut permits = Vec::new();
        for one in waiting {
            permits.push(one.await.unwrap());
        }
        assert!(third.await.is_err());
    }

    fn is_waiting(mut entering: impl Future + Unpin) -> bool {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        std::pin::Pin::new(&mut entering).poll(&mut context).is_pending()
    }
}
