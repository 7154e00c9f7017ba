//! What a process asks of the kernel about itself: many descriptors, no core dumps, no new privileges, no secret where its
//! starter left it.
//!
//! Must never fail a start: each is a wish, and what was refused is told.

use std::ffi::CStr;
use std::fs;

use nix::libc;
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use zeroize::Zeroize as _;

/// What [`harden`] could not get.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot {what}: {errno}")]
pub struct Refused {
    /// The wish.
    pub what: &'static str,
    /// The kernel's answer.
    pub errno: nix::errno::Errno,
}

/// Keeps key material out of core files and other processes' sight, and gives up the way to new privileges.
///
/// To be called first in `main`, before any secret is read.
pub fn harden() -> Vec<Refused> {
    let wishes: [(&'static str, nix::Result<()>); 3] = [
        ("forbid core dumps", setrlimit(Resource::RLIMIT_CORE, 0, 0)),
        ("hide this process's memory from its user's other processes", prctl::set_dumpable(false)),
        ("give up new privileges", prctl::set_no_new_privs()),
    ];
    wishes.into_iter().filter_map(|(what, result)| result.err().map(|errno| Refused { what, errno })).collect()
}

/// Wipes the values of these variables where they came in, so that neither `/proc/PID/environ` nor a child shows them; they read
/// as empty from now on. To be called once they were read, while this process has one thread.
///
/// Returns whether it could.
#[expect(unsafe_code, reason = "the block that execve(2) filled has no other handle")]
pub fn forget_variables(names: &[&CStr]) -> bool {
    // Another thread could be reading them.
    if fs::read_dir("/proc/self/task").map_or(true, |threads| threads.count() != 1) {
        return false;
    }
    for name in names {
        // SAFETY: getenv(3) takes a string that ends with NUL, which a `CStr` does, and no other thread runs that could
        // change the environment meanwhile (just counted).
        let value = unsafe { libc::getenv(name.as_ptr()) };
        if value.is_null() {
            continue;
        }
        // SAFETY: what getenv(3) returned is a string that ends with NUL, in memory of this process that may be written: the
        // block of execve(2), or a copy that setenv(3) made. No reference to it is held: std copies what it reads, and no
        // other thread runs. The NUL itself is not touched.
        unsafe { std::slice::from_raw_parts_mut(value.cast::<u8>(), libc::strlen(value)).zeroize() };
    }
    true
}

/// Raises the limit of open descriptors to the hard limit and returns it.
///
/// # Errors
/// [`Refused`] when the kernel does; the limit is as before then.
pub fn raise_open_files() -> Result<u64, Refused> {
    let refused = |errno| Refused { what: "raise the limit of open files", errno };
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(refused)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map_err(refused)?;
    }
    Ok(hard)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hardened_process_leaves_no_core_and_gains_no_privilege() {
        assert_eq!(harden(), []);
        assert_eq!(getrlimit(Resource::RLIMIT_CORE), Ok((0, 0)));
        assert_eq!(prctl::get_dumpable(), Ok(false));
        assert_eq!(prctl::get_no_new_privs(), Ok(true));
    }

    #[test]
    fn variables_are_left_alone_where_another_thread_may_read_them() {
        // The test harness has a thread for itself and one for each test.
        assert!(!forget_variables(&[c"PATH"]));
        assert!(std::env::var_os("PATH").is_some_and(|path| !path.is_empty()));
    }

    #[test]
    fn the_limit_of_open_files_is_raised_to_the_hard_limit() {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, 256.min(hard), hard).unwrap();
        let raised = raise_open_files().unwrap();
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE), Ok((raised, raised)));
        assert_eq!(raised, hard);
    }
}
