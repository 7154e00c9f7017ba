//! What the connector says of itself: `/readyz`, `/metrics`, `status`; and the one change it takes, `reload`.
//!
//! Must never show a secret, or an origin to anybody but this host's operator.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use culvert_model::control::RefusedService;
use culvert_model::key::PublicKey;
use culvert_ops::admin::{Admin, Answer, Call, Health, Pairs};
use culvert_ops::exit::Quit;
use culvert_ops::time::rfc3339;
use culvert_origin::proof::Proof;
use culvert_origin::proxy_protocol::ProxyProtocol;
use culvert_origin::tls::Expiry;
use http::Method;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot, watch};

use crate::VERSION;
use crate::board::RelayState;
use crate::identity::Identity;
use crate::shared::Shared;

/// What somebody asks the running connector for, and waits for.
#[derive(Debug)]
pub enum Asked {
    /// To read its configuration again.
    Reload(oneshot::Sender<Result<Vec<String>, Quit>>),
    /// To change to another key.
    Rotate(oneshot::Sender<Result<PublicKey, Quit>>),
}

/// The admin server's view of the connector.
pub struct Window {
    /// The connector's parts.
    pub shared: Arc<Shared>,
    /// Who it is, once it has joined.
    pub identity: watch::Receiver<Option<Facts>>,
    /// Where changes are asked for.
    pub ask: mpsc::Sender<Asked>,
}

/// What may be told of an identity.
#[derive(Debug, Clone)]
pub struct Facts {
    id: String,
    tunnel: String,
    public_key: String,
    inner_address: String,
    joined_seconds: u64,
    key_made: SystemTime,
}

impl Facts {
    /// The public part of an identity.
    pub fn of(identity: &Identity) -> Self {
        Self {
            id: identity.joined.id.to_string(),
            tunnel: identity.joined.tunnel.as_str().to_owned(),
            public_key: identity.private_key.public_key().to_string(),
            inner_address: identity.joined.inner_address.to_string(),
            joined_seconds: identity.joined.joined_seconds,
            key_made: identity.joined.key_made(),
        }
    }

    /// Whether the clock shows a time before this connector joined: then relays refuse its handshakes as old.
    fn clock_is_behind(&self, now: SystemTime) -> bool {
        now < SystemTime::UNIX_EPOCH + Duration::from_secs(self.joined_seconds)
    }
}

impl std::fmt::Display for Facts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, " ({} of tunnel {})", self.id, self.tunnel)
    }
}

impl Window {
    fn status(&self) -> Value {
        let shared = &self.shared;
        let facts = self.identity.borrow().clone();
        let now = SystemTime::now();
        let health = self.health();
        let table = shared.origins.table();
        let services = table.iter().map(|upstream| {
            let why_down = upstream.health.why_down();
            json!({
                "name": upstream.service.name,
                "origin": upstream.service.origin.to_string(),
                "source": if upstream.is_managed() { "relay" } else { "connector" },
                "proxy_protocol": upstream.service.proxy_protocol.map(ProxyProtocol::name),
                "certificates": upstream.service.expiries().map(|end| certificate(&end)).collect::<Vec<_>>(),
                "proof": upstream.service.auth.as_deref().map(proof),
                "up": why_down.is_none(),
                "reason": why_down.as_ref().map(|down| &down.reason),
                "detail": why_down.as_ref().and_then(|down| down.detail.as_ref()),
            })
        });
        json!({
            "version": VERSION,
            "ready": health.is_ready(None),
            "draining": health.draining,
            "reasons": health.reasons,
            "id": facts.as_ref().map(|facts| &facts.id),
            "name": shared.name.as_ref().map(|name| name.as_str()),
            "tunnel": facts.as_ref().map(|facts| &facts.tunnel),
            "public_key": facts.as_ref().map(|facts| &facts.public_key),
            "inner_address": facts.as_ref().map(|facts| &facts.inner_address),
            "key": self.key(),
            "ephemeral": shared.ephemeral,
            "in_flight": shared.drain.in_flight(),
            "clock": if facts.as_ref().is_some_and(|facts| facts.clock_is_behind(now)) { "behind" } else { "ok" },
            "relays": shared.board.relays().iter().map(|(name, state)| state.json(name)).collect::<Vec<_>>(),
            "services": services.collect::<Vec<_>>(),
            "managed_refused": shared.refused.borrow().iter().map(refusal).collect::<Vec<_>>(),
        })
    }
}

impl Window {
    /// Has something done by the connector itself.
    async fn asked<T>(&self, what: impl FnOnce(oneshot::Sender<Result<T, Quit>>) -> Asked) -> Result<T, Quit> {
        let (tell, told) = oneshot::channel();
        let gone = || Quit::failed("this connector is going down");
        self.ask.send(what(tell)).await.map_err(|_| gone())?;
        told.await.unwrap_or_else(|_| Err(gone()))
    }

    /// `key show`: the public half and its age, and the change to the next one.
    fn key(&self) -> Value {
        let facts = self.identity.borrow().clone();
        let relays: Vec<String> = self.shared.board.relays().into_iter().map(|(name, _)| name).collect();
        json!({
            "public_key": facts.as_ref().map(|facts| &facts.public_key),
            "created": facts.as_ref().map(|facts| rfc3339(facts.key_made)),
            "age_seconds": facts.as_ref().map(|facts| age_seconds(facts.key_made, SystemTime::now())),
            "rotation": self.shared.rotation.json(&relays),
        })
    }
}

/// How requests are proven, and what is held for it: null where nobody else has a part in it.
fn proof(proof: &Proof) -> Value {
    let holding = proof.holding();
    json!({
        "type": proof.kind(),
        "left_seconds": holding.as_ref().and_then(|holding| holding.left).map(|left| left.as_secs()),
        "trouble": holding.and_then(|holding| holding.trouble),
    })
}

/// Whole seconds since then; a clock that went back gives none.
pub fn age_seconds(then: SystemTime, now: SystemTime) -> u64 {
    now.duration_since(then).map_or(0, |age| age.as_secs())
}

impl Admin for Window {
    fn health(&self) -> Health {
        let shared = &self.shared;
        let connected = shared.board.is_any_up();
        let mut reasons = Vec::new();
        if !connected {
            reasons = shared.board.problems();
            if reasons.is_empty() {
                let joined = self.identity.borrow().is_some();
                reasons.push(if joined { "no session with a relay yet" } else { "not joined yet" }.to_owned());
            }
        }
        let table = shared.origins.table();
        let services = table.iter().map(|upstream| {
            let up = usize::from(connected && upstream.health.is_up());
            (upstream.service.name.as_str().to_owned(), Pairs { up, total: 1 })
        });
        let state = |state: &RelayState| if state.up { "up" } else { "down" };
        let relays: serde_json::Map<String, Value> =
            shared.board.relays().iter().map(|(name, relay)| (name.clone(), state(relay).into())).collect();
        Health {
            draining: shared.drain.is_draining(),
            reasons,
            services: services.collect(),
            notes: [("relays", relays.into())].into(),
        }
    }

    fn metrics(&self) -> String {
        let shared = &self.shared;
        let table = shared.origins.table();
        let services: Vec<_> =
            table.iter().map(|up| (up.service.name.as_str().to_owned(), up.health.is_up())).collect();
        let now = SystemTime::now();
        let relays: Vec<_> = shared
            .board
            .relays()
            .into_iter()
            .map(|(name, state)| (name, state.up, state.last_handshake.and_then(|then| now.duration_since(then).ok())))
            .collect();
        shared.metrics.set_certificates(table.iter().flat_map(|upstream| {
            upstream.service.expiries().map(|end| (upstream.service.name.as_str(), end.file, end.seconds_left(now)))
        }));
        shared.metrics.set_proofs(table.iter().filter_map(|upstream| {
            let holding = upstream.service.auth.as_ref()?.holding()?;
            Some((upstream.service.name.as_str(), holding.left.unwrap_or_default().as_secs_f64()))
        }));
        shared.metrics.text(&services, &relays)
    }

    async fn api(&self, call: Call) -> Answer {
        let parts = call.parts();
        match (call.method.clone(), parts.iter().map(String::as_str).collect::<Vec<_>>().as_slice()) {
            (Method::GET, ["status"]) => Answer::ok(self.status()),
            (Method::POST, ["reload"]) => match self.asked(Asked::Reload).await {
                Ok(restart) => Answer::ok(json!({ "restart_needed": restart })),
                Err(quit) => Answer::from(quit),
            },
            (Method::GET, ["key"]) => Answer::ok(self.key()),
            (Method::POST, ["key", "rotate"]) => match self.asked(Asked::Rotate).await {
                Ok(public_key) => Answer::ok(json!({ "public_key": public_key })),
                Err(quit) => Answer::from(quit),
            },
            (_, ["status" | "reload" | "key"] | ["key", "rotate"]) => Answer::wrong_method(),
            _ => Answer::not_found("no such path"),
        }
    }
}

fn certificate(end: &Expiry) -> Value {
    json!({ "file": end.file, "not_after": rfc3339(end.at) })
}

fn refusal(refused: &RefusedService) -> Value {
    json!({ "name": refused.name, "why": refused.why })
}

/// `status` for people.
pub fn status_text(status: &Value) -> String {
    let text = |value: &Value| match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let mut lines = vec![
        format!("connector    {}", text(&status["id"])),
        format!("name         {}", text(&status["name"])),
        format!("tunnel       {}", text(&status["tunnel"])),
        format!("public key   {}", text(&status["public_key"])),
        format!("inner        {}", text(&status["inner_address"])),
        format!("version      {}", text(&status["version"])),
    ];
    if status["draining"] == true {
        lines.push("draining     yes".to_owned());
    }
    if status["clock"] == "behind" {
        lines.push("clock        behind? it shows a time before this connector joined".to_owned());
    }
    if !status["key"]["rotation"].is_null() {
        lines.push(format!("next key     {}, under way", text(&status["key"]["rotation"]["public_key"])));
    }
    for relay in status["relays"].as_array().into_iter().flatten() {
        let since = text(&relay["since"]);
        let endpoints: Vec<String> = relay["endpoints"].as_array().into_iter().flatten().map(text).collect();
        lines.push(format!("relay        {} {} since {since}", endpoints.join(" "), text(&relay["state"])));
        if !relay["reason"].is_null() {
            lines.push(format!("             {}", text(&relay["reason"])));
        }
        if let Some(lanes @ 2..) = relay["lanes"].as_u64() {
            lines.push(format!("             {lanes} lanes"));
        }
        if !relay["quantum_safe_since"].is_null() {
            lines.push(format!(
                "             safe against recording for a quantum computer since {} (pre-shared key {} since {})",
                text(&relay["quantum_safe_since"]),
                text(&relay["psk_epoch"]),
                text(&relay["psk_since"])
            ));
        }
        for refused in relay["refused"].as_array().into_iter().flatten() {
            lines.push(format!("             {} refused: {}", text(&refused["name"]), text(&refused["why"])));
        }
    }
    for service in status["services"].as_array().into_iter().flatten() {
        let state =
            if service["up"] == true { "up".to_owned() } else { format!("down ({})", text(&service["reason"])) };
        let managed = if service["source"] == "relay" { ", managed at the relay" } else { "" };
        lines.push(format!("service      {} {} {state}{managed}", text(&service["name"]), text(&service["origin"])));
        for end in service["certificates"].as_array().into_iter().flatten() {
            lines.push(format!("             {} until {}", text(&end["file"]), text(&end["not_after"])));
        }
        let proof = &service["proof"];
        if !proof["left_seconds"].is_null() {
            lines.push(format!(
                "             proof by {}: held for {} s more",
                text(&proof["type"]),
                proof["left_seconds"]
            ));
        }
        if !proof["trouble"].is_null() {
            lines.push(format!(
                "             proof by {} cannot be renewed: {}",
                text(&proof["type"]),
                text(&proof["trouble"])
            ));
        }
        if !service["detail"].is_null() {
            lines.push(format!("             {}", text(&service["detail"])));
        }
    }
    for refused in status["managed_refused"].as_array().into_iter().flatten() {
        lines.push(format!("refused      {}: {}", text(&refused["name"]), text(&refused["why"])));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_reads_well() {
        let status = json!({
            "version": "0.1.0", "ready": false, "draining": false, "id": "con_a", "name": null, "tunnel": "shop",
            "public_key": "K=", "inner_address": "fd43::1", "clock": "behind",
            "relays": [{"endpoints": ["r:1"], "state": "down", "since": null, "reason": "no answer", "lanes": 2, "refused": [{"name": "x", "why": "not granted"}]}],
            "services": [{"name": "orders", "origin": "http://o:1", "up": false, "reason": "origin_refused", "detail": "10.0.0.1:1: refused"},
                         {"name": "crm", "origin": "http://c:1", "up": true, "source": "relay", "certificates": [{"file": "cert", "not_after": "2027-01-01T00:00:00Z"}],
                          "proof": {"type": "entra-id", "left_seconds": 60, "trouble": "https://x refused"}}],
            "managed_refused": [{"name": "hr", "why": "not allowed here"}],
        });
        let text = status_text(&status);
        for line in [
            "name         -",
            "clock        behind?",
            "relay        r:1 down since -",
            "             no answer",
            "             2 lanes",
            "x refused: not granted",
            "service      orders http://o:1 down (origin_refused)",
            "             10.0.0.1:1: refused",
            "service      crm http://c:1 up, managed at the relay",
            "             cert until 2027-01-01T00:00:00Z",
            "             proof by entra-id: held for 60 s more",
            "             proof by entra-id cannot be renewed: https://x refused",
            "refused      hr: not allowed here",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }

    #[test]
    fn a_clock_before_the_join_is_behind() {
        let facts = Facts {
            id: String::new(),
            tunnel: String::new(),
            public_key: String::new(),
            inner_address: String::new(),
            joined_seconds: 1_000,
            key_made: SystemTime::UNIX_EPOCH,
        };
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        assert!(facts.clock_is_behind(at(999)));
        assert!(!facts.clock_is_behind(at(1_000)));
    }
}
