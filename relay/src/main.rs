//! `culvert-relay`: the process beside the gateway.

mod access_log;
mod app;
mod backup;
mod behind;
mod bind;
mod cli;
mod command;
mod config;
mod control;
mod cores;
mod dev;
mod door;
mod enrol;
mod exchange;
mod far_end;
mod front;
mod gateways;
mod identity;
mod issuer;
mod lane;
mod metrics;
mod paths;
mod peers;
mod pick;
mod record;
mod refusals;
mod registry;
mod relays;
mod rotation;
mod router;
mod send;
mod sessions;
mod upstream;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};
use culvert_ops::exit::{self, Exit, OrQuit as _, Quit};
use culvert_ops::process;
use culvert_ops::program::Program;
use culvert_ops::runtime;
use culvert_ops::secret;
use culvert_plane::tun;

use cli::{Cli, Verb};
use command::{ask, keys};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // The keeper of stock peers' network namespace is this program again: neither for users nor for `--help`.
    if std::env::args_os().skip(1).eq([tun::CHILD_ARGUMENT]) {
        return tun::child_main();
    }
    exit::finish(Program::Relay.binary(), start())
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
    runtime.block_on(dispatch(cli.verb))
}

async fn dispatch(verb: Verb) -> Result<Exit, Quit> {
    match verb {
        Verb::Run(args) => app::run(*args).await,
        Verb::Dev(args) => dev::dev(args).await,
        Verb::Relay(verb) => {
            let (command, how) = verb.into_command()?;
            ask::ask(command, how).await
        }
        Verb::Backup(args) => backup::backup(args).await,
        Verb::Restore(args) => backup::restore(args).await,
        Verb::Genkey => keys::genkey(),
        Verb::Pubkey => keys::pubkey(),
        Verb::Genpsk => keys::genpsk(),
        Verb::Ready(args) => ask::ready(args).await,
        Verb::Reload(place) => ask::reload(place).await,
        Verb::Check(args) => ask::check(&args),
        Verb::Completion { shell } => completion(shell),
    }
}

fn completion(shell: clap_complete::Shell) -> Result<Exit, Quit> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), Program::Relay.binary(), &mut script);
    exit::print(String::from_utf8_lossy(&script).trim_end())?;
    Ok(Exit::Ok)
}
