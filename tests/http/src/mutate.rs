//! Requests made wrong by chance, the same ones for the same seed.
//!
//! Must never draw from anything but its seed.

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use crate::corpus::{self, Entry, Want};
use crate::frames::{END_HEADERS, END_STREAM, HEADERS, block, frame};

/// What parsers have disagreed about.
const WORDS: [&[u8]; 52] = [
    b"\r\n",
    b"\n",
    b"\r",
    b"\0",
    b" ",
    b"\t",
    b"\x0b",
    b"\x0c",
    b"\x7f",
    b"\xff",
    b":",
    b",",
    b";",
    b"#",
    b"?",
    b"/",
    b"//",
    b"*",
    b"@",
    b"\r\n\r\n",
    b"\r\n ",
    b"0\r\n\r\n",
    b"5\r\nabcde\r\n",
    b"Content-Length: 0\r\n",
    b"Content-Length: 5\r\n",
    b"Content-Length: 40\r\n",
    b"content-length:\t7 \r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"transfer-encoding:chunked\r\n",
    b"Transfer-Encoding: identity\r\n",
    b"Transfer-Encoding: gzip, chunked\r\n",
    b"Host: orders\r\n",
    b"Host: other\r\n",
    b"Connection: close\r\n",
    b"Connection: keep-alive, x-a\r\n",
    b"Connection: content-length\r\n",
    b"Connection: upgrade\r\n",
    b"Upgrade: websocket\r\n",
    b"Upgrade: h2c\r\n",
    b"Expect: 100-continue\r\n",
    b"TE: trailers\r\n",
    b"Trailer: x-sum\r\n",
    b"X-A: b\r\n",
    b"Culvert-Service: other\r\n",
    b"X-Request-Id: a\r\n",
    b"GET /hidden HTTP/1.1\r\nHost: orders\r\n\r\n",
    b"POST /b HTTP/1.1\r\nHost: orders\r\nContent-Length: 3\r\n\r\nabc",
    b"HTTP/1.0",
    b"HTTP/1.1",
    b"http://orders",
    b"http://other",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
];
/// Inputs beyond that only test patience.
const LONGEST: usize = 64 * 1024;

/// Makes inputs.
#[derive(Debug)]
pub struct Mutator {
    good: Vec<Vec<u8>>,
    bad: Vec<Vec<u8>>,
}

impl Default for Mutator {
    fn default() -> Self {
        let all = corpus::all().into_iter().filter(|entry| entry.bytes.len() < 4096);
        let (good, bad): (Vec<_>, Vec<_>) = all.partition(|entry| matches!(entry.want, Want::Passes(_)));
        let bytes = |entries: Vec<Entry>| entries.into_iter().map(|entry| entry.bytes).collect();
        Self { good: bytes(good), bad: bytes(bad) }
    }
}

impl Mutator {
    /// The input of this number, and the size of the pieces in which it is said.
    pub fn input(&self, seed: u64, number: u64) -> (Vec<u8>, usize) {
        let mut random = StdRng::seed_from_u64(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ number);
        let mut bytes = Vec::new();
        for _ in 0..random.random_range(1..=3) {
            bytes.extend_from_slice(self.seed(&mut random));
        }
        for _ in 0..random.random_range(0..=3) {
            self.mutate(&mut bytes, &mut random);
        }
        bytes.truncate(LONGEST);
        let cut = match random.random_range(0..4) {
            0 => 1,
            1 => random.random_range(2..40),
            _ => usize::MAX,
        };
        (bytes, cut)
    }

    /// Three times of four one that passes: behind one that does not, nothing does.
    fn seed(&self, random: &mut StdRng) -> &[u8] {
        let seeds = if random.random_range(0..4) == 0 { &self.bad } else { &self.good };
        let at = random.random_range(0..seeds.len().max(1));
        seeds.get(at).map_or(&[], Vec::as_slice)
    }

    fn mutate(&self, bytes: &mut Vec<u8>, random: &mut StdRng) {
        let at = random.random_range(0..=bytes.len());
        let len = random.random_range(1..=8).min(bytes.len() - at);
        match random.random_range(0..8) {
            0 => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = random.random();
                }
            }
            1 => {
                bytes.drain(at..at + len);
            }
            2 => {
                let copy = bytes.get(at..at + len).unwrap_or_default().to_vec();
                bytes.splice(at..at, copy);
            }
            3 => {
                // A word between two lines.
                let at = line_start(bytes, at);
                bytes.splice(at..at, word(random));
            }
            4 => {
                // A line once more, elsewhere.
                let from = line_start(bytes, at);
                let end =
                    bytes.iter().skip(from).position(|byte| *byte == b'\n').map_or(bytes.len(), |end| from + end + 1);
                let line = bytes.get(from..end).unwrap_or_default().to_vec();
                let to = line_start(bytes, random.random_range(0..=bytes.len()));
                bytes.splice(to..to, line);
            }
            5 => {
                // A line less.
                let from = line_start(bytes, at);
                let end =
                    bytes.iter().skip(from).position(|byte| *byte == b'\n').map_or(bytes.len(), |end| from + end + 1);
                bytes.drain(from..end);
            }
            6 => {
                if let Some(byte) = bytes.get_mut(at)
                    && byte.is_ascii_alphabetic()
                {
                    *byte ^= 0x20;
                }
            }
            _ => {
                bytes.splice(at..at, word(random));
            }
        }
    }
}

/// Frames of requests with fields of any bytes, in any places.
pub fn broken_frames(seed: u64, number: u64) -> Vec<Vec<u8>> {
    const NAMES: [&[u8]; 12] = [
        b":path",
        b":method",
        b":authority",
        b"host",
        b"content-length",
        b"transfer-encoding",
        b"connection",
        b"te",
        b"cookie",
        b"expect",
        b"x-a",
        b"culvert-service",
    ];
    let mut random = StdRng::seed_from_u64(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ number ^ 0x2222);
    let mut frames = Vec::new();
    for at in 0..random.random_range(1..=3u32) {
        let mut fields: Vec<(Vec<u8>, Vec<u8>)> = [
            (&b":method"[..], &b"POST"[..]),
            (b":scheme", b"http"),
            (b":path", b"/a"),
            (b":authority", b"orders"),
            (b"x-a", b"b"),
        ]
        .map(|(name, value)| (name.to_vec(), value.to_vec()))
        .to_vec();
        for _ in 0..random.random_range(0..=2) {
            let place = random.random_range(0..fields.len());
            match random.random_range(0..3) {
                0 => {
                    let name =
                        NAMES.get(random.random_range(0..NAMES.len())).map_or_else(Vec::new, |name| name.to_vec());
                    fields.push((name, word(&mut random)));
                }
                1 => {
                    if let Some((_, value)) = fields.get_mut(place) {
                        let at = random.random_range(0..=value.len());
                        value.splice(at..at, word(&mut random));
                    }
                }
                _ => {
                    let value = u8::try_from(random.random_range(0..300) % 256).unwrap_or(0);
                    if let Some((name, _)) = fields.get_mut(place) {
                        name.push(value);
                    }
                }
            }
        }
        let fields: Vec<_> = fields.iter().map(|(name, value)| (name.as_slice(), value.as_slice())).collect();
        let stream = 2 * at + 1;
        let ends = random.random_range(0..3) == 0;
        let flags = END_HEADERS | if ends { END_STREAM } else { 0 };
        frames.push(frame(HEADERS, flags, stream, &block(&fields)));
        if !ends {
            frames.push(frame(0, END_STREAM, stream, &word(&mut random)));
        }
    }
    frames
}

fn word(random: &mut StdRng) -> Vec<u8> {
    WORDS.get(random.random_range(0..WORDS.len())).map_or_else(Vec::new, |word| word.to_vec())
}

fn line_start(bytes: &[u8], at: usize) -> usize {
    bytes.iter().take(at).rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1)
}
