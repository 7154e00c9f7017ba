//! Why the registry did not do what was asked: a rule, or the database.
//!
//! Must never name a secret: rules are told to whoever asks, and stand in the audit trail.

use culvert_model::id::{ConnectorId, GatewayId, StockPeerId, TokenId, TunnelId};
use culvert_model::name::{Grant, Label, ServiceName};
use culvert_ops::exit::Quit;
use ipnet::IpNet;

use super::managed::MANAGED_AT_MOST;
use super::peers::PEERS_AT_MOST;
use super::rows::Certificate;

/// Why the registry did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RegistryError {
    /// The request breaks a rule: change the request.
    #[error(transparent)]
    Rule(#[from] Rule),
    /// The database was written by a newer program: upgrade this one.
    #[error("the registry {path} has schema {found}, this program knows up to {known}")]
    Newer {
        /// Which database.
        path: String,
        /// Its schema version.
        found: u32,
        /// The newest this program knows.
        known: u32,
    },
    /// The database cannot be read: restore it.
    #[error("the registry {path} is damaged: {detail}")]
    Corrupt {
        /// Which database.
        path: String,
        /// What the engine says.
        detail: String,
    },
    /// Another process holds it: try again.
    #[error("the registry {path} is locked by another process")]
    Locked {
        /// Which database.
        path: String,
    },
    /// No room: nothing was changed.
    #[error("no room to write the registry {path}: nothing was changed")]
    Full {
        /// Which database.
        path: String,
    },
    /// Others can read or write it: close that first.
    #[error("the registry {path} has mode {mode:04o}: others can read it")]
    Exposed {
        /// Which database.
        path: String,
        /// Its permission bits.
        mode: u32,
    },
    /// It is there and does not let this relay in: change the configuration, there or here.
    #[error("the registry {path} refuses: {detail}")]
    Refused {
        /// Which database.
        path: String,
        /// What the engine says.
        detail: String,
    },
    /// It cannot be reached: the relay serves on with what it knows.
    #[error("the registry {path} cannot be used: {detail}")]
    Away {
        /// Which database.
        path: String,
        /// What the engine says.
        detail: String,
    },
}

impl RegistryError {
    /// Whether it may be well again by itself.
    pub(crate) fn may_pass(&self) -> bool {
        matches!(self, Self::Away { .. } | Self::Locked { .. } | Self::Full { .. })
    }
}

impl From<RegistryError> for Quit {
    fn from(error: RegistryError) -> Self {
        let text = error.to_string();
        match error {
            RegistryError::Rule(Rule::Owned { .. }) => {
                Self::failed(text).hint("tunnels that are both created with --shared may serve a name together")
            }
            RegistryError::Rule(Rule::OwnedByPeer { service, .. }) => {
                Self::failed(text).hint(format!("`service delete {service}` frees the name"))
            }
            RegistryError::Rule(Rule::PeerOverlapsRelay { own: IpNet::V4(_), .. }) => {
                Self::failed(text).hint("`inner_ipv4` in [wireguard] gives the relay another address there")
            }
            RegistryError::Rule(Rule::PeerOverlapsRelay { own: IpNet::V6(_), .. }) => {
                Self::failed(text).hint("name the networks behind the peer, without that one")
            }
            RegistryError::Rule(_) => Self::failed(text),
            RegistryError::Newer { .. } => Self::config(text).hint("use the program that wrote it, or a newer one"),
            RegistryError::Corrupt { .. } => {
                Self::config(text).hint("restore it from a backup; nothing was changed in it")
            }
            RegistryError::Locked { .. } => Self::failed(text).hint("try again when that process is done"),
            RegistryError::Full { .. } => Self::failed(text).hint("make room and try again"),
            RegistryError::Exposed { path, .. } => Self::config(text).hint(format!("chmod 600 {path}")),
            RegistryError::Refused { .. } => Self::config(text).hint("look at registry.url and registry.password"),
            RegistryError::Away { .. } => Self::failed(text),
        }
    }
}

impl Rule {
    /// Whether it guards what belongs to somebody, and not only names that have to be right.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::Owned { .. }
                | Self::OwnedByPeer { .. }
                | Self::MayNotServe(_)
                | Self::CertificateTaken { .. }
                | Self::PeerKeyTaken { .. }
                | Self::PeerOverlap { .. }
                | Self::PeerOverlapsRelay { .. }
        )
    }
}

/// A rule that a request breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Rule {
    /// The name is taken.
    #[error("a tunnel named {0} exists")]
    TunnelExists(Label),
    /// Another tunnel owns the service.
    #[error("service {service} belongs to tunnel {owner}")]
    Owned {
        /// Which service.
        service: ServiceName,
        /// Whose it is.
        owner: Label,
    },
    /// A stock peer owns the service.
    #[error("service {service} belongs to peer {owner}")]
    OwnedByPeer {
        /// Which service.
        service: ServiceName,
        /// Whose it is.
        owner: Label,
    },
    /// The grant to remove is not there.
    #[error("tunnel {tunnel} has no grant {grant}")]
    NotGranted {
        /// Which tunnel.
        tunnel: Label,
        /// What was to be removed.
        grant: Grant,
    },
    /// A tunnel without a grant can serve nothing.
    #[error("tunnel {0} would be left without a service")]
    NoGrantLeft(Label),
    /// No live tunnel has this id.
    #[error("no tunnel {0}")]
    NoSuchTunnel(TunnelId),
    /// The tunnel is not granted the service, or another owns it; in words.
    #[error("{0}")]
    MayNotServe(String),
    /// One message must hold all that a tunnel's connectors are told.
    #[error("tunnel {0} has no room for another managed service: {MANAGED_AT_MOST} at most, and 48 KiB together")]
    NoRoomToManage(Label),
    /// No token has this id.
    #[error("no token {0}")]
    NoSuchToken(TokenId),
    /// No connector has this id.
    #[error("no connector {0}")]
    NoSuchConnector(ConnectorId),
    /// Another connector, or a token, has this key.
    #[error("that key is taken")]
    KeyTaken,
    /// No relay of this registry has this tag.
    #[error("no relay {0}")]
    NoSuchRelay(String),
    /// Nobody announced it.
    #[error("no service {0}")]
    NoSuchService(ServiceName),
    /// The name is taken.
    #[error("a gateway named {0} exists")]
    GatewayExists(Label),
    /// No live gateway has this id.
    #[error("no gateway {0}")]
    NoSuchGateway(GatewayId),
    /// One certificate names one gateway.
    #[error("the certificate {certificate} is gateway {owner}'s")]
    CertificateTaken {
        /// Which.
        certificate: Certificate,
        /// Whose it is.
        owner: Label,
    },
    /// The grant to remove is not there.
    #[error("gateway {gateway} has no grant {grant}")]
    NotGrantedToGateway {
        /// Which gateway.
        gateway: Label,
        /// What was to be removed.
        grant: Grant,
    },
    /// A gateway without a grant can call nothing.
    #[error("gateway {0} would be left without a service to call")]
    NothingToCall(Label),
    /// The name is taken.
    #[error("a peer named {0} exists")]
    PeerExists(Label),
    /// No live stock peer has this id.
    #[error("no peer {0}")]
    NoSuchPeer(StockPeerId),
    /// The key is somebody else's.
    #[error("that public key is {owner}")]
    PeerKeyTaken {
        /// Whose it is, as `peer branch's`.
        owner: String,
    },
    /// Two peers would have one address.
    #[error("allowed IPs {net} overlap {theirs} of peer {other}")]
    PeerOverlap {
        /// What was asked for.
        net: IpNet,
        /// What there is.
        theirs: IpNet,
        /// Whose that is.
        other: Label,
    },
    /// A peer would have addresses of the relay or of connectors.
    #[error("allowed IPs {net} overlap {own}, which the relay uses inside the tunnels")]
    PeerOverlapsRelay {
        /// What was asked for.
        net: IpNet,
        /// What is not to be had.
        own: IpNet,
    },
    /// A bound.
    #[error("there are {PEERS_AT_MOST} peers already, which is as many as there may be")]
    NoRoomForPeers,
    /// A bound.
    #[error("peer {0} has no room for another service: {MANAGED_AT_MOST} at most")]
    NoRoomForPeerServices(Label),
}
