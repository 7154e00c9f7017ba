//! The peers: each is a way from an address on the gateway's side to the origin on the private side.

mod culvert;
mod nginx;
mod rathole;
mod wireguard;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use culvert_lab::nginx::Nginx;
use culvert_lab::process::Process;
use culvert_lab::{Connector, Relay, binary, spawner, wait};

use crate::measure::Memory;
use crate::site::{FETCH, HTTP2, PRIVATE, Site, UPLOAD};

/// Every peer, in the order of a table.
pub(crate) const ALL: &str =
    "direct,culvert,culvert-peer,nginx-nginx,nginx-tls-nginx,rathole-noise,boringtun+nginx,wireguard-go+nginx,onetun";

/// What is told of each, for `--help`.
pub(crate) const ABOUT: &str = "\
Peers: direct (no tunnel: the machine's limit), culvert, culvert-peer (the relay alone, toward a stock wireguard-go beside \
the origin), nginx-nginx (two plain HTTP hops), nginx-tls-nginx (TLS 1.3 \
between them), rathole-noise (a TCP tunnel, Noise NK), boringtun+nginx and wireguard-go+nginx (WireGuard over TUN, one \
HTTP hop), onetun (WireGuard without TUN at the gateway, wireguard-go at the other end). Beside culvert, and not in \
`all`: culvert+header, culvert+jwt, culvert+jwt-bound, culvert+http-signature and culvert+aws-sigv4, with a proof to the \
origin on every request; and culvert-shards-1, -2, -4, the relay on so many threads between two connectors.";

/// One running peer.
pub(crate) struct Peer {
    pub(crate) name: String,
    /// What a caller on the gateway's side asks for files, for uploads, and for files over HTTP/2.
    pub(crate) fetch: Target,
    pub(crate) upload: Target,
    pub(crate) http2: Target,
    running: Running,
}

/// Where and under which host.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    pub(crate) host: String,
}

/// What runs for a peer.
enum Running {
    Nothing,
    Processes(Box<Ends>),
    Culvert { relay: Box<Relay>, connectors: Vec<Connector> },
    Branch { relay: Box<Relay>, router: Box<Process> },
}

/// The programs of a peer, by side. Dropped: ended.
#[derive(Default)]
struct Ends {
    gateway: Vec<Program>,
    private: Vec<Program>,
}

enum Program {
    Nginx(Nginx),
    Process(Process),
}

/// A peer's three targets in its usual places: three ports in a row.
struct Ports(u16);

impl Peer {
    pub(crate) async fn start(name: &str, site: &Site) -> Result<Self> {
        let peer = match name {
            "direct" => {
                let target = |port: u16| Target::at(PRIVATE, port);
                Self::of(name, [target(FETCH)?, target(UPLOAD)?, target(HTTP2)?], Running::Nothing)
            }
            "nginx-nginx" => nginx::two(name, site, false, Ports(8110)).await?,
            "nginx-tls-nginx" => nginx::two(name, site, true, Ports(8100)).await?,
            "rathole-noise" => rathole::start(name, site, &Ports(8140))?,
            "boringtun+nginx" => {
                let end = wireguard::End::boringtun(installed("boringtun-cli")?);
                wireguard::behind_nginx(name, site, &end, Ports(8120)).await?
            }
            "wireguard-go+nginx" => {
                let end = wireguard::End::wireguard_go(installed("wireguard-go")?);
                wireguard::behind_nginx(name, site, &end, Ports(8130)).await?
            }
            "onetun" => {
                let end = wireguard::End::wireguard_go(installed("wireguard-go")?);
                wireguard::onetun(name, site, &installed("onetun")?, &end, Ports(8150)).await?
            }
            "culvert-peer" => {
                installed("wireguard-go")?;
                culvert::toward_a_stock_peer(name, site, &Ports(8160)).await?
            }
            name if culvert::is_named(name) => culvert::start(name, site).await?,
            other => bail!("there is no peer {other:?}"),
        };
        peer.answers(site).await?;
        Ok(peer)
    }

    fn of(name: &str, [fetch, upload, http2]: [Target; 3], running: Running) -> Self {
        Self { name: name.to_owned(), fetch, upload, http2, running }
    }

    fn at(name: &str, ports: &Ports, ends: Ends) -> Result<Self> {
        let targets = [ports.local(0)?, ports.local(1)?, ports.local(2)?];
        Ok(Self::of(name, targets, Running::Processes(Box::new(ends))))
    }

    /// The processes on the gateway's side and on the private side.
    pub(crate) fn processes(&self) -> [Vec<u32>; 2] {
        let ids = |programs: &[Program]| programs.iter().flat_map(Program::ids).collect();
        match &self.running {
            Running::Nothing => [Vec::new(), Vec::new()],
            Running::Processes(ends) => [ids(&ends.gateway), ids(&ends.private)],
            Running::Culvert { relay, connectors } => {
                [relay.id().into_iter().collect(), connectors.iter().filter_map(Connector::id).collect()]
            }
            Running::Branch { relay, router } => [relay.id().into_iter().collect(), vec![router.id()]],
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
            let answered = site.gateway.within(move || async move {
                wait::until(&format!("{host}{path}"), Duration::from_secs(15), || async {
                    let answer = culvert_lab::client::get(address, &host, path).await.ok()?;
                    (answer.status == 200).then_some(())
                })
                .await
            });
            answered.await.with_context(|| format!("{}: {}", self.name, self.words()))?;
        }
        Ok(())
    }

    /// What its programs said last.
    pub(crate) fn words(&self) -> String {
        let Running::Processes(ends) = &self.running else { return String::new() };
        ends.gateway.iter().chain(&ends.private).map(Program::words).collect::<Vec<_>>().join("\n")
    }
}

impl Target {
    fn at(address: &str, port: u16) -> Result<Self> {
        let host = format!("{address}:{port}");
        Ok(Self { address: host.parse()?, host })
    }
}

impl Ports {
    /// On the gateway's loopback.
    fn local(&self, place: u16) -> Result<Target> {
        Target::at("127.0.0.1", self.0 + place)
    }
}

impl Program {
    fn ids(&self) -> Vec<u32> {
        match self {
            Self::Nginx(nginx) => nginx.ids(),
            Self::Process(process) => vec![process.id()],
        }
    }

    fn words(&self) -> String {
        match self {
            Self::Nginx(nginx) => nginx.output(),
            Self::Process(process) => process.last_words(),
        }
    }
}

/// A program of the cache that `tests/bench/run` fills, or on the path.
pub(crate) fn installed(name: &str) -> Result<PathBuf> {
    let cache = std::env::var_os("CULVERT_CACHE")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/culvert")));
    cache
        .map(|cache| cache.join("bin").join(name))
        .filter(|path| path.exists())
        .or_else(|| binary::on_path(name))
        .with_context(|| format!("{name} is not installed (tests/bench/run installs it)"))
}

/// A command inside a host.
fn inside(namespace: &culvert_lab::Namespace, program: &std::path::Path) -> std::process::Command {
    let mut command = spawner::command("nsenter");
    command.args(namespace.prefix().iter().skip(1)).arg(program);
    command
}
