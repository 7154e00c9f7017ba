//! Which origins a relay may ever select: the connector's own allow-list, deny by default.
//!
//! A name's pattern bounds the name, a network bounds the address. Must never trust a name alone: the address that will be
//! dialled is judged too, at every dial, so that a name which is made to point at this host, its link or a cloud's
//! metadata service leads nowhere (`SPECIAL`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::origin::{Host, Origin, Scheme, split_authority};

/// The patterns of `[allow] origins`; none permits nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Allow(Vec<Pattern>);

/// Why an origin is outside of the list, whatever its name's addresses are.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Outside {
    /// The list is empty, as it is by default.
    #[error("this connector lets nobody manage services: its [allow] origins is empty")]
    Empty,
    /// No pattern fits.
    #[error("{0} is not within this connector's [allow] origins")]
    NoPattern(Origin),
}

/// One pattern: `[http://|https://|h2c://|tcp://]HOST-GLOB-OR-NETWORK[:PORT|:*]`, or `unix:/PATH-GLOB`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Pattern {
    scheme: Option<Scheme>,
    place: Place,
    /// None: every port.
    port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Glob(String),
    Network(IpNet),
    /// `*` ends at a `/`.
    Unix(String),
}

/// The text is no pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a pattern of origins: a name with * or a network is expected, as in \"http://*.internal:8080\" or \"10.0.0.0/8:443\""
)]
pub struct BadPattern(String);

/// Where no name's pattern leads and no wider network: only a network written for the very place. This host, the link it is
/// on, many hosts at once, and the metadata services of clouds, which hand out credentials to whoever asks.
const SPECIAL: [IpNet; 13] = [
    four(0, 0, 0, 0, 8),
    LOOPBACK_4,
    // RFC 3927; 169.254.169.254 and its like.
    four(169, 254, 0, 0, 16),
    four(168, 63, 129, 16, 32),
    four(100, 100, 100, 200, 32),
    four(192, 0, 0, 192, 32),
    four(224, 0, 0, 0, 4),
    four(255, 255, 255, 255, 32),
    six([0; 8], 128),
    LOOPBACK_6,
    six([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10),
    six([0xff00, 0, 0, 0, 0, 0, 0, 0], 8),
    six([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254], 128),
];
const LOOPBACK_4: IpNet = four(127, 0, 0, 0, 8);
const LOOPBACK_6: IpNet = six([0, 0, 0, 0, 0, 0, 0, 1], 128);
/// A name that is this host by definition (RFC 6761 §6.3): a pattern that spells it means it.
const LOCALHOST: &str = "localhost";

impl Allow {
    /// Reads the patterns.
    ///
    /// # Errors
    /// [`BadPattern`], the first.
    pub fn parse(texts: &[String]) -> Result<Self, BadPattern> {
        texts.iter().map(|text| text.parse()).collect::<Result<_, _>>().map(Self)
    }

    /// Whether nothing is permitted.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `origin` may be within the list, as far as that can be said without looking its name up: to be asked first,
    /// so that nobody has this host look up names that lead nowhere.
    ///
    /// # Errors
    /// [`Outside`]: no address makes it permitted.
    pub fn may_permit(&self, origin: &Origin) -> Result<(), Outside> {
        if self.0.is_empty() {
            return Err(Outside::Empty);
        }
        let may = |pattern: &Pattern| match (&pattern.place, origin) {
            (Place::Network(_), Origin::Net { scheme, host: Host::Name(_), port }) => pattern.fits(*scheme, *port),
            (_, Origin::Net { host: Host::Address(address), port, .. }) => {
                pattern.permits(origin, Some(SocketAddr::new(*address, *port)))
            }
            _ => pattern.permits(origin, None),
        };
        if self.0.iter().any(may) { Ok(()) } else { Err(Outside::NoPattern(origin.clone())) }
    }

    /// Whether `origin`, dialled at `address` (absent for a unix socket), is within the list.
    pub fn permits(&self, origin: &Origin, address: Option<SocketAddr>) -> bool {
        self.0.iter().any(|pattern| pattern.permits(origin, address))
    }
}

impl Pattern {
    /// Without an address, names are judged alone.
    fn permits(&self, origin: &Origin, address: Option<SocketAddr>) -> bool {
        // An IPv4 address in IPv6 clothes is the IPv4 host.
        let address = address.map(|address| address.ip().to_canonical());
        let special = address.and_then(special_of);
        match (&self.place, origin, address) {
            (Place::Unix(glob), Origin::Unix(path), _) => path
                .to_str()
                .is_some_and(|path| is_plain(path) && matches(glob.as_bytes(), path.as_bytes(), Some(b'/'))),
            (Place::Glob(glob), Origin::Net { scheme, host: Host::Name(name), port }, _) => {
                let leads_there =
                    special.is_none_or(|special| glob == LOCALHOST && (special == LOOPBACK_4 || special == LOOPBACK_6));
                self.fits(*scheme, *port) && matches(glob.as_bytes(), name.as_bytes(), None) && leads_there
            }
            (Place::Network(network), Origin::Net { scheme, port, .. }, Some(address)) => {
                let is_meant = special.is_none_or(|special| special.contains(network));
                self.fits(*scheme, *port) && network.contains(&address) && is_meant
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
        let (rest, every_port) = rest.strip_suffix(":*").map_or((rest, false), |rest| (rest, true));
        // As in a URL: a scheme without a port means the scheme's own.
        let usual = if every_port { None } else { scheme.and_then(Scheme::default_port) };
        if let Some((network, port)) = network(rest) {
            let port = if every_port && port.is_some() { return Err(bad()) } else { port.or(usual) };
            return Ok(Self { scheme, place: Place::Network(network), port });
        }
        let (host, port) = split_authority(&rest.replace('*', "star0")).ok_or_else(bad)?;
        if every_port && port.is_some() {
            return Err(bad());
        }
        let place = match host {
            Host::Address(address) => Place::Network(address.into()),
            Host::Name(_) => {
                let glob = rest.rsplit_once(':').filter(|_| port.is_some()).map_or(rest, |(host, _)| host);
                Place::Glob(glob.to_ascii_lowercase())
            }
        };
        Ok(Self { scheme, place, port: port.or(usual) })
    }
}

/// Reads `10.0.0.0/8`, `10.0.0.0/8:443`, `fd00::/8` or `[fd00::/8]:443`.
fn network(text: &str) -> Option<(IpNet, Option<u16>)> {
    if let Ok(network) = text.parse::<IpNet>() {
        return Some((network.trunc(), None));
    }
    let bare = |text: &str| {
        let inner = text.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(text);
        Some(inner.parse::<IpNet>().ok()?.trunc())
    };
    if let Some(network) = bare(text) {
        return Some((network, None));
    }
    let (network, port) = text.rsplit_once(':')?;
    let port = port.parse::<u16>().ok().filter(|port| *port != 0)?;
    Some((bare(network)?, Some(port)))
}

/// The special place that an address is in. One that a NAT64 translates (RFC 6052) is the IPv4 host that it leads to.
fn special_of(address: IpAddr) -> Option<IpNet> {
    let behind = match address {
        IpAddr::V6(six) => match six.segments() {
            [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
                let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
                IpAddr::V4(Ipv4Addr::new(a, b, c, d))
            }
            _ => address,
        },
        IpAddr::V4(_) => address,
    };
    SPECIAL.into_iter().find(|place| place.contains(&behind))
}

/// Whether a path means what it says: no part of it leads up or nowhere.
fn is_plain(path: &str) -> bool {
    path.split('/').skip(1).all(|part| !matches!(part, "" | "." | ".."))
}

/// Whether `text` is `glob`, in which `*` is any run of characters but `stop`.
fn matches(glob: &[u8], text: &[u8], stop: Option<u8>) -> bool {
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
                let Some((place, from)) = star.filter(|(_, from)| Some(text[*from]) != stop) else { return false };
                star = Some((place, from + 1));
                at = place + 1;
                seen = from + 1;
            }
        }
    }
    glob[at.min(glob.len())..].iter().all(|byte| *byte == b'*')
}

const fn four(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix))
}

const fn six([a, b, c, d, e, f, g, h]: [u16; 8], prefix: u8) -> IpNet {
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, d, e, f, g, h), prefix))
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
            ("h2c://10.0.0.0/8", "h2c://a:1", "10.0.0.1:1", false),
            ("h2c://10.0.0.0/8:*", "h2c://a:1", "10.0.0.1:1", true),
            ("127.0.0.1:80", "http://127.0.0.1", "127.0.0.1:80", true),
            ("unix:/run/*.sock", "unix:/run/app.sock", "", true),
            ("unix:/run/*.sock", "unix:/tmp/app.sock", "", false),
            ("unix:/run/*.sock", "unix:/run/../tmp/app.sock", "", false),
            ("unix:/run/*.sock", "unix:/run/other/app.sock", "", false),
            ("unix:/run/*/*.sock", "unix:/run/other/app.sock", "", true),
            ("*", "unix:/tmp/app.sock", "", false),
            // As in a URL, a scheme alone means its own port.
            ("http://*.internal", "http://a.internal", "10.0.0.1:80", true),
            ("http://*.internal", "http://a.internal:8080", "10.0.0.1:8080", false),
            ("http://*.internal:*", "http://a.internal:8080", "10.0.0.1:8080", true),
            ("https://10.0.0.0/8", "https://a.internal:8443", "10.0.0.1:8443", false),
            ("https://10.0.0.0/8:*", "https://a.internal:8443", "10.0.0.1:8443", true),
            ("[fd00::/8]:*", "http://a:81", "[fd00::1]:81", true),
            ("tcp://*.internal", "tcp://db.internal:5432", "10.0.0.1:5432", true),
        ] {
            assert_eq!(permits(pattern, origin, address), expected, "{pattern} {origin} {address}");
        }
    }

    #[test]
    fn a_name_that_resolves_elsewhere_does_not_pass_a_network() {
        assert!(!permits("10.0.0.0/8:80", "http://10.evil.example", "169.254.169.254:80"));
    }

    #[test]
    fn no_name_and_no_wide_network_leads_to_this_host_its_link_or_a_metadata_service() {
        let places = [
            "0.0.0.0",
            "127.0.0.1",
            "127.8.8.8",
            "169.254.169.254",
            "100.100.100.200",
            "168.63.129.16",
            "192.0.0.192",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "fe80::1",
            "ff02::1",
            "fd00:ec2::254",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b::7f00:1",
        ];
        for place in places {
            let address = SocketAddr::new(place.parse().unwrap(), 80).to_string();
            for pattern in
                ["*", "http://*.internal:80", "metadata.internal:80", "0.0.0.0/0", "::/0", "http://[fd00::/8]"]
            {
                assert!(!permits(pattern, "http://metadata.internal", &address), "{pattern} {place}");
            }
        }
        for (pattern, origin, address, expected) in [
            ("169.254.169.254:80", "http://metadata.internal", "169.254.169.254:80", true),
            ("169.254.0.0/16:80", "http://169.254.169.254", "169.254.169.254:80", true),
            ("169.0.0.0/8:80", "http://169.254.169.254", "169.254.169.254:80", false),
            ("127.0.0.0/8:80", "http://app.internal", "127.0.0.1:80", true),
            ("http://localhost:3000", "http://localhost:3000", "127.0.0.1:3000", true),
            ("http://localhost:3000", "http://localhost:3000", "[::1]:3000", true),
            ("http://localhost:3000", "http://localhost:3000", "169.254.169.254:3000", false),
            ("http://local*:3000", "http://localhost:3000", "127.0.0.1:3000", false),
            ("http://*.internal", "http://a.internal", "[64:ff9b::a00:1]:80", true),
        ] {
            assert_eq!(permits(pattern, origin, address), expected, "{pattern} {origin} {address}");
        }
    }

    #[test]
    fn what_no_address_can_permit_is_known_before_any_name_is_looked_up() {
        let allow = |text: &str| Allow::parse(&[text.to_owned()]).unwrap();
        for (pattern, origin, may) in [
            ("http://*.internal:8080", "http://a.internal:8080", true),
            ("http://*.internal:8080", "http://a.other:8080", false),
            ("http://*.internal:8080", "http://a.internal:8081", false),
            ("10.0.0.0/8:443", "https://a.anywhere", true),
            ("10.0.0.0/8:443", "https://a.anywhere:80", false),
            ("10.0.0.0/8:443", "https://10.1.1.1", true),
            ("10.0.0.0/8:443", "https://11.1.1.1", false),
            ("0.0.0.0/0", "http://127.0.0.1:80", false),
            ("*", "http://10.0.0.1", false),
            ("unix:/run/*.sock", "unix:/run/a.sock", true),
            ("unix:/run/*.sock", "unix:/tmp/a.sock", false),
        ] {
            let origin: Origin = origin.parse().unwrap();
            let expected = if may { Ok(()) } else { Err(Outside::NoPattern(origin.clone())) };
            assert_eq!(allow(pattern).may_permit(&origin), expected, "{pattern} {origin}");
        }
        let origin: Origin = "http://a.internal".parse().unwrap();
        assert_eq!(Allow::default().may_permit(&origin), Err(Outside::Empty));
    }

    #[test]
    fn nonsense_is_no_pattern() {
        for text in ["", "ftp://a", "a b", "http://", "10.0.0.0/99:1", "unix:x", "a:0", "a:80:*", "10.0.0.0/8:80:*"] {
            assert!(Allow::parse(&[text.to_owned()]).is_err(), "{text:?}");
        }
    }
}
