//! From an accepted socket to a connection that can speak: its PROXY header, its TLS handshake.
//!
//! Must never let those who are slow at it keep others out: past the bound the one that has been at it longest goes.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustls::ServerConfig;
use rustls::server::Acceptor;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_rustls::StartHandshake;
use tokio_rustls::server::TlsStream;

use super::io::{CallerIo, Socket};
use super::proxy_protocol::{self, BadHeader};
use super::tls::Settled;
use crate::config::ArrivalBounds;

/// What who speaks clear text to a listener with TLS is told.
const SPEAK_TLS: &[u8] =
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: 64\r\n\
    proxy-status: culvert-relay; error=http_request_error; details=\"bad_request\"\r\nconnection: close\r\n\r\n\
    400 bad_request: this listener speaks TLS: use https in the URL\n";

/// What a listener has its connections begin with.
#[derive(Default)]
pub(crate) struct Manners {
    pub(crate) proxy_protocol: bool,
    pub(crate) tls: Option<Arc<ServerConfig>>,
}

/// A connection that can speak.
pub(crate) struct Arrived {
    pub(crate) io: CallerIo,
    /// Who called: as the PROXY header says where one was asked for. None on a unix socket.
    pub(crate) source: Option<SocketAddr>,
    /// Where it called.
    pub(crate) destination: Option<SocketAddr>,
    /// None = clear text.
    pub(crate) tls: Option<Settled>,
}

/// Why a connection never spoke.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TurnedAway {
    #[error(transparent)]
    ProxyHeader(#[from] BadHeader),
    #[error("TLS handshake failed: {0}")]
    Tls(std::io::Error),
    #[error("too slow")]
    Slow,
    #[error("others came, and it was the slowest")]
    Crowded,
}

/// Connections turned away before they spoke, by why.
#[derive(Debug, Default)]
pub(crate) struct TurnedAwayCounts([AtomicU64; TurnedAway::NAMES.len()]);

/// Those who are arriving.
pub(crate) struct Arrivals {
    queue: Mutex<Queue>,
    turned_away: TurnedAwayCounts,
}

struct Queue {
    bounds: ArrivalBounds,
    next: u64,
    /// The longest first; dropping the sender turns one away.
    arriving: VecDeque<(u64, oneshot::Sender<()>)>,
}

/// A place among those who are arriving.
struct Place<'a> {
    arrivals: &'a Arrivals,
    id: u64,
    gone: oneshot::Receiver<()>,
}

impl Arrivals {
    pub(crate) fn new(bounds: ArrivalBounds) -> Self {
        let queue = Queue { bounds, next: 0, arriving: VecDeque::new() };
        Self { queue: Mutex::new(queue), turned_away: TurnedAwayCounts::default() }
    }

    /// Takes other bounds, for those who come from now on.
    pub(super) fn set(&self, bounds: ArrivalBounds) {
        self.lock().bounds = bounds;
    }

    /// How many were turned away.
    pub(super) fn turned_away(&self) -> &TurnedAwayCounts {
        &self.turned_away
    }

    /// Reads what comes before the connection's own words. `source` and `destination` are the socket's.
    pub(crate) async fn arrive(
        &self,
        socket: Socket,
        source: Option<SocketAddr>,
        destination: Option<SocketAddr>,
        manners: Manners,
    ) -> Result<Arrived, TurnedAway> {
        let (mut place, within) = self.enter();
        let arriving = async {
            let (mut socket, mut source, mut destination) = (socket, source, destination);
            if manners.proxy_protocol
                && let Some(route) = proxy_protocol::read(&mut socket).await?
            {
                (source, destination) = (Some(route.source), Some(route.destination));
            }
            let Some(config) = manners.tls else {
                return Ok(Arrived { io: CallerIo::plain(socket), source, destination, tls: None });
            };
            let stream = Box::pin(shake_hands(config, socket)).await.map_err(TurnedAway::Tls)?;
            let settled = Settled::of(stream.get_ref().1);
            Ok(Arrived { io: CallerIo::tls(stream), source, destination, tls: Some(settled) })
        };
        let arrived = tokio::select! {
            biased;
            _ = &mut place.gone => Err(TurnedAway::Crowded),
            arrived = timeout(within, arriving) => arrived.unwrap_or(Err(TurnedAway::Slow)),
        };
        if let Err(why) = &arrived
            && let Some(count) = self.turned_away.0.get(why.place())
        {
            count.fetch_add(1, Ordering::Relaxed);
        }
        arrived
    }

    fn enter(&self) -> (Place<'_>, Duration) {
        let mut queue = self.lock();
        let id = queue.next;
        queue.next += 1;
        let (stays, gone) = oneshot::channel();
        queue.arriving.push_back((id, stays));
        while queue.arriving.len() > queue.bounds.at_once {
            queue.arriving.pop_front();
        }
        (Place { arrivals: self, id, gone }, queue.bounds.within)
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The TLS handshake. Who speaks HTTP in clear text is told so in clear text: a connection that closes without a word says
/// nothing to somebody who forgot an `s`.
async fn shake_hands(config: Arc<ServerConfig>, mut socket: Socket) -> io::Result<TlsStream<Socket>> {
    let mut hello = Acceptor::default();
    loop {
        let mut few = [0; 2048];
        let read = socket.read(&mut few).await?;
        let mut bytes = few.get(..read).filter(|bytes| !bytes.is_empty()).ok_or(io::ErrorKind::UnexpectedEof)?;
        while !bytes.is_empty() {
            hello.read_tls(&mut bytes)?;
        }
        match hello.accept() {
            Ok(Some(accepted)) => return StartHandshake::from_parts(accepted, socket).into_stream(config).await,
            Ok(None) => {}
            Err((error, mut alert)) => {
                let mut said = Vec::new();
                match error {
                    rustls::Error::InvalidMessage(_) => said.extend_from_slice(SPEAK_TLS),
                    _ => alert.write_all(&mut said)?,
                }
                socket.write_all(&said).await?;
                socket.shutdown().await?;
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut queue = self.arrivals.lock();
        if let Ok(at) = queue.arriving.binary_search_by_key(&self.id, |(id, _)| *id) {
            queue.arriving.remove(at);
        }
    }
}

impl TurnedAway {
    const NAMES: [&'static str; 4] = ["proxy_header", "tls", "slow", "crowded"];

    fn place(&self) -> usize {
        match self {
            Self::ProxyHeader(_) => 0,
            Self::Tls(_) => 1,
            Self::Slow => 2,
            Self::Crowded => 3,
        }
    }
}

impl TurnedAwayCounts {
    /// Each by its name.
    pub(crate) fn all(&self) -> [(&'static str, u64); TurnedAway::NAMES.len()] {
        std::array::from_fn(|place| {
            let count = self.0.get(place).map_or(0, |count| count.load(Ordering::Relaxed));
            (TurnedAway::NAMES.get(place).copied().unwrap_or_default(), count)
        })
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixStream;

    use super::*;

    const HEADER: &[u8] = b"PROXY TCP4 192.0.2.7 198.51.100.1 8080 443\r\n";

    fn arrivals(at_once: usize) -> Arrivals {
        Arrivals::new(ArrivalBounds { within: Duration::from_secs(10), at_once })
    }

    async fn arrive(arrivals: &Arrivals, socket: UnixStream) -> Result<Arrived, TurnedAway> {
        let manners = Manners { proxy_protocol: true, tls: None };
        arrivals.arrive(Socket::Unix(socket), None, None, manners).await
    }

    #[tokio::test(start_paused = true)]
    async fn who_says_nothing_is_turned_away_in_time() {
        let arrivals = arrivals(10);
        let (near, mut far) = UnixStream::pair().unwrap();
        far.write_all(&HEADER[..20]).await.unwrap();
        let start = tokio::time::Instant::now();
        assert!(matches!(arrive(&arrivals, near).await, Err(TurnedAway::Slow)));
        assert_eq!(start.elapsed(), Duration::from_secs(10));
        assert_eq!(arrivals.turned_away().all()[2], ("slow", 1));
        assert_eq!(arrivals.lock().arriving.len(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn past_the_bound_the_slowest_go_and_who_is_quick_comes_in() {
        let arrivals = arrivals(3);
        let mut silent = Vec::new();
        let mut slow = Vec::new();
        for _ in 0..3 {
            let (near, far) = UnixStream::pair().unwrap();
            silent.push(far);
            slow.push(Box::pin(arrive(&arrivals, near)));
        }
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        for one in &mut slow {
            assert!(one.as_mut().poll(&mut context).is_pending());
        }
        let (near, mut far) = UnixStream::pair().unwrap();
        far.write_all(HEADER).await.unwrap();
        let arrived = arrive(&arrivals, near).await.unwrap();
        assert_eq!(arrived.source, Some("192.0.2.7:8080".parse().unwrap()));
        assert_eq!(arrived.destination, Some("198.51.100.1:443".parse().unwrap()));
        let first = slow.remove(0);
        assert!(matches!(first.await, Err(TurnedAway::Crowded)));
        for one in slow {
            assert!(matches!(one.await, Err(TurnedAway::Slow)), "the others keep their time");
        }
    }
}
