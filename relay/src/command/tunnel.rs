//! `tunnel create|set|list|show|delete`.

use std::time::SystemTime;

use culvert_model::id::TunnelId;
use culvert_model::name::{Grant, Label};
use serde_json::{Value, json};

use super::table::{facts, relative, table};
use super::token::{self, Minted};
use super::view::{View, token_ids};
use super::{Change, CommandError, Facts, Outcome, TokenTerms};
use crate::registry::{Actor, Registry, Tunnel};

/// What a new tunnel is to be.
pub(super) struct Wanted {
    pub(super) name: Label,
    pub(super) services: Vec<Grant>,
    pub(super) shared: bool,
    pub(super) token: TokenTerms,
}

pub(super) async fn create(
    wanted: Wanted,
    view: &View,
    registry: &dyn Registry,
    facts: &Facts<'_>,
    by: Actor,
) -> Result<Outcome, CommandError> {
    let mut grants: Vec<Grant> = Vec::new();
    for grant in wanted.services {
        if !grants.contains(&grant) {
            grants.push(grant);
        }
    }
    let tunnel = Tunnel { id: TunnelId::new(), name: wanted.name, grants, shared: wanted.shared, created: view.now };
    let minted = token::mint(&tunnel.id, &wanted.token, facts, view)?;
    registry.create_tunnel(tunnel.clone(), minted.row.clone(), by).await?;
    let mut outcome = created(&tunnel, &minted, view.now);
    outcome.notes.extend(taken_over(view, &tunnel, &tunnel.grants));
    Ok(outcome)
}

pub(super) async fn set(
    named: &str,
    add: Vec<Grant>,
    remove: Vec<Grant>,
    view: &View,
    registry: &dyn Registry,
    by: Actor,
) -> Result<Outcome, CommandError> {
    let before = view.tunnel(named)?;
    let tunnel = registry.set_grants(before.id.clone(), add.clone(), remove, by, view.now).await?;
    let mut outcome = Outcome {
        json: view.tunnel_json(&tunnel),
        text: String::new(),
        notes: vec![format!("tunnel {} may serve {}", tunnel.name, list(&tunnel.grants))],
        changes: vec![Change::GrantsChanged(tunnel.id.clone())],
    };
    outcome.notes.extend(taken_over(view, &tunnel, &add));
    Ok(outcome)
}

pub(super) fn show_all(view: &View) -> Outcome {
    let tunnels = &view.snapshot.tunnels;
    let rows: Vec<_> = tunnels.iter().map(|tunnel| row(view, tunnel)).collect();
    let json = tunnels.iter().map(|tunnel| view.tunnel_json(tunnel)).collect();
    Outcome::listing(json, table(["NAME", "SERVICES", "UP", "CREATED", "ID"], &rows), || {
        "no tunnel yet: `tunnel create NAME --service SERVICE` makes one".to_owned()
    })
}

pub(super) fn show(named: &str, view: &View) -> Result<Outcome, CommandError> {
    let tunnel = view.tunnel(named)?;
    let connectors = view.connectors_of(Some(&tunnel.id));
    let tokens = view.tokens_of(Some(&tunnel.id));
    let mut json = view.tunnel_json(tunnel);
    json["connectors"] = connectors.iter().map(|connector| view.connector_json(connector)).collect();
    json["tokens"] = tokens.iter().map(|token| view.token_json(token)).collect();
    let (up, total) = view.up(&tunnel.id);
    let mut text = facts(&[
        ("name", tunnel.name.to_string()),
        ("id", tunnel.id.to_string()),
        ("services", list(&tunnel.grants)),
        ("shared", if tunnel.shared { "yes" } else { "no" }.to_owned()),
        ("created", relative(tunnel.created, view.now)),
        ("connectors", format!("{up} of {total} up")),
    ]);
    for part in [super::connector::lines(view, &connectors), token::lines(view, &tokens)] {
        if !part.is_empty() {
            text.push('\n');
            text.push_str(&part);
        }
    }
    Ok(Outcome { json, text, ..Outcome::default() })
}

pub(super) async fn delete(
    named: &str,
    view: &View,
    registry: &dyn Registry,
    by: Actor,
) -> Result<Outcome, CommandError> {
    let tunnel = view.tunnel(named)?;
    let revoked = registry.delete_tunnel(tunnel.id.clone(), by, view.now).await?;
    let said = format!(
        "tunnel {} deleted, {} of its connectors and {} of its tokens revoked",
        tunnel.name,
        revoked.len(),
        token_ids(view, &tunnel.id).len()
    );
    let mut changes: Vec<Change> = token_ids(view, &tunnel.id).into_iter().map(Change::TokenRevoked).collect();
    let json = json!({ "id": tunnel.id, "name": tunnel.name, "connectors_revoked": revoked.len() });
    changes.extend(revoked.into_iter().map(Change::ConnectorRevoked));
    changes.push(Change::TunnelDeleted(tunnel.id.clone()));
    Ok(Outcome { json, text: String::new(), notes: vec![said], changes })
}

fn created(tunnel: &Tunnel, minted: &Minted, now: SystemTime) -> Outcome {
    let json: Value = json!({
        "id": tunnel.id,
        "name": tunnel.name,
        "services": tunnel.grants,
        "shared": tunnel.shared,
        "connectors_up": 0,
        "created": culvert_ops::time::rfc3339(tunnel.created),
        "token_id": minted.row.id,
        "uses_left": minted.row.uses_left,
        "expires": minted.row.expires.map(culvert_ops::time::rfc3339),
        "token": minted.text.as_str(),
    });
    let example = tunnel.grants.iter().find_map(Grant::exact);
    let example = example.map_or_else(|| "NAME".to_owned(), |name| name.to_string());
    let notes = vec![
        format!("tunnel {} created, it may serve {}", tunnel.name, list(&tunnel.grants)),
        minted.described(now),
        format!("on the private host: culvert-connector run --token-file FILE --service {example}=http://HOST:PORT"),
    ];
    let changes = vec![
        Change::TunnelCreated(tunnel.id.clone()),
        Change::TokenAdded(minted.row.id.clone()),
        Change::GrantsChanged(tunnel.id.clone()),
    ];
    Outcome { json, text: format!("{}\n", minted.text.as_str()), notes, changes }
}

/// What an exact grant took from other tunnels' patterns: their operators should hear of it.
fn taken_over(view: &View, tunnel: &Tunnel, grants: &[Grant]) -> Vec<String> {
    let taken = |name: &culvert_model::name::ServiceName| {
        let lost = view.snapshot.services.iter().filter(|row| row.name == *name && row.tunnel != tunnel.id);
        lost.filter_map(|row| view.snapshot.tunnels.iter().find(|other| other.id == row.tunnel))
            .find(|other| !(other.shared && tunnel.shared))
            .map(|other| format!("{name} belongs to tunnel {} now; {} served it by a pattern", tunnel.name, other.name))
    };
    grants.iter().filter_map(Grant::exact).filter_map(|name| taken(&name)).collect()
}

fn row(view: &View, tunnel: &Tunnel) -> [String; 5] {
    let (up, total) = view.up(&tunnel.id);
    [
        tunnel.name.to_string(),
        list(&tunnel.grants),
        format!("{up}/{total}"),
        relative(tunnel.created, view.now),
        tunnel.id.to_string(),
    ]
}

fn list(grants: &[Grant]) -> String {
    grants.iter().map(Grant::as_str).collect::<Vec<_>>().join(" ")
}
