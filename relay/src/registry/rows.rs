//! The registry's rows, and what follows from one row alone.
//!
//! Must never hold a secret in clear.

use std::net::{Ipv6Addr, SocketAddr};
use std::time::SystemTime;

use culvert_model::id::{ConnectorId, TokenId, TunnelId};
use culvert_model::key::PublicKey;
use culvert_model::name::{Grant, Label, ServiceName};

use super::TOMBSTONE;

/// All that a relay serves from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Live tunnels, by name.
    pub tunnels: Vec<Tunnel>,
    /// Tokens, newest last; those that ended within the tombstone's time too, also of deleted tunnels.
    pub tokens: Vec<TokenRow>,
    /// Connectors, oldest first; revoked ones too, also of deleted tunnels.
    pub connectors: Vec<ConnectorRow>,
    /// Services announced once and not deleted, by name.
    pub services: Vec<ServiceRow>,
}

/// A tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tunnel {
    /// Its id.
    pub id: TunnelId,
    /// Its name, unique among live tunnels.
    pub name: Label,
    /// What it may serve.
    pub grants: Vec<Grant>,
    /// Whether it shares its names with other tunnels that say so too.
    pub shared: bool,
    /// Since when.
    pub created: SystemTime,
}

/// A token's verifier: enough to know its holder, not enough to be its holder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRow {
    /// Its id, which is no secret.
    pub id: TokenId,
    /// The tunnel it lets join.
    pub tunnel: TunnelId,
    /// The public half of the bootstrap identity.
    pub bootstrap_key: PublicKey,
    /// The bootstrap identity's pre-shared key.
    pub psk: Sealed,
    /// Uses left; none = unlimited.
    pub uses_left: Option<u32>,
    /// When it ends by itself.
    pub expires: Option<SystemTime>,
    /// When it was revoked.
    pub revoked: Option<SystemTime>,
    /// When it was made.
    pub created: SystemTime,
    /// When it last let somebody join.
    pub last_used: Option<SystemTime>,
}

/// Whether a token still works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenState {
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
pub struct ConnectorRow {
    /// Its id.
    pub id: ConnectorId,
    /// Its tunnel; deleted perhaps, when the connector is revoked.
    pub tunnel: TunnelId,
    /// The token it joined with; gone perhaps.
    pub token: TokenId,
    /// Its WireGuard key.
    pub public_key: PublicKey,
    /// Its name, for listings; not unique.
    pub name: Option<Label>,
    /// Its pre-shared keys, with every relay that shares the registry, by epoch.
    pub psks: Vec<SealedPsk>,
    /// Its inner address.
    pub inner_address: Ipv6Addr,
    /// Whether it is forgotten after it vanished.
    pub ephemeral: bool,
    /// Whether it was taken out of service.
    pub drained: bool,
    /// When its key was revoked.
    pub revoked: Option<SystemTime>,
    /// When it joined.
    pub enrolled: SystemTime,
    /// Where it was last heard.
    pub last_endpoint: Option<SocketAddr>,
    /// On which of our addresses.
    pub last_local: Option<SocketAddr>,
    /// Its last handshake that was noted.
    pub last_handshake: Option<SystemTime>,
    /// Program version.
    pub version: Option<String>,
}

/// One pre-shared key of a connector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedPsk {
    /// With which relay.
    pub relay: String,
    /// Its epoch.
    pub epoch: u32,
    /// The key.
    pub sealed: Sealed,
    /// Whether data was seen under it.
    pub confirmed: bool,
}

/// A name that a tunnel served once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceRow {
    /// Its name.
    pub name: ServiceName,
    /// The tunnel that serves it.
    pub tunnel: TunnelId,
    /// When it was first announced.
    pub since: SystemTime,
}

/// One line of the audit trail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditRow {
    /// When.
    pub at: SystemTime,
    /// Who.
    pub actor: String,
    /// Did what: `tunnel.create`, `connector.join`, ….
    pub action: String,
    /// To what: an id or a name.
    pub subject: String,
    /// With which values. Never a secret.
    pub detail: String,
}

/// A secret sealed with the relay's state key ([`crate::identity::Identity::seal`]): nonce, ciphertext, tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed(pub Vec<u8>);

impl TokenRow {
    /// Whether it works at `now`.
    pub fn state(&self, now: SystemTime) -> TokenState {
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

    /// Since when it no longer works, if so.
    pub fn ended(&self, now: SystemTime) -> Option<SystemTime> {
        match self.state(now) {
            TokenState::Active => None,
            TokenState::Revoked => self.revoked,
            TokenState::Expired => self.expires,
            TokenState::UsedUp => Some(self.last_used.unwrap_or(self.created)),
        }
    }

    /// Whether even its tombstone's time is over: its holder gets silence.
    pub fn is_forgotten(&self, now: SystemTime) -> bool {
        self.ended(now).is_some_and(|ended| ended + TOMBSTONE <= now)
    }
}

impl TokenState {
    /// As listings show it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Expired => "expired",
            Self::UsedUp => "used_up",
            Self::Revoked => "revoked",
        }
    }
}
