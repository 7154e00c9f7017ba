//! Notices that this host speaks from another address than before.
//!
//! A packet from the new address is what tells the relay (WireGuard paper §2.1), so noticing is all that is needed.
//! Must never send anything itself.

use std::net::{IpAddr, SocketAddr, UdpSocket};

/// The address from which the system would speak to a relay.
#[derive(Debug, Default)]
pub struct Roam {
    last: Option<(SocketAddr, Option<IpAddr>)>,
}

impl Roam {
    /// Whether the own address toward `remote` is another one than at the last look.
    pub fn look(&mut self, remote: SocketAddr) -> bool {
        let own = source_toward(remote);
        match self.last.replace((remote, own)) {
            Some((before, was)) => before == remote && was != own,
            None => false,
        }
    }
}

/// What the routing table says now: a connected UDP socket sends nothing.
fn source_toward(remote: SocketAddr) -> Option<IpAddr> {
    let any: SocketAddr = if remote.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" }.parse().ok()?;
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(remote).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_relay_is_no_other_own_address() {
        let mut roam = Roam::default();
        assert!(!roam.look("127.0.0.1:9".parse().unwrap()), "the first look knows nothing to compare with");
        assert!(!roam.look("127.0.0.1:9".parse().unwrap()));
        assert!(!roam.look("127.0.0.2:9".parse().unwrap()));
        roam.last = Some(("127.0.0.2:9".parse().unwrap(), Some("192.0.2.1".parse().unwrap())));
        assert!(roam.look("127.0.0.2:9".parse().unwrap()));
    }
}
