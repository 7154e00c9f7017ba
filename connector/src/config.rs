//! The connector's settings: the one list of them, and what their values mean.
//!
//! Must never let a value through that would only fail later, or keep a secret's text beside its use.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use culvert_model::name::{Label, ServiceName};
use culvert_ops::config::{ConfigError, Flags, Kind, Load, Loaded, Setting, Source, joined};
use culvert_ops::secret::SecretSource;
use culvert_ops::{Environment, Program};
use culvert_origin::allow::Allow;
use culvert_origin::origin::Origin;
use culvert_origin::proof::{FieldPolicy, settable};
use culvert_origin::service::{Balance, HealthCheck, Service, Timeouts, health_path};
use culvert_origin::tls::{ClientTls, Files, Pin};
use culvert_origin::{auth, auth_settings};
use http::header::{self, HeaderName, HeaderValue};
use rustls_pki_types::ServerName;
use zeroize::Zeroizing;

use crate::lanes::{MOST, default_lanes};

mod raw;

use raw::{Raw, RawHealth, RawKey, RawService, RawTimeouts, RawTls};

/// Every setting. Names of variables, `check` and unknown-key errors follow from it.
pub const SETTINGS: &[Setting] = &joined::<{ OWN.len() + AUTH.len() }>(OWN, AUTH);

const AUTH: &[Setting] = auth_settings!("service[].auth");

const OWN: &[Setting] = &[
    Setting::new("name", Kind::Text, "this connector's name in listings (default: the host's name)").restart(),
    Setting::new("ephemeral", Kind::Bool, "keep no state; the relay forgets this connector 10 min after it vanished")
        .or("false")
        .restart(),
    Setting::new(
        "lanes",
        Kind::Integer { min: 1, max: MOST as i64 },
        "connections to each relay, each with a thread of its own; absent: a quarter of the processors, 4 at most",
    )
    .restart(),
    Setting::new("admin.listen", Kind::Address, "where /livez, /readyz and /metrics are served")
        .or("127.0.0.1:9481")
        .restart(),
    Setting::new("admin.group", Kind::Text, "the group that may use admin.sock").restart(),
    Setting::new("drain.timeout", Kind::Duration, "how long requests in flight may take at the end")
        .or("25s")
        .restart(),
    Setting::new(
        "allow.origins",
        Kind::List(&Kind::Text),
        "which origins a relay may manage: names with *, networks, or unix:/PATH, as in http://*.internal:8080 or 10.0.0.0/8:443; none by default",
    ),
    Setting::new(
        "key.rotate_after",
        Kind::OptionalDuration,
        "the age at which this connector makes itself another key; 0s or never: at no age",
    )
    .or("30d"),
    Setting::new(
        "key.renew_psk_after",
        Kind::Duration,
        "the age at which a pre-shared key is renewed by ML-KEM-768: 10s to 7d",
    )
    .or("1h"),
    Setting::new("service", Kind::Entries { name: "name", value: "origin" }, "services"),
    Setting::new("service[].name", Kind::Text, "what gateways call it"),
    Setting::new("service[].origin", Kind::Url, "http://, https://, h2c:// or tcp:// and HOST:PORT, or unix:/PATH"),
    Setting::new("service[].host", Kind::Text, "the Host that the origin sees: origin, preserve, or this text"),
    Setting::new("service[].headers.*", Kind::Secret, "set on every request in place of the caller's"),
    Setting::new("service[].remove_headers", Kind::List(&Kind::Text), "taken out of every request"),
    Setting::new("service[].rename_headers.*", Kind::Text, "the caller's field of this name gets the other one"),
    Setting::new(
        "service[].authorization",
        Kind::Choice(&["pass", "remove"]),
        "whether the caller's Authorization reaches the origin; to replace it, set it under headers",
    ),
    Setting::new("service[].tls.ca", Kind::Path, "authorities to trust in place of the system's"),
    Setting::new("service[].tls.cert", Kind::Path, "our certificate"),
    Setting::new("service[].tls.key", Kind::Path, "its key"),
    Setting::new("service[].tls.server_name", Kind::Text, "the name to ask for and to verify in place of the origin's"),
    Setting::new(
        "service[].tls.verify_names",
        Kind::List(&Kind::Text),
        "the certificate must be for one of these, in place of the name that was asked for",
    ),
    Setting::new(
        "service[].tls.pins",
        Kind::List(&Kind::Text),
        "sha256/BASE64 of keys of which the origin must have one, as curl's --pinnedpubkey",
    ),
    Setting::new("service[].tls.min_version", Kind::Choice(&["1.2", "1.3"]), "the oldest TLS that is spoken"),
    Setting::new(
        "service[].proxy_protocol",
        Kind::Choice(&["v1", "v2"]),
        "tell a tcp:// origin who connected, in this version of the PROXY protocol",
    ),
    Setting::new("service[].health.path", Kind::Text, "GET this instead of a TCP connect"),
    Setting::new("service[].health.interval", Kind::Duration, "time between checks"),
    Setting::new("service[].health.timeout", Kind::Duration, "time one check may take"),
    Setting::new("service[].balance", Kind::Text, "keep requests together by header:NAME, cookie:NAME or client-ip"),
    Setting::new("service[].timeouts.connect", Kind::Duration, "until the origin accepted"),
    Setting::new("service[].timeouts.first_byte", Kind::Duration, "until the response's head"),
    Setting::new("service[].timeouts.idle", Kind::Duration, "without a byte either way"),
    Setting::new("service[].timeouts.request", Kind::OptionalDuration, "the whole exchange"),
    Setting::new("service[].timeouts.queue", Kind::Duration, "waiting for a connector"),
];

/// What the command line says about settings.
#[derive(Debug, Clone, Default)]
pub struct Given {
    /// `--config`
    pub config: Option<PathBuf>,
    /// `--service`
    pub services: Vec<String>,
    /// `--name`
    pub name: Option<String>,
    /// `--admin-listen`
    pub admin_listen: Option<String>,
    /// `--ephemeral`
    pub ephemeral: bool,
    /// `--lanes`
    pub lanes: Option<String>,
    /// `--drain-timeout`
    pub drain_timeout: Option<String>,
}

/// How old keys become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyAges {
    /// The connector's own key; none: as old as it gets.
    pub rotate_after: Option<Duration>,
    /// Pre-shared keys.
    pub renew_psk_after: Duration,
}

impl Default for KeyAges {
    fn default() -> Self {
        Self { rotate_after: Some(Duration::from_secs(30 * 86_400)), renew_psk_after: Duration::from_secs(3600) }
    }
}

/// Settings that mean something.
#[derive(Debug, Clone)]
pub struct Settled {
    /// The connector's name.
    pub name: Option<Label>,
    /// Whether nothing is kept.
    pub ephemeral: bool,
    /// Connections to each relay, each with a thread.
    pub lanes: u8,
    /// The TCP admin listener.
    pub admin_listen: SocketAddr,
    /// Whether a user chose it: then it being taken is an error.
    pub admin_chosen: bool,
    /// The group of `admin.sock`.
    pub admin_group: Option<String>,
    /// The longest drain.
    pub drain_timeout: Duration,
    /// How old keys become.
    pub key: KeyAges,
    /// What a relay may manage.
    pub allow: Allow,
    /// The services.
    pub services: Vec<Service>,
    /// Files whose change is a reason to reload.
    pub watched: Vec<PathBuf>,
}

impl Settled {
    /// Only these services, everything else as by default: for `dev`.
    pub fn of_services(services: Vec<Service>) -> Self {
        Self {
            name: None,
            ephemeral: false,
            lanes: 1,
            admin_listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9481),
            admin_chosen: false,
            admin_group: None,
            drain_timeout: Duration::from_secs(25),
            key: KeyAges::default(),
            allow: Allow::default(),
            services,
            watched: Vec::new(),
        }
    }
}

/// Reads flags, environment and file.
///
/// # Errors
/// [`ConfigError`]
pub fn load(given: &Given, environment: &dyn Environment) -> Result<Loaded, ConfigError> {
    let flags = Flags::new()
        .list("--service", "service", &given.services)
        .value("--name", "name", given.name.as_ref())
        .value("--admin-listen", "admin.listen", given.admin_listen.as_ref())
        .value("--ephemeral", "ephemeral", given.ephemeral.then_some(true))
        .value("--lanes", "lanes", given.lanes.as_ref())
        .value("--drain-timeout", "drain.timeout", given.drain_timeout.as_ref());
    Load::new(Program::Connector, SETTINGS, environment).flags(flags).config(given.config.as_ref()).load()
}

/// Says what the values mean. Reads the files and variables that they name.
///
/// # Errors
/// [`ConfigError::Wrong`]: the first value that means nothing, with its place.
pub fn settle(loaded: &Loaded, environment: &dyn Environment) -> Result<Settled, ConfigError> {
    let raw: Raw = loaded.settle()?;
    let place = Place { loaded, environment };
    let listen = &raw.admin.listen;
    let allow = Allow::parse(&raw.allow.origins).map_err(|error| loaded.wrong("allow.origins", error))?;
    let mut watched = Vec::new();
    let mut services: Vec<Service> = Vec::new();
    for (number, raw) in raw.service.iter().enumerate() {
        let key = format!("service[{number}]");
        let service = place.service(&key, raw, &mut watched)?;
        if services.iter().any(|other| other.name == service.name) {
            return Err(
                loaded.wrong(&format!("{key}.name"), format_args!("{:?} is there twice", service.name.as_str()))
            );
        }
        services.push(service);
    }
    Ok(Settled {
        name: raw.name.as_deref().map(|name| place.parse("name", name)).transpose()?,
        ephemeral: raw.ephemeral,
        lanes: raw.lanes.unwrap_or_else(default_lanes),
        admin_listen: listen.parse().map_err(|_| {
            loaded.wrong("admin.listen", format_args!("{listen:?} is not ADDRESS:PORT, as in 127.0.0.1:9481"))
        })?,
        admin_chosen: loaded.source("admin.listen") != Source::Default,
        admin_group: raw.admin.group,
        drain_timeout: raw.drain.timeout,
        key: key_ages(&raw.key, loaded)?,
        allow,
        services,
        watched,
    })
}

/// A connector that makes itself keys without end wears out disks and audit trails.
const ROTATE_AT_SOONEST: Duration = Duration::from_secs(3600);
/// Two flushes to disk at both ends each time; and a session that nobody renews is no safer than WireGuard alone.
const RENEW_WITHIN: std::ops::RangeInclusive<Duration> = Duration::from_secs(10)..=Duration::from_secs(7 * 86_400);

fn key_ages(raw: &RawKey, loaded: &Loaded) -> Result<KeyAges, ConfigError> {
    let rotate_after = raw.rotate_after.filter(|age| !age.is_zero());
    if rotate_after.is_some_and(|age| age < ROTATE_AT_SOONEST) {
        return Err(loaded.wrong("key.rotate_after", "must be an hour or more, or \"never\""));
    }
    if !RENEW_WITHIN.contains(&raw.renew_psk_after) {
        return Err(loaded.wrong("key.renew_psk_after", "must be from 10s to 7d"));
    }
    Ok(KeyAges { rotate_after, renew_psk_after: raw.renew_psk_after })
}

/// Where values stand and what they may read.
struct Place<'a> {
    loaded: &'a Loaded,
    environment: &'a dyn Environment,
}

impl Place<'_> {
    fn service(&self, key: &str, raw: &RawService, watched: &mut Vec<PathBuf>) -> Result<Service, ConfigError> {
        let missing = |what: &str| self.loaded.wrong(&format!("{key}.{what}"), "is missing");
        let name: ServiceName =
            self.parse(&format!("{key}.name"), raw.name.as_ref().ok_or_else(|| missing("name"))?)?;
        let origin = raw.origin.as_ref().ok_or_else(|| missing("origin"))?;
        let origin: Origin = self.parse(&format!("{key}.origin"), origin)?;
        let tls = self.tls(&format!("{key}.tls"), &raw.tls, &origin, watched)?;
        let mut service = Service::new(name, origin, tls);
        if let Some(host) = &raw.host {
            service.host = self.parse(&format!("{key}.host"), host)?;
        }
        for (name, spec) in &raw.headers {
            let key = format!("{key}.headers.{name}");
            let name = self.header_name(&key, name)?;
            watched.extend(spec.sources.iter().filter_map(|source| source.watched(self.environment)));
            let secret = spec.read(self.environment).map_err(|error| self.loaded.wrong(&key, error))?;
            let value = HeaderValue::from_str(secret.expose())
                .map_err(|_| self.loaded.wrong(&key, "holds characters that no header field may hold"))?;
            service.fields.set(name, value).map_err(|twice| self.loaded.wrong(&key, twice))?;
        }
        self.field_policy(key, raw, &mut service.fields)?;
        if let Some(table) = &raw.auth {
            let place = auth::Place { loaded: self.loaded, environment: self.environment, has_keys: true };
            let proof = auth::settle(&place, &format!("{key}.auth"), table, &mut service.fields, watched)?;
            service.auth = Some(Arc::new(proof));
        }
        service.health = self.health(&format!("{key}.health"), &raw.health)?;
        if let Some(balance) = &raw.balance {
            service.balance = Some(self.parse::<Balance>(&format!("{key}.balance"), balance)?);
        }
        service.timeouts = timeouts(&raw.timeouts);
        if let Some(version) = &raw.proxy_protocol {
            service.proxy_protocol = Some(self.parse(&format!("{key}.proxy_protocol"), version)?);
        }
        self.fits_its_kind(key, raw, &service.origin)?;
        Ok(service)
    }

    /// What is done to the caller's fields beside setting some.
    fn field_policy(&self, key: &str, raw: &RawService, fields: &mut FieldPolicy) -> Result<(), ConfigError> {
        for (from, to) in &raw.rename_headers {
            let key = format!("{key}.rename_headers.{from}");
            let (from, to) = (self.header_name(&key, from)?, self.header_name(&key, to)?);
            fields.rename(&from, to).map_err(|twice| self.loaded.wrong(&key, twice))?;
        }
        for name in &raw.remove_headers {
            let key = format!("{key}.remove_headers");
            let name = self.header_name(&key, name)?;
            fields.remove(&name).map_err(|twice| self.loaded.wrong(&key, twice))?;
        }
        if raw.authorization.as_deref() == Some("remove") {
            let twice = fields.remove(&header::AUTHORIZATION);
            twice.map_err(|twice| self.loaded.wrong(&format!("{key}.authorization"), twice))?;
        }
        Ok(())
    }

    /// Refuses settings that would do nothing for an origin of this kind.
    fn fits_its_kind(&self, key: &str, raw: &RawService, origin: &Origin) -> Result<(), ConfigError> {
        let timeouts = &raw.timeouts;
        let of_requests = [
            ("host", raw.host.is_some()),
            ("headers", !raw.headers.is_empty()),
            ("remove_headers", !raw.remove_headers.is_empty()),
            ("rename_headers", !raw.rename_headers.is_empty()),
            ("authorization", raw.authorization.is_some()),
            ("auth", raw.auth.is_some()),
            ("health.path", raw.health.path.is_some()),
            ("timeouts.first_byte", timeouts.first_byte.is_some()),
            ("timeouts.request", timeouts.request.is_some()),
        ];
        let (given, why) = match origin.is_tcp() {
            true => (&of_requests[..], "is about requests, and a tcp:// origin gets none: take it out"),
            false => (&[("proxy_protocol", raw.proxy_protocol.is_some())][..], "is for tcp:// origins: take it out"),
        };
        match given.iter().find(|(_, is_given)| *is_given) {
            Some((name, _)) => Err(self.loaded.wrong(&format!("{key}.{name}"), why)),
            None => Ok(()),
        }
    }

    fn tls(
        &self,
        key: &str,
        raw: &RawTls,
        origin: &Origin,
        watched: &mut Vec<PathBuf>,
    ) -> Result<Option<ClientTls>, ConfigError> {
        if !origin.is_tls() {
            let given = [&raw.ca, &raw.cert, &raw.key].iter().any(|file| file.is_some())
                || raw.server_name.is_some()
                || raw.min_version.is_some()
                || !(raw.verify_names.is_empty() && raw.pins.is_empty());
            let why = "is for https origins: write https:// or take it out";
            return if given { Err(self.loaded.wrong(key, why)) } else { Ok(None) };
        }
        watched.extend(raw.key.clone());
        let key_file = raw.key.clone().map(|path| {
            let read = SecretSource::File(path).read(self.environment);
            let secret = read.map_err(|error| self.loaded.wrong(&format!("{key}.key"), error))?;
            Ok(Zeroizing::new(secret.expose().as_bytes().to_vec()))
        });
        let mut read = |name: &str, path: &Option<PathBuf>| -> Result<Option<Vec<u8>>, ConfigError> {
            let Some(path) = path else { return Ok(None) };
            watched.push(path.clone());
            let wrong = |error| {
                self.loaded.wrong(&format!("{key}.{name}"), format_args!("cannot read {}: {error}", path.display()))
            };
            std::fs::read(path).map(Some).map_err(wrong)
        };
        let provable = |place: &str, text: &String| {
            let why = "is no name that a certificate can have: a DNS name or an address is expected";
            ServerName::try_from(text.clone()).map_err(|_| self.loaded.wrong(&format!("{key}.{place}"), why))
        };
        let verify_names = raw.verify_names.iter().map(|text| provable("verify_names", text));
        let pins = raw.pins.iter().map(|text| self.parse::<Pin>(&format!("{key}.pins"), text));
        let files = Files {
            server_name: raw.server_name.as_ref().map(|text| provable("server_name", text)).transpose()?,
            verify_names: verify_names.collect::<Result<_, _>>()?,
            pins: pins.collect::<Result<_, _>>()?,
            tls13_only: raw.min_version.as_deref() == Some("1.3"),
            ca: read("ca", &raw.ca)?,
            cert: read("cert", &raw.cert)?,
            key: key_file.transpose()?,
        };
        ClientTls::new(files).map(Some).map_err(|error| self.loaded.wrong(key, error))
    }

    fn header_name(&self, key: &str, text: &str) -> Result<HeaderName, ConfigError> {
        settable(text).map_err(|why| self.loaded.wrong(key, why))
    }

    fn health(&self, key: &str, raw: &RawHealth) -> Result<HealthCheck, ConfigError> {
        let usual = HealthCheck::default();
        let path = raw
            .path
            .as_ref()
            .map(|text| health_path(text).map_err(|why| self.loaded.wrong(&format!("{key}.path"), why)));
        let positive = |name: &str, given: Option<Duration>, usual: Duration| match given {
            Some(Duration::ZERO) => Err(self.loaded.wrong(&format!("{key}.{name}"), "must be more than 0s")),
            given => Ok(given.unwrap_or(usual)),
        };
        Ok(HealthCheck {
            path: path.transpose()?,
            interval: positive("interval", raw.interval, usual.interval)?,
            timeout: positive("timeout", raw.timeout, usual.timeout)?,
        })
    }

    fn parse<T: FromStr<Err: std::fmt::Display>>(&self, key: &str, text: &str) -> Result<T, ConfigError> {
        text.parse().map_err(|error| self.loaded.wrong(key, error))
    }
}

fn timeouts(raw: &RawTimeouts) -> Timeouts {
    Timeouts {
        connect: raw.connect.unwrap_or(Timeouts::default().connect),
        first_byte: raw.first_byte,
        idle: raw.idle,
        request: raw.request,
        queue: raw.queue,
    }
}

#[cfg(test)]
mod tests;
