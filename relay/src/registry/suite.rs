//! What every engine must do: one suite, run against each of them through the trait alone.

mod gateways;
mod keys;
mod managed;
mod peers;
mod proofs;
mod recovery;
mod relays;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use culvert_model::control::Refusal;
use culvert_model::id::{ConnectorId, TokenId, TunnelId};
use culvert_model::key::{PrivateKey, PublicKey, random};
use culvert_model::name::{Grant, Label, ServiceName};

use super::rows::{AuditRow, Sealed, TokenRow, TokenState, Tunnel};
use super::{Actor, Candidate, EPHEMERAL, Enrolment, Note, REPEAT, Registry, RegistryError, Rule, TOMBSTONE};

/// Makes the suite's tests for an engine: `open()` gives an empty registry and what must live as long
/// as it, or nothing where the engine is not to be had.
macro_rules! suite {
    ($open:path) => {
        $crate::registry::suite::suite!(
            $open:
            what_was_created_is_loaded_again,
            a_tunnels_name_is_free_again_after_its_deletion,
            an_exact_grant_has_one_owner_unless_both_share_it,
            an_exact_grant_takes_its_name_from_anothers_pattern,
            grants_change_and_services_that_lost_theirs_are_forgotten,
            an_announcement_is_decided_and_remembered,
            fifty_parallel_redemptions_of_a_one_use_token_let_one_in,
            a_token_of_three_uses_lets_three_in,
            the_same_key_with_the_same_token_gets_the_same_id_and_costs_nothing,
            one_key_asking_many_times_at_once_is_one_member,
            a_spent_token_says_so_and_a_repeat_works_for_a_day,
            a_revoked_connector_learns_it_from_its_token,
            a_token_used_from_elsewhere_is_refused_and_keeps_its_use,
            an_unknown_token_gets_silence,
            a_deleted_tunnel_revokes_tokens_and_connectors,
            a_confirmed_pre_shared_key_survives_a_repeated_enrolment,
            what_was_noticed_is_kept,
            draining_is_remembered_and_undone,
            tombstones_are_forgotten_after_thirty_days,
            ephemeral_connectors_are_forgotten_ten_minutes_after_their_last_handshake,
            every_change_is_audited_with_who_and_what,
            a_fresh_pre_shared_key_stands_beside_the_one_in_use,
            a_next_key_is_known_beside_the_old_one_until_it_stays_alone,
            a_key_that_anybody_has_is_nobody_elses_next_one,
            a_connector_that_changes_again_goes_on_from_the_key_it_uses,
            since_when_traffic_is_safe_is_remembered_from_the_first_handshake,
            what_connectors_sign_with_is_kept_as_it_was_told_last_until_they_are_revoked,
            a_restored_registry_offers_each_connector_its_first_pre_shared_key_too,
            a_tunnel_has_room_for_so_many_services_and_a_deleted_one_makes_room,
            a_managed_service_is_loaded_as_it_was_set_last_and_forgotten_when_deleted,
            a_tunnel_is_given_no_managed_service_that_it_may_not_serve,
            managed_services_of_a_tunnel_fit_one_message,
            a_token_for_some_services_narrows_who_joins_with_it_and_counts_its_uses,
            a_gateway_is_loaded_as_it_was_created_and_its_name_is_free_when_it_is_revoked,
            what_a_gateway_may_call_changes_and_never_to_nothing,
            one_certificate_names_one_gateway,
            a_rotated_secret_ends_after_its_grace_and_few_work_at_once,
            when_a_gateway_called_is_kept_and_never_goes_back,
            a_revoked_gateway_is_forgotten_after_thirty_days,
            relays_of_one_registry_know_each_other_and_when_they_were_last_there,
            a_token_is_sealed_once_for_each_relay_and_anew_when_that_one_lost_its_key,
            a_connector_is_made_known_to_a_relay_of_the_registry_under_its_own_key,
            a_relay_that_was_not_there_for_thirty_days_is_forgotten,
            a_peer_is_loaded_as_it_was_added_and_free_again_when_it_is_deleted,
            networks_of_two_peers_never_overlap_and_the_relays_are_nobodys,
            a_name_and_a_key_are_one_peers_alone,
            a_peers_keys_change_and_what_other_relays_had_of_them_goes,
            a_service_behind_a_peer_is_owned_like_an_exact_grant,
            what_was_noticed_of_a_peer_is_kept_for_each_relay,
            two_relays_that_add_overlapping_peers_at_once_add_one,
            services_behind_a_peer_are_so_many_at_most
        );
    };
    ($open:path: $($name:ident),*) => {$(
        #[tokio::test]
        async fn $name() {
            let Some((registry, _keep)) = $open() else { return };
            $crate::registry::suite::$name(registry).await;
        }
    )*};
}
pub(super) use gateways::{
    a_gateway_is_loaded_as_it_was_created_and_its_name_is_free_when_it_is_revoked,
    a_revoked_gateway_is_forgotten_after_thirty_days, a_rotated_secret_ends_after_its_grace_and_few_work_at_once,
    one_certificate_names_one_gateway, what_a_gateway_may_call_changes_and_never_to_nothing,
    when_a_gateway_called_is_kept_and_never_goes_back,
};
pub(super) use keys::{
    a_connector_that_changes_again_goes_on_from_the_key_it_uses, a_fresh_pre_shared_key_stands_beside_the_one_in_use,
    a_key_that_anybody_has_is_nobody_elses_next_one, a_next_key_is_known_beside_the_old_one_until_it_stays_alone,
    since_when_traffic_is_safe_is_remembered_from_the_first_handshake,
};
pub(super) use managed::{
    a_managed_service_is_loaded_as_it_was_set_last_and_forgotten_when_deleted,
    a_token_for_some_services_narrows_who_joins_with_it_and_counts_its_uses,
    a_tunnel_is_given_no_managed_service_that_it_may_not_serve, managed_services_of_a_tunnel_fit_one_message,
};
pub(super) use peers::{
    a_name_and_a_key_are_one_peers_alone, a_peer_is_loaded_as_it_was_added_and_free_again_when_it_is_deleted,
    a_peers_keys_change_and_what_other_relays_had_of_them_goes, a_service_behind_a_peer_is_owned_like_an_exact_grant,
    networks_of_two_peers_never_overlap_and_the_relays_are_nobodys, services_behind_a_peer_are_so_many_at_most,
    two_relays_that_add_overlapping_peers_at_once_add_one, what_was_noticed_of_a_peer_is_kept_for_each_relay,
};
pub(super) use proofs::what_connectors_sign_with_is_kept_as_it_was_told_last_until_they_are_revoked;
pub(super) use recovery::a_restored_registry_offers_each_connector_its_first_pre_shared_key_too;
pub(super) use relays::{
    a_connector_is_made_known_to_a_relay_of_the_registry_under_its_own_key,
    a_relay_that_was_not_there_for_thirty_days_is_forgotten,
    a_token_is_sealed_once_for_each_relay_and_anew_when_that_one_lost_its_key,
    relays_of_one_registry_know_each_other_and_when_they_were_last_there,
};
pub(super) use suite;

pub(super) type Subject = Arc<dyn Registry>;

const START: SystemTime = SystemTime::UNIX_EPOCH;
const MINUTE: Duration = Duration::from_secs(60);

pub(super) async fn what_was_created_is_loaded_again(registry: Subject) {
    let tunnel = tunnel("dc1", &["orders", "billing-*"]);
    let sources = vec!["192.0.2.0/24".parse().unwrap(), "2001:db8::/32".parse().unwrap()];
    let token = TokenRow { sources, ..token(&tunnel, Some(3)) };
    registry.create_tunnel(tunnel.clone(), token.clone(), root()).await.unwrap();
    let snapshot = registry.load().await.unwrap();
    assert_eq!(snapshot.tunnels, [tunnel]);
    assert_eq!(snapshot.tokens, [token]);
    assert!(snapshot.connectors.is_empty() && snapshot.services.is_empty());
    assert_eq!(registry.degraded(), None);
}

pub(super) async fn a_tunnels_name_is_free_again_after_its_deletion(registry: Subject) {
    let first = create(&registry, "dc1", &["orders"]).await.0;
    let second = tunnel("dc1", &["other"]);
    let taken = registry.create_tunnel(second.clone(), token(&second, None), root()).await;
    assert_eq!(taken, Err(Rule::TunnelExists(first.name.clone()).into()));
    registry.delete_tunnel(first.id.clone(), root(), START).await.unwrap();
    registry.create_tunnel(second.clone(), token(&second, None), root()).await.unwrap();
    assert_eq!(registry.load().await.unwrap().tunnels, [second]);
    let gone = registry.delete_tunnel(first.id.clone(), root(), START).await;
    assert_eq!(gone, Err(Rule::NoSuchTunnel(first.id).into()));
}

pub(super) async fn an_exact_grant_has_one_owner_unless_both_share_it(registry: Subject) {
    let owner = create(&registry, "dc1", &["orders"]).await.0;
    let owned = |service: &str| {
        RegistryError::from(Rule::Owned { service: service.parse().unwrap(), owner: owner.name.clone() })
    };
    let rival = Tunnel { shared: true, ..tunnel("dc2", &["other", "orders"]) };
    assert_eq!(registry.create_tunnel(rival.clone(), token(&rival, None), root()).await, Err(owned("orders")));
    assert_eq!(registry.load().await.unwrap().tunnels.len(), 1, "nothing of a refused tunnel stays");
    let later = create(&registry, "dc3", &["other"]).await.0;
    let added = registry.set_grants(later.id, grants(&["orders"]), Vec::new(), root(), START).await;
    assert_eq!(added, Err(owned("orders")));

    let pool = |name| Tunnel { shared: true, ..tunnel(name, &["pooled"]) };
    for tunnel in [pool("dc4"), pool("dc5")] {
        registry.create_tunnel(tunnel.clone(), token(&tunnel, None), root()).await.unwrap();
        let decision = registry.announce(tunnel.id, names(&["pooled"]), START).await.unwrap();
        assert_eq!(decision.accepted, names(&["pooled"]));
    }
}

pub(super) async fn an_exact_grant_takes_its_name_from_anothers_pattern(registry: Subject) {
    let (pattern, _) = create(&registry, "dc1", &["*"]).await;
    registry.announce(pattern.id.clone(), names(&["orders", "users"]), START).await.unwrap();
    let (exact, _) = create(&registry, "dc2", &["orders"]).await;
    let decision = registry.announce(pattern.id, names(&["orders", "users"]), START).await.unwrap();
    assert_eq!(decision.accepted, names(&["users"]));
    assert!(decision.refused[0].1.contains("dc2"), "{decision:?}");
    assert_eq!(registry.announce(exact.id, names(&["orders"]), START).await.unwrap().accepted, names(&["orders"]));
}

pub(super) async fn grants_change_and_services_that_lost_theirs_are_forgotten(registry: Subject) {
    let (tunnel, _) = create(&registry, "dc1", &["orders", "users"]).await;
    registry.announce(tunnel.id.clone(), names(&["orders", "users"]), START).await.unwrap();
    let set = |add: &[&str], remove: &[&str]| {
        registry.set_grants(tunnel.id.clone(), grants(add), grants(remove), root(), START)
    };
    assert_eq!(set(&["billing-*"], &["users"]).await.unwrap().grants, grants(&["orders", "billing-*"]));
    let snapshot = registry.load().await.unwrap();
    assert_eq!(snapshot.tunnels[0].grants, grants(&["orders", "billing-*"]));
    assert_eq!(snapshot.services.len(), 1);
    assert_eq!(snapshot.services[0].name.as_str(), "orders");
    let missing = Rule::NotGranted { tunnel: tunnel.name.clone(), grant: "users".parse().unwrap() };
    assert_eq!(set(&[], &["users"]).await, Err(missing.into()));
    assert_eq!(set(&[], &["orders", "billing-*"]).await, Err(Rule::NoGrantLeft(tunnel.name.clone()).into()));
    assert_eq!(registry.load().await.unwrap().tunnels[0].grants.len(), 2);
    assert_eq!(set(&["orders"], &[]).await.unwrap().grants.len(), 2, "a grant that is there changes nothing");
}

pub(super) async fn an_announcement_is_decided_and_remembered(registry: Subject) {
    let (first, _) = create(&registry, "dc1", &["web-*"]).await;
    let (second, _) = create(&registry, "dc2", &["*"]).await;
    let one = registry.announce(first.id.clone(), names(&["web-a", "orders"]), START).await.unwrap();
    assert_eq!(one.accepted, names(&["web-a"]));
    assert_eq!(one.refused[0].0.as_str(), "orders");
    let two = registry.announce(second.id, names(&["web-a", "orders"]), START).await.unwrap();
    assert_eq!(two.accepted, names(&["orders"]), "first come");
    registry.announce(first.id, names(&["web-a"]), START + MINUTE).await.unwrap();
    let services = registry.load().await.unwrap().services;
    let shown: Vec<_> = services.iter().map(|service| (service.name.as_str(), service.since)).collect();
    assert_eq!(shown, [("orders", START), ("web-a", START)]);
}

pub(super) async fn fifty_parallel_redemptions_of_a_one_use_token_let_one_in(registry: Subject) {
    redeem_in_parallel(registry, 50, 1).await;
}

pub(super) async fn a_token_of_three_uses_lets_three_in(registry: Subject) {
    redeem_in_parallel(registry, 20, 3).await;
}

async fn redeem_in_parallel(registry: Subject, rivals: usize, uses: u32) {
    let (tunnel, _) = create(&registry, "dc1", &["orders"]).await;
    let token = token(&tunnel, Some(uses));
    registry.create_token(token.clone(), root()).await.unwrap();
    let tasks: Vec<_> = (0..rivals)
        .map(|_| {
            let (registry, candidate) = (Arc::clone(&registry), candidate(&token, START));
            tokio::spawn(async move { registry.enrol(candidate).await.unwrap() })
        })
        .collect();
    let mut joined = 0;
    for task in tasks {
        match task.await.unwrap() {
            Enrolment::Joined { repeated: false, .. } => joined += 1,
            Enrolment::Refused { refusal: Refusal::UsedUp, at: Some(START) } => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(joined, uses);
    assert_eq!(registry.load().await.unwrap().connectors.len(), uses as usize);
}

pub(super) async fn the_same_key_with_the_same_token_gets_the_same_id_and_costs_nothing(registry: Subject) {
    let (tunnel, _) = create(&registry, "dc1", &["orders"]).await;
    let token = token(&tunnel, Some(2));
    registry.create_token(token.clone(), root()).await.unwrap();
    let first = candidate(&token, START);
    // The answer is lost, the connector starts again: another proposed id, another sealed key, the same public key.
    let again = Candidate { id: ConnectorId::new(), psk: sealed(), now: START + MINUTE, ..first.clone() };
    let Enrolment::Joined { connector: a, epoch: 1, repeated: false, .. } = registry.enrol(first).await.unwrap() else {
        panic!("the first is let in")
    };
    let wanted = again.psk.clone();
    let Enrolment::Joined { connector: b, epoch, repeated: true, .. } = registry.enrol(again).await.unwrap() else {
        panic!("the repeat is let in")
    };
    assert_eq!((&a.id, a.inner_address), (&b.id, b.inner_address));
    assert_eq!((epoch, &b.psks.last().unwrap().sealed), (2, &wanted));
    let left = find_token(&registry, &token.id).await.uses_left;
    assert_eq!(left, Some(1), "one use for one key");
}

pub(super) async fn one_key_asking_many_times_at_once_is_one_member(registry: Subject) {
    let (tunnel, _) = create(&registry, "dc1", &["orders"]).await;
    let token = token(&tunnel, Some(5));
    registry.create_token(token.clone(), root()).await.unwrap();
    let one = candidate(&token, START);
    let tasks: Vec<_> = (0..10)
        .map(|_| {
            let again = Candidate { id: ConnectorId::new(), psk: sealed(), ..one.clone() };
            let registry = Arc::clone(&registry);
            tokio::spawn(async move { registry.enrol(again).await.unwrap() })
        })
        .collect();
    for task in tasks {
        assert!(matches!(task.await.unwrap(), Enrolment::Joined { .. }));
    }
    assert_eq!(registry.load().await.unwrap().connectors.len(), 1);
    assert_eq!(find_token(&registry, &token.id).await.uses_left, Some(4));
}

pub(super) async fn a_spent_token_says_so_and_a_repeat_works_for_a_day(registry: Subject) {
    let (_, token) = create(&registry, "dc1", &["orders"]).await;
    let winner = candidate(&token, START);
    registry.enrol(winner.clone()).await.unwrap();
    assert_eq!(find_token(&registry, &token.id).await.state(START), TokenState::UsedUp);
    let spent = Enrolment::Refused { refusal: Refusal::UsedUp, at: Some(START) };
    assert_eq!(registry.enrol(candidate(&token, START + MINUTE)).await.unwrap(), spent);
    let late = Candidate { now: START + REPEAT - MINUTE, ..winner.clone() };
    assert!(matches!(registry.enrol(late).await.unwrap(), Enrolment::Joined { repeated: true, .. }));
    let too_late = Candidate { now: START + REPEAT, ..winner };
    assert_eq!(registry.enrol(too_late).await.unwrap(), spent);
}

pub(super) async fn a_revoked_connector_learns_it_from_its_token(registry: Subject) {
    let (tunnel, _) = create(&registry, "dc1", &["orders"]).await;
    let token = token(&tunnel, None);
    registry.create_token(token.clone(), root()).await.unwrap();
    let member = candidate(&token, START);
    let id = join(&registry, member.clone()).await;
    registry.revoke_connector(id.clone(), root(), START + MINUTE).await.unwrap();
    registry.revoke_connector(id.clone(), root(), START + 2 * MINUTE).await.unwrap();
    let row = registry.load().await.unwrap().connectors.remove(0);
    assert_eq!((row.revoked, row.psks.len()), (Some(START + MINUTE), 0));
    let told = registry.enrol(Candidate { now: START + TOMBSTONE * 2, ..member }).await.unwrap();
    assert_eq!(told, Enrolment::Gone { at: START + MINUTE });
    let unknown = ConnectorId::new();
    let gone = registry.revoke_connector(unknown.clone(), root(), START).await;
    assert_eq!(gone, Err(Rule::NoSuchConnector(unknown).into()));
}

pub(super) async fn a_token_used_from_elsewhere_is_refused_and_keeps_its_use(registry: Subject) {
    let (tunnel, _) = create(&registry, "dc1", &["orders"]).await;
    let token = TokenRow { sources: vec!["192.0.2.0/24".parse().unwrap()], ..token(&tunnel, Some(1)) };
    registry.create_token(token.clone(), root()).await.unwrap();
    let asks = candidate(&token, START);
    let elsewhere = Candidate { source: "198.51.100.1:4000".parse().unwrap(), ..asks.clone() };
    let refused = Enrolment::Refused { refusal: Refusal::Source, at: None };
    assert_eq!(registry.enrol(elsewhere).await.unwrap(), refused);
    assert_eq!(find_token(&registry, &token.id).await.uses_left, Some(1));
    join(&registry, asks).await;
}

pub(super) async fn an_unknown_token_gets_silence(registry: Subject) {
    let (tunnel, known) = create(&registry, "dc1", &["orders"]).await;
    let never = token(&tunnel, None);
    assert_eq!(registry.enrol(candidate(&never, START)).await.unwrap(), Enrolment::Unknown);
    registry.revoke_token(known.id.clone(), root(), START).await.unwrap();
    let told = registry.enrol(candidate(&known, START + MINUTE)).await.unwrap();
    assert_eq!(told, Enrolment::Refused { refusal: Refusal::Revoked, at: Some(START) });
    assert_eq!(registry.enrol(candidate(&known, START + TOMBSTONE)).await.unwrap(), Enrolment::Unknown);
    let gone = registry.revoke_token(never.id.clone(), root(), START).await;
    assert_eq!(gone, Err(Rule::NoSuchToken(never.id).into()));
}

pub(super) async fn a_deleted_tunnel_revokes_tokens_and_connectors(registry: Subject) {
    let (tunnel, token) = create(&registry, "dc1", &["orders"]).await;
    let id = join(&registry, candidate(&token, START)).await;
    registry.announce(tunnel.id.clone(), names(&["orders"]), START).await.unwrap();
    assert_eq!(registry.delete_tunnel(tunnel.id.clone(), root(), START + MINUTE).await.unwrap(), [id]);
    let snapshot = registry.load().await.unwrap();
    assert!(snapshot.tunnels.is_empty() && snapshot.services.is_empty());
    assert_eq!(snapshot.tokens[0].state(START + MINUTE), TokenState::Revoked);
    assert_eq!(snapshot.connectors[0].revoked, Some(START + MINUTE));
    let told = registry.enrol(candidate(&token, START + MINUTE)).await.unwrap();
    assert_eq!(told, Enrolment::Refused { refusal: Refusal::Revoked, at: Some(START + MINUTE) });
    let refused = registry.create_token(self::token(&tunnel, None), root()).await;
    assert_eq!(refused, Err(Rule::NoSuchTunnel(tunnel.id).into()));
}

pub(super) async fn a_confirmed_pre_shared_key_survives_a_repeated_enrolment(registry: Subject) {
    let (_, token) = create(&registry, "dc1", &["orders"]).await;
    let member = candidate(&token, START);
    let id = join(&registry, member.clone()).await;
    let confirmed =
        |epoch, alone| Note::PskConfirmed { connector: id.clone(), relay: member.relay.clone(), epoch, alone };
    registry.note(vec![confirmed(1, true)]).await.unwrap();
    for _ in 0..3 {
        // Whoever holds the token and knows the public key can do this; the member must not be cut off by it.
        let repeat = registry.enrol(Candidate { psk: sealed(), ..member.clone() }).await.unwrap();
        let Enrolment::Joined { connector, epoch: 2, .. } = repeat else { panic!("{repeat:?}") };
        let kept: Vec<_> = connector.psks.iter().map(|psk| (psk.epoch, psk.confirmed)).collect();
        assert_eq!(kept, [(1, true), (2, false)]);
        assert_eq!(connector.psks[0].sealed, member.psk);
    }
    registry.note(vec![confirmed(2, false)]).await.unwrap();
    assert_eq!(registry.load().await.unwrap().connectors[0].psks.len(), 2);
    registry.note(vec![confirmed(2, true), confirmed(9, true)]).await.unwrap();
    let row = registry.load().await.unwrap().connectors.remove(0);
    assert_eq!(row.psks.iter().map(|psk| psk.epoch).collect::<Vec<_>>(), [2]);
    let elsewhere = Candidate { relay: "elsewhere".to_owned(), ..member };
    let Enrolment::Joined { connector, epoch, .. } = registry.enrol(elsewhere).await.unwrap() else {
        panic!("another relay of the same registry lets it in too")
    };
    assert_eq!((epoch, connector.psks.len()), (1, 2), "each relay has a key of its own");
}

pub(super) async fn what_was_noticed_is_kept(registry: Subject) {
    let (_, token) = create(&registry, "dc1", &["orders"]).await;
    let connector = join(&registry, candidate(&token, START)).await;
    let (remote, local): (SocketAddr, SocketAddr) =
        ("[2001:db8::7]:4000".parse().unwrap(), "192.0.2.1:51820".parse().unwrap());
    let heard = |connector: &ConnectorId, relay: &str, remote: &str| Note::Endpoint {
        connector: connector.clone(),
        relay: relay.to_owned(),
        remote: remote.parse().unwrap(),
        local,
    };
    let notes = vec![
        heard(&connector, "elsewhere", "192.0.2.9:1"),
        heard(&connector, "here", "192.0.2.9:2"),
        heard(&connector, "here", "[2001:db8::7]:4000"),
        heard(&ConnectorId::new(), "here", "192.0.2.9:3"),
        Note::Handshake { connector: connector.clone(), at: START + MINUTE },
        Note::Handshake { connector: ConnectorId::new(), at: START },
        Note::Program { connector, name: Some("web-1".parse().unwrap()), version: "9.9.9".to_owned() },
    ];
    registry.note(notes).await.unwrap();
    let row = registry.load().await.unwrap().connectors.remove(0);
    assert_eq!((row.last_endpoint, row.last_local), (Some(remote), Some(local)));
    assert_eq!(row.heard_by("here"), Some((remote, Some(local))), "each relay calls back where it heard it");
    assert_eq!(row.heard_by("elsewhere"), Some(("192.0.2.9:1".parse().unwrap(), Some(local))));
    assert_eq!(row.heard_by("never"), None);
    assert_eq!(row.last_handshake, Some(START + MINUTE));
    assert_eq!((row.name.unwrap().as_str(), row.version.as_deref()), ("web-1", Some("9.9.9")));
}

pub(super) async fn draining_is_remembered_and_undone(registry: Subject) {
    let (_, token) = create(&registry, "dc1", &["orders"]).await;
    let id = join(&registry, candidate(&token, START)).await;
    for drained in [true, true, false] {
        registry.set_drained(id.clone(), drained, root(), START).await.unwrap();
        assert_eq!(registry.load().await.unwrap().connectors[0].drained, drained);
    }
    registry.revoke_connector(id.clone(), root(), START).await.unwrap();
    let revoked = registry.set_drained(id.clone(), true, root(), START).await;
    assert_eq!(revoked, Err(Rule::NoSuchConnector(id).into()));
}

pub(super) async fn tombstones_are_forgotten_after_thirty_days(registry: Subject) {
    let (tunnel, spent) = create(&registry, "dc1", &["orders"]).await;
    let id = join(&registry, candidate(&spent, START)).await;
    let lasting = token(&tunnel, None);
    registry.create_token(lasting.clone(), root()).await.unwrap();
    let guarded = join(&registry, candidate(&lasting, START)).await;
    registry.revoke_connector(guarded.clone(), root(), START).await.unwrap();
    assert_eq!(registry.forget(Vec::new(), START + TOMBSTONE - MINUTE).await.unwrap(), super::Forgotten::default());
    let forgotten = registry.forget(Vec::new(), START + TOMBSTONE).await.unwrap();
    assert_eq!((forgotten.tokens, forgotten.connectors), (vec![spent.id], Vec::new()));
    let left: Vec<_> = registry.load().await.unwrap().connectors.into_iter().map(|row| row.id).collect();
    assert!(left.contains(&id), "a member outlives its token");
    assert!(left.contains(&guarded), "a revoked key is known as long as its token");
    registry.delete_tunnel(tunnel.id, root(), START + TOMBSTONE).await.unwrap();
    let all = registry.forget(Vec::new(), START + 2 * TOMBSTONE).await.unwrap();
    assert_eq!((all.tokens.len(), all.connectors.len()), (1, 2));
    assert_eq!(registry.load().await.unwrap(), super::Snapshot::default());
}

pub(super) async fn ephemeral_connectors_are_forgotten_ten_minutes_after_their_last_handshake(registry: Subject) {
    let (tunnel, _) = create(&registry, "dc1", &["orders"]).await;
    let token = token(&tunnel, None);
    registry.create_token(token.clone(), root()).await.unwrap();
    let stays = join(&registry, candidate(&token, START)).await;
    let ephemeral = |now| Candidate { ephemeral: true, ..candidate(&token, now) };
    let live = join(&registry, ephemeral(START)).await;
    let silent = join(&registry, ephemeral(START)).await;
    let heard = join(&registry, ephemeral(START)).await;
    registry.note(vec![Note::Handshake { connector: heard.clone(), at: START + MINUTE }]).await.unwrap();
    let early = registry.forget(vec![live.clone()], START + EPHEMERAL - MINUTE).await.unwrap();
    assert!(early.connectors.is_empty());
    let forgotten = registry.forget(vec![live.clone()], START + EPHEMERAL).await.unwrap();
    assert_eq!(forgotten.connectors, [silent]);
    let later = registry.forget(vec![live.clone()], START + EPHEMERAL + MINUTE).await.unwrap();
    assert_eq!(later.connectors, [heard]);
    let mut left: Vec<_> = registry.load().await.unwrap().connectors.into_iter().map(|row| row.id).collect();
    let mut expected = vec![stays, live];
    left.sort();
    expected.sort();
    assert_eq!(left, expected);
}

pub(super) async fn every_change_is_audited_with_who_and_what(registry: Subject) {
    let (tunnel, token) = create(&registry, "dc1", &["orders"]).await;
    let id = join(&registry, candidate(&token, START)).await;
    for _ in 0..5 {
        registry.enrol(candidate(&token, START)).await.unwrap();
    }
    registry.set_grants(tunnel.id.clone(), grants(&["users"]), Vec::new(), root(), START).await.unwrap();
    registry.set_drained(id.clone(), true, root(), START).await.unwrap();
    registry.set_drained(id.clone(), false, root(), START).await.unwrap();
    registry.revoke_connector(id.clone(), root(), START).await.unwrap();
    registry.revoke_token(token.id.clone(), root(), START).await.unwrap();
    registry.delete_tunnel(tunnel.id, root(), START).await.unwrap();
    let own = AuditRow {
        at: START,
        actor: "uid 7".to_owned(),
        action: "test.line".to_owned(),
        subject: "x".to_owned(),
        detail: String::new(),
    };
    registry.audit(own).await.unwrap();
    let trail = registry.audit_since(START).await.unwrap();
    let actions: Vec<_> = trail.iter().map(|row| row.action.as_str()).collect();
    let expected = [
        "tunnel.create",
        "token.create",
        "connector.join",
        "tunnel.set",
        "connector.drain",
        "connector.undrain",
        "connector.revoke",
        "token.revoke",
        "tunnel.delete",
        "test.line",
    ];
    assert_eq!(actions, expected, "and whoever is refused stands there by way of `refusals`");
    assert_eq!((trail[0].actor.as_str(), trail[0].subject.as_str()), ("uid 0", "dc1"));
    assert_eq!((trail[2].actor.as_str(), trail[2].subject.as_str()), (token.id.as_str(), id.as_str()));
    assert!(trail[2].detail.contains("192.0.2.9"), "{}", trail[2].detail);
    assert!(registry.audit_since(START + MINUTE).await.unwrap().is_empty());
}

pub(super) async fn a_tunnel_has_room_for_so_many_services_and_a_deleted_one_makes_room(registry: Subject) {
    let (tunnel, _) = create(&registry, "dc1", &["*"]).await;
    let most = super::grants::SERVICES_AT_MOST;
    let numbered = |from: usize, to: usize| -> Vec<ServiceName> {
        (from..to).map(|number| format!("s{number}").parse().unwrap()).collect()
    };
    for from in (0..most).step_by(256) {
        let decision = registry.announce(tunnel.id.clone(), numbered(from, from + 256), START).await.unwrap();
        assert_eq!(decision.accepted.len(), 256);
    }
    let beyond = registry.announce(tunnel.id.clone(), numbered(most - 1, most + 1), START).await.unwrap();
    assert_eq!((beyond.accepted, beyond.refused.len()), (numbered(most - 1, most), 1));
    assert_eq!(registry.load().await.unwrap().services.len(), most);
    let deleted = registry.delete_service("s7".parse().unwrap(), root(), START).await.unwrap();
    assert_eq!(deleted, std::slice::from_ref(&tunnel.id));
    let again = registry.delete_service("s7".parse().unwrap(), root(), START).await;
    assert_eq!(again, Err(Rule::NoSuchService("s7".parse().unwrap()).into()));
    let late = registry.announce(tunnel.id, numbered(most, most + 1), START).await.unwrap();
    assert_eq!(late.accepted, numbered(most, most + 1));
    let trail = registry.audit_since(START).await.unwrap();
    assert!(trail.iter().any(|row| (row.action.as_str(), row.subject.as_str()) == ("service.delete", "s7")));
}

pub(super) async fn create(registry: &Subject, name: &str, patterns: &[&str]) -> (Tunnel, TokenRow) {
    let tunnel = tunnel(name, patterns);
    let token = token(&tunnel, Some(1));
    registry.create_tunnel(tunnel.clone(), token.clone(), root()).await.unwrap();
    (tunnel, token)
}

pub(super) async fn join(registry: &Subject, candidate: Candidate) -> ConnectorId {
    match registry.enrol(candidate).await.unwrap() {
        Enrolment::Joined { connector, .. } => connector.id,
        other => panic!("{other:?}"),
    }
}

async fn find_token(registry: &Subject, id: &TokenId) -> TokenRow {
    registry.load().await.unwrap().tokens.into_iter().find(|token| token.id == *id).unwrap()
}

pub(super) fn tunnel(name: &str, patterns: &[&str]) -> Tunnel {
    let name: Label = name.parse().unwrap();
    Tunnel { id: TunnelId::new(), name, grants: grants(patterns), shared: false, created: START }
}

pub(super) fn token(tunnel: &Tunnel, uses_left: Option<u32>) -> TokenRow {
    TokenRow {
        id: TokenId::new(),
        tunnel: tunnel.id.clone(),
        bootstrap_key: key(),
        psk: sealed(),
        services: Vec::new(),
        sources: Vec::new(),
        used: 0,
        uses_left,
        expires: None,
        revoked: None,
        created: START,
        last_used: None,
    }
}

pub(super) fn candidate(token: &TokenRow, now: SystemTime) -> Candidate {
    Candidate {
        token: token.id.clone(),
        id: ConnectorId::new(),
        public_key: key(),
        relay: "here".to_owned(),
        psk: sealed(),
        name: None,
        ephemeral: false,
        program: "1.0.0".to_owned(),
        source: "192.0.2.9:4000".parse().unwrap(),
        now,
    }
}

fn grants(patterns: &[&str]) -> Vec<Grant> {
    patterns.iter().map(|pattern| pattern.parse().unwrap()).collect()
}

fn names(names: &[&str]) -> Vec<ServiceName> {
    names.iter().map(|name| name.parse().unwrap()).collect()
}

fn key() -> PublicKey {
    PrivateKey::generate().public_key()
}

fn sealed() -> Sealed {
    Sealed(random::<72>().to_vec())
}

fn root() -> Actor {
    Actor("uid 0".to_owned())
}
