//! The suite's part on services that are managed at the relay, and on tokens for some of a tunnel's services.

use culvert_model::id::TunnelId;

use super::super::managed::MANAGED_AT_MOST;
use super::super::rows::{ManagedRow, TokenRow, Tunnel};
use super::super::{Enrolment, RegistryError, Rule};
use super::{MINUTE, START, Subject, candidate, create, grants, join, names, root, token};

pub(in crate::registry) async fn a_managed_service_is_loaded_as_it_was_set_last_and_forgotten_when_deleted(
    registry: Subject,
) {
    let (tunnel, _) = create(&registry, "dc1", &["orders", "billing-*"]).await;
    let first = managed("orders", &tunnel.id);
    let second = ManagedRow { host: Some("orders.example".to_owned()), since: START + MINUTE, ..first.clone() };
    let other = ManagedRow { health_path: Some("/healthz".to_owned()), ..managed("billing-eu", &tunnel.id) };
    for row in [&first, &second, &other] {
        registry.set_managed(row.clone(), root()).await.unwrap();
    }
    let snapshot = registry.load().await.unwrap();
    assert_eq!(snapshot.managed, [other.clone(), second]);
    let known: Vec<_> = snapshot.services.iter().map(|row| row.name.as_str()).collect();
    assert_eq!(known, ["billing-eu", "orders"], "a managed name is the tunnel's from then on");
    assert_eq!(registry.delete_service(other.name.clone(), root(), START).await.unwrap(), [tunnel.id]);
    let snapshot = registry.load().await.unwrap();
    assert_eq!((snapshot.managed.len(), snapshot.services.len()), (1, 1));
    let again = registry.delete_service(other.name.clone(), root(), START).await;
    assert_eq!(again, Err(Rule::NoSuchService(other.name).into()));
    let trail = registry.audit_since(START).await.unwrap();
    let set = trail.iter().find(|row| row.action == "service.set" && row.subject == "billing-eu").unwrap();
    assert_eq!(
        (set.actor.as_str(), set.detail.as_str()),
        ("uid 0", "tunnel dc1, http://billing-eu.internal:8080, health path /healthz")
    );
}

pub(in crate::registry) async fn a_tunnel_is_given_no_managed_service_that_it_may_not_serve(registry: Subject) {
    let (one, _) = create(&registry, "dc1", &["*"]).await;
    let (two, _) = create(&registry, "dc2", &["billing-*"]).await;
    create(&registry, "dc3", &["orders"]).await;
    let refused = async |name: &str, tunnel: &TunnelId| {
        let outcome = registry.set_managed(managed(name, tunnel), root()).await;
        match outcome.unwrap_err() {
            RegistryError::Rule(Rule::MayNotServe(why)) => why,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(refused("orders", &one.id).await, "orders belongs to tunnel dc3");
    assert_eq!(refused("users", &two.id).await, "tunnel dc2 is not granted users: it may serve billing-*");
    registry.set_managed(managed("billing-eu", &one.id), root()).await.unwrap();
    assert_eq!(refused("billing-eu", &two.id).await, "billing-eu belongs to tunnel dc1", "first come");
    let unknown = TunnelId::new();
    let nowhere = registry.set_managed(managed("orders", &unknown), root()).await;
    assert_eq!(nowhere, Err(Rule::NoSuchTunnel(unknown).into()));
    registry.delete_tunnel(one.id, root(), START).await.unwrap();
    assert!(registry.load().await.unwrap().managed.is_empty(), "they go with their tunnel");
    registry.set_managed(managed("billing-eu", &two.id), root()).await.unwrap();
}

pub(in crate::registry) async fn managed_services_of_a_tunnel_fit_one_message(registry: Subject) {
    let (tunnel, _) = create(&registry, "dc1", &["*"]).await;
    let long = |number: usize| ManagedRow {
        health_path: Some(format!("/{}", "x".repeat(1000))),
        ..managed(&format!("s{number}"), &tunnel.id)
    };
    let no_room: RegistryError = Rule::NoRoomToManage(tunnel.name.clone()).into();
    let mut count = 0;
    let refused = loop {
        match registry.set_managed(long(count), root()).await {
            Ok(()) => count += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(refused, no_room);
    assert!((40..60).contains(&count), "{count}");
    let told: Vec<_> = registry.load().await.unwrap().managed.iter().map(ManagedRow::told).collect();
    let mut bytes = Vec::new();
    let message = culvert_model::control::ToConnector::Manage { services: told };
    culvert_model::control::encode(&message, &mut bytes).expect("what is taken can be told");
    registry.set_managed(long(0), root()).await.expect("one that is there is changed");
    for number in 0..count {
        registry.set_managed(managed(&format!("s{number}"), &tunnel.id), root()).await.unwrap();
    }
    for number in count..MANAGED_AT_MOST {
        registry.set_managed(managed(&format!("s{number}"), &tunnel.id), root()).await.unwrap();
    }
    let beyond = registry.set_managed(managed("beyond", &tunnel.id), root()).await;
    assert_eq!(beyond, Err(no_room));
    let known = registry.load().await.unwrap().services;
    assert!(known.iter().all(|row| row.name.as_str() != "beyond"), "nothing of what is refused stays");
}

pub(in crate::registry) async fn a_token_for_some_services_narrows_who_joins_with_it_and_counts_its_uses(
    registry: Subject,
) {
    let (tunnel, _) = create(&registry, "dc1", &["orders", "billing-*"]).await;
    let narrow = TokenRow { services: grants(&["billing-eu", "*ers"]), ..token(&tunnel, Some(2)) };
    registry.create_token(narrow.clone(), root()).await.unwrap();
    let wide = TokenRow { services: grants(&["users"]), ..token(&tunnel, None) };
    let beyond = registry.create_token(wide, root()).await;
    let Tunnel { name, .. } = &tunnel;
    assert_eq!(beyond, Err(Rule::NotGranted { tunnel: name.clone(), grant: "users".parse().unwrap() }.into()));
    let mine = candidate(&narrow, START);
    let id = join(&registry, mine.clone()).await;
    assert_eq!(join(&registry, mine.clone()).await, id);
    let snapshot = registry.load().await.unwrap();
    let connector = snapshot.connectors.iter().find(|one| one.id == id).unwrap();
    assert_eq!(connector.services, narrow.services);
    let used = snapshot.tokens.iter().find(|one| one.id == narrow.id).unwrap();
    assert_eq!((used.used, used.uses_left, &used.services), (1, Some(1), &narrow.services), "a repeat is no use");
    let whole = token(&tunnel, Some(1));
    registry.create_token(whole.clone(), root()).await.unwrap();
    let again = super::super::Candidate { token: whole.id.clone(), ..mine };
    let Enrolment::Joined { connector, .. } = registry.enrol(again).await.unwrap() else { panic!("not let in") };
    assert_eq!((connector.id, connector.services), (id, Vec::new()), "the last token counts");
    let trail = registry.audit_since(START).await.unwrap();
    let made = trail.iter().find(|row| row.action == "token.create" && row.subject == narrow.id.as_str()).unwrap();
    assert!(made.detail.ends_with("services billing-eu *ers"), "{}", made.detail);
    assert_eq!(registry.announce(tunnel.id, names(&["orders"]), START).await.unwrap().accepted.len(), 1);
}

fn managed(name: &str, tunnel: &TunnelId) -> ManagedRow {
    ManagedRow {
        name: name.parse().unwrap(),
        tunnel: tunnel.clone(),
        origin: format!("http://{name}.internal:8080"),
        host: None,
        health_path: None,
        since: START,
    }
}
