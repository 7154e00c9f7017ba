//! Secrets, keys and certificates that are replaced while requests run: by wrong ones, which change nothing, and by right ones.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use culvert_lab::load::Plan;
use culvert_lab::nginx::Nginx;
use culvert_lab::skip::{Need, unless};
use culvert_lab::{Connector, Relay, address, wait};

const PATIENCE: Duration = Duration::from_secs(15);
/// What is promised of a new value.
const IN_FORCE_WITHIN: Duration = Duration::from_secs(1);

/// Puts a file in the place of another as a whole.
fn replace(bytes: impl AsRef<[u8]>, at: &Path) -> Result<()> {
    let next = at.with_extension("next");
    std::fs::write(&next, bytes)?;
    Ok(std::fs::rename(next, at)?)
}

async fn behind(config: &str) -> Result<(Relay, Connector)> {
    let mut relay = Relay::new()?;
    relay.start().await?;
    let token = relay.tunnel("main", &["orders"]).await?;
    let mut connector = Connector::new(&token, &[])?;
    connector.config(config)?;
    connector.start().await?;
    relay.up("orders").await?;
    Ok((relay, connector))
}

/// How often the connector said that it changed nothing.
fn complaints(connector: &Connector) -> usize {
    connector.output().lines().filter(|line| line.contains("nothing was changed")).count()
}

/// Waits until it says so once more, and until the origin has been asked since.
async fn complains_again(relay: &Relay, connector: &Connector, before: usize, what: &str, text: &str) -> Result<()> {
    wait::until(&format!("a complaint about {what}"), PATIENCE, || async {
        (complaints(connector) > before).then_some(())
    })
    .await
    .with_context(|| connector.last_words())?;
    let answer = relay.get("orders", "/").await?;
    assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, text), "{what}");
    Ok(())
}

/// Waits until the origin answers this, and finds that it took no longer than promised.
async fn in_force(relay: &Relay, text: &str, since: Instant) -> Result<()> {
    wait::until(text, PATIENCE, || async {
        relay.get("orders", "/").await.ok().filter(|answer| answer.text() == text).map(drop)
    })
    .await?;
    let took = since.elapsed();
    ensure!(took < IN_FORCE_WITHIN, "{text}: in force after {took:?}");
    Ok(())
}

#[tokio::test]
async fn a_broken_secret_costs_no_request_and_the_next_right_one_is_in_force_within_a_second() -> Result<()> {
    let test = "a_broken_secret_costs_no_request_and_the_next_right_one_is_in_force_within_a_second";
    if unless(test, &[Need::Program("nginx")]) {
        return Ok(());
    }
    let at = address::at(address::own_loopback(), 31_080);
    let site = format!(
        "map $http_x_origin_key $known {{ default 0; first 1; second 1; }}\n\
         server {{ listen {at}; location / {{ if ($known = 0) {{ return 403 refused; }} return 200 $http_x_origin_key; }} }}"
    );
    let _nginx = Nginx::start(None, at, &site).await?;
    let files = tempfile::tempdir()?;
    let file = files.path().join("key");
    replace("first\n", &file)?;
    let (relay, connector) = behind(&format!(
        "[[service]]\nname = \"orders\"\norigin = \"http://{at}\"\n[service.headers]\nx-origin-key = {{ file = \"{}\" }}\n",
        file.display()
    ))
    .await?;
    let load = Plan::gets(relay.http, "orders").start();
    for (what, bytes) in [
        ("an empty one", &b""[..]),
        ("white space", b" \n"),
        ("what no field may hold", b"a\0b\n"),
        ("two lines", b"fir\nst\n"),
        ("what is no text", b"\xff\xfe\n"),
    ] {
        let before = complaints(&connector);
        replace(bytes, &file)?;
        complains_again(&relay, &connector, before, what, "first").await?;
    }
    // One that is away for a moment is no news, and one that comes back is.
    std::fs::remove_file(&file)?;
    assert_eq!(relay.get("orders", "/").await?.text(), "first");
    replace("second\n", &file)?;
    in_force(&relay, "second", Instant::now()).await?;
    load.finish().await?.all_well(10)?;
    assert!(!connector.output().contains("first") && !connector.output().contains("second"), "a secret is in the log");
    Ok(())
}

#[tokio::test]
async fn a_broken_client_certificate_costs_no_request_and_the_next_right_one_is_in_force_within_a_second() -> Result<()>
{
    let test = "a_broken_client_certificate_costs_no_request_and_the_next_right_one_is_in_force_within_a_second";
    if unless(test, &[Need::Program("nginx"), Need::Program("openssl")]) {
        return Ok(());
    }
    let files = tempfile::tempdir()?;
    let shown = files.path().display();
    let at = address::at(address::own_loopback(), 31_443);
    let script = format!(
        "set -e; new='-newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc'\n\
         openssl req -x509 $new -keyout ca.key -out ca.pem -days 300 -subj /CN=ca\n\
         sign() {{ openssl req $new -keyout $1.key -out $1.csr -subj /CN=$1 -addext $2\n\
         openssl x509 -req -in $1.csr -CA ca.pem -CAkey ca.key -CAcreateserial -copy_extensions copy -days 200 -out $1.pem; }}\n\
         sign site subjectAltName=IP:{}; sign one subjectAltName=DNS:one; sign two subjectAltName=DNS:two\n\
         openssl pkcs8 -topk8 -in two.key -out locked.key -passout pass:secret\n",
        at.ip()
    );
    let made = Command::new("sh").args(["-c", &script]).current_dir(files.path()).output()?;
    ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let site = format!(
        "server {{ listen {at} ssl; ssl_certificate {shown}/site.pem; ssl_certificate_key {shown}/site.key; \
         ssl_client_certificate {shown}/ca.pem; ssl_verify_client on; location / {{ return 200 $ssl_client_s_dn; }} }}"
    );
    let _nginx = Nginx::start(None, at, &site).await?;
    let bytes = |name: &str| std::fs::read(files.path().join(name));
    let (cert, key, ca) =
        (files.path().join("client.pem"), files.path().join("client.key"), files.path().join("trusted.pem"));
    replace(bytes("one.pem")?, &cert)?;
    replace(bytes("one.key")?, &key)?;
    replace(bytes("ca.pem")?, &ca)?;
    let (relay, connector) = behind(&format!(
        "[[service]]\nname = \"orders\"\norigin = \"https://{at}\"\n[service.tls]\nca = \"{}\"\ncert = \"{}\"\nkey = \"{}\"\n",
        ca.display(),
        cert.display(),
        key.display()
    ))
    .await?;
    let load = Plan::gets(relay.http, "orders").start();
    for (what, wrong, place, right) in [
        ("an empty certificate", Vec::new(), &cert, "one.pem"),
        ("a key where the certificate was", bytes("one.key")?, &cert, "one.pem"),
        ("another's certificate", bytes("two.pem")?, &cert, "one.pem"),
        ("another's key", bytes("two.key")?, &key, "one.key"),
        ("a key with a passphrase", bytes("locked.key")?, &key, "one.key"),
        ("half a key", bytes("one.key")?[..60].to_vec(), &key, "one.key"),
        ("an empty authority", Vec::new(), &ca, "ca.pem"),
    ] {
        let before = complaints(&connector);
        replace(wrong, place)?;
        complains_again(&relay, &connector, before, what, "CN=one").await?;
        let reloaded = connector.output().matches("configuration reloaded").count();
        replace(bytes(right)?, place)?;
        wait::until("the right one is taken again", PATIENCE, || async {
            (connector.output().matches("configuration reloaded").count() > reloaded).then_some(())
        })
        .await
        .context(what)?;
    }
    // One after the other, as tools do that renew them.
    replace(bytes("two.key")?, &key)?;
    replace(bytes("two.pem")?, &cert)?;
    in_force(&relay, "CN=two", Instant::now()).await?;
    load.finish().await?.all_well(10)?;
    Ok(())
}
