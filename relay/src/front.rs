//! Where gateways come in: listeners, their connections, and how those end.
//!
//! Must never let a connection that waits or stalls cost another one anything, nor end an answer that is cut short as if
//! it were whole.

use std::future::pending;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

use culvert_hop::body::Body;
use culvert_hop::request::Caller;
use culvert_hop::server::{ServerSettings, serve};
use culvert_model::reason::Reason;
use culvert_ops::drain::{Drain, InFlight, LONG_RUNNING, Phase};
use futures_util::FutureExt as _;
use http::Request;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until};
use tracing::{debug, warn};

use crate::access_log::Entry;
use crate::exchange::{Door, Exchanges};

/// In a drain an idle connection stays open this long: the request that may be on its way is still answered.
const IDLE_LINGER: Duration = Duration::from_secs(1);
/// In a drain it takes this long until it is known what runs for long.
const SETTLED_AFTER: Duration = Duration::from_millis(50);
/// After an error of `accept` that is not the connection's own (out of descriptors), before the next.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// A bound listener.
pub(crate) enum Bound {
    Tcp(TcpListener),
    Unix(UnixListener, Option<PathBuf>),
}

/// Exchanges that a drain gives `--drain-streams`. While there are some, a listener of the service manager's still takes
/// callers: they could only wait in its backlog for a successor that cannot start yet.
#[derive(Debug, Default)]
pub(crate) struct LongRunning {
    count: AtomicUsize,
    none: Notify,
}

/// One of them.
pub(crate) struct LongRunner(Arc<LongRunning>);

/// All listeners of the process.
pub(crate) struct Front {
    exchanges: Arc<Exchanges>,
    settings: ServerSettings,
    connections: Arc<Semaphore>,
    most: usize,
}

/// What runs on one connection now. HTTP/1.1 runs one exchange at a time.
#[derive(Debug, Default)]
pub(crate) struct Running {
    now: Mutex<Option<Exchange>>,
    ended: Notify,
}

#[derive(Debug, Clone, Copy)]
struct Exchange {
    since: Instant,
    streaming: bool,
}

/// One exchange on its connection, until it is dropped.
pub(crate) struct Turn {
    running: Arc<Running>,
    since: Instant,
}

impl Front {
    /// A front over these exchanges, for so many connections at once.
    pub(crate) fn new(exchanges: Arc<Exchanges>, connections: usize) -> Self {
        let mut settings = ServerSettings::front();
        let refusing = Arc::clone(&exchanges);
        settings.refused = Some(Arc::new(move |reason| refused(&refusing, reason)));
        let semaphore = Arc::new(Semaphore::new(connections));
        Self { exchanges, settings, connections: semaphore, most: connections }
    }

    /// Connections open now.
    pub(crate) fn open(&self) -> usize {
        self.most.saturating_sub(self.connections.available_permits())
    }

    /// Accepts until the drain closes listeners, then waits for the connections that are left.
    ///
    /// `inherited` says that the service manager owns the listener.
    pub(crate) async fn listen(self: Arc<Self>, listener: Bound, door: Arc<Door>, inherited: bool) {
        let exchanges = Arc::clone(&self.exchanges);
        let mut tasks = JoinSet::new();
        let closing = async {
            exchanges.drain.closing().await;
            if inherited {
                // The connections have to see the drain too before it is known which of them run for long.
                sleep(SETTLED_AFTER).await;
                exchanges.long.none().await;
            }
        };
        tokio::pin!(closing);
        loop {
            tokio::select! {
                biased;
                () = &mut closing => break,
                Some(ended) = tasks.join_next() => note_panic(ended),
                accepted = self.accept(&listener) => match accepted {
                    Ok((io, caller, permit)) => self.spawn(&mut tasks, io, caller, &door, permit),
                    Err(error) if is_of_connection(&error) => debug!(%error, "connection ended before it was accepted"),
                    Err(error) => {
                        warn!(%error, "cannot accept connections");
                        sleep(ACCEPT_AGAIN).await;
                    }
                },
            }
        }
        // Whoever is in the backlog of a socket of our own came before it closed; that of the service manager waits.
        while !inherited && let Some(Ok((io, caller, permit))) = self.accept(&listener).now_or_never() {
            self.spawn(&mut tasks, io, caller, &door, permit);
        }
        if let Bound::Unix(_, Some(path)) = &listener {
            let _ = std::fs::remove_file(path);
        }
        drop(listener);
        while let Some(ended) = tasks.join_next().await {
            note_panic(ended);
        }
    }

    async fn accept(&self, listener: &Bound) -> io::Result<(CallerIo, Caller, Permit)> {
        // Past the bound callers wait in the backlog.
        let permit = Arc::clone(&self.connections).acquire_owned().await.map_err(io::Error::other)?;
        match listener {
            Bound::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                let _ = stream.set_nodelay(true);
                let port = stream.local_addr().ok().map(|local| local.port());
                let caller = Caller { address: Some(address.ip().to_canonical()), tls: false, port };
                Ok((CallerIo::new(Socket::Tcp(stream)), caller, permit))
            }
            Bound::Unix(listener, _) => {
                let (stream, _) = listener.accept().await?;
                let caller = Caller { address: None, tls: false, port: None };
                Ok((CallerIo::new(Socket::Unix(stream)), caller, permit))
            }
        }
    }

    fn spawn(
        self: &Arc<Self>,
        tasks: &mut JoinSet<()>,
        io: CallerIo,
        caller: Caller,
        door: &Arc<Door>,
        permit: Permit,
    ) {
        let (front, door) = (Arc::clone(self), Arc::clone(door));
        // A connection counts, not a request: an idle one may have a request on its way.
        let open = front.exchanges.drain.enter(Instant::now());
        tasks.spawn(async move { front.connection(io, caller, door, permit, open).await });
    }

    async fn connection(
        self: Arc<Self>,
        io: CallerIo,
        caller: Caller,
        door: Arc<Door>,
        _permit: Permit,
        _open: InFlight,
    ) {
        let running = Arc::new(Running::default());
        let reset = Arc::clone(&io.reset);
        let exchanges = &self.exchanges;
        let answer = |request: Request<Body>| {
            let (exchanges, door, running) = (Arc::clone(exchanges), Arc::clone(&door), Arc::clone(&running));
            async move { Ok(exchanges.carry(&door, caller, None, &running, request).await) }
        };
        let idle = async {
            exchanges.drain.closing().await;
            sleep(IDLE_LINGER).await;
        };
        tokio::select! {
            () = serve(io, &self.settings, answer, idle) => {}
            () = running.cut(&exchanges.drain, &exchanges.long) => reset.store(true, Ordering::Relaxed),
        }
    }
}

impl Running {
    /// An exchange begins.
    pub(crate) fn begin(self: &Arc<Self>, now: Instant) -> Turn {
        *self.lock() = Some(Exchange { since: now, streaming: false });
        Turn { running: Arc::clone(self), since: now }
    }

    /// Waits until what runs here has to end visibly: at `--drain-streams` for an answer that was already running for
    /// long when the drain closed listeners, at the deadline for the rest.
    async fn cut(&self, drain: &Drain, long_running: &Arc<LongRunning>) {
        drain.closing().await;
        let Phase::Draining { closing, streams, deadline } = drain.phase() else { return };
        let rest = async {
            let long = self.lock().filter(|exchange| closing.saturating_duration_since(exchange.since) > LONG_RUNNING);
            if let Some(long) = long {
                let _one = long_running.one();
                tokio::select! {
                    () = sleep_until(streams.into()) => {}
                    () = self.ended.notified() => {}
                }
                if self.lock().is_some_and(|now| now.since == long.since && now.streaming) {
                    return;
                }
            }
            sleep_until(deadline.into()).await;
            if self.lock().is_none() {
                pending::<()>().await;
            }
        };
        tokio::select! {
            () = rest => {}
            () = drain.stopped() => {}
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Exchange>> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turn {
    /// When it began.
    pub(crate) fn since(&self) -> Instant {
        self.since
    }

    /// Its answer's head is out.
    pub(crate) fn streaming(&self) {
        if let Some(exchange) = &mut *self.running.lock() {
            exchange.streaming = true;
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *self.running.lock() = None;
        self.running.ended.notify_waiters();
    }
}

impl LongRunning {
    /// One more, until it is dropped.
    pub(crate) fn one(self: &Arc<Self>) -> LongRunner {
        self.count.fetch_add(1, Ordering::Relaxed);
        LongRunner(Arc::clone(self))
    }

    /// Waits until there is none.
    async fn none(&self) {
        loop {
            let none = self.none.notified();
            if self.count.load(Ordering::Relaxed) == 0 {
                return;
            }
            none.await;
        }
    }
}

impl Drop for LongRunner {
    fn drop(&mut self) {
        if self.0.count.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.none.notify_waiters();
        }
    }
}

type Permit = tokio::sync::OwnedSemaphorePermit;

/// A caller's connection, of either kind. Reset on drop when it is cut, so that no caller takes the end for a clean one.
struct CallerIo {
    socket: Socket,
    reset: Arc<AtomicBool>,
}

enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl CallerIo {
    fn new(socket: Socket) -> Self {
        Self { socket, reset: Arc::default() }
    }
}

impl Drop for CallerIo {
    fn drop(&mut self) {
        if let (Socket::Tcp(stream), true) = (&self.socket, self.reset.load(Ordering::Relaxed)) {
            let _ = setsockopt(stream, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 });
        }
    }
}

impl AsyncRead for CallerIo {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.socket {
            Socket::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Socket::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for CallerIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.socket {
            Socket::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Socket::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.socket {
            Socket::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Socket::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.socket {
            Socket::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Socket::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// A request that was refused before it became one.
fn refused(exchanges: &Exchanges, reason: Reason) {
    exchanges.log.record(|| Entry {
        time: SystemTime::now(),
        request_id: "",
        gateway: None,
        service: None,
        tunnel: None,
        connector: None,
        method: "",
        path: "",
        status: Some(reason.status()),
        reason: Some(reason.name()),
        bytes_in: 0,
        bytes_out: 0,
        duration_ms: Duration::ZERO,
        origin_ms: None,
        trace_id: None,
    });
    exchanges.no_service.count(Some(reason.status()), Some(reason), Duration::ZERO);
}

fn is_of_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted)
}

fn note_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "connection's task panicked");
    }
}

#[cfg(test)]
mod tests {
    use culvert_ops::drain::Plan;

    use super::*;

    const PLAN: Plan =
        Plan { delay: Duration::ZERO, timeout: Duration::from_secs(25), streams: Duration::from_secs(5) };

    fn now() -> Instant {
        tokio::time::Instant::now().into_std()
    }

    /// When a connection is cut after the drain began, if its exchange began `age` before; none = not at all.
    async fn cut_after(age: Option<u64>, streaming: bool) -> Option<Duration> {
        let (drain, running) = (Drain::new(), Arc::new(Running::default()));
        let turn = age.map(|_| running.begin(now()));
        if let (Some(turn), true) = (&turn, streaming) {
            turn.streaming();
        }
        sleep(Duration::from_secs(age.unwrap_or(0))).await;
        let start = now();
        drain.begin(PLAN, start);
        let cut = tokio::time::timeout(Duration::from_secs(3_600), running.cut(&drain, &Arc::default())).await;
        cut.is_ok().then(|| now() - start)
    }

    #[tokio::test(start_paused = true)]
    async fn old_streams_end_first_requests_have_the_whole_drain_and_idle_connections_are_not_cut() {
        assert_eq!(cut_after(Some(6), true).await, Some(PLAN.streams));
        assert_eq!(cut_after(Some(4), true).await, Some(PLAN.timeout));
        assert_eq!(cut_after(Some(60), false).await, Some(PLAN.timeout));
        assert_eq!(cut_after(None, false).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn an_exchange_that_ends_in_time_takes_the_cut_with_it() {
        let (drain, running) = (Drain::new(), Arc::new(Running::default()));
        let turn = running.begin(now());
        turn.streaming();
        sleep(Duration::from_secs(60)).await;
        drain.begin(PLAN, now());
        let ends = async {
            sleep(Duration::from_secs(2)).await;
            drop(turn);
        };
        let long = Arc::default();
        let cut = tokio::time::timeout(Duration::from_secs(3_600), running.cut(&drain, &long));
        let (cut, ()) = tokio::join!(cut, ends);
        assert!(cut.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_listener_of_the_service_manager_closes_when_nothing_runs_for_long_any_more() {
        let long = Arc::new(LongRunning::default());
        let start = now();
        long.none().await;
        assert_eq!(now(), start);
        let (one, other) = (long.one(), long.one());
        let end = async {
            sleep(Duration::from_secs(1)).await;
            drop(one);
            sleep(Duration::from_secs(1)).await;
            drop(other);
        };
        tokio::join!(end, long.none(), long.none());
        assert_eq!(now() - start, Duration::from_secs(2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_signal_cuts_at_once() {
        let (drain, running) = (Drain::new(), Arc::new(Running::default()));
        let _turn = running.begin(now());
        let start = now();
        drain.begin(PLAN, start);
        drain.stop();
        running.cut(&drain, &Arc::default()).await;
        assert_eq!(now(), start);
    }
}
