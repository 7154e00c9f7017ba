//! What the command line can ask of a relay, running or not.
//!
//! A [`Request`] goes as JSON through `POST /api/v1/command` of `admin.sock`, or is carried out by the command line itself
//! when no relay runs; either way [`carry_out`] does it. Must never put a secret into anything but the answer that asks
//! for it, or the request that hands one over.

pub(crate) mod ask;
mod audit;
mod connector;
mod gateway;
mod key;
pub(crate) mod keys;
pub(crate) mod live;
mod peer;
mod peer_config;
mod peer_service;
pub(crate) mod reply;
mod service;
mod status;
mod table;
#[cfg(test)]
mod tests;
mod token;
mod tunnel;
mod view;

use std::time::{Duration, SystemTime};

use culvert_model::id::{ConnectorId, GatewayId, StockPeerId, TokenId, TunnelId};
use culvert_model::key::PublicKey;
use culvert_model::name::{Grant, Label, ServiceName};
use culvert_model::token::Endpoint;
use culvert_ops::exit::{Exit, Quit};
use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Serialize};

use crate::config::WireGuard;
use crate::identity::Identity;
use crate::registry::{Actor, Certificate, Registry, RegistryError};
pub(crate) use live::{
    Live, LiveConnector, LiveLane, LivePeer, LiveService, LiveServiceOfConnector, LiveShard, LiveStatus, Offline,
};
pub(crate) use peer::{GivenPsk, PeerConfigWanted, PeerWanted};
pub(crate) use reply::Reply;
use view::View;

/// Where `admin.sock` takes a [`Request`] (POST) and answers 200 with a [`Reply`], done or not.
pub(crate) const PATH: &str = "/api/v1/command";
/// Where `admin.sock` takes a POST to reload, answered likewise.
pub(crate) const RELOAD_PATH: &str = "/api/v1/reload";

/// A command, and who asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Request {
    /// For the audit trail: `uid 0`. It does not travel: the kernel tells who asks, not the caller.
    #[serde(skip)]
    pub(crate) actor: String,
    /// What to do.
    pub(crate) command: Command,
}

/// What to do. Tunnels, tokens and connectors are named by id, or by name where that is unique.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub(crate) enum Command {
    TunnelCreate {
        name: Label,
        services: Vec<Grant>,
        shared: bool,
        token: TokenTerms,
    },
    TunnelSet {
        tunnel: String,
        add: Vec<Grant>,
        remove: Vec<Grant>,
    },
    TunnelList,
    TunnelShow {
        tunnel: String,
    },
    TunnelDelete {
        tunnel: String,
    },
    TokenCreate {
        tunnel: String,
        token: TokenTerms,
    },
    TokenList {
        tunnel: Option<String>,
    },
    TokenRevoke {
        token: String,
    },
    ConnectorList {
        tunnel: Option<String>,
    },
    ConnectorShow {
        connector: String,
    },
    ConnectorDrain {
        connector: String,
    },
    ConnectorUndrain {
        connector: String,
    },
    ConnectorRevoke {
        connector: String,
    },
    ServiceList,
    ServiceShow {
        service: String,
    },
    ServiceSet {
        service: ServiceName,
        #[serde(default)]
        tunnel: Option<String>,
        #[serde(default)]
        peer: Option<String>,
        origin: String,
        host: Option<String>,
        health_path: Option<String>,
        #[serde(default)]
        ca: Option<String>,
    },
    ServiceDelete {
        service: String,
    },
    GatewayCreate {
        name: Label,
        services: Vec<Grant>,
        certificate: Option<Certificate>,
    },
    GatewaySet {
        gateway: String,
        change: GatewaySet,
    },
    GatewayRotate {
        gateway: String,
        grace_seconds: u64,
    },
    GatewayList,
    GatewayRevoke {
        gateway: String,
    },
    PeerAdd {
        peer: PeerWanted,
    },
    PeerList,
    PeerShow {
        peer: String,
    },
    PeerConfig {
        peer: String,
        wanted: PeerConfigWanted,
    },
    PeerDelete {
        peer: String,
    },
    KeyShow,
    KeyRotate {
        grace_seconds: u64,
        force: bool,
    },
    Audit {
        since_seconds: u64,
    },
    NoteBackup,
    Status,
}

/// What is to be different about a gateway.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GatewaySet {
    /// These services and no others; empty = as before.
    pub(crate) services: Vec<Grant>,
    /// These too.
    pub(crate) add: Vec<Grant>,
    /// Not these.
    pub(crate) remove: Vec<Grant>,
    /// Its certificate from now on; none = as before.
    pub(crate) certificate: Option<Certificate>,
    /// It has none any more.
    pub(crate) no_certificate: bool,
}

/// What a new token allows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TokenTerms {
    /// None = unlimited.
    pub(crate) uses: Option<u32>,
    /// None = never.
    pub(crate) expires_seconds: Option<u64>,
    /// What its connectors may serve of what the tunnel may; empty = all of that.
    #[serde(default)]
    pub(crate) services: Vec<Grant>,
    /// Where it may be used from; empty = anywhere.
    #[serde(default)]
    pub(crate) from: Vec<IpNet>,
    /// Where connectors dial, `HOST:PORT`; empty = as the relay is configured.
    pub(crate) endpoints: Vec<String>,
}

/// What a command brought.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// For `--json`.
    pub(crate) json: serde_json::Value,
    /// For stdout otherwise, with its last newline; perhaps secret.
    pub(crate) text: String,
    /// For stderr, one line each.
    pub(crate) notes: Vec<String>,
    /// What a running relay has to apply now.
    pub(crate) changes: Vec<Change>,
}

/// What a running relay has to apply at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// A new bootstrap peer.
    TokenAdded(TokenId),
    /// Its bootstrap peer stays, to say `revoked`.
    TokenRevoked(TokenId),
    /// Its services are gone; its connectors come as [`Change::ConnectorRevoked`] each.
    TunnelDeleted(TunnelId),
    /// A tunnel is there that was not.
    TunnelCreated(TunnelId),
    /// Every live announcement has to be decided anew: an exact grant may take a name from another tunnel's pattern.
    GrantsChanged(TunnelId),
    /// Close with `revoked`, forget the peer.
    ConnectorRevoked(ConnectorId),
    /// Out of service (true) or back.
    ConnectorDrained(ConnectorId, bool),
    /// Live connectors have to be told.
    ServiceSet(ServiceName),
    /// Nobody waits for it any more.
    ServiceDeleted(ServiceName),
    /// Who may call, or what, is different.
    GatewayChanged(GatewayId),
    /// A stock peer is there that was not.
    PeerAdded(StockPeerId),
    /// It has other keys: what runs over it ends.
    PeerChanged(StockPeerId),
    /// What runs over it ends, and the names of its services are free.
    PeerDeleted(StockPeerId),
    /// The relay's own key is another one: connectors have to be told.
    KeyRotated,
}

/// What commands need to know of the relay beside its registry.
pub(crate) struct Facts<'a> {
    /// Its keys.
    pub(crate) identity: &'a Identity,
    /// Where connectors dial, as configured.
    pub(crate) endpoints: Vec<Endpoint>,
    /// The relay's address toward stock peers, and the network that they get theirs from.
    pub(crate) inner_ipv4: Ipv4Net,
    /// The longest packet inside stock peers' tunnels.
    pub(crate) peer_mtu: u16,
}

/// Why a command was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CommandError {
    /// Exit 1.
    #[error("{message}")]
    Failed {
        /// One line.
        message: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// Exit 78.
    #[error("{message}")]
    Config {
        /// One line.
        message: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// The registry did not do it.
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

/// Carries out one command against the registry; what a running relay has to do besides is in [`Outcome::changes`].
///
/// # Errors
/// [`CommandError`]: nothing was changed.
pub(crate) async fn carry_out(
    request: Request,
    registry: &dyn Registry,
    live: &dyn Live,
    facts: &Facts<'_>,
    now: SystemTime,
) -> Result<Outcome, CommandError> {
    let Request { actor, command } = request;
    let view = View::of(registry, live, now).await?;
    let mut result = on(&view, command, Actor(actor), registry, live, facts).await;
    if let (Ok(outcome), Some(why)) = (&mut result, &view.stale) {
        outcome.notes.push(format!("shown is what was known before: {why}"));
    }
    result
}

async fn on(
    view: &View,
    command: Command,
    by: Actor,
    registry: &dyn Registry,
    live: &dyn Live,
    facts: &Facts<'_>,
) -> Result<Outcome, CommandError> {
    match command {
        Command::TunnelCreate { name, services, shared, token } => {
            tunnel::create(tunnel::Wanted { name, services, shared, token }, view, registry, facts, by).await
        }
        Command::TunnelSet { tunnel, add, remove } => tunnel::set(&tunnel, add, remove, view, registry, by).await,
        Command::TunnelList => Ok(tunnel::show_all(view)),
        Command::TunnelShow { tunnel } => tunnel::show(&tunnel, view),
        Command::TunnelDelete { tunnel } => tunnel::delete(&tunnel, view, registry, by).await,
        Command::TokenCreate { tunnel, token } => token::create(&tunnel, &token, view, registry, facts, by).await,
        Command::TokenList { tunnel } => token::show_all(tunnel.as_deref(), view),
        Command::TokenRevoke { token } => token::revoke(&token, view, registry, by).await,
        Command::ConnectorList { tunnel } => connector::show_all(tunnel.as_deref(), view),
        Command::ConnectorShow { connector } => connector::show(&connector, view),
        Command::ConnectorDrain { connector } => connector::drain(&connector, true, view, registry, by).await,
        Command::ConnectorUndrain { connector } => connector::drain(&connector, false, view, registry, by).await,
        Command::ConnectorRevoke { connector } => connector::revoke(&connector, view, registry, by).await,
        Command::ServiceList => Ok(service::show_all(view)),
        Command::ServiceShow { service } => service::show(&service, view),
        Command::ServiceSet { service: name, tunnel, peer, origin, host, health_path, ca } => match (tunnel, peer) {
            (Some(tunnel), None) => {
                service::set(service::Wanted { name, tunnel, origin, host, health_path }, view, registry, by).await
            }
            (None, Some(peer)) => {
                let wanted = peer_service::Wanted { name, peer, origin, host, health_path, ca };
                peer_service::set(wanted, view, registry, by).await
            }
            (None, None) | (Some(_), Some(_)) => {
                Err(CommandError::failed(format!("service {name} needs either a tunnel or a peer")))
            }
        },
        Command::ServiceDelete { service } => service::delete(&service, view, registry, by).await,
        Command::GatewayCreate { name, services, certificate } => {
            gateway::create(name, services, certificate, view, registry, by).await
        }
        Command::GatewaySet { gateway, change } => gateway::set(&gateway, change, view, registry, by).await,
        Command::GatewayRotate { gateway, grace_seconds } => {
            gateway::rotate(&gateway, Duration::from_secs(grace_seconds), view, registry, by).await
        }
        Command::GatewayList => Ok(gateway::show_all(view)),
        Command::GatewayRevoke { gateway } => gateway::revoke(&gateway, view, registry, by).await,
        Command::PeerAdd { peer } => peer::add(peer, view, registry, facts, by).await,
        Command::PeerList => Ok(peer::show_all(view)),
        Command::PeerShow { peer } => peer::show(&peer, view),
        Command::PeerConfig { peer, wanted } => peer::config(&peer, wanted, view, registry, facts, by).await,
        Command::PeerDelete { peer } => peer::delete(&peer, view, registry, by).await,
        Command::KeyShow => Ok(key::show(view, facts)),
        Command::KeyRotate { grace_seconds, force } => {
            key::rotate(Duration::from_secs(grace_seconds), force, view, registry, facts, by).await
        }
        Command::Audit { since_seconds } => audit::show(Duration::from_secs(since_seconds), view, registry).await,
        Command::NoteBackup => audit::note_backup(by, registry, view.now).await,
        Command::Status => status::status(view, live, registry, facts),
    }
}

/// A user of this host, as the audit trail names who asks.
pub(crate) fn uid(uid: u32) -> String {
    format!("uid {uid}")
}

impl Command {
    /// What it is called, as `tunnel create`.
    pub(crate) fn name(&self) -> String {
        let json = serde_json::to_value(self).unwrap_or_default();
        json["command"].as_str().unwrap_or("command").replace('_', " ")
    }
}

impl Outcome {
    /// A listing: an array for machines; for people a table, or words where there is nothing to list.
    fn listing(json: Vec<serde_json::Value>, text: String, when_empty: impl FnOnce() -> String) -> Self {
        let (text, notes) = if json.is_empty() { (String::new(), vec![when_empty()]) } else { (text, Vec::new()) };
        Self { json: json.into(), text, notes, changes: Vec::new() }
    }
}

impl CommandError {
    /// Why the relay would not do it; none where it could not, or was asked wrongly.
    pub(crate) fn refusal(&self) -> Option<String> {
        match self {
            Self::Registry(RegistryError::Rule(rule)) if rule.is_refusal() => Some(rule.to_string()),
            Self::Registry(_) | Self::Failed { .. } | Self::Config { .. } => None,
        }
    }

    fn failed(message: impl Into<String>) -> Self {
        Self::Failed { message: message.into(), hint: None }
    }

    fn config(message: impl Into<String>) -> Self {
        Self::Config { message: message.into(), hint: None }
    }

    fn hint(self, words: impl Into<String>) -> Self {
        let words = Some(words.into());
        match self {
            Self::Failed { message, .. } => Self::Failed { message, hint: words },
            Self::Config { message, .. } => Self::Config { message, hint: words },
            Self::Registry(error) => Self::Registry(error),
        }
    }
}

impl From<CommandError> for Quit {
    fn from(error: CommandError) -> Self {
        let (exit, message, hint) = match error {
            CommandError::Failed { message, hint } => (Exit::Failed, message, hint),
            CommandError::Config { message, hint } => (Exit::Config, message, hint),
            CommandError::Registry(error) => return error.into(),
        };
        Self { exit, message, hint }
    }
}

impl<'a> Facts<'a> {
    /// Of a relay that is set up like this.
    pub(crate) fn new(identity: &'a Identity, wireguard: &WireGuard) -> Self {
        let WireGuard { endpoints, inner_ipv4, peer_mtu, .. } = wireguard.clone();
        Self { identity, endpoints, inner_ipv4, peer_mtu }
    }

    /// Of a relay without an endpoint or a setting of its own.
    #[cfg(test)]
    pub(crate) fn plain(identity: &'a Identity) -> Self {
        let inner_ipv4 = Ipv4Net::new_assert(std::net::Ipv4Addr::new(100, 127, 80, 1), 20);
        Self { identity, endpoints: Vec::new(), inner_ipv4, peer_mtu: 1408 }
    }
}

impl Facts<'_> {
    /// The relay's public key.
    pub(crate) fn public_key(&self) -> PublicKey {
        self.identity.public_key()
    }
}
