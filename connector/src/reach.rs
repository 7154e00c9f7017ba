//! Gets a connection to one relay: carries out what [`Link`] decides, for as long as it takes.
//!
//! Must never decide anything itself: when, where to and what to say is the link's.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::{Duration, Instant, SystemTime};

use culvert_engine::{Config as EngineConfig, HandshakeLimits, Shard};
use culvert_model::address::RELAY_INNER;
use culvert_model::close::CloseCode;
use culvert_model::id::InstanceId;
use culvert_model::key::{PrivateKey, PublicKey};
use culvert_model::token::Endpoint;
use culvert_ops::runtime::now;
use culvert_plane::{
    AddPeerError, Closed, Config, Connection, DialError, Event, Events, PeerConfig, PeerId, PeerKey, Plane, PskEpoch,
    PskError, Role, StreamLimits,
};
use ipnet::IpNet;
use tokio::time::sleep_until;

use crate::board::Board;
use crate::diagnose::diagnose;
use crate::gate::STREAMS_AT_FIRST;
use crate::identity::{Former, Relay};
use crate::link::{Ended, Finding, Link, Problem, Step};
use crate::resolve::resolve;
use crate::words;

/// A handshake this young makes another one needless.
const FRESH: Duration = Duration::from_secs(3);
/// Keeps the way through NATs open.
const KEEPALIVE_SECONDS: u16 = 25;

/// Sockets, engine and QUIC toward one relay, under one key.
pub struct Way {
    /// The plane.
    pub plane: Plane,
    /// What it tells.
    pub events: Events,
    /// The relay.
    pub peer: PeerId,
    /// The key that this end speaks with.
    pub public_key: PublicKey,
    /// The relay's newest static key, as this end knows it.
    pub relay_key: PublicKey,
    /// The one before it, while it is answered too.
    former: Option<Former>,
    own: usize,
    /// The next key and its number, while it is being taken into use.
    next: Option<(PublicKey, usize)>,
    /// The key before this one: its number, and when it goes.
    retiring: Option<(Instant, usize)>,
    /// The pre-shared key is the very first one, tried because no later one was answered.
    at_first: bool,
    families: (bool, bool),
    endpoints: Vec<Endpoint>,
    shown: String,
    name: String,
}

/// Who speaks to the relay.
pub struct Speaker {
    /// Its key.
    pub private_key: PrivateKey,
    /// Its pre-shared keys with the relay, newest last.
    pub psks: Vec<PskEpoch>,
    /// Its inner address.
    pub inner: std::net::Ipv6Addr,
    /// This process.
    pub instance: InstanceId,
    /// See [`Config::reset_secret`].
    pub reset_secret: [u8; 32],
}

/// What came of trying.
#[derive(Debug)]
pub enum Reached {
    /// A connection.
    Connection(Connection),
    /// Sockets and engine are to be built anew.
    Rebuild,
    /// The relay stays silent, and why is not known: said once for each look into it.
    Silence,
    /// The key is revoked.
    Revoked,
}

enum Fact {
    Resolved(Result<Vec<SocketAddr>, Problem>),
    Diagnosed(SocketAddr, Finding),
}

type Work = Pin<Box<dyn Future<Output = Fact> + Send>>;

impl Way {
    /// Opens sockets of both families, or of the one that this host has.
    ///
    /// # Errors
    /// In words, when no socket can be had.
    pub fn open(speaker: &Speaker, relay: &Relay) -> Result<Self, String> {
        let bound = ["0.0.0.0:0", "[::]:0"].map(|any| {
            let any: SocketAddr = any.parse().map_err(std::io::Error::other)?;
            culvert_plane::bind(any)
        });
        let families = (bound[0].is_ok(), bound[1].is_ok());
        let mut sockets = Vec::new();
        let mut failed = String::new();
        for socket in bound {
            match socket {
                Ok(socket) => sockets.push(socket),
                Err(error) => failed = error.to_string(),
            }
        }
        if sockets.is_empty() {
            return Err(format!("no UDP socket can be opened: {failed}"));
        }
        let config = Config {
            role: Role::Connector,
            sockets,
            engine: EngineConfig {
                statics: vec![speaker.private_key.clone()],
                shard: Shard::default(),
                handshakes: HandshakeLimits::default(),
                seed: None,
            },
            instance: speaker.instance,
            inner: speaker.inner,
            reset_secret: speaker.reset_secret,
            streams: StreamLimits { incoming: STREAMS_AT_FIRST, ..StreamLimits::default() },
        };
        let (plane, events) = Plane::start(config).map_err(|error| error.to_string())?;
        // A relay that calls back may not know yet that this end has its newest key, or may have been put back to the one
        // before.
        let former = relay.former.filter(|former| SystemTime::now() < former.until());
        let peer = plane.add_peer(PeerConfig {
            public_key: former.map_or(relay.public_key, |former| former.public_key),
            static_index: 0,
            psks: speaker.psks.clone(),
            allowed_ips: vec![IpNet::from(std::net::IpAddr::V6(RELAY_INNER))],
            path: None,
            persistent_keepalive: std::num::NonZeroU16::new(KEEPALIVE_SECONDS),
        });
        let peer = peer.map_err(|error| error.to_string())?;
        if former.is_some() {
            let key = PeerKey { public_key: relay.public_key, static_index: 0, psks: speaker.psks.clone() };
            plane.add_key(peer, key, true).map_err(|error| error.to_string())?;
        }
        Ok(Self {
            plane,
            events,
            peer,
            public_key: speaker.private_key.public_key(),
            relay_key: relay.public_key,
            former,
            own: 0,
            next: None,
            retiring: None,
            at_first: false,
            families,
            endpoints: relay.endpoints(),
            shown: relay.endpoints.join(" "),
            name: relay.name.clone(),
        })
    }

    /// The relay's endpoints as the token names them, for logs.
    pub fn shown(&self) -> &str {
        &self.shown
    }

    /// The relay's endpoints, each as it is written.
    pub fn addresses(&self) -> Vec<String> {
        self.shown.split(' ').map(str::to_owned).collect()
    }

    /// The relay's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where the relay is, as the engine knows it.
    pub fn remote(&self) -> Option<SocketAddr> {
        Some(self.plane.peer_stats(self.peer)?.path?.remote)
    }

    /// Speaks with the next key too, and with it first. False when it does already.
    ///
    /// # Errors
    /// As the engine says.
    pub fn take_next(&mut self, key: &PrivateKey, psks: Vec<PskEpoch>) -> Result<bool, AddPeerError> {
        let public_key = key.public_key();
        if self.next.is_some_and(|(known, _)| known == public_key) || self.public_key == public_key {
            return Ok(false);
        }
        let static_index = self.plane.add_static(key);
        self.plane.add_key(self.peer, PeerKey { public_key: self.relay_key, static_index, psks }, true)?;
        self.next = Some((public_key, static_index));
        Ok(true)
    }

    /// Speaks to another key of the relay too, and to it first.
    ///
    /// # Errors
    /// As the engine says.
    pub fn take_relay_key(
        &mut self,
        newest: PublicKey,
        until: SystemTime,
        psks: Vec<PskEpoch>,
    ) -> Result<(), AddPeerError> {
        // One that still carries the session goes when the next is in use, or with this way.
        if self.former.is_some_and(|former| !self.is_under(&former.public_key)) {
            self.forget_former();
        }
        self.plane.add_key(self.peer, PeerKey { public_key: newest, static_index: self.own, psks }, true)?;
        let public_key = std::mem::replace(&mut self.relay_key, newest);
        let until_seconds = until.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        self.former = Some(Former { public_key, until_seconds });
        Ok(())
    }

    /// The relay's key before its newest, while there are two.
    pub fn former(&self) -> Option<Former> {
        self.former
    }

    /// Whether the live session is under this key of the relay.
    pub fn is_under(&self, key: &PublicKey) -> bool {
        self.plane.peer_stats(self.peer).is_some_and(|stats| stats.live && stats.public_key == *key)
    }

    /// Speaks to the relay's newest key alone.
    pub fn forget_former(&mut self) {
        let Some(former) = self.former.take() else { return };
        while self.plane.remove_key(self.peer, &former.public_key, None).is_ok() {}
    }

    /// Whether a next key is in use beside the one before it.
    pub fn has_next(&self) -> bool {
        self.next.is_some()
    }

    /// Whether the newest handshake was under the key that this end speaks with.
    pub fn is_under_own(&self) -> bool {
        self.plane.peer_stats(self.peer).is_none_or(|stats| !stats.live || stats.static_index == self.own)
    }

    /// Shakes hands under the key that this end speaks with, whichever the relay used last.
    pub fn steer(&self) {
        if let Err(error) = self.plane.prefer_key(self.peer, &self.relay_key, Some(self.own)) {
            tracing::debug!(relay = self.name, %error, "no such key");
        }
        self.plane.connect(self.peer, self.remote());
    }

    /// Gives the key that this end speaks with other pre-shared keys.
    ///
    /// # Errors
    /// As the engine says.
    pub fn set_psks(&self, psks: Vec<PskEpoch>) -> Result<(), PskError> {
        match self.plane.set_key_psks(self.peer, &self.relay_key, Some(self.own), psks.clone()) {
            Err(PskError::UnknownKey) => self.plane.set_psks(self.peer, psks),
            set => set,
        }
    }

    /// Whether the newest handshake was under the next key.
    pub fn is_under_next(&self) -> bool {
        let stats = self.plane.peer_stats(self.peer).filter(|stats| stats.live);
        stats.zip(self.next).is_some_and(|(stats, (_, next))| stats.static_index == next)
    }

    /// The rotation is over: if `key` is the next one, the one before goes at `retire_at`; else the next one goes now.
    pub fn settle_next(&mut self, key: &PublicKey, retire_at: Instant) -> bool {
        let Some((next, number)) = self.next.take() else { return false };
        if next != *key {
            let _ = self.plane.remove_static(number, self.own);
            return false;
        }
        self.retire();
        self.retiring = Some((retire_at, self.own));
        (self.public_key, self.own) = (next, number);
        true
    }

    /// When the key before this one goes.
    pub fn retire_at(&self) -> Option<Instant> {
        self.retiring.map(|(at, _)| at)
    }

    /// Forgets the key before this one.
    pub fn retire(&mut self) {
        if let Some((_, old)) = self.retiring.take() {
            let _ = self.plane.remove_static(old, self.own);
        }
    }

    /// Whether the very first pre-shared key is being tried.
    pub fn is_at_first(&self) -> bool {
        self.at_first
    }

    /// Says what [`Self::is_at_first`] is from now on.
    pub fn set_at_first(&mut self, at_first: bool) {
        self.at_first = at_first;
    }

    /// Tries for a connection until there is one, or something else is to be done first. Cancel safe.
    pub async fn reach(&mut self, link: &mut Link, board: &Board) -> Reached {
        link.handle_abandoned(now());
        let mut work: Option<Work> = None;
        let mut dial = self.dial();
        loop {
            let mut wake = now() + Duration::from_secs(60);
            if work.is_none() {
                match link.poll(now()) {
                    Step::Wait(until) => wake = until,
                    Step::Rebuild => return Reached::Rebuild,
                    Step::Revoked => return Reached::Revoked,
                    Step::Resolve | Step::Knock(_) | Step::Diagnose(_) if self.handshaken(link) => continue,
                    Step::Resolve => work = Some(self.resolving()),
                    Step::Knock(address) => {
                        self.plane.connect(self.peer, Some(address));
                        continue;
                    }
                    Step::Diagnose(address) => {
                        work = Some(Box::pin(async move { Fact::Diagnosed(address, diagnose(address).await) }));
                    }
                }
            }
            self.say(link, board);
            tokio::select! {
                dialled = &mut dial, if link.wants_connection() => match dialled {
                    Ok(connection) => return Reached::Connection(connection),
                    Err(DialError::UnknownPeer | DialError::Stopped) => return Reached::Rebuild,
                    Err(error) => {
                        link.handle_ended(ended_by(error), now());
                        work = None;
                        dial = self.dial();
                    }
                },
                fact = until(&mut work) => {
                    work = None;
                    match fact {
                        Fact::Resolved(resolved) => link.handle_resolved(resolved, now()),
                        Fact::Diagnosed(address, finding) => {
                            link.handle_finding(address, finding, now());
                            self.say(link, board);
                            if matches!(finding, Finding::HostAnswers | Finding::Silence) {
                                return Reached::Silence;
                            }
                        }
                    }
                }
                event = self.events.recv() => match event {
                    Some(Event::SessionUp { path, .. }) => link.handle_session(path.remote, now()),
                    Some(Event::Resumed { .. }) => link.handle_woken(now()),
                    Some(_) => {}
                    None => return Reached::Rebuild,
                },
                () = sleep_until(wake.into()), if work.is_none() => {}
            }
        }
    }

    /// Logs a problem when the link says so, and shows it in `status` at any time.
    pub fn say(&self, link: &mut Link, board: &Board) {
        let Some(problem) = link.problem() else { return };
        let why = words::problem(problem, &self.shown);
        board.set_problem(&self.name, &why);
        let displaced = *problem == Problem::Replaced;
        if link.poll_say(now()).is_some() {
            if displaced {
                tracing::warn!(relay = self.name, why, "another process uses this key");
            } else {
                tracing::warn!(relay = self.name, why, "no session with the relay");
            }
        }
    }

    fn dial(&self) -> Pin<Box<dyn Future<Output = Result<Connection, DialError>> + Send>> {
        let (plane, peer) = (self.plane.clone(), self.peer);
        Box::pin(async move { plane.dial(peer).await })
    }

    fn resolving(&self) -> Work {
        let (endpoints, (four, six)) = (self.endpoints.clone(), self.families);
        Box::pin(async move { Fact::Resolved(resolve(&endpoints, four, six).await) })
    }

    /// Whether the relay itself has just shaken hands (its call-back after a restart): then only QUIC is to be dialled.
    fn handshaken(&self, link: &mut Link) -> bool {
        let Some(stats) = self.plane.peer_stats(self.peer) else { return false };
        let fresh = stats.last_handshake.is_some_and(|then| now().saturating_duration_since(then) < FRESH);
        match stats.path {
            Some(path) if stats.live && fresh => {
                link.handle_session(path.remote, now());
                link.wants_connection()
            }
            _ => false,
        }
    }
}

/// How a connection that closed has ended, in the link's terms.
pub fn ended_as(closed: &Closed) -> Ended {
    match closed.code {
        Some(code) if closed.by_peer => Ended::ByRelay(code),
        _ => Ended::Lost(closed.cause.clone()),
    }
}

fn ended_by(error: DialError) -> Ended {
    match error {
        DialError::Version { ours, theirs } => Ended::Version(format!("the relay has {theirs}, this connector {ours}")),
        DialError::Displaced => Ended::ByRelay(CloseCode::Replaced),
        DialError::Failed(closed) => ended_as(&closed),
        DialError::UnknownPeer | DialError::Stopped => Ended::Lost(error.to_string()),
    }
}

async fn until(work: &mut Option<Work>) -> Fact {
    match work {
        Some(work) => work.await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use culvert_model::key::Psk;

    use super::*;

    #[tokio::test]
    async fn a_way_that_was_closed_gives_its_sockets_back() {
        let speaker = Speaker {
            private_key: PrivateKey::generate(),
            psks: vec![PskEpoch { epoch: 1, psk: Psk::generate() }],
            inner: "fd43:554c:5645::9".parse().unwrap(),
            instance: InstanceId::new(),
            reset_secret: [1; 32],
        };
        let endpoints = vec!["127.0.0.1:9".to_owned()];
        let relay = Relay::new("relay".to_owned(), PrivateKey::generate().public_key(), endpoints);
        let way = Way::open(&speaker, &relay).unwrap();
        let addresses = way.plane.local_addrs();
        assert!(addresses.iter().all(|address| culvert_plane::bind(*address).is_err()), "held while it is open");
        way.plane.shutdown(CloseCode::Shutdown).await;
        drop(way);
        let deadline = now() + Duration::from_secs(10);
        while !addresses.iter().all(|address| culvert_plane::bind(*address).is_ok()) {
            assert!(now() < deadline, "the sockets stay open");
            tokio::task::yield_now().await;
        }
    }
}
