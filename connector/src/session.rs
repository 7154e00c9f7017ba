//! One live session with a relay: the control conversation beside the gate, until either ends.
//!
//! Must never keep a session that it does not hear from, or leave before the relay knows that it wants to.

use std::time::{Duration, Instant, SystemTime};

use culvert_model::close::CloseCode;
use culvert_model::control::{self, Announce, AnnouncedService, ManagedService, ToConnector, ToRelay, Welcome};
use culvert_model::proof::Algorithm;
use culvert_ops::drain::InFlight;
use culvert_ops::runtime::now;
use culvert_origin::health;
use culvert_plane::{Connection, Event, Stream};
use tokio::io::{ReadHalf, WriteHalf};
use tokio::sync::{Mutex, watch};
use tokio::time::{sleep_until, timeout};

use crate::control::{ControlError, Incoming, Outgoing};
use crate::identity::Identity;
use crate::introductions::Introduced;
use crate::link::{Ended, Link};
use crate::liveness::{Check, Liveness};
use crate::managed::Managed;
use crate::reach::{Way, ended_as};
use crate::relays::Told;
use crate::roam::Roam;
use crate::shared::Shared;
use crate::{VERSION, words};

mod keys;
mod lanes;
mod relay_key;

use keys::Keys;
use lanes::Lanes;

/// A control message must be taken by the relay within this time.
const SEND_PATIENCE: Duration = Duration::from_secs(5);
/// The relay's welcome must come within this time.
const WELCOME_PATIENCE: Duration = Duration::from_secs(10);
/// How often the own addresses are looked at.
const LOOK: Duration = Duration::from_millis(500);
/// How long the relay may take to confirm that it knows of the drain.
const DRAIN_PATIENCE: Duration = Duration::from_secs(2);

/// What a relay calls an introduction that it did not understand, or cannot make now.
const INTRODUCE: &str = "introduce";

/// A relay's lists of managed services are taken no faster than this: each new one starts the checks of origins anew.
const MANAGED_EVERY: Duration = Duration::from_millis(200);

/// How a session came to its end.
#[derive(Debug)]
pub enum Left {
    /// It ended, and is to be had again.
    Ended(Ended),
    /// It is to go: the plane's shutdown closes it and sees the word out.
    Drained,
}

/// Speaks on one session.
struct Session<'a> {
    way: &'a mut Way,
    link: &'a mut Link,
    shared: &'a Shared,
    connection: &'a Connection,
    outgoing: Outgoing<WriteHalf<Stream>>,
    liveness: Liveness,
    announced: Vec<AnnouncedService>,
    managing: Managing,
    told_proof_keys: bool,
    /// Those that the relay has said to know.
    algorithms: Vec<Algorithm>,
    pings: u64,
    drain: Draining,
    retired: Option<Instant>,
    welcomed: bool,
    started: Instant,
    identity: &'a Mutex<Identity>,
    keys: Keys,
    lanes: Lanes,
    /// The relay's newest key, until it is used.
    told_key: Option<relay_key::Told>,
}

/// What this relay manages.
#[derive(Default)]
struct Managing {
    /// Whether it ever said: an older relay knows nothing of it.
    is_asked: bool,
    /// A list that is not yet in force, and when it comes into force.
    next: Option<(Vec<ManagedService>, Instant)>,
    /// When the last one did.
    last: Option<Instant>,
}

/// How far the drain of this session is.
enum Draining {
    Not,
    /// Told; the relay confirms by answering this ping. Nothing ends before.
    Told {
        ping: u64,
        by: Instant,
        _hold: InFlight,
    },
    Known,
}

/// Serves one connection until it ends, or until nothing is in flight once `retired` says that it is to go.
pub async fn live(
    way: &mut Way,
    link: &mut Link,
    connection: &Connection,
    shared: &Shared,
    identity: &Mutex<Identity>,
    retired: &mut watch::Receiver<bool>,
) -> Left {
    let stream = match timeout(SEND_PATIENCE, connection.open()).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Left::Ended(Ended::Lost(error.to_string())),
        Err(_) => {
            connection.close(CloseCode::Silent);
            return Left::Ended(Ended::Lost("no control stream can be opened".to_owned()));
        }
    };
    let (read, write) = tokio::io::split(stream);
    let mut session = Session {
        way,
        link,
        shared,
        connection,
        outgoing: Outgoing::new(write),
        liveness: Liveness::new(now()),
        announced: Vec::new(),
        managing: Managing::default(),
        told_proof_keys: false,
        algorithms: Vec::new(),
        pings: 0,
        drain: Draining::Not,
        retired: None,
        welcomed: false,
        started: now(),
        identity,
        keys: Keys::new(),
        lanes: Lanes::default(),
        told_key: None,
    };
    let name = session.way.name().to_owned();
    let left = session.run(Incoming::new(read), retired).await;
    session.end_lanes().await;
    shared.introductions.released(&name);
    left
}

impl Session<'_> {
    async fn run(&mut self, mut incoming: Incoming<ReadHalf<Stream>>, retired: &mut watch::Receiver<bool>) -> Left {
        let mut news = self.shared.checks.news();
        let mut wishes = self.shared.introductions.news();
        wishes.mark_changed();
        let mut refused = self.shared.refused.subscribe();
        let mut rotation = self.shared.rotation.news();
        let mut proofs = self.shared.origins.proofs().news();
        proofs.mark_changed();
        let gate = self.shared.gate.serve(self.connection);
        tokio::pin!(gate);
        let mut roam = Roam::default();
        let mut look = now();
        if let Err(error) = self.announce().await {
            return self.broken(&error);
        }
        loop {
            let check = match self.check().await {
                Ok(until) => until,
                Err(left) => return left,
            };
            let drain = &self.shared.drain;
            let outcome = tokio::select! {
                closed = &mut gate => return Left::Ended(ended_as(&closed)),
                () = drain.stopped() => return Left::Drained,
                () = drain.begun(), if matches!(self.drain, Draining::Not) => self.leave().await,
                () = is_said(retired), if self.retired.is_none() => {
                    self.retired = Some(now() + self.shared.drain_timeout);
                    self.leave().await
                }
                message = incoming.next::<ToConnector>() => match message {
                    Ok(message) => self.heard(message).await,
                    Err(error) => Err(error),
                },
                Ok(()) = news.changed() => self.tell().await,
                Ok(()) = wishes.changed(), if self.welcomed => self.introduce().await,
                Ok(()) = refused.changed(), if self.managing.is_asked => self.tell_refused().await,
                Ok(()) = rotation.changed() => Ok(()),
                // At once: they are served before the first token reaches an origin.
                Ok(()) = proofs.changed() => self.tell_proof_keys().await,
                event = self.way.events.recv() => match event {
                    Some(event) => match self.event(&event) {
                        Some(ended) => return Left::Ended(ended),
                        None => Ok(()),
                    },
                    None => return Left::Ended(Ended::Lost("the sockets are gone".to_owned())),
                },
                () = sleep_until(check.min(look).into()) => {
                    if now() >= look {
                        look = now() + LOOK;
                        self.look(&mut roam);
                        self.follow_relay_key().await;
                    }
                    Ok(())
                }
            };
            if let Err(error) = outcome {
                // The close, if there was one, says more than the broken stream.
                return match timeout(Duration::from_millis(50), &mut gate).await {
                    Ok(closed) => Left::Ended(ended_as(&closed)),
                    Err(_) => self.broken(&error),
                };
            }
        }
    }

    fn broken(&self, error: &ControlError) -> Left {
        self.connection.close(CloseCode::Protocol);
        Left::Ended(Ended::Lost(error.to_string()))
    }

    /// What liveness wants done now; when to look again.
    async fn check(&mut self) -> Result<Instant, Left> {
        let started = self.started;
        if !self.welcomed && now().saturating_duration_since(started) >= WELCOME_PATIENCE {
            self.connection.close(CloseCode::Protocol);
            return Err(Left::Ended(Ended::Lost("the relay said no welcome".to_owned())));
        }
        if let Some((_, at)) = self.managing.next
            && now() >= at
        {
            self.manage().await.map_err(|error| self.broken(&error))?;
        }
        if let Draining::Told { by, .. } = self.drain
            && now() >= by
        {
            self.drain = Draining::Known;
        }
        if let (Some(by), Draining::Known) = (self.retired, &self.drain)
            && (self.shared.drain.in_flight() == 0 || now() >= by)
        {
            return Err(Left::Drained);
        }
        let keys = self.care().await.map_err(|error| self.broken(&error))?;
        let keys = keys.min(self.care_for_lanes().await.map_err(|error| self.broken(&error))?);
        loop {
            match self.liveness.poll(now()) {
                Check::Until(until) => {
                    let until = if self.welcomed { until.min(keys) } else { until.min(started + WELCOME_PATIENCE) };
                    let until = self.managing.next.as_ref().map_or(until, |(_, at)| until.min(*at));
                    return Ok(match self.drain {
                        Draining::Told { by, .. } => until.min(by),
                        Draining::Not | Draining::Known => until,
                    });
                }
                Check::Ping => self.ping().await.map_err(|error| self.broken(&error))?,
                Check::Knock => {
                    self.way.plane.connect(self.way.peer, self.way.remote());
                    self.ping().await.map_err(|error| self.broken(&error))?;
                }
                Check::Dead => {
                    self.connection.close(CloseCode::Silent);
                    return Err(Left::Ended(Ended::Lost("the relay was silent for 5 s".to_owned())));
                }
            }
        }
    }

    async fn heard(&mut self, message: ToConnector) -> Result<(), ControlError> {
        self.liveness.handle_heard(now());
        match message {
            ToConnector::Ping { id } => {
                self.liveness.handle_ping(now());
                self.send(&ToRelay::Pong { id }).await
            }
            ToConnector::Pong { id } => {
                if matches!(self.drain, Draining::Told { ping, .. } if ping == id) {
                    self.settle_lanes();
                    self.drain = Draining::Known;
                }
                Ok(())
            }
            ToConnector::Welcome(welcome) => {
                self.welcome(&welcome);
                Ok(())
            }
            ToConnector::Drain => {
                tracing::info!(relay = self.way.name(), "the relay is going down");
                Ok(())
            }
            ToConnector::Unsupported { what } => {
                if what != INTRODUCE && self.knows_no_lanes() {
                    return Ok(());
                }
                tracing::debug!(relay = self.way.name(), what, "the relay did not understand");
                Ok(())
            }
            ToConnector::Manage { services } => {
                let soonest = self.managing.last.map_or_else(now, |last| last + MANAGED_EVERY);
                self.managing.next = Some((services, soonest));
                Ok(())
            }
            ToConnector::Relays { own, relays } => {
                let told = Told { by: self.way.name().to_owned(), own, relays };
                // A full queue holds earlier words of the same kind: the relay says it again at the next change.
                if self.shared.told.try_send(told).is_err() {
                    tracing::debug!(relay = self.way.name(), "a list of relays was not taken");
                }
                Ok(())
            }
            ToConnector::Introduced { relay, public_key, relay_key, ciphertext, psk_epoch } => {
                let introduced = Introduced { public_key, relay_key, ciphertext, psk_epoch };
                self.shared.introductions.answered(&relay, introduced);
                Ok(())
            }
            ToConnector::Issuer { url, algorithms } => {
                let tunnel = self.identity.lock().await.joined.tunnel.clone();
                self.shared.origins.proofs().told(&url, tunnel.as_str());
                let knows = |algorithm: &Algorithm| algorithms.iter().any(|name| name == algorithm.name());
                let more: Vec<_> = Algorithm::ALL.into_iter().filter(knows).collect();
                let is_news = more != self.algorithms;
                self.algorithms = more;
                if is_news { self.tell_proof_keys().await } else { Ok(()) }
            }
            ToConnector::RelayKey { public_key, previous_until } => {
                self.relay_key(public_key, previous_until.as_deref()).await;
                Ok(())
            }
            ToConnector::Rekeyed(answer) => {
                self.rekeyed(&answer);
                Ok(())
            }
            ToConnector::RekeyRefused { public_key, why } => {
                self.rekey_refused(&public_key, why);
                Ok(())
            }
            ToConnector::Renewed { ciphertext, psk_epoch, relay_key, public_key } => {
                self.renewed(&ciphertext, psk_epoch, relay_key, public_key).await;
                Ok(())
            }
            ToConnector::Lane(answer) => {
                self.lane(&answer);
                Ok(())
            }
            ToConnector::LaneRefused { number, why } => {
                self.lane_refused(number, &why);
                Ok(())
            }
            ToConnector::Enrolled(_) | ToConnector::Refused { .. } | ToConnector::Unknown => {
                self.send(&ToRelay::Unsupported { what: "not understood here".to_owned() }).await
            }
        }
    }

    fn welcome(&mut self, welcome: &Welcome) {
        let remote = self.way.remote();
        for refused in &welcome.refused {
            tracing::warn!(service = %refused.name, why = refused.why, "the relay refuses a service");
        }
        if !self.welcomed {
            tracing::info!(
                relay = self.way.shown(),
                id = %welcome.id,
                tunnel = %welcome.tunnel.as_str(),
                services = self.announced.len() - welcome.refused.len().min(self.announced.len()),
                "connected to the relay"
            );
        }
        if welcome.version != control::VERSION {
            let versions = format!("the relay has {}, this connector {}", welcome.version, control::VERSION);
            tracing::warn!(versions, program = welcome.program, "the relay speaks another version");
        }
        self.welcomed = true;
        self.link.handle_up(remote, now());
        let board = &self.shared.board;
        board.set_up(self.way.name(), remote, &welcome.program, &welcome.refused, SystemTime::now());
        self.figures();
        self.shared.up.send_modify(|version| *version += 1);
    }

    fn event(&mut self, event: &Event) -> Option<Ended> {
        match event {
            Event::Resumed { asleep } => {
                let seconds = asleep.as_secs();
                tracing::info!(seconds, "this host slept");
                self.connection.close(CloseCode::Shutdown);
                Some(Ended::Lost("this host slept".to_owned()))
            }
            Event::SessionUp { .. } => {
                self.keys.handshaken();
                self.figures();
                None
            }
            _ => None,
        }
    }

    /// Tells the relay what changed: health alone, or the services themselves.
    async fn tell(&mut self) -> Result<(), ControlError> {
        let now = self.services();
        let same = |a: &AnnouncedService, b: &AnnouncedService| {
            (&a.name, &a.balance, a.timeouts, a.tcp, a.managed) == (&b.name, &b.balance, b.timeouts, b.tcp, b.managed)
        };
        let all_same = now.len() == self.announced.len() && now.iter().zip(&self.announced).all(|(a, b)| same(a, b));
        if all_same {
            self.announced = now;
            let services = health::told(&self.shared.origins);
            self.send(&ToRelay::Health { services }).await
        } else {
            self.announce().await
        }
    }

    /// Puts the relay's list into force. It is answered each time, also where it changed nothing.
    async fn manage(&mut self) -> Result<(), ControlError> {
        let Some((services, _)) = self.managing.next.take() else { return Ok(()) };
        (self.managing.is_asked, self.managing.last) = (true, Some(now()));
        tracing::info!(relay = self.way.name(), services = services.len(), "services managed at the relay");
        self.shared.manage(services);
        self.tell_refused().await
    }

    async fn tell_refused(&mut self) -> Result<(), ControlError> {
        let refused = Managed::told(&self.shared.refused.borrow());
        self.send(&ToRelay::Managed { refused }).await
    }

    /// A connector that signs nothing says nothing: an older relay is not asked what it does not know.
    async fn tell_proof_keys(&mut self) -> Result<(), ControlError> {
        let origins = &self.shared.origins;
        let keys = origins.proofs().published_to(&self.algorithms);
        let table = origins.table();
        let proven = table.iter().filter(|upstream| upstream.service.auth.is_some());
        let callers = proven.map(|upstream| upstream.service.name.clone()).collect();
        if keys.is_empty() && !self.told_proof_keys {
            return Ok(());
        }
        self.told_proof_keys = true;
        self.send(&ToRelay::ProofKeys { keys, callers }).await
    }

    async fn announce(&mut self) -> Result<(), ControlError> {
        self.announced = self.services();
        let announce = Announce {
            version: control::VERSION,
            program: VERSION.to_owned(),
            name: self.shared.name.clone(),
            services: self.announced.clone(),
        };
        self.send(&ToRelay::Announce(announce)).await
    }

    fn services(&self) -> Vec<AnnouncedService> {
        let table = self.shared.origins.table();
        let announced = table.iter().map(|upstream| AnnouncedService {
            name: upstream.service.name.clone(),
            health: upstream.health.told(),
            balance: upstream.service.balance.as_ref().map(ToString::to_string),
            timeouts: upstream.service.timeouts.announced(),
            tcp: upstream.service.origin.is_tcp(),
            managed: upstream.is_managed(),
        });
        announced.collect()
    }

    /// Asks this relay to make the connector known to others.
    async fn introduce(&mut self) -> Result<(), ControlError> {
        for (relay, kem_key) in self.shared.introductions.take(self.way.name()) {
            self.send(&ToRelay::Introduce { relay, kem_key }).await?;
        }
        Ok(())
    }

    /// Tells the relay first; what is in flight goes on.
    async fn leave(&mut self) -> Result<(), ControlError> {
        let hold = self.shared.drain.enter(now());
        self.send(&ToRelay::Drain).await?;
        self.pings += 1;
        self.drain = Draining::Told { ping: self.pings, by: now() + DRAIN_PATIENCE, _hold: hold };
        self.send(&ToRelay::Ping { id: self.pings }).await
    }

    async fn ping(&mut self) -> Result<(), ControlError> {
        self.pings += 1;
        self.send(&ToRelay::Ping { id: self.pings }).await
    }

    async fn send(&mut self, message: &ToRelay) -> Result<(), ControlError> {
        match timeout(SEND_PATIENCE, self.outgoing.send(message)).await {
            Ok(sent) => sent,
            Err(_) => Err(ControlError::Io(std::io::ErrorKind::TimedOut.into())),
        }
    }

    /// A changed own address: a packet from the new one is what moves the relay's view of this end.
    fn look(&mut self, roam: &mut Roam) {
        if let Some(remote) = self.way.remote()
            && roam.look(remote)
        {
            tracing::info!(relay = self.way.name(), "this host's address changed");
            self.way.plane.connect(self.way.peer, Some(remote));
            self.lanes_moved(remote);
            self.liveness.handle_doubt(now());
        }
        self.figures();
    }

    fn figures(&self) {
        let stats = self.way.plane.peer_stats(self.way.peer);
        let handshake = stats.and_then(|stats| stats.last_handshake);
        let wall = handshake.map(|then| SystemTime::now() - now().saturating_duration_since(then));
        self.shared.board.set_figures(self.way.name(), wall, Some(self.connection.rtt()));
    }
}

/// Waits until a switch is on. Cancel safe.
pub async fn is_said(switch: &mut watch::Receiver<bool>) {
    if switch.wait_for(|on| *on).await.is_err() {
        std::future::pending().await
    }
}

/// Logs how a session that was live ended.
pub fn log_end(way: &Way, ended: &Ended) {
    match ended {
        Ended::ByRelay(code) => {
            tracing::info!(relay = way.name(), why = %words::closed(*code), "session ended");
        }
        Ended::Version(versions) => tracing::info!(relay = way.name(), why = versions, "session ended"),
        Ended::Lost(cause) => tracing::info!(relay = way.name(), why = cause, "session ended"),
    }
}
