//! What relay and connector say to each other beside requests: enrolment, announcements, health, drain, liveness.
//!
//! Each message is a 4-byte big-endian length and that many bytes of JSON, an object with a `type`. Unknown fields are
//! ignored, an unknown `type` reads as [`ToRelay::Unknown`] or [`ToConnector::Unknown`] and is answered `unsupported`.

use std::net::Ipv6Addr;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::id::ConnectorId;
use crate::key::PublicKey;
use crate::name::{Label, ServiceName};
use crate::proof::ProofKey;

/// Version of these messages.
pub const VERSION: u32 = 1;
/// The largest message: past it the session is closed.
pub const MAX_MESSAGE_BYTES: usize = 64 * 1024;
/// Lanes of one connector at one relay, its session among them.
pub const LANES_AT_MOST: u8 = 16;

/// The request field that names the service on a stream from relay to connector.
pub const SERVICE_FIELD: &str = "culvert-service";
/// The response field by which a connector tells its own failure: `REASON; sent=0|1`.
pub const FAILURE_FIELD: &str = "culvert-failure";
/// The request field by which the relay tells which gateway it has found the caller to be; absent where it asked nobody.
pub const CALLER_FIELD: &str = "culvert-caller";
/// What the relay asks to upgrade to when a stream is to carry one TCP connection of a service that is raw TCP.
pub const TCP_PROTOCOL: &str = "culvert-tcp";
/// Who connected to a raw TCP service, and where to: two socket addresses with one space between them. For the origin's
/// PROXY protocol; absent where the relay does not know.
pub const PEER_FIELD: &str = "culvert-peer";

/// From a joining or live connector.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToRelay {
    /// On a bootstrap session: asks to be enrolled. Idempotent by (token, public key).
    Enrol(Enrol),
    /// On a connector's session, first message of the control stream.
    Announce(Announce),
    /// Health of origins changed.
    Health {
        /// Every service, not only the changed ones.
        services: Vec<ServiceHealth>,
    },
    /// The connector wants no new requests; those in flight go on.
    Drain,
    /// Asks to be made known to another relay of the same registry, under the key of this session.
    Introduce {
        /// That relay's tag, as [`ToConnector::Relays`] told it.
        relay: String,
        /// A fresh ML-KEM-768 encapsulation key, base64 (1,184 bytes).
        kem_key: String,
    },
    /// On a connector's session: asks for a second static key of its own, to be used instead of the one it has.
    /// Idempotent by public key.
    Rekey(Rekey),
    /// On a connector's session: asks for a fresh pre-shared key. Answered by [`ToConnector::Renewed`].
    Renew {
        /// An ML-KEM-768 encapsulation key made for this exchange alone, base64 (1,184 bytes).
        kem_key: String,
    },
    /// On a connector's session: it uses this key alone from now on, at every relay. Any older one is to be forgotten.
    Retire {
        /// The key that stays.
        public_key: PublicKey,
    },
    /// On a connector's session: opens a further lane, a WireGuard peer of its own that carries requests beside this
    /// session and ends with it. With the key that the lane has, it asks for the lane's next pre-shared key; with another
    /// one it replaces the lane.
    Lane(LaneKeys),
    /// Answers [`ToConnector::Manage`].
    Managed {
        /// Those that it does not serve, and why. What its allow-list forbids is announced too, as down: callers are told.
        refused: Vec<RefusedService>,
    },
    /// The keys that this connector signs tokens for its origins with: the whole list each time.
    ProofKeys {
        /// All of them, also those that are to sign later and those whose last tokens still live. Only such as the relay
        /// knows: [`ToConnector::Issuer`] tells.
        #[serde(deserialize_with = "crate::proof::known_keys")]
        keys: Vec<ProofKey>,
        /// Services whose proofs name the gateway: their requests are to tell it by [`CALLER_FIELD`].
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        callers: Vec<ServiceName>,
    },
    /// Asks for a [`ToConnector::Pong`].
    Ping {
        /// Echoed.
        id: u64,
    },
    /// Answers a [`ToConnector::Ping`].
    Pong {
        /// As received.
        id: u64,
    },
    /// The last message was not understood.
    Unsupported {
        /// Its type.
        what: String,
    },
    /// A message of a later version.
    #[serde(other)]
    Unknown,
}

/// From the relay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToConnector {
    /// Answers [`ToRelay::Enrol`].
    Enrolled(Enrolled),
    /// Answers [`ToRelay::Enrol`]: refused for good.
    Refused {
        /// Why.
        refusal: Refusal,
        /// When the token expired, was used up or revoked: RFC 3339, where known.
        at: Option<String>,
        /// What it is about; absent from an older relay.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        of: Option<Subject>,
    },
    /// Answers [`ToRelay::Announce`].
    Welcome(Welcome),
    /// The relay wants to stop: open nothing new here, it calls back when it is up again.
    Drain,
    /// Answers [`ToRelay::Rekey`]: both keys are answered from now on.
    Rekeyed(Rekeyed),
    /// Answers [`ToRelay::Rekey`]: not this key. The one in use stays as it is.
    RekeyRefused {
        /// Which key.
        public_key: PublicKey,
        /// Why, in words for the operator.
        why: String,
    },
    /// Answers [`ToRelay::Renew`]: the next pre-shared key; the one before is answered until this one was used.
    Renewed {
        /// ML-KEM-768 ciphertext, base64 (1,088 bytes).
        ciphertext: String,
        /// Its epoch.
        psk_epoch: u32,
        /// The relay's static key that it is bound to; absent: the one that the connector knows.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        relay_key: Option<PublicKey>,
        /// The connector's static key that it is for; absent: its only one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        public_key: Option<PublicKey>,
    },
    /// Answers [`ToRelay::Lane`]: the lane's key is answered from now on, for as long as this session lives.
    Lane(Lane),
    /// Answers [`ToRelay::Lane`]: no such lane.
    LaneRefused {
        /// Which lane.
        number: u8,
        /// Why, in words for the operator.
        why: String,
    },
    /// The relay's newest static key. Comes after [`ToConnector::Welcome`] and when the relay's key is rotated.
    RelayKey {
        /// The newest key.
        public_key: PublicKey,
        /// Until when the one before is answered: RFC 3339; none when there is no other.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        previous_until: Option<String>,
    },
    /// Every relay of this registry, this one too. Comes after [`ToConnector::Welcome`] where there are several, and when
    /// one comes or changes.
    Relays {
        /// The tag of the relay that speaks.
        own: String,
        /// All of them.
        relays: Vec<RelayPlace>,
    },
    /// Answers [`ToRelay::Introduce`]: that relay takes this connector's key from now on.
    Introduced {
        /// That relay's tag.
        relay: String,
        /// The connector's key.
        public_key: PublicKey,
        /// That relay's key, to which the pre-shared key is bound.
        relay_key: PublicKey,
        /// ML-KEM-768 ciphertext, base64 (1,088 bytes), for its pre-shared key with that relay.
        ciphertext: String,
        /// The epoch of that pre-shared key.
        psk_epoch: u32,
    },
    /// Services that the relay's operator manages for this tunnel: the whole list each time.
    Manage {
        /// All of them.
        services: Vec<ManagedService>,
    },
    /// Who this relay answers as to those who verify what the connectors of this tunnel sign. After [`ToConnector::Welcome`].
    Issuer {
        /// The URL that tokens name, below which the keys are found.
        url: String,
        /// The algorithms whose keys it knows; absent from an older relay, which knows EdDSA and ES256 and ends the session
        /// over any other.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        algorithms: Vec<String>,
    },
    /// Asks for a [`ToRelay::Pong`].
    Ping {
        /// Echoed.
        id: u64,
    },
    /// Answers a [`ToRelay::Ping`].
    Pong {
        /// As received.
        id: u64,
    },
    /// The last message was not understood.
    Unsupported {
        /// Its type.
        what: String,
    },
    /// A message of a later version.
    #[serde(other)]
    Unknown,
}

/// One of several relays that share a registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayPlace {
    /// What names it for good, whatever its key.
    pub tag: String,
    /// Its newest static key.
    pub public_key: PublicKey,
    /// Where it listens: `HOST:PORT`, in order of preference.
    pub endpoints: Vec<String>,
}

/// A joining connector's keys and name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrol {
    /// [`VERSION`].
    pub version: u32,
    /// The connector's own WireGuard key.
    pub public_key: PublicKey,
    /// Its ML-KEM-768 encapsulation key, base64 (1,184 bytes).
    pub kem_key: String,
    /// Its name, for listings.
    pub name: Option<Label>,
    /// Whether it keeps no state and is to be forgotten after it vanished.
    #[serde(default)]
    pub ephemeral: bool,
    /// Program version.
    pub program: String,
}

/// What an enrolled connector needs to come back as itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrolled {
    /// Its id.
    pub id: ConnectorId,
    /// Its inner address.
    pub inner_address: Ipv6Addr,
    /// ML-KEM-768 ciphertext, base64 (1,088 bytes), for its pre-shared key with this relay.
    pub ciphertext: String,
    /// The epoch of that pre-shared key.
    pub psk_epoch: u32,
    /// Its tunnel's name.
    pub tunnel: Label,
}

/// A connector's next keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rekey {
    /// The next WireGuard key.
    pub public_key: PublicKey,
    /// An ML-KEM-768 encapsulation key made for this exchange alone, base64 (1,184 bytes).
    pub kem_key: String,
}

/// What a connector needs to come back under its next key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rekeyed {
    /// The key that was asked for.
    pub public_key: PublicKey,
    /// ML-KEM-768 ciphertext, base64 (1,088 bytes), for the next key's pre-shared key with this relay.
    pub ciphertext: String,
    /// The epoch of that pre-shared key.
    pub psk_epoch: u32,
    /// The relay's static key that it is bound to; absent: the one that the connector knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relay_key: Option<PublicKey>,
}

/// A further lane of a connector. Its keys live no longer than the session that tells of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneKeys {
    /// Which lane: 1 to [`LANES_AT_MOST`] - 1. The session itself is lane 0.
    pub number: u8,
    /// The lane's own WireGuard key.
    pub public_key: PublicKey,
    /// An ML-KEM-768 encapsulation key made for this exchange alone, base64 (1,184 bytes).
    pub kem_key: String,
}

/// What a connector needs to open a lane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lane {
    /// Which lane.
    pub number: u8,
    /// The key that was asked for.
    pub public_key: PublicKey,
    /// The lane's inner address.
    pub inner_address: Ipv6Addr,
    /// ML-KEM-768 ciphertext, base64 (1,088 bytes), for the lane's pre-shared key with this relay.
    pub ciphertext: String,
    /// The epoch of that pre-shared key.
    pub psk_epoch: u32,
    /// The relay's static key that it is bound to, and that the lane shakes hands under.
    pub relay_key: PublicKey,
}

/// Why an enrolment is refused for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// The token's time is over.
    Expired,
    /// The token's uses are spent.
    UsedUp,
    /// The token, its tunnel, or this very connector was revoked.
    Revoked,
    /// The request made no sense.
    Malformed,
    /// The ends have no version in common.
    Version,
    /// The token may not be used from this address.
    Source,
    /// A refusal of a later version.
    #[serde(other)]
    Other,
}

/// What a [`Refusal`] is about: one word, `revoked`, stands for both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// The token, or its tunnel: a connector that joined with it may still be welcome as itself.
    Token,
    /// The very key that asks.
    Connector,
    /// Something of a later version.
    #[serde(other)]
    Other,
}

/// What a connector serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announce {
    /// [`VERSION`].
    pub version: u32,
    /// Program version.
    pub program: String,
    /// Its name, for listings.
    pub name: Option<Label>,
    /// Its services.
    pub services: Vec<AnnouncedService>,
}

/// One service of a connector. Its origin's address is not told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnnouncedService {
    /// Its name.
    pub name: ServiceName,
    /// Whether the origin's check passes, and why not.
    pub health: Health,
    /// `header:X`, `cookie:C` or `client-ip`: requests alike in it go to one connector.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balance: Option<String>,
    /// Deadlines the relay has to keep, in milliseconds.
    #[serde(default)]
    pub timeouts: ServiceTimeouts,
    /// Whether it is raw TCP and not HTTP.
    #[serde(default)]
    pub tcp: bool,
    /// Whether the relay manages it ([`ToConnector::Manage`]), and not the connector's own configuration.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub managed: bool,
}

/// The deadlines of a service that the relay enforces, in milliseconds; absent = the relay's default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceTimeouts {
    /// Until the response's head.
    pub first_byte_ms: Option<u64>,
    /// Without a byte either way.
    pub idle_ms: Option<u64>,
    /// The whole exchange.
    pub request_ms: Option<u64>,
    /// Waiting for a connector.
    pub queue_ms: Option<u64>,
}

/// One service's health.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceHealth {
    /// Which service.
    pub name: ServiceName,
    /// Up or not.
    pub health: Health,
}

/// The outcome of the last origin check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Whether the origin answers.
    pub up: bool,
    /// Why not: a [`crate::reason::Reason`]'s wire name. Never an address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What the relay made of an announcement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// [`VERSION`].
    pub version: u32,
    /// Program version.
    pub program: String,
    /// The connector's id.
    pub id: ConnectorId,
    /// Its tunnel's name.
    pub tunnel: Label,
    /// Services that this tunnel may not serve, and why, in words for the operator.
    pub refused: Vec<RefusedService>,
}

/// One refused service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedService {
    /// Which.
    pub name: ServiceName,
    /// Why, in words.
    pub why: String,
}

/// One service that is managed at the relay. The connector's allow-list has the last word on its origin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManagedService {
    /// Its name.
    pub name: ServiceName,
    /// Its origin, as one would write it in the connector's configuration.
    pub origin: String,
    /// `origin`, `preserve` or a literal; absent: `origin`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// The path of its HTTP health check; absent: a TCP connect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_path: Option<String>,
}

/// Why bytes are not a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadMessage {
    /// Over [`MAX_MESSAGE_BYTES`].
    #[error("a control message of {0} bytes: {MAX_MESSAGE_BYTES} are allowed")]
    TooLong(usize),
    /// Not JSON of this shape.
    #[error("a control message cannot be read")]
    Malformed,
}

/// Appends a message with its length.
///
/// # Errors
/// [`BadMessage::TooLong`] when it would not be accepted.
pub fn encode<M: Serialize>(message: &M, out: &mut Vec<u8>) -> Result<(), BadMessage> {
    let json = serde_json::to_vec(message).map_err(|_| BadMessage::Malformed)?;
    if json.len() > MAX_MESSAGE_BYTES {
        return Err(BadMessage::TooLong(json.len()));
    }
    out.extend_from_slice(&u32::try_from(json.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend_from_slice(&json);
    Ok(())
}

/// Takes one whole message off the front of `bytes`: the message and how many bytes it took, or none yet.
///
/// # Errors
/// [`BadMessage`]: nothing after it can be read.
pub fn decode<M: DeserializeOwned>(bytes: &[u8]) -> Result<Option<(M, usize)>, BadMessage> {
    let Some((length, rest)) = bytes.split_first_chunk::<4>() else { return Ok(None) };
    let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
    if length > MAX_MESSAGE_BYTES {
        return Err(BadMessage::TooLong(length));
    }
    let Some(json) = rest.get(..length) else { return Ok(None) };
    let message = serde_json::from_slice(json).map_err(|_| BadMessage::Malformed)?;
    Ok(Some((message, 4 + length)))
}

#[cfg(test)]
mod tests;
