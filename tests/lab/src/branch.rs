//! A branch office: a stock WireGuard as its router behind NAT, and a network behind that. Needs root.
//!
//! ```text
//! relay ── internet (NAT, lets nothing in) ── router: wireguard-go ── inside: origins
//! ```

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;

use crate::netns::{self, Namespace};
use crate::process::Process;
use crate::topology::Internet;
use crate::{spawner, wait};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// How long the daemon may take to be there.
const START: Duration = Duration::from_secs(10);

/// Router and network of one branch.
#[derive(Debug)]
pub struct Branch {
    /// The host behind the router.
    pub inside: Namespace,
    /// The router where it has a namespace of its own; else it is the internet's private side.
    _own: Option<Namespace>,
    router: String,
    directory: TempDir,
    interface: String,
    daemon: Option<Process>,
}

impl Branch {
    /// The private side of the internet is its router; inside is one host. Addresses are those with their prefix lengths.
    ///
    /// # Errors
    /// Not root, or a tool is missing.
    pub fn at_home(internet: &Internet, router: &[&str], host: &[&str]) -> Result<Self> {
        Self::behind(&internet.private, router, host)
    }

    /// One more branch, at 192.168.8.2 behind the same NAT.
    ///
    /// # Errors
    /// As [`Branch::at_home`].
    pub fn beside(internet: &Internet, router: &[&str], host: &[&str]) -> Result<Self> {
        let own = Namespace::new("two")?;
        netns::join((&own, "lan", &["192.168.8.2/24"]), (&internet.internet, "to-two", &["192.168.8.1/24"]))?;
        own.ip(&["route", "add", "default", "via", "192.168.8.1"])?;
        internet.internet.nft(
            "add rule inet nat translate oifname \"to-gw\" ip saddr 192.168.8.0/24 snat ip to 203.0.113.1;
             add rule inet nat forward iifname \"to-two\" oifname \"to-gw\" accept;
             add rule inet nat forward iifname \"to-gw\" oifname \"to-two\" ct state established,related accept",
        )?;
        let mut branch = Self::behind(&own, router, host)?;
        branch._own = Some(own);
        Ok(branch)
    }

    fn behind(router: &Namespace, addresses: &[&str], host: &[&str]) -> Result<Self> {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let inside = Namespace::new("in")?;
        netns::join((router, "office", addresses), (&inside, "eth0", host))?;
        // An IPv6 address is not to be had in the moment after its link came up.
        inside.sysctl("net.ipv6.ip_nonlocal_bind=1")?;
        for address in addresses {
            let gateway = address.split('/').next().context("an address")?;
            let family = if gateway.contains(':') { "-6" } else { "-4" };
            inside.ip(&[family, "route", "add", "default", "via", gateway])?;
        }
        router.sysctl("net.ipv4.ip_forward=1")?;
        router.sysctl("net.ipv6.conf.all.forwarding=1")?;
        let directory = tempfile::Builder::new().prefix("culvert-branch-").tempdir()?;
        let interface = format!("cvb{}x{number}", std::process::id());
        Ok(Self { inside, _own: None, router: router.name().to_owned(), directory, interface, daemon: None })
    }

    /// Starts the router's WireGuard with what `peer config` printed, keys and all.
    ///
    /// # Errors
    /// It was refused.
    pub async fn up(&mut self, config: &str) -> Result<()> {
        self.down();
        self.daemon = Some(router(&self.router, &self.interface, config, self.directory.path()).await?);
        Ok(())
    }

    /// Ends the router's WireGuard, as a restart of the box would.
    pub fn down(&mut self) {
        self.daemon = None;
        let _ = std::fs::remove_file(format!("/var/run/wireguard/{}.sock", self.interface));
    }

    /// Has the router break silence every so many seconds.
    ///
    /// # Errors
    /// It was refused.
    pub fn keepalive(&self, seconds: u16) -> Result<()> {
        let peer = self.run("wg", &["show", &self.interface, "peers"])?;
        let seconds = seconds.to_string();
        self.run("wg", &["set", &self.interface, "peer", peer.trim(), "persistent-keepalive", &seconds]).map(drop)
    }

    /// Gives the router's WireGuard another port. It also forgets the address that it sent from, which `wireguard-go` else
    /// keeps until nothing was heard for 15 s.
    ///
    /// # Errors
    /// It was refused.
    pub fn rebind(&self, port: u16) -> Result<()> {
        self.run("wg", &["set", &self.interface, "listen-port", &port.to_string()]).map(drop)
    }

    /// The interface that leads to the relay.
    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// Runs a program on the router to its end and gives its output.
    ///
    /// # Errors
    /// It failed: what it said.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        run(&self.router, program, args)
    }
}

impl Drop for Branch {
    fn drop(&mut self) {
        self.down();
    }
}

/// Starts `wireguard-go` in a namespace, with what `peer config` printed, keys and all.
///
/// # Errors
/// It was refused, or does not start.
pub async fn router(namespace: &str, interface: &str, config: &str, directory: &Path) -> Result<Process> {
    let mut command = spawner::command("nsenter");
    command.arg(format!("--net=/run/netns/{namespace}")).args(["--", "wireguard-go", "-f", interface]);
    let daemon = Process::start("wireguard-go", command)?;
    let control = PathBuf::from(format!("/var/run/wireguard/{interface}.sock"));
    wait::until("wireguard-go", START, || async { control.exists().then_some(()) }).await?;
    let file = directory.join("wg.conf");
    let is_quick = |line: &&str| ["Address", "DNS", "MTU", "Table"].iter().any(|key| line.starts_with(key));
    let plain: Vec<&str> = config.lines().filter(|line| !is_quick(line)).collect();
    std::fs::write(&file, plain.join("\n"))?;
    run(namespace, "wg", &["setconf", interface, &file.display().to_string()])?;
    for address in values(config, "Address") {
        run(namespace, "ip", &["addr", "add", &address, "dev", interface, "noprefixroute"])?;
    }
    let mtu = values(config, "MTU").into_iter().next().unwrap_or_else(|| "1420".to_owned());
    run(namespace, "ip", &["link", "set", interface, "up", "mtu", &mtu])?;
    for network in values(config, "AllowedIPs") {
        let family = if network.contains(':') { "-6" } else { "-4" };
        run(namespace, "ip", &[family, "route", "replace", &network, "dev", interface])?;
    }
    Ok(daemon)
}

fn run(namespace: &str, program: &str, args: &[&str]) -> Result<String> {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace, program]).args(args);
    let output = command.output().with_context(|| program.to_owned())?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{program} {args:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    Ok(text)
}

/// The values of a key, which may stand in one line or several.
fn values(config: &str, key: &str) -> Vec<String> {
    let of_key = |line: &str| Some(line.split_once('=').filter(|(name, _)| name.trim() == key)?.1.to_owned());
    let lists: Vec<String> = config.lines().filter_map(of_key).collect();
    lists.iter().flat_map(|list| list.split(',')).map(|value| value.trim().to_owned()).collect()
}
