//! Whether a request for the API names this listener, or a name that somebody made point here.

use std::net::{IpAddr, SocketAddr};

/// Whether `host` (a Host field or an authority) is `localhost` or the address that was connected to, with its port if
/// it has one. A rebound name is neither, whatever it resolves to.
pub(super) fn is_ours(host: &str, local: SocketAddr) -> bool {
    let (name, port) = split(host);
    let port_fits = port.is_none_or(|port| port.parse() == Ok(local.port()));
    let literal = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    let name_fits = name.eq_ignore_ascii_case("localhost")
        || literal.parse::<IpAddr>().is_ok_and(|address| address.to_canonical() == local.ip().to_canonical());
    name_fits && port_fits
}

/// Whether a connection stayed on this host.
pub(super) fn is_local(local: SocketAddr, peer: SocketAddr) -> bool {
    local.ip().to_canonical().is_loopback() && peer.ip().to_canonical().is_loopback()
}

fn split(host: &str) -> (&str, Option<&str>) {
    match host.rsplit_once(':') {
        Some((name, port)) if !name.contains(':') || name.ends_with(']') => (name, Some(port)),
        Some(_) | None => (host, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_localhost_and_the_listeners_own_address_are_ours() {
        for (host, local, ours) in [
            ("localhost", "127.0.0.1:9480", true),
            ("LOCALHOST:9480", "127.0.0.1:9480", true),
            ("127.0.0.1:9480", "127.0.0.1:9480", true),
            ("127.0.0.1", "127.0.0.1:9480", true),
            ("[::1]:9480", "[::1]:9480", true),
            ("127.0.0.1:9480", "[::ffff:127.0.0.1]:9480", true),
            ("localhost:80", "127.0.0.1:9480", false),
            ("127.0.0.2:9480", "127.0.0.1:9480", false),
            ("evil.example:9480", "127.0.0.1:9480", false),
            ("localhost.evil.example", "127.0.0.1:9480", false),
            ("127.0.0.1.evil.example", "127.0.0.1:9480", false),
            ("127.1", "127.0.0.1:9480", false),
            ("2130706433", "127.0.0.1:9480", false),
            ("user@localhost", "127.0.0.1:9480", false),
            ("localhost:", "127.0.0.1:9480", false),
            ("", "127.0.0.1:9480", false),
            ("::1", "[::1]:9480", true),
        ] {
            assert_eq!(is_ours(host, local.parse().unwrap()), ours, "{host:?} on {local}");
        }
    }

    #[test]
    fn local_means_loopback_at_both_ends() {
        let local = |a: &str, b: &str| is_local(a.parse().unwrap(), b.parse().unwrap());
        assert!(local("127.0.0.1:1", "127.0.0.9:2") && local("[::ffff:127.0.0.1]:1", "[::ffff:127.0.0.1]:2"));
        assert!(!local("10.0.0.1:1", "10.0.0.1:2") && !local("127.0.0.1:1", "10.0.0.1:2"));
    }
}
