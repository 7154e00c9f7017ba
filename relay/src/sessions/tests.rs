//! Sessions over real sockets on loopback: this relay's side whole, connectors made by hand.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize};

use culvert_hop::body::Body;
use culvert_hop::exchange::Answer;
use culvert_hop::limits::Bounds;
use culvert_hop::message::{Request, Response};
use culvert_hop::server::{ServerSettings, serve};
use culvert_model::address::{BOOTSTRAP_INNER, RELAY_INNER};
use culvert_model::control::{
    Announce, AnnouncedService, Enrol, Enrolled, FAILURE_FIELD, Health, SERVICE_FIELD, ServiceHealth, ServiceTimeouts,
    ToRelay, VERSION, Welcome,
};
use culvert_model::id::InstanceId;
use culvert_model::kem::KemKey;
use culvert_model::key::{PrivateKey, Psk, PublicKey};
use culvert_model::name::ServiceName;
use culvert_model::reason::Reason;
use culvert_model::token::Token;
use culvert_ops::state::StateDir;
use culvert_plane::{Closed, Role, Stream, StreamLimits};
use tokio::sync::mpsc;

use super::frames::Frames;
use super::*;
use crate::command::{self, Command, Facts, Offline, TokenTerms};
use crate::config::Limits;
use crate::lane::Lanes;
use crate::metrics::RelayMetrics;
use crate::refusals::Refusals;
use crate::registry::Url;
use crate::send::Sender;

mod keys;
mod lanes;
mod peers;
mod rekey;

const SOON: Duration = Duration::from_secs(10);

#[tokio::test]
async fn a_request_reaches_the_connector_that_joined_and_announced() {
    let rig = Rig::new(&["orders"]).await;
    let connector = rig.join("a").await;
    let run = connector.come(&rig, &["orders", "billing"]).await;
    let welcome = &run.welcome;
    assert_eq!((&welcome.id, welcome.tunnel.as_str()), (&connector.enrolled.id, "dc1"));
    let refused: Vec<&str> = welcome.refused.iter().map(|service| service.name.as_str()).collect();
    assert_eq!(refused, ["billing"], "the tunnel was not granted that");
    assert_eq!(rig.ask("orders").await, Ok("a".to_owned()));
    assert!(rig.directory.find("billing").is_none());
    let report = rig.sessions.connectors();
    let live = &report[&connector.enrolled.id];
    assert!(live.endpoint.is_some() && live.last_handshake.is_some() && live.services[0].up);
    assert!(live.notes[0].starts_with("billing refused: "), "{:?}", live.notes);
}

#[tokio::test]
async fn what_a_connector_tells_of_its_failure_is_the_reason_and_what_nobody_can_read_is_internal() {
    let rig = Rig::new(&["fails-*"]).await;
    let services = ["fails-origin-denied", "fails-origin-auth", "fails-mysteriously"];
    let _run = rig.join("a").await.come(&rig, &services).await;
    for (service, reason) in services.into_iter().zip([Reason::OriginDenied, Reason::OriginAuth, Reason::Internal]) {
        assert_eq!(rig.ask(service).await, Err(reason));
    }
}

#[tokio::test]
async fn a_connector_with_too_many_services_keeps_the_first_ones() {
    let rig = Rig::new(&["*"]).await;
    let names: Vec<String> = (0..260).map(|number| format!("s{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let run = rig.join("a").await.come(&rig, &names).await;
    assert_eq!(run.welcome.refused.len(), 4);
    assert!(run.welcome.refused[0].why.contains("256 services at most"), "{:?}", run.welcome.refused[0]);
    assert_eq!((rig.count("s255"), rig.count("s256")), ((1, 1), (0, 0)));
}

#[tokio::test]
async fn health_and_drain_are_seen_by_everybody_at_once() {
    let rig = Rig::new(&["orders"]).await;
    let (a, b) = (rig.join("a").await, rig.join("b").await);
    let (a, b) = (a.come(&rig, &["orders"]).await, b.come(&rig, &["orders"]).await);
    a.say(health("orders", false));
    rig.until("one of two is up", || rig.count("orders") == (1, 2)).await;
    for _ in 0..4 {
        assert_eq!(rig.ask("orders").await, Ok("b".to_owned()));
    }
    b.say(health("orders", false));
    rig.until("none is up", || rig.count("orders") == (0, 2)).await;
    assert!(rig.ask("orders").await.is_ok(), "when all checks fail, one is tried all the same");
    a.say(health("orders", true));
    a.say(ToRelay::Drain);
    b.say(ToRelay::Drain);
    let service = rig.directory.find("orders").unwrap();
    rig.until("both drain", || service.choose(None, None, Instant::now()).is_err()).await;
    assert_eq!(service.choose(None, None, Instant::now()).unwrap_err(), Reason::Draining);
    assert_eq!(rig.count("orders"), (0, 2));
}

#[tokio::test]
async fn a_connector_that_does_not_answer_is_dead_within_5_seconds_and_others_take_over() {
    let rig = Rig::new(&["orders"]).await;
    let (a, b) = (rig.join("a").await, rig.join("b").await);
    let (a, b) = (a.come(&rig, &["orders"]).await, b.come(&rig, &["orders"]).await);
    let start = Instant::now();
    a.freeze();
    rig.until("one is given up", || rig.count("orders") == (1, 1)).await;
    assert!(start.elapsed() <= Duration::from_millis(5_200), "{:?}", start.elapsed());
    assert_eq!(a.closed().await.code, Some(CloseCode::Silent));
    for _ in 0..3 {
        assert_eq!(rig.ask("orders").await, Ok("b".to_owned()));
    }
    assert!(!b.connection.is_closed());
}

#[tokio::test]
async fn a_silent_tunnels_request_goes_to_another_connector_too() {
    let rig = Rig::new(&["orders"]).await;
    let (a, b) = (rig.join("a").await, rig.join("b").await);
    let (a, _b) = (a.come(&rig, &["orders"]).await, b.come(&rig, &["orders"]).await);
    let service = rig.directory.find("orders").unwrap();
    let home = |key: &u64| {
        let pair = service.choose(Some(*key), None, Instant::now()).unwrap();
        rig.name_of(pair.member.connector().unwrap()) == "a"
    };
    let key = (0..100).find(home).unwrap();
    a.freeze();
    let quiet = service.choose(Some(key), None, Instant::now()).unwrap();
    rig.until("it was silent for a while", || quiet.member.heard().elapsed() > Duration::from_millis(600)).await;
    let start = Instant::now();
    assert_eq!(rig.send("orders", http::Method::GET, Some(key)).await, Ok("b".to_owned()));
    assert!(start.elapsed() >= Duration::from_millis(200) && start.elapsed() < Duration::from_secs(2));
    assert_eq!(a.requests.load(std::sync::atomic::Ordering::Relaxed), 1, "it had got the request as well");
}

#[tokio::test]
async fn a_request_waits_for_a_connector_whose_process_is_a_new_one() {
    let rig = Rig::new(&["orders"]).await;
    let a = rig.join("a").await;
    let first = a.come(&rig, &["orders"]).await;
    first.stop().await;
    rig.until("it is gone", || rig.count("orders") == (0, 0)).await;
    let (answer, _second) = tokio::join!(rig.ask("orders"), a.come(&rig, &["orders"]));
    assert_eq!(answer, Ok("a".to_owned()));
    let _third = a.come(&rig, &["orders"]).await;
    assert_eq!(rig.ask("orders").await, Ok("a".to_owned()), "the newest of one key wins");
    assert_eq!(rig.count("orders"), (1, 1));
}

#[tokio::test]
async fn nobody_is_waited_for_who_was_never_there() {
    let rig = Rig::new(&["orders"]).await;
    let start = Instant::now();
    assert_eq!(rig.ask("orders").await, Err(Reason::NoConnector));
    assert!(start.elapsed() < Duration::from_secs(1));
}

#[tokio::test]
async fn a_revoked_connector_is_told_so_and_its_requests_end() {
    let rig = Rig::new(&["orders"]).await;
    let a = rig.join("a").await;
    let live = a.come(&rig, &["orders"]).await;
    live.freeze();
    let revoke = async {
        rig.until("the request is there", || live.requests.load(std::sync::atomic::Ordering::Relaxed) == 1).await;
        rig.command(Command::ConnectorRevoke { connector: a.enrolled.id.to_string() }).await;
    };
    let (answer, ()) = tokio::join!(rig.ask("orders"), revoke);
    assert_eq!(answer, Err(Reason::ConnectorLost));
    assert_eq!(live.closed().await.code, Some(CloseCode::Revoked));
    assert_eq!(rig.ask("orders").await, Err(Reason::NoConnector));
}

#[tokio::test]
async fn an_operators_drain_and_a_changed_grant_reach_live_connectors() {
    let rig = Rig::new(&["orders"]).await;
    let a = rig.join("a").await;
    let mut live = a.come(&rig, &["orders", "billing"]).await;
    let connector = a.enrolled.id.to_string();
    rig.command(Command::ConnectorDrain { connector: connector.clone() }).await;
    assert_eq!(rig.count("orders"), (0, 1));
    rig.command(Command::ConnectorUndrain { connector }).await;
    assert_eq!(rig.count("orders"), (1, 1));
    let (add, remove) = (vec!["billing".parse().unwrap()], vec!["orders".parse().unwrap()]);
    rig.command(Command::TunnelSet { tunnel: "dc1".to_owned(), add, remove }).await;
    // It is told after each change; what counts is that it is told this one.
    while live.next_welcome().await.refused.iter().all(|service| service.name.as_str() != "orders") {}
    assert_eq!(rig.ask("billing").await, Ok("a".to_owned()));
    assert!(rig.directory.find("orders").is_none_or(|service| service.count().total == 0));
}

/// The relay's side.
struct Rig {
    sessions: Sessions,
    directory: Arc<Directory>,
    registry: Arc<dyn Registry>,
    identity: Arc<Identity>,
    address: SocketAddr,
    token: Token,
    sender: Sender,
    names: Mutex<Vec<(ConnectorId, String)>>,
    _tasks: JoinSet<()>,
    _state: StateDir,
}

/// A connector that has joined.
struct Joined {
    name: String,
    key: PrivateKey,
    enrolled: Enrolled,
    psk: Psk,
}

/// One run of its process.
struct Run {
    connection: Connection,
    plane: Plane,
    peer: PeerId,
    welcome: Welcome,
    /// What it was told of the relay's key.
    relay_keys: mpsc::UnboundedReceiver<PublicKey>,
    welcomes: mpsc::UnboundedReceiver<Welcome>,
    /// Whatever else it was told.
    answers: mpsc::UnboundedReceiver<ToConnector>,
    says: mpsc::UnboundedSender<ToRelay>,
    frozen: Arc<AtomicBool>,
    requests: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Rig {
    async fn new(services: &[&str]) -> Self {
        let state = StateDir::temporary().unwrap();
        let (identity, registry) = crate::identity::open_state(&state, &Url::default()).unwrap();
        let identity = Arc::new(identity);
        let socket = culvert_plane::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = socket.local_addr().unwrap();
        let terms = TokenTerms {
            uses: None,
            expires_seconds: None,
            services: Vec::new(),
            from: Vec::new(),
            endpoints: vec![address.to_string()],
        };
        let services = services.iter().map(|name| name.parse().unwrap()).collect();
        let name = "dc1".parse().unwrap();
        let create = Command::TunnelCreate { name, services, shared: false, token: terms };
        let facts = Facts::plain(&identity);
        let request = command::Request { actor: "test".to_owned(), command: create };
        let made = command::carry_out(request, &*registry, &Offline, &facts, SystemTime::now()).await.unwrap();
        let key = identity.private_key();
        let (plane, events) = plane(Role::Relay, key, RELAY_INNER, socket);
        let bounds = Bounds { running: 100, waiting: 10, wait: Duration::from_secs(1) };
        let lanes = Lanes::new(Arc::new(RelayMetrics::new()), Limits::same(bounds));
        let directory = Arc::new(Directory::new(lanes));
        let snapshot = registry.load().await.unwrap();
        let (of_sessions, of_identity) = (Arc::clone(&registry), Arc::clone(&identity));
        let (of_directory, refusals) = (Arc::clone(&directory), Refusals::default());
        let sessions = Sessions::new(plane, of_sessions, of_identity, of_directory, refusals, snapshot).await;
        let mut tasks = JoinSet::new();
        tasks.spawn(sessions.clone().run(events));
        let token = made.text.trim().parse().unwrap();
        let (sender, names) = (Sender::default(), Mutex::default());
        Self { sessions, directory, registry, identity, address, token, sender, names, _tasks: tasks, _state: state }
    }

    async fn join(&self, name: &str) -> Joined {
        let (key, kem) = (PrivateKey::generate(), KemKey::generate());
        let mine = culvert_plane::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let (plane, _events) = plane(Role::Connector, self.token.bootstrap_key(), BOOTSTRAP_INNER, mine);
        let relay = self.token.relays()[0].public_key;
        let peer = plane.add_peer(self.peer(relay, 0, self.token.bootstrap_psk())).unwrap();
        plane.connect(peer, None);
        let connection = plane.dial(peer).await.unwrap();
        let mut frames = Frames::new(connection.open().await.unwrap());
        let request = Enrol {
            version: VERSION,
            public_key: key.public_key(),
            kem_key: base64::Engine::encode(&base64::engine::general_purpose::STANDARD, kem.encapsulation_key()),
            name: Some(name.parse().unwrap()),
            ephemeral: false,
            program: "test".to_owned(),
        };
        frames.send(&ToRelay::Enrol(request)).await.unwrap();
        let ToConnector::Enrolled(enrolled) = frames.next().await.unwrap() else { panic!("not enrolled") };
        let engine = &base64::engine::general_purpose::STANDARD;
        let ciphertext = base64::Engine::decode(engine, &enrolled.ciphertext).unwrap();
        let psk = kem.decapsulate(&ciphertext, &relay, &key.public_key()).unwrap();
        plane.shutdown(CloseCode::Enrolled).await;
        self.names.lock().unwrap().push((enrolled.id.clone(), name.to_owned()));
        Joined { name: name.to_owned(), key, enrolled, psk }
    }

    fn peer(&self, relay: PublicKey, epoch: u32, psk: Psk) -> PeerConfig {
        PeerConfig {
            public_key: relay,
            static_index: 0,
            psks: vec![PskEpoch { epoch, psk }],
            allowed_ips: vec![IpNet::from(IpAddr::from(RELAY_INNER))],
            path: Some(Path { remote: self.address, local: None, socket: 0 }),
            persistent_keepalive: None,
        }
    }

    async fn command(&self, command: Command) {
        let facts = Facts::plain(&self.identity);
        let request = command::Request { actor: "test".to_owned(), command };
        let outcome = command::carry_out(request, &*self.registry, &Offline, &facts, SystemTime::now()).await.unwrap();
        if outcome.changes.contains(&command::Change::KeyRotated) {
            self.sessions.rotated();
        }
        let read_at = Instant::now();
        self.sessions.resync(self.registry.load().await.unwrap(), read_at).await;
        self.sessions.decide_anew();
    }

    /// Who answered, or why nobody did.
    async fn ask(&self, service: &str) -> Result<String, Reason> {
        self.send(service, http::Method::GET, None).await
    }

    async fn send(&self, service: &str, method: http::Method, stick: Option<u64>) -> Result<String, Reason> {
        let found = self.directory.find(service).unwrap();
        let head =
            http::Request::builder().method(method).uri("/").header("host", service).header(SERVICE_FIELD, service);
        let request = Request::from(head.body(Body::empty()).unwrap());
        let sent = tokio::time::timeout(SOON, self.sender.send(&found, request, stick, Instant::now())).await.unwrap();
        match sent {
            Ok(sent) => match sent.answer {
                Answer::Response(response) => {
                    let body = response.into_body().read(1_000).await.unwrap();
                    Ok(String::from_utf8(body.to_vec()).unwrap())
                }
                Answer::Switched(..) => panic!("switched"),
            },
            Err(failed) => Err(failed.fault.reason),
        }
    }

    fn name_of(&self, id: &ConnectorId) -> String {
        self.names.lock().unwrap().iter().find(|(own, _)| own == id).unwrap().1.clone()
    }

    fn count(&self, service: &str) -> (usize, usize) {
        let count = self.directory.find(service).map(|service| service.count()).unwrap_or_default();
        (count.up, count.total)
    }

    async fn until(&self, what: &str, reached: impl Fn() -> bool) {
        let start = Instant::now();
        while !reached() {
            assert!(start.elapsed() < SOON, "not reached: {what}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Joined {
    /// Starts a process with this key and announces services; answers pings and requests.
    async fn come(&self, rig: &Rig, services: &[&str]) -> Run {
        self.come_to(rig, rig.identity.public_key(), services).await
    }

    /// As [`Joined::come`], knowing this key of the relay.
    async fn come_to(&self, rig: &Rig, relay: PublicKey, services: &[&str]) -> Run {
        let mine = culvert_plane::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let (plane, _events) = plane(Role::Connector, self.key.clone(), self.enrolled.inner_address, mine);
        let peer = plane.add_peer(rig.peer(relay, self.enrolled.psk_epoch, self.psk.clone())).unwrap();
        plane.connect(peer, None);
        let connection = plane.dial(peer).await.unwrap();
        let mut frames = Frames::new(connection.open().await.unwrap());
        let services = services.iter().map(|name| AnnouncedService {
            name: name.parse().unwrap(),
            health: Health { up: true, reason: None },
            balance: None,
            timeouts: ServiceTimeouts::default(),
            tcp: false,
            managed: false,
        });
        let name = Some(self.name.parse().unwrap());
        let announce = Announce { version: VERSION, program: "test".to_owned(), name, services: services.collect() };
        frames.send(&ToRelay::Announce(announce)).await.unwrap();
        let welcome = loop {
            match frames.next().await.unwrap() {
                ToConnector::Welcome(welcome) => break welcome,
                ToConnector::Ping { id } => frames.send(&ToRelay::Pong { id }).await.unwrap(),
                other => panic!("{other:?}"),
            }
        };
        let (frozen, requests) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let ((says, to_say), (heard, welcomes)) = (mpsc::unbounded_channel(), mpsc::unbounded_channel());
        let ((told, relay_keys), (answered, answers)) = (mpsc::unbounded_channel(), mpsc::unbounded_channel());
        let mut tasks = JoinSet::new();
        tasks.spawn(control(frames, Arc::clone(&frozen), to_say, heard, told, answered));
        tasks.spawn(gate(connection.clone(), self.name.clone(), Arc::clone(&frozen), Arc::clone(&requests)));
        Run { connection, plane, peer, welcome, relay_keys, welcomes, answers, says, frozen, requests, _tasks: tasks }
    }
}

impl Run {
    fn say(&self, message: ToRelay) {
        self.says.send(message).unwrap();
    }

    /// From now on it answers neither pings nor requests.
    fn freeze(&self) {
        self.frozen.store(true, std::sync::atomic::Ordering::Relaxed);
    }

    async fn next_welcome(&mut self) -> Welcome {
        tokio::time::timeout(SOON, self.welcomes.recv()).await.unwrap().unwrap()
    }

    async fn closed(&self) -> Closed {
        tokio::time::timeout(SOON, self.connection.closed()).await.unwrap()
    }

    async fn stop(self) {
        self.plane.shutdown(CloseCode::Shutdown).await;
    }
}

fn plane(
    role: Role,
    key: PrivateKey,
    inner: std::net::Ipv6Addr,
    socket: std::net::UdpSocket,
) -> (Plane, culvert_plane::Events) {
    Plane::start(culvert_plane::Config {
        role,
        sockets: vec![socket],
        engine: culvert_engine::Config {
            statics: vec![key],
            shard: culvert_engine::Shard::default(),
            handshakes: culvert_engine::HandshakeLimits::default(),
            seed: None,
        },
        instance: InstanceId::new(),
        inner,
        reset_secret: [7; 32],
        streams: StreamLimits { incoming: 100, ..StreamLimits::default() },
    })
    .unwrap()
}

async fn control(
    mut frames: Frames<Stream>,
    frozen: Arc<AtomicBool>,
    mut to_say: mpsc::UnboundedReceiver<ToRelay>,
    heard: mpsc::UnboundedSender<Welcome>,
    told: mpsc::UnboundedSender<PublicKey>,
    answered: mpsc::UnboundedSender<ToConnector>,
) {
    loop {
        tokio::select! {
            message = frames.next() => match message {
                Ok(_) if frozen.load(std::sync::atomic::Ordering::Relaxed) => {}
                Ok(ToConnector::Ping { id }) => frames.send(&ToRelay::Pong { id }).await.unwrap(),
                Ok(ToConnector::Welcome(welcome)) => heard.send(welcome).unwrap(),
                Ok(ToConnector::RelayKey { public_key, .. }) => told.send(public_key).unwrap(),
                Ok(other) => drop(answered.send(other)),
                Err(_) => return,
            },
            Some(message) = to_say.recv() => frames.send(&message).await.unwrap(),
        }
    }
}

async fn gate(connection: Connection, name: String, frozen: Arc<AtomicBool>, requests: Arc<AtomicUsize>) {
    let mut streams = JoinSet::new();
    while let Ok(stream) = connection.accept().await {
        let (name, frozen, requests) = (name.clone(), Arc::clone(&frozen), Arc::clone(&requests));
        streams.spawn(async move {
            let answer = |request: Request<Body>| {
                let service = request.headers().get(SERVICE_FIELD).and_then(|name| name.to_str().ok());
                let failure = service.and_then(|name| name.strip_prefix("fails-"));
                let failure = failure.map(|name| format!("{}; sent=0", name.replace('-', "_")));
                requests.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                let (name, frozen) = (&name, &frozen);
                async move {
                    if frozen.load(std::sync::atomic::Ordering::Relaxed) {
                        std::future::pending::<()>().await;
                    }
                    let mut response = Response::new(Body::full(name.clone()));
                    if let Some(failure) = failure {
                        response.headers_mut().insert(FAILURE_FIELD, failure.parse().unwrap());
                    }
                    Ok(response)
                }
            };
            serve(stream, &ServerSettings::gate(), answer, std::future::pending()).await;
        });
    }
}

fn health(service: &str, up: bool) -> ToRelay {
    let name: ServiceName = service.parse().unwrap();
    ToRelay::Health { services: vec![ServiceHealth { name, health: Health { up, reason: None } }] }
}
