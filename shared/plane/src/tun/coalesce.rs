//! From inner packets to frames for the device: segments of one TCP flow that follow each other become one super-packet, so
//! that the kernel's TCP does its work once for all of them.
//!
//! It must never join what the kernel's own receive offload would not, change the order within a flow, nor vouch for a
//! checksum that it has not reckoned. tun-rs has the same for devices that it opened itself; those passed on by a child it
//! refuses, and it wants a buffer of its own for every packet.

use std::net::IpAddr;

use super::checksum;
use super::inner::{self, Head, TCP};
use super::vnet::{self, Vnet};

const ACK: u8 = 0x10;
const PSH: u8 = 0x08;
/// A joined packet's length field ends here.
const LONGEST: usize = 65_535;
/// How many frames back a run of the same flow is looked for.
const LOOK_BACK: usize = 16;
/// Buffers kept for the next turn.
const MAX_SPARE: usize = 16;
const TCP_LEN: usize = 20;

/// Frames that wait for the end of the turn, in order.
#[derive(Debug, Default)]
pub(crate) struct Coalescer {
    runs: Vec<Run>,
    spare: Vec<Vec<u8>>,
    bytes: usize,
}

#[derive(Debug)]
struct Run {
    frame: Vec<u8>,
    /// What only TCP has.
    flow: Option<Flow>,
}

#[derive(Debug)]
struct Flow {
    ends: Ends,
    head: Head,
    /// Bytes of IP and TCP header.
    headers: usize,
    segment: usize,
    next: u32,
    joined: bool,
    /// Nothing more may follow.
    closed: bool,
}

/// Who speaks to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ends {
    source: IpAddr,
    destination: IpAddr,
    ports: [u8; 4],
}

/// A segment that may stand in a run.
struct Candidate {
    headers: usize,
    sequence: u32,
    pushed: bool,
}

impl Coalescer {
    pub(crate) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Bytes that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.bytes
    }

    /// Adds one whole packet; `head` was read from it.
    pub(crate) fn push(&mut self, packet: &[u8], head: &Head) {
        let packet = packet.get(..head.total).unwrap_or(packet);
        self.bytes += packet.len();
        let ends = (head.protocol == TCP && !head.fragment).then(|| ends(packet, head)).flatten();
        let candidate = ends.and_then(|_| candidate(packet, head));
        let known = ends.and_then(|ends| {
            let near = self.runs.iter_mut().rev().take(LOOK_BACK);
            near.filter_map(|run| run.flow.as_mut().map(|flow| (flow, &mut run.frame)))
                .find(|(flow, _)| flow.ends == ends)
        });
        if let (Some((flow, frame)), Some(candidate)) = (known, &candidate)
            && flow.join(frame, packet, candidate)
        {
            return;
        }
        let mut frame = self.spare.pop().unwrap_or_default();
        frame.extend_from_slice(&Vnet::WHOLE);
        frame.extend_from_slice(packet);
        // What cannot be joined closes the flow's run all the same: later segments stay behind it.
        let flow = ends.map(|ends| match candidate {
            Some(Candidate { headers, sequence, pushed }) => {
                let segment = packet.len() - headers;
                let next = sequence.wrapping_add(segment as u32);
                Flow { ends, head: *head, headers, segment, next, joined: false, closed: pushed }
            }
            None => Flow { ends, head: *head, headers: 0, segment: 0, next: 0, joined: false, closed: true },
        });
        self.runs.push(Run { frame, flow });
    }

    /// Hands out every frame, in order.
    pub(crate) fn drain(&mut self, mut each: impl FnMut(&[u8])) {
        for Run { mut frame, flow } in self.runs.drain(..) {
            if let Some(flow) = flow.filter(|flow| flow.joined) {
                flow.finish(&mut frame);
            }
            each(&frame);
            if self.spare.len() < MAX_SPARE {
                frame.clear();
                self.spare.push(frame);
            }
        }
        self.bytes = 0;
    }
}

impl Flow {
    /// Appends a segment's payload to the run, if it follows and differs in nothing that counts.
    fn join(&mut self, frame: &mut Vec<u8>, packet: &[u8], candidate: &Candidate) -> bool {
        let Some((first, payload)) = frame.get(vnet::LEN..).zip(packet.get(candidate.headers..)) else { return false };
        let fits = !self.closed
            && candidate.headers == self.headers
            && candidate.sequence == self.next
            && payload.len() <= self.segment
            && first.len() + payload.len() <= LONGEST
            && are_alike(first, packet, self.head.header, self.headers);
        if !fits {
            self.closed = true;
            return false;
        }
        self.next = self.next.wrapping_add(payload.len() as u32);
        self.joined = true;
        self.closed = candidate.pushed || payload.len() < self.segment;
        frame.extend_from_slice(payload);
        if candidate.pushed
            && let Some(flags) = frame.get_mut(vnet::LEN + self.head.header + 13)
        {
            *flags |= PSH;
        }
        true
    }

    /// Makes one packet of it all: lengths, and the part of the checksum that the kernel wants.
    fn finish(&self, frame: &mut [u8]) {
        let (header, packet) = frame.split_at_mut(vnet::LEN);
        header.copy_from_slice(&Vnet::joined(self.head.is_v6(), self.head.header, self.headers, self.segment));
        let total = packet.len();
        inner::set_length(packet, &self.head, total);
        let length = total - self.head.header;
        let partial = checksum::fold(checksum::pseudo(self.head.source, self.head.destination, TCP, length));
        let at = self.head.header + 16;
        packet[at..at + 2].copy_from_slice(&partial.to_be_bytes());
    }
}

fn ends(packet: &[u8], head: &Head) -> Option<Ends> {
    let ports = *packet.get(head.header..)?.first_chunk()?;
    Some(Ends { source: head.source, destination: head.destination, ports })
}

/// A segment with data, nothing special about it, and a right checksum.
fn candidate(packet: &[u8], head: &Head) -> Option<Candidate> {
    // Options of IPv4 are nobody's business here.
    if !head.is_v6() && head.header != inner::IPV4_LEN {
        return None;
    }
    let segment = packet.get(head.header..)?;
    let fixed = segment.first_chunk::<TCP_LEN>()?;
    let (length, flags) = (usize::from(fixed[12] >> 4) * 4, fixed[13]);
    let plain = flags & !PSH == ACK && length >= TCP_LEN && segment.len() > length;
    if !plain {
        return None;
    }
    let sum = checksum::pseudo(head.source, head.destination, TCP, segment.len()) + checksum::sum(segment);
    let sequence = u32::from_be_bytes([fixed[4], fixed[5], fixed[6], fixed[7]]);
    let headers = head.header + length;
    (checksum::fold(sum) == 0xffff).then_some(Candidate { headers, sequence, pushed: flags & PSH != 0 })
}

/// Whether two segments' headers agree in all that a joined packet can say only once.
fn are_alike(first: &[u8], second: &[u8], ip: usize, headers: usize) -> bool {
    let same = |range: std::ops::Range<usize>| match (first.get(range.clone()), second.get(range)) {
        (Some(first), Some(second)) => first == second,
        _ => false,
    };
    let network = if ip == inner::IPV4_LEN {
        // Type of service; flags with DF; time to live and protocol. Identification counts up or stands still.
        same(0..2) && same(6..8) && same(8..10)
    } else {
        same(0..4) && same(6..8)
    };
    // Acknowledgement; data offset; window and urgent pointer around the checksum; options.
    network && same(ip + 8..ip + 13) && same(ip + 14..ip + 16) && same(ip + 18..headers)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::inner::testing::{is_right, packet, tcp};
    use super::super::segment::Segments;
    use super::*;

    fn addresses(v6: bool) -> (IpAddr, IpAddr) {
        let texts = if v6 { ["fd00::5", "fd43:554c:5645::1"] } else { ["10.20.0.5", "100.64.0.1"] };
        let [source, destination] = texts.map(|text| text.parse().unwrap());
        (source, destination)
    }

    fn push(coalescer: &mut Coalescer, packet: &[u8]) {
        coalescer.push(packet, &Head::read(packet).unwrap());
    }

    fn frames(coalescer: &mut Coalescer) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        coalescer.drain(|frame| frames.push(frame.to_vec()));
        assert!(coalescer.is_empty() && coalescer.waiting() == 0);
        frames
    }

    /// The packets that the kernel would see if it cut every frame again.
    fn cut(frames: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let mut packets = Vec::new();
        for frame in frames {
            let (mut segments, mut out) = (Segments::read(frame).unwrap(), Vec::new());
            while segments.next(&mut out) {
                packets.push(out.clone());
            }
        }
        packets
    }

    fn data(packet: &[u8]) -> (u32, Vec<u8>) {
        let body = &packet[Head::read(packet).unwrap().header..];
        (u32::from_be_bytes(body[4..8].try_into().unwrap()), body[32..].to_vec())
    }

    #[test]
    fn segments_that_follow_each_other_become_one_frame() {
        for v6 in [false, true] {
            let (from, to) = addresses(v6);
            let mut coalescer = Coalescer::default();
            for count in 0..40_u32 {
                push(
                    &mut coalescer,
                    &tcp(from, to, (u32::MAX - 3000).wrapping_add(count * 1000), ACK, &[count as u8; 1000]),
                );
            }
            push(&mut coalescer, &tcp(from, to, (u32::MAX - 3000).wrapping_add(40_000), ACK | PSH, &[9; 10]));
            let frames = frames(&mut coalescer);
            assert_eq!(frames.len(), 1);
            let packets = cut(&frames);
            assert_eq!(packets.len(), 41);
            assert!(packets.iter().all(|packet| is_right(packet)));
            let pushed = packets.iter().filter(|packet| packet[Head::read(packet).unwrap().header + 13] & PSH != 0);
            assert_eq!(pushed.count(), 1);
        }
    }

    #[test]
    fn what_differs_starts_anew_and_what_cannot_be_joined_is_not_overtaken() {
        let (from, to) = addresses(true);
        let mut coalescer = Coalescer::default();
        let other = "fd00::6".parse().unwrap();
        push(&mut coalescer, &tcp(from, to, 1000, ACK, &[1; 100]));
        push(&mut coalescer, &tcp(other, to, 5000, ACK, &[2; 100]));
        push(&mut coalescer, &tcp(from, to, 1100, ACK, &[3; 100]));
        push(&mut coalescer, &tcp(from, to, 1300, ACK, &[4; 100])); // a gap
        push(&mut coalescer, &tcp(from, to, 1400, ACK | 1, &[])); // FIN
        push(&mut coalescer, &tcp(from, to, 1400, ACK, &[5; 100]));
        push(&mut coalescer, &tcp(other, to, 5100, ACK, &[6; 100]));
        let mut wrong = tcp(other, to, 5200, ACK, &[7; 100]);
        *wrong.last_mut().unwrap() ^= 1;
        push(&mut coalescer, &wrong);
        let frames = frames(&mut coalescer);
        let shape: Vec<_> = frames.iter().map(|frame| (frame.len() - vnet::LEN - 72, *frame.last().unwrap())).collect();
        assert_eq!(shape, [(200, 3), (200, 6), (100, 4), (0, 8), (100, 5), (100, 6)]);
        assert!(!is_right(&frames[5][vnet::LEN..]), "a wrong checksum stays wrong");
    }

    #[test]
    fn other_protocols_and_fragments_go_through_unchanged() {
        let (from, to) = addresses(false);
        let mut coalescer = Coalescer::default();
        let datagram = packet(from, to, inner::UDP, &[1; 30]);
        let mut fragment = packet(from, to, TCP, &[2; 30]);
        fragment[6] = 0x20;
        let cut = packet(from, to, TCP, &[3; 3]);
        for packet in [&datagram, &fragment, &cut] {
            push(&mut coalescer, packet);
        }
        let got: Vec<_> = frames(&mut coalescer).into_iter().map(|frame| frame[vnet::LEN..].to_vec()).collect();
        assert_eq!(got, [datagram, fragment, cut]);
    }

    proptest! {
        #[test]
        fn joining_and_cutting_again_gives_every_flow_its_packets_in_order(
            v6: bool,
            steps in proptest::collection::vec((0_u8..3, 0_usize..1200, 0_u8..10), 1..120),
        ) {
            let (_, to) = addresses(v6);
            let mut coalescer = Coalescer::default();
            let mut next = [100_u32, u32::MAX - 500, 0];
            let mut sent: [Vec<(u32, Vec<u8>)>; 3] = Default::default();
            for (count, (flow, length, special)) in steps.iter().enumerate() {
                let (flow, length) = (usize::from(*flow), if *special < 7 { 700 } else { *length });
                let from = if v6 { format!("fd00::{flow}") } else { format!("10.20.0.{flow}") };
                let flags = if *special == 9 { ACK | PSH } else { ACK };
                let packet = tcp(from.parse().unwrap(), to, next[flow], flags, &vec![count as u8; length]);
                next[flow] = next[flow].wrapping_add(length as u32 + u32::from(*special == 8));
                sent[flow].push(data(&packet));
                push(&mut coalescer, &packet);
            }
            let mut got: [Vec<(u32, Vec<u8>)>; 3] = Default::default();
            for packet in cut(&frames(&mut coalescer)) {
                prop_assert!(is_right(&packet));
                let flow = match Head::read(&packet).unwrap().source {
                    IpAddr::V4(address) => address.octets()[3],
                    IpAddr::V6(address) => address.octets()[15],
                };
                got[usize::from(flow)].push(data(&packet));
            }
            prop_assert_eq!(got, sent);
        }
    }
}
