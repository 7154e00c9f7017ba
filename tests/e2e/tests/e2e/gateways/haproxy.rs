//! HAProxy as `deploy/gateways/haproxy.cfg` has it.

use anyhow::{Result, ensure};
use culvert_lab::gateway::{Gateway, shipped};
use culvert_lab::skip::{self, Need};

use super::{Behind, Site};

async fn site(test: &str) -> Result<Option<Site>> {
    started(test, false).await
}

async fn started(test: &str, over_tls: bool) -> Result<Option<Site>> {
    if over_tls && skip::unless(test, &[Need::Program("openssl")]) {
        return Ok(None);
    }
    if skip::unless(test, &[Need::Program("haproxy")]) {
        return Ok(None);
    }
    let behind = Behind::new().await?;
    let listen = behind.listen;
    let [relay, admin] = behind.addresses();
    let changes = [("bind :80\n", &*format!("bind {listen}\n")), (relay.0, &relay.1), (admin.0, &admin.1)];
    let config = shipped("haproxy.cfg", &changes)?;
    let config = match &behind.over_tls {
        Some((at, certificate)) if over_tls => {
            // As the file's own words say.
            let words = "verify required sni str(relay.example.com) verifyhost relay.example.com no-check-ssl";
            let server = format!("server relay {at} ssl {words} ca-file {}", certificate.cert.display());
            config.replace(&format!("server relay {}", behind.relay.http), &server)
        }
        _ => config,
    };
    ensure!(config.contains(":31443 ssl ") == over_tls, "the file and this test have parted");
    let gateway = Gateway::haproxy(listen, &config, &[("CULVERT_GATEWAY", &behind.identity)]).await?;
    Ok(Some(Site::new(behind, gateway)))
}

#[tokio::test]
async fn the_origin_learns_who_called_from_the_gateway() -> Result<()> {
    match site("haproxy: the origin learns who called from the gateway").await? {
        Some(site) => super::the_origin_learns_who_called_from_the_gateway(&site).await,
        None => Ok(()),
    }
}

#[tokio::test]
async fn a_caller_takes_nothing_away_with_connection() -> Result<()> {
    match site("haproxy: a caller takes nothing away with connection").await? {
        Some(site) => super::a_caller_takes_nothing_away_with_connection(&site).await,
        None => Ok(()),
    }
}

#[tokio::test]
async fn no_caller_reaches_another_service() -> Result<()> {
    match site("haproxy: no caller reaches another service").await? {
        Some(site) => super::no_caller_reaches_another_service(&site).await,
        None => Ok(()),
    }
}

#[tokio::test]
async fn a_websocket_passes() -> Result<()> {
    match site("haproxy: a websocket passes").await? {
        Some(site) => super::a_websocket_passes(&site).await,
        None => Ok(()),
    }
}

#[tokio::test]
async fn events_arrive_one_by_one() -> Result<()> {
    match site("haproxy: events arrive one by one").await? {
        Some(site) => super::events_arrive_one_by_one(&site).await,
        None => Ok(()),
    }
}

#[tokio::test]
async fn an_upload_goes_out_as_it_comes() -> Result<()> {
    match site("haproxy: an upload goes out as it comes").await? {
        Some(site) => super::an_upload_goes_out_as_it_comes(&site).await,
        None => Ok(()),
    }
}

#[tokio::test]
async fn large_bodies_pass_whole() -> Result<()> {
    match site("haproxy: large bodies pass whole").await? {
        Some(site) => super::large_bodies_pass_whole(&site).await,
        None => Ok(()),
    }
}

#[tokio::test]
async fn a_failure_keeps_its_name() -> Result<()> {
    match site("haproxy: a failure keeps its name").await? {
        Some(mut site) => super::a_failure_keeps_its_name(&mut site).await,
        None => Ok(()),
    }
}

#[tokio::test]
async fn a_relay_elsewhere_is_reached_over_tls() -> Result<()> {
    match started("haproxy: a relay elsewhere is reached over TLS", true).await? {
        Some(site) => {
            super::the_origin_learns_who_called_from_the_gateway(&site).await?;
            super::a_websocket_passes(&site).await?;
            super::large_bodies_pass_whole(&site).await
        }
        None => Ok(()),
    }
}
