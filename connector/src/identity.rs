//! Who this connector is: its key, its pre-shared keys, and what it learned when it joined.
//!
//! On disk every step of joining can be cut short and repeated: keys are written before they are used, and
//! `joining/joined.json` is the point from which a join is only ever completed.
//! Must never replace an identity that works before another one does, or print a secret.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::Ipv6Addr;
use std::path::Path;
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

use crate::relays::name_for;

use crate::psks::{Gap, Psks};

mod next;
mod relay_key;

pub use next::Next;
pub use relay_key::Former;

const PRIVATE: &str = "private.key";
/// What `wg` users look for: the newest pre-shared key, as `wg genpsk` writes it. Written, and read only where an older
/// version left nothing else.
const PRESHARED: &str = "preshared.key";
/// The pre-shared keys with a relay, with their epochs ([`Psks::to_text`]).
const EPOCHS: &str = "epochs.key";
const JOINED: &str = "joined.json";
const JOINING: &str = "joining";
const NEXT: &str = "next";
const RELAYS: &str = "relays";

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

    /// Keeps the next pre-shared key with a relay beside the one before it; neither end uses it before.
    ///
    /// # Errors
    /// [`IdentityError`]: those before stand then.
    pub fn renewed(
        &self,
        identity: &mut Identity,
        relay: &str,
        psk: Psk,
        epoch: u32,
        now: SystemTime,
    ) -> Result<(), IdentityError> {
        let known = identity.psks.get(relay).ok_or(Gap(epoch))?;
        let psks = known.with_next(epoch, psk, now)?;
        self.keep(identity, relay, psks)
    }

    /// Notes a handshake under an epoch, if it is the first.
    ///
    /// # Errors
    /// [`IdentityError`]: it is noted in memory alone.
    pub fn used(&self, identity: &mut Identity, relay: &str, epoch: u32, now: SystemTime) -> Result<(), IdentityError> {
        let Some(psks) = identity.psks.get(relay).and_then(|psks| psks.used(epoch, now)) else { return Ok(()) };
        self.keep(identity, relay, psks)
    }

    /// As [`Self::renewed`], with a relay that knew no other key than the very first.
    ///
    /// # Errors
    /// [`IdentityError`]: those before stand then.
    pub fn renewed_anew(
        &self,
        identity: &mut Identity,
        relay: &str,
        psk: Psk,
        epoch: u32,
        now: SystemTime,
    ) -> Result<(), IdentityError> {
        let psks = identity.psks.get(relay).ok_or(Gap(epoch))?.anew(epoch, psk, now);
        self.keep(identity, relay, psks)
    }

    /// Drops the pre-shared keys before an epoch.
    ///
    /// # Errors
    /// [`IdentityError`]
    pub fn forget_before(&self, identity: &mut Identity, relay: &str, epoch: u32) -> Result<(), IdentityError> {
        let Some(psks) = identity.psks.get(relay).and_then(|psks| psks.from_epoch(epoch)) else { return Ok(()) };
        self.keep(identity, relay, psks)
    }

    fn keep(&self, identity: &mut Identity, relay: &str, psks: Psks) -> Result<(), IdentityError> {
        if let Self::Directory(state) = self {
            write_psks(state, "", relay, &psks)?;
            if let ([only], Some(key)) = (identity.joined.relays.as_slice(), psks.newest_key())
                && only.name == relay
            {
                write_line(state, PRESHARED, &key.to_base64())?;
            }
        }
        identity.psks.insert(relay.to_owned(), psks);
        Ok(())
    }
}

/// Moves what `joined.json` in a directory tells of into its place. Every step may be repeated.
fn promote(state: &StateDir, from: &str) -> Result<(), IdentityError> {
    let Some(joined) = read_joined(state, &format!("{from}/{JOINED}"))? else { return Ok(()) };
    rename(state, &format!("{from}/{PRIVATE}"), PRIVATE)?;
    for relay in &joined.relays {
        state.create_dir(&format!("{RELAYS}/{}", relay.name))?;
        for name in [psk_name(&relay.name), epochs_name(&relay.name)] {
            if relay.psk_epoch.is_some() {
                rename(state, &format!("{from}/{name}"), &name)?;
            } else {
                state.remove(&name)?;
            }
        }
    }
    match joined.relays.as_slice() {
        // As `wg` users expect it, where there is only one.
        [relay] if relay.psk_epoch.is_some() => {
            if let Some(psk) = state.read(&psk_name(&relay.name))? {
                state.write(PRESHARED, &psk)?;
            }
        }
        _ => state.remove(PRESHARED)?,
    }
    rename(state, &format!("{from}/{JOINED}"), JOINED)?;
    let gone = |path: &Path| fs::remove_dir_all(path);
    if let Ok(entries) = fs::read_dir(state.path().join(RELAYS)) {
        for entry in entries.flatten() {
            if !joined.relays.iter().any(|relay| entry.file_name().to_str() == Some(&relay.name)) {
                let _ = gone(&entry.path());
            }
        }
    }
    for done in [JOINING, NEXT] {
        let _ = gone(&state.path().join(done));
    }
    Ok(())
}

fn rename(state: &StateDir, from: &str, to: &str) -> Result<(), IdentityError> {
    let failed = |source| IdentityError::Move { what: "put in place", name: to.to_owned(), source };
    let target = state.join(to)?;
    match fs::rename(state.join(from)?, &target) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(failed)?,
    }
    let directory = target.parent().unwrap_or_else(|| state.path());
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed)
}

fn joining(name: &str) -> String {
    format!("{JOINING}/{name}")
}

fn psk_name(relay: &str) -> String {
    format!("{RELAYS}/{relay}/{PRESHARED}")
}

fn epochs_name(relay: &str) -> String {
    format!("{RELAYS}/{relay}/{EPOCHS}")
}

/// The keys first and the copy for `wg` users last: what a crash leaves between them is read by nobody.
fn write_psks(state: &StateDir, under: &str, relay: &str, psks: &Psks) -> Result<(), IdentityError> {
    let place = |name: String| if under.is_empty() { name } else { format!("{under}/{name}") };
    state.create_dir(&place(format!("{RELAYS}/{relay}")))?;
    state.write(&place(epochs_name(relay)), psks.to_text().as_bytes())?;
    if let Some(key) = psks.newest_key() {
        write_line(state, &place(psk_name(relay)), &key.to_base64())?;
    }
    Ok(())
}

fn read_psks(state: &StateDir, relay: &Relay, joined: &Joined) -> Result<Option<Psks>, IdentityError> {
    let name = epochs_name(&relay.name);
    if let Some(text) = state.read_text(&name)? {
        return Psks::read(&text).map(Some).ok_or(IdentityError::Damaged(name));
    }
    // As an earlier version wrote it.
    let psk = read_psk(state, &psk_name(&relay.name))?;
    Ok(psk.zip(relay.psk_epoch).map(|(psk, epoch)| Psks::new(epoch, psk, joined.key_made())))
}

fn write_line(state: &StateDir, name: &str, text: &str) -> Result<(), StateError> {
    state.write(name, Zeroizing::new(format!("{text}\n")).as_bytes())
}

fn write_joined(state: &StateDir, name: &str, joined: &Joined) -> Result<(), IdentityError> {
    let text = serde_json::to_string_pretty(joined).map_err(|_| IdentityError::Damaged(name.to_owned()))?;
    Ok(write_line(state, name, &text)?)
}

fn read_joined(state: &StateDir, name: &str) -> Result<Option<Joined>, IdentityError> {
    let Some(bytes) = state.read(name)? else { return Ok(None) };
    serde_json::from_slice(&bytes).map(Some).map_err(|_| IdentityError::Damaged(name.to_owned()))
}

fn read_key(state: &StateDir, name: &str) -> Result<Option<PrivateKey>, IdentityError> {
    read_parsed(state, name)
}

fn read_psk(state: &StateDir, name: &str) -> Result<Option<Psk>, IdentityError> {
    read_parsed(state, name)
}

fn read_parsed<T: std::str::FromStr>(state: &StateDir, name: &str) -> Result<Option<T>, IdentityError> {
    let Some(text) = state.read_text(name)? else { return Ok(None) };
    text.parse().map(Some).map_err(|_| IdentityError::Damaged(name.to_owned()))
}

fn read_kem(state: &StateDir) -> Result<Option<KemKey>, IdentityError> {
    let name = joining("kem.seed");
    let Some(text) = state.read_text(&name)? else { return Ok(None) };
    let seed = STANDARD.decode(text.as_bytes()).map(Zeroizing::new).ok();
    let seed = seed.and_then(|seed| <[u8; 64]>::try_from(seed.as_slice()).ok());
    seed.map(|seed| Some(KemKey::from_seed(seed))).ok_or(IdentityError::Damaged(name))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn token(endpoints: &[&str]) -> Token {
        let refs = endpoints.iter().map(|text| RelayRef {
            endpoint: text.parse().unwrap(),
            public_key: PrivateKey::from_bytes([7; 32]).public_key(),
        });
        Token::generate(refs.collect())
    }

    fn store() -> (Store, StateDir) {
        let state = StateDir::temporary().unwrap();
        (Store::Directory(state.clone()), state)
    }

    fn admission(relay: &str) -> Admission {
        Admission {
            id: ConnectorId::new(),
            inner_address: "fd43:554c:5645::9".parse().unwrap(),
            tunnel: "shop".parse().unwrap(),
            relay: relay.to_owned(),
            psk: Psk::generate(),
            psk_epoch: 1,
        }
    }

    fn joined(store: &Store, token: &Token) -> Identity {
        let relays = relays_of(token.relays());
        let candidate = store.candidate(&fingerprint(token)).unwrap();
        let admission = admission(&relays[0].name);
        store.join(&candidate, relays, admission, SystemTime::now()).unwrap()
    }

    #[test]
    fn endpoints_of_one_key_are_one_relay_and_names_are_distinct() {
        let key = |byte| PrivateKey::from_bytes([byte; 32]).public_key();
        let refs =
            [("a.example:1", 1), ("[2001:db8::1]:1", 2), ("b.example:1", 1), ("a.example:2", 3), ("a.example:2", 4)]
                .map(|(text, byte)| RelayRef { endpoint: text.parse().unwrap(), public_key: key(byte) });
        let relays = relays_of(&refs);
        let names: Vec<_> = relays.iter().map(|relay| relay.name.as_str()).collect();
        assert_eq!(names, ["a.example", "2001_db8__1", "a.example_2", "a.example_2_"]);
        assert_eq!(relays[0].endpoints, ["a.example:1", "b.example:1"]);
    }

    #[test]
    fn a_relay_that_is_learned_stays_known_and_one_that_is_gone_leaves_nothing() {
        let (store, state) = store();
        let mut identity = joined(&store, &token(&["a.example:1"]));
        let later = Relay::new("b".to_owned(), PrivateKey::from_bytes([9; 32]).public_key(), vec!["b:1".to_owned()]);
        let both = vec![identity.joined.relays[0].clone(), later];
        store.know_relays(&mut identity, both).unwrap();
        store.enrolled_at(&mut identity, &admission("b"), SystemTime::now()).unwrap();
        assert!(!state.path().join(PRESHARED).exists(), "which one would it be");
        let loaded = store.load().unwrap().unwrap();
        assert_eq!((loaded.joined.relays.len(), loaded.psks.len()), (2, 2));
        let first = vec![identity.joined.relays[0].clone()];
        store.know_relays(&mut identity, first).unwrap();
        assert!(!state.path().join("relays/b").exists());
        assert_eq!(identity.psks.len(), 1);
    }

    #[test]
    fn a_candidate_is_the_same_for_the_same_token_and_another_for_another() {
        let (store, state) = store();
        let first = store.candidate("one").unwrap();
        let again = store.candidate("one").unwrap();
        assert!(first.private_key == again.private_key && first.kem.seed() == again.kem.seed());
        let other = store.candidate("two").unwrap();
        assert!(first.private_key != other.private_key);
        let mode = fs::metadata(state.path().join("joining/private.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn keys_that_were_not_marked_whole_are_not_used() {
        let (store, state) = store();
        let first = store.candidate("one").unwrap();
        state.remove("joining/token").unwrap();
        assert!(store.candidate("one").unwrap().private_key != first.private_key);
    }

    #[test]
    fn an_identity_survives_a_restart_and_needs_no_token() {
        let (store, state) = store();
        let token = token(&["relay.example:51820"]);
        let made = joined(&store, &token);
        let read = store.load().unwrap().unwrap();
        assert_eq!((read.joined.clone(), read.private_key == made.private_key), (made.joined, true));
        assert_eq!(read.psks, made.psks);
        assert_eq!(read.joined.token, fingerprint(&token));
        let text = |name: &str| fs::read_to_string(state.path().join(name)).unwrap();
        assert_eq!(text("preshared.key"), text("relays/relay.example/preshared.key"));
        assert_eq!(text("preshared.key").len(), 45, "as `wg genpsk` writes it");
        assert!(!state.path().join("joining").exists());
    }

    #[test]
    fn a_join_cut_short_at_any_file_is_completed_or_repeated_as_the_same_connector() {
        // Every prefix of the steps of `join`, made by hand: the state after it must lead to the same key.
        for cut in 0..7 {
            let (store, state) = store();
            let token = token(&["relay.example:51820"]);
            let relays = relays_of(token.relays());
            let candidate = store.candidate(&fingerprint(&token)).unwrap();
            let key = candidate.private_key.clone();
            let admission = admission("relay.example");
            if cut > 0 {
                state.create_dir("joining/relays/relay.example").unwrap();
                let psks = Psks::new(1, admission.psk.clone(), SystemTime::UNIX_EPOCH);
                write_psks(&state, JOINING, "relay.example", &psks).unwrap();
            }
            if cut > 1 {
                let mut relays = relays.clone();
                relays[0].psk_epoch = Some(1);
                let joined = Joined {
                    version: 1,
                    id: admission.id.clone(),
                    inner_address: admission.inner_address,
                    tunnel: admission.tunnel.clone(),
                    token: fingerprint(&token),
                    joined_seconds: 0,
                    rekeyed_seconds: None,
                    relays,
                };
                write_joined(&state, "joining/joined.json", &joined).unwrap();
            }
            if cut > 2 {
                rename(&state, "joining/private.key", "private.key").unwrap();
            }
            for (cut_before, name) in [(3, "preshared.key"), (4, "epochs.key")] {
                if cut > cut_before {
                    let name = format!("relays/relay.example/{name}");
                    state.create_dir("relays/relay.example").unwrap();
                    rename(&state, &format!("joining/{name}"), &name).unwrap();
                }
            }
            if cut > 5 {
                rename(&state, "joining/joined.json", "joined.json").unwrap();
            }
            match store.load().unwrap() {
                None => {
                    assert!(cut <= 1, "{cut}");
                    assert!(store.candidate(&fingerprint(&token)).unwrap().private_key == key);
                }
                Some(identity) => {
                    assert!(cut > 1 && identity.private_key == key, "{cut}");
                    let psks = identity.psks.get("relay.example").unwrap();
                    assert_eq!(psks.newest_key(), Some(&admission.psk), "{cut}");
                }
            }
        }
    }

    #[test]
    fn another_token_replaces_the_identity_only_once_it_worked() {
        let (store, state) = store();
        let old = joined(&store, &token(&["old.example:1"]));
        let new_token = token(&["new.example:1"]);
        let candidate = store.candidate(&fingerprint(&new_token)).unwrap();
        let read = store.load().unwrap().unwrap();
        assert!(read.private_key == old.private_key && candidate.private_key != old.private_key);
        let new = joined(&store, &new_token);
        assert!(new.private_key == candidate.private_key);
        assert!(store.load().unwrap().unwrap().private_key == new.private_key);
        assert!(!state.path().join("relays/old.example").exists());
    }

    #[test]
    fn a_second_relay_is_noted_beside_the_first() {
        let (store, _state) = store();
        let refs = ["a.example:1", "b.example:1"]
            .map(|text| RelayRef { endpoint: text.parse().unwrap(), public_key: PrivateKey::generate().public_key() });
        let token = Token::generate(refs.to_vec());
        let mut identity = joined(&store, &token);
        assert_eq!(identity.joined.relays[1].psk_epoch, None);
        let second = Admission { id: identity.joined.id.clone(), ..admission("b.example") };
        store.enrolled_at(&mut identity, &second, SystemTime::now()).unwrap();
        let read = store.load().unwrap().unwrap();
        assert_eq!((read.joined, read.psks), (identity.joined, identity.psks));
    }

    #[test]
    fn a_renewed_pre_shared_key_is_kept_beside_the_old_one_until_that_is_forgotten() {
        let (store, state) = store();
        let mut identity = joined(&store, &token(&["relay.example:51820"]));
        let now = SystemTime::now();
        store.renewed(&mut identity, "relay.example", Psk::from_bytes([2; 32]), 2, now).unwrap();
        assert_eq!(store.load().unwrap().unwrap().psks, identity.psks);
        let epochs = |identity: &Identity| identity.psks["relay.example"].for_engine().len();
        assert_eq!(epochs(&identity), 2);
        assert!(store.renewed(&mut identity, "relay.example", Psk::generate(), 5, now).is_err(), "a gap");
        assert!(store.renewed(&mut identity, "elsewhere", Psk::generate(), 2, now).is_err());
        store.used(&mut identity, "relay.example", 2, now).unwrap();
        store.forget_before(&mut identity, "relay.example", 2).unwrap();
        let read = store.load().unwrap().unwrap();
        assert_eq!((epochs(&read), &read.psks), (1, &identity.psks));
        let newest = Psk::from_bytes([2; 32]).to_base64();
        for copy in ["preshared.key", "relays/relay.example/preshared.key"] {
            assert_eq!(state.read_text(copy).unwrap().unwrap(), newest, "{copy}");
        }
        store.renewed(&mut identity, "relay.example", Psk::generate(), 3, now).unwrap();
        store.forget_before(&mut identity, "relay.example", 3).unwrap();
        store.renewed_anew(&mut identity, "relay.example", Psk::generate(), 9, now).unwrap();
        assert_eq!(store.load().unwrap().unwrap().psks, identity.psks);
        assert_eq!(identity.psks["relay.example"].newest(), Some(9));
    }

    #[test]
    fn an_identity_that_an_earlier_version_wrote_is_read() {
        let (store, state) = store();
        let made = joined(&store, &token(&["relay.example:51820"]));
        state.remove("relays/relay.example/epochs.key").unwrap();
        let read = store.load().unwrap().unwrap();
        let psks = |identity: &Identity| identity.psks["relay.example"].newest_key().cloned();
        assert_eq!((psks(&read), read.psks["relay.example"].newest()), (psks(&made), Some(1)));
    }

    #[test]
    fn a_damaged_file_is_named() {
        let (store, state) = store();
        joined(&store, &token(&["relay.example:51820"]));
        state.write("private.key", b"hello\n").unwrap();
        assert!(store.load().unwrap_err().to_string().contains("private.key"));
    }
}
