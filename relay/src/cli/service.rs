//! `service …`: what is served, as typed.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use culvert_model::name::ServiceName;
use culvert_ops::exit::Quit;

use super::Ask;
use crate::command::Command;

/// `service …`.
#[derive(Debug, Subcommand)]
pub(crate) enum ServiceVerb {
    /// List services, and who defines them: the connectors that declare them, or this relay
    #[command(visible_alias = "ls")]
    List(Ask),
    /// Show a service, its definition at this relay, and the connectors that serve it
    #[command(alias = "describe")]
    Show {
        /// Its name
        name: String,
        #[command(flatten)]
        ask: Ask,
    },
    /// Manage a service here: a tunnel's connectors serve it within the origins that they allow, or it is behind a peer
    ///
    /// Connectors are told at once; what they do not allow is refused with its reason in `service show`. A connector that
    /// declares the name itself serves its own. Behind a peer the relay itself sends to the origin, which has an address in the
    /// peer's allowed IPs, or a name if the peer has a resolver; the name is the peer's alone then. Set again, a service is
    /// replaced as a whole.
    #[command(group = clap::ArgGroup::new("owner").required(true).multiple(false))]
    Set {
        /// Its name
        name: ServiceName,
        /// The tunnel whose connectors serve it, by name or id
        #[arg(long, value_name = "TUNNEL", group = "owner")]
        tunnel: Option<String>,
        /// The peer that it is behind, by name or id
        #[arg(long, value_name = "PEER", group = "owner")]
        peer: Option<String>,
        /// The origin as the connectors reach it: http://, https://, h2c:// or tcp:// and HOST:PORT, or unix:/PATH
        #[arg(long, value_name = "URL", value_parser = origin)]
        origin: String,
        /// The Host that the origin sees: origin, preserve, or this text [default: origin]
        #[arg(long, value_name = "HOST", value_parser = host)]
        host: Option<String>,
        /// GET this path to see whether the origin is up [default: a TCP connection is enough]
        #[arg(long, value_name = "PATH", value_parser = path)]
        health_path: Option<String>,
        /// Authorities that verify an https:// origin behind a peer (PEM) [default: the system's]
        #[arg(long, value_name = "FILE", conflicts_with = "tunnel")]
        ca: Option<PathBuf>,
        #[command(flatten)]
        ask: Ask,
    },
    /// Forget a service that is managed here, or that no connector serves any more
    #[command(visible_alias = "rm", alias = "remove")]
    Delete {
        /// Its name
        name: String,
        #[command(flatten)]
        ask: Ask,
    },
}

impl ServiceVerb {
    /// # Errors
    /// A file that it names cannot be read.
    pub(super) fn into_command(self) -> Result<(Command, Ask), Quit> {
        Ok(match self {
            Self::List(ask) => (Command::ServiceList, ask),
            Self::Show { name, ask } => (Command::ServiceShow { service: name }, ask),
            Self::Set { name, tunnel, peer, origin, host, health_path, ca, ask } => {
                let ca = ca.as_deref().map(authorities).transpose()?;
                (Command::ServiceSet { service: name, tunnel, peer, origin, host, health_path, ca }, ask)
            }
            Self::Delete { name, ask } => (Command::ServiceDelete { service: name }, ask),
        })
    }
}

/// Whether it is one is the relay's to say.
fn authorities(path: &Path) -> Result<String, Quit> {
    std::fs::read_to_string(path)
        .map_err(|error| Quit::failed(format!("the authorities' file {} cannot be read: {error}", path.display())))
}

/// What cannot be an origin is told before any connector is asked; whether it is one of theirs, only they know.
fn origin(text: &str) -> Result<String, String> {
    let expected = || "http://, https://, h2c:// or tcp:// and HOST:PORT, or unix:/PATH, is expected".to_owned();
    if let Some(path) = text.strip_prefix("unix:") {
        return if path.starts_with('/') { Ok(text.to_owned()) } else { Err(expected()) };
    }
    let (scheme, rest) = text.split_once("://").ok_or_else(expected)?;
    let scheme = scheme.to_ascii_lowercase();
    if !["http", "https", "h2c", "tcp"].contains(&scheme.as_str()) {
        return Err(expected());
    }
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    if authority.contains('@') {
        return Err("an origin's URL holds no user and no password".to_owned());
    }
    if authority.contains(['/', '?', '#']) {
        return Err("requests keep their own path, so an origin ends after its port".to_owned());
    }
    let parsed = authority.parse::<http::uri::Authority>().map_err(|_| expected())?;
    if parsed.host().is_empty() || parsed.port_u16() == Some(0) {
        return Err(expected());
    }
    if scheme == "tcp" && parsed.port_u16().is_none() {
        return Err("a tcp:// origin needs its port, as in tcp://db.internal:5432".to_owned());
    }
    Ok(text.to_owned())
}

fn host(text: &str) -> Result<String, String> {
    let is_host = text.parse::<http::uri::Authority>().is_ok_and(|host| !text.contains('@') && !host.host().is_empty());
    if is_host { Ok(text.to_owned()) } else { Err("origin, preserve or a host name is expected".to_owned()) }
}

fn path(text: &str) -> Result<String, String> {
    let fits = text.starts_with('/') && text.parse::<http::uri::PathAndQuery>().is_ok();
    if fits { Ok(text.to_owned()) } else { Err("a path that starts with / is expected".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_no_origin_is_told_at_once() {
        for fine in [
            "http://orders.internal:8080",
            "HTTPS://orders.internal/",
            "h2c://10.0.0.1:50051",
            "http://[fd00::1]:80",
            "tcp://db.internal:5432",
            "unix:/run/app.sock",
        ] {
            assert_eq!(origin(fine).as_deref(), Ok(fine));
        }
        for bad in [
            "orders:8080",
            "ftp://a:1",
            "http://",
            "http://:80",
            "http://u:p@a:1",
            "http://u@a:1",
            "http://a:1/api",
            "http://a:0",
            "http://a b",
            "tcp://db",
            "unix:app.sock",
        ] {
            assert!(origin(bad).is_err(), "{bad}");
        }
        assert!(
            host("preserve").is_ok() && host("a.example:80").is_ok() && host("a b").is_err() && host("u@a").is_err()
        );
        assert!(path("/healthz?deep=1").is_ok() && path("healthz").is_err() && path("/a b").is_err());
    }
}
