//! File descriptors and the runtime that tells when they are ready.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Registers a descriptor with the current runtime.
///
/// # Errors
/// As the system says.
///
/// # Panics
/// Outside a runtime with I/O.
#[expect(unsafe_code, reason = "tokio cannot know how long a descriptor stays the same one")]
pub(crate) fn watch(descriptor: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is an open descriptor, always the same one, and closed by its drop only; `AsyncFd` owns it and
    // deregisters it before that.
    Ok(unsafe { AsyncFd::register_with_interest(descriptor, interest) }?)
}
