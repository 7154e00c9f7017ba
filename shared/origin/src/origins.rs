//! Which origin a service is: the table of this connector's services. What is not in it does not exist.
//!
//! Must never be changed in place: a reload builds a new table, which takes over the pools of what stayed the same.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock, RwLock};
use std::time::{Duration, Instant, SystemTime};

use culvert_hop::body::Body;
use culvert_hop::fault::{Fault, Retry, Side};
use culvert_hop::message::RequestParts;
use culvert_hop::pool::{Lost, Opener, PoolSettings, Speak};
use culvert_model::reason::Reason;
use culvert_ops::time::rfc3339;
use http::HeaderValue;

use crate::connect::{Admission, Way, connect, reason_of};
use crate::figures::ServiceMetrics;
use crate::health::Health;
use crate::names::Names;
use crate::network::Network;
use crate::origin::{Host, Origin, Scheme};
use crate::origin_io::OriginIo;
use crate::pools::Pools;
use crate::proof::{About, Proofs};
use crate::service::Service;
use crate::tls::{Offer, Warnings, refusal};

/// Idle connections kept for each origin.
const MAX_IDLE: usize = 512;
/// Below the five seconds that common servers wait for a next request.
const IDLE: Duration = Duration::from_secs(4);
/// HTTP/2 servers say when they close, and what they have not looked at is sent again.
const IDLE_HTTP2: Duration = Duration::from_secs(60);
/// An origin that answered so recently does not just close its connection.
const SURELY_OPEN: Duration = Duration::from_millis(100);
/// How often it is looked whether a certificate ends soon.
const LOOK_AT_CERTIFICATES: Duration = Duration::from_secs(30);
/// HTTP/2: exchanges at once on a connection, as many as common servers permit.
const EXCHANGES: u32 = 100;
/// The largest response head.
const MAX_HEAD: usize = 64 * 1024;

/// The table; clones share it.
#[derive(Clone, Default)]
pub struct Origins {
    table: Arc<RwLock<Arc<Table>>>,
    network: Network,
    proofs: Proofs,
}

/// One state of the table.
#[derive(Default)]
pub struct Table {
    upstreams: BTreeMap<Box<str>, Arc<Upstream>>,
}

/// One service and the connections to its origin.
pub struct Upstream {
    /// What it is.
    pub service: Service,
    /// The origin's authority, as a Host.
    pub authority: HeaderValue,
    /// Connections to its origin.
    pub pools: Pools<Dial>,
    /// Whether its origin answers.
    pub health: Health,
    /// Its figures, once a request asked for them.
    pub metrics: OnceLock<ServiceMetrics>,
    proofs: Proofs,
}

/// A service as it is to be in the table.
#[derive(Debug, Clone)]
pub struct Entry {
    /// What it is.
    pub service: Service,
    /// Which of its origin's addresses may be dialled.
    pub admission: Admission,
}

/// How a pool reaches an origin.
#[derive(Clone)]
pub struct Dial {
    service: Service,
    admission: Admission,
    network: Network,
    health: Health,
}

impl Origins {
    /// An empty table of origins in another network than this host's.
    pub fn in_network(network: Network) -> Self {
        Self { network, ..Self::default() }
    }

    /// An empty table; names are asked of `names`.
    pub fn with_names(names: Names) -> Self {
        let proofs = Proofs::with_names(names.clone());
        Self { network: Network { names, ..Network::default() }, proofs, ..Self::default() }
    }

    /// The keys that proofs are made with.
    pub fn proofs(&self) -> &Proofs {
        &self.proofs
    }

    /// Makes the keys that the services need and have not, and lets the others grow old.
    pub fn tend_keys(&self, now: SystemTime) {
        let algorithms = self.table().iter().filter_map(|up| up.service.auth.as_ref()?.algorithm()).collect();
        if let Err(error) = self.proofs.need(&algorithms, now) {
            tracing::error!(%error, "signing keys cannot be kept");
        }
    }

    /// Has what proofs need of others got before it is needed.
    fn tend_proofs(&self) {
        // Not in tests without a runtime.
        if tokio::runtime::Handle::try_current().is_ok() {
            for upstream in self.table().iter() {
                upstream.service.auth.iter().for_each(|auth| auth.tend(&upstream.service.name, &self.proofs));
            }
        }
    }

    /// The present table.
    pub fn table(&self) -> Arc<Table> {
        self.table.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Replaces the table. Pools and health of services whose origin is reached as before live on; the pools of the
    /// others end with their exchanges.
    pub fn replace(&self, services: impl IntoIterator<Item: Into<Entry>>) {
        let old = self.table();
        let mut kept = Vec::new();
        let upstreams = services.into_iter().map(|entry| {
            let Entry { mut service, admission } = entry.into();
            let name: Box<str> = service.name.as_str().into();
            let before = old.upstreams.get(&name);
            if let (Some(auth), Some(old)) = (&mut service.auth, before.and_then(|before| before.service.auth.as_ref()))
            {
                // A token is not asked for again because a file changed that it has nothing to do with.
                if auth == old { *auth = old.clone() } else { auth.take_over(old) }
            }
            let same = before.filter(|upstream| upstream.reached_as(&service, &admission));
            let upstream = match same {
                Some(upstream) => {
                    kept.push(name.clone());
                    Upstream { service, ..upstream.same() }
                }
                None => {
                    Upstream { proofs: self.proofs.clone(), ..Upstream::new(service, admission, self.network.clone()) }
                }
            };
            (name, Arc::new(upstream))
        });
        let table = Arc::new(Table { upstreams: upstreams.collect() });
        *self.table.write().unwrap_or_else(std::sync::PoisonError::into_inner) = table;
        self.tend_keys(SystemTime::now());
        self.tend_proofs();
        if self.table().iter().any(|upstream| upstream.service.auth.is_some()) {
            // Relays hear of services that came to be proven.
            self.proofs.renew();
        }
        for (name, upstream) in &old.upstreams {
            if !kept.contains(name) {
                upstream.pools.close();
            }
        }
    }

    /// Gives a service a new pool: no request takes an old connection again, and those in use end with their exchange.
    pub fn renew(&self, name: &str) {
        let mut table = self.table.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        let Some(old) = table.upstreams.get(name).cloned() else { return };
        let renewed = Arc::new(Upstream { pools: pools(old.pools.opener().clone()), ..old.same() });
        let mut upstreams = table.upstreams.clone();
        upstreams.insert(name.into(), renewed);
        *table = Arc::new(Table { upstreams });
        old.pools.close();
    }
}

/// Warns of certificates that end soon, and rotates the keys of proofs, for as long as it runs.
pub async fn tend(origins: Origins) {
    let mut warnings = Warnings::default();
    let mut ticks = tokio::time::interval(LOOK_AT_CERTIFICATES);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let now = SystemTime::now();
        origins.tend_keys(now);
        origins.tend_proofs();
        for upstream in origins.table().iter() {
            let service = &upstream.service;
            for end in service.expiries() {
                if warnings.is_due(&service.name, &end, now) {
                    let at = rfc3339(end.at);
                    tracing::warn!(service = %service.name, file = end.file, at, "a certificate ends soon: renew it");
                }
            }
        }
    }
}

impl From<Service> for Entry {
    /// Declared by this connector's own operator.
    fn from(service: Service) -> Self {
        Self { service, admission: Admission::Declared }
    }
}

impl Table {
    /// The service of that name, in lower case.
    pub fn upstream(&self, name: &str) -> Option<&Arc<Upstream>> {
        self.upstreams.get(name)
    }

    /// All services in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Upstream>> {
        self.upstreams.values()
    }
}

impl Upstream {
    /// A service with no connection yet.
    pub fn new(service: Service, admission: Admission, network: Network) -> Self {
        let health = match admission.refusal(&service.origin) {
            None => Health::new(),
            Some(fault) => Health::down(&fault),
        };
        let dial = Dial { service: service.clone(), admission, network, health: health.clone() };
        Self {
            authority: service.origin.authority(),
            pools: pools(dial),
            service,
            health,
            metrics: OnceLock::new(),
            proofs: Proofs::default(),
        }
    }

    /// Whether a relay's operator defined it, and not this connector's.
    pub fn is_managed(&self) -> bool {
        matches!(self.pools.opener().admission, Admission::Within(_))
    }

    /// Makes a request's fields those that the origin is to see, its proof among them, which names the gateway `caller`.
    /// The body comes back as it is to be sent.
    ///
    /// # Errors
    /// A [`Fault`] `origin_auth`: nothing may be sent.
    pub async fn prove(
        &self,
        parts: &mut RequestParts,
        body: Body,
        caller: Option<&HeaderValue>,
    ) -> Result<Body, Fault> {
        self.service.fields.apply(&mut parts.headers);
        let Some(auth) = &self.service.auth else { return Ok(body) };
        let about = About {
            service: &self.service.name,
            caller: caller.and_then(|name| name.to_str().ok()),
            is_tls: self.service.origin.is_tls(),
        };
        // In a box: most services have no proof, and every request's future would have room for it.
        Box::pin(auth.prove(parts, body, about, &self.proofs, SystemTime::now())).await
    }

    /// A connection of its own, which no pool keeps.
    ///
    /// # Errors
    /// As [`connect`].
    pub async fn open(&self) -> Result<OriginIo, Fault> {
        self.pools.opener().open().await
    }

    /// Whether several exchanges may share a connection: then the origin may refuse one without having looked at it.
    pub const fn is_shared(&self) -> bool {
        matches!(self.service.origin.scheme(), Some(Scheme::Https | Scheme::H2c))
    }

    /// An exchange with the origin ended well.
    pub fn note_used(&self, now: Instant) {
        self.pools.note_used(now);
    }

    /// Whether the newest idle connection may have been closed by the origin without this end knowing yet.
    pub fn may_be_stale(&self, now: Instant) -> bool {
        self.pools.here().idle() > 0 && self.pools.unused_for(now) >= SURELY_OPEN
    }

    /// As if the last exchange was long ago.
    pub fn rest(&self) {
        self.pools.rest();
    }

    /// The addresses of the origin's name as of now; none for an address, a socket file, a name that is not to be looked
    /// up, or where nobody knows.
    pub async fn addresses(&self) -> Option<Arc<[SocketAddr]>> {
        if self.pools.opener().admission.refusal(&self.service.origin).is_some() {
            return None;
        }
        match &self.service.origin {
            Origin::Net { host: Host::Name(name), .. } => self.pools.opener().network.names.addresses(name).await.ok(),
            Origin::Net { .. } | Origin::Unix(_) => None,
        }
    }

    fn same(&self) -> Self {
        Self {
            service: self.service.clone(),
            authority: self.authority.clone(),
            pools: self.pools.clone(),
            health: self.health.clone(),
            metrics: self.metrics.clone(),
            proofs: self.proofs.clone(),
        }
    }

    fn reached_as(&self, other: &Service, admission: &Admission) -> bool {
        let own = &self.service;
        let is_admitted_alike = self.pools.opener().admission == *admission;
        let same = (&own.origin, &own.tls, own.proxy_protocol, own.timeouts.connect, &own.health)
            == (&other.origin, &other.tls, other.proxy_protocol, other.timeouts.connect, &other.health);
        same && is_admitted_alike
    }
}

fn pools(dial: Dial) -> Pools<Dial> {
    let is_h2c = dial.service.origin.scheme() == Some(Scheme::H2c);
    let settings = PoolSettings {
        max_idle: MAX_IDLE,
        idle_timeout: if is_h2c { IDLE_HTTP2 } else { IDLE },
        max_head: MAX_HEAD,
        // https origins have their say by ALPN.
        http2: if is_h2c { Speak::Always } else { Speak::Never },
        exchanges_per_connection: EXCHANGES,
        ..PoolSettings::default()
    };
    Pools::new(dial, settings)
}

impl Dial {
    /// Connects once.
    ///
    /// # Errors
    /// As [`connect`].
    pub async fn connect(&self, offer: Offer) -> Result<OriginIo, Fault> {
        let Self { service, admission, network, .. } = self;
        let way = Way { origin: &service.origin, tls: service.tls.as_ref(), offer, admission, network };
        connect(way, service.timeouts.connect).await
    }

    async fn dial(&self, offer: Offer) -> Result<OriginIo, Fault> {
        let opened = self.connect(offer).await;
        // A request learns before the next check does: let the check confirm it now.
        if opened.is_err() || !self.health.is_up() {
            self.health.doubt();
        }
        opened
    }
}

impl Opener for Dial {
    type Io = OriginIo;

    async fn open(&self) -> Result<OriginIo, Fault> {
        self.dial(Offer::Either).await
    }

    async fn open_http1(&self) -> Result<OriginIo, Fault> {
        if self.service.origin.scheme() == Some(Scheme::H2c) {
            let why = "an h2c:// origin changes no protocol: its HTTP/1.1 is another origin";
            return Err(Fault::new(Reason::UpgradeRefused).side(Side::Here).retry(Retry::Never).log(why));
        }
        self.dial(Offer::Http1).await
    }

    fn is_http2(io: &OriginIo) -> Option<bool> {
        io.is_http2()
    }

    fn lost(&self, lost: Lost<'_>) -> Fault {
        let origin = |reason| Fault::new(reason).side(Side::Origin);
        match lost {
            Lost::Io(error) => {
                if let Some((reason, why)) = refusal(error) {
                    return origin(reason).retry(Retry::IfIdempotent).log(why);
                }
                let unreachable = reason_of(error) == Reason::OriginUnreachable;
                let reason = if unreachable { Reason::OriginUnreachable } else { Reason::OriginClosed };
                origin(reason).retry(Retry::IfIdempotent).log(error)
            }
            Lost::Ended => origin(Reason::OriginClosed).retry(Retry::IfIdempotent),
            Lost::Malformed => origin(Reason::OriginProtocol).retry(Retry::Never),
            Lost::Refused => origin(Reason::OriginClosed).retry(Retry::Safe).log("the origin refused the stream"),
            Lost::Reset(code) => {
                origin(Reason::OriginClosed).retry(Retry::IfIdempotent).log(format_args!("stream reset, code {code}"))
            }
            // Another try would have no time left.
            Lost::Silent => origin(Reason::OriginTimeout).retry(Retry::Never),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str, origin: &str) -> Service {
        Service::new(name.parse().unwrap(), origin.parse().unwrap(), None)
    }

    #[tokio::test]
    async fn an_unknown_service_does_not_exist() {
        let origins = Origins::default();
        assert!(origins.table().upstream("orders").is_none());
        origins.replace(vec![service("orders", "http://127.0.0.1:1")]);
        assert!(origins.table().upstream("orders").is_some());
        assert!(origins.table().upstream("billing").is_none());
        origins.replace(Vec::<Service>::new());
        assert!(origins.table().upstream("orders").is_none());
    }

    #[tokio::test]
    async fn a_renewed_service_is_the_same_with_other_connections() {
        let origins = Origins::default();
        origins.replace(vec![service("a", "http://127.0.0.1:1"), service("b", "http://127.0.0.1:2")]);
        let of = |name: &str| origins.table().upstream(name).unwrap().clone();
        let (a, b) = (of("a"), of("b"));
        a.health.set(Some(Reason::OriginRefused.into()));
        origins.renew("a");
        origins.renew("no-such");
        assert!(Arc::ptr_eq(&b, &of("b")) && !Arc::ptr_eq(&a, &of("a")));
        assert!(!of("a").health.is_up());
    }

    #[tokio::test]
    async fn a_reload_keeps_the_health_and_pool_of_an_origin_that_stayed() {
        let origins = Origins::default();
        origins.replace(vec![service("a", "http://127.0.0.1:1"), service("b", "http://127.0.0.1:2")]);
        let health = |name: &str| origins.table().upstream(name).unwrap().health.clone();
        let (a, b) = (health("a"), health("b"));
        a.set(Some(Reason::OriginRefused.into()));
        b.set(Some(Reason::OriginRefused.into()));
        let mut changed = service("a", "http://127.0.0.1:1");
        changed.host = crate::service::HostPolicy::Preserve;
        origins.replace(vec![changed, service("b", "http://127.0.0.1:3")]);
        assert!(!health("a").is_up(), "the same origin, the same health");
        assert!(health("b").is_up(), "another origin starts anew");
        let table = origins.table();
        let a = table.upstream("a").unwrap();
        assert_eq!(a.service.host, crate::service::HostPolicy::Preserve);
    }
}
