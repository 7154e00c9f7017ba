//! Where callers' connections are served: each on the thread of one shard, the one with the fewest.
//!
//! One thread accepts and hands on, in place of a listening socket for each: the kernel's hash would put four connections of
//! a gateway on one of two threads once in eight times, sockets of the service manager and unix sockets are the same as
//! any, and a drain has one backlog to empty. Must never leave a connection counted that is gone.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::runtime::Handle;

/// All threads.
#[derive(Debug)]
pub(crate) struct Seats {
    seats: Vec<Seat>,
    turn: AtomicUsize,
}

#[derive(Debug)]
struct Seat {
    runtime: Handle,
    taken: AtomicUsize,
}

/// One connection's place, until it is dropped.
#[derive(Debug)]
pub(super) struct Seated {
    seats: Arc<Seats>,
    at: usize,
}

impl Seats {
    /// On these runtimes, in the order of their shards.
    pub(crate) fn new(runtimes: Vec<Handle>) -> Self {
        let seats = runtimes.into_iter().map(|runtime| Seat { runtime, taken: AtomicUsize::new(0) }).collect();
        Self { seats, turn: AtomicUsize::new(0) }
    }

    /// Whether there is more than one thread.
    pub(super) fn are_several(&self) -> bool {
        self.seats.len() > 1
    }

    /// Connections by shard.
    pub(crate) fn taken(&self) -> Vec<usize> {
        self.seats.iter().map(|seat| seat.taken.load(Ordering::Relaxed)).collect()
    }

    /// Takes a place on the thread with the fewest connections; equals take turns.
    pub(super) fn take(self: &Arc<Self>) -> Seated {
        let (count, turn) = (self.seats.len().max(1), self.turn.fetch_add(1, Ordering::Relaxed));
        let order = |at: usize| (at + count - turn % count) % count;
        let least = self.seats.iter().enumerate();
        let least = least.min_by_key(|(at, seat)| (seat.taken.load(Ordering::Relaxed), order(*at)));
        let at = least.map_or(0, |(at, _)| at);
        if let Some(seat) = self.seats.get(at) {
            seat.taken.fetch_add(1, Ordering::Relaxed);
        }
        Seated { seats: Arc::clone(self), at }
    }
}

impl Seated {
    /// Takes a place on another shard's thread in exchange.
    pub(super) fn move_to(&mut self, shard: u8) {
        let to = usize::from(shard);
        let Some(seat) = self.seats.seats.get(to) else { return };
        seat.taken.fetch_add(1, Ordering::Relaxed);
        if let Some(old) = self.seats.seats.get(self.at) {
            old.taken.fetch_sub(1, Ordering::Relaxed);
        }
        self.at = to;
    }

    /// The runtime to serve it on.
    pub(super) fn runtime(&self) -> Handle {
        self.seats.seats.get(self.at).map_or_else(Handle::current, |seat| seat.runtime.clone())
    }
}

impl Drop for Seated {
    fn drop(&mut self) {
        if let Some(seat) = self.seats.seats.get(self.at) {
            seat.taken.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn connections_go_where_the_fewest_are() {
        let seats = Arc::new(Seats::new(vec![Handle::current(), Handle::current(), Handle::current()]));
        let mut seated: Vec<_> = (0..6).map(|_| seats.take()).collect();
        assert_eq!(seats.taken(), [2, 2, 2]);
        seated.retain(|seated| seated.at != 1);
        assert_eq!(seats.taken(), [2, 0, 2]);
        assert_eq!([seats.take(), seats.take()].map(|seated| seated.at), [1, 1]);
        assert_eq!(seats.taken(), [2, 0, 2]);
        drop(seated);
        let mut alone: Vec<_> = (0..3).map(|_| seats.take().at).collect();
        alone.sort_unstable();
        assert_eq!(alone, [0, 1, 2], "one after the other they go to all");
    }
}
