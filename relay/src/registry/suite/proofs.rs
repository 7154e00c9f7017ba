//! The suite's part on what connectors sign for their origins.

use culvert_model::id::ConnectorId;
use culvert_model::proof::{Algorithm, ProofKey};

use super::super::Note;
use super::{START, Subject, candidate, create, join, root};

pub(in crate::registry) async fn what_connectors_sign_with_is_kept_as_it_was_told_last_until_they_are_revoked(
    registry: Subject,
) {
    let (tunnel, first) = create(&registry, "dc1", &["orders"]).await;
    let second = super::token(&tunnel, None);
    registry.create_token(second.clone(), root()).await.unwrap();
    let one = join(&registry, candidate(&first, START)).await;
    let other = join(&registry, candidate(&second, START)).await;
    let told = |connector: &ConnectorId, keys: &[ProofKey]| {
        registry.note(vec![Note::ProofKeys { connector: connector.clone(), keys: keys.to_vec() }])
    };
    told(&one, &[key(1), key(2)]).await.unwrap();
    told(&other, &[key(3)]).await.unwrap();
    told(&ConnectorId::new(), &[key(4)]).await.unwrap();
    assert_eq!(kept(&registry).await, [(one.clone(), vec![key(1), key(2)]), (other.clone(), vec![key(3)])]);
    told(&one, &[key(2), key(5)]).await.unwrap();
    told(&other, &[]).await.unwrap();
    assert_eq!(kept(&registry).await, [(one.clone(), vec![key(2), key(5)])]);
    told(&other, &[key(3)]).await.unwrap();
    registry.revoke_connector(one.clone(), root(), START).await.unwrap();
    // Its session may say so while it is revoked.
    told(&one, &[key(2)]).await.unwrap();
    assert_eq!(kept(&registry).await, [(other, vec![key(3)])]);
    registry.delete_tunnel(tunnel.id, root(), START).await.unwrap();
    assert_eq!(kept(&registry).await, []);
}

async fn kept(registry: &Subject) -> Vec<(ConnectorId, Vec<ProofKey>)> {
    let connectors = registry.load().await.unwrap().connectors.into_iter();
    let mut kept: Vec<_> =
        connectors.map(|row| (row.id, row.proof_keys)).filter(|(_, keys)| !keys.is_empty()).collect();
    kept.sort_by_key(|(_, keys)| keys[0].x.clone());
    kept
}

fn key(byte: u8) -> ProofKey {
    ProofKey::new(Algorithm::EdDsa, &[byte; 32]).unwrap()
}
