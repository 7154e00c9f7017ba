//! The TUN plane's two loops: a super-packet of the kernel's TCP cut into segments, and segments joined again.

use anyhow::{Context as _, Result, ensure};

// Plane's own files, which need nothing but each other.
#[allow(dead_code, unreachable_pub, reason = "the files are plane's; not all of them is counted here")]
#[path = "../../../../shared/plane/src/tun/checksum.rs"]
mod checksum;
#[allow(dead_code, unreachable_pub, reason = "the files are plane's; not all of them is counted here")]
#[path = "../../../../shared/plane/src/tun/coalesce.rs"]
mod coalesce;
#[allow(dead_code, unreachable_pub, reason = "the files are plane's; not all of them is counted here")]
#[path = "../../../../shared/plane/src/tun/inner.rs"]
mod inner;
#[allow(dead_code, unreachable_pub, reason = "the files are plane's; not all of them is counted here")]
#[path = "../../../../shared/plane/src/tun/segment.rs"]
mod segment;
#[allow(dead_code, unreachable_pub, reason = "the files are plane's; not all of them is counted here")]
#[path = "../../../../shared/plane/src/tun/vnet.rs"]
mod vnet;

use coalesce::Coalescer;
use inner::{Head, TCP};
use segment::Segments;
use vnet::Vnet;

const SEGMENT: usize = 1336;
const SEGMENTS: usize = 40;
const IPV6_HEADER: usize = 40;
/// With timestamps.
const TCP_HEADER: usize = 32;

/// One super-packet, and the segments that it makes.
pub struct SuperPacket {
    frame: Vec<u8>,
    segments: Vec<(Head, Vec<u8>)>,
    packet: Vec<u8>,
    coalescer: Coalescer,
}

impl SuperPacket {
    /// One of 40 segments.
    ///
    /// # Errors
    /// It is none.
    pub fn new() -> Result<Self> {
        let mut packet = vec![0; IPV6_HEADER + TCP_HEADER + SEGMENTS * SEGMENT];
        let length = u16::try_from(packet.len() - IPV6_HEADER)?;
        packet[..8].copy_from_slice(&[0x60, 0, 0, 0, 0, 0, TCP, 64]);
        packet[4..6].copy_from_slice(&length.to_be_bytes());
        (packet[23], packet[39]) = (1, 2);
        let transport = &mut packet[IPV6_HEADER..];
        transport[..4].copy_from_slice(&[0x12, 0x34, 0, 80]);
        // Its length in words, ACK, and a window; then NOP, NOP, timestamps.
        transport[12..16].copy_from_slice(&[8 << 4, 0x10, 1, 0]);
        transport[20..TCP_HEADER].copy_from_slice(&[1, 1, 8, 10, 0, 0, 0, 9, 0, 0, 0, 8]);
        let vnet = Vnet::joined(true, IPV6_HEADER, IPV6_HEADER + TCP_HEADER, SEGMENT);
        let mut whole = Self {
            frame: [&vnet[..], &packet].concat(),
            segments: Vec::new(),
            packet: Vec::new(),
            coalescer: Coalescer::default(),
        };
        let mut segments = Segments::read(&whole.frame).context("no super-packet")?;
        while segments.next(&mut whole.packet) {
            whole.segments.push((Head::read(&whole.packet).context("no segment")?, whole.packet.clone()));
        }
        ensure!(whole.segments.len() == SEGMENTS, "{} segments", whole.segments.len());
        Ok(whole)
    }

    /// Cuts it into its segments.
    ///
    /// # Errors
    /// Not into as many as it has.
    pub fn cut_one(&mut self) -> Result<()> {
        let mut segments = Segments::read(&self.frame).context("no super-packet")?;
        let mut count = 0;
        while segments.next(&mut self.packet) {
            count += 1;
        }
        ensure!(count == SEGMENTS, "{count} segments");
        Ok(())
    }

    /// Joins its segments, checksums and all.
    ///
    /// # Errors
    /// They do not make the super-packet again.
    pub fn join_one(&mut self) -> Result<()> {
        for (head, segment) in &self.segments {
            self.coalescer.push(segment, head);
        }
        let (mut frames, mut bytes) = (0, 0);
        self.coalescer.drain(|frame| {
            frames += 1;
            bytes += frame.len() - vnet::LEN;
        });
        ensure!((frames, bytes) == (1, self.frame.len() - vnet::LEN), "{frames} frames, {bytes} bytes");
        Ok(())
    }
}
