//! A relay that does as a test says: real WireGuard and QUIC over loopback, the relay's half of the conversation.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use culvert_connector::control::{Incoming, Outgoing};
use culvert_engine::{Config as EngineConfig, HandshakeLimits, Shard};
use culvert_model::address::{BOOTSTRAP_INNER, RELAY_INNER, connector_inner};
use culvert_model::close::CloseCode;
use culvert_model::control::{Announce, Enrol, Enrolled, Refusal, Subject, ToConnector, ToRelay, VERSION, Welcome};
use culvert_model::id::{ConnectorId, InstanceId};
use culvert_model::kem;
use culvert_model::key::{PrivateKey, Psk, PublicKey};
use culvert_model::token::{RelayRef, Token};
use culvert_ops::task::{Owner, Task, spawn};
use culvert_plane::{
    BootstrapConfig, Config, Connection, Event, Events, PeerConfig, Plane, PskEpoch, Role, StreamLimits,
};
use ipnet::IpNet;
use tokio::sync::mpsc;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(20);

/// A relay.
pub struct PlayedRelay {
    plane: Plane,
    address: SocketAddr,
    public_key: PublicKey,
    heard: mpsc::UnboundedReceiver<Heard>,
    stage: Arc<Stage>,
    _plays: Task<()>,
}

/// What a relay came to know.
pub enum Heard {
    /// An enrolment was asked for.
    Enrol(Enrol),
    /// A connector announced itself.
    Announced(Member),
    /// Any later message.
    Said(ToRelay),
}

/// A connector that announced itself.
pub struct Member {
    /// Its connection.
    pub connection: Connection,
    /// What it announced.
    pub announce: Announce,
    say: mpsc::UnboundedSender<ToConnector>,
}

/// How the next enrolments are answered.
#[derive(Clone, Copy)]
pub enum Answer {
    /// With an id.
    Admit,
    /// For good, as an older relay says it.
    Refuse(Refusal),
    /// For good: this is revoked.
    Revoked(Subject),
    /// Not at all: the connection is closed instead.
    Lose,
}

struct Stage {
    private_key: PrivateKey,
    answer: Mutex<Answer>,
    members: Mutex<Vec<Known>>,
    enrolments: Mutex<usize>,
    silent: AtomicBool,
}

#[derive(Clone)]
struct Known {
    public_key: PublicKey,
    id: ConnectorId,
    psk: Psk,
    epoch: u32,
}

/// A token that names these relays.
pub fn token_for(relays: &[&PlayedRelay]) -> Token {
    let refs = relays
        .iter()
        .map(|relay| RelayRef { endpoint: relay.address.to_string().parse().unwrap(), public_key: relay.public_key });
    Token::generate(refs.collect())
}

impl Member {
    /// Sends a message on the control stream.
    pub fn say(&self, message: ToConnector) {
        self.say.send(message).unwrap();
    }
}

impl PlayedRelay {
    /// Starts one on a free port.
    pub fn start() -> Self {
        let private_key = PrivateKey::generate();
        let stage = Arc::new(Stage {
            private_key,
            answer: Mutex::new(Answer::Admit),
            members: Mutex::default(),
            enrolments: Mutex::default(),
            silent: AtomicBool::new(false),
        });
        Self::play("127.0.0.1:0".parse().unwrap(), stage)
    }

    /// Forgets every session with this member, as a restart does, and knows it again from what is on disk.
    pub async fn forget(&self, connection: &Connection) {
        self.plane.remove_peer(connection.peer(), CloseCode::Shutdown).await;
        self.remember();
    }

    /// Knows its members again.
    pub fn remember(&self) {
        for known in self.stage.members.lock().unwrap().iter() {
            self.plane.add_peer(known.peer()).unwrap();
        }
    }

    fn play(address: SocketAddr, stage: Arc<Stage>) -> Self {
        let socket = culvert_plane::bind(address).unwrap();
        let address = socket.local_addr().unwrap();
        let config = Config {
            role: Role::Relay,
            sockets: vec![socket],
            engine: EngineConfig {
                statics: vec![stage.private_key.clone()],
                shard: Shard::default(),
                handshakes: HandshakeLimits::default(),
                seed: None,
            },
            instance: InstanceId::new(),
            inner: RELAY_INNER,
            reset_secret: [7; 32],
            streams: StreamLimits::default(),
        };
        let (plane, events) = Plane::start(config).unwrap();
        let (tell, heard) = mpsc::unbounded_channel();
        let plays = spawn("test.relay", play(plane.clone(), events, stage.clone(), tell));
        Self { plane, address, public_key: stage.private_key.public_key(), heard, stage, _plays: plays }
    }

    pub fn plane(&self) -> &Plane {
        &self.plane
    }

    /// Knows this token from now on.
    pub fn accept(&self, token: &Token) {
        let bootstrap = BootstrapConfig {
            public_key: token.bootstrap_key().public_key(),
            static_index: 0,
            psk: token.bootstrap_psk(),
            allowed_ips: vec![IpNet::from(IpAddr::V6(BOOTSTRAP_INNER))],
        };
        self.plane.add_bootstrap(bootstrap).unwrap();
    }

    /// How enrolments are answered from now on.
    pub fn answer(&self, answer: Answer) {
        *self.stage.answer.lock().unwrap() = answer;
    }

    /// Reads no control message any more, and says none.
    pub fn fall_silent(&self) {
        self.stage.silent.store(true, Ordering::Relaxed);
    }

    /// How many times it was asked to enrol.
    pub fn enrolments(&self) -> usize {
        *self.stage.enrolments.lock().unwrap()
    }

    /// The public keys of its members.
    pub fn keys(&self) -> Vec<PublicKey> {
        self.stage.members.lock().unwrap().iter().map(|known| known.public_key).collect()
    }

    /// Waits for the next question to enrol.
    pub async fn enrolled(&mut self) -> Enrol {
        self.until(|heard| if let Heard::Enrol(enrol) = heard { Some(enrol) } else { None }).await
    }

    /// Waits for the next connector that announces itself.
    pub async fn announced(&mut self) -> Member {
        self.until(|heard| if let Heard::Announced(member) = heard { Some(member) } else { None }).await
    }

    /// Waits for a message.
    pub async fn heard<T>(&mut self, wanted: impl Fn(ToRelay) -> Option<T>) -> T {
        self.until(|heard| if let Heard::Said(message) = heard { wanted(message) } else { None }).await
    }

    async fn until<T>(&mut self, wanted: impl Fn(Heard) -> Option<T>) -> T {
        timeout(PATIENCE, async {
            loop {
                if let Some(found) = wanted(self.heard.recv().await.expect("the relay plays on")) {
                    return found;
                }
            }
        })
        .await
        .expect("the connector does it in time")
    }
}

impl Known {
    fn peer(&self) -> PeerConfig {
        PeerConfig {
            public_key: self.public_key,
            static_index: 0,
            psks: vec![PskEpoch { epoch: self.epoch, psk: self.psk.clone() }],
            allowed_ips: vec![IpNet::from(IpAddr::V6(connector_inner(&self.id)))],
            path: None,
            persistent_keepalive: None,
        }
    }
}

async fn play(plane: Plane, mut events: Events, stage: Arc<Stage>, tell: mpsc::UnboundedSender<Heard>) {
    let mut conversations = Owner::new();
    while let Some(event) = events.recv().await {
        let Event::Connected(connection) = event else { continue };
        let (plane, stage, tell) = (plane.clone(), stage.clone(), tell.clone());
        conversations.spawn("test.conversation", async move {
            match connection.bootstrap() {
                Some(_) => drop(enrol(plane, &stage, connection, tell).await),
                None => drop(converse(&stage, connection, tell).await),
            }
        });
    }
}

async fn enrol(plane: Plane, stage: &Stage, connection: Connection, tell: mpsc::UnboundedSender<Heard>) -> Option<()> {
    let (read, write) = tokio::io::split(connection.accept().await.ok()?);
    let (mut incoming, mut outgoing) = (Incoming::new(read), Outgoing::new(write));
    let ToRelay::Enrol(request) = incoming.next().await.ok()? else { return None };
    *stage.enrolments.lock().unwrap() += 1;
    let answer = *stage.answer.lock().unwrap();
    let public_key = request.public_key;
    let kem_key = STANDARD.decode(&request.kem_key).unwrap();
    tell.send(Heard::Enrol(request)).ok()?;
    let message = match answer {
        Answer::Lose => {
            connection.close(CloseCode::Overloaded);
            return None;
        }
        Answer::Refuse(refusal) => refused(refusal, None),
        Answer::Revoked(of) => refused(Refusal::Revoked, Some(of)),
        Answer::Admit => {
            let (ciphertext, psk) = kem::encapsulate(&kem_key, &stage.private_key.public_key(), &public_key).unwrap();
            let known = Known { public_key, id: ConnectorId::new(), psk, epoch: 1 };
            stage.members.lock().unwrap().push(known.clone());
            plane.add_peer(known.peer()).unwrap();
            ToConnector::Enrolled(Enrolled {
                inner_address: connector_inner(&known.id),
                id: known.id,
                ciphertext: STANDARD.encode(ciphertext),
                psk_epoch: known.epoch,
                tunnel: "shop".parse().unwrap(),
            })
        }
    };
    outgoing.send(&message).await.ok()?;
    connection.closed().await;
    Some(())
}

fn refused(refusal: Refusal, of: Option<Subject>) -> ToConnector {
    ToConnector::Refused { refusal, at: Some("2026-11-21T00:00:00Z".to_owned()), of }
}

async fn converse(stage: &Stage, connection: Connection, tell: mpsc::UnboundedSender<Heard>) -> Option<()> {
    let (read, write) = tokio::io::split(connection.accept().await.ok()?);
    let (mut incoming, mut outgoing) = (Incoming::new(read), Outgoing::new(write));
    let ToRelay::Announce(announce) = incoming.next().await.ok()? else { return None };
    let welcome = |_: &Announce| {
        ToConnector::Welcome(Welcome {
            version: VERSION,
            program: "0.1.0".to_owned(),
            id: ConnectorId::new(),
            tunnel: "shop".parse().unwrap(),
            refused: Vec::new(),
        })
    };
    outgoing.send(&welcome(&announce)).await.ok()?;
    let (say, mut said) = mpsc::unbounded_channel();
    tell.send(Heard::Announced(Member { connection, announce, say })).ok()?;
    loop {
        tokio::select! {
            message = incoming.next::<ToRelay>() => {
                let message = message.ok()?;
                if stage.silent.load(Ordering::Relaxed) {
                    continue;
                }
                match &message {
                    ToRelay::Ping { id } => outgoing.send(&ToConnector::Pong { id: *id }).await.ok()?,
                    ToRelay::Announce(announce) => outgoing.send(&welcome(announce)).await.ok()?,
                    _ => {}
                }
                tell.send(Heard::Said(message)).ok()?;
            }
            Some(message) = said.recv() => outgoing.send(&message).await.ok()?,
        }
    }
}
