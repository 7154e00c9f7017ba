//! A second reader of HTTP/1.1 messages (RFC 9112), independent of the one that Culvert uses.
//!
//! Must never repair: what has two readings, or none, is a [`Flaw`].

use bytes::{Buf as _, Bytes, BytesMut};

/// Why these bytes are no message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flaw(pub &'static str);

impl std::fmt::Display for Flaw {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "not HTTP/1.1: {}", self.0)
    }
}

impl std::error::Error for Flaw {}

/// Fields in the order and the case in which they came.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fields(pub Vec<(Vec<u8>, Vec<u8>)>);

/// A head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The first line, without its end.
    pub first: Vec<u8>,
    pub fields: Fields,
}

/// How a body is told from what follows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    None,
    Length(u64),
    Chunked,
    /// A response that ends with its connection.
    UntilClose,
}

/// A request line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line<'a> {
    pub method: &'a [u8],
    pub target: &'a [u8],
    pub minor: u8,
}

impl Fields {
    /// Lines as a test writes them.
    pub fn of(lines: &[(&str, &str)]) -> Self {
        Self(lines.iter().map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec())).collect())
    }

    pub fn all<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let name = name.to_owned();
        self.0
            .iter()
            .filter(move |(own, _)| own.eq_ignore_ascii_case(name.as_bytes()))
            .map(|(_, value)| value.as_slice())
    }

    /// The one value of a field that came once.
    pub fn one(&self, name: &str) -> Option<&[u8]> {
        let mut all = self.all(name);
        all.next().filter(|_| all.next().is_none())
    }

    /// The same as text.
    pub fn text(&self, name: &str) -> String {
        self.all(name).map(|value| String::from_utf8_lossy(value).into_owned()).collect::<Vec<_>>().join(" | ")
    }

    pub fn push(&mut self, name: &str, value: impl Into<Vec<u8>>) {
        self.0.push((name.as_bytes().to_vec(), value.into()));
    }
}

/// Reads a head with its blank line; `None` while it is not whole. The count is of the bytes it took.
///
/// # Errors
/// Anything that RFC 9112 §2–5 does not allow a sender.
pub fn head(bytes: &[u8]) -> Result<Option<(Head, usize)>, Flaw> {
    let mut first = None;
    let mut fields = Fields::default();
    let mut at = 0;
    while let Some((line, taken)) = line(bytes.get(at..).unwrap_or_default())? {
        at += taken;
        if line.is_empty() {
            let first = first.ok_or(Flaw("a blank line before a head"))?;
            return Ok(Some((Head { first, fields }, at)));
        }
        match &first {
            None => first = Some(line.to_vec()),
            Some(_) => fields.0.push(field(line)?),
        }
    }
    Ok(None)
}

impl Head {
    /// The request line in it.
    ///
    /// # Errors
    /// It is none.
    pub fn line(&self) -> Result<Line<'_>, Flaw> {
        let mut parts = self.first.split(|byte| *byte == b' ');
        let (Some(method), Some(target), Some(version), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(Flaw("a request line of other than three words"));
        };
        if method.is_empty() || !method.iter().copied().all(is_token) {
            return Err(Flaw("a method that is no token"));
        }
        if target.is_empty() || !target.iter().all(|byte| (0x21..0x7f).contains(byte)) {
            return Err(Flaw("a target with a byte that no URI has"));
        }
        let minor = match version {
            b"HTTP/1.1" => 1,
            b"HTTP/1.0" => 0,
            _ => return Err(Flaw("another version")),
        };
        Ok(Line { method, target, minor })
    }

    /// The status in the status line.
    ///
    /// # Errors
    /// It is no status line.
    pub fn status(&self) -> Result<u16, Flaw> {
        let flaw = Flaw("an ill-formed status line");
        let rest = self.first.strip_prefix(b"HTTP/1.1 ").or_else(|| self.first.strip_prefix(b"HTTP/1.0 "));
        let (code, reason) = rest.and_then(|rest| rest.split_at_checked(3)).ok_or(flaw.clone())?;
        if !(reason.is_empty() || reason.starts_with(b" ")) || !code.iter().all(u8::is_ascii_digit) {
            return Err(flaw);
        }
        std::str::from_utf8(code).ok().and_then(|code| code.parse().ok()).ok_or(flaw)
    }

    /// How this request's body ends (RFC 9112 §6.3).
    ///
    /// # Errors
    /// It can be read in two ways.
    pub fn request_framing(&self) -> Result<Framing, Flaw> {
        match framing(&self.fields)? {
            Framing::UntilClose => Ok(Framing::None),
            Framing::Chunked if self.line()?.minor == 0 => Err(Flaw("chunked before HTTP/1.1")),
            framing => Ok(framing),
        }
    }

    /// How the body of this response to `method` ends.
    ///
    /// # Errors
    /// It can be read in two ways.
    pub fn response_framing(&self, method: &str) -> Result<Framing, Flaw> {
        let status = self.status()?;
        let framing = framing(&self.fields)?;
        if method == "HEAD" || matches!(status, 100..200 | 204 | 304) {
            return Ok(Framing::None);
        }
        Ok(framing)
    }
}

fn framing(fields: &Fields) -> Result<Framing, Flaw> {
    let codings: Vec<_> = fields.all("transfer-encoding").collect();
    let lengths: Vec<_> = fields.all("content-length").collect();
    match (codings.as_slice(), lengths.as_slice()) {
        ([], []) => Ok(Framing::UntilClose),
        ([coding], []) if coding.eq_ignore_ascii_case(b"chunked") => Ok(Framing::Chunked),
        ([], [length]) if !length.is_empty() && length.iter().all(u8::is_ascii_digit) => {
            let length = std::str::from_utf8(length).ok().and_then(|text| text.parse().ok());
            Ok(Framing::Length(length.ok_or(Flaw("a length beyond counting"))?))
        }
        ([], [_]) => Err(Flaw("an ill-formed length")),
        ([_], []) => Err(Flaw("a coding other than chunked")),
        _ => Err(Flaw("a length or coding twice, or both")),
    }
}

/// One line without its end, and the bytes it took.
fn line(bytes: &[u8]) -> Result<Option<(&[u8], usize)>, Flaw> {
    for (at, byte) in bytes.iter().enumerate() {
        match byte {
            b'\n' => return Err(Flaw("a bare LF")),
            b'\r' => {
                return match bytes.get(at + 1) {
                    None => Ok(None),
                    Some(b'\n') => Ok(Some((bytes.get(..at).unwrap_or_default(), at + 2))),
                    Some(_) => Err(Flaw("a bare CR")),
                };
            }
            _ => {}
        }
    }
    Ok(None)
}

fn field(line: &[u8]) -> Result<(Vec<u8>, Vec<u8>), Flaw> {
    let colon = line.iter().position(|byte| *byte == b':').ok_or(Flaw("a field without a colon"))?;
    let (name, value) = line.split_at(colon);
    if name.is_empty() || !name.iter().copied().all(is_token) {
        return Err(Flaw("a field's name that is no token"));
    }
    let value = value.get(1..).unwrap_or_default();
    if !value.iter().all(|byte| matches!(byte, b'\t' | 0x20..=0x7e | 0x80..)) {
        return Err(Flaw("a control in a field's value"));
    }
    let is_space = |byte: &u8| matches!(byte, b' ' | b'\t');
    let start = value.iter().position(|byte| !is_space(byte)).unwrap_or(value.len());
    let end = value.iter().rposition(|byte| !is_space(byte)).map_or(start, |last| last + 1);
    Ok((name.to_vec(), value.get(start..end).unwrap_or_default().to_vec()))
}

/// RFC 9110 §5.6.2.
pub fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Reads one body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decoder {
    Left(u64),
    UntilClose,
    Size,
    Chunk(u64),
    Trailers,
    Done,
}

/// What the decoder found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    Data(Bytes),
    /// The body is whole; its trailers.
    End(Fields),
    /// More bytes are needed.
    More,
}

impl Decoder {
    pub fn new(framing: Framing) -> Self {
        match framing {
            Framing::None => Self::Left(0),
            Framing::Length(length) => Self::Left(length),
            Framing::Chunked => Self::Size,
            Framing::UntilClose => Self::UntilClose,
        }
    }

    /// Whether the end of the bytes would be the end of the body.
    pub fn may_end(&self) -> bool {
        matches!(self, Self::UntilClose | Self::Done | Self::Left(0))
    }

    /// Takes the next piece from the front of `bytes`.
    ///
    /// # Errors
    /// The body is not framed as RFC 9112 §7.1 says.
    pub fn step(&mut self, bytes: &mut BytesMut) -> Result<Step, Flaw> {
        loop {
            match self {
                Self::Left(0) => {
                    *self = Self::Done;
                    return Ok(Step::End(Fields::default()));
                }
                Self::Done => return Ok(Step::End(Fields::default())),
                _ if bytes.is_empty() => return Ok(Step::More),
                Self::UntilClose => return Ok(Step::Data(bytes.split().freeze())),
                Self::Left(left) => {
                    let take = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                    *left -= take as u64;
                    return Ok(Step::Data(bytes.split_to(take).freeze()));
                }
                Self::Size => {
                    let Some((text, taken)) = line(bytes)? else { return Ok(Step::More) };
                    let size = size(text)?;
                    bytes.advance(taken);
                    *self = if size == 0 { Self::Trailers } else { Self::Chunk(size + 2) };
                }
                Self::Chunk(left @ 3..) => {
                    let take = usize::try_from(*left - 2).unwrap_or(usize::MAX).min(bytes.len());
                    *left -= take as u64;
                    return Ok(Step::Data(bytes.split_to(take).freeze()));
                }
                Self::Chunk(_) => {
                    let Some(end) = bytes.get(..2) else { return Ok(Step::More) };
                    if end != b"\r\n" {
                        return Err(Flaw("a chunk that does not end where it says"));
                    }
                    bytes.advance(2);
                    *self = Self::Size;
                }
                Self::Trailers => {
                    let mut at = 0;
                    let mut trailers = Fields::default();
                    while let Some((text, taken)) = line(bytes.get(at..).unwrap_or_default())? {
                        at += taken;
                        if text.is_empty() {
                            bytes.advance(at);
                            *self = Self::Done;
                            return Ok(Step::End(trailers));
                        }
                        trailers.0.push(field(text)?);
                    }
                    return Ok(Step::More);
                }
            }
        }
    }
}

/// A chunk's size; extensions are for the hop that they came on, and only their shape is looked at.
fn size(line: &[u8]) -> Result<u64, Flaw> {
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let (number, rest) = line.split_at(digits);
    if !(rest.is_empty() || rest.starts_with(b";"))
        || !rest.iter().all(|byte| matches!(byte, b'\t' | 0x20..=0x7e | 0x80..))
    {
        return Err(Flaw("an ill-formed chunk size"));
    }
    let number = std::str::from_utf8(number).ok().and_then(|text| u64::from_str_radix(text, 16).ok());
    number.filter(|number| *number <= u64::MAX - 2).ok_or(Flaw("a chunk size beyond counting"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_as_it_was_written() {
        let (head, taken) = head(b"GET /a HTTP/1.1\r\nHost: b\r\nX-Y:\t z \r\n\r\nrest").unwrap().unwrap();
        assert_eq!(taken, 38);
        assert_eq!(head.line().unwrap(), Line { method: b"GET", target: b"/a", minor: 1 });
        assert_eq!(head.fields, Fields::of(&[("Host", "b"), ("X-Y", "z")]));
        assert_eq!(head.request_framing().unwrap(), Framing::None);
    }

    #[test]
    fn what_has_two_readings_has_none() {
        for bad in [
            "GET / HTTP/1.1\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\rb\r\n\r\n",
            "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
            "GET / HTTP/1.1\r\nX: a\r\n b\r\n\r\n",
            "GET / HTTP/1.1\r\nX: a\0b\r\n\r\n",
            "GET / HTTP/1.1\r\nX\r\n\r\n",
        ] {
            assert!(head(bad.as_bytes()).is_err(), "{bad:?}");
        }
        for bad in [
            "Content-Length: 1\r\nContent-Length: 1\r\n",
            "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: chunked, chunked\r\n",
            "Content-Length: +1\r\n",
        ] {
            let (head, _) = head(format!("GET / HTTP/1.1\r\n{bad}\r\n").as_bytes()).unwrap().unwrap();
            assert!(head.request_framing().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn chunks_end_where_they_say() {
        let read = |text: &str| {
            let mut bytes = BytesMut::from(text.as_bytes());
            let mut decoder = Decoder::new(Framing::Chunked);
            let mut body = Vec::new();
            loop {
                match decoder.step(&mut bytes)? {
                    Step::Data(data) => body.extend_from_slice(&data),
                    Step::End(trailers) => return Ok((body, trailers)),
                    Step::More => return Err(Flaw("cut")),
                }
            }
        };
        assert_eq!(read("3;x=y\r\nabc\r\n0\r\nA: b\r\n\r\n"), Ok((b"abc".to_vec(), Fields::of(&[("A", "b")]))));
        for bad in
            ["3\r\nabcd\r\n0\r\n\r\n", "-1\r\n", "3\nabc\r\n0\r\n\r\n", "0x3\r\nabc", "\r\n", "3 \r\nabc\r\n", "0\r\n"]
        {
            assert!(read(bad).is_err(), "{bad:?}");
        }
    }
}
