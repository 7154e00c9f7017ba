//! The relay as a process: load, bind, start, serve, drain.
//!
//! Must never accept a request before it can answer it, nor end before what is in flight had its time.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use culvert_hop::limits::InFlight;
use culvert_model::address::RELAY_INNER;
use culvert_model::close::CloseCode;
use culvert_model::id::InstanceId;
use culvert_model::reason::Reason;
use culvert_ops::admin::{self, AdminSocket};
use culvert_ops::config::Loaded;
use culvert_ops::drain::{Drain, Signals, obey};
use culvert_ops::exit::{Exit, OrQuit as _, Quit};
use culvert_ops::load::ProcessEnvironment;
use culvert_ops::log::{self, LogHandle};
use culvert_ops::process;
use culvert_ops::program::Program;
use culvert_ops::resident;
use culvert_ops::state::{Lock, Search, StateDir};
use culvert_ops::systemd::{Notifier, Sockets};
use culvert_ops::task::Owner;
use culvert_plane::tun::TunConfig;
use culvert_plane::{Events, Further, Plane, Role, StreamLimits};
use ipnet::Ipv4Net;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{debug, info, warn};

use crate::access_log::AccessLog;
use crate::behind;
use crate::bind;
use crate::cli::RunArgs;
use crate::config::{self, Settled, WireGuard};
use crate::control::{Control, Reload, note_reload};
use crate::cores::{self, Cores};
use crate::door::{Door, IssuerDoor, TcpDoor, tls_of};
use crate::exchange::{Exchanges, MessageBounds};
use crate::front::{Bound, Front, Leads, Seats};
use crate::gateways::Gateways;
use crate::identity;
use crate::issuer;
use crate::lane::{GatewayLanes, Lanes};
use crate::metrics::RelayMetrics;
use crate::refusals::Refusals;
use crate::relays;
use crate::send::Sender;
use crate::sessions::{Directory, Sessions};

/// A connector opens its control stream and little else.
const STREAMS_OF_A_CONNECTOR: u32 = 4;
/// After the drain connections that were cut get so long to be gone.
const CUT_WITHIN: Duration = Duration::from_millis(500);
/// How often it is written when gateways called last.
const NOTE_GATEWAYS_EVERY: Duration = Duration::from_secs(30);
/// How often the relays of one registry tell each other that they are there.
const SAY_HERE_EVERY: Duration = Duration::from_secs(30);
/// How often listeners' certificates are looked at; a change is taken at the second look that finds it.
const LOOK_AT_CERTIFICATES_EVERY: Duration = Duration::from_secs(2);
/// What the service manager is asked for beyond the drain's own time.
const STOP_MARGIN: Duration = Duration::from_secs(10);

/// What a relay starts from.
pub(crate) struct Start {
    pub(crate) loaded: Loaded,
    pub(crate) settled: Settled,
    pub(crate) state: StateDir,
    pub(crate) sockets: Sockets,
    pub(crate) reload: Reload,
    pub(crate) log: Option<LogHandle>,
}

/// A relay whose sockets are bound and whose registry is loaded.
pub(crate) struct Relay {
    control: Arc<Control>,
    front: Arc<Front>,
    listeners: Vec<(Bound, Leads, bool)>,
    admin: TcpListener,
    admin_socket: AdminSocket,
    issuer: Option<(TcpListener, issuer::Told)>,
    events: Events,
    drain: Drain,
    cores: Cores,
    _lock: Lock,
    _state: StateDir,
}

/// `run`.
///
/// # Errors
/// Why the relay did not start.
pub(crate) async fn run(args: RunArgs) -> Result<Exit, Quit> {
    let refused = process::harden();
    let log = log::init("info", &ProcessEnvironment).map_err(|error| Quit::config(error.to_string()))?;
    let (loaded, settled) = config::load(&args, &ProcessEnvironment)?;
    log.set(settled.log_filter.as_deref()).map_err(|error| Quit::config(error.to_string()))?;
    for refused in refused {
        debug!(%refused, "kernel refused a wish");
    }
    for warning in &loaded.warnings {
        warn!(warning, "configuration");
    }
    if let Err(error) = process::raise_open_files() {
        debug!(%error, "kernel refused a wish");
    }
    let sockets = Sockets::take(&ProcessEnvironment);
    let state = Search::new(Program::Relay, args.place.state_dir.as_deref(), &ProcessEnvironment).create()?;
    let notifier = Notifier::new(&ProcessEnvironment);
    // Signals still end the process: there is nothing to drain yet.
    settled.registry.wait().await;
    let signals = Signals::install().or_failed("cannot take signals")?;
    let reload: Reload = Box::new(move || config::load(&args, &ProcessEnvironment));
    let relay = Relay::start(Start { loaded, settled, state, sockets, reload, log: Some(log) }).await?;
    relay.serve(signals, notifier).await
}

impl Relay {
    /// Binds, loads, and starts the plane. Nothing is served before [`Relay::serve`].
    ///
    /// # Errors
    /// What could not be had.
    pub(crate) async fn start(start: Start) -> Result<Self, Quit> {
        let Start { loaded, settled, state, mut sockets, reload, log } = start;
        info!(directory = %state.path().display(), "state");
        let lock = state.lock()?;
        let (identity, registry) = identity::open_state(&state, &settled.registry)?;
        let identity = Arc::new(identity);
        let listeners = bind::front(&settled, &mut sockets)?;
        let tcp = bind::tcp(&settled, &mut sockets)?;
        let tls: Vec<_> = listeners.iter().map(|front| tls_of(&front.listener)).collect::<Result<_, _>>()?;
        for name in sockets.left() {
            warn!(name, "a socket of the service manager is not used");
        }
        let wishes = behind::read(&settled.behind, &loaded, &ProcessEnvironment)?;
        let shards = settled.shards.unwrap_or_else(cores::default_shards);
        let mut udp = bind::wireguard(&settled.wireguard, settled.any_port, shards)?.into_iter();
        let admin = admin::bind_tcp(settled.admin.listen, !settled.admin.is_default).await?;
        let admin_socket = AdminSocket::bind(&state, settled.admin.group.as_deref())?;
        let issuer = bind_issuer(&settled).await?;
        let access_log = AccessLog::open(&settled.access_log).or_config("cannot open the access log")?;
        let own = relays::own(&identity, &settled.wireguard.endpoints, SystemTime::now());
        if let Err(error) = registry.note_relay(own).await {
            warn!(%error, "other relays of this registry were not told");
        }
        let snapshot = registry.load().await.or_failed("cannot load the registry")?;
        let cores = Cores::start("shard", shards).or_failed("cannot start the threads of the shards")?;
        let first = udp.next().unwrap_or_default();
        let others = cores.runtimes().into_iter().skip(1).zip(udp);
        let others = others.map(|(runtime, sockets)| Further { runtime, sockets }).collect();
        let config = culvert_plane::Config {
            role: Role::Relay,
            sockets: first,
            engine: culvert_engine::Config {
                statics: vec![identity.private_key()],
                shard: culvert_engine::Shard::default(),
                handshakes: culvert_engine::HandshakeLimits::default(),
                seed: None,
            },
            instance: InstanceId::new(),
            inner: RELAY_INNER,
            reset_secret: *identity.reset_secret(),
            streams: StreamLimits { incoming: STREAMS_OF_A_CONNECTOR, ..StreamLimits::default() },
        };
        let (plane, events) = Plane::start_over(config, others).or_failed("cannot start the tunnel plane")?;
        let refusals = Refusals::default();
        let gateways = Arc::new(Gateways::new(&snapshot.gateways).telling(refusals.clone()));
        let metrics = Arc::new(RelayMetrics::new());
        let directory = Arc::new(Directory::new(Lanes::new(Arc::clone(&metrics), settled.limits.clone())));
        let sessions = Sessions::new(
            plane.clone(),
            Arc::clone(&registry),
            Arc::clone(&identity),
            Arc::clone(&directory),
            refusals.clone(),
            snapshot,
        )
        .await;
        if let Some(issuer) = &settled.issuer {
            sessions.set_issuer(&issuer.url);
        }
        let WireGuard { inner_ipv4, peer_mtu, .. } = settled.wireguard;
        let own = Ipv4Net::new_assert(inner_ipv4.addr(), 32);
        sessions.peers().start_tun(TunConfig { mtu: peer_mtu, ..TunConfig::new(Some(own)) }).await;
        let drain = Drain::new();
        let exchanges = Arc::new(Exchanges {
            directory,
            router: Mutex::new(Arc::new(settled.router.clone())),
            gateways,
            sender: Sender::default(),
            log: Arc::new(access_log),
            in_flight: InFlight::new(settled.limits.process, Reason::Overloaded),
            gateway_lanes: GatewayLanes::new(settled.limits.gateway),
            bounds: MessageBounds::new(&settled.limits.front),
            no_service: Arc::new(metrics.no_service()),
            relay: identity.relay_tag(),
            drain: drain.clone(),
            long: Arc::default(),
            switched: Mutex::new(Owner::new()),
        });
        let (most, seats) = (settled.limits.connections, Seats::new(cores.runtimes()));
        let front = Arc::new(Front::new(Arc::clone(&exchanges), most, settled.limits.front, seats));
        let mut addresses: Vec<(String, String)> =
            plane.local_addrs().iter().map(|address| ("wireguard".to_owned(), address.to_string())).collect();
        addresses.extend(listeners.iter().map(|front| ("http".to_owned(), front.to_string())));
        addresses.extend(tcp.iter().map(|front| ("tcp".to_owned(), front.to_string())));
        addresses.extend(admin.local_addr().map(|address| ("admin".to_owned(), address.to_string())));
        for (kind, address) in &addresses {
            info!(kind, address, "listening");
        }
        let (mut doors, mut tcp_doors, mut leads) = (Vec::new(), Vec::new(), Vec::new());
        for (front, tls) in listeners.into_iter().zip(tls) {
            let door = Arc::new(Door::new(front.listener, tls));
            doors.push(Arc::clone(&door));
            leads.push((front.bound, Leads::Http(door), front.inherited));
        }
        for front in tcp {
            let door = Arc::new(TcpDoor::new(front.listener));
            tcp_doors.push(Arc::clone(&door));
            leads.push((front.bound, Leads::Tcp(door), front.inherited));
        }
        let control = Arc::new(Control {
            registry,
            identity,
            plane,
            sessions,
            refusals,
            exchanges,
            front: Arc::clone(&front),
            metrics,
            doors,
            tcp_doors,
            wishes: watch::Sender::new(wishes),
            issuer: issuer.as_ref().map(|(_, told)| Arc::clone(&told.door)),
            listeners: addresses,
            started: SystemTime::now(),
            current: Mutex::new((loaded, settled)),
            reload,
            log,
            changing: tokio::sync::Mutex::new(()),
        });
        Ok(Self {
            control,
            front,
            listeners: leads,
            admin,
            admin_socket,
            issuer,
            events,
            drain,
            cores,
            _lock: lock,
            _state: state,
        })
    }

    /// What commands and the admin endpoints ask.
    pub(crate) fn control(&self) -> &Arc<Control> {
        &self.control
    }

    /// Serves until signals end it and the drain is over.
    ///
    /// # Errors
    /// None so far.
    pub(crate) async fn serve(self, signals: Signals, notifier: Notifier) -> Result<Exit, Quit> {
        let Self { control, front, listeners, admin, admin_socket, issuer, events, drain, cores, _lock, _state } = self;
        let notifier = Arc::new(notifier);
        let plan = control.drain_plan();
        let (reload, reloads) = mpsc::channel(1);
        let mut owner = Owner::new();
        owner.spawn("relay.sessions", control.sessions.clone().run(events));
        let peers = control.sessions.peers().clone();
        owner.spawn(
            "relay.branches",
            behind::follow(peers, Arc::clone(&control.exchanges.directory), control.wishes.subscribe()),
        );
        owner.spawn("relay.refusals", control.refusals.clone().write(Arc::clone(&control.registry)));
        owner.spawn("relay.admin", admin::serve_tcp(admin, Arc::clone(&control)));
        owner.spawn("relay.admin_socket", admin::serve_socket(admin_socket, Arc::clone(&control)));
        if let Some((listener, told)) = issuer {
            owner.spawn("relay.issuer", issuer::serve(listener, told, control.sessions.clone()));
        }
        owner.spawn("relay.gateways", note_gateways(Arc::clone(&control)));
        owner.spawn("relay.registry", follow_registry(Arc::clone(&control)));
        owner.spawn("relay.relays", say_here(Arc::clone(&control)));
        owner.spawn("relay.certificates", watch_certificates(Arc::clone(&control)));
        owner.spawn("relay.reload", obey_reloads(reloads, Arc::clone(&control), Arc::clone(&notifier)));
        owner.spawn("relay.signals", obey(signals, drain.clone(), plan, reload));
        owner.spawn("relay.start", resident::give_back_start());
        if let Some(every) = notifier.watchdog_every() {
            owner.spawn("relay.watchdog", feed_watchdog(Arc::clone(&notifier), every));
        }
        let mut fronts = JoinSet::new();
        for (bound, leads, inherited) in listeners {
            fronts.spawn(Arc::clone(&front).listen(bound, leads, inherited));
        }
        for note in control.unknown_gateways() {
            warn!(note, "configuration");
        }
        notifier.ready("serving");
        info!("ready");

        tokio::select! {
            () = drain.begun() => {}
            // What lived there cannot be drained, and the rest would be half a relay.
            () = cores.failed() => return Err(Quit::failed("the thread of a shard is lost")),
        }
        notifier.stopping("draining");
        notifier.extend_stop(plan.delay + plan.timeout + STOP_MARGIN);
        drain.closing().await;
        control.sessions.tell_drain();
        let cut = drain.run_out().await;
        if cut > 0 {
            warn!(connections = cut, "drain is over, connections were cut");
        }
        let gone = async { while fronts.join_next().await.is_some() {} };
        let _ = timeout(CUT_WITHIN, gone).await;
        drop(fronts);
        control.sessions.flush().await;
        control.note_gateways().await;
        let _ = timeout(CUT_WITHIN, control.refusals.flush(&*control.registry)).await;
        control.plane.shutdown(CloseCode::Shutdown).await;
        drop((owner, cores));
        control.exchanges.log.close();
        info!("stopped");
        Ok(Exit::Ok)
    }
}

async fn bind_issuer(settled: &Settled) -> Result<Option<(TcpListener, issuer::Told)>, Quit> {
    let Some(config) = &settled.issuer else { return Ok(None) };
    let Some(door) = IssuerDoor::of(config)? else { return Ok(None) };
    let listen = door.listen;
    let listener =
        TcpListener::bind(listen).await.or_failed(format_args!("cannot listen on {listen} (issuer.listen)"))?;
    if let Ok(address) = listener.local_addr() {
        info!(kind = "issuer", %address, "listening");
    }
    if let Some(warning) = door.warning() {
        warn!(warning, "configuration");
    }
    Ok(Some((listener, issuer::Told { door: Arc::new(door), base: config.url.as_str().into() })))
}

async fn obey_reloads(mut reloads: mpsc::Receiver<()>, control: Arc<Control>, notifier: Arc<Notifier>) {
    while reloads.recv().await.is_some() {
        notifier.reloading();
        note_reload(&control.reload().await);
        notifier.ready("serving");
    }
}

/// Applies what other relays changed.
async fn follow_registry(control: Arc<Control>) {
    control.follow_registry().await;
}

/// Writes now and then when gateways called last.
async fn note_gateways(control: Arc<Control>) {
    let mut ticks = tokio::time::interval(NOTE_GATEWAYS_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        control.note_gateways().await;
    }
}

/// Tells the other relays of this registry, again and again, that this one is there.
async fn say_here(control: Arc<Control>) {
    let mut ticks = tokio::time::interval(SAY_HERE_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let own = relays::own(&control.identity, &control.endpoints(), SystemTime::now());
        match timeout(SAY_HERE_EVERY, control.registry.note_relay(own)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => debug!(%error, "other relays were not told"),
            Err(_) => debug!("other relays were not told in time"),
        }
    }
}

/// Takes listeners' certificates anew when their files change.
async fn watch_certificates(control: Arc<Control>) {
    let mut ticks = tokio::time::interval(LOOK_AT_CERTIFICATES_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let control = Arc::clone(&control);
        // On a thread of its own: a disk that hangs must not stop requests.
        let _ = tokio::task::spawn_blocking(move || control.look_at_certificates(SystemTime::now())).await;
    }
}

async fn feed_watchdog(notifier: Arc<Notifier>, every: Duration) {
    let mut ticks = tokio::time::interval(every);
    loop {
        ticks.tick().await;
        notifier.watchdog();
    }
}
