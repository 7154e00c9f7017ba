//! The relays that share this one's registry: what this one says of itself, and does so that any of them can serve.
//!
//! Must never hand another relay a key but sealed for it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use culvert_model::control::{RelayPlace, ToConnector};
use culvert_model::id::ConnectorId;
use culvert_model::kem;
use culvert_model::key::{Psk, PublicKey};
use culvert_model::token::{Endpoint, MAX_RELAYS, RelayRef};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::{debug, info};

use crate::control::Control;
use crate::identity::{Identity, SealedFor, Unsealable, seal_for};
use crate::registry::{Introduction, Registry, RelayRow, Snapshot, TokenRow, TokenSealRow};

/// How often a relay says that it is there.
const SAID_EVERY: Duration = Duration::from_secs(30);
/// A database that is away is not waited for longer.
const SAID_WITHIN: Duration = Duration::from_secs(10);
/// A relay that was not there for so long is named to nobody; it is learned again when it is back.
const LATELY: Duration = Duration::from_secs(86_400);

/// What this relay says of itself.
pub(crate) fn own(identity: &Identity, endpoints: &[Endpoint], now: SystemTime) -> RelayRow {
    RelayRow {
        tag: identity.relay_tag(),
        public_key: identity.public_key(),
        kem_key: identity.encapsulation_key(),
        endpoints: endpoints.iter().map(ToString::to_string).collect(),
        seen: now,
    }
}

/// Says it again and again.
pub(crate) async fn say(control: Arc<Control>) {
    let mut ticks = interval(SAID_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let own = own(&control.identity, &control.endpoints(), SystemTime::now());
        match timeout(SAID_WITHIN, control.registry.note_relay(own)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => debug!(%error, "other relays were not told"),
            Err(_) => debug!("other relays were not told in time"),
        }
    }
}

/// The relays as connectors are told of them; none where there is only one.
pub(crate) fn told(relays: &[RelayRow], own: &str, now: SystemTime) -> Option<ToConnector> {
    let place = |relay: &RelayRow| RelayPlace {
        tag: relay.tag.clone(),
        public_key: relay.public_key,
        endpoints: relay.endpoints.clone(),
    };
    let mut places: Vec<RelayPlace> = others(relays, own, now).map(place).collect();
    let own_place = relays.iter().find(|relay| relay.tag == own).map(place)?;
    // Alone again is worth a word too: those that are gone are still listed, and no longer lately.
    if relays.len() < 2 {
        return None;
    }
    places.insert(0, own_place);
    Some(ToConnector::Relays { own: own.to_owned(), relays: places })
}

/// What a new token names: this relay first, then the others of its registry, as many as fit.
pub(crate) fn named(
    endpoints: Vec<Endpoint>,
    identity: &Identity,
    relays: &[RelayRow],
    now: SystemTime,
) -> Vec<RelayRef> {
    let public_key = identity.public_key();
    let mut named: Vec<RelayRef> = endpoints.into_iter().map(|endpoint| RelayRef { endpoint, public_key }).collect();
    for relay in others(relays, &identity.relay_tag(), now) {
        let endpoints = relay.endpoints.iter().filter_map(|text| text.parse().ok());
        named.extend(endpoints.map(|endpoint| RelayRef { endpoint, public_key: relay.public_key }));
    }
    named.truncate(MAX_RELAYS);
    named
}

/// What other relays cannot open yet and this one can give them.
pub(crate) fn missing_seals(snapshot: &Snapshot, identity: &Identity, now: SystemTime) -> Vec<TokenSealRow> {
    let own = identity.relay_tag();
    let others: Vec<&RelayRow> = snapshot.relays.iter().filter(|relay| relay.tag != own).collect();
    let mut missing = Vec::new();
    if others.is_empty() {
        return missing;
    }
    for token in snapshot.tokens.iter().filter(|token| !token.is_forgotten(now)) {
        let has = |relay: &RelayRow| {
            snapshot.token_seals.iter().any(|seal| seal.token == token.id && seal.relay == relay.tag)
        };
        let without: Vec<&&RelayRow> = others.iter().filter(|relay| !has(relay)).collect();
        if without.is_empty() {
            continue;
        }
        let Ok(psk) = token_psk(token, &snapshot.token_seals, identity) else { continue };
        for relay in without {
            match seal_for(&relay.kem_key, &psk, SealedFor::Token(&token.bootstrap_key)) {
                Ok(sealed) => {
                    missing.push(TokenSealRow { token: token.id.clone(), relay: relay.tag.clone(), sealed });
                }
                Err(error) => debug!(relay = relay.tag, %error, "a token cannot be shared"),
            }
        }
    }
    missing
}

/// A token's pre-shared key, whichever relay made it.
///
/// # Errors
/// [`Unsealable`]: not shared with this relay yet, or the registry is another relay's.
pub(crate) fn token_psk(token: &TokenRow, seals: &[TokenSealRow], identity: &Identity) -> Result<Psk, Unsealable> {
    let of = SealedFor::Token(&token.bootstrap_key);
    let own = identity.relay_tag();
    match seals.iter().find(|seal| seal.token == token.id && seal.relay == own) {
        Some(seal) => identity.unseal(&seal.sealed, of),
        None => identity.unseal(&token.psk, of),
    }
}

/// Who asks to be made known to another relay.
pub(crate) struct Asked<'a> {
    /// Which connector.
    pub(crate) connector: &'a ConnectorId,
    /// Its key, as the session has it.
    pub(crate) public_key: PublicKey,
    /// To which relay.
    pub(crate) to: &'a str,
    /// Its encapsulation key, base64.
    pub(crate) kem_key: &'a str,
}

/// Makes a connector known to another relay, and answers what it needs to speak to that one; none when that cannot be.
pub(crate) async fn introduce(
    registry: &dyn Registry,
    identity: &Identity,
    relays: &[RelayRow],
    asked: &Asked<'_>,
    now: SystemTime,
) -> Option<ToConnector> {
    let to = relays.iter().find(|relay| relay.tag == asked.to)?;
    let kem_key = STANDARD.decode(asked.kem_key).ok()?;
    let (ciphertext, psk) = kem::encapsulate(&kem_key, &to.public_key, &asked.public_key).ok()?;
    let psk = seal_for(&to.kem_key, &psk, SealedFor::Connector(&asked.public_key)).ok()?;
    let introduction = Introduction {
        connector: asked.connector.clone(),
        public_key: asked.public_key,
        by: identity.relay_tag(),
        to: to.tag.clone(),
        psk,
        now,
    };
    match registry.introduce(introduction).await {
        Ok(psk_epoch) => {
            info!(connector = %asked.connector, relay = to.tag, "connector made known to another relay");
            Some(ToConnector::Introduced {
                relay: to.tag.clone(),
                public_key: asked.public_key,
                relay_key: to.public_key,
                ciphertext: STANDARD.encode(ciphertext),
                psk_epoch,
            })
        }
        Err(error) => {
            debug!(connector = %asked.connector, relay = to.tag, %error, "connector not made known to another relay");
            None
        }
    }
}

fn others<'a>(relays: &'a [RelayRow], own: &'a str, now: SystemTime) -> impl Iterator<Item = &'a RelayRow> {
    let lately = move |relay: &&RelayRow| relay.tag != own && relay.seen + LATELY > now && !relay.endpoints.is_empty();
    relays.iter().filter(lately)
}
