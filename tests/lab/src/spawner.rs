//! One thread that starts every process of this test run.
//!
//! A child's parent-death signal fires when the *thread* that started it ends, so that thread must live as long as the
//! test process; and a descriptor handed to one child must not leak into another that starts at the same moment.

use std::process::{Child, Command};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, OnceLock, PoisonError};

use anyhow::{Context as _, Result};

type Job = (Command, Sender<std::io::Result<Child>>);

/// Starts `command`; the child is killed when this test process ends, however it ends.
///
/// # Errors
/// The program could not be started.
pub fn spawn(command: Command) -> Result<Child> {
    let shown = format!("{command:?}");
    let (answer, child) = channel();
    jobs().send((command, answer)).context("the spawner thread is gone")?;
    child.recv().context("the spawner thread is gone")?.with_context(|| format!("could not start {shown}"))
}

/// A command whose process dies with the test: `setpriv` sets the signal and then becomes the program.
pub fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.arg("--pdeathsig").arg("KILL").arg("--").arg(program);
    command
}

fn jobs() -> Sender<Job> {
    static JOBS: OnceLock<Mutex<Sender<Job>>> = OnceLock::new();
    let jobs = JOBS.get_or_init(|| {
        let (sender, receiver) = channel::<Job>();
        std::thread::spawn(move || {
            for (mut command, answer) in receiver {
                let _ = answer.send(command.spawn());
            }
        });
        Mutex::new(sender)
    });
    jobs.lock().unwrap_or_else(PoisonError::into_inner).clone()
}
