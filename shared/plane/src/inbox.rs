//! The buffers that QUIC reads from: payloads of one peer and one size stand side by side in one of them.
//!
//! It must never join datagrams of two peers, nor write where a payload does not fit.

use std::io::IoSliceMut;
use std::net::SocketAddr;

use quinn_udp::RecvMeta;

/// QUIC's receive buffers during one call.
pub(crate) struct Inbox<'a, 'b> {
    bufs: &'a mut [IoSliceMut<'b>],
    metas: &'a mut [RecvMeta],
    used: usize,
    /// The last buffer takes no more: a shorter datagram ended its run.
    closed: bool,
}

impl<'a, 'b> Inbox<'a, 'b> {
    pub(crate) fn new(bufs: &'a mut [IoSliceMut<'b>], metas: &'a mut [RecvMeta]) -> Self {
        Self { bufs, metas, used: 0, closed: true }
    }

    /// How many buffers hold something.
    pub(crate) fn used(&self) -> usize {
        self.used
    }

    /// Whether any payload that fits a buffer can still be put.
    pub(crate) fn has_room(&self) -> bool {
        self.used < self.bufs.len().min(self.metas.len())
    }

    /// Adds one payload of the peer at the synthetic address. `false`: it fits no buffer.
    pub(crate) fn put(&mut self, from: SocketAddr, payload: &[u8]) -> bool {
        if payload.is_empty() {
            return false;
        }
        let last = self.used.checked_sub(1).filter(|_| !self.closed);
        if let Some((buffer, meta)) = last.and_then(|last| self.slot(last)) {
            let end = meta.len + payload.len();
            if meta.addr == from && payload.len() <= meta.stride && end <= buffer.len() {
                buffer[meta.len..end].copy_from_slice(payload);
                meta.len = end;
                let shorter = payload.len() < meta.stride;
                self.closed = shorter;
                return true;
            }
        }
        let next = self.used;
        let Some((buffer, meta)) = self.slot(next) else { return false };
        let Some(start) = buffer.get_mut(..payload.len()) else { return false };
        start.copy_from_slice(payload);
        *meta = RecvMeta { addr: from, len: payload.len(), stride: payload.len(), ecn: None, dst_ip: None };
        self.used += 1;
        self.closed = false;
        true
    }

    fn slot(&mut self, at: usize) -> Option<(&mut IoSliceMut<'b>, &mut RecvMeta)> {
        self.bufs.get_mut(at).zip(self.metas.get_mut(at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([0x100, 0, 0, 0, 0, 0, 0, 1], port))
    }

    #[test]
    fn payloads_join_by_peer_and_size_and_a_shorter_one_ends_the_run() {
        let mut memory = vec![0; 400];
        let mut bufs: Vec<_> = memory.chunks_mut(100).map(IoSliceMut::new).collect();
        let mut metas = [RecvMeta::default(); 4];
        let mut inbox = Inbox::new(&mut bufs, &mut metas);
        assert!(inbox.put(address(1), &[1; 40]));
        assert!(inbox.put(address(1), &[2; 40]));
        assert!(inbox.put(address(1), &[3; 10]), "ends the first run");
        assert!(inbox.put(address(1), &[4; 10]), "starts the second");
        assert!(inbox.put(address(2), &[5; 10]), "another peer, the third");
        assert!(!inbox.put(address(2), &[6; 101]), "fits nowhere");
        assert!(inbox.has_room());
        assert!(inbox.put(address(2), &[7; 20]), "longer, the fourth");
        assert!(!inbox.has_room());
        assert!(!inbox.put(address(1), &[8; 10]));
        assert_eq!(inbox.used(), 4);
        let shape: Vec<_> = metas.iter().map(|meta| (meta.addr.port(), meta.len, meta.stride)).collect();
        assert_eq!(shape, [(1, 90, 40), (1, 10, 10), (2, 10, 10), (2, 20, 20)]);
        assert_eq!((bufs[0][39], bufs[0][40], bufs[0][80]), (1, 2, 3));
    }
}
