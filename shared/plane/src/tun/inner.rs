//! Inner packets as the device carries them: where the headers end, who speaks to whom.
//!
//! It must never read behind what the header says, nor accept a header that says more than there is.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub(crate) const ICMP: u8 = 1;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const ICMPV6: u8 = 58;
pub(crate) const IPV4_LEN: usize = 20;
pub(crate) const IPV6_LEN: usize = 40;

/// What an IP header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    /// The first next header; extension headers are not followed.
    pub(crate) protocol: u8,
    /// Bytes of the IP header, options of IPv4 included.
    pub(crate) header: usize,
    /// Bytes of the whole packet.
    pub(crate) total: usize,
    /// A part of a packet other than a whole one (IPv4).
    pub(crate) fragment: bool,
}

impl Head {
    /// Reads one; what stands behind the packet's end (WireGuard pads) is not looked at.
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]));
        let head = match bytes.first()? >> 4 {
            4 => {
                let fixed = bytes.first_chunk::<IPV4_LEN>()?;
                let header = usize::from(fixed[0] & 15) * 4;
                let total = usize::from(word(2)?);
                let address = |at: usize| Ipv4Addr::new(fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]).into();
                if header < IPV4_LEN || total < header {
                    return None;
                }
                let fragment = word(6)? & 0x3fff != 0;
                let (source, destination) = (address(12), address(16));
                Self { source, destination, protocol: fixed[9], header, total, fragment }
            }
            6 => {
                let fixed = bytes.first_chunk::<IPV6_LEN>()?;
                let address = |at: usize| {
                    let mut octets = [0; 16];
                    octets.copy_from_slice(&fixed[at..at + 16]);
                    IpAddr::V6(Ipv6Addr::from(octets))
                };
                let total = IPV6_LEN + usize::from(word(4)?);
                let (source, destination) = (address(8), address(24));
                Self { source, destination, protocol: fixed[6], header: IPV6_LEN, total, fragment: false }
            }
            _ => return None,
        };
        (head.total <= bytes.len()).then_some(head)
    }

    pub(crate) fn is_v6(&self) -> bool {
        self.source.is_ipv6()
    }
}

/// Puts a length and a right checksum into an IP header without touching anything else.
pub(crate) fn set_length(packet: &mut [u8], head: &Head, total: usize) {
    if head.is_v6() {
        let length = u16::try_from(total - IPV6_LEN).unwrap_or(u16::MAX);
        packet[4..6].copy_from_slice(&length.to_be_bytes());
    } else {
        let length = u16::try_from(total).unwrap_or(u16::MAX);
        packet[2..4].copy_from_slice(&length.to_be_bytes());
        packet[10..12].fill(0);
        let sum = !super::checksum::fold(super::checksum::sum(&packet[..head.header]));
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use std::net::IpAddr;

    use super::*;
    use crate::tun::checksum;

    /// An IP packet around a transport's bytes.
    pub(crate) fn packet(source: IpAddr, destination: IpAddr, protocol: u8, body: &[u8]) -> Vec<u8> {
        let mut packet = match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let mut header = vec![0; IPV4_LEN];
                (header[0], header[6], header[8], header[9]) = (0x45, 0x40, 64, protocol);
                header[12..16].copy_from_slice(&source.octets());
                header[16..20].copy_from_slice(&destination.octets());
                header
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let mut header = vec![0; IPV6_LEN];
                (header[0], header[6], header[7]) = (0x60, protocol, 64);
                header[8..24].copy_from_slice(&source.octets());
                header[24..40].copy_from_slice(&destination.octets());
                header
            }
            _ => panic!("one family"),
        };
        packet.extend_from_slice(body);
        let total = packet.len();
        let bare = Head { source, destination, protocol, header: total - body.len(), total, fragment: false };
        set_length(&mut packet, &bare, total);
        packet
    }

    /// A TCP segment of this flow.
    pub(crate) fn tcp(source: IpAddr, destination: IpAddr, sequence: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut body = vec![0; 32];
        body[0..4].copy_from_slice(&[0x12, 0x34, 0, 80]);
        body[4..8].copy_from_slice(&sequence.to_be_bytes());
        body[8..12].copy_from_slice(&7_u32.to_be_bytes());
        (body[12], body[13]) = (8 << 4, flags);
        body[14..16].copy_from_slice(&500_u16.to_be_bytes());
        // NOP, NOP, timestamps.
        body[20..32].copy_from_slice(&[1, 1, 8, 10, 0, 0, 0, 9, 0, 0, 0, 8]);
        body.extend_from_slice(payload);
        let sum = checksum::pseudo(source, destination, TCP, body.len()) + checksum::sum(&body);
        body[16..18].copy_from_slice(&(!checksum::fold(sum)).to_be_bytes());
        packet(source, destination, TCP, &body)
    }

    /// Whether every checksum in it is right.
    pub(crate) fn is_right(packet: &[u8]) -> bool {
        let Some(head) = Head::read(packet) else { return false };
        let body = &packet[head.header..head.total];
        let transport = checksum::pseudo(head.source, head.destination, head.protocol, body.len());
        let transport = if head.protocol == ICMP { 0 } else { transport };
        let header = head.is_v6() || checksum::fold(checksum::sum(&packet[..head.header])) == 0xffff;
        header && checksum::fold(transport + checksum::sum(body)) == 0xffff
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::testing::tcp;
    use super::*;

    #[test]
    fn a_header_that_is_cut_or_claims_too_much_is_refused() {
        for (source, destination) in [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")] {
            let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
            let packet = tcp(source, destination, 1, 0x10, b"abc");
            let head = Head::read(&packet).unwrap();
            assert_eq!(
                (head.source, head.destination, head.protocol, head.total),
                (source, destination, TCP, packet.len())
            );
            assert!(testing::is_right(&packet));
            for cut in 0..packet.len() {
                assert!(Head::read(&packet[..cut]).is_none(), "{cut}");
            }
            let mut padded = packet.clone();
            padded.extend([0; 15]);
            assert_eq!(Head::read(&padded), Some(head));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            if let Some(head) = Head::read(&bytes) {
                prop_assert!(head.header <= head.total && head.total <= bytes.len());
            }
        }
    }
}
