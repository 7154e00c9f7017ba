//! The suite's part on the keys of connectors: renewed, changed and retired.

use culvert_model::id::ConnectorId;
use culvert_model::key::PublicKey;

use super::super::rows::{ConnectorRow, Sealed, TokenRow};
use super::super::{Enrolment, FreshPsk, Note, RegistryError, Rule};
use super::{MINUTE, START, Subject, candidate, create, root};

const HERE: &str = "here";

pub(in crate::registry) async fn a_fresh_pre_shared_key_stands_beside_the_one_in_use(registry: Subject) {
    let member = member(&registry).await;
    let ask = |in_use, byte| FreshPsk { in_use, ..fresh(&member, member.public_key, member.public_key, byte) };
    let (epoch, row) = registry.renew(ask(Some(1), 2)).await.unwrap();
    assert_eq!((epoch, epochs(&row)), (2, vec![(1, 1), (2, 2)]));
    // Its answer was lost: what nobody has used is replaced.
    let (epoch, row) = registry.renew(ask(Some(1), 3)).await.unwrap();
    assert_eq!((epoch, epochs(&row)), (2, vec![(1, 1), (2, 3)]));
    // In use, and not noted yet: it stays all the same.
    let (epoch, row) = registry.renew(ask(Some(2), 4)).await.unwrap();
    assert_eq!((epoch, epochs(&row)), (3, vec![(2, 3), (3, 4)]));
    assert_eq!(registry.load().await.unwrap().connectors, [row]);
    let stranger = key(99);
    let wrong = fresh(&member, stranger, stranger, 5);
    assert_eq!(registry.renew(wrong).await.unwrap_err(), no_such(&member.id), "it has no such key");
    registry.revoke_connector(member.id.clone(), root(), START).await.unwrap();
    assert_eq!(registry.renew(ask(Some(3), 6)).await.unwrap_err(), no_such(&member.id));
}

pub(in crate::registry) async fn a_next_key_is_known_beside_the_old_one_until_it_stays_alone(registry: Subject) {
    let member = member(&registry).await;
    let (old, new) = (member.public_key, key(7));
    let (epoch, row) = registry.rekey(fresh(&member, new, old, 2)).await.unwrap();
    assert_eq!((epoch, row.public_key), (1, old));
    let next = row.next.clone().unwrap();
    assert_eq!((next.public_key, next.since, next.psks[0].sealed.0[0]), (new, START + MINUTE, 2));
    assert_eq!(registry.load().await.unwrap().connectors, [row], "a relay that starts answers both");
    // Asked again: the same key, another secret beside the first.
    let (epoch, _) = registry.rekey(fresh(&member, new, old, 3)).await.unwrap();
    assert_eq!(epoch, 2);
    let retired = registry.retire_key(member.id.clone(), old, START).await.unwrap();
    assert_eq!(retired, None, "the key it has needs no word to stay");
    let row = registry.retire_key(member.id.clone(), new, START).await.unwrap().unwrap();
    assert_eq!((row.public_key, row.key_since, row.next.as_ref()), (new, START + MINUTE, None));
    assert_eq!((epochs(&row), &row.id, row.inner_address), (vec![(1, 2), (2, 3)], &member.id, member.inner_address));
    assert_eq!(registry.load().await.unwrap().connectors, [row]);
    assert_eq!(registry.retire_key(member.id.clone(), new, START).await.unwrap(), None, "saying so twice is fine");
    let trail = registry.audit_since(START).await.unwrap();
    let told = |action: &str| trail.iter().filter(|row| row.action == action).collect::<Vec<_>>();
    let [rotate] = told("connector.rotate").try_into().unwrap();
    assert_eq!((rotate.actor.as_str(), &rotate.detail), (member.id.as_str(), &format!("next key {new}")));
    let [rotated] = told("connector.rotated").try_into().unwrap();
    assert_eq!(rotated.detail, format!("key {new}, in place of {old}"));
}

pub(in crate::registry) async fn a_key_that_anybody_has_is_nobody_elses_next_one(registry: Subject) {
    let (tunnel, token) = create(&registry, "dc1", &["orders"]).await;
    let second = super::token(&tunnel, None);
    registry.create_token(second.clone(), root()).await.unwrap();
    let (one, other) = (joined(&registry, &second).await, joined(&registry, &second).await);
    registry.rekey(fresh(&other, key(7), other.public_key, 1)).await.unwrap();
    for taken in [one.public_key, other.public_key, key(7), token.bootstrap_key, second.bootstrap_key] {
        let refused = registry.rekey(fresh(&one, taken, one.public_key, 1)).await.unwrap_err();
        assert_eq!(refused, RegistryError::Rule(Rule::KeyTaken), "{taken}");
    }
    let row = registry.load().await.unwrap().connectors.into_iter().find(|row| row.id == one.id).unwrap();
    assert_eq!(row, one, "a refused request changes nothing");
    // Nor can it be joined with.
    let thief = super::Candidate { public_key: key(7), ..candidate(&second, START) };
    assert!(matches!(registry.enrol(thief).await.unwrap(), Enrolment::Refused { .. }));
    let foreign = registry.retire_key(one.id.clone(), key(7), START).await.unwrap();
    assert_eq!(foreign, None);
}

pub(in crate::registry) async fn a_connector_that_changes_again_goes_on_from_the_key_it_uses(registry: Subject) {
    let member = member(&registry).await;
    let old = member.public_key;
    registry.rekey(fresh(&member, key(7), old, 2)).await.unwrap();
    // It gave the first try up, and still uses the old key.
    let (_, row) = registry.rekey(fresh(&member, key(8), old, 3)).await.unwrap();
    assert_eq!((row.public_key, row.next.unwrap().public_key), (old, key(8)));
    // It uses the next key, and the word that the old one is done with was lost.
    let (_, row) = registry.rekey(fresh(&member, key(9), key(8), 4)).await.unwrap();
    assert_eq!((row.public_key, row.next.as_ref().unwrap().public_key), (key(8), key(9)));
    assert_eq!(epochs(&row), [(1, 3)], "with the secrets of that key");
    registry.revoke_connector(member.id.clone(), root(), START).await.unwrap();
    let row = registry.load().await.unwrap().connectors.remove(0);
    assert_eq!((row.next, row.psks), (None, Vec::new()), "both keys are worth nothing");
    let late = registry.retire_key(member.id.clone(), key(9), START).await.unwrap_err();
    assert_eq!(late, no_such(&member.id));
}

pub(in crate::registry) async fn since_when_traffic_is_safe_is_remembered_from_the_first_handshake(registry: Subject) {
    let member = member(&registry).await;
    assert_eq!((member.safe_since, member.key_since), (None, member.enrolled));
    for at in [START + MINUTE, START + 2 * MINUTE] {
        registry.note(vec![Note::Handshake { connector: member.id.clone(), at }]).await.unwrap();
    }
    let row = registry.load().await.unwrap().connectors.remove(0);
    assert_eq!(row.safe_since, Some(START + MINUTE));
}

async fn member(registry: &Subject) -> ConnectorRow {
    let (_, token) = create(registry, "dc1", &["orders"]).await;
    joined(registry, &token).await
}

async fn joined(registry: &Subject, token: &TokenRow) -> ConnectorRow {
    let asks = super::Candidate { psk: Sealed(vec![1; 72]), relay: HERE.to_owned(), ..candidate(token, START) };
    match registry.enrol(asks).await.unwrap() {
        Enrolment::Joined { connector, .. } => *connector,
        other => panic!("{other:?}"),
    }
}

fn fresh(member: &ConnectorRow, public_key: PublicKey, asked_under: PublicKey, byte: u8) -> FreshPsk {
    FreshPsk {
        connector: member.id.clone(),
        public_key,
        asked_under,
        in_use: None,
        relay: HERE.to_owned(),
        psk: Sealed(vec![byte; 72]),
        now: START + MINUTE,
    }
}

/// Each epoch with this relay, and the first byte of its secret.
fn epochs(row: &ConnectorRow) -> Vec<(u32, u8)> {
    row.psks.iter().filter(|psk| psk.relay == HERE).map(|psk| (psk.epoch, psk.sealed.0[0])).collect()
}

fn key(byte: u8) -> PublicKey {
    PublicKey::from_bytes([byte; 32])
}

fn no_such(id: &ConnectorId) -> RegistryError {
    Rule::NoSuchConnector(id.clone()).into()
}
