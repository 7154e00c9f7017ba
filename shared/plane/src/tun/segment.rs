//! From one frame of the device to inner packets: super-packets of the kernel are cut into segments of their size, with the
//! lengths, sequence numbers, flags and checksums that each would have had (RFC 9293 §3.1).
//!
//! It must never trust what the header claims: the device is the kernel's, but the packets are written by whoever has a
//! socket.

use super::checksum;
use super::inner::{self, Head, TCP, UDP};
use super::vnet::{Kind, Vnet};

const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;
const UDP_LEN: usize = 8;

/// The packets of one frame, in their order.
#[derive(Debug)]
pub(crate) struct Segments<'a> {
    packet: &'a [u8],
    head: Head,
    vnet: Vnet,
    /// Bytes of all headers.
    headers: usize,
    /// Sum of the pseudo-header but its length.
    pseudo: u64,
    at: usize,
    count: u16,
}

impl<'a> Segments<'a> {
    /// Reads a frame; `None`: it is none, or asks for what is not known.
    pub(crate) fn read(frame: &'a [u8]) -> Option<Self> {
        let (vnet, packet) = Vnet::read(frame)?;
        let head = Head::read(packet)?;
        let packet = packet.get(..head.total)?;
        let start = match vnet.kind {
            Kind::Whole if !vnet.partial => head.total,
            // The checksum has to stand in the packet.
            Kind::Whole => (vnet.start + vnet.offset + 2 <= head.total).then_some(head.total)?,
            Kind::Tcp => {
                let length = usize::from(packet.get(vnet.start + 12)? >> 4) * 4;
                let fits = head.protocol == TCP || head.is_v6();
                (fits && length >= 20 && vnet.start >= head.header).then_some(vnet.start + length)?
            }
            Kind::Udp => (vnet.start >= head.header).then_some(vnet.start + UDP_LEN)?,
        };
        if vnet.kind != Kind::Whole && (vnet.segment == 0 || start >= head.total || head.fragment) {
            return None;
        }
        let protocol = if vnet.kind == Kind::Udp { UDP } else { TCP };
        let pseudo = checksum::pseudo(head.source, head.destination, protocol, 0);
        Some(Self { packet, head, vnet, headers: start, pseudo, at: start, count: 0 })
    }

    /// The header that all have.
    pub(crate) fn head(&self) -> &Head {
        &self.head
    }

    /// The frame's packet as it came: checksums may be missing.
    pub(crate) fn packet(&self) -> &'a [u8] {
        self.packet
    }

    /// Whether more than a handful of packets follow.
    pub(crate) fn is_bulk(&self) -> bool {
        self.vnet.kind != Kind::Whole && self.packet.len() - self.headers > 4 * self.vnet.segment
    }

    /// Writes the next packet over `out`. `false`: there is no more.
    pub(crate) fn next(&mut self, out: &mut Vec<u8>) -> bool {
        out.clear();
        if self.vnet.kind == Kind::Whole {
            if self.count > 0 {
                return false;
            }
            self.count = 1;
            out.extend_from_slice(self.packet);
            if self.vnet.partial {
                self.complete(out);
            }
            return true;
        }
        let Some(rest) = self.packet.get(self.at..).filter(|rest| !rest.is_empty()) else { return false };
        let payload = rest.get(..self.vnet.segment).unwrap_or(rest);
        let last = payload.len() == rest.len();
        out.extend_from_slice(&self.packet[..self.headers]);
        out.extend_from_slice(payload);
        let total = out.len();
        if !self.head.is_v6() {
            let id = u16::from_be_bytes([out[4], out[5]]).wrapping_add(self.count);
            out[4..6].copy_from_slice(&id.to_be_bytes());
        }
        inner::set_length(out, &self.head, total);
        let transport = &mut out[self.vnet.start..];
        let length = transport.len();
        let field = if self.vnet.kind == Kind::Tcp {
            let [a, b, c, d] = [transport[4], transport[5], transport[6], transport[7]];
            let sequence = u32::from_be_bytes([a, b, c, d]).wrapping_add((self.at - self.headers) as u32);
            transport[4..8].copy_from_slice(&sequence.to_be_bytes());
            if !last {
                transport[13] &= !(FIN | PSH);
            }
            if self.count > 0 {
                transport[13] &= !CWR;
            }
            16
        } else {
            transport[4..6].copy_from_slice(&(length as u16).to_be_bytes());
            6
        };
        transport[field..field + 2].fill(0);
        let sum = !checksum::fold(self.pseudo + length as u64 + checksum::sum(transport));
        put(transport, field, sum, self.vnet.kind == Kind::Udp);
        self.at += payload.len();
        self.count = self.count.wrapping_add(1);
        true
    }

    /// Finishes a checksum that the kernel left to us.
    fn complete(&self, packet: &mut [u8]) {
        let Some(part) = packet.get_mut(self.vnet.start..) else { return };
        let sum = !checksum::fold(checksum::sum(part));
        put(part, self.vnet.offset, sum, self.head.protocol == UDP);
    }
}

/// Zero means "none" to UDP (RFC 768).
fn put(part: &mut [u8], at: usize, sum: u16, udp: bool) {
    let sum = if udp && sum == 0 { 0xffff } else { sum };
    if let Some(field) = part.get_mut(at..at + 2) {
        field.copy_from_slice(&sum.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::super::inner::testing::{is_right, packet, tcp};
    use super::super::vnet;
    use super::*;

    fn addresses(v6: bool) -> (IpAddr, IpAddr) {
        let texts = if v6 { ["fd43:554c:5645::1", "fd00::5"] } else { ["100.64.0.1", "10.20.0.5"] };
        let [source, destination] = texts.map(|text| text.parse().unwrap());
        (source, destination)
    }

    /// A frame as the kernel writes it: the checksum field holds the pseudo-header's sum.
    fn super_packet(v6: bool, flags: u8, payload: &[u8], segment: usize) -> Vec<u8> {
        let (source, destination) = addresses(v6);
        let mut packet = tcp(source, destination, u32::MAX - 100, flags, payload);
        let head = Head::read(&packet).unwrap();
        let partial = checksum::fold(checksum::pseudo(source, destination, TCP, head.total - head.header));
        packet[head.header + 16..head.header + 18].copy_from_slice(&partial.to_be_bytes());
        let vnet = Vnet::joined(v6, head.header, head.header + 32, segment);
        [&vnet[..], &packet].concat()
    }

    fn all(frame: &[u8]) -> Vec<Vec<u8>> {
        let mut segments = Segments::read(frame).unwrap();
        let (mut packets, mut out) = (Vec::new(), Vec::new());
        while segments.next(&mut out) {
            packets.push(out.clone());
        }
        packets
    }

    proptest! {
        #[test]
        fn a_super_packet_becomes_segments_with_its_bytes_and_right_checksums(
            v6: bool, payload in proptest::collection::vec(any::<u8>(), 1..9000), segment in 1_usize..1400
        ) {
            let packets = all(&super_packet(v6, PSH | FIN | CWR | 0x10, &payload, segment));
            prop_assert_eq!(packets.len(), payload.len().div_ceil(segment));
            let mut joined = Vec::new();
            for (count, packet) in packets.iter().enumerate() {
                prop_assert!(is_right(packet));
                let head = Head::read(packet).unwrap();
                prop_assert_eq!(head.total, packet.len());
                let transport = &packet[head.header..];
                let sequence = u32::from_be_bytes(transport[4..8].try_into().unwrap());
                prop_assert_eq!(sequence, (u32::MAX - 100).wrapping_add(joined.len() as u32));
                let (first, last) = (count == 0, count + 1 == packets.len());
                let flags = 0x10 | if last { FIN | PSH } else { 0 } | if first { CWR } else { 0 };
                prop_assert_eq!(transport[13], flags);
                joined.extend_from_slice(&transport[32..]);
            }
            prop_assert_eq!(joined, payload);
        }

        #[test]
        fn any_frame_is_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120), kind in 0_u8..6,
                                             start in 0_u16..80, offset in 0_u16..80, segment in 0_u16..30) {
            let mut frame = vec![1, kind, 0, 0];
            for word in [segment, start, offset] {
                frame.extend_from_slice(&word.to_ne_bytes());
            }
            let (source, destination) = addresses(bytes.len() % 2 == 0);
            frame.extend(packet(source, destination, TCP, &bytes));
            if let Some(mut segments) = Segments::read(&frame) {
                let mut out = Vec::new();
                while segments.next(&mut out) {}
            }
            if let Some(mut segments) = Segments::read(&bytes) {
                let mut out = Vec::new();
                while segments.next(&mut out) {}
            }
        }
    }

    #[test]
    fn a_checksum_that_was_left_open_is_finished() {
        for v6 in [false, true] {
            let mut frame = super_packet(v6, 0x10, b"whole", 0);
            frame[1] = 0;
            let packets = all(&frame);
            assert!(packets.len() == 1 && is_right(&packets[0]));
        }
    }

    #[test]
    fn datagrams_are_cut_into_datagrams() {
        for v6 in [false, true] {
            let (source, destination) = addresses(v6);
            let body = [&[0, 9, 0, 53, 0, 0, 0, 0][..], &[7; 250]].concat();
            let packet = packet(source, destination, UDP, &body);
            let start = if v6 { 40 } else { 20 };
            let mut header = Vnet::joined(v6, start, start + 8, 100);
            header[1] = 5;
            header[8..10].copy_from_slice(&6_u16.to_ne_bytes());
            let packets = all(&[&header[..], &packet].concat());
            assert_eq!(packets.iter().map(|packet| packet.len() - start - 8).collect::<Vec<_>>(), [100, 100, 50]);
            assert!(packets.iter().all(|packet| is_right(packet)));
        }
    }

    #[test]
    fn a_whole_packet_goes_as_it_is() {
        let (source, destination) = addresses(true);
        let packet = tcp(source, destination, 1, 0x10, b"x");
        assert_eq!(all(&[&vnet::Vnet::WHOLE[..], &packet].concat()), [packet]);
    }
}
