//! Caddy as `deploy/gateways/Caddyfile` has it. Release 2.6 answers an HTTP/1.1 caller only after the whole upload, which
//! no setting of it changes: that is not tried here.

use anyhow::Result;
use culvert_lab::gateway::{Gateway, shipped};
use culvert_lab::skip::{self, Need};

use super::{Behind, Site};

async fn site(test: &str) -> Result<Option<Site>> {
    if skip::unless(test, &[Need::Program("caddy")]) {
        return Ok(None);
    }
    let behind = Behind::new().await?;
    let listen = behind.listen;
    let [relay, admin] = behind.addresses();
    let here = format!(":{} {{\n\tbind {}\n", listen.port(), listen.ip());
    let changes = [(":80 {\n", here.as_str()), (relay.0, &relay.1), (admin.0, &admin.1)];
    let config = shipped("Caddyfile", &changes)?;
    let gateway = Gateway::caddy(listen, &config, &[("CULVERT_GATEWAY", &behind.identity)]).await?;
    Ok(Some(Site::new(behind, gateway)))
}

#[tokio::test]
async fn the_origin_learns_who_called_from_the_gateway() -> Result<()> {
    match site("caddy: the origin learns who called from the gateway").await? {
        Some(site) => super::the_origin_learns_who_called_from_the_gateway(&site).await,
        None => Ok(()),
    }
}

#[tokio::test]
async fn a_caller_takes_nothing_away_with_connection() -> Result<()> {
    match site("caddy: a caller takes nothing away with connection").await? {
        Some(site) => super::a_caller_takes_nothing_away_with_connection(&site).await,
        None => Ok(()),
    }
}

#[tokio::test]
async fn no_caller_reaches_another_service() -> Result<()> {
    match site("caddy: no caller reaches another service").await? {
        Some(site) => super::no_caller_reaches_another_service(&site).await,
        None => Ok(()),
    }
}

#[tokio::test]
async fn a_websocket_passes() -> Result<()> {
    match site("caddy: a websocket passes").await? {
        Some(site) => super::a_websocket_passes(&site).await,
        None => Ok(()),
    }
}

#[tokio::test]
async fn events_arrive_one_by_one() -> Result<()> {
    match site("caddy: events arrive one by one").await? {
        Some(site) => super::events_arrive_one_by_one(&site).await,
        None => Ok(()),
    }
}

#[tokio::test]
async fn large_bodies_pass_whole() -> Result<()> {
    match site("caddy: large bodies pass whole").await? {
        Some(site) => super::large_bodies_pass_whole(&site).await,
        None => Ok(()),
    }
}

#[tokio::test]
async fn a_failure_keeps_its_name() -> Result<()> {
    match site("caddy: a failure keeps its name").await? {
        Some(mut site) => super::a_failure_keeps_its_name(&mut site).await,
        None => Ok(()),
    }
}
