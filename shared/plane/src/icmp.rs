//! ICMPv6 echo (RFC 4443 §4): `ping` through a tunnel works for anyone with a WireGuard tool.
//!
//! It must never answer anything but an echo request with a right checksum.

use std::net::Ipv6Addr;

use crate::wrap::{self, Addresses, NEXT_ICMPV6};

const ECHO_REQUEST: u8 = 128;
const ECHO_REPLY: u8 = 129;
/// Type, code, checksum, identifier, sequence number.
const HEADER_LEN: usize = 8;

/// Writes the reply to an echo request. `false`: it is none; nothing is written.
pub(crate) fn answer(addresses: &Addresses, request: &[u8], out: &mut Vec<u8>) -> bool {
    let Ok(length) = u16::try_from(request.len()) else { return false };
    let echo = request.len() >= HEADER_LEN && request[0] == ECHO_REQUEST && request[1] == 0;
    if !echo || checksum(addresses, request) != 0 || addresses.source.is_multicast() {
        return false;
    }
    let back = Addresses { source: addresses.destination, destination: addresses.source };
    let start = out.len() + wrap::IPV6_LEN;
    wrap::write_ipv6(&back, NEXT_ICMPV6, length, out);
    out.extend_from_slice(request);
    let message = &mut out[start..];
    message[0] = ECHO_REPLY;
    message[2..4].fill(0);
    let sum = checksum(&back, message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    true
}

/// The Internet checksum over pseudo-header and message (RFC 8200 §8.1); zero over a message that holds the right one.
fn checksum(addresses: &Addresses, message: &[u8]) -> u16 {
    let words = |address: &Ipv6Addr| address.segments().into_iter().map(u64::from).sum::<u64>();
    let mut sum = words(&addresses.source) + words(&addresses.destination);
    sum += message.len() as u64 + u64::from(NEXT_ICMPV6);
    let pairs = message.chunks_exact(2);
    sum += pairs.remainder().first().map_or(0, |&last| u64::from(last) << 8);
    sum += pairs.map(|pair| u64::from(u16::from_be_bytes([pair[0], pair[1]]))).sum::<u64>();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
pub(crate) mod testing {
    use super::{Addresses, ECHO_REQUEST, checksum};

    /// As `ping` writes it: the bytes behind the IPv6 header.
    pub(crate) fn request(addresses: &Addresses) -> Vec<u8> {
        let mut message = vec![ECHO_REQUEST, 0, 0, 0, 0x12, 0x34, 0, 1, b'a', b'b', b'c'];
        let sum = checksum(addresses, &message);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        message
    }
}

#[cfg(test)]
mod tests {
    use super::testing::request;
    use super::*;

    fn addresses() -> Addresses {
        Addresses { source: "fd43:554c:5645::aa".parse().unwrap(), destination: "fd43:554c:5645::1".parse().unwrap() }
    }

    #[test]
    fn the_checksum_agrees_with_one_worked_out_by_hand() {
        // Sums of 16-bit words: ::1 and ::1 give 2, length 8, next header 58, type 0x8000, identifier 1, sequence 1.
        let loopback = Addresses { source: Ipv6Addr::LOCALHOST, destination: Ipv6Addr::LOCALHOST };
        let sum = 2 + 8 + 58 + 0x8000 + 1 + 1;
        assert_eq!(checksum(&loopback, &[ECHO_REQUEST, 0, 0, 0, 0, 1, 0, 1]), !sum);
    }

    #[test]
    fn an_echo_request_gets_its_data_back_with_a_right_checksum() {
        let addresses = addresses();
        let mut reply = Vec::new();
        assert!(answer(&addresses, &request(&addresses), &mut reply));
        let packet = wrap::open(&reply).unwrap();
        assert_eq!(packet.addresses.source, addresses.destination);
        assert_eq!(packet.addresses.destination, addresses.source);
        assert_eq!((packet.next, packet.body[0]), (NEXT_ICMPV6, ECHO_REPLY));
        assert_eq!(&packet.body[4..], &[0x12, 0x34, 0, 1, b'a', b'b', b'c']);
        assert_eq!(checksum(&packet.addresses, packet.body), 0);
    }

    #[test]
    fn anything_else_gets_no_answer() {
        let addresses = addresses();
        let mut reply = Vec::new();
        let mut wrong = request(&addresses);
        wrong[9] ^= 1;
        assert!(!answer(&addresses, &wrong, &mut reply));
        let mut unreachable = request(&addresses);
        unreachable[0] = 1;
        assert!(!answer(&addresses, &unreachable, &mut reply));
        for cut in 0..HEADER_LEN {
            assert!(!answer(&addresses, &request(&addresses)[..cut], &mut reply));
        }
        assert!(reply.is_empty());
    }
}
