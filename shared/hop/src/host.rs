//! Who a request is for: the `Host` field and the target's authority.
//!
//! Must never guess: a host with a character that no host name has is refused.

use std::net::Ipv6Addr;

/// A well-formed host, split from its port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HostPort<'a> {
    /// Name, IPv4 address, or IPv6 address in brackets.
    pub(crate) host: &'a str,
    /// The port, if one is written.
    pub(crate) port: Option<u16>,
}

impl<'a> HostPort<'a> {
    /// Reads `uri-host [ ":" port ]` (RFC 9110 §7.2), without the forms that only attackers write: user info,
    /// sub-delimiters, percent-encoding, an empty host.
    pub(crate) fn parse(value: &'a [u8]) -> Option<Self> {
        let text = std::str::from_utf8(value).ok()?;
        let (host, port) = if text.starts_with('[') {
            let end = text.find(']')?;
            let (host, rest) = text.split_at(end + 1);
            host.get(1..end)?.parse::<Ipv6Addr>().ok()?;
            match rest.strip_prefix(':') {
                Some(port) => (host, Some(port)),
                None if rest.is_empty() => (host, None),
                None => return None,
            }
        } else {
            match text.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            }
        };
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
        if host.is_empty() || !host.starts_with('[') && !host.bytes().all(is_name) {
            return None;
        }
        // An empty port is allowed and means the scheme's own (RFC 3986 §3.2.3).
        let port = match port {
            None | Some("") => None,
            Some(port) if port.len() <= 5 && port.bytes().all(|byte| byte.is_ascii_digit()) => Some(port.parse().ok()?),
            Some(_) => return None,
        };
        Some(Self { host, port })
    }

    /// Whether both name the same place, given the port that the scheme implies.
    pub(crate) fn is_same(self, other: HostPort<'_>, default_port: u16) -> bool {
        self.host.eq_ignore_ascii_case(other.host)
            && self.port.unwrap_or(default_port) == other.port.unwrap_or(default_port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_a_name_or_an_address_and_perhaps_a_port() {
        for (text, host, port) in [
            ("orders", "orders", None),
            ("Orders.internal:8080", "Orders.internal", Some(8080)),
            ("a_b-c~d.e", "a_b-c~d.e", None),
            ("127.0.0.1:1", "127.0.0.1", Some(1)),
            ("[::1]", "[::1]", None),
            ("[fd43::1]:443", "[fd43::1]", Some(443)),
            ("orders:", "orders", None),
        ] {
            assert_eq!(HostPort::parse(text.as_bytes()), Some(HostPort { host, port }), "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            ":80",
            "a b",
            "a,b",
            "a@b",
            "user:pw@a",
            "a/b",
            "a?b",
            "a#b",
            "a:b",
            "a:80:80",
            "a:123456",
            "a:65536",
            "a:+1",
            "a:-1",
            "[::1",
            "::1",
            "[::1]x",
            "[::1]:x",
            "[v1.x]",
            "[]",
            "a%62",
            "a;b",
            "\u{e4}",
            "a\t",
            "a\\b",
        ] {
            assert_eq!(HostPort::parse(text.as_bytes()), None, "{text:?}");
        }
    }

    #[test]
    fn the_same_place_may_be_spelled_differently() {
        let parse = |text: &'static str| HostPort::parse(text.as_bytes()).unwrap();
        assert!(parse("A.b:80").is_same(parse("a.B"), 80));
        assert!(!parse("a:81").is_same(parse("a"), 80));
        assert!(!parse("a").is_same(parse("b"), 80));
    }
}
