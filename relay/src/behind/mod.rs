//! Services behind stock peers: this relay takes the last hop to their origins itself, through the TUN plane.
//!
//! Follows what runs ([`Peers`]) and keeps the [`Directory`] true, as a connector's session does for its own services. Must
//! never reach an origin outside its peer's networks, or keep a pair of a peer that is gone.

mod branch;
mod network;
mod resolve;
mod send;
mod settle;
mod severed;
mod wishes;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use culvert_model::control::{AnnouncedService, ServiceHealth, ServiceTimeouts};
use culvert_model::id::StockPeerId;
use culvert_model::name::ServiceName;
use culvert_ops::task::Owner;
use culvert_origin::connect::Admission;
use culvert_origin::health::{Checks, told};
use culvert_origin::origins::{Entry, Origins, tend};
use culvert_origin::service::Service;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{debug, info, warn};

use crate::peers::{Peers, StockPeer};
use crate::registry::PeerServiceRow;
use crate::sessions::{Directory, Member, Pair, PairState};
pub(crate) use branch::Branch;
pub(crate) use send::send;
pub(crate) use severed::Severed;
pub(crate) use wishes::{Wishes, read};

/// How often idle connections are swept.
const SWEEP_EVERY: Duration = Duration::from_secs(5);

/// All branches that run.
struct Branches {
    peers: Peers,
    directory: Arc<Directory>,
    wishes: Wishes,
    running: HashMap<StockPeerId, Running>,
}

/// One of them.
struct Running {
    branch: Arc<Branch>,
    member: Arc<Member>,
    rows: Vec<PeerServiceRow>,
    wishes: Wishes,
    checks: Arc<Checks>,
    /// Takes the checks' news into the directory.
    _tells: Owner,
    /// Renews what proofs are made with, and warns of certificates that end.
    _tends: Owner,
}

/// Keeps the directory true for as long as it runs.
pub(crate) async fn follow(peers: Peers, directory: Arc<Directory>, mut wishes: watch::Receiver<Wishes>) {
    let mut changes = peers.changes();
    let now = wishes.borrow_and_update().clone();
    let mut branches = Branches { peers, directory, wishes: now, running: HashMap::new() };
    let mut sweep = interval(SWEEP_EVERY);
    sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    branches.agree();
    branches.tell_idle_wishes();
    loop {
        tokio::select! {
            changed = changes.changed() => match changed {
                Ok(()) => branches.agree(),
                Err(_) => return,
            },
            changed = wishes.changed() => match changed {
                Ok(()) => {
                    branches.wishes = wishes.borrow_and_update().clone();
                    branches.agree();
                    branches.tell_idle_wishes();
                }
                Err(_) => return,
            },
            now = sweep.tick() => branches.sweep(now),
        }
    }
}

impl Branches {
    /// Makes what runs here agree with the peers.
    fn agree(&mut self) {
        let mut wanted: HashMap<StockPeerId, (Arc<StockPeer>, Vec<PeerServiceRow>)> = HashMap::new();
        for (stock, row) in self.peers.services() {
            wanted.entry(stock.row.id.clone()).or_insert_with(|| (stock, Vec::new())).1.push(row);
        }
        let directory = &self.directory;
        self.running.retain(|id, running| {
            let stays = wanted.get(id).is_some_and(|(stock, _)| Arc::ptr_eq(stock, &running.branch.stock));
            if !stays {
                running.end(directory);
            }
            stays
        });
        let has_plane = self.peers.tun().is_some();
        for (id, (stock, rows)) in wanted {
            let running = match self.running.remove(&id) {
                Some(running) => running,
                None => Running::start(&self.peers, stock, &self.directory),
            };
            let running = running.with(rows, &self.wishes, has_plane, &self.directory);
            self.running.insert(id, running);
        }
    }

    /// Warns of settings that are for services behind peers, where the service is behind none.
    fn tell_idle_wishes(&self) {
        let is_here = |name: &ServiceName| {
            let mut rows = self.running.values().flat_map(|running| &running.rows);
            rows.any(|row| row.name == *name)
        };
        for (name, _) in self.wishes.iter().filter(|(name, wish)| wish.says_something() && !is_here(name)) {
            let why = "headers, auth, tls and timeouts in relay.toml are for services behind a stock peer, and it is behind none that runs here: they do nothing";
            warn!(service = %name, why, "configuration");
        }
    }

    fn sweep(&self, now: tokio::time::Instant) {
        for running in self.running.values() {
            running.branch.origins.table().iter().for_each(|upstream| upstream.pools.sweep(now));
        }
    }
}

impl Running {
    fn start(peers: &Peers, stock: Arc<StockPeer>, directory: &Arc<Directory>) -> Self {
        let origins = Origins::in_network(network::network(peers, stock.row.dns));
        let checks = Arc::new(Checks::new(origins.clone()));
        let branch = Arc::new(Branch::new(stock, origins));
        let member = Arc::new(Member::behind(Arc::clone(&branch), directory.room(), Instant::now()));
        let mut tends = Owner::new();
        tends.spawn("relay.behind_proofs", tend(branch.origins.clone()));
        let (rows, wishes, tells) = (Vec::new(), Wishes::default(), Owner::new());
        Self { branch, member, rows, wishes, checks, _tells: tells, _tends: tends }
    }

    /// Takes the services that are behind the peer now.
    fn with(mut self, rows: Vec<PeerServiceRow>, wishes: &Wishes, has_plane: bool, directory: &Arc<Directory>) -> Self {
        let is_new_plane = self.branch.set_plane(has_plane) != has_plane;
        let is_same = |row: &PeerServiceRow| wishes.get(&row.name) == self.wishes.get(&row.name);
        if self.rows == rows && !is_new_plane && rows.iter().all(is_same) {
            return self;
        }
        let networks: Arc<[_]> = self.branch.stock.row.inner_networks().into();
        let services: Vec<Service> = rows.iter().filter_map(|row| settled(row, wishes)).collect();
        let entry =
            |service: &Service| Entry { service: service.clone(), admission: Admission::Behind(Arc::clone(&networks)) };
        self.branch.origins.replace(services.iter().map(entry).collect::<Vec<_>>());
        self.checks.restart();
        let pairs: Vec<Arc<Pair>> = told(&self.branch.origins)
            .into_iter()
            .map(|service| Arc::new(Pair::new(Arc::clone(&self.member), &announced(service))))
            .collect();
        directory.set_pairs(&self.member, &pairs);
        info!(peer = %self.member.tunnel, services = pairs.len(), "services behind a stock peer");
        for (service, proof) in services.iter().filter_map(|one| Some((&one.name, one.auth.as_ref()?))) {
            info!(peer = %self.member.tunnel, %service, proof = proof.kind(), "requests are proven at this relay");
        }
        let mut tells = Owner::new();
        let told = Tells {
            branch: Arc::clone(&self.branch),
            pairs,
            directory: Arc::clone(directory),
            news: self.checks.news(),
        };
        tells.spawn("relay.behind", told.tell());
        (self.rows, self.wishes, self._tells) = (rows, Arc::clone(wishes), tells);
        self
    }

    fn end(&self, directory: &Directory) {
        self.member.set_ended();
        // What nobody defines any more is not known any more either.
        directory.set_pairs(&self.member, &[]);
        self.branch.origins.replace(Vec::<Entry>::new());
        debug!(peer = %self.member.tunnel, "nothing is behind the peer any more");
    }
}

/// Takes into the directory what becomes of the pairs of one peer.
struct Tells {
    branch: Arc<Branch>,
    pairs: Vec<Arc<Pair>>,
    directory: Arc<Directory>,
    news: watch::Receiver<u64>,
}

impl Tells {
    async fn tell(mut self) {
        let mut ups = self.branch.stock.ups();
        loop {
            tokio::select! {
                changed = self.news.changed() => if changed.is_err() { return },
                changed = ups.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    // What was found without a session, or with one, need not be so any more.
                    self.branch.origins.table().iter().for_each(|upstream| upstream.health.doubt());
                }
            }
            for ServiceHealth { name, health } in told(&self.branch.origins) {
                let Some(pair) = self.pairs.iter().find(|pair| pair.service == name) else { continue };
                if pair.set_health(health) {
                    let up = pair.state() == PairState::Up;
                    info!(peer = %pair.member.tunnel, service = %name, up, reason = pair.reason(), "origin's health changed");
                }
            }
            self.directory.touch(&self.pairs);
        }
    }
}

/// What a connector would announce of it.
fn announced(ServiceHealth { name, health }: ServiceHealth) -> AnnouncedService {
    let timeouts = ServiceTimeouts::default();
    AnnouncedService { name, health, balance: None, timeouts, tcp: false, managed: false }
}

/// The service, or nothing where the configuration does not fit it, or another version of this program wrote what this one
/// cannot read.
fn settled(row: &PeerServiceRow, wishes: &Wishes) -> Option<Service> {
    let settled = settle::settle(row, wishes.get(&row.name));
    settled.inspect_err(|why| warn!(service = %row.name, why, "a service behind a peer is left out")).ok()
}
