//! Stock peers and the services behind them: what may stand beside what, and the changes, each the inside of one
//! transaction with its line in the audit trail.
//!
//! Must never let two peers have one address, one key or one name: rules are checked where nobody else writes meanwhile.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::SystemTime;

use culvert_model::address;
use culvert_model::id::StockPeerId;
use culvert_model::key::PublicKey;
use culvert_model::name::{Label, ServiceName};
use ipnet::{IpNet, Ipv4Net};

use super::failure::Failure;
use super::managed::MANAGED_AT_MOST;
use super::rows::{Heard, PeerRow, PeerSealRow, PeerServiceRow, Sealed};
use super::sql::{Row, Transaction, Value, values};
use super::write::audit;
use super::{Actor, Rule, grants, managed, read, relays};

/// Stock peers of one registry.
pub(crate) const PEERS_AT_MOST: usize = 1_000;

const PEER: &str = "SELECT id, name, public_key, allowed_ips, inner_ipv4, endpoint, psk, keepalive, dns, created, \
                    last_endpoint, last_handshake, revoked FROM peers";

type Result<T> = std::result::Result<T, Failure>;

/// What of the relay that carries a change out is no peer's.
#[derive(Debug, Clone)]
pub(crate) struct Reserved {
    /// The relay's address inside the tunnel in IPv4, and the network that peers get theirs from.
    pub(crate) inner_ipv4: Ipv4Net,
    /// The relay's own keys.
    pub(crate) keys: Vec<PublicKey>,
}

/// New keys of a peer.
#[derive(Debug, Clone)]
pub(crate) struct PeerKeys {
    /// Its public key from now on.
    pub(crate) public_key: PublicKey,
    /// Its pre-shared key from now on, sealed for that public key.
    pub(crate) psk: Option<Sealed>,
    /// What changed, for the trail: `peer.key` or `peer.psk`.
    pub(crate) action: &'static str,
}

pub(super) fn all(db: &dyn Transaction) -> Result<Vec<PeerRow>> {
    let mut heard: HashMap<StockPeerId, Vec<Heard>> = HashMap::new();
    for (peer, row) in db.all("SELECT relay, remote, local, peer FROM peer_heard ORDER BY relay", &[], |row| {
        Ok((row.text(3)?, Heard { relay: row.text(0)?, remote: row.text(1)?, local: row.text(2)? }))
    })? {
        heard.entry(peer).or_default().push(row);
    }
    db.all(&format!("{PEER} ORDER BY name, created, id"), &[], |row| {
        let mut peer = peer_row(row)?;
        peer.heard = heard.remove(&peer.id).unwrap_or_default();
        Ok(peer)
    })
}

pub(super) fn services(db: &dyn Transaction) -> Result<Vec<PeerServiceRow>> {
    let sql = "SELECT name, peer, origin, host, health_path, ca, since FROM peer_services ORDER BY name";
    db.all(sql, &[], service_row)
}

pub(super) fn seals(db: &dyn Transaction) -> Result<Vec<PeerSealRow>> {
    db.all("SELECT peer, relay, sealed FROM peer_seals ORDER BY peer, relay", &[], |row| {
        Ok(PeerSealRow { peer: row.text(0)?, relay: row.text(1)?, sealed: Sealed(row.bytes(2)?) })
    })
}

/// Names that stock peers own, and the peers' names.
pub(crate) fn owned(peers: &[PeerRow], services: &[PeerServiceRow]) -> HashMap<ServiceName, Label> {
    let owner = |service: &PeerServiceRow| peers.iter().find(|peer| peer.id == service.peer);
    services.iter().filter_map(|service| Some((service.name.clone(), owner(service)?.name.clone()))).collect()
}

/// Adds a peer, and gives it its own end of the tunnel. Returns it as it is then.
pub(super) fn add(db: &dyn Transaction, wanted: &PeerRow, reserved: &Reserved, by: &Actor) -> Result<PeerRow> {
    let others = live(db)?;
    if others.iter().any(|other| other.name == wanted.name) {
        return Err(Rule::PeerExists(wanted.name.clone()).into());
    }
    if others.len() >= PEERS_AT_MOST {
        return Err(Rule::NoRoomForPeers.into());
    }
    key_is_free(db, &wanted.public_key, None, reserved, &others)?;
    networks_are_free(wanted, reserved, &others)?;
    let peer = PeerRow { inner_ipv4: free_address(wanted, reserved, &others), ..wanted.clone() };
    db.execute(
        "INSERT INTO peers (id, name, public_key, allowed_ips, inner_ipv4, endpoint, psk, keepalive, dns, created) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        &values![
            peer.id.as_str(),
            peer.name.as_str(),
            peer.public_key.as_bytes(),
            list(&peer.allowed_ips),
            peer.inner_ipv4.map(|address| address.to_string()),
            peer.endpoint.as_ref().map(ToString::to_string),
            peer.psk.as_ref().map(|sealed| sealed.0.as_slice()),
            peer.keepalive.map(|seconds| u32::from(seconds.get())),
            peer.dns.map(|address| address.to_string()),
            peer.created,
        ],
    )?;
    let psk = if peer.psk.is_some() { ", with a pre-shared key" } else { "" };
    let mut detail = format!("{}, key {}, allowed IPs {}{psk}", peer.id, peer.public_key, list(&peer.allowed_ips));
    peer.endpoint.iter().for_each(|endpoint| detail += &format!(", endpoint {endpoint}"));
    audit(db, peer.created, &by.0, "peer.add", peer.name.as_str(), &detail)?;
    Ok(peer)
}

/// Gives a peer other keys. Returns it as it is then.
pub(super) fn set_keys(
    db: &dyn Transaction,
    id: &StockPeerId,
    keys: &PeerKeys,
    reserved: &Reserved,
    by: &Actor,
    now: SystemTime,
) -> Result<PeerRow> {
    let others = live(db)?;
    let before = find(&others, id)?;
    key_is_free(db, &keys.public_key, Some(id), reserved, &others)?;
    db.execute(
        "UPDATE peers SET public_key = $1, psk = $2 WHERE id = $3",
        &values![keys.public_key.as_bytes(), keys.psk.as_ref().map(|sealed| sealed.0.as_slice()), id.as_str()],
    )?;
    // What other relays have belongs to the keys before.
    db.execute("DELETE FROM peer_seals WHERE peer = $1", &values![id.as_str()])?;
    let detail = match keys.public_key == before.public_key {
        true => format!("{id}, another pre-shared key"),
        false => format!("{id}, key {} in place of {}", keys.public_key, before.public_key),
    };
    audit(db, now, &by.0, keys.action, before.name.as_str(), &detail)?;
    Ok(PeerRow { public_key: keys.public_key, psk: keys.psk.clone(), ..before.clone() })
}

/// Deletes a peer with the services behind it. Returns their names.
pub(super) fn delete(db: &dyn Transaction, id: &StockPeerId, by: &Actor, now: SystemTime) -> Result<Vec<ServiceName>> {
    let peers = live(db)?;
    let peer = find(&peers, id)?;
    let gone: Vec<ServiceName> =
        services(db)?.into_iter().filter(|service| service.peer == *id).map(|service| service.name).collect();
    db.execute("DELETE FROM peer_services WHERE peer = $1", &values![id.as_str()])?;
    db.execute("DELETE FROM peer_seals WHERE peer = $1", &values![id.as_str()])?;
    db.execute("UPDATE peers SET revoked = $1, psk = NULL WHERE id = $2", &values![now, id.as_str()])?;
    let names: Vec<&str> = gone.iter().map(ServiceName::as_str).collect();
    let with = if names.is_empty() { String::new() } else { format!(", services {}", names.join(" ")) };
    audit(db, now, &by.0, "peer.delete", peer.name.as_str(), &format!("{id}, key {}{with}", peer.public_key))?;
    Ok(gone)
}

/// Defines a service behind a peer, or changes it. The name is the peer's from then on, as if it were granted exactly.
pub(super) fn set_service(db: &dyn Transaction, wanted: &PeerServiceRow, by: &Actor) -> Result<()> {
    let peers = live(db)?;
    let peer = find(&peers, &wanted.peer)?;
    let known = services(db)?;
    if let Some(owner) = owned(&peers, &known).remove(&wanted.name).filter(|owner| *owner != peer.name) {
        return Err(Rule::OwnedByPeer { service: wanted.name.clone(), owner }.into());
    }
    let tunnels = read::tunnels(db)?;
    if let Some(owner) = tunnels.iter().find(|tunnel| grants::grants_exactly(tunnel, &wanted.name)) {
        return Err(Rule::Owned { service: wanted.name.clone(), owner: owner.name.clone() }.into());
    }
    let managed = managed::all(db)?.into_iter().find(|row| row.name == wanted.name);
    if let Some(owner) = managed.and_then(|row| tunnels.iter().find(|tunnel| tunnel.id == row.tunnel)) {
        return Err(Rule::Owned { service: wanted.name.clone(), owner: owner.name.clone() }.into());
    }
    let others = known.iter().filter(|service| service.peer == wanted.peer && service.name != wanted.name);
    if others.count() >= MANAGED_AT_MOST {
        return Err(Rule::NoRoomForPeerServices(peer.name.clone()).into());
    }
    // A pattern takes only names that nobody else owns: what it took before is the peer's now.
    db.execute("DELETE FROM services WHERE name = $1", &values![wanted.name.as_str()])?;
    db.execute("DELETE FROM peer_services WHERE name = $1", &values![wanted.name.as_str()])?;
    db.execute(
        "INSERT INTO peer_services (name, peer, origin, host, health_path, ca, since) \
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
        &values![
            wanted.name.as_str(),
            wanted.peer.as_str(),
            wanted.origin.as_str(),
            wanted.host.as_deref(),
            wanted.health_path.as_deref(),
            wanted.ca.as_deref(),
            wanted.since,
        ],
    )?;
    let detail = format!("peer {}, {wanted}", peer.name);
    audit(db, wanted.since, &by.0, "service.set", wanted.name.as_str(), &detail)
}

/// Forgets a service behind a peer, if there is one of that name.
pub(super) fn delete_service(db: &dyn Transaction, name: &ServiceName) -> Result<bool> {
    Ok(db.execute("DELETE FROM peer_services WHERE name = $1", &values![name.as_str()])? > 0)
}

/// Writes what other relays open pre-shared keys with. Another may have done the same, and a peer may be gone.
pub(super) fn seal(db: &dyn Transaction, seals: &[PeerSealRow]) -> Result<()> {
    for seal in seals {
        let (peer, relay) = (seal.peer.as_str(), seal.relay.as_str());
        let both = db.query(
            "SELECT peers.id FROM peers, relays WHERE peers.id = $1 AND peers.psk IS NOT NULL AND relays.tag = $2",
            &values![peer, relay],
        )?;
        if !both.is_empty() {
            db.execute(
                "INSERT INTO peer_seals (peer, relay, sealed) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
                &values![peer, relay, seal.sealed.0.as_slice()],
            )?;
        }
    }
    Ok(())
}

/// Whether a key is a stock peer's.
pub(super) fn has_key(db: &dyn Transaction, key: &PublicKey) -> Result<bool> {
    let found = db.query("SELECT id FROM peers WHERE public_key = $1 AND revoked IS NULL", &values![key.as_bytes()])?;
    Ok(!found.is_empty())
}

pub(super) fn note_endpoint(
    db: &dyn Transaction,
    peer: &StockPeerId,
    relay: &str,
    remote: &str,
    local: &str,
) -> Result<u64> {
    db.execute_quietly("UPDATE peers SET last_endpoint = $1 WHERE id = $2", &values![remote, peer.as_str()])?;
    // Out of the table, so that one who is gone meanwhile is skipped.
    db.execute_quietly(
        "INSERT INTO peer_heard (peer, relay, remote, local) SELECT id, $1, $2, $3 FROM peers WHERE id = $4 \
         ON CONFLICT (peer, relay) DO UPDATE SET remote = excluded.remote, local = excluded.local",
        &values![relay, remote, local, peer.as_str()],
    )
}

/// Forgets peers past their tombstone's time.
pub(super) fn forget(db: &dyn Transaction, now: SystemTime) -> Result<()> {
    for peer in all(db)?.into_iter().filter(|peer| peer.is_forgotten(now)) {
        db.execute("DELETE FROM peers WHERE id = $1", &values![peer.id.as_str()])?;
    }
    Ok(())
}

fn live(db: &dyn Transaction) -> Result<Vec<PeerRow>> {
    Ok(all(db)?.into_iter().filter(|peer| peer.revoked.is_none()).collect())
}

fn find<'a>(peers: &'a [PeerRow], id: &StockPeerId) -> Result<&'a PeerRow> {
    peers.iter().find(|peer| peer.id == *id).ok_or_else(|| Rule::NoSuchPeer(id.clone()).into())
}

/// A key tells who somebody is: no two may have one, and nobody a relay's.
fn key_is_free(
    db: &dyn Transaction,
    key: &PublicKey,
    own: Option<&StockPeerId>,
    reserved: &Reserved,
    peers: &[PeerRow],
) -> Result<()> {
    let taken = |owner: String| Err(Rule::PeerKeyTaken { owner }.into());
    if let Some(other) = peers.iter().find(|peer| peer.public_key == *key && own != Some(&peer.id)) {
        return taken(format!("peer {}'s", other.name));
    }
    if reserved.keys.contains(key) || relays::relays(db)?.iter().any(|relay| relay.public_key == *key) {
        return taken("a relay's own: the other side's is expected".to_owned());
    }
    let bytes = || [Value::from(key.as_bytes())];
    for sql in
        ["SELECT id FROM connectors WHERE public_key = $1", "SELECT connector FROM next_keys WHERE public_key = $1"]
    {
        if let Some(id) = db.first(sql, &bytes(), |row| row.text::<String>(0))? {
            return taken(format!("connector {id}'s"));
        }
    }
    match db.first("SELECT id FROM tokens WHERE bootstrap_key = $1", &bytes(), |row| row.text::<String>(0))? {
        Some(id) => taken(format!("token {id}'s")),
        None => Ok(()),
    }
}

fn networks_are_free(wanted: &PeerRow, reserved: &Reserved, others: &[PeerRow]) -> Result<()> {
    for net in &wanted.allowed_ips {
        if overlap(net, &IpNet::V6(address::PREFIX)) {
            return Err(Rule::PeerOverlapsRelay { net: *net, own: IpNet::V6(address::PREFIX) }.into());
        }
        // All of IPv4 is a default route; the relay's own address goes before it as every interface's does.
        let own = IpNet::V4(reserved.inner_ipv4.trunc());
        if overlap(net, &own) && net.prefix_len() > 0 {
            return Err(Rule::PeerOverlapsRelay { net: *net, own }.into());
        }
        for other in others {
            if let Some(theirs) = other.inner_networks().into_iter().find(|theirs| overlap(net, theirs)) {
                return Err(Rule::PeerOverlap { net: *net, theirs, other: other.name.clone() }.into());
            }
        }
    }
    Ok(())
}

/// An address that nobody has, out of the relay's network; none where that is full, or all of IPv4 is somebody else's.
fn free_address(wanted: &PeerRow, reserved: &Reserved, others: &[PeerRow]) -> Option<Ipv4Addr> {
    let own = reserved.inner_ipv4.addr();
    let is_taken =
        |address: &Ipv4Addr| *address == own || others.iter().any(|other| other.inner_ipv4 == Some(*address));
    let address = reserved.inner_ipv4.hosts().find(|address| !is_taken(address))?;
    let has = |other: &PeerRow| other.allowed_ips.iter().any(|net| net.contains(&IpAddr::from(address)));
    (!others.iter().any(|other| other.id != wanted.id && has(other))).then_some(address)
}

fn overlap(one: &IpNet, other: &IpNet) -> bool {
    one.contains(other) || other.contains(one)
}

fn list(networks: &[IpNet]) -> String {
    networks.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

fn peer_row(row: &Row) -> Result<PeerRow> {
    let unfit = |error| Failure::Damaged(format!("a peer's allowed IPs: {error}"));
    let networks: String = row.text(3)?;
    let keepalive: Option<u16> = row.optional_number(7)?;
    Ok(PeerRow {
        id: row.text(0)?,
        name: row.text(1)?,
        public_key: PublicKey::from_bytes(row.array(2)?),
        allowed_ips: networks.split_whitespace().map(|net| net.parse().map_err(unfit)).collect::<Result<_>>()?,
        inner_ipv4: row.optional_text(4)?,
        endpoint: row.optional_text(5)?,
        psk: row.optional_bytes(6)?.map(Sealed),
        keepalive: keepalive.and_then(std::num::NonZeroU16::new),
        dns: row.optional_text(8)?,
        created: row.time(9)?,
        heard: Vec::new(),
        last_endpoint: row.optional_text(10)?,
        last_handshake: row.optional_time(11)?,
        revoked: row.optional_time(12)?,
    })
}

fn service_row(row: &Row) -> Result<PeerServiceRow> {
    Ok(PeerServiceRow {
        name: row.text(0)?,
        peer: row.text(1)?,
        origin: row.text(2)?,
        host: row.optional_text(3)?,
        health_path: row.optional_text(4)?,
        ca: row.optional_text(5)?,
        since: row.time(6)?,
    })
}
