//! Where the plane stands: bulk and small exchanges between two shards on loopback, each on a thread of its own.
//!
//! `cargo run --release -p culvert-plane --example throughput -- [seconds] [streams] [small|bulk|up]`

use std::net::{IpAddr, Ipv6Addr};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use culvert_engine::{HandshakeLimits, PeerConfig, Shard};
use culvert_model::address::{RELAY_INNER, connector_inner};
use culvert_model::id::{ConnectorId, InstanceId};
use culvert_model::key::PrivateKey;
use culvert_plane::{Config, Connection, Event, Events, Plane, Role, StreamLimits, bind};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

fn main() {
    let mut arguments = std::env::args().skip(1);
    let seconds = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(3);
    let streams = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(8);
    let small = arguments.next().is_some_and(|text| text == "small");
    let (relay_key, connector_key) = (PrivateKey::generate(), PrivateKey::generate());
    let inner = connector_inner(&ConnectorId::new());
    let (tell, told) = mpsc::channel();
    let connector = {
        let (relay_key, connector_key) = (relay_key.clone(), connector_key.clone());
        std::thread::spawn(move || {
            runtime().block_on(async move {
                let (plane, _events) = start(Role::Connector, &connector_key, inner);
                let peer = plane.add_peer(peer(&relay_key, RELAY_INNER)).expect("a peer");
                plane.connect(peer, Some(told.recv().expect("the relay's address")));
                let connection = plane.dial(peer).await.expect("a connection");
                serve(connection, small).await;
                println!("connector: {:?}", plane.stats().send);
            });
        })
    };
    runtime().block_on(async move {
        let (plane, mut events) = start(Role::Relay, &relay_key, RELAY_INNER);
        plane.add_peer(peer(&connector_key, inner)).expect("a peer");
        tell.send(plane.local_addrs()[0]).expect("a connector");
        let connection = loop {
            if let Event::Connected(connection) = events.recv().await.expect("events") {
                break connection;
            }
        };
        let (start, cpu) = (Instant::now(), cpu_time());
        let until = start + Duration::from_secs(seconds);
        let asking = (0..streams).map(|_| tokio::spawn(ask(connection.clone(), small, until)));
        let (mut exchanges, mut bytes) = (0, 0);
        for task in asking.collect::<Vec<_>>() {
            let (more, received) = task.await.expect("no panic");
            exchanges += more;
            bytes += received;
        }
        let (elapsed, cpu) = (start.elapsed(), cpu_time() - cpu);
        let gibibytes = bytes as f64 / f64::from(1 << 30);
        println!(
            "{exchanges} exchanges, {:.0}/s, {:.2} Gbit/s, CPU {:.2} s: {:.1} us an exchange, {:.2} s a GiB",
            exchanges as f64 / elapsed.as_secs_f64(),
            bytes as f64 * 8e-9 / elapsed.as_secs_f64(),
            cpu.as_secs_f64(),
            cpu.as_secs_f64() * 1e6 / exchanges as f64,
            cpu.as_secs_f64() / gibibytes,
        );
        println!("relay: {:?} {:?}", connection.stats(), plane.stats().send);
        connection.close(culvert_model::close::CloseCode::Shutdown);
        plane.shutdown(culvert_model::close::CloseCode::Shutdown).await;
    });
    connector.join().expect("no panic");
}

/// One stream: asks, and reads the answer, until the time is up.
async fn ask(connection: Connection, small: bool, until: Instant) -> (u64, u64) {
    let mut stream = connection.open().await.expect("a stream");
    let (mut exchanges, mut bytes) = (0, 0);
    let size = if small { 1024 } else { 4 << 20 };
    let mut buffer = vec![0; 64 * 1024];
    while Instant::now() < until {
        stream.write_all(&[0; 100]).await.expect("written");
        let mut left = size;
        while left > 0 {
            let read = stream.read(&mut buffer).await.expect("read");
            left -= read;
            bytes += read as u64;
        }
        exchanges += 1;
    }
    (exchanges, bytes)
}

async fn serve(connection: Connection, small: bool) {
    while let Ok(mut stream) = connection.accept().await {
        tokio::spawn(async move {
            let answer = vec![7; if small { 1024 } else { 64 * 1024 }];
            let parts = if small { 1 } else { 64 };
            while stream.read_exact(&mut [0; 100]).await.is_ok() {
                for _ in 0..parts {
                    if stream.write_all(&answer).await.is_err() {
                        return;
                    }
                }
            }
        });
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

fn start(role: Role, own: &PrivateKey, inner: Ipv6Addr) -> (Plane, Events) {
    let sockets = vec![bind(([127, 0, 0, 1], 0).into()).expect("a socket")];
    let statics = vec![own.clone()];
    let handshakes = HandshakeLimits::default();
    let engine = culvert_engine::Config { statics, shard: Shard::default(), handshakes, seed: None };
    let streams = StreamLimits { incoming: 256, ..StreamLimits::default() };
    let instance = InstanceId::new();
    Plane::start(Config { role, sockets, engine, instance, inner, reset_secret: [1; 32], streams }).expect("a plane")
}

fn peer(key: &PrivateKey, inner: Ipv6Addr) -> PeerConfig {
    PeerConfig {
        public_key: key.public_key(),
        static_index: 0,
        psks: Vec::new(),
        allowed_ips: vec![IpAddr::V6(inner).into()],
        path: None,
        persistent_keepalive: None,
    }
}

fn cpu_time() -> Duration {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID).map(Duration::from).unwrap_or_default()
}
