//! `token create|list|revoke`, and the making of tokens.
//!
//! Must never keep a token: its text is answered once and then gone.

use std::time::{Duration, SystemTime};

use culvert_model::id::{TokenId, TunnelId};
use culvert_model::token::{Endpoint, MAX_RELAYS, Token};
use culvert_ops::time::rfc3339;
use serde_json::json;
use zeroize::Zeroizing;

use super::table::{or_dash, relative, rough, table};
use super::view::View;
use super::{Change, CommandError, Facts, Outcome, TokenTerms};
use crate::identity::SealedFor;
use crate::registry::{Actor, Registry, TokenRow};
use crate::relays;

/// A new token: its text for its holder, its verifier for the registry.
pub(super) struct Minted {
    pub(super) text: Zeroizing<String>,
    pub(super) row: TokenRow,
}

/// Makes a token for a tunnel.
pub(super) fn mint(
    tunnel: &TunnelId,
    terms: &TokenTerms,
    facts: &Facts<'_>,
    view: &View,
) -> Result<Minted, CommandError> {
    let now = view.now;
    let relays = relays::named(endpoints(terms, facts)?, facts.identity, &view.snapshot.relays, now);
    let token = Token::generate(relays);
    let bootstrap_key = token.bootstrap_key().public_key();
    let row = TokenRow {
        id: TokenId::new(),
        tunnel: tunnel.clone(),
        bootstrap_key,
        psk: facts.identity.seal(&token.bootstrap_psk(), SealedFor::Token(&bootstrap_key)),
        services: terms.services.clone(),
        sources: terms.from.clone(),
        uses_left: terms.uses,
        used: 0,
        expires: terms.expires_seconds.map(|seconds| now + Duration::from_secs(seconds)),
        revoked: None,
        created: now,
        last_used: None,
    };
    Ok(Minted { text: token.to_text(), row })
}

pub(super) async fn create(
    named: &str,
    terms: &TokenTerms,
    view: &View,
    registry: &dyn Registry,
    facts: &Facts<'_>,
    by: Actor,
) -> Result<Outcome, CommandError> {
    let tunnel = view.tunnel(named)?;
    let minted = mint(&tunnel.id, terms, facts, view)?;
    registry.create_token(minted.row.clone(), by).await?;
    let mut json = view.token_json(&minted.row);
    json["token"] = json!(minted.text.as_str());
    Ok(Outcome {
        json,
        text: format!("{}\n", minted.text.as_str()),
        notes: vec![minted.described(view.now)],
        changes: vec![Change::TokenAdded(minted.row.id)],
    })
}

pub(super) fn show_all(named: Option<&str>, view: &View) -> Result<Outcome, CommandError> {
    let tunnel = named.map(|named| view.tunnel(named)).transpose()?;
    let tokens = view.tokens_of(tunnel.map(|tunnel| &tunnel.id));
    let json = tokens.iter().map(|token| view.token_json(token)).collect();
    Ok(Outcome::listing(json, lines(view, &tokens), || "no token: `token create TUNNEL` makes one".to_owned()))
}

pub(super) async fn revoke(id: &str, view: &View, registry: &dyn Registry, by: Actor) -> Result<Outcome, CommandError> {
    let token = view.token(id)?;
    registry.revoke_token(token.id.clone(), by, view.now).await?;
    let revoked = TokenRow { revoked: token.revoked.or(Some(view.now)), ..token.clone() };
    Ok(Outcome {
        json: view.token_json(&revoked),
        text: String::new(),
        notes: vec![format!("token {id} revoked; connectors that joined with it stay")],
        changes: vec![Change::TokenRevoked(token.id.clone())],
    })
}

/// The table; nothing for no token.
pub(super) fn lines(view: &View, tokens: &[&TokenRow]) -> String {
    let row = |token: &&TokenRow| {
        [
            token.id.to_string(),
            view.tunnel_name(&token.tunnel),
            token.state(view.now).as_str().to_owned(),
            token.used.to_string(),
            token.uses_left.map_or_else(|| "unlimited".to_owned(), |uses| uses.to_string()),
            token.expires.map_or_else(|| "never".to_owned(), |at| relative(at, view.now)),
            or_dash(token.last_used.map(|at| relative(at, view.now))),
            if token.sources.is_empty() { "anywhere".to_owned() } else { list(&token.sources) },
            if token.services.is_empty() { "all".to_owned() } else { list(&token.services) },
        ]
    };
    let rows: Vec<_> = tokens.iter().map(row).collect();
    if rows.is_empty() {
        return String::new();
    }
    table(["TOKEN", "TUNNEL", "STATE", "USED", "USES LEFT", "EXPIRES", "LAST USED", "FROM", "SERVICES"], &rows)
}

impl Minted {
    /// What it allows, without the token itself.
    pub(super) fn described(&self, now: SystemTime) -> String {
        let who = match self.row.uses_left {
            None => "any number of connectors".to_owned(),
            Some(1) => "one connector".to_owned(),
            Some(uses) => format!("{uses} connectors"),
        };
        let until = self.row.expires.map_or_else(String::new, |at| {
            format!(" within {} (until {})", rough(at.duration_since(now).unwrap_or_default()), rfc3339(at))
        });
        let from =
            if self.row.sources.is_empty() { String::new() } else { format!(" from {}", list(&self.row.sources)) };
        let services = if self.row.services.is_empty() {
            String::new()
        } else {
            format!(" to serve {}", list(&self.row.services))
        };
        format!("token {} lets {who} join{services}{from}{until}; it is shown this once", self.row.id)
    }
}

fn list(all: &[impl ToString]) -> String {
    all.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

fn endpoints(terms: &TokenTerms, facts: &Facts<'_>) -> Result<Vec<Endpoint>, CommandError> {
    let endpoints = if terms.endpoints.is_empty() {
        facts.endpoints.clone()
    } else {
        let parse = |text: &String| text.parse::<Endpoint>().map_err(|error| CommandError::config(error.to_string()));
        terms.endpoints.iter().map(parse).collect::<Result<_, _>>()?
    };
    if endpoints.is_empty() {
        return Err(CommandError::config("this relay knows no endpoint that connectors can dial").hint(
            "set it in relay.toml, as in\n  [wireguard]\n  endpoints = [\"relay.example.com:51820\"]\nor give --endpoint HOST:PORT",
        ));
    }
    if endpoints.len() > MAX_RELAYS {
        return Err(CommandError::config(format!(
            "{} endpoints are too many: a token names {MAX_RELAYS} at most",
            endpoints.len()
        )));
    }
    Ok(endpoints)
}
