//! `service list|show|set|delete`.

use culvert_model::name::{Label, ServiceName};
use culvert_ops::time::rfc3339;
use serde_json::{Value, json};

use super::table::{facts, or_dash, table};
use super::view::{KnownService, Part, View};
use super::{Change, CommandError, Outcome, peer_service};
use crate::registry::{Actor, ManagedRow, Registry, RegistryError, Rule};

/// A service as it is to be managed.
pub(super) struct Wanted {
    pub(super) name: ServiceName,
    pub(super) tunnel: String,
    pub(super) origin: String,
    pub(super) host: Option<String>,
    pub(super) health_path: Option<String>,
}

pub(super) fn show_all(view: &View) -> Outcome {
    let services = view.known_services();
    let parts: Vec<(&KnownService, Part)> =
        services.iter().flat_map(|service| service.parts().into_iter().map(move |part| (service, part))).collect();
    let row = |(service, part): &(&KnownService, Part)| {
        [service.name.to_string(), part.source.to_owned(), owners(view, service), pairs(part)]
    };
    let rows: Vec<_> = parts.iter().map(row).collect();
    let json = parts.iter().map(|(service, part)| with_peer(view, service, service.part_json(part))).collect();
    Outcome::listing(json, table(["SERVICE", "SOURCE", "TUNNELS", "UP"], &rows), || {
        "no service is known yet: a tunnel's grants and its connectors make them".to_owned()
    })
}

pub(super) fn show(named: &str, view: &View) -> Result<Outcome, CommandError> {
    let services = view.known_services();
    let service = find(named, &services)?;
    let (mut found, mut rows): (Vec<Value>, Vec<[String; 6]>) = (Vec::new(), Vec::new());
    let (mut refused, mut words): (Vec<Value>, Vec<String>) = (Vec::new(), Vec::new());
    for connector in view.connectors_of(None) {
        let Some(live) = view.live(&connector.id) else { continue };
        for served in live.services.iter().filter(|served| served.name == service.name) {
            found.push(json!({
                "id": connector.id,
                "name": view.name(connector),
                "tunnel": view.tunnel_name(&connector.tunnel),
                "state": view.state(connector),
                "source": served.source,
                "up": served.up,
                "reason": served.reason,
            }));
            rows.push([
                connector.id.to_string(),
                or_dash(view.name(connector)),
                view.tunnel_name(&connector.tunnel),
                view.state(connector).to_owned(),
                served.source.to_owned(),
                if served.up { "up".to_owned() } else { served.reason.clone().unwrap_or_else(|| "down".to_owned()) },
            ]);
        }
        for one in live.not_served.iter().filter(|one| one.name == service.name) {
            refused.push(json!({ "id": connector.id, "name": view.name(connector), "why": one.why }));
            words.push(format!("{}: {}", connector.id, one.why));
        }
    }
    let parts = service.parts();
    let mut json = with_peer(view, service, service.json());
    json["behind"] = service.behind.as_ref().map(|row| peer_service::json(view, row)).into();
    json["connectors"] = Value::Array(found);
    json["managed"] = service.managed.iter().map(|row| managed_json(view, row)).collect();
    json["refused"] = Value::Array(refused);
    json["sources"] = parts.iter().map(|part| service.part_json(part)).collect();
    let managed: Vec<String> =
        service.managed.iter().map(|row| format!("{row} for tunnel {}", view.tunnel_name(&row.tunnel))).collect();
    let proof = service.behind.as_ref().and_then(|row| view.proof(&row.name));
    let mut text = facts(&[
        ("name", service.name.to_string()),
        ("source", parts.iter().map(|part| part.source).collect::<Vec<_>>().join(", ")),
        ("tunnels", if service.behind.is_some() { String::new() } else { owners(view, service) }),
        ("peer", service.behind.as_ref().map(|row| view.peer_name(&row.peer)).unwrap_or_default()),
        ("origin", service.behind.as_ref().map(ToString::to_string).unwrap_or_default()),
        ("proof", proof.map(|kind| format!("{kind}, made at this relay")).unwrap_or_default()),
        ("up", format!("{}/{}", service.live.up, service.live.total)),
        ("managed", managed.join("\n")),
        ("not served", words.join("\n")),
    ]);
    if !rows.is_empty() {
        text.push('\n');
        text.push_str(&table(["CONNECTOR", "NAME", "TUNNEL", "STATE", "SOURCE", "ORIGIN"], &rows));
    }
    Ok(Outcome { json, text, ..Outcome::default() })
}

/// Defines a service here, or changes it.
pub(super) async fn set(
    wanted: Wanted,
    view: &View,
    registry: &dyn Registry,
    by: Actor,
) -> Result<Outcome, CommandError> {
    let Wanted { name, tunnel, origin, host, health_path } = wanted;
    let tunnel = view.tunnel(&tunnel)?;
    fits(&origin, host.as_deref(), health_path.as_deref())?;
    let row = ManagedRow { name: name.clone(), tunnel: tunnel.id.clone(), origin, host, health_path, since: view.now };
    registry.set_managed(row.clone(), by).await.map_err(|error| match error {
        RegistryError::Rule(Rule::MayNotServe(why)) if !tunnel.grants.iter().any(|grant| grant.matches(&row.name)) => {
            CommandError::failed(why).hint(format!("`tunnel set {} --add-service {}` grants it", tunnel.name, row.name))
        }
        error => error.into(),
    })?;
    let live = view.connectors_of(Some(&tunnel.id)).into_iter().filter(|one| view.live(&one.id).is_some()).count();
    let whom = match live {
        0 => "no connector is there now: each learns it when it comes".to_owned(),
        1 => format!("1 live connector is told now: `service show {name}` says what it makes of it"),
        live => format!("{live} live connectors are told now: `service show {name}` says what they make of it"),
    };
    Ok(Outcome {
        json: managed_json(view, &row),
        text: String::new(),
        notes: vec![format!("service {name} of tunnel {} is at {row}", tunnel.name), whom],
        changes: vec![Change::ServiceSet(name)],
    })
}

/// What is carried as bytes has neither a Host nor a path.
pub(super) fn fits(origin: &str, host: Option<&str>, health_path: Option<&str>) -> Result<(), CommandError> {
    if origin.to_ascii_lowercase().starts_with("tcp:") && (host.is_some() || health_path.is_some()) {
        let message = format!("{origin} gets no requests: it has neither a Host nor a health path");
        return Err(CommandError::failed(message).hint("leave --host and --health-path out"));
    }
    Ok(())
}

/// Forgets a service that is managed here, or that nobody serves any more.
pub(super) async fn delete(
    named: &str,
    view: &View,
    registry: &dyn Registry,
    by: Actor,
) -> Result<Outcome, CommandError> {
    let services = view.known_services();
    let service = find(named, &services)?;
    let name = &service.name;
    let declared = service.live.total - service.live.managed;
    if let Some(row) = &service.behind {
        registry.delete_service(name.clone(), by, view.now).await?;
        let mut json = with_peer(view, service, service.json());
        json["deleted"] = true.into();
        let notes = vec![format!("service {name} behind peer {} forgotten", view.peer_name(&row.peer))];
        return Ok(Outcome { json, text: String::new(), notes, changes: vec![Change::ServiceDeleted(name.clone())] });
    }
    if declared > 0 && service.managed.is_empty() {
        let message = format!("service {name} is announced by {declared} live connectors");
        return Err(CommandError::failed(message).hint("take it out of their configuration, or revoke them, first"));
    }
    let is_granted = |grants: &[culvert_model::name::Grant]| grants.iter().any(|grant| grant.as_str() == name.as_str());
    let granting = view.snapshot.tunnels.iter().filter(|tunnel| is_granted(&tunnel.grants));
    let granting: Vec<&str> = granting.map(|tunnel| tunnel.name.as_str()).collect();
    let by_grant = |tunnel: &str| format!("`tunnel set {tunnel} --remove-service {name}` takes the grant away");
    if service.managed.is_empty() && !view.snapshot.services.iter().any(|row| row.name == *name) {
        let message = format!("service {name} is known because tunnel {} is granted it", granting.join(", "));
        return Err(CommandError::failed(message).hint(by_grant(granting.first().copied().unwrap_or("NAME"))));
    }
    registry.delete_service(name.clone(), by, view.now).await?;
    let mut notes = vec![format!("service {name} forgotten")];
    if declared > 0 {
        notes[0] = format!("service {name} is managed here no more; {declared} live connectors declare it themselves");
    } else if let Some(tunnel) = granting.first() {
        notes.push(format!("it stays known because tunnel {tunnel} is granted it: {}", by_grant(tunnel)));
    }
    let mut json = service.json();
    json["deleted"] = true.into();
    let mut changes = vec![Change::ServiceDeleted(name.clone())];
    if declared > 0 {
        // Those who declare it make it known again, and their tunnel's.
        changes.extend(service.managed.iter().map(|row| Change::GrantsChanged(row.tunnel.clone())));
    }
    Ok(Outcome { json, text: String::new(), notes, changes })
}

fn find<'a>(named: &str, services: &'a [KnownService]) -> Result<&'a KnownService, CommandError> {
    let lower = named.to_ascii_lowercase();
    services
        .iter()
        .find(|service| service.name.as_str() == lower)
        .ok_or_else(|| CommandError::failed(format!("no service {named:?}")).hint("`service list` shows them"))
}

fn managed_json(view: &View, row: &ManagedRow) -> Value {
    json!({
        "name": row.name,
        "tunnel": view.tunnel_name(&row.tunnel),
        "origin": row.origin,
        "host": row.host,
        "health_path": row.health_path,
        "since": rfc3339(row.since),
    })
}

/// Names the peer that a service is behind.
fn with_peer(view: &View, service: &KnownService, mut json: Value) -> Value {
    if let Some(row) = &service.behind {
        json["peer"] = json!(view.peer_name(&row.peer));
    }
    json
}

fn owners(view: &View, service: &KnownService) -> String {
    if let Some(row) = &service.behind {
        return format!("peer {}", view.peer_name(&row.peer));
    }
    let names: Vec<&str> = service.tunnels.iter().map(Label::as_str).collect();
    if names.is_empty() { "-".to_owned() } else { names.join(" ") }
}

fn pairs(part: &Part) -> String {
    format!("{}/{}", part.up, part.total)
}
