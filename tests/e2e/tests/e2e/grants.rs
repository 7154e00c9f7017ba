//! What a connector may serve: its tunnel's grants, its token's narrower ones, and an operator who takes it out of service.

use std::time::Duration;

use anyhow::{Context as _, Result};
use culvert_lab::{Connector, Origin, Relay, client, wait};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(10);

fn has_line(output: &str, parts: &[&str]) -> bool {
    output.lines().any(|line| parts.iter().all(|part| line.contains(part)))
}

#[tokio::test]
async fn a_connector_keeps_its_services_beside_one_that_it_is_not_granted_and_both_ends_say_why() -> Result<()> {
    let mut relay = Relay::new()?;
    relay.start().await?;
    let origin = Origin::start("private").await?;
    let token = relay.tunnel("main", &["orders", "b*"]).await?;
    relay.tunnel("other", &["billing"]).await?;
    let services = ["orders", "payroll", "billing"].map(|name| format!("{name}={}", origin.url()));
    let mut connector = Connector::new(&token, &services.each_ref().map(String::as_str))?;
    connector.start().await?;
    relay.up("orders").await?;
    assert_eq!(relay.get("orders", "/").await?.status, 200);
    assert_eq!(relay.get("payroll", "/").await?.status, 404);
    assert_eq!(relay.get("billing", "/").await?.status, 503, "another tunnel's, which nobody serves");
    let reasons = [("payroll", "tunnel main is not granted payroll"), ("billing", "billing belongs to tunnel other")];
    let status = connector.cli(&["status"]).await?.stdout;
    let listed = relay.json(&["connector", "list"]).await?[0]["notes"].to_string();
    for (service, why) in reasons {
        assert!(has_line(&connector.output(), &[service, why]), "{}", connector.output());
        assert!(has_line(&relay.output(), &[service, why]), "{}", relay.output());
        assert!(has_line(&status, &[service, why]), "{status}");
        assert!(listed.contains(why), "{listed}");
    }
    let shown = relay.json(&["service", "show", "billing"]).await?;
    assert!(shown["refused"][0]["why"].as_str().is_some_and(|why| why.contains("belongs to tunnel other")), "{shown}");
    // The grant comes while it is connected.
    assert_eq!(relay.cli(&["tunnel", "set", "main", "--add-service", "payroll"]).await?.status, 0);
    relay.up("payroll").await?;
    assert_eq!(relay.get("payroll", "/").await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn a_token_for_some_services_lets_its_connector_serve_no_others() -> Result<()> {
    let mut relay = Relay::new()?;
    relay.start().await?;
    let origin = Origin::start("private").await?;
    relay.tunnel("main", &["orders", "billing-*"]).await?;
    let beyond = relay.cli(&["token", "create", "main", "--service", "payroll"]).await?;
    assert!(beyond.status == 1 && beyond.stderr.contains("payroll"), "{beyond:?}");
    let made = relay.json(&["token", "create", "main", "--service", "billing-e*"]).await?;
    let services = ["orders", "billing-eu", "billing-us"].map(|name| format!("{name}={}", origin.url()));
    let token = made["token"].as_str().context("a token")?;
    let mut connector = Connector::new(token, &services.each_ref().map(String::as_str))?;
    connector.start().await?;
    relay.up("billing-eu").await?;
    assert_eq!(relay.get("orders", "/").await?.status, 503);
    assert_eq!(relay.get("billing-us", "/").await?.status, 404);
    for service in ["orders", "billing-us"] {
        let why = format!("the token that this connector joined with is not for {service}");
        assert!(has_line(&connector.output(), &[&why]), "{}", connector.output());
        assert!(has_line(&relay.output(), &[&why]), "{}", relay.output());
    }
    // It is not even told of others that are managed; and it stays narrow after a restart of both.
    for (service, origin) in [("orders", "http://orders.internal"), ("billing-eu2", "http://billing.internal")] {
        let set = ["service", "set", service, "--tunnel", "main", "--origin", origin];
        assert_eq!(relay.cli(&set).await?.status, 0);
    }
    let told = || async { relay.json(&["service", "show", "billing-eu2"]).await.ok()?["refused"].get(0).cloned() };
    wait::until("the managed one it may serve", SOON, told).await?;
    let status: Value = serde_json::from_str(&connector.cli(&["status", "--json"]).await?.stdout)?;
    let told: Vec<&Value> =
        status["managed_refused"].as_array().into_iter().flatten().map(|one| &one["name"]).collect();
    assert_eq!(told, [&Value::from("billing-eu2")]);
    relay.kill()?;
    connector.kill()?;
    relay.start().await?;
    connector.start().await?;
    relay.up("billing-eu").await?;
    assert_eq!(relay.get("orders", "/").await?.status, 503);
    let listed = relay.json(&["connector", "list"]).await?;
    assert_eq!(listed[0]["limited_to"], serde_json::json!(["billing-e*"]), "{listed}");
    Ok(())
}

#[tokio::test]
async fn a_tokens_uses_and_last_use_are_told_and_the_ways_to_hand_it_over_work() -> Result<()> {
    let mut relay = Relay::new()?;
    relay.start().await?;
    relay.tunnel("main", &["orders"]).await?;
    let made = relay.json(&["token", "create", "main", "--uses", "5"]).await?;
    let (token, id) = (made["token"].as_str().context("a token")?, made["id"].as_str().context("an id")?);
    let listed = async || -> Result<Value> {
        let all = relay.json(&["token", "list", "main"]).await?;
        all.as_array().and_then(|all| all.iter().find(|one| one["id"] == *id)).cloned().context("the token")
    };
    let before = listed().await?;
    assert_eq!((&before["used"], &before["uses_left"], &before["last_used"]), (&0.into(), &5.into(), &Value::Null));
    for (used, way) in
        ["CULVERT_TOKEN", "CULVERT_TOKEN_FILE", "--token-file", "credential", "TUNNEL_TOKEN"].iter().enumerate()
    {
        let mut connector = Connector::new("", &["orders=http://127.0.0.1:1"])?;
        let file = connector.directory().join("token");
        std::fs::write(&file, format!("{token}\n"))?;
        let path = file.display().to_string();
        connector.env = match *way {
            "CULVERT_TOKEN" | "TUNNEL_TOKEN" => vec![((*way).to_owned(), token.to_owned())],
            "CULVERT_TOKEN_FILE" => vec![((*way).to_owned(), path)],
            // As systemd does it: LoadCredential=token:/etc/culvert/token.
            "credential" => {
                vec![("CREDENTIALS_DIRECTORY".to_owned(), connector.directory().display().to_string())]
            }
            _ => {
                connector.args.extend(["--token-file".to_owned(), path]);
                Vec::new()
            }
        };
        connector.start().await.with_context(|| (*way).to_owned())?;
        let after = listed().await?;
        let uses = u64::try_from(used)? + 1;
        assert_eq!((&after["used"], &after["uses_left"]), (&uses.into(), &(5 - uses).into()), "{way}");
        assert!(after["last_used"].is_string(), "{after}");
        let command_line = std::fs::read(format!("/proc/{}/cmdline", connector.id().context("a process")?))?;
        assert!(!String::from_utf8_lossy(&command_line).contains("culvert_t1_"), "{way}");
        connector.terminate(SOON).await?;
    }
    assert_eq!(listed().await?["state"], "used_up");
    // The verifier alone is kept.
    let secret = token.trim_start_matches("culvert_t1_");
    for entry in std::fs::read_dir(relay.state())?.flatten().filter(|entry| entry.path().is_file()) {
        let bytes = std::fs::read(entry.path())?;
        assert!(!bytes.windows(secret.len()).any(|window| window == secret.as_bytes()), "{:?}", entry.path());
    }
    Ok(())
}

#[tokio::test]
async fn a_token_that_ended_or_is_used_from_elsewhere_ends_its_holder_by_its_own_line() -> Result<()> {
    let mut relay = Relay::new()?;
    relay.start().await?;
    relay.tunnel("main", &["orders"]).await?;
    let make = async |flags: &[&str]| relay.json(&[&["token", "create", "main"], flags].concat()).await;
    let elsewhere = make(&["--from", "192.0.2.0/24", "--from", "2001:db8::/32"]).await?;
    let expired = make(&["--expires", "1s"]).await?;
    let revoked = make(&[]).await?;
    let id = revoked["id"].as_str().context("an id")?;
    assert_eq!(relay.cli(&["token", "revoke", id]).await?.status, 0);
    let here = make(&["--from", "127.0.0.0/8"]).await?;
    let over = || async {
        let all = relay.json(&["token", "list"]).await.ok()?;
        all.as_array()?.iter().any(|one| one["id"] == expired["id"] && one["state"] == "expired").then_some(())
    };
    wait::until("the token's end", SOON, over).await?;
    for (made, why) in [(&elsewhere, "from this address"), (&expired, "has expired"), (&revoked, "was revoked")] {
        let mut connector = Connector::new(made["token"].as_str().context("a token")?, &["orders=http://127.0.0.1:1"])?;
        connector.launch()?;
        let status = connector.process()?.end(SOON).await?;
        assert_eq!(status.code(), Some(78), "{why}: {}", connector.output());
        assert!(connector.output().contains(why), "{why}: {}", connector.output());
    }
    let mut connector = Connector::new(here["token"].as_str().context("a token")?, &["orders=http://127.0.0.1:1"])?;
    connector.start().await
}

#[tokio::test]
async fn a_drained_connector_ends_what_it_has_gets_nothing_new_and_keeps_its_keys() -> Result<()> {
    let mut relay = Relay::new()?;
    relay.start().await?;
    let token = relay.tunnel("main", &["orders"]).await?;
    let (mut origins, mut connectors) = (Vec::new(), Vec::new());
    for name in ["a", "b"] {
        let origin = Origin::start(name).await?;
        let mut connector = Connector::new(&token, &[&format!("orders={}", origin.url())])?;
        connector.args.extend(["--name", name].map(str::to_owned));
        connector.start().await?;
        origins.push(origin);
        connectors.push(connector);
    }
    relay.pairs_up("orders", 2).await?;
    let http = relay.http;
    let slow = tokio::spawn(async move { client::post(http, "orders", "/slow/2000", "once").await });
    let busy = wait::until("the slow request", SOON, || async {
        origins.iter().position(|origin| origin.requests("/slow/2000") == 1)
    })
    .await?;
    let (name, other) = (["a", "b"][busy], ["b", "a"][busy]);
    let key_file = connectors[busy].state().join("private.key");
    let key = std::fs::read(&key_file)?;
    let public = relay.json(&["connector", "show", name]).await?["public_key"].clone();
    assert_eq!(relay.cli(&["connector", "drain", name]).await?.status, 0);
    for _ in 0..20 {
        assert_eq!(relay.get("orders", "/").await?.text(), format!("hello from {other}\n"));
    }
    let answer = slow.await??;
    assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "slow"), "what was in flight goes on");
    // It is told apart from one that is gone, and stays out after a restart of either end.
    connectors[busy].kill()?;
    connectors[busy].start().await?;
    relay.kill()?;
    relay.start().await?;
    relay.pairs_up("orders", 1).await?;
    wait::until("the drained one is back", SOON, || async {
        (relay.json(&["connector", "show", name]).await.ok()?["state"] == "draining").then_some(())
    })
    .await?;
    for _ in 0..20 {
        assert_eq!(relay.get("orders", "/").await?.text(), format!("hello from {other}\n"));
    }
    assert_eq!(relay.cli(&["connector", "undrain", name]).await?.status, 0);
    wait::until("both serve", SOON, || async {
        let text = relay.get("orders", "/").await.ok()?.text();
        (text == format!("hello from {name}\n")).then_some(())
    })
    .await?;
    assert_eq!(std::fs::read(&key_file)?, key);
    assert_eq!(relay.json(&["connector", "show", name]).await?["public_key"], public);
    let audit = relay.json(&["audit"]).await?;
    for action in ["connector.drain", "connector.undrain"] {
        assert!(audit.as_array().is_some_and(|rows| rows.iter().any(|row| row["action"] == action)), "{audit}");
    }
    Ok(())
}
