//! Where an origin is, read from the text that an operator wrote.
//!
//! Must never resolve or connect; that is `connect.rs`.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;
use std::str::FromStr;

use http::HeaderValue;

/// One private server.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Origin {
    /// At a TCP port.
    Net {
        /// What is spoken there.
        scheme: Scheme,
        /// A name or an address.
        host: Host,
        /// The TCP port.
        port: u16,
    },
    /// HTTP/1.1 over a unix stream socket.
    Unix(PathBuf),
}

/// What an origin at a TCP port speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// HTTP/1.1.
    Http,
    /// HTTP/2 or HTTP/1.1 over TLS, as both agree.
    Https,
    /// HTTP/2 in clear text, without asking first.
    H2c,
    /// Anything: the bytes of each connection are passed on as they are.
    Tcp,
}

/// A host as written: names in lower case.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Host {
    /// To be resolved at every connect.
    Name(String),
    /// As it is.
    Address(IpAddr),
}

/// Why a text is no origin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadOrigin {
    /// No scheme.
    #[error("{0:?} is not an origin: http://, https://, h2c:// or tcp:// and HOST:PORT, or unix:/PATH, is expected")]
    Shape(String),
    /// A scheme that this version has not.
    #[error("origins of the kind {0:?} are not available in this version: http, https, h2c, tcp and unix: are")]
    Scheme(String),
    /// A raw TCP origin without a port.
    #[error("{0:?} needs its port, as in tcp://db.internal:5432")]
    NoPort(String),
    /// A path, query or fragment.
    #[error("{0:?} has a path: requests keep their own, so an origin ends after its port")]
    HasPath(String),
    /// A user or password.
    #[error("an origin's URL holds no user and no password: set a header under [service.headers] from a file instead")]
    HasSecret,
    /// A relative socket path.
    #[error("{0:?}: a unix socket needs its whole path, as in unix:/run/app.sock")]
    Relative(String),
}

impl Origin {
    /// What a request's Host is by default: the authority as written, `localhost` for a unix socket.
    pub fn authority(&self) -> HeaderValue {
        let text = match self {
            Self::Net { scheme, host, port } if scheme.default_port() == Some(*port) => host.to_string(),
            Self::Net { host, port, .. } => format!("{host}:{port}"),
            Self::Unix(_) => "localhost".to_owned(),
        };
        HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("localhost"))
    }

    /// What it speaks; none for a unix socket, which speaks HTTP/1.1.
    pub const fn scheme(&self) -> Option<Scheme> {
        match self {
            Self::Net { scheme, .. } => Some(*scheme),
            Self::Unix(_) => None,
        }
    }

    /// Whether requests to it are sent over TLS.
    pub const fn is_tls(&self) -> bool {
        matches!(self.scheme(), Some(Scheme::Https))
    }

    /// Whether it takes raw connections and no requests.
    pub const fn is_tcp(&self) -> bool {
        matches!(self.scheme(), Some(Scheme::Tcp))
    }
}

impl Scheme {
    /// As it is written before `://`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
            Self::H2c => "h2c",
            Self::Tcp => "tcp",
        }
    }

    /// Reads the text before `://`.
    pub(crate) fn named(text: &str) -> Option<Self> {
        [Self::Http, Self::Https, Self::H2c, Self::Tcp]
            .into_iter()
            .find(|scheme| scheme.name().eq_ignore_ascii_case(text))
    }

    /// The port that its URL means when it names none.
    pub(crate) const fn default_port(self) -> Option<u16> {
        match self {
            Self::Http | Self::H2c => Some(80),
            Self::Https => Some(443),
            Self::Tcp => None,
        }
    }
}

impl FromStr for Origin {
    type Err = BadOrigin;

    fn from_str(text: &str) -> Result<Self, BadOrigin> {
        let shape = || BadOrigin::Shape(text.to_owned());
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").filter(|path| path.starts_with('/')).unwrap_or(path);
            let path = PathBuf::from(path);
            return if path.is_absolute() { Ok(Self::Unix(path)) } else { Err(BadOrigin::Relative(text.to_owned())) };
        }
        let (scheme, rest) = text.split_once("://").ok_or_else(shape)?;
        let scheme = Scheme::named(scheme).ok_or_else(|| BadOrigin::Scheme(scheme.to_owned()))?;
        if rest.contains('@') {
            return Err(BadOrigin::HasSecret);
        }
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        if authority.contains(['/', '?', '#']) {
            return Err(BadOrigin::HasPath(text.to_owned()));
        }
        let (host, port) = split_authority(authority).ok_or_else(shape)?;
        let port = port.or(scheme.default_port()).ok_or_else(|| BadOrigin::NoPort(text.to_owned()))?;
        Ok(Self::Net { scheme, host, port })
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Net { scheme, host, port } => write!(f, "{}://{host}:{port}", scheme.name()),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl FromStr for Host {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        if let Some(inner) = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
            return inner.parse::<Ipv6Addr>().map(|address| Self::Address(address.into())).map_err(|_| ());
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return if address.is_ipv4() { Ok(Self::Address(address)) } else { Err(()) };
        }
        let name = text.to_ascii_lowercase();
        let fits = (1..=253).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
            && !name.starts_with(['-', '.']);
        if fits { Ok(Self::Name(name)) } else { Err(()) }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Address(IpAddr::V4(address)) => address.fmt(f),
            Self::Address(IpAddr::V6(address)) => write!(f, "[{address}]"),
        }
    }
}

/// Splits `HOST`, `HOST:PORT`, `[V6]` or `[V6]:PORT`.
pub(crate) fn split_authority(text: &str) -> Option<(Host, Option<u16>)> {
    let after_brackets = text.rfind(']').map_or(0, |place| place + 1);
    let (host, port) = match text[after_brackets..].rfind(':') {
        Some(colon) => {
            let (host, port) = text.split_at(after_brackets + colon);
            let port = port[1..].bytes().all(|b| b.is_ascii_digit()).then(|| port[1..].parse::<u16>().ok()).flatten();
            (host, Some(port.filter(|port| *port != 0)?))
        }
        None => (text, None),
    };
    Some((host.parse().ok()?, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_read_and_their_host_field_is_as_written() {
        for (text, shown, host) in [
            ("http://Orders.internal:8080", "http://orders.internal:8080", "orders.internal:8080"),
            ("http://orders.internal", "http://orders.internal:80", "orders.internal"),
            ("https://orders.internal/", "https://orders.internal:443", "orders.internal"),
            ("https://10.0.0.7:8443", "https://10.0.0.7:8443", "10.0.0.7:8443"),
            ("http://[::1]:3000", "http://[::1]:3000", "[::1]:3000"),
            ("http://[::1]", "http://[::1]:80", "[::1]"),
            ("H2C://grpc.internal", "h2c://grpc.internal:80", "grpc.internal"),
            ("h2c://grpc.internal:50051", "h2c://grpc.internal:50051", "grpc.internal:50051"),
            ("tcp://db.internal:5432", "tcp://db.internal:5432", "db.internal:5432"),
            ("unix:/run/app.sock", "unix:/run/app.sock", "localhost"),
            ("unix:///run/app.sock", "unix:/run/app.sock", "localhost"),
        ] {
            let origin: Origin = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!((origin.to_string().as_str(), origin.authority().to_str().unwrap()), (shown, host), "{text}");
        }
    }

    #[test]
    fn what_is_no_origin_is_refused_by_kind() {
        let kind = |text: &str| text.parse::<Origin>().unwrap_err();
        for text in
            ["", "orders:8080", "http://", "http://:80", "http://a b", "http://a:0", "http://a:99999", "http://::1:80"]
        {
            assert!(matches!(kind(text), BadOrigin::Shape(_)), "{text:?}");
        }
        assert_eq!(kind("ftp://a:1"), BadOrigin::Scheme("ftp".to_owned()));
        assert_eq!(kind("h2://a:1"), BadOrigin::Scheme("h2".to_owned()));
        assert!(matches!(kind("tcp://db.internal"), BadOrigin::NoPort(_)));
        assert!(matches!(kind("http://a:1/api"), BadOrigin::HasPath(_)));
        assert!(matches!(kind("http://a:1?x"), BadOrigin::HasPath(_)));
        assert_eq!(kind("http://user:pw@a:1"), BadOrigin::HasSecret);
        assert!(matches!(kind("unix:app.sock"), BadOrigin::Relative(_)));
    }
}
