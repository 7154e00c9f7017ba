//! `key show|rotate`: the relay's own key, and who still uses the one before it.
//!
//! Must never print a private key.

use std::time::Duration;

use culvert_ops::time::rfc3339;
use serde_json::{Value, json};

use super::table::{or_dash, relative, rough, table};
use super::view::View;
use super::{Change, CommandError, Facts, Outcome};
use crate::registry::{Actor, AuditRow, ConnectorRow, Registry};

/// The key, and in the grace of a rotation the one before it with the connectors that have not used the newest yet.
pub(super) fn show(view: &View, known: &Facts<'_>) -> Outcome {
    let public_key = known.public_key();
    let users = users_of_previous(view, known);
    let previous = known.identity.rotation().previous(view.now);
    let json = json!({
        "public_key": public_key,
        "previous": previous.as_ref().map(|previous| json!({
            "public_key": previous.public_key,
            "until": rfc3339(previous.until),
            "used_by": users.iter().map(|connector| user_json(view, connector)).collect::<Vec<_>>(),
        })),
    });
    let mut notes = Vec::new();
    if let Some(previous) = previous {
        notes.push(format!(
            "the key before, {}, is answered until {} ({} left)",
            previous.public_key,
            rfc3339(previous.until),
            rough(previous.until.duration_since(view.now).unwrap_or_default()),
        ));
        let row = |connector: &&ConnectorRow| {
            [
                connector.id.to_string(),
                or_dash(view.name(connector)),
                view.tunnel_name(&connector.tunnel),
                view.state(connector).to_owned(),
                or_dash(view.last_handshake(connector).map(|at| relative(at, view.now))),
            ]
        };
        let rows: Vec<_> = users.iter().map(row).collect();
        notes.push(if rows.is_empty() {
            "no connector uses it any more".to_owned()
        } else {
            let lines = table(["CONNECTOR", "NAME", "TUNNEL", "STATE", "HANDSHAKE"], &rows);
            format!("still used by, as far as this relay knows:\n{}", lines.trim_end())
        });
    }
    Outcome { json, text: format!("{public_key}\n"), notes, ..Outcome::default() }
}

/// Makes a new key; the one before is answered for `grace`.
pub(super) async fn rotate(
    grace: Duration,
    force: bool,
    view: &View,
    registry: &dyn Registry,
    known: &Facts<'_>,
    by: Actor,
) -> Result<Outcome, CommandError> {
    let rotation = known.identity.rotation();
    let users = users_of_previous(view, known);
    if let Some(previous) = rotation.previous(view.now).filter(|_| !force && !users.is_empty()) {
        return Err(CommandError::failed(format!(
            "the last rotation is not over: {} connectors have not used the newest key yet, and would be locked out",
            users.len()
        ))
        .hint(format!(
            "wait until {}, or have them come back; `key show` names them, --force rotates nevertheless",
            rfc3339(previous.until)
        )));
    }
    let before = known.public_key();
    rotation.rotate(grace, view.now).map_err(|error| CommandError::failed(error.to_string()))?;
    let until = rfc3339(view.now + grace);
    let row = AuditRow {
        at: view.now,
        actor: by.0,
        action: "key.rotate".to_owned(),
        subject: known.public_key().to_string(),
        detail: format!("{before} is answered until {until}"),
    };
    let mut notes = vec![
        format!("the relay has a new key; {before} is answered for another {} (until {until})", rough(grace)),
        "connectors learn the new one through their tunnels: `key show` tells who still uses the old one".to_owned(),
        "tokens made before work as long as the old key does".to_owned(),
    ];
    if let Err(error) = registry.audit(row).await {
        notes.push(format!("the audit trail could not be written: {error}"));
    }
    let peers: Vec<&str> = view.peers().map(|peer| peer.name.as_str()).collect();
    if !peers.is_empty() {
        // Nobody can tell a stock peer but its operator.
        notes.push(format!("peers have to be told by hand, until then: `peer config` has it for {}", peers.join(" ")));
    }
    let shown = show(view, known);
    Ok(Outcome { json: shown.json, text: shown.text, notes, changes: vec![Change::KeyRotated] })
}

fn users_of_previous<'a>(view: &'a View, known: &Facts<'_>) -> Vec<&'a ConnectorRow> {
    let here = known.identity.relay_tag();
    let rotation = known.identity.rotation();
    let uses = |row: &&ConnectorRow| row.is_of(&here) && rotation.uses_previous(&row.id, view.now);
    view.snapshot.connectors.iter().filter(uses).collect()
}

fn user_json(view: &View, connector: &ConnectorRow) -> Value {
    json!({
        "id": connector.id,
        "name": view.name(connector),
        "tunnel": view.tunnel_name(&connector.tunnel),
        "state": view.state(connector),
        "last_handshake": view.last_handshake(connector).map(rfc3339),
    })
}

#[cfg(test)]
mod tests {
    use culvert_ops::state::StateDir;

    use super::*;
    use crate::command::{Command, Offline, Request, carry_out};
    use crate::identity::{Identity, open_state};
    use crate::registry::Url;

    struct Relay {
        identity: Identity,
        registry: std::sync::Arc<dyn Registry>,
        _state: StateDir,
    }

    impl Relay {
        fn new() -> Self {
            let state = StateDir::temporary().unwrap();
            let (identity, registry) = open_state(&state, &Url::default()).unwrap();
            Self { identity, registry, _state: state }
        }

        async fn ask(&self, command: Command) -> Result<Outcome, CommandError> {
            let facts = Facts::plain(&self.identity);
            let request = Request { actor: "uid 7".to_owned(), command };
            carry_out(request, &*self.registry, &Offline, &facts, std::time::SystemTime::now()).await
        }
    }

    #[tokio::test]
    async fn a_rotation_is_shown_and_written_down_with_public_keys_alone() {
        let relay = Relay::new();
        let old = relay.ask(Command::KeyShow).await.unwrap();
        assert!(old.json["previous"].is_null() && old.notes.is_empty());
        let rotate = Command::KeyRotate { grace_seconds: 86_400, force: false };
        let rotated = relay.ask(rotate.clone()).await.unwrap();
        assert_eq!(rotated.changes, [Change::KeyRotated]);
        assert_eq!(rotated.text.trim(), rotated.json["public_key"].as_str().unwrap());
        assert_eq!(rotated.json["previous"]["public_key"], old.json["public_key"]);
        let shown = relay.ask(Command::KeyShow).await.unwrap();
        assert_eq!(shown.json, rotated.json);
        assert!(shown.notes.concat().contains("no connector uses it any more"), "{:?}", shown.notes);
        let audit = relay.ask(Command::Audit { since_seconds: 60 }).await.unwrap().json;
        let row = audit.as_array().unwrap().iter().find(|row| row["action"] == "key.rotate").unwrap();
        assert_eq!((&row["actor"], &row["subject"]), (&json!("uid 7"), &rotated.json["public_key"]));
        assert!(row["detail"].as_str().unwrap().starts_with(old.text.trim()));
        // Nobody is left behind, so nothing stands against another.
        assert!(relay.ask(rotate).await.is_ok());
    }

    #[tokio::test]
    async fn a_rotation_names_the_peers_that_have_to_be_told_by_hand() {
        let relay = Relay::new();
        let peer = crate::command::PeerWanted {
            name: "branch".parse().unwrap(),
            public_key: Some(culvert_model::key::PublicKey::from_bytes([7; 32])),
            allowed_ips: vec!["10.20.0.0/16".parse().unwrap()],
            endpoint: None,
            psk: None,
            keepalive: None,
            dns: None,
        };
        relay.ask(Command::PeerAdd { peer }).await.unwrap();
        let rotated = relay.ask(Command::KeyRotate { grace_seconds: 86_400, force: false }).await.unwrap();
        assert!(
            rotated.notes.iter().any(|note| note.ends_with("`peer config` has it for branch")),
            "{:?}",
            rotated.notes
        );
    }
}
