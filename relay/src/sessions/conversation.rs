//! The control stream of one connector: announcement, health, drain, liveness, until its connection ends.
//!
//! Must never leave a pair in the directory whose connection is over.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use culvert_model::close::CloseCode;
use culvert_model::control::{
    self, Announce, AnnouncedService, ManagedService, RefusedService, ServiceHealth, ToConnector, ToRelay, Welcome,
};
use culvert_model::id::{ConnectorId, TunnelId};
use culvert_model::name::{Grant, ServiceName};
use culvert_model::proof::{Algorithm, ProofKey};
use culvert_plane::{Closed, Connection, Stream};
use tokio::time::{sleep_until, timeout};
use tracing::{debug, info, warn};

use super::directory::{EXPECTED_FOR, Pair};
use super::frames::{FrameError, Frames};
use super::lanes::Lanes;
use super::liveness::{Liveness, Step};
use super::member::Member;
use super::report::issuer_of;
use super::table::Live;
use super::{PairState, Shared};
use crate::refusals::Attempt;
use crate::registry::{Note, grants};
use crate::relays::{self, Asked};

/// The first stream and the announcement on it have to come within this time.
pub(super) const ANNOUNCED_WITHIN: Duration = Duration::from_secs(10);

/// The registry has to decide within this time.
const DECIDED_WITHIN: Duration = Duration::from_secs(1);
/// Announcements of one connector are taken no faster than this.
const ANNOUNCED_EVERY: Duration = Duration::from_millis(200);
/// Questions about keys of one connector are answered no faster than this.
const KEYS_ASKED_EVERY: Duration = Duration::from_secs(1);
/// Lines in the log for the refusals of one announcement.
const REFUSALS_SAID: usize = 16;
/// What an introduction that cannot be made now is answered with.
const INTRODUCE: &str = "introduce";
/// Services of one connector.
const SERVICES_AT_MOST: usize = 256;
/// What is kept of a connector's words.
const WHY_AT_MOST: usize = 512;

/// Why a session ended.
enum End {
    /// The connection is over.
    Closed(Closed),
    /// The connector does not answer any more.
    Silent,
    /// The control stream broke.
    Broken(FrameError),
}

/// Holds one connection from its first stream to its end.
pub(super) async fn hold(shared: Arc<Shared>, connection: Connection, id: ConnectorId) {
    let Some(mut session) = Box::pin(begin(shared, connection, id)).await else { return };
    // INVARIANT: dropping the session, a panic included, takes its pairs out of the directory.
    let end = session.converse().await.unwrap_or_else(End::Broken);
    session.over(&end);
    let Some(lanes) = session.lanes.take() else { return };
    let code = if let End::Closed(closed) = end { closed.code } else { None };
    let ending = Box::pin(lanes.end(Arc::clone(&session.shared), code.unwrap_or(CloseCode::Shutdown)));
    drop(session);
    ending.await;
}

/// Waits for the announcement; none when the connection was closed instead.
async fn begin(shared: Arc<Shared>, connection: Connection, id: ConnectorId) -> Option<Session> {
    let announced = timeout(ANNOUNCED_WITHIN, first_announcement(&connection)).await;
    let (frames, announce) = match announced {
        Ok(Ok(both)) => both?,
        Ok(Err(error)) => {
            debug!(connector = %id, %error, "no announcement");
            connection.close(CloseCode::Protocol);
            return None;
        }
        Err(_) => {
            debug!(connector = %id, "no announcement in time");
            connection.close(CloseCode::Silent);
            return None;
        }
    };
    let session = Session::start(shared, &connection, &id, frames, announce);
    if session.is_none() {
        connection.close(CloseCode::Revoked);
    }
    session
}

async fn first_announcement(connection: &Connection) -> Result<Option<(Frames<Stream>, Announce)>, FrameError> {
    let Ok(stream) = connection.accept().await else { return Ok(None) };
    let mut frames = Frames::new(stream);
    loop {
        match frames.next().await? {
            ToRelay::Announce(announce) => return Ok(Some((frames, announce))),
            ToRelay::Ping { id } => frames.send(&ToConnector::Pong { id }).await?,
            ToRelay::Enrol(_)
            | ToRelay::Health { .. }
            | ToRelay::Drain
            | ToRelay::Rekey(_)
            | ToRelay::Renew { .. }
            | ToRelay::Retire { .. }
            | ToRelay::Lane(_)
            | ToRelay::Managed { .. }
            | ToRelay::ProofKeys { .. }
            | ToRelay::Introduce { .. }
            | ToRelay::Pong { .. }
            | ToRelay::Unsupported { .. }
            | ToRelay::Unknown => {
                frames.send(&ToConnector::Unsupported { what: "before an announcement".to_owned() }).await?;
            }
        }
    }
}

/// What stays in here is held for each connector, however long it says nothing.
struct Session {
    shared: Arc<Shared>,
    id: ConnectorId,
    connection: Connection,
    member: Arc<Member>,
    tunnel: TunnelId,
    frames: Frames<Stream>,
    announced: Option<Box<Announce>>,
    services: Vec<AnnouncedService>,
    too_many: Vec<AnnouncedService>,
    refused: HashSet<ServiceName>,
    /// What it was told of the services that are managed here; none before.
    told: Option<Vec<ManagedService>>,
    decided: Instant,
    pairs: Vec<Arc<Pair>>,
    liveness: Liveness,
    expected_until: Option<Instant>,
    /// When it last asked for keys.
    keys_asked: Option<Instant>,
    lanes: Option<Box<Lanes>>,
}

impl Session {
    /// None when the connector was revoked meanwhile.
    fn start(
        shared: Arc<Shared>,
        connection: &Connection,
        id: &ConnectorId,
        frames: Frames<Stream>,
        announce: Announce,
    ) -> Option<Self> {
        let now = Instant::now();
        let mut table = shared.table();
        let known = table.connectors.get(id)?;
        let (tunnel, drained) = (known.tunnel.clone(), known.drained);
        let label = table.tunnel(&tunnel)?.name.clone();
        let member =
            Arc::new(Member::new(id.clone(), label, connection.clone(), drained, shared.directory.room(), now));
        let live =
            Live { member: Arc::clone(&member), pairs: Vec::new(), refused: Vec::new(), managed_refused: Vec::new() };
        let old = table.connectors.get_mut(id)?.live.replace(live);
        drop(table);
        if let Some(old) = old {
            old.member.set_ended();
            shared.directory.remove(&old.member, Some(now + EXPECTED_FOR));
            old.member.close(CloseCode::Replaced);
        }
        shared.live.fetch_add(1, Ordering::Relaxed);
        Some(Self {
            shared,
            id: id.clone(),
            connection: connection.clone(),
            member,
            tunnel,
            frames,
            announced: Some(Box::new(announce)),
            services: Vec::new(),
            too_many: Vec::new(),
            refused: HashSet::new(),
            told: None,
            decided: now,
            pairs: Vec::new(),
            liveness: Liveness::new(now),
            expected_until: None,
            keys_asked: None,
            lanes: None,
        })
    }

    async fn converse(&mut self) -> Result<End, FrameError> {
        loop {
            // What is done seldom is boxed: thousands of sessions wait below, each with room for its largest step.
            if let Some(announce) = self.announced.take() {
                Box::pin(self.announced(*announce)).await?;
            }
            if self.member.take_manage_anew() || self.told.is_none() {
                Box::pin(self.manage()).await?;
            }
            let messages = self.member.take_outbox();
            if !messages.is_empty() {
                Box::pin(self.tell(messages)).await?;
            }
            if self.member.take_decide_anew() {
                Box::pin(self.decide()).await?;
            }
            let now = Instant::now();
            let Some(due) = self.alive(now).await? else { return Ok(End::Silent) };
            match self.wait(due).await {
                Ok(Some(message)) => Box::pin(self.heard(*message, Instant::now())).await?,
                Ok(None) => {}
                Err(error) => return Box::pin(self.failed(error)).await,
            }
        }
    }

    /// Waits for a message; none when there is something else to do.
    async fn wait(&mut self, due: Instant) -> Result<Option<Box<ToRelay>>, FrameError> {
        tokio::select! {
            message = self.frames.next() => Ok(Some(Box::new(message?))),
            () = self.member.woken() => Ok(None),
            () = sleep_until(due.into()) => Ok(None),
        }
    }

    /// The control stream is over, as it is when the connection ends: that one's own end says more.
    async fn failed(&self, error: FrameError) -> Result<End, FrameError> {
        match timeout(EXPECTED_FOR, self.connection.closed()).await {
            Ok(closed) => Ok(End::Closed(closed)),
            Err(_) => Err(error),
        }
    }

    async fn tell(&mut self, messages: Vec<ToConnector>) -> Result<(), FrameError> {
        for message in &messages {
            self.frames.send(message).await?;
        }
        Ok(())
    }

    /// Sends what liveness asks for; until when nothing is due, or none when the connector is dead.
    async fn alive(&mut self, now: Instant) -> Result<Option<Instant>, FrameError> {
        if let Some(at) = self.member.exchanged() {
            self.liveness.exchanged(at);
        }
        if self.member.take_probe() {
            self.liveness.probe();
        }
        // Before a ping too: what came earlier is no sign of life after it.
        if let Some(stats) = self.shared.plane.peer_stats(self.connection.peer()) {
            self.liveness.wire(stats.rx_bytes, now);
        }
        let tunnels = self.shared.live.load(Ordering::Relaxed);
        loop {
            match self.liveness.step(tunnels, now) {
                Step::WaitUntil(until) => return Ok(Some(until)),
                Step::Dead => return Ok(None),
                Step::Ping(id) => {
                    self.member.set_unanswered(self.liveness.unanswered_since());
                    Box::pin(self.tell(vec![ToConnector::Ping { id }])).await?;
                }
            }
        }
    }

    async fn heard(&mut self, message: ToRelay, now: Instant) -> Result<(), FrameError> {
        self.member.note_heard(now);
        let pong = if let ToRelay::Pong { id } = message { Some(id) } else { None };
        if self.liveness.heard(pong, now).is_some() {
            self.member.set_unanswered(None);
            self.member.note_answer();
        }
        match message {
            ToRelay::Pong { .. } => {}
            ToRelay::Ping { id } => self.frames.send(&ToConnector::Pong { id }).await?,
            ToRelay::Health { services } => self.health(services),
            ToRelay::Announce(announce) => self.announced = Some(Box::new(announce)),
            ToRelay::Drain => {
                self.member.set_leaving();
                self.shared.directory.touch(&self.pairs);
                info!(connector = %self.id, "connector is leaving");
            }
            ToRelay::Managed { refused } => self.managed(refused),
            ToRelay::ProofKeys { keys, callers } => {
                self.note_proof_keys(keys).await;
                let own = self.pairs.iter().map(|pair| &pair.service).filter(|name| callers.contains(name));
                self.shared.directory.tell_callers(own);
            }
            ToRelay::Unsupported { what } => debug!(connector = %self.id, what, "connector did not understand"),
            ToRelay::Introduce { relay, kem_key } => self.introduce(&relay, &kem_key).await?,
            ToRelay::Rekey(request) => {
                self.take_turn().await;
                let answer = self.shared.rekey(&self.id, request, SystemTime::now());
                let answer = timeout(DECIDED_WITHIN, answer).await;
                self.answer(answer.ok().flatten()).await?;
            }
            ToRelay::Renew { kem_key } => {
                self.take_turn().await;
                let answer = self.shared.renew(&self.id, &kem_key, SystemTime::now());
                let answer = timeout(DECIDED_WITHIN, answer).await;
                self.answer(answer.ok().flatten()).await?;
            }
            ToRelay::Retire { public_key } => {
                let retired = self.shared.retire(&self.id, public_key, SystemTime::now());
                let _ = timeout(DECIDED_WITHIN, retired).await;
            }
            ToRelay::Lane(asked) => {
                let own = self.connection.peer();
                let lanes = self.lanes.get_or_insert_default();
                let answer = Box::pin(lanes.answer(&self.shared, &self.member, own, &asked)).await;
                self.frames.send(&answer).await?;
            }
            ToRelay::Enrol(_) | ToRelay::Unknown => {
                self.frames.send(&ToConnector::Unsupported { what: "not here".to_owned() }).await?;
            }
        }
        Ok(())
    }

    /// Serves its keys from now on, and has them kept for as long as it is away.
    async fn note_proof_keys(&mut self, keys: Vec<ProofKey>) {
        let news = self.shared.table().told_proof_keys(&self.id, keys);
        if let Some(keys) = news {
            self.take_turn().await;
            self.shared.notes.add(Note::ProofKeys { connector: self.id.clone(), keys });
        }
    }

    /// Whoever asks for keys without end waits between the answers: each costs this relay a write to its disk.
    async fn take_turn(&mut self) {
        if let Some(asked) = self.keys_asked {
            sleep_until((asked + KEYS_ASKED_EVERY).into()).await;
        }
        self.keys_asked = Some(Instant::now());
    }

    /// Sends an answer, if there is one: what could not be done now is asked for again.
    async fn answer(&mut self, answer: Option<ToConnector>) -> Result<(), FrameError> {
        match answer {
            Some(answer) => self.frames.send(&answer).await,
            None => Ok(()),
        }
    }

    async fn announced(&mut self, announce: Announce) -> Result<(), FrameError> {
        // The first comes at once; whoever announces without end waits between them.
        if !self.services.is_empty() {
            sleep_until((self.decided + ANNOUNCED_EVERY).into()).await;
        }
        self.decided = Instant::now();
        if announce.version != control::VERSION {
            warn!(
                connector = %self.id, theirs = announce.version, ours = control::VERSION,
                program = announce.program, "connector speaks another version"
            );
        }
        {
            let mut table = self.shared.table();
            if let Some(known) = table.connectors.get_mut(&self.id) {
                known.version = Some(announce.program.clone());
                known.name = announce.name.clone().or(known.name.take());
                self.shared.notes.add(Note::Program {
                    connector: self.id.clone(),
                    name: known.name.clone(),
                    version: announce.program,
                });
            }
        }
        self.services = announce.services;
        self.too_many = self.services.split_off(self.services.len().min(SERVICES_AT_MOST));
        self.decide().await
    }

    /// Decides which announced services this tunnel serves, makes pairs of them and tells the connector.
    async fn decide(&mut self) -> Result<(), FrameError> {
        let (names, beyond_token) = self.names();
        let now = SystemTime::now();
        let asked = self.shared.registry.announce(self.tunnel.clone(), names.clone(), now);
        let decision = match timeout(DECIDED_WITHIN, asked).await {
            Ok(Ok(decision)) => decision,
            // The database is away, slow, or knows no such tunnel any more: what is known in memory decides, because
            // requests and pings cannot wait for it.
            failed => {
                let error = failed.map_or_else(|_| "slow".to_owned(), |failed| format!("{:?}", failed.err()));
                debug!(connector = %self.id, error, "announcement decided without the registry");
                self.shared.decided_alone.store(true, Ordering::Relaxed);
                let table = self.shared.table();
                match table.tunnel(&self.tunnel) {
                    Some(tunnel) => grants::decide(tunnel, &names, &table.tunnels, &table.services, &table.of_peers),
                    None => grants::Decision::default(),
                }
            }
        };
        let beyond = format!("a connector serves {SERVICES_AT_MOST} services at most");
        let beyond = self.too_many.iter().map(|service| (service.name.clone(), beyond.clone()));
        let refused = decision.refused.iter().cloned().chain(beyond_token).chain(beyond);
        let refused: Vec<RefusedService> = refused.map(|(name, why)| RefusedService { name, why }).collect();
        self.say_refused(&refused);
        // Before requests come, which may have to be proven.
        let issuer = self.shared.table().issuer.clone();
        if let Some(base) = issuer {
            let url = issuer_of(&base, self.member.tunnel.as_str());
            let algorithms = Algorithm::ALL.iter().map(|algorithm| algorithm.name().to_owned()).collect();
            self.frames.send(&ToConnector::Issuer { url, algorithms }).await?;
        }
        let accepted = self.services.iter().filter(|service| decision.accepted.contains(&service.name));
        self.pairs = accepted.map(|service| Arc::new(Pair::new(Arc::clone(&self.member), service))).collect();
        {
            let mut table = self.shared.table();
            table.note_services(&self.tunnel, &decision.accepted, now);
            self.shared.directory.add_known(&decision.accepted);
            let Some(known) = table.connectors.get_mut(&self.id) else { return Ok(()) };
            let ours = known.live.as_mut().filter(|live| Arc::ptr_eq(&live.member, &self.member));
            // Displaced while the registry decided: the newer session's pairs stay.
            let Some(live) = ours else { return Ok(()) };
            (live.pairs, live.refused) = (self.pairs.clone(), refused.clone());
        }
        self.shared.directory.set_pairs(&self.member, &self.pairs);
        let up = self.pairs.iter().filter(|pair| pair.state() == PairState::Up).count();
        info!(
            connector = %self.id, tunnel = %self.member.tunnel, services = self.pairs.len(), up,
            "connector is up"
        );
        let welcome = Welcome {
            version: control::VERSION,
            program: env!("CARGO_PKG_VERSION").to_owned(),
            id: self.id.clone(),
            tunnel: self.member.tunnel.clone(),
            refused,
        };
        self.frames.send(&ToConnector::Welcome(welcome)).await?;
        if let Some(news) = self.shared.news_of_key(self.connection.peer()) {
            self.frames.send(&news).await?;
        }
        let told = self.shared.table().told.clone();
        match told {
            Some(told) => self.frames.send(&told).await,
            None => Ok(()),
        }
    }

    /// Makes the connector known to another relay of the registry.
    async fn introduce(&mut self, to: &str, kem_key: &str) -> Result<(), FrameError> {
        let stats = self.shared.plane.peer_stats(self.connection.peer());
        let relays = self.shared.table().relays.clone();
        let mut answer = None;
        if let Some(stats) = stats {
            let asked = Asked { connector: &self.id, public_key: stats.public_key, to, kem_key };
            let (registry, identity) = (&*self.shared.registry, &self.shared.identity);
            let asking = relays::introduce(registry, identity, &relays, &asked, SystemTime::now());
            // Requests and pings cannot wait for a database that is away.
            answer = timeout(DECIDED_WITHIN, asking).await.ok().flatten();
        }
        let unable = || ToConnector::Unsupported { what: INTRODUCE.to_owned() };
        self.frames.send(&answer.unwrap_or_else(unable)).await
    }

    /// The announced names that this connector may come with at all, and those that its token forbids, and why. What says
    /// that it is managed here and is not any more is on its way out.
    fn names(&self) -> (Vec<ServiceName>, Vec<(ServiceName, String)>) {
        let table = self.shared.table();
        let known = table.connectors.get(&self.id);
        let is_gone = |service: &AnnouncedService| {
            let mut defined = table.managed.iter().filter(|row| row.tunnel == self.tunnel);
            service.managed && !defined.any(|row| row.name == service.name)
        };
        let announced = self.services.iter().filter(|service| !is_gone(service)).map(|service| service.name.clone());
        let may_serve = |name: &ServiceName| known.is_none_or(|known| known.may_serve(name));
        let (names, forbidden): (Vec<_>, Vec<_>) = announced.partition(may_serve);
        let narrowed: Vec<&str> = known.iter().flat_map(|known| &known.narrowed).map(Grant::as_str).collect();
        let why = |name: &ServiceName| {
            format!("the token that this connector joined with is not for {name}: it may serve {}", narrowed.join(", "))
        };
        let forbidden = forbidden.into_iter().map(|name| (name.clone(), why(&name)));
        (names, forbidden.collect())
    }

    /// Tells the connector what is managed here for it, where that is news.
    async fn manage(&mut self) -> Result<(), FrameError> {
        let services = self.shared.table().managed_for(&self.id);
        let knows_none = self.told.is_none() && !self.services.iter().any(|service| service.managed);
        if self.told.as_ref() == Some(&services) || knows_none && services.is_empty() {
            self.told = Some(services);
            return Ok(());
        }
        self.frames.send(&ToConnector::Manage { services: services.clone() }).await?;
        let is_first = self.told.replace(services).is_none();
        // What is gone is taken from it at once, before it has heard.
        if is_first { Ok(()) } else { self.decide().await }
    }

    /// What the connector made of the services that are managed here.
    fn managed(&mut self, mut refused: Vec<RefusedService>) {
        refused.truncate(SERVICES_AT_MOST);
        for service in &mut refused {
            service.why = service.why.chars().filter(|c| !c.is_control()).take(WHY_AT_MOST).collect();
        }
        let mut table = self.shared.table();
        let Some(known) = table.connectors.get_mut(&self.id) else { return };
        let ours = known.live.as_mut().filter(|live| Arc::ptr_eq(&live.member, &self.member));
        let Some(live) = ours else { return };
        let before = std::mem::replace(&mut live.managed_refused, refused);
        let new = live.managed_refused.iter().filter(|service| !before.contains(service));
        for service in new.take(REFUSALS_SAID) {
            warn!(
                connector = %self.id, service = %service.name, why = service.why,
                "connector does not serve a managed service"
            );
        }
    }

    /// Says which services are refused that were not before: whoever announces without end does not fill the log.
    fn say_refused(&mut self, refused: &[RefusedService]) {
        let names = refused.iter().map(|service| service.name.clone()).collect();
        let before = std::mem::replace(&mut self.refused, names);
        let new: Vec<&RefusedService> = refused.iter().filter(|service| !before.contains(&service.name)).collect();
        for service in new.iter().take(REFUSALS_SAID) {
            warn!(connector = %self.id, service = %service.name, why = service.why, "service refused");
        }
        if let Some(unsaid @ 1..) = new.len().checked_sub(REFUSALS_SAID) {
            warn!(connector = %self.id, services = unsaid, "as many more services refused");
        }
        if let Some(first) = new.first() {
            let others = if new.len() > 1 { format!(", and {} more", new.len() - 1) } else { String::new() };
            self.shared.refusals.note(Attempt {
                action: "service.refused",
                actor: self.id.to_string(),
                subject: self.id.to_string(),
                detail: format!("{}: {}{others}", first.name, first.why),
            });
        }
    }

    fn health(&mut self, services: Vec<ServiceHealth>) {
        let mut changed = false;
        for service in services {
            if let Some(announced) = self.services.iter_mut().find(|announced| announced.name == service.name) {
                announced.health = service.health.clone();
            }
            if let Some(pair) = self.pairs.iter().find(|pair| pair.service == service.name)
                && pair.set_health(service.health)
            {
                changed = true;
                let up = pair.state() == PairState::Up;
                info!(connector = %self.id, service = %service.name, up, reason = pair.reason(), "origin's health changed");
            }
        }
        if changed {
            self.shared.directory.touch(&self.pairs);
        }
    }

    fn over(&mut self, end: &End) {
        let (connection, id) = (&self.connection, &self.id);
        match end {
            End::Closed(closed) => {
                info!(connector = %id, code = closed.code.map(|code| code.to_string()), cause = closed.cause, "connector is gone");
                if closed.code != Some(CloseCode::Revoked) {
                    self.expected_until = Some(Instant::now() + EXPECTED_FOR);
                }
            }
            End::Silent => {
                warn!(connector = %id, "connector does not answer");
                connection.close(CloseCode::Silent);
            }
            End::Broken(error) => {
                warn!(connector = %id, %error, "control stream broken");
                connection.close(CloseCode::Protocol);
                self.expected_until = Some(Instant::now() + EXPECTED_FOR);
            }
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.shared.live.fetch_sub(1, Ordering::Relaxed);
        self.shared.ended(&self.member, self.expected_until);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size<F: Future>(_: impl Fn(Arc<Shared>, Connection, ConnectorId) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn a_session_that_waits_takes_little() {
        assert!(size(hold) <= 928, "{} bytes: with what the runtime adds no more than 1,024 were", size(hold));
    }
}
