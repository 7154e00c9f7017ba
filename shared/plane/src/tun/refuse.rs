//! What the device answers when a packet can go nowhere: the kernel's TCP learns it at once instead of waiting.
//!
//! A packet of a connection that stands gets a reset, because an ICMP error would not end it; anything else an ICMP error
//! (RFC 792, RFC 4443) that the socket reports. It must never answer an ICMP error, a part of a packet, or what was sent to
//! many (RFC 1122 §3.2.2).

use std::net::IpAddr;

use super::checksum;
use super::inner::{self, Head, ICMP, ICMPV6, TCP};

/// What is quoted of the packet: enough for any transport header.
const QUOTED: usize = 128;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;
const HOPS: u8 = 64;

/// Why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// No peer has that address: the socket reports ENETUNREACH.
    NoRoute,
    /// The peer is not to be reached: EHOSTUNREACH.
    NoSession,
    /// The packet is longer than what a peer takes.
    TooLong(u16),
}

/// Writes the answer to `packet` over `out`. `false`: it gets none.
pub(crate) fn answer(packet: &[u8], head: &Head, refusal: Refusal, out: &mut Vec<u8>) -> bool {
    out.clear();
    let many = |address: IpAddr| match address {
        IpAddr::V4(address) => address.is_multicast() || address.is_broadcast() || address.is_unspecified(),
        IpAddr::V6(address) => address.is_multicast() || address.is_unspecified(),
    };
    if many(head.destination) || many(head.source) || head.fragment {
        return false;
    }
    let body = packet.get(head.header..head.total).unwrap_or_default();
    match head.protocol {
        TCP if refusal == Refusal::NoRoute && body.get(13).is_some_and(|flags| flags & SYN == 0) => {
            reset(body, head, out)
        }
        // Errors of ICMP are 3, 4, 5, 11 and 12; those of ICMPv6 are below 128.
        ICMP if body.first().is_none_or(|kind| [3, 4, 5, 11, 12].contains(kind)) => false,
        ICMPV6 if body.first().is_none_or(|kind| *kind < 128) => false,
        _ => error(packet, head, refusal, out),
    }
}

fn error(packet: &[u8], head: &Head, refusal: Refusal, out: &mut Vec<u8>) -> bool {
    let (kind, code, word) = match (refusal, head.is_v6()) {
        (Refusal::NoRoute, false) => (3, 0, 0),
        (Refusal::NoSession, false) => (3, 1, 0),
        (Refusal::TooLong(mtu), false) => (3, 4, u32::from(mtu)),
        (Refusal::NoRoute, true) => (1, 0, 0),
        (Refusal::NoSession, true) => (1, 3, 0),
        (Refusal::TooLong(mtu), true) => (2, 0, u32::from(mtu)),
    };
    let quoted = packet.get(..head.total.min(head.header + QUOTED)).unwrap_or(packet);
    let start = start(head, if head.is_v6() { ICMPV6 } else { ICMP }, out);
    out.extend_from_slice(&[kind, code, 0, 0]);
    out.extend_from_slice(&word.to_be_bytes());
    out.extend_from_slice(quoted);
    finish(start, if head.is_v6() { Some(ICMPV6) } else { None }, 2, out);
    true
}

/// RFC 9293 §3.10.7.1: what a host says that knows no such connection.
fn reset(segment: &[u8], head: &Head, out: &mut Vec<u8>) -> bool {
    let Some(fixed) = segment.first_chunk::<20>() else { return false };
    if fixed[13] & RST != 0 || fixed[13] & ACK == 0 {
        return false;
    }
    let start = start(head, TCP, out);
    let mut answer = [0; 20];
    answer[0..2].copy_from_slice(&fixed[2..4]);
    answer[2..4].copy_from_slice(&fixed[0..2]);
    answer[4..8].copy_from_slice(&fixed[8..12]);
    (answer[12], answer[13]) = (5 << 4, RST);
    out.extend_from_slice(&answer);
    finish(start, Some(TCP), 16, out);
    true
}

/// An IP header the other way round, as if the destination answered.
fn start(head: &Head, protocol: u8, out: &mut Vec<u8>) -> Head {
    match (head.source, head.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut header = [0; inner::IPV4_LEN];
            (header[0], header[8], header[9]) = (0x45, HOPS, protocol);
            header[12..16].copy_from_slice(&destination.octets());
            header[16..20].copy_from_slice(&source.octets());
            out.extend_from_slice(&header);
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let mut header = [0; inner::IPV6_LEN];
            (header[0], header[6], header[7]) = (0x60, protocol, HOPS);
            header[8..24].copy_from_slice(&destination.octets());
            header[24..40].copy_from_slice(&source.octets());
            out.extend_from_slice(&header);
        }
        // Both addresses come from one header.
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => {}
    }
    let (source, destination) = (head.destination, head.source);
    Head { source, destination, protocol, header: out.len(), total: out.len(), fragment: false }
}

/// Lengths, and the checksum at `field` behind the IP header; over a pseudo-header where the protocol has one.
fn finish(head: Head, pseudo: Option<u8>, field: usize, out: &mut [u8]) {
    let total = out.len();
    inner::set_length(out, &head, total);
    let body = &mut out[head.header..];
    let pseudo = pseudo.map_or(0, |of| checksum::pseudo(head.source, head.destination, of, body.len()));
    let sum = !checksum::fold(pseudo + checksum::sum(body));
    body[field..field + 2].copy_from_slice(&sum.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::super::inner::testing::{is_right, packet, tcp};
    use super::*;

    fn ask(packet: &[u8], refusal: Refusal) -> Option<Vec<u8>> {
        let mut out = vec![1, 2, 3];
        answer(packet, &Head::read(packet).unwrap(), refusal, &mut out).then_some(out)
    }

    fn ends(v6: bool) -> (IpAddr, IpAddr) {
        let texts = if v6 { ["fd43:554c:5645::1", "fd00::5"] } else { ["100.64.0.1", "10.20.0.5"] };
        let [source, destination] = texts.map(|text| text.parse().unwrap());
        (source, destination)
    }

    #[test]
    fn a_connect_that_leads_nowhere_gets_an_error_that_quotes_it() {
        for (v6, refusal, kind) in [
            (false, Refusal::NoRoute, [3, 0]),
            (false, Refusal::NoSession, [3, 1]),
            (false, Refusal::TooLong(1300), [3, 4]),
            (true, Refusal::NoRoute, [1, 0]),
            (true, Refusal::NoSession, [1, 3]),
            (true, Refusal::TooLong(1300), [2, 0]),
        ] {
            let (from, to) = ends(v6);
            let syn = tcp(from, to, 77, SYN, b"");
            let answer = ask(&syn, refusal).unwrap();
            assert!(is_right(&answer), "{refusal:?}");
            let head = Head::read(&answer).unwrap();
            assert_eq!((head.source, head.destination), (to, from));
            let body = &answer[head.header..];
            assert_eq!(body[..2], kind);
            assert_eq!(&body[8..], &syn[..]);
            if let Refusal::TooLong(mtu) = refusal {
                assert_eq!(body[6..8], mtu.to_be_bytes());
            }
        }
    }

    #[test]
    fn a_connection_that_stands_is_reset_where_no_route_is_left_and_only_there() {
        for v6 in [false, true] {
            let (from, to) = ends(v6);
            let data = tcp(from, to, 77, ACK, b"data");
            let answer = ask(&data, Refusal::NoRoute).unwrap();
            assert!(is_right(&answer));
            let head = Head::read(&answer).unwrap();
            let body = &answer[head.header..];
            assert_eq!((head.protocol, body[13], &body[4..8]), (TCP, RST, &7_u32.to_be_bytes()[..]));
            assert_eq!((&body[0..2], &body[2..4]), (&[0, 80][..], &[0x12, 0x34][..]));
            assert_eq!(
                Head::read(&ask(&data, Refusal::NoSession).unwrap()).unwrap().protocol,
                if v6 { ICMPV6 } else { ICMP }
            );
            assert!(ask(&tcp(from, to, 77, RST, b""), Refusal::NoRoute).is_none());
        }
    }

    #[test]
    fn errors_parts_and_what_goes_to_many_get_no_answer() {
        let (from, to) = ends(false);
        let many: IpAddr = "224.0.0.1".parse().unwrap();
        let mut part = packet(from, to, inner::UDP, &[0; 20]);
        part[7] = 9;
        for packet in [packet(from, to, ICMP, &[3, 1, 0, 0]), packet(from, many, inner::UDP, &[0; 20]), part] {
            assert!(ask(&packet, Refusal::NoRoute).is_none());
        }
        let (from, to) = ends(true);
        let many: IpAddr = "ff02::2".parse().unwrap();
        for packet in [packet(from, to, ICMPV6, &[1, 0, 0, 0]), packet(from, many, ICMPV6, &[133, 0, 0, 0])] {
            assert!(ask(&packet, Refusal::NoRoute).is_none());
        }
        assert!(ask(&packet(from, to, ICMPV6, &[128, 0, 0, 0]), Refusal::NoRoute).is_some(), "an echo request");
    }
}
