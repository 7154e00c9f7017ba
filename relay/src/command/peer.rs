//! `peer add|list|show|config|delete`.
//!
//! Must never keep a private key, nor say a pre-shared one that it did not make just now.

use std::net::IpAddr;
use std::num::NonZeroU16;

use culvert_model::id::StockPeerId;
use culvert_model::key::{PrivateKey, Psk, PublicKey};
use culvert_model::name::Label;
use culvert_model::token::Endpoint;
use culvert_ops::time::rfc3339;
use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Value, json};

use super::peer_config::{self, Secrets};
use super::table::{bytes, facts, or_dash, relative, table};
use super::view::View;
use super::{Change, CommandError, Facts, Outcome};
use crate::identity::SealedFor;
use crate::registry::{Actor, PeerKeys, PeerRow, Registry, Reserved};
use crate::relays;

/// A peer as it is to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PeerWanted {
    /// Its name.
    pub(crate) name: Label,
    /// Its key; none: a pair is made, and the private half answered.
    pub(crate) public_key: Option<PublicKey>,
    /// The networks behind it.
    pub(crate) allowed_ips: Vec<IpNet>,
    /// Where it is dialled, `HOST:PORT`.
    pub(crate) endpoint: Option<String>,
    /// Its pre-shared key.
    pub(crate) psk: Option<GivenPsk>,
    /// Seconds.
    pub(crate) keepalive: Option<NonZeroU16>,
    /// A resolver inside its network.
    pub(crate) dns: Option<IpAddr>,
}

/// How the other side's configuration is wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PeerConfigWanted {
    /// With a new private key.
    pub(crate) generate_key: bool,
    /// With a new pre-shared key.
    pub(crate) generate_psk: bool,
    /// Where it dials, instead of the configured endpoints.
    pub(crate) endpoint: Option<String>,
}

/// A pre-shared key that the operator hands over: it travels from the command line to the relay, and nowhere else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GivenPsk(pub(crate) Psk);

pub(super) async fn add(
    wanted: PeerWanted,
    view: &View,
    registry: &dyn Registry,
    known: &Facts<'_>,
    by: Actor,
) -> Result<Outcome, CommandError> {
    let (allowed_ips, mut notes) = tidy(wanted.allowed_ips)?;
    if let Some(dns) = wanted.dns
        && !allowed_ips.iter().any(|net| net.contains(&dns))
    {
        let message = format!("the resolver {dns} is not in the allowed IPs {}", list(&allowed_ips));
        return Err(CommandError::failed(message).hint("--dns names a resolver inside the peer's network"));
    }
    let endpoint = wanted.endpoint.as_deref().map(endpoint).transpose()?;
    let made = wanted.public_key.is_none().then(PrivateKey::generate);
    let public_key = match (wanted.public_key, &made) {
        (Some(key), _) => key,
        (None, Some(made)) => made.public_key(),
        (None, None) => return Err(CommandError::failed("a public key is needed")),
    };
    let psk = wanted.psk.map(|GivenPsk(psk)| psk);
    let peer = PeerRow {
        id: StockPeerId::new(),
        name: wanted.name,
        public_key,
        allowed_ips,
        inner_ipv4: None,
        endpoint,
        psk: psk.as_ref().map(|psk| known.identity.seal(psk, SealedFor::Peer(&public_key))),
        keepalive: wanted.keepalive,
        dns: wanted.dns,
        created: view.now,
        heard: Vec::new(),
        last_endpoint: None,
        last_handshake: None,
        revoked: None,
    };
    let secrets = Secrets { private_key: made, psk };
    if secrets.private_key.is_some() {
        // A key that is made and cannot be shown would be lost.
        peer_config::text(&peer, None, &secrets, known)?;
    }
    let peer = registry.add_peer(peer, reserved(view, known), by).await?;
    notes.push(format!("peer {} added: {}", peer.name, list(&peer.allowed_ips)));
    let (mut json, mut text) = (view.peer_json(&peer), String::new());
    if secrets.private_key.is_some() {
        text = peer_config::text(&peer, None, &secrets, known)?;
        json["config"] = json!(text);
        notes.push("its private key is shown this once: put what is printed on the other side".to_owned());
    } else {
        notes.push(format!("`peer config {}` prints what the other side needs", peer.name));
    }
    notes.extend(one_of_several(view, known));
    Ok(Outcome { json, text, notes, changes: vec![Change::PeerAdded(peer.id)] })
}

pub(super) fn show_all(view: &View) -> Outcome {
    let row = |peer: &PeerRow| {
        let live = view.live_peer(&peer.id);
        [
            peer.name.to_string(),
            view.peer_state(peer).to_owned(),
            list(&peer.allowed_ips),
            or_dash(view.peer_endpoint(peer)),
            or_dash(view.peer_last_handshake(peer).map(|at| relative(at, view.now))),
            or_dash(live.map(|live| format!("{}/{}", bytes(live.rx_bytes), bytes(live.tx_bytes)))),
            peer.public_key.to_string(),
            peer.id.to_string(),
        ]
    };
    let rows: Vec<_> = view.peers().map(row).collect();
    let json = view.peers().map(|peer| view.peer_json(peer)).collect();
    let heading = ["PEER", "STATE", "ALLOWED IPS", "ENDPOINT", "HANDSHAKE", "RX/TX", "PUBLIC KEY", "ID"];
    let mut outcome = Outcome::listing(json, table(heading, &rows), || {
        "no peer yet: `peer add NAME --public-key KEY --allowed-ips CIDR` makes one".to_owned()
    });
    outcome.notes.extend(view.tun_alarm());
    outcome
}

pub(super) fn show(named: &str, view: &View) -> Result<Outcome, CommandError> {
    let peer = view.peer(named)?;
    let live = view.live_peer(&peer.id);
    let services: Vec<String> =
        view.services_of(&peer.id).map(|service| format!("{} at {service}", service.name)).collect();
    let own: Vec<String> =
        peer.inner_ipv4.iter().map(ToString::to_string).chain([peer.inner_ipv6().to_string()]).collect();
    let mut notes: Vec<String> = view.tun_alarm().into_iter().collect();
    notes.extend(live.into_iter().flat_map(|live| live.notes.iter().cloned()));
    let mut pairs = vec![
        ("id", peer.id.to_string()),
        ("name", peer.name.to_string()),
        ("state", view.peer_state(peer).to_owned()),
        ("public key", peer.public_key.to_string()),
        ("pre-shared key", if peer.psk.is_some() { "yes" } else { "no" }.to_owned()),
        ("allowed IPs", list(&peer.allowed_ips)),
        ("inner addresses", own.join(" ")),
        ("endpoint", or_dash(view.peer_endpoint(peer))),
    ];
    pairs.extend(peer.endpoint.as_ref().map(|endpoint| ("dialled at", endpoint.to_string())));
    pairs.extend(peer.keepalive.map(|seconds| ("keepalive", format!("{seconds}s"))));
    pairs.extend(peer.dns.map(|dns| ("resolver", dns.to_string())));
    pairs.push(("last handshake", or_dash(view.peer_last_handshake(peer).map(|at| relative(at, view.now)))));
    pairs.push(("added", relative(peer.created, view.now)));
    pairs.extend(live.map(|live| ("received", format!("{} bytes", live.rx_bytes))));
    pairs.extend(live.map(|live| ("sent", format!("{} bytes", live.tx_bytes))));
    pairs.push(("services", if services.is_empty() { "-".to_owned() } else { services.join("\n") }));
    pairs.push(("notes", notes.join("\n")));
    Ok(Outcome { json: view.peer_json(peer), text: facts(&pairs), ..Outcome::default() })
}

pub(super) async fn config(
    named: &str,
    wanted: PeerConfigWanted,
    view: &View,
    registry: &dyn Registry,
    known: &Facts<'_>,
    by: Actor,
) -> Result<Outcome, CommandError> {
    let before = view.peer(named)?;
    let at = wanted.endpoint.as_deref().map(endpoint).transpose()?;
    let secrets = Secrets {
        private_key: wanted.generate_key.then(PrivateKey::generate),
        psk: wanted.generate_psk.then(Psk::generate),
    };
    // What cannot be shown must not be changed.
    peer_config::text(before, at.as_ref(), &secrets, known)?;
    let (mut peer, mut notes, mut changes) = (before.clone(), Vec::new(), Vec::new());
    if wanted.generate_key || wanted.generate_psk {
        peer = set_keys(before, &secrets, view, registry, known, by).await?;
        changes.push(Change::PeerChanged(peer.id.clone()));
        if wanted.generate_key {
            notes.push(format!("peer {} has a new key; its private half is shown this once", peer.name));
        }
        if wanted.generate_psk {
            notes.push(format!("peer {} has a new pre-shared key, which is shown this once", peer.name));
        }
    } else {
        notes.push("put the other side's private key in; --generate-key makes a pair".to_owned());
    }
    if peer.psk.is_some() && secrets.psk.is_none() {
        notes.push("put its pre-shared key in too; --generate-psk makes another".to_owned());
    }
    notes.extend(one_of_several(view, known));
    let text = peer_config::text(&peer, at.as_ref(), &secrets, known)?;
    let json = json!({ "id": peer.id, "name": peer.name, "public_key": peer.public_key, "config": text });
    Ok(Outcome { json, text, notes, changes })
}

pub(super) async fn delete(
    named: &str,
    view: &View,
    registry: &dyn Registry,
    by: Actor,
) -> Result<Outcome, CommandError> {
    let peer = view.peer(named)?;
    let services = registry.delete_peer(peer.id.clone(), by, view.now).await?;
    let after = PeerRow { revoked: Some(view.now), ..peer.clone() };
    let names: Vec<&str> = services.iter().map(|name| name.as_str()).collect();
    let mut notes = vec![format!("peer {} deleted: its key is refused from now on", peer.name)];
    notes.extend((!names.is_empty()).then(|| format!("services behind it are forgotten: {}", names.join(" "))));
    let (json, text) = (view.peer_json(&after), String::new());
    Ok(Outcome { json, text, notes, changes: vec![Change::PeerDeleted(peer.id.clone())] })
}

/// Makes the new keys the peer's; what it keeps of the old ones is sealed for the new public key.
async fn set_keys(
    before: &PeerRow,
    made: &Secrets,
    view: &View,
    registry: &dyn Registry,
    known: &Facts<'_>,
    by: Actor,
) -> Result<PeerRow, CommandError> {
    let public_key = made.private_key.as_ref().map_or(before.public_key, PrivateKey::public_key);
    let psk = match &made.psk {
        Some(psk) => Some(psk.clone()),
        None => relays::peer_psk(before, &view.snapshot.peer_seals, known.identity).map_err(|_| {
            CommandError::failed(format!("the pre-shared key of peer {} is another relay's", before.name))
                .hint("--generate-psk makes a new one")
        })?,
    };
    let keys = PeerKeys {
        public_key,
        psk: psk.map(|psk| known.identity.seal(&psk, SealedFor::Peer(&public_key))),
        action: if made.private_key.is_some() { "peer.key" } else { "peer.psk" },
    };
    Ok(registry.set_peer_keys(before.id.clone(), keys, reserved(view, known), by, view.now).await?)
}

/// Every relay knows the peer; the other side has one tunnel, and what it leads to has one address.
fn one_of_several(view: &View, known: &Facts<'_>) -> Option<String> {
    let own = known.identity.relay_tag();
    let others = view.snapshot.relays.iter().filter(|relay| relay.tag != own).count();
    (others > 0).then(|| format!("the other side speaks to this relay alone: at {others} others its services are down"))
}

fn reserved(view: &View, known: &Facts<'_>) -> Reserved {
    let previous = known.identity.rotation().previous(view.now).map(|previous| previous.public_key);
    Reserved { inner_ipv4: known.inner_ipv4, keys: previous.into_iter().chain([known.public_key()]).collect() }
}

/// Networks as they are meant: without host bits, and none inside another.
fn tidy(typed: Vec<IpNet>) -> Result<(Vec<IpNet>, Vec<String>), CommandError> {
    let (mut nets, mut notes): (Vec<IpNet>, Vec<String>) = (Vec::new(), Vec::new());
    for net in typed {
        let meant = net.trunc();
        if meant != net {
            notes.push(format!("allowed IPs {net} are taken as {meant}"));
        }
        if is_no_place(&meant) {
            let message = format!("allowed IPs {meant} cannot lie behind a peer: such addresses mean the host itself");
            return Err(CommandError::failed(message).hint("name the networks behind the peer, as 10.20.0.0/16"));
        }
        if let Some(wider) = nets.iter().find(|other| other.contains(&meant)) {
            if *wider != meant {
                notes.push(format!("allowed IPs {meant} are part of {wider}"));
            }
            continue;
        }
        nets.retain(|other| !meant.contains(other));
        nets.push(meant);
    }
    Ok((nets, notes))
}

/// Loopback, multicast, and what is valid on one link alone.
fn is_no_place(net: &IpNet) -> bool {
    match net {
        IpNet::V4(net) => net.addr().is_loopback() || net.addr().is_multicast(),
        IpNet::V6(net) => {
            let address = net.addr();
            net.prefix_len() > 0 && (address.is_loopback() || address.is_multicast() || address.is_unicast_link_local())
        }
    }
}

fn endpoint(text: &str) -> Result<Endpoint, CommandError> {
    text.parse().map_err(|error| CommandError::failed(format!("{error}")))
}

pub(super) fn list(nets: &[IpNet]) -> String {
    nets.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

impl View {
    pub(super) fn peer_json(&self, peer: &PeerRow) -> Value {
        let live = self.live_peer(&peer.id).filter(|_| peer.revoked.is_none());
        let services: Vec<_> = self.services_of(&peer.id).map(|service| &service.name).collect();
        json!({
            "id": peer.id,
            "name": peer.name,
            "public_key": peer.public_key,
            "preshared_key": peer.psk.is_some(),
            "allowed_ips": peer.allowed_ips,
            "inner_ipv4": peer.inner_ipv4,
            "inner_address": peer.inner_ipv6(),
            "endpoint": self.peer_endpoint(peer),
            "configured_endpoint": peer.endpoint.as_ref().map(ToString::to_string),
            "persistent_keepalive_seconds": peer.keepalive,
            "dns": peer.dns,
            "last_handshake": self.peer_last_handshake(peer).map(rfc3339),
            "state": self.peer_state(peer),
            "services": services,
            "created": rfc3339(peer.created),
            "rx_bytes": live.map(|live| live.rx_bytes),
            "tx_bytes": live.map(|live| live.tx_bytes),
            "notes": live.map(|live| live.notes.as_slice()).unwrap_or_default(),
        })
    }
}

impl Serialize for GivenPsk {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0.to_base64())
    }
}

impl<'de> Deserialize<'de> for GivenPsk {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = zeroize::Zeroizing::new(String::deserialize(deserializer)?);
        text.parse().map(Self).map_err(serde::de::Error::custom)
    }
}
