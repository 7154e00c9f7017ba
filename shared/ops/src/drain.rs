//! A clean end: first nobody new, then what is in flight finishes, then the rest is ended visibly.
//!
//! Must never wait past its deadline, and never longer than there is something to wait for.

mod signals;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};
use tokio::time::sleep_until;

pub use signals::{Signal, Signals, obey};

/// What counts as a stream that was already running when the drain began (interface.md §1, `--drain-streams`).
pub const LONG_RUNNING: Duration = Duration::from_secs(5);

/// How long the parts of a drain take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// `--drain-delay`: not ready any more, but still taking requests, so that callers look elsewhere.
    pub delay: Duration,
    /// `--drain-timeout`: what requests in flight get from then on.
    pub timeout: Duration,
    /// `--drain-streams`: what long-running streams get from then on.
    pub streams: Duration,
}

/// Where a program stands between its start and its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Taking requests.
    Running,
    /// On its way out.
    Draining {
        /// When listeners close.
        closing: Instant,
        /// When long-running streams end.
        streams: Instant,
        /// When everything ends.
        deadline: Instant,
    },
    /// Nothing goes on.
    Stopped,
}

/// One program's drain. Clones share it.
#[derive(Debug, Clone)]
pub struct Drain(Arc<Inner>);

/// One request or stream in flight; the drain waits for its drop.
#[derive(Debug)]
pub struct InFlight {
    drain: Drain,
    since: Instant,
    streaming: AtomicBool,
}

#[derive(Debug)]
struct Inner {
    phase: watch::Sender<Phase>,
    draining: AtomicBool,
    in_flight: AtomicUsize,
    emptied: Notify,
}

impl Drain {
    /// Nothing drains yet.
    #[allow(clippy::new_without_default, reason = "a default drain would be one that nobody can begin")]
    pub fn new() -> Self {
        Self(Arc::new(Inner {
            phase: watch::Sender::new(Phase::Running),
            draining: AtomicBool::new(false),
            in_flight: AtomicUsize::new(0),
            emptied: Notify::new(),
        }))
    }

    /// Begins the way out; a second call changes nothing.
    pub fn begin(&self, plan: Plan, now: Instant) {
        // Before the phase: see the invariant of `emptied`.
        self.0.draining.store(true, Ordering::SeqCst);
        self.0.phase.send_if_modified(|phase| {
            if *phase != Phase::Running {
                return false;
            }
            let closing = now + plan.delay;
            *phase = Phase::Draining {
                closing,
                streams: closing + plan.streams.min(plan.timeout),
                deadline: closing + plan.timeout,
            };
            true
        });
    }

    /// Ends at once.
    pub fn stop(&self) {
        self.0.draining.store(true, Ordering::SeqCst);
        self.0.phase.send_replace(Phase::Stopped);
    }

    /// Where it stands.
    pub fn phase(&self) -> Phase {
        *self.0.phase.borrow()
    }

    /// Whether the way out has begun: `/readyz` says no from here on.
    pub fn is_draining(&self) -> bool {
        self.0.draining.load(Ordering::Relaxed)
    }

    /// Counts one request or stream until the guard is dropped.
    pub fn enter(&self, now: Instant) -> InFlight {
        self.0.in_flight.fetch_add(1, Ordering::SeqCst);
        InFlight { drain: self.clone(), since: now, streaming: AtomicBool::new(false) }
    }

    /// How many are in flight.
    pub fn in_flight(&self) -> usize {
        self.0.in_flight.load(Ordering::SeqCst)
    }

    /// Waits until the way out begins. Cancel safe.
    pub async fn begun(&self) {
        self.wait(|phase| phase != Phase::Running).await;
    }

    /// Waits until listeners must close: the delay after the beginning. Cancel safe.
    pub async fn closing(&self) {
        if let Phase::Draining { closing, .. } = self.wait(|phase| phase != Phase::Running).await {
            self.until(closing).await;
        }
    }

    /// Waits until everything must end. Cancel safe.
    pub async fn stopped(&self) {
        self.wait(|phase| phase == Phase::Stopped).await;
    }

    /// Goes the way out once it has begun: waits until nothing is in flight or the deadline, then stops. Gives how many
    /// were still in flight. For the one who ends the process; cancel safe.
    pub async fn run_out(&self) -> usize {
        self.closing().await;
        let deadline = match self.phase() {
            Phase::Draining { deadline, .. } => Some(deadline),
            Phase::Running | Phase::Stopped => None,
        };
        if let Some(deadline) = deadline {
            tokio::select! {
                () = self.emptied() => {}
                () = self.until(deadline) => {}
            }
        }
        self.stop();
        self.in_flight()
    }

    async fn emptied(&self) {
        // INVARIANT: `draining` was set before this count is read, and a guard lowers the count before it reads
        // `draining`: one of the two sees the other, so no wake-up is lost.
        while self.in_flight() > 0 {
            self.0.emptied.notified().await;
        }
    }

    /// Waits for an instant, or the stop if that comes first.
    async fn until(&self, instant: Instant) {
        tokio::select! {
            () = self.stopped() => {}
            () = sleep_until(instant.into()) => {}
        }
    }

    async fn wait(&self, reached: impl Fn(Phase) -> bool) -> Phase {
        let mut phase = self.0.phase.subscribe();
        // The sender lives as long as `self`, so this does not fail.
        phase.wait_for(|phase| reached(*phase)).await.map_or(Phase::Stopped, |phase| *phase)
    }
}

impl InFlight {
    /// Says that the answer's head is out and its body, or an upgraded connection, goes on.
    pub fn streaming(&self) {
        self.streaming.store(true, Ordering::Relaxed);
    }

    /// Waits until this exchange must end visibly: at `--drain-streams` for a stream that was running for more than
    /// [`LONG_RUNNING`] when listeners closed, at the deadline for the rest, at once on a stop. Cancel safe.
    pub async fn cut(&self) {
        self.drain.closing().await;
        if let Phase::Draining { closing, streams, deadline } = self.drain.phase() {
            let long = closing.saturating_duration_since(self.since) > LONG_RUNNING;
            if long {
                self.drain.until(streams).await;
            }
            // One whose head goes out late was no stream when the drain began, but is one now.
            if !(long && self.streaming.load(Ordering::Relaxed)) {
                self.drain.until(deadline).await;
            }
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let inner = &self.drain.0;
        let left = inner.in_flight.fetch_sub(1, Ordering::SeqCst) - 1;
        if left == 0 && inner.draining.load(Ordering::SeqCst) {
            inner.emptied.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAN: Plan =
        Plan { delay: Duration::ZERO, timeout: Duration::from_secs(25), streams: Duration::from_secs(5) };

    fn now() -> Instant {
        tokio::time::Instant::now().into_std()
    }

    async fn pass(seconds: u64) {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_with_nothing_in_flight_ends_at_once() {
        let drain = Drain::new();
        let start = now();
        drain.begin(PLAN, start);
        assert_eq!(drain.run_out().await, 0);
        assert_eq!((drain.phase(), now()), (Phase::Stopped, start));
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_ends_with_the_last_request() {
        let drain = Drain::new();
        let start = now();
        let requests = [drain.enter(start), drain.enter(start)];
        drain.begin(PLAN, start);
        tokio::spawn(async move {
            for request in requests {
                pass(3).await;
                drop(request);
            }
        });
        assert_eq!(drain.run_out().await, 0);
        assert_eq!(now() - start, Duration::from_secs(6));
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_never_waits_past_its_deadline() {
        let drain = Drain::new();
        let start = now();
        let stuck = drain.enter(start);
        drain.begin(PLAN, start);
        drain.begin(Plan { timeout: Duration::from_secs(999), ..PLAN }, start);
        assert_eq!(drain.run_out().await, 1);
        assert_eq!(now() - start, PLAN.timeout);
        stuck.cut().await;
        assert_eq!(now() - start, PLAN.timeout);
    }

    #[tokio::test(start_paused = true)]
    async fn during_the_delay_it_is_draining_and_still_open() {
        let drain = Drain::new();
        let start = now();
        assert!(!drain.is_draining());
        drain.begin(Plan { delay: Duration::from_secs(7), ..PLAN }, start);
        assert!(drain.is_draining());
        drain.begun().await;
        assert_eq!(now(), start);
        drain.closing().await;
        assert_eq!(now() - start, Duration::from_secs(7));
    }

    #[tokio::test(start_paused = true)]
    async fn long_running_streams_get_less_time_than_requests() {
        let drain = Drain::new();
        let (stream, slow) = (drain.enter(now()), drain.enter(now()));
        stream.streaming();
        pass(6).await;
        let young = drain.enter(now());
        young.streaming();
        let start = now();
        drain.begin(PLAN, start);
        stream.cut().await;
        assert_eq!(now() - start, PLAN.streams);
        tokio::join!(young.cut(), slow.cut());
        assert_eq!(now() - start, PLAN.timeout);
    }

    #[tokio::test(start_paused = true)]
    async fn streams_never_get_more_time_than_the_whole_drain() {
        let drain = Drain::new();
        let (stream, plan) = (drain.enter(now()), Plan { streams: Duration::from_secs(90), ..PLAN });
        stream.streaming();
        pass(6).await;
        let start = now();
        drain.begin(plan, start);
        stream.cut().await;
        assert_eq!(now() - start, PLAN.timeout);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_ends_everything_at_once() {
        let drain = Drain::new();
        let start = now();
        let request = drain.enter(start);
        drain.begin(Plan { delay: Duration::from_secs(9), ..PLAN }, start);
        let stopper = drain.clone();
        tokio::spawn(async move {
            pass(1).await;
            stopper.stop();
        });
        tokio::join!(drain.run_out(), request.cut(), drain.stopped(), drain.closing());
        assert_eq!(now() - start, Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_signal_drains_and_the_second_ends() {
        let (send, signals) = Signals::by_hand();
        let (reload, mut reloads) = tokio::sync::mpsc::channel(1);
        let drain = Drain::new();
        let start = now();
        let _stuck = drain.enter(start);
        let _obeys = crate::task::spawn("test.signals", obey(signals, drain.clone(), PLAN, reload));
        send.send(Signal::Reload).await.unwrap();
        assert_eq!(reloads.recv().await, Some(()));
        assert!(!drain.is_draining());
        send.send(Signal::End).await.unwrap();
        drain.begun().await;
        assert!(matches!(drain.phase(), Phase::Draining { .. }));
        send.send(Signal::End).await.unwrap();
        drain.stopped().await;
        assert_eq!(now(), start);
    }
}
