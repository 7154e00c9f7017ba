//! A network in memory: carriers for tests and for counting, with a rule that says which datagrams pass.
//!
//! It must never be part of a built binary: outside this crate's tests it is there with the feature `memory` only.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::future::Future as _;
use std::io::IoSliceMut;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use quinn_udp::{RecvMeta, Transmit};
use tokio::runtime::Handle;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::crypto::PROTOCOL_VERSION;
use crate::event::Events;
use crate::plane::{Config, Plane, StartError};
use crate::port::{Carrier, Sent};

#[cfg(test)]
mod port;
#[cfg(test)]
pub(crate) use port::MemoryPort;

/// Datagrams that a rule has sent itself.
type Extra = Arc<Mutex<Vec<(SocketAddr, SocketAddr, Vec<u8>)>>>;

/// Says whether a datagram (from, to, bytes) passes.
type Rule = Box<dyn FnMut(SocketAddr, SocketAddr, &[u8]) -> bool + Send>;

/// Says on which of the carriers of one address a datagram lands.
type Landing = Box<dyn FnMut(&[u8]) -> usize + Send>;

/// Every carrier that was made from it can reach every other.
#[derive(Clone)]
pub struct Network {
    state: Arc<Mutex<State>>,
    extra: Extra,
}

struct State {
    /// Several where shards share an address.
    inboxes: BTreeMap<SocketAddr, Vec<Waiting>>,
    rule: Rule,
    landing: Landing,
    way: Way,
    /// What every carrier answers instead of sending.
    outage: Option<Sent>,
    writers: Vec<Waker>,
}

#[derive(Default)]
struct Waiting {
    datagrams: VecDeque<(Instant, SocketAddr, Vec<u8>)>,
    waker: Option<Waker>,
    /// Until the first of them arrives.
    arrival: Option<Pin<Box<Sleep>>>,
    /// When the last of them has left the link before this inbox.
    link_free: Option<Instant>,
}

/// What every datagram goes through, in order, by the runtime's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct Way {
    /// One way.
    pub delay: Duration,
    /// Bytes a second into each inbox, and bytes that may wait for that.
    pub link: Option<(u64, u64)>,
}

impl Way {
    /// When a datagram arrives; `None`: the link's queue is full.
    fn arrival(self, length: usize, link_free: &mut Option<Instant>, now: Instant) -> Option<Instant> {
        let Some((rate, queue)) = self.link else { return Some(now + self.delay) };
        let start = link_free.unwrap_or(now).max(now);
        let waiting = (start - now).as_secs_f64() * rate as f64;
        if waiting + length as f64 > queue as f64 {
            return None;
        }
        let left = start + Duration::from_secs_f64(length as f64 / rate as f64);
        *link_free = Some(left);
        Some(left + self.delay)
    }
}

impl Network {
    /// One on which everything passes at once.
    pub fn new() -> Self {
        let rule: Rule = Box::new(|_, _, _| true);
        Self {
            state: Arc::new(Mutex::new(State {
                inboxes: BTreeMap::new(),
                rule,
                landing: Box::new(|_| 0),
                way: Way::default(),
                outage: None,
                writers: Vec::new(),
            })),
            extra: Arc::default(),
        }
    }

    /// Lets only datagrams pass for which `rule` says so; it may also watch them.
    pub fn set_rule(&self, rule: impl FnMut(SocketAddr, SocketAddr, &[u8]) -> bool + Send + 'static) {
        self.state.lock().unwrap().rule = Box::new(rule);
    }

    /// Lets datagrams to an address of several carriers land where `landing` says.
    #[cfg(test)]
    pub(crate) fn set_landing(&self, landing: impl FnMut(&[u8]) -> usize + Send + 'static) {
        self.state.lock().unwrap().landing = Box::new(landing);
    }

    /// Leads datagrams over such a way from now on.
    pub fn set_way(&self, way: Way) {
        self.state.lock().unwrap().way = way;
    }

    /// Makes every carrier answer so instead of sending; `None`: they send again.
    #[cfg(test)]
    pub(crate) fn set_outage(&self, outage: Option<Sent>) {
        let mut state = self.state.lock().unwrap();
        state.outage = outage;
        for writer in state.writers.drain(..) {
            writer.wake();
        }
    }

    /// Puts a datagram on the wire.
    pub(crate) fn send(&self, from: SocketAddr, to: SocketAddr, bytes: &[u8]) {
        let mut state = self.state.lock().unwrap();
        let State { inboxes, rule, landing, way, .. } = &mut *state;
        let now = Instant::now();
        let mut passing = Vec::new();
        if rule(from, to, bytes) {
            passing.push((from, to, bytes.to_vec()));
        }
        passing.append(&mut self.extra.lock().unwrap());
        for (from, to, bytes) in passing {
            let group = inboxes.get_mut(&to);
            let at = if group.as_ref().is_some_and(|group| group.len() > 1) { landing(&bytes) } else { 0 };
            if let Some(inbox) = group.and_then(|group| group.get_mut(at)) {
                let Some(arrival) = way.arrival(bytes.len(), &mut inbox.link_free, now) else { continue };
                inbox.datagrams.push_back((arrival, from, bytes));
                if let Some(waker) = inbox.waker.take() {
                    waker.wake();
                }
            }
        }
    }

    /// For a rule: puts another datagram on the wire, in place of the one it looks at.
    #[cfg(test)]
    pub(crate) fn send_unruled(&self, from: SocketAddr, to: SocketAddr, bytes: &[u8]) {
        self.extra.lock().unwrap().push((from, to, bytes.to_vec()));
    }

    /// Starts a plane at this address, as [`Plane::start`] does on sockets.
    ///
    /// # Errors
    /// [`StartError`]
    pub fn start(&self, local: SocketAddr, config: Config) -> Result<(Plane, Events), StartError> {
        Plane::start_on(vec![(Handle::current(), vec![self.carrier(local)])], config, PROTOCOL_VERSION)
    }

    /// A carrier at this address.
    pub(crate) fn carrier(&self, local: SocketAddr) -> Arc<dyn Carrier> {
        self.group(local, 1).remove(0)
    }

    /// So many carriers at this address.
    pub(crate) fn group(&self, local: SocketAddr, count: usize) -> Vec<Arc<dyn Carrier>> {
        let inboxes = (0..count).map(|_| Waiting::default()).collect();
        self.state.lock().unwrap().inboxes.insert(local, inboxes);
        let carrier = |at| Arc::new(MemoryCarrier { network: self.clone(), local, at }) as Arc<dyn Carrier>;
        (0..count).map(carrier).collect()
    }
}

impl Default for Network {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Network")
    }
}

#[derive(Debug)]
struct MemoryCarrier {
    network: Network,
    local: SocketAddr,
    at: usize,
}

impl Carrier for MemoryCarrier {
    fn poll_recv(&self, cx: &mut Context<'_>, bufs: &mut [IoSliceMut<'_>], metas: &mut [RecvMeta]) -> Poll<usize> {
        let mut state = self.network.state.lock().unwrap();
        let inbox = &mut state.inboxes.get_mut(&self.local).unwrap()[self.at];
        let (mut count, now) = (0, Instant::now());
        for (buffer, meta) in bufs.iter_mut().zip(metas) {
            let arrived = inbox.datagrams.front().is_some_and(|(arrival, ..)| *arrival <= now);
            let Some((_, addr, bytes)) = arrived.then(|| inbox.datagrams.pop_front()).flatten() else { break };
            buffer[..bytes.len()].copy_from_slice(&bytes);
            let (len, dst_ip) = (bytes.len(), Some(self.local.ip()));
            *meta = RecvMeta { addr, len, stride: len, ecn: None, dst_ip };
            count += 1;
        }
        if count == 0 {
            inbox.waker = Some(cx.waker().clone());
            if let Some((arrival, ..)) = inbox.datagrams.front() {
                let mut sleep = Box::pin(sleep_until(*arrival));
                if sleep.as_mut().poll(cx).is_ready() {
                    cx.waker().wake_by_ref();
                }
                inbox.arrival = Some(sleep);
            }
            return Poll::Pending;
        }
        Poll::Ready(count)
    }

    fn try_send(&self, transmit: &Transmit<'_>, _: bool) -> Sent {
        let outage = self.network.state.lock().unwrap().outage;
        if let Some(outage) = outage {
            return outage;
        }
        let segment = transmit.segment_size.unwrap_or(transmit.contents.len());
        for datagram in transmit.contents.chunks(segment) {
            self.network.send(self.local, transmit.destination, datagram);
        }
        Sent::Done
    }

    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.network.state.lock().unwrap();
        if state.outage == Some(Sent::Blocked) {
            state.writers.push(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(())
    }

    fn max_segments(&self) -> usize {
        64
    }

    fn local_addr(&self) -> SocketAddr {
        self.local
    }
}
