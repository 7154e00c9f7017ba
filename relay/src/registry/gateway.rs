//! Changes of gateways; each function is the inside of one transaction, its line in the audit trail included.

use std::time::SystemTime;

use culvert_model::id::GatewayId;
use culvert_model::name::Grant;

use super::failure::Failure;
use super::read;
use super::rows::{Certificate, GatewayRow, SecretRow};
use super::sql::{Transaction, values};
use super::write::{audit, list};
use super::{Actor, GatewayChange, Rule, SECRETS_AT_MOST};

type Result<T> = std::result::Result<T, Failure>;

pub(super) fn create(db: &dyn Transaction, gateway: &GatewayRow, by: &Actor) -> Result<()> {
    let others = read::gateways(db)?;
    if others.iter().any(|other| other.name == gateway.name && other.revoked.is_none()) {
        return Err(Rule::GatewayExists(gateway.name.clone()).into());
    }
    is_free(gateway.certificate.as_ref(), &gateway.id, &others)?;
    let (digest, san) = columns(gateway.certificate.as_ref());
    db.execute(
        "INSERT INTO gateways (id, name, cert_sha256, cert_san, created) VALUES ($1, $2, $3, $4, $5)",
        &values![gateway.id.as_str(), gateway.name.as_str(), digest, san, gateway.created],
    )?;
    for grant in &gateway.grants {
        insert_grant(db, &gateway.id, grant)?;
    }
    for secret in &gateway.secrets {
        insert_secret(db, &gateway.id, secret)?;
    }
    audit(db, gateway.created, &by.0, "gateway.create", gateway.name.as_str(), &detail(gateway))
}

pub(super) fn set(
    db: &dyn Transaction,
    id: &GatewayId,
    change: GatewayChange,
    by: &Actor,
    now: SystemTime,
) -> Result<GatewayRow> {
    let mut gateway = live(db, id)?;
    if let Some(grants) = change.replace {
        gateway.grants = grants;
    }
    for gone in change.remove {
        if !gateway.grants.contains(&gone) {
            return Err(Rule::NotGrantedToGateway { gateway: gateway.name, grant: gone }.into());
        }
        gateway.grants.retain(|grant| *grant != gone);
    }
    gateway.grants.extend(change.add);
    if gateway.grants.is_empty() {
        return Err(Rule::NothingToCall(gateway.name).into());
    }
    db.execute("DELETE FROM gateway_grants WHERE gateway = $1", &values![id.as_str()])?;
    for grant in &gateway.grants {
        insert_grant(db, id, grant)?;
    }
    if let Some(certificate) = change.certificate {
        is_free(certificate.as_ref(), id, &read::gateways(db)?)?;
        let (digest, san) = columns(certificate.as_ref());
        let set = "UPDATE gateways SET cert_sha256 = $1, cert_san = $2 WHERE id = $3";
        db.execute(set, &values![digest, san, id.as_str()])?;
    }
    let after = live(db, id)?;
    audit(db, now, &by.0, "gateway.set", after.name.as_str(), &detail(&after))?;
    Ok(after)
}

pub(super) fn rotate(
    db: &dyn Transaction,
    id: &GatewayId,
    secret: &SecretRow,
    until: SystemTime,
    by: &Actor,
) -> Result<GatewayRow> {
    let gateway = live(db, id)?;
    let shorten = "UPDATE gateway_secrets SET until = $1 WHERE gateway = $2 AND (until IS NULL OR until > $1)";
    db.execute(shorten, &values![until, id.as_str()])?;
    db.execute(
        "DELETE FROM gateway_secrets WHERE gateway = $1 AND until <= $2",
        &values![id.as_str(), secret.created],
    )?;
    insert_secret(db, id, secret)?;
    db.execute(
        "DELETE FROM gateway_secrets WHERE gateway = $1 AND position NOT IN \
         (SELECT position FROM gateway_secrets WHERE gateway = $1 ORDER BY position DESC LIMIT $2)",
        &values![id.as_str(), SECRETS_AT_MOST as i64],
    )?;
    audit(db, secret.created, &by.0, "gateway.rotate", gateway.name.as_str(), "")?;
    live(db, id)
}

pub(super) fn revoke(db: &dyn Transaction, id: &GatewayId, by: &Actor, now: SystemTime) -> Result<()> {
    let gateway = read::gateway(db, id)?.ok_or_else(|| Rule::NoSuchGateway(id.clone()))?;
    if gateway.revoked.is_some() {
        return Ok(());
    }
    db.execute("UPDATE gateways SET revoked = $1 WHERE id = $2", &values![now, id.as_str()])?;
    audit(db, now, &by.0, "gateway.revoke", gateway.name.as_str(), "")
}

fn live(db: &dyn Transaction, id: &GatewayId) -> Result<GatewayRow> {
    let gateway = read::gateway(db, id)?.filter(|gateway| gateway.revoked.is_none());
    gateway.ok_or_else(|| Rule::NoSuchGateway(id.clone()).into())
}

/// INVARIANT: one certificate names one gateway.
fn is_free(certificate: Option<&Certificate>, id: &GatewayId, others: &[GatewayRow]) -> Result<()> {
    let Some(certificate) = certificate else { return Ok(()) };
    let owner = others
        .iter()
        .find(|other| other.id != *id && other.revoked.is_none() && other.certificate.as_ref() == Some(certificate));
    match owner {
        Some(owner) => {
            Err(Rule::CertificateTaken { certificate: certificate.clone(), owner: owner.name.clone() }.into())
        }
        None => Ok(()),
    }
}

fn columns(certificate: Option<&Certificate>) -> (Option<&[u8; 32]>, Option<&str>) {
    match certificate {
        Some(Certificate::Sha256(digest)) => (Some(digest), None),
        Some(Certificate::San(name)) => (None, Some(name)),
        None => (None, None),
    }
}

fn insert_grant(db: &dyn Transaction, id: &GatewayId, grant: &Grant) -> Result<()> {
    let insert = "INSERT INTO gateway_grants (gateway, pattern) VALUES ($1, $2) ON CONFLICT DO NOTHING";
    db.execute(insert, &values![id.as_str(), grant.as_str()])?;
    Ok(())
}

fn insert_secret(db: &dyn Transaction, id: &GatewayId, secret: &SecretRow) -> Result<()> {
    db.execute(
        "INSERT INTO gateway_secrets (gateway, salt, digest, created, until) VALUES ($1, $2, $3, $4, $5)",
        &values![id.as_str(), &secret.verifier.salt, &secret.verifier.digest, secret.created, secret.until,],
    )?;
    Ok(())
}

fn detail(gateway: &GatewayRow) -> String {
    let certificate = gateway.certificate.as_ref().map(|certificate| format!(", certificate {certificate}"));
    format!("services {}{}", list(&gateway.grants), certificate.unwrap_or_default())
}
