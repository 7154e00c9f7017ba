//! `culvert-connector`: the process inside the private network.

use std::process::ExitCode;

use clap::Parser as _;
use culvert_connector::cli::Cli;
use culvert_connector::command;
use culvert_ops::exit::{self, Exit, OrQuit as _, Quit};
use culvert_ops::{Program, process, runtime, secret};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    exit::finish(Program::Connector.binary(), start())
}

/// Reads the command line; a secret on it is refused before anything repeats it.
fn start() -> Result<Exit, Quit> {
    // Commands handle keys too; `run` says what the kernel refused.
    drop(process::harden());
    secret::refuse_on_command_line(std::env::args_os().skip(1))?;
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version go to stdout and are fine; a reader that went away is no failure.
            let _ = error.print();
            return Err(Quit::silent(if error.exit_code() == 0 { Exit::Ok } else { Exit::Usage }));
        }
    };
    let runtime = runtime::runtime().or_failed("cannot start")?;
    let outcome = runtime.block_on(command::dispatch(cli.verb));
    // A name that is still being looked up must not hold the process.
    runtime.shutdown_background();
    outcome
}
