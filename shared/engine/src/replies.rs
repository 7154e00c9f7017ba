//! Datagrams that the engine wants sent and that are not data: handshake messages, cookies, keepalives.
//!
//! Must never grow with what a peer sends: one call of the engine adds a few, and the owner drains them after it.

use std::ops::Range;

use crate::config::Path;

/// Datagrams to send, in order. Keeps its memory from turn to turn.
#[derive(Default, Debug)]
pub struct Replies {
    bytes: Vec<u8>,
    spans: Vec<(Path, Range<usize>)>,
    drained: bool,
}

impl Replies {
    /// Appends one datagram.
    pub fn push(&mut self, path: Path, datagram: &[u8]) {
        if self.drained {
            self.clear();
        }
        let start = self.bytes.len();
        self.bytes.extend_from_slice(datagram);
        self.spans.push((path, start..self.bytes.len()));
    }

    /// Hands out what waits, in order; from then on nothing waits, whether or not the iterator is used up.
    pub fn drain(&mut self) -> impl ExactSizeIterator<Item = (Path, &[u8])> {
        if self.drained {
            self.clear();
        }
        self.drained = true;
        let Self { bytes, spans, .. } = self;
        spans.iter().map(|(path, span)| (*path, bytes.get(span.clone()).unwrap_or_default()))
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        if self.drained { 0 } else { self.spans.len() }
    }

    /// None waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.spans.clear();
        self.drained = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_drained_is_gone_and_order_is_kept() {
        let path = Path { remote: ([127, 0, 0, 1], 1).into(), local: None, socket: 0 };
        let mut replies = Replies::default();
        replies.push(path, b"one");
        replies.push(path, b"two");
        let out: Vec<_> = replies.drain().map(|(_, bytes)| bytes.to_vec()).collect();
        assert_eq!(out, [b"one", b"two"]);
        assert!(replies.is_empty());
        assert_eq!(replies.drain().len(), 0);
        replies.push(path, b"three");
        assert_eq!(replies.drain().next().map(|(_, bytes)| bytes.len()), Some(5));
    }
}
