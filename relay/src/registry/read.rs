//! Rows out of the database.

use std::collections::HashMap;
use std::time::SystemTime;

use culvert_model::gateway::SecretVerifier;
use culvert_model::id::{ConnectorId, GatewayId, TokenId, TunnelId};
use culvert_model::key::PublicKey;
use culvert_model::name::{Grant, ServiceName};
use culvert_model::proof::ProofKey;

use super::failure::Failure;
use super::keys;
use super::managed;
use super::peers;
use super::proofs;
use super::relays;
use super::rows::{
    AuditRow, Certificate, ConnectorRow, GatewayRow, Heard, NextKey, Sealed, SealedPsk, SecretRow, ServiceRow,
    Snapshot, TokenRow, Tunnel,
};
use super::sql::{Row, Transaction, Value, values};

type Result<T> = std::result::Result<T, Failure>;

const CONNECTOR: &str = "SELECT id, tunnel, token, public_key, name, inner_address, ephemeral, drained, revoked, \
                         enrolled, last_endpoint, last_local, last_handshake, version, services, key_since, \
                         safe_since FROM connectors";
const GATEWAY: &str = "SELECT id, name, cert_sha256, cert_san, created, last_used, revoked FROM gateways";
const TOKEN: &str = "SELECT id, tunnel, bootstrap_key, psk, uses_left, expires, revoked, created, last_used, sources, services, used FROM tokens";

pub(super) fn snapshot(db: &dyn Transaction) -> Result<Snapshot> {
    Ok(Snapshot {
        tunnels: tunnels(db)?,
        tokens: tokens(db)?,
        connectors: connectors(db)?,
        services: services(db)?,
        managed: managed::all(db)?,
        gateways: gateways(db)?,
        relays: relays::relays(db)?,
        token_seals: relays::token_seals(db)?,
        peers: peers::all(db)?,
        peer_services: peers::services(db)?,
        peer_seals: peers::seals(db)?,
    })
}

pub(super) fn tunnels(db: &dyn Transaction) -> Result<Vec<Tunnel>> {
    let mut grants = grouped(db.all("SELECT tunnel, pattern FROM grants ORDER BY position", &[], |row| {
        Ok((row.text::<TunnelId>(0)?, row.text::<Grant>(1)?))
    })?);
    db.all("SELECT id, name, shared, created FROM tunnels WHERE deleted IS NULL ORDER BY name", &[], |row| {
        let id = row.text(0)?;
        let grants = grants.remove(&id).unwrap_or_default();
        Ok(Tunnel { id, name: row.text(1)?, grants, shared: row.truth(2)?, created: row.time(3)? })
    })
}

pub(super) fn tokens(db: &dyn Transaction) -> Result<Vec<TokenRow>> {
    db.all(&format!("{TOKEN} ORDER BY created, id"), &[], token_row)
}

pub(super) fn token(db: &dyn Transaction, id: &TokenId) -> Result<Option<TokenRow>> {
    db.first(&format!("{TOKEN} WHERE id = $1"), &values![id.as_str()], token_row)
}

pub(super) fn connectors(db: &dyn Transaction) -> Result<Vec<ConnectorRow>> {
    let mut psks = grouped(db.all(
        "SELECT relay, epoch, sealed, confirmed, connector FROM psks WHERE relay NOT LIKE '%/recovery' ORDER BY relay, epoch",
        &[],
        |row| Ok((row.text::<ConnectorId>(4)?, psk_row(row)?)),
    )?);
    let mut heard =
        grouped(db.all("SELECT relay, remote, local, connector FROM heard ORDER BY relay", &[], |row| {
            Ok((row.text::<ConnectorId>(3)?, heard_row(row)?))
        })?);
    let mut next: HashMap<ConnectorId, NextKey> = keys::all(db)?.into_iter().collect();
    let mut proofs: HashMap<ConnectorId, Vec<ProofKey>> = proofs::all(db)?.into_iter().collect();
    db.all(&format!("{CONNECTOR} ORDER BY enrolled, id"), &[], |row| {
        let mut connector = connector_row(row)?;
        connector.psks = psks.remove(&connector.id).unwrap_or_default();
        connector.heard = heard.remove(&connector.id).unwrap_or_default();
        connector.next = next.remove(&connector.id);
        connector.proof_keys = proofs.remove(&connector.id).unwrap_or_default();
        Ok(connector)
    })
}

pub(super) fn connector(db: &dyn Transaction, id: &ConnectorId) -> Result<Option<ConnectorRow>> {
    one_connector(db, "id", Value::from(id.as_str()))
}

pub(super) fn connector_by_key(db: &dyn Transaction, key: &PublicKey) -> Result<Option<ConnectorRow>> {
    one_connector(db, "public_key", Value::from(key.as_bytes()))
}

pub(super) fn services(db: &dyn Transaction) -> Result<Vec<ServiceRow>> {
    db.all("SELECT name, tunnel, since FROM services ORDER BY name, since, tunnel", &[], service_row)
}

/// Those of one tunnel, and those of any that have one of these names: what an announcement is decided by. All services
/// of a relay would make a restart with thousands of connectors cost their square.
pub(super) fn services_for(db: &dyn Transaction, tunnel: &TunnelId, names: &[ServiceName]) -> Result<Vec<ServiceRow>> {
    let of_others = "SELECT name, tunnel, since FROM services WHERE name = $1 AND tunnel <> $2 ORDER BY since, tunnel";
    let mut found = db.all(
        "SELECT name, tunnel, since FROM services WHERE tunnel = $1 ORDER BY name, since",
        &values![tunnel.as_str()],
        service_row,
    )?;
    for name in names {
        found.extend(db.all(of_others, &values![name.as_str(), tunnel.as_str()], service_row)?);
    }
    Ok(found)
}

fn service_row(row: &Row) -> Result<ServiceRow> {
    Ok(ServiceRow { name: row.text(0)?, tunnel: row.text(1)?, since: row.time(2)? })
}

pub(super) fn gateways(db: &dyn Transaction) -> Result<Vec<GatewayRow>> {
    let mut grants = grouped(db.all("SELECT gateway, pattern FROM gateway_grants ORDER BY position", &[], |row| {
        Ok((row.text::<GatewayId>(0)?, row.text::<Grant>(1)?))
    })?);
    let mut secrets = grouped(db.all(
        "SELECT salt, digest, created, until, gateway FROM gateway_secrets ORDER BY position",
        &[],
        |row| Ok((row.text::<GatewayId>(4)?, secret_row(row)?)),
    )?);
    db.all(&format!("{GATEWAY} ORDER BY name, created, id"), &[], |row| {
        let mut gateway = gateway_row(row)?;
        gateway.grants = grants.remove(&gateway.id).unwrap_or_default();
        gateway.secrets = secrets.remove(&gateway.id).unwrap_or_default();
        Ok(gateway)
    })
}

pub(super) fn gateway(db: &dyn Transaction, id: &GatewayId) -> Result<Option<GatewayRow>> {
    Ok(gateways(db)?.into_iter().find(|gateway| gateway.id == *id))
}

pub(super) fn audit_since(db: &dyn Transaction, since: SystemTime) -> Result<Vec<AuditRow>> {
    db.all("SELECT at, actor, action, subject, detail FROM audit WHERE at >= $1 ORDER BY id", &values![since], |row| {
        Ok(AuditRow {
            at: row.time(0)?,
            actor: row.text(1)?,
            action: row.text(2)?,
            subject: row.text(3)?,
            detail: row.text(4)?,
        })
    })
}

fn one_connector(db: &dyn Transaction, column: &str, value: Value) -> Result<Option<ConnectorRow>> {
    let Some(mut connector) = db.first(&format!("{CONNECTOR} WHERE {column} = $1"), &[value], connector_row)? else {
        return Ok(None);
    };
    connector.next = keys::of(db, &connector.id)?;
    connector.proof_keys = proofs::of(db, &connector.id)?;
    connector.psks = db.all(
        "SELECT relay, epoch, sealed, confirmed FROM psks WHERE connector = $1 AND relay NOT LIKE '%/recovery' \
         ORDER BY relay, epoch",
        &values![connector.id.as_str()],
        psk_row,
    )?;
    connector.heard = db.all(
        "SELECT relay, remote, local FROM heard WHERE connector = $1 ORDER BY relay",
        &values![connector.id.as_str()],
        heard_row,
    )?;
    Ok(Some(connector))
}

/// What belongs to whom, each in the order in which it came.
fn grouped<K: std::hash::Hash + Eq, V>(pairs: Vec<(K, V)>) -> HashMap<K, Vec<V>> {
    let mut groups: HashMap<K, Vec<V>> = HashMap::new();
    for (key, value) in pairs {
        groups.entry(key).or_default().push(value);
    }
    groups
}

fn psk_row(row: &Row) -> Result<SealedPsk> {
    Ok(SealedPsk {
        relay: row.text(0)?,
        epoch: row.number(1)?,
        sealed: Sealed(row.bytes(2)?),
        confirmed: row.truth(3)?,
    })
}

fn heard_row(row: &Row) -> Result<Heard> {
    Ok(Heard { relay: row.text(0)?, remote: row.text(1)?, local: row.text(2)? })
}

fn secret_row(row: &Row) -> Result<SecretRow> {
    Ok(SecretRow {
        verifier: SecretVerifier { salt: row.array(0)?, digest: row.array(1)? },
        created: row.time(2)?,
        until: row.optional_time(3)?,
    })
}

fn gateway_row(row: &Row) -> Result<GatewayRow> {
    let digest = row.optional_array(2)?.map(Certificate::Sha256);
    Ok(GatewayRow {
        id: row.text(0)?,
        name: row.text(1)?,
        grants: Vec::new(),
        secrets: Vec::new(),
        certificate: digest.or(row.optional_text(3)?.map(Certificate::San)),
        created: row.time(4)?,
        last_used: row.optional_time(5)?,
        revoked: row.optional_time(6)?,
    })
}

fn token_row(row: &Row) -> Result<TokenRow> {
    let unfit = |error| Failure::Damaged(format!("where a token may be used from: {error}"));
    let sources: String = row.text(9)?;
    Ok(TokenRow {
        id: row.text(0)?,
        tunnel: row.text(1)?,
        bootstrap_key: key(row, 2)?,
        psk: Sealed(row.bytes(3)?),
        sources: sources.split_whitespace().map(|net| net.parse().map_err(unfit)).collect::<Result<_>>()?,
        services: grants(row, 10)?,
        uses_left: row.optional_number(4)?,
        used: row.number(11)?,
        expires: row.optional_time(5)?,
        revoked: row.optional_time(6)?,
        created: row.time(7)?,
        last_used: row.optional_time(8)?,
    })
}

fn connector_row(row: &Row) -> Result<ConnectorRow> {
    Ok(ConnectorRow {
        id: row.text(0)?,
        tunnel: row.text(1)?,
        token: row.text(2)?,
        public_key: key(row, 3)?,
        key_since: row.optional_time(15)?.map_or_else(|| row.time(9), Ok)?,
        safe_since: row.optional_time(16)?,
        next: None,
        name: row.optional_text(4)?,
        services: grants(row, 14)?,
        psks: Vec::new(),
        inner_address: row.text(5)?,
        ephemeral: row.truth(6)?,
        drained: row.truth(7)?,
        revoked: row.optional_time(8)?,
        enrolled: row.time(9)?,
        heard: Vec::new(),
        last_endpoint: row.optional_text(10)?,
        last_local: row.optional_text(11)?,
        last_handshake: row.optional_time(12)?,
        proof_keys: Vec::new(),
        version: row.optional_text(13)?,
    })
}

/// Grants that stand in one column.
fn grants(row: &Row, column: usize) -> Result<Vec<Grant>> {
    let unfit = |error| Failure::Damaged(format!("what a token's holder may serve: {error}"));
    let text: String = row.text(column)?;
    text.split_whitespace().map(|grant| grant.parse().map_err(unfit)).collect()
}

fn key(row: &Row, column: usize) -> Result<PublicKey> {
    row.array(column).map(PublicKey::from_bytes)
}
