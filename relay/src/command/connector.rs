//! `connector list|show|drain|undrain|revoke`.

use culvert_model::name::Grant;
use culvert_ops::time::rfc3339;

use super::live::{LiveLane, LiveServiceOfConnector};
use super::table::{bytes, facts, or_dash, relative, rough, table};
use super::view::View;
use super::{Change, CommandError, Outcome};
use crate::registry::{Actor, ConnectorRow, Registry};

pub(super) fn show_all(named: Option<&str>, view: &View) -> Result<Outcome, CommandError> {
    let tunnel = named.map(|named| view.tunnel(named)).transpose()?;
    let connectors = view.connectors_of(tunnel.map(|tunnel| &tunnel.id));
    let json = connectors.iter().map(|connector| view.connector_json(connector)).collect();
    let mut outcome = Outcome::listing(json, lines(view, &connectors), || {
        "no connector has joined yet: `token create TUNNEL` makes a token for one".to_owned()
    });
    outcome.notes.extend(alarms(view, &connectors));
    Ok(outcome)
}

fn words_of(lane: &LiveLane) -> String {
    let LiveLane { number, shard, in_flight, requests, .. } = lane;
    format!("{number} on shard {shard}: {requests} requests, {in_flight} in flight")
}

pub(super) fn show(named: &str, view: &View) -> Result<Outcome, CommandError> {
    let connector = view.connector(named)?;
    let live = view.live(&connector.id);
    let services = live.map(|live| live.services.iter().map(health).collect::<Vec<_>>().join("\n"));
    let notes = live.map_or(&[][..], |live| &live.notes).iter().cloned();
    let notes = view.alarm(connector).into_iter().chain(notes).collect::<Vec<_>>().join("\n");
    let mut pairs = vec![
        ("id", connector.id.to_string()),
        ("name", or_dash(view.name(connector))),
        ("tunnel", view.tunnel_name(&connector.tunnel)),
        ("state", view.state(connector).to_owned()),
        ("public key", connector.public_key.to_string()),
        ("key age", rough(view.now.duration_since(connector.key_since).unwrap_or_default())),
        ("inner address", connector.inner_address.to_string()),
        ("endpoint", or_dash(view.endpoint(connector))),
        ("last handshake", or_dash(view.last_handshake(connector).map(|at| relative(at, view.now)))),
        ("version", or_dash(view.version(connector))),
        ("joined", format!("{} with {}", relative(connector.enrolled, view.now), connector.token)),
    ];
    let next = connector.next.as_ref().filter(|_| connector.revoked.is_none());
    pairs.extend(next.map(|next| ("next key", format!("{}, {}", next.public_key, relative(next.since, view.now)))));
    if let Some(since) = connector.safe_since.filter(|_| connector.revoked.is_none()) {
        let epoch = live.and_then(|live| live.psk_epoch).map(|epoch| format!(", pre-shared key {epoch}"));
        let words = format!("against recording for a quantum computer since {}", rfc3339(since));
        pairs.push(("safe", words + &epoch.unwrap_or_default()));
    }
    let narrowed: Vec<&str> = connector.services.iter().map(Grant::as_str).collect();
    pairs.extend((!narrowed.is_empty()).then(|| ("limited to", narrowed.join(" "))));
    let out_of_service = connector.drained.then(|| "yes, until `connector undrain`".to_owned());
    pairs.extend(out_of_service.map(|words| ("drained", words)));
    pairs.extend(connector.revoked.map(|at| ("revoked", relative(at, view.now))));
    let lanes = live.map(|live| live.lanes.as_slice()).filter(|lanes| lanes.len() > 1).unwrap_or_default();
    pairs.extend(lanes.iter().map(|lane| ("lane", words_of(lane))));
    pairs.extend(live.map(|live| ("received", format!("{} bytes", live.rx_bytes))));
    pairs.extend(live.map(|live| ("sent", format!("{} bytes", live.tx_bytes))));
    pairs.push(("services", services.filter(|text| !text.is_empty()).unwrap_or_else(|| "-".to_owned())));
    pairs.push(("notes", notes));
    Ok(Outcome { json: view.connector_json(connector), text: facts(&pairs), ..Outcome::default() })
}

pub(super) async fn drain(
    named: &str,
    drained: bool,
    view: &View,
    registry: &dyn Registry,
    by: Actor,
) -> Result<Outcome, CommandError> {
    let connector = view.connector(named)?;
    if connector.revoked.is_some() {
        return Err(CommandError::failed(format!("connector {} is revoked", connector.id)));
    }
    registry.set_drained(connector.id.clone(), drained, by, view.now).await?;
    let words = if drained { "gets no new requests; those in flight go on" } else { "is back in service" };
    let after = ConnectorRow { drained, ..connector.clone() };
    Ok(Outcome {
        json: view.connector_json(&after),
        text: String::new(),
        notes: vec![format!("connector {} {words}", connector.id)],
        changes: vec![Change::ConnectorDrained(connector.id.clone(), drained)],
    })
}

pub(super) async fn revoke(
    named: &str,
    view: &View,
    registry: &dyn Registry,
    by: Actor,
) -> Result<Outcome, CommandError> {
    let connector = view.connector(named)?;
    registry.revoke_connector(connector.id.clone(), by, view.now).await?;
    let after = ConnectorRow { revoked: connector.revoked.or(Some(view.now)), ..connector.clone() };
    Ok(Outcome {
        json: view.connector_json(&after),
        text: String::new(),
        notes: vec![format!("connector {} revoked: its key is refused from now on", connector.id)],
        changes: vec![Change::ConnectorRevoked(connector.id.clone())],
    })
}

/// What an operator has to hear of any of them, whoever asks for them all.
pub(super) fn alarms(view: &View, connectors: &[&ConnectorRow]) -> Vec<String> {
    let alarm = |connector: &&ConnectorRow| Some(format!("connector {}: {}", connector.id, view.alarm(connector)?));
    connectors.iter().filter_map(alarm).collect()
}

/// The table; nothing for no connector.
pub(super) fn lines(view: &View, connectors: &[&ConnectorRow]) -> String {
    let row = |connector: &&ConnectorRow| {
        let live = view.live(&connector.id);
        let services: Vec<String> = live.map_or_else(Vec::new, |live| live.services.iter().map(brief).collect());
        [
            connector.id.to_string(),
            or_dash(view.name(connector)),
            view.tunnel_name(&connector.tunnel),
            view.state(connector).to_owned(),
            or_dash(view.endpoint(connector)),
            or_dash(view.last_handshake(connector).map(|at| relative(at, view.now))),
            or_dash(view.version(connector)),
            or_dash(live.map(|live| format!("{}/{}", bytes(live.rx_bytes), bytes(live.tx_bytes)))),
            rough(view.now.duration_since(connector.key_since).unwrap_or_default()),
            connector.public_key.to_string(),
            if services.is_empty() { "-".to_owned() } else { services.join(" ") },
        ]
    };
    let rows: Vec<_> = connectors.iter().map(row).collect();
    if rows.is_empty() {
        return String::new();
    }
    let heading = [
        "CONNECTOR",
        "NAME",
        "TUNNEL",
        "STATE",
        "ENDPOINT",
        "HANDSHAKE",
        "VERSION",
        "RX/TX",
        "KEY AGE",
        "PUBLIC KEY",
        "SERVICES",
    ];
    table(heading, &rows)
}

fn brief(service: &LiveServiceOfConnector) -> String {
    if service.up { service.name.to_string() } else { format!("{}(down)", service.name) }
}

fn health(service: &LiveServiceOfConnector) -> String {
    match (&service.reason, service.up) {
        (_, true) => format!("{} up", service.name),
        (Some(reason), false) => format!("{} down: {reason}", service.name),
        (None, false) => format!("{} down", service.name),
    }
}
