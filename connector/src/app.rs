//! The connector as a whole: starts its parts, joins, stays connected to every relay, reloads, and goes when told.
//!
//! Must never end for what may pass: only a refusal for good, a revoked key or the drain ends it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use culvert_model::id::InstanceId;
use culvert_model::name::Label;
use culvert_model::token::Token;
use culvert_ops::admin::{AdminSocket, bind_tcp, serve_socket, serve_tcp};
use culvert_ops::cores::Cores;
use culvert_ops::drain::Drain;
use culvert_ops::exit::{Exit, OrQuit as _, Quit};
use culvert_ops::state::StateDir;
use culvert_ops::systemd::Notifier;
use culvert_ops::task::{Owner, Task, spawn};
use culvert_origin::health::Checks;
use culvert_origin::origins::{Origins, tend};
use futures_util::future::select_all;
use tokio::sync::{Mutex, mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::admin::{Asked, Facts, Window};
use crate::board::{Board, RelayState};
use crate::config::Settled;
use crate::gate::Gate;
use crate::identity::{Admission, Candidate, Identity, IdentityError, Relay, Store, fingerprint, relays_of};
use crate::introductions::Introductions;
use crate::join::{self, Refused};
use crate::metrics::ConnectorMetrics;
use crate::relays::{self, Told};
use crate::rotation::Rotation;
use crate::shared::Shared;
use crate::stay::{Over, stay};
use crate::{VERSION, words};
use watched::Watched;

mod rotate;
mod watched;

/// How often watched files are looked at, and idle connections swept.
const TICK: Duration = Duration::from_millis(500);
/// Sweeps come every so many ticks.
const SWEEP_TICKS: u32 = 10;
/// Words of relays about each other that wait to be heard.
const TOLD: usize = 16;
/// How long links may take to close at the end.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Everything a connector starts from.
pub struct Start {
    /// What it does.
    pub settled: Settled,
    /// What it joins with, if it has to.
    pub token: Option<Token>,
    /// Where its identity is kept.
    pub store: Store,
    /// Where `admin.sock` is made; its lock is the caller's.
    pub socket: Option<StateDir>,
    /// Whether the TCP admin listener is served.
    pub serve_admin: bool,
    /// Where a reload reads from.
    pub source: Option<Box<dyn Source>>,
    /// Reloads that signals ask for.
    pub reloads: Option<mpsc::Receiver<()>>,
    /// Who is told that it is ready.
    pub notifier: Option<Notifier>,
}

/// Where a reload reads from.
pub trait Source: Send + Sync {
    /// The settings as they are now, and the keys whose change needs a restart.
    ///
    /// # Errors
    /// What is wrong with them.
    fn load(&self) -> Result<(Settled, Vec<String>), Quit>;
}

impl Start {
    /// A connector with these services, a state directory and a token, without admin listener or signals: for `dev`.
    pub fn plain(settled: Settled, state: StateDir, token: Token) -> Self {
        Self {
            settled,
            token: Some(token),
            store: Store::Directory(state),
            socket: None,
            serve_admin: false,
            source: None,
            reloads: None,
            notifier: None,
        }
    }
}

/// Runs until the drain is over, or until there is nothing more to hope for.
///
/// # Errors
/// 78 for a refused or revoked connector, or one that has neither joined nor a token; 1 when the system fails it.
pub async fn run(start: Start, drain: Drain) -> Result<Exit, Quit> {
    let Start { settled, token, store, socket, serve_admin, source, reloads, notifier } = start;
    let known = store.load()?;
    if known.is_none() && token.is_none() {
        return Err(Quit::config("this connector has not joined yet, and there is no token to join with").hint(
            "make one at the relay: culvert-relay tunnel create NAME --service NAME\n\
             and give it as CULVERT_TOKEN, in a file (--token-file FILE), or as the systemd credential `token`",
        ));
    }
    let origins = Origins::default();
    if let Store::Directory(state) = &store {
        origins.proofs().open(state.clone()).map_err(|error| Quit::config(error.to_string()))?;
    }
    let metrics = Arc::new(ConnectorMetrics::new());
    let (identity_known, identity) = watch::channel(None);
    let (tell, told) = mpsc::channel(TOLD);
    let shared = Arc::new(Shared {
        instance: InstanceId::new(),
        name: settled.name.clone().or_else(host_name),
        ephemeral: settled.ephemeral,
        reset_secret: culvert_model::key::random(),
        store,
        token,
        checks: Checks::new(origins.clone()),
        gate: Gate::new(origins.clone(), metrics.clone(), drain.clone()),
        origins,
        managed: std::sync::Mutex::default(),
        refused: watch::Sender::default(),
        threads: Cores::start("lane", settled.lanes).or_failed("cannot start the threads of the lanes")?,
        metrics,
        board: Board::default(),
        drain: drain.clone(),
        drain_timeout: settled.drain_timeout,
        rotation: Rotation::default(),
        renew_psk_after: watch::Sender::new(settled.key.renew_psk_after),
        up: watch::Sender::new(0),
        introductions: Introductions::default(),
        told: tell,
    });
    if settled.services.is_empty() && settled.allow.is_empty() {
        tracing::warn!(
            "no service is declared: --service NAME=URL, or [[service]] in the configuration; or [allow] origins for those \
             that the relay manages"
        );
    }
    let watched = apply(&shared, &settled);
    let (ask, asked) = mpsc::channel(4);
    let _doors = open_doors(&shared, &settled, socket, serve_admin, identity, ask).await?;
    tracing::info!(version = VERSION, services = settled.services.len(), "connector started");
    if let Some(notifier) = &notifier {
        notifier.ready("connecting");
    }
    let watched = Watched::new(watched);
    let app = App {
        shared,
        watched,
        source,
        notifier,
        identity: identity_known,
        told,
        members: Vec::new(),
        rotate_after: settled.key.rotate_after,
        rotate_not_before: None,
    };
    app.run(known, asked, reloads).await
}

/// The running connector.
struct App {
    shared: Arc<Shared>,
    watched: Watched,
    source: Option<Box<dyn Source>>,
    notifier: Option<Notifier>,
    identity: watch::Sender<Option<Facts>>,
    told: mpsc::Receiver<Told>,
    members: Vec<Member>,
    rotate_after: Option<Duration>,
    /// A relay refused a next key: another one is not made at once.
    rotate_not_before: Option<std::time::Instant>,
}

/// One identity and its links.
struct Member {
    identity: Arc<Mutex<Identity>>,
    links: Vec<Tie>,
}

/// The link to one relay.
struct Tie {
    relay: String,
    task: Task<Over>,
    /// Set when it is to go: another identity took its place, or the relay is no more.
    retired: watch::Sender<bool>,
}

impl App {
    async fn run(
        mut self,
        known: Option<Identity>,
        mut asked: mpsc::Receiver<Asked>,
        reloads: Option<mpsc::Receiver<()>>,
    ) -> Result<Exit, Quit> {
        let (_keep, closed) = mpsc::channel(1);
        let mut reloads = reloads.unwrap_or(closed);
        let joining = self.wants_to_join(known.as_ref());
        if let Some(identity) = known {
            self.begin(identity);
        }
        let mut join = joining.map(|token| self.join(token)).transpose()?;
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut count = 0u32;
        let drain = self.shared.drain.clone();
        let left = drain.run_out();
        tokio::pin!(left);
        let mut up = self.shared.up.subscribe();
        let mut rotation = self.shared.rotation.news();
        let mut leaving = false;
        let lost = self.shared.clone();
        let watchdog = self.notifier.as_ref().is_some_and(|notifier| notifier.watchdog_every().is_some());
        loop {
            tokio::select! {
                in_flight = &mut left => {
                    self.end(in_flight).await;
                    return Ok(Exit::Ok);
                }
                () = lost.threads.failed() => return Err(Quit::failed("the thread of a lane is lost: it panicked")),
                () = drain.begun(), if !leaving => {
                    leaving = true;
                    if let Some(notifier) = &self.notifier {
                        notifier.stopping("draining");
                    }
                }
                over = next_over(&mut self.members), if join.is_none() => match over {
                    Over::Revoked => return Err(self.revoked()),
                    Over::Drained => {
                        self.members.iter_mut().for_each(|member| member.links.retain(|tie| !tie.task.is_finished()));
                        self.members.retain(|member| !member.links.is_empty());
                    }
                },
                Some(told) = self.told.recv() => self.learn(&told).await,
                joined = next_join(&mut join) => {
                    join = None;
                    self.joined(joined)?;
                }
                Some(asked) = asked.recv() => match asked {
                    Asked::Reload(tell) => {
                        let _ = tell.send(self.reload());
                    }
                    Asked::Rotate(tell) => {
                        let rotating = if join.is_some() {
                            Err(Quit::failed("this connector is joining, and gets another key by that"))
                        } else {
                            self.rotate().await
                        };
                        let _ = tell.send(rotating);
                    }
                },
                Ok(()) = rotation.changed() => self.rotate_on().await,
                Some(()) = reloads.recv() => self.reload_and_log(),
                Ok(()) = up.changed() => {
                    if let Some(notifier) = &self.notifier {
                        notifier.status("connected");
                    }
                }
                _ = ticks.tick() => {
                    count = count.wrapping_add(1);
                    if let Some(notifier) = self.notifier.as_ref().filter(|_| watchdog) {
                        notifier.watchdog();
                    }
                    if count.is_multiple_of(SWEEP_TICKS) {
                        let now = tokio::time::Instant::now();
                        self.shared.origins.table().iter().for_each(|upstream| upstream.pools.sweep(now));
                    }
                    if self.watched.changed() {
                        tracing::info!("a watched file changed");
                        self.reload_and_log();
                    }
                    if join.is_none() && !leaving {
                        self.rotate_by_age().await;
                    }
                }
            }
        }
    }

    /// The token, when it is another one than this connector joined with.
    fn wants_to_join(&self, known: Option<&Identity>) -> Option<Token> {
        let token = self.shared.token.as_ref()?;
        match known {
            Some(identity) if identity.joined.token == fingerprint(token) => None,
            Some(_) => {
                tracing::info!("another token than this connector joined with: joining anew");
                Some(token.clone())
            }
            None => Some(token.clone()),
        }
    }

    fn join(&self, token: Token) -> Result<Task<Joined>, Quit> {
        let candidate = self.shared.store.candidate(&fingerprint(&token))?;
        let relays = relays_of(token.relays());
        let shared = self.shared.clone();
        if self.members.is_empty() {
            shared.board.set_relays(relays.iter().map(on_board));
        }
        tracing::info!(relays = relays.len(), "joining");
        Ok(spawn("connector.join", async move {
            let admission = join::join(&shared, &token, &candidate, &relays).await;
            Joined { admission, candidate, relays }
        }))
    }

    fn joined(&mut self, joined: Joined) -> Result<(), Quit> {
        let Joined { admission, candidate, relays } = joined;
        let admission = admission.map_err(|refused| refused_for_good(&refused))?;
        let identity = self.shared.store.join(&candidate, relays, admission, SystemTime::now())?;
        tracing::info!(id = %identity.joined.id, tunnel = identity.joined.tunnel.as_str(), "joined");
        // Start new, then stop old: the former identity's links drain and end by themselves.
        self.begin(identity);
        if let Some((_, former)) = self.members.split_last() {
            for tie in former.iter().flat_map(|member| &member.links) {
                tie.retired.send_replace(true);
            }
        }
        Ok(())
    }

    /// Starts a link to each relay, and goes on with a rotation that an earlier run began.
    fn begin(&mut self, identity: Identity) {
        match self.shared.store.next_key(&identity.joined) {
            Ok(Some(next)) => self.shared.rotation.begin(next),
            Ok(None) => self.shared.rotation.end(),
            Err(error) => {
                tracing::warn!(%error, "a next key cannot be read: the present one stays in use");
                self.shared.store.drop_next();
            }
        }
        self.identity.send_replace(Some(Facts::of(&identity)));
        let relays: Vec<Relay> = identity.joined.relays.clone();
        self.shared.board.set_relays(relays.iter().map(on_board));
        let identity = Arc::new(Mutex::new(identity));
        let links = relays.into_iter().map(|relay| Tie::to(relay.name, &self.shared, &identity)).collect();
        self.members.push(Member { identity, links });
    }

    /// A relay told of the others of its registry: links to new ones start, links to those that are no more end.
    async fn learn(&mut self, told: &Told) {
        let Some(Member { identity, links }) = self.members.last_mut() else { return };
        let shared = &self.shared;
        let mut known = identity.lock().await;
        let mut relays = known.joined.relays.clone();
        let learned = relays::learn(&mut relays, told, |name| shared.board.is_up(name));
        if learned.is_nothing() {
            return;
        }
        if let Err(error) = shared.store.know_relays(&mut known, relays.clone()) {
            tracing::warn!(%error, "what a relay told of the others cannot be kept");
            return;
        }
        drop(known);
        for relay in &relays {
            let (name, state) = on_board(relay);
            shared.board.set_relay(name, state);
        }
        for name in &learned.gone {
            tracing::info!(relay = name, by = told.by, "a relay is no more");
            shared.board.remove_relay(name);
        }
        // What is not up finds its relay by what is known now; a link that is to go ends when nothing is in flight.
        let stale = |name: &String| learned.changed.contains(name) && !shared.board.is_up(name);
        for tie in links.iter().filter(|tie| learned.gone.contains(&tie.relay) || stale(&tie.relay)) {
            tie.retired.send_replace(true);
        }
        for name in learned.added.iter().chain(learned.changed.iter().filter(|name| stale(name))) {
            tracing::info!(relay = name, by = told.by, "another relay told where this one is");
            links.push(Tie::to(name.clone(), shared, identity));
        }
    }

    fn reload(&mut self) -> Result<Vec<String>, Quit> {
        let Some(source) = &self.source else { return Ok(Vec::new()) };
        if let Some(notifier) = &self.notifier {
            notifier.reloading();
        }
        let loaded = source.load();
        if let Some(notifier) = &self.notifier {
            notifier.ready("reloaded");
        }
        let (settled, restart) = loaded?;
        self.watched.follow(apply(&self.shared, &settled));
        self.rotate_after = settled.key.rotate_after;
        tracing::info!(services = settled.services.len(), "configuration reloaded");
        for key in &restart {
            tracing::warn!(key, "this setting changes only with a restart");
        }
        Ok(restart)
    }

    fn reload_and_log(&mut self) {
        if let Err(quit) = self.reload() {
            tracing::error!(error = quit.message, "the configuration is wrong, nothing was changed");
        }
    }

    async fn end(&mut self, in_flight: usize) {
        if in_flight > 0 {
            tracing::warn!(in_flight, "requests were cut off at the end of the drain");
        }
        let links = self.members.drain(..).flat_map(|member| member.links).map(|tie| tie.task);
        let _ = timeout(LAST_WORDS, futures_util::future::join_all(links)).await;
        tracing::info!("connector stopped");
    }

    fn revoked(&self) -> Quit {
        let id = self.identity.borrow().as_ref().map(|facts| facts.to_string()).unwrap_or_default();
        Quit::config(format!("this connector{id} was revoked at the relay"))
            .hint("to connect this host again, give it a new token: culvert-relay token create TUNNEL")
    }
}

impl Tie {
    fn to(relay: String, shared: &Arc<Shared>, identity: &Arc<Mutex<Identity>>) -> Self {
        let retired = watch::Sender::new(false);
        let (name, shared, identity, gone) = (relay.clone(), shared.clone(), identity.clone(), retired.subscribe());
        let task = spawn("connector.link", async move { stay(&shared, &identity, &name, gone).await });
        Self { relay, task, retired }
    }
}

/// What came of asking to join.
struct Joined {
    admission: Result<Admission, Refused>,
    candidate: Candidate,
    relays: Vec<Relay>,
}

/// Puts settings into force; the files to watch.
fn apply(shared: &Shared, settled: &Settled) -> Vec<PathBuf> {
    shared.configure(settled.services.clone(), settled.allow.clone());
    shared.renew_psk_after.send_replace(settled.key.renew_psk_after);
    settled.watched.clone()
}

/// Opens the admin listeners.
async fn open_doors(
    shared: &Arc<Shared>,
    settled: &Settled,
    socket: Option<StateDir>,
    serve_admin: bool,
    identity: watch::Receiver<Option<Facts>>,
    ask: mpsc::Sender<Asked>,
) -> Result<Owner, Quit> {
    let window = Arc::new(Window { shared: shared.clone(), identity, ask });
    let mut doors = Owner::new();
    doors.spawn("connector.proofs", tend(shared.origins.clone()));
    if serve_admin {
        let listener = bind_tcp(settled.admin_listen, settled.admin_chosen).await?;
        if let Ok(address) = listener.local_addr() {
            tracing::info!(listen = %address, "admin listener");
        }
        doors.spawn("connector.admin", serve_tcp(listener, window.clone()));
    }
    if let Some(state) = socket {
        let socket = AdminSocket::bind(&state, settled.admin_group.as_deref())?;
        doors.spawn("connector.admin_socket", serve_socket(socket, window));
    }
    Ok(doors)
}

async fn next_join(join: &mut Option<Task<Joined>>) -> Joined {
    match join {
        Some(task) => match task.await {
            Ok(joined) => joined,
            // It panicked, which the log has; asking again would again.
            Err(_) => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}

/// Waits until any link is over for good.
async fn next_over(members: &mut [Member]) -> Over {
    let links = members.iter_mut().flat_map(|member| member.links.iter_mut()).map(|tie| &mut tie.task);
    let links: Vec<_> = links.filter(|link| !link.is_finished()).collect();
    if links.is_empty() {
        return std::future::pending().await;
    }
    match select_all(links).await {
        (Ok(over), ..) => over,
        (Err(_), ..) => Over::Drained,
    }
}

fn refused_for_good(refused: &Refused) -> Quit {
    let (why, hint) = words::refusal(refused);
    Quit::config(why).hint(hint)
}

fn on_board(relay: &Relay) -> (String, RelayState) {
    let state = RelayState {
        endpoints: relay.endpoints.clone(),
        public_key: relay.public_key.to_string(),
        ..RelayState::default()
    };
    (relay.name.clone(), state)
}

/// The host's name as a label: its first part, what fits of it.
fn host_name() -> Option<Label> {
    label_of(std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?.trim())
}

fn label_of(host: &str) -> Option<Label> {
    let first = host.split('.').next().unwrap_or_default().to_ascii_lowercase();
    let fitting: String = first.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(63).collect();
    fitting.trim_matches('-').parse().ok()
}

impl From<IdentityError> for Quit {
    fn from(error: IdentityError) -> Self {
        match error {
            IdentityError::State(error) => Self::from(error),
            IdentityError::Damaged(_) => Self::config(error.to_string())
                .hint("restore it, or start anew with an empty state directory and a new token"),
            IdentityError::Gap(_) | IdentityError::Move { .. } => Self::failed(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hosts_name_becomes_a_label() {
        for (host, label) in [("Web_01.example.com", Some("web-01")), ("-x-", Some("x")), ("...", None), ("", None)] {
            assert_eq!(label_of(host).as_ref().map(Label::as_str), label, "{host:?}");
        }
    }
}
