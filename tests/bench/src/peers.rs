//! The peers: each is a way from `http://ADDRESS/1k` on the gateway's side to the origin on the private side.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use culvert_lab::nginx::Nginx;
use culvert_lab::process::Process;
use culvert_lab::{Connector, Relay, binary, spawner, wait};

use crate::measure::Memory;
use crate::site::{GATEWAY, PRIVATE, Site};

/// One running peer.
pub(crate) struct Peer {
    pub(crate) name: String,
    /// What a caller on the gateway's side asks for `/1k` and `/bulk`, and for uploads.
    pub(crate) fetch: Target,
    pub(crate) upload: Target,
    running: Running,
}

/// Where and under which host.
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    pub(crate) host: String,
}

enum Running {
    Nothing,
    Nginxes(Vec<Nginx>),
    Tunnel { ends: Box<[Process; 2]>, gateway: Nginx },
    Culvert { relay: Box<Relay>, connector: Box<Connector> },
}

impl Peer {
    pub(crate) async fn start(name: &str, site: &Site) -> Result<Self> {
        let (running, fetch, upload) = match name {
            "direct" => (Running::Nothing, format!("{PRIVATE}:8081"), format!("{PRIVATE}:8082")),
            "nginx-nginx" => two_nginxes(site, false, 8110).await?,
            "nginx-tls-nginx" => two_nginxes(site, true, 8100).await?,
            "boringtun+nginx" => {
                let program = boringtun().context("boringtun-cli is not installed (tests/bench/run installs it)")?;
                let flags = ["-f", "-t", "1", "--disable-drop-privileges"];
                tunnel(site, &program, &flags, "boring", 2, 8120).await?
            }
            "wireguard-go+nginx" => {
                let program = binary::on_path("wireguard-go").context("wireguard-go is not installed")?;
                tunnel(site, &program, &["-f"], "wggo", 3, 8130).await?
            }
            "culvert" => return culvert(site).await,
            other => bail!("there is no peer {other:?}"),
        };
        let target = |address: String| -> Result<Target> { Ok(Target { address: address.parse()?, host: address }) };
        let peer = Self { name: name.to_owned(), fetch: target(fetch)?, upload: target(upload)?, running };
        peer.answers(site).await?;
        Ok(peer)
    }

    /// The processes on the gateway's side and on the private side.
    pub(crate) fn processes(&self) -> [Vec<u32>; 2] {
        match &self.running {
            Running::Nothing => [Vec::new(), Vec::new()],
            Running::Nginxes(nginxes) => {
                let mut sides = nginxes.iter().map(Nginx::ids);
                [sides.next().unwrap_or_default(), sides.next().unwrap_or_default()]
            }
            Running::Tunnel { ends, gateway } => {
                let [gateway_end, private_end] = &**ends;
                let mut left = gateway.ids();
                left.push(gateway_end.id());
                [left, vec![private_end.id()]]
            }
            Running::Culvert { relay, connector } => {
                [relay.id().into_iter().collect(), connector.id().into_iter().collect()]
            }
        }
    }

    pub(crate) fn memory(&self) -> Memory {
        let [gateway, private] = self.processes().map(|ids| {
            let usages: Vec<_> = ids.iter().filter_map(|id| culvert_lab::usage::of(*id).ok()).collect();
            (usages.iter().map(|usage| usage.rss_bytes).sum(), usages.iter().map(|usage| usage.peak_rss_bytes).sum())
        });
        Memory { gateway: gateway.0, gateway_peak: gateway.1, private: private.0, private_peak: private.1 }
    }

    async fn answers(&self, site: &Site) -> Result<()> {
        for (target, path) in [(&self.fetch, "/1k"), (&self.upload, "/")] {
            let (address, host) = (target.address, target.host.clone());
            site.gateway
                .within(move || async move {
                    wait::until(&format!("{host}{path}"), Duration::from_secs(10), || async {
                        let answer = culvert_lab::client::get(address, &host, path).await.ok()?;
                        (answer.status == 200).then_some(())
                    })
                    .await
                })
                .await
                .with_context(|| self.name.clone())?;
        }
        Ok(())
    }
}

type Started = (Running, String, String);

async fn two_nginxes(site: &Site, tls: bool, port: u16) -> Result<Started> {
    let (scheme, listen_flags) = if tls { ("https", " ssl") } else { ("http", "") };
    let (cert, key) = site.certificate()?;
    let tls_server = format!(
        "ssl_certificate {}; ssl_certificate_key {}; ssl_protocols TLSv1.3; ssl_conf_command Ciphersuites TLS_AES_256_GCM_SHA384;",
        cert.display(),
        key.display()
    );
    let tls_client = format!(
        "proxy_ssl_protocols TLSv1.3; proxy_ssl_verify on; proxy_ssl_name vpc; proxy_ssl_server_name on; proxy_ssl_trusted_certificate {};",
        cert.display()
    );
    let private = Nginx::start(
        Some(&site.private),
        format!("{PRIVATE}:{port}").parse()?,
        &format!(
            "{COMMON} {}\n{}\n{}",
            if tls { tls_server.as_str() } else { "" },
            proxy(&format!("{PRIVATE}:{port}{listen_flags}"), "fetch", "http", "127.0.0.1:8081"),
            proxy(&format!("{PRIVATE}:{}{listen_flags}", port + 1), "upload", "http", "127.0.0.1:8082"),
        ),
    )
    .await?;
    let gateway = Nginx::start(
        Some(&site.gateway),
        format!("127.0.0.1:{port}").parse()?,
        &format!(
            "{COMMON} {}\n{}\n{}",
            if tls { tls_client.as_str() } else { "" },
            proxy(&format!("127.0.0.1:{port}"), "fetch", scheme, &format!("{PRIVATE}:{port}")),
            proxy(&format!("127.0.0.1:{}", port + 1), "upload", scheme, &format!("{PRIVATE}:{}", port + 1)),
        ),
    )
    .await?;
    let running = Running::Nginxes(vec![gateway, private]);
    Ok((running, format!("127.0.0.1:{port}"), format!("127.0.0.1:{}", port + 1)))
}

/// A WireGuard tunnel over TUN at both ends, and nginx as the gateway's HTTP hop in front.
async fn tunnel(site: &Site, program: &Path, flags: &[&str], name: &str, net: u8, port: u16) -> Result<Started> {
    let mut ends = Vec::new();
    let keys = [wg_key()?, wg_key()?];
    for (place, (side, own)) in [(&site.gateway, 1), (&site.private, 2)].into_iter().enumerate() {
        // The control socket's name is the machine's, so two runs at once must not share it.
        let interface = format!("{}{}{own}", name.get(..2).unwrap_or(name), std::process::id() % 1_000_000);
        let mut command_flags = flags.to_vec();
        command_flags.push(&interface);
        let mut command = spawner::command("nsenter");
        command.env("LOG_LEVEL", "error").env("WG_LOG_LEVEL", "error");
        command.arg(&side.prefix()[1]).arg("--").arg(program).args(&command_flags);
        let end = Process::start(name, command)?;
        let socket = PathBuf::from(format!("/var/run/wireguard/{interface}.sock"));
        wait::until(&format!("{}", socket.display()), Duration::from_secs(5), || async {
            socket.exists().then_some(())
        })
        .await
        .with_context(|| end.output())?;
        let (own_key, peer_key) = (&keys[place], &keys[1 - place]);
        let key_file = site.file(&format!("{interface}.key"));
        std::fs::write(&key_file, &own_key.0)?;
        let listen = (51_900 + u16::from(net)).to_string();
        let peer = if own == 1 { PRIVATE } else { GATEWAY };
        let (key_path, endpoint) = (key_file.display().to_string(), format!("{peer}:{listen}"));
        side.run(
            "wg",
            &[
                "set",
                &interface,
                "listen-port",
                &listen,
                "private-key",
                &key_path,
                "peer",
                &peer_key.1,
                "allowed-ips",
                &format!("10.98.{net}.0/24"),
                "endpoint",
                &endpoint,
            ],
        )?;
        side.ip(&["addr", "add", &format!("10.98.{net}.{own}/24"), "dev", &interface])?;
        side.ip(&["link", "set", &interface, "mtu", "1420", "up"])?;
        ends.push(end);
    }
    let gateway = Nginx::start(
        Some(&site.gateway),
        format!("127.0.0.1:{port}").parse()?,
        &format!(
            "{COMMON}\n{}\n{}",
            proxy(&format!("127.0.0.1:{port}"), "fetch", "http", &format!("10.98.{net}.2:8081")),
            proxy(&format!("127.0.0.1:{}", port + 1), "upload", "http", &format!("10.98.{net}.2:8082")),
        ),
    )
    .await?;
    let ends = <[Process; 2]>::try_from(ends).ok().context("two ends")?;
    Ok((
        Running::Tunnel { ends: Box::new(ends), gateway },
        format!("127.0.0.1:{port}"),
        format!("127.0.0.1:{}", port + 1),
    ))
}

async fn culvert(site: &Site) -> Result<Peer> {
    let mut relay = Relay::within(&site.gateway, GATEWAY.parse()?)?;
    // Its rivals write no access log either.
    relay.env.push(("CULVERT_RELAY_HTTP_ACCESS_LOG".to_owned(), "off".to_owned()));
    relay.launch()?;
    let (admin, gateway) = (relay.admin, &site.gateway);
    let answers = move |admin: SocketAddr, path: &'static str| async move {
        let what = format!("{path} of culvert");
        wait::until(&what, Duration::from_secs(10), || async {
            let answer = culvert_lab::client::get(admin, &admin.to_string(), path).await.ok()?;
            (answer.status == 200).then_some(())
        })
        .await
    };
    let ready = gateway.within(move || answers(admin, "/readyz")).await;
    ready.with_context(|| relay.output())?;
    let token = relay.tunnel("bench", &["fetch", "upload"]).await?;
    let services = ["fetch=http://127.0.0.1:8081", "upload=http://127.0.0.1:8082"];
    let mut connector = Connector::within(&site.private, &token, &services)?;
    connector.launch()?;
    for path in ["/readyz?service=fetch", "/readyz?service=upload"] {
        let up = gateway.within(move || answers(admin, path)).await;
        up.with_context(|| format!("{}\n{}", relay.output(), connector.output()))?;
    }
    let target = |host: &str| Target { address: relay.http, host: host.to_owned() };
    let (fetch, upload) = (target("fetch"), target("upload"));
    let running = Running::Culvert { relay: Box::new(relay), connector: Box::new(connector) };
    let peer = Peer { name: "culvert".to_owned(), fetch, upload, running };
    peer.answers(site).await?;
    Ok(peer)
}

/// What every nginx here has in common: nothing goes to disk, connections are kept.
const COMMON: &str = "proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_set_header Host $http_host; \
    proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; proxy_max_temp_file_size 0; \
    proxy_request_buffering off; keepalive_timeout 600;";

fn proxy(listen: &str, name: &str, scheme: &str, to: &str) -> String {
    format!(
        "upstream {name} {{ server {to}; keepalive 300; keepalive_requests 1000000; }}\n\
         server {{ listen {listen} backlog=4096; location / {{ proxy_pass {scheme}://{name}; }} }}"
    )
}

fn wg_key() -> Result<(String, String)> {
    let private = culvert_model::key::PrivateKey::generate();
    Ok((private.to_base64().to_string(), private.public_key().to_string()))
}

fn boringtun() -> Option<PathBuf> {
    let cached = std::env::var_os("CULVERT_CACHE")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/culvert")))?;
    Some(cached.join("bin/boringtun-cli")).filter(|path| path.exists()).or_else(|| binary::on_path("boringtun-cli"))
}
