//! Connectors that are there: who they are, what they serve, whether they answer.
//!
//! Takes the plane's facts and the registry's rows and keeps the [`Directory`] true. Must never carry a request, and
//! never wait for the database where packets or requests wait for it.

mod calls;
mod clones;
mod conversation;
mod directory;
mod frames;
mod joining;
mod keys;
mod lanes;
mod liveness;
mod member;
mod notes;
mod places;
mod proofs;
mod report;
mod statics;
mod strangers;
mod table;
mod tunnels;

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use culvert_engine::{AddPeerError, BootstrapConfig, BootstrapId, Path, PeerConfig, PeerId, PskEpoch};
use culvert_model::address::BOOTSTRAP_INNER;
use culvert_model::close::CloseCode;
use culvert_model::control::ToConnector;
use culvert_model::id::{ConnectorId, TokenId};
use culvert_plane::{Connection, Event, Events, Plane};
use futures_util::future::join_all;
use ipnet::IpNet;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{debug, info, warn};

use crate::enrol;
use crate::identity::Identity;
use crate::paths::{local_of, path_to};
use crate::peers::Peers;
use crate::refusals::Refusals;
use crate::registry::{ConnectorRow, Forgotten, Note, Registry, RelayRow, Snapshot, TokenRow, TokenSealRow, peers};
use crate::relays;
use calls::Calls;
use clones::note_displaced;
pub(crate) use directory::{Balance, Directory, Pair, PairState, Service};
pub(crate) use member::{Member, Via};
use notes::Notes;
pub(crate) use report::issuer_of;
use statics::Statics;
use table::Table;
pub(crate) use tunnels::{Running, Tunnel};

/// After its start a relay waits this long for connectors that it calls back (wire.md §2 "Relay restart").
const CALLED_BACK_WITHIN: Duration = Duration::from_secs(5);
/// How soon after some call-backs the next are thought of.
const CALL_BACK_EVERY: Duration = Duration::from_millis(1);
/// How often rows past their time are dropped.
const FORGET_EVERY: Duration = Duration::from_secs(60);
/// How often it is looked whether the grace of a key is over, and who uses which is written.
const KEYS_EVERY: Duration = Duration::from_secs(1);
/// How often idle streams are swept.
const SWEEP_EVERY: Duration = Duration::from_secs(5);
/// At the end a database that is away is not waited for.
const LAST_NOTES_WITHIN: Duration = Duration::from_secs(1);
/// An older epoch of a pre-shared key is deleted so long after the newer one was used (wire.md §3).
const OLD_EPOCH_FOR: Duration = Duration::from_secs(180);

/// A handle to the sessions; clones speak of the same ones.
#[derive(Clone)]
pub(crate) struct Sessions {
    shared: Arc<Shared>,
}

struct Shared {
    plane: Plane,
    registry: Arc<dyn Registry>,
    identity: Arc<Identity>,
    directory: Arc<Directory>,
    refusals: Refusals,
    statics: Statics,
    peers: Peers,
    table: Mutex<Table>,
    notes: Notes,
    /// Sessions that share the budget of pings.
    live: AtomicUsize,
    /// An announcement was decided while the registry was away: it does not know of it.
    decided_alone: AtomicBool,
}

impl Sessions {
    /// Adds everybody the registry knows to the plane. Connectors are called back by [`Sessions::run`].
    pub(crate) async fn new(
        plane: Plane,
        registry: Arc<dyn Registry>,
        identity: Arc<Identity>,
        directory: Arc<Directory>,
        refusals: Refusals,
        snapshot: Snapshot,
    ) -> Self {
        let statics = Statics::new(&plane, &identity, SystemTime::now());
        let peers = Peers::new(plane.clone(), Arc::clone(&identity));
        let shared = Shared {
            statics,
            peers,
            plane,
            registry,
            identity,
            directory,
            refusals,
            table: Mutex::default(),
            notes: Notes::default(),
            live: AtomicUsize::new(0),
            decided_alone: AtomicBool::new(false),
        };
        let sessions = Self { shared: Arc::new(shared) };
        sessions.resync(snapshot, Instant::now()).await;
        let shared = &sessions.shared;
        shared.directory.expect(&shared.table().expected_services(), Instant::now() + CALLED_BACK_WITHIN);
        sessions
    }

    /// Runs until the plane is gone.
    pub(crate) async fn run(self, mut events: Events) {
        let shared = &self.shared;
        let mut tasks = JoinSet::new();
        tasks.spawn(call_back(Arc::clone(shared)));
        let (mut forget, mut sweep, mut keys) = (interval(FORGET_EVERY), interval(SWEEP_EVERY), interval(KEYS_EVERY));
        keys.set_missed_tick_behavior(MissedTickBehavior::Delay);
        forget.set_missed_tick_behavior(MissedTickBehavior::Delay);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                event = events.recv() => match event {
                    Some(event) => shared.take(event, &mut tasks),
                    None => break,
                },
                Some(ended) = tasks.join_next() => {
                    if let Err(error) = ended && error.is_panic() {
                        tracing::error!(%error, "session task panicked");
                    }
                }
                () = shared.notes.due() => { tasks.spawn(write_notes(Arc::clone(shared))); }
                _ = forget.tick() => { tasks.spawn(forget_old(Arc::clone(shared))); }
                now = sweep.tick() => shared.sweep(now),
                _ = keys.tick() => statics::keep(shared, &mut tasks, SystemTime::now()),
            }
        }
        write_notes(Arc::clone(shared)).await;
    }

    /// Makes the running relay agree with the registry: to be called after every change of it, of this relay or another.
    /// Returns whether tunnels changed, and with them perhaps who owns which name, or names were decided without it.
    ///
    /// The snapshot was read no earlier than `read_at`: what joined before and is not in it was forgotten elsewhere.
    pub(crate) async fn resync(&self, snapshot: Snapshot, read_at: Instant) -> bool {
        let now = SystemTime::now();
        let shared = &self.shared;
        let missing_rows = shared.table().not_in(&snapshot, read_at);
        let own = shared.identity.relay_tag();
        let told = relays::told(&snapshot.relays, &own, now);
        let missing = relays::missing_seals(&snapshot, &shared.identity, now);
        let missing_of_peers = relays::missing_peer_seals(&snapshot, &shared.identity);
        shared.peers.resync(&snapshot, shared.statics.answered()).await;
        let of_peers = peers::owned(&snapshot.peers, &snapshot.peer_services);
        let Snapshot { tunnels, tokens, connectors, services, relays, token_seals, managed, .. } = snapshot;
        let owners_changed;
        let mut expected = Vec::new();
        {
            let mut table = shared.table();
            owners_changed = table.tunnels != tunnels || table.of_peers != of_peers;
            (table.tunnels, table.services, table.of_peers) = (tunnels, services, of_peers);
            let revoked = connectors.iter().filter(|row| row.revoked.is_some());
            table.revoked = revoked.map(|row| (row.public_key, row.id.clone())).collect();
            table.relays.clone_from(&relays);
            table.load_proof_keys(&connectors);
            if table.managed != managed {
                expected = table.newly_managed(&managed);
                table.managed = managed;
                table.live().for_each(|live| live.member.manage_anew());
            }
        }
        let known: HashSet<TokenId> = shared.table().tokens.values().cloned().collect();
        for token in tokens.iter().filter(|token| !token.is_forgotten(now) && !known.contains(&token.id)) {
            shared.add_token(token, &token_seals);
        }
        let (mut revoked, mut strangers) = (Vec::new(), Vec::new());
        for row in &connectors {
            let is_known = shared.table().connectors.contains_key(&row.id);
            match (row.revoked, is_known) {
                (Some(_), true) => revoked.extend(shared.revoke(&row.id)),
                (None, true) => {
                    shared.set_drained(&row.id, row.drained);
                    strangers.extend(shared.sync_keys(row, Instant::now()));
                    shared.set_narrowed(row);
                }
                (None, false) => shared.add_known(row),
                (Some(_), false) => {}
            }
        }
        let known = shared.table().known_services();
        shared.directory.set_known(&known);
        // Connectors are told in this moment: who asks at once waits for their word.
        shared.directory.expect(&expected, Instant::now() + directory::EXPECTED_FOR);
        shared.set_relays(relays, told);
        if !missing.is_empty()
            && let Err(error) = shared.registry.seal_tokens(missing).await
        {
            warn!(%error, "tokens not shared with the other relays");
        }
        if !missing_of_peers.is_empty()
            && let Err(error) = shared.registry.seal_peers(missing_of_peers).await
        {
            warn!(%error, "stock peers' keys not shared with the other relays");
        }
        shared.forget(missing_rows).await;
        join_all(revoked.into_iter().map(|peer| shared.plane.remove_peer(peer, CloseCode::Revoked))).await;
        join_all(strangers.into_iter().map(|peer| shared.plane.remove_peer(peer, CloseCode::Shutdown))).await;
        shared.decided_alone.swap(false, Ordering::Relaxed) || owners_changed
    }

    /// The stock peers beside the connectors.
    pub(crate) fn peers(&self) -> &Peers {
        &self.shared.peers
    }

    /// Has every live connector announced anew: who owns which name may have changed.
    pub(crate) fn decide_anew(&self) {
        self.shared.table().live().for_each(|live| live.member.decide_anew());
    }

    /// Tells every live connector that this relay is about to stop.
    pub(crate) fn tell_drain(&self) {
        for live in self.shared.table().connectors.values().filter_map(|known| known.live.as_ref()) {
            live.member.tell(ToConnector::Drain);
        }
    }

    /// Writes what was noticed and not yet written.
    pub(crate) async fn flush(&self) {
        let _ = tokio::time::timeout(LAST_NOTES_WITHIN, write_notes(Arc::clone(&self.shared))).await;
        let _ = tokio::time::timeout(LAST_NOTES_WITHIN, statics::save(Arc::clone(&self.shared.identity))).await;
    }
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(self: &Arc<Self>, event: Event, tasks: &mut JoinSet<()>) {
        let now = Instant::now();
        if let Some(notes) = self.peers.take(&event, SystemTime::now()) {
            return notes.into_iter().for_each(|note| self.notes.add(note));
        }
        match event {
            Event::Connected(connection) => self.connected(connection, tasks, now),
            Event::SessionUp { peer, path, first, bootstrap } => {
                if bootstrap.is_none() {
                    self.heard_of(peer, path, true);
                    self.note_static(peer);
                    debug!(peer = ?peer, first, "session up");
                }
            }
            Event::EndpointMoved { peer, path } => self.heard_of(peer, path, false),
            Event::NewInstance { peer } => self.new_instance(peer, now),
            Event::Clone { peer } => {
                if let Some((id, known)) = self.table().by_peer(peer) {
                    note_displaced(id, known.clones.came_back(now));
                }
                self.came_back(peer, tasks, now);
            }
            Event::ClockBehind { peer } => {
                if let Some((id, known)) = self.table().by_peer(peer)
                    && known.clock_behind.replace(now).is_none()
                {
                    warn!(connector = %id, "connector's clock is behind, it was called back");
                }
            }
            Event::EpochPromoted { peer, epoch } => self.epoch_promoted(peer, epoch, tasks),
            Event::KeyPromoted { peer, public_key, .. } => debug!(peer = ?peer, %public_key, "key confirmed"),
            Event::Flapping { peer, paths } => self.in_two_places(peer, paths.map(|path| path.remote), tasks, now),
            Event::Stranger { public_key, path } => self.stranger(&public_key, path),
            Event::Unanswered { peer, attempts } => debug!(peer = ?peer, attempts, "handshake unanswered"),
            Event::SessionLost { peer } => debug!(peer = ?peer, "session lost"),
            Event::PeerGone { .. } => {}
            Event::Resumed { asleep } => info!(seconds = asleep.as_secs(), "machine was asleep"),
        }
    }

    fn connected(self: &Arc<Self>, connection: Connection, tasks: &mut JoinSet<()>, now: Instant) {
        let peer = connection.peer();
        if let Some(bootstrap) = connection.bootstrap() {
            let Some(token) = self.table().tokens.get(&bootstrap).cloned() else {
                connection.close(CloseCode::Protocol);
                return;
            };
            tasks.spawn(joining::serve(Arc::clone(self), connection, token));
            return;
        }
        let mut table = self.table();
        if let Some(lane) = table.lanes.get(&peer) {
            return drop(tasks.spawn(lanes::hold(Arc::clone(self), connection, lane.clone())));
        }
        let Some((id, known)) = table.by_peer(peer) else {
            connection.close(CloseCode::Protocol);
            return;
        };
        let id = id.clone();
        if known.live.as_ref().is_some_and(|live| live.member.is_open()) {
            note_displaced(&id, known.clones.displaced(now));
        }
        drop(table);
        tasks.spawn(conversation::hold(Arc::clone(self), connection, id));
    }

    /// The process at the other end is another one than before: its connection is over, the new one dials.
    fn new_instance(&self, peer: PeerId, now: Instant) {
        let mut table = self.table();
        let Some((id, known)) = table.by_peer(peer) else { return };
        let id = id.clone();
        let Some(live) = known.live.take() else { return };
        note_displaced(&id, known.clones.displaced(now));
        drop(table);
        self.ended(&live.member, Some(now + directory::EXPECTED_FOR));
    }

    fn heard_of(&self, peer: PeerId, path: Path, handshake: bool) {
        let mut table = self.table();
        let Some((id, known)) = table.by_peer(peer) else { return };
        let id = id.clone();
        if handshake {
            let at = SystemTime::now();
            known.last_handshake = Some(at);
            self.notes.add(Note::Handshake { connector: id.clone(), at });
        }
        let before = known.endpoint.replace((path.remote, path.local));
        known.former = before.map(|(remote, _)| remote).filter(|remote| *remote != path.remote).or(known.former);
        if before != Some((path.remote, path.local)) {
            let local = local_of(&self.plane, path);
            let relay = self.identity.relay_tag();
            self.notes.add(Note::Endpoint { connector: id, relay, remote: path.remote, local });
        }
    }

    fn epoch_promoted(self: &Arc<Self>, peer: PeerId, epoch: u32, tasks: &mut JoinSet<()>) {
        let Some((connector, own)) = self.table().by_peer(peer).map(|(id, known)| (id.clone(), known.keys.own)) else {
            return;
        };
        // Those of a next key are counted for themselves until it has taken over.
        if self.plane.peer_stats(peer).is_some_and(|stats| stats.public_key != own) {
            return;
        }
        let relay = self.identity.relay_tag();
        let note = move |alone| Note::PskConfirmed { connector, relay, epoch, alone };
        self.notes.add(note.clone()(false));
        let shared = Arc::clone(self);
        tasks.spawn(async move {
            tokio::time::sleep(OLD_EPOCH_FOR).await;
            shared.notes.add(note(true));
        });
    }

    /// The relays of the registry, and what connectors are told of them: every live one, if that is something new.
    fn set_relays(&self, relays: Vec<RelayRow>, told: Option<ToConnector>) {
        let mut table = self.table();
        table.relays = relays;
        if table.told == told {
            return;
        }
        table.told.clone_from(&told);
        let live: Vec<Arc<Member>> =
            table.connectors.values().filter_map(|known| Some(Arc::clone(&known.live.as_ref()?.member))).collect();
        drop(table);
        if let Some(told) = told {
            live.iter().for_each(|member| member.tell(told.clone()));
        }
    }

    fn add_token(&self, token: &TokenRow, seals: &[TokenSealRow]) {
        let (public_key, psk) = match enrol::bootstrap_of(token, seals, &self.identity) {
            Ok(keys) => keys,
            // Made by another relay, which has not shared it yet.
            Err(error) if self.table().relays.len() > 1 => {
                debug!(token = %token.id, %error, "token left out");
                return;
            }
            Err(error) => {
                warn!(token = %token.id, %error, "token left out");
                return;
            }
        };
        let config = BootstrapConfig {
            public_key,
            static_index: self.statics.newest(),
            psk,
            allowed_ips: vec![IpNet::from(IpAddr::from(BOOTSTRAP_INNER))],
        };
        match self.plane.add_bootstrap(config) {
            Ok(bootstrap) => {
                self.table().tokens.insert(bootstrap, token.id.clone());
            }
            Err(error) => warn!(token = %token.id, %error, "token left out"),
        }
    }

    fn add_known(&self, row: &ConnectorRow) {
        match enrol::psks_of(row, &self.identity) {
            // It joined at another relay and is not known here yet.
            Ok(psks) if psks.is_empty() => {}
            Ok(psks) => {
                let psks = psks.into_iter().map(|key| PskEpoch { epoch: key.epoch, psk: key.psk }).collect();
                if let Err(error) = self.add_member(row, psks) {
                    warn!(connector = %row.id, %error, "connector left out");
                }
            }
            Err(error) => warn!(connector = %row.id, %error, "connector left out"),
        }
    }

    /// Makes a connector a peer, or gives the peer its new pre-shared keys.
    fn add_member(&self, row: &ConnectorRow, psks: Vec<PskEpoch>) -> Result<(), AddPeerError> {
        let mut table = self.table();
        if let Some(known) = table.connectors.get(&row.id) {
            if let Err(error) = self.plane.set_key_psks(known.peer, &row.public_key, None, psks) {
                warn!(connector = %row.id, %error, "pre-shared keys not changed");
            }
            drop(table);
            self.set_narrowed(row);
            return Ok(());
        }
        let heard = row.heard_by(&self.identity.relay_tag());
        let path = heard.and_then(|(remote, local)| path_to(&self.plane, remote, local));
        let peer = self.plane.add_peer(PeerConfig {
            public_key: row.public_key,
            static_index: self.static_of(&row.id, SystemTime::now()),
            psks,
            allowed_ips: vec![IpNet::from(IpAddr::from(row.inner_address))],
            path,
            persistent_keepalive: None,
        })?;
        table.insert(row, peer, heard);
        drop(table);
        let known = self.sync_keys(row, Instant::now()).is_none();
        debug_assert!(known, "it was added under the key that it has");
        Ok(())
    }

    fn set_drained(&self, id: &ConnectorId, drained: bool) {
        let mut table = self.table();
        let Some(known) = table.connectors.get_mut(id) else { return };
        if known.drained == drained {
            return;
        }
        known.drained = drained;
        if let Some(live) = known.live.clone() {
            drop(table);
            live.member.set_drained(drained);
            self.directory.touch(&live.pairs);
            info!(connector = %id, drained, "connector drained or back");
        }
    }

    /// It joined again, with a token for other services perhaps.
    fn set_narrowed(&self, row: &ConnectorRow) {
        let mut table = self.table();
        let Some(known) = table.connectors.get_mut(&row.id).filter(|known| known.narrowed != row.services) else {
            return;
        };
        known.narrowed.clone_from(&row.services);
        if let Some(live) = &known.live {
            live.member.manage_anew();
            live.member.decide_anew();
        }
    }

    /// The key is worth nothing any more: its requests end now. Whoever calls this has the plane forget the peer.
    fn revoke(&self, id: &ConnectorId) -> Option<PeerId> {
        let known = self.table().remove(id)?;
        if let Some(live) = known.live {
            self.ended(&live.member, None);
        }
        info!(connector = %id, "connector revoked");
        Some(known.peer)
    }

    /// It is not known here any more, and may come to be. Whoever calls this has the plane forget the peer.
    fn forget_member(&self, id: &ConnectorId) -> Option<PeerId> {
        let known = self.table().remove(id)?;
        if let Some(live) = known.live {
            self.ended(&live.member, None);
        }
        Some(known.peer)
    }

    /// Takes a session out of everything; its connection is closed by whoever knows why.
    fn ended(&self, member: &Arc<Member>, expected_until: Option<Instant>) {
        member.set_ended();
        self.directory.remove(member, expected_until);
        let mut table = self.table();
        if let Some(known) = member.connector().and_then(|id| table.connectors.get_mut(id))
            && known.live.as_ref().is_some_and(|live| Arc::ptr_eq(&live.member, member))
        {
            known.live = None;
        }
    }

    /// Takes out what the registry no longer knows.
    async fn forget(&self, forgotten: Forgotten) {
        for token in &forgotten.tokens {
            if let Some(bootstrap) = self.bootstrap_of(token) {
                self.table().tokens.remove(&bootstrap);
                self.plane.remove_bootstrap(bootstrap);
            }
        }
        for id in &forgotten.connectors {
            self.table().proof_keys.forget(id);
            let Some(known) = self.table().remove(id) else { continue };
            if let Some(live) = known.live {
                self.ended(&live.member, None);
            }
            debug!(connector = %id, "connector forgotten");
            self.plane.remove_peer(known.peer, CloseCode::Revoked).await;
        }
    }

    fn sweep(&self, now: tokio::time::Instant) {
        self.peers.sweep();
        for live in self.table().connectors.values().filter_map(|known| known.live.as_ref()) {
            live.member.sweep(now);
        }
    }

    fn bootstrap_of(&self, token: &TokenId) -> Option<BootstrapId> {
        self.table().tokens.iter().find(|(_, known)| *known == token).map(|(bootstrap, _)| *bootstrap)
    }
}

/// Initiates toward the last known endpoint of every connector, so that tunnels are back in a round trip.
async fn call_back(shared: Arc<Shared>) {
    shared.peers.call_back();
    let known: Vec<(PeerId, Option<SystemTime>)> = {
        let table = shared.table();
        let known = table.connectors.values().filter(|known| known.endpoint.is_some());
        known.map(|known| (known.peer, known.last_handshake)).collect()
    };
    let peers = calls::in_order(known);
    if !peers.is_empty() {
        info!(connectors = peers.len(), "calling connectors back");
    }
    let (plane, mut calls) = (&shared.plane, Calls::new());
    let mut left = peers.into_iter();
    loop {
        let room = calls.room(plane.handshakes_waiting(), Instant::now(), |peer| plane.is_live(peer));
        // Some have come by themselves meanwhile.
        for peer in left.by_ref().filter(|peer| !plane.is_live(*peer)).take(room) {
            plane.connect(peer, None);
            calls.note(peer, Instant::now());
        }
        if left.len() == 0 {
            return;
        }
        tokio::time::sleep(CALL_BACK_EVERY).await;
    }
}

async fn write_notes(shared: Arc<Shared>) {
    let notes = shared.notes.take();
    if notes.is_empty() {
        return;
    }
    if let Err(error) = shared.registry.note(notes.clone()).await {
        debug!(%error, "notes not written yet");
        if error.may_pass() {
            shared.notes.give_back(notes);
        }
    }
}

async fn forget_old(shared: Arc<Shared>) {
    let live: Vec<ConnectorId> = {
        let table = shared.table();
        table.connectors.iter().filter(|(_, known)| known.live.is_some()).map(|(id, _)| id.clone()).collect()
    };
    match shared.registry.forget(live, SystemTime::now()).await {
        Ok(forgotten) => shared.forget(forgotten).await,
        Err(error) => debug!(%error, "nothing forgotten"),
    }
}

#[cfg(test)]
mod tests;
