//! The header in front of every frame of the device (`struct virtio_net_hdr`, VIRTIO 1.2 §5.1.6): what is left to be done
//! about checksums and segmentation, in the machine's byte order.

/// Its length.
pub(crate) const LEN: usize = 10;
/// The longest frame: this header and 64 KiB.
pub(crate) const FRAME: usize = LEN + 65_535;

const NEEDS_CHECKSUM: u8 = 1;
const ECN: u8 = 0x80;

/// How a frame is segmented.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Whole,
    Tcp,
    Udp,
}

/// The header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Vnet {
    pub(crate) kind: Kind,
    /// The transport's checksum field holds the pseudo-header's sum only.
    pub(crate) partial: bool,
    /// Payload bytes of each segment.
    pub(crate) segment: usize,
    /// Where the checksummed part starts: the transport header.
    pub(crate) start: usize,
    /// Where in it the checksum stands.
    pub(crate) offset: usize,
}

impl Vnet {
    /// Reads one; `None`: cut, or of a kind that was not asked for.
    pub(crate) fn read(frame: &[u8]) -> Option<(Self, &[u8])> {
        let (bytes, packet) = frame.split_first_chunk::<LEN>()?;
        let word = |at: usize| usize::from(u16::from_ne_bytes([bytes[at], bytes[at + 1]]));
        let kind = match bytes[1] & !ECN {
            0 => Kind::Whole,
            1 | 4 => Kind::Tcp,
            5 => Kind::Udp,
            _ => return None,
        };
        let partial = bytes[0] & NEEDS_CHECKSUM != 0;
        Some((Self { kind, partial, segment: word(4), start: word(6), offset: word(8) }, packet))
    }

    /// What stands before a packet that has everything.
    pub(crate) const WHOLE: [u8; LEN] = [0; LEN];

    /// What stands before segments of TCP that were joined: `start` bytes of IP header, `header` of both headers.
    pub(crate) fn joined(v6: bool, start: usize, header: usize, segment: usize) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        bytes[0] = NEEDS_CHECKSUM;
        bytes[1] = if v6 { 4 } else { 1 };
        for (at, value) in [(2, header), (4, segment), (6, start), (8, 16)] {
            bytes[at..at + 2].copy_from_slice(&u16::try_from(value).unwrap_or(u16::MAX).to_ne_bytes());
        }
        bytes
    }
}
