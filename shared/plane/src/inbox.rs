//! What was opened in one turn and is QUIC's: payloads, each with its peer's synthetic address.

use std::net::SocketAddr;

use bytes::BytesMut;

/// Payloads stand side by side in allocations of this size: a byte of a stream that nobody reads keeps as much at most.
const CHUNK: usize = 16 * 1024;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    payloads: Vec<(SocketAddr, BytesMut)>,
    chunk: BytesMut,
}

impl Inbox {
    pub(crate) fn len(&self) -> usize {
        self.payloads.len()
    }

    /// Adds one payload of the peer at the synthetic address. `false`: it is empty.
    pub(crate) fn put(&mut self, from: SocketAddr, payload: &[u8]) -> bool {
        if payload.is_empty() {
            return false;
        }
        if self.chunk.capacity() < payload.len() {
            // Takes the old one again where nobody holds a part of it.
            self.chunk.reserve(CHUNK.max(payload.len()));
        }
        self.chunk.extend_from_slice(payload);
        self.payloads.push((from, self.chunk.split()));
        true
    }

    /// Takes all of them, in order.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = (SocketAddr, BytesMut)> {
        self.payloads.drain(..)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_come_out_as_they_went_in() {
        let mut inbox = Inbox::default();
        let from = |port| SocketAddr::from(([0x100, 0, 0, 0, 0, 0, 0, 1], port));
        let lengths = [1, 1400, 70, CHUNK - 100, 1400, CHUNK + 1, 9];
        for (port, length) in (1..).zip(lengths) {
            assert!(inbox.put(from(port), &vec![port as u8; length]));
        }
        assert!(!inbox.put(from(9), &[]));
        assert_eq!(inbox.len(), lengths.len());
        let all: Vec<_> = inbox.drain().collect();
        for ((port, length), (at, payload)) in (1..).zip(lengths).zip(&all) {
            assert_eq!((*at, &payload[..]), (from(port), &vec![port as u8; length][..]));
        }
        assert_eq!(inbox.len(), 0);
    }
}
