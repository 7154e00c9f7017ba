//! The fields of a message, in their order and as they are spelled; and which of them are for one hop only.
//!
//! Must never reorder or respell what stays.

use std::fmt;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header};

/// Names that every message is asked for, as text: [`HeaderName`] looks its own up in a table each time.
pub(crate) mod name {
    pub(crate) const CONNECTION: &str = "connection";
    pub(crate) const CONTENT_LENGTH: &str = "content-length";
    pub(crate) const EXPECT: &str = "expect";
    pub(crate) const FORWARDED: &str = "forwarded";
    pub(crate) const HOST: &str = "host";
    /// Belongs to an h2c upgrade, which ends here.
    pub(crate) const HTTP2_SETTINGS: &str = "http2-settings";
    pub(crate) const KEEP_ALIVE: &str = "keep-alive";
    pub(crate) const PROXY_CONNECTION: &str = "proxy-connection";
    pub(crate) const TE: &str = "te";
    pub(crate) const TRANSFER_ENCODING: &str = "transfer-encoding";
    pub(crate) const UPGRADE: &str = "upgrade";
    pub(crate) const VIA: &str = "via";
}
/// Every field whose name starts so, and goes on with `-` or `_`, speaks for Culvert: to programs that read fields as
/// variables (RFC 3875 §4.1.18) both are one.
const CULVERT: &[u8] = b"culvert";

/// Header fields: lines in the order in which they came. A gateway's head has a dozen of them, which are looked through
/// faster than hashed, and go out as they came in.
#[derive(Clone, Default)]
pub struct Fields {
    lines: Vec<(Name, HeaderValue)>,
    /// The marks of the lines' names, and maybe of some that are gone. Most names that are asked for are in no line, which
    /// one bit tells.
    marks: u64,
}

/// A field's name, as it was spelled: a token (RFC 9110 §5.6.2). Names that differ in case only are the same.
#[derive(Clone)]
pub struct Name(Spelling);

#[derive(Clone)]
enum Spelling {
    Received(Bytes),
    /// Our own, in lower case.
    Own(&'static str),
    /// Of HTTP/2, in lower case.
    Known(HeaderName),
}

/// Whatever names a field: [`Name`], [`HeaderName`], or text.
pub trait AsName {
    /// Its bytes.
    fn as_bytes(&self) -> &[u8];
}

impl AsName for Name {
    fn as_bytes(&self) -> &[u8] {
        Name::as_bytes(self)
    }
}

impl AsName for HeaderName {
    fn as_bytes(&self) -> &[u8] {
        self.as_str().as_bytes()
    }
}

impl AsName for str {
    fn as_bytes(&self) -> &[u8] {
        self.as_bytes()
    }
}

impl<T: AsName + ?Sized> AsName for &T {
    fn as_bytes(&self) -> &[u8] {
        T::as_bytes(self)
    }
}

impl Name {
    /// A name that a parser has found to be a token.
    pub(crate) fn received(token: Bytes) -> Self {
        Self(Spelling::Received(token))
    }

    /// As it is spelled.
    #[inline]
    pub fn as_bytes(&self) -> &[u8] {
        match &self.0 {
            Spelling::Received(token) => token,
            Spelling::Own(name) => name.as_bytes(),
            Spelling::Known(name) => name.as_str().as_bytes(),
        }
    }

    /// Whether it is this name, in whatever case.
    #[inline]
    pub fn is(&self, name: &(impl AsName + ?Sized)) -> bool {
        self.is_spelled(name.as_bytes())
    }

    /// Most names differ in their length.
    #[inline]
    fn is_spelled(&self, name: &[u8]) -> bool {
        let own = self.as_bytes();
        own.len() == name.len() && own.eq_ignore_ascii_case(name)
    }

    /// In lower case; none for what is no token.
    pub fn to_lower(&self) -> Option<HeaderName> {
        match &self.0 {
            Spelling::Known(name) => Some(name.clone()),
            Spelling::Received(_) | Spelling::Own(_) => HeaderName::from_bytes(self.as_bytes()).ok(),
        }
    }
}

impl From<HeaderName> for Name {
    fn from(name: HeaderName) -> Self {
        Self(Spelling::Known(name))
    }
}

impl From<&'static str> for Name {
    /// `name` is a token.
    fn from(name: &'static str) -> Self {
        debug_assert!(HeaderName::from_bytes(name.as_bytes()).is_ok(), "{name:?} is no token");
        Self(Spelling::Own(name))
    }
}

impl PartialEq<HeaderName> for Name {
    fn eq(&self, name: &HeaderName) -> bool {
        self.is(name)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&String::from_utf8_lossy(self.as_bytes()))
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&String::from_utf8_lossy(self.as_bytes()), f)
    }
}

impl Fields {
    /// None.
    pub const fn new() -> Self {
        Self { lines: Vec::new(), marks: 0 }
    }

    /// None, with room for some.
    pub fn with_capacity(lines: usize) -> Self {
        Self { lines: Vec::with_capacity(lines), marks: 0 }
    }

    /// The value of the first line of this name.
    #[inline]
    pub fn get(&self, name: impl AsName) -> Option<&HeaderValue> {
        let name = name.as_bytes();
        if !self.may_have(name) {
            return None;
        }
        self.lines.iter().find(|(own, _)| own.is_spelled(name)).map(|(_, value)| value)
    }

    /// The values of all lines of this name, in their order.
    #[inline]
    pub fn get_all<N: AsName>(&self, name: N) -> Values<'_, N> {
        let lines = if self.may_have(name.as_bytes()) { self.lines.iter() } else { Default::default() };
        Values { lines, name }
    }

    /// The value of the last line of this name.
    pub fn last_mut(&mut self, name: impl AsName) -> Option<&mut HeaderValue> {
        let name = name.as_bytes();
        if !self.may_have(name) {
            return None;
        }
        self.lines.iter_mut().rfind(|(own, _)| own.is_spelled(name)).map(|(_, value)| value)
    }

    /// Whether there is a line of this name.
    #[inline]
    pub fn contains_key(&self, name: impl AsName) -> bool {
        self.get(name).is_some()
    }

    /// Makes this the only line of its name: in the place of the first, and spelled like it, or as the last of all.
    pub fn insert(&mut self, name: impl Into<Name>, value: HeaderValue) {
        let name = name.into();
        let spelled = name.as_bytes();
        let is_there = self.may_have(spelled);
        let Some(first) = self.lines.iter().position(|(own, _)| is_there && own.is_spelled(spelled)) else {
            return self.append(name, value);
        };
        let mut at = 0;
        self.lines.retain(|(own, _)| {
            at += 1;
            at <= first + 1 || !own.is_spelled(spelled)
        });
        if let Some((_, old)) = self.lines.get_mut(first) {
            *old = value;
        }
    }

    /// Adds a line behind the others.
    #[inline]
    pub fn append(&mut self, name: impl Into<Name>, value: HeaderValue) {
        let name = name.into();
        self.marks |= mark(name.as_bytes());
        self.lines.push((name, value));
    }

    /// Adds a line before the others.
    pub(crate) fn put_first(&mut self, name: impl Into<Name>, value: HeaderValue) {
        let name = name.into();
        self.marks |= mark(name.as_bytes());
        self.lines.insert(0, (name, value));
    }

    /// Takes out all lines of this name; the value of the first.
    pub fn remove(&mut self, name: impl AsName) -> Option<HeaderValue> {
        let name = name.as_bytes();
        if !self.may_have(name) {
            return None;
        }
        let taken = self.lines.iter().find(|(own, _)| own.is_spelled(name)).map(|(_, value)| value.clone())?;
        self.lines.retain(|(own, _)| !own.is_spelled(name));
        Some(taken)
    }

    /// Keeps the lines of which this is true.
    pub fn retain(&mut self, mut keeps: impl FnMut(&Name, &HeaderValue) -> bool) {
        self.lines.retain(|(name, value)| keeps(name, value));
    }

    /// Takes out the lines whose name is unwanted.
    pub(crate) fn drop_named(&mut self, is_unwanted: impl Fn(&Name) -> bool) {
        // Most heads have nothing to drop.
        let Some(first) = self.lines.iter().position(|(name, _)| is_unwanted(name)) else { return };
        let mut at = 0;
        self.lines.retain(|(name, _)| {
            at += 1;
            at <= first || at != first + 1 && !is_unwanted(name)
        });
    }

    /// The lines.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&Name, &HeaderValue)> {
        self.lines.iter().map(|(name, value)| (name, value))
    }

    /// How many lines there are.
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    pub(crate) fn reserve(&mut self, lines: usize) {
        self.lines.reserve(lines);
    }

    #[inline]
    fn may_have(&self, name: &[u8]) -> bool {
        self.marks & mark(name) != 0
    }
}

/// One of 64 bits, by length and last letter in whatever case: the names that are asked for most differ in one of the two
/// from those that are there most.
#[inline]
const fn mark(name: &[u8]) -> u64 {
    let last = match name.last() {
        Some(last) => *last as usize & 31,
        None => 0,
    };
    1 << ((name.len() * 5 + last * 11) % 64)
}

/// The values of all lines of one name.
pub struct Values<'a, N> {
    lines: std::slice::Iter<'a, (Name, HeaderValue)>,
    name: N,
}

impl<'a, N: AsName> Iterator for Values<'a, N> {
    type Item = &'a HeaderValue;

    #[inline]
    fn next(&mut self) -> Option<&'a HeaderValue> {
        if self.lines.as_slice().is_empty() {
            return None;
        }
        let name = self.name.as_bytes();
        self.lines.find(|(own, _)| own.is_spelled(name)).map(|(_, value)| value)
    }
}

impl<N: AsName> DoubleEndedIterator for Values<'_, N> {
    fn next_back(&mut self) -> Option<Self::Item> {
        let name = self.name.as_bytes();
        self.lines.rfind(|(own, _)| own.is_spelled(name)).map(|(_, value)| value)
    }
}

impl fmt::Debug for Fields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl From<HeaderMap> for Fields {
    fn from(map: HeaderMap) -> Self {
        let mut fields = Self::with_capacity(map.len() + 12);
        let mut last = None;
        for (name, value) in map {
            last = name.or(last);
            if let Some(name) = &last {
                fields.append(name.clone(), value);
            }
        }
        fields
    }
}

impl From<Fields> for HeaderMap {
    fn from(fields: Fields) -> Self {
        let mut map = HeaderMap::with_capacity(fields.len());
        for (name, value) in fields.lines {
            if let Some(name) = name.to_lower() {
                map.append(name, value);
            }
        }
        map
    }
}

/// The values of the first two lines of this name: a second one is one too many of most.
pub(crate) fn two<'a>(fields: &'a Fields, name: &str) -> (Option<&'a HeaderValue>, Option<&'a HeaderValue>) {
    let mut values = fields.get_all(name);
    (values.next(), values.next())
}

/// Whether the field ends at this hop although `Connection` does not name it (RFC 9110 §7.6.1).
#[inline]
pub(crate) fn is_hop_by_hop(name: &Name) -> bool {
    // By length first: most names have none of these.
    match name.as_bytes().len() {
        2 => name.is(name::TE),
        7 => name.is(name::UPGRADE),
        10 => name.is(name::CONNECTION) || name.is(name::KEEP_ALIVE),
        14 => name.is(name::HTTP2_SETTINGS),
        16 => name.is(name::PROXY_CONNECTION),
        17 => name.is(name::TRANSFER_ENCODING),
        _ => false,
    }
}

/// Whether the field speaks for Culvert.
pub(crate) fn is_culvert(name: &[u8]) -> bool {
    name.len() > CULVERT.len()
        && name.get(..CULVERT.len()).is_some_and(|start| start.eq_ignore_ascii_case(CULVERT))
        && matches!(name.get(CULVERT.len()), Some(b'-' | b'_'))
}

/// Whether the next hop relies on the field, so that `Connection` may not take it away.
pub(crate) fn is_protected(name: &HeaderName) -> bool {
    const PROTECTED: [HeaderName; 14] = [
        header::HOST,
        header::CONTENT_LENGTH,
        header::TRANSFER_ENCODING,
        header::CONTENT_TYPE,
        header::CONTENT_ENCODING,
        header::AUTHORIZATION,
        header::COOKIE,
        header::SET_COOKIE,
        header::EXPECT,
        header::FORWARDED,
        header::VIA,
        header::RANGE,
        header::CACHE_CONTROL,
        header::TRAILER,
    ];
    PROTECTED.contains(name)
        || is_culvert(name.as_str().as_bytes())
        || ["x-forwarded-", "x-real-ip", "x-request-id", "traceparent", "tracestate", "proxy-status"]
            .iter()
            .any(|prefix| name.as_str().starts_with(prefix))
}

/// The tokens of all lines of a list field; the empty ones left out.
pub(crate) fn tokens<'a>(fields: &'a Fields, name: &'a str) -> impl Iterator<Item = &'a [u8]> + use<'a> {
    fields
        .get_all(name)
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(lines: &[(&'static str, &'static str)]) -> Fields {
        let mut fields = Fields::new();
        for &(name, value) in lines {
            fields.append(Name::received(Bytes::from_static(name.as_bytes())), HeaderValue::from_static(value));
        }
        fields
    }

    fn lines(fields: &Fields) -> Vec<String> {
        let line = |(name, value): (&Name, &HeaderValue)| format!("{name:?}:{}", value.to_str().unwrap());
        fields.iter().map(|both| line(both).replace('"', "")).collect()
    }

    const MIXED: [(&str, &str); 6] = [("A", "1"), ("b", "1"), ("a", "2"), ("C", "1"), ("B", "2"), ("d", "1")];

    #[test]
    fn what_stays_keeps_its_order_and_spelling() {
        let mut some = fields(&MIXED);
        some.drop_named(|name| name.is("b"));
        assert_eq!(lines(&some), ["A:1", "a:2", "C:1", "d:1"]);
        some.drop_named(|name| name.is("x"));
        assert_eq!(some.remove("A").unwrap(), "1");
        assert_eq!(some.remove("A"), None);
        assert_eq!(lines(&some), ["C:1", "d:1"]);
    }

    #[test]
    fn an_inserted_line_is_the_only_one_of_its_name_and_in_the_place_of_the_first() {
        let mut some = fields(&MIXED);
        some.insert(HeaderName::from_static("b"), HeaderValue::from_static("9"));
        assert_eq!(lines(&some), ["A:1", "b:9", "a:2", "C:1", "d:1"]);
        some.insert(HeaderName::from_static("x"), HeaderValue::from_static("9"));
        assert_eq!(lines(&some), ["A:1", "b:9", "a:2", "C:1", "d:1", "x:9"]);
    }

    #[test]
    fn names_are_found_in_any_case() {
        let some = fields(&MIXED);
        assert_eq!(some.get_all("A").collect::<Vec<_>>(), ["1", "2"]);
        assert_eq!(some.get(HeaderName::from_static("c")).unwrap(), "1");
        assert!(!some.contains_key("e"));
        assert!(is_hop_by_hop(&Name::received(Bytes::from_static(b"Keep-ALIVE"))));
        assert!(is_culvert(b"CULVERT_x") && !is_culvert(b"culvert") && !is_culvert(b"culverts-x"));
    }

    #[test]
    fn a_map_there_and_back_loses_spelling_and_mixed_order_only() {
        let map = HeaderMap::from(fields(&MIXED));
        assert_eq!(lines(&Fields::from(map)), ["a:1", "a:2", "b:1", "b:2", "c:1", "d:1"]);
    }
}
