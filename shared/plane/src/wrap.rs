//! Inner packets: an IPv6 header, a UDP header without checksum, and what QUIC or the hello want carried.
//!
//! The checksum is zero on purpose (RFC 6935, RFC 6936): WireGuard has authenticated every byte. Sizes are checked
//! before a byte is used; this module must never trust an address inside a packet to say who sent it.

use std::net::Ipv6Addr;

/// The UDP port, both ends, of QUIC inside the tunnel.
pub(crate) const QUIC_PORT: u16 = 5645;
/// The UDP port, both ends, of the hello inside the tunnel.
pub(crate) const HELLO_PORT: u16 = 5646;

pub(crate) const IPV6_LEN: usize = 40;
pub(crate) const UDP_LEN: usize = 8;
/// What goes in front of a payload.
pub(crate) const OVERHEAD: usize = IPV6_LEN + UDP_LEN;

pub(crate) const NEXT_UDP: u8 = 17;
pub(crate) const NEXT_FRAGMENT: u8 = 44;
pub(crate) const NEXT_ICMPV6: u8 = 58;

const HOP_LIMIT: u8 = 64;

/// Both addresses of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Addresses {
    pub(crate) source: Ipv6Addr,
    pub(crate) destination: Ipv6Addr,
}

/// An IPv6 packet whose lengths agree, without what stands behind its end (WireGuard pads).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Packet<'a> {
    pub(crate) addresses: Addresses,
    pub(crate) next: u8,
    pub(crate) body: &'a [u8],
}

/// Reads an IPv6 header. `None`: another IP version, or the lengths do not agree.
pub(crate) fn open(bytes: &[u8]) -> Option<Packet<'_>> {
    let (header, rest) = bytes.split_first_chunk::<IPV6_LEN>()?;
    if header[0] >> 4 != 6 {
        return None;
    }
    let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
    let (source, destination) = (address(header, 8), address(header, 24));
    Some(Packet { addresses: Addresses { source, destination }, next: header[6], body: rest.get(..length)? })
}

/// Reads a UDP header: the destination port and the payload. `None` unless both ports are the same, the length is
/// exact and the checksum is zero, as our own end writes them.
pub(crate) fn open_udp(body: &[u8]) -> Option<(u16, &[u8])> {
    let (header, payload) = body.split_first_chunk::<UDP_LEN>()?;
    let field = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    let exact = usize::from(field(4)) == body.len();
    (exact && field(0) == field(2) && field(6) == 0).then_some((field(2), payload))
}

/// Appends an IPv6 header for `length` bytes that follow it.
pub(crate) fn write_ipv6(addresses: &Addresses, next: u8, length: u16, out: &mut Vec<u8>) {
    let mut header = [0; IPV6_LEN];
    header[0] = 6 << 4;
    header[4..6].copy_from_slice(&length.to_be_bytes());
    header[6] = next;
    header[7] = HOP_LIMIT;
    header[8..24].copy_from_slice(&addresses.source.octets());
    header[24..40].copy_from_slice(&addresses.destination.octets());
    out.extend_from_slice(&header);
}

/// Appends a whole UDP packet. `false`, and nothing is appended: the payload does not fit a length field.
pub(crate) fn write_udp(addresses: &Addresses, port: u16, payload: &[u8], out: &mut Vec<u8>) -> bool {
    let Ok(length) = u16::try_from(payload.len() + UDP_LEN) else { return false };
    write_ipv6(addresses, NEXT_UDP, length, out);
    let mut header = [0; UDP_LEN];
    header[0..2].copy_from_slice(&port.to_be_bytes());
    header[2..4].copy_from_slice(&port.to_be_bytes());
    header[4..6].copy_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&header);
    out.extend_from_slice(payload);
    true
}

fn address(header: &[u8; IPV6_LEN], at: usize) -> Ipv6Addr {
    let mut octets = [0; 16];
    octets.copy_from_slice(&header[at..at + 16]);
    Ipv6Addr::from(octets)
}

#[cfg(test)]
mod tests {
    use culvert_model::address::{BOOTSTRAP_INNER, RELAY_INNER};
    use proptest::prelude::*;

    use super::*;

    const ADDRESSES: Addresses = Addresses { source: BOOTSTRAP_INNER, destination: RELAY_INNER };

    #[test]
    fn a_packet_survives_padding_behind_its_end() {
        let mut packet = Vec::new();
        assert!(write_udp(&ADDRESSES, QUIC_PORT, b"payload", &mut packet));
        assert_eq!(packet.len(), OVERHEAD + 7);
        packet.resize(packet.len().next_multiple_of(16), 0);
        let opened = open(&packet).unwrap();
        assert_eq!((opened.addresses, opened.next), (ADDRESSES, NEXT_UDP));
        assert_eq!(open_udp(opened.body), Some((QUIC_PORT, &b"payload"[..])));
    }

    #[test]
    fn a_packet_that_is_cut_or_lies_about_its_length_is_refused() {
        let mut packet = Vec::new();
        assert!(write_udp(&ADDRESSES, QUIC_PORT, b"payload", &mut packet));
        for cut in 0..packet.len() {
            assert!(open(&packet[..cut]).and_then(|opened| open_udp(opened.body)).is_none(), "{cut}");
        }
        for (at, value) in [(0, 0x40), (41, 1), (44, 9), (46, 1)] {
            let mut wrong = packet.clone();
            wrong[at] ^= value;
            assert!(open(&wrong).and_then(|opened| open_udp(opened.body)).is_none(), "{at}");
        }
    }

    #[test]
    fn a_payload_over_the_length_field_is_refused() {
        let mut packet = Vec::new();
        assert!(!write_udp(&ADDRESSES, QUIC_PORT, &vec![0; 65_528], &mut packet));
        assert!(packet.is_empty());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Some(packet) = open(&bytes) {
                let _ = open_udp(packet.body);
            }
        }
    }
}
