//! A future that is polled only when it was woken itself, whatever its neighbours in the task are woken for.
//!
//! Must never lose a wake.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::task::AtomicWaker;

/// A future that rarely has something to say, beside others in one task: polled at first, and then only when it was
/// woken itself.
pub struct Quiet<F> {
    future: Pin<Box<F>>,
    shared: Arc<Shared>,
    waker: Waker,
}

struct Shared {
    is_woken: AtomicBool,
    task: AtomicWaker,
}

impl<F: Future> Quiet<F> {
    /// Not polled yet.
    pub fn new(future: F) -> Self {
        let shared = Arc::new(Shared { is_woken: AtomicBool::new(true), task: AtomicWaker::new() });
        Self { future: Box::pin(future), waker: Waker::from(shared.clone()), shared }
    }
}

impl<F: Future> Future for Quiet<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let Self { future, shared, waker } = self.get_mut();
        // Before the look: a wake after it finds the task.
        shared.task.register(cx.waker());
        if !shared.is_woken.swap(false, Ordering::AcqRel) {
            return Poll::Pending;
        }
        future.as_mut().poll(&mut Context::from_waker(waker))
    }
}

impl Wake for Shared {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.is_woken.store(true, Ordering::Release);
        self.task.wake();
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
