//! Watches the bytes of requests for what hyper's parser repairs or forgives instead of refusing it: a bare LF at the
//! end of a line, a length given twice or beside a transfer coding, a fragment in the target, a chunk's size followed by
//! something that is no extension, a control in an extension, trailers whose lines end in LF.
//!
//! Must never change a byte, allocate, or be wrong about where a head begins: it follows bodies by their framing.

/// What is wrong with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// A line of the head ends in LF without CR.
    BareLf,
    /// `Content-Length` twice, or `Transfer-Encoding` twice.
    Repeated,
    /// `Content-Length` beside `Transfer-Encoding`.
    Both,
    /// A `#` in the request line: what follows it would be dropped.
    Fragment,
    /// A line between chunks, or behind them, that is not as RFC 9112 §7.1 has it. The request's head has passed.
    Chunk,
}

/// Follows one connection's requests, of which it sees every byte once.
#[derive(Debug)]
pub(crate) struct Heads {
    state: State,
    head: Head,
    line: Line,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Head,
    /// So many bytes of a body, or of a chunk with its CRLF.
    Skip {
        bytes: u64,
        in_chunks: bool,
    },
    ChunkSize {
        size: u64,
        part: Part,
    },
    Trailers {
        is_blank: bool,
        is_cr: bool,
    },
    /// After a head with `Upgrade`: another head, or another protocol.
    Perhaps,
    /// Another protocol, or beyond what can be followed.
    Off,
}

/// Where in the line of a chunk's size.
#[derive(Debug, Clone, Copy)]
enum Part {
    Start,
    Digits,
    Extension,
    Cr,
}

#[derive(Debug, Default, Clone, Copy)]
struct Head {
    has_request_line: bool,
    length: Option<u64>,
    is_chunked: bool,
    is_upgrade: bool,
}

/// The start of a line, as long as its field's name and value may matter.
#[derive(Debug, Clone, Copy)]
struct Line {
    start: [u8; 40],
    len: usize,
    last: u8,
}

impl Heads {
    pub(crate) const fn new() -> Self {
        Self { state: State::Head, head: Head::NEW, line: Line::NEW }
    }

    /// No more heads: another protocol is spoken.
    pub(crate) fn switch_off(&mut self) {
        self.state = State::Off;
    }

    /// Whether a request has been seen whole, and nothing of the next.
    pub(crate) fn is_between(&self) -> bool {
        match self.state {
            State::Head => !self.head.has_request_line && self.line.len == 0,
            State::Perhaps => true,
            State::Skip { .. } | State::ChunkSize { .. } | State::Trailers { .. } | State::Off => false,
        }
    }

    /// Whether what comes next is known only once an offered upgrade was answered.
    pub(crate) fn is_undecided(&self) -> bool {
        matches!(self.state, State::Perhaps)
    }

    /// Sees the next bytes, and says how many: behind an offered upgrade none, before its answer. A flaw, and where in
    /// `bytes` the request with it begins (0 if before them), or for [`Flaw::Chunk`] where it is itself.
    pub(crate) fn see(&mut self, bytes: &[u8]) -> Result<usize, (Flaw, usize)> {
        let mut rest = bytes;
        let mut begin = 0;
        while !rest.is_empty() {
            rest = match self.state {
                State::Off => return Ok(bytes.len()),
                State::Perhaps => return Ok(bytes.len() - rest.len()),
                State::Head => self.see_head(rest).map_err(|flaw| (flaw, begin))?,
                State::Skip { bytes, in_chunks } => {
                    let step = usize::try_from(bytes).unwrap_or(usize::MAX).min(rest.len());
                    let left = bytes - u64::try_from(step).unwrap_or(bytes);
                    self.state = match (left, in_chunks) {
                        (0, true) => State::ChunkSize { size: 0, part: Part::Start },
                        (0, false) => self.next(),
                        (bytes, in_chunks) => State::Skip { bytes, in_chunks },
                    };
                    rest.get(step..).unwrap_or_default()
                }
                State::ChunkSize { size, part } => {
                    let before = bytes.len() - rest.len();
                    self.see_size(rest, size, part).map_err(|at| (Flaw::Chunk, before + at))?
                }
                State::Trailers { is_blank, is_cr } => {
                    let before = bytes.len() - rest.len();
                    self.see_trailers(rest, is_blank, is_cr).map_err(|at| (Flaw::Chunk, before + at))?
                }
            };
            if matches!(self.state, State::Head) && !self.head.has_request_line && self.line.len == 0 {
                begin = bytes.len() - rest.len();
            }
        }
        Ok(bytes.len())
    }

    /// The answer to an offered upgrade was not 101: another head follows.
    pub(crate) fn go_on(&mut self) {
        if matches!(self.state, State::Perhaps) {
            self.state = self.next();
        }
    }

    fn next(&mut self) -> State {
        self.head = Head::NEW;
        self.line = Line::NEW;
        State::Head
    }

    /// Takes one line, or what there is of it.
    fn see_head<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], Flaw> {
        let end = memchr::memchr(b'\n', bytes);
        let (line, rest) = match end {
            Some(end) => (bytes.get(..end).unwrap_or_default(), bytes.get(end + 1..).unwrap_or_default()),
            None => (bytes, &[][..]),
        };
        if !self.head.has_request_line && line.contains(&b'#') {
            return Err(Flaw::Fragment);
        }
        self.line.extend(line);
        if end.is_none() {
            return Ok(rest);
        }
        if self.line.last != b'\r' {
            return Err(Flaw::BareLf);
        }
        let line = std::mem::replace(&mut self.line, Line::NEW);
        let text = line.text();
        if text.is_empty() {
            if self.head.has_request_line {
                self.state = self.after_head();
            }
        } else if self.head.has_request_line {
            self.head.note(text)?;
        } else {
            self.head.has_request_line = true;
        }
        Ok(rest)
    }

    fn after_head(&mut self) -> State {
        match self.head {
            Head { is_chunked: true, .. } => State::ChunkSize { size: 0, part: Part::Start },
            Head { length: Some(bytes @ 1..), .. } => State::Skip { bytes, in_chunks: false },
            Head { is_upgrade: true, .. } => State::Perhaps,
            Head { .. } => self.next(),
        }
    }

    /// Reads the line of a chunk's size; where it goes wrong.
    fn see_size<'a>(&mut self, bytes: &'a [u8], mut size: u64, mut part: Part) -> Result<&'a [u8], usize> {
        for (at, byte) in bytes.iter().enumerate() {
            part = match (part, byte, char::from(*byte).to_digit(16)) {
                (Part::Start | Part::Digits, _, Some(digit)) => {
                    size = size.checked_mul(16).ok_or(at)? | u64::from(digit);
                    Part::Digits
                }
                (Part::Digits, b';', _) => Part::Extension,
                (Part::Digits | Part::Extension, b'\r', _) => Part::Cr,
                (Part::Extension, b'\t' | b' '..=b'~' | 0x80.., _) => Part::Extension,
                (Part::Cr, b'\n', _) => {
                    self.state = match size.checked_add(2) {
                        Some(2) => State::Trailers { is_blank: true, is_cr: false },
                        Some(bytes) => State::Skip { bytes, in_chunks: true },
                        None => return Err(at),
                    };
                    return Ok(bytes.get(at + 1..).unwrap_or_default());
                }
                _ => return Err(at),
            };
        }
        self.state = State::ChunkSize { size, part };
        Ok(&[])
    }

    fn see_trailers<'a>(&mut self, bytes: &'a [u8], mut is_blank: bool, mut is_cr: bool) -> Result<&'a [u8], usize> {
        for (at, byte) in bytes.iter().enumerate() {
            match (byte, is_cr) {
                (b'\n', true) if is_blank => {
                    self.state = self.next();
                    return Ok(bytes.get(at + 1..).unwrap_or_default());
                }
                (b'\n', true) => (is_blank, is_cr) = (true, false),
                (b'\n', false) | (_, true) => return Err(at),
                (b'\r', false) => is_cr = true,
                (_, false) => is_blank = false,
            }
        }
        self.state = State::Trailers { is_blank, is_cr };
        Ok(&[])
    }
}

impl Head {
    const NEW: Self = Self { has_request_line: false, length: None, is_chunked: false, is_upgrade: false };

    fn note(&mut self, line: &[u8]) -> Result<(), Flaw> {
        // Most fields end here: few names begin so.
        if !matches!(line.first(), Some(b'c' | b'C' | b't' | b'T' | b'u' | b'U')) {
            return Ok(());
        }
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { return Ok(()) };
        let (name, value) = line.split_at(colon);
        if name.eq_ignore_ascii_case(b"content-length") {
            if self.length.is_some() {
                return Err(Flaw::Repeated);
            }
            let value = value.strip_prefix(b":").unwrap_or_default().trim_ascii();
            // What is no number hyper refuses.
            self.length = Some(std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()).unwrap_or(0));
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if self.is_chunked {
                return Err(Flaw::Repeated);
            }
            self.is_chunked = true;
        } else if name.eq_ignore_ascii_case(b"upgrade") {
            self.is_upgrade = true;
        }
        if self.is_chunked && self.length.is_some() { Err(Flaw::Both) } else { Ok(()) }
    }
}

impl Line {
    const NEW: Self = Self { start: [0; 40], len: 0, last: 0 };

    fn extend(&mut self, part: &[u8]) {
        if let Some(last) = part.last() {
            self.last = *last;
        }
        let free = self.start.get_mut(self.len..).unwrap_or_default();
        let kept = free.len().min(part.len());
        if let (Some(free), Some(part)) = (free.get_mut(..kept), part.get(..kept)) {
            free.copy_from_slice(part);
        }
        self.len += kept;
    }

    /// The kept start, without the CR.
    fn text(&self) -> &[u8] {
        let text = self.start.get(..self.len).unwrap_or_default();
        text.strip_suffix(b"\r").unwrap_or(text)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn see(stream: &[u8], cut: usize) -> Result<(), Flaw> {
        let mut heads = Heads::new();
        stream.chunks(cut).try_for_each(|part| heads.see(part).map(drop).map_err(|(flaw, _)| flaw))
    }

    const GOOD: [&str; 7] = [
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "\r\nGET /a?b HTTP/1.1\r\nHost: a\r\nX: content-length: 5\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 7\r\n\r\na\nb#\n\n\n",
        "POST / HTTP/1.1\r\nHost: a\r\ncontent-length: 0\r\n\r\n",
        "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nHost: a\r\n\r\n3;a=b\r\n\n\n\n\r\nA\r\n\n123456789\r\n0\r\nx: y\r\n\r\n",
        "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nHost: a\r\n\r\n00\r\n\r\n",
        "PUT / HTTP/1.1\r\nHost: a\r\nTrailer: x\r\nCookie: a#b\r\nTe: trailers\r\nConnection: te\r\n\r\n",
    ];

    #[test]
    fn a_flaw_is_found_however_the_bytes_are_cut() {
        let host = "POST / HTTP/1.1\r\nHost: a\r\n";
        let flawed = [
            (format!("{host}Content-Length: 1\r\ncontent-length: 1\r\n\r\na"), Flaw::Repeated),
            (format!("{host}Transfer-Encoding: chunked\r\nTRANSFER-ENCODING: chunked\r\n\r\n"), Flaw::Repeated),
            (format!("{host}Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"), Flaw::Both),
            (format!("{host}Transfer-Encoding:chunked\r\nContent-Length:1\r\n\r\n"), Flaw::Both),
            (format!("{host}X: y\nZ: z\r\n\r\n"), Flaw::BareLf),
            (format!("{host}X: y\r\n\n"), Flaw::BareLf),
            ("\nGET / HTTP/1.1\r\n".to_owned(), Flaw::BareLf),
            ("GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), Flaw::Fragment),
        ];
        for (bad, flaw) in &flawed {
            for good in GOOD {
                for cut in [1, 2, 3, 7, 1000] {
                    assert_eq!(see(format!("{good}{bad}").as_bytes(), cut), Err(*flaw), "{good:?} {bad:?} by {cut}");
                }
                let mut heads = Heads::new();
                let begin = heads.see(format!("{good}{bad}").as_bytes()).unwrap_err().1;
                assert_eq!(begin, good.len(), "{good:?} {bad:?}");
            }
        }
    }

    #[test]
    fn a_line_between_chunks_is_as_it_should_be_or_a_flaw_at_its_place() {
        let head = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
        for (passed, flawed) in [
            ("", " 1\r\n"),
            ("", ";a\r\n"),
            ("", "\r\n"),
            ("1", " \r\n"),
            ("1", "\t;a\r\n"),
            ("1", "\n"),
            ("1\r", "x"),
            ("1\r", "\r\n"),
            ("1;a", "\n"),
            ("1;a", "\0\r\n"),
            ("1\r\nx\r\n", " "),
            ("ffffffffffffffff", "0"),
            ("0\r\n", "\n"),
            ("0\r\n\r", "x"),
            ("0\r\nX: y", "\n\r\n"),
            ("0\r\nX: y\r", "z"),
            ("0\r\nX: y\r\n", "\n"),
        ] {
            let stream = format!("{head}{passed}{flawed}");
            let seen = Heads::new().see(stream.as_bytes());
            assert_eq!(seen, Err((Flaw::Chunk, head.len() + passed.len())), "{stream:?}");
            for cut in [1, 2, 5] {
                assert_eq!(see(stream.as_bytes(), cut), Err(Flaw::Chunk), "{stream:?} by {cut}");
            }
        }
    }

    #[test]
    fn between_requests_is_after_one_and_before_the_next() {
        for good in GOOD {
            let mut heads = Heads::new();
            heads.see(good.as_bytes()).unwrap();
            assert!(heads.is_between(), "{good:?}");
            let mut heads = Heads::new();
            heads.see(good.get(..good.len() - 1).unwrap().as_bytes()).unwrap();
            assert!(!heads.is_between(), "{good:?}");
        }
    }

    #[test]
    fn behind_an_offer_nothing_is_judged_before_its_answer() {
        let offer = b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n";
        let mut heads = Heads::new();
        assert_eq!(heads.see(&[offer, &b"GET / HTTP/1.1\n"[..]].concat()), Ok(offer.len()));
        assert!(heads.is_undecided());
        assert_eq!(heads.see(b"\n\n\n"), Ok(0));
        heads.go_on();
        assert_eq!(heads.see(b"GET / HTTP/1.1\n").unwrap_err().0, Flaw::BareLf);
        let mut heads = Heads::new();
        assert_eq!(heads.see(offer), Ok(offer.len()));
        heads.switch_off();
        assert_eq!(heads.see(b"\n\n\n"), Ok(3));
    }

    proptest! {
        #[test]
        fn good_requests_in_any_order_and_pieces_pass(
            order in prop::collection::vec(0..GOOD.len(), 1..8),
            cut in 1..200usize,
        ) {
            let stream: String = order.iter().map(|at| GOOD[*at]).collect();
            prop_assert_eq!(see(stream.as_bytes(), cut), Ok(()));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), cut in 1..50usize) {
            let _ = see(&bytes, cut);
            let mut stream = GOOD[4].as_bytes().get(..60).unwrap().to_vec();
            stream.extend(bytes);
            let _ = see(&stream, cut);
        }
    }
}
