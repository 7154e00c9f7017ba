//! Where a body ends (RFC 9112 §6, §7.1), both ways.
//!
//! Must never end a body before its end was seen, forgive a line between chunks, or write a byte more than was announced.

use bytes::{BufMut as _, Bytes, BytesMut};
use http::HeaderMap;

use super::trailers;

/// Past so many bytes a line between chunks, or the trailers behind them, are an attack.
const MOST_LINE: u64 = 16 * 1024;

/// Numbers beyond are no sizes: another parser may read them as negative.
const MOST_CHUNK: u64 = u64::MAX >> 1;

/// Takes a body out of the bytes of a connection.
#[derive(Debug)]
pub(crate) enum Decoder {
    /// So many bytes are left.
    Length(u64),
    /// In chunks.
    Chunks(Chunks),
    /// All that comes.
    UntilEnd,
    /// Nothing is left.
    Over,
}

/// What a [`Decoder`] found.
#[derive(Debug)]
pub(crate) enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
    /// More has to be read first.
    Missing,
    /// The body is whole.
    End,
}

/// A body that is not framed as it should be, or cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Broken(pub(crate) &'static str);

#[derive(Debug)]
pub(crate) struct Chunks {
    state: State,
    /// Bytes of lines since the last byte of data.
    overhead: u64,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Size {
        size: u64,
        part: Part,
    },
    Data(u64),
    /// Behind a chunk's data.
    DataEnd {
        has_cr: bool,
    },
    Trailers,
}

/// Where in the line of a chunk's size.
#[derive(Debug, Clone, Copy)]
enum Part {
    Start,
    Digits,
    Extension,
    Cr,
}

impl Decoder {
    pub(crate) const fn length(bytes: u64) -> Self {
        if bytes == 0 { Self::Over } else { Self::Length(bytes) }
    }

    pub(crate) const fn chunks() -> Self {
        let start = State::Size { size: 0, part: Part::Start };
        Self::Chunks(Chunks { state: start, overhead: 0 })
    }

    pub(crate) const fn is_over(&self) -> bool {
        matches!(self, Self::Over)
    }

    /// What is left of a body that said how long it is.
    pub(crate) const fn left(&self) -> Option<u64> {
        match self {
            Self::Length(left) => Some(*left),
            Self::Over => Some(0),
            Self::Chunks(_) | Self::UntilEnd => None,
        }
    }

    /// Takes the next piece from the front of `inbox`, behind which nothing comes if `is_ended`.
    pub(crate) fn take(&mut self, inbox: &mut BytesMut, is_ended: bool) -> Result<Piece, Broken> {
        let piece = match self {
            Self::Over => return Ok(Piece::End),
            Self::Length(left) => {
                let piece = split(inbox, *left);
                *left -= u64::try_from(piece.len()).unwrap_or(*left);
                if *left == 0 {
                    *self = Self::Over;
                }
                Piece::Data(piece)
            }
            Self::UntilEnd => {
                if is_ended && inbox.is_empty() {
                    *self = Self::Over;
                    return Ok(Piece::End);
                }
                return Ok(if inbox.is_empty() { Piece::Missing } else { Piece::Data(inbox.split().freeze()) });
            }
            Self::Chunks(chunks) => {
                let piece = chunks.take(inbox)?;
                if matches!(piece, Piece::End | Piece::Trailers(_)) {
                    *self = Self::Over;
                    return Ok(piece);
                }
                piece
            }
        };
        match piece {
            Piece::Data(data) if data.is_empty() => missing(is_ended),
            Piece::Missing => missing(is_ended),
            piece => Ok(piece),
        }
    }
}

fn missing(is_ended: bool) -> Result<Piece, Broken> {
    if is_ended { Err(Broken("the body was cut")) } else { Ok(Piece::Missing) }
}

fn split(inbox: &mut BytesMut, most: u64) -> Bytes {
    let take = usize::try_from(most).unwrap_or(usize::MAX).min(inbox.len());
    if take == inbox.len() { inbox.split().freeze() } else { inbox.split_to(take).freeze() }
}

impl Chunks {
    fn take(&mut self, inbox: &mut BytesMut) -> Result<Piece, Broken> {
        loop {
            match self.state {
                State::Data(0) => self.state = State::DataEnd { has_cr: false },
                State::Data(left) => {
                    let piece = split(inbox, left);
                    self.state = State::Data(left - u64::try_from(piece.len()).unwrap_or(left));
                    if !piece.is_empty() {
                        self.overhead = 0;
                        return Ok(Piece::Data(piece));
                    }
                    return Ok(Piece::Missing);
                }
                State::Trailers => return self.trailers(inbox),
                State::Size { .. } | State::DataEnd { .. } => {
                    if !self.line(inbox)? {
                        return Ok(Piece::Missing);
                    }
                }
            }
        }
    }

    /// Steps over what is between chunks; whether its end was there.
    fn line(&mut self, inbox: &mut BytesMut) -> Result<bool, Broken> {
        let mut seen = 0;
        let mut is_whole = false;
        for byte in inbox.iter() {
            seen += 1;
            is_whole = self.step(*byte)?;
            if is_whole {
                break;
            }
        }
        let _ = inbox.split_to(seen);
        self.overhead += u64::try_from(seen).unwrap_or(u64::MAX);
        if self.overhead > MOST_LINE {
            return Err(Broken("a chunk's line is too long"));
        }
        Ok(is_whole)
    }

    /// One byte of what is between chunks; whether it was the last.
    fn step(&mut self, byte: u8) -> Result<bool, Broken> {
        let (mut size, part) = match self.state {
            State::DataEnd { has_cr } => {
                self.state = match (has_cr, byte) {
                    (false, b'\r') => State::DataEnd { has_cr: true },
                    (true, b'\n') => State::Size { size: 0, part: Part::Start },
                    _ => return Err(Broken("a chunk is longer than it says")),
                };
                return Ok(false);
            }
            State::Size { size, part } => (size, part),
            State::Data(_) | State::Trailers => return Ok(true),
        };
        let part = match (part, byte, char::from(byte).to_digit(16)) {
            (Part::Start | Part::Digits, _, Some(digit)) => {
                size = size.checked_mul(16).ok_or(Broken("a chunk is too large"))? | u64::from(digit);
                Part::Digits
            }
            (Part::Digits, b';', _) => Part::Extension,
            (Part::Digits | Part::Extension, b'\r', _) => Part::Cr,
            (Part::Extension, b'\t' | b' '..=b'~' | 0x80.., _) => Part::Extension,
            (Part::Cr, b'\n', _) if size > MOST_CHUNK => return Err(Broken("a chunk is too large")),
            (Part::Cr, b'\n', _) => {
                self.state = if size == 0 { State::Trailers } else { State::Data(size) };
                return Ok(true);
            }
            _ => return Err(Broken("a chunk's size is no number")),
        };
        self.state = State::Size { size, part };
        Ok(false)
    }

    fn trailers(&mut self, inbox: &mut BytesMut) -> Result<Piece, Broken> {
        if let Some(rest) = inbox.get(..2)
            && rest == b"\r\n"
        {
            let _ = inbox.split_to(2);
            return Ok(Piece::End);
        }
        let Some(end) = trailers::end(inbox)? else {
            if u64::try_from(inbox.len()).unwrap_or(u64::MAX) > MOST_LINE {
                return Err(Broken("the trailers are too long"));
            }
            return Ok(Piece::Missing);
        };
        let text = inbox.split_to(end).freeze();
        Ok(Piece::Trailers(trailers::parse(&text)?))
    }
}

/// Frames a body for a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encoder {
    /// So many bytes are left.
    Length(u64),
    /// In chunks.
    Chunks,
    /// As it comes; its end is the connection's.
    UntilEnd,
    /// None: its data is left out (HEAD).
    Nothing,
}

impl Encoder {
    /// What goes before a piece and behind it.
    ///
    /// # Errors
    /// The body is longer than was announced.
    pub(crate) fn frame(&mut self, piece: &Bytes, out: &mut BytesMut) -> Result<&'static [u8], Broken> {
        match self {
            Self::Length(left) => {
                let length = u64::try_from(piece.len()).unwrap_or(u64::MAX);
                *left = left.checked_sub(length).ok_or(Broken("the body is longer than announced"))?;
                Ok(b"")
            }
            Self::Chunks => {
                write_hex(piece.len(), out);
                out.put_slice(b"\r\n");
                Ok(b"\r\n")
            }
            Self::UntilEnd | Self::Nothing => Ok(b""),
        }
    }

    /// What ends the body.
    ///
    /// # Errors
    /// It is shorter than was announced.
    pub(crate) fn end(&mut self, last: Option<&HeaderMap>, out: &mut BytesMut) -> Result<(), Broken> {
        match self {
            Self::Length(1..) => return Err(Broken("the body is shorter than announced")),
            Self::Chunks => {
                out.put_slice(b"0\r\n");
                if let Some(last) = last {
                    trailers::write(last, out);
                }
                out.put_slice(b"\r\n");
            }
            Self::Length(0) | Self::UntilEnd | Self::Nothing => {}
        }
        *self = Self::Nothing;
        Ok(())
    }
}

fn write_hex(mut number: usize, out: &mut BytesMut) {
    let mut digits = [0; 16];
    let mut at = digits.len();
    loop {
        at -= 1;
        let nibble = u8::try_from(number & 15).unwrap_or_default();
        if let Some(digit) = digits.get_mut(at) {
            *digit = if nibble < 10 { b'0' + nibble } else { b'a' + nibble - 10 };
        }
        number >>= 4;
        if number == 0 || at == 0 {
            break;
        }
    }
    out.put_slice(digits.get(at..).unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The data, whether trailers came, and what is left; fed in pieces of `cut` bytes.
    fn decode(mut decoder: Decoder, bytes: &[u8], cut: usize) -> Result<(Vec<u8>, bool, usize), Broken> {
        let mut inbox = BytesMut::new();
        let (mut data, mut has_trailers, mut rest) = (Vec::new(), false, bytes);
        loop {
            let is_ended = rest.is_empty() && inbox.is_empty();
            match decoder.take(&mut inbox, is_ended)? {
                Piece::Data(piece) => data.extend_from_slice(&piece),
                Piece::Trailers(_) => has_trailers = true,
                Piece::End => return Ok((data, has_trailers, inbox.len() + rest.len())),
                Piece::Missing if rest.is_empty() => return Err(Broken("the body was cut")),
                Piece::Missing => {
                    let (now, later) = rest.split_at(cut.min(rest.len()));
                    inbox.extend_from_slice(now);
                    rest = later;
                }
            }
        }
    }

    #[test]
    fn a_body_ends_where_its_framing_says() {
        for cut in [1, 2, 3, 1000] {
            assert_eq!(decode(Decoder::length(3), b"abcGET", cut), Ok((b"abc".to_vec(), false, 3)));
            assert_eq!(decode(Decoder::chunks(), b"3;a=b\r\nabc\r\n0\r\n\r\nG", cut), Ok((b"abc".to_vec(), false, 1)));
            let trailed = b"A\r\n\r\n\r\n\r\n\r\n\r\n\r\n00\r\nx: y\r\n\r\n";
            assert_eq!(decode(Decoder::chunks(), trailed, cut), Ok((b"\r\n".repeat(5), true, 0)));
            assert_eq!(decode(Decoder::UntilEnd, b"abc", cut), Ok((b"abc".to_vec(), false, 0)));
        }
    }

    #[test]
    fn what_is_cut_or_ill_framed_is_broken() {
        for bad in [
            " 1\r\n",
            ";a\r\n",
            "\r\n",
            "1 \r\n",
            "1\t;a\r\n",
            "1\n",
            "1\rx",
            "1;a\n",
            "1;a\0\r\n",
            "1\r\nx\r\n ",
            "fffffffffffffffff\r\n",
            "8000000000000000\r\n",
            "1\r\nxx",
            "0\r\n\n",
            "0\r\n\rx",
            "0\r\nX: y\n\r\n",
            "0\r\nX: y\rz",
            "0\r\nX: y\r\n\n",
            "0\r\nX y\r\n\r\n",
            "5\r\nabc",
            "0\r\n",
            "",
        ] {
            for cut in [1, 2, 1000] {
                assert!(decode(Decoder::chunks(), bad.as_bytes(), cut).is_err(), "{bad:?} by {cut}");
            }
        }
        assert!(decode(Decoder::length(4), b"abc", 9).is_err());
        let endless = [b"1;".as_slice(), &vec![b'a'; 40_000]].concat();
        assert_eq!(decode(Decoder::chunks(), &endless, 1000), Err(Broken("a chunk's line is too long")));
        let endless = [b"0\r\nx: ".as_slice(), &vec![b'a'; 40_000]].concat();
        assert_eq!(decode(Decoder::chunks(), &endless, 1000), Err(Broken("the trailers are too long")));
    }

    #[test]
    fn nothing_but_what_was_announced_is_written() {
        let mut out = BytesMut::new();
        let mut encoder = Encoder::Length(3);
        assert_eq!(encoder.frame(&Bytes::from_static(b"ab"), &mut out), Ok(&b""[..]));
        assert!(encoder.end(None, &mut out).is_err());
        assert!(encoder.frame(&Bytes::from_static(b"cd"), &mut out).is_err());
    }

    proptest! {
        #[test]
        fn what_is_framed_is_read_back(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..600), 0..8), cut in 1..700usize) {
            let mut out = BytesMut::new();
            let mut encoder = Encoder::Chunks;
            for piece in &pieces {
                let piece = Bytes::from(piece.clone());
                let tail = encoder.frame(&piece, &mut out).unwrap();
                out.extend_from_slice(&piece);
                out.extend_from_slice(tail);
            }
            encoder.end(None, &mut out).unwrap();
            prop_assert_eq!(decode(Decoder::chunks(), &out, cut), Ok((pieces.concat(), false, 0)));
        }
    }
}
