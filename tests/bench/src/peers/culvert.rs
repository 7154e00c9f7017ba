//! Culvert itself: the real binaries, one on each side; plain, or with a proof to the origin on every request.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use culvert_lab::{Connector, Relay, branch, wait};

use super::{Peer, Ports, Running, Target};
use crate::site::{FETCH, GATEWAY, Site, UPLOAD};

/// What each name after `culvert` adds to a service's settings.
const PROOFS: [(&str, &str); 6] = [
    ("culvert", ""),
    ("culvert+header", "[service.headers]\nx-origin-secret = \"correct-horse-battery-staple\"\n"),
    ("culvert+jwt", "[service.auth]\ntype = \"jwt\"\naudience = \"bench\"\nissuer = \"https://id.example\"\n"),
    (
        "culvert+jwt-bound",
        "[service.auth]\ntype = \"jwt\"\naudience = \"bench\"\nissuer = \"https://id.example\"\nbind = \"request\"\n",
    ),
    (
        "culvert+http-signature",
        "[service.auth]\ntype = \"http-signature\"\nalgorithm = \"hmac-sha256\"\nkeyid = \"bench\"\n\
         key = \"correct-horse-battery-staple-correct-horse\"\n",
    ),
    (
        "culvert+aws-sigv4",
        "[service.auth]\ntype = \"aws-sigv4\"\nservice = \"execute-api\"\nregion = \"eu-central-1\"\n\
         access_key_id = \"AKIDEXAMPLE\"\nsecret_access_key = \"correct-horse-battery-staple\"\npayload = \"unsigned\"\n",
    ),
];

/// Names of a relay on so many threads. Two connectors each, or one of them would be the limit.
const SHARDS: [(&str, u8); 3] = [("culvert-shards-1", 1), ("culvert-shards-2", 2), ("culvert-shards-4", 4)];

/// Whether a peer of that name is Culvert.
pub(super) fn is_named(name: &str) -> bool {
    PROOFS.iter().any(|(own, _)| *own == name) || shards(name).is_some()
}

fn shards(name: &str) -> Option<(usize, u8)> {
    let place = SHARDS.iter().position(|(own, _)| *own == name)?;
    Some((place, SHARDS.get(place)?.1))
}

pub(super) async fn start(name: &str, site: &Site) -> Result<Peer> {
    let place = PROOFS.iter().position(|(own, _)| *own == name).unwrap_or(0);
    let proof = PROOFS.get(place).map_or("", |(_, settings)| *settings);
    let shards = shards(name);
    let ports = match shards {
        Some((place, _)) => Ports(8200 + 4 * u16::try_from(place)?),
        None => Ports(8170 + 3 * u16::try_from(place)?),
    };
    let relay = relay_at(site, &ports, shards.map(|(_, shards)| shards)).await?;
    let (admin, gateway) = (relay.admin, &site.gateway);
    let replicas: u16 = if shards.is_some() { 2 } else { 1 };
    let token = relay.tunnel_with("bench", &["fetch", "upload"], &["--uses", &replicas.to_string()]).await?;
    let services = [("fetch", FETCH), ("upload", UPLOAD)]
        .map(|(name, port)| format!("[[service]]\nname = \"{name}\"\norigin = \"http://127.0.0.1:{port}\"\n{proof}"));
    let mut connectors = Vec::new();
    for replica in 0..replicas {
        let mut connector = Connector::within(&site.private, &token, &[])?;
        connector.admin = ports.local(2 + replica)?.address;
        connector.config(&services.concat())?;
        connector.launch()?;
        connectors.push(connector);
    }
    for path in ["/readyz?service=fetch", "/readyz?service=upload"] {
        let up = gateway.within(move || all_up(admin, path, u64::from(replicas))).await;
        up.with_context(|| relay.output())?;
    }
    let target = |host: &str| Target { address: relay.http, host: host.to_owned() };
    let targets = [target("fetch"), target("upload"), target("fetch")];
    let running = Running::Culvert { relay: Box::new(relay), connectors };
    Ok(Peer::of(name, targets, running))
}

/// The relay without a connector: a stock WireGuard stands beside the origin.
pub(super) async fn toward_a_stock_peer(name: &str, site: &Site, ports: &Ports) -> Result<Peer> {
    const NETWORK: &str = "10.98.60.0/24";
    const ORIGIN: &str = "10.98.60.2";
    site.private.ip(&["addr", "add", &format!("{ORIGIN}/32"), "dev", "lo"])?;
    let relay = relay_at(site, ports, None).await?;
    let (admin, gateway) = (relay.admin, &site.gateway);
    let add = relay.cli(&["peer", "add", "bench", "--generate-key", "--allowed-ips", NETWORK]).await?;
    ensure!(add.status == 0, "{add:?}");
    for (service, port) in [("fetch", FETCH), ("upload", UPLOAD)] {
        let origin = format!("http://{ORIGIN}:{port}");
        let set = relay.cli(&["service", "set", service, "--peer", "bench", "--origin", &origin]).await?;
        ensure!(set.status == 0, "{set:?}");
    }
    let interface = format!("pe{}", std::process::id() % 1_000_000);
    let router = branch::router(site.private.name(), &interface, &add.stdout, relay.directory()).await?;
    for path in ["/readyz?service=fetch", "/readyz?service=upload"] {
        let up = gateway.within(move || answers(admin, path)).await;
        up.with_context(|| relay.output())?;
    }
    let target = |host: &str| Target { address: relay.http, host: host.to_owned() };
    let targets = [target("fetch"), target("upload"), target("fetch")];
    Ok(Peer::of(name, targets, Running::Branch { relay: Box::new(relay), router: Box::new(router) }))
}

/// A relay beside others, whose front is at the first of these ports and whose admin is at the second.
async fn relay_at(site: &Site, ports: &Ports, shards: Option<u8>) -> Result<Relay> {
    let mut relay = Relay::within(&site.gateway, GATEWAY.parse()?)?;
    relay.http = ports.local(0)?.address;
    relay.admin = ports.local(1)?.address;
    relay.listen_at(SocketAddr::new(GATEWAY.parse()?, 23_000 + ports.0));
    // Its rivals write no access log either.
    relay.env.push(("CULVERT_RELAY_HTTP_ACCESS_LOG".to_owned(), "off".to_owned()));
    relay.env.extend(shards.map(|shards| ("CULVERT_RELAY_SHARDS".to_owned(), shards.to_string())));
    relay.launch()?;
    let admin = relay.admin;
    let ready = site.gateway.within(move || answers(admin, "/readyz")).await;
    ready.with_context(|| relay.output())?;
    Ok(relay)
}

async fn answers(admin: SocketAddr, path: &'static str) -> Result<()> {
    let what = format!("{path} of culvert");
    wait::until(&what, Duration::from_secs(10), || async {
        let answer = culvert_lab::client::get(admin, &admin.to_string(), path).await.ok()?;
        (answer.status == 200).then_some(())
    })
    .await
}

/// Waits until every replica of the service that `path` asks for is up.
async fn all_up(admin: SocketAddr, path: &'static str, replicas: u64) -> Result<()> {
    let service = path.rsplit('=').next().unwrap_or_default();
    let pointer = format!("/services/{service}/up");
    wait::until(&format!("{path} of culvert"), Duration::from_secs(10), || async {
        let answer = culvert_lab::client::get(admin, &admin.to_string(), path).await.ok()?;
        let up = answer.json().ok()?.pointer(&pointer)?.as_u64()?;
        (answer.status == 200 && up == replicas).then_some(())
    })
    .await
}
