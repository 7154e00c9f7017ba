//! The device on the runtime: frames in and out, without a task or a copy between.
//!
//! It must never block, nor keep what the kernel did not take.

use std::io;
use std::os::fd::OwnedFd;
use std::task::{Context, Poll, ready};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::port::PacketPort;
use crate::watch::watch;

/// A TUN device with virtio headers, as the keeper handed it over.
#[derive(Debug)]
pub(super) struct Device {
    descriptor: AsyncFd<OwnedFd>,
}

impl Device {
    /// `descriptor` is non-blocking already.
    pub(super) fn new(descriptor: OwnedFd) -> io::Result<Self> {
        Ok(Self { descriptor: watch(descriptor, Interest::READABLE)? })
    }
}

impl PacketPort for Device {
    fn poll_read(&self, cx: &mut Context<'_>, frame: &mut [u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut readable = ready!(self.descriptor.poll_read_ready(cx))?;
            if let Ok(read) = readable.try_io(|descriptor| Ok(nix::unistd::read(descriptor.get_ref(), frame)?)) {
                return Poll::Ready(read);
            }
        }
    }

    fn write(&self, frame: &[u8]) -> bool {
        nix::unistd::write(self.descriptor.get_ref(), frame).is_ok()
    }
}
