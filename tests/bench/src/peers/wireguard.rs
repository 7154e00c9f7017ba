//! WireGuard by somebody else: over TUN at both ends with nginx as the gateway's HTTP hop, and onetun.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use culvert_lab::process::Process;
use culvert_lab::{Namespace, wait};

use super::{Ends, Peer, Ports, Program, inside, nginx};
use crate::site::{FETCH, GATEWAY, HTTP2, PRIVATE, Site, UPLOAD};

/// A program that makes a TUN device and speaks WireGuard, set by `wg`.
pub(super) struct End {
    program: PathBuf,
    flags: &'static [&'static str],
    short: &'static str,
}

/// A key pair in WireGuard's words.
struct Keys {
    private: String,
    public: String,
}

/// What an end is told of itself and of the other one.
struct Link<'a> {
    net: u8,
    own: u8,
    keys: &'a Keys,
    other: &'a Keys,
    /// Where the other end listens, if this one is to begin.
    endpoint: Option<&'static str>,
}

impl End {
    pub(super) fn boringtun(program: PathBuf) -> Self {
        Self { program, flags: &["-f", "-t", "1", "--disable-drop-privileges"], short: "bo" }
    }

    pub(super) fn wireguard_go(program: PathBuf) -> Self {
        Self { program, flags: &["-f"], short: "wg" }
    }

    async fn start(&self, site: &Site, side: &Namespace, link: &Link<'_>) -> Result<Process> {
        let Link { net, own, .. } = *link;
        // The control socket's name is the machine's, so two runs at once must not share it.
        let interface = format!("{}{net}{own}n{}", self.short, std::process::id() % 1_000_000);
        let mut command = inside(side, &self.program);
        command.env("LOG_LEVEL", "error").env("WG_LOG_LEVEL", "error");
        command.args(self.flags).arg(&interface);
        let end = Process::start(self.short, command)?;
        let socket = PathBuf::from(format!("/var/run/wireguard/{interface}.sock"));
        let what = socket.display().to_string();
        let there = wait::until(&what, Duration::from_secs(5), || async { socket.exists().then_some(()) });
        there.await.with_context(|| end.output())?;
        let key_file = site.file(&format!("{interface}.key"));
        std::fs::write(&key_file, &link.keys.private)?;
        let (key_path, listen) = (key_file.display().to_string(), listen(net).to_string());
        let inner = format!("10.98.{net}.0/24");
        let mut settings = vec!["set", &interface, "listen-port", &listen, "private-key", &key_path];
        settings.extend(["peer", &link.other.public, "allowed-ips", &inner]);
        let endpoint = link.endpoint.map(|address| format!("{address}:{listen}"));
        if let Some(endpoint) = &endpoint {
            settings.extend(["endpoint", endpoint]);
        }
        side.run("wg", &settings)?;
        side.ip(&["addr", "add", &format!("10.98.{net}.{own}/24"), "dev", &interface])?;
        side.ip(&["link", "set", &interface, "mtu", "1420", "up"])?;
        Ok(end)
    }
}

/// A tunnel over TUN at both ends, and nginx as the gateway's HTTP hop in front.
pub(super) async fn behind_nginx(name: &str, site: &Site, end: &End, ports: Ports) -> Result<Peer> {
    let net = net_of(&ports);
    let keys = [Keys::generate(), Keys::generate()];
    let link = |own: u8, keys, other, endpoint| Link { net, own, keys, other, endpoint: Some(endpoint) };
    let gateway_end = end.start(site, &site.gateway, &link(1, &keys[0], &keys[1], PRIVATE)).await?;
    let private_end = end.start(site, &site.private, &link(2, &keys[1], &keys[0], GATEWAY)).await?;
    let toward = [format!("10.98.{net}.2:{FETCH}"), format!("10.98.{net}.2:{UPLOAD}")];
    let gateway = nginx::front(&site.gateway, &ports, "", "http", &toward).await?;
    let ends = Ends {
        gateway: vec![Program::Nginx(gateway), Program::Process(gateway_end)],
        private: vec![Program::Process(private_end)],
    };
    Peer::at(name, &ports, ends)
}

/// onetun at the gateway, which forwards TCP ports into WireGuard without a TUN device.
pub(super) async fn onetun(name: &str, site: &Site, program: &Path, other: &End, ports: Ports) -> Result<Peer> {
    let net = net_of(&ports);
    let keys = [Keys::generate(), Keys::generate()];
    let link = Link { net, own: 2, keys: &keys[1], other: &keys[0], endpoint: None };
    let private_end = other.start(site, &site.private, &link).await?;
    let mut command = inside(&site.gateway, program);
    for (place, port) in [FETCH, UPLOAD, HTTP2].into_iter().enumerate() {
        command.arg(format!("127.0.0.1:{}:10.98.{net}.2:{port}", usize::from(ports.0) + place));
    }
    command.args(["--endpoint-addr", &format!("{PRIVATE}:{}", listen(net))]);
    command.args(["--endpoint-public-key", &keys[1].public, "--private-key", &keys[0].private]);
    command.args(["--source-peer-ip", &format!("10.98.{net}.1"), "--keep-alive", "10", "--log", "error"]);
    let end = Process::start(name, command)?;
    Peer::at(name, &ports, Ends { gateway: vec![Program::Process(end)], private: vec![Program::Process(private_end)] })
}

impl Keys {
    fn generate() -> Self {
        let private = culvert_model::key::PrivateKey::generate();
        Self { private: private.to_base64().to_string(), public: private.public_key().to_string() }
    }
}

/// Each tunnel has an inner network of its own.
fn net_of(ports: &Ports) -> u8 {
    u8::try_from(ports.0 % 100).unwrap_or(99)
}

fn listen(net: u8) -> u16 {
    51_900 + u16::from(net)
}
