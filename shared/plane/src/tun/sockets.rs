//! A stock of sockets from inside the namespace, so that a connection costs no round trip to the keeper.
//!
//! It must never ask for more than is missing, nor hand out a socket twice.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

use super::device::watch;
use super::passing::{self, Kind, MOST, Reply, Request};

/// Ready sockets of each kind, and how many are left when more are asked for.
const STOCK: [usize; 4] = [32, 32, 2, 2];

/// The keeper's end of the socket, on the runtime.
#[derive(Debug)]
pub(super) struct Keeper {
    socket: AsyncFd<OwnedFd>,
}

impl Keeper {
    pub(super) fn new(socket: OwnedFd) -> io::Result<Self> {
        let flags = nix::fcntl::OFlag::O_NONBLOCK;
        nix::fcntl::fcntl(socket.as_fd(), nix::fcntl::FcntlArg::F_SETFL(flags))?;
        Ok(Self { socket: watch(socket, Interest::READABLE | Interest::WRITABLE)? })
    }

    /// Says something; the socket's buffer is larger than everything that is ever asked.
    pub(super) async fn send(&self, bytes: &[u8]) -> io::Result<()> {
        self.socket.async_io(Interest::WRITABLE, |socket| passing::send(socket.as_fd(), bytes)).await
    }

    /// The next reply; `None`: the keeper is gone.
    pub(super) async fn receive(&self) -> io::Result<Option<Reply>> {
        self.socket.async_io(Interest::READABLE, |socket| Reply::receive(socket.as_fd())).await
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Sockets {
    state: Mutex<State>,
    /// Tells [`Sockets::fill`] that something is missing.
    wanted: Notify,
    /// Tells those who wait that something has changed.
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    ready: [VecDeque<OwnedFd>; 4],
    asked: [usize; 4],
    /// The last refusal, for those who wait.
    short: [Option<i32>; 4],
    ended: bool,
}

impl Sockets {
    /// Takes one. Cancel safe.
    pub(super) async fn take(&self, kind: Kind) -> io::Result<OwnedFd> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let mut state = self.state();
                let at = kind as usize;
                if state.ended {
                    return Err(gone());
                }
                if let Some(errno) = state.short[at].take() {
                    return Err(io::Error::from_raw_os_error(errno));
                }
                let socket = state.ready[at].pop_front();
                if state.ready[at].len() + state.asked[at] <= STOCK[at] / 2 {
                    self.wanted.notify_one();
                }
                if let Some(socket) = socket {
                    return Ok(socket);
                }
            }
            changed.await;
        }
    }

    /// Keeps the stock up until the keeper is gone. `true`: it was there and went.
    pub(super) async fn fill(self: Arc<Self>, keeper: Keeper) {
        let error = loop {
            if let Err(error) = self.ask(&keeper).await {
                break error;
            }
            tokio::select! {
                reply = keeper.receive() => match reply {
                    Ok(Some(reply)) => self.put(reply),
                    Ok(None) => break io::ErrorKind::UnexpectedEof.into(),
                    Err(error) => break error,
                },
                () = self.wanted.notified() => {}
            }
        };
        tracing::debug!(%error, "the network namespace is gone");
        self.end();
    }

    /// No socket comes from here any more.
    pub(super) fn end(&self) {
        let left = {
            let mut state = self.state();
            state.ended = true;
            std::mem::take(&mut state.ready)
        };
        drop(left);
        self.changed.notify_waiters();
    }

    /// Waits until no socket comes any more.
    pub(super) async fn ended(&self) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.state().ended {
                return;
            }
            changed.await;
        }
    }

    async fn ask(&self, keeper: &Keeper) -> io::Result<()> {
        for kind in Kind::ALL {
            let missing = {
                let mut state = self.state();
                let at = kind as usize;
                let (ready, asked) = (state.ready[at].len(), state.asked[at]);
                let missing = if ready + asked <= STOCK[at] / 2 { STOCK[at] - ready - asked } else { 0 };
                state.asked[at] += missing;
                missing
            };
            for at in (0..missing).step_by(MOST) {
                let count = u8::try_from((missing - at).min(MOST)).unwrap_or(1);
                keeper.send(&Request { kind, count }.write()).await?;
            }
        }
        Ok(())
    }

    fn put(&self, reply: Reply) {
        {
            let mut state = self.state();
            match reply {
                Reply::Sockets { kind, sockets } => {
                    let at = kind as usize;
                    state.asked[at] = state.asked[at].saturating_sub(sockets.len());
                    state.short[at] = None;
                    state.ready[at].extend(sockets);
                }
                Reply::Short { kind, errno } => {
                    let at = kind as usize;
                    state.asked[at] = 0;
                    state.short[at] = Some(errno);
                }
                Reply::Ready { .. } | Reply::Failed { .. } => {}
            }
        }
        self.changed.notify_waiters();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::NotConnected, "the network namespace of stock peers is gone")
}
