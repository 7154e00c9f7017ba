//! Services that are defined at the relay, for the connectors of a tunnel to serve.
//!
//! Must never define one that the tunnel may not serve: names and owners are those of announcements ([`super::grants::decide`]).

use std::time::SystemTime;

use culvert_model::control::MAX_MESSAGE_BYTES;
use culvert_model::id::TunnelId;
use culvert_model::name::ServiceName;

use super::failure::Failure;
use super::rows::ManagedRow;
use super::sql::{Row, Transaction, values};
use super::{Actor, Rule, peers, read, write};

/// What the definitions of one tunnel may be together: they travel in one message, which has other bytes too.
const BYTES_AT_MOST: usize = MAX_MESSAGE_BYTES * 3 / 4;
/// What a definition takes in it beside its texts.
const BYTES_BESIDE: usize = 80;
/// How many a tunnel may have: connectors take no more.
pub(crate) const MANAGED_AT_MOST: usize = 256;

type Result<T> = std::result::Result<T, Failure>;

pub(super) fn all(db: &dyn Transaction) -> Result<Vec<ManagedRow>> {
    let sql = "SELECT name, tunnel, origin, host, health_path, since FROM managed ORDER BY name, since, tunnel";
    db.all(sql, &[], managed_row)
}

pub(super) fn set(db: &dyn Transaction, wanted: &ManagedRow, by: &Actor) -> Result<()> {
    let tunnels = read::tunnels(db)?;
    let tunnel = write::live_tunnel(&tunnels, &wanted.tunnel)?;
    let decision = write::announce(db, &wanted.tunnel, std::slice::from_ref(&wanted.name), wanted.since)?;
    if let Some((_, why)) = decision.refused.into_iter().next() {
        return Err(Rule::MayNotServe(why).into());
    }
    let others = all(db)?.into_iter().filter(|row| row.tunnel == wanted.tunnel && row.name != wanted.name);
    let others: Vec<ManagedRow> = others.collect();
    let bytes: usize = others.iter().chain([wanted]).map(ManagedRow::bytes).sum();
    if others.len() >= MANAGED_AT_MOST || bytes > BYTES_AT_MOST {
        return Err(Rule::NoRoomToManage(tunnel.name.clone()).into());
    }
    db.execute(
        "DELETE FROM managed WHERE name = $1 AND tunnel = $2",
        &values![wanted.name.as_str(), wanted.tunnel.as_str()],
    )?;
    db.execute(
        "INSERT INTO managed (name, tunnel, origin, host, health_path, since) VALUES ($1, $2, $3, $4, $5, $6)",
        &values![
            wanted.name.as_str(),
            wanted.tunnel.as_str(),
            wanted.origin.as_str(),
            wanted.host.as_deref(),
            wanted.health_path.as_deref(),
            wanted.since,
        ],
    )?;
    let detail = format!("tunnel {}, {wanted}", tunnel.name);
    write::audit(db, wanted.since, &by.0, "service.set", wanted.name.as_str(), &detail)
}

/// Forgets a service: that it was announced, and that it is managed. Returns the tunnels that served it.
pub(super) fn delete_service(
    db: &dyn Transaction,
    name: &ServiceName,
    by: &Actor,
    now: SystemTime,
) -> Result<Vec<TunnelId>> {
    let announced = read::services(db)?.into_iter().filter(|row| row.name == *name).map(|row| row.tunnel);
    let managed = all(db)?.into_iter().filter(|row| row.name == *name).map(|row| row.tunnel);
    let mut tunnels: Vec<TunnelId> = announced.chain(managed).collect();
    tunnels.sort();
    tunnels.dedup();
    let behind_peer = peers::delete_service(db, name)?;
    if tunnels.is_empty() && !behind_peer {
        return Err(Rule::NoSuchService(name.clone()).into());
    }
    db.execute("DELETE FROM services WHERE name = $1", &values![name.as_str()])?;
    db.execute("DELETE FROM managed WHERE name = $1", &values![name.as_str()])?;
    write::audit(db, now, &by.0, "service.delete", name.as_str(), "")?;
    Ok(tunnels)
}

pub(super) fn forget_tunnel(db: &dyn Transaction, tunnel: &TunnelId) -> Result<()> {
    db.execute("DELETE FROM managed WHERE tunnel = $1", &values![tunnel.as_str()])?;
    Ok(())
}

impl ManagedRow {
    fn bytes(&self) -> usize {
        let optional = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        let texts = self.name.as_str().len() + self.origin.len() + optional(&self.host) + optional(&self.health_path);
        texts + BYTES_BESIDE
    }
}

fn managed_row(row: &Row) -> Result<ManagedRow> {
    Ok(ManagedRow {
        name: row.text(0)?,
        tunnel: row.text(1)?,
        origin: row.text(2)?,
        host: row.optional_text(3)?,
        health_path: row.optional_text(4)?,
        since: row.time(5)?,
    })
}
