//! Services that are managed at the relay: told to live connectors, served within their allow-lists, refused beyond.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use culvert_lab::load::Plan;
use culvert_lab::skip::{self, Need};
use culvert_lab::{Connector, Origin, Postgres, Relay, client, wait};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(10);

/// A relay, and a connector of a tunnel that may serve anything; it declares nothing.
struct Site {
    relay: Relay,
    connector: Connector,
}

impl Site {
    /// `allow` is what stands in `[allow] origins`; `more` follows it in the file.
    async fn new(allow: &[String], more: &str) -> Result<Self> {
        let mut relay = Relay::new()?;
        relay.start().await?;
        let token = relay.tunnel("main", &["*"]).await?;
        let mut connector = Connector::new(&token, &[])?;
        connector.config(&configuration(allow, more))?;
        connector.start().await?;
        Ok(Self { relay, connector })
    }

    async fn set(&self, service: &str, origin: &str, more: &[&str]) -> Result<()> {
        let args = [&["service", "set", service, "--tunnel", "main", "--origin", origin], more].concat();
        let said = self.relay.cli(&args).await?;
        ensure!(said.status == 0, "{args:?}: {said:?}");
        Ok(())
    }

    async fn show(&self, service: &str) -> Result<Value> {
        self.relay.json(&["service", "show", service]).await
    }

    /// Waits until the connector refuses a managed service, and gives its words.
    async fn refusal(&self, service: &str) -> Result<String> {
        let why = wait::until("a refusal", SOON, || async {
            let shown = self.show(service).await.ok()?;
            Some(shown["refused"].get(0)?["why"].as_str()?.to_owned())
        });
        why.await.with_context(|| self.connector.last_words())
    }

    /// Waits until a request to the service is answered so.
    async fn answers(&self, service: &str, status: u16, details: &str) -> Result<()> {
        let what = format!("{service}: {status} {details}");
        let answered = wait::until(&what, SOON, || async {
            let answer = self.relay.get(service, "/").await.ok()?;
            let field = answer.header("proxy-status");
            (answer.status == status && (details.is_empty() || field.contains(details))).then_some(())
        });
        answered.await.with_context(|| self.relay.last_words())
    }

    async fn reload(&self, allow: &[String], more: &str) -> Result<()> {
        std::fs::write(self.connector.directory().join("connector.toml"), configuration(allow, more))?;
        let said = self.connector.cli(&["reload"]).await?;
        ensure!(said.status == 0, "{said:?}");
        Ok(())
    }
}

fn configuration(allow: &[String], more: &str) -> String {
    format!("[allow]\norigins = {allow:?}\n{more}\n")
}

fn at(origin: &Origin) -> Vec<String> {
    vec![origin.address().to_string()]
}

#[tokio::test]
async fn a_managed_service_is_served_within_the_allow_list_and_refused_beyond_it_on_both_ends() -> Result<()> {
    let (inside, outside) = (Origin::start("inside").await?, Origin::start("outside").await?);
    let site = Site::new(&at(&inside), "").await?;
    site.set("orders", &inside.url(), &["--host", "orders.example", "--health-path", "/status/204"]).await?;
    // At once: a request that comes before the connector's word waits for it.
    let answer = site.relay.get("orders", "/head").await?;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(answer.text().contains("orders.example"), "{}", answer.text());
    wait::until("a check of the path", SOON, || async { (inside.requests("/status/204") > 0).then_some(()) }).await?;

    site.set("secret", &outside.url(), &[]).await?;
    let why = site.refusal("secret").await?;
    assert!(why.contains("[allow] origins"), "{why}");
    site.answers("secret", 403, "error=destination_ip_prohibited; details=\"origin_denied\"").await?;
    let body = site.relay.get("secret", "/").await?.text();
    assert!(!body.contains("127.0.0.1"), "the answer names the origin: {body}");
    assert_eq!(outside.all_requests(), 0);

    let listed = site.relay.json(&["service", "list"]).await?;
    for (name, up) in [("orders", 1), ("secret", 0)] {
        let of_name: Vec<&Value> =
            listed.as_array().context("an array")?.iter().filter(|one| one["name"] == name).collect();
        let [one] = of_name.as_slice() else { panic!("{listed}") };
        assert_eq!((&one["source"], &one["up"], &one["total"]), (&"relay".into(), &up.into(), &1.into()), "{one}");
    }
    let shown = site.show("secret").await?;
    assert_eq!(shown["connectors"][0]["reason"], "origin_denied", "{shown}");
    let text = site.relay.cli(&["service", "show", "secret"]).await?.stdout;
    assert!(text.contains("not served") && text.contains("[allow] origins"), "{text}");
    let said = site.connector.cli(&["status"]).await?.stdout;
    assert!(said.contains("refused      secret: ") && said.contains("managed at the relay"), "{said}");
    for (end, output) in [("relay", site.relay.output()), ("connector", site.connector.output())] {
        let told = output.lines().any(|line| line.contains("secret") && line.contains("[allow] origins"));
        assert!(told, "the {end}'s log does not say why:\n{output}");
    }
    let audit = site.relay.json(&["audit"]).await?;
    let set = |row: &Value| row["action"] == "service.set" && row["subject"] == "orders";
    assert!(audit.as_array().is_some_and(|rows| rows.iter().any(set)), "{audit}");
    Ok(())
}

#[tokio::test]
async fn nothing_is_allowed_by_default_and_no_name_is_looked_up_for_a_relay() -> Result<()> {
    let origin = Origin::start("private").await?;
    let site = Site::new(&[], "").await?;
    site.set("orders", &origin.url(), &[]).await?;
    assert!(site.refusal("orders").await?.contains("is empty"));
    // Were it looked up, the reason would be `origin_dns`.
    site.set("named", "http://no-such-host.invalid:80", &[]).await?;
    for service in ["orders", "named"] {
        site.answers(service, 403, "origin_denied").await?;
    }
    assert_eq!(origin.all_requests(), 0);
    Ok(())
}

#[tokio::test]
async fn a_name_that_leads_to_this_host_does_not_pass_its_pattern() -> Result<()> {
    let origin = Origin::start("private").await?;
    let port = origin.address().port();
    let site = Site::new(&[format!("http://local*:{port}")], "").await?;
    let named = format!("http://localhost:{port}");
    site.set("orders", &named, &[]).await?;
    site.answers("orders", 403, "origin_denied").await?;
    let down =
        || async { (site.show("orders").await.ok()?["connectors"][0]["reason"] == "origin_denied").then_some(()) };
    wait::until("the check says so too", SOON, down).await?;
    assert_eq!(site.show("orders").await?["refused"], serde_json::json!([]), "its name alone is within the list");
    assert_eq!(origin.all_requests(), 0);
    // A list that spells the place means it; and the network of an address that a name leads to.
    for allow in [format!("http://localhost:{port}"), format!("127.0.0.0/8:{port}")] {
        site.reload(&["http://elsewhere.example".to_owned()], "").await?;
        site.answers("orders", 403, "origin_denied").await?;
        site.reload(&[allow], "").await?;
        site.answers("orders", 200, "").await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_change_of_a_managed_origin_loses_no_request() -> Result<()> {
    let (old, new) = (Origin::start("old").await?, Origin::start("new").await?);
    let site = Site::new(&["127.0.0.1".to_owned()], "").await?;
    site.set("orders", &old.url(), &[]).await?;
    site.relay.up("orders").await?;
    let http = site.relay.http;
    let slow = tokio::spawn(async move { client::post(http, "orders", "/slow/1500", "once").await });
    wait::until("the slow request", SOON, || async { (old.requests("/slow/1500") == 1).then_some(()) }).await?;
    let load = Plan::gets(http, "orders").per_second(100).start();
    wait::until("requests at the old origin", SOON, || async { (old.requests("/") >= 50).then_some(()) }).await?;
    site.set("orders", &new.url(), &[]).await?;
    wait::until("requests at the new origin", SOON, || async { (new.requests("/") >= 50).then_some(()) }).await?;
    let at_old = old.requests("/");
    wait::until("more requests", SOON, || async { (new.requests("/") >= 100).then_some(()) }).await?;
    assert_eq!(old.requests("/"), at_old, "the old origin is left");
    load.finish().await?.all_well(150)?;
    assert_eq!(slow.await??.text(), "slow", "what was in flight ends where it began");
    Ok(())
}

#[tokio::test]
async fn managed_services_come_back_with_either_end() -> Result<()> {
    let origin = Origin::start("private").await?;
    let mut site = Site::new(&at(&origin), "").await?;
    site.set("orders", &origin.url(), &[]).await?;
    site.relay.up("orders").await?;
    site.connector.kill()?;
    site.connector.start().await?;
    site.relay.up("orders").await?;
    site.relay.kill()?;
    site.relay.start().await?;
    site.relay.up("orders").await?;
    site.answers("orders", 200, "").await?;
    // Deleted while the connector is away: it comes back without it.
    site.connector.kill()?;
    assert_eq!(site.relay.cli(&["service", "delete", "orders"]).await?.status, 0);
    site.connector.start().await?;
    site.answers("orders", 404, "no_such_service").await?;
    // Set while no relay runs.
    site.relay.terminate(SOON).await?;
    site.set("orders", &origin.url(), &[]).await?;
    site.relay.start().await?;
    site.relay.up("orders").await?;
    site.answers("orders", 200, "").await
}

#[tokio::test]
async fn a_deleted_managed_service_is_gone_at_once_and_what_runs_on_it_ends_well() -> Result<()> {
    let origin = Origin::start("private").await?;
    let site = Site::new(&at(&origin), "").await?;
    site.set("orders", &origin.url(), &[]).await?;
    site.relay.up("orders").await?;
    let http = site.relay.http;
    let slow = tokio::spawn(async move { client::get(http, "orders", "/slow/1000").await });
    wait::until("the slow request", SOON, || async { (origin.requests("/slow/1000") == 1).then_some(()) }).await?;
    assert_eq!(site.relay.cli(&["service", "rm", "orders"]).await?.status, 0);
    site.answers("orders", 404, "no_such_service").await?;
    assert_eq!(slow.await??.status, 200);
    let left = || async {
        let status: Value = serde_json::from_str(&site.connector.cli(&["status", "--json"]).await.ok()?.stdout).ok()?;
        (status["services"] == serde_json::json!([])).then_some(())
    };
    wait::until("the connector knows it no more", SOON, left).await
}

#[tokio::test]
async fn a_declared_service_wins_over_a_managed_one_and_both_are_shown() -> Result<()> {
    let (declared, managed) = (Origin::start("declared").await?, Origin::start("managed").await?);
    let own = format!("[[service]]\nname = \"orders\"\norigin = \"{}\"\n", declared.url());
    let site = Site::new(&["127.0.0.1".to_owned()], &own).await?;
    site.relay.up("orders").await?;
    site.set("orders", &managed.url(), &[]).await?;
    assert!(site.refusal("orders").await?.contains("declares orders itself"));
    assert_eq!(site.relay.get("orders", "/").await?.text(), "hello from declared\n");
    let shown = site.show("orders").await?;
    let sources: Vec<&Value> =
        shown["sources"].as_array().context("sources")?.iter().map(|one| &one["source"]).collect();
    assert_eq!(
        (sources, &shown["source"]),
        (vec![&Value::from("connector"), &Value::from("relay")], &"connector".into())
    );
    let listed = site.relay.json(&["service", "list"]).await?;
    assert_eq!(listed.as_array().map(Vec::len), Some(2), "{listed}");
    // Its own is taken out: the relay's takes over. And back.
    site.reload(&["127.0.0.1".to_owned()], "").await?;
    let says = async |whom: &str| {
        let said = wait::until(whom, SOON, || async {
            let text = site.relay.get("orders", "/").await.ok()?.text();
            (text == format!("hello from {whom}\n")).then_some(())
        });
        said.await.with_context(|| site.relay.last_words())
    };
    says("managed").await?;
    site.reload(&["127.0.0.1".to_owned()], &own).await?;
    says("declared").await?;
    assert_eq!(site.relay.cli(&["service", "delete", "orders"]).await?.status, 0);
    says("declared").await
}

#[tokio::test]
async fn a_connector_that_reloads_its_allow_list_decides_anew() -> Result<()> {
    let origin = Origin::start("private").await?;
    let site = Site::new(&[], "").await?;
    site.set("orders", &origin.url(), &[]).await?;
    site.refusal("orders").await?;
    site.reload(&at(&origin), "").await?;
    site.relay.up("orders").await?;
    site.answers("orders", 200, "").await?;
    let told = || async { (site.show("orders").await.ok()?["refused"] == serde_json::json!([])).then_some(()) };
    wait::until("the relay is told", SOON, told).await?;
    // Also what is open from before is not used again.
    site.reload(&[], "").await?;
    site.answers("orders", 403, "origin_denied").await?;
    site.refusal("orders").await?;
    let before = origin.all_requests();
    assert_eq!(site.relay.get("orders", "/").await?.status, 403);
    assert_eq!(origin.all_requests(), before);
    Ok(())
}

#[tokio::test]
async fn what_can_be_no_managed_service_is_refused_before_anybody_is_told() -> Result<()> {
    let mut relay = Relay::new()?;
    relay.start().await?;
    relay.tunnel("main", &["orders"]).await?;
    let set = async |service: &str, more: &[&str]| {
        relay.cli(&[&["service", "set", service, "--tunnel", "main"], more].concat()).await
    };
    for (status, service, more) in [
        (2, "orders", &["--origin", "http://user:hunter2@a.internal:80"][..]),
        (2, "orders", &["--origin", "http://user@a.internal:80"]),
        (2, "orders", &["--origin", "ftp://a.internal:80"]),
        (2, "orders", &["--origin", "http://a.internal/path"]),
        (2, "orders", &["--origin", "http://a.internal", "--health-path", "healthz"]),
        (2, "orders", &["--origin", "http://a.internal", "--host", "a b"]),
        (2, "orders", &[]),
        (1, "orders", &["--origin", "tcp://db.internal:5432", "--health-path", "/"]),
        (1, "users", &["--origin", "http://a.internal"]),
    ] {
        let said = set(service, more).await?;
        assert_eq!(said.status, status, "{more:?}: {said:?}");
        assert!(!said.stderr.contains("hunter2"), "{said:?}");
    }
    let said = relay.cli(&["service", "set", "orders", "--tunnel", "nowhere", "--origin", "http://a:1"]).await?;
    assert!(said.status == 1 && said.stderr.contains("no tunnel"), "{said:?}");
    assert_eq!(set("orders", &["--origin", "http://a.internal"]).await?.status, 0);
    // Known, and nobody serves it.
    let answer = relay.get("orders", "/").await?;
    assert!(answer.status == 503 && answer.header("proxy-status").contains("no_connector"), "{answer:?}");
    Ok(())
}

#[tokio::test]
async fn what_is_managed_at_one_relay_is_in_force_at_the_other_within_a_second() -> Result<()> {
    if skip::unless("managed services over two relays", &[Need::Postgres]) {
        return Ok(());
    }
    let postgres = Postgres::start().await?;
    let (mut one, mut two) = (Relay::sharing(&postgres)?, Relay::sharing(&postgres)?);
    one.start().await?;
    two.start().await?;
    let (old, new) = (Origin::start("old").await?, Origin::start("new").await?);
    let token = one.tunnel("main", &["*"]).await?;
    let mut connector = Connector::new(&token, &[])?;
    connector.config(&configuration(&["127.0.0.1".to_owned()], ""))?;
    connector.start().await?;
    wait::until("a session with both", SOON, || async {
        let status: Value = serde_json::from_str(&connector.cli(&["status", "--json"]).await.ok()?.stdout).ok()?;
        let up = status["relays"].as_array()?.iter().filter(|relay| relay["state"] == "up").count();
        (up == 2).then_some(())
    })
    .await?;
    let says = async |relay: &Relay, wanted: &str| {
        let since = Instant::now();
        let told = wait::until(wanted, SOON, || async {
            let text = relay.get("orders", "/").await.ok()?.text();
            text.contains(wanted).then_some(())
        });
        told.await.with_context(|| relay.last_words())?;
        ensure!(since.elapsed() < Duration::from_secs(1), "{wanted} after {:?}", since.elapsed());
        Ok(())
    };
    let set = async |origin: &Origin| {
        one.cli(&["service", "set", "orders", "--tunnel", "main", "--origin", &origin.url()]).await
    };
    for origin in [&old, &new, &old] {
        assert_eq!(set(origin).await?.status, 0);
        let hello = if origin.url() == old.url() { "hello from old" } else { "hello from new" };
        says(&two, hello).await?;
        says(&one, hello).await?;
    }
    // The one that heard first may go; what it said stays.
    one.kill()?;
    says(&two, "hello from old").await?;
    assert_eq!(two.cli(&["service", "set", "orders", "--tunnel", "main", "--origin", &new.url()]).await?.status, 0);
    says(&two, "hello from new").await?;
    one.start().await?;
    one.up("orders").await?;
    says(&one, "hello from new").await?;
    assert_eq!(two.cli(&["service", "delete", "orders"]).await?.status, 0);
    says(&two, "no_such_service").await?;
    says(&one, "no_such_service").await
}
