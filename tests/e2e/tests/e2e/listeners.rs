//! Listeners of the long form: TLS with real curl, certificates that change, PROXY headers, what does not start.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use culvert_lab::process::{Said, code, run};
use culvert_lab::skip::{Need, unless};
use culvert_lab::{Relay, address, binary, client, wait};

use crate::Setup;

const HOST: &str = "orders.internal";

/// A certificate and key for [`HOST`], its own authority, renewed in place.
struct Certificate {
    directory: PathBuf,
}

impl Certificate {
    async fn new(directory: &Path, name: &str) -> Result<Self> {
        let certificate = Self { directory: directory.join(name) };
        std::fs::create_dir(&certificate.directory)?;
        certificate.renew().await?;
        Ok(certificate)
    }

    async fn renew(&self) -> Result<()> {
        let (key, cert) = (self.path("new.key"), self.path("new.crt"));
        let subject = format!("subjectAltName=DNS:{HOST}");
        let mut command = Command::new("openssl");
        command.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30"]);
        command.args(["-subj", "/CN=relay", "-addext", &subject, "-addext", "extendedKeyUsage=serverAuth,clientAuth"]);
        command.args(["-addext", "basicConstraints=critical,CA:FALSE"]);
        command.arg("-keyout").arg(&key).arg("-out").arg(&cert);
        let said = run("openssl", command, None, Duration::from_secs(20)).await?;
        ensure!(said.status == 0, "{}", said.stderr);
        std::fs::rename(key, self.path("key.pem"))?;
        std::fs::rename(cert, self.path("cert.pem"))?;
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn tls(&self) -> String {
        format!("cert = \"{}\", key = \"{}\"", self.path("cert.pem").display(), self.path("key.pem").display())
    }
}

/// `curl https://orders.internal:PORT/PATH`, believing this certificate alone.
async fn curl(to: SocketAddr, path: &str, trusts: &Path, args: &[&str]) -> Result<Said> {
    let mut command = Command::new("curl");
    command.args(["-sS", "--max-time", "10", "-w", "\n%{http_version} %{http_code}"]);
    command.arg("--resolve").arg(format!("{HOST}:{}:{}", to.port(), to.ip())).arg("--cacert").arg(trusts);
    command.args(args).arg(format!("https://{HOST}:{}{path}", to.port()));
    run("curl", command, None, Duration::from_secs(15)).await
}

#[tokio::test]
async fn callers_speak_both_versions_over_tls_and_a_new_certificate_needs_no_restart() -> Result<()> {
    if unless("callers speak over TLS", &[Need::Program("curl"), Need::Program("openssl")]) {
        return Ok(());
    }
    let mut relay = Relay::new()?;
    let secure = address::at(relay.http.ip(), 31_443);
    let certificate = Certificate::new(relay.directory(), "relay").await?;
    let first = certificate.path("first.pem");
    std::fs::copy(certificate.path("cert.pem"), &first)?;
    relay.config(&format!(
        "[http]\nlisten = [\"{}\"]\n[[http.listener]]\nlisten = \"{secure}\"\ntls = {{ {} }}\n[limits]\nhandshakes = 20\n",
        relay.http,
        certificate.tls()
    ))?;
    relay.start().await?;
    let setup = Setup::behind(relay).await?;
    for (flag, version) in [("--http1.1", "1.1 200"), ("--http2", "2 200")] {
        let said = curl(secure, "/head", &first, &[flag]).await?;
        ensure!(said.stdout.ends_with(version), "{flag}: {}{}", said.stdout, said.stderr);
        let seen = said.stdout.to_ascii_lowercase();
        ensure!(seen.contains("proto=https") && seen.contains("x-forwarded-proto"), "{seen}");
    }
    // Who forgot that it is TLS is told so.
    let clear = b"GET / HTTP/1.1\r\nHost: orders.internal\r\n\r\n";
    let told = String::from_utf8(client::raw(secure, clear, client::LIMIT).await?)?;
    ensure!(told.starts_with("HTTP/1.1 400 ") && told.ends_with("use https in the URL\n"), "{told}");
    let (head, body) = told.split_once("\r\n\r\n").context("no head")?;
    ensure!(head.contains(&format!("content-length: {}\r\n", body.len())), "{told}");
    // Who connects and says nothing keeps nobody out.
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(tokio::net::TcpStream::connect(secure).await?);
    }
    for _ in 0..3 {
        let said = curl(secure, "/", &first, &[]).await?;
        ensure!(said.stdout.ends_with("200"), "{}{}", said.stdout, said.stderr);
    }
    let crowded = setup.relay.ask("/metrics").await?.text();
    let crowded = crowded.lines().find_map(|line| {
        line.strip_prefix("culvert_caller_connections_turned_away_total{reason=\"crowded\"} ")?.parse::<f64>().ok()
    });
    ensure!(crowded.is_some_and(|crowded| crowded >= 80.0), "{crowded:?}");
    drop(silent);

    let metrics = setup.relay.ask("/metrics").await?.text();
    let expiry =
        metrics.lines().find(|line| line.starts_with("culvert_certificate_expiry_seconds{")).context("expiry")?;
    let days = expiry.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok()).context("a number")? / 86_400.0;
    ensure!((29.0..=30.0).contains(&days), "{expiry}");

    certificate.renew().await?;
    let second = certificate.path("cert.pem");
    wait::until("the new certificate", Duration::from_secs(15), || async {
        let said = curl(secure, "/", &second, &[]).await.ok()?;
        (said.status == 0).then_some(())
    })
    .await?;
    ensure!(curl(secure, "/", &first, &[]).await?.status != 0, "the old one is still used");

    std::fs::write(certificate.path("key.pem"), "no key")?;
    wait::until("the complaint", Duration::from_secs(15), || async {
        setup.relay.output().contains("keeping the old").then_some(())
    })
    .await?;
    ensure!(curl(secure, "/", &second, &[]).await?.status == 0, "bad files changed something");
    let reload = setup.relay.cli(&["reload"]).await?;
    ensure!(reload.status == 78 && reload.stderr.contains("holds no PEM private key"), "{reload:?}");
    Ok(())
}

#[tokio::test]
async fn wrong_tls_files_end_the_start_with_one_line() -> Result<()> {
    if unless("wrong TLS files", &[Need::Program("openssl")]) {
        return Ok(());
    }
    let mut relay = Relay::new()?;
    let (one, other) =
        (Certificate::new(relay.directory(), "one").await?, Certificate::new(relay.directory(), "other").await?);
    let mixed = format!("cert = \"{}\", key = \"{}\"", one.path("cert.pem").display(), other.path("key.pem").display());
    for (tls, words) in [
        (mixed, "is not the one of the certificate in"),
        ("cert = \"nowhere.pem\", key = \"nowhere.key\"".to_owned(), "nowhere.pem: No such file"),
        (format!("{}, client_ca = \"nowhere.pem\"", one.tls()), "nowhere.pem: No such file"),
    ] {
        relay.args.clear();
        let listen = relay.http;
        relay.config(&format!("[[http.listener]]\nlisten = \"{listen}\"\ntls = {{ {tls} }}\n"))?;
        relay.launch()?;
        let status = relay.process()?.end(Duration::from_secs(10)).await?;
        let output = relay.output();
        ensure!(code(status) == 78 && output.contains(words), "{output}");
        let file = relay.directory().join("relay.toml").display().to_string();
        let check = relay.cli_bare(&["check", "--config", &file]).await?;
        ensure!(check.status == 78 && check.stderr.contains(words), "{check:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_gateway_is_known_by_the_certificate_that_it_shows() -> Result<()> {
    if unless("a gateway by certificate", &[Need::Program("curl"), Need::Program("openssl")]) {
        return Ok(());
    }
    let mut relay = Relay::new()?;
    let secure = address::at(relay.http.ip(), 31_443);
    let own = Certificate::new(relay.directory(), "relay").await?;
    let kong = Certificate::new(relay.directory(), "kong").await?;
    let stranger = Certificate::new(relay.directory(), "stranger").await?;
    relay.config(&format!(
        "[http]\nlisten = [\"{}\"]\n[[http.listener]]\nlisten = \"{secure}\"\ngateways = [\"kong\"]\n\
         tls = {{ {}, client_ca = \"{}\" }}\n",
        relay.http,
        own.tls(),
        kong.path("cert.pem").display()
    ))?;
    relay.start().await?;
    let setup = Setup::behind(relay).await?;
    let fingerprint = {
        let mut command = Command::new("openssl");
        command.args(["x509", "-noout", "-fingerprint", "-sha256", "-in"]).arg(kong.path("cert.pem"));
        let said = run("openssl", command, None, Duration::from_secs(10)).await?;
        said.stdout.split_once('=').context("a fingerprint")?.1.trim().to_owned()
    };
    let created =
        setup.relay.cli(&["gateway", "create", "kong", "--service", "orders", "--cert-sha256", &fingerprint]).await?;
    ensure!(created.status == 0, "{created:?}");
    let trusts = own.path("cert.pem");
    let shows = |certificate: &Certificate| {
        ["--cert", "cert.pem", "--key", "key.pem"].map(|part| match part.strip_suffix(".pem") {
            Some(_) => certificate.path(part).display().to_string(),
            None => part.to_owned(),
        })
    };
    let with = shows(&kong);
    let with: Vec<&str> = with.iter().map(String::as_str).collect();
    let said = curl(secure, "/", &trusts, &with).await?;
    ensure!(said.stdout.ends_with("200"), "{said:?}");
    let said = curl(secure, "/", &trusts, &[]).await?;
    ensure!(said.stdout.ends_with("401"), "nobody is a gateway: {said:?}");
    let with = shows(&stranger);
    let with: Vec<&str> = with.iter().map(String::as_str).collect();
    let said = curl(secure, "/", &trusts, &with).await?;
    ensure!(said.status != 0 && !said.stdout.ends_with("200"), "a strange certificate came in: {said:?}");
    Ok(())
}

#[tokio::test]
async fn behind_a_proxy_its_header_names_the_caller_and_is_demanded() -> Result<()> {
    let mut relay = Relay::new()?;
    let proxied = address::at(relay.http.ip(), 31_081);
    relay.config(&format!(
        "[http]\nlisten = [\"{}\"]\n[[http.listener]]\nlisten = \"{proxied}\"\nproxy_protocol = true\n",
        relay.http
    ))?;
    relay.start().await?;
    let setup = Setup::behind(relay).await?;
    let ask = b"GET /head HTTP/1.1\r\nhost: orders\r\nconnection: close\r\n\r\n";
    let v1 = b"PROXY TCP4 192.0.2.7 198.51.100.1 40000 443\r\n".to_vec();
    let mut v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x21\x00\x24".to_vec();
    v2.extend("2001:db8::7".parse::<std::net::Ipv6Addr>()?.octets());
    v2.extend("2001:db8::1".parse::<std::net::Ipv6Addr>()?.octets());
    v2.extend([0x9c, 0x40, 0x01, 0xbb]);
    let limit = Duration::from_secs(5);
    for (header, named) in [(&v1, "192.0.2.7"), (&v2, "2001:db8::7")] {
        let answer = client::raw(proxied, &[header.as_slice(), ask].concat(), limit).await?;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        ensure!(answer.starts_with("HTTP/1.1 200 ") && answer.contains(named), "{answer}");
        ensure!(answer.contains("\"443\""), "the port that was called: {answer}");
        let forged = client::raw(setup.relay.http, &[header.as_slice(), ask].concat(), limit).await?;
        let forged = String::from_utf8_lossy(&forged).into_owned();
        ensure!(forged.starts_with("HTTP/1.1 400 ") && !forged.contains("200"), "accepted unasked: {forged}");
    }
    for wrong in [&ask[..], b"PROXY TCP4 192.0.2.7 198.51.100.1 40000\r\n", b"PROXY TCP4 192.0.2.300 1.1.1.1 1 1\r\n"] {
        let answer = client::raw(proxied, &[wrong, &ask[..]].concat(), limit).await?;
        ensure!(answer.is_empty(), "{}", String::from_utf8_lossy(&answer));
    }
    let local = client::raw(proxied, &[b"PROXY UNKNOWN\r\n", &ask[..]].concat(), limit).await?;
    let local = String::from_utf8_lossy(&local).into_owned();
    ensure!(local.contains(&setup.relay.http.ip().to_string()) || local.contains("127."), "{local}");

    if !unless("curl behind a proxy", &[Need::Program("curl")]) {
        let mut command = Command::new(binary::on_path("curl").context("curl")?);
        command.args(["-sS", "--max-time", "10", "--haproxy-protocol", "-H", "host: orders"]);
        let said = run("curl", command_for(command, proxied), None, Duration::from_secs(15)).await?;
        ensure!(said.stdout.contains("127."), "{said:?}");
    }
    Ok(())
}

fn command_for(mut command: Command, to: SocketAddr) -> Command {
    command.arg(format!("http://{to}/head"));
    command
}
