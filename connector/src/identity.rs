//! Who this connector is: its key, its pre-shared keys, and what it learned when it joined.
//!
//! On disk every step of joining can be cut short and repeated: keys are written before they are used, and
//! `joining/joined.json` is the point from which a join is only ever completed.
//! Must never replace an identity that works before another one does, or print a secret.

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv6Addr;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use culvert_model::id::ConnectorId;
use culvert_model::kem::KemKey;
use culvert_model::key::{PrivateKey, Psk, PublicKey};
use culvert_model::name::Label;
use culvert_model::token::{Endpoint, RelayRef, Token};
use culvert_ops::state::{StateDir, StateError};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::psks::{Gap, Psks};

mod files;
mod kept;
mod next;
mod relay_key;

use files::{
    JOINED, JOINING, NEXT, PRESHARED, PRIVATE, RELAYS, joining, promote, read_joined, read_kem, read_key, read_psks,
    write_joined, write_line, write_psks,
};
pub use next::Next;
pub use relay_key::Former;

/// An enrolled connector.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Its WireGuard key. Never leaves this host.
    pub private_key: PrivateKey,
    /// What the relays know it as.
    pub joined: Joined,
    /// Its pre-shared keys with each relay, by the relay's name.
    pub psks: BTreeMap<String, Psks>,
}

/// The record of a join.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joined {
    /// 1.
    pub version: u32,
    /// Its id.
    pub id: ConnectorId,
    /// Its address inside the tunnel.
    pub inner_address: Ipv6Addr,
    /// Its tunnel.
    pub tunnel: Label,
    /// Which token it joined with (see [`fingerprint`]).
    pub token: String,
    /// When: seconds since 1970. A clock that shows less is behind.
    pub joined_seconds: u64,
    /// When its key was made in place of the one it joined with, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rekeyed_seconds: Option<u64>,
    /// The relays that the token named.
    pub relays: Vec<Relay>,
}

/// One relay: a static key, and where it listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Relay {
    /// The name of its directory.
    pub name: String,
    /// What names it among the relays of its registry, whatever its key; none before one of them told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// Its newest static key.
    pub public_key: PublicKey,
    /// The one before it, while it is answered too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub former: Option<Former>,
    /// Its endpoints, `HOST:PORT`, in order of preference.
    pub endpoints: Vec<String>,
    /// The epoch of the pre-shared key with it; none before this connector enrolled there.
    #[serde(default)]
    pub psk_epoch: Option<u32>,
}

/// Keys of a connector that asks to be enrolled; stored before it asks, so that a repeat is the same connector.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// The WireGuard key.
    pub private_key: PrivateKey,
    /// The ML-KEM-768 key.
    pub kem: KemKey,
    token: String,
}

/// What one relay answered to a [`Candidate`].
#[derive(Debug, Clone)]
pub struct Admission {
    /// The id.
    pub id: ConnectorId,
    /// The inner address.
    pub inner_address: Ipv6Addr,
    /// The tunnel.
    pub tunnel: Label,
    /// The name of the relay that answered.
    pub relay: String,
    /// The pre-shared key with it.
    pub psk: Psk,
    /// Its epoch.
    pub psk_epoch: u32,
}

/// Why the stored identity cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The directory or a file of it.
    #[error(transparent)]
    State(#[from] StateError),
    /// A file of it does not hold what it should.
    #[error("{0} in the state directory is damaged")]
    Damaged(String),
    /// What a relay answered does not fit what is known of it: nothing was changed.
    #[error(transparent)]
    Gap(#[from] Gap),
    /// A step between files failed.
    #[error("cannot {what} {name} in the state directory: {source}")]
    Move {
        /// What was tried.
        what: &'static str,
        /// On which file.
        name: String,
        /// The system's answer.
        source: std::io::Error,
    },
}

/// Where the identity is kept.
#[derive(Debug, Clone)]
pub enum Store {
    /// Files.
    Directory(StateDir),
    /// Nowhere: `--ephemeral`.
    Memory,
}

/// Tells tokens apart without keeping any: they hold 256 random bits, so their hash gives nothing away.
pub fn fingerprint(token: &Token) -> String {
    let digest = Sha256::digest(token.to_text().as_bytes());
    digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// The relays that a token names: endpoints of one key are one relay.
pub fn relays_of(refs: &[RelayRef]) -> Vec<Relay> {
    let mut relays: Vec<Relay> = Vec::new();
    for one in refs {
        let endpoint = one.endpoint.to_string();
        if let Some(known) = relays.iter_mut().find(|relay| relay.public_key == one.public_key) {
            if !known.endpoints.contains(&endpoint) {
                known.endpoints.push(endpoint);
            }
            continue;
        }
        let endpoints = vec![endpoint];
        relays.push(Relay::new(name_for(&endpoints, &relays), one.public_key, endpoints));
    }
    relays
}

/// A name for a relay's directory that no other has: its host, and as much more as it takes.
pub fn name_for(endpoints: &[String], known: &[Relay]) -> String {
    let endpoint = endpoints.iter().find_map(|text| text.parse::<Endpoint>().ok());
    let (host, port) = endpoint.map_or((String::new(), 0), |endpoint| {
        (endpoint.host().replace(':', "_").trim_start_matches('.').to_owned(), endpoint.port())
    });
    let taken = |name: &str| known.iter().any(|relay| relay.name == name);
    let mut name = if host.is_empty() { "relay".to_owned() } else { host.clone() };
    if taken(&name) {
        name = format!("{host}_{port}");
    }
    while taken(&name) {
        name.push('_');
    }
    name
}

impl Candidate {
    /// A connector that has joined and asks again, at another relay or because one forgot it.
    pub fn of(identity: &Identity, kem: KemKey) -> Self {
        Self { private_key: identity.private_key.clone(), kem, token: identity.joined.token.clone() }
    }
}

impl Joined {
    /// When its key was made.
    pub fn key_made(&self) -> SystemTime {
        let seconds = self.rekeyed_seconds.unwrap_or(self.joined_seconds);
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).unwrap_or(SystemTime::UNIX_EPOCH)
    }
}

impl Relay {
    /// One that this connector has yet to enrol at.
    pub fn new(name: String, public_key: PublicKey, endpoints: Vec<String>) -> Self {
        Self { name, tag: None, public_key, former: None, endpoints, psk_epoch: None }
    }

    /// The endpoints that can be read.
    pub fn endpoints(&self) -> Vec<Endpoint> {
        self.endpoints.iter().filter_map(|text| text.parse().ok()).collect()
    }
}

impl Store {
    /// The identity, if this connector has joined. Completes a join that was cut short after the relay's answer.
    ///
    /// # Errors
    /// [`IdentityError`]
    pub fn load(&self) -> Result<Option<Identity>, IdentityError> {
        let Self::Directory(state) = self else { return Ok(None) };
        for cut_short in [JOINING, NEXT] {
            if state.read(&format!("{cut_short}/{JOINED}"))?.is_some() {
                promote(state, cut_short)?;
            }
        }
        let Some(joined) = read_joined(state, JOINED)? else { return Ok(None) };
        let private_key = read_key(state, PRIVATE)?.ok_or_else(|| IdentityError::Damaged(PRIVATE.to_owned()))?;
        let mut psks = BTreeMap::new();
        for relay in &joined.relays {
            if let Some(known) = read_psks(state, relay, &joined)? {
                psks.insert(relay.name.clone(), known);
            }
        }
        Ok(Some(Identity { private_key, joined, psks }))
    }

    /// The public key alone and the record of the join, if this connector has joined. Changes nothing.
    ///
    /// # Errors
    /// [`IdentityError`]
    pub fn peek(&self) -> Result<Option<(PublicKey, Joined)>, IdentityError> {
        let Self::Directory(state) = self else { return Ok(None) };
        for cut_short in [JOINING, NEXT] {
            if let Some(joined) = read_joined(state, &format!("{cut_short}/{JOINED}"))?
                && let Some(key) = read_key(state, &format!("{cut_short}/{PRIVATE}"))?
            {
                return Ok(Some((key.public_key(), joined)));
            }
        }
        let Some(joined) = read_joined(state, JOINED)? else { return Ok(None) };
        Ok(read_key(state, PRIVATE)?.map(|key| (key.public_key(), joined)))
    }

    /// The keys to ask with: those of an earlier try with the same token, or new ones, written before they are used.
    ///
    /// # Errors
    /// [`IdentityError`]
    pub fn candidate(&self, token: &str) -> Result<Candidate, IdentityError> {
        let fresh =
            || Candidate { private_key: PrivateKey::generate(), kem: KemKey::generate(), token: token.to_owned() };
        let Self::Directory(state) = self else { return Ok(fresh()) };
        if state.read_text(&joining("token"))?.is_some_and(|stored| stored.as_str() == token)
            && let (Some(private_key), Some(kem)) = (read_key(state, &joining(PRIVATE))?, read_kem(state)?)
        {
            return Ok(Candidate { private_key, kem, token: token.to_owned() });
        }
        let candidate = fresh();
        state.create_dir(JOINING)?;
        // The mark goes first and comes last: keys under it belong to that token, whole.
        state.remove(&joining("token"))?;
        write_line(state, &joining(PRIVATE), &candidate.private_key.to_base64())?;
        write_line(state, &joining("kem.seed"), &Zeroizing::new(STANDARD.encode(candidate.kem.seed())))?;
        write_line(state, &joining("token"), token)?;
        Ok(candidate)
    }

    /// Makes an admitted candidate this connector's identity, in place of any other.
    ///
    /// # Errors
    /// [`IdentityError`]: the former identity stands then.
    pub fn join(
        &self,
        candidate: &Candidate,
        relays: Vec<Relay>,
        admission: Admission,
        now: SystemTime,
    ) -> Result<Identity, IdentityError> {
        let mut relays = relays;
        for relay in &mut relays {
            relay.psk_epoch = (relay.name == admission.relay).then_some(admission.psk_epoch);
        }
        let joined_seconds = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let joined = Joined {
            version: 1,
            id: admission.id,
            inner_address: admission.inner_address,
            tunnel: admission.tunnel,
            token: candidate.token.clone(),
            joined_seconds,
            rekeyed_seconds: None,
            relays,
        };
        let psks = Psks::new(admission.psk_epoch, admission.psk, now);
        if let Self::Directory(state) = self {
            write_psks(state, JOINING, &admission.relay, &psks)?;
            write_joined(state, &joining(JOINED), &joined)?;
            promote(state, JOINING)?;
        }
        let psks = BTreeMap::from([(admission.relay, psks)]);
        Ok(Identity { private_key: candidate.private_key.clone(), joined, psks })
    }

    /// Notes which relays there are: what was learned by [`crate::relays::learn`].
    ///
    /// # Errors
    /// [`IdentityError`]
    pub fn know_relays(&self, identity: &mut Identity, relays: Vec<Relay>) -> Result<(), IdentityError> {
        let joined = Joined { relays, ..identity.joined.clone() };
        if let Self::Directory(state) = self {
            write_joined(state, JOINED, &joined)?;
            if joined.relays.len() > 1 {
                state.remove(PRESHARED)?;
            }
            for former in &identity.joined.relays {
                if !joined.relays.iter().any(|relay| relay.name == former.name) {
                    let _ = fs::remove_dir_all(state.path().join(RELAYS).join(&former.name));
                }
            }
        }
        identity.psks.retain(|name, _| joined.relays.iter().any(|relay| relay.name == *name));
        identity.joined = joined;
        Ok(())
    }

    /// Notes the enrolment of a connector that has joined at one more relay.
    ///
    /// # Errors
    /// [`IdentityError`]
    pub fn enrolled_at(
        &self,
        identity: &mut Identity,
        admission: &Admission,
        now: SystemTime,
    ) -> Result<(), IdentityError> {
        let mut joined = identity.joined.clone();
        // A relay that had forgotten this connector gives it another id.
        (joined.id, joined.inner_address) = (admission.id.clone(), admission.inner_address);
        joined.tunnel = admission.tunnel.clone();
        for relay in joined.relays.iter_mut().filter(|relay| relay.name == admission.relay) {
            relay.psk_epoch = Some(admission.psk_epoch);
        }
        let psks = Psks::new(admission.psk_epoch, admission.psk.clone(), now);
        if let Self::Directory(state) = self {
            write_psks(state, "", &admission.relay, &psks)?;
            write_joined(state, JOINED, &joined)?;
        }
        identity.joined = joined;
        identity.psks.insert(admission.relay.clone(), psks);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
