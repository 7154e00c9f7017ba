//! The seam to the outside: what carries WireGuard datagrams between two hosts.
//!
//! Batch first: datagrams arrive and leave in runs of one size (UDP_GRO, UDP_SEGMENT). A carrier must never report a
//! fact about the network as a failure of its own: what cannot be sent is lost, as on any network.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::task::{Context, Poll};

use quinn_udp::{RecvMeta, Transmit};

/// One socket or whatever stands for it.
pub(crate) trait Carrier: fmt::Debug + Send + Sync {
    /// Fills buffers with datagrams of other hosts; one buffer holds datagrams of `stride` bytes, the last may be
    /// shorter. Tells how many buffers were filled, at least one.
    fn poll_recv(&self, cx: &mut Context<'_>, bufs: &mut [IoSliceMut<'_>], metas: &mut [RecvMeta]) -> Poll<usize>;

    /// Sends one run of datagrams; `fragments`: the way may take them apart (no DF).
    fn try_send(&self, transmit: &Transmit<'_>, fragments: bool) -> Sent;

    /// Registers for the end of [`Sent::Blocked`], which is what was last heard of it.
    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<()>;

    /// How many datagrams one run may hold.
    fn max_segments(&self) -> usize;

    /// Where it is bound.
    fn local_addr(&self) -> SocketAddr;
}

/// What became of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sent {
    /// It left, or part of it was too long for the way.
    Done,
    /// Nothing left: try the same again when the carrier is writable.
    Blocked,
    /// The system refused it (an `errno`): it is lost.
    Refused(i32),
}

/// The TUN device or whatever stands for it: frames with their virtio header, up to 64 KiB each.
pub(crate) trait PacketPort: fmt::Debug + Send + Sync {
    /// Reads one frame and tells its length.
    fn poll_read(&self, cx: &mut Context<'_>, frame: &mut [u8]) -> Poll<io::Result<usize>>;

    /// Writes one frame. `false`: the device did not take it.
    fn write(&self, frame: &[u8]) -> bool;
}
