//! `relay.toml`, its flags and variables: what may be set, and what it means once it is settled.
//!
//! Must never open, bind or resolve anything: a configuration is right or wrong by itself.

mod settings;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use culvert_hop::limits::Bounds;
use culvert_hop::request::ForwardPolicy;
use culvert_model::name::{Grant, ServiceName};
use culvert_model::token::Endpoint;
use culvert_ops::config::{Flags, Load, Loaded, Source};
use culvert_ops::drain::Plan;
use culvert_ops::exit::{Exit, Quit};
use culvert_ops::load::Environment;
use culvert_ops::log;
use culvert_ops::program::Program;

use crate::access_log::Target;
use crate::cli::RunArgs;
use crate::registry;
use crate::router::{Route, Router, Select};
pub(crate) use settings::SETTINGS;

/// The whole configuration, settled.
#[derive(Debug, Clone)]
pub(crate) struct Settled {
    pub(crate) wireguard: WireGuard,
    pub(crate) listeners: Vec<Listener>,
    /// Where an address is taken, another port will do (`dev`).
    pub(crate) any_port: bool,
    /// Nobody wrote a listener: sockets of the service manager stand in their place.
    pub(crate) listeners_are_default: bool,
    pub(crate) router: Router,
    pub(crate) access_log: Target,
    pub(crate) limits: Limits,
    pub(crate) admin: Admin,
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
    /// None = all.
    pub(crate) services: Option<Vec<Grant>>,
    pub(crate) identified: bool,
    pub(crate) gateways: Option<Vec<culvert_model::name::Label>>,
}

/// `[limits]` and `[service.NAME.limits]`.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    pub(crate) connections: usize,
    pub(crate) process: Bounds,
    pub(crate) service: ServiceLimits,
    pub(crate) services: HashMap<ServiceName, ServiceLimits>,
}

/// The limits of one service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ServiceLimits {
    pub(crate) bounds: Bounds,
    /// Bytes of a request's body; none = any.
    pub(crate) body: Option<u64>,
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
        wireguard,
        listeners: listeners(loaded, &raw)?,
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
        registry: raw.registry.url.parse().map_err(|error| loaded.wrong("registry.url", error))?,
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

impl Limits {
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

fn listeners(loaded: &Loaded, raw: &settings::Raw) -> Result<Vec<Listener>, Quit> {
    let mut listeners = Vec::new();
    let short_is_default = loaded.source("http.listen") == Source::Default;
    if raw.http.listener.is_empty() || !short_is_default {
        for text in &raw.http.listen {
            let address = address(loaded, "http.listen", text)?;
            if let Address::Tcp(at) = address {
                exposed(at, false, false, "a [[http.listener]] table with it")?;
            }
            let (select, forward) = (Select::Host, ForwardPolicy::Append);
            listeners.push(Listener { address, select, forward, services: None, identified: false, gateways: None });
        }
    }
    for (place, listener) in raw.http.listener.iter().enumerate() {
        let key = format!("http.listener[{place}].listen");
        let Some(text) = &listener.listen else {
            return Err(loaded.wrong(&key, "a listener needs an address").into());
        };
        let address = address(loaded, &key, text)?;
        if let Address::Tcp(at) = address {
            exposed(at, listener.open, listener.cleartext, "its [[http.listener]] table")?;
        }
        let forward = match listener.forwarded.as_deref() {
            Some("replace") => ForwardPolicy::Replace,
            None if listener.open => ForwardPolicy::Replace,
            Some(_) | None => ForwardPolicy::Append,
        };
        let select = if listener.select.as_deref() == Some("header") { Select::Header } else { Select::Host };
        let services = listener.services.as_ref().map(|globs| globs.iter().map(|glob| glob.parse()).collect());
        let services: Option<Vec<Grant>> =
            services.transpose().map_err(|error| loaded.wrong(&format!("http.listener[{place}].services"), error))?;
        listeners.push(Listener { address, select, forward, services, identified: false, gateways: None });
    }
    let twice = listeners.iter().enumerate().find(|(place, one)| {
        let port_0 = matches!(one.address, Address::Tcp(at) if at.port() == 0);
        !port_0 && listeners.iter().skip(place + 1).any(|other| other.address == one.address)
    });
    match twice {
        Some((_, twice)) => Err(loaded.wrong("http.listen", format_args!("{} is there twice", twice.address)).into()),
        None => Ok(listeners),
    }
}

fn address(loaded: &Loaded, key: &str, text: &str) -> Result<Address, Quit> {
    match text.strip_prefix("unix:") {
        Some(path) => Ok(Address::Unix(path.into())),
        None => socket(loaded, key, text).map(Address::Tcp),
    }
}

/// The listener that a service manager's socket is, where none is configured.
///
/// # Errors
/// 78 when it is not on loopback.
pub(crate) fn listener_of(address: Address) -> Result<Listener, Quit> {
    if let Address::Tcp(at) = address {
        exposed(at, false, false, "a [[http.listener]] table with this address")?;
    }
    Ok(Listener { address, select: Select::Host, forward: ForwardPolicy::Append, services: None, identified: false, gateways: None })
}

/// Refuses a listener that others than this host's processes can reach, unless its owner said that this is meant.
fn exposed(at: SocketAddr, open: bool, cleartext: bool, place: &str) -> Result<(), Quit> {
    if is_loopback(at.ip()) {
        return Ok(());
    }
    let missing: Vec<&str> = [(open, "open = true"), (cleartext, "cleartext = true")]
        .into_iter()
        .filter_map(|(set, what)| (!set).then_some(what))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let message = format!("http listener {at} is not on loopback: callers are neither known nor encrypted there");
    let hint =
        format!("set {} in {place} if that is meant, or listen on 127.0.0.1 or a unix socket", missing.join(" and "));
    Err(Quit::new(Exit::Config, message).hint(hint))
}

fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
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
    Ok(Limits { connections: own.connections, process, service, services })
}

#[cfg(test)]
mod tests;
