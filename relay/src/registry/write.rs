//! Changes to the database; each function is the inside of one transaction, its line in the audit trail included.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use culvert_model::address::connector_inner;
use culvert_model::control::Refusal;
use culvert_model::id::{ConnectorId, TokenId, TunnelId};
use culvert_model::name::{Grant, ServiceName};

use super::admission::{Verdict, judge, next_epoch};
use super::failure::Failure;
use super::rows::{AuditRow, ConnectorRow, Sealed, TokenRow, Tunnel};
use super::sql::{Transaction, milliseconds, values};
use super::{Actor, Candidate, EPHEMERAL, Enrolment, Forgotten, Note, Rule, TOMBSTONE, grants};
use super::{keys, managed, peers, proofs, read, relays};

/// Behind a relay's tag: where [`keep_for_recovery`] keeps a connector's first pre-shared key. No relay has such a tag.
const RECOVERY: &str = "/recovery";
/// And where one waits that replaces it once it was used.
const UNUSED: &str = "/unused/recovery";
/// How often the same refusal, or a repeated enrolment, is worth another line in the audit trail.
const SAME_AGAIN: Duration = Duration::from_secs(60);

type Result<T> = std::result::Result<T, Failure>;

pub(super) fn create_tunnel(db: &dyn Transaction, tunnel: &Tunnel, token: &TokenRow, by: &Actor) -> Result<()> {
    let tunnels = read::tunnels(db)?;
    if tunnels.iter().any(|other| other.name == tunnel.name) {
        return Err(Rule::TunnelExists(tunnel.name.clone()).into());
    }
    db.execute(
        "INSERT INTO tunnels (id, name, shared, created) VALUES ($1, $2, $3, $4)",
        &values![tunnel.id.as_str(), tunnel.name.as_str(), tunnel.shared, tunnel.created],
    )?;
    grant(db, tunnel, &tunnel.grants, &tunnels)?;
    let detail = format!("services {}{}", list(&tunnel.grants), if tunnel.shared { ", shared" } else { "" });
    audit(db, tunnel.created, &by.0, "tunnel.create", tunnel.name.as_str(), &detail)?;
    create_token(db, token, by)
}

pub(super) fn set_grants(
    db: &dyn Transaction,
    id: &TunnelId,
    add: &[Grant],
    remove: &[Grant],
    by: &Actor,
    now: SystemTime,
) -> Result<Tunnel> {
    let tunnels = read::tunnels(db)?;
    let mut tunnel = live_tunnel(&tunnels, id)?.clone();
    for gone in remove {
        if !tunnel.grants.contains(gone) {
            return Err(Rule::NotGranted { tunnel: tunnel.name, grant: gone.clone() }.into());
        }
        tunnel.grants.retain(|grant| grant != gone);
        db.execute("DELETE FROM grants WHERE tunnel = $1 AND pattern = $2", &values![id.as_str(), gone.as_str()])?;
    }
    let new: Vec<Grant> = add.iter().filter(|grant| !tunnel.grants.contains(grant)).cloned().collect();
    grant(db, &tunnel, &new, &tunnels)?;
    for grant in new {
        if !tunnel.grants.contains(&grant) {
            tunnel.grants.push(grant);
        }
    }
    if tunnel.grants.is_empty() {
        return Err(Rule::NoGrantLeft(tunnel.name).into());
    }
    for service in read::services(db)? {
        if service.tunnel == *id && !grants::covers(&tunnel, &service.name) {
            forget_service(db, id, &service.name)?;
        }
    }
    audit(db, now, &by.0, "tunnel.set", tunnel.name.as_str(), &format!("services {}", list(&tunnel.grants)))?;
    Ok(tunnel)
}

pub(super) fn delete_tunnel(
    db: &dyn Transaction,
    id: &TunnelId,
    by: &Actor,
    now: SystemTime,
) -> Result<Vec<ConnectorId>> {
    let tunnels = read::tunnels(db)?;
    let tunnel = live_tunnel(&tunnels, id)?;
    db.execute("UPDATE tunnels SET deleted = $1 WHERE id = $2", &values![now, id.as_str()])?;
    db.execute("UPDATE tokens SET revoked = $1 WHERE tunnel = $2 AND revoked IS NULL", &values![now, id.as_str()])?;
    let tokens = db.query("SELECT id FROM tokens WHERE tunnel = $1", &values![id.as_str()])?.len();
    let revoked: Vec<ConnectorId> = read::connectors(db)?
        .into_iter()
        .filter(|connector| connector.tunnel == *id && connector.revoked.is_none())
        .map(|connector| connector.id)
        .collect();
    db.execute("UPDATE connectors SET revoked = $1 WHERE tunnel = $2 AND revoked IS NULL", &values![now, id.as_str()])?;
    db.execute(
        "DELETE FROM psks WHERE connector IN (SELECT id FROM connectors WHERE tunnel = $1)",
        &values![id.as_str()],
    )?;
    for connector in &revoked {
        proofs::forget(db, connector)?;
    }
    db.execute("DELETE FROM services WHERE tunnel = $1", &values![id.as_str()])?;
    managed::forget_tunnel(db, id)?;
    let detail = format!("{id}: {} connectors revoked, {tokens} tokens ended", revoked.len());
    audit(db, now, &by.0, "tunnel.delete", tunnel.name.as_str(), &detail)?;
    Ok(revoked)
}

pub(super) fn create_token(db: &dyn Transaction, token: &TokenRow, by: &Actor) -> Result<()> {
    let tunnels = read::tunnels(db)?;
    let tunnel = live_tunnel(&tunnels, &token.tunnel)?;
    if let Some(grant) = token.services.iter().find(|narrower| !tunnel.grants.iter().any(|own| own.overlaps(narrower)))
    {
        return Err(Rule::NotGranted { tunnel: tunnel.name.clone(), grant: grant.clone() }.into());
    }
    db.execute(
        "INSERT INTO tokens (id, tunnel, bootstrap_key, psk, uses_left, expires, created, sources, services) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        &values![
            token.id.as_str(),
            token.tunnel.as_str(),
            token.bootstrap_key.as_bytes(),
            token.psk.0.as_slice(),
            token.uses_left,
            token.expires,
            token.created,
            token.sources.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
            list(&token.services),
        ],
    )?;
    let uses = token.uses_left.map_or("unlimited".to_owned(), |uses| uses.to_string());
    let mut detail = format!("{}, uses {uses}", token.tunnel);
    if !token.services.is_empty() {
        detail += &format!(", services {}", list(&token.services));
    }
    audit(db, token.created, &by.0, "token.create", token.id.as_str(), &detail)
}

pub(super) fn revoke_token(db: &dyn Transaction, id: &TokenId, by: &Actor, now: SystemTime) -> Result<()> {
    let token = read::token(db, id)?.ok_or_else(|| Rule::NoSuchToken(id.clone()))?;
    if token.revoked.is_some() {
        return Ok(());
    }
    db.execute("UPDATE tokens SET revoked = $1 WHERE id = $2", &values![now, id.as_str()])?;
    audit(db, now, &by.0, "token.revoke", id.as_str(), token.tunnel.as_str())
}

pub(super) fn enrol(db: &dyn Transaction, candidate: &Candidate) -> Result<Enrolment> {
    let Some(token) = read::token(db, &candidate.token)? else { return Ok(Enrolment::Unknown) };
    if keys::is_next(db, &candidate.public_key)? || peers::has_key(db, &candidate.public_key)? {
        // Who has it is known under the key that it has, and this one is given to nobody else.
        return Ok(Enrolment::Refused { refusal: Refusal::Malformed, at: None });
    }
    let known = read::connector_by_key(db, &candidate.public_key)?;
    let verdict = judge(&token, known.as_ref(), candidate.source.ip(), candidate.now);
    let repeated = match verdict {
        Verdict::Silence => return Ok(Enrolment::Unknown),
        // Who is refused stands in the trail by way of `refusals`, which counts what repeats itself.
        Verdict::Refuse { refusal, at } => return Ok(Enrolment::Refused { refusal, at }),
        Verdict::Gone { at } => return Ok(Enrolment::Gone { at }),
        Verdict::Repeat => true,
        Verdict::Join => false,
    };
    let tunnels = read::tunnels(db)?;
    let Some(tunnel) = tunnels.into_iter().find(|tunnel| tunnel.id == token.tunnel) else {
        return Ok(Enrolment::Refused { refusal: Refusal::Revoked, at: token.revoked });
    };
    if !repeated {
        take_use(db, &token, candidate.now)?;
    }
    let id = match &known {
        Some(connector) => connector.id.clone(),
        None => candidate.id.clone(),
    };
    if known.is_some() {
        update_member(db, &id, &token, candidate)?;
    } else {
        insert_member(db, &token, candidate)?;
    }
    let (epoch, kept) = next_epoch(known.as_ref().map_or(&[], |connector| &connector.psks), &candidate.relay);
    db.execute(
        "DELETE FROM psks WHERE connector = $1 AND relay = $2 AND epoch IS DISTINCT FROM $3",
        &values![id.as_str(), candidate.relay.as_str(), kept],
    )?;
    db.execute(
        "INSERT INTO psks (connector, relay, epoch, sealed, confirmed) VALUES ($1, $2, $3, $4, 0)",
        &values![id.as_str(), candidate.relay.as_str(), epoch, candidate.psk.0.as_slice()],
    )?;
    if known.is_some() {
        // Whoever has the token and knows the public key can repeat: only a key that was used replaces the first one.
        keep(db, &id, &format!("{}{UNUSED}", candidate.relay), epoch, &candidate.psk)?;
    } else {
        keep_for_recovery(db, &id, &candidate.relay, epoch, &candidate.psk)?;
    }
    let detail = format!("with {} from {}, version {}", token.id, candidate.source.ip(), candidate.program);
    if repeated {
        seldom(db, candidate.now, token.id.as_str(), "connector.repeat", id.as_str(), &detail)?;
    } else {
        audit(db, candidate.now, token.id.as_str(), "connector.join", id.as_str(), &detail)?;
    }
    let connector = Box::new(known_connector(db, &id)?);
    Ok(Enrolment::Joined { connector, tunnel, epoch, repeated })
}

pub(super) fn revoke_connector(db: &dyn Transaction, id: &ConnectorId, by: &Actor, now: SystemTime) -> Result<()> {
    if known_connector(db, id)?.revoked.is_some() {
        return Ok(());
    }
    db.execute("UPDATE connectors SET revoked = $1 WHERE id = $2", &values![now, id.as_str()])?;
    db.execute("DELETE FROM psks WHERE connector = $1", &values![id.as_str()])?;
    keys::forget_next(db, id)?;
    proofs::forget(db, id)?;
    audit(db, now, &by.0, "connector.revoke", id.as_str(), "")
}

pub(super) fn set_drained(
    db: &dyn Transaction,
    id: &ConnectorId,
    drained: bool,
    by: &Actor,
    now: SystemTime,
) -> Result<()> {
    let connector = known_connector(db, id)?;
    if connector.revoked.is_some() {
        return Err(Rule::NoSuchConnector(id.clone()).into());
    }
    if connector.drained == drained {
        return Ok(());
    }
    db.execute("UPDATE connectors SET drained = $1 WHERE id = $2", &values![drained, id.as_str()])?;
    let action = if drained { "connector.drain" } else { "connector.undrain" };
    audit(db, now, &by.0, action, id.as_str(), "")
}

pub(super) fn announce(
    db: &dyn Transaction,
    id: &TunnelId,
    names: &[ServiceName],
    now: SystemTime,
) -> Result<grants::Decision> {
    let tunnels = read::tunnels(db)?;
    let services = read::services_for(db, id, names)?;
    let owned = peers::owned(&peers::all(db)?, &peers::services(db)?);
    let decision = grants::decide(live_tunnel(&tunnels, id)?, names, &tunnels, &services, &owned);
    for name in &decision.accepted {
        if !services.iter().any(|service| service.tunnel == *id && service.name == *name) {
            db.execute(
                "INSERT INTO services (name, tunnel, since) VALUES ($1, $2, $3)",
                &values![name.as_str(), id.as_str(), now],
            )?;
        }
    }
    Ok(decision)
}

pub(super) fn note(db: &dyn Transaction, notes: &[Note]) -> Result<()> {
    for note in notes {
        match note {
            Note::Endpoint { connector, relay, remote, local } => {
                let (remote, local) = (remote.to_string(), local.to_string());
                db.execute_quietly(
                    "UPDATE connectors SET last_endpoint = $1, last_local = $2 WHERE id = $3",
                    &values![remote.as_str(), local.as_str(), connector.as_str()],
                )?;
                // Out of the table, so that one who is gone meanwhile is skipped.
                db.execute_quietly(
                    "INSERT INTO heard (connector, relay, remote, local) SELECT id, $1, $2, $3 FROM connectors \
                     WHERE id = $4 ON CONFLICT (connector, relay) DO UPDATE SET remote = excluded.remote, \
                     local = excluded.local",
                    &values![relay, remote, local, connector.as_str()],
                )?
            }
            Note::Handshake { connector, at } => db.execute_quietly(
                "UPDATE connectors SET last_handshake = $1, safe_since = coalesce(safe_since, $1) WHERE id = $2",
                &values![*at, connector.as_str()],
            )?,
            Note::PeerEndpoint { peer, relay, remote, local } => {
                peers::note_endpoint(db, peer, relay, &remote.to_string(), &local.to_string())?
            }
            Note::PeerHandshake { peer, at } => {
                db.execute_quietly("UPDATE peers SET last_handshake = $1 WHERE id = $2", &values![*at, peer.as_str()])?
            }
            Note::GatewayUsed { gateway, at } => db.execute_quietly(
                "UPDATE gateways SET last_used = $1 WHERE id = $2 AND (last_used IS NULL OR last_used < $1)",
                &values![*at, gateway.as_str()],
            )?,
            Note::Program { connector, name, version } => db.execute_quietly(
                "UPDATE connectors SET name = $1, version = $2 WHERE id = $3",
                &values![name.as_ref().map(|name| name.as_str()), version, connector.as_str()],
            )?,
            Note::ProofKeys { connector, keys } => proofs::note(db, connector, keys)?,
            Note::PskConfirmed { connector, relay, epoch, alone } => {
                let key = &values![connector.as_str(), relay, *epoch];
                let known = db.execute_quietly(
                    "UPDATE psks SET confirmed = 1 WHERE connector = $1 AND relay = $2 AND epoch = $3",
                    key,
                )?;
                if *alone && known > 0 {
                    db.execute_quietly("DELETE FROM psks WHERE connector = $1 AND relay = $2 AND epoch < $3", key)?;
                }
                recovery_used(db, connector, relay, *epoch)?;
                known
            }
        };
    }
    Ok(())
}

pub(super) fn forget(db: &dyn Transaction, live: &[ConnectorId], now: SystemTime) -> Result<Forgotten> {
    let live: BTreeSet<&ConnectorId> = live.iter().collect();
    let mut forgotten = Forgotten::default();
    let mut tokens: BTreeSet<TokenId> = BTreeSet::new();
    for token in read::tokens(db)? {
        if token.is_forgotten(now) {
            db.execute("DELETE FROM tokens WHERE id = $1", &values![token.id.as_str()])?;
            forgotten.tokens.push(token.id);
        } else {
            tokens.insert(token.id);
        }
    }
    for gateway in read::gateways(db)? {
        if gateway.is_forgotten(now) {
            db.execute("DELETE FROM gateways WHERE id = $1", &values![gateway.id.as_str()])?;
        }
    }
    db.execute("DELETE FROM gateway_secrets WHERE until <= $1", &values![now])?;
    relays::forget(db, now)?;
    peers::forget(db, now)?;
    for connector in read::connectors(db)? {
        let over = match connector.revoked {
            // A revoked key must not come back with the token it still holds.
            Some(at) => at + TOMBSTONE <= now && !tokens.contains(&connector.token),
            None => {
                let heard = connector.last_handshake.unwrap_or(connector.enrolled).max(connector.enrolled);
                connector.ephemeral && heard + EPHEMERAL <= now && !live.contains(&connector.id)
            }
        };
        if over {
            db.execute("DELETE FROM connectors WHERE id = $1", &values![connector.id.as_str()])?;
            forgotten.connectors.push(connector.id);
        }
    }
    db.execute(
        "DELETE FROM tunnels WHERE deleted IS NOT NULL AND id NOT IN (SELECT tunnel FROM tokens) \
         AND id NOT IN (SELECT tunnel FROM connectors)",
        &[],
    )?;
    Ok(forgotten)
}

pub(super) fn audit_row(db: &dyn Transaction, row: &AuditRow) -> Result<()> {
    audit(db, row.at, &row.actor, &row.action, &row.subject, &row.detail)
}

/// Makes the registry of a backup one that connectors find their way back to, and says in the trail that it was restored.
///
/// Their pre-shared keys went on since the backup. Each keeps its first one with a relay for this day, and takes it out when
/// none of the later ones is answered; so does the registry ([`keep_for_recovery`]). Beside the newest confirmed epoch it
/// stands under the number below, so that the parity of the two differs (wire.md §3).
pub(super) fn restored(db: &dyn Transaction, relay: &str, row: &AuditRow) -> Result<()> {
    let place = format!("{relay}{RECOVERY}");
    let first = "SELECT connector, sealed FROM psks WHERE relay = $1";
    for (id, sealed) in
        db.all(first, &values![place.as_str()], |row| Ok((row.text::<ConnectorId>(0)?, row.bytes(1)?)))?
    {
        let known = known_connector(db, &id)?;
        let ours = || known.psks.iter().filter(|psk| psk.relay == relay);
        let kept = ours().filter(|psk| psk.confirmed).map(|psk| psk.epoch).max().or(ours().map(|psk| psk.epoch).max());
        db.execute(
            "DELETE FROM psks WHERE connector = $1 AND relay = $2 AND epoch IS DISTINCT FROM $3",
            &values![id.as_str(), relay, kept],
        )?;
        if ours().any(|psk| Some(psk.epoch) == kept && psk.sealed.0 == sealed) {
            continue;
        }
        let epoch = kept.map_or(1, |kept| if kept == 0 { 1 } else { kept - 1 });
        db.execute(
            "INSERT INTO psks (connector, relay, epoch, sealed, confirmed) VALUES ($1, $2, $3, $4, 0)",
            &values![id.as_str(), relay, epoch, sealed.as_slice()],
        )?;
    }
    audit_row(db, row)
}

/// Keeps the first pre-shared key of a connector's key with a relay beside those in use, as long as the connector does: what a
/// relay that was restored from a backup and a connector that went on have in common.
pub(super) fn keep_for_recovery(
    db: &dyn Transaction,
    connector: &ConnectorId,
    relay: &str,
    epoch: u32,
    psk: &Sealed,
) -> Result<()> {
    keep(db, connector, &format!("{relay}{RECOVERY}"), epoch, psk)
}

fn keep(db: &dyn Transaction, connector: &ConnectorId, place: &str, epoch: u32, psk: &Sealed) -> Result<()> {
    db.execute("DELETE FROM psks WHERE connector = $1 AND relay = $2", &values![connector.as_str(), place])?;
    db.execute(
        "INSERT INTO psks (connector, relay, epoch, sealed, confirmed) VALUES ($1, $2, $3, $4, 0)",
        &values![connector.as_str(), place, epoch, psk.0.as_slice()],
    )?;
    Ok(())
}

/// A key that waited was used: it was the connector that repeated its enrolment, and it has this one for its first.
fn recovery_used(db: &dyn Transaction, connector: &ConnectorId, relay: &str, epoch: u32) -> Result<()> {
    let (unused, place) = (format!("{relay}{UNUSED}"), format!("{relay}{RECOVERY}"));
    let waits = "SELECT epoch FROM psks WHERE connector = $1 AND relay = $2 AND epoch = $3";
    if !db.query(waits, &values![connector.as_str(), unused.as_str(), epoch])?.is_empty() {
        let old = &values![connector.as_str(), place.as_str()];
        db.execute_quietly("DELETE FROM psks WHERE connector = $1 AND relay = $2", old)?;
        db.execute_quietly(
            "UPDATE psks SET relay = $1 WHERE connector = $2 AND relay = $3",
            &values![place.as_str(), connector.as_str(), unused.as_str()],
        )?;
    }
    Ok(())
}

/// Writes grants that `tunnel` did not have; an exact one takes its name from other tunnels' patterns.
fn grant(db: &dyn Transaction, tunnel: &Tunnel, new: &[Grant], tunnels: &[Tunnel]) -> Result<()> {
    let owned = peers::owned(&peers::all(db)?, &peers::services(db)?);
    for grant in new {
        db.execute(
            "INSERT INTO grants (tunnel, pattern) VALUES ($1, $2) ON CONFLICT DO NOTHING",
            &values![tunnel.id.as_str(), grant.as_str()],
        )?;
        let Some(name) = grant.exact() else { continue };
        if let Some(owner) = grants::exact_owner(&tunnel.id, tunnel.shared, &name, tunnels) {
            return Err(Rule::Owned { service: name, owner: owner.name.clone() }.into());
        }
        if let Some(owner) = owned.get(&name) {
            return Err(Rule::OwnedByPeer { service: name, owner: owner.clone() }.into());
        }
        for other in tunnels.iter().filter(|other| other.id != tunnel.id && !(other.shared && tunnel.shared)) {
            forget_service(db, &other.id, &name)?;
        }
    }
    Ok(())
}

fn forget_service(db: &dyn Transaction, tunnel: &TunnelId, name: &ServiceName) -> Result<()> {
    db.execute("DELETE FROM services WHERE tunnel = $1 AND name = $2", &values![tunnel.as_str(), name.as_str()])?;
    Ok(())
}

/// INVARIANT: one use at most is taken from what is left, whoever else asks: the update counts in the database.
fn take_use(db: &dyn Transaction, token: &TokenRow, now: SystemTime) -> Result<()> {
    db.execute(
        "UPDATE tokens SET uses_left = uses_left - 1, used = used + 1, last_used = $1 WHERE id = $2",
        &values![now, token.id.as_str()],
    )?;
    Ok(())
}

fn insert_member(db: &dyn Transaction, token: &TokenRow, candidate: &Candidate) -> Result<()> {
    db.execute(
        "INSERT INTO connectors (id, tunnel, token, public_key, name, inner_address, ephemeral, enrolled, version, \
         services) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        &values![
            candidate.id.as_str(),
            token.tunnel.as_str(),
            candidate.token.as_str(),
            candidate.public_key.as_bytes(),
            candidate.name.as_ref().map(|name| name.as_str()),
            connector_inner(&candidate.id).to_string(),
            candidate.ephemeral,
            candidate.now,
            candidate.program.as_str(),
            list(&token.services),
        ],
    )?;
    Ok(())
}

fn update_member(db: &dyn Transaction, id: &ConnectorId, token: &TokenRow, candidate: &Candidate) -> Result<()> {
    db.execute(
        "UPDATE connectors SET token = $1, name = $2, ephemeral = $3, version = $4, services = $5 WHERE id = $6",
        &values![
            candidate.token.as_str(),
            candidate.name.as_ref().map(|name| name.as_str()),
            candidate.ephemeral,
            candidate.program.as_str(),
            list(&token.services),
            id.as_str(),
        ],
    )?;
    Ok(())
}

pub(super) fn live_tunnel<'a>(tunnels: &'a [Tunnel], id: &TunnelId) -> Result<&'a Tunnel> {
    tunnels.iter().find(|tunnel| tunnel.id == *id).ok_or_else(|| Rule::NoSuchTunnel(id.clone()).into())
}

fn known_connector(db: &dyn Transaction, id: &ConnectorId) -> Result<ConnectorRow> {
    read::connector(db, id)?.ok_or_else(|| Rule::NoSuchConnector(id.clone()).into())
}

pub(super) fn audit(
    db: &dyn Transaction,
    at: SystemTime,
    actor: &str,
    action: &str,
    subject: &str,
    detail: &str,
) -> Result<()> {
    db.execute_quietly(
        "INSERT INTO audit (at, actor, action, subject, detail) VALUES ($1, $2, $3, $4, $5)",
        &values![at, actor, action, subject, detail],
    )?;
    Ok(())
}

/// As [`audit`], but what repeats itself is written once a minute: nobody fills the disk by asking again.
fn seldom(db: &dyn Transaction, at: SystemTime, actor: &str, action: &str, subject: &str, detail: &str) -> Result<()> {
    let last: Option<i64> = db.first(
        "SELECT at FROM audit WHERE subject = $1 AND action = $2 ORDER BY at DESC LIMIT 1",
        &values![subject, action],
        |row| row.number(0),
    )?;
    if last.is_some_and(|last| u128::from(last.abs_diff(milliseconds(at))) < SAME_AGAIN.as_millis()) {
        return Ok(());
    }
    audit(db, at, actor, action, subject, detail)
}

pub(super) fn list(grants: &[Grant]) -> String {
    grants.iter().map(Grant::as_str).collect::<Vec<_>>().join(" ")
}
