//! Whether what reached the origin means what the caller said, by the strict reader of both.
//!
//! Must never excuse a difference that is not written down here.

use crate::front::Came;
use crate::logged::{Fact, Rest, Seen, requests};

/// Fields that this hop writes, or that end at it (RFC 9110 §7.6.1).
const OF_THE_HOP: [&str; 9] = [
    "connection",
    "te",
    "transfer-encoding",
    "upgrade",
    "keep-alive",
    "proxy-connection",
    "http2-settings",
    "x-request-id",
    "x-forwarded-for",
];
/// More of them, that stay if they were sent.
const ADDED: [&str; 5] = ["x-forwarded-proto", "x-forwarded-host", "x-forwarded-port", "forwarded", "via"];

/// What is wrong with the outcome of these bytes, if anything.
pub fn verdict(bytes: &[u8], came: &Came) -> Result<(), String> {
    let (said, rest) = requests(bytes);
    let mut whole = Vec::new();
    for fact in &came.facts {
        match fact {
            Fact::Whole(seen) => whole.push(seen),
            // A body that broke off on the caller's side breaks off on this one.
            Fact::Cut => {}
            Fact::Flaw(flaw, bytes) => {
                return Err(format!("the origin got no HTTP, {flaw}: {:?}", String::from_utf8_lossy(bytes)));
            }
        }
    }
    for (at, seen) in whole.iter().enumerate() {
        let Some(said) = said.get(at) else {
            return Err(format!("the origin got request {} that was never said ({rest:?}): {seen:?}", at + 1));
        };
        same(said, seen).map_err(|why| format!("request {}: {why}\nsaid {said:?}\ncame {seen:?}", at + 1))?;
    }
    // A refusal is the last answer, and is said to be.
    let heard = String::from_utf8_lossy(&came.heard);
    let refused = heard.find("proxy-status: culvert-relay; error=http_request_error");
    if refused.is_some_and(|at| heard.get(at..).is_some_and(|after| after.contains("HTTP/1.1 200"))) {
        return Err(format!("an answer after a refusal: {heard}"));
    }
    // Nothing is forgotten: unless a connection ends early, each request is forwarded and answered.
    let ends_early =
        |seen: &Seen| seen.minor == 0 || seen.fields.text("connection").to_ascii_lowercase().contains("close");
    let is_refused = heard.contains("HTTP/1.1 4") || heard.contains("HTTP/1.0 4") || heard.contains("HTTP/1.1 5");
    let whole = whole.len();
    if !is_refused && !said.iter().any(ends_early) && rest == Rest::End {
        let answered = heard.matches("HTTP/1.1 200 OK").count();
        if whole != said.len() || answered != said.len() {
            return Err(format!("{} requests, {whole} forwarded, answered {heard:?}", said.len()));
        }
    }
    Ok(())
}

fn same(said: &Seen, came: &Seen) -> Result<(), String> {
    if said.method != came.method {
        return Err("another method".to_owned());
    }
    let (target, authority) = origin_form(&said.target);
    if target != came.target {
        return Err(format!("another target than {target:?}"));
    }
    let host = said.host.clone().or(authority);
    if host.is_none() || host != came.host {
        return Err(format!("for another than {host:?}"));
    }
    if said.body != came.body {
        return Err("another body".to_owned());
    }
    let named: Vec<String> = said
        .fields
        .all("connection")
        .flat_map(|value| value.split(|byte| *byte == b','))
        .map(|name| String::from_utf8_lossy(name.trim_ascii()).to_ascii_lowercase())
        .collect();
    let ends_here = |name: &str| {
        OF_THE_HOP.contains(&name)
            || ADDED.contains(&name)
            || name.starts_with("culvert-")
            || named.iter().any(|own| own == name)
            || said.minor == 0 && matches!(name, "expect" | "host")
    };
    let mut names: Vec<String> = Vec::new();
    for (name, _) in said.fields.0.iter().chain(&came.fields.0) {
        let name = String::from_utf8_lossy(name).to_ascii_lowercase();
        if !ends_here(&name) && !names.contains(&name) {
            names.push(name);
        }
    }
    for name in names {
        let (said, came): (Vec<_>, Vec<_>) = (said.fields.all(&name).collect(), came.fields.all(&name).collect());
        if said != came {
            return Err(format!("{name} became other values"));
        }
    }
    let own: Vec<_> =
        came.fields.0.iter().filter(|(name, _)| name.to_ascii_lowercase().starts_with(b"culvert-")).collect();
    if !own.is_empty() {
        return Err("a field that speaks for Culvert".to_owned());
    }
    Ok(())
}

/// The target as an origin gets it, and the authority that was in it.
fn origin_form(target: &str) -> (String, Option<String>) {
    let lower = target.to_ascii_lowercase();
    let Some(skip) =
        ["http://", "https://"].iter().find(|scheme| lower.starts_with(**scheme)).map(|scheme| scheme.len())
    else {
        return (target.to_owned(), None);
    };
    let rest = target.get(skip..).unwrap_or_default();
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    (path, Some(authority.to_owned()))
}
