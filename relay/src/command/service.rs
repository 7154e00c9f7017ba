//! `service list|show`.

use serde_json::{Value, json};

use super::table::{facts, or_dash, table};
use super::view::{KnownService, View};
use super::{CommandError, Outcome};

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

fn tunnels(service: &KnownService) -> String {
    let names: Vec<&str> = service.tunnels.iter().map(culvert_model::name::Label::as_str).collect();
    if names.is_empty() { "-".to_owned() } else { names.join(" ") }
}

fn pairs(service: &KnownService) -> String {
    format!("{}/{}", service.live.up, service.live.total)
}
