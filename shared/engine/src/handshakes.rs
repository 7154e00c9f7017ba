//! Handshake messages that wait for their Diffie-Hellman: two bounded queues, those of known endpoints first.
//!
//! Must never grow past its bound, and never be worked off between the data packets of one turn.

use std::collections::VecDeque;

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

/// What waits.
#[derive(Debug)]
pub(crate) struct Handshakes {
    bound: usize,
    first: VecDeque<Handshake>,
    rest: VecDeque<Handshake>,
}

impl Handshakes {
    pub(crate) fn new(bound: usize) -> Self {
        Self { bound, first: VecDeque::new(), rest: VecDeque::new() }
    }

    /// Queues one; false when that queue is full. `first`: it answers us, or comes from where a peer of ours is.
    pub(crate) fn push(&mut self, handshake: Handshake, first: bool) -> bool {
        let queue = if first { &mut self.first } else { &mut self.rest };
        let fits = queue.len() < self.bound;
        if fits {
            queue.push_back(handshake);
        }
        fits
    }

    pub(crate) fn pop(&mut self) -> Option<Handshake> {
        self.first.pop_front().or_else(|| self.rest.pop_front())
    }

    pub(crate) fn len(&self) -> usize {
        self.first.len() + self.rest.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_endpoints_go_first_and_strangers_cannot_fill_their_queue() {
        let message = |port: u16| Handshake::Response {
            bytes: [0; RESPONSE],
            path: Path { remote: ([10, 0, 0, 1], port).into(), local: None, socket: 0 },
        };
        let port = |handshake: Option<Handshake>| match handshake {
            Some(Handshake::Response { path, .. }) => path.remote.port(),
            other => panic!("{other:?}"),
        };
        let mut queue = Handshakes::new(2);
        assert_eq!([1, 2, 3].map(|n| queue.push(message(n), false)), [true, true, false]);
        assert!(queue.push(message(4), true));
        assert_eq!(queue.len(), 3);
        assert_eq!([0; 3].map(|_| port(queue.pop())), [4, 1, 2]);
        assert!(queue.pop().is_none());
    }
}
