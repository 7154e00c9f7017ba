//! The ways to peers that the registry remembers, and how they are written there.
//!
//! Must never invent a socket: what a way came by is found again by family and port, or not at all.

use std::net::SocketAddr;

use culvert_plane::{Path, Plane};

/// The way to an endpoint that a row remembers, over the socket that it came by.
pub(crate) fn path_to(plane: &Plane, remote: SocketAddr, local: Option<SocketAddr>) -> Option<Path> {
    let addrs = plane.local_addrs();
    let of_family = |addr: &&SocketAddr| addr.is_ipv4() == remote.is_ipv4();
    let same_port = local.and_then(|local| addrs.iter().filter(of_family).position(|addr| addr.port() == local.port()));
    let place = match same_port {
        Some(place) => addrs.iter().enumerate().filter(|(_, addr)| of_family(addr)).nth(place)?.0,
        None => addrs.iter().position(|addr| of_family(&addr))?,
    };
    let local = local.map(|local| local.ip()).filter(|ip| !ip.is_unspecified() && ip.is_ipv4() == remote.is_ipv4());
    Some(Path { remote, local, socket: u8::try_from(place).ok()? })
}

/// Our address of a way, as it is remembered.
pub(crate) fn local_of(plane: &Plane, path: Path) -> SocketAddr {
    let bound = plane.local_addrs().get(usize::from(path.socket)).copied();
    let bound = bound.unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], 0)));
    SocketAddr::new(path.local.unwrap_or(bound.ip()), bound.port())
}
