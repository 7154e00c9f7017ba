//! Where a WebSocket frame ends (RFC 6455 §5.2), by its lengths alone; and the handshake that this hop makes in the place
//! of a caller that has none.
//!
//! Must never look at what a frame says.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use sha1::{Digest as _, Sha1};

/// A Close frame from server to client, status 1012 (service restart).
pub(crate) const CLOSE_RESTART: [u8; 4] = [0x88, 0x02, 0x03, 0xf4];

/// RFC 6455 §1.3.
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// A `Sec-WebSocket-Key` of our own.
#[derive(Debug)]
pub(crate) struct Challenge(HeaderValue);

impl Challenge {
    pub(crate) fn new() -> Self {
        let key = STANDARD.encode(rand::random::<[u8; 16]>());
        Self(HeaderValue::try_from(key).unwrap_or(HeaderValue::from_static("")))
    }

    /// The value of `Sec-WebSocket-Key`.
    pub(crate) fn key(&self) -> HeaderValue {
        self.0.clone()
    }

    /// Whether a `Sec-WebSocket-Accept` answers it.
    pub(crate) fn is_answered_by(&self, accept: &HeaderValue) -> bool {
        let digest = Sha1::new().chain_update(self.0.as_bytes()).chain_update(GUID).finalize();
        STANDARD.encode(digest).as_bytes() == accept.as_bytes()
    }
}

/// Follows a stream of frames, of which it sees every byte once.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Frames {
    header: [u8; 14],
    seen: usize,
    payload: u64,
}

impl Frames {
    /// Passes `bytes`.
    pub(crate) fn pass(&mut self, mut bytes: &[u8]) {
        while let Some(rest) = self.step(bytes) {
            bytes = rest;
        }
    }

    /// How many of the next `bytes` belong to the frame that is under way: none between frames.
    pub(crate) fn left_of_frame(&self, bytes: &[u8]) -> usize {
        let mut ahead = *self;
        let mut rest = bytes;
        while !ahead.is_between()
            && let Some(next) = ahead.step(rest)
        {
            rest = next;
        }
        bytes.len() - rest.len()
    }

    /// Whether nothing of a frame has passed whose end has not.
    pub(crate) fn is_between(&self) -> bool {
        self.seen == 0 && self.payload == 0
    }

    /// Takes what belongs together off the front of `bytes`; none when they are empty.
    fn step<'a>(&mut self, bytes: &'a [u8]) -> Option<&'a [u8]> {
        let (first, rest) = bytes.split_first()?;
        if self.payload > 0 {
            let step = usize::try_from(self.payload).unwrap_or(usize::MAX).min(bytes.len());
            self.payload -= u64::try_from(step).unwrap_or(u64::MAX);
            return bytes.get(step..);
        }
        if let Some(slot) = self.header.get_mut(self.seen) {
            *slot = *first;
        }
        self.seen += 1;
        if self.seen == self.header_len() {
            self.payload = self.payload_len();
            self.seen = 0;
        }
        Some(rest)
    }

    fn header_len(&self) -> usize {
        if self.seen < 2 {
            return 2;
        }
        let [_, second, ..] = self.header;
        let extended = match second & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        2 + extended + if second & 0x80 == 0 { 0 } else { 4 }
    }

    fn payload_len(&self) -> u64 {
        let [_, second, a, b, c, d, e, f, g, h, ..] = self.header;
        match second & 0x7f {
            126 => u64::from(u16::from_be_bytes([a, b])),
            127 => u64::from_be_bytes([a, b, c, d, e, f, g, h]),
            length => u64::from(length),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(payload: usize, masked: bool) -> Vec<u8> {
        let mask = if masked { 0x80 } else { 0 };
        let mut out = vec![0x82];
        match payload {
            0..=125 => out.push(mask | u8::try_from(payload).unwrap()),
            126..=0xffff => {
                out.push(mask | 126);
                out.extend_from_slice(&u16::try_from(payload).unwrap().to_be_bytes());
            }
            _ => {
                out.push(mask | 127);
                out.extend_from_slice(&u64::try_from(payload).unwrap().to_be_bytes());
            }
        }
        if masked {
            out.extend_from_slice(&[1, 2, 3, 4]);
        }
        out.resize(out.len() + payload, 0x88);
        out
    }

    proptest! {
        #[test]
        fn a_boundary_is_where_a_frame_ends_and_nowhere_else(
            sizes in prop::collection::vec((prop_oneof![0..300usize, 65_000..70_000usize], any::<bool>()), 1..6),
            cuts in prop::collection::vec(1..5000usize, 1..20),
        ) {
            let mut stream = Vec::new();
            let mut ends = vec![0];
            for (size, masked) in sizes {
                stream.extend(frame(size, masked));
                ends.push(stream.len());
            }
            let mut frames = Frames::default();
            let mut at = 0;
            for cut in cuts.iter().cycle() {
                if at == stream.len() {
                    break;
                }
                let end = (at + cut).min(stream.len());
                let next = *ends.iter().find(|e| **e >= at).unwrap();
                prop_assert_eq!(frames.left_of_frame(&stream[at..end]), next.min(end) - at);
                frames.pass(&stream[at..end]);
                let last = *ends.iter().rfind(|e| **e <= end).unwrap();
                prop_assert_eq!(frames.is_between(), last == end);
                at = end;
            }
        }
    }

    #[test]
    fn a_key_is_answered_as_the_standard_says() {
        // RFC 6455 §1.3.
        let challenge = Challenge(HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ=="));
        assert!(challenge.is_answered_by(&HeaderValue::from_static("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")));
        assert!(!challenge.is_answered_by(&HeaderValue::from_static("s3pPLMBiTxaQ9kYGzzhZRbK+xOp=")));
        assert_ne!(Challenge::new().key(), Challenge::new().key());
    }

    #[test]
    fn the_close_frame_says_service_restart() {
        let mut frames = Frames::default();
        frames.pass(&CLOSE_RESTART);
        assert!(frames.is_between());
        assert_eq!(u16::from_be_bytes([CLOSE_RESTART[2], CLOSE_RESTART[3]]), 1012);
    }
}
