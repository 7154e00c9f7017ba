//! Enrolment: from a token's holder to a member with a key of its own (wire.md §3).
//!
//! Must never let one token use count twice, nor a secret reach the registry in clear.

use std::net::SocketAddr;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use culvert_engine::PskEpoch;
use culvert_model::control::{Enrol, Enrolled, Refusal, Rekeyed, Subject, ToConnector, VERSION};
use culvert_model::id::{ConnectorId, TokenId};
use culvert_model::kem;
use culvert_model::key::{Psk, PublicKey};
use culvert_ops::time::rfc3339;

use crate::identity::{Identity, SealedFor, Unsealable};
use crate::registry::{
    Candidate, ConnectorRow, Enrolment, FreshPsk, Registry, RegistryError, Rule, SealedPsk, TokenRow, TokenSealRow,
};
use crate::relays;

/// The longest program version that is remembered.
const PROGRAM_BYTES: usize = 64;

/// A connector that was let in.
#[derive(Debug)]
pub(crate) struct Admitted {
    /// What to answer.
    pub(crate) answer: Enrolled,
    /// Its row.
    pub(crate) connector: ConnectorRow,
    /// Its pre-shared keys with this relay, newest last; at most two.
    pub(crate) psks: Vec<PskEpoch>,
    /// Whether it had been let in before (then its peer may exist, and only its keys changed).
    pub(crate) repeated: bool,
}

/// The bootstrap session that a request came over.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Via {
    /// Where its end is.
    pub(crate) source: SocketAddr,
    /// The key of this relay that its token names: not the newest, perhaps, in the grace of a rotation. The pre-shared
    /// key is bound to it, because the joiner knows no other.
    pub(crate) relay_key: PublicKey,
}

/// Why a connector is not enrolled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    /// For good: tell it, as `ToConnector::Refused`.
    #[error("refused for good")]
    ForGood {
        /// Why.
        refusal: Refusal,
        /// RFC 3339, where known.
        at: Option<String>,
        /// The token, or the connector's own key.
        of: Subject,
    },
    /// The token is not known any more: close without a word.
    #[error("no such token")]
    Unknown,
    /// Not now: close without an answer, it comes again.
    #[error(transparent)]
    Later(#[from] RegistryError),
    /// Not now, and not before somebody repaired the state directory.
    #[error(transparent)]
    Broken(#[from] Unsealable),
}

/// Enrols the holder of `token`, or repeats what was answered before.
///
/// Cancel safe: a dropped future loses the answer at most, and the connector asks again.
///
/// # Errors
/// [`Refused`].
pub(crate) async fn enrol(
    registry: &dyn Registry,
    identity: &Identity,
    token: &TokenId,
    request: Enrol,
    via: Via,
    now: SystemTime,
) -> Result<Admitted, Refused> {
    let for_good = |refusal| Refused::ForGood { refusal, at: None, of: Subject::Token };
    if request.version != VERSION {
        return Err(for_good(Refusal::Version));
    }
    let kem_key = STANDARD.decode(&request.kem_key).map_err(|_| for_good(Refusal::Malformed))?;
    let (ciphertext, psk) =
        kem::encapsulate(&kem_key, &via.relay_key, &request.public_key).map_err(|_| for_good(Refusal::Malformed))?;
    let candidate = Candidate {
        token: token.clone(),
        id: ConnectorId::new(),
        public_key: request.public_key,
        relay: identity.relay_tag(),
        psk: identity.seal(&psk, SealedFor::Connector(&request.public_key)),
        name: request.name,
        ephemeral: request.ephemeral,
        program: program(&request.program),
        source: via.source,
        now,
    };
    match registry.enrol(candidate).await? {
        Enrolment::Joined { connector, tunnel, epoch, repeated } => {
            let answer = Enrolled {
                id: connector.id.clone(),
                inner_address: connector.inner_address,
                ciphertext: STANDARD.encode(ciphertext),
                psk_epoch: epoch,
                tunnel: tunnel.name,
            };
            let psks = psks_of(&connector, identity)?;
            Ok(Admitted { answer, connector: *connector, psks, repeated })
        }
        Enrolment::Refused { refusal, at } => {
            Err(Refused::ForGood { refusal, at: at.map(rfc3339), of: Subject::Token })
        }
        Enrolment::Gone { at } => {
            Err(Refused::ForGood { refusal: Refusal::Revoked, at: Some(rfc3339(at)), of: Subject::Connector })
        }
        Enrolment::Unknown => Err(Refused::Unknown),
    }
}

/// The bootstrap identity of a token: public key and pre-shared key.
///
/// # Errors
/// [`Unsealable`]: leave the token out and say so.
pub(crate) fn bootstrap_of(
    row: &TokenRow,
    seals: &[TokenSealRow],
    identity: &Identity,
) -> Result<(PublicKey, Psk), Unsealable> {
    Ok((row.bootstrap_key, relays::token_psk(row, seals, identity)?))
}

/// A connector's pre-shared keys with this relay, newest last; at most two, none if it joined at another relay.
///
/// # Errors
/// [`Unsealable`]: leave the connector out and say so.
pub(crate) fn psks_of(row: &ConnectorRow, identity: &Identity) -> Result<Vec<PskEpoch>, Unsealable> {
    opened(&row.psks, &row.public_key, identity)
}

/// The pre-shared keys of a connector's next key with this relay, newest last; none if it has none, or told another relay.
///
/// # Errors
/// [`Unsealable`].
pub(crate) fn next_psks_of(row: &ConnectorRow, identity: &Identity) -> Result<Vec<PskEpoch>, Unsealable> {
    let Some(next) = &row.next else { return Ok(Vec::new()) };
    opened(&next.psks, &next.public_key, identity)
}

fn opened(psks: &[SealedPsk], key: &PublicKey, identity: &Identity) -> Result<Vec<PskEpoch>, Unsealable> {
    let here = identity.relay_tag();
    let ours = psks.iter().filter(|sealed| sealed.relay == here);
    // Kept for as long as the peer is: with room for what is in it and no more.
    let mut opened = Vec::with_capacity(ours.clone().count());
    for sealed in ours {
        let psk = identity.unseal(&sealed.sealed, SealedFor::Connector(key))?;
        opened.push(PskEpoch { epoch: sealed.epoch, psk });
    }
    Ok(opened)
}

/// What a connector with a session asks for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fresh<'a> {
    /// Which connector.
    pub(crate) connector: &'a ConnectorId,
    /// The static key that the fresh pre-shared key is for.
    pub(crate) public_key: &'a PublicKey,
    /// The static key that its session is under.
    pub(crate) under: &'a PublicKey,
    /// The epoch that its session hangs on.
    pub(crate) epoch: Option<u32>,
}

/// Why there is no fresh key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotRenewed {
    /// The request makes no sense, or breaks a rule: tell it.
    #[error("refused: {0}")]
    Refused(String),
    /// Not now: it asks again.
    #[error(transparent)]
    Later(RegistryError),
    /// Not now, and not before somebody repaired the state directory.
    #[error(transparent)]
    Broken(#[from] Unsealable),
}

impl From<RegistryError> for NotRenewed {
    fn from(error: RegistryError) -> Self {
        match error {
            RegistryError::Rule(Rule::KeyTaken) => {
                Self::Refused("another connector or a token has that key, or it is the one in use".to_owned())
            }
            RegistryError::Rule(rule) => Self::Refused(rule.to_string()),
            error => Self::Later(error),
        }
    }
}

/// Gives a connector a next static key, with a pre-shared key of its own. Both its keys are to be answered from then on.
///
/// Cancel safe, as [`enrol`].
///
/// # Errors
/// [`NotRenewed`].
pub(crate) async fn rekey(
    registry: &dyn Registry,
    identity: &Identity,
    fresh: &Fresh<'_>,
    kem_key: &str,
    now: SystemTime,
) -> Result<(Rekeyed, ConnectorRow), NotRenewed> {
    let relay_key = identity.public_key();
    let (ciphertext, asked) = exchange(identity, fresh, &relay_key, kem_key, now)?;
    let (psk_epoch, row) = registry.rekey(asked).await?;
    let answer = Rekeyed { public_key: *fresh.public_key, ciphertext, psk_epoch, relay_key: Some(relay_key) };
    Ok((answer, row))
}

/// Gives a connector its next pre-shared key under the static key it uses; and all it has then, newest last.
///
/// Cancel safe, as [`enrol`].
///
/// # Errors
/// [`NotRenewed`].
pub(crate) async fn renew(
    registry: &dyn Registry,
    identity: &Identity,
    fresh: &Fresh<'_>,
    kem_key: &str,
    now: SystemTime,
) -> Result<(ToConnector, Vec<PskEpoch>), NotRenewed> {
    let relay_key = identity.public_key();
    let (ciphertext, asked) = exchange(identity, fresh, &relay_key, kem_key, now)?;
    let (psk_epoch, row) = registry.renew(asked).await?;
    let is_next = row.next.as_ref().is_some_and(|next| next.public_key == *fresh.public_key);
    let psks = if is_next { next_psks_of(&row, identity)? } else { psks_of(&row, identity)? };
    Ok((
        ToConnector::Renewed { ciphertext, psk_epoch, relay_key: Some(relay_key), public_key: Some(*fresh.public_key) },
        psks,
    ))
}

/// The relay's half of an ML-KEM-768 exchange: the ciphertext, and what the registry is asked to keep.
fn exchange(
    identity: &Identity,
    fresh: &Fresh<'_>,
    relay_key: &PublicKey,
    kem_key: &str,
    now: SystemTime,
) -> Result<(String, FreshPsk), NotRenewed> {
    let malformed = || NotRenewed::Refused("its ML-KEM-768 key is malformed".to_owned());
    let kem_key = STANDARD.decode(kem_key).map_err(|_| malformed())?;
    let (ciphertext, psk) = kem::encapsulate(&kem_key, relay_key, fresh.public_key).map_err(|_| malformed())?;
    let asked = FreshPsk {
        connector: fresh.connector.clone(),
        public_key: *fresh.public_key,
        asked_under: *fresh.under,
        in_use: fresh.epoch.filter(|_| fresh.public_key == fresh.under),
        relay: identity.relay_tag(),
        psk: identity.seal(&psk, SealedFor::Connector(fresh.public_key)),
        now,
    };
    Ok((STANDARD.encode(ciphertext), asked))
}

/// What a peer says of its version, fit for listings and logs.
pub(crate) fn program(told: &str) -> String {
    told.chars().filter(|c| c.is_ascii_graphic()).take(PROGRAM_BYTES).collect()
}

#[cfg(test)]
mod tests {
    use culvert_model::id::TunnelId;
    use culvert_model::kem::KemKey;
    use culvert_model::key::PrivateKey;
    use culvert_model::token::{RelayRef, Token};
    use culvert_ops::state::StateDir;
    use futures_util::FutureExt as _;

    use super::*;
    use crate::identity::open_state;
    use crate::registry::{Actor, Tunnel, Url};

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    #[tokio::test]
    async fn both_ends_hold_the_same_pre_shared_key_and_the_registry_holds_it_sealed() {
        let relay = Relay::with_token(Some(1)).await;
        let joiner = Joiner::new();
        let admitted = relay.enrol(joiner.request()).await.unwrap();
        assert_eq!((admitted.answer.psk_epoch, admitted.repeated), (1, false));
        assert_eq!(admitted.answer.inner_address, culvert_model::address::connector_inner(&admitted.answer.id));
        assert_eq!(admitted.answer.tunnel.as_str(), "dc1");
        assert_eq!(admitted.psks.last().unwrap().psk, joiner.psk(&admitted.answer, &relay));
        let row = relay.registry.load().await.unwrap().connectors.remove(0);
        assert_eq!(row, admitted.connector);
        let clear = joiner.psk(&admitted.answer, &relay);
        assert!(!row.psks[0].sealed.0.windows(32).any(|window| window == clear.as_bytes()));
        assert_eq!(psks_of(&row, &relay.identity).unwrap()[0].psk, clear);
    }

    #[tokio::test]
    async fn dying_at_any_step_and_asking_again_costs_no_second_use() {
        let relay = Relay::with_token(Some(1)).await;
        let joiner = Joiner::new();
        // Dropped before asking, and while the transaction runs.
        drop(relay.enrol(joiner.request()));
        assert!(relay.enrol(joiner.request()).now_or_never().is_none(), "the registry has a thread of its own");
        // The relay dies too: the registry is opened again.
        let relay = relay.restarted();
        let admitted = relay.enrol(joiner.request()).await.unwrap();
        let again = relay.enrol(joiner.request()).await.unwrap();
        assert_eq!(admitted.answer.id, again.answer.id);
        assert!(again.repeated);
        assert_eq!(again.psks.last().unwrap().psk, joiner.psk(&again.answer, &relay), "the last answer counts");
        assert_eq!(relay.registry.load().await.unwrap().connectors.len(), 1);
        let other = relay.enrol(Joiner::new().request()).await.unwrap_err();
        let spent = Refused::ForGood {
            refusal: Refusal::UsedUp,
            at: Some("1970-01-01T00:00:00Z".to_owned()),
            of: Subject::Token,
        };
        assert_eq!(other, spent);
    }

    #[tokio::test]
    async fn two_epochs_at_most_and_told_apart_by_their_parity() {
        let relay = Relay::with_token(None).await;
        let joiner = Joiner::new();
        for asked in 1..5u32 {
            let admitted = relay.enrol(joiner.request()).await.unwrap();
            let epochs: Vec<u32> = admitted.psks.iter().map(|psk| psk.epoch).collect();
            assert_eq!(epochs, if asked == 1 { vec![1] } else { vec![asked - 1, asked] });
        }
    }

    #[tokio::test]
    async fn nonsense_is_refused_for_good_and_costs_nothing() {
        let relay = Relay::with_token(Some(1)).await;
        let good = Joiner::new().request();
        for (request, refusal) in [
            (Enrol { version: VERSION + 1, ..good.clone() }, Refusal::Version),
            (Enrol { kem_key: "AAAA".to_owned(), ..good.clone() }, Refusal::Malformed),
            (Enrol { kem_key: "not base64!".to_owned(), ..good.clone() }, Refusal::Malformed),
        ] {
            assert_eq!(
                relay.enrol(request).await.unwrap_err(),
                Refused::ForGood { refusal, at: None, of: Subject::Token }
            );
        }
        assert!(relay.enrol(good).await.is_ok());
        let never = TokenId::new();
        let request = Joiner::new().request();
        let unknown = super::enrol(relay.registry.as_ref(), &relay.identity, &never, request, relay.via(), NOW);
        assert_eq!(unknown.await.unwrap_err(), Refused::Unknown);
    }

    #[tokio::test]
    async fn a_tokens_holder_and_the_relay_agree_on_the_bootstrap_identity() {
        let relay = Relay::with_token(Some(1)).await;
        let row = relay.registry.load().await.unwrap().tokens.remove(0);
        let (key, psk) = bootstrap_of(&row, &[], &relay.identity).unwrap();
        assert_eq!(key, relay.token.bootstrap_key().public_key());
        assert_eq!(psk, relay.token.bootstrap_psk());
        let stranger = Identity::open(&StateDir::temporary().unwrap(), true).unwrap();
        assert_eq!(bootstrap_of(&row, &[], &stranger).unwrap_err(), Unsealable);
    }

    #[test]
    fn a_peers_version_is_made_fit_to_be_shown() {
        assert_eq!(program("1.2.3\u{1b}[2J \n"), "1.2.3[2J");
        assert_eq!(program(&"x".repeat(1000)).len(), PROGRAM_BYTES);
    }

    struct Relay {
        state: StateDir,
        identity: Identity,
        registry: std::sync::Arc<dyn Registry>,
        token: Token,
        id: TokenId,
    }

    impl Relay {
        async fn with_token(uses_left: Option<u32>) -> Self {
            let state = StateDir::temporary().unwrap();
            let (identity, registry) = open_state(&state, &Url::default()).unwrap();
            let endpoint = "relay.example.com:51820".parse().unwrap();
            let token = Token::generate(vec![RelayRef { endpoint, public_key: identity.public_key() }]);
            let tunnel = Tunnel {
                id: TunnelId::new(),
                name: "dc1".parse().unwrap(),
                grants: vec!["orders".parse().unwrap()],
                shared: false,
                created: NOW,
            };
            let bootstrap_key = token.bootstrap_key().public_key();
            let row = TokenRow {
                id: TokenId::new(),
                tunnel: tunnel.id.clone(),
                bootstrap_key,
                psk: identity.seal(&token.bootstrap_psk(), SealedFor::Token(&bootstrap_key)),
                services: Vec::new(),
                sources: Vec::new(),
                used: 0,
                uses_left,
                expires: None,
                revoked: None,
                created: NOW,
                last_used: None,
            };
            let id = row.id.clone();
            registry.create_tunnel(tunnel, row, Actor("uid 0".to_owned())).await.unwrap();
            Self { state, identity, registry, token, id }
        }

        async fn enrol(&self, request: Enrol) -> Result<Admitted, Refused> {
            super::enrol(self.registry.as_ref(), &self.identity, &self.id, request, self.via(), NOW).await
        }

        fn via(&self) -> Via {
            Via { source: "192.0.2.9:4000".parse().unwrap(), relay_key: self.identity.public_key() }
        }

        fn restarted(self) -> Self {
            drop(self.registry);
            let (identity, registry) = open_state(&self.state, &Url::default()).unwrap();
            Self { identity, registry, ..self }
        }
    }

    struct Joiner {
        key: PrivateKey,
        kem: KemKey,
    }

    impl Joiner {
        fn new() -> Self {
            Self { key: PrivateKey::generate(), kem: KemKey::generate() }
        }

        fn request(&self) -> Enrol {
            Enrol {
                version: VERSION,
                public_key: self.key.public_key(),
                kem_key: STANDARD.encode(self.kem.encapsulation_key()),
                name: None,
                ephemeral: false,
                program: "1.0.0".to_owned(),
            }
        }

        fn psk(&self, answer: &Enrolled, relay: &Relay) -> Psk {
            let ciphertext = STANDARD.decode(&answer.ciphertext).unwrap();
            self.kem.decapsulate(&ciphertext, &relay.identity.public_key(), &self.key.public_key()).unwrap()
        }
    }
}
