//! The suite's part on relays that share a registry.

use std::time::Duration;

use super::super::rows::{RelayRow, TokenSealRow};
use super::super::{Introduction, Rule};
use super::{MINUTE, START, Subject, candidate, create, join, key, root, sealed};

pub(in crate::registry) async fn relays_of_one_registry_know_each_other_and_when_they_were_last_there(
    registry: Subject,
) {
    let (one, two) = (relay("one"), relay("two"));
    for row in [&two, &one, &one] {
        registry.note_relay(row.clone()).await.unwrap();
    }
    assert_eq!(registry.load().await.unwrap().relays, [one.clone(), two.clone()]);
    let later = RelayRow { seen: START + MINUTE, ..one.clone() };
    registry.note_relay(later.clone()).await.unwrap();
    registry.note_relay(one.clone()).await.unwrap();
    assert_eq!(registry.load().await.unwrap().relays[0], later, "a clock that goes back changes nothing");
    let moved = RelayRow { public_key: key(), endpoints: vec!["b:1".to_owned(), "c:1".to_owned()], ..later };
    registry.note_relay(moved.clone()).await.unwrap();
    assert_eq!(registry.load().await.unwrap().relays, [moved, two]);
    let trail = registry.audit_since(START).await.unwrap();
    let told: Vec<_> = trail.iter().map(|row| (row.action.as_str(), row.subject.as_str())).collect();
    assert_eq!(told, [("relay.join", "one")], "the first was alone, and being there is no event");
}

pub(in crate::registry) async fn a_token_is_sealed_once_for_each_relay_and_anew_when_that_one_lost_its_key(
    registry: Subject,
) {
    let (_, token) = create(&registry, "dc1", &["orders"]).await;
    let two = relay("two");
    registry.note_relay(relay("one")).await.unwrap();
    registry.note_relay(two.clone()).await.unwrap();
    let seal = TokenSealRow { token: token.id.clone(), relay: "two".to_owned(), sealed: sealed() };
    let again = TokenSealRow { sealed: sealed(), ..seal.clone() };
    let nowhere = TokenSealRow { relay: "three".to_owned(), ..seal.clone() };
    let of_none = TokenSealRow { token: culvert_model::id::TokenId::new(), ..seal.clone() };
    registry.seal_tokens(vec![seal.clone(), again.clone(), nowhere, of_none]).await.unwrap();
    assert_eq!(registry.load().await.unwrap().token_seals, [seal], "the first stays, and what fits nothing is skipped");
    registry.note_relay(RelayRow { kem_key: vec![9; 3], ..two }).await.unwrap();
    assert_eq!(registry.load().await.unwrap().token_seals, []);
    registry.seal_tokens(vec![again.clone()]).await.unwrap();
    assert_eq!(registry.load().await.unwrap().token_seals, [again]);
}

pub(in crate::registry) async fn a_connector_is_made_known_to_a_relay_of_the_registry_under_its_own_key(
    registry: Subject,
) {
    let (_, token) = create(&registry, "dc1", &["orders"]).await;
    registry.note_relay(relay("here")).await.unwrap();
    registry.note_relay(relay("two")).await.unwrap();
    let asks = candidate(&token, START);
    let id = join(&registry, asks.clone()).await;
    let introduction = Introduction {
        connector: id.clone(),
        public_key: asks.public_key,
        by: "here".to_owned(),
        to: "two".to_owned(),
        psk: sealed(),
        now: START,
    };
    let elsewhere = Introduction { to: "three".to_owned(), ..introduction.clone() };
    assert_eq!(registry.introduce(elsewhere).await, Err(Rule::NoSuchRelay("three".to_owned()).into()));
    let as_another = Introduction { public_key: key(), ..introduction.clone() };
    assert_eq!(registry.introduce(as_another).await, Err(Rule::NoSuchConnector(id.clone()).into()));
    assert_eq!(registry.introduce(introduction.clone()).await, Ok(1));
    let row = registry.load().await.unwrap().connectors.remove(0);
    let at = |relay: &str| row.psks.iter().filter(|psk| psk.relay == relay).collect::<Vec<_>>();
    assert_eq!((at("here").len(), at("two").len()), (1, 1));
    assert_eq!((at("two")[0].epoch, &at("two")[0].sealed), (1, &introduction.psk));
    assert!(at("two/recovery").is_empty(), "what is kept for a restore is no key of any relay");
    registry.revoke_connector(id.clone(), root(), START).await.unwrap();
    assert_eq!(registry.introduce(introduction).await, Err(Rule::NoSuchConnector(id).into()));
}

pub(in crate::registry) async fn a_relay_that_was_not_there_for_thirty_days_is_forgotten(registry: Subject) {
    let day = Duration::from_secs(86_400);
    registry.note_relay(relay("gone")).await.unwrap();
    registry.note_relay(RelayRow { seen: START + day, ..relay("here") }).await.unwrap();
    registry.forget(Vec::new(), START + 30 * day).await.unwrap();
    assert_eq!(registry.load().await.unwrap().relays.len(), 2);
    registry.forget(Vec::new(), START + 30 * day + MINUTE).await.unwrap();
    let left: Vec<_> = registry.load().await.unwrap().relays.into_iter().map(|relay| relay.tag).collect();
    assert_eq!(left, ["here"]);
}

fn relay(tag: &str) -> RelayRow {
    RelayRow {
        tag: tag.to_owned(),
        public_key: culvert_model::key::PublicKey::from_bytes([7; 32]),
        kem_key: vec![1, 2, 3],
        endpoints: vec!["relay.example.com:51820".to_owned()],
        seen: START,
    }
}
