//! The PROXY protocol toward raw TCP origins: who connected at the relay, told before the connection's first byte.
//!
//! Source: HAProxy's `proxy-protocol.txt`, version 2.3, sections 2.1 and 2.2. Must never let an address through that
//! did not come from the relay, or leave the header out where the origin expects one.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// Which form the origin reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyProtocol {
    /// A line of text.
    V1,
    /// Binary.
    V2,
}

/// A connection to the relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Who connected.
    pub source: SocketAddr,
    /// Where to.
    pub destination: SocketAddr,
}

/// The text is no version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"v1\" or \"v2\" is expected")]
pub struct BadVersion;

/// The text is no pair of addresses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("two socket addresses with one space between them are expected")]
pub struct BadPeer;

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, on behalf of another.
const PROXY: u8 = 0x21;
/// Version 2, on our own behalf.
const LOCAL: u8 = 0x20;

impl ProxyProtocol {
    /// As it is written in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::V1 => "v1",
            Self::V2 => "v2",
        }
    }

    /// What is sent first on a connection made for `peer`; none: for ourselves, as a check of the origin's health is.
    pub fn header(self, peer: Option<&Peer>) -> Vec<u8> {
        let pair = peer.map(Peer::of_one_family);
        match (self, pair) {
            (Self::V1, None) => b"PROXY UNKNOWN\r\n".to_vec(),
            (Self::V1, Some(Peer { source, destination })) => {
                let mut line = String::with_capacity(108);
                let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
                // Writing to a String does not fail.
                let _ = write!(
                    line,
                    "PROXY {family} {} {} {} {}\r\n",
                    source.ip(),
                    destination.ip(),
                    source.port(),
                    destination.port()
                );
                line.into_bytes()
            }
            (Self::V2, None) => [&SIGNATURE[..], &[LOCAL, 0, 0, 0]].concat(),
            (Self::V2, Some(Peer { source, destination })) => {
                let (family, length) = if source.is_ipv4() { (0x11, 12) } else { (0x21, 36) };
                let mut bytes = [&SIGNATURE[..], &[PROXY, family, 0, length]].concat();
                for address in [source, destination] {
                    match address.ip() {
                        IpAddr::V4(address) => bytes.extend(address.octets()),
                        IpAddr::V6(address) => bytes.extend(address.octets()),
                    }
                }
                for address in [source, destination] {
                    bytes.extend(address.port().to_be_bytes());
                }
                bytes
            }
        }
    }
}

impl Peer {
    /// IPv4 in both places where that is what they are, else IPv6 in both: a header has one family.
    fn of_one_family(&self) -> Self {
        let canonical = |at: SocketAddr| SocketAddr::new(at.ip().to_canonical(), at.port());
        let pair = Self { source: canonical(self.source), destination: canonical(self.destination) };
        if pair.source.is_ipv4() == pair.destination.is_ipv4() {
            return pair;
        }
        let six = |at: SocketAddr| -> SocketAddr {
            let address: Ipv6Addr = match at.ip() {
                IpAddr::V4(address) => address.to_ipv6_mapped(),
                IpAddr::V6(address) => address,
            };
            SocketAddr::new(address.into(), at.port())
        };
        Self { source: six(pair.source), destination: six(pair.destination) }
    }
}

impl FromStr for ProxyProtocol {
    type Err = BadVersion;

    fn from_str(text: &str) -> Result<Self, BadVersion> {
        [Self::V1, Self::V2].into_iter().find(|version| version.name() == text).ok_or(BadVersion)
    }
}

impl FromStr for Peer {
    type Err = BadPeer;

    fn from_str(text: &str) -> Result<Self, BadPeer> {
        let (source, destination) = text.split_once(' ').ok_or(BadPeer)?;
        let address = |text: &str| text.parse().map_err(|_| BadPeer);
        Ok(Self { source: address(source)?, destination: address(destination)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(text: &str) -> Peer {
        text.parse().unwrap()
    }

    #[test]
    fn version_1_is_one_line() {
        for (pair, line) in [
            ("192.0.2.1:5000 198.51.100.2:5432", "PROXY TCP4 192.0.2.1 198.51.100.2 5000 5432\r\n"),
            ("[2001:db8::1]:5000 [::1]:5432", "PROXY TCP6 2001:db8::1 ::1 5000 5432\r\n"),
            ("[::ffff:192.0.2.1]:1 [::ffff:192.0.2.2]:2", "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n"),
            ("192.0.2.1:1 [2001:db8::1]:2", "PROXY TCP6 ::ffff:192.0.2.1 2001:db8::1 1 2\r\n"),
        ] {
            assert_eq!(ProxyProtocol::V1.header(Some(&peer(pair))), line.as_bytes(), "{pair}");
        }
        assert_eq!(ProxyProtocol::V1.header(None), b"PROXY UNKNOWN\r\n");
    }

    #[test]
    fn version_2_is_its_signature_and_the_addresses() {
        let four = ProxyProtocol::V2.header(Some(&peer("192.0.2.1:5000 198.51.100.2:5432")));
        assert_eq!(four[..12], [0x0d, 0x0a, 0x0d, 0x0a, 0, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a]);
        assert_eq!(four[12..], [0x21, 0x11, 0, 12, 192, 0, 2, 1, 198, 51, 100, 2, 0x13, 0x88, 0x15, 0x38]);
        let six = ProxyProtocol::V2.header(Some(&peer("[2001:db8::1]:5000 [::1]:5432")));
        assert_eq!((&six[12..16], six.len()), (&[0x21, 0x21, 0, 36][..], 52));
        assert_eq!(six[16..20], [0x20, 0x01, 0x0d, 0xb8]);
        assert_eq!(six[48..], [0x13, 0x88, 0x15, 0x38]);
        assert_eq!(ProxyProtocol::V2.header(None)[12..], [0x20, 0, 0, 0]);
    }

    #[test]
    fn a_peer_is_two_addresses_and_nothing_else() {
        for text in [
            "",
            "192.0.2.1:1",
            "192.0.2.1:1  192.0.2.2:2",
            "192.0.2.1 192.0.2.2",
            "a:1 b:2",
            "192.0.2.1:1 192.0.2.2:2 x",
        ] {
            assert_eq!(text.parse::<Peer>(), Err(BadPeer), "{text:?}");
        }
    }
}
