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

use super::passing::{self, Kind, MOST, Reply, Request};
use crate::watch::watch;

/// Ready sockets of each kind; more are asked for when half of them is left.
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
    /// A refusal that nobody has heard of yet; until then no more is asked for.
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
                let socket = state.ready[at].pop_front();
                if socket.is_none() {
                    if state.ended {
                        return Err(gone());
                    }
                    if let Some(errno) = state.short[at].take() {
                        return Err(io::Error::from_raw_os_error(errno));
                    }
                }
                if state.missing(kind) > 0 {
                    self.wanted.notify_one();
                }
                if let Some(socket) = socket {
                    return Ok(socket);
                }
            }
            changed.await;
        }
    }

    /// Keeps the stock up until the keeper is gone; what is there then can still be taken.
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
        tracing::debug!(%error, "the keeper of the network namespace is gone");
        self.state().ended = true;
        self.changed.notify_waiters();
    }

    /// No socket is given any more: there is no network behind them.
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
                let missing = state.missing(kind);
                state.asked[kind as usize] += missing;
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
                Reply::Sockets { kind, asked, sockets } => {
                    let at = kind as usize;
                    state.asked[at] = state.asked[at].saturating_sub(usize::from(asked));
                    // The kernel leaves out descriptors for which this process has no room.
                    state.short[at] = sockets.is_empty().then_some(libc::EMFILE);
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

impl State {
    /// How many to ask for now: none while more than half of the stock is there or under way.
    fn missing(&self, kind: Kind) -> usize {
        let at = kind as usize;
        let have = self.ready[at].len() + self.asked[at];
        if have > STOCK[at] / 2 || self.short[at].is_some() { 0 } else { STOCK[at] - have }
    }
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::NotConnected, "the network namespace of stock peers is gone")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    async fn soon<T>(what: impl Future<Output = T>) -> T {
        timeout(Duration::from_secs(20), what).await.expect("in time")
    }

    /// A stock, and the keeper's end of its socket.
    fn stock() -> (Arc<Sockets>, Keeper) {
        let (here, there) = passing::pair().unwrap();
        let sockets = Arc::<Sockets>::default();
        tokio::spawn(sockets.clone().fill(Keeper::new(here).unwrap()));
        (sockets, Keeper::new(there).unwrap())
    }

    async fn asked(keeper: &Keeper) -> Request {
        let mut bytes = [0; 16];
        let receive = |socket: &OwnedFd| passing::receive(socket.as_fd(), &mut bytes);
        let (length, _) = soon(keeper.socket.async_io(Interest::READABLE, receive)).await.unwrap();
        Request::read(&bytes[..length]).unwrap()
    }

    fn give(keeper: &Keeper, request: Request) {
        let one = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().into();
        let sockets = (0..request.count).map(|_| one()).collect();
        let reply = Reply::Sockets { kind: request.kind, asked: request.count, sockets };
        reply.send(keeper.socket.get_ref().as_fd()).unwrap();
    }

    #[tokio::test]
    async fn a_stock_is_filled_before_anybody_asks_and_again_when_half_is_gone() {
        let (sockets, keeper) = stock();
        let mut count = 0;
        for _ in 0..6 {
            let request = asked(&keeper).await;
            count += usize::from(request.count);
            give(&keeper, request);
        }
        assert_eq!(count, STOCK.iter().sum::<usize>());
        for _ in 0..STOCK[0] / 2 {
            soon(sockets.take(Kind::TcpV4)).await.unwrap();
        }
        assert_eq!(asked(&keeper).await, Request { kind: Kind::TcpV4, count: 16 });
    }

    #[tokio::test]
    async fn a_refusal_reaches_one_who_waits_and_nothing_more_is_asked_until_it_did() {
        let (sockets, keeper) = stock();
        for _ in 0..6 {
            let request = asked(&keeper).await;
            let reply = Reply::Short { kind: request.kind, errno: libc::EMFILE };
            reply.send(keeper.socket.get_ref().as_fd()).unwrap();
        }
        let quiet = timeout(Duration::from_millis(50), asked(&keeper)).await;
        assert!(quiet.is_err(), "{quiet:?}");
        let refused = soon(sockets.take(Kind::TcpV6)).await.unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EMFILE));
        let next = tokio::spawn(async move { sockets.take(Kind::TcpV6).await });
        let request = asked(&keeper).await;
        assert_eq!(request.kind, Kind::TcpV6);
        give(&keeper, request);
        soon(next).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn without_a_keeper_what_is_left_is_given_and_then_an_error() {
        let (sockets, keeper) = stock();
        give(&keeper, Request { kind: Kind::UdpV4, count: 1 });
        for _ in 0..6 {
            asked(&keeper).await;
        }
        drop(keeper);
        soon(sockets.ended()).await;
        soon(sockets.take(Kind::UdpV4)).await.unwrap();
        let gone = soon(sockets.take(Kind::UdpV4)).await.unwrap_err();
        assert_eq!(gone.kind(), io::ErrorKind::NotConnected);
    }
}
