//! Stock peers that this relay runs: who they are, whether they answer, and what is behind them.
//!
//! Takes the registry's rows and the plane's facts and keeps both ends of each peer true: in the engine, and in what
//! operators and requests are told. Must never stop the relay: what cannot work here is said and left out.

mod dial;
mod tun;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Instant, SystemTime};

use culvert_model::close::CloseCode;
use culvert_model::id::StockPeerId;
use culvert_model::key::PublicKey;
use culvert_model::name::Label;
use culvert_ops::task::Owner;
use culvert_plane::tun::{Tun, TunConfig};
use culvert_plane::{AddPeerError, Event, Path, PeerConfig, PeerId, PeerKey, Plane, PskEpoch};
use tokio::sync::watch;
use tracing::{debug, info, warn};

use crate::command::LivePeer;
use crate::identity::Identity;
use crate::paths::{local_of, path_to};
use crate::registry::{Note, PeerRow, PeerServiceRow, Snapshot};
use crate::relays;
pub(crate) use tun::TunState;

/// A handle to the stock peers; clones speak of the same ones.
#[derive(Clone)]
pub(crate) struct Peers {
    shared: Arc<Shared>,
}

struct Shared {
    plane: Plane,
    identity: Arc<Identity>,
    tun: tun::TunPlane,
    table: Mutex<Table>,
    changes: watch::Sender<u64>,
    /// Sees to it that a TUN plane that ends is started again.
    watching: Mutex<Owner>,
}

#[derive(Default)]
struct Table {
    known: HashMap<StockPeerId, Known>,
    by_peer: HashMap<PeerId, StockPeerId>,
    services: Vec<PeerServiceRow>,
    /// Peers that do not run here, and why.
    left_out: BTreeMap<StockPeerId, String>,
    /// Peers that were deleted lately, by the key they had.
    deleted: HashMap<PublicKey, Label>,
}

struct Known {
    peer: PeerId,
    stock: Arc<StockPeer>,
    path: Option<Path>,
    last_handshake: Option<SystemTime>,
    /// Dials it, where it has an endpoint.
    _dial: Owner,
}

/// One stock peer that runs. Another key makes another one; the one before is gone then.
#[derive(Debug)]
pub(crate) struct StockPeer {
    /// What the registry says of it; what was noticed of it stands elsewhere.
    pub(crate) row: PeerRow,
    up: watch::Sender<bool>,
    gone: watch::Sender<bool>,
    unanswered: AtomicU32,
    /// Its endpoint's name was not found.
    unresolved: AtomicBool,
}

/// The relay's own static keys, by the engine's number: those that are answered.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OwnKeys {
    /// What new handshakes go under.
    pub(crate) newest: usize,
    /// What a peer may still be set up for, while a rotation is in its grace.
    pub(crate) previous: Option<usize>,
}

impl Peers {
    /// None yet: [`Peers::resync`] brings them.
    pub(crate) fn new(plane: Plane, identity: Arc<Identity>) -> Self {
        let tun = tun::TunPlane::default();
        let (table, changes, watching) = (Mutex::default(), watch::Sender::new(0), Mutex::default());
        Self { shared: Arc::new(Shared { plane, identity, tun, table, changes, watching }) }
    }

    /// Makes what runs agree with the registry, and starts the TUN plane with the first peer.
    pub(crate) async fn resync(&self, snapshot: &Snapshot, own: OwnKeys) {
        let shared = &self.shared;
        let deleted = snapshot.peers.iter().filter(|row| row.revoked.is_some());
        let deleted = deleted.map(|row| (row.public_key, row.name.clone())).collect();
        let wanted: HashMap<&StockPeerId, &PeerRow> =
            snapshot.peers.iter().filter(|row| row.revoked.is_none()).map(|row| (&row.id, row)).collect();
        let mut changed = false;
        let ended: Vec<Known> = {
            let mut table = shared.table();
            table.deleted = deleted;
            changed |= table.services != snapshot.peer_services;
            table.services.clone_from(&snapshot.peer_services);
            let stays =
                |id: &StockPeerId, known: &Known| wanted.get(id).is_some_and(|row| is_same(row, &known.stock.row));
            let gone: Vec<StockPeerId> =
                table.known.iter().filter(|(id, known)| !stays(id, known)).map(|(id, _)| id.clone()).collect();
            table.left_out.retain(|id, _| wanted.contains_key(id));
            gone.iter().filter_map(|id| table.remove(id)).collect()
        };
        for known in ended {
            changed = true;
            known.stock.gone.send_replace(true);
            info!(peer = %known.stock.row.name, "stock peer removed");
            shared.plane.remove_peer(known.peer, CloseCode::Revoked).await;
        }
        let new = wanted.values().filter(|row| !shared.table().known.contains_key(&row.id));
        for row in new.collect::<Vec<_>>() {
            changed |= shared.add(row, snapshot, own);
        }
        changed |= shared.follow_tun().await;
        if changed {
            shared.tell();
        }
    }

    /// What the TUN plane is made of; it starts now if there is a peer, else with the first one.
    pub(crate) async fn start_tun(&self, config: TunConfig) {
        self.shared.tun.set(config);
        if self.shared.follow_tun().await {
            self.shared.tell();
        }
    }

    /// How the TUN plane is.
    pub(crate) fn tun_state(&self) -> TunState {
        self.shared.tun.state()
    }

    /// The TUN plane, where it runs: sockets toward what is behind the peers.
    pub(crate) fn tun(&self) -> Option<Tun> {
        self.shared.tun.running()
    }

    /// Services behind peers that run here, each with its peer.
    pub(crate) fn services(&self) -> Vec<(Arc<StockPeer>, PeerServiceRow)> {
        let table = self.shared.table();
        let of = |service: &PeerServiceRow| Some((Arc::clone(&table.known.get(&service.peer)?.stock), service.clone()));
        table.services.iter().filter_map(of).collect()
    }

    /// Fires when peers, their services or the TUN plane changed.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    /// Takes a fact about a stock peer; none where it is about somebody else, else what is to be written of it.
    pub(crate) fn take(&self, event: &Event, now: SystemTime) -> Option<Vec<Note>> {
        match event {
            Event::SessionUp { peer, path, bootstrap: None, .. } => self.shared.heard(*peer, *path, Some(now)),
            Event::EndpointMoved { peer, path } => self.shared.heard(*peer, *path, None),
            Event::SessionLost { peer } => self.shared.of(*peer, |known| known.stock.set_up(false)),
            Event::Unanswered { peer, attempts } => self.shared.of(*peer, |known| {
                known.stock.unanswered.store(*attempts, Ordering::Relaxed);
            }),
            Event::Flapping { peer, paths } => self.shared.of(*peer, |known| {
                let [one, other] = paths.map(|path| path.remote);
                warn!(peer = %known.stock.row.name, %one, %other, "one stock peer's key is used in two places at once");
            }),
            Event::ClockBehind { peer } | Event::KeyPromoted { peer, .. } => self.shared.of(*peer, |_| ()),
            Event::Connected(_)
            | Event::SessionUp { .. }
            | Event::NewInstance { .. }
            | Event::Clone { .. }
            | Event::PeerGone { .. }
            | Event::EpochPromoted { .. }
            | Event::Stranger { .. }
            | Event::Resumed { .. } => None,
        }
    }

    /// The name of the peer that had this key and was deleted.
    pub(crate) fn deleted(&self, key: &PublicKey) -> Option<Label> {
        self.shared.table().deleted.get(key).cloned()
    }

    /// Handshakes toward the last known endpoint of every peer, so that a restart costs a round trip. Those that have an
    /// endpoint are dialled anyway.
    pub(crate) fn call_back(&self) {
        let table = self.shared.table();
        for known in table.known.values().filter(|known| known.path.is_some()) {
            self.shared.plane.connect(known.peer, None);
        }
    }

    /// Sets right what a fact that was lost would have told.
    pub(crate) fn sweep(&self) {
        for known in self.shared.table().known.values() {
            let live = self.shared.plane.peer_stats(known.peer).is_some_and(|stats| stats.live);
            known.stock.set_up(live);
        }
    }

    /// What is true of each peer now, also of those that do not run here.
    pub(crate) fn live(&self) -> HashMap<StockPeerId, LivePeer> {
        let (now, wall) = (Instant::now(), SystemTime::now());
        let table = self.shared.table();
        let running = table.known.iter().map(|(id, known)| (id.clone(), self.shared.describe(known, now, wall)));
        let left_out = table.left_out.iter().map(|(id, why)| {
            let notes = vec![format!("it does not run here: {why}")];
            (id.clone(), LivePeer { notes, ..LivePeer::default() })
        });
        left_out.chain(running).collect()
    }

    /// How many peers are in which state.
    pub(crate) fn count(&self) -> [(&'static str, i64); 3] {
        let table = self.shared.table();
        let count = |state| table.known.values().filter(|known| known.state() == state).count();
        ["up", "lost", "never"].map(|state| (state, i64::try_from(count(state)).unwrap_or(i64::MAX)))
    }

    /// When each peer last shook hands, by name.
    pub(crate) fn last_handshakes(&self) -> Vec<(Label, SystemTime)> {
        let table = self.shared.table();
        let known = table.known.values();
        known.filter_map(|known| Some((known.stock.row.name.clone(), known.last_handshake?))).collect()
    }
}

impl StockPeer {
    fn new(row: &PeerRow) -> Self {
        Self {
            row: row.clone(),
            up: watch::Sender::new(false),
            gone: watch::Sender::new(false),
            unanswered: AtomicU32::new(0),
            unresolved: AtomicBool::new(false),
        }
    }

    /// Whether it has a live session.
    pub(crate) fn is_up(&self) -> bool {
        *self.up.borrow()
    }

    /// Whether it was deleted, or has another key now.
    pub(crate) fn is_gone(&self) -> bool {
        *self.gone.borrow()
    }

    /// Fires when its session comes or goes.
    pub(crate) fn ups(&self) -> watch::Receiver<bool> {
        self.up.subscribe()
    }

    /// Waits until it is deleted, or has another key. Cancel safe.
    pub(crate) async fn gone(&self) {
        let mut gone = self.gone.subscribe();
        let _ = gone.wait_for(|gone| *gone).await;
    }

    fn set_up(&self, up: bool) {
        let changed = self.up.send_if_modified(|own| std::mem::replace(own, up) != up);
        if changed && up {
            self.unanswered.store(0, Ordering::Relaxed);
            info!(peer = %self.row.name, "stock peer up");
        } else if changed {
            info!(peer = %self.row.name, "stock peer lost");
        }
    }
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self) {
        self.changes.send_modify(|changes| *changes += 1);
    }

    /// Starts or ends the TUN plane, and has it watched. Returns whether it is another one now.
    async fn follow_tun(self: &Arc<Self>) -> bool {
        let any = !self.table().known.is_empty();
        if !self.tun.follow(&self.plane, any).await {
            return false;
        }
        let mut owner = Owner::new();
        if let Some(tun) = self.tun.running() {
            owner.spawn("relay.tun", watch_tun(Arc::downgrade(self), tun));
        }
        *self.watching.lock().unwrap_or_else(PoisonError::into_inner) = owner;
        true
    }

    /// Adds one to the engine; false where it was left out before for the same reason.
    fn add(&self, row: &PeerRow, snapshot: &Snapshot, own: OwnKeys) -> bool {
        let psk = match relays::peer_psk(row, &snapshot.peer_seals, &self.identity) {
            Ok(psk) => psk,
            Err(error) => return self.leave_out(row, error.to_string()),
        };
        let psks: Vec<PskEpoch> = psk.into_iter().map(|psk| PskEpoch { epoch: 0, psk }).collect();
        let heard = row.heard_by(&self.identity.relay_tag());
        let path = heard.and_then(|(remote, local)| path_to(&self.plane, remote, Some(local)));
        let added = self.plane.add_stock_peer(PeerConfig {
            public_key: row.public_key,
            static_index: own.newest,
            psks: psks.clone(),
            allowed_ips: row.inner_networks(),
            path,
            persistent_keepalive: row.keepalive,
        });
        let peer = match added {
            Ok(peer) => peer,
            Err(error) => return self.leave_out(row, self.why_not(&error)),
        };
        if let Some(previous) = own.previous {
            // Who set it up may have done so before the relay's key was changed: both are tried.
            let key = PeerKey { public_key: row.public_key, static_index: previous, psks };
            if let Err(error) = self.plane.add_key(peer, key, false) {
                debug!(peer = %row.name, %error, "the relay's key before the newest is not tried");
            }
        }
        let stock = Arc::new(StockPeer::new(row));
        let mut dial = Owner::new();
        if let Some(endpoint) = &row.endpoint {
            let dialled = dial::Dialled {
                plane: self.plane.clone(),
                peer,
                endpoint: endpoint.clone(),
                stock: Arc::clone(&stock),
                heard: path.is_some(),
            };
            dial.spawn("relay.peer_dial", dial::keep(dialled));
        }
        let mut table = self.table();
        table.left_out.remove(&row.id);
        table.by_peer.insert(peer, row.id.clone());
        let known = Known { peer, stock, path, last_handshake: row.last_handshake, _dial: dial };
        table.known.insert(row.id.clone(), known);
        info!(peer = %row.name, "stock peer added");
        true
    }

    fn leave_out(&self, row: &PeerRow, why: String) -> bool {
        if self.table().left_out.get(&row.id) == Some(&why) {
            return false;
        }
        warn!(peer = %row.name, why, "stock peer left out");
        self.table().left_out.insert(row.id.clone(), why);
        true
    }

    /// The engine knows numbers, operators names.
    fn why_not(&self, error: &AddPeerError) -> String {
        let table = self.table();
        let name = |peer: &PeerId| Some(table.known.get(table.by_peer.get(peer)?)?.stock.row.name.clone());
        match error {
            AddPeerError::Overlap { net, with } => match name(with) {
                Some(name) => format!("{net} overlaps what peer {name} has"),
                None => format!("{net} overlaps what a connector has"),
            },
            error => error.to_string(),
        }
    }

    fn of(&self, peer: PeerId, note: impl FnOnce(&mut Known)) -> Option<Vec<Note>> {
        let mut table = self.table();
        note(table.of(peer)?);
        Some(Vec::new())
    }

    fn heard(&self, peer: PeerId, path: Path, handshake: Option<SystemTime>) -> Option<Vec<Note>> {
        let mut table = self.table();
        let known = table.of(peer)?;
        let id = known.stock.row.id.clone();
        let mut notes = Vec::new();
        if let Some(at) = handshake {
            known.last_handshake = Some(at);
            known.stock.set_up(true);
            notes.push(Note::PeerHandshake { peer: id.clone(), at });
        }
        if known.path.replace(path) != Some(path) {
            let (relay, local) = (self.identity.relay_tag(), local_of(&self.plane, path));
            notes.push(Note::PeerEndpoint { peer: id, relay, remote: path.remote, local });
        }
        Some(notes)
    }

    fn describe(&self, known: &Known, now: Instant, wall: SystemTime) -> LivePeer {
        let stats = self.plane.peer_stats(known.peer);
        let last = stats.and_then(|stats| stats.last_handshake);
        let last = last.and_then(|at| wall.checked_sub(now.saturating_duration_since(at))).or(known.last_handshake);
        let mut notes = Vec::new();
        let unanswered = known.stock.unanswered.load(Ordering::Relaxed);
        if !known.stock.is_up() && unanswered > 0 {
            notes.push(format!("{unanswered} handshakes were not answered: does the other side have the relay's key?"));
        }
        if let Some(endpoint) = &known.stock.row.endpoint
            && known.stock.unresolved.load(Ordering::Relaxed)
        {
            notes.push(format!("{endpoint} is not found: it is asked for again at every attempt"));
        }
        let at = stats.and_then(|stats| stats.path).or(known.path).map(|path| path.remote);
        LivePeer {
            runs: true,
            up: known.stock.is_up(),
            endpoint: at.map(canonical),
            last_handshake: last,
            rx_bytes: stats.map_or(0, |stats| stats.rx_bytes),
            tx_bytes: stats.map_or(0, |stats| stats.tx_bytes),
            notes,
        }
    }
}

impl Table {
    fn of(&mut self, peer: PeerId) -> Option<&mut Known> {
        let id = self.by_peer.get(&peer)?;
        self.known.get_mut(id)
    }

    fn remove(&mut self, id: &StockPeerId) -> Option<Known> {
        let known = self.known.remove(id)?;
        self.by_peer.remove(&known.peer);
        Some(known)
    }
}

impl Known {
    fn state(&self) -> &'static str {
        match (self.stock.is_up(), self.last_handshake) {
            (true, _) => "up",
            (false, Some(_)) => "lost",
            (false, None) => "never",
        }
    }
}

/// A TUN plane that ends, because somebody ended the process that keeps it, is started again as long as there is a peer.
async fn watch_tun(shared: Weak<Shared>, mut tun: Tun) {
    loop {
        tun.ended().await;
        let Some(shared) = shared.upgrade() else { return };
        warn!("the TUN plane has ended, it is started again");
        shared.tun.lost();
        drop(tun);
        shared.tell();
        tun = loop {
            tokio::time::sleep(tun::AGAIN_AFTER).await;
            let any = !shared.table().known.is_empty();
            shared.tun.follow(&shared.plane, any).await;
            match shared.tun.running() {
                Some(tun) => break tun,
                None if any => {}
                None => return,
            }
        };
        shared.tell();
    }
}

/// Whether the two are one peer to the engine; what was noticed of them may differ.
fn is_same(row: &PeerRow, running: &PeerRow) -> bool {
    let noticed =
        |row: &PeerRow| PeerRow { heard: Vec::new(), last_endpoint: None, last_handshake: None, ..row.clone() };
    noticed(row) == noticed(running)
}

/// An IPv4 peer of an IPv6 socket is still an IPv4 peer.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
