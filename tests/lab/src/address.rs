//! Addresses that no other test uses: one loopback address each, so that every port on it is free.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU32, Ordering};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// One loopback address of this process's own: `127.x.y.z` from the process id and a count.
pub fn own_loopback() -> IpAddr {
    let count = NEXT.fetch_add(1, Ordering::Relaxed);
    let process = std::process::id();
    // 127.0.0.0/16 stays free for what binds to 127.0.0.1 itself.
    let block = 1 + (process % (250 * 50)) / 50;
    let within = (process % 50) * 5 + count / 250 % 5;
    let octet = |value: u32| u8::try_from(value % 256).unwrap_or(1);
    IpAddr::V4(Ipv4Addr::new(127, octet(block), octet(within), octet(1 + count % 250)))
}

/// A port on it.
pub fn at(ip: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(ip, port)
}
