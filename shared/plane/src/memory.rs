//! A network in memory: carriers for tests, with a rule that says which datagrams pass.
//!
//! It must never be part of a built binary.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use quinn_udp::{RecvMeta, Transmit};

use crate::port::{Carrier, PacketPort, Sent};

/// Datagrams that a rule has sent itself.
type Extra = Arc<Mutex<Vec<(SocketAddr, SocketAddr, Vec<u8>)>>>;

/// Says whether a datagram (from, to, bytes) passes.
type Rule = Box<dyn FnMut(SocketAddr, SocketAddr, &[u8]) -> bool + Send>;

/// Says on which of the carriers of one address a datagram lands.
type Landing = Box<dyn FnMut(&[u8]) -> usize + Send>;

/// Every carrier that was made from it can reach every other.
#[derive(Clone)]
pub(crate) struct Network {
    state: Arc<Mutex<State>>,
    extra: Extra,
}

struct State {
    /// Several where shards share an address.
    inboxes: BTreeMap<SocketAddr, Vec<Waiting>>,
    rule: Rule,
    landing: Landing,
    /// What every carrier answers instead of sending.
    outage: Option<Sent>,
    writers: Vec<Waker>,
}

#[derive(Default)]
struct Waiting {
    datagrams: VecDeque<(SocketAddr, Vec<u8>)>,
    waker: Option<Waker>,
}

impl Network {
    pub(crate) fn new() -> Self {
        let rule: Rule = Box::new(|_, _, _| true);
        Self {
            state: Arc::new(Mutex::new(State {
                inboxes: BTreeMap::new(),
                rule,
                landing: Box::new(|_| 0),
                outage: None,
                writers: Vec::new(),
            })),
            extra: Arc::default(),
        }
    }

    /// Lets only datagrams pass for which `rule` says so; it may also watch them.
    pub(crate) fn set_rule(&self, rule: impl FnMut(SocketAddr, SocketAddr, &[u8]) -> bool + Send + 'static) {
        self.state.lock().unwrap().rule = Box::new(rule);
    }

    /// Lets datagrams to an address of several carriers land where `landing` says.
    pub(crate) fn set_landing(&self, landing: impl FnMut(&[u8]) -> usize + Send + 'static) {
        self.state.lock().unwrap().landing = Box::new(landing);
    }

    /// Makes every carrier answer so instead of sending; `None`: they send again.
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
        let State { inboxes, rule, landing, .. } = &mut *state;
        let mut passing = Vec::new();
        if rule(from, to, bytes) {
            passing.push((from, to, bytes.to_vec()));
        }
        passing.append(&mut self.extra.lock().unwrap());
        for (from, to, bytes) in passing {
            let group = inboxes.get_mut(&to);
            let at = if group.as_ref().is_some_and(|group| group.len() > 1) { landing(&bytes) } else { 0 };
            if let Some(inbox) = group.and_then(|group| group.get_mut(at)) {
                inbox.datagrams.push_back((from, bytes));
                if let Some(waker) = inbox.waker.take() {
                    waker.wake();
                }
            }
        }
    }

    /// For a rule: puts another datagram on the wire, in place of the one it looks at.
    pub(crate) fn send_unruled(&self, from: SocketAddr, to: SocketAddr, bytes: &[u8]) {
        self.extra.lock().unwrap().push((from, to, bytes.to_vec()));
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
        let mut count = 0;
        for (buffer, meta) in bufs.iter_mut().zip(metas) {
            let Some((addr, bytes)) = inbox.datagrams.pop_front() else { break };
            buffer[..bytes.len()].copy_from_slice(&bytes);
            let (len, dst_ip) = (bytes.len(), Some(self.local.ip()));
            *meta = RecvMeta { addr, len, stride: len, ecn: None, dst_ip };
            count += 1;
        }
        if count == 0 {
            inbox.waker = Some(cx.waker().clone());
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

/// A device in memory: what a test puts in is read, what is written can be taken out.
#[derive(Default)]
pub(crate) struct MemoryPort {
    state: Mutex<PortState>,
}

#[derive(Default)]
struct PortState {
    unread: VecDeque<Vec<u8>>,
    written: Vec<Vec<u8>>,
    reader: Option<Waker>,
    watcher: Option<Waker>,
}

impl MemoryPort {
    /// Puts a frame where it is read.
    pub(crate) fn put(&self, frame: Vec<u8>) {
        let mut state = self.state.lock().unwrap();
        state.unread.push_back(frame);
        if let Some(reader) = state.reader.take() {
            reader.wake();
        }
    }

    /// Takes what was written, and waits for something.
    pub(crate) async fn take(&self) -> Vec<Vec<u8>> {
        std::future::poll_fn(|cx| {
            let mut state = self.state.lock().unwrap();
            if state.written.is_empty() {
                state.watcher = Some(cx.waker().clone());
                return Poll::Pending;
            }
            Poll::Ready(std::mem::take(&mut state.written))
        })
        .await
    }

    /// Frames that nobody has read.
    pub(crate) fn unread(&self) -> usize {
        self.state.lock().unwrap().unread.len()
    }
}

impl fmt::Debug for MemoryPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MemoryPort")
    }
}

impl PacketPort for MemoryPort {
    fn poll_read(&self, cx: &mut Context<'_>, frame: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut state = self.state.lock().unwrap();
        let Some(unread) = state.unread.pop_front() else {
            state.reader = Some(cx.waker().clone());
            return Poll::Pending;
        };
        frame[..unread.len()].copy_from_slice(&unread);
        Poll::Ready(Ok(unread.len()))
    }

    fn write(&self, frame: &[u8]) -> bool {
        let mut state = self.state.lock().unwrap();
        state.written.push(frame.to_vec());
        if let Some(watcher) = state.watcher.take() {
            watcher.wake();
        }
        true
    }
}
