//! `service set --peer`: services behind stock peers.
//!
//! Must never take an origin that the peer could not reach by what is known here: its networks and its resolver.

use std::net::IpAddr;

use culvert_model::name::ServiceName;
use culvert_ops::time::rfc3339;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::{Value, json};

use super::peer::list;
use super::view::View;
use super::{Change, CommandError, Outcome, service};
use crate::registry::{Actor, PeerRow, PeerServiceRow, Registry};

/// Authorities are a handful of certificates.
const CA_BYTES: usize = 64 * 1024;

/// A service as it is to be behind a peer.
pub(super) struct Wanted {
    pub(super) name: ServiceName,
    pub(super) peer: String,
    pub(super) origin: String,
    pub(super) host: Option<String>,
    pub(super) health_path: Option<String>,
    pub(super) ca: Option<String>,
}

/// Where an origin is.
enum Place {
    Address(IpAddr),
    Name(String),
    /// Not on a network.
    Here,
}

pub(super) async fn set(
    wanted: Wanted,
    view: &View,
    registry: &dyn Registry,
    by: Actor,
) -> Result<Outcome, CommandError> {
    let peer = view.peer(&wanted.peer)?;
    service::fits(&wanted.origin, wanted.host.as_deref(), wanted.health_path.as_deref())?;
    reachable(&wanted.origin, peer)?;
    if let Some(pem) = &wanted.ca {
        authorities(pem, &wanted.origin)?;
    }
    let Wanted { name, origin, host, health_path, ca, .. } = wanted;
    let row =
        PeerServiceRow { name: name.clone(), peer: peer.id.clone(), origin, host, health_path, ca, since: view.now };
    registry.set_peer_service(row.clone(), by).await?;
    let mut notes = vec![format!("service {name} behind peer {} is at {row}", peer.name)];
    if view.peer_state(peer) != "up" {
        notes.push(format!("peer {} is not up now: `peer show {}` says more", peer.name, peer.name));
    }
    Ok(Outcome { json: json(view, &row), text: String::new(), notes, changes: vec![Change::ServiceSet(name)] })
}

/// A definition, as `service show` tells it.
pub(super) fn json(view: &View, row: &PeerServiceRow) -> Value {
    json!({
        "name": row.name,
        "peer": view.peer_name(&row.peer),
        "origin": row.origin,
        "host": row.host,
        "health_path": row.health_path,
        "own_authorities": row.ca.is_some(),
        "proof": view.proof(&row.name),
        "since": rfc3339(row.since),
    })
}

fn reachable(origin: &str, peer: &PeerRow) -> Result<(), CommandError> {
    let within = format!("an address in {}", list(&peer.allowed_ips));
    match place(origin) {
        Place::Address(address) if peer.has(address) => Ok(()),
        Place::Address(address) => {
            let message =
                format!("{address} is not in the allowed IPs of peer {}: {}", peer.name, list(&peer.allowed_ips));
            Err(CommandError::failed(message).hint(format!("name {within}")))
        }
        Place::Name(_) if peer.dns.is_some() => Ok(()),
        Place::Name(name) => {
            let message =
                format!("{name} is a name, and no resolver inside the network of peer {} is known", peer.name);
            Err(CommandError::failed(message)
                .hint(format!("name {within}, or add the peer anew with --dns ADDRESS, a resolver there")))
        }
        Place::Here => {
            let message = format!("{origin} is a socket of one machine, and behind a peer there is a network");
            Err(CommandError::failed(message).hint(format!("http://, https://, h2c:// or tcp:// and {within}")))
        }
    }
}

fn place(origin: &str) -> Place {
    let Some((_, rest)) = origin.split_once("://") else { return Place::Here };
    let authority = rest.trim_end_matches('/').parse::<http::uri::Authority>();
    let host = authority.map(|authority| authority.host().to_owned()).unwrap_or_default();
    match host.trim_start_matches('[').trim_end_matches(']').parse() {
        Ok(address) => Place::Address(address),
        Err(_) => Place::Name(host),
    }
}

fn authorities(pem: &str, origin: &str) -> Result<(), CommandError> {
    if !origin.to_ascii_lowercase().starts_with("https:") {
        return Err(CommandError::failed(format!("{origin} has no certificate that --ca could verify"))
            .hint("leave --ca out, or name an https:// origin"));
    }
    let found: Result<Vec<CertificateDer<'_>>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    match found {
        Ok(all) if !all.is_empty() && pem.len() <= CA_BYTES => Ok(()),
        Ok(all) if !all.is_empty() => Err(CommandError::failed("--ca names more than 64 KiB of certificates")),
        Ok(_) | Err(_) => Err(CommandError::failed("--ca names a file without a certificate").hint("PEM is expected")),
    }
}
