//! The other side's configuration of a stock peer, as wg-quick reads it.
//!
//! Must never hold a secret that was not made for it just now. What the other side has to fill in is a comment, so that a
//! file that was not touched fails by name and not by a wrong key.

use std::fmt::Write as _;

use culvert_model::address::RELAY_INNER;
use culvert_model::key::{PrivateKey, Psk};
use culvert_model::token::Endpoint;

use super::{CommandError, Facts};
use crate::registry::PeerRow;

/// What keeps the way through a NAT open, as everywhere with WireGuard.
const KEEPALIVE: u16 = 25;

/// What was made for this one file.
pub(super) struct Secrets {
    pub(super) private_key: Option<PrivateKey>,
    pub(super) psk: Option<Psk>,
}

/// The file.
///
/// # Errors
/// 78: neither does the relay say where it is dialled, nor does it dial this peer.
pub(super) fn text(
    peer: &PeerRow,
    at: Option<&Endpoint>,
    secrets: &Secrets,
    known: &Facts<'_>,
) -> Result<String, CommandError> {
    let endpoints: Vec<&Endpoint> = at.map_or_else(|| known.endpoints.iter().collect(), |at| vec![at]);
    if endpoints.is_empty() && peer.endpoint.is_none() {
        return Err(CommandError::config("nothing tells where the other side dials this relay").hint(
            "set endpoints = [\"HOST:PORT\"] in [wireguard], or --endpoint HOST:PORT, or have the relay dial: \
             `peer add --endpoint`",
        ));
    }
    let mut text = format!("# {}: the other side of a Culvert relay. As /etc/wireguard/culvert.conf: ", peer.name);
    text.push_str("`wg-quick up culvert`\n[Interface]\n");
    match &secrets.private_key {
        Some(key) => line(&mut text, "PrivateKey", key.to_base64().as_str()),
        None => line(&mut text, "# PrivateKey", &format!("the private key of {}", peer.public_key)),
    }
    let ipv4 = peer.inner_ipv4.map(|address| format!("{address}/32, "));
    line(&mut text, "Address", &format!("{}{}/128", ipv4.as_deref().unwrap_or_default(), peer.inner_ipv6()));
    line(&mut text, "MTU", &known.peer_mtu.to_string());
    let port = peer.endpoint.as_ref().map(|endpoint| endpoint.port());
    port.iter().for_each(|port| line(&mut text, "ListenPort", &port.to_string()));
    text.push_str("\n[Peer]\n");
    line(&mut text, "PublicKey", &known.public_key().to_string());
    match (&secrets.psk, &peer.psk) {
        (Some(psk), _) => line(&mut text, "PresharedKey", psk.to_base64().as_str()),
        (None, Some(_)) => line(&mut text, "# PresharedKey", "the one that the relay was given for this peer"),
        (None, None) => {}
    }
    for (place, endpoint) in endpoints.iter().enumerate() {
        let name = if place == 0 { "Endpoint" } else { "# or: Endpoint" };
        line(&mut text, name, &endpoint.to_string());
    }
    let ipv4 = peer.inner_ipv4.map(|_| format!("{}/32, ", known.inner_ipv4.addr()));
    line(&mut text, "AllowedIPs", &format!("{}{RELAY_INNER}/128", ipv4.as_deref().unwrap_or_default()));
    line(&mut text, "PersistentKeepalive", &KEEPALIVE.to_string());
    Ok(text)
}

fn line(text: &mut String, name: &str, value: &str) {
    // Writing into a String cannot fail.
    let _ = writeln!(text, "{name} = {value}");
}
