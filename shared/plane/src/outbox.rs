//! Sealed datagrams on their way out: joined into as few sends as possible, bounded, flushed once a turn.
//!
//! A batch is a run for UDP_SEGMENT: datagrams of one size to one destination, a shorter one at the end. It must never
//! reorder what goes to one destination, nor hold more than [`LIMIT`] bytes for long.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll};

use culvert_engine::{Path, SealError, Sealed};
use quinn_udp::Transmit;

use crate::port::{Carrier, Sent};

/// Past this many waiting bytes QUIC is told to wait.
pub(crate) const LIMIT: usize = 512 * 1024;
/// One send takes at most this much: a UDP payload over IPv4 or IPv6.
const MAX_BATCH: usize = 65_000;
/// Buffers kept for the next turn.
const MAX_SPARE: usize = 16;
/// How many batches back a run to the same destination is looked for.
const LOOK_BACK: usize = 8;

#[derive(Debug)]
struct Batch {
    path: Path,
    bytes: Vec<u8>,
    segment: usize,
    segments: usize,
    /// A shorter datagram ended the run.
    closed: bool,
}

/// What sends have come to.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct SendStats {
    /// System calls that sent.
    pub sends: u64,
    /// Datagrams in them.
    pub datagrams: u64,
    /// Runs that the system refused.
    pub refused: u64,
    /// Why it refused the last one (`errno`): EPERM is a firewall, ENETUNREACH a missing route.
    pub last_refusal: Option<i32>,
}

/// The outgoing datagrams of one shard.
#[derive(Debug)]
pub(crate) struct Outbox {
    carriers: Vec<Arc<dyn Carrier>>,
    queues: Vec<VecDeque<Batch>>,
    spare: Vec<Vec<u8>>,
    bytes: usize,
    /// Datagrams ever appended.
    appended: u64,
    pub(crate) stats: SendStats,
}

impl Outbox {
    pub(crate) fn new(carriers: Vec<Arc<dyn Carrier>>) -> Self {
        let queues = carriers.iter().map(|_| VecDeque::new()).collect();
        Self { carriers, queues, spare: Vec::new(), bytes: 0, appended: 0, stats: SendStats::default() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    pub(crate) fn is_full(&self) -> bool {
        self.bytes >= LIMIT
    }

    /// Counts every datagram ever appended: tells whether a turn is still producing.
    pub(crate) fn appended(&self) -> u64 {
        self.appended
    }

    /// Lets `seal` append one datagram of `length` bytes straight to the run for `path`.
    ///
    /// `seal` has the last word on both: if it says otherwise the datagram moves to where it belongs.
    pub(crate) fn append(
        &mut self,
        path: Path,
        length: usize,
        seal: impl FnOnce(&mut Vec<u8>) -> Result<Sealed, SealError>,
    ) -> Result<Sealed, SealError> {
        let Some(batch) = self.run(path, length) else { return Err(SealError::NoPath) };
        let before = batch.bytes.len();
        let result = seal(&mut batch.bytes);
        match &result {
            Ok(sealed) if sealed.path == path && sealed.len == length => {
                batch.segments += 1;
                batch.closed = length < batch.segment;
                self.bytes += length;
                self.appended += 1;
            }
            Ok(sealed) => {
                let moved = batch.bytes.split_off(before);
                self.drop_empty(path);
                self.push(sealed.path, &moved);
            }
            Err(_) => self.drop_empty(path),
        }
        result
    }

    /// Appends a datagram that exists already.
    pub(crate) fn push(&mut self, path: Path, datagram: &[u8]) {
        let Some(batch) = self.run(path, datagram.len()) else { return };
        batch.bytes.extend_from_slice(datagram);
        batch.segments += 1;
        batch.closed = datagram.len() < batch.segment;
        self.bytes += datagram.len();
        self.appended += 1;
    }

    /// Sends what waits. Pending: a carrier is blocked and has registered `cx`.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Self { carriers, queues, spare, bytes, stats, .. } = self;
        let mut blocked = false;
        for (carrier, queue) in carriers.iter().zip(queues) {
            while let Some(batch) = queue.front() {
                match carrier.try_send(&transmit(batch)) {
                    Sent::Blocked => {
                        if carrier.poll_writable(cx).is_pending() {
                            blocked = true;
                            break;
                        }
                        continue;
                    }
                    Sent::Done => {
                        stats.sends += 1;
                        stats.datagrams += batch.segments as u64;
                    }
                    Sent::Refused(errno) => {
                        stats.refused += 1;
                        stats.last_refusal = Some(errno);
                    }
                }
                let Some(mut batch) = queue.pop_front() else { break };
                *bytes = bytes.saturating_sub(batch.bytes.len());
                if spare.len() < MAX_SPARE {
                    batch.bytes.clear();
                    spare.push(batch.bytes);
                }
            }
        }
        if blocked { Poll::Pending } else { Poll::Ready(()) }
    }

    /// The open run for datagrams of this size on this path; the last one that goes there, or a new one.
    fn run(&mut self, path: Path, length: usize) -> Option<&mut Batch> {
        let socket = usize::from(path.socket);
        let segments = self.carriers.get(socket)?.max_segments();
        let queue = self.queues.get_mut(socket)?;
        let last = queue.iter().rev().take(LOOK_BACK).position(|batch| batch.path == path);
        let open = last.map(|back| queue.len() - 1 - back).filter(|at| {
            queue.get(*at).is_some_and(|batch| {
                let fits = !batch.closed && length <= batch.segment && batch.segments < segments;
                fits && batch.bytes.len() + length <= MAX_BATCH
            })
        });
        let at = open.unwrap_or_else(|| {
            let bytes = self.spare.pop().unwrap_or_default();
            queue.push_back(Batch { path, bytes, segment: length, segments: 0, closed: false });
            queue.len() - 1
        });
        queue.get_mut(at)
    }

    /// Takes back a run that was opened for a datagram that did not come.
    fn drop_empty(&mut self, path: Path) {
        let Some(queue) = self.queues.get_mut(usize::from(path.socket)) else { return };
        if let Some(mut batch) = queue.pop_back_if(|batch| batch.segments == 0) {
            batch.bytes.clear();
            self.spare.push(batch.bytes);
        }
    }
}

fn transmit(batch: &Batch) -> Transmit<'_> {
    Transmit {
        destination: batch.path.remote,
        ecn: None,
        contents: &batch.bytes,
        segment_size: Some(batch.segment),
        src_ip: batch.path.local,
    }
}
