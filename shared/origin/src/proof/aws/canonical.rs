//! The canonical request of AWS Signature Version 4: the one text that both ends of a request make of it.
//!
//! Must never change the request. Source: AWS Identity and Access Management User Guide, "Create a signed AWS API request".

use std::fmt::Write as _;

use culvert_hop::fields::Name;
use culvert_hop::message::RequestParts;
use http::HeaderName;

/// How a service reads a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PathRule {
    /// Dots and double slashes resolved, then every byte encoded once more than on the wire: all services but S3.
    Twice,
    /// As an object's key: decoded, and encoded in the one canonical way.
    Once,
}

/// The request in its canonical form, and the names of the fields that it covers.
pub(super) struct Canonical {
    /// What is hashed.
    pub(super) text: Vec<u8>,
    /// Separated by semicolons.
    pub(super) signed: String,
}

impl Canonical {
    /// Of a request whose payload has this hash, or is called by this name. `also` names fields to be covered beside those
    /// that have to be.
    pub(super) fn of(parts: &RequestParts, payload: &str, rule: PathRule, also: &[HeaderName]) -> Self {
        let mut lines: Vec<(Vec<u8>, &[u8])> = parts
            .headers
            .iter()
            .filter(|(name, _)| is_covered(name, also))
            .map(|(name, value)| (name.as_bytes().to_ascii_lowercase(), value.as_bytes()))
            .collect();
        // Stable: lines of one name keep their order.
        lines.sort_by(|(one, _), (other, _)| one.cmp(other));
        let mut text = Vec::with_capacity(512);
        text.extend_from_slice(parts.method.as_str().as_bytes());
        text.push(b'\n');
        text.extend_from_slice(path(parts.uri.path(), rule).as_bytes());
        text.push(b'\n');
        text.extend_from_slice(query(parts.uri.query().unwrap_or_default()).as_bytes());
        let mut signed = String::with_capacity(64);
        let mut before: Option<&[u8]> = None;
        for (name, value) in &lines {
            if before == Some(name) {
                text.push(b',');
            } else {
                text.push(b'\n');
                text.extend_from_slice(name);
                text.push(b':');
                let mark = if signed.is_empty() { "" } else { ";" };
                let _ = write!(signed, "{mark}{}", String::from_utf8_lossy(name));
            }
            for (number, word) in value.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()).enumerate() {
                if number > 0 {
                    text.push(b' ');
                }
                text.extend_from_slice(word);
            }
            before = Some(name);
        }
        for part in ["\n\n", &signed, "\n", payload] {
            text.extend_from_slice(part.as_bytes());
        }
        Self { text, signed }
    }
}

/// AWS asks for Host, Content-Type and everything of its own.
fn is_covered(name: &Name, also: &[HeaderName]) -> bool {
    name.is("host")
        || name.is("content-type")
        || name.as_bytes().get(..6).is_some_and(|start| start.eq_ignore_ascii_case(b"x-amz-"))
        || also.iter().any(|own| name.is(own))
}

fn path(path: &str, rule: PathRule) -> String {
    let mut out = String::with_capacity(path.len() + 16);
    match rule {
        PathRule::Once => encode(decoded(path.as_bytes(), false), b"/", &mut out),
        PathRule::Twice => {
            let mut kept: Vec<&str> = Vec::new();
            for segment in path.split('/') {
                match segment {
                    "" | "." => {}
                    ".." => {
                        kept.pop();
                    }
                    segment => kept.push(segment),
                }
            }
            for segment in &kept {
                out.push('/');
                encode(segment.bytes(), b"", &mut out);
            }
            if kept.is_empty() || path.ends_with('/') {
                out.push('/');
            }
        }
    }
    out
}

/// The parameters, each decoded and encoded in the one canonical way, in the order of their names and then of their values.
fn query(query: &str) -> String {
    let canonical = |text: &str| {
        let mut out = String::with_capacity(text.len());
        // A form's `+` is a space to the servers that take the query apart.
        encode(decoded(text.as_bytes(), true), b"", &mut out);
        out
    };
    let mut pairs: Vec<(String, String)> = query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (canonical(name), canonical(value))
        })
        .collect();
    pairs.sort();
    let pairs: Vec<String> = pairs.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
    pairs.join("&")
}

/// Bytes without their percent-encoding. A `%` that begins none stands for itself.
fn decoded(text: &[u8], is_form: bool) -> impl Iterator<Item = u8> + '_ {
    let digit =
        |at: usize| text.get(at).and_then(|digit| char::from(*digit).to_digit(16)).and_then(|d| u8::try_from(d).ok());
    let mut at = 0;
    std::iter::from_fn(move || {
        let byte = *text.get(at)?;
        at += 1;
        if byte == b'%'
            && let (Some(high), Some(low)) = (digit(at), digit(at + 1))
        {
            at += 2;
            return Some(high << 4 | low);
        }
        Some(if is_form && byte == b'+' { b' ' } else { byte })
    })
}

/// Everything but letters, digits, `-._~` and what is `spared` (AWS's UriEncode).
fn encode(bytes: impl IntoIterator<Item = u8>, spared: &[u8], out: &mut String) {
    for byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || spared.contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_resolved_and_encoded_once_more_than_on_the_wire() {
        for (on_the_wire, canonical) in [
            ("/", "/"),
            ("", "/"),
            ("//", "/"),
            ("/./", "/"),
            ("/example/..", "/"),
            ("/example1/example2/../..", "/"),
            ("/../a", "/a"),
            ("/./example", "/example"),
            ("//example//", "/example/"),
            ("/example space/", "/example%20space/"),
            ("/a%20b", "/a%2520b"),
            ("/a%2Fb/c", "/a%252Fb/c"),
            ("/a+b=c,d:e@f!", "/a%2Bb%3Dc%2Cd%3Ae%40f%21"),
            ("/-._~09AZaz", "/-._~09AZaz"),
            ("/\u{1234}", "/%E1%88%B4"),
        ] {
            assert_eq!(path(on_the_wire, PathRule::Twice), canonical, "{on_the_wire:?}");
        }
    }

    #[test]
    fn an_objects_key_is_encoded_once_and_nothing_in_it_is_resolved() {
        for (on_the_wire, canonical) in [
            ("/", "/"),
            ("//", "//"),
            ("/./example", "/./example"),
            ("/example/..", "/example/.."),
            ("//example//", "//example//"),
            ("/a%20b", "/a%20b"),
            ("/a%2fb", "/a/b"),
            ("/a+b", "/a%2Bb"),
            ("/a!'()*b", "/a%21%27%28%29%2Ab"),
            ("/100%/%zz", "/100%25/%25zz"),
        ] {
            assert_eq!(path(on_the_wire, PathRule::Once), canonical, "{on_the_wire:?}");
        }
    }

    #[test]
    fn parameters_are_in_order_each_with_its_equals_sign() {
        for (on_the_wire, canonical) in [
            ("", ""),
            ("a", "a="),
            ("a=", "a="),
            ("b=2&a=1", "a=1&b=2"),
            ("a=2&a=1&a=", "a=&a=1&a=2"),
            ("Param-3=Value3&Param=Value2&%E1%88%B4=Value1", "%E1%88%B4=Value1&Param=Value2&Param-3=Value3"),
            ("a=b=c", "a=b%3Dc"),
            ("a=x+y%20z", "a=x%20y%20z"),
            ("a=%7e%2a!", "a=~%2A%21"),
            ("&&a=1&", "a=1"),
            ("a=100%", "a=100%25"),
        ] {
            assert_eq!(query(on_the_wire), canonical, "{on_the_wire:?}");
        }
    }
}
