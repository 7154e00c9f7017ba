//! Connectors' keys while they live (wire.md §3): the next pre-shared key, the next static key, the end of an old one.
//!
//! Must never take the key that a connector uses away from it, or give two connectors one key.

use std::time::SystemTime;

use culvert_model::id::ConnectorId;
use culvert_model::key::PublicKey;

use super::admission::next_epoch;
use super::failure::Failure;
use super::rows::{ConnectorRow, NextKey, Sealed, SealedPsk};
use super::sql::{Row, Transaction, Value, values};
use super::write::{audit, keep_for_recovery};
use super::{Rule, peers, read};

type Result<T> = std::result::Result<T, Failure>;

const NEXT: &str = "SELECT connector, public_key, since FROM next_keys";
const NEXT_PSKS: &str = "SELECT relay, epoch, sealed, connector FROM next_psks";

/// A fresh pre-shared key for a connector, under a static key that it has or asks for.
#[derive(Debug, Clone)]
pub(crate) struct FreshPsk {
    /// Which connector.
    pub(crate) connector: ConnectorId,
    /// For which of its static keys; one that nobody has becomes its next one.
    pub(crate) public_key: PublicKey,
    /// Under which of its static keys it asks.
    pub(crate) asked_under: PublicKey,
    /// The epoch that its session hangs on, where it asks for a key that it uses.
    pub(crate) in_use: Option<u32>,
    /// With which relay.
    pub(crate) relay: String,
    /// The pre-shared key, sealed for that relay.
    pub(crate) psk: Sealed,
    /// When.
    pub(crate) now: SystemTime,
}

/// Keeps a fresh pre-shared key beside the one in use; returns its epoch and the connector as it is then.
pub(super) fn renew(db: &dyn Transaction, fresh: &FreshPsk) -> Result<(u32, ConnectorRow)> {
    let connector = live(db, &fresh.connector)?;
    if connector.public_key == fresh.public_key {
        let epoch = put(db, "psks", fresh, &connector.psks)?;
        return Ok((epoch, live(db, &fresh.connector)?));
    }
    let next = connector.next.filter(|next| next.public_key == fresh.public_key);
    let next = next.ok_or_else(|| Rule::NoSuchConnector(fresh.connector.clone()))?;
    let epoch = put(db, "next_psks", fresh, &next.psks)?;
    Ok((epoch, live(db, &fresh.connector)?))
}

/// Makes a key the connector's next one, with its first pre-shared key; or gives the next one it has another.
pub(super) fn rekey(db: &dyn Transaction, fresh: &FreshPsk) -> Result<(u32, ConnectorRow)> {
    let FreshPsk { connector: id, public_key, asked_under, now, .. } = fresh;
    let mut connector = live(db, id)?;
    if is_taken(db, id, public_key)? {
        return Err(Rule::KeyTaken.into());
    }
    // It goes on from the next key that it uses already: the one before that is done with.
    if connector.next.as_ref().is_some_and(|next| next.public_key == *asked_under && next.public_key != *public_key) {
        take_over(db, &connector, *now)?;
        connector = live(db, id)?;
    }
    let psks = match connector.next {
        Some(next) if next.public_key == *public_key => next.psks,
        _ => {
            forget_next(db, id)?;
            db.execute(
                "INSERT INTO next_keys (connector, public_key, since) VALUES ($1, $2, $3)",
                &values![id.as_str(), public_key.as_bytes(), *now],
            )?;
            audit(db, *now, id.as_str(), "connector.rotate", id.as_str(), &format!("next key {public_key}"))?;
            Vec::new()
        }
    };
    let epoch = put(db, "next_psks", fresh, &psks)?;
    Ok((epoch, live(db, id)?))
}

/// The connector uses this key alone: what it had before is forgotten. Returns it, if it had another.
pub(super) fn retire(
    db: &dyn Transaction,
    id: &ConnectorId,
    stays: &PublicKey,
    now: SystemTime,
) -> Result<Option<ConnectorRow>> {
    let connector = live(db, id)?;
    if connector.next.as_ref().is_none_or(|next| next.public_key != *stays) {
        return Ok(None);
    }
    take_over(db, &connector, now)?;
    live(db, id).map(Some)
}

/// Whether a key is some connector's next one.
pub(super) fn is_next(db: &dyn Transaction, key: &PublicKey) -> Result<bool> {
    let found = db.query("SELECT connector FROM next_keys WHERE public_key = $1", &values![key.as_bytes()])?;
    Ok(!found.is_empty())
}

/// All next keys, by their connectors.
pub(super) fn all(db: &dyn Transaction) -> Result<Vec<(ConnectorId, NextKey)>> {
    let mut psks = db.all(&format!("{NEXT_PSKS} ORDER BY connector, relay, epoch"), &[], of_connector)?;
    let mut keys = db.all(NEXT, &[], next_row)?;
    for (connector, next) in &mut keys {
        next.psks = psks.extract_if(.., |(owner, _)| owner == connector).map(|(_, psk)| psk).collect();
    }
    Ok(keys)
}

/// One connector's next key.
pub(super) fn of(db: &dyn Transaction, connector: &ConnectorId) -> Result<Option<NextKey>> {
    let id = || values![connector.as_str()];
    let Some((_, mut next)) = db.first(&format!("{NEXT} WHERE connector = $1"), &id(), next_row)? else {
        return Ok(None);
    };
    let psks = format!("{NEXT_PSKS} WHERE connector = $1 ORDER BY relay, epoch");
    next.psks = db.all(&psks, &id(), |row| of_connector(row).map(|(_, psk)| psk))?;
    Ok(Some(next))
}

pub(super) fn forget_next(db: &dyn Transaction, connector: &ConnectorId) -> Result<()> {
    db.execute("DELETE FROM next_psks WHERE connector = $1", &values![connector.as_str()])?;
    db.execute("DELETE FROM next_keys WHERE connector = $1", &values![connector.as_str()])?;
    Ok(())
}

/// Puts a fresh key beside the one that is in use, or else beside the newest that was; the rest goes.
fn put(db: &dyn Transaction, table: &str, fresh: &FreshPsk, psks: &[SealedPsk]) -> Result<u32> {
    let (id, relay) = (fresh.connector.as_str(), fresh.relay.as_str());
    let in_use = fresh.in_use.filter(|epoch| psks.iter().any(|psk| psk.relay == relay && psk.epoch == *epoch));
    let (epoch, kept) = match in_use {
        Some(in_use) => (in_use.saturating_add(1), Some(in_use)),
        None => next_epoch(psks, relay),
    };
    db.execute(
        &format!("DELETE FROM {table} WHERE connector = $1 AND relay = $2 AND epoch IS DISTINCT FROM $3"),
        &values![id, relay, kept],
    )?;
    let (columns, last) = if table == "psks" { (", confirmed", ", 0") } else { ("", "") };
    db.execute(
        &format!("INSERT INTO {table} (connector, relay, epoch, sealed{columns}) VALUES ($1, $2, $3, $4{last})"),
        &values![id, relay, epoch, fresh.psk.0.as_slice()],
    )?;
    Ok(epoch)
}

/// Makes the next key the connector's own.
fn take_over(db: &dyn Transaction, connector: &ConnectorRow, now: SystemTime) -> Result<()> {
    let Some(next) = &connector.next else { return Ok(()) };
    let id = &connector.id;
    forget_next(db, id)?;
    db.execute(
        "UPDATE connectors SET public_key = $1, key_since = $2 WHERE id = $3",
        &values![next.public_key.as_bytes(), next.since, id.as_str()],
    )?;
    db.execute("DELETE FROM psks WHERE connector = $1", &values![id.as_str()])?;
    for psk in &next.psks {
        // Whoever says that a key is in use alone has used it with every relay that knows it.
        db.execute(
            "INSERT INTO psks (connector, relay, epoch, sealed, confirmed) VALUES ($1, $2, $3, $4, 1)",
            &values![id.as_str(), psk.relay.as_str(), psk.epoch, psk.sealed.0.as_slice()],
        )?;
    }
    for psk in &next.psks {
        if !next.psks.iter().any(|other| other.relay == psk.relay && other.epoch < psk.epoch) {
            keep_for_recovery(db, id, &psk.relay, psk.epoch, &psk.sealed)?;
        }
    }
    let detail = format!("key {}, in place of {}", next.public_key, connector.public_key);
    audit(db, now, id.as_str(), "connector.rotated", id.as_str(), &detail)
}

/// Whether a key is anybody's but this connector's next one: a connector's, a token's, a stock peer's.
fn is_taken(db: &dyn Transaction, own: &ConnectorId, key: &PublicKey) -> Result<bool> {
    let bytes = || Value::from(key.as_bytes());
    let connectors = db.query("SELECT id FROM connectors WHERE public_key = $1", &[bytes()])?;
    let tokens = db.query("SELECT id FROM tokens WHERE bootstrap_key = $1", &[bytes()])?;
    let others = db.query(
        "SELECT connector FROM next_keys WHERE public_key = $1 AND connector <> $2",
        &[bytes(), Value::from(own.as_str())],
    )?;
    let free = connectors.is_empty() && tokens.is_empty() && others.is_empty();
    Ok(!free || peers::has_key(db, key)?)
}

fn live(db: &dyn Transaction, id: &ConnectorId) -> Result<ConnectorRow> {
    let connector = read::connector(db, id)?.filter(|connector| connector.revoked.is_none());
    connector.ok_or_else(|| Rule::NoSuchConnector(id.clone()).into())
}

fn next_row(row: &Row) -> Result<(ConnectorId, NextKey)> {
    let public_key = PublicKey::from_bytes(row.array(1)?);
    Ok((row.text(0)?, NextKey { public_key, since: row.time(2)?, psks: Vec::new() }))
}

fn of_connector(row: &Row) -> Result<(ConnectorId, SealedPsk)> {
    let psk = SealedPsk { relay: row.text(0)?, epoch: row.number(1)?, sealed: Sealed(row.bytes(2)?), confirmed: false };
    Ok((row.text(3)?, psk))
}
