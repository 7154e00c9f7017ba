//! A caller's connection moves to the thread of the connectors that it asks for.
//!
//! A request whose connector lives on another shard costs two more wake-ups of a sleeping thread, about as much as the whole
//! request. So a connection whose last exchanges all went to one other shard is served there from then on: its future and
//! everything in it, between two polls. Must never cost anything where there is one shard.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::task::Poll;

use tokio::task::JoinHandle;

use super::io::Fate;
use super::seats::Seated;
use crate::cores;

/// So many exchanges in a row have to go to one other shard. A move costs about as much as one of them.
const AFTER: u32 = 8;
/// No shard has this number where several are worth telling apart.
const NOWHERE: u8 = u8::MAX;

/// Where a connection's exchanges go.
#[derive(Debug)]
pub(crate) struct Moving {
    last: AtomicU8,
    in_a_row: AtomicU32,
    wanted: AtomicU8,
}

/// A connection on its way, whatever it speaks.
pub(super) type Serving = Pin<Box<dyn Future<Output = ()> + Send>>;

/// How a stay on one thread ended.
enum Stayed {
    Over,
    Moves(Serving, u8),
}

impl Default for Moving {
    fn default() -> Self {
        Self { last: AtomicU8::new(NOWHERE), in_a_row: AtomicU32::new(0), wanted: AtomicU8::new(NOWHERE) }
    }
}

impl Moving {
    /// An exchange of the connection went to this shard; it is served `here`.
    pub(crate) fn note(&self, shard: u8, here: u8) {
        // Relaxed: exchanges of one connection run on one thread but for moments, and a miscount moves it a bit later.
        let same = self.last.load(Ordering::Relaxed) == shard;
        if shard == here || !same {
            self.last.store(shard, Ordering::Relaxed);
            self.in_a_row.store(u32::from(shard != here), Ordering::Relaxed);
        } else if self.in_a_row.fetch_add(1, Ordering::Relaxed) + 1 >= AFTER {
            self.to(shard);
        }
    }

    /// It is known to belong there.
    pub(super) fn to(&self, shard: u8) {
        self.in_a_row.store(0, Ordering::Relaxed);
        self.wanted.store(shard, Ordering::Relaxed);
    }

    fn take(&self) -> Option<u8> {
        if self.wanted.load(Ordering::Relaxed) == NOWHERE {
            return None;
        }
        Some(self.wanted.swap(NOWHERE, Ordering::Relaxed)).filter(|to| *to != NOWHERE && *to != cores::here())
    }
}

/// Serves a connection, on the current thread first.
pub(super) async fn wherever_it_asks(serving: Serving, fate: Arc<Fate>, mut seated: Seated) {
    let mut stayed = stay(serving, Arc::clone(&fate)).await;
    while let Stayed::Moves(serving, to) = stayed {
        seated.move_to(to);
        let there = Ended(seated.runtime().spawn(stay(serving, Arc::clone(&fate))));
        stayed = there.await;
    }
}

async fn stay(serving: Serving, fate: Arc<Fate>) -> Stayed {
    let mut serving = Some(serving);
    poll_fn(|cx| {
        let Some(future) = serving.as_mut() else { return Poll::Ready(Stayed::Over) };
        if future.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Stayed::Over);
        }
        match fate.moving().take().and_then(|to| Some((serving.take()?, to))) {
            Some((future, to)) => {
                fate.set_moved();
                Poll::Ready(Stayed::Moves(future, to))
            }
            None => Poll::Pending,
        }
    })
    .await
}

/// A task that ends with whoever waits for it.
struct Ended(JoinHandle<Stayed>);

impl Future for Ended {
    type Output = Stayed;

    fn poll(mut self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> Poll<Stayed> {
        Pin::new(&mut self.0).poll(cx).map(|ended| match ended {
            Ok(stayed) => stayed,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => Stayed::Over,
            },
        })
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Duration;

    use tokio::sync::mpsc;
    use tokio::time::timeout;

    use super::*;
    use crate::cores::Cores;
    use crate::front::Seats;

    #[test]
    fn a_connection_moves_after_enough_exchanges_with_one_other_shard() {
        let moving = Moving::default();
        let to = |moving: &Moving| moving.wanted.load(Ordering::Relaxed);
        for _ in 0..100 {
            moving.note(0, 0);
        }
        for round in 0..100 {
            moving.note(1 + round % 2, 0);
        }
        assert_eq!(to(&moving), NOWHERE, "neither near ones nor a mixture");
        for _ in 1..AFTER {
            moving.note(1, 0);
        }
        moving.note(0, 0);
        assert_eq!(to(&moving), NOWHERE, "not in a row");
        for left in (0..AFTER).rev() {
            moving.note(1, 0);
            assert_eq!(to(&moving) == 1, left == 0);
        }
        assert_eq!((moving.take(), moving.take()), (Some(1), None));
    }

    #[tokio::test]
    async fn a_connection_is_served_on_the_thread_that_it_moved_to_and_ends_with_its_owner() {
        let cores = Cores::start("shard", 2).unwrap();
        let seats = Arc::new(Seats::new(cores.runtimes()));
        let (fate, seen) = (Arc::<Fate>::default(), Arc::new(Mutex::new(Vec::new())));
        let (ask, mut asked) = mpsc::unbounded_channel::<u8>();
        let (held, mut ended) = mpsc::unbounded_channel::<()>();
        let (own, numbers) = (Arc::clone(&fate), Arc::clone(&seen));
        let serving = Box::pin(async move {
            let _held = held;
            while let Some(shard) = asked.recv().await {
                numbers.lock().unwrap().push(cores::here());
                own.moving().to(shard);
            }
        });
        let task = tokio::spawn(wherever_it_asks(serving, fate, seats.take()));
        for (shard, taken) in [(1, [0, 1]), (1, [0, 1]), (0, [1, 0])] {
            ask.send(shard).unwrap();
            let moved = async {
                while seats.taken() != taken {
                    tokio::task::yield_now().await;
                }
            };
            timeout(Duration::from_secs(10), moved).await.unwrap();
        }
        assert_eq!(*seen.lock().unwrap(), [0, 1, 1]);
        ask.send(1).unwrap();
        task.abort();
        assert_eq!(timeout(Duration::from_secs(10), ended.recv()).await, Ok(None), "it is gone, wherever it was");
    }
}
