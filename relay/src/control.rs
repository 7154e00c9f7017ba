//! The running relay as its operators see and change it: commands, reload, health, metrics.
//!
//! Must never let a change be true in the registry and not in the running relay.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use culvert_model::id::{ConnectorId, GatewayId, StockPeerId};
use culvert_model::name::ServiceName;
use culvert_model::token::Endpoint;
use culvert_ops::admin::{Admin, Answer, Call, Caller, Health, Pairs};
use culvert_ops::config::Loaded;
use culvert_ops::drain::Plan;
use culvert_ops::exit::Quit;
use culvert_ops::load::ProcessEnvironment;
use culvert_ops::log::LogHandle;
use culvert_plane::Plane;
use http::Method;
use tokio::sync::watch;
use tracing::{debug, info, warn};

use crate::behind::{self, Wishes};
use crate::command::{
    self, Change, Command, Facts, Live, LiveConnector, LivePeer, LiveService, LiveShard, LiveStatus, Outcome, Reply,
    Request,
};
use crate::config::Settled;
use crate::door::{Door, IssuerDoor, Shown, TcpDoor, tls_of};
use crate::exchange::Exchanges;
use crate::front::Front;
use crate::identity::Identity;
use crate::metrics::{Gathered, RelayMetrics};
use crate::peers::TunState;
use crate::refusals::{Attempt, Refusals};
use crate::registry::{Registry, RegistryError};
use crate::relays;
use crate::sessions::Sessions;

/// A note on gateways may take so long.
const NOTED_WITHIN: Duration = Duration::from_secs(1);

/// A registry that tells of changes and cannot be read is read again after so long.
const READ_AGAIN_AFTER: Duration = Duration::from_millis(500);

/// Reads the configuration again, from where it came the first time.
pub(crate) type Reload = Box<dyn Fn() -> Result<(Loaded, Settled), Quit> + Send + Sync>;

/// Everything that can be asked or changed while the relay runs.
pub(crate) struct Control {
    pub(crate) registry: Arc<dyn Registry>,
    pub(crate) identity: Arc<Identity>,
    pub(crate) plane: Plane,
    pub(crate) sessions: Sessions,
    pub(crate) refusals: Refusals,
    pub(crate) exchanges: Arc<Exchanges>,
    pub(crate) front: Arc<Front>,
    pub(crate) metrics: Arc<RelayMetrics>,
    pub(crate) doors: Vec<Arc<Door>>,
    pub(crate) tcp_doors: Vec<Arc<TcpDoor>>,
    /// What origins behind stock peers are to get.
    pub(crate) wishes: watch::Sender<Wishes>,
    pub(crate) issuer: Option<Arc<IssuerDoor>>,
    /// `wireguard`, `http` or `admin`, and the address.
    pub(crate) listeners: Vec<(String, String)>,
    pub(crate) started: SystemTime,
    pub(crate) current: Mutex<(Loaded, Settled)>,
    pub(crate) reload: Reload,
    pub(crate) log: Option<LogHandle>,
    /// One change after the other: a snapshot that was read first is applied first.
    pub(crate) changing: tokio::sync::Mutex<()>,
}

impl Control {
    /// Carries out a command and applies what it changed.
    pub(crate) async fn carry_out(&self, request: Request) -> Reply {
        let wireguard = self.current().1.wireguard.clone();
        let facts = Facts::new(&self.identity, &wireguard);
        let _one = self.changing.lock().await;
        let (actor, name) = (request.actor.clone(), request.command.name());
        let mut result = command::carry_out(request, &*self.registry, self, &facts, SystemTime::now()).await;
        if let Err(error) = &result
            && let Some(detail) = error.refusal()
        {
            self.refusals.note(Attempt { action: "command.refused", actor, subject: name, detail });
        }
        if let Ok(outcome) = &mut result
            && !outcome.changes.is_empty()
        {
            self.apply(outcome).await;
        }
        Reply::from(&result)
    }

    /// Reads the configuration again and applies what a running relay can change. A bad one changes nothing.
    pub(crate) async fn reload(&self) -> Result<Outcome, Quit> {
        let _one = self.changing.lock().await;
        let (loaded, settled) = (self.reload)()?;
        let mut tls = Vec::new();
        for listener in &settled.listeners {
            tls.push(tls_of(listener)?);
        }
        let wishes = behind::read(&settled.behind, &loaded, &ProcessEnvironment)?;
        let mut notes = loaded.warnings.clone();
        let log = &self.exchanges.log;
        if settled.access_log == self.current().1.access_log {
            log.reopen();
        } else {
            log.set(&settled.access_log)
                .map_err(|error| Quit::config(format!("http.access_log: the file cannot be opened: {error}")))?;
        }
        if let Some(handle) = &self.log {
            handle.set(settled.log_filter.as_deref()).map_err(|error| Quit::config(error.to_string()))?;
        }
        *self.exchanges.router.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(settled.router.clone());
        self.exchanges.in_flight.set(settled.limits.process);
        self.wishes.send_replace(wishes);
        self.exchanges.directory.set_limits(settled.limits.clone());
        self.exchanges.gateway_lanes.set(settled.limits.gateway);
        self.exchanges.bounds.set(&settled.limits.front);
        self.front.set(settled.limits.front);
        for door in &self.doors {
            let mut listeners = settled.listeners.iter().zip(&tls);
            if let Some((listener, tls)) = listeners.find(|(listener, _)| listener.address == door.address()) {
                door.set(listener.clone(), tls.clone());
            }
        }
        for door in &self.tcp_doors {
            let address = &door.now().address;
            if let Some(tcp) = settled.tcp.iter().find(|tcp| tcp.address == *address) {
                door.set(tcp.clone());
            }
        }
        let restart = {
            let mut current = self.current();
            let restart = current.0.restart_needed(&loaded);
            // Keys that need a restart stay different from what runs until then, and are named each time.
            current.1 = settled;
            if restart.is_empty() {
                current.0 = loaded;
            }
            restart
        };
        if !restart.is_empty() {
            notes.push(format!("changed, but only a restart applies it: {}", restart.join(", ")));
        }
        notes.extend(self.unknown_gateways());
        for note in &notes {
            warn!(note, "configuration");
        }
        info!("configuration reloaded");
        let json = serde_json::json!({ "reloaded": true, "restart_needed": restart });
        Ok(Outcome { json, text: String::new(), notes, changes: Vec::new() })
    }

    /// How the relay goes down.
    pub(crate) fn drain_plan(&self) -> Plan {
        self.current().1.drain
    }

    /// Listeners that admit somebody nobody knows: a name that is mistyped, or a gateway yet to be created.
    pub(crate) fn unknown_gateways(&self) -> Vec<String> {
        let unknown = |door: &Arc<Door>| {
            let listener = door.now();
            let missing = self.exchanges.gateways.missing(listener.gateways.as_deref().unwrap_or_default());
            let note = |name| format!("the http listener {} admits {name}, which is no gateway yet", listener.address);
            missing.map(note).collect::<Vec<_>>()
        };
        self.doors.iter().flat_map(unknown).collect()
    }

    /// Writes when gateways called last; a database that is away is not waited for.
    pub(crate) async fn note_gateways(&self) {
        let notes = self.exchanges.gateways.notes();
        if notes.is_empty() {
            return;
        }
        match tokio::time::timeout(NOTED_WITHIN, self.registry.note(notes)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => debug!(%error, "last use of gateways not written"),
            Err(_) => debug!("last use of gateways not written in time"),
        }
    }

    /// Applies what others changed in the registry, as long as it is there.
    pub(crate) async fn follow_registry(&self) {
        let mut changes = self.registry.changes();
        // Others may have changed something since the relay read it all at its start.
        changes.mark_changed();
        while changes.changed().await.is_ok() {
            loop {
                let one = self.changing.lock().await;
                match self.take_over().await {
                    Ok(true) => break self.sessions.decide_anew(),
                    Ok(false) => break,
                    Err(error) => debug!(%error, "change of another relay not applied yet"),
                }
                drop(one);
                tokio::time::sleep(READ_AGAIN_AFTER).await;
            }
        }
    }

    /// Makes what runs agree with the registry. Returns whether owners of names may have changed.
    async fn take_over(&self) -> Result<bool, RegistryError> {
        let read_at = Instant::now();
        let snapshot = self.registry.load().await?;
        self.exchanges.gateways.set(&snapshot.gateways);
        Ok(self.sessions.resync(snapshot, read_at).await)
    }

    async fn apply(&self, outcome: &mut Outcome) {
        let owners_changed = match self.take_over().await {
            Ok(owners_changed) => owners_changed,
            Err(error) => {
                warn!(%error, "change not applied to the running relay");
                outcome.notes.push(format!("the running relay could not read it back: {error}"));
                false
            }
        };
        for change in &outcome.changes {
            if let Change::PeerAdded(id) | Change::PeerChanged(id) = change {
                outcome.notes.extend(self.amiss_with(id));
            }
        }
        if outcome.changes.contains(&Change::KeyRotated) {
            self.sessions.rotated();
            let own = relays::own(&self.identity, &self.endpoints(), SystemTime::now());
            if let Err(error) = self.registry.note_relay(own).await {
                debug!(%error, "other relays were not told of the new key");
            }
        }
        let grants = |change: &Change| match change {
            Change::GrantsChanged(_) | Change::TunnelDeleted(_) | Change::TunnelCreated(_) => true,
            Change::TokenAdded(_)
            | Change::TokenRevoked(_)
            | Change::ConnectorRevoked(_)
            | Change::ConnectorDrained(..)
            | Change::ServiceSet(_)
            | Change::ServiceDeleted(_)
            | Change::GatewayChanged(_)
            | Change::PeerAdded(_)
            | Change::PeerChanged(_)
            | Change::PeerDeleted(_)
            | Change::KeyRotated => false,
        };
        if owners_changed || outcome.changes.iter().any(grants) {
            self.sessions.decide_anew();
        }
    }

    /// Why a stock peer cannot be used here, as far as that is known at once.
    fn amiss_with(&self, peer: &StockPeerId) -> Vec<String> {
        let live = self.peers().remove(peer);
        let own = live.into_iter().filter(|live| !live.runs).flat_map(|live| live.notes);
        own.chain(self.tun_unavailable().map(|why| format!("nothing behind peers can be reached yet: {why}"))).collect()
    }

    /// Where connectors reach this relay.
    pub(crate) fn endpoints(&self) -> Vec<Endpoint> {
        self.current().1.wireguard.endpoints.clone()
    }

    /// When each listener's certificate ends.
    fn certificates(&self) -> Vec<(String, SystemTime)> {
        let doors = self.doors.iter().map(|door| (door.address().to_string(), door.shown()));
        let issuer = self.issuer.iter().map(|door| (door.listen.to_string(), &door.shown));
        let ends = |(address, shown): (String, &Shown)| Some((address, shown.tls()?.expires()?));
        doors.chain(issuer).filter_map(ends).collect()
    }

    /// Takes listeners' certificates anew whose files changed and are right. Blocks on the disk.
    pub(crate) fn look_at_certificates(&self, now: SystemTime) {
        let doors = self.doors.iter().map(|door| door.shown());
        doors.chain(self.issuer.iter().map(|door| &door.shown)).for_each(|shown| shown.look_at_files(now));
    }

    fn shards(&self) -> Vec<LiveShard> {
        let (stats, callers) = (self.plane.stats_by_shard(), self.front.open_by_shard());
        let shards = stats.into_iter().zip(callers).map(|(stats, callers)| LiveShard {
            peers_up: stats.engine.live,
            peers_total: stats.engine.peers,
            callers,
            passed_on: stats.plane.passed_on,
        });
        shards.collect()
    }

    fn current(&self) -> MutexGuard<'_, (Loaded, Settled)> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn read(&self, command: Command) -> Answer {
        match self.carry_out(Request { actor: "admin api".to_owned(), command }).await {
            Reply::Done { json, .. } => Answer::ok(json),
            Reply::Failed { message, .. } => Answer::from(Quit::failed(message)),
        }
    }
}

impl Admin for Control {
    fn health(&self) -> Health {
        let counts = self.sessions.services();
        let services = counts.into_iter().map(|(name, count)| (name.into(), pairs(count))).collect();
        let registry = if self.registry.degraded().is_some() { "degraded" } else { "ok" };
        Health {
            draining: self.exchanges.drain.is_draining(),
            reasons: Vec::new(),
            services,
            notes: BTreeMap::from([("registry", registry.into())]),
        }
    }

    fn metrics(&self) -> String {
        let services = self.exchanges.directory.all();
        let stats = self.plane.stats();
        let gathered = Gathered {
            inflight: services.iter().map(|one| (one.name().clone(), one.lane.in_flight.running())).collect(),
            up: services.iter().map(|one| (one.name().clone(), one.count().up > 0)).collect(),
            connectors: self.sessions.count_by_tunnel().into_iter().map(|((t, s), n)| (t.into(), s, n)).collect(),
            handshakes: self.sessions.last_handshakes().into_iter().map(|(id, at)| (id.into(), at)).collect(),
            peers: self.sessions.peers().count().to_vec(),
            peer_handshakes: self
                .sessions
                .peers()
                .last_handshakes()
                .into_iter()
                .map(|(n, at)| (n.into(), at))
                .collect(),
            tun: stats.tun,
            registry: self.registry.degraded().is_none(),
            callers: self.front.open(),
            turned_away: self.front.turned_away().all(),
            certificates: self.certificates(),
            log_lines_dropped: self.exchanges.log.dropped(),
            engine: stats.engine,
            copies: stats.plane.spares,
            shards: self.shards(),
        };
        self.metrics.text(&gathered, SystemTime::now())
    }

    async fn api(&self, call: Call) -> Answer {
        // The kernel's word on who asks counts, not the caller's.
        let socket = match call.caller {
            Caller::Socket { uid, .. } => Some(uid),
            Caller::Tcp(_) => None,
        };
        match (&call.method, call.path.as_str(), socket) {
            (&Method::POST, command::PATH, Some(uid)) => match serde_json::from_slice::<Request>(&call.body) {
                Ok(request) => Answer::ok(self.carry_out(Request { actor: command::uid(uid), ..request }).await),
                Err(_) => Answer::ok(Reply::from(
                    Quit::failed("the running relay does not know this command").hint("its version is another one"),
                )),
            },
            (&Method::POST, command::RELOAD_PATH, Some(_)) => {
                let result = self.reload().await;
                note_reload(&result);
                Answer::ok(result.map_or_else(Reply::from, |outcome| Reply::from(&Ok(outcome))))
            }
            (&Method::GET, "/api/v1/status", _) => self.read(Command::Status).await,
            (&Method::GET, "/api/v1/tunnels", _) => self.read(Command::TunnelList).await,
            (&Method::GET, "/api/v1/connectors", _) => self.read(Command::ConnectorList { tunnel: None }).await,
            (&Method::GET, "/api/v1/services", _) => self.read(Command::ServiceList).await,
            (&Method::GET, "/api/v1/gateways", _) => self.read(Command::GatewayList).await,
            (&Method::GET, "/api/v1/peers", _) => self.read(Command::PeerList).await,
            (_, command::PATH | command::RELOAD_PATH, _) => Answer::wrong_method(),
            (_, path, _) => Answer::not_found(format!("nothing at {path}")),
        }
    }
}

impl Live for Control {
    fn status(&self) -> Option<LiveStatus> {
        let health = self.health();
        let mut reasons = health.reasons.clone();
        reasons.extend(self.registry.degraded().map(|why| format!("registry degraded: {why}")));
        Some(LiveStatus {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started: self.started,
            ready: health.is_ready(None),
            draining: health.draining,
            reasons,
            shards: self.shards(),
            listeners: self.listeners.clone(),
        })
    }

    fn connectors(&self) -> HashMap<ConnectorId, LiveConnector> {
        self.sessions.connectors()
    }

    fn flapping(&self) -> HashMap<ConnectorId, [SocketAddr; 2]> {
        self.sessions.flapping()
    }

    fn services(&self) -> BTreeMap<ServiceName, LiveService> {
        let served = self.sessions.services();
        served.into_iter().filter(|(_, count)| count.total > 0).collect()
    }

    fn gateways(&self) -> HashMap<GatewayId, SystemTime> {
        self.exchanges.gateways.last_used()
    }

    fn peers(&self) -> HashMap<StockPeerId, LivePeer> {
        self.sessions.peers().live()
    }

    fn tun_unavailable(&self) -> Option<String> {
        match self.sessions.peers().tun_state() {
            TunState::Unavailable(why) => Some(why),
            TunState::Off | TunState::Runs { .. } => None,
        }
    }

    fn proofs(&self) -> HashMap<ServiceName, &'static str> {
        let wishes = self.wishes.borrow();
        wishes.iter().filter_map(|(name, wish)| Some((name.clone(), wish.proof()?))).collect()
    }
}

fn pairs(count: LiveService) -> Pairs {
    Pairs { up: count.up, total: count.total }
}

/// What `reload` by signal does with its outcome: it is in the log already, or goes there.
pub(crate) fn note_reload(result: &Result<Outcome, Quit>) {
    if let Err(quit) = result {
        tracing::error!(error = quit.message, hint = quit.hint, "configuration refused, the old one stays");
    }
}
