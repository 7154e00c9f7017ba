//! `service list|show|delete`.

use serde_json::{Value, json};

use super::table::{facts, or_dash, table};
use super::view::{KnownService, View};
use super::{Change, CommandError, Outcome};
use crate::registry::{Actor, Registry};

pub(super) fn show_all(view: &View) -> Outcome {
    let services = view.known_services();
    let row =
        |service: &KnownService| [service.name.to_string(), "connector".to_owned(), tunnels(service), pairs(service)];
    let rows: Vec<_> = services.iter().map(row).collect();
    let json = services.iter().map(KnownService::json).collect();
    Outcome::listing(json, table(["SERVICE", "SOURCE", "TUNNELS", "UP"], &rows), || {
        "no service is known yet: a tunnel's grants and its connectors make them".to_owned()
    })
}

pub(super) fn show(named: &str, view: &View) -> Result<Outcome, CommandError> {
    let lower = named.to_ascii_lowercase();
    let services = view.known_services();
    let service = services
        .iter()
        .find(|service| service.name.as_str() == lower)
        .ok_or_else(|| CommandError::failed(format!("no service {named:?}")).hint("`service list` shows them"))?;
    let mut found: Vec<Value> = Vec::new();
    let mut rows: Vec<[String; 5]> = Vec::new();
    for connector in view.connectors_of(None) {
        let Some(live) = view.live(&connector.id) else { continue };
        for served in live.services.iter().filter(|served| served.name == service.name) {
            found.push(json!({
                "id": connector.id,
                "name": view.name(connector),
                "tunnel": view.tunnel_name(&connector.tunnel),
                "state": view.state(connector),
                "up": served.up,
                "reason": served.reason,
            }));
            rows.push([
                connector.id.to_string(),
                or_dash(view.name(connector)),
                view.tunnel_name(&connector.tunnel),
                view.state(connector).to_owned(),
                if served.up { "up".to_owned() } else { served.reason.clone().unwrap_or_else(|| "down".to_owned()) },
            ]);
        }
    }
    let mut json = service.json();
    json["connectors"] = Value::Array(found);
    let mut text = facts(&[
        ("name", service.name.to_string()),
        ("source", "connector".to_owned()),
        ("tunnels", tunnels(service)),
        ("up", pairs(service)),
    ]);
    if !rows.is_empty() {
        text.push('\n');
        text.push_str(&table(["CONNECTOR", "NAME", "TUNNEL", "STATE", "ORIGIN"], &rows));
    }
    Ok(Outcome { json, text, ..Outcome::default() })
}

/// Forgets a service that nobody serves any more.
pub(super) async fn delete(
    named: &str,
    view: &View,
    registry: &dyn Registry,
    by: Actor,
) -> Result<Outcome, CommandError> {
    let lower = named.to_ascii_lowercase();
    let services = view.known_services();
    let service = services
        .iter()
        .find(|service| service.name.as_str() == lower)
        .ok_or_else(|| CommandError::failed(format!("no service {named:?}")).hint("`service list` shows them"))?;
    let name = &service.name;
    if service.live.total > 0 {
        let message = format!("service {name} is announced by {} live connectors", service.live.total);
        return Err(CommandError::failed(message).hint("take it out of their configuration, or revoke them, first"));
    }
    let granting =
        view.snapshot.tunnels.iter().filter(|tunnel| tunnel.grants.iter().any(|grant| grant.as_str() == lower));
    let granting: Vec<&str> = granting.map(|tunnel| tunnel.name.as_str()).collect();
    let by_grant = |tunnel: &str| format!("`tunnel set {tunnel} --remove-service {name}` takes the grant away");
    if !view.snapshot.services.iter().any(|row| row.name == *name) {
        let message = format!("service {name} is known because tunnel {} is granted it", granting.join(", "));
        return Err(CommandError::failed(message).hint(by_grant(granting.first().copied().unwrap_or("NAME"))));
    }
    registry.delete_service(name.clone(), by, view.now).await?;
    let mut notes = vec![format!("service {name} forgotten")];
    if let Some(tunnel) = granting.first() {
        notes.push(format!("it stays known because tunnel {tunnel} is granted it: {}", by_grant(tunnel)));
    }
    let mut json = service.json();
    json["deleted"] = true.into();
    Ok(Outcome { json, text: String::new(), notes, changes: vec![Change::ServiceDeleted(name.clone())] })
}

fn tunnels(service: &KnownService) -> String {
    let names: Vec<&str> = service.tunnels.iter().map(culvert_model::name::Label::as_str).collect();
    if names.is_empty() { "-".to_owned() } else { names.join(" ") }
}

fn pairs(service: &KnownService) -> String {
    format!("{}/{}", service.live.up, service.live.total)
}
