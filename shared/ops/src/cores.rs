//! The threads of a process that does its work on several: the one that started them, and one more for each further seat.
//!
//! Each has a `current_thread` runtime, so that datagrams, streams and exchanges do not change threads (design.md §6). Must
//! never lose a thread in silence: half a process is worse than none.

use std::cell::Cell;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot};
use tracing::error;

use crate::runtime;

/// What still runs on a thread when it is ended gets so long.
const GONE_WITHIN: Duration = Duration::from_millis(200);

thread_local! {
    static HERE: Cell<u8> = const { Cell::new(0) };
}

/// The number of this thread among those that [`Cores`] started; 0 elsewhere, the first one's.
pub fn here() -> u8 {
    HERE.get()
}

/// All threads but the first, which is the caller's. They end when this is dropped.
pub struct Cores {
    first: Handle,
    others: Vec<Core>,
    failed: Arc<Notify>,
}

struct Core {
    runtime: Handle,
    end: Option<oneshot::Sender<End>>,
    thread: Option<JoinHandle<()>>,
}

/// How a thread ends.
enum End {
    #[cfg(test)]
    Panic,
}

impl Cores {
    /// Starts what `count` threads are missing to the one that calls, on whose runtime it is. The others are called `what` and
    /// their number.
    ///
    /// # Errors
    /// The system gives no further thread, or no descriptors for it.
    ///
    /// # Panics
    /// Outside a runtime.
    pub fn start(what: &'static str, count: u8) -> io::Result<Self> {
        let failed = Arc::new(Notify::new());
        let others =
            (1..count).map(|number| Core::start(what, number, Arc::clone(&failed))).collect::<io::Result<_>>()?;
        Ok(Self { first: Handle::current(), others, failed })
    }

    /// The runtimes, in the order of their numbers.
    pub fn runtimes(&self) -> Vec<Handle> {
        std::iter::once(&self.first).chain(self.others.iter().map(|core| &core.runtime)).cloned().collect()
    }

    /// The runtime of one of them.
    pub fn runtime(&self, number: u8) -> Option<&Handle> {
        match usize::from(number).checked_sub(1) {
            Some(place) => self.others.get(place).map(|core| &core.runtime),
            None => Some(&self.first),
        }
    }

    /// How many there are.
    pub fn count(&self) -> u8 {
        u8::try_from(1 + self.others.len()).unwrap_or(u8::MAX)
    }

    /// Waits until a thread is lost: what lived on it is, and the process should start anew. Cancel safe.
    pub async fn failed(&self) {
        self.failed.notified().await;
    }
}

impl Core {
    fn start(what: &'static str, number: u8, failed: Arc<Notify>) -> io::Result<Self> {
        let (end, ended) = oneshot::channel();
        let (tell, told) = mpsc::sync_channel(1);
        let thread = thread::Builder::new().name(format!("{what}-{number}")).spawn(move || {
            HERE.set(number);
            // Whatever it breaks goes with the thread.
            if catch_unwind(AssertUnwindSafe(|| live(&tell, ended))).is_err() {
                error!(thread = format_args!("{what}-{number}"), "a thread panicked");
                failed.notify_one();
            }
        })?;
        let runtime = told.recv().unwrap_or_else(|_| Err(io::Error::other("its thread ended")))?;
        Ok(Self { runtime, end: Some(end), thread: Some(thread) })
    }
}

fn live(tell: &mpsc::SyncSender<io::Result<Handle>>, ended: oneshot::Receiver<End>) {
    let runtime = match runtime::runtime() {
        Ok(runtime) => runtime,
        Err(error) => return drop(tell.send(Err(error))),
    };
    let _ = tell.send(Ok(runtime.handle().clone()));
    let end = runtime.block_on(ended);
    #[cfg(test)]
    if let Ok(End::Panic) = end {
        panic!("as the test wants it");
    }
    drop(end);
    runtime.shutdown_timeout(GONE_WITHIN);
}

impl Drop for Cores {
    fn drop(&mut self) {
        self.others.iter_mut().for_each(|core| drop(core.end.take()));
        for thread in self.others.iter_mut().filter_map(|core| core.thread.take()) {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_seat_has_a_thread_that_knows_its_number() {
        let cores = Cores::start("shard", 3).unwrap();
        let mut numbers = Vec::new();
        for runtime in cores.runtimes() {
            numbers.push(runtime.spawn(async { (here(), thread::current().id()) }).await.unwrap());
        }
        assert_eq!(numbers.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [0, 1, 2]);
        assert!(numbers[0].1 != numbers[1].1 && numbers[1].1 != numbers[2].1);
    }

    #[tokio::test]
    async fn a_thread_that_panics_is_told_of_and_one_that_ends_is_not() {
        let mut cores = Cores::start("shard", 2).unwrap();
        let end = cores.others[0].end.take().unwrap();
        assert!(end.send(End::Panic).is_ok());
        cores.failed().await;
        let failed = Arc::clone(&cores.failed);
        drop(cores);
        let whole = Cores::start("shard", 2).unwrap();
        let silent = Arc::clone(&whole.failed);
        drop(whole);
        assert!(!is_told(&silent) && !is_told(&failed));
    }

    fn is_told(notify: &Notify) -> bool {
        let notified = std::pin::pin!(notify.notified());
        notified.poll(&mut std::task::Context::from_waker(std::task::Waker::noop())).is_ready()
    }
}
