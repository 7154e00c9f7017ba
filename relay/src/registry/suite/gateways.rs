//! The suite's part on gateways.

use std::sync::Arc;
use std::time::SystemTime;

use culvert_model::gateway::{GatewaySecret, SecretVerifier};
use culvert_model::id::GatewayId;

use super::super::rows::{Certificate, GatewayRow, SecretRow};
use super::super::{GatewayChange, Note, RegistryError, Rule, SECRETS_AT_MOST, TOMBSTONE};
use super::{MINUTE, START, Subject, grants, root};

pub(in crate::registry) async fn a_gateway_is_loaded_as_it_was_created_and_its_name_is_free_when_it_is_revoked(
    registry: Subject,
) {
    let digest = Certificate::Sha256([7; 32]);
    let first = GatewayRow { certificate: Some(digest.clone()), ..gateway("kong", &["orders", "billing-*"]) };
    registry.create_gateway(first.clone(), root()).await.unwrap();
    assert_eq!(registry.load().await.unwrap().gateways, std::slice::from_ref(&first));
    let san = Some(Certificate::San("kong.example".to_owned()));
    let second = GatewayRow { certificate: san, created: START + MINUTE, ..gateway("kong", &["*"]) };
    let taken = registry.create_gateway(second.clone(), root()).await;
    assert_eq!(taken, Err(Rule::GatewayExists(first.name.clone()).into()));
    for at in [START + MINUTE, START + 2 * MINUTE] {
        registry.revoke_gateway(first.id.clone(), root(), at).await.unwrap();
    }
    registry.create_gateway(second.clone(), root()).await.unwrap();
    let both = registry.load().await.unwrap().gateways;
    assert_eq!(both, [GatewayRow { revoked: Some(START + MINUTE), ..first.clone() }, second]);
    let set = registry.set_gateway(first.id.clone(), GatewayChange::default(), root(), START).await;
    assert_eq!(set, Err(Rule::NoSuchGateway(first.id.clone()).into()));
    let rotated = registry.rotate_gateway(first.id.clone(), secret(START), START, root()).await;
    assert_eq!(rotated, Err(Rule::NoSuchGateway(first.id).into()));
    let unknown = GatewayId::new();
    let gone = registry.revoke_gateway(unknown.clone(), root(), START).await;
    assert_eq!(gone, Err(Rule::NoSuchGateway(unknown).into()));
    let trail = registry.audit_since(START).await.unwrap();
    let told: Vec<_> =
        trail.iter().map(|row| (row.action.as_str(), row.actor.as_str(), row.subject.as_str())).collect();
    let line = |action| (action, "uid 0", "kong");
    assert_eq!(told, [line("gateway.create"), line("gateway.revoke"), line("gateway.create")]);
    assert!(trail[0].detail.contains("orders billing-*") && trail[0].detail.contains(&digest.to_string()));
}

pub(in crate::registry) async fn what_a_gateway_may_call_changes_and_never_to_nothing(registry: Subject) {
    let row = gateway("kong", &["orders", "users"]);
    registry.create_gateway(row.clone(), root()).await.unwrap();
    let set = |replace: Option<&[&str]>, add: &[&str], remove: &[&str]| {
        let (replace, add, remove) = (replace.map(grants), grants(add), grants(remove));
        let change = GatewayChange { replace, add, remove, certificate: None };
        registry.set_gateway(row.id.clone(), change, root(), START)
    };
    let after = set(None, &["billing-*", "orders"], &["users"]).await.unwrap();
    assert_eq!(after.grants, grants(&["orders", "billing-*"]), "one that is there is not there twice");
    assert_eq!(registry.load().await.unwrap().gateways, std::slice::from_ref(&after));
    let missing = Rule::NotGrantedToGateway { gateway: row.name.clone(), grant: "users".parse().unwrap() };
    assert_eq!(set(None, &[], &["users"]).await, Err(missing.into()));
    assert_eq!(set(None, &[], &["orders", "billing-*"]).await, Err(Rule::NothingToCall(row.name.clone()).into()));
    assert_eq!(registry.load().await.unwrap().gateways, [after], "what is refused changes nothing");
    assert_eq!(set(Some(&["a", "b"]), &[], &[]).await.unwrap().grants, grants(&["a", "b"]));
    assert!(registry.audit_since(START).await.unwrap().iter().any(|row| row.action == "gateway.set"));
}

pub(in crate::registry) async fn one_certificate_names_one_gateway(registry: Subject) {
    let san = Some(Certificate::San("kong.example".to_owned()));
    let first = GatewayRow { certificate: san.clone(), ..gateway("kong", &["*"]) };
    let second = gateway("nginx", &["*"]);
    registry.create_gateway(first.clone(), root()).await.unwrap();
    registry.create_gateway(second.clone(), root()).await.unwrap();
    let take = |id: &GatewayId, certificate: Option<Certificate>| {
        let change = GatewayChange { certificate: Some(certificate), ..GatewayChange::default() };
        registry.set_gateway(id.clone(), change, root(), START)
    };
    let taken = RegistryError::from(Rule::CertificateTaken { certificate: san.clone().unwrap(), owner: first.name });
    assert_eq!(take(&second.id, san.clone()).await, Err(taken.clone()));
    let third = GatewayRow { certificate: san.clone(), ..gateway("caddy", &["*"]) };
    assert_eq!(registry.create_gateway(third, root()).await, Err(taken));
    assert_eq!(take(&first.id, san.clone()).await.unwrap().certificate, san, "its own is no other's");
    assert_eq!(take(&first.id, None).await.unwrap().certificate, None);
    assert_eq!(take(&second.id, san.clone()).await.unwrap().certificate, san);
    let digest = Some(Certificate::Sha256([1; 32]));
    assert_eq!(take(&second.id, digest.clone()).await.unwrap().certificate, digest);
}

pub(in crate::registry) async fn a_rotated_secret_ends_after_its_grace_and_few_work_at_once(registry: Subject) {
    let row = gateway("kong", &["*"]);
    registry.create_gateway(row.clone(), root()).await.unwrap();
    let rotate = |now, until| registry.rotate_gateway(row.id.clone(), secret(now), until, root());
    let once = rotate(START, START + 3 * MINUTE).await.unwrap();
    assert_eq!(once.secrets[0], SecretRow { until: Some(START + 3 * MINUTE), ..row.secrets[0].clone() });
    assert_eq!((once.secrets.len(), once.secrets[1].until), (2, None));
    let twice = rotate(START + MINUTE, START + 9 * MINUTE).await.unwrap();
    let ends: Vec<_> = twice.secrets.iter().map(|secret| secret.until).collect();
    assert_eq!(ends, [Some(START + 3 * MINUTE), Some(START + 9 * MINUTE), None], "no rotation lengthens a life");
    let later = rotate(START + 4 * MINUTE, START + 9 * MINUTE).await.unwrap();
    assert_eq!(later.secrets.len(), 3, "what has ended is gone");
    for _ in 0..2 * SECRETS_AT_MOST {
        let many = rotate(START + 4 * MINUTE, START + 9 * MINUTE).await.unwrap();
        assert!(many.secrets.len() <= SECRETS_AT_MOST && many.secrets.last().unwrap().until.is_none());
    }
    let at_once = rotate(START + 5 * MINUTE, START + 5 * MINUTE).await.unwrap();
    assert!(at_once.secrets.iter().all(|secret| secret.until.is_none() || !secret.is_valid(START + 5 * MINUTE)));
    registry.forget(Vec::new(), START + 9 * MINUTE).await.unwrap();
    assert_eq!(registry.load().await.unwrap().gateways[0].secrets.len(), 1);
}

pub(in crate::registry) async fn when_a_gateway_called_is_kept_and_never_goes_back(registry: Subject) {
    let row = gateway("kong", &["*"]);
    registry.create_gateway(row.clone(), root()).await.unwrap();
    let used = |gateway: &GatewayId, at| Note::GatewayUsed { gateway: gateway.clone(), at };
    let notes = vec![used(&row.id, START + MINUTE), used(&GatewayId::new(), START), used(&row.id, START)];
    registry.note(notes).await.unwrap();
    assert_eq!(registry.load().await.unwrap().gateways[0].last_used, Some(START + MINUTE));
}

pub(in crate::registry) async fn a_revoked_gateway_is_forgotten_after_thirty_days(registry: Subject) {
    let (gone, stays) = (gateway("kong", &["*"]), gateway("nginx", &["*"]));
    for row in [&gone, &stays] {
        registry.create_gateway(row.clone(), root()).await.unwrap();
    }
    registry.revoke_gateway(gone.id.clone(), root(), START).await.unwrap();
    let left = |at| {
        let registry = Arc::clone(&registry);
        async move {
            registry.forget(Vec::new(), at).await.unwrap();
            let gateways = registry.load().await.unwrap().gateways;
            gateways.into_iter().map(|row| row.id).collect::<Vec<_>>()
        }
    };
    assert_eq!(left(START + TOMBSTONE - MINUTE).await, [gone.id, stays.id.clone()]);
    assert_eq!(left(START + TOMBSTONE).await, [stays.id]);
}

fn gateway(name: &str, patterns: &[&str]) -> GatewayRow {
    GatewayRow {
        id: GatewayId::new(),
        name: name.parse().unwrap(),
        grants: grants(patterns),
        secrets: vec![secret(START)],
        certificate: None,
        created: START,
        last_used: None,
        revoked: None,
    }
}

fn secret(created: SystemTime) -> SecretRow {
    SecretRow { verifier: SecretVerifier::new(&GatewaySecret::generate()), created, until: None }
}
