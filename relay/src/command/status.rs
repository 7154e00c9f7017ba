//! `status`.

use culvert_ops::time::rfc3339;
use serde_json::json;

use super::live::Live;
use super::table::{facts, relative, rough};
use super::view::View;
use super::{CommandError, Facts, Outcome};
use crate::registry::Registry;

pub(super) fn status(
    view: &View,
    live: &dyn Live,
    registry: &dyn Registry,
    known: &Facts<'_>,
) -> Result<Outcome, CommandError> {
    let Some(process) = live.status() else {
        return Err(CommandError::failed("the relay is not running").hint("`culvert-relay run` starts it"));
    };
    let services = view.known_services();
    let connectors = view.connectors_of(None);
    let members = connectors.iter().filter(|connector| connector.revoked.is_none()).count();
    let up = connectors.iter().filter(|connector| view.state(connector) == "up").count();
    let mut alarms = super::connector::alarms(view, &connectors);
    alarms.extend(view.tun_alarm());
    let peers_total = view.peers().count();
    let peers_up = view.peers().filter(|peer| view.peer_state(peer) == "up").count();
    let uptime = view.now.duration_since(process.started).unwrap_or_default();
    let endpoints: Vec<String> = known.endpoints.iter().map(ToString::to_string).collect();
    let (degraded, (engine, place)) = (registry.degraded(), registry.place());
    let listeners: Vec<_> =
        process.listeners.iter().map(|(what, address)| json!({ "what": what, "address": address })).collect();
    let per_service: serde_json::Map<_, _> = services
        .iter()
        .map(|service| (service.name.to_string(), json!({ "up": service.live.up, "total": service.live.total })))
        .collect();
    let own = known.identity.relay_tag();
    let relays = view.snapshot.relays.iter().map(|relay| {
        json!({
            "tag": relay.tag,
            "public_key": relay.public_key,
            "endpoints": relay.endpoints,
            "seen": rfc3339(relay.seen),
            "own": relay.tag == own,
        })
    });
    let others = view.snapshot.relays.iter().filter(|relay| relay.tag != own);
    let others = others.map(|relay| format!("{} seen {}", relay.endpoints.join(" "), relative(relay.seen, view.now)));
    let json = json!({
        "relays": relays.collect::<Vec<_>>(),
        "version": process.version,
        "pid": process.pid,
        "ready": process.ready,
        "draining": process.draining,
        "reasons": process.reasons,
        "started": rfc3339(process.started),
        "uptime_seconds": uptime.as_secs(),
        "public_key": known.public_key(),
        "endpoints": endpoints,
        "listeners": listeners,
        "shards": process.shards,
        "registry": degraded.as_deref().map_or("ok", |_| "degraded"),
        "registry_engine": engine,
        "registry_place": place,
        "tunnels": view.snapshot.tunnels.len(),
        "connectors_up": up,
        "connectors_total": members,
        "peers_up": peers_up,
        "peers_total": peers_total,
        "services": per_service,
        "alarms": alarms,
    });
    let state = match (process.draining, process.ready) {
        (true, _) => "draining",
        (false, true) => "ready",
        (false, false) => "not ready",
    };
    let listening: Vec<String> = process.listeners.iter().map(|(what, address)| format!("{what} {address}")).collect();
    // One shard has nothing to say that does not stand above.
    let several = process.shards.iter().enumerate().filter(|_| process.shards.len() > 1);
    let shards: Vec<String> = several
        .map(|(number, shard)| {
            let (up, total, callers, passed) = (shard.peers_up, shard.peers_total, shard.callers, shard.passed_on);
            format!("{number}: {up} of {total} peers up, {callers} callers, {passed} datagrams passed on")
        })
        .collect();
    let whole = services.iter().filter(|service| service.live.up > 0).count();
    // A file lies in the state directory, whose name stands above.
    let registry_is = if place.contains("://") { place } else { engine };
    let text = facts(&[
        ("relay", format!("{state}, version {}, process {}, up {}", process.version, process.pid, rough(uptime))),
        ("amiss", process.reasons.iter().chain(&alarms).cloned().collect::<Vec<_>>().join("\n")),
        ("public key", known.public_key().to_string()),
        ("endpoints", if endpoints.is_empty() { "none".to_owned() } else { endpoints.join(" ") }),
        ("listening", listening.join("\n")),
        ("registry", format!("{registry_is}: {}", degraded.as_deref().map_or("ok", |_| "degraded"))),
        ("relays", others.collect::<Vec<_>>().join("\n")),
        ("tunnels", view.snapshot.tunnels.len().to_string()),
        ("connectors", format!("{up} of {members} up")),
        ("peers", if peers_total > 0 { format!("{peers_up} of {peers_total} up") } else { String::new() }),
        ("services", format!("{whole} of {} up", services.len())),
        ("shards", shards.join("\n")),
    ]);
    Ok(Outcome { json, text, ..Outcome::default() })
}
