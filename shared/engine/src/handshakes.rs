//! Handshake messages that wait for their Diffie-Hellman: two bounded queues, those of known endpoints first.
//!
//! Their senders do not wait: after a second or two they ask anew, and an answer to what they asked before is worth nothing
//! to them. A queue that is worked off in order answers nobody in time once it is longer than that, however fast it is; so
//! where it is long the newest go first, and what is too old is dropped before it costs anything.
//!
//! Must never grow past its bound, and never be worked off between the data packets of one turn.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use culvert_model::key::PublicKey;

use crate::config::Path;
use crate::tunn::{INITIATION, RESPONSE};

/// A handshake message whose mac1 is right.
#[derive(Clone, Debug)]
pub(crate) enum Handshake {
    Initiation {
        bytes: [u8; INITIATION],
        path: Path,
        /// The key of ours that its mac1 names.
        own: usize,
        /// Another shard has passed it on.
        passed: bool,
    },
    Response {
        bytes: [u8; RESPONSE],
        path: Path,
    },
}

/// An initiation that is authentic as far as one X25519 tells, for a static key that this shard does not have.
#[derive(Clone, Debug)]
pub struct Unclaimed {
    /// The static key that it names.
    pub public_key: PublicKey,
    pub(crate) initiation: [u8; INITIATION],
    pub(crate) path: Path,
    pub(crate) own: usize,
}

/// Past this wait of the oldest, the newest go first.
const LATE: Duration = Duration::from_millis(250);
/// Who sent an initiation asks anew after about so long.
const INITIATION_FOR: Duration = Duration::from_secs(1);
/// We ask anew after REKEY_TIMEOUT.
const RESPONSE_FOR: Duration = Duration::from_secs(4);

/// What waits.
#[derive(Debug)]
pub(crate) struct Handshakes {
    bound: usize,
    first: VecDeque<(Instant, Handshake)>,
    rest: VecDeque<(Instant, Handshake)>,
    /// Those that waited too long, since somebody asked.
    stale: u64,
}

impl Handshakes {
    pub(crate) fn new(bound: usize) -> Self {
        Self { bound, first: VecDeque::new(), rest: VecDeque::new(), stale: 0 }
    }

    /// Queues one; false when that queue is full. `first`: it answers us, or comes from where a peer of ours is.
    pub(crate) fn push(&mut self, handshake: Handshake, first: bool, now: Instant) -> bool {
        let queue = if first { &mut self.first } else { &mut self.rest };
        let fits = queue.len() < self.bound;
        if fits {
            queue.push_back((now, handshake));
        }
        fits
    }

    pub(crate) fn pop(&mut self, now: Instant) -> Option<Handshake> {
        [&mut self.first, &mut self.rest].into_iter().find_map(|queue| next(queue, &mut self.stale, now))
    }

    /// How many waited too long since the last call.
    pub(crate) fn take_stale(&mut self) -> u64 {
        std::mem::take(&mut self.stale)
    }

    pub(crate) fn len(&self) -> usize {
        self.first.len() + self.rest.len()
    }
}

fn next(queue: &mut VecDeque<(Instant, Handshake)>, stale: &mut u64, now: Instant) -> Option<Handshake> {
    let waited = |since: Instant| now.saturating_duration_since(since);
    while queue.front().is_some_and(|(since, handshake)| waited(*since) > handshake.lasts()) {
        queue.pop_front();
        *stale += 1;
    }
    let (oldest, _) = queue.front()?;
    let next = if waited(*oldest) > LATE { queue.pop_back() } else { queue.pop_front() };
    next.map(|(_, handshake)| handshake)
}

impl Handshake {
    /// How long an answer to it is worth something.
    fn lasts(&self) -> Duration {
        match self {
            Self::Initiation { .. } => INITIATION_FOR,
            Self::Response { .. } => RESPONSE_FOR,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(port: u16) -> Handshake {
        let path = Path { remote: ([10, 0, 0, 1], port).into(), local: None, socket: 0 };
        Handshake::Response { bytes: [0; RESPONSE], path }
    }

    fn initiation(port: u16) -> Handshake {
        let path = Path { remote: ([10, 0, 0, 1], port).into(), local: None, socket: 0 };
        Handshake::Initiation { bytes: [0; INITIATION], path, own: 0, passed: false }
    }

    fn port(handshake: Option<Handshake>) -> Option<u16> {
        handshake.map(|handshake| match handshake {
            Handshake::Response { path, .. } | Handshake::Initiation { path, .. } => path.remote.port(),
        })
    }

    #[test]
    fn known_endpoints_go_first_and_strangers_cannot_fill_their_queue() {
        let mut queue = Handshakes::new(2);
        let now = Instant::now();
        assert_eq!([1, 2, 3].map(|n| queue.push(response(n), false, now)), [true, true, false]);
        assert!(queue.push(response(4), true, now));
        assert_eq!(queue.len(), 3);
        assert_eq!([0; 4].map(|_| port(queue.pop(now))), [Some(4), Some(1), Some(2), None]);
    }

    #[test]
    fn in_a_long_queue_the_newest_goes_first_and_what_nobody_waits_for_goes_unanswered() {
        let mut queue = Handshakes::new(100);
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        for n in 0..10 {
            assert!(queue.push(initiation(n), false, at(u64::from(n) * 100)));
        }
        assert_eq!(port(queue.pop(at(200))), Some(0), "in time, in order");
        assert_eq!(port(queue.pop(at(900))), Some(9), "late: what has just come is answered in time");
        assert_eq!(port(queue.pop(at(1_350))), Some(8));
        assert_eq!((queue.take_stale(), queue.len()), (3, 4), "1, 2 and 3 have asked again");
        assert_eq!(port(queue.pop(at(2_000))), None);
        assert!(queue.push(response(7), false, start));
        assert_eq!(port(queue.pop(at(3_900))), Some(7), "we wait for what we asked for longer");
    }
}
