//! Settings do what they say: listeners, limits, balance, headers, reload.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use culvert_lab::load::Plan;
use culvert_lab::{Connector, Origin, Relay, client, wait};
use http::{Method, Request};
use http_body_util::Full;

use crate::Setup;

fn with_field(host: &str, path: &str, name: &str, value: &str) -> Result<Request<Full<Bytes>>> {
    let mut request = client::request(Method::GET, host, path, Bytes::new())?;
    request.headers_mut().insert(http::HeaderName::from_bytes(name.as_bytes())?, value.parse()?);
    Ok(request)
}

#[tokio::test]
async fn a_unix_socket_serves_and_a_listener_may_choose_by_header_only() -> Result<()> {
    let mut relay = Relay::new()?;
    let socket = relay.directory().join("http.sock");
    let by_header = culvert_lab::address::at(relay.http.ip(), 31_081);
    relay.config(&format!(
        "[http]\nlisten = [\"{}\", \"unix:{}\"]\n[[http.listener]]\nlisten = \"{by_header}\"\nselect = \"header\"\n\
         services = [\"orders\"]\n",
        relay.http,
        socket.display()
    ))?;
    relay.start().await?;
    let setup = Setup::behind(relay).await?;
    let request = client::request(Method::GET, "orders", "/", Bytes::new())?;
    assert_eq!(client::send_unix(&socket, request).await?.status, 200);

    let chosen = with_field("anything.example", "/head", "culvert-service", "orders")?;
    let answer = client::send(by_header, chosen).await?;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(!answer.text().contains("culvert-service"), "the origin saw the choice: {}", answer.text());
    let by_host = client::get(by_header, "orders", "/").await?;
    assert_eq!(by_host.status, 404, "a header listener took the host for a service");
    let unknown = with_field("orders", "/", "culvert-service", "unheard-of")?;
    // Whether it exists or not: what is behind a listener is not to be found out.
    assert_eq!(client::send(by_header, unknown).await?.status, 403);
    assert_eq!(setup.origin.requests("/"), 1);
    Ok(())
}

#[tokio::test]
async fn past_its_limit_a_service_answers_overloaded_and_the_others_go_on() -> Result<()> {
    let mut relay = Relay::new()?;
    relay.config(&format!(
        "[http]\nlisten = [\"{}\"]\n[service.orders.limits]\nconcurrent = 1\nqueue = 0\n",
        relay.http
    ))?;
    relay.start().await?;
    let origin = Origin::start("both").await?;
    let token = relay.tunnel("main", &["orders", "other"]).await?;
    let services = [format!("orders={}", origin.url()), format!("other={}", origin.url())];
    let mut connector = Connector::new(&token, &[&services[0], &services[1]])?;
    connector.start().await?;
    relay.up("orders").await?;
    let http = relay.http;
    let slow = tokio::spawn(async move { client::get(http, "orders", "/slow/1500").await });
    wait::until("the slow request", Duration::from_secs(5), || async {
        (origin.requests("/slow/1500") == 1).then_some(())
    })
    .await?;
    let answer = relay.get("orders", "/").await?;
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert!(answer.header("proxy-status").contains("overloaded"), "{answer:?}");
    assert!(!answer.header("retry-after").is_empty(), "{answer:?}");
    assert_eq!(relay.get("other", "/").await?.status, 200);
    assert_eq!(slow.await??.status, 200);
    assert_eq!(relay.get("orders", "/").await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn balance_keeps_one_value_on_one_connector_and_spreads_the_values() -> Result<()> {
    let mut relay = Relay::new()?;
    relay.start().await?;
    let token = relay.tunnel("main", &["orders"]).await?;
    let (mut origins, mut connectors) = (Vec::new(), Vec::new());
    for name in ["a", "b", "c"] {
        let origin = Origin::start(name).await?;
        let mut connector = Connector::new(&token, &[])?;
        connector.config(&format!(
            "[[service]]\nname = \"orders\"\norigin = \"{}\"\nbalance = \"header:x-user\"\n",
            origin.url()
        ))?;
        connector.start().await?;
        origins.push(origin);
        connectors.push(connector);
    }
    relay.pairs_up("orders", 3).await?;
    let ask = async |user: usize| -> Result<String> {
        let request = with_field("orders", "/", "x-user", &format!("user-{user}"))?;
        Ok(client::send(relay.http, request).await?.text())
    };
    let mut seen = BTreeSet::new();
    for user in 0..24 {
        let first = ask(user).await?;
        for _ in 0..3 {
            assert_eq!(ask(user).await?, first, "user-{user} moved");
        }
        seen.insert(first);
    }
    assert_eq!(seen.len(), 3, "24 users on {seen:?}");
    Ok(())
}

#[tokio::test]
async fn a_connectors_reload_changes_origin_and_headers_with_no_request_lost() -> Result<()> {
    let mut relay = Relay::new()?;
    relay.start().await?;
    let token = relay.tunnel("main", &["orders"]).await?;
    let (old, new) = (Origin::start("old").await?, Origin::start("new").await?);
    let secret = relay.directory().join("secret");
    std::fs::write(&secret, "first\n")?;
    let config = |origin: &Origin| {
        format!(
            "[[service]]\nname = \"orders\"\norigin = \"{}\"\n[service.headers]\nauthorization = {{ file = \"{}\", prefix = \"Bearer \" }}\n",
            origin.url(),
            secret.display()
        )
    };
    let mut connector = Connector::new(&token, &[])?;
    connector.config(&config(&old))?;
    connector.start().await?;
    relay.up("orders").await?;
    let spoofed = with_field("orders", "/head", "authorization", "Bearer spoofed")?;
    let seen = client::send(relay.http, spoofed).await?.text();
    assert!(seen.contains("Bearer first") && !seen.contains("spoofed"), "{seen}");

    let load = Plan::gets(relay.http, "orders").start();
    wait::until("load at the old origin", Duration::from_secs(5), || async { (old.requests("/") > 20).then_some(()) })
        .await?;
    std::fs::write(connector.directory().join("connector.toml"), config(&new))?;
    let said = connector.cli(&["reload"]).await?;
    assert_eq!(said.status, 0, "{said:?}");
    wait::until("load at the new origin", Duration::from_secs(5), || async { (new.requests("/") > 50).then_some(()) })
        .await?;
    std::fs::write(connector.directory().join("connector.toml"), "[[service]]\nname = \"orders\"\n")?;
    let said = connector.cli(&["reload"]).await?;
    assert_eq!(said.status, 78, "{said:?}");
    load.finish().await?.all_well(70)?;
    assert_eq!(relay.get("orders", "/").await?.text(), "hello from new\n");
    assert!(connector.process()?.runs());
    Ok(())
}

#[tokio::test]
async fn a_header_whose_source_is_missing_ends_the_start_with_78() -> Result<()> {
    let mut connector = Connector::new("", &[])?;
    connector.config(
        "[[service]]\nname = \"orders\"\norigin = \"http://127.0.0.1:1\"\n[service.headers]\n\
         authorization = { env = \"NO_SUCH_VARIABLE\", prefix = \"Bearer \" }\n",
    )?;
    let config = connector.directory().join("connector.toml").display().to_string();
    for command in ["run", "check"] {
        let said = connector.cli(&[command, "--config", &config]).await?;
        assert_eq!(said.status, 78, "{command}: {said:?}");
        assert!(said.stderr.contains("NO_SUCH_VARIABLE"), "{command}: {said:?}");
    }
    Ok(())
}

#[tokio::test]
async fn grants_follow_the_tunnel_at_once() -> Result<()> {
    let mut relay = Relay::new()?;
    relay.start().await?;
    let origin = Origin::start("orders").await?;
    let token = relay.tunnel("main", &["orders"]).await?;
    let services = [format!("orders={}", origin.url()), format!("billing={}", origin.url())];
    let mut connector = Connector::new(&token, &[&services[0], &services[1]])?;
    connector.start().await?;
    relay.up("orders").await?;
    assert_eq!(relay.get("billing", "/").await?.status, 404, "a name that was never granted");
    connector.process()?.line("billing", Duration::from_secs(5)).await.context("both ends say why")?;
    relay.process()?.line("billing", Duration::from_secs(5)).await.context("both ends say why")?;
    let set = relay.cli(&["tunnel", "set", "main", "--add-service", "billing"]).await?;
    assert_eq!(set.status, 0, "{set:?}");
    relay.up("billing").await?;
    assert_eq!(relay.get("billing", "/").await?.status, 200);
    let set = relay.cli(&["tunnel", "set", "main", "--remove-service", "billing"]).await?;
    assert_eq!(set.status, 0, "{set:?}");
    let gone = relay.get("billing", "/").await?;
    assert!([404, 503].contains(&gone.status.as_u16()), "{}", gone.status);
    assert_eq!(relay.get("orders", "/").await?.status, 200);
    let deleted = relay.cli(&["tunnel", "delete", "main"]).await?;
    assert_eq!(deleted.status, 0, "{deleted:?}");
    assert_ne!(relay.get("orders", "/").await?.status, 200);
    Ok(())
}
