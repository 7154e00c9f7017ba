//! `gateway create|set|rotate|list|revoke`.
//!
//! Must never keep a secret: its text is answered once and then gone.

use std::time::Duration;

use culvert_model::gateway::{GatewaySecret, SecretVerifier};
use culvert_model::id::GatewayId;
use culvert_model::name::{Grant, Label};
use culvert_ops::time::rfc3339;
use serde_json::json;
use zeroize::Zeroizing;

use super::table::{or_dash, relative, rough, table};
use super::view::View;
use super::{Change, CommandError, GatewaySet, Outcome};
use crate::registry::{Actor, Certificate, GatewayChange, GatewayRow, Registry, SecretRow};

pub(super) async fn create(
    name: Label,
    services: Vec<Grant>,
    certificate: Option<Certificate>,
    view: &View,
    registry: &dyn Registry,
    by: Actor,
) -> Result<Outcome, CommandError> {
    // A credential that nobody needs is one more to lose: with a certificate there is no secret.
    let minted = certificate.is_none().then(|| mint(view));
    let mut grants: Vec<Grant> = Vec::new();
    let everything: Grant = "*".parse().map_err(|_| CommandError::failed("no grant"))?;
    for grant in if services.is_empty() { vec![everything] } else { services } {
        if !grants.contains(&grant) {
            grants.push(grant);
        }
    }
    let gateway = GatewayRow {
        id: GatewayId::new(),
        name,
        grants,
        secrets: minted.iter().map(|(_, row)| row.clone()).collect(),
        certificate,
        created: view.now,
        last_used: None,
        revoked: None,
    };
    registry.create_gateway(gateway.clone(), by).await?;
    let mut notes = vec![format!("gateway {} created, it may call {}", gateway.name, list(&gateway.grants))];
    notes.push(match &gateway.certificate {
        Some(certificate) => format!("its client certificate ({certificate}) tells who it is; it has no secret"),
        None => "its secret is shown this once: send what is printed as the field Culvert-Gateway".to_owned(),
    });
    Ok(outcome(&gateway, minted.map(|(text, _)| text), notes, view))
}

pub(super) async fn set(
    named: &str,
    wanted: GatewaySet,
    view: &View,
    registry: &dyn Registry,
    by: Actor,
) -> Result<Outcome, CommandError> {
    let before = view.gateway(named)?;
    if wanted.no_certificate && before.secrets.is_empty() {
        return Err(CommandError::failed(format!(
            "gateway {} would be left without any proof of who it is",
            before.name
        ))
        .hint(format!("`gateway rotate {}` gives it a secret", before.name)));
    }
    let certificate = match (wanted.certificate, wanted.no_certificate) {
        (Some(certificate), _) => Some(Some(certificate)),
        (None, true) => Some(None),
        (None, false) => None,
    };
    let replace = (!wanted.services.is_empty()).then_some(wanted.services);
    let change = GatewayChange { replace, add: wanted.add, remove: wanted.remove, certificate };
    let gateway = registry.set_gateway(before.id.clone(), change, by, view.now).await?;
    let known_by = gateway.certificate.as_ref().map(|certificate| format!(", its certificate is {certificate}"));
    let said = format!("gateway {} may call {}{}", gateway.name, list(&gateway.grants), known_by.unwrap_or_default());
    Ok(outcome(&gateway, None, vec![said], view))
}

pub(super) async fn rotate(
    named: &str,
    grace: Duration,
    view: &View,
    registry: &dyn Registry,
    by: Actor,
) -> Result<Outcome, CommandError> {
    let before = view.gateway(named)?;
    let (text, row) = mint(view);
    let until = view.now + grace;
    let gateway = registry.rotate_gateway(before.id.clone(), row, until, by).await?;
    let old = match before.secrets.iter().filter(|secret| secret.is_valid(view.now)).count() {
        0 => format!("gateway {} has a secret now", gateway.name),
        _ if grace.is_zero() => format!("gateway {} has a new secret, the one before works no more", gateway.name),
        _ => format!(
            "gateway {} has a new secret, the one before works for another {} (until {})",
            gateway.name,
            rough(grace),
            rfc3339(until)
        ),
    };
    Ok(outcome(&gateway, Some(text), vec![old, "it is shown this once".to_owned()], view))
}

pub(super) fn show_all(view: &View) -> Outcome {
    let proofs = |gateway: &GatewayRow| {
        let secrets = gateway.secrets.iter().filter(|secret| secret.is_valid(view.now)).count();
        let secrets = match secrets {
            0 => None,
            1 => Some("secret".to_owned()),
            several => Some(format!("{several} secrets")),
        };
        // A whole digest is 64 characters; its beginning is enough to know it again.
        let certificate = gateway.certificate.as_ref().map(|certificate| match certificate {
            Certificate::Sha256(_) => format!("{}…", certificate.to_string().chars().take(23).collect::<String>()),
            Certificate::San(_) => certificate.to_string(),
        });
        let all: Vec<String> = secrets.into_iter().chain(certificate).collect();
        if all.is_empty() { "-".to_owned() } else { all.join(" ") }
    };
    let row = |gateway: &GatewayRow| {
        [
            gateway.name.to_string(),
            list(&gateway.grants),
            proofs(gateway),
            relative(gateway.created, view.now),
            or_dash(view.last_used(gateway).map(|at| relative(at, view.now))),
            gateway.id.to_string(),
        ]
    };
    let rows: Vec<_> = view.gateways().map(row).collect();
    let json = view.gateways().map(|gateway| view.gateway_json(gateway)).collect();
    Outcome::listing(json, table(["GATEWAY", "SERVICES", "KNOWN BY", "CREATED", "LAST USED", "ID"], &rows), || {
        "no gateway yet: `gateway create NAME --service SERVICE` makes one".to_owned()
    })
}

pub(super) async fn revoke(
    named: &str,
    view: &View,
    registry: &dyn Registry,
    by: Actor,
) -> Result<Outcome, CommandError> {
    let gateway = view.gateway(named)?;
    registry.revoke_gateway(gateway.id.clone(), by, view.now).await?;
    let said = format!("gateway {} revoked: what it sends is refused from now on", gateway.name);
    Ok(outcome(gateway, None, vec![said], view))
}

fn mint(view: &View) -> (Zeroizing<String>, SecretRow) {
    let secret = GatewaySecret::generate();
    let row = SecretRow { verifier: SecretVerifier::new(&secret), created: view.now, until: None };
    (secret.to_text(), row)
}

fn outcome(gateway: &GatewayRow, secret: Option<Zeroizing<String>>, notes: Vec<String>, view: &View) -> Outcome {
    let mut json = view.gateway_json(gateway);
    let mut text = String::new();
    if let Some(secret) = secret {
        json["secret"] = json!(secret.as_str());
        text = format!("{}:{}\n", gateway.name, secret.as_str());
    }
    Outcome { json, text, notes, changes: vec![Change::GatewayChanged(gateway.id.clone())] }
}

fn list(grants: &[Grant]) -> String {
    grants.iter().map(Grant::as_str).collect::<Vec<_>>().join(" ")
}
