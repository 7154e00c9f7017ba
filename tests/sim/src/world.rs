//! Hosts, the network between them, and the one clock.
//!
//! Must never deliver what was not sent, nor let a host act before its time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use culvert_engine::{Config, Engine, Event, HandshakeLimits, Path, PeerId, Received, Replies, Shard};
use culvert_model::key::PrivateKey;
use mock_instant::MockClock;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use crate::wall;

/// When simulations begin, by the wall: a date whose TAI64N label is after all that any test sets.
const WALL_START: Duration = Duration::from_secs(1_800_000_000);

/// Names a host of a world.
pub type HostId = usize;

/// What the network does to a datagram.
#[derive(Copy, Clone, Debug)]
pub struct Link {
    /// One way.
    pub latency: Duration,
    /// Added at random, so that datagrams overtake each other.
    pub jitter: Duration,
    /// 0..=1.
    pub loss: f64,
    /// 0..=1.
    pub duplication: f64,
}

impl Default for Link {
    fn default() -> Self {
        Self { latency: Duration::from_millis(20), jitter: Duration::ZERO, loss: 0.0, duplication: 0.0 }
    }
}

/// A datagram as an eavesdropper sees it.
#[derive(Clone, Debug)]
pub struct Sent {
    /// Since the world began.
    pub at: Duration,
    /// Who really sent it.
    pub by: Option<HostId>,
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub bytes: Vec<u8>,
}

/// Kinds of WireGuard messages, as far as they show.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Kind {
    Initiation,
    Response,
    Cookie,
    Keepalive,
    Data,
    Other,
}

/// Tells what a datagram is by its head and length.
pub fn kind_of(bytes: &[u8]) -> Kind {
    match (bytes.first(), bytes.len()) {
        (Some(1), 148) => Kind::Initiation,
        (Some(2), 92) => Kind::Response,
        (Some(3), 64) => Kind::Cookie,
        (Some(4), 32) => Kind::Keepalive,
        (Some(4), _) => Kind::Data,
        _ => Kind::Other,
    }
}

struct Host {
    engine: Engine,
    address: SocketAddr,
    /// Added to the wall clock; seconds.
    clock_error: i64,
    up: bool,
    events: Vec<(Duration, Event)>,
    packets: Vec<(PeerId, Vec<u8>)>,
    calls: u64,
}

/// Hosts on one network.
pub struct World {
    start: Instant,
    began: Duration,
    rng: StdRng,
    pub link: Link,
    hosts: Vec<Host>,
    flights: BinaryHeap<Reverse<(Duration, u64)>>,
    in_flight: std::collections::BTreeMap<u64, Sent>,
    count: u64,
    /// Everything that was sent, lost or not.
    pub wire: Vec<Sent>,
    /// Datagrams that it says true to are lost.
    pub censor: Option<Box<dyn FnMut(&Sent) -> bool>>,
}

impl World {
    pub fn new(seed: u64) -> Self {
        // The mock clock belongs to the thread and goes on from test to test.
        let began = MockClock::time() + Duration::from_secs(1);
        MockClock::set_time(began);
        Self {
            start: Instant::now(),
            began,
            rng: StdRng::seed_from_u64(seed),
            link: Link::default(),
            hosts: Vec::new(),
            flights: BinaryHeap::new(),
            in_flight: Default::default(),
            count: 0,
            wire: Vec::new(),
            censor: None,
        }
    }

    /// Adds a host with an engine of these static keys.
    pub fn add_host(&mut self, address: &str, statics: Vec<PrivateKey>, handshakes: HandshakeLimits) -> HostId {
        let id = self.hosts.len();
        self.set_wall(0);
        let engine = self.make_engine(statics, handshakes);
        self.hosts.push(Host {
            engine,
            address: address.parse().unwrap(),
            clock_error: 0,
            up: true,
            events: Vec::new(),
            packets: Vec::new(),
            calls: 0,
        });
        id
    }

    /// Replaces a host's engine, as a process that was killed and started again, its wall clock wrong by `clock_error`
    /// seconds from now on.
    pub fn restart(&mut self, host: HostId, statics: Vec<PrivateKey>, clock_error: i64) {
        self.set_wall(clock_error);
        let engine = self.make_engine(statics, HandshakeLimits::default());
        let host = &mut self.hosts[host];
        host.engine = engine;
        host.clock_error = clock_error;
    }

    pub fn set_clock_error(&mut self, host: HostId, seconds: i64) {
        self.hosts[host].clock_error = seconds;
    }

    /// Time since the world began.
    pub fn time(&self) -> Duration {
        MockClock::time() - self.began
    }

    pub fn now(&self) -> Instant {
        self.start + self.time()
    }

    pub fn address(&self, host: HostId) -> SocketAddr {
        self.hosts[host].address
    }

    /// Gives a host another address: what is sent to the old one is lost from now on.
    pub fn move_host(&mut self, host: HostId, address: &str) {
        self.hosts[host].address = address.parse().unwrap();
    }

    /// Unplugs a host, or plugs it in.
    pub fn set_up(&mut self, host: HostId, up: bool) {
        self.hosts[host].up = up;
    }

    pub fn engine(&mut self, host: HostId) -> &mut Engine {
        self.set_wall(self.hosts[host].clock_error);
        &mut self.hosts[host].engine
    }

    /// What a host's engine has reported, with when.
    pub fn events(&self, host: HostId) -> &[(Duration, Event)] {
        &self.hosts[host].events
    }

    pub fn clear_events(&mut self, host: HostId) {
        self.hosts[host].events.clear();
    }

    /// Inner packets that a host has received since this was last asked.
    pub fn take_packets(&mut self, host: HostId) -> Vec<(PeerId, Vec<u8>)> {
        std::mem::take(&mut self.hosts[host].packets)
    }

    /// How often a host's engine was called because of time.
    pub fn timer_calls(&self, host: HostId) -> u64 {
        self.hosts[host].calls
    }

    pub fn path_to(&self, host: HostId) -> Path {
        path(self.address(host))
    }

    /// Lets a host start a handshake.
    pub fn connect(&mut self, host: HostId, peer: PeerId, to: Option<SocketAddr>) {
        let now = self.now();
        let mut replies = Replies::default();
        self.engine(host).connect(peer, to.map(path), now, &mut replies);
        self.after_call(host, replies);
    }

    /// Lets a host send an inner packet; false when it has no session.
    pub fn send(&mut self, host: HostId, peer: PeerId, packet: &[u8]) -> bool {
        let now = self.now();
        let mut out = Vec::new();
        let sealed = self.engine(host).seal(peer, &mut packet.to_vec(), now, &mut out);
        if let Ok(sealed) = sealed {
            self.put_on_wire(Some(host), self.address(host), sealed.path.remote, out);
        }
        self.after_call(host, Replies::default());
        sealed.is_ok()
    }

    /// Puts a datagram on the wire that claims to come from `from`.
    pub fn inject(&mut self, from: SocketAddr, to: SocketAddr, bytes: Vec<u8>) {
        self.put_on_wire(None, from, to, bytes);
    }

    /// Lets time pass.
    pub fn advance(&mut self, time: Duration) {
        self.run_until(time, |_| false);
    }

    /// Lets time pass until `done`, which is asked after each step, or until `most` has passed: then `None`.
    pub fn run_until(&mut self, most: Duration, mut done: impl FnMut(&Self) -> bool) -> Option<Duration> {
        let (from, end) = (self.time(), self.time() + most);
        loop {
            if done(self) {
                return Some(self.time() - from);
            }
            let timer = self.next_timer();
            let flight = self.flights.peek().map(|Reverse((at, _))| *at);
            let next = [timer.map(|(at, _)| at), flight].into_iter().flatten().min().filter(|at| *at <= end);
            let Some(next) = next else {
                self.set_time(end);
                return None;
            };
            self.set_time(next.max(self.time()));
            if flight == Some(next) {
                self.deliver();
            } else if let Some((_, host)) = timer {
                let now = self.now();
                let mut replies = Replies::default();
                self.hosts[host].calls += 1;
                self.engine(host).handle_timeout(now, &mut replies);
                self.after_call(host, replies);
            }
        }
    }

    /// How many of a kind a host has sent, lost ones too.
    pub fn sent(&self, by: HostId, kind: Kind) -> usize {
        self.wire.iter().filter(|sent| sent.by == Some(by) && kind_of(&sent.bytes) == kind).count()
    }

    fn deliver(&mut self) {
        let Some(Reverse((_, number))) = self.flights.pop() else { return };
        let Some(sent) = self.in_flight.remove(&number) else { return };
        let Some(host) = self.hosts.iter().position(|host| host.up && host.address == sent.to) else { return };
        let now = self.now();
        let (mut inner, mut replies) = (Vec::new(), Replies::default());
        let engine = self.engine(host);
        if let Received::Packet { peer } =
            engine.handle_datagram(&sent.bytes, path(sent.from), now, &mut inner, &mut replies)
        {
            self.hosts[host].packets.push((peer, inner));
        }
        while self.engine(host).handle_handshakes(8, now, &mut replies) {}
        self.after_call(host, replies);
    }

    fn after_call(&mut self, host: HostId, mut replies: Replies) {
        let time = self.time();
        while let Some(event) = self.hosts[host].engine.poll_event() {
            self.hosts[host].events.push((time, event));
        }
        let from = self.address(host);
        for (path, bytes) in replies.drain() {
            self.put_on_wire(Some(host), from, path.remote, bytes.to_vec());
        }
    }

    fn put_on_wire(&mut self, by: Option<HostId>, from: SocketAddr, to: SocketAddr, bytes: Vec<u8>) {
        let sent = Sent { at: self.time(), by, from, to, bytes };
        self.wire.push(sent.clone());
        let down = by.is_some_and(|by| !self.hosts[by].up);
        let censored = self.censor.as_mut().is_some_and(|censor| censor(&sent));
        if down || censored || self.rng.random_bool(self.link.loss) {
            return;
        }
        let copies = 1 + usize::from(self.rng.random_bool(self.link.duplication));
        for _ in 0..copies {
            let late = self.link.jitter.mul_f64(self.rng.random());
            self.count += 1;
            self.flights.push(Reverse((self.time() + self.link.latency + late, self.count)));
            self.in_flight.insert(self.count, sent.clone());
        }
    }

    fn next_timer(&self) -> Option<(Duration, HostId)> {
        let due = |(id, host): (HostId, &Host)| {
            let at = host.engine.poll_timeout()?;
            Some((at.saturating_duration_since(self.start), id))
        };
        self.hosts.iter().enumerate().filter_map(due).min()
    }

    fn make_engine(&mut self, statics: Vec<PrivateKey>, handshakes: HandshakeLimits) -> Engine {
        let seed = Some(self.rng.random());
        Engine::new(Config { statics, shard: Shard::default(), handshakes, seed }, self.now())
    }

    fn set_time(&self, time: Duration) {
        MockClock::set_time(self.began + time);
    }

    fn set_wall(&self, error: i64) {
        let wall = WALL_START + MockClock::time();
        wall::set(Duration::new(wall.as_secs().saturating_add_signed(error), wall.subsec_nanos()));
    }
}

fn path(remote: SocketAddr) -> Path {
    Path { remote, local: None, socket: 0 }
}
