//! What the relay remembers: tunnels, tokens, connectors, services, gateways and who changed what.
//!
//! One trait, so that engines can be exchanged; every rule and every statement is written once ([`mod@write`], [`gateway`],
//! [`read`]) over a small transaction ([`sql::Transaction`]) that each engine gives; what holds over several rows is
//! decided inside it, by the pure functions of [`grants`] and [`rows`]. Must never hold a secret in clear: tokens are kept as
//! verifiers, pre-shared keys sealed with a key that lives elsewhere.

mod admission;
mod failure;
mod gateway;
pub(crate) mod grants;
mod keys;
mod managed;
mod order;
pub(crate) mod peers;
mod place;
mod postgres;
mod proofs;
mod read;
mod refusal;
mod relays;
pub(crate) mod rows;
mod schema;
mod sql;
mod sqlite;
mod store;
#[cfg(test)]
mod suite;
mod write;

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use culvert_model::control::Refusal;
use culvert_model::id::{ConnectorId, GatewayId, StockPeerId, TokenId, TunnelId};
use culvert_model::key::PublicKey;
use culvert_model::name::{Grant, Label, ServiceName};
use culvert_model::proof::ProofKey;
use tokio::sync::watch;

pub(crate) use keys::FreshPsk;
pub(crate) use peers::{PeerKeys, Reserved};
pub(crate) use place::Url;
pub(crate) use refusal::{RegistryError, Rule};
pub(crate) use relays::Introduction;
pub(crate) use rows::{
    AuditRow, Certificate, ConnectorRow, GatewayRow, ManagedRow, PeerRow, PeerSealRow, PeerServiceRow, RelayRow,
    Sealed, SealedPsk, SecretRow, ServiceRow, Snapshot, TokenRow, TokenSealRow, Tunnel,
};

/// How long tokens and connectors that ended are remembered, only to say so to their holders.
pub(crate) const TOMBSTONE: Duration = Duration::from_secs(30 * 86_400);
/// How long after a token's end a repeated enrolment still gets its first answer (wire.md §3).
pub(crate) const REPEAT: Duration = Duration::from_secs(86_400);
/// Secrets of one gateway that work at once: past it a rotation ends the oldest before its time.
pub(crate) const SECRETS_AT_MOST: usize = 4;
/// How long after its last handshake an ephemeral connector is forgotten.
pub(crate) const EPHEMERAL: Duration = Duration::from_secs(600);

/// What every method of [`Registry`] returns. Dropping it does not undo what was asked: the engine finishes.
pub(crate) type Future<'a, T> = Pin<Box<dyn std::future::Future<Output = Result<T, RegistryError>> + Send + 'a>>;

/// The registry, behind whatever engine. Each method is one transaction, durable when it returns.
pub(crate) trait Registry: Send + Sync {
    /// All that a relay serves from: live tunnels, tokens and connectors with those that ended lately, services.
    fn load(&self) -> Future<'_, Snapshot>;

    /// Defines a tunnel with its first token.
    ///
    /// # Errors
    /// [`Rule::TunnelExists`], [`Rule::Owned`].
    fn create_tunnel(&self, tunnel: Tunnel, token: TokenRow, by: Actor) -> Future<'_, ()>;

    /// Changes what a tunnel may serve; services that it may no longer serve are forgotten. Returns it as it is then.
    ///
    /// # Errors
    /// [`Rule::NoSuchTunnel`], [`Rule::Owned`], [`Rule::NotGranted`], [`Rule::NoGrantLeft`].
    fn set_grants(
        &self,
        tunnel: TunnelId,
        add: Vec<Grant>,
        remove: Vec<Grant>,
        by: Actor,
        now: SystemTime,
    ) -> Future<'_, Tunnel>;

    /// Deletes a tunnel: its tokens and connectors are revoked, its services forgotten. Returns the connectors.
    ///
    /// # Errors
    /// [`Rule::NoSuchTunnel`].
    fn delete_tunnel(&self, tunnel: TunnelId, by: Actor, now: SystemTime) -> Future<'_, Vec<ConnectorId>>;

    /// Adds a token to a live tunnel.
    ///
    /// # Errors
    /// [`Rule::NoSuchTunnel`].
    fn create_token(&self, token: TokenRow, by: Actor) -> Future<'_, ()>;

    /// Revokes a token; connectors that joined with it stay. Revoking twice changes nothing.
    ///
    /// # Errors
    /// [`Rule::NoSuchToken`].
    fn revoke_token(&self, token: TokenId, by: Actor, now: SystemTime) -> Future<'_, ()>;

    /// Takes one use of a token for a public key, or finds that it already has one (wire.md §3).
    fn enrol(&self, candidate: Candidate) -> Future<'_, Enrolment>;

    /// Revokes a connector's key for good. Revoking twice changes nothing.
    ///
    /// # Errors
    /// [`Rule::NoSuchConnector`].
    fn revoke_connector(&self, connector: ConnectorId, by: Actor, now: SystemTime) -> Future<'_, ()>;

    /// Takes a connector out of service, or back, without touching its keys.
    ///
    /// # Errors
    /// [`Rule::NoSuchConnector`], also when it is revoked.
    fn set_drained(&self, connector: ConnectorId, drained: bool, by: Actor, now: SystemTime) -> Future<'_, ()>;

    /// Decides which announced services a tunnel serves ([`grants::decide`]) and remembers those it does.
    ///
    /// # Errors
    /// [`Rule::NoSuchTunnel`].
    fn announce(&self, tunnel: TunnelId, names: Vec<ServiceName>, now: SystemTime) -> Future<'_, grants::Decision>;

    /// Defines a service of a tunnel here, or changes it: its connectors are to serve it within their allow-lists.
    ///
    /// # Errors
    /// [`Rule::NoSuchTunnel`], [`Rule::MayNotServe`], [`Rule::NoRoomToManage`].
    fn set_managed(&self, service: ManagedRow, by: Actor) -> Future<'_, ()>;

    /// Adds a stock peer, and gives it its own end of the tunnel. Returns it as it is then.
    ///
    /// # Errors
    /// [`Rule::PeerExists`], [`Rule::PeerKeyTaken`], [`Rule::PeerOverlap`], [`Rule::PeerOverlapsRelay`],
    /// [`Rule::NoRoomForPeers`].
    fn add_peer(&self, peer: PeerRow, reserved: Reserved, by: Actor) -> Future<'_, PeerRow>;

    /// Gives a stock peer other keys. Returns it as it is then.
    ///
    /// # Errors
    /// [`Rule::NoSuchPeer`], [`Rule::PeerKeyTaken`].
    fn set_peer_keys(
        &self,
        peer: StockPeerId,
        keys: PeerKeys,
        reserved: Reserved,
        by: Actor,
        now: SystemTime,
    ) -> Future<'_, PeerRow>;

    /// Deletes a stock peer for good, with the services behind it; its name, key and networks are free. Returns the
    /// services.
    ///
    /// # Errors
    /// [`Rule::NoSuchPeer`].
    fn delete_peer(&self, peer: StockPeerId, by: Actor, now: SystemTime) -> Future<'_, Vec<ServiceName>>;

    /// Defines a service behind a stock peer, or changes it; patterns lose the name.
    ///
    /// # Errors
    /// [`Rule::NoSuchPeer`], [`Rule::Owned`], [`Rule::OwnedByPeer`], [`Rule::NoRoomForPeerServices`].
    fn set_peer_service(&self, service: PeerServiceRow, by: Actor) -> Future<'_, ()>;

    /// Adds what other relays open stock peers' pre-shared keys with; what is there already stays.
    fn seal_peers(&self, seals: Vec<PeerSealRow>) -> Future<'_, ()>;

    /// Forgets a service that was announced once, is managed or is behind a stock peer. Returns the tunnels that served it.
    ///
    /// # Errors
    /// [`Rule::NoSuchService`].
    fn delete_service(&self, name: ServiceName, by: Actor, now: SystemTime) -> Future<'_, Vec<TunnelId>>;

    /// Defines a gateway.
    ///
    /// # Errors
    /// [`Rule::GatewayExists`], [`Rule::CertificateTaken`].
    fn create_gateway(&self, gateway: GatewayRow, by: Actor) -> Future<'_, ()>;

    /// Changes what a gateway may call and which certificate is its. Returns it as it is then.
    ///
    /// # Errors
    /// [`Rule::NoSuchGateway`], also when it is revoked; [`Rule::NotGrantedToGateway`], [`Rule::NothingToCall`],
    /// [`Rule::CertificateTaken`].
    fn set_gateway(
        &self,
        gateway: GatewayId,
        change: GatewayChange,
        by: Actor,
        now: SystemTime,
    ) -> Future<'_, GatewayRow>;

    /// Gives a gateway another secret; those before end at `until`, if not sooner. Returns it as it is then.
    ///
    /// # Errors
    /// [`Rule::NoSuchGateway`], also when it is revoked.
    fn rotate_gateway(
        &self,
        gateway: GatewayId,
        secret: SecretRow,
        until: SystemTime,
        by: Actor,
    ) -> Future<'_, GatewayRow>;

    /// Revokes a gateway for good; its name is free. Revoking twice changes nothing.
    ///
    /// # Errors
    /// [`Rule::NoSuchGateway`].
    fn revoke_gateway(&self, gateway: GatewayId, by: Actor, now: SystemTime) -> Future<'_, ()>;

    /// Writes what this relay says of itself to the others. Call it at the start, every half minute and when it changes.
    fn note_relay(&self, relay: RelayRow) -> Future<'_, ()>;

    /// Adds what other relays open tokens with; what is there already stays.
    fn seal_tokens(&self, seals: Vec<TokenSealRow>) -> Future<'_, ()>;

    /// Gives a connector a pre-shared key with another relay, and so makes it known there. Returns the key's epoch.
    ///
    /// # Errors
    /// [`Rule::NoSuchConnector`], also under another key or revoked; [`Rule::NoSuchRelay`].
    fn introduce(&self, introduction: Introduction) -> Future<'_, u32>;

    /// Keeps a connector's fresh pre-shared key beside the one in use. Returns its epoch, and the connector as it is then.
    ///
    /// # Errors
    /// [`Rule::NoSuchConnector`], also when it is revoked or has no such key.
    fn renew(&self, fresh: FreshPsk) -> Future<'_, (u32, ConnectorRow)>;

    /// Makes a key the next one of a connector, with a first pre-shared key; asked again, gives that one another. Returns
    /// its epoch, and the connector as it is then.
    ///
    /// # Errors
    /// [`Rule::NoSuchConnector`], also when it is revoked; [`Rule::KeyTaken`].
    fn rekey(&self, fresh: FreshPsk) -> Future<'_, (u32, ConnectorRow)>;

    /// Makes a connector's next key its only one. None when `stays` is not its next key: then nothing changes.
    ///
    /// # Errors
    /// [`Rule::NoSuchConnector`], also when it is revoked.
    fn retire_key(&self, connector: ConnectorId, stays: PublicKey, now: SystemTime)
    -> Future<'_, Option<ConnectorRow>>;

    /// Writes what was noticed about connectors and gateways, many at once. Unknown ones are skipped.
    fn note(&self, notes: Vec<Note>) -> Future<'_, ()>;

    /// Forgets tombstones past [`TOMBSTONE`], and ephemeral connectors unheard of for [`EPHEMERAL`] that are not among
    /// `live`. Call it every minute.
    fn forget(&self, live: Vec<ConnectorId>, now: SystemTime) -> Future<'_, Forgotten>;

    /// Adds a line to the audit trail that no other method writes, such as a refused attempt.
    fn audit(&self, row: AuditRow) -> Future<'_, ()>;

    /// Readies a registry that comes from a backup, so that connectors of the relay with this tag find their way back
    /// whatever became of their pre-shared keys since, and writes the line that says so.
    fn restored(&self, relay: String, row: AuditRow) -> Future<'_, ()>;

    /// The audit trail from a time on, oldest first.
    fn audit_since(&self, since: SystemTime) -> Future<'_, Vec<AuditRow>>;

    /// Fires when somebody else changed the registry: load it again.
    fn changes(&self) -> watch::Receiver<u64>;

    /// What was loaded last, where the database may be away while the relay runs.
    fn known(&self) -> Option<Arc<Snapshot>>;

    /// Its engine and where it is, without a secret: `sqlite`, `postgresql`.
    fn place(&self) -> (&'static str, &str);

    /// Why the last transaction failed to reach the database, if it did: the relay serves on with what it knows.
    fn degraded(&self) -> Option<String>;
}

/// Who asks for a change, for the audit trail: `uid 1000`, a connector's id, a token's id. Never a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Actor(pub(crate) String);

/// What is to be different about a gateway.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct GatewayChange {
    /// These and no others, where given.
    pub(crate) replace: Option<Vec<Grant>>,
    /// These too.
    pub(crate) add: Vec<Grant>,
    /// Not these.
    pub(crate) remove: Vec<Grant>,
    /// This certificate, or none.
    pub(crate) certificate: Option<Option<Certificate>>,
}

/// A connector that asks to be enrolled.
#[derive(Debug, Clone)]
pub(crate) struct Candidate {
    /// With which token.
    pub(crate) token: TokenId,
    /// The id it gets if it is new.
    pub(crate) id: ConnectorId,
    /// Its own key.
    pub(crate) public_key: PublicKey,
    /// Which relay the pre-shared key is for ([`crate::identity::Identity::relay_tag`]).
    pub(crate) relay: String,
    /// Its pre-shared key with that relay, sealed.
    pub(crate) psk: Sealed,
    /// Its name, for listings.
    pub(crate) name: Option<Label>,
    /// Whether it is forgotten after it vanished.
    pub(crate) ephemeral: bool,
    /// Program version.
    pub(crate) program: String,
    /// Where it asks from.
    pub(crate) source: SocketAddr,
    /// When.
    pub(crate) now: SystemTime,
}

/// What became of a [`Candidate`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Enrolment {
    /// It is a member now.
    Joined {
        /// As it stands in the registry, the new pre-shared key last.
        connector: Box<ConnectorRow>,
        /// Its tunnel.
        tunnel: Tunnel,
        /// The epoch of the new pre-shared key.
        epoch: u32,
        /// Whether it had been a member before and no use was taken.
        repeated: bool,
    },
    /// It is refused for good.
    Refused {
        /// Why.
        refusal: Refusal,
        /// Since when that is so.
        at: Option<SystemTime>,
    },
    /// Its key is revoked, and that does not hang on the token.
    Gone {
        /// Since when.
        at: SystemTime,
    },
    /// No such token: silence is the answer.
    Unknown,
}

/// Something noticed about a connector or a gateway, written when it changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Note {
    /// Where it was last heard, and on which of our addresses (for calling back after a restart).
    Endpoint {
        /// Which connector.
        connector: ConnectorId,
        /// Which relay heard it.
        relay: String,
        /// Its address.
        remote: SocketAddr,
        /// Ours; an unspecified address where the system did not tell.
        local: SocketAddr,
    },
    /// Its last handshake.
    Handshake {
        /// Which connector.
        connector: ConnectorId,
        /// When.
        at: SystemTime,
    },
    /// Where a stock peer was last heard, and on which of our addresses.
    PeerEndpoint {
        /// Which peer.
        peer: StockPeerId,
        /// Which relay heard it.
        relay: String,
        /// Its address.
        remote: SocketAddr,
        /// Ours; an unspecified address where the system did not tell.
        local: SocketAddr,
    },
    /// A stock peer's last handshake.
    PeerHandshake {
        /// Which peer.
        peer: StockPeerId,
        /// When.
        at: SystemTime,
    },
    /// A gateway called.
    GatewayUsed {
        /// Which gateway.
        gateway: GatewayId,
        /// When, last.
        at: SystemTime,
    },
    /// What it says of itself.
    Program {
        /// Which connector.
        connector: ConnectorId,
        /// Its name, for listings.
        name: Option<Label>,
        /// Its version.
        version: String,
    },
    /// What it signs tokens with. Unlike the rest of what is noticed, other relays hear of it.
    ProofKeys {
        /// Which connector.
        connector: ConnectorId,
        /// All of its public keys.
        keys: Vec<ProofKey>,
    },
    /// It used this epoch of its pre-shared key with `relay`; older ones are deleted when `alone`.
    PskConfirmed {
        /// Which connector.
        connector: ConnectorId,
        /// With which relay.
        relay: String,
        /// Which epoch.
        epoch: u32,
        /// Whether the other epochs are to be deleted: 180 s after the first data under this one (wire.md §3).
        alone: bool,
    },
}

/// What [`Registry::forget`] dropped: peers to take out of the engine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Forgotten {
    /// Tokens past their tombstone's time.
    pub(crate) tokens: Vec<TokenId>,
    /// Ephemeral connectors, and revoked ones past their time.
    pub(crate) connectors: Vec<ConnectorId>,
}
