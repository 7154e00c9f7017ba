//! Who may call, and what callers can make an origin believe.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use culvert_lab::client::Answer;
use culvert_lab::{Connector, Relay, address, client, wait};
use http::{HeaderName, Method};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::Setup;

/// Fields that a caller could try to make an origin believe something by.
const FORGED: [(&str, &str); 12] = [
    ("x-forwarded-for", "203.0.113.66"),
    ("x-forwarded-proto", "https"),
    ("x-forwarded-host", "forged.example"),
    ("x-forwarded-port", "666"),
    ("x-forwarded-prefix", "/forged"),
    ("x-real-ip", "203.0.113.66"),
    ("forwarded", "for=203.0.113.66;proto=https;host=forged.example"),
    ("via", "1.1 forged"),
    ("culvert-forged", "forged"),
    // To an origin that reads fields as variables these are the same.
    ("x_forwarded_for", "203.0.113.66"),
    ("x_real_ip", "203.0.113.66"),
    ("culvert_gateway", "forged"),
];

/// A relay with one listener that asks who calls, and what stands behind it.
struct Guarded {
    setup: Setup,
    listener: SocketAddr,
}

impl Guarded {
    /// `asks` is what the listener's table says of who may call.
    async fn new(asks: &str) -> Result<Self> {
        let mut relay = Relay::new()?;
        let listener = address::at(relay.http.ip(), 31_082);
        let (http, log) = (relay.http, relay.directory().join("access.log"));
        relay.config(&format!(
            "[http]\nlisten = [\"{http}\"]\naccess_log = \"{}\"\n[[http.listener]]\nlisten = \"{listener}\"\n{asks}\n",
            log.display()
        ))?;
        relay.start().await?;
        Ok(Self { setup: Setup::behind(relay).await?, listener })
    }

    async fn call(&self, host: &str, fields: &[(&str, &str)]) -> Result<Answer> {
        call(self.listener, host, fields).await
    }

    /// The status that a caller with this credential gets.
    async fn status(&self, host: &str, credential: &str) -> Result<u16> {
        Ok(self.call(host, &[("culvert-gateway", credential)]).await?.status.as_u16())
    }

    /// An endless answer.
    async fn events(&self, credential: &str) -> Result<Incoming> {
        let mut request = client::request(Method::GET, "orders", "/sse/100000/20", Bytes::new())?;
        request.headers_mut().insert("culvert-gateway", credential.parse()?);
        let response = client::stream(self.listener, request).await?;
        ensure!(response.status() == 200, "{response:?}");
        Ok(response.into_body())
    }

    async fn gateway(&self, args: &[&str]) -> Result<String> {
        let said = self.setup.relay.cli(&[&["gateway"], args].concat()).await?;
        ensure!(said.status == 0, "gateway {args:?}: {said:?}");
        Ok(said.stdout.trim_end().to_owned())
    }

    /// The access log's lines so far that have this reason.
    fn lines(&self, reason: &str) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(self.setup.relay.directory().join("access.log")).unwrap_or_default();
        let lines = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        lines.filter(|line| line["reason"] == reason).collect()
    }
}

/// The next piece of an answer; an error when it was cut short, none when it ended as if it were whole.
async fn next(body: &mut Incoming) -> Result<hyper::Result<()>> {
    let frame = tokio::time::timeout(Duration::from_secs(5), body.frame()).await?;
    Ok(frame.context("a cut answer ended cleanly")?.map(drop))
}

async fn call(to: SocketAddr, host: &str, fields: &[(&str, &str)]) -> Result<Answer> {
    let mut request = client::request(Method::GET, host, "/head", Bytes::new())?;
    for (name, value) in fields {
        request.headers_mut().append(HeaderName::from_bytes(name.as_bytes())?, value.parse()?);
    }
    client::send(to, request).await
}

/// The values of a field as the origin saw it.
fn seen(answer: &Answer, name: &str) -> Result<Vec<String>> {
    let head = answer.json()?;
    let fields = head["headers"].as_array().or(head["fields"].as_array()).context("fields")?;
    let of_name = fields.iter().filter(|field| field[0].as_str().is_some_and(|own| own.eq_ignore_ascii_case(name)));
    Ok(of_name.filter_map(|field| field[1].as_str().map(str::to_owned)).collect())
}

#[tokio::test]
async fn a_gateway_is_let_in_from_its_creation_to_its_end_without_a_restart() -> Result<()> {
    let guarded = Guarded::new("gateways = [\"kong\", \"nginx\"]").await?;
    assert!(guarded.setup.relay.output().contains("admits kong, which is no gateway yet"));
    let nobody = guarded.call("orders", &[]).await?;
    assert_eq!(nobody.status, 401, "{}", nobody.text());
    assert_eq!(nobody.header("www-authenticate"), "Culvert-Gateway realm=\"culvert\"");
    assert_eq!(nobody.header("proxy-status"), "culvert-relay; error=http_request_denied; details=\"unauthenticated\"");
    let kong = guarded.gateway(&["create", "kong", "--service", "orders", "--service", "bill*"]).await?;
    let other = guarded.gateway(&["create", "caddy"]).await?;
    let answer = guarded.call("orders", &[("Culvert-Gateway", &kong)]).await?;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(!answer.text().to_lowercase().contains("culvert-gateway"), "the origin saw it: {}", answer.text());
    assert_eq!(guarded.status("orders", &other).await?, 403, "known, but not at this listener");
    assert_eq!(guarded.status("users", &kong).await?, 403, "not granted, and not there");
    let token = guarded.setup.relay.tunnel("second", &["users"]).await?;
    assert_eq!(guarded.status("users", &kong).await?, 403, "not granted, and there");
    assert_eq!(guarded.status("billing", &kong).await?, 404, "granted, and not there");
    drop(token);
    for wrong in [&other[..], &kong[1..], &kong[..kong.len() - 1], "kong:secret", "kong", ""] {
        let mixed = wrong.replacen("caddy:", "kong:", 1);
        assert_eq!(guarded.status("orders", &mixed).await?, 401);
    }
    let twice = guarded.call("orders", &[("culvert-gateway", &kong), ("culvert-gateway", &kong)]).await?;
    assert_eq!(twice.status, 401);

    guarded.gateway(&["set", "kong", "--add-service", "users"]).await?;
    assert_eq!(guarded.status("users", &kong).await?, 503);
    let second = guarded.gateway(&["rotate", "kong"]).await?;
    assert_eq!((guarded.status("orders", &kong).await?, guarded.status("orders", &second).await?), (200, 200));
    let third = guarded.gateway(&["rotate", "kong", "--grace", "0s"]).await?;
    for (credential, status) in [(&kong, 401), (&second, 401), (&third, 200)] {
        assert_eq!(guarded.status("orders", credential).await?, status);
    }
    let listed = guarded.setup.relay.json(&["gateway", "list"]).await?;
    let kongs = listed.as_array().and_then(|all| all.iter().find(|one| one["name"] == "kong")).context("kong")?;
    assert!(kongs["last_used"].as_str().is_some_and(|at| at.ends_with('Z')), "{kongs}");
    guarded.gateway(&["revoke", "kong"]).await?;
    assert_eq!(guarded.status("orders", &third).await?, 401);
    wait::until("the access log", Duration::from_secs(5), || async {
        (guarded.lines("unauthenticated").len() >= 10 && guarded.lines("not_allowed").len() == 3).then_some(())
    })
    .await?;
    assert!(guarded.lines("unauthenticated").iter().all(|line| line["gateway"].is_null()));
    let denied: Vec<_> = guarded.lines("not_allowed").iter().map(|line| line["gateway"].clone()).collect();
    assert_eq!(denied[1..], ["kong", "kong"]);
    let output = guarded.setup.relay.output();
    assert!(!output.contains("culvert_g1_"), "a secret is in the log");
    assert!(output.contains("gateway not let in"), "{output}");
    Ok(())
}

#[tokio::test]
async fn what_runs_for_a_revoked_gateway_ends_visibly_and_what_runs_for_others_goes_on() -> Result<()> {
    let guarded = Guarded::new("gateways = [\"kong\", \"nginx\"]").await?;
    let (kong, nginx) = (guarded.gateway(&["create", "kong"]).await?, guarded.gateway(&["create", "nginx"]).await?);
    let (mut events, mut others) = (guarded.events(&kong).await?, guarded.events(&nginx).await?);
    let mut switched = TcpStream::connect(guarded.listener).await?;
    let ask = format!(
        "GET /ws HTTP/1.1\r\nHost: orders\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nCulvert-Gateway: {kong}\r\n\r\n"
    );
    switched.write_all(ask.as_bytes()).await?;
    let mut read = vec![0; 4096];
    let length = switched.read(&mut read).await?;
    assert!(read[..length].starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&read[..length]));
    guarded.gateway(&["set", "kong", "--add-service", "more"]).await?;
    guarded.gateway(&["rotate", "kong"]).await?;
    assert!(next(&mut events).await?.is_ok(), "another change ended it");
    guarded.gateway(&["revoke", "kong"]).await?;
    let end = tokio::time::timeout(Duration::from_secs(5), switched.read(&mut read)).await?;
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    loop {
        if next(&mut events).await?.is_err() {
            break;
        }
    }
    for _ in 0..5 {
        assert!(next(&mut others).await?.is_ok());
    }
    wait::until("both lines", Duration::from_secs(5), || async {
        (guarded.lines("not_allowed").len() == 2).then_some(())
    })
    .await
}

#[tokio::test]
async fn a_gateways_secret_and_its_last_call_survive_the_relays_restart() -> Result<()> {
    let mut guarded = Guarded::new("gateways = [\"kong\"]").await?;
    let kong = guarded.gateway(&["create", "kong"]).await?;
    assert_eq!(guarded.status("orders", &kong).await?, 200);
    guarded.setup.relay.terminate(Duration::from_secs(10)).await?;
    let listed = guarded.setup.relay.json(&["gateway", "list"]).await?;
    assert!(listed[0]["last_used"].is_string(), "written at the end: {listed}");
    let offline = guarded.gateway(&["create", "nginx"]).await?;
    guarded.setup.relay.start().await?;
    guarded.setup.relay.up("orders").await?;
    assert_eq!((guarded.status("orders", &kong).await?, guarded.status("orders", &offline).await?), (200, 403));
    Ok(())
}

#[tokio::test]
async fn what_a_stranger_forges_never_reaches_the_origin_and_what_a_gateway_says_does() -> Result<()> {
    let guarded = Guarded::new("open = true").await?;
    let stranger = guarded.call("orders", &FORGED).await?;
    assert_eq!(stranger.status, 200, "{}", stranger.text());
    for (name, value) in FORGED {
        let values = seen(&stranger, name)?;
        assert!(values.iter().all(|own| !own.contains(value) && !own.contains("forged")), "{name}: {values:?}");
    }
    let caller = guarded.listener.ip().to_string();
    let own = |name: &str| seen(&stranger, name);
    assert_eq!(own("x-forwarded-for")?.len(), 1);
    assert_eq!((own("x-forwarded-proto")?, own("x-forwarded-host")?), (vec!["http".into()], vec!["orders".into()]));
    assert_eq!(own("via")?, ["1.1 culvert"]);
    let elements = own("forwarded")?;
    assert!(elements.len() == 1 && elements[0].starts_with("for=127."), "{elements:?} from {caller}");

    // The listener beside it is on loopback and says nothing: its callers are believed.
    let gateway = call(guarded.setup.relay.http, "orders", &FORGED).await?;
    let own = |name: &str| seen(&gateway, name).map(|values| values.join(", "));
    assert!(own("x-forwarded-for")?.starts_with("203.0.113.66, 127."), "{}", own("x-forwarded-for")?);
    for (name, value) in &FORGED[1..6] {
        assert_eq!(own(name)?, *value, "{name}");
    }
    assert!(own("forwarded")?.starts_with("for=203.0.113.66;proto=https;host=forged.example, for=127."));
    assert_eq!(own("via")?, "1.1 forged, 1.1 culvert");
    assert_eq!(own("culvert-forged")?, "", "Culvert's own name is nobody else's");
    Ok(())
}

#[tokio::test]
async fn a_gateway_that_proved_who_it_is_is_believed_unless_the_listener_says_otherwise() -> Result<()> {
    for (policy, kept) in [("", true), ("forwarded = \"replace\"", false)] {
        let guarded = Guarded::new(&format!("gateways = [\"kong\"]\n{policy}")).await?;
        let kong = guarded.gateway(&["create", "kong"]).await?;
        let fields: Vec<(&str, &str)> = FORGED.into_iter().chain([("culvert-gateway", kong.as_str())]).collect();
        let answer = guarded.call("orders", &fields).await?;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let through = seen(&answer, "x-forwarded-for")?.join(", ");
        assert_eq!(through.starts_with("203.0.113.66, "), kept, "{policy}: {through}");
        assert_eq!(seen(&answer, "x-forwarded-proto")?, [if kept { "https" } else { "http" }]);
        assert!(seen(&answer, "culvert-gateway")?.is_empty() && seen(&answer, "culvert-forged")?.is_empty());
    }
    Ok(())
}

#[tokio::test]
async fn where_nobody_is_asked_a_credential_is_no_business_of_the_origins() -> Result<()> {
    let setup = Setup::new().await?;
    for connection in ["keep-alive", "culvert-gateway"] {
        let fields = [("culvert-gateway", "kong:anything"), ("connection", connection)];
        let answer = call(setup.relay.http, "orders", &fields).await?;
        let is_refused = connection == "culvert-gateway" && answer.status == 400;
        assert!(answer.status == 200 || is_refused, "{}", answer.text());
        assert!(!answer.text().contains("kong:anything"), "{}", answer.text());
    }
    Ok(())
}

#[tokio::test]
async fn a_service_that_nobody_serves_any_more_is_forgotten_on_request() -> Result<()> {
    let mut relay = Relay::new()?;
    relay.start().await?;
    let token = relay.tunnel("main", &["web-*"]).await?;
    let mut connector = Connector::new(&token, &["web-a=http://127.0.0.1:1", "web-b=http://127.0.0.1:1"])?;
    connector.start().await?;
    wait::until("both names", Duration::from_secs(10), || async {
        let listed = relay.json(&["service", "list"]).await.ok()?;
        (listed.as_array()?.len() == 2).then_some(())
    })
    .await?;
    let live = relay.cli(&["service", "delete", "web-a"]).await?;
    assert!(live.status == 1 && live.stderr.contains("live connector"), "{live:?}");
    connector.terminate(Duration::from_secs(10)).await?;
    assert_eq!(relay.get("web-a", "/").await?.status, 503);
    assert_eq!(relay.cli(&["service", "delete", "web-a"]).await?.status, 0);
    assert_eq!(relay.get("web-a", "/").await?.status, 404);
    assert_eq!(relay.get("web-b", "/").await?.status, 503);
    Ok(())
}

#[tokio::test]
async fn a_connector_that_was_revoked_while_it_was_away_learns_it_at_its_next_start() -> Result<()> {
    let mut setup = Setup::new().await?;
    let id = setup.relay.json(&["connector", "list"]).await?[0]["id"].as_str().context("id")?.to_owned();
    setup.connector.terminate(Duration::from_secs(10)).await?;
    assert_eq!(setup.relay.cli(&["connector", "revoke", &id]).await?.status, 0);
    setup.connector.launch()?;
    let status = setup.connector.process()?.end(Duration::from_secs(8)).await?;
    assert_eq!(status.code(), Some(78), "{}", setup.connector.output());
    assert!(setup.connector.output().contains("revoked"), "{}", setup.connector.output());
    Ok(())
}
