//! A relay's host is lost: from its backup it comes back as itself, and nobody at either end has to do anything.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use culvert_lab::process::Said;
use culvert_lab::skip::{self, Need};
use culvert_lab::{Connector, Origin, Postgres, Relay, address, client, wait};
use http::Method;
use serde_json::Value;

const PASSPHRASE: &str = "correct horse battery staple";
/// How long a connector may take to be back behind a relay that was away.
const BACK_WITHIN: Duration = Duration::from_secs(20);
/// And one whose pre-shared keys went on since the backup: it tries those first.
const RECOVERED_WITHIN: Duration = Duration::from_secs(150);

/// A relay, what is behind it, and where its backup goes.
struct Host {
    relay: Relay,
    connector: Connector,
    _origin: Origin,
    file: PathBuf,
    passphrase: PathBuf,
}

impl Host {
    /// `connector` is the connector's configuration.
    async fn new(mut relay: Relay, connector_config: &str) -> Result<Self> {
        relay.start().await?;
        let origin = Origin::start("orders").await?;
        let token = relay.tunnel("main", &["orders"]).await?;
        let mut connector = Connector::new(&token, &[&format!("orders={}", origin.url())])?;
        connector.config(connector_config)?;
        connector.start().await?;
        relay.up("orders").await?;
        let (file, passphrase) = (relay.directory().join("relay.backup"), relay.directory().join("passphrase"));
        std::fs::write(&passphrase, PASSPHRASE)?;
        Ok(Self { relay, connector, _origin: origin, file, passphrase })
    }

    async fn backup(&self) -> Result<Said> {
        self.run("backup").await
    }

    /// Loses the host and everything on it but the backup.
    async fn lose_and_restore(&mut self) -> Result<Said> {
        self.relay.kill()?;
        std::fs::remove_dir_all(self.relay.state())?;
        let said = self.run("restore").await?;
        self.relay.launch()?;
        self.relay.ready().await?;
        Ok(said)
    }

    async fn run(&self, verb: &str) -> Result<Said> {
        let path = |path: &PathBuf| path.to_str().map(str::to_owned).context("a path of text");
        let (file, passphrase) = (path(&self.file)?, path(&self.passphrase)?);
        let mut args = vec![verb, &file, "--passphrase-file", &passphrase];
        // The configuration says where the registry is.
        let at = self.relay.args.iter().position(|arg| arg == "--config");
        if let Some(config) = at.and_then(|at| self.relay.args.get(at + 1)) {
            args.extend(["--config", config]);
        }
        let said = self.relay.cli(&args).await?;
        ensure!(said.status == 0, "{verb}: {said:?}");
        Ok(said)
    }

    async fn back(&self, within: Duration) -> Result<()> {
        let back = wait::until("the connector to serve again", within, || async {
            self.relay.get("orders", "/").await.ok().filter(|answer| answer.status == 200)
        });
        back.await
            .map(drop)
            .with_context(|| format!("RELAY\n{}\nCONNECTOR\n{}", self.relay.last_words(), self.connector.last_words()))
    }

    async fn actions(&self) -> Result<Vec<String>> {
        let trail = self.relay.json(&["audit"]).await?;
        let action = |row: &Value| row["action"].as_str().unwrap_or_default().to_owned();
        Ok(trail.as_array().context("an array")?.iter().map(action).collect())
    }
}

#[tokio::test]
async fn a_lost_relay_comes_back_and_its_connector_and_gateway_notice_nothing() -> Result<()> {
    let mut relay = Relay::new()?;
    let guarded = address::at(relay.http.ip(), 31_082);
    relay.config(&format!(
        "[http]\nlisten = [\"{}\"]\n[[http.listener]]\nlisten = \"{guarded}\"\ngateways = [\"kong\"]\n",
        relay.http
    ))?;
    let mut host = Host::new(relay, "").await?;
    let said = host.relay.cli(&["gateway", "create", "kong", "--service", "orders"]).await?;
    ensure!(said.status == 0, "{said:?}");
    let secret = said.stdout.trim().to_owned();
    let (identity, members) =
        (host.relay.json(&["key", "show"]).await?, host.relay.json(&["connector", "list"]).await?);
    let process = host.connector.id();

    // Requests and the registry go on while the backup is made.
    let http = host.relay.http;
    let requests = tokio::spawn(async move {
        let (mut good, mut bad) = (0, 0);
        for _ in 0..200 {
            match client::get(http, "orders", "/").await {
                Ok(answer) if answer.status == 200 => good += 1,
                _ => bad += 1,
            }
        }
        (good, bad)
    });
    let writes = async {
        for number in 0..5 {
            host.relay.tunnel(&format!("other{number}"), &[&format!("other{number}")]).await?;
        }
        anyhow::Ok(())
    };
    let (said, written) = tokio::join!(host.backup(), writes);
    let said = said?;
    written?;
    assert_eq!(requests.await?, (200, 0));
    assert!(said.stdout.is_empty() && said.stderr.contains("the registry,"), "{said:?}");

    host.lose_and_restore().await?;
    assert_eq!(host.relay.json(&["key", "show"]).await?["public_key"], identity["public_key"]);
    host.back(BACK_WITHIN).await?;
    let again = host.relay.json(&["connector", "list"]).await?;
    for field in ["id", "public_key", "inner_address", "tunnel"] {
        assert_eq!(again[0][field], members[0][field]);
    }
    assert_eq!(host.connector.id(), process);
    assert!(host.connector.process()?.runs(), "the connector was not started again");
    let mut request = client::request(Method::GET, "orders", "/", Bytes::new())?;
    request.headers_mut().insert("culvert-gateway", secret.parse()?);
    let answer = client::send(guarded, request).await?;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let actions = host.actions().await?;
    assert!(
        actions.contains(&"gateway.create".to_owned()) && actions.contains(&"relay.backup".to_owned()),
        "{actions:?}"
    );
    assert_eq!(actions.last().map(String::as_str), Some("relay.restore"), "{actions:?}");
    Ok(())
}

#[tokio::test]
async fn a_backup_that_is_older_than_the_pre_shared_keys_in_use_is_good_enough() -> Result<()> {
    let mut host = Host::new(Relay::new()?, "[key]\nrenew_psk_after = \"10s\"\n").await?;
    host.backup().await?;
    // Without the token, so that nothing but the first pre-shared key helps.
    assert_eq!(host.connector.terminate(Duration::from_secs(20)).await?.code(), Some(0));
    host.connector.env.clear();
    host.connector.start().await?;
    let path = host.connector.state().join("preshared.key");
    for _ in 0..2 {
        let before = std::fs::read(&path)?;
        wait::until("another pre-shared key", Duration::from_secs(60), || async {
            (std::fs::read(&path).ok()? != before).then_some(())
        })
        .await
        .with_context(|| host.connector.last_words())?;
    }
    host.lose_and_restore().await?;
    host.back(RECOVERED_WITHIN).await
}

#[tokio::test]
async fn with_postgresql_a_backup_holds_the_identity_alone_and_says_so() -> Result<()> {
    if skip::unless("with_postgresql_a_backup_holds_the_identity_alone_and_says_so", &[Need::Postgres]) {
        return Ok(());
    }
    let postgres = Postgres::start().await?;
    let mut host = Host::new(Relay::sharing(&postgres)?, "").await?;
    let said = host.backup().await?;
    assert!(said.stderr.contains("PostgreSQL") && said.stderr.contains("pg_dump"), "{said:?}");
    let said = host.lose_and_restore().await?;
    assert!(said.stderr.contains("PostgreSQL") && !said.stderr.contains("undone"), "{said:?}");
    host.back(BACK_WITHIN).await
}
