//! The fields of a message, in their order and as they are spelled; and which of them are for one hop only.
//!
//! Must never reorder or respell what stays.

use std::fmt;

use bytes::Bytes;
use http::header::{CONNECTION, TE, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, header};

/// `Keep-Alive`.
pub(crate) const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
/// `Proxy-Connection`.
pub(crate) const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
/// `HTTP2-Settings`: belongs to an h2c upgrade, which ends here.
pub(crate) const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
/// Every field whose name starts so, and goes on with `-` or `_`, speaks for Culvert: to programs that read fields as
/// variables (RFC 3875 §4.1.18) both are one.
const CULVERT: &[u8] = b"culvert";

/// Header fields: lines in the order in which they came. A gateway's head has a dozen of them, which are looked through
/// faster than hashed, and go out as they came in.
#[derive(Clone, Default)]
pub struct Fields(Vec<(Name, HeaderValue)>);

/// A field's name, as it was spelled. Names that differ in case only are the same.
#[derive(Clone)]
pub struct Name(Spelling);

#[derive(Clone)]
enum Spelling {
    /// In lower case.
    Known(HeaderName),
    /// A token (RFC 9110 §5.6.2).
    Received(Bytes),
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
            Spelling::Known(name) => name.as_str().as_bytes(),
        }
    }

    /// Whether it is this name, in whatever case.
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
            Spelling::Received(token) => HeaderName::from_bytes(token).ok(),
        }
    }
}

impl From<HeaderName> for Name {
    fn from(name: HeaderName) -> Self {
        Self(Spelling::Known(name))
    }
}

impl From<&'static str> for Name {
    /// # Panics
    /// It is no field name in lower case.
    fn from(name: &'static str) -> Self {
        HeaderName::from_static(name).into()
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
        Self(Vec::new())
    }

    /// None, with room for some.
    pub fn with_capacity(lines: usize) -> Self {
        Self(Vec::with_capacity(lines))
    }

    /// The value of the first line of this name.
    pub fn get(&self, name: impl AsName) -> Option<&HeaderValue> {
        let name = name.as_bytes();
        self.0.iter().find(|(own, _)| own.is_spelled(name)).map(|(_, value)| value)
    }

    /// The values of all lines of this name, in their order.
    pub fn get_all<N: AsName>(&self, name: N) -> Values<'_, N> {
        Values { lines: self.0.iter(), name }
    }

    /// The value of the last line of this name.
    pub fn last_mut(&mut self, name: impl AsName) -> Option<&mut HeaderValue> {
        let name = name.as_bytes();
        self.0.iter_mut().rfind(|(own, _)| own.is_spelled(name)).map(|(_, value)| value)
    }

    /// Whether there is a line of this name.
    pub fn contains_key(&self, name: impl AsName) -> bool {
        self.get(name).is_some()
    }

    /// Makes this the only line of its name: in the place of the first, and spelled like it, or as the last of all.
    pub fn insert(&mut self, name: impl Into<Name>, value: HeaderValue) {
        let name = name.into();
        let spelled = name.as_bytes();
        let Some(first) = self.0.iter().position(|(own, _)| own.is_spelled(spelled)) else {
            self.0.push((name, value));
            return;
        };
        let mut at = 0;
        self.0.retain(|(own, _)| {
            at += 1;
            at <= first + 1 || !own.is_spelled(spelled)
        });
        if let Some((_, old)) = self.0.get_mut(first) {
            *old = value;
        }
    }

    /// Adds a line behind the others.
    pub fn append(&mut self, name: impl Into<Name>, value: HeaderValue) {
        self.0.push((name.into(), value));
    }

    /// Adds a line before the others.
    pub(crate) fn put_first(&mut self, name: impl Into<Name>, value: HeaderValue) {
        self.0.insert(0, (name.into(), value));
    }

    /// Takes out all lines of this name; the value of the first.
    pub fn remove(&mut self, name: impl AsName) -> Option<HeaderValue> {
        let name = name.as_bytes();
        let taken = self.0.iter().find(|(own, _)| own.is_spelled(name)).map(|(_, value)| value.clone())?;
        self.0.retain(|(own, _)| !own.is_spelled(name));
        Some(taken)
    }

    /// Keeps the lines of which this is true.
    pub fn retain(&mut self, mut keeps: impl FnMut(&Name, &HeaderValue) -> bool) {
        self.0.retain(|(name, value)| keeps(name, value));
    }

    /// Takes out the lines whose name is unwanted.
    pub(crate) fn drop_named(&mut self, is_unwanted: impl Fn(&Name) -> bool) {
        // Most heads have nothing to drop.
        if self.0.iter().any(|(name, _)| is_unwanted(name)) {
            self.0.retain(|(name, _)| !is_unwanted(name));
        }
    }

    /// The lines.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&Name, &HeaderValue)> {
        self.0.iter().map(|(name, value)| (name, value))
    }

    /// How many lines there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn reserve(&mut self, lines: usize) {
        self.0.reserve(lines);
    }
}

/// The values of all lines of one name.
pub struct Values<'a, N> {
    lines: std::slice::Iter<'a, (Name, HeaderValue)>,
    name: N,
}

impl<'a, N: AsName> Iterator for Values<'a, N> {
    type Item = &'a HeaderValue;

    fn next(&mut self) -> Option<&'a HeaderValue> {
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
        for (name, value) in fields.0 {
            if let Some(name) = name.to_lower() {
                map.append(name, value);
            }
        }
        map
    }
}

/// The values of the first two lines of this name: a second one is one too many of most.
pub(crate) fn two(fields: &Fields, name: HeaderName) -> (Option<&HeaderValue>, Option<&HeaderValue>) {
    let mut values = fields.get_all(name);
    (values.next(), values.next())
}

/// Whether the field ends at this hop although `Connection` does not name it (RFC 9110 §7.6.1).
pub(crate) fn is_hop_by_hop(name: &Name) -> bool {
    // By length first: most names have none of these.
    match name.as_bytes().len() {
        2 => name.is(&TE),
        7 => name.is(&UPGRADE),
        10 => name.is(&CONNECTION) || name.is(&KEEP_ALIVE),
        14 => name.is(&HTTP2_SETTINGS),
        16 => name.is(&PROXY_CONNECTION),
        17 => name.is(&TRANSFER_ENCODING),
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
pub(crate) fn tokens<'a>(fields: &'a Fields, name: &'a HeaderName) -> impl Iterator<Item = &'a [u8]> + use<'a> {
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
