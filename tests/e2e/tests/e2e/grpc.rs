//! gRPC with a real library at both ends (`grpc/client.py`, `grpc/server.py`): straight to the relay's HTTP/2 front,
//! and through nginx as `deploy/gateways` ships it.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use culvert_lab::certificate::Certificate;
use culvert_lab::gateway::{Gateway, shipped};
use culvert_lab::process::{self, Process};
use culvert_lab::skip::{self, Need};
use culvert_lab::{Connector, Relay, address, binary, spawner};

/// What must work wherever a gRPC call passes; each is a function of `client.py`.
const SCENARIOS: &[&str] = &[
    "unary",
    "client_streaming",
    "server_streaming",
    "bidirectional",
    "metadata",
    "error_in_trailers",
    "error_after_messages",
    "large_message",
    "many_at_once",
    "deadline",
    "cancelled_unary",
    "cancelled_streaming",
    "cancelled_talking",
    "slow_reader_beside_others",
];
/// All scenarios of one caller together, on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

struct Site {
    relay: Relay,
    connector: Connector,
    server: Process,
    /// Where the relay wants to know which gateway calls, and what nginx says then.
    guarded: SocketAddr,
    identity: String,
    /// Where the relay speaks TLS, if there is an openssl.
    over_tls: SocketAddr,
}

impl Site {
    /// A Python server behind a connector, as `orders`.
    async fn new() -> Result<Self> {
        let mut command = spawner::command(binary::PYTHON);
        command.arg(program("server.py")).stdin(std::process::Stdio::piped());
        let mut server = Process::start("gRPC server", command)?;
        let line = server.line("listening ", Duration::from_secs(20)).await?;
        let port = line.split(' ').nth(1).context("a port")?;
        let mut relay = Relay::new()?;
        let guarded = address::at(relay.http.ip(), 31_082);
        let over_tls = address::at(relay.http.ip(), 31_443);
        let mut config = format!(
            "[http]\nlisten = [\"{}\"]\n[[http.listener]]\nlisten = \"{guarded}\"\ngateways = [\"edge\"]\n",
            relay.http
        );
        if binary::on_path("openssl").is_some() {
            let tls = Certificate::make(relay.directory(), "relay", "orders.internal").await?.setting();
            config += &format!("[[http.listener]]\nlisten = \"{over_tls}\"\n{tls}\n");
        }
        relay.config(&config)?;
        relay.start().await?;
        let said = relay.cli(&["gateway", "create", "edge", "--service", "orders"]).await?;
        ensure!(said.status == 0, "{said:?}");
        let identity = said.stdout.trim().to_owned();
        let token = relay.tunnel("main", &["orders"]).await?;
        let mut connector = Connector::new(&token, &[&format!("orders=h2c://127.0.0.1:{port}")])?;
        connector.start().await?;
        relay.up("orders").await?;
        Ok(Self { relay, connector, server, guarded, identity, over_tls })
    }

    /// Runs scenarios of the client against `to`, calling it `authority`.
    async fn calls(&self, to: SocketAddr, authority: &str, scenarios: &[&str]) -> Result<()> {
        self.calls_with(&[], to, authority, scenarios).await
    }

    async fn calls_with(
        &self,
        env: &[(&str, &str)],
        to: SocketAddr,
        authority: &str,
        scenarios: &[&str],
    ) -> Result<()> {
        let mut command = Command::new(binary::PYTHON);
        command.arg(program("client.py")).arg(to.to_string()).arg(authority).args(scenarios);
        // A proxy of the machine's owner is not what is under test.
        command.env("no_proxy", "*").env_remove("http_proxy").env_remove("https_proxy");
        command.envs(env.iter().copied());
        let said = process::run("gRPC client", command, None, LIMIT).await?;
        let told = || format!("{said:?}\n{}\n{}", self.relay.last_words(), self.connector.last_words());
        ensure!(said.status == 0, "{}", told());
        for scenario in scenarios {
            ensure!(said.stdout.lines().any(|line| line == format!("ok {scenario}")), "no {scenario}: {}", told());
        }
        Ok(())
    }

    fn certificate(&self) -> std::path::PathBuf {
        self.relay.directory().join("relay.pem")
    }
}

fn program(name: &str) -> std::path::PathBuf {
    binary::project().join("tests/e2e/grpc").join(name)
}

async fn nginx(site: &Site) -> Result<(Gateway, SocketAddr)> {
    let ip = address::own_loopback();
    let (http, grpc) = (address::at(ip, 31_081), address::at(ip, 31_051));
    let secret = site.relay.directory().join("culvert-gateway");
    std::fs::write(&secret, format!("default \"{}\";\n", site.identity))?;
    let changes = [
        ("listen 80;", &*format!("listen {http};")),
        ("listen 50051 ", &*format!("listen {grpc} ")),
        ("127.0.0.1:8080", &*site.guarded.to_string()),
        ("/etc/nginx/culvert-gateway", &*secret.display().to_string()),
    ];
    let gateway = Gateway::nginx(grpc, &shipped("nginx.conf", &changes)?).await?;
    Ok((gateway, grpc))
}

#[tokio::test]
async fn a_grpc_client_at_the_relays_front_finds_its_server() -> Result<()> {
    if skip::unless("gRPC straight to the relay", &[Need::Python("grpc")]) {
        return Ok(());
    }
    let site = Site::new().await?;
    site.calls(site.relay.http, "orders.internal", SCENARIOS).await
}

#[tokio::test]
async fn a_grpc_client_that_speaks_tls_finds_its_server() -> Result<()> {
    if skip::unless("gRPC over TLS", &[Need::Python("grpc"), Need::Program("openssl")]) {
        return Ok(());
    }
    let site = Site::new().await?;
    let certificate = site.certificate().display().to_string();
    // Nothing but ALPN says here that it is HTTP/2.
    site.calls_with(&[("GRPC_TRUSTS", &certificate)], site.over_tls, "orders.internal", SCENARIOS).await
}

#[tokio::test]
async fn a_grpc_client_behind_nginx_finds_its_server() -> Result<()> {
    if skip::unless("gRPC through nginx", &[Need::Python("grpc"), Need::Program("nginx")]) {
        return Ok(());
    }
    let site = Site::new().await?;
    let (_gateway, grpc) = nginx(&site).await?;
    site.calls(grpc, "api.example.com", SCENARIOS).await
}

#[tokio::test]
async fn a_grpc_client_behind_haproxy_finds_its_server() -> Result<()> {
    if skip::unless("gRPC through HAProxy", &[Need::Python("grpc"), Need::Program("haproxy")]) {
        return Ok(());
    }
    let site = Site::new().await?;
    let listen = address::at(address::own_loopback(), 31_081);
    let changes = [
        ("bind :80\n", &*format!("bind {listen} proto h2\n")),
        ("/orders/", "/culvert.test.Orders/"),
        ("127.0.0.1:8080", &*format!("{} proto h2 check-proto h1", site.guarded)),
        ("9480", &*site.relay.admin.port().to_string()),
    ];
    let config = shipped("haproxy.cfg", &changes)?;
    let gateway = Gateway::haproxy(listen, &config, &[("CULVERT_GATEWAY", &site.identity)]).await?;
    // HAProxy 2.6 lets one unread answer stop its whole connection, with or without Culvert behind it.
    let passing: Vec<&str> = SCENARIOS.iter().copied().filter(|name| *name != "slow_reader_beside_others").collect();
    site.calls(gateway.listen, "api.example.com", &passing).await
}

#[tokio::test]
async fn a_grpc_client_learns_what_is_missing_by_status() -> Result<()> {
    if skip::unless("gRPC failures", &[Need::Python("grpc"), Need::Program("nginx")]) {
        return Ok(());
    }
    let mut site = Site::new().await?;
    let (_gateway, grpc) = nginx(&site).await?;
    site.calls(site.relay.http, "nobody.internal", &["no_such_service"]).await?;
    site.calls(site.guarded, "orders.internal", &["unauthenticated"]).await?;
    site.server.kill()?;
    site.calls(site.relay.http, "orders.internal", &["unavailable"]).await?;
    site.calls(grpc, "api.example.com", &["unavailable"]).await
}
