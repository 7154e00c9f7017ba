//! The runtime of a process: one thread, because datagrams, streams and exchanges never change threads (design.md §6).
//!
//! Must never decide anything about what runs on it.

use std::io;

use tokio::runtime::{Builder, Runtime};

/// Sockets that become ready together are handled so many at a time. What a few of them want sent leaves before the
/// rest is looked at, so the other end of the tunnel works meanwhile: with dozens at a time both ends take turns.
const READY_AT_ONCE: usize = 8;

/// Makes the runtime of the process.
///
/// # Errors
/// The system gives no descriptors for it.
pub fn runtime() -> io::Result<Runtime> {
    Builder::new_current_thread().max_io_events_per_tick(READY_AT_ONCE).enable_all().build()
}

/// The runtime's clock, which tests can hold still.
pub fn now() -> std::time::Instant {
    tokio::time::Instant::now().into_std()
}
