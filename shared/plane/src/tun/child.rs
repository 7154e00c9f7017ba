//! The keeper as a child process: for who has no privilege, a user namespace gives one over its own network only. A
//! process with threads may not enter one, so our own binary is started again for it.
//!
//! The child must never live longer than its parent, nor show itself to other processes of its user: who may look into it
//! could enter its namespace.

use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitCode, Stdio};

use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::Pid;

use super::config::{TunConfig, Way};
use super::keeper;

/// What process lists show.
const NAME: &str = "culvert-relay";
/// The exit status of every wrong command line.
const WRONG_USAGE: u8 = 2;

/// Starts it; standard input is its end of the socket.
pub(super) fn start(config: &TunConfig, socket: OwnedFd) -> io::Result<Child> {
    Command::new(&config.program)
        .arg0(NAME)
        .args(&config.arguments)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(socket))
        .stdout(Stdio::null())
        .spawn()
}

/// What the relay's binary does when its only argument is [`super::CHILD_ARGUMENT`]: keeps the namespace for the relay that
/// started it, and ends with it. To be called first in `main`, before any thread and before memory is hidden (a hidden
/// process may not map its own user); standard input is the relay's socket.
pub fn child_main() -> ExitCode {
    let parent = nix::unistd::getppid();
    // What asks the relay to end comes here too, from a terminal or systemd; it drains, and needs sockets for that long.
    let _ = SigSet::all().thread_block();
    let _ = prctl::set_name(c"tun-namespace");
    let stdin = io::stdin();
    match keeper::keep(stdin.as_fd(), Way::Child, || seclude(parent)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => {
            let _ = io::stderr().write_all(b"the relay starts this itself, for stock WireGuard peers: use `run`\n");
            ExitCode::from(WRONG_USAGE)
        }
    }
}

fn seclude(parent: Pid) {
    // After the namespaces: a change of credentials takes the signal back. The socket's end is noticed anyway.
    let _ = prctl::set_pdeathsig(Signal::SIGKILL);
    let _ = prctl::set_no_new_privs();
    let _ = prctl::set_dumpable(false);
    let orphan = nix::unistd::getppid() != parent;
    if orphan {
        std::process::exit(0);
    }
}
