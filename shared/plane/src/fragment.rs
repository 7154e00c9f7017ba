//! Small paths: one inner packet as two IPv6 fragments, and back (RFC 8200 §4.5).
//!
//! Only our own shape is put together again: exactly two fragments, no options. Memory is bounded: [`PER_PEER`] halves
//! for each peer, [`IN_ALL`] in all, one second each. It must never let one peer's half meet another's.

use std::time::{Duration, Instant};

use culvert_engine::PeerId;

use crate::wrap::{self, Addresses, NEXT_FRAGMENT};

/// Inner packets over this many bytes are split on a small path.
pub(crate) const WHOLE_LIMIT: usize = 1120;
/// A half waits this long for the other one.
const PATIENCE: Duration = Duration::from_secs(1);
const PER_PEER: usize = 32;
const IN_ALL: usize = 256;
const HEADER_LEN: usize = 8;
/// More than the largest inner packet of a 1500-byte path.
const MAX_BODY: usize = 4096;

/// Splits a whole packet in two halves that seal to the same length where that is possible, so that they share a send.
///
/// `false`: the packet is not IPv6 with a body worth splitting; nothing is written.
pub(crate) fn split(packet: &[u8], id: u32, first: &mut Vec<u8>, second: &mut Vec<u8>) -> bool {
    let Some(opened) = wrap::open(packet) else { return false };
    let at = (opened.body.len() / 2).next_multiple_of(16);
    let Some((head, tail)) = opened.body.split_at_checked(at) else { return false };
    if tail.is_empty() {
        return false;
    }
    write(&opened.addresses, opened.next, id, 0, true, head, first)
        && write(&opened.addresses, opened.next, id, at, false, tail, second)
}

fn write(addresses: &Addresses, next: u8, id: u32, offset: usize, more: bool, body: &[u8], out: &mut Vec<u8>) -> bool {
    let (Ok(length), Ok(offset)) = (u16::try_from(body.len() + HEADER_LEN), u16::try_from(offset)) else {
        return false;
    };
    wrap::write_ipv6(addresses, NEXT_FRAGMENT, length, out);
    let mut header = [0; HEADER_LEN];
    header[0] = next;
    header[2..4].copy_from_slice(&(offset | u16::from(more)).to_be_bytes());
    header[4..8].copy_from_slice(&id.to_be_bytes());
    out.extend_from_slice(&header);
    out.extend_from_slice(body);
    true
}

/// Halves that wait for their other half.
#[derive(Debug, Default)]
pub(crate) struct Reassembly {
    waiting: Vec<Half>,
    /// Buffers to use again.
    spare: Vec<Vec<u8>>,
}

#[derive(Debug)]
struct Half {
    peer: PeerId,
    id: u32,
    next: u8,
    offset: usize,
    since: Instant,
    body: Vec<u8>,
}

impl Reassembly {
    /// Takes one fragment's body (behind the IPv6 header) and writes the whole packet to `out` when it is complete.
    ///
    /// `false`: nothing came out, because the other half is missing or the fragment is not of our shape.
    pub(crate) fn handle_fragment(
        &mut self,
        peer: PeerId,
        addresses: &Addresses,
        fragment: &[u8],
        now: Instant,
        out: &mut Vec<u8>,
    ) -> bool {
        let Some((header, body)) = fragment.split_first_chunk::<HEADER_LEN>() else { return false };
        let field = u16::from_be_bytes([header[2], header[3]]);
        let (offset, more) = (usize::from(field & !7), field & 1 == 1);
        let id = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
        // A first half ends where the second starts, on a multiple of eight; a second half is the last.
        let shape = if offset == 0 { more && body.len().is_multiple_of(8) } else { !more };
        if !shape || body.is_empty() || offset + body.len() > MAX_BODY {
            return false;
        }
        self.forget_before(now);
        let other = self.waiting.iter().position(|half| half.peer == peer && half.id == id && half.next == header[0]);
        let Some(other) = other else {
            self.keep(Half { peer, id, next: header[0], offset, since: now, body: Vec::new() }, body);
            return false;
        };
        let half = self.waiting.swap_remove(other);
        let (head, tail, at) =
            if half.offset == 0 { (&half.body[..], body, offset) } else { (body, &half.body[..], half.offset) };
        // Two first halves, two second ones, overlap or a gap: both are dropped (RFC 5722).
        let fits = (half.offset == 0) != (offset == 0) && head.len() == at;
        if let (true, Ok(length)) = (fits, u16::try_from(head.len() + tail.len())) {
            out.clear();
            wrap::write_ipv6(addresses, header[0], length, out);
            out.extend_from_slice(head);
            out.extend_from_slice(tail);
        }
        self.spare.push(half.body);
        fits
    }

    /// Drops what a peer that is gone has left.
    pub(crate) fn forget(&mut self, peer: PeerId) {
        self.waiting.retain(|half| half.peer != peer);
    }

    fn forget_before(&mut self, now: Instant) {
        let Self { waiting, spare } = self;
        waiting.retain_mut(|half| {
            let fresh = now.saturating_duration_since(half.since) < PATIENCE;
            if !fresh && spare.len() < IN_ALL {
                spare.push(std::mem::take(&mut half.body));
            }
            fresh
        });
    }

    fn keep(&mut self, mut half: Half, body: &[u8]) {
        let of_peer = self.waiting.iter().filter(|waiting| waiting.peer == half.peer);
        if of_peer.clone().count() >= PER_PEER || self.waiting.len() >= IN_ALL {
            // The peer's own oldest makes room; without one the newcomer is dropped.
            let oldest = of_peer.map(|waiting| (waiting.since, waiting.id)).min();
            let Some((_, id)) = oldest else { return };
            self.waiting.retain(|waiting| waiting.peer != half.peer || waiting.id != id);
        }
        half.body = self.spare.pop().unwrap_or_default();
        half.body.clear();
        half.body.extend_from_slice(body);
        self.waiting.push(half);
    }
}

#[cfg(test)]
mod tests {
    use culvert_engine::{Config, Engine, HandshakeLimits, PeerConfig, Shard};
    use culvert_model::address::{BOOTSTRAP_INNER, RELAY_INNER};
    use culvert_model::key::PrivateKey;
    use proptest::prelude::*;

    use super::*;
    use crate::wrap::{HELLO_PORT, QUIC_PORT};

    const ADDRESSES: Addresses = Addresses { source: BOOTSTRAP_INNER, destination: RELAY_INNER };

    /// Names as the engine gives them.
    fn peers() -> [PeerId; 2] {
        let now = Instant::now();
        let (statics, handshakes) = (vec![PrivateKey::generate()], HandshakeLimits::default());
        let mut engine = Engine::new(Config { statics, shard: Shard::default(), handshakes, seed: None }, now);
        [1, 2].map(|_| {
            let public_key = PrivateKey::generate().public_key();
            let (psks, allowed_ips) = (Vec::new(), Vec::new());
            let (path, persistent_keepalive) = (None, None);
            let peer = PeerConfig { public_key, static_index: 0, psks, allowed_ips, path, persistent_keepalive };
            engine.add_peer(peer, now).unwrap()
        })
    }

    fn packet(length: usize) -> Vec<u8> {
        let payload: Vec<u8> = (0..length).map(|at| at as u8).collect();
        let mut packet = Vec::new();
        assert!(wrap::write_udp(&ADDRESSES, QUIC_PORT, &payload, &mut packet));
        packet
    }

    fn halves(packet: &[u8], id: u32) -> [Vec<u8>; 2] {
        let (mut first, mut second) = (Vec::new(), Vec::new());
        assert!(split(packet, id, &mut first, &mut second));
        [first, second]
    }

    /// Gives one sealed and opened fragment, padding included, to the reassembly.
    fn give(reassembly: &mut Reassembly, peer: PeerId, half: &[u8], now: Instant, out: &mut Vec<u8>) -> bool {
        let mut padded = half.to_vec();
        padded.resize(half.len().next_multiple_of(16), 0);
        let opened = wrap::open(&padded).unwrap();
        assert_eq!(opened.next, NEXT_FRAGMENT);
        reassembly.handle_fragment(peer, &opened.addresses, opened.body, now, out)
    }

    #[test]
    fn two_halves_in_any_order_make_the_packet_again() {
        let ([peer, _], now) = (peers(), Instant::now());
        for length in [1073, 1200, 1201, 1207, 1392] {
            let packet = packet(length);
            for swap in [false, true] {
                let (mut reassembly, mut out) = (Reassembly::default(), Vec::new());
                let mut halves = halves(&packet, 7);
                assert!(halves.iter().all(|half| half.len() <= WHOLE_LIMIT));
                if swap {
                    halves.reverse();
                }
                assert!(!give(&mut reassembly, peer, &halves[0], now, &mut out));
                assert!(give(&mut reassembly, peer, &halves[1], now, &mut out), "{length}");
                assert_eq!(out, packet);
                assert!(reassembly.waiting.is_empty());
            }
        }
    }

    #[test]
    fn the_halves_of_a_full_packet_seal_to_one_size() {
        let [first, second] = halves(&packet(1200), 1).map(|half| half.len().next_multiple_of(16));
        assert_eq!(first, second);
    }

    #[test]
    fn halves_of_two_peers_or_two_packets_never_meet() {
        let ([one, other], now) = (peers(), Instant::now());
        let (mut reassembly, mut out) = (Reassembly::default(), Vec::new());
        let (of_seven, of_eight) = (halves(&packet(1200), 7), halves(&packet(1200), 8));
        assert!(!give(&mut reassembly, one, &of_seven[0], now, &mut out));
        assert!(!give(&mut reassembly, other, &of_seven[1], now, &mut out));
        assert!(!give(&mut reassembly, one, &of_eight[1], now, &mut out));
        assert!(out.is_empty());
    }

    #[test]
    fn a_half_waits_one_second_and_no_peer_takes_all_the_room() {
        let ([one, other], now) = (peers(), Instant::now());
        let (mut reassembly, mut out) = (Reassembly::default(), Vec::new());
        let [first, second] = halves(&packet(1200), 0);
        assert!(!give(&mut reassembly, other, &first, now, &mut out));
        for id in 1..1000 {
            assert!(!give(&mut reassembly, one, &halves(&packet(1200), id)[0], now, &mut out));
        }
        assert_eq!(reassembly.waiting.len(), PER_PEER + 1);
        assert!(give(&mut reassembly, other, &second, now + PATIENCE / 2, &mut out), "still there");
        assert!(!give(&mut reassembly, one, &halves(&packet(1200), 999)[1], now + PATIENCE, &mut out), "too late");
        assert!(reassembly.waiting.len() <= 1);
    }

    #[test]
    fn overlaps_and_gaps_are_dropped() {
        let ([peer, _], now) = (peers(), Instant::now());
        let (shorter, longer) = (halves(&packet(1100), 3), halves(&packet(1392), 3));
        for pair in [[&shorter[0], &longer[1]], [&longer[0], &shorter[1]], [&longer[0], &shorter[0]]] {
            let (mut reassembly, mut out) = (Reassembly::default(), Vec::new());
            assert!(!give(&mut reassembly, peer, pair[0], now, &mut out));
            assert!(!give(&mut reassembly, peer, pair[1], now, &mut out));
            assert!(out.is_empty());
        }
    }

    #[test]
    fn what_has_no_body_to_split_stays_whole() {
        let mut small = Vec::new();
        assert!(wrap::write_udp(&ADDRESSES, HELLO_PORT, b"", &mut small));
        assert!(!split(&small, 1, &mut Vec::new(), &mut Vec::new()));
        assert!(!split(b"junk", 1, &mut Vec::new(), &mut Vec::new()));
    }

    proptest! {
        #[test]
        fn any_fragments_are_taken_without_a_panic_and_within_bounds(
            fragments in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..80),
        ) {
            let ([peer, _], now) = (peers(), Instant::now());
            let (mut reassembly, mut out) = (Reassembly::default(), Vec::new());
            for fragment in &fragments {
                reassembly.handle_fragment(peer, &ADDRESSES, fragment, now, &mut out);
            }
            prop_assert!(reassembly.waiting.len() <= PER_PEER);
        }
    }
}
