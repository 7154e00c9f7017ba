//! Inner addresses: what a peer is called inside the tunnel.
//!
//! IPv6 unique local (RFC 4193) in `fd43:554c:5645::/48`; one /128 for each connector and each stock peer.

use std::net::Ipv6Addr;

use ipnet::Ipv6Net;
use sha2::{Digest as _, Sha256};

use crate::id::{ConnectorId, StockPeerId};
use crate::key::PublicKey;

/// The prefix of all inner addresses.
pub const PREFIX: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xfd43, 0x554c, 0x5645, 0, 0, 0, 0, 0), 48);

/// The relay: answers ICMPv6 echo, takes QUIC and hellos.
pub const RELAY_INNER: Ipv6Addr = Ipv6Addr::new(0xfd43, 0x554c, 0x5645, 0, 0, 0, 0, 1);

/// Every joiner that still speaks as its token; never routed to.
pub const BOOTSTRAP_INNER: Ipv6Addr = Ipv6Addr::new(0xfd43, 0x554c, 0x5645, 0, 0, 0, 0, 2);

/// The address of one connector: 80 bits of SHA-256 over its id, behind the prefix.
///
/// The last 64 bits are never below 0x100, so that no connector meets the relay's own addresses.
pub fn connector_inner(id: &ConnectorId) -> Ipv6Addr {
    inner(id.as_str())
}

/// The address of one further lane of a connector: of its key too, so that a lane never meets the one before it.
pub fn lane_inner(id: &ConnectorId, key: &PublicKey) -> Ipv6Addr {
    inner(&format!("{id} {key}"))
}

/// The address of one stock peer, made like a connector's.
pub fn stock_peer_inner(id: &StockPeerId) -> Ipv6Addr {
    inner(id.as_str())
}

/// Ids of the two kinds differ in their prefix, and so do the addresses.
fn inner(id: &str) -> Ipv6Addr {
    let digest = Sha256::new().chain_update(b"culvert inner address v1").chain_update(id).finalize();
    let mut octets = PREFIX.addr().octets();
    octets[6..].copy_from_slice(&digest[..10]);
    octets[14] |= 1;
    Ipv6Addr::from(octets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connector_keeps_its_address_and_stays_inside_the_prefix() {
        let id: ConnectorId = "con_aaaaaaaaaaaaaaaa".parse().unwrap();
        let address = connector_inner(&id);
        assert_eq!(address, connector_inner(&id));
        assert!(PREFIX.contains(&address));
        assert_ne!(address, RELAY_INNER);
        assert_ne!(address, BOOTSTRAP_INNER);
    }

    #[test]
    fn each_lane_has_an_address_of_its_own_inside_the_prefix() {
        let id: ConnectorId = "con_aaaaaaaaaaaaaaaa".parse().unwrap();
        let of = |byte| lane_inner(&id, &PublicKey::from_bytes([byte; 32]));
        assert!(PREFIX.contains(&of(1)) && PREFIX.contains(&of(2)));
        assert!(of(1) != of(2) && of(1) != connector_inner(&id));
    }

    #[test]
    fn a_stock_peer_has_an_address_of_its_own_inside_the_prefix() {
        let (peer, connector) = ("per_aaaaaaaaaaaaaaaa", "con_aaaaaaaaaaaaaaaa");
        let address = stock_peer_inner(&peer.parse().unwrap());
        assert!(PREFIX.contains(&address));
        assert_ne!(address, connector_inner(&connector.parse().unwrap()));
    }
}
