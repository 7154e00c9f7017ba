//! The wall clock of the host whose turn it is.
//!
//! `boringtun/mock-instant` mocks the monotonic clock alone; initiations carry the wall clock, which `std` reads through
//! libc. This file answers that call for threads that run a simulation, so that clocks can go wrong in a test.

use std::cell::Cell;
use std::time::Duration;

thread_local! {
    static NOW: Cell<Option<Duration>> = const { Cell::new(None) };
}

/// Sets what `SystemTime::now()` says on this thread, since 1970.
pub(crate) fn set(now: Duration) {
    NOW.set(Some(now));
}

/// Stands before libc's function of that name in every binary that links this crate.
///
/// # Safety
/// As clock_gettime(2): `into` is null or points to a `timespec` that may be written.
#[unsafe(no_mangle)]
#[expect(unsafe_code, reason = "the one way to a wall clock per simulated host")]
#[expect(unreachable_pub, reason = "the linker reaches it")]
pub unsafe extern "C" fn clock_gettime(clock: libc::clockid_t, into: *mut libc::timespec) -> libc::c_int {
    // `try_with` and no destructor: also right while a thread starts or ends.
    let simulated = if clock == libc::CLOCK_REALTIME { NOW.try_with(Cell::get).ok().flatten() } else { None };
    match simulated {
        Some(now) if !into.is_null() => {
            let time = libc::timespec { tv_sec: now.as_secs() as libc::time_t, tv_nsec: now.subsec_nanos().into() };
            // SAFETY: not null, and the caller promises that it points to a timespec that may be written.
            unsafe { into.write(time) };
            0
        }
        // SAFETY: the system call has the contract of this function.
        _ => unsafe { libc::syscall(libc::SYS_clock_gettime, clock, into) as libc::c_int },
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn the_wall_clock_is_simulated_on_this_thread_alone() {
        let said = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let real = said();
        set(Duration::new(77, 5));
        assert_eq!(said(), Duration::new(77, 5));
        assert!(std::thread::spawn(said).join().unwrap() >= real);
    }
}
