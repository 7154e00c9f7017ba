//! The relay as the issuer that verifiers ask: over TLS, and with the keys of connectors that are away.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use culvert_lab::certificate::Certificate;
use culvert_lab::process::Said;
use culvert_lab::skip::{Need, unless};
use culvert_lab::{Connector, Origin, Relay, address, binary, client, process, spawner, wait};

const PATIENCE: Duration = Duration::from_secs(15);

/// The `kid`s that are served for the tunnel `shop`; none where it is not known.
pub(crate) async fn kids(at: SocketAddr) -> Result<Option<Vec<String>>> {
    let answer = client::get(at, "id.example", "/shop/.well-known/jwks.json").await?;
    if answer.status != 200 {
        return Ok(None);
    }
    let keys = answer.json()?;
    let keys = keys["keys"].as_array().context("a key set")?;
    Ok(Some(keys.iter().filter_map(|key| key["kid"].as_str().map(str::to_owned)).collect()))
}

/// What a connector signs: `orders` behind a token.
pub(crate) fn signing(origin: &Origin) -> String {
    format!(
        "[[service]]\nname = \"orders\"\norigin = \"{}\"\n[service.auth]\ntype = \"jwt\"\naudience = \"orders-api\"\n\
         issuer = \"https://localhost/shop\"\n",
        origin.url()
    )
}

#[tokio::test]
async fn a_relay_that_restarts_serves_the_keys_of_a_connector_that_is_away_until_it_is_revoked() -> Result<()> {
    let origin = Origin::start("orders").await?;
    let at = address::at(address::own_loopback(), 31_482);
    let mut relay = Relay::new()?;
    relay.config(&format!(
        "[http]\nlisten = [\"{}\"]\n[issuer]\nurl = \"http://{at}\"\nlisten = \"{at}\"\n",
        relay.http
    ))?;
    relay.start().await?;
    let token = relay.tunnel("shop", &["orders"]).await?;
    let mut connector = Connector::new(&token, &[])?;
    connector.config(&signing(&origin))?;
    connector.start().await?;
    relay.up("orders").await?;
    let served = wait::until("keys are served", PATIENCE, || async {
        kids(at).await.ok().flatten().filter(|kids| !kids.is_empty())
    })
    .await?;
    // Written a moment after they are served.
    let database = relay.state().join("registry.db-wal");
    let x = client::get(at, "id.example", "/shop/.well-known/jwks.json").await?.json()?["keys"][0]["x"].clone();
    let x = x.as_str().context("a key")?.to_owned();
    wait::until("the key is kept", PATIENCE, || async {
        let kept = std::fs::read(&database).ok()?;
        kept.windows(x.len()).any(|window| window == x.as_bytes()).then_some(())
    })
    .await?;
    connector.kill()?;
    relay.kill()?;
    relay.start().await?;
    assert_eq!(kids(at).await?, Some(served), "from the first answer on, without the connector");
    let id = relay.json(&["connector", "list"]).await?[0]["id"].as_str().context("an id")?.to_owned();
    let said = relay.cli(&["connector", "revoke", &id]).await?;
    ensure!(said.status == 0, "{said:?}");
    assert_eq!(kids(at).await?, Some(Vec::new()), "what it signed is nothing any more");
    relay.kill()?;
    relay.start().await?;
    assert_eq!(kids(at).await?, Some(Vec::new()), "nor after a restart");
    Ok(())
}

/// `verify_jwt.py`, which trusts this authority alone.
async fn verify(token: &str, issuer: &str, authority: &Path) -> Result<Said> {
    let mut command = spawner::command(binary::PYTHON);
    command.arg(binary::project().join("deploy/examples/origins/verify_jwt.py")).args([issuer, "orders-api"]);
    command.env("SSL_CERT_FILE", authority);
    process::run("verify_jwt.py", command, Some(token.as_bytes()), PATIENCE).await
}

#[tokio::test]
async fn verifiers_fetch_the_keys_over_tls_and_a_renewed_certificate_is_used_without_a_restart() -> Result<()> {
    let needs = [Need::Python("jwt, cryptography"), Need::Program("openssl"), Need::Program("curl")];
    if unless("verifiers_fetch_the_keys_over_tls_and_a_renewed_certificate_is_used_without_a_restart", &needs) {
        return Ok(());
    }
    let origin = Origin::start("orders").await?;
    let files = tempfile::tempdir()?;
    let ip = address::own_loopback();
    let at = address::at(ip, 31_482);
    let first = Certificate::make(files.path(), "id", "localhost").await?;
    let base = format!("https://localhost:{}", at.port());
    // As a name that leads here: other tests have the port on other loopback addresses.
    let via = format!("localhost:{}:{ip}", at.port());
    let mut relay = Relay::new()?;
    relay.config(&format!(
        "[http]\nlisten = [\"{}\"]\n[issuer]\nurl = \"{base}\"\nlisten = \"{at}\"\n{}\n",
        relay.http,
        first.setting()
    ))?;
    relay.start().await?;
    let token = relay.tunnel("shop", &["orders"]).await?;
    let mut connector = Connector::new(&token, &[])?;
    connector.config(&signing(&origin))?;
    connector.start().await?;
    relay.up("orders").await?;
    let fetch = |http: &'static str, authority: &Path| {
        let mut command = Command::new("curl");
        command.args(["-sS", http, "--resolve", &via, "--cacert"]).arg(authority);
        command.args(["-w", " %{http_version}", &format!("{base}/shop/.well-known/jwks.json")]);
        process::run("curl", command, None, PATIENCE)
    };
    for (http, version) in [("--http1.1", " 1.1"), ("--http2", " 2")] {
        let said = fetch(http, &first.cert).await?;
        assert!(said.stdout.contains("\"kid\"") && said.stdout.ends_with(version), "{said:?}");
    }
    // Who forgets the s is told so.
    let plain = client::get(at, "id.example", "/shop/.well-known/jwks.json").await?;
    assert_eq!((plain.status.as_u16(), plain.text().contains("speaks TLS")), (400, true), "{}", plain.text());
    let expires = relay.cli(&["status", "--json"]).await?.stdout;
    let metrics = relay.ask("/metrics").await?.text();
    assert!(metrics.contains(&at.to_string()) || expires.contains(&at.to_string()), "{metrics}\n{expires}");

    let other = tempfile::tempdir()?;
    let second = Certificate::make(other.path(), "id", "localhost").await?;
    for (from, to) in [(&second.key, &first.key), (&second.cert, &first.cert)] {
        let next = to.with_extension("next");
        std::fs::copy(from, &next)?;
        std::fs::rename(next, to)?;
    }
    wait::until("the renewed certificate is shown", PATIENCE, || async {
        fetch("--http1.1", &second.cert).await.ok().filter(|said| said.status == 0).map(drop)
    })
    .await?;
    // A broken one is not.
    std::fs::write(&first.cert, "nothing")?;
    relay.process()?.line("changed files of a listener's TLS are not right", PATIENCE).await?;
    assert_eq!(fetch("--http1.1", &second.cert).await?.status, 0);
    Ok(())
}

#[tokio::test]
async fn pyjwt_takes_a_token_by_keys_that_it_fetched_over_tls_and_trusts_no_other_server() -> Result<()> {
    let needs = [Need::Python("jwt, cryptography"), Need::Program("openssl")];
    if unless("pyjwt_takes_a_token_by_keys_that_it_fetched_over_tls_and_trusts_no_other_server", &needs) {
        return Ok(());
    }
    let origin = Origin::start("orders").await?;
    let files = tempfile::tempdir()?;
    let at = address::at(address::own_loopback(), 31_482);
    let shown = files.path().display();
    let script = format!(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3 -subj /CN=id \
         -addext subjectAltName=IP:{} -keyout {shown}/id.key -out {shown}/id.pem",
        at.ip()
    );
    let made = Command::new("sh").args(["-c", &script]).output()?;
    ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let other = Certificate::make(files.path(), "other", "localhost").await?;
    let mut relay = Relay::new()?;
    relay.config(&format!(
        "[http]\nlisten = [\"{}\"]\n[issuer]\nurl = \"https://{at}\"\nlisten = \"{at}\"\n\
         tls = {{ cert = \"{shown}/id.pem\", key = \"{shown}/id.key\" }}\n",
        relay.http
    ))?;
    relay.start().await?;
    let token = relay.tunnel("shop", &["orders"]).await?;
    let mut connector = Connector::new(&token, &[])?;
    connector.config(&signing(&origin).replace("issuer = \"https://localhost/shop\"\n", ""))?;
    connector.start().await?;
    relay.up("orders").await?;
    let seen = relay.get("orders", "/head").await?.json()?;
    let fields = seen["headers"].as_array().or(seen["fields"].as_array()).context("fields")?;
    let field = fields.iter().find(|field| field[0].as_str().is_some_and(|name| name == "authorization"));
    let token = field.and_then(|field| field[1].as_str()?.strip_prefix("Bearer ")).context("a token")?.to_owned();
    let issuer = format!("https://{at}/shop");
    let taken = verify(&token, &issuer, &files.path().join("id.pem")).await?;
    assert_eq!(taken.status, 0, "{taken:?}");
    let refused = verify(&token, &issuer, &other.cert).await?;
    assert!(refused.status != 0 && refused.stderr.contains("CERTIFICATE_VERIFY_FAILED"), "{refused:?}");
    Ok(())
}
