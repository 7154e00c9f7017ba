//! Who is woken when: a connection's wakes of itself are kept from its task, and what was not woken is not polled.
//!
//! hyper passes requests, answers and bodies between its halves through channels. Where one task holds both halves, each
//! hand-over would wake that task once more, to find nothing to do: as many polls again as an exchange needs.
//!
//! Must never lose a wake of the outside.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::task::AtomicWaker;

/// Being polled: the poller sees for itself what it is woken for.
const INSIDE: u8 = 1;
/// Woken since the last look.
const WOKEN: u8 = 2;
/// Polls in a row before other tasks get their turn.
const ROUNDS: usize = 4;

/// The waker of something that is polled as a whole.
pub(crate) struct Wakes {
    shared: Arc<Shared>,
    waker: Waker,
}

#[derive(Default)]
struct Shared {
    state: AtomicU8,
    task: AtomicWaker,
}

impl Wakes {
    pub(crate) fn new() -> Self {
        let shared = Arc::new(Shared::default());
        Self { waker: Waker::from(shared.clone()), shared }
    }

    /// Polls; a wake meanwhile polls again here instead of waking the task.
    ///
    /// When it is ready, what it woke itself for is forgotten: whoever goes on with it polls it as a whole.
    pub(crate) fn poll<T>(&self, cx: &Context<'_>, mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
        self.shared.task.register(cx.waker());
        let mut own = Context::from_waker(&self.waker);
        for _ in 0..ROUNDS {
            self.shared.state.store(INSIDE, Ordering::Release);
            let polled = poll(&mut own);
            let woken = self.shared.state.swap(0, Ordering::AcqRel) & WOKEN != 0;
            if polled.is_ready() || !woken {
                return polled;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Runs what would wake the task for a poll that comes anyway.
    pub(crate) fn hush<T>(&self, run: impl FnOnce() -> T) -> T {
        self.shared.state.store(INSIDE, Ordering::Release);
        let done = run();
        self.shared.state.store(0, Ordering::Release);
        done
    }
}

impl Wake for Shared {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.state.fetch_or(WOKEN, Ordering::AcqRel) & INSIDE == 0 {
            self.task.wake();
        }
    }
}

/// A future that rarely has something to say, beside others in one task: polled at first, and then only when it was
/// woken itself.
pub struct Quiet<F> {
    future: Pin<Box<F>>,
    wakes: Wakes,
}

impl<F: Future> Quiet<F> {
    /// Not polled yet.
    pub fn new(future: F) -> Self {
        let wakes = Wakes::new();
        wakes.shared.state.store(WOKEN, Ordering::Release);
        Self { future: Box::pin(future), wakes }
    }
}

impl<F: Future> Future for Quiet<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let Self { future, wakes } = self.get_mut();
        // Before the look: a wake after it finds the task.
        wakes.shared.task.register(cx.waker());
        if wakes.shared.state.load(Ordering::Acquire) & WOKEN == 0 {
            return Poll::Pending;
        }
        wakes.shared.state.store(0, Ordering::Release);
        future.as_mut().poll(&mut Context::from_waker(&wakes.waker))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn counted() -> (Arc<Count>, Waker) {
        let count = Arc::new(Count::default());
        (count.clone(), Waker::from(count))
    }

    #[test]
    fn a_wake_inside_polls_again_and_one_outside_wakes_the_task() {
        let (count, task) = counted();
        let cx = Context::from_waker(&task);
        let wakes = Wakes::new();
        let (mut polls, mut kept) = (0, None);
        let polled = wakes.poll(&cx, |cx| {
            polls += 1;
            if polls == 1 {
                cx.waker().wake_by_ref();
            }
            kept = Some(cx.waker().clone());
            Poll::<()>::Pending
        });
        assert!(polled.is_pending());
        assert_eq!((polls, count.0.load(Ordering::Relaxed)), (2, 0));
        wakes.hush(|| kept.as_ref().unwrap().wake_by_ref());
        assert_eq!(count.0.load(Ordering::Relaxed), 0);
        kept.unwrap().wake();
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn what_wakes_itself_for_ever_lets_others_run() {
        let (count, task) = counted();
        let mut polls = 0;
        let polled = Wakes::new().poll(&Context::from_waker(&task), |cx| {
            polls += 1;
            cx.waker().wake_by_ref();
            Poll::<()>::Pending
        });
        assert!(polled.is_pending());
        assert_eq!((polls, count.0.load(Ordering::Relaxed)), (ROUNDS, 1));
    }

    #[test]
    fn a_quiet_future_is_polled_when_it_was_woken_and_not_else() {
        let (count, task) = counted();
        let mut cx = Context::from_waker(&task);
        let (polls, waker) = (AtomicUsize::new(0), AtomicWaker::new());
        let mut quiet = Quiet::new(poll_fn(|cx| {
            waker.register(cx.waker());
            match polls.fetch_add(1, Ordering::Relaxed) {
                0 => Poll::Pending,
                _ => Poll::Ready(7),
            }
        }));
        for _ in 0..3 {
            assert!(Pin::new(&mut quiet).poll(&mut cx).is_pending());
        }
        assert_eq!((polls.load(Ordering::Relaxed), count.0.load(Ordering::Relaxed)), (1, 0));
        waker.wake();
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
        assert_eq!(Pin::new(&mut quiet).poll(&mut cx), Poll::Ready(7));
    }
}
