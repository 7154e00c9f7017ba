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
    /// The way may take its datagrams apart.
    fragments: bool,
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

impl SendStats {
    /// Takes another shard's into the sum.
    pub(crate) fn add(&mut self, other: &Self) {
        self.sends += other.sends;
        self.datagrams += other.datagrams;
        self.refused += other.refused;
        self.last_refusal = self.last_refusal.or(other.last_refusal);
    }
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

    /// Lets go of the carriers: what is appended from now on goes nowhere.
    pub(crate) fn close(&mut self) {
        self.carriers.clear();
        self.queues.clear();
        self.bytes = 0;
    }

    #[cfg(test)]
    pub(crate) fn waiting(&self) -> usize {
        self.bytes
    }

    /// Counts every datagram ever appended: tells whether a turn is still producing.
    pub(crate) fn appended(&self) -> u64 {
        self.appended
    }

    /// Lets `seal` append one datagram of `length` bytes straight to the run for `path`.
    ///
    /// `seal` has the last word on both: if it says otherwise the datagram moves to where it belongs. `fragments`: the way
    /// may take it apart.
    pub(crate) fn append(
        &mut self,
        path: Path,
        length: usize,
        fragments: bool,
        seal: impl FnOnce(&mut Vec<u8>) -> Result<Sealed, SealError>,
    ) -> Result<Sealed, SealError> {
        let Some(batch) = self.run(path, length, fragments) else { return Err(SealError::NoPath) };
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
                self.push_as(sealed.path, &moved, fragments);
            }
            Err(_) => self.drop_empty(path),
        }
        result
    }

    /// Appends a datagram that exists already.
    pub(crate) fn push(&mut self, path: Path, datagram: &[u8]) {
        self.push_as(path, datagram, false);
    }

    fn push_as(&mut self, path: Path, datagram: &[u8], fragments: bool) {
        let Some(batch) = self.run(path, datagram.len(), fragments) else { return };
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
                match carrier.try_send(&transmit(batch), batch.fragments) {
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
    fn run(&mut self, path: Path, length: usize, fragments: bool) -> Option<&mut Batch> {
        let socket = usize::from(path.socket);
        let segments = self.carriers.get(socket)?.max_segments();
        let queue = self.queues.get_mut(socket)?;
        let last = queue.iter().rev().take(LOOK_BACK).position(|batch| batch.path == path);
        let open = last.map(|back| queue.len() - 1 - back).filter(|at| {
            queue.get(*at).is_some_and(|batch| {
                let alike = batch.fragments == fragments;
                let fits = !batch.closed && alike && length <= batch.segment && batch.segments < segments;
                fits && batch.bytes.len() + length <= MAX_BATCH
            })
        });
        let at = open.unwrap_or_else(|| {
            let bytes = self.spare.pop().unwrap_or_default();
            queue.push_back(Batch { path, bytes, segment: length, segments: 0, fragments, closed: false });
            queue.len() - 1
        });
        queue.get_mut(at)
    }

    /// Takes back a run that was opened for a datagram that did not come.
    fn drop_empty(&mut self, path: Path) {
        let Some(queue) = self.queues.get_mut(usize::from(path.socket)) else { return };
        if queue.back().is_some_and(|batch| batch.segments == 0) {
            queue.pop_back();
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

#[cfg(test)]
mod tests {
    use std::io::IoSliceMut;
    use std::net::SocketAddr;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::Waker;

    use quinn_udp::RecvMeta;

    use super::*;

    /// Remembers every send; blocks or refuses when told to.
    #[derive(Debug, Default)]
    struct Recorder {
        sends: Mutex<Vec<(SocketAddr, usize, Vec<u8>)>>,
        blocked: AtomicBool,
        refuses: AtomicBool,
    }

    impl Carrier for Recorder {
        fn poll_recv(&self, _: &mut Context<'_>, _: &mut [IoSliceMut<'_>], _: &mut [RecvMeta]) -> Poll<usize> {
            Poll::Pending
        }

        fn try_send(&self, transmit: &Transmit<'_>, _: bool) -> Sent {
            if self.blocked.load(Ordering::Relaxed) {
                return Sent::Blocked;
            }
            if self.refuses.load(Ordering::Relaxed) {
                return Sent::Refused(libc::EPERM);
            }
            let segment = transmit.segment_size.unwrap();
            self.sends.lock().unwrap().push((transmit.destination, segment, transmit.contents.to_vec()));
            Sent::Done
        }

        fn poll_writable(&self, _: &mut Context<'_>) -> Poll<()> {
            if self.blocked.load(Ordering::Relaxed) { Poll::Pending } else { Poll::Ready(()) }
        }

        fn max_segments(&self) -> usize {
            64
        }

        fn local_addr(&self) -> SocketAddr {
            ([127, 0, 0, 1], 1).into()
        }
    }

    fn outbox() -> (Outbox, Arc<Recorder>) {
        let recorder = Arc::new(Recorder::default());
        (Outbox::new(vec![recorder.clone()]), recorder)
    }

    fn path(port: u16) -> Path {
        Path { remote: ([192, 0, 2, 1], port).into(), local: None, socket: 0 }
    }

    fn flush(outbox: &mut Outbox) -> Poll<()> {
        outbox.poll_flush(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn one_size_and_a_shorter_last_share_a_send_and_no_order_changes() {
        let (mut outbox, recorder) = outbox();
        for (port, length, mark) in
            [(1, 100, 1), (2, 50, 2), (1, 100, 3), (1, 60, 4), (1, 100, 5), (1, 120, 6), (1, 120, 7), (2, 50, 8)]
        {
            outbox.push(path(port), &vec![mark; length]);
        }
        assert!(flush(&mut outbox).is_ready() && outbox.is_empty());
        let sends = recorder.sends.lock().unwrap();
        let shape: Vec<_> = sends
            .iter()
            .map(|(to, segment, bytes)| {
                let marks: Vec<u8> = bytes.chunks(*segment).map(|datagram| datagram[0]).collect();
                (to.port(), *segment, marks)
            })
            .collect();
        assert_eq!(shape, [(1, 100, vec![1, 3, 4]), (2, 50, vec![2, 8]), (1, 100, vec![5]), (1, 120, vec![6, 7])]);
        assert_eq!((outbox.stats.sends, outbox.stats.datagrams), (4, 8));
    }

    #[test]
    fn a_run_ends_at_64_datagrams_or_at_what_udp_carries() {
        for (length, most) in [(100, 64), (1400, MAX_BATCH / 1400)] {
            let (mut outbox, recorder) = outbox();
            for _ in 0..100 {
                outbox.push(path(1), &vec![0; length]);
            }
            assert!(flush(&mut outbox).is_ready());
            let counts: Vec<_> = recorder.sends.lock().unwrap().iter().map(|send| send.2.len() / length).collect();
            assert!(counts.iter().all(|count| *count <= most) && counts[0] == most);
            assert_eq!(counts.iter().sum::<usize>(), 100);
        }
    }

    #[test]
    fn a_blocked_carrier_keeps_what_waits_and_the_outbox_says_when_it_is_full() {
        let (mut outbox, recorder) = outbox();
        recorder.blocked.store(true, Ordering::Relaxed);
        let mut pushed = 0;
        while !outbox.is_full() {
            outbox.push(path(1), &[7; 1000]);
            pushed += 1000;
        }
        assert!(flush(&mut outbox).is_pending());
        assert!(outbox.is_full() && pushed < LIMIT + 1000);
        recorder.blocked.store(false, Ordering::Relaxed);
        assert!(flush(&mut outbox).is_ready() && outbox.is_empty() && !outbox.is_full());
        assert_eq!(recorder.sends.lock().unwrap().iter().map(|send| send.2.len()).sum::<usize>(), pushed);
    }

    #[test]
    fn what_the_system_refuses_is_lost_and_counted() {
        let (mut outbox, recorder) = outbox();
        recorder.refuses.store(true, Ordering::Relaxed);
        outbox.push(path(1), &[7; 1000]);
        assert!(flush(&mut outbox).is_ready() && outbox.is_empty());
        assert_eq!((outbox.stats.refused, outbox.stats.last_refusal), (1, Some(libc::EPERM)));
    }

    #[test]
    fn a_datagram_that_was_not_sealed_or_goes_elsewhere_leaves_no_trace_in_the_run() {
        let (mut outbox, recorder) = outbox();
        outbox.push(path(1), &[1; 100]);
        assert!(outbox.append(path(1), 100, false, |_| Err(SealError::NoSession)).is_err());
        assert!(outbox.append(path(3), 100, false, |_| Err(SealError::NoSession)).is_err());
        let moved = outbox.append(path(1), 100, false, |out| {
            out.extend([2; 100]);
            Ok(Sealed { len: 100, path: path(2) })
        });
        assert_eq!(moved.unwrap().path, path(2));
        let sealed = outbox.append(path(1), 100, false, |out| {
            out.extend([3; 100]);
            Ok(Sealed { len: 100, path: path(1) })
        });
        assert!(sealed.is_ok());
        assert!(flush(&mut outbox).is_ready() && outbox.is_empty());
        let sends = recorder.sends.lock().unwrap();
        let shape: Vec<_> = sends.iter().map(|(to, _, bytes)| (to.port(), bytes.len(), bytes[0])).collect();
        assert_eq!(shape, [(1, 200, 1), (2, 100, 2)]);
    }

    #[test]
    fn a_socket_that_does_not_exist_takes_nothing() {
        let (mut outbox, _) = outbox();
        outbox.push(Path { socket: 9, ..path(1) }, b"lost");
        assert!(outbox.is_empty());
    }
}
