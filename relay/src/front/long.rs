//! Exchanges that a drain gives `--drain-streams`. While there are some, a listener of the service manager's still takes
//! callers: they could only wait in its backlog for a successor that cannot start yet.
//!
//! Must never be waited for by anybody but such a listener.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

/// How many there are.
#[derive(Debug, Default)]
pub(crate) struct LongRunning {
    count: AtomicUsize,
    none: Notify,
}

/// One of them.
pub(crate) struct LongRunner(Arc<LongRunning>);

impl LongRunning {
    /// One more, until it is dropped.
    pub(crate) fn one(self: &Arc<Self>) -> LongRunner {
        self.count.fetch_add(1, Ordering::Relaxed);
        LongRunner(Arc::clone(self))
    }

    /// Waits until there is none.
    pub(super) async fn none(&self) {
        loop {
            let none = self.none.notified();
            if self.count.load(Ordering::Relaxed) == 0 {
                return;
            }
            none.await;
        }
    }
}

impl Drop for LongRunner {
    fn drop(&mut self) {
        if self.0.count.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.none.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::{Instant, sleep};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_listener_of_the_service_manager_closes_when_nothing_runs_for_long_any_more() {
        let long = Arc::new(LongRunning::default());
        let start = Instant::now();
        long.none().await;
        assert_eq!(Instant::now(), start);
        let (one, other) = (long.one(), long.one());
        let end = async {
            sleep(Duration::from_secs(1)).await;
            drop(one);
            sleep(Duration::from_secs(1)).await;
            drop(other);
        };
        tokio::join!(end, long.none(), long.none());
        assert_eq!(start.elapsed(), Duration::from_secs(2));
    }
}
