//! The command line: what users type, and what `--help` says of it.
//!
//! Must never do anything but read: [`RelayVerb::into_command`] names what to do, others do it. What does not work yet is not
//! here, so that it is not in `--help` either.

mod backup;
mod gateway;
mod peer;
mod service;

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::styling::Styles;
use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use culvert_model::name::{Grant, Label, ServiceName};
use culvert_model::token::Endpoint;
use culvert_model::units::{parse_duration, parse_optional_duration};
use culvert_ops::exit::Quit;
use ipnet::IpNet;

use crate::command::{Command, TokenTerms};
pub(crate) use backup::{BackupArgs, RestoreArgs};
use gateway::GatewayVerb;
use peer::PeerVerb;
use service::ServiceVerb;

/// How long the relay's key before the newest may be answered.
const SHORTEST_GRACE: Duration = Duration::from_secs(1);
const LONGEST_GRACE: Duration = Duration::from_secs(365 * 86_400);

/// The relay beside an API gateway: connectors dial it over WireGuard, gateways call it over HTTP
///
/// Start with `culvert-relay dev`, which needs no set-up.
#[derive(Debug, Parser)]
#[command(name = "culvert-relay", version, max_term_width = 100, styles = Styles::plain())]
#[command(arg_required_else_help = true, disable_help_subcommand = true, infer_long_args = false)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

/// Everything the relay's binary does.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Run the relay
    Run(Box<RunArgs>),
    /// Try everything on this machine: relay and connector, real WireGuard over loopback, nothing kept
    Dev(DevArgs),
    #[command(flatten)]
    Relay(RelayVerb),
    /// Write the relay's keys and registry into one encrypted file, also while it runs
    Backup(BackupArgs),
    /// Put a backup into an empty state directory: the relay is itself again, and its connectors come back
    Restore(RestoreArgs),
    /// Print a new private key, as `wg genkey` does
    Genkey,
    /// Read a private key from stdin and print its public key, as `wg pubkey` does
    Pubkey,
    /// Print a new pre-shared key, as `wg genpsk` does
    Genpsk,
    /// Say whether the running relay, or one of its services, is ready: status 0 or 1
    Ready(ReadyArgs),
    /// Make the running relay read its configuration again
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

/// What a relay is asked to do, or its registry where none runs.
#[derive(Debug, Subcommand)]
pub(crate) enum RelayVerb {
    /// Define tunnels: groups of connectors and the services they may serve
    #[command(subcommand)]
    Tunnel(TunnelVerb),
    /// Make and revoke the tokens that let connectors join
    #[command(subcommand)]
    Token(TokenVerb),
    /// See connectors, take them out of service, revoke their keys
    #[command(subcommand)]
    Connector(ConnectorVerb),
    /// See services and whether they are up, and manage those that connectors allow
    #[command(subcommand)]
    Service(ServiceVerb),
    /// Define who may call, and what
    #[command(subcommand)]
    Gateway(GatewayVerb),
    /// Reach networks that have a WireGuard of their own and no connector
    #[command(subcommand)]
    Peer(PeerVerb),
    /// The relay's own key
    #[command(subcommand)]
    Key(KeyVerb),
    /// Show who changed what and when, and who was refused
    Audit {
        /// How far back
        #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = parse_duration)]
        since: Duration,
        #[command(flatten)]
        ask: Ask,
    },
    /// Say how the running relay is doing
    Status(Ask),
}

/// Where the relay's settings and state are.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Place {
    /// Configuration file [default: /etc/culvert/relay.toml, else ~/.config/culvert/relay.toml]
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// State directory [default: /var/lib/culvert-relay, else ~/.local/state/culvert/relay]
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
}

/// A question to the relay of one place.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Ask {
    /// Where it is.
    #[command(flatten)]
    pub(crate) place: Place,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// `run`: every flag as typed; none = not given (environment, file and default follow).
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct RunArgs {
    /// Where it is.
    #[command(flatten)]
    pub(crate) place: Place,
    #[arg(help = "UDP address toward connectors [default: 0.0.0.0:51820 and [::]:51820]", long, value_name = "ADDR")]
    pub(crate) wireguard_listen: Vec<String>,
    /// Where connectors dial this relay; tokens name it
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) endpoint: Vec<String>,
    /// HTTP address toward gateways [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR|unix:PATH")]
    pub(crate) http_listen: Vec<String>,
    /// Address of /livez, /readyz and /metrics [default: 127.0.0.1:9480]
    #[arg(long, value_name = "ADDR")]
    pub(crate) admin_listen: Option<String>,
    /// Database [default: sqlite:registry.db, in the state directory]
    #[arg(long, value_name = "URL")]
    pub(crate) registry: Option<String>,
    /// Longest time to finish what is in flight when told to stop [default: 25s]
    #[arg(long, value_name = "TIME")]
    pub(crate) drain_timeout: Option<String>,
    /// Time that long-lived streams get of it [default: 5s]
    #[arg(long, value_name = "TIME")]
    pub(crate) drain_streams: Option<String>,
    /// Time between "not ready" and closing the listeners [default: 0s]
    #[arg(long, value_name = "TIME")]
    pub(crate) drain_delay: Option<String>,
}

/// `check`: as `run` would have it.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct CheckArgs {
    /// The flags of `run`.
    #[command(flatten)]
    pub(crate) run: RunArgs,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// `dev`.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct DevArgs {
    /// A service and its origin, as in orders=http://127.0.0.1:3000; without one, a built-in example
    #[arg(long, value_name = "NAME=URL")]
    pub(crate) service: Vec<String>,
}

/// `ready`.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct ReadyArgs {
    /// Which relay, and how to answer.
    #[command(flatten)]
    pub(crate) ask: Ask,
    /// Ask whether this service has a connector that is up
    #[arg(long, value_name = "NAME")]
    pub(crate) service: Option<ServiceName>,
}

/// What a new token allows.
#[derive(Debug, Clone, Args)]
pub(crate) struct TermsArgs {
    /// How many connectors may join: a number or "unlimited"
    #[arg(long, value_name = "N", default_value = "1", value_parser = uses)]
    pub(crate) uses: Uses,
    /// How long it may be used: 30m, 24h, 7d or "never"
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = expires)]
    pub(crate) expires: Expires,
    /// Network it may be used from, as in 192.0.2.0/24 [default: anywhere]
    #[arg(long, value_name = "CIDR", value_parser = network)]
    pub(crate) from: Vec<IpNet>,
    /// Where connectors dial, instead of the configured endpoints
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) endpoint: Vec<Endpoint>,
}

/// How often a token can be used; none = unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Uses(Option<u32>);

/// How long a token can be used; none = for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Expires(Option<Duration>);

/// `tunnel …`.
#[derive(Debug, Subcommand)]
pub(crate) enum TunnelVerb {
    /// Define a tunnel and print the token that lets a connector join it
    Create {
        /// Its name: 1 to 63 of a-z, 0-9 and -
        name: Label,
        /// A service it may serve, or a pattern such as "billing-*"
        #[arg(long = "service", value_name = "NAME-OR-GLOB", required = true)]
        services: Vec<Grant>,
        /// Share its services with other tunnels that say so too
        #[arg(long)]
        shared: bool,
        #[command(flatten)]
        terms: TermsArgs,
        #[command(flatten)]
        ask: Ask,
    },
    /// Change what a tunnel may serve
    #[command(group = clap::ArgGroup::new("change").required(true).multiple(true))]
    Set {
        /// Its name or id
        name: String,
        /// One more service or pattern
        #[arg(long, value_name = "NAME-OR-GLOB", group = "change")]
        add_service: Vec<Grant>,
        /// One service or pattern less
        #[arg(long, value_name = "NAME-OR-GLOB", group = "change")]
        remove_service: Vec<Grant>,
        #[command(flatten)]
        ask: Ask,
    },
    /// List tunnels
    #[command(visible_alias = "ls")]
    List(Ask),
    /// Show a tunnel with its connectors and tokens
    #[command(alias = "describe")]
    Show {
        /// Its name or id
        name: String,
        #[command(flatten)]
        ask: Ask,
    },
    /// Delete a tunnel: its connectors and tokens are revoked at once
    #[command(visible_alias = "rm", alias = "remove")]
    Delete {
        /// Its name or id
        name: String,
        #[command(flatten)]
        ask: Ask,
    },
}

/// `token …`.
#[derive(Debug, Subcommand)]
pub(crate) enum TokenVerb {
    /// Print a new token for a tunnel
    Create {
        /// The tunnel's name or id
        tunnel: String,
        /// What its connectors may serve, a name or a pattern [default: all that the tunnel may]
        #[arg(long = "service", value_name = "NAME-OR-GLOB")]
        services: Vec<Grant>,
        #[command(flatten)]
        terms: TermsArgs,
        #[command(flatten)]
        ask: Ask,
    },
    /// List tokens; those that ended are shown for 30 days
    #[command(visible_alias = "ls")]
    List {
        /// Of this tunnel only
        tunnel: Option<String>,
        #[command(flatten)]
        ask: Ask,
    },
    /// Revoke a token; connectors that joined with it stay
    #[command(aliases = ["rm", "remove", "delete"])]
    Revoke {
        /// Its id, as `token list` shows it
        id: String,
        #[command(flatten)]
        ask: Ask,
    },
}

/// `connector …`.
#[derive(Debug, Subcommand)]
pub(crate) enum ConnectorVerb {
    /// List connectors
    #[command(visible_alias = "ls")]
    List {
        /// Of this tunnel only
        tunnel: Option<String>,
        #[command(flatten)]
        ask: Ask,
    },
    /// Show a connector
    #[command(alias = "describe")]
    Show {
        /// Its id, or its name where only one has it
        id: String,
        #[command(flatten)]
        ask: Ask,
    },
    /// Send it no new requests; those in flight go on
    Drain {
        /// Its id, or its name where only one has it
        id: String,
        #[command(flatten)]
        ask: Ask,
    },
    /// Put it back into service
    Undrain {
        /// Its id, or its name where only one has it
        id: String,
        #[command(flatten)]
        ask: Ask,
    },
    /// Revoke its key for good: its session ends at once
    #[command(aliases = ["rm", "remove", "delete"])]
    Revoke {
        /// Its id, or its name where only one has it
        id: String,
        #[command(flatten)]
        ask: Ask,
    },
}

/// `key …`.
#[derive(Debug, Subcommand)]
pub(crate) enum KeyVerb {
    /// Print the relay's public key; in a rotation also until when the one before it is answered, and who still uses it
    Show(Ask),
    /// Make a new key; connectors learn it through their tunnels while the one before is answered too
    Rotate {
        /// How long the key before is answered: tokens and connectors that know no other work so long
        #[arg(long, value_name = "TIME", default_value = "24h", value_parser = grace)]
        grace: Duration,
        /// Rotate even when connectors have not used the newest key since the last rotation: they are locked out
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        ask: Ask,
    },
}

impl RelayVerb {
    /// The command, and which relay is to carry it out.
    ///
    /// # Errors
    /// A file that it names cannot be read.
    pub(crate) fn into_command(self) -> Result<(Command, Ask), Quit> {
        Ok(match self {
            Self::Tunnel(verb) => verb.into_command(),
            Self::Token(verb) => verb.into_command(),
            Self::Connector(verb) => verb.into_command(),
            Self::Service(verb) => return verb.into_command(),
            Self::Peer(verb) => return verb.into_command(),
            Self::Gateway(verb) => verb.into_command(),
            Self::Key(KeyVerb::Show(ask)) => (Command::KeyShow, ask),
            Self::Key(KeyVerb::Rotate { grace, force, ask }) => {
                (Command::KeyRotate { grace_seconds: grace.as_secs(), force }, ask)
            }
            Self::Audit { since, ask } => (Command::Audit { since_seconds: since.as_secs() }, ask),
            Self::Status(ask) => (Command::Status, ask),
        })
    }
}

impl TunnelVerb {
    fn into_command(self) -> (Command, Ask) {
        match self {
            Self::Create { name, services, shared, terms, ask } => {
                (Command::TunnelCreate { name, services, shared, token: terms.into() }, ask)
            }
            Self::Set { name, add_service, remove_service, ask } => {
                (Command::TunnelSet { tunnel: name, add: add_service, remove: remove_service }, ask)
            }
            Self::List(ask) => (Command::TunnelList, ask),
            Self::Show { name, ask } => (Command::TunnelShow { tunnel: name }, ask),
            Self::Delete { name, ask } => (Command::TunnelDelete { tunnel: name }, ask),
        }
    }
}

impl TokenVerb {
    fn into_command(self) -> (Command, Ask) {
        match self {
            Self::Create { tunnel, services, terms, ask } => {
                let token = TokenTerms { services, ..terms.into() };
                (Command::TokenCreate { tunnel, token }, ask)
            }
            Self::List { tunnel, ask } => (Command::TokenList { tunnel }, ask),
            Self::Revoke { id, ask } => (Command::TokenRevoke { token: id }, ask),
        }
    }
}

impl ConnectorVerb {
    fn into_command(self) -> (Command, Ask) {
        match self {
            Self::List { tunnel, ask } => (Command::ConnectorList { tunnel }, ask),
            Self::Show { id, ask } => (Command::ConnectorShow { connector: id }, ask),
            Self::Drain { id, ask } => (Command::ConnectorDrain { connector: id }, ask),
            Self::Undrain { id, ask } => (Command::ConnectorUndrain { connector: id }, ask),
            Self::Revoke { id, ask } => (Command::ConnectorRevoke { connector: id }, ask),
        }
    }
}

impl From<TermsArgs> for TokenTerms {
    fn from(terms: TermsArgs) -> Self {
        Self {
            uses: terms.uses.0,
            expires_seconds: terms.expires.0.map(|lasting| lasting.as_secs().max(1)),
            services: Vec::new(),
            from: terms.from,
            endpoints: terms.endpoint.iter().map(ToString::to_string).collect(),
        }
    }
}

fn grace(text: &str) -> Result<Duration, String> {
    let grace = parse_duration(text).map_err(|error| error.to_string())?;
    if grace < SHORTEST_GRACE {
        return Err("connectors learn the new key under the old one: give them a second at least".to_owned());
    }
    if grace > LONGEST_GRACE {
        return Err("a year at most".to_owned());
    }
    Ok(grace)
}

fn uses(text: &str) -> Result<Uses, String> {
    match text.parse::<u32>() {
        Ok(0) => Err("a token needs one use at least".to_owned()),
        Ok(count) => Ok(Uses(Some(count))),
        Err(_) if text == "unlimited" => Ok(Uses(None)),
        Err(_) => Err("a whole number or \"unlimited\" is expected".to_owned()),
    }
}

fn expires(text: &str) -> Result<Expires, String> {
    let lasting = parse_optional_duration(text).map_err(|error| error.to_string())?;
    match lasting {
        None if text.trim() != "never" => {
            Err("a token that lasts for no time is of no use: did you mean never?".to_owned())
        }
        lasting => Ok(Expires(lasting)),
    }
}

fn network(text: &str) -> Result<IpNet, String> {
    let one = || text.parse().map(|address: IpAddr| IpNet::from(address));
    let net: IpNet = text.parse().or_else(|_| one()).map_err(|_| "a network or an address is expected".to_owned())?;
    Ok(net.trunc())
}

fn shell(text: &str) -> Result<Shell, String> {
    match text {
        "bash" => Ok(Shell::Bash),
        "zsh" => Ok(Shell::Zsh),
        "fish" => Ok(Shell::Fish),
        _ => Err("bash, zsh or fish is expected".to_owned()),
    }
}

#[cfg(test)]
mod tests;
