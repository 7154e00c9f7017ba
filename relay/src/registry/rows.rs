//! The registry's rows, and what follows from one row alone.
//!
//! Must never hold a secret in clear.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU16;
use std::time::SystemTime;

use culvert_model::address::stock_peer_inner;
use culvert_model::control::ManagedService;
use culvert_model::gateway::SecretVerifier;
use culvert_model::id::{ConnectorId, GatewayId, StockPeerId, TokenId, TunnelId};
use culvert_model::key::PublicKey;
use culvert_model::name::{Grant, Label, ServiceName};
use culvert_model::proof::ProofKey;
use culvert_model::token::Endpoint;
use ipnet::IpNet;

use super::TOMBSTONE;

/// All that a relay serves from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Snapshot {
    /// Live tunnels, by name.
    pub(crate) tunnels: Vec<Tunnel>,
    /// Tokens, newest last; those that ended within the tombstone's time too, also of deleted tunnels.
    pub(crate) tokens: Vec<TokenRow>,
    /// Connectors, oldest first; revoked ones too, also of deleted tunnels.
    pub(crate) connectors: Vec<ConnectorRow>,
    /// Services announced once and not deleted, by name.
    pub(crate) services: Vec<ServiceRow>,
    /// Services that are defined here, by name.
    pub(crate) managed: Vec<ManagedRow>,
    /// Gateways, by name; those that were revoked within the tombstone's time too.
    pub(crate) gateways: Vec<GatewayRow>,
    /// The relays that share this registry, by tag.
    pub(crate) relays: Vec<RelayRow>,
    /// What relays open tokens with that others made.
    pub(crate) token_seals: Vec<TokenSealRow>,
    /// Stock peers, by name; those that were deleted within the tombstone's time too.
    pub(crate) peers: Vec<PeerRow>,
    /// Services behind stock peers, by name.
    pub(crate) peer_services: Vec<PeerServiceRow>,
    /// What relays open stock peers' pre-shared keys with that others sealed.
    pub(crate) peer_seals: Vec<PeerSealRow>,
}

/// A stock WireGuard peer: a network that is reached through somebody else's WireGuard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PeerRow {
    /// Its id.
    pub(crate) id: StockPeerId,
    /// Its name, unique among those that are not deleted.
    pub(crate) name: Label,
    /// Its WireGuard key.
    pub(crate) public_key: PublicKey,
    /// The networks behind it, disjoint, and from other peers' too.
    pub(crate) allowed_ips: Vec<IpNet>,
    /// Its own end of the tunnel in IPv4; none where another peer has all of IPv4.
    pub(crate) inner_ipv4: Option<Ipv4Addr>,
    /// Where it is dialled; none: it dials. Kept as it was written, looked up at every attempt.
    pub(crate) endpoint: Option<Endpoint>,
    /// Its pre-shared key, sealed by the relay that was told it.
    pub(crate) psk: Option<Sealed>,
    /// Seconds after which silence is broken from here.
    pub(crate) keepalive: Option<NonZeroU16>,
    /// The resolver inside its network that names of origins are asked of.
    pub(crate) dns: Option<IpAddr>,
    /// When it was added.
    pub(crate) created: SystemTime,
    /// Where each relay last heard it.
    pub(crate) heard: Vec<Heard>,
    /// Where it was last heard, by whichever relay.
    pub(crate) last_endpoint: Option<SocketAddr>,
    /// Its last handshake that was noted.
    pub(crate) last_handshake: Option<SystemTime>,
    /// When it was deleted.
    pub(crate) revoked: Option<SystemTime>,
}

/// A service behind a stock peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PeerServiceRow {
    /// Its name, which is no tunnel's and no other peer's.
    pub(crate) name: ServiceName,
    /// Behind which peer.
    pub(crate) peer: StockPeerId,
    /// Its origin: http, https, h2c or tcp, at an address that the peer has or at a name. Never with a password.
    pub(crate) origin: String,
    /// `origin`, `preserve` or a literal; none: `origin`.
    pub(crate) host: Option<String>,
    /// The path of its check; none: a TCP connect.
    pub(crate) health_path: Option<String>,
    /// The authorities that an https origin is verified against (PEM); none: the system's.
    pub(crate) ca: Option<String>,
    /// When it was last set.
    pub(crate) since: SystemTime,
}

/// A stock peer's pre-shared key, sealed for a relay that was not told it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PeerSealRow {
    /// Which peer.
    pub(crate) peer: StockPeerId,
    /// For which relay.
    pub(crate) relay: String,
    /// The key.
    pub(crate) sealed: Sealed,
}

/// One of the relays that share this registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RelayRow {
    /// What names it for good ([`crate::identity::Identity::relay_tag`]).
    pub(crate) tag: String,
    /// Its newest static key.
    pub(crate) public_key: PublicKey,
    /// What others seal keys for it with ([`crate::identity::Identity::encapsulation_key`]).
    pub(crate) kem_key: Vec<u8>,
    /// Where connectors reach it: `HOST:PORT`, in order of preference.
    pub(crate) endpoints: Vec<String>,
    /// When it was last there.
    pub(crate) seen: SystemTime,
}

/// A token's pre-shared key, sealed for a relay that did not make it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TokenSealRow {
    /// Which token.
    pub(crate) token: TokenId,
    /// For which relay.
    pub(crate) relay: String,
    /// The key.
    pub(crate) sealed: Sealed,
}

/// A tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tunnel {
    /// Its id.
    pub(crate) id: TunnelId,
    /// Its name, unique among live tunnels.
    pub(crate) name: Label,
    /// What it may serve.
    pub(crate) grants: Vec<Grant>,
    /// Whether it shares its names with other tunnels that say so too.
    pub(crate) shared: bool,
    /// Since when.
    pub(crate) created: SystemTime,
}

/// A token's verifier: enough to know its holder, not enough to be its holder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TokenRow {
    /// Its id, which is no secret.
    pub(crate) id: TokenId,
    /// The tunnel it lets join.
    pub(crate) tunnel: TunnelId,
    /// The public half of the bootstrap identity.
    pub(crate) bootstrap_key: PublicKey,
    /// The bootstrap identity's pre-shared key.
    pub(crate) psk: Sealed,
    /// What its connectors may serve of what the tunnel may; empty = all of that.
    pub(crate) services: Vec<Grant>,
    /// Where it may be used from; empty = anywhere.
    pub(crate) sources: Vec<IpNet>,
    /// Uses left; none = unlimited.
    pub(crate) uses_left: Option<u32>,
    /// How often it let somebody join.
    pub(crate) used: u32,
    /// When it ends by itself.
    pub(crate) expires: Option<SystemTime>,
    /// When it was revoked.
    pub(crate) revoked: Option<SystemTime>,
    /// When it was made.
    pub(crate) created: SystemTime,
    /// When it last let somebody join.
    pub(crate) last_used: Option<SystemTime>,
}

/// Whether a token still works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TokenState {
    /// It works.
    Active,
    /// Its time is over.
    Expired,
    /// Its uses are spent.
    UsedUp,
    /// It was revoked.
    Revoked,
}

/// A connector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ConnectorRow {
    /// Its id.
    pub(crate) id: ConnectorId,
    /// Its tunnel; deleted perhaps, when the connector is revoked.
    pub(crate) tunnel: TunnelId,
    /// The token it joined with; gone perhaps.
    pub(crate) token: TokenId,
    /// Its WireGuard key.
    pub(crate) public_key: PublicKey,
    /// Since when that is its key.
    pub(crate) key_since: SystemTime,
    /// The first handshake under a pre-shared key from ML-KEM: traffic recorded since then stays secret.
    pub(crate) safe_since: Option<SystemTime>,
    /// The key that it changes to.
    pub(crate) next: Option<NextKey>,
    /// Its name, for listings; not unique.
    pub(crate) name: Option<Label>,
    /// What it may serve of what its tunnel may, as its token said; empty = all of that.
    pub(crate) services: Vec<Grant>,
    /// Its pre-shared keys, with every relay that shares the registry, by epoch.
    pub(crate) psks: Vec<SealedPsk>,
    /// Its inner address.
    pub(crate) inner_address: Ipv6Addr,
    /// Whether it is forgotten after it vanished.
    pub(crate) ephemeral: bool,
    /// Whether it was taken out of service.
    pub(crate) drained: bool,
    /// When its key was revoked.
    pub(crate) revoked: Option<SystemTime>,
    /// When it joined.
    pub(crate) enrolled: SystemTime,
    /// Where each relay last heard it, as far as it is known.
    pub(crate) heard: Vec<Heard>,
    /// Where it was last heard, by whichever relay.
    pub(crate) last_endpoint: Option<SocketAddr>,
    /// On which of our addresses.
    pub(crate) last_local: Option<SocketAddr>,
    /// Its last handshake that was noted.
    pub(crate) last_handshake: Option<SystemTime>,
    /// The public keys of what it signs for its origins.
    pub(crate) proof_keys: Vec<ProofKey>,
    /// Program version.
    pub(crate) version: Option<String>,
}

/// The key that a connector changes to; both are answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NextKey {
    /// The key.
    pub(crate) public_key: PublicKey,
    /// Since when it is known.
    pub(crate) since: SystemTime,
    /// Its pre-shared keys.
    pub(crate) psks: Vec<SealedPsk>,
}

/// Where a relay last heard a connector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Heard {
    /// Which relay.
    pub(crate) relay: String,
    /// The connector's address.
    pub(crate) remote: SocketAddr,
    /// The relay's.
    pub(crate) local: SocketAddr,
}

/// One pre-shared key of a connector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SealedPsk {
    /// With which relay.
    pub(crate) relay: String,
    /// Its epoch.
    pub(crate) epoch: u32,
    /// The key.
    pub(crate) sealed: Sealed,
    /// Whether data was seen under it.
    pub(crate) confirmed: bool,
}

/// A name that a tunnel served once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServiceRow {
    /// Its name.
    pub(crate) name: ServiceName,
    /// The tunnel that serves it.
    pub(crate) tunnel: TunnelId,
    /// When it was first announced.
    pub(crate) since: SystemTime,
}

/// A service that is defined here, for a tunnel's connectors to serve within their allow-lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ManagedRow {
    /// Its name.
    pub(crate) name: ServiceName,
    /// Whose connectors serve it.
    pub(crate) tunnel: TunnelId,
    /// Its origin, as one writes it in a connector's configuration. Never with a password.
    pub(crate) origin: String,
    /// `origin`, `preserve` or a literal; none: `origin`.
    pub(crate) host: Option<String>,
    /// The path of its check; none: a TCP connect.
    pub(crate) health_path: Option<String>,
    /// When it was last set.
    pub(crate) since: SystemTime,
}

/// A gateway that may call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GatewayRow {
    /// Its id.
    pub(crate) id: GatewayId,
    /// Its name, unique among those that are not revoked.
    pub(crate) name: Label,
    /// What it may call.
    pub(crate) grants: Vec<Grant>,
    /// Its secrets, newest last; more than one in a rotation, none if its certificate alone tells who it is.
    pub(crate) secrets: Vec<SecretRow>,
    /// The client certificate that tells who it is too.
    pub(crate) certificate: Option<Certificate>,
    /// When it was made.
    pub(crate) created: SystemTime,
    /// When it last called, as far as that was noted.
    pub(crate) last_used: Option<SystemTime>,
    /// When it was revoked.
    pub(crate) revoked: Option<SystemTime>,
}

/// One secret of a gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SecretRow {
    /// What knows it.
    pub(crate) verifier: SecretVerifier,
    /// When it was made.
    pub(crate) created: SystemTime,
    /// When it ends, if a newer one replaced it.
    pub(crate) until: Option<SystemTime>,
}

/// What of a verified client certificate names a gateway.
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Certificate {
    /// The SHA-256 of the certificate itself.
    Sha256([u8; 32]),
    /// One of its subject alternative names: DNS name, URI, e-mail or IP address; in lower case.
    San(String),
}

/// One line of the audit trail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AuditRow {
    /// When.
    pub(crate) at: SystemTime,
    /// Who.
    pub(crate) actor: String,
    /// Did what: `tunnel.create`, `connector.join`, ….
    pub(crate) action: String,
    /// To what: an id or a name.
    pub(crate) subject: String,
    /// With which values. Never a secret.
    pub(crate) detail: String,
}

/// A secret sealed with the relay's state key ([`crate::identity::Identity::seal`]): nonce, ciphertext, tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sealed(pub(crate) Vec<u8>);

impl ConnectorRow {
    /// Where a relay called `relay` calls it back: its address, and ours that it came by.
    pub(crate) fn heard_by(&self, relay: &str) -> Option<(SocketAddr, Option<SocketAddr>)> {
        match self.heard.iter().find(|heard| heard.relay == relay) {
            Some(heard) => Some((heard.remote, Some(heard.local))),
            // Written before it was kept for each relay: then there was one.
            None if self.heard.is_empty() => self.last_endpoint.map(|remote| (remote, self.last_local)),
            None => None,
        }
    }
}

impl TokenRow {
    /// Whether it works at `now`.
    pub(crate) fn state(&self, now: SystemTime) -> TokenState {
        if self.revoked.is_some() {
            TokenState::Revoked
        } else if self.expires.is_some_and(|at| at <= now) {
            TokenState::Expired
        } else if self.uses_left == Some(0) {
            TokenState::UsedUp
        } else {
            TokenState::Active
        }
    }

    /// Whether it may be used from an address.
    pub(crate) fn allows(&self, source: IpAddr) -> bool {
        // An IPv4 peer of an IPv6 socket is still an IPv4 peer.
        let source = source.to_canonical();
        self.sources.is_empty() || self.sources.iter().any(|net| net.contains(&source))
    }

    /// Since when it no longer works, if so.
    pub(crate) fn ended(&self, now: SystemTime) -> Option<SystemTime> {
        match self.state(now) {
            TokenState::Active => None,
            TokenState::Revoked => self.revoked,
            TokenState::Expired => self.expires,
            TokenState::UsedUp => Some(self.last_used.unwrap_or(self.created)),
        }
    }

    /// Whether even its tombstone's time is over: its holder gets silence.
    pub(crate) fn is_forgotten(&self, now: SystemTime) -> bool {
        self.ended(now).is_some_and(|ended| ended + TOMBSTONE <= now)
    }
}

impl ManagedRow {
    /// As connectors are told.
    pub(crate) fn told(&self) -> ManagedService {
        ManagedService {
            name: self.name.clone(),
            origin: self.origin.clone(),
            host: self.host.clone(),
            health_path: self.health_path.clone(),
        }
    }
}

impl PeerRow {
    /// Its own end of the tunnel in IPv6.
    pub(crate) fn inner_ipv6(&self) -> Ipv6Addr {
        stock_peer_inner(&self.id)
    }

    /// All that it may send from and that is sent to it: its networks, and its own ends of the tunnel. Disjoint.
    pub(crate) fn inner_networks(&self) -> Vec<IpNet> {
        let ipv4 = self.inner_ipv4.map(|address| IpNet::from(IpAddr::from(address)));
        let own = [Some(IpNet::from(IpAddr::from(self.inner_ipv6()))), ipv4];
        let own = own.into_iter().flatten().filter(|own| !self.allowed_ips.iter().any(|net| net.contains(own)));
        self.allowed_ips.iter().copied().chain(own).collect()
    }

    /// Whether an address lies in its networks.
    pub(crate) fn has(&self, address: IpAddr) -> bool {
        self.inner_networks().iter().any(|net| net.contains(&address))
    }

    /// Where a relay called `relay` calls it back: its address, and ours that it came by.
    pub(crate) fn heard_by(&self, relay: &str) -> Option<(SocketAddr, SocketAddr)> {
        self.heard.iter().find(|heard| heard.relay == relay).map(|heard| (heard.remote, heard.local))
    }

    /// Whether even its tombstone's time is over.
    pub(crate) fn is_forgotten(&self, now: SystemTime) -> bool {
        self.revoked.is_some_and(|revoked| revoked + TOMBSTONE <= now)
    }
}

impl std::fmt::Display for PeerServiceRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.origin)?;
        self.host.iter().try_for_each(|host| write!(f, ", host {host}"))?;
        self.health_path.iter().try_for_each(|path| write!(f, ", health path {path}"))?;
        self.ca.iter().try_for_each(|_| f.write_str(", own authorities"))
    }
}

impl std::fmt::Display for ManagedRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.origin)?;
        self.host.iter().try_for_each(|host| write!(f, ", host {host}"))?;
        self.health_path.iter().try_for_each(|path| write!(f, ", health path {path}"))
    }
}

impl ConnectorRow {
    /// Whether it may come to this relay: it has a pre-shared key with it and is not revoked.
    pub(crate) fn is_of(&self, relay: &str) -> bool {
        self.revoked.is_none() && self.psks.iter().any(|psk| psk.relay == relay)
    }
}

impl GatewayRow {
    /// Whether even its tombstone's time is over.
    pub(crate) fn is_forgotten(&self, now: SystemTime) -> bool {
        self.revoked.is_some_and(|revoked| revoked + TOMBSTONE <= now)
    }
}

impl SecretRow {
    /// Whether it still works.
    pub(crate) fn is_valid(&self, now: SystemTime) -> bool {
        self.until.is_none_or(|until| now < until)
    }
}

impl std::fmt::Display for Certificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Sha256(digest) => {
                f.write_str("sha256:")?;
                digest.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
            Self::San(name) => write!(f, "san:{name}"),
        }
    }
}

impl TokenState {
    /// As listings show it.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Expired => "expired",
            Self::UsedUp => "used_up",
            Self::Revoked => "revoked",
        }
    }
}
