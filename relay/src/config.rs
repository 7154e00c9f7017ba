//! `relay.toml`, its flags and variables: what may be set, and what it means once it is settled.
//!
//! Must never open, bind or resolve anything: a configuration is right or wrong by itself.

mod behind;
mod listeners;
mod settings;

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use culvert_hop::limits::Bounds;
use culvert_hop::request::ForwardPolicy;
use culvert_model::name::{Grant, Label, ServiceName};
use culvert_model::token::Endpoint;
use culvert_ops::config::{Flags, Load, Loaded, Source};
use culvert_ops::drain::Plan;
use culvert_ops::exit::Quit;
use culvert_ops::load::Environment;
use culvert_ops::log;
use culvert_ops::program::Program;
use ipnet::Ipv4Net;

use crate::access_log::Target;
use crate::cli::RunArgs;
use crate::registry;
use crate::router::{Route, Router, Select};
pub(crate) use behind::{Behind, BehindTls};
pub(crate) use listeners::listener_of;
pub(crate) use settings::SETTINGS;

/// The network of `wireguard.inner_ipv4` where an address stands alone.
const INNER_PREFIX: u8 = 24;
/// Bytes that a head may be allowed: with less some gateways cannot work, and each connection may hold as much.
const HEADS: RangeInclusive<usize> = 8 << 10..=1 << 20;

/// The whole configuration, settled.
#[derive(Debug, Clone)]
pub(crate) struct Settled {
    /// None: as many as are worth it here.
    pub(crate) shards: Option<u8>,
    pub(crate) wireguard: WireGuard,
    pub(crate) listeners: Vec<Listener>,
    pub(crate) tcp: Vec<Tcp>,
    /// Where an address is taken, another port will do (`dev`).
    pub(crate) any_port: bool,
    /// Nobody wrote a listener: sockets of the service manager stand in their place.
    pub(crate) listeners_are_default: bool,
    pub(crate) router: Router,
    pub(crate) access_log: Target,
    pub(crate) limits: Limits,
    /// What origins behind stock peers are to get, by service.
    pub(crate) behind: HashMap<ServiceName, Behind>,
    pub(crate) admin: Admin,
    pub(crate) issuer: Option<Issuer>,
    pub(crate) registry: registry::Url,
    pub(crate) drain: Plan,
    pub(crate) log_filter: Option<String>,
}

/// `[wireguard]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WireGuard {
    pub(crate) listen: Vec<SocketAddr>,
    /// Nobody wrote them: one that this host cannot bind for want of IPv6 is left out.
    pub(crate) is_default: bool,
    pub(crate) endpoints: Vec<Endpoint>,
    /// The relay's address toward stock peers, and the network that they get theirs from.
    pub(crate) inner_ipv4: Ipv4Net,
    /// The longest packet inside the tunnels of stock peers.
    pub(crate) peer_mtu: u16,
}

/// Where callers come in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// One `[[http.listener]]`, or one entry of `http.listen`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listener {
    pub(crate) address: Address,
    pub(crate) select: Select,
    pub(crate) forward: ForwardPolicy,
    /// None = clear text.
    pub(crate) tls: Option<TlsFiles>,
    /// Every connection has to begin with a PROXY header.
    pub(crate) proxy_protocol: bool,
    /// Callers have to say who they are, and prove it.
    pub(crate) identified: bool,
    /// Who of them may call; none = every known gateway.
    pub(crate) gateways: Option<Vec<Label>>,
    /// None = all.
    pub(crate) services: Option<Vec<Grant>>,
}

/// The files of a listener that speaks TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TlsFiles {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) client_ca: Option<PathBuf>,
}

/// One `[[tcp]]`: a listener whose connections are one service's, byte for byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tcp {
    pub(crate) address: Address,
    pub(crate) service: ServiceName,
    /// Every connection has to begin with a PROXY header.
    pub(crate) proxy_protocol: bool,
}

/// `[limits]` and `[service.NAME.limits]`.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    pub(crate) connections: usize,
    pub(crate) front: FrontLimits,
    pub(crate) process: Bounds,
    /// Of each connector.
    pub(crate) connector: Bounds,
    /// Of each gateway.
    pub(crate) gateway: Bounds,
    pub(crate) service: ServiceLimits,
    pub(crate) services: HashMap<ServiceName, ServiceLimits>,
}

/// What callers' connections and heads are held to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FrontLimits {
    /// Bytes of a head.
    pub(crate) head: usize,
    /// Fields of a head.
    pub(crate) fields: usize,
    /// From a head's first byte to its last.
    pub(crate) head_time: Duration,
    /// Without a byte of a request's body that is waited for.
    pub(crate) body_idle: Duration,
    /// A connection without a request.
    pub(crate) keep_alive: Duration,
    /// HTTP/2: exchanges at once on a connection.
    pub(crate) streams: u32,
    /// How long an answer that is there may be left unread.
    pub(crate) unread_time: Duration,
    /// What comes before the first head.
    pub(crate) arrival: ArrivalBounds,
}

/// How long a connection's PROXY header and TLS handshake may take, and how many may be at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ArrivalBounds {
    pub(crate) within: Duration,
    pub(crate) at_once: usize,
}

/// The limits of one service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ServiceLimits {
    pub(crate) bounds: Bounds,
    /// Bytes of a request's body; none = any.
    pub(crate) body: Option<u64>,
}

/// `[issuer]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Issuer {
    /// Without a slash at its end.
    pub(crate) url: String,
    /// None: another server has the keys.
    pub(crate) listen: Option<SocketAddr>,
    /// None = clear text.
    pub(crate) tls: Option<TlsFiles>,
}

/// `[admin]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Admin {
    pub(crate) listen: SocketAddr,
    /// Nobody wrote it: the next free port will do.
    pub(crate) is_default: bool,
    pub(crate) group: Option<String>,
}

/// Loads and settles what the command line, the environment and the file say.
///
/// # Errors
/// 78, or 2 when the fault is on the command line.
pub(crate) fn load(args: &RunArgs, environment: &dyn Environment) -> Result<(Loaded, Settled), Quit> {
    let flags = Flags::new()
        .list("--wireguard-listen", "wireguard.listen", &args.wireguard_listen)
        .list("--endpoint", "wireguard.endpoints", &args.endpoint)
        .list("--http-listen", "http.listen", &args.http_listen)
        .value("--admin-listen", "admin.listen", args.admin_listen.as_ref())
        .value("--registry", "registry.url", args.registry.as_ref())
        .value("--drain-timeout", "drain.timeout", args.drain_timeout.as_ref())
        .value("--drain-streams", "drain.streams", args.drain_streams.as_ref())
        .value("--drain-delay", "drain.delay", args.drain_delay.as_ref());
    let load = Load::new(Program::Relay, SETTINGS, environment).flags(flags).config(args.place.config.clone());
    let loaded = load.load()?;
    let settled = settle(&loaded)?;
    Ok((loaded, settled))
}

/// Checks what the values mean together.
///
/// # Errors
/// 78, or 2 when the fault is on the command line.
pub(crate) fn settle(loaded: &Loaded) -> Result<Settled, Quit> {
    let raw: settings::Raw = loaded.settle()?;
    let mut wireguard = WireGuard {
        listen: Vec::new(),
        is_default: loaded.source("wireguard.listen") == Source::Default,
        endpoints: Vec::new(),
        inner_ipv4: inner_ipv4(loaded, &raw.wireguard.inner_ipv4)?,
        peer_mtu: raw.wireguard.peer_mtu,
    };
    for text in &raw.wireguard.listen {
        wireguard.listen.push(socket(loaded, "wireguard.listen", text)?);
    }
    if wireguard.listen.is_empty() {
        return Err(loaded.wrong("wireguard.listen", "at least one address is needed").into());
    }
    for text in &raw.wireguard.endpoints {
        let endpoint = text.parse().map_err(|error| loaded.wrong("wireguard.endpoints", error))?;
        wireguard.endpoints.push(endpoint);
    }
    let mut routes = Vec::new();
    for (place, route) in raw.route.iter().enumerate() {
        routes.push(self::route(loaded, place, route)?);
    }
    let limits = limits(loaded, &raw)?;
    Ok(Settled {
        shards: raw.shards,
        behind: behind::behind(loaded, &raw)?,
        wireguard,
        listeners: listeners::listeners(loaded, &raw)?,
        tcp: listeners::tcp(loaded, &raw)?,
        any_port: false,
        listeners_are_default: raw.http.listener.is_empty() && loaded.source("http.listen") == Source::Default,
        router: Router::new(routes, &raw.http.domain),

        access_log: match raw.http.access_log.as_str() {
            "stdout" => Target::Stdout,
            "stderr" => Target::Stderr,
            "off" => Target::Off,
            path => Target::File(path.into()),
        },
        limits,
        admin: Admin {
            listen: socket(loaded, "admin.listen", &raw.admin.listen)?,
            is_default: loaded.source("admin.listen") == Source::Default,
            group: raw.admin.group,
        },
        issuer: issuer(loaded, raw.issuer)?,
        registry: registry::Url::new(&raw.registry.url, raw.registry.password)
            .map_err(|error| loaded.wrong("registry.url", error))?,
        drain: Plan { delay: raw.drain.delay, timeout: raw.drain.timeout, streams: raw.drain.streams },
        log_filter: match raw.log.filter {
            Some(filter) => {
                log::check_filter(&filter).map_err(|error| loaded.wrong("log.filter", error))?;
                Some(filter)
            }
            None => None,
        },
    })
}

fn issuer(loaded: &Loaded, raw: settings::RawIssuer) -> Result<Option<Issuer>, Quit> {
    let Some(url) = raw.url else {
        return match (raw.listen, raw.tls) {
            (None, None) => Ok(None),
            (Some(_), _) => Err(loaded.wrong("issuer.listen", "needs issuer.url: who tokens are signed as").into()),
            (None, Some(_)) => Err(loaded.wrong("issuer.tls", "needs issuer.url: who tokens are signed as").into()),
        };
    };
    let is_web = url.starts_with("https://") || url.starts_with("http://");
    let parsed = url.parse::<http::Uri>().ok().filter(|uri| uri.host().is_some() && uri.query().is_none());
    if parsed.is_none() || !is_web || url.contains(['#', '@']) {
        return Err(loaded.wrong("issuer.url", "https://HOST is expected, and a path where there is one").into());
    }
    let listen = raw.listen.map(|text| socket(loaded, "issuer.listen", &text)).transpose()?;
    if listen.is_none() && raw.tls.is_some() {
        return Err(loaded.wrong("issuer.tls", "needs issuer.listen: where it is spoken").into());
    }
    let tls = raw.tls.as_ref().map(|tls| listeners::files(loaded, "issuer", tls)).transpose()?;
    Ok(Some(Issuer { url: url.trim_end_matches('/').to_owned(), listen, tls }))
}

impl Limits {
    /// The same bounds for everything.
    #[cfg(test)]
    pub(crate) fn same(bounds: Bounds) -> Self {
        let front = FrontLimits {
            head: 64 * 1024,
            fields: 100,
            head_time: Duration::from_secs(30),
            body_idle: Duration::from_secs(3_600),
            keep_alive: Duration::from_secs(120),
            streams: 100,
            unread_time: Duration::from_secs(120),
            arrival: ArrivalBounds { within: Duration::from_secs(10), at_once: 100 },
        };
        let service = ServiceLimits { bounds, body: None };
        let (connector, gateway) = (bounds, bounds);
        Self { connections: 10, front, process: bounds, connector, gateway, service, services: HashMap::new() }
    }

    /// The limits of one service.
    pub(crate) fn of(&self, service: &ServiceName) -> ServiceLimits {
        self.services.get(service).copied().unwrap_or(self.service)
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

fn socket(loaded: &Loaded, key: &str, text: &str) -> Result<SocketAddr, Quit> {
    let local = text.strip_prefix("localhost:").map(|port| format!("127.0.0.1:{port}"));
    let parsed = local.as_deref().unwrap_or(text).parse();
    let expected = "an address and a port are expected, as 127.0.0.1:8080 or [::1]:8080";
    parsed.map_err(|_| loaded.wrong(key, format_args!("{text:?}: {expected}")).into())
}

fn inner_ipv4(loaded: &Loaded, text: &str) -> Result<Ipv4Net, Quit> {
    let wrong = |what: String| Quit::from(loaded.wrong("wireguard.inner_ipv4", what));
    let expected = || wrong(format!("{text:?}: an address and its network are expected, as 100.127.80.1/20"));
    let net: Ipv4Net = match text.parse::<Ipv4Addr>() {
        Ok(address) => Ipv4Net::new_assert(address, INNER_PREFIX),
        Err(_) => text.parse().map_err(|_| expected())?,
    };
    if !(8..=30).contains(&net.prefix_len()) || [net.network(), net.broadcast()].contains(&net.addr()) {
        return Err(wrong(format!("{text}: a host's address in a network of /8 to /30 is expected")));
    }
    if net.addr().is_loopback() || net.addr().is_multicast() || net.addr().is_link_local() {
        return Err(wrong(format!("{text}: such addresses are no host's in another network")));
    }
    Ok(net)
}

fn route(loaded: &Loaded, place: usize, raw: &settings::RawRoute) -> Result<Route, Quit> {
    let wrong = |key: &str, what: &str| Quit::from(loaded.wrong(&format!("route[{place}].{key}"), what));
    let service = raw.service.as_deref().ok_or_else(|| wrong("service", "a route needs a service"))?;
    let service = service.parse().map_err(|error| wrong("service", &format!("{error}")))?;
    if raw.host.is_none() && raw.path.is_none() {
        return Err(wrong("host", "a route needs a host, a path or both"));
    }
    if let Some(host) = &raw.host
        && (host.is_empty() || host.contains(['/', '*', '@']) || host.contains(char::is_whitespace))
    {
        return Err(wrong("host", "a host name is expected, without scheme, pattern or path"));
    }
    if let Some(host) = &raw.host
        && host.rsplit_once(':').is_some_and(|(name, port)| !name.contains(':') && port.parse::<u16>().is_ok())
    {
        return Err(wrong("host", "ports are ignored: write the host alone"));
    }
    let path = raw.path.clone().unwrap_or_else(|| "/".to_owned());
    if !path.starts_with('/') || path.contains(['?', '#']) {
        return Err(wrong("path", "a path starts with / and has no query"));
    }
    Ok(Route { host: raw.host.clone(), path, service })
}

fn limits(loaded: &Loaded, raw: &settings::Raw) -> Result<Limits, Quit> {
    let own = &raw.limits;
    let process = Bounds { running: own.concurrent, waiting: own.queue, wait: own.queue_time };
    let service = ServiceLimits { bounds: process, body: own.body };
    let mut services = HashMap::new();
    for (name, table) in &raw.service {
        let key = format!("service.{name}");
        let name: ServiceName = name.parse().map_err(|error| loaded.wrong(&key, error))?;
        let raw = &table.limits;
        let bounds = Bounds {
            running: raw.concurrent.unwrap_or(process.running),
            waiting: raw.queue.unwrap_or(process.waiting),
            wait: raw.queue_time.unwrap_or(process.wait),
        };
        services.insert(name, ServiceLimits { bounds, body: raw.body.or(own.body) });
    }
    if !HEADS.contains(&own.head) {
        return Err(loaded.wrong("limits.head", "8KiB to 1MiB are expected").into());
    }
    let front = FrontLimits {
        head: own.head,
        fields: own.fields,
        head_time: own.head_time,
        body_idle: own.body_idle,
        keep_alive: own.keep_alive,
        streams: own.streams,
        unread_time: own.unread_time,
        arrival: ArrivalBounds { within: own.handshake_time, at_once: own.handshakes },
    };
    let connector = Bounds { running: own.connector_concurrent, ..process };
    let gateway = Bounds { running: own.gateway_concurrent, ..process };
    Ok(Limits { connections: own.connections, front, process, connector, gateway, service, services })
}

#[cfg(test)]
mod tests;
