//! Who owns a service's name (interface.md §4): pure rules over tunnels and services.
//!
//! An exact grant owns its name. A pattern takes only names that nobody else owns, first come. Two tunnels that both say
//! `--shared` may have a name together.

use culvert_model::id::TunnelId;
use culvert_model::name::{Grant, Label, ServiceName};

use super::rows::{ServiceRow, Tunnel};

/// Which announced names a tunnel serves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decision {
    /// Those it does, each once.
    pub accepted: Vec<ServiceName>,
    /// Those it does not, and why, in words for the operator.
    pub refused: Vec<(ServiceName, String)>,
}

/// Decides an announcement by `tunnel` of `names`, given all live `tunnels` and all known `services`.
pub fn decide(tunnel: &Tunnel, names: &[ServiceName], tunnels: &[Tunnel], services: &[ServiceRow]) -> Decision {
    let mut decision = Decision::default();
    for name in names {
        if decision.accepted.contains(name) {
            continue;
        }
        match may_serve(tunnel, name, tunnels, services) {
            Ok(()) => decision.accepted.push(name.clone()),
            Err(why) => decision.refused.push((name.clone(), why)),
        }
    }
    decision
}

/// The tunnel that forbids `tunnel` to be granted exactly `name`: another exact owner that does not share it.
pub fn exact_owner<'a>(
    tunnel: &TunnelId,
    shared: bool,
    name: &ServiceName,
    tunnels: &'a [Tunnel],
) -> Option<&'a Tunnel> {
    tunnels.iter().find(|other| other.id != *tunnel && grants_exactly(other, name) && !(shared && other.shared))
}

/// Whether the tunnel has a grant, exact or not, for `name`.
pub fn covers(tunnel: &Tunnel, name: &ServiceName) -> bool {
    tunnel.grants.iter().any(|grant| grant.matches(name))
}

/// Whether some tunnel is granted exactly `name`: then it is known even before anyone announces it.
pub fn is_granted_exactly(name: &ServiceName, tunnels: &[Tunnel]) -> bool {
    tunnels.iter().any(|tunnel| grants_exactly(tunnel, name))
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

fn grants_exactly(tunnel: &Tunnel, name: &ServiceName) -> bool {
    tunnel.grants.iter().any(|grant| grant.as_str() == name.as_str())
}

fn list(grants: &[Grant]) -> String {
    grants.iter().map(Grant::as_str).collect::<Vec<_>>().join(", ")
}
