//! What a process asks of the kernel about itself: many descriptors, no core dumps, no new privileges.
//!
//! Must never fail a start: each is a wish, and what was refused is told.

use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

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
    fn the_limit_of_open_files_is_raised_to_the_hard_limit() {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, 256.min(hard), hard).unwrap();
        let raised = raise_open_files().unwrap();
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE), Ok((raised, raised)));
        assert_eq!(raised, hard);
    }
}
