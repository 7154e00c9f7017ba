//! Stock peers by the commands alone: what `peer config` prints is used on the other side as it is, by wg-quick and
//! `wireguard-go`, behind NAT that lets nothing in.
//!
//! Needs root; says so loudly where it has to skip.

use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use culvert_lab::netns::Namespace;
use culvert_lab::skip::{self, Need};
use culvert_lab::topology::{Internet, RELAY_V4, RELAY_V6};
use culvert_lab::{Relay, wait};
use culvert_model::key::PrivateKey;
use serde_json::Value;

const NEEDS: [Need; 6] = [
    Need::Root,
    Need::Program("nft"),
    Need::Program("wg"),
    Need::Program("wg-quick"),
    Need::Program("wireguard-go"),
    Need::Program("ping"),
];
const SOON: Duration = Duration::from_secs(15);
/// The relay's addresses inside.
const INNER: [&str; 2] = ["100.127.80.1", "fd43:554c:5645::1"];

/// A WireGuard of Debian's that has what `peer config` printed.
struct Stock<'a> {
    namespace: &'a Namespace,
    directory: tempfile::TempDir,
    interface: String,
}

impl<'a> Stock<'a> {
    fn new(namespace: &'a Namespace) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let interface = format!("cvp{}x{number}", std::process::id());
        let directory = tempfile::Builder::new().prefix("culvert-stock-").tempdir()?;
        Ok(Self { namespace, directory, interface })
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join(format!("{}.conf", self.interface))
    }

    /// `wg-quick up` with this file; what was up before goes.
    fn up(&self, config: &str) -> Result<()> {
        if self.file().exists() {
            self.quick("down")?;
        }
        std::fs::write(self.file(), config)?;
        std::fs::set_permissions(self.file(), std::fs::Permissions::from_mode(0o600))?;
        self.quick("up")
    }

    fn quick(&self, verb: &str) -> Result<()> {
        let prefix = self.namespace.prefix();
        let (first, rest) = prefix.split_first().context("a prefix")?;
        let output = Command::new(first)
            .args(rest)
            .args(["wg-quick", verb])
            .arg(self.file())
            .env("WG_QUICK_USERSPACE_IMPLEMENTATION", "wireguard-go")
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "wg-quick {verb}: {said}");
        Ok(())
    }

    fn pings(&self, address: &str) -> Result<()> {
        self.namespace.run("ping", &["-c", "2", "-i", "0.2", "-W", "5", address]).map(drop)
    }

    /// How often the relay initiated or was initiated with, by what this side counted.
    fn handshake(&self) -> Result<u64> {
        let said = self.namespace.run("wg", &["show", &self.interface, "latest-handshakes"])?;
        Ok(said.split_whitespace().last().unwrap_or_default().parse()?)
    }
}

impl Drop for Stock<'_> {
    fn drop(&mut self) {
        let _ = self.quick("down");
    }
}

async fn started(internet: &Internet, ip: IpAddr, config: &str) -> Result<Relay> {
    let mut relay = Relay::within(&internet.gateway, ip)?;
    if !config.is_empty() {
        relay.config(&format!("[http]\nlisten = [\"127.0.0.1:8080\"]\n{config}"))?;
    }
    relay.launch()?;
    answers(&relay).await?;
    Ok(relay)
}

/// The admin socket is a file: commands reach the relay from outside of its namespace.
async fn answers(relay: &Relay) -> Result<()> {
    wait::until("the relay to answer", SOON, || async {
        relay.json(&["status"]).await.ok().filter(|status| status["ready"] == true).map(drop)
    })
    .await
    .with_context(|| relay.last_words())
}

async fn asked(relay: &Relay, args: &[&str]) -> Result<String> {
    let said = relay.cli(args).await?;
    ensure!(said.status == 0, "{args:?}: {said:?}\n{}", relay.last_words());
    Ok(said.stdout)
}

async fn is(relay: &Relay, state: &str) -> Result<Value> {
    let what = format!("the peer to be {state}");
    let found = wait::until(&what, SOON, || async {
        let listed = relay.json(&["peer", "list"]).await.ok()?;
        listed.as_array()?.iter().find(|peer| peer["state"] == state).cloned()
    });
    found.await.with_context(|| relay.last_words())
}

async fn a_printed_file_works(ip: IpAddr) -> Result<()> {
    let internet = Internet::build()?;
    let mut relay = started(&internet, ip, "").await?;
    let key = PrivateKey::generate();
    let public = key.public_key().to_string();
    let nets = "10.20.0.0/16,fd00:20::/48";
    asked(&relay, &["peer", "add", "branch", "--public-key", &public, "--allowed-ips", nets]).await?;
    let status = relay.json(&["status"]).await?;
    ensure!(status["alarms"] == serde_json::json!([]), "{status}");
    let printed = asked(&relay, &["peer", "config", "branch"]).await?;
    ensure!(!printed.contains(&*key.to_base64()), "the relay cannot know it");
    // As it is, but for the key that only this side has.
    let filled: Vec<String> = printed
        .lines()
        .map(|line| match line.starts_with("# PrivateKey = ") {
            true => format!("PrivateKey = {}", *key.to_base64()),
            false => line.to_owned(),
        })
        .collect();
    let stock = Stock::new(&internet.private)?;
    stock.up(&filled.join("\n"))?;
    for address in INNER {
        stock.pings(address).with_context(|| relay.last_words())?;
    }
    let peer = is(&relay, "up").await?;
    let seen = peer["endpoint"].as_str().unwrap_or_default();
    let nat = if ip.is_ipv4() { "203.0.113.1:" } else { "[2001:db8:1::1]:" };
    ensure!(seen.starts_with(nat), "{peer}");
    ensure!(peer["last_handshake"].is_string() && peer["rx_bytes"].as_u64() > Some(0), "{peer}");

    // A restart calls it back: nothing is sent from the other side, whose next word would come after 25 s.
    let before = stock.handshake()?;
    wait::until("a second to pass on the other side's clock", SOON, || async {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).ok()?;
        (now.as_secs() > before).then_some(())
    })
    .await?;
    relay.kill()?;
    relay.launch()?;
    let from = Instant::now();
    answers(&relay).await?;
    is(&relay, "up").await?;
    let took = from.elapsed();
    ensure!(took < Duration::from_secs(10), "it came by itself, after {took:?}");
    ensure!(stock.handshake()? > before, "a new session");
    for address in INNER {
        stock.pings(address).with_context(|| relay.last_words())?;
    }

    // With keys that the relay made, the file is used without a change.
    let whole = asked(&relay, &["peer", "config", "branch", "--generate-key", "--generate-psk"]).await?;
    ensure!(stock.pings(INNER[1]).is_err(), "the key before is refused");
    stock.up(&whole)?;
    for address in INNER {
        stock.pings(address).with_context(|| relay.last_words())?;
    }
    is(&relay, "up").await?;

    asked(&relay, &["peer", "delete", "branch"]).await?;
    ensure!(stock.pings(INNER[1]).is_err(), "a deleted peer is refused");
    stock.quick("down")?;
    stock.quick("up")?;
    ensure!(stock.pings(INNER[1]).is_err(), "also with another handshake");
    let told = wait::until("the trail to tell of it", SOON, || async {
        let rows = relay.json(&["audit"]).await.ok()?;
        rows.as_array()?.iter().find(|row| row["action"] == "peer.refused").cloned()
    });
    let told = told.await.with_context(|| relay.last_words())?;
    ensure!(told["subject"] == "branch", "{told}");
    for (name, trail) in [("peer.add", 1), ("peer.key", 1), ("peer.delete", 1)] {
        let rows = relay.json(&["audit"]).await?;
        let found = rows.as_array().into_iter().flatten().filter(|row| row["action"] == name).count();
        ensure!(found == trail, "{name}: {rows}");
    }
    Ok(())
}

#[tokio::test]
async fn what_peer_config_prints_works_at_first_try_over_ipv4() -> Result<()> {
    if skip::unless("peers", &NEEDS) {
        return Ok(());
    }
    a_printed_file_works(RELAY_V4).await
}

#[tokio::test]
async fn what_peer_config_prints_works_at_first_try_over_ipv6() -> Result<()> {
    if skip::unless("peers", &NEEDS) {
        return Ok(());
    }
    a_printed_file_works(RELAY_V6).await
}

#[tokio::test]
async fn a_peer_with_an_endpoint_is_dialled_until_it_is_there() -> Result<()> {
    if skip::unless("peers", &NEEDS) {
        return Ok(());
    }
    let internet = Internet::build()?;
    let relay = started(&internet, RELAY_V4, "[wireguard]\ninner_ipv4 = \"10.99.0.7/24\"\n").await?;
    // On the host between the two, which lets in what comes: the relay begins before anybody is there.
    let endpoint = "203.0.113.1:51999";
    let add = ["peer", "add", "branch", "--generate-key", "--allowed-ips", "10.20.0.0/16", "--endpoint", endpoint];
    let config = asked(&relay, &add).await?;
    ensure!(config.contains("ListenPort = 51999"), "{config}");
    // The other side knows the relay's key and not its place.
    let silent: Vec<&str> = config
        .lines()
        .filter(|line| !line.starts_with("Endpoint") && !line.starts_with("PersistentKeepalive"))
        .collect();
    let peer = is(&relay, "never").await?;
    ensure!(peer["configured_endpoint"] == endpoint, "{peer}");
    let stock = Stock::new(&internet.internet)?;
    stock.up(&silent.join("\n"))?;
    is(&relay, "up").await?;
    stock.pings("10.99.0.7").with_context(|| relay.last_words())?;
    stock.pings(INNER[1]).with_context(|| relay.last_words())?;
    let metrics = internet.gateway.within({
        let relay = relay.admin;
        move || async move { culvert_lab::client::get(relay, "localhost", "/metrics").await }
    });
    let metrics = String::from_utf8_lossy(&metrics.await?.body).into_owned();
    for line in ["culvert_peers{state=\"up\"} 1", "culvert_peer_last_handshake_seconds{peer=\"branch\"}"] {
        ensure!(metrics.contains(line), "{line} is missing in\n{metrics}");
    }
    Ok(())
}

#[tokio::test]
async fn a_peer_that_knows_the_relays_former_key_is_called_back_while_that_is_answered() -> Result<()> {
    if skip::unless("peers", &NEEDS) {
        return Ok(());
    }
    let internet = Internet::build()?;
    let mut relay = started(&internet, RELAY_V4, "").await?;
    let config = asked(&relay, &["peer", "add", "branch", "--generate-key", "--allowed-ips", "10.20.0.0/16"]).await?;
    let stock = Stock::new(&internet.private)?;
    stock.up(&config)?;
    is(&relay, "up").await?;
    let said = relay.cli(&["key", "rotate", "--grace", "1h"]).await?;
    ensure!(said.status == 0 && said.stderr.contains("`peer config` has it for branch"), "{said:?}");
    stock.pings(INNER[0]).with_context(|| relay.last_words())?;
    relay.kill()?;
    relay.launch()?;
    let from = Instant::now();
    answers(&relay).await?;
    is(&relay, "up").await?;
    let took = from.elapsed();
    // Under the newest key first, which is not answered for WireGuard's five seconds.
    ensure!(took < Duration::from_secs(15), "it came by itself, after {took:?}");
    stock.pings(INNER[0]).with_context(|| relay.last_words())?;
    let changed = asked(&relay, &["peer", "config", "branch", "--generate-key"]).await?;
    stock.up(&changed)?;
    stock.pings(INNER[1]).with_context(|| relay.last_words())?;
    Ok(())
}

#[tokio::test]
async fn a_relay_that_cannot_have_a_tun_plane_says_so_and_runs_on() -> Result<()> {
    if skip::unless("peers", &NEEDS) {
        return Ok(());
    }
    let internet = Internet::build()?;
    let mut relay = Relay::within(&internet.gateway, RELAY_V4)?;
    // In a mount namespace where /dev/net is empty.
    relay.prefix.extend(
        ["unshare", "--mount", "sh", "-c", "mount -t tmpfs none /dev/net && exec \"$@\"", "sh"].map(Into::into),
    );
    relay.launch()?;
    answers(&relay).await?;
    let said = relay.cli(&["peer", "add", "branch", "--generate-key", "--allowed-ips", "10.20.0.0/16"]).await?;
    ensure!(said.status == 0 && said.stderr.contains("/dev/net/tun"), "{said:?}");
    let Some(config) = said.stdout.lines().next() else { bail!("{said:?}") };
    ensure!(config.starts_with("# branch"), "{said:?}");
    let status = relay.json(&["status"]).await?;
    ensure!(status["ready"] == true && status["alarms"].to_string().contains("/dev/net/tun"), "{status}");
    Ok(())
}
