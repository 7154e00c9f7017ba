//! Rows out of the database. A value that does not read as what its column holds is damage, not a panic.

use std::str::FromStr;
use std::time::{Duration, SystemTime};

use culvert_model::gateway::SecretVerifier;
use culvert_model::id::{ConnectorId, GatewayId, TokenId, TunnelId};
use culvert_model::key::PublicKey;
use rusqlite::types::{FromSql, Type};
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::super::rows::{
    AuditRow, Certificate, ConnectorRow, GatewayRow, Sealed, SealedPsk, SecretRow, ServiceRow, Snapshot, TokenRow,
    Tunnel,
};

type Result<T> = rusqlite::Result<T>;

const CONNECTOR: &str = "SELECT id, tunnel, token, public_key, name, inner_address, ephemeral, drained, revoked, \
                         enrolled, last_endpoint, last_local, last_handshake, version FROM connectors";
const GATEWAY: &str = "SELECT id, name, cert_sha256, cert_san, created, last_used, revoked FROM gateways";
const TOKEN: &str =
    "SELECT id, tunnel, bootstrap_key, psk, uses_left, expires, revoked, created, last_used, sources FROM tokens";

pub(super) fn snapshot(connection: &Connection) -> Result<Snapshot> {
    Ok(Snapshot {
        tunnels: tunnels(connection)?,
        tokens: tokens(connection)?,
        connectors: connectors(connection)?,
        services: services(connection)?,
        gateways: gateways(connection)?,
    })
}

pub(super) fn tunnels(connection: &Connection) -> Result<Vec<Tunnel>> {
    let mut tunnels =
        all(connection, "SELECT id, name, shared, created FROM tunnels WHERE deleted IS NULL ORDER BY name", |row| {
            Ok(Tunnel {
                id: text(row, 0)?,
                name: text(row, 1)?,
                grants: Vec::new(),
                shared: row.get(2)?,
                created: time(row, 3)?,
            })
        })?;
    let mut grants = connection.prepare_cached("SELECT pattern FROM grants WHERE tunnel = ? ORDER BY position")?;
    for tunnel in &mut tunnels {
        tunnel.grants = grants.query_map([tunnel.id.as_str()], |row| text(row, 0))?.collect::<Result<_>>()?;
    }
    Ok(tunnels)
}

pub(super) fn tokens(connection: &Connection) -> Result<Vec<TokenRow>> {
    all(connection, &format!("{TOKEN} ORDER BY created, rowid"), token_row)
}

pub(super) fn token(connection: &Connection, id: &TokenId) -> Result<Option<TokenRow>> {
    connection.prepare_cached(&format!("{TOKEN} WHERE id = ?"))?.query_row([id.as_str()], token_row).optional()
}

pub(super) fn connectors(connection: &Connection) -> Result<Vec<ConnectorRow>> {
    let mut connectors = all(connection, &format!("{CONNECTOR} ORDER BY enrolled, rowid"), connector_row)?;
    for connector in &mut connectors {
        connector.psks = psks(connection, &connector.id)?;
    }
    Ok(connectors)
}

pub(super) fn connector(connection: &Connection, id: &ConnectorId) -> Result<Option<ConnectorRow>> {
    one_connector(connection, "id", id.as_str())
}

pub(super) fn connector_by_key(connection: &Connection, key: &PublicKey) -> Result<Option<ConnectorRow>> {
    one_connector(connection, "public_key", key.as_bytes().as_slice())
}

pub(super) fn services(connection: &Connection) -> Result<Vec<ServiceRow>> {
    all(connection, "SELECT name, tunnel, since FROM services ORDER BY name, since", |row| {
        Ok(ServiceRow { name: text(row, 0)?, tunnel: text(row, 1)?, since: time(row, 2)? })
    })
}

pub(super) fn gateways(connection: &Connection) -> Result<Vec<GatewayRow>> {
    let mut gateways = all(connection, &format!("{GATEWAY} ORDER BY name, created, rowid"), gateway_row)?;
    for gateway in &mut gateways {
        fill(connection, gateway)?;
    }
    Ok(gateways)
}

pub(super) fn gateway(connection: &Connection, id: &GatewayId) -> Result<Option<GatewayRow>> {
    let found = connection
        .prepare_cached(&format!("{GATEWAY} WHERE id = ?"))?
        .query_row([id.as_str()], gateway_row)
        .optional()?;
    let Some(mut gateway) = found else { return Ok(None) };
    fill(connection, &mut gateway)?;
    Ok(Some(gateway))
}

pub(super) fn audit_since(connection: &Connection, since: SystemTime) -> Result<Vec<AuditRow>> {
    connection
        .prepare_cached("SELECT at, actor, action, subject, detail FROM audit WHERE at >= ? ORDER BY id")?
        .query_map([milliseconds(since)], |row| {
            Ok(AuditRow {
                at: time(row, 0)?,
                actor: row.get(1)?,
                action: row.get(2)?,
                subject: row.get(3)?,
                detail: row.get(4)?,
            })
        })?
        .collect()
}

pub(super) fn tunnel_is_live(connection: &Connection, id: &TunnelId) -> Result<bool> {
    connection.prepare_cached("SELECT 1 FROM tunnels WHERE id = ? AND deleted IS NULL")?.exists([id.as_str()])
}

/// Milliseconds since 1970, as times are stored.
pub(super) fn milliseconds(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

fn one_connector(connection: &Connection, column: &str, value: impl rusqlite::ToSql) -> Result<Option<ConnectorRow>> {
    let found = connection
        .prepare_cached(&format!("{CONNECTOR} WHERE {column} = ?"))?
        .query_row(params![value], connector_row)
        .optional()?;
    let Some(mut connector) = found else { return Ok(None) };
    connector.psks = psks(connection, &connector.id)?;
    Ok(Some(connector))
}

fn psks(connection: &Connection, connector: &ConnectorId) -> Result<Vec<SealedPsk>> {
    connection
        .prepare_cached("SELECT relay, epoch, sealed, confirmed FROM psks WHERE connector = ? ORDER BY relay, epoch")?
        .query_map([connector.as_str()], |row| {
            Ok(SealedPsk {
                relay: row.get(0)?,
                epoch: row.get(1)?,
                sealed: Sealed(row.get(2)?),
                confirmed: row.get(3)?,
            })
        })?
        .collect()
}

/// Reads what of a gateway stands in other tables.
fn fill(connection: &Connection, gateway: &mut GatewayRow) -> Result<()> {
    gateway.grants = connection
        .prepare_cached("SELECT pattern FROM gateway_grants WHERE gateway = ? ORDER BY position")?
        .query_map([gateway.id.as_str()], |row| text(row, 0))?
        .collect::<Result<_>>()?;
    gateway.secrets = connection
        .prepare_cached("SELECT salt, digest, created, until FROM gateway_secrets WHERE gateway = ? ORDER BY position")?
        .query_map([gateway.id.as_str()], |row| {
            Ok(SecretRow {
                verifier: SecretVerifier { salt: row.get(0)?, digest: row.get(1)? },
                created: time(row, 2)?,
                until: optional_time(row, 3)?,
            })
        })?
        .collect::<Result<_>>()?;
    Ok(())
}

fn gateway_row(row: &Row<'_>) -> Result<GatewayRow> {
    let digest = row.get::<_, Option<[u8; 32]>>(2)?.map(Certificate::Sha256);
    Ok(GatewayRow {
        id: text(row, 0)?,
        name: text(row, 1)?,
        grants: Vec::new(),
        secrets: Vec::new(),
        certificate: digest.or(row.get::<_, Option<String>>(3)?.map(Certificate::San)),
        created: time(row, 4)?,
        last_used: optional_time(row, 5)?,
        revoked: optional_time(row, 6)?,
    })
}

fn token_row(row: &Row<'_>) -> Result<TokenRow> {
    Ok(TokenRow {
        id: text(row, 0)?,
        tunnel: text(row, 1)?,
        bootstrap_key: key(row, 2)?,
        psk: Sealed(row.get(3)?),
        sources: row
            .get::<_, String>(9)?
            .split_whitespace()
            .map(|net| parse(net.to_owned(), 9))
            .collect::<Result<_>>()?,
        uses_left: row.get(4)?,
        expires: optional_time(row, 5)?,
        revoked: optional_time(row, 6)?,
        created: time(row, 7)?,
        last_used: optional_time(row, 8)?,
    })
}

fn connector_row(row: &Row<'_>) -> Result<ConnectorRow> {
    Ok(ConnectorRow {
        id: text(row, 0)?,
        tunnel: text(row, 1)?,
        token: text(row, 2)?,
        public_key: key(row, 3)?,
        name: optional_text(row, 4)?,
        psks: Vec::new(),
        inner_address: text(row, 5)?,
        ephemeral: row.get(6)?,
        drained: row.get(7)?,
        revoked: optional_time(row, 8)?,
        enrolled: time(row, 9)?,
        last_endpoint: optional_text(row, 10)?,
        last_local: optional_text(row, 11)?,
        last_handshake: optional_time(row, 12)?,
        version: row.get(13)?,
    })
}

fn all<T>(connection: &Connection, sql: &str, read: impl FnMut(&Row<'_>) -> Result<T>) -> Result<Vec<T>> {
    connection.prepare_cached(sql)?.query_map([], read)?.collect()
}

fn text<T: FromStr<Err: std::error::Error + Send + Sync + 'static>>(row: &Row<'_>, column: usize) -> Result<T> {
    parse(row.get::<_, String>(column)?, column)
}

fn optional_text<T: FromStr<Err: std::error::Error + Send + Sync + 'static>>(
    row: &Row<'_>,
    column: usize,
) -> Result<Option<T>> {
    row.get::<_, Option<String>>(column)?.map(|value| parse(value, column)).transpose()
}

fn parse<T: FromStr<Err: std::error::Error + Send + Sync + 'static>>(value: String, column: usize) -> Result<T> {
    value.parse().map_err(|error| rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(error)))
}

fn key(row: &Row<'_>, column: usize) -> Result<PublicKey> {
    row.get(column).map(PublicKey::from_bytes)
}

fn time(row: &Row<'_>, column: usize) -> Result<SystemTime> {
    stored::<i64>(row, column).map(from_milliseconds)
}

fn optional_time(row: &Row<'_>, column: usize) -> Result<Option<SystemTime>> {
    stored::<Option<i64>>(row, column).map(|value| value.map(from_milliseconds))
}

fn stored<T: FromSql>(row: &Row<'_>, column: usize) -> Result<T> {
    row.get(column)
}

/// A damaged far-away time must not overflow: it is taken for the year 10,000.
fn from_milliseconds(value: i64) -> SystemTime {
    const FAR: u64 = 253_402_300_800_000;
    SystemTime::UNIX_EPOCH + Duration::from_millis(u64::try_from(value).unwrap_or(0).min(FAR))
}
