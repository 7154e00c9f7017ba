//! The TUN plane: TCP and UDP to hosts behind stock WireGuard peers, by the kernel, in a network namespace of its own.
//!
//! ```text
//! out  socket ▶ kernel TCP ▶ TUN ▶ super-packet ▶ segments ▶ route ▶ stock peer ▶ engine ▶ outbox ▶ UDP
//! in   UDP ▶ engine ▶ source allowed ▶ destination is ours ▶ coalesced ▶ TUN ▶ kernel TCP ▶ socket
//! ```
//!
//! The host's routes, addresses and firewall are never touched, no other process reaches the namespace, and it ends with
//! this process however that ends. It must never carry a packet from one peer to another, to a connector or to the host.

mod config;

use std::io;
use std::process::ExitCode;

use ipnet::IpNet;
use tokio::net::{TcpSocket, UdpSocket};

pub use config::{CHILD_ARGUMENT, DEFAULT_MTU, HIGHEST_MTU, LOWEST_MTU, TunConfig, Unavailable, Way};

use crate::plane::Plane;

/// A cheap handle to the TUN plane of a shard; when the last is gone, so are device and namespace. Open sockets live on
/// without a network.
#[derive(Debug, Clone)]
pub struct Tun {
    _inner: (),
}

/// Plain counters of the TUN plane.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TunStats {
    /// Packets that left for peers, and their bytes.
    pub packets_out: u64,
    /// Bytes of inner packets that left for peers.
    pub bytes_out: u64,
    /// Packets of peers that went to our sockets.
    pub packets_in: u64,
    /// Bytes of inner packets of peers.
    pub bytes_in: u64,
    /// Reads of the device: each brings up to 64 KiB.
    pub reads: u64,
    /// Writes to the device: each takes up to 64 KiB.
    pub writes: u64,
    /// Packets from our sockets that no stock peer is routed for: answered with an ICMP error or a reset.
    pub unroutable: u64,
    /// Packets that waited for a session and were dropped: too many, or too long.
    pub waited: u64,
    /// Packets of peers that were not for our inner addresses, or claimed to come from one of them.
    pub foreign: u64,
    /// Packets that were no valid IP, or of a kind that does not go through (router solicitations, multicast).
    pub malformed: u64,
    /// Writes that the device refused.
    pub refused: u64,
}

impl Tun {
    /// Makes the namespace and its device, and carries packets between it and the plane's stock peers from now on.
    ///
    /// # Errors
    /// [`Unavailable`]; nothing is left behind then.
    #[expect(clippy::unused_async, reason = "the namespace is not built yet")]
    pub async fn start(plane: &Plane, config: TunConfig) -> Result<Self, Unavailable> {
        let _ = (plane, config);
        Err(Unavailable::NoDevice)
    }

    /// An unconnected TCP socket inside the namespace: `connect` reaches hosts behind stock peers.
    ///
    /// Destinations that no peer is routed for fail at once (`EHOSTUNREACH`, `ENETUNREACH`). Cancel safe.
    ///
    /// # Errors
    /// The namespace is gone, or descriptors are short.
    #[expect(clippy::unused_async, reason = "the namespace is not built yet")]
    pub async fn tcp(&self, v6: bool) -> io::Result<TcpSocket> {
        if v6 { TcpSocket::new_v6() } else { TcpSocket::new_v4() }
    }

    /// An unbound UDP socket inside the namespace (for DNS): `connect` or `send_to` give it an address. Cancel safe.
    ///
    /// # Errors
    /// As [`Self::tcp`].
    pub async fn udp(&self, v6: bool) -> io::Result<UdpSocket> {
        UdpSocket::bind(if v6 { "[::]:0" } else { "0.0.0.0:0" }).await
    }

    /// How the namespace was made.
    pub fn way(&self) -> Way {
        Way::Thread
    }

    /// Our addresses inside.
    pub fn inner(&self) -> &[IpNet] {
        &[]
    }
}

/// What the relay's binary does when its only argument is [`CHILD_ARGUMENT`]: keeps the namespace for the relay that
/// started it, and ends with it. To be called first in `main`, before any thread and before `harden`; standard input is the
/// relay's socket.
pub fn child_main() -> ExitCode {
    ExitCode::FAILURE
}
