//! Culvert itself: the real binaries, one on each side.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use culvert_lab::{Connector, Relay, wait};

use super::{Peer, Running, Target};
use crate::site::{FETCH, GATEWAY, Site, UPLOAD};

pub(super) async fn start(site: &Site) -> Result<Peer> {
    let mut relay = Relay::within(&site.gateway, GATEWAY.parse()?)?;
    // Its rivals write no access log either.
    relay.env.push(("CULVERT_RELAY_HTTP_ACCESS_LOG".to_owned(), "off".to_owned()));
    relay.launch()?;
    let (admin, gateway) = (relay.admin, &site.gateway);
    let ready = gateway.within(move || answers(admin, "/readyz")).await;
    ready.with_context(|| relay.output())?;
    let token = relay.tunnel("bench", &["fetch", "upload"]).await?;
    let services = [("fetch", FETCH), ("upload", UPLOAD)].map(|(name, port)| format!("{name}=http://127.0.0.1:{port}"));
    let mut connector = Connector::within(&site.private, &token, &[&services[0], &services[1]])?;
    connector.launch()?;
    for path in ["/readyz?service=fetch", "/readyz?service=upload"] {
        let up = gateway.within(move || answers(admin, path)).await;
        up.with_context(|| format!("{}\n{}", relay.output(), connector.output()))?;
    }
    let target = |host: &str| Target { address: relay.http, host: host.to_owned() };
    let targets = [target("fetch"), target("upload"), target("fetch")];
    let running = Running::Culvert { relay: Box::new(relay), connector: Box::new(connector) };
    Ok(Peer::of("culvert", targets, running))
}

async fn answers(admin: SocketAddr, path: &'static str) -> Result<()> {
    let what = format!("{path} of culvert");
    wait::until(&what, Duration::from_secs(10), || async {
        let answer = culvert_lab::client::get(admin, &admin.to_string(), path).await.ok()?;
        (answer.status == 200).then_some(())
    })
    .await
}
