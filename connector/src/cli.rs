//! The command line: what users type, and what `--help` says of it.
//!
//! Must never do anything but read. What does not work yet is not here.

use std::path::PathBuf;

use clap::builder::styling::Styles;
use clap::{Args, Parser, Subcommand, ValueEnum as _};
use clap_complete::Shell;
use culvert_model::name::ServiceName;

use crate::config::Given;

/// The connector in a private network: dials a relay over WireGuard and carries its requests to private origins
///
/// It joins once with a token (CULVERT_TOKEN, --token-file, or the systemd credential `token`), and needs none after.
#[derive(Debug, Parser)]
#[command(name = "culvert-connector", version, max_term_width = 100, styles = Styles::plain())]
#[command(arg_required_else_help = true, disable_help_subcommand = true, infer_long_args = false)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// Everything this binary does.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Run the connector
    Run(Box<RunArgs>),
    /// This connector's own key
    #[command(subcommand)]
    Key(KeyVerb),
    /// Say how the running connector is doing; status 1 when it is not ready
    Status(Ask),
    /// Say whether the running connector, or one of its services, is ready: status 0 or 1
    Ready(ReadyArgs),
    /// Make the running connector read its configuration again
    Reload(Place),
    /// Check the configuration and print every value and where it comes from
    Check(Box<CheckArgs>),
    /// Print a shell's completion script
    Completion {
        /// Which shell: bash, zsh or fish
        #[arg(value_parser = shell, value_name = "SHELL")]
        shell: Shell,
    },
}

/// `key`.
#[derive(Debug, Subcommand)]
pub enum KeyVerb {
    /// Print the public key
    #[command(aliases = ["describe"])]
    Show(Ask),
    /// Change to another key without losing a request; prepares it for the next run if none runs
    Rotate(Ask),
}

/// Which connector is meant.
#[derive(Debug, Clone, Default, Args)]
pub struct Place {
    /// State directory [default: /var/lib/culvert-connector, else ~/.local/state/culvert/connector]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
}

/// A question to the connector of one place.
#[derive(Debug, Clone, Default, Args)]
pub struct Ask {
    /// Where it is.
    #[command(flatten)]
    pub place: Place,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `ready`.
#[derive(Debug, Clone, Default, Args)]
pub struct ReadyArgs {
    /// Which connector, and how to answer.
    #[command(flatten)]
    pub ask: Ask,
    /// Ask whether this service's origin is up and a relay connected
    #[arg(long, value_name = "NAME")]
    pub service: Option<ServiceName>,
}

/// `run`: every flag as typed; none = not given (environment, file and default follow).
#[derive(Debug, Clone, Default, Args)]
pub struct RunArgs {
    /// Where it is.
    #[command(flatten)]
    pub place: Place,
    /// Configuration file [default: /etc/culvert/connector.toml, else ~/.config/culvert/connector.toml]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// File with the token to join with, or - for stdin
    #[arg(long, value_name = "FILE|-")]
    pub token_file: Option<PathBuf>,
    /// A service and its origin, as in orders=http://127.0.0.1:3000
    #[arg(long, value_name = "NAME=URL")]
    pub service: Vec<String>,
    /// Address of /livez, /readyz and /metrics [default: 127.0.0.1:9481]
    #[arg(long, value_name = "ADDR")]
    pub admin_listen: Option<String>,
    /// Keep no state: for containers, with a token that may be used many times
    #[arg(long)]
    pub ephemeral: bool,
    /// Name in the relay's listings [default: the host's name]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Connections to each relay, each with a thread of its own [default: a quarter of the processors, 1 to 4]
    #[arg(long, value_name = "N")]
    pub lanes: Option<String>,
    /// Longest time to finish what is in flight when told to stop [default: 25s]
    #[arg(long, value_name = "TIME")]
    pub drain_timeout: Option<String>,
}

/// `check`: as `run` would have it.
#[derive(Debug, Clone, Default, Args)]
pub struct CheckArgs {
    /// The flags of `run`.
    #[command(flatten)]
    pub run: RunArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

impl RunArgs {
    /// What it says about settings.
    pub fn given(&self) -> Given {
        Given {
            config: self.config.clone(),
            services: self.service.clone(),
            name: self.name.clone(),
            admin_listen: self.admin_listen.clone(),
            ephemeral: self.ephemeral,
            lanes: self.lanes.clone(),
            drain_timeout: self.drain_timeout.clone(),
        }
    }
}

fn shell(text: &str) -> Result<Shell, String> {
    let known = [Shell::Bash, Shell::Zsh, Shell::Fish];
    let shell = Shell::from_str(text, true).ok().filter(|shell| known.contains(shell));
    shell.ok_or_else(|| "bash, zsh or fish is expected".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_is_later_is_not_offered() {
        let help = Cli::command().render_long_help().to_string();
        assert!(!help.contains("doctor"));
    }
}
