//! The public keys of what connectors sign for their origins: kept, so that verifiers find them at any relay, also while the
//! connector is away.
//!
//! Must never hold a private part, nor outlive the connector's own key.

use culvert_model::id::ConnectorId;
use culvert_model::proof::ProofKey;
use serde_json::Value as Json;

use super::failure::Failure;
use super::sql::{Row, Transaction, values};

type Result<T> = std::result::Result<T, Failure>;

/// Keeps these for a connector in place of what it had. One that is unknown or revoked is skipped.
pub(super) fn note(db: &dyn Transaction, connector: &ConnectorId, keys: &[ProofKey]) -> Result<u64> {
    if keys.is_empty() {
        return forget(db, connector);
    }
    let text = serde_json::to_string(keys).map_err(|error| Failure::Damaged(error.to_string()))?;
    db.execute(
        "INSERT INTO proof_keys (connector, public_keys) SELECT id, $1 FROM connectors WHERE id = $2 AND revoked IS NULL \
         ON CONFLICT (connector) DO UPDATE SET public_keys = excluded.public_keys",
        &values![text, connector.as_str()],
    )
}

/// Nobody is to believe what it signed.
pub(super) fn forget(db: &dyn Transaction, connector: &ConnectorId) -> Result<u64> {
    db.execute("DELETE FROM proof_keys WHERE connector = $1", &values![connector.as_str()])
}

/// Those of all connectors.
pub(super) fn all(db: &dyn Transaction) -> Result<Vec<(ConnectorId, Vec<ProofKey>)>> {
    db.all("SELECT public_keys, connector FROM proof_keys", &[], |row| Ok((row.text(1)?, keys(row)?)))
}

/// Those of one.
pub(super) fn of(db: &dyn Transaction, connector: &ConnectorId) -> Result<Vec<ProofKey>> {
    let sql = "SELECT public_keys FROM proof_keys WHERE connector = $1";
    Ok(db.first(sql, &values![connector.as_str()], keys)?.unwrap_or_default())
}

/// A kind of key that only a newer relay of the registry knows is left to that one.
fn keys(row: &Row) -> Result<Vec<ProofKey>> {
    let text: String = row.text(0)?;
    let list: Vec<Json> =
        serde_json::from_str(&text).map_err(|error| Failure::Damaged(format!("proof keys: {error}")))?;
    Ok(list.into_iter().filter_map(|key| serde_json::from_value(key).ok()).collect())
}
