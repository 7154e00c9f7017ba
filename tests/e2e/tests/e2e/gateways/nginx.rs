//! nginx as `deploy/gateways/nginx.conf` has it.

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
    if skip::unless(test, &[Need::Program("nginx")]) {
        return Ok(None);
    }
    let behind = Behind::new().await?;
    let secret = behind.relay.directory().join("culvert-gateway");
    std::fs::write(&secret, format!("default \"{}\";\n", behind.identity))?;
    let listen = behind.listen;
    let [relay, admin] = behind.addresses();
    let config = shipped(
        "nginx.conf",
        &[
            ("listen 80;", &format!("listen {listen};")),
            ("listen 50051", &format!("listen {}:50051", listen.ip())),
            (relay.0, &relay.1),
            (admin.0, &admin.1),
            ("/etc/nginx/culvert-gateway", &secret.display().to_string()),
        ],
    )?;
    let config = match &behind.over_tls {
        Some((at, certificate)) if over_tls => {
            // As the file's own words say.
            let words = "https://culvert; proxy_ssl_verify on; proxy_ssl_server_name on; \
                         proxy_ssl_name relay.example.com; proxy_ssl_trusted_certificate";
            config
                .replace("proxy_pass http://culvert;", &format!("proxy_pass {words} {};", certificate.cert.display()))
                .replace(&format!("server {};", behind.relay.http), &format!("server {at};"))
        }
        _ => config,
    };
    ensure!(config.contains("proxy_pass https://culvert;") == over_tls, "the file and this test have parted");
    let gateway = Gateway::nginx(listen, &config).await?;
    Ok(Some(Site::new(behind, gateway)))
}

#[tokio::test]
async fn the_origin_learns_who_called_from_the_gateway() -> Result<()> {
    match site("nginx: the origin learns who called from the gateway").await? {
        Some(site) => super::the_origin_learns_who_called_from_the_gateway(&site).await,
        None => Ok(()),
    }
}

#[tokio::test]
async fn a_caller_takes_nothing_away_with_connection() -> Result<()> {
    match site("nginx: a caller takes nothing away with connection").await? {
        Some(site) => super::a_caller_takes_nothing_away_with_connection(&site).await,
        None => Ok(()),
    }
}

#[tokio::test]
async fn no_caller_reaches_another_service() -> Result<()> {
    match site("nginx: no caller reaches another service").await? {
        Some(site) => super::no_caller_reaches_another_service(&site).await,
        None => Ok(()),
    }
}

#[tokio::test]
async fn a_websocket_passes() -> Result<()> {
    match site("nginx: a websocket passes").await? {
        Some(site) => super::a_websocket_passes(&site).await,
        None => Ok(()),
    }
}

#[tokio::test]
async fn events_arrive_one_by_one() -> Result<()> {
    match site("nginx: events arrive one by one").await? {
        Some(site) => super::events_arrive_one_by_one(&site).await,
        None => Ok(()),
    }
}

#[tokio::test]
async fn an_upload_goes_out_as_it_comes() -> Result<()> {
    match site("nginx: an upload goes out as it comes").await? {
        Some(site) => super::an_upload_goes_out_as_it_comes(&site).await,
        None => Ok(()),
    }
}

#[tokio::test]
async fn large_bodies_pass_whole() -> Result<()> {
    match site("nginx: large bodies pass whole").await? {
        Some(site) => super::large_bodies_pass_whole(&site).await,
        None => Ok(()),
    }
}

#[tokio::test]
async fn a_failure_keeps_its_name() -> Result<()> {
    match site("nginx: a failure keeps its name").await? {
        Some(mut site) => super::a_failure_keeps_its_name(&mut site).await,
        None => Ok(()),
    }
}

#[tokio::test]
async fn a_relay_elsewhere_is_reached_over_tls() -> Result<()> {
    match started("nginx: a relay elsewhere is reached over TLS", true).await? {
        Some(site) => {
            super::the_origin_learns_who_called_from_the_gateway(&site).await?;
            super::a_websocket_passes(&site).await?;
            super::events_arrive_one_by_one(&site).await?;
            super::large_bodies_pass_whole(&site).await
        }
        None => Ok(()),
    }
}
