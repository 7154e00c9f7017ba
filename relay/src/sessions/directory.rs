//! Which services there are, and which live connectors serve them: the one health truth (design.md §3).
//!
//! Routing, `/readyz?service=`, `status`, metrics and logs read [`Pair::state`] and nothing else. Must never forget that a
//! known service without a live pair is 503 and an unknown one 404.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use culvert_hop::limits::InFlight;
use culvert_model::control::{AnnouncedService, Health, ServiceTimeouts};
use culvert_model::name::ServiceName;
use culvert_model::reason::Reason;
use tokio::sync::Notify;

use super::member::Member;
use crate::command::LiveService;
use crate::config::Limits;
use crate::lane::{Lane, Lanes};
use crate::pick::{self, Candidate, Wish};

/// What a (connector, service) pair is worth now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PairState {
    /// The connector answers and the origin's check passes.
    Up,
    /// The connector answers, the origin's check does not pass.
    Down,
    /// No new requests go there.
    Draining,
    /// The connection is over.
    Gone,
}

/// By what requests of a service stick to one connector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Balance {
    /// A request field's value.
    Header(http::HeaderName),
    /// A cookie's value.
    Cookie(String),
    /// The caller's address.
    ClientIp,
}

/// One service of one live connector.
#[derive(Debug)]
pub(crate) struct Pair {
    /// The connector.
    pub(crate) member: Arc<Member>,
    /// The service.
    pub(crate) service: ServiceName,
    /// Whether it is managed at the relay, and not declared by the connector.
    pub(crate) managed: bool,
    /// Deadlines that the connector's operator set.
    pub(crate) timeouts: ServiceTimeouts,
    /// Stickiness that the connector's operator asked for.
    pub(crate) balance: Option<Balance>,
    health: Mutex<Health>,
}

/// One service, known by grant or announcement.
#[derive(Debug)]
pub(crate) struct Service {
    /// Its limits and counters.
    pub(crate) lane: Lane,
    name: ServiceName,
    /// By the age of their members, one for each.
    pairs: Mutex<Vec<Arc<Pair>>>,
    expected_until: Mutex<Option<Instant>>,
    turn: AtomicU32,
    /// A connector of it proves to its origin which gateway called.
    tells_caller: AtomicBool,
    changed: Notify,
}

/// All services.
pub(crate) struct Directory {
    services: Mutex<HashMap<Box<str>, Arc<Service>>>,
    /// Those that are there while nobody serves them.
    known: Mutex<HashSet<ServiceName>>,
    lanes: Lanes,
}

impl Pair {
    /// Makes a pair of what a connector announced.
    pub(crate) fn new(member: Arc<Member>, announced: &AnnouncedService) -> Self {
        Self {
            member,
            service: announced.name.clone(),
            managed: announced.managed,
            timeouts: announced.timeouts,
            balance: announced.balance.as_deref().and_then(Balance::read),
            health: Mutex::new(announced.health.clone()),
        }
    }

    /// The one value that everybody reads.
    pub(crate) fn state(&self) -> PairState {
        if !self.member.is_open() {
            PairState::Gone
        } else if self.member.is_draining() {
            PairState::Draining
        } else if lock(&self.health).up {
            PairState::Up
        } else {
            PairState::Down
        }
    }

    /// Why it is not up, for operators.
    pub(crate) fn reason(&self) -> Option<String> {
        match self.state() {
            PairState::Up => None,
            PairState::Down if self.member.is_silent() => Some("the peer has no session".to_owned()),
            PairState::Down => {
                Some(lock(&self.health).reason.clone().unwrap_or_else(|| "origin check fails".to_owned()))
            }
            PairState::Draining => Some(Reason::Draining.name().to_owned()),
            PairState::Gone => Some(Reason::ConnectorLost.name().to_owned()),
        }
    }

    pub(crate) fn set_health(&self, health: Health) -> bool {
        let mut own = lock(&self.health);
        let changed = own.up != health.up;
        *own = health;
        changed
    }
}

impl Balance {
    /// Reads `header:X`, `cookie:C` or `client-ip`.
    pub(crate) fn read(text: &str) -> Option<Self> {
        match text.split_once(':') {
            Some(("header", name)) => name.trim().parse().ok().map(Self::Header),
            Some(("cookie", name)) if !name.trim().is_empty() => Some(Self::Cookie(name.trim().to_owned())),
            None if text.trim() == "client-ip" => Some(Self::ClientIp),
            Some(_) | None => None,
        }
    }
}

impl Service {
    fn new(name: ServiceName, lane: Lane) -> Self {
        Self {
            lane,
            name,
            pairs: Mutex::default(),
            expected_until: Mutex::default(),
            turn: AtomicU32::new(0),
            tells_caller: AtomicBool::new(false),
            changed: Notify::new(),
        }
    }

    /// Its name.
    pub(crate) fn name(&self) -> &ServiceName {
        &self.name
    }

    /// Whether its connectors are to be told who calls.
    pub(crate) fn tells_caller(&self) -> bool {
        self.tells_caller.load(Ordering::Relaxed)
    }

    /// The key that the service's balance asks for, if it has one.
    pub(crate) fn sticky(&self, key: impl FnOnce(&Balance) -> Option<u64>) -> Option<u64> {
        lock(&self.pairs).iter().find_map(|pair| pair.balance.as_ref()).and_then(key)
    }

    /// Chooses a pair. `stick` is the key to stick by; `not` was tried already.
    ///
    /// # Errors
    /// [`Reason::Draining`] when all pairs drain, [`Reason::NoConnector`] when none is there.
    pub(crate) fn choose(&self, stick: Option<u64>, not: Option<&Member>, now: Instant) -> Result<Arc<Pair>, Reason> {
        let pairs = lock(&self.pairs);
        if let ([only], None) = (pairs.as_slice(), not) {
            return match only.state() {
                PairState::Up | PairState::Down => Ok(Arc::clone(only)),
                PairState::Draining => Err(Reason::Draining),
                PairState::Gone => Err(Reason::NoConnector),
            };
        }
        let open: Vec<&Arc<Pair>> = pairs.iter().filter(|pair| pair.member.is_open()).collect();
        let candidates: Vec<Candidate> = open.iter().map(|pair| candidate(pair)).collect();
        let wish = Wish {
            stick_to: stick,
            not: not.and_then(|not| open.iter().position(|pair| std::ptr::eq(Arc::as_ptr(&pair.member), not))),
            turn: self.turn.fetch_add(1, Ordering::Relaxed),
        };
        match pick::pick(&candidates, wish, now).and_then(|place| open.get(place)) {
            Some(pair) => Ok(Arc::clone(pair)),
            None if open.is_empty() => Err(Reason::NoConnector),
            None => Err(Reason::Draining),
        }
    }

    /// Whether another live pair than this one might take a request.
    pub(crate) fn has_others(&self, than: &Pair) -> bool {
        lock(&self.pairs).iter().any(|pair| !std::ptr::eq(Arc::as_ptr(pair), than) && pair.state() == PairState::Up)
    }

    /// Until when a connector that is on its way back is waited for.
    pub(crate) fn expected_until(&self, now: Instant) -> Option<Instant> {
        lock(&self.expected_until).filter(|until| *until > now)
    }

    /// Tells when pairs came, went or changed.
    pub(crate) fn changed(&self) -> &Notify {
        &self.changed
    }

    /// How many of its pairs are up, of how many live connectors that announce it.
    pub(crate) fn count(&self) -> LiveService {
        let pairs = lock(&self.pairs);
        let open = || pairs.iter().filter(|pair| pair.state() != PairState::Gone);
        let up = |pair: &&Arc<Pair>| pair.state() == PairState::Up;
        let managed = |pair: &&Arc<Pair>| pair.managed;
        LiveService {
            up: open().filter(up).count(),
            total: open().count(),
            managed_up: open().filter(managed).filter(up).count(),
            managed: open().filter(managed).count(),
        }
    }

    fn expect(&self, until: Instant) {
        let mut own = lock(&self.expected_until);
        *own = Some(own.map_or(until, |own| own.max(until)));
    }
}

impl Directory {
    /// An empty one, whose services get lanes from there.
    pub(crate) fn new(lanes: Lanes) -> Self {
        Self { services: Mutex::default(), known: Mutex::default(), lanes }
    }

    /// Takes other limits, for requests from now on.
    pub(crate) fn set_limits(&self, limits: Limits) {
        let connector = limits.connector;
        self.lanes.set(limits);
        for service in lock(&self.services).values() {
            service.lane.set(self.lanes.limits_of(&service.name));
            lock(&service.pairs).iter().for_each(|pair| pair.member.room.set(connector));
        }
    }

    /// What a connector that comes now has room for.
    pub(crate) fn room(&self) -> InFlight {
        InFlight::new(self.lanes.connector(), Reason::Overloaded)
    }

    /// Finds a service by its name in lower case.
    pub(crate) fn find(&self, name: &str) -> Option<Arc<Service>> {
        lock(&self.services).get(name).cloned()
    }

    /// Every service, by name.
    pub(crate) fn counts(&self) -> BTreeMap<ServiceName, LiveService> {
        self.all().into_iter().map(|service| (service.name.clone(), service.count())).collect()
    }

    /// Every service.
    pub(crate) fn all(&self) -> Vec<Arc<Service>> {
        lock(&self.services).values().cloned().collect()
    }

    /// Says which services are known even without a live connector; others go when their last pair goes.
    pub(super) fn set_known(&self, known: &HashSet<ServiceName>) {
        let mut services = lock(&self.services);
        for name in known {
            self.entry(&mut services, name);
        }
        services.retain(|_, service| known.contains(&service.name) || !lock(&service.pairs).is_empty());
        lock(&self.known).clone_from(known);
    }

    /// These are known too from now on.
    pub(super) fn add_known(&self, names: &[ServiceName]) {
        lock(&self.known).extend(names.iter().cloned());
    }

    /// A connector of these services is expected back within `within`.
    pub(super) fn expect<'a>(&self, names: impl IntoIterator<Item = &'a ServiceName>, until: Instant) {
        let mut services = lock(&self.services);
        for name in names {
            self.entry(&mut services, name).expect(until);
        }
    }

    /// As if the registry had told of these services.
    #[cfg(test)]
    pub(crate) fn know(&self, known: &HashSet<ServiceName>) {
        self.set_known(known);
    }

    /// Requests of these services tell from now on who calls.
    pub(super) fn tell_callers<'a>(&self, names: impl IntoIterator<Item = &'a ServiceName>) {
        let services = lock(&self.services);
        for service in names.into_iter().filter_map(|name| services.get(name.as_str())) {
            service.tells_caller.store(true, Ordering::Relaxed);
        }
    }

    /// Replaces all pairs of one live connector. Costs what that one serves, not what all do.
    pub(crate) fn set_pairs(&self, member: &Arc<Member>, pairs: &[Arc<Pair>]) {
        let mut services = lock(&self.services);
        for pair in pairs {
            let service = self.entry(&mut services, &pair.service);
            service.put(pair);
            *lock(&service.expected_until) = None;
            service.changed.notify_waiters();
        }
        let before = member.set_services(pairs.iter().map(|pair| pair.service.clone()).collect());
        let known = lock(&self.known);
        for name in before.iter().filter(|name| !pairs.iter().any(|pair| pair.service == **name)) {
            let Some(service) = services.get(name.as_str()) else { continue };
            if service.remove(member) && !known.contains(name) && lock(&service.pairs).is_empty() {
                services.remove(name.as_str());
            }
        }
    }

    /// Takes a connector's pairs out; they are waited for until then, if they are to come back.
    pub(super) fn remove(&self, member: &Member, expected_until: Option<Instant>) {
        let services = lock(&self.services);
        for service in member.services().iter().filter_map(|name| services.get(name.as_str())) {
            if service.remove(member)
                && let Some(until) = expected_until
            {
                service.expect(until);
            }
        }
    }

    /// Wakes whoever waits for these pairs: their health or drain changed.
    pub(crate) fn touch(&self, pairs: &[Arc<Pair>]) {
        let services = lock(&self.services);
        for pair in pairs {
            if let Some(service) = services.get(pair.service.as_str()) {
                service.changed.notify_waiters();
            }
        }
    }
}

impl Directory {
    fn entry<'a>(&self, services: &'a mut HashMap<Box<str>, Arc<Service>>, name: &ServiceName) -> &'a Arc<Service> {
        let make = || Arc::new(Service::new(name.clone(), self.lanes.lane(name)));
        services.entry(name.as_str().into()).or_insert_with(make)
    }
}

impl Service {
    fn put(&self, pair: &Arc<Pair>) {
        let mut pairs = lock(&self.pairs);
        match place(&pairs, &pair.member) {
            Ok(place) => pairs[place] = Arc::clone(pair),
            Err(place) => pairs.insert(place, Arc::clone(pair)),
        }
    }

    fn remove(&self, member: &Member) -> bool {
        let mut pairs = lock(&self.pairs);
        let found = place(&pairs, member);
        if let Ok(place) = found {
            pairs.remove(place);
        }
        drop(pairs);
        if found.is_ok() {
            self.changed.notify_waiters();
        }
        found.is_ok()
    }
}

/// Where a member's pair stands, or would.
fn place(pairs: &[Arc<Pair>], member: &Member) -> Result<usize, usize> {
    pairs.binary_search_by_key(&member.serial(), |pair| pair.member.serial())
}

/// How long after its loss a connector that ended on purpose, or whose process is a new one, is waited for.
pub(super) const EXPECTED_FOR: Duration = Duration::from_secs(2);

fn candidate(pair: &Pair) -> Candidate {
    let state = pair.state();
    Candidate {
        up: state == PairState::Up,
        draining: matches!(state, PairState::Draining | PairState::Gone),
        in_flight: pair.member.in_flight(),
        unanswered_since: pair.member.unanswered_since(),
        identity: pair.member.identity(),
        near: pair.member.is_near(),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use culvert_hop::limits::Bounds;

    use super::*;
    use crate::metrics::RelayMetrics;

    #[test]
    fn a_balance_is_a_header_a_cookie_or_the_callers_address() {
        assert_eq!(Balance::read("header:X-User"), Some(Balance::Header("x-user".parse().unwrap())));
        assert_eq!(Balance::read("cookie:session"), Some(Balance::Cookie("session".to_owned())));
        assert_eq!(Balance::read("client-ip"), Some(Balance::ClientIp));
        for bad in ["", "header:", "header:a b", "cookie:", "client-ip:x", "random"] {
            assert_eq!(Balance::read(bad), None, "{bad:?}");
        }
    }

    fn directory() -> Directory {
        let bounds = Bounds { running: 1, waiting: 0, wait: Duration::ZERO };
        Directory::new(Lanes::new(Arc::new(RelayMetrics::new()), Limits::same(bounds)))
    }

    #[test]
    fn a_known_service_without_a_connector_is_there_and_a_forgotten_one_is_not() {
        let directory = directory();
        let name: ServiceName = "orders".parse().unwrap();
        assert!(directory.find("orders").is_none());
        directory.set_known(&HashSet::from([name]));
        let service = directory.find("orders").unwrap();
        let now = Instant::now();
        assert_eq!(service.choose(None, None, now).unwrap_err(), Reason::NoConnector);
        assert_eq!(service.count(), LiveService::default());
        directory.set_known(&HashSet::new());
        assert!(directory.find("orders").is_none());
    }

    #[test]
    fn an_expected_connector_is_waited_for_until_its_time_is_over() {
        let directory = directory();
        let name: ServiceName = "orders".parse().unwrap();
        let now = Instant::now();
        directory.expect([&name], now + EXPECTED_FOR);
        directory.expect([&name], now + EXPECTED_FOR / 2);
        let service = directory.find("orders").unwrap();
        assert_eq!(service.expected_until(now), Some(now + EXPECTED_FOR));
        assert_eq!(service.expected_until(now + EXPECTED_FOR), None);
    }
}
