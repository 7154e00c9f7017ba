//! A UDP forwarder between connector and relay that a test can close, move and listen to; and plain probes of a port.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::net::UdpSocket;
use tokio::task::JoinSet;

/// Stands between: what comes to `address()` goes on to the target, each sender from a socket of its own.
#[derive(Debug)]
pub struct Forwarder {
    address: SocketAddr,
    state: Arc<State>,
    tasks: JoinSet<()>,
}

#[derive(Debug)]
struct State {
    target: SocketAddr,
    from: IpAddr,
    blocked: AtomicBool,
    up: AtomicU64,
    down: AtomicU64,
    ways: Mutex<HashMap<SocketAddr, Arc<UdpSocket>>>,
    senders: Mutex<Vec<SocketAddr>>,
    cut: Mutex<HashSet<SocketAddr>>,
    recorded: Mutex<Vec<Vec<u8>>>,
}

impl Forwarder {
    /// Starts one at `ip`, a free port.
    ///
    /// # Errors
    /// It could not bind.
    pub async fn start(ip: IpAddr, target: SocketAddr) -> Result<Self> {
        let socket = Arc::new(UdpSocket::bind((ip, 0)).await.context("bind the forwarder")?);
        let address = socket.local_addr()?;
        let state = Arc::new(State {
            target,
            from: ip,
            blocked: AtomicBool::new(false),
            up: AtomicU64::new(0),
            down: AtomicU64::new(0),
            ways: Mutex::default(),
            senders: Mutex::default(),
            cut: Mutex::default(),
            recorded: Mutex::default(),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(forward(socket, Arc::clone(&state)));
        Ok(Self { address, state, tasks })
    }

    /// Where senders send.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Lets nothing through, or everything again.
    pub fn block(&self, blocked: bool) {
        self.state.blocked.store(blocked, Ordering::Relaxed);
    }

    /// Everybody who ever sent, by the first datagram.
    pub fn senders(&self) -> Vec<SocketAddr> {
        lock(&self.state.senders).clone()
    }

    /// Lets nothing of one sender through, either way.
    pub fn cut(&self, sender: SocketAddr) {
        lock(&self.state.cut).insert(sender);
    }

    /// Lets everybody through again.
    pub fn mend(&self) {
        lock(&self.state.cut).clear();
    }

    /// Forgets every mapping, as a NAT does that restarted: the next datagram of each sender leaves from a new port.
    pub fn rebind(&self) {
        lock(&self.state.ways).clear();
    }

    /// Datagrams that went up to the target and down from it.
    pub fn count(&self) -> (u64, u64) {
        (self.state.up.load(Ordering::Relaxed), self.state.down.load(Ordering::Relaxed))
    }

    /// The first datagrams (at most 64) that went up, or since [`Forwarder::forget`]: an eavesdropper's notes.
    pub fn recorded(&self) -> Vec<Vec<u8>> {
        lock(&self.state.recorded).clone()
    }

    /// Forgets what was recorded: the notes begin anew.
    pub fn forget(&self) {
        lock(&self.state.recorded).clear();
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        self.tasks.try_join_next().is_none()
    }
}

/// Sends `datagrams` from a new socket and counts what comes back within `wait` after the last.
///
/// # Errors
/// The socket could not be made.
pub async fn probe(to: SocketAddr, datagrams: &[Vec<u8>], wait: Duration) -> Result<usize> {
    let socket = UdpSocket::bind((if to.is_ipv4() { "0.0.0.0" } else { "::" }, 0)).await?;
    for datagram in datagrams {
        let _ = socket.send_to(datagram, to).await;
    }
    let mut answers = 0;
    let mut buffer = [0; 2048];
    let _ = tokio::time::timeout(wait, async {
        while socket.recv_from(&mut buffer).await.is_ok() {
            answers += 1;
        }
    })
    .await;
    Ok(answers)
}

async fn forward(socket: Arc<UdpSocket>, state: Arc<State>) {
    let mut returns = JoinSet::new();
    let mut buffer = vec![0; 65_536];
    while let Ok((length, sender)) = socket.recv_from(&mut buffer).await {
        if state.blocked.load(Ordering::Relaxed) || lock(&state.cut).contains(&sender) {
            continue;
        }
        let datagram = buffer.get(..length).unwrap_or_default();
        state.up.fetch_add(1, Ordering::Relaxed);
        {
            let mut recorded = lock(&state.recorded);
            if recorded.len() < 64 {
                recorded.push(datagram.to_vec());
            }
        }
        let known = lock(&state.ways).get(&sender).cloned();
        let way = match known {
            Some(way) => way,
            None => {
                let Ok(way) = UdpSocket::bind((state.from, 0)).await else { continue };
                let way = Arc::new(way);
                let mut senders = lock(&state.senders);
                if !senders.contains(&sender) {
                    senders.push(sender);
                }
                drop(senders);
                lock(&state.ways).insert(sender, Arc::clone(&way));
                returns.spawn(back(Arc::clone(&way), Arc::clone(&socket), sender, Arc::clone(&state)));
                way
            }
        };
        let _ = way.send_to(datagram, state.target).await;
    }
}

async fn back(way: Arc<UdpSocket>, socket: Arc<UdpSocket>, sender: SocketAddr, state: Arc<State>) {
    let mut buffer = vec![0; 65_536];
    loop {
        match way.recv_from(&mut buffer).await {
            Ok((length, _)) if !state.blocked.load(Ordering::Relaxed) => {
                // After a rebind the old port is dead.
                if !lock(&state.ways).get(&sender).is_some_and(|current| Arc::ptr_eq(current, &way)) {
                    return;
                }
                if lock(&state.cut).contains(&sender) {
                    continue;
                }
                state.down.fetch_add(1, Ordering::Relaxed);
                let _ = socket.send_to(buffer.get(..length).unwrap_or_default(), sender).await;
            }
            // A closed port at the target shows as an error on the next receive.
            Ok(_) | Err(_) => {}
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
