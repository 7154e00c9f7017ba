//! Connections to one origin: a pool for each thread of the process that asks for one.
//!
//! A connection belongs to the thread that opened it: that one is woken by it and drives what it shares. Must never hand a
//! connection to another thread.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use culvert_hop::pool::{Opener, Pool, PoolSettings};
use culvert_ops::cores::here;
use culvert_ops::runtime::now;

/// Threads with a pool of their own; those beyond share them.
const SEATS: usize = 16;
/// No exchange yet.
const NEVER: u64 = u64::MAX;

/// All of them. Clones share them.
pub struct Pools<O: Opener>(Arc<Inner<O>>);

struct Inner<O: Opener> {
    opener: O,
    settings: PoolSettings,
    seats: [OnceLock<Seat<O>>; SEATS],
    started: Instant,
}

struct Seat<O: Opener> {
    pool: Pool<O>,
    /// When an exchange over it last ended well, in milliseconds since `started`.
    last_used: AtomicU64,
}

impl<O: Opener> Clone for Pools<O> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<O: Opener + Clone> Pools<O> {
    /// No pool yet.
    pub fn new(opener: O, settings: PoolSettings) -> Self {
        Self(Arc::new(Inner { opener, settings, seats: std::array::from_fn(|_| OnceLock::new()), started: now() }))
    }

    /// How they reach the origin.
    pub fn opener(&self) -> &O {
        &self.0.opener
    }

    /// This thread's.
    pub fn here(&self) -> &Pool<O> {
        &self.seat().pool
    }

    /// Closes connections that have been idle too long, or that the origin closed. Call it every few seconds.
    pub fn sweep(&self, now: tokio::time::Instant) {
        self.there().for_each(|seat| seat.pool.sweep(now));
    }

    /// Closes every idle connection, and those in use when their exchange is over.
    pub fn close(&self) {
        self.there().for_each(|seat| seat.pool.close());
    }

    /// An exchange of this thread ended well.
    pub fn note_used(&self, now: Instant) {
        let since = u64::try_from(now.saturating_duration_since(self.0.started).as_millis()).unwrap_or(u64::MAX);
        self.seat().last_used.store(since, Ordering::Relaxed);
    }

    /// How long no exchange of this thread has ended well.
    pub fn unused_for(&self, now: Instant) -> Duration {
        match self.seat().last_used.load(Ordering::Relaxed) {
            NEVER => Duration::MAX,
            last => now.saturating_duration_since(self.0.started + Duration::from_millis(last)),
        }
    }

    /// As if the last exchange was long ago.
    pub fn rest(&self) {
        self.there().for_each(|seat| seat.last_used.store(NEVER, Ordering::Relaxed));
    }

    fn seat(&self) -> &Seat<O> {
        let Inner { opener, settings, seats, .. } = &*self.0;
        seats[usize::from(here()) % SEATS].get_or_init(|| Seat {
            pool: Pool::new(opener.clone(), settings.clone()),
            last_used: AtomicU64::new(NEVER),
        })
    }

    fn there(&self) -> impl Iterator<Item = &Seat<O>> {
        self.0.seats.iter().filter_map(OnceLock::get)
    }
}

#[cfg(test)]
mod tests {
    use culvert_hop::body::Body;
    use culvert_hop::exchange::{Answer, Deadlines};
    use culvert_hop::fault::Fault;
    use culvert_hop::message::Request;
    use culvert_hop::pool::Lost;
    use culvert_model::reason::Reason;
    use culvert_ops::cores::Cores;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

    use super::*;

    #[derive(Clone)]
    struct Origin;

    impl Opener for Origin {
        type Io = DuplexStream;

        async fn open(&self) -> Result<DuplexStream, Fault> {
            let (near, mut far) = duplex(4096);
            tokio::spawn(async move {
                let mut request = [0; 4096];
                while far.read(&mut request).await.is_ok_and(|length| length > 0) {
                    if far.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.is_err() {
                        return;
                    }
                }
            });
            Ok(near)
        }

        fn lost(&self, _: Lost<'_>) -> Fault {
            Fault::new(Reason::OriginClosed)
        }
    }

    async fn ask(pools: Pools<Origin>) -> usize {
        let request = http::Request::builder().uri("/").header("host", "a").body(Body::empty()).unwrap();
        let answer = pools.here().send(Request::from(request), &Deadlines::default()).await.unwrap();
        let Answer::Response(response) = answer else { panic!("switched") };
        response.into_body().read(1).await.unwrap();
        pools.note_used(now());
        pools.here().idle()
    }

    #[tokio::test]
    async fn each_thread_keeps_its_own_connections_and_a_sweep_or_close_reaches_all() {
        let cores = Cores::start("test", 2).unwrap();
        let pools = Pools::new(Origin, PoolSettings { max_head: 8192, ..PoolSettings::default() });
        for runtime in cores.runtimes() {
            for _ in 0..2 {
                assert_eq!(runtime.spawn(ask(pools.clone())).await.unwrap(), 1);
            }
        }
        let idle = || pools.there().map(|seat| seat.pool.idle()).sum::<usize>();
        assert_eq!(idle(), 2);
        pools.sweep(tokio::time::Instant::now());
        assert_eq!(idle(), 2);
        pools.close();
        assert_eq!(idle(), 0);
    }

    #[tokio::test]
    async fn what_one_thread_used_lately_says_nothing_of_anothers_connections() {
        let cores = Cores::start("test", 2).unwrap();
        let pools = Pools::new(Origin, PoolSettings::default());
        pools.note_used(now());
        let other = pools.clone();
        let there = cores.runtimes()[1].spawn(async move { other.unused_for(now()) }).await.unwrap();
        assert!(pools.unused_for(now()) < Duration::from_secs(5) && there == Duration::MAX);
        pools.rest();
        assert_eq!(pools.unused_for(now()), Duration::MAX);
    }
}
