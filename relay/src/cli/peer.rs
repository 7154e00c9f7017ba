//! `peer …`: stock WireGuard peers, as typed.

use std::io::Read as _;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use culvert_model::key::{Psk, PublicKey};
use culvert_model::name::Label;
use culvert_model::token::Endpoint;
use culvert_ops::exit::Quit;
use culvert_ops::load::ProcessEnvironment;
use culvert_ops::secret::{Secret, SecretSource};
use ipnet::IpNet;
use zeroize::Zeroizing;

use super::Ask;
use crate::command::{Command, GivenPsk, PeerConfigWanted, PeerWanted};

/// A key file holds one line.
const KEY_FILE_BYTES: u64 = 4_096;

/// `peer …`.
#[derive(Debug, Subcommand)]
pub(crate) enum PeerVerb {
    /// Add a network that is reached through somebody else's WireGuard: a router, a firewall, a kernel's wg0
    ///
    /// The other side needs no connector. It dials this relay's UDP port, or is dialled where --endpoint says; `service set
    /// NAME --peer PEER --origin URL` then leads to an origin behind it. `peer config` prints the file for the other side.
    Add(Box<AddArgs>),
    /// List peers
    #[command(visible_alias = "ls")]
    List(Ask),
    /// Show a peer and the services behind it
    #[command(alias = "describe")]
    Show {
        /// Its name or id
        name: String,
        #[command(flatten)]
        ask: Ask,
    },
    /// Print the other side's configuration, for wg-quick; nothing in it is secret unless a key is generated
    Config {
        /// Its name or id
        name: String,
        /// Make a new key pair for the peer: the public key replaces the one it has, the private key stands in what is
        /// printed and nowhere else
        #[arg(long)]
        generate_key: bool,
        /// Make a new pre-shared key: it is kept sealed, and stands in what is printed this once
        #[arg(long)]
        generate_psk: bool,
        /// Where the other side dials this relay [default: the first configured endpoint]
        #[arg(long, value_name = "HOST:PORT")]
        endpoint: Option<Endpoint>,
        #[command(flatten)]
        ask: Ask,
    },
    /// Delete a peer: its requests end at once, and the services behind it are forgotten
    #[command(visible_alias = "rm", alias = "remove")]
    Delete {
        /// Its name or id
        name: String,
        #[command(flatten)]
        ask: Ask,
    },
}

/// `peer add`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("key").required(true).multiple(false))]
pub(crate) struct AddArgs {
    /// Its name: 1 to 63 of a-z, 0-9 and -
    name: Label,
    /// The other side's public key, as `wg pubkey` prints it
    #[arg(long, value_name = "KEY", group = "key")]
    public_key: Option<PublicKey>,
    /// Make the other side's key pair here, and print its whole configuration once, the private key in it
    #[arg(long, group = "key")]
    generate_key: bool,
    /// The networks behind it, as in 10.20.0.0/16,fd00:20::/48; no other peer's may overlap them
    #[arg(long, value_name = "CIDR,...", value_delimiter = ',', required = true, value_parser = network)]
    allowed_ips: Vec<IpNet>,
    /// Where to dial it; a name is looked up at every attempt [default: it dials]
    #[arg(long, value_name = "HOST:PORT")]
    endpoint: Option<Endpoint>,
    /// A file with a pre-shared key, as `wg genpsk` prints it; - is stdin
    #[arg(long, value_name = "FILE")]
    preshared_key: Option<PathBuf>,
    /// Break silence from this side after so many seconds, 1 to 65535 [default: off, the other side does]
    #[arg(long, value_name = "SECONDS", value_parser = keepalive)]
    persistent_keepalive: Option<NonZeroU16>,
    /// A resolver inside its network, for origins that are named and not numbered
    #[arg(long, value_name = "ADDRESS")]
    dns: Option<IpAddr>,
    #[command(flatten)]
    ask: Ask,
}

impl PeerVerb {
    /// # Errors
    /// The pre-shared key's file cannot be read, or holds none.
    pub(super) fn into_command(self) -> Result<(Command, Ask), Quit> {
        Ok(match self {
            Self::Add(args) => {
                let psk = args.preshared_key.as_deref().map(psk).transpose()?;
                let peer = PeerWanted {
                    name: args.name,
                    public_key: args.public_key,
                    allowed_ips: args.allowed_ips,
                    endpoint: args.endpoint.map(|endpoint| endpoint.to_string()),
                    psk,
                    keepalive: args.persistent_keepalive,
                    dns: args.dns,
                };
                (Command::PeerAdd { peer }, args.ask)
            }
            Self::List(ask) => (Command::PeerList, ask),
            Self::Show { name, ask } => (Command::PeerShow { peer: name }, ask),
            Self::Config { name, generate_key, generate_psk, endpoint, ask } => {
                let endpoint = endpoint.map(|endpoint| endpoint.to_string());
                let wanted = PeerConfigWanted { generate_key, generate_psk, endpoint };
                (Command::PeerConfig { peer: name, wanted }, ask)
            }
            Self::Delete { name, ask } => (Command::PeerDelete { peer: name }, ask),
        })
    }
}

fn psk(path: &Path) -> Result<GivenPsk, Quit> {
    let (name, read) = if path == Path::new("-") {
        let mut text = Zeroizing::new(String::with_capacity(128));
        let read = std::io::stdin().take(KEY_FILE_BYTES).read_to_string(&mut text);
        read.map_err(|error| Quit::failed(format!("the pre-shared key cannot be read from stdin: {error}")))?;
        ("stdin".to_owned(), Secret::new(text.as_str()))
    } else {
        if path.to_str().is_some_and(|text| text.parse::<Psk>().is_ok()) {
            let words = "--preshared-key names a file; every user of this host can read a key on the command line";
            return Err(Quit::usage(words).hint("hand it over in a file of mode 0600, or on stdin: --preshared-key -"));
        }
        let read = SecretSource::File(path.to_path_buf()).read(&ProcessEnvironment);
        (path.display().to_string(), read.map_err(|error| Quit::failed(error.to_string()))?)
    };
    let psk: Psk = read.expose().trim().parse().map_err(|error| {
        Quit::failed(format!("{name} holds no pre-shared key: {error}")).hint("`culvert-relay genpsk` makes one")
    })?;
    Ok(GivenPsk(psk))
}

/// Host bits are kept: whoever set them is told what becomes of them.
fn network(text: &str) -> Result<IpNet, String> {
    let one = || text.parse().map(|address: IpAddr| IpNet::from(address));
    text.trim().parse().or_else(|_| one()).map_err(|_| "a network is expected, as 10.20.0.0/16 or fd00:20::/48".into())
}

fn keepalive(text: &str) -> Result<NonZeroU16, String> {
    text.parse().map_err(|_| "1 to 65535 seconds are expected; leave it out for none".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_and_addresses_are_read_and_keep_what_was_typed() {
        for (text, read) in [
            ("10.20.0.0/16", "10.20.0.0/16"),
            ("10.20.0.1/16", "10.20.0.1/16"),
            ("10.20.0.5", "10.20.0.5/32"),
            ("fd00:20::/48", "fd00:20::/48"),
        ] {
            assert_eq!(network(text), Ok(read.parse().unwrap()));
        }
        for bad in ["", "10.20.0.0/33", "10.20/16", "branch", "fd00::/129"] {
            assert!(network(bad).is_err(), "{bad}");
        }
        assert!(keepalive("25").is_ok());
        for bad in ["0", "70000", "-1", "off", ""] {
            assert!(keepalive(bad).unwrap_err().contains("1 to 65535"), "{bad}");
        }
    }
}
