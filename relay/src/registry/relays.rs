//! The relays that share this registry: which there are, what each can open, and who is made known to whom.
//!
//! Must never let one relay's word change another's row.

use std::time::{Duration, SystemTime};

use culvert_model::id::{ConnectorId, TokenId};
use culvert_model::key::PublicKey;

use super::admission::next_epoch;
use super::failure::Failure;
use super::rows::{RelayRow, Sealed, TokenSealRow};
use super::sql::{Row, Transaction, values};
use super::write::{audit, keep_for_recovery};
use super::{Rule, read};

/// A relay that was not seen for so long is no more.
const GONE_AFTER: Duration = Duration::from_secs(30 * 86_400);

const RELAY: &str = "SELECT tag, public_key, kem_key, endpoints, seen FROM relays";

type Result<T> = std::result::Result<T, Failure>;

/// A connector that one relay makes known to another.
#[derive(Debug, Clone)]
pub(crate) struct Introduction {
    /// Which connector.
    pub(crate) connector: ConnectorId,
    /// Under which of its keys.
    pub(crate) public_key: PublicKey,
    /// By which relay.
    pub(crate) by: String,
    /// To which relay.
    pub(crate) to: String,
    /// Its pre-shared key with that relay, sealed for it.
    pub(crate) psk: Sealed,
    /// When.
    pub(crate) now: SystemTime,
}

pub(super) fn relays(db: &dyn Transaction) -> Result<Vec<RelayRow>> {
    db.all(&format!("{RELAY} ORDER BY tag"), &[], relay_row)
}

pub(super) fn token_seals(db: &dyn Transaction) -> Result<Vec<TokenSealRow>> {
    db.all("SELECT token, relay, sealed FROM token_seals ORDER BY token, relay", &[], |row| {
        Ok(TokenSealRow { token: row.text::<TokenId>(0)?, relay: row.text(1)?, sealed: Sealed(row.bytes(2)?) })
    })
}

/// Writes what a relay says of itself. That it was seen once more is nothing that others need to hear.
pub(super) fn note(db: &dyn Transaction, relay: &RelayRow) -> Result<()> {
    let known = relays(db)?;
    let endpoints = relay.endpoints.join(" ");
    let Some(before) = known.iter().find(|one| one.tag == relay.tag) else {
        db.execute(
            "INSERT INTO relays (tag, public_key, kem_key, endpoints, seen) VALUES ($1, $2, $3, $4, $5)",
            &values![
                relay.tag.as_str(),
                relay.public_key.as_bytes(),
                relay.kem_key.as_slice(),
                endpoints.as_str(),
                relay.seen
            ],
        )?;
        // A relay alone is no event of its own.
        if !known.is_empty() {
            let actor = format!("relay {}", relay.tag);
            let detail = format!("key {}, endpoints {endpoints}", relay.public_key);
            audit(db, relay.seen, &actor, "relay.join", &relay.tag, &detail)?;
        }
        return Ok(());
    };
    if (RelayRow { seen: relay.seen, ..before.clone() }) == *relay {
        db.execute_quietly(
            "UPDATE relays SET seen = $1 WHERE tag = $2 AND seen < $1",
            &values![relay.seen, relay.tag.as_str()],
        )?;
        return Ok(());
    }
    if before.kem_key != relay.kem_key {
        // What was sealed for the former key opens no more.
        db.execute("DELETE FROM token_seals WHERE relay = $1", &values![relay.tag.as_str()])?;
        db.execute("DELETE FROM peer_seals WHERE relay = $1", &values![relay.tag.as_str()])?;
    }
    db.execute(
        "UPDATE relays SET public_key = $1, kem_key = $2, endpoints = $3, seen = $4 WHERE tag = $5",
        &values![
            relay.public_key.as_bytes(),
            relay.kem_key.as_slice(),
            endpoints.as_str(),
            relay.seen,
            relay.tag.as_str()
        ],
    )?;
    Ok(())
}

/// Writes what other relays open tokens with. Another may have done the same, and a token may be gone.
pub(super) fn seal_tokens(db: &dyn Transaction, seals: &[TokenSealRow]) -> Result<()> {
    for seal in seals {
        let (token, relay) = (seal.token.as_str(), seal.relay.as_str());
        let both = db.query(
            "SELECT tokens.id FROM tokens, relays WHERE tokens.id = $1 AND relays.tag = $2",
            &values![token, relay],
        )?;
        if !both.is_empty() {
            db.execute(
                "INSERT INTO token_seals (token, relay, sealed) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
                &values![token, relay, seal.sealed.0.as_slice()],
            )?;
        }
    }
    Ok(())
}

/// Gives a connector a pre-shared key with another relay; returns its epoch.
pub(super) fn introduce(db: &dyn Transaction, introduction: &Introduction) -> Result<u32> {
    let Introduction { connector: id, public_key, by, to, psk, now } = introduction;
    let connector = read::connector(db, id)?;
    let connector = connector.filter(|connector| connector.revoked.is_none() && connector.public_key == *public_key);
    let connector = connector.ok_or_else(|| Rule::NoSuchConnector(id.clone()))?;
    if !relays(db)?.iter().any(|relay| relay.tag == *to) {
        return Err(Rule::NoSuchRelay(to.clone()).into());
    }
    let (epoch, kept) = next_epoch(&connector.psks, to);
    db.execute(
        "DELETE FROM psks WHERE connector = $1 AND relay = $2 AND epoch IS DISTINCT FROM $3",
        &values![id.as_str(), to.as_str(), kept],
    )?;
    db.execute(
        "INSERT INTO psks (connector, relay, epoch, sealed, confirmed) VALUES ($1, $2, $3, $4, 0)",
        &values![id.as_str(), to.as_str(), epoch, psk.0.as_slice()],
    )?;
    keep_for_recovery(db, id, to, epoch, psk)?;
    audit(db, *now, &format!("relay {by}"), "connector.introduce", id.as_str(), &format!("to relay {to}"))?;
    Ok(epoch)
}

/// Forgets relays that are no more.
pub(super) fn forget(db: &dyn Transaction, now: SystemTime) -> Result<()> {
    if let Some(before) = now.checked_sub(GONE_AFTER) {
        db.execute("DELETE FROM relays WHERE seen < $1", &values![before])?;
    }
    Ok(())
}

fn relay_row(row: &Row) -> Result<RelayRow> {
    let endpoints: String = row.text(3)?;
    Ok(RelayRow {
        tag: row.text(0)?,
        public_key: PublicKey::from_bytes(row.array(1)?),
        kem_key: row.bytes(2)?,
        endpoints: endpoints.split_whitespace().map(str::to_owned).collect(),
        seen: row.time(4)?,
    })
}
