//! Every setting of the relay, and the shape in which the merged table is read.
//!
//! Must never give a value a meaning: that is [`super::settle`]'s.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use culvert_ops::config::{Kind, Setting, joined};
use culvert_ops::secret::{SecretSource, SecretSpec};
use culvert_origin::auth_settings;
use serde::Deserialize;

const COUNT: Kind = Kind::Integer { min: 1, max: 1_000_000 };
const COUNT_OR_NONE: Kind = Kind::Integer { min: 0, max: 1_000_000 };

const SHARDS: Kind = Kind::Integer { min: 1, max: 64 };

/// The settings. A key that is not here is an error.
pub(crate) const SETTINGS: &[Setting] = &joined::<{ OWN.len() + AUTH.len() }>(OWN, AUTH);

/// Behind a peer: how a request is proven to have come through here.
const AUTH: &[Setting] = auth_settings!("service.*.auth");

const OWN: &[Setting] = &[
    Setting::new(
        "shards",
        SHARDS,
        "threads that carry tunnels and requests; absent: half of the processors, 8 at most",
    )
    .restart(),
    Setting::new("wireguard.listen", Kind::List(&Kind::Address), "UDP addresses that connectors reach")
        .or("0.0.0.0:51820 [::]:51820")
        .restart(),
    Setting::new("wireguard.endpoints", Kind::List(&Kind::Text), "HOST:PORT as connectors dial it, for tokens"),
    Setting::new(
        "wireguard.inner_ipv4",
        Kind::Text,
        "the relay's address toward stock peers in IPv4, and the network that they get theirs from",
    )
    .or("100.127.80.1/20")
    .restart(),
    Setting::new(
        "wireguard.peer_mtu",
        Kind::Integer { min: 1280, max: 9000 },
        "longest packet inside the tunnels of stock peers",
    )
    .or("1408")
    .restart(),
    Setting::new("http.listen", Kind::List(&Kind::Address), "addresses that gateways call")
        .or("127.0.0.1:8080")
        .restart(),
    Setting::new("http.domain", Kind::Text, "what may follow a service's name in a host").or("internal"),
    Setting::new("http.access_log", Kind::WordOrPath(&["stdout", "stderr", "off"]), "stdout, stderr, off, or a file")
        .or("stdout"),
    Setting::new("http.listener[].listen", Kind::Address, "address or unix:PATH").restart(),
    Setting::new("http.listener[].tls.cert", Kind::Path, "our certificate and its chain (PEM): callers speak TLS"),
    Setting::new("http.listener[].tls.key", Kind::Path, "its key (PEM)"),
    Setting::new("http.listener[].tls.client_ca", Kind::Path, "authorities of callers' certificates (PEM)"),
    Setting::new("http.listener[].proxy_protocol", Kind::Bool, "every connection starts with a PROXY header, v1 or v2"),
    Setting::new("http.listener[].gateways", Kind::List(&Kind::Text), "who may call here; absent: every known gateway"),
    Setting::new("http.listener[].services", Kind::List(&Kind::Text), "services that may be called here; absent: all"),
    Setting::new("http.listener[].select", Kind::Choice(&["host", "header"]), "how a request names its service"),
    Setting::new("http.listener[].forwarded", Kind::Choice(&["append", "replace"]), "what becomes of X-Forwarded-*"),
    Setting::new("http.listener[].open", Kind::Bool, "callers need no identity"),
    Setting::new("http.listener[].cleartext", Kind::Bool, "callers may speak without TLS off loopback"),
    Setting::new("tcp[].listen", Kind::Address, "address or unix:PATH whose connections are one service's").restart(),
    Setting::new("tcp[].service", Kind::Text, "the service they lead to"),
    Setting::new("tcp[].proxy_protocol", Kind::Bool, "every connection starts with a PROXY header, v1 or v2"),
    Setting::new("tcp[].open", Kind::Bool, "anybody may connect off loopback"),
    Setting::new("tcp[].cleartext", Kind::Bool, "nothing is encrypted by the relay off loopback"),
    Setting::new("route[].host", Kind::Text, "host of the request; absent: any"),
    Setting::new("route[].path", Kind::Text, "path prefix by whole segments; absent: any"),
    Setting::new("route[].service", Kind::Text, "the service it leads to"),
    Setting::new("limits.connections", COUNT, "connections of callers at once").or("10000"),
    Setting::new("limits.concurrent", COUNT, "requests at once, of the process and of each service").or("10000"),
    Setting::new("limits.queue", COUNT_OR_NONE, "requests waiting for one of them to end").or("1000"),
    Setting::new("limits.queue_time", Kind::Duration, "how long they wait").or("1s"),
    Setting::new("limits.body", Kind::OptionalSize, "bytes of a request's body").or("off"),
    Setting::new("limits.connector_concurrent", COUNT, "requests at once over one connector; more wait in the queue")
        .or("4000"),
    Setting::new("limits.gateway_concurrent", COUNT, "requests at once of one gateway; more wait in the queue")
        .or("10000"),
    Setting::new("limits.head", Kind::Size, "bytes of a request's head, 8KiB to 1MiB").or("64KiB"),
    Setting::new("limits.fields", Kind::Integer { min: 1, max: 100 }, "fields of a request's head").or("100"),
    Setting::new("limits.head_time", Kind::Duration, "from the first byte of a head to its last").or("30s"),
    Setting::new("limits.body_idle", Kind::Duration, "without a byte of a request's body that is waited for").or("1h"),
    Setting::new("limits.keep_alive", Kind::Duration, "a caller's connection without a request").or("120s"),
    Setting::new("limits.streams", Kind::Integer { min: 1, max: 10_000 }, "HTTP/2: requests at once on a connection")
        .or("100"),
    Setting::new("limits.unread_time", Kind::Duration, "an answer that its caller does not read").or("120s"),
    Setting::new("limits.handshake_time", Kind::Duration, "a caller's PROXY header and TLS handshake").or("10s"),
    Setting::new("limits.handshakes", COUNT, "of those at once; past it the slowest goes").or("512"),
    Setting::new("service.*.limits.concurrent", COUNT, "requests of the service at once"),
    Setting::new("service.*.limits.queue", COUNT_OR_NONE, "requests waiting for one of them to end"),
    Setting::new("service.*.limits.queue_time", Kind::Duration, "how long they wait"),
    Setting::new("service.*.limits.body", Kind::OptionalSize, "bytes of a request's body"),
    Setting::new("service.*.headers.*", Kind::Secret, "behind a peer: set on every request in place of the caller's"),
    Setting::new("service.*.remove_headers", Kind::List(&Kind::Text), "behind a peer: taken out of every request"),
    Setting::new("service.*.tls.cert", Kind::Path, "behind a peer: our certificate toward an https origin"),
    Setting::new("service.*.tls.key", Kind::Path, "its key"),
    Setting::new("service.*.tls.server_name", Kind::Text, "the name to ask for and to verify in place of the origin's"),
    Setting::new(
        "service.*.tls.pins",
        Kind::List(&Kind::Text),
        "sha256/BASE64 of keys of which the origin must have one, as curl's --pinnedpubkey",
    ),
    Setting::new("service.*.tls.min_version", Kind::Choice(&["1.2", "1.3"]), "the oldest TLS that is spoken"),
    Setting::new("service.*.timeouts.connect", Kind::Duration, "behind a peer: until the origin accepted (5s)"),
    Setting::new("service.*.timeouts.first_byte", Kind::Duration, "until the response's head (60s)"),
    Setting::new("service.*.timeouts.idle", Kind::Duration, "without a byte either way (1h)"),
    Setting::new("service.*.timeouts.request", Kind::OptionalDuration, "the whole exchange"),
    Setting::new("admin.listen", Kind::Address, "address of the admin endpoints").or("127.0.0.1:9480").restart(),
    Setting::new("admin.group", Kind::Text, "group that may use admin.sock too").restart(),
    Setting::new("issuer.url", Kind::Url, "who connectors sign tokens as: this and /TUNNEL; what verifiers fetch")
        .restart(),
    Setting::new("issuer.listen", Kind::Address, "where the keys for them are served").restart(),
    Setting::new("issuer.tls.cert", Kind::Path, "our certificate there and its chain (PEM): verifiers speak TLS")
        .restart(),
    Setting::new("issuer.tls.key", Kind::Path, "its key (PEM)").restart(),
    Setting::new("registry.url", Kind::Url, "sqlite:FILE, in the state directory, or postgres://USER@HOST/DATABASE")
        .or("sqlite:registry.db")
        .restart(),
    Setting::new("registry.password", Kind::Secret, "of the database; read anew at every connection").restart(),
    Setting::new("log.filter", Kind::Text, "level, or target=level separated by commas; CULVERT_LOG wins"),
    Setting::new("drain.timeout", Kind::Duration, "at most, from the signal to the end").or("25s").restart(),
    Setting::new("drain.streams", Kind::Duration, "for what has been running for more than 5 s").or("5s").restart(),
    Setting::new("drain.delay", Kind::Duration, "not ready but still serving before the drain begins")
        .or("0s")
        .restart(),
];

#[derive(Debug, Deserialize)]
pub(super) struct Raw {
    pub(super) shards: Option<u8>,
    pub(super) wireguard: RawWireGuard,
    pub(super) http: RawHttp,
    #[serde(default)]
    pub(super) tcp: Vec<RawTcp>,
    #[serde(default)]
    pub(super) route: Vec<RawRoute>,
    pub(super) limits: RawLimits,
    #[serde(default)]
    pub(super) service: BTreeMap<String, RawService>,
    pub(super) admin: RawAdmin,
    #[serde(default)]
    pub(super) issuer: RawIssuer,
    pub(super) registry: RawRegistry,
    pub(super) drain: RawDrain,
    #[serde(default)]
    pub(super) log: RawLog,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct RawIssuer {
    pub(super) url: Option<String>,
    pub(super) listen: Option<String>,
    pub(super) tls: Option<RawTls>,
}

#[derive(Debug, Deserialize)]
pub(super) struct RawWireGuard {
    pub(super) listen: Vec<String>,
    #[serde(default)]
    pub(super) endpoints: Vec<String>,
    pub(super) inner_ipv4: String,
    pub(super) peer_mtu: u16,
}

#[derive(Debug, Deserialize)]
pub(super) struct RawHttp {
    pub(super) listen: Vec<String>,
    pub(super) domain: String,
    pub(super) access_log: String,
    #[serde(default)]
    pub(super) listener: Vec<RawListener>,
}

#[derive(Debug, Deserialize)]
pub(super) struct RawListener {
    pub(super) listen: Option<String>,
    pub(super) tls: Option<RawTls>,
    #[serde(default)]
    pub(super) proxy_protocol: bool,
    pub(super) gateways: Option<Vec<String>>,
    pub(super) services: Option<Vec<String>>,
    pub(super) select: Option<String>,
    pub(super) forwarded: Option<String>,
    #[serde(default)]
    pub(super) open: bool,
    #[serde(default)]
    pub(super) cleartext: bool,
}

#[derive(Debug, Deserialize)]
pub(super) struct RawTls {
    pub(super) cert: Option<PathBuf>,
    pub(super) key: Option<PathBuf>,
    pub(super) client_ca: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
pub(super) struct RawTcp {
    pub(super) listen: Option<String>,
    pub(super) service: Option<String>,
    #[serde(default)]
    pub(super) proxy_protocol: bool,
    #[serde(default)]
    pub(super) open: bool,
    #[serde(default)]
    pub(super) cleartext: bool,
}

#[derive(Debug, Deserialize)]
pub(super) struct RawRoute {
    pub(super) host: Option<String>,
    pub(super) path: Option<String>,
    pub(super) service: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct RawLimits {
    pub(super) connections: usize,
    pub(super) concurrent: usize,
    pub(super) queue: usize,
    #[serde(with = "culvert_ops::config::duration")]
    pub(super) queue_time: Duration,
    #[serde(default, with = "culvert_ops::config::optional_size")]
    pub(super) body: Option<u64>,
    pub(super) connector_concurrent: usize,
    pub(super) gateway_concurrent: usize,
    pub(super) head: usize,
    pub(super) fields: usize,
    #[serde(with = "culvert_ops::config::duration")]
    pub(super) head_time: Duration,
    #[serde(with = "culvert_ops::config::duration")]
    pub(super) body_idle: Duration,
    #[serde(with = "culvert_ops::config::duration")]
    pub(super) keep_alive: Duration,
    pub(super) streams: u32,
    #[serde(with = "culvert_ops::config::duration")]
    pub(super) unread_time: Duration,
    #[serde(with = "culvert_ops::config::duration")]
    pub(super) handshake_time: Duration,
    pub(super) handshakes: usize,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct RawService {
    #[serde(default)]
    pub(super) limits: RawServiceLimits,
    #[serde(default)]
    pub(super) headers: BTreeMap<String, SecretSpec>,
    #[serde(default)]
    pub(super) remove_headers: Vec<String>,
    #[serde(default)]
    pub(super) tls: RawOriginTls,
    #[serde(default)]
    pub(super) timeouts: RawOriginTimeouts,
    pub(super) auth: Option<toml::Table>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct RawOriginTls {
    pub(super) cert: Option<PathBuf>,
    pub(super) key: Option<PathBuf>,
    pub(super) server_name: Option<String>,
    #[serde(default)]
    pub(super) pins: Vec<String>,
    pub(super) min_version: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct RawOriginTimeouts {
    #[serde(default, deserialize_with = "culvert_ops::config::given")]
    pub(super) connect: Option<Duration>,
    #[serde(default, deserialize_with = "culvert_ops::config::given")]
    pub(super) first_byte: Option<Duration>,
    #[serde(default, deserialize_with = "culvert_ops::config::given")]
    pub(super) idle: Option<Duration>,
    #[serde(default, with = "culvert_ops::config::optional_duration")]
    pub(super) request: Option<Duration>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct RawServiceLimits {
    pub(super) concurrent: Option<usize>,
    pub(super) queue: Option<usize>,
    #[serde(default, deserialize_with = "culvert_ops::config::given")]
    pub(super) queue_time: Option<Duration>,
    #[serde(default, with = "culvert_ops::config::optional_size")]
    pub(super) body: Option<u64>,
}

#[derive(Debug, Deserialize)]
pub(super) struct RawAdmin {
    pub(super) listen: String,
    pub(super) group: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct RawRegistry {
    pub(super) url: String,
    pub(super) password: Option<SecretSource>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct RawLog {
    pub(super) filter: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct RawDrain {
    #[serde(with = "culvert_ops::config::duration")]
    pub(super) delay: Duration,
    #[serde(with = "culvert_ops::config::duration")]
    pub(super) timeout: Duration,
    #[serde(with = "culvert_ops::config::duration")]
    pub(super) streams: Duration,
}
