//! Which origins a relay may ever select: the connector's own allow-list, deny by default.
//!
//! Must never trust a name alone where a network was written: the address that will be dialled is what is judged.

use std::net::SocketAddr;
use std::str::FromStr;

use ipnet::IpNet;

use crate::origin::{Host, Origin, Scheme, split_authority};

/// The patterns of `[allow] origins`; none permits nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Allow(Vec<Pattern>);

/// One pattern: `[http://|https://|h2c://|tcp://]HOST-GLOB-OR-NETWORK[:PORT]`, or `unix:/PATH-GLOB`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Pattern {
    scheme: Option<Scheme>,
    place: Place,
    port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Glob(String),
    Network(IpNet),
    Unix(String),
}

/// The text is no pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a pattern of origins: a name with * or a network is expected, as in \"http://*.internal:8080\" or \"10.0.0.0/8:443\""
)]
pub struct BadPattern(String);

impl Allow {
    /// Reads the patterns.
    ///
    /// # Errors
    /// [`BadPattern`], the first.
    pub fn parse(texts: &[String]) -> Result<Self, BadPattern> {
        texts.iter().map(|text| text.parse()).collect::<Result<_, _>>().map(Self)
    }

    /// Whether `origin`, dialled at `address` (absent for a unix socket), is within the list.
    pub fn permits(&self, origin: &Origin, address: Option<SocketAddr>) -> bool {
        self.0.iter().any(|pattern| pattern.permits(origin, address))
    }
}

impl Pattern {
    fn permits(&self, origin: &Origin, address: Option<SocketAddr>) -> bool {
        match (&self.place, origin, address) {
            (Place::Unix(glob), Origin::Unix(path), _) => {
                path.to_str().is_some_and(|path| matches(glob.as_bytes(), path.as_bytes()))
            }
            (Place::Glob(glob), Origin::Net { scheme, host: Host::Name(name), port }, _) => {
                self.fits(*scheme, *port) && matches(glob.as_bytes(), name.as_bytes())
            }
            (Place::Network(network), Origin::Net { scheme, port, .. }, Some(address)) => {
                // An IPv4 address in IPv6 clothes is the IPv4 host.
                self.fits(*scheme, *port) && network.contains(&address.ip().to_canonical())
            }
            _ => false,
        }
    }

    fn fits(&self, scheme: Scheme, port: u16) -> bool {
        self.scheme.is_none_or(|wanted| wanted == scheme) && self.port.is_none_or(|wanted| wanted == port)
    }
}

impl FromStr for Pattern {
    type Err = BadPattern;

    fn from_str(text: &str) -> Result<Self, BadPattern> {
        let bad = || BadPattern(text.to_owned());
        if let Some(path) = text.strip_prefix("unix:") {
            let glob = path.starts_with('/').then(|| path.to_owned()).ok_or_else(bad)?;
            return Ok(Self { scheme: None, place: Place::Unix(glob), port: None });
        }
        let (scheme, rest) = match text.split_once("://") {
            Some((scheme, rest)) => (Some(Scheme::named(scheme).ok_or_else(bad)?), rest),
            None => (None, text),
        };
        if let Some((network, port)) = network(rest) {
            return Ok(Self { scheme, place: Place::Network(network), port });
        }
        let (host, port) = split_authority(&rest.replace('*', "star0")).ok_or_else(bad)?;
        match host {
            Host::Address(address) => Ok(Self { scheme, place: Place::Network(address.into()), port }),
            Host::Name(_) => {
                let glob = rest.rsplit_once(':').filter(|_| port.is_some()).map_or(rest, |(host, _)| host);
                Ok(Self { scheme, place: Place::Glob(glob.to_ascii_lowercase()), port })
            }
        }
    }
}

/// Reads `10.0.0.0/8`, `10.0.0.0/8:443`, `fd00::/8` or `[fd00::/8]:443`.
fn network(text: &str) -> Option<(IpNet, Option<u16>)> {
    if let Ok(network) = text.parse::<IpNet>() {
        return Some((network.trunc(), None));
    }
    let (network, port) = text.rsplit_once(':')?;
    let network = network.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(network);
    let port = port.parse::<u16>().ok().filter(|port| *port != 0)?;
    Some((network.parse::<IpNet>().ok()?.trunc(), Some(port)))
}

/// Whether `text` is `glob`, in which `*` is any run of characters.
fn matches(glob: &[u8], text: &[u8]) -> bool {
    let (mut at, mut seen, mut star) = (0, 0, None);
    while seen < text.len() {
        match glob.get(at) {
            Some(b'*') => {
                star = Some((at, seen));
                at += 1;
            }
            Some(byte) if *byte == text[seen] => {
                at += 1;
                seen += 1;
            }
            _ => {
                let Some((place, from)) = star else { return false };
                star = Some((place, from + 1));
                at = place + 1;
                seen = from + 1;
            }
        }
    }
    glob[at.min(glob.len())..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn permits(pattern: &str, origin: &str, address: &str) -> bool {
        let allow = Allow::parse(&[pattern.to_owned()]).unwrap();
        let address = (!address.is_empty()).then(|| address.parse().unwrap());
        allow.permits(&origin.parse().unwrap(), address)
    }

    #[test]
    fn nothing_is_permitted_by_default() {
        let origin = "http://a.internal:8080".parse().unwrap();
        assert!(!Allow::default().permits(&origin, Some("10.0.0.1:8080".parse().unwrap())));
    }

    #[test]
    fn patterns_bound_scheme_name_network_and_port() {
        for (pattern, origin, address, expected) in [
            ("http://*.internal:8080", "http://a.internal:8080", "10.0.0.1:8080", true),
            ("http://*.internal:8080", "http://a.internal:8081", "10.0.0.1:8081", false),
            ("http://*.internal:8080", "https://a.internal:8080", "10.0.0.1:8080", false),
            ("http://*.internal:8080", "http://internal:8080", "10.0.0.1:8080", false),
            ("http://*.internal:8080", "http://a.internal.evil:8080", "10.0.0.1:8080", false),
            ("*.internal", "https://a.internal:9", "10.0.0.1:9", true),
            ("10.0.0.0/8:443", "https://a.internal", "10.1.2.3:443", true),
            ("10.0.0.0/8:443", "https://a.internal", "11.1.2.3:443", false),
            ("10.0.0.0/8:443", "https://a.internal", "[::ffff:10.1.2.3]:443", true),
            ("10.0.0.0/8:443", "https://a.internal:444", "10.1.2.3:444", false),
            ("https://10.0.0.0/8", "http://10.1.2.3:80", "10.1.2.3:80", false),
            ("[fd00::/8]:80", "http://a", "[fd00::1]:80", true),
            ("tcp://*.internal:5432", "tcp://db.internal:5432", "10.0.0.1:5432", true),
            ("tcp://*.internal:5432", "http://db.internal:5432", "10.0.0.1:5432", false),
            ("http://*.internal", "tcp://db.internal:80", "10.0.0.1:80", false),
            ("h2c://10.0.0.0/8", "h2c://a:1", "10.0.0.1:1", true),
            ("127.0.0.1:80", "http://127.0.0.1", "127.0.0.1:80", true),
            ("unix:/run/*.sock", "unix:/run/app.sock", "", true),
            ("unix:/run/*.sock", "unix:/tmp/app.sock", "", false),
            ("*", "unix:/tmp/app.sock", "", false),
        ] {
            assert_eq!(permits(pattern, origin, address), expected, "{pattern} {origin} {address}");
        }
    }

    #[test]
    fn a_name_that_resolves_elsewhere_does_not_pass_a_network() {
        assert!(!permits("10.0.0.0/8:80", "http://10.evil.example", "169.254.169.254:80"));
    }

    #[test]
    fn nonsense_is_no_pattern() {
        for text in ["", "ftp://a", "a b", "http://", "10.0.0.0/99:1", "unix:x", "a:0"] {
            assert!(Allow::parse(&[text.to_owned()]).is_err(), "{text:?}");
        }
    }
}
