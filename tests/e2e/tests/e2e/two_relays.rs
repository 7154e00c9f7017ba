//! Two relays that share one PostgreSQL: either serves everything, and either may go.

use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use culvert_lab::load::Plan;
use culvert_lab::nginx::Nginx;
use culvert_lab::skip::{self, Need};
use culvert_lab::{Connector, Origin, Postgres, Relay, address, client, wait};
use serde_json::Value;

use crate::issuer;

const PATIENCE: Duration = Duration::from_secs(30);
/// What the issue promises of a change made at the other relay.
const IN_FORCE_WITHIN: Duration = Duration::from_secs(1);

/// Two relays, one database, one origin.
struct Two {
    one: Relay,
    two: Relay,
    postgres: Postgres,
    origin: Origin,
}

impl Two {
    async fn new() -> Result<Self> {
        let postgres = Postgres::start().await?;
        let (mut one, mut two) = (Relay::sharing(&postgres)?, Relay::sharing(&postgres)?);
        one.start().await?;
        two.start().await?;
        Ok(Self { one, two, postgres, origin: Origin::start("orders").await? })
    }

    async fn connector(&self, token: &str) -> Result<Connector> {
        let mut connector = Connector::new(token, &[&format!("orders={}", self.origin.url())])?;
        connector.start().await?;
        Ok(connector)
    }

    /// Both serve this many connectors.
    async fn pairs_up(&self, count: u64) -> Result<()> {
        self.one.pairs_up("orders", count).await?;
        self.two.pairs_up("orders", count).await
    }

    /// What the log of a test that fails needs.
    fn last_words(&self) -> String {
        format!("ONE\n{}\nTWO\n{}", self.one.last_words(), self.two.last_words())
    }
}

fn is_skipped(test: &str) -> bool {
    skip::unless(test, &[Need::Postgres])
}

/// Waits until `found`, and finds that it did not take longer than promised.
async fn in_force<F: Future<Output = bool>>(what: &str, since: Instant, mut found: impl FnMut() -> F) -> Result<()> {
    let seen = wait::until(what, PATIENCE, || {
        let found = found();
        async move { found.await.then_some(()) }
    });
    seen.await?;
    let took = since.elapsed();
    ensure!(took < IN_FORCE_WITHIN, "{what}: in force at the other relay after {took:?}");
    Ok(())
}

async fn status(connector: &Connector) -> Result<Value> {
    let said = connector.cli(&["status", "--json"]).await?;
    serde_json::from_str(&said.stdout).with_context(|| format!("{said:?}"))
}

async fn relays_up(connector: &Connector, count: usize) -> Result<Value> {
    let what = format!("{count} relays");
    let up = wait::until(&what, PATIENCE, || async {
        let status = status(connector).await.ok()?;
        let up = status["relays"].as_array()?.iter().filter(|relay| relay["state"] == "up").count();
        (up == count).then_some(status)
    });
    up.await.with_context(|| connector.last_words())
}

#[tokio::test]
async fn a_peer_that_one_relay_was_told_of_runs_at_the_other_with_its_pre_shared_key() -> Result<()> {
    if is_skipped("a peer of two relays") {
        return Ok(());
    }
    let setup = Two::new().await?;
    let psk = setup.one.directory().join("psk");
    std::fs::write(&psk, setup.one.cli_bare(&["genpsk"]).await?.stdout)?;
    let file = psk.display().to_string();
    let key = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";
    let since = Instant::now();
    let add = ["peer", "add", "branch", "--public-key", key, "--allowed-ips", "10.20.0.0/16", "--preshared-key", &file];
    let said = setup.one.cli(&add).await?;
    ensure!(said.status == 0, "{said:?}\n{}", setup.last_words());
    // The metrics count those that run: what is sealed for another relay alone does not.
    let runs = async |relay: &Relay, count: usize| {
        let line = format!("culvert_peers{{state=\"never\"}} {count}");
        relay.ask("/metrics").await.is_ok_and(|answer| answer.text().contains(&line))
    };
    in_force("a peer at the other relay", since, || runs(&setup.two, 1)).await.with_context(|| setup.last_words())?;
    let set = ["service", "set", "legacy", "--peer", "branch", "--origin", "http://10.20.0.5:8080"];
    ensure!(setup.two.cli(&set).await?.status == 0, "either may change it");
    let since = Instant::now();
    let known = async || setup.one.get("legacy", "/").await.is_ok_and(|answer| answer.status != 404);
    in_force("a service behind a peer at the other relay", since, known).await?;
    let since = Instant::now();
    ensure!(setup.two.cli(&["peer", "delete", "branch"]).await?.status == 0, "{}", setup.last_words());
    in_force("a peer's end at the other relay", since, || runs(&setup.one, 0)).await?;
    in_force("its service's end", since, async || setup.one.get("legacy", "/").await.is_ok_and(|a| a.status == 404))
        .await
}

#[tokio::test]
async fn a_token_names_both_relays_and_a_connector_that_joined_with_one_use_is_served_from_either() -> Result<()> {
    if is_skipped("a token of two relays") {
        return Ok(());
    }
    let setup = Two::new().await?;
    let token = setup.one.tunnel_with("main", &["orders"], &["--uses", "1"]).await?;
    let connector = setup.connector(&token).await?;
    setup.pairs_up(1).await.with_context(|| format!("{}\n{}", connector.last_words(), setup.last_words()))?;
    for relay in [&setup.one, &setup.two] {
        let answer = relay.get("orders", "/").await?;
        assert_eq!(answer.status, 200, "{}\n{}", answer.header("proxy-status"), setup.last_words());
        let listed = relay.json(&["connector", "list"]).await?;
        assert_eq!((listed.as_array().map(Vec::len), &listed[0]["state"]), (Some(1), &"up".into()), "{listed}");
    }
    let status = relays_up(&connector, 2).await?;
    assert_eq!(status["relays"].as_array().map(Vec::len), Some(2), "{status}");
    // Each relay has a pre-shared key of its own with it.
    let psk = |relay: &Value| {
        let name = relay["name"].as_str().unwrap_or_default().to_owned();
        std::fs::read_to_string(connector.state().join("relays").join(name).join("preshared.key"))
    };
    assert_ne!(psk(&status["relays"][0])?, psk(&status["relays"][1])?);
    let tokens = setup.two.json(&["token", "list"]).await?;
    assert_eq!(tokens[0]["uses_left"], 0, "one use for both relays: {tokens}");
    Ok(())
}

#[tokio::test]
async fn a_relay_that_comes_later_is_learned_by_connectors_that_have_no_token_any_more() -> Result<()> {
    if is_skipped("a relay that comes later") {
        return Ok(());
    }
    let postgres = Postgres::start().await?;
    let (mut one, mut two) = (Relay::sharing(&postgres)?, Relay::sharing(&postgres)?);
    one.start().await?;
    let origin = Origin::start("orders").await?;
    let token = one.tunnel_with("main", &["orders"], &["--uses", "1"]).await?;
    let mut connector = Connector::new(&token, &[&format!("orders={}", origin.url())])?;
    connector.start().await?;
    connector.terminate(PATIENCE).await?;
    connector.env.retain(|(name, _)| name != "CULVERT_TOKEN");
    connector.start().await?;
    one.up("orders").await?;

    two.start().await?;
    let words = || format!("{}\nONE\n{}\nTWO\n{}", connector.last_words(), one.last_words(), two.last_words());
    two.up("orders").await.with_context(words)?;
    assert_eq!(two.get("orders", "/").await?.status, 200);
    let status = relays_up(&connector, 2).await?;
    assert_eq!(status["relays"].as_array().map(Vec::len), Some(2), "{status}");
    let ready = connector.ask("/readyz").await?.json()?;
    let told: Vec<_> = ready["relays"].as_object().into_iter().flatten().map(|(_, state)| state.clone()).collect();
    assert_eq!(told, ["up", "up"], "{ready}");
    let shown = one.json(&["status"]).await?;
    assert_eq!(shown["relays"].as_array().map(Vec::len), Some(2), "{shown}");

    // The second has it for itself from now on.
    one.kill()?;
    connector.terminate(PATIENCE).await?;
    connector.start().await?;
    two.up("orders").await?;
    assert_eq!(two.get("orders", "/").await?.status, 200);

    let made = one_more(&two).await?;
    let second = Connector::new(&made, &[&format!("orders={}", origin.url())]);
    let mut second = second?;
    second.start().await?;
    two.pairs_up("orders", 2).await
}

async fn one_more(relay: &Relay) -> Result<String> {
    let said = relay.cli(&["token", "create", "main", "--uses", "1"]).await?;
    ensure!(said.status == 0, "{said:?}");
    Ok(said.stdout.trim().to_owned())
}

#[tokio::test]
async fn a_token_is_taken_at_either_relay_as_soon_as_it_is_shown_though_its_maker_is_killed() -> Result<()> {
    if is_skipped("a token whose maker is gone") {
        return Ok(());
    }
    let mut setup = Two::new().await?;
    setup.one.tunnel("main", &["orders"]).await?;
    let token = one_more(&setup.one).await?;
    setup.one.kill()?;
    let connector = setup.connector(&token).await?;
    setup.two.up("orders").await.with_context(|| connector.last_words())?;
    assert_eq!(setup.two.get("orders", "/").await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn a_relay_whose_key_changed_while_a_connector_was_away_too_long_is_found_through_the_other() -> Result<()> {
    if is_skipped("another key at the other relay") {
        return Ok(());
    }
    let setup = Two::new().await?;
    let token = setup.one.tunnel("main", &["orders"]).await?;
    let mut connector = setup.connector(&token).await?;
    setup.pairs_up(1).await?;
    connector.terminate(PATIENCE).await?;
    connector.env.retain(|(name, _)| name != "CULVERT_TOKEN");
    let rotated = setup.two.json(&["key", "rotate", "--grace", "1s"]).await?;
    wait::until("the end of the grace", PATIENCE, || async {
        let shown = setup.two.json(&["key", "show"]).await.ok()?;
        shown["previous"].is_null().then_some(())
    })
    .await?;
    connector.start().await?;
    setup.pairs_up(1).await.with_context(|| format!("{}\n{}", connector.last_words(), setup.last_words()))?;
    assert_eq!(setup.two.get("orders", "/").await?.status, 200);
    let status = relays_up(&connector, 2).await?;
    let keys: Vec<&Value> =
        status["relays"].as_array().into_iter().flatten().map(|relay| &relay["public_key"]).collect();
    assert!(keys.contains(&&rotated["public_key"]), "{status}");
    Ok(())
}

#[tokio::test]
async fn one_name_with_an_address_for_each_relay_is_enough() -> Result<()> {
    // In a mount namespace the connector reads another /etc/hosts.
    if skip::unless("one name for two relays", &[Need::Postgres, Need::Root, Need::Program("unshare")]) {
        return Ok(());
    }
    let postgres = Postgres::start().await?;
    let (mut one, mut two) = (Relay::sharing(&postgres)?, Relay::sharing(&postgres)?);
    let mut hosts = "127.0.0.1 localhost\n".to_owned();
    for relay in [&mut one, &mut two] {
        hosts.push_str(&format!("{} relays.test\n", relay.wireguard.ip()));
        relay.endpoint = format!("relays.test:{}", relay.wireguard.port());
        relay.start().await?;
    }
    let origin = Origin::start("orders").await?;
    let token = two.tunnel("main", &["orders"]).await?;
    let mut connector = Connector::new(&token, &[&format!("orders={}", origin.url())])?;
    let path = connector.directory().join("hosts");
    std::fs::write(&path, hosts)?;
    let inside = ["unshare", "--mount", "--", "sh", "-c", "mount --bind \"$0\" /etc/hosts && exec \"$@\""];
    connector.prefix = inside.map(str::to_owned).to_vec();
    connector.prefix.push(path.display().to_string());
    connector.start().await?;
    relays_up(&connector, 2).await?;
    for relay in [&one, &two] {
        relay.up("orders").await?;
        assert_eq!(relay.get("orders", "/").await?.status, 200);
    }
    Ok(())
}

#[tokio::test]
async fn what_changes_at_one_relay_is_in_force_at_the_other_within_a_second() -> Result<()> {
    if is_skipped("changes at the other relay") {
        return Ok(());
    }
    let setup = Two::new().await?;
    let token = setup.one.tunnel("main", &["orders"]).await?;
    let mut connectors = Vec::new();
    for _ in 0..2 {
        connectors.push(setup.connector(&token).await?);
    }
    setup.pairs_up(2).await.with_context(|| setup.last_words())?;
    let (one, two) = (&setup.one, &setup.two);
    let up_at_two = |count: u64| async move {
        let Ok(answer) = two.ask("/readyz").await else { return false };
        answer.json().is_ok_and(|body| body.pointer("/services/orders/up") == Some(&count.into()))
    };
    let cli = |args: Vec<String>| async move {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let said = one.cli(&args).await?;
        ensure!(said.status == 0, "{args:?}: {said:?}");
        // Counted from the end of the command: it is done when it says so.
        Ok(Instant::now())
    };
    let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let listed = one.json(&["connector", "list"]).await?;
    let ids: Vec<String> =
        listed.as_array().into_iter().flatten().filter_map(|one| Some(one["id"].as_str()?.to_owned())).collect();
    ensure!(ids.len() == 2, "{listed}");

    let since = cli(words(&format!("connector drain {}", ids[0]))).await?;
    in_force("a drained connector", since, || up_at_two(1)).await?;
    let since = cli(words(&format!("connector undrain {}", ids[0]))).await?;
    in_force("an undrained connector", since, || up_at_two(2)).await?;
    let since = cli(words(&format!("connector revoke {}", ids[0]))).await?;
    in_force("a revoked connector", since, || up_at_two(1)).await?;

    let since = cli(words("tunnel create second --service parts")).await?;
    in_force("a new tunnel's service", since, || async {
        two.get("parts", "/").await.is_ok_and(|answer| answer.status == 503)
    })
    .await?;
    let since = cli(words("tunnel delete second")).await?;
    in_force("a deleted tunnel's service", since, || async {
        two.get("parts", "/").await.is_ok_and(|answer| answer.status == 404)
    })
    .await?;
    let since = cli(words("tunnel delete main")).await?;
    in_force("a deleted tunnel", since, || async {
        two.get("orders", "/").await.is_ok_and(|answer| answer.status == 404)
    })
    .await?;
    for connector in &mut connectors {
        let ended = connector.process()?.end(PATIENCE).await?;
        assert_eq!(ended.code(), Some(78), "{}", connector.last_words());
    }
    Ok(())
}

#[tokio::test]
async fn requests_go_on_while_relays_are_killed_and_restarted_and_so_is_the_database() -> Result<()> {
    if skip::unless("two relays that come and go", &[Need::Postgres, Need::Program("nginx")]) {
        return Ok(());
    }
    let mut setup = Two::new().await?;
    let token = setup.one.tunnel("main", &["orders"]).await?;
    let mut connectors = Vec::new();
    for _ in 0..2 {
        connectors.push(setup.connector(&token).await?);
    }
    setup.pairs_up(2).await?;
    let listen = address::at(address::own_loopback(), 31_000);
    // Every request may try both: a relay that is back is not passed over because it was away a moment ago.
    let http = format!(
        "upstream relays {{ server {} max_fails=0; server {} max_fails=0; keepalive 16; }}\n\
         server {{ listen {listen}; location / {{ proxy_pass http://relays; proxy_http_version 1.1;\n\
         proxy_set_header Connection \"\"; proxy_set_header Host orders; proxy_connect_timeout 1s;\n\
         proxy_next_upstream error timeout http_502 http_503 http_504; }} }}",
        setup.one.http, setup.two.http
    );
    let nginx = Nginx::start(None, listen, &http).await?;
    let answered = |count: usize| {
        let origin = &setup.origin;
        let from = origin.requests("/");
        async move {
            wait::until("requests at the origin", PATIENCE, || async {
                (origin.requests("/") >= from + count).then_some(())
            })
            .await
        }
    };
    let begun = Instant::now();
    let load = Plan::gets(listen, "orders").per_second(220).start();
    answered(200).await?;
    setup.one.kill()?;
    answered(400).await?;
    setup.one.start().await?;
    setup.one.pairs_up("orders", 2).await?;
    answered(200).await?;
    setup.two.terminate(PATIENCE).await?;
    answered(200).await?;
    setup.two.start().await?;
    setup.two.pairs_up("orders", 2).await?;
    setup.postgres.stop().await?;
    answered(400).await?;
    // Neither relay is less ready for it, and both say so.
    for relay in [&setup.one, &setup.two] {
        wait::until("a relay to notice", PATIENCE, || async {
            let ready = relay.ask("/readyz").await.ok()?;
            (ready.status == 200 && ready.text().contains("degraded")).then_some(())
        })
        .await?;
    }
    setup.postgres.restart().await?;
    answered(400).await?;
    let report = load.finish().await?;
    let rate = report.answered as f64 / begun.elapsed().as_secs_f64();
    report.all_well(1800).with_context(|| {
        let refused = |relay: &Relay| {
            let output = relay.output();
            let lines = output.lines().filter(|line| line.starts_with('{') && !line.contains("\"status\":200"));
            lines.take(5).collect::<Vec<_>>().join("\n")
        };
        let refused = format!("{}\n{}", refused(&setup.one), refused(&setup.two));
        format!("NGINX\n{}\nNOT 200\n{refused}\n{}", nginx.output(), setup.last_words())
    })?;
    ensure!(rate >= 200.0, "{rate:.0} requests a second");
    // Both take changes again, and hear of each other's.
    wait::until("a change at the first relay", PATIENCE, || async {
        (setup.one.cli(&["tunnel", "create", "after", "--service", "after"]).await.ok()?.status == 0).then_some(())
    })
    .await?;
    wait::until("it at the second", PATIENCE, || async {
        (client::get(setup.two.http, "after", "/").await.ok()?.status == 503).then_some(())
    })
    .await
}

#[tokio::test]
async fn either_relay_serves_the_keys_that_connectors_sign_with_and_forgets_them_together() -> Result<()> {
    if is_skipped("keys that connectors sign with") {
        return Ok(());
    }
    let postgres = Postgres::start().await?;
    let origin = Origin::start("orders").await?;
    let (one_at, two_at) = (address::at(address::own_loopback(), 31_482), address::at(address::own_loopback(), 31_482));
    let (mut one, mut two) = (Relay::sharing(&postgres)?, Relay::sharing(&postgres)?);
    for (relay, at) in [(&one, one_at), (&two, two_at)] {
        let file = relay.directory().join("relay.toml");
        let text = std::fs::read_to_string(&file)?;
        let issuer = format!("[issuer]\nurl = \"https://id.example\"\nlisten = \"{at}\"\n");
        std::fs::write(file, text + &issuer)?;
    }
    one.start().await?;
    let token = one.tunnel("shop", &["orders"]).await?;
    let mut connector = Connector::new(&token, &[])?;
    connector.config(&issuer::signing(&origin))?;
    connector.start().await?;
    one.up("orders").await?;
    let served = wait::until("the first relay serves keys", PATIENCE, || async {
        issuer::kids(one_at).await.ok().flatten().filter(|kids| !kids.is_empty())
    })
    .await?;
    connector.kill()?;
    // It has never seen the connector.
    two.start().await?;
    wait::until("the second relay serves them too", PATIENCE, || async {
        issuer::kids(two_at).await.ok().flatten().filter(|kids| *kids == served)
    })
    .await?;
    let id = two.json(&["connector", "list"]).await?[0]["id"].as_str().context("an id")?.to_owned();
    let said = two.cli(&["connector", "revoke", &id]).await?;
    ensure!(said.status == 0, "{said:?}");
    let since = Instant::now();
    assert_eq!(issuer::kids(two_at).await?, Some(Vec::new()));
    in_force("its keys are gone", since, || async {
        issuer::kids(one_at).await.is_ok_and(|kids| kids == Some(Vec::new()))
    })
    .await
}
