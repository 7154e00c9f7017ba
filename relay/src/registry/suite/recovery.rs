//! The suite's part on registries that come back from a backup.

use super::super::{AuditRow, Candidate, Enrolment, FreshPsk, Note, Sealed};
use super::{START, Subject, candidate, create, join, sealed};

pub(in crate::registry) async fn a_restored_registry_offers_each_connector_its_first_pre_shared_key_too(
    registry: Subject,
) {
    let (_, token) = create(&registry, "dc1", &["orders"]).await;
    let member = candidate(&token, START);
    let id = join(&registry, member.clone()).await;
    let relay = member.relay.clone();
    let confirmed = |epoch, alone| Note::PskConfirmed { connector: id.clone(), relay: relay.clone(), epoch, alone };
    let keys = async || -> Vec<(u32, Sealed)> {
        let row = registry.load().await.unwrap().connectors.remove(0);
        row.psks.into_iter().map(|psk| (psk.epoch, psk.sealed)).collect()
    };
    let restored = async || registry.restored(relay.clone(), line()).await.unwrap();

    // The first is the one in use: nothing changes.
    registry.note(vec![confirmed(1, true)]).await.unwrap();
    restored().await;
    assert_eq!(keys().await, [(1, member.psk.clone())]);

    // Somebody who holds the token repeats the enrolment; nobody uses what came of it.
    registry.enrol(Candidate { psk: sealed(), ..member.clone() }).await.unwrap();
    restored().await;
    assert_eq!(keys().await, [(1, member.psk.clone())], "what was never used does not count");

    // The connector itself does, and uses it: that is its first one now.
    let again = Candidate { psk: sealed(), ..member.clone() };
    let Enrolment::Joined { epoch: 2, .. } = registry.enrol(again.clone()).await.unwrap() else {
        panic!("it is known")
    };
    registry.note(vec![confirmed(2, true)]).await.unwrap();
    restored().await;
    assert_eq!(keys().await, [(2, again.psk.clone())]);

    // Renewed since: both stand side by side, under numbers that one bit tells apart.
    let row = registry.load().await.unwrap().connectors.remove(0);
    let fresh = |psk: &Sealed, in_use| FreshPsk {
        connector: id.clone(),
        public_key: row.public_key,
        asked_under: row.public_key,
        in_use: Some(in_use),
        relay: relay.clone(),
        psk: psk.clone(),
        now: START,
    };
    let (third, fourth) = (sealed(), sealed());
    assert_eq!(registry.renew(fresh(&third, 2)).await.unwrap().0, 3);
    registry.note(vec![confirmed(3, true)]).await.unwrap();
    // Never confirmed: the backup was made before the connector used it, so it may or may not have it.
    assert_eq!(registry.renew(fresh(&fourth, 3)).await.unwrap().0, 4);
    restored().await;
    assert_eq!(keys().await, [(2, again.psk.clone()), (3, third)]);
    let trail = registry.audit_since(START).await.unwrap();
    assert_eq!(trail.iter().filter(|line| line.action == "relay.restore").count(), 4);
    // A revoked one keeps none, not even that.
    registry.revoke_connector(id.clone(), super::root(), START).await.unwrap();
    restored().await;
    assert_eq!(keys().await, []);
}

fn line() -> AuditRow {
    AuditRow {
        at: START,
        actor: "uid 0".to_owned(),
        action: "relay.restore".to_owned(),
        subject: "relay".to_owned(),
        detail: String::new(),
    }
}
