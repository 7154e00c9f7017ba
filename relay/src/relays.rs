//! The relays that share this one's registry: what this one says of itself, and does so that any of them can serve.
//!
//! Must never hand another relay a key but sealed for it.

use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use culvert_model::control::{RelayPlace, ToConnector};
use culvert_model::id::ConnectorId;
use culvert_model::kem;
use culvert_model::key::{Psk, PublicKey};
use culvert_model::token::{Endpoint, MAX_RELAYS, RelayRef};
use tracing::{debug, info};

use crate::identity::{Identity, SealedFor, Unsealable, seal_for};
use crate::registry::{Introduction, PeerRow, PeerSealRow, Registry, RelayRow, Snapshot, TokenRow, TokenSealRow};

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

/// As [`missing_seals`], of stock peers' pre-shared keys.
pub(crate) fn missing_peer_seals(snapshot: &Snapshot, identity: &Identity) -> Vec<PeerSealRow> {
    let own = identity.relay_tag();
    let others = || snapshot.relays.iter().filter(|relay| relay.tag != own);
    let mut missing = Vec::new();
    for peer in snapshot.peers.iter().filter(|peer| peer.revoked.is_none() && peer.psk.is_some()) {
        let has =
            |relay: &RelayRow| snapshot.peer_seals.iter().any(|seal| seal.peer == peer.id && seal.relay == relay.tag);
        let without: Vec<&RelayRow> = others().filter(|relay| !has(relay)).collect();
        if without.is_empty() {
            continue;
        }
        let Ok(Some(psk)) = peer_psk(peer, &snapshot.peer_seals, identity) else { continue };
        for relay in without {
            match seal_for(&relay.kem_key, &psk, SealedFor::Peer(&peer.public_key)) {
                Ok(sealed) => {
                    missing.push(PeerSealRow { peer: peer.id.clone(), relay: relay.tag.clone(), sealed });
                }
                Err(error) => debug!(relay = relay.tag, %error, "a peer's key cannot be shared"),
            }
        }
    }
    missing
}

/// A stock peer's pre-shared key, whichever relay was told it; none where it has none.
///
/// # Errors
/// [`Unsealable`]: not shared with this relay yet, or the registry is another relay's.
pub(crate) fn peer_psk(peer: &PeerRow, seals: &[PeerSealRow], identity: &Identity) -> Result<Option<Psk>, Unsealable> {
    let Some(sealed) = &peer.psk else { return Ok(None) };
    let own = identity.relay_tag();
    let shared = seals.iter().find(|seal| seal.peer == peer.id && seal.relay == own).map(|seal| &seal.sealed);
    identity.unseal(shared.unwrap_or(sealed), SealedFor::Peer(&peer.public_key)).map(Some)
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

#[cfg(test)]
mod tests {
    use culvert_model::id::{TokenId, TunnelId};
    use culvert_model::key::PrivateKey;
    use culvert_ops::state::StateDir;

    use super::*;

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    #[test]
    fn a_token_that_one_relay_made_is_opened_by_every_other_and_by_nobody_else() {
        let (one, two, three) = (identity(), identity(), identity());
        let relays = vec![row(&one, "a:1"), row(&two, "b:1")];
        let (token, psk) = token(&one);
        let mut snapshot = Snapshot { relays, tokens: vec![token.clone()], ..Snapshot::default() };
        assert!(missing_seals(&snapshot, &two, NOW).is_empty(), "it cannot open it itself");
        snapshot.token_seals = missing_seals(&snapshot, &one, NOW);
        assert_eq!(snapshot.token_seals.len(), 1);
        assert!(missing_seals(&snapshot, &one, NOW).is_empty());
        for relay in [&one, &two] {
            assert_eq!(token_psk(&token, &snapshot.token_seals, relay), Ok(psk.clone()));
        }
        assert_eq!(token_psk(&token, &snapshot.token_seals, &three), Err(Unsealable));
        // A third comes: whoever can open the token shares it, not only who made it.
        snapshot.relays.push(row(&three, "c:1"));
        let more = missing_seals(&snapshot, &two, NOW);
        assert!(more.iter().any(|seal| seal.relay == three.relay_tag()), "{}", more.len());
        snapshot.token_seals.extend(more);
        assert_eq!(token_psk(&token, &snapshot.token_seals, &three), Ok(psk));
    }

    #[test]
    fn a_peers_pre_shared_key_that_one_relay_was_told_is_opened_by_every_other() {
        let (one, two, three) = (identity(), identity(), identity());
        let (psk, key) = (Psk::generate(), PrivateKey::generate().public_key());
        let peer = PeerRow {
            id: culvert_model::id::StockPeerId::new(),
            name: "branch".parse().unwrap(),
            public_key: key,
            allowed_ips: Vec::new(),
            inner_ipv4: None,
            endpoint: None,
            psk: Some(one.seal(&psk, SealedFor::Peer(&key))),
            keepalive: None,
            dns: None,
            created: NOW,
            heard: Vec::new(),
            last_endpoint: None,
            last_handshake: None,
            revoked: None,
        };
        let relays = vec![row(&one, "a:1"), row(&two, "b:1")];
        let mut snapshot = Snapshot { relays, peers: vec![peer.clone()], ..Snapshot::default() };
        assert!(missing_peer_seals(&snapshot, &two).is_empty(), "it cannot open it itself");
        assert_eq!(peer_psk(&peer, &[], &two), Err(Unsealable));
        snapshot.peer_seals = missing_peer_seals(&snapshot, &one);
        assert_eq!(snapshot.peer_seals.len(), 1);
        for relay in [&one, &two] {
            assert_eq!(peer_psk(&peer, &snapshot.peer_seals, relay), Ok(Some(psk.clone())));
        }
        assert!(missing_peer_seals(&snapshot, &one).is_empty());
        snapshot.relays.push(row(&three, "c:1"));
        snapshot.peer_seals.extend(missing_peer_seals(&snapshot, &two));
        assert_eq!(peer_psk(&peer, &snapshot.peer_seals, &three), Ok(Some(psk)));
        let without = PeerRow { psk: None, ..peer };
        assert_eq!(peer_psk(&without, &snapshot.peer_seals, &three), Ok(None));
    }

    #[test]
    fn tokens_name_this_relay_first_and_others_that_were_there_lately() {
        let (one, two, three, four) = (identity(), identity(), identity(), identity());
        let gone = RelayRow { seen: NOW, ..row(&three, "c:1") };
        let hidden = RelayRow { endpoints: Vec::new(), ..row(&four, "d:1") };
        let now = NOW + LATELY;
        let here = RelayRow { seen: now, ..row(&two, "b:1") };
        let relays = [row(&one, "a:1"), here, gone, RelayRow { seen: now, ..hidden }];
        let named = named(vec!["a:1".parse().unwrap(), "a:2".parse().unwrap()], &one, &relays, now);
        let shown: Vec<_> = named.iter().map(|one| (one.endpoint.to_string(), one.public_key)).collect();
        let (a, b) = (one.public_key(), two.public_key());
        assert_eq!(shown, [("a:1".to_owned(), a), ("a:2".to_owned(), a), ("b:1".to_owned(), b)]);
    }

    #[test]
    fn connectors_are_told_of_all_relays_unless_there_is_one_alone() {
        let (one, two) = (identity(), identity());
        let (own, alone) = (one.relay_tag(), [row(&one, "a:1")]);
        assert_eq!(told(&alone, &own, NOW), None);
        let both = [row(&two, "b:1"), row(&one, "a:1")];
        let Some(ToConnector::Relays { own: by, relays }) = told(&both, &own, NOW) else { panic!("nothing is told") };
        let tags: Vec<_> = relays.into_iter().map(|place| place.tag).collect();
        assert_eq!((by, tags), (own.clone(), vec![own.clone(), two.relay_tag()]));
        // One that is gone for a day is left out: connectors let it go.
        let Some(ToConnector::Relays { relays, .. }) = told(&both, &own, NOW + LATELY) else {
            panic!("nothing is told")
        };
        assert_eq!(relays.len(), 1);
    }

    fn identity() -> Identity {
        Identity::open(&StateDir::temporary().unwrap(), true).unwrap()
    }

    fn row(identity: &Identity, endpoint: &str) -> RelayRow {
        own(identity, &[endpoint.parse().unwrap()], NOW)
    }

    fn token(maker: &Identity) -> (TokenRow, Psk) {
        let bootstrap_key = PrivateKey::generate().public_key();
        let psk = Psk::generate();
        let row = TokenRow {
            id: TokenId::new(),
            tunnel: TunnelId::new(),
            bootstrap_key,
            psk: maker.seal(&psk, SealedFor::Token(&bootstrap_key)),
            services: Vec::new(),
            sources: Vec::new(),
            used: 0,
            uses_left: None,
            expires: None,
            revoked: None,
            created: NOW,
            last_used: None,
        };
        (row, psk)
    }
}
