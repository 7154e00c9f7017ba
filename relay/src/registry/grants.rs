//! Who owns a service's name (interface.md §4): pure rules over tunnels and services.
//!
//! An exact grant owns its name. A pattern takes only names that nobody else owns, first come. Two tunnels that both say
//! `--shared` may have a name together.

use std::collections::{HashMap, HashSet};

use culvert_model::id::TunnelId;
use culvert_model::name::{Grant, Label, ServiceName};

use super::rows::{ServiceRow, Tunnel};

/// Names of one tunnel that are known at once: a connector under a wide pattern must not fill the registry.
pub(crate) const SERVICES_AT_MOST: usize = 1_024;

/// Which announced names a tunnel serves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Decision {
    /// Those it does, each once.
    pub(crate) accepted: Vec<ServiceName>,
    /// Those it does not, and why, in words for the operator.
    pub(crate) refused: Vec<(ServiceName, String)>,
}

/// Decides an announcement by `tunnel` of `names`, given all live `tunnels`, all known `services` and the names that stock
/// peers have (`of_peers`).
pub(crate) fn decide(
    tunnel: &Tunnel,
    names: &[ServiceName],
    tunnels: &[Tunnel],
    services: &[ServiceRow],
    of_peers: &HashMap<ServiceName, Label>,
) -> Decision {
    let mut decision = Decision::default();
    let known: HashSet<&ServiceName> =
        services.iter().filter(|service| service.tunnel == tunnel.id).map(|service| &service.name).collect();
    let mut room = SERVICES_AT_MOST.saturating_sub(known.len());
    for name in names {
        if decision.accepted.contains(name) {
            continue;
        }
        let is_new = !known.contains(name);
        let owner = of_peers.get(name).map(|owner| format!("{name} belongs to peer {owner}"));
        match owner.map_or_else(|| may_serve(tunnel, name, tunnels, services), Err) {
            Ok(()) if is_new && room == 0 => decision.refused.push((name.clone(), no_room(tunnel))),
            Ok(()) => {
                room -= usize::from(is_new);
                decision.accepted.push(name.clone());
            }
            Err(why) => decision.refused.push((name.clone(), why)),
        }
    }
    decision
}

/// The tunnel that forbids `tunnel` to be granted exactly `name`: another exact owner that does not share it.
pub(crate) fn exact_owner<'a>(
    tunnel: &TunnelId,
    shared: bool,
    name: &ServiceName,
    tunnels: &'a [Tunnel],
) -> Option<&'a Tunnel> {
    tunnels.iter().find(|other| other.id != *tunnel && grants_exactly(other, name) && !(shared && other.shared))
}

/// Whether the tunnel has a grant, exact or not, for `name`.
pub(crate) fn covers(tunnel: &Tunnel, name: &ServiceName) -> bool {
    tunnel.grants.iter().any(|grant| grant.matches(name))
}

fn may_serve(tunnel: &Tunnel, name: &ServiceName, tunnels: &[Tunnel], services: &[ServiceRow]) -> Result<(), String> {
    if !covers(tunnel, name) {
        return Err(format!("tunnel {} is not granted {name}: it may serve {}", tunnel.name, list(&tunnel.grants)));
    }
    let owned_by = |owner: &Label| format!("{name} belongs to tunnel {owner}");
    if let Some(owner) = exact_owner(&tunnel.id, tunnel.shared, name, tunnels) {
        return Err(owned_by(&owner.name));
    }
    if grants_exactly(tunnel, name) {
        return Ok(());
    }
    let first = services
        .iter()
        .filter(|service| service.name == *name && service.tunnel != tunnel.id)
        .filter_map(|service| tunnels.iter().find(|other| other.id == service.tunnel))
        .find(|other| !(tunnel.shared && other.shared));
    first.map_or(Ok(()), |owner| Err(owned_by(&owner.name)))
}

fn no_room(tunnel: &Tunnel) -> String {
    format!(
        "tunnel {} has {SERVICES_AT_MOST} services already: `culvert-relay service delete` forgets those that are gone",
        tunnel.name
    )
}

/// Whether the tunnel has a grant for just this name.
pub(super) fn grants_exactly(tunnel: &Tunnel, name: &ServiceName) -> bool {
    tunnel.grants.iter().any(|grant| grant.as_str() == name.as_str())
}

fn list(grants: &[Grant]) -> String {
    grants.iter().map(Grant::as_str).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn names_and_owners_follow_the_promise() {
        // Tunnel a asks; b is there; (a's grants, a shares, b's grants, b shares, b served it before) -> a may.
        for (a, a_shares, b, b_shares, b_served, may) in [
            ("orders", false, "users", false, false, true),
            ("users", false, "billing", false, false, false),
            ("*", false, "users", false, false, true),
            ("*", false, "orders", false, false, false),
            ("*", true, "orders", false, false, false),
            ("*", false, "orders", true, false, false),
            ("*", true, "orders", true, false, true),
            ("orders", false, "*", false, true, true),
            ("*", false, "*", false, true, false),
            ("*", false, "*", false, false, true),
            ("*", true, "*", true, true, true),
            ("*", true, "*", false, true, false),
            ("orders", true, "orders", true, true, true),
        ] {
            let (first, second) =
                (tunnel("a", a.parse().unwrap(), a_shares), tunnel("b", b.parse().unwrap(), b_shares));
            let row = ServiceRow { name: name("orders"), tunnel: second.id.clone(), since: SystemTime::UNIX_EPOCH };
            let services = if b_served { vec![row] } else { Vec::new() };
            let decision = decide(&first, &[name("orders")], &[first.clone(), second], &services, &HashMap::new());
            assert_eq!(decision.accepted.len() == 1, may, "{a} {a_shares} {b} {b_shares} {b_served}");
            assert_eq!(decision.refused.len(), usize::from(!may));
        }
    }

    #[test]
    fn a_refusal_names_the_owner_or_what_is_granted_and_spares_the_rest() {
        let (a, b) = (tunnel("a", "web-*".parse().unwrap(), false), tunnel("b", "web-b".parse().unwrap(), false));
        let asked = [name("web-a"), name("web-b"), name("db"), name("web-a")];
        let decision = decide(&a, &asked, &[a.clone(), b], &[], &HashMap::new());
        assert_eq!(decision.accepted, [name("web-a")]);
        let why: Vec<_> = decision.refused.iter().map(|(_, why)| why.as_str()).collect();
        assert_eq!(why, ["web-b belongs to tunnel b", "tunnel a is not granted db: it may serve web-*"]);
    }

    #[test]
    fn a_name_of_a_stock_peer_is_no_tunnels_whatever_it_is_granted() {
        let a = tunnel("a", "*".parse().unwrap(), true);
        let of_peers = HashMap::from([(name("legacy"), "branch".parse().unwrap())]);
        let decision = decide(&a, &[name("legacy"), name("orders")], std::slice::from_ref(&a), &[], &of_peers);
        assert_eq!(decision.accepted, [name("orders")]);
        assert_eq!(decision.refused, [(name("legacy"), "legacy belongs to peer branch".to_owned())]);
    }

    #[test]
    fn what_a_deleted_tunnel_served_is_free() {
        let a = tunnel("a", "*".parse().unwrap(), false);
        let left = ServiceRow { name: name("orders"), tunnel: TunnelId::new(), since: SystemTime::UNIX_EPOCH };
        assert_eq!(
            decide(&a, &[name("orders")], std::slice::from_ref(&a), &[left], &HashMap::new()).accepted,
            [name("orders")]
        );
    }

    #[test]
    fn a_tunnel_has_room_for_so_many_names_and_keeps_those_it_has() {
        let a = tunnel("a", "*".parse().unwrap(), false);
        let row = |number| ServiceRow {
            name: name(&format!("s{number}")),
            tunnel: a.id.clone(),
            since: SystemTime::UNIX_EPOCH,
        };
        let services: Vec<_> = (0..SERVICES_AT_MOST - 1).map(row).collect();
        let elsewhere = ServiceRow { name: name("other"), tunnel: TunnelId::new(), since: SystemTime::UNIX_EPOCH };
        let services = [services, vec![elsewhere]].concat();
        let asked = [name("s3"), name("last"), name("late"), name("s4"), name("last")];
        let decision = decide(&a, &asked, std::slice::from_ref(&a), &services, &HashMap::new());
        assert_eq!(decision.accepted, [name("s3"), name("last"), name("s4")]);
        let [(refused, why)] = decision.refused.as_slice() else { panic!("{:?}", decision.refused) };
        assert!(refused.as_str() == "late" && why.contains("1024") && why.contains("service delete"), "{why}");
    }

    fn tunnel(label: &str, grant: Grant, shared: bool) -> Tunnel {
        let (id, name) = (TunnelId::new(), label.parse().unwrap());
        Tunnel { id, name, grants: vec![grant], shared, created: SystemTime::UNIX_EPOCH }
    }

    fn name(text: &str) -> ServiceName {
        text.parse().unwrap()
    }
}
