//! The server side of a hop: one connection of a gateway at the front, or one tunnel stream at the gate.
//!
//! Must never answer a malformed head without its name, or take a caller that may still be listening for gone.
//!
//! HTTP/2 stands on the crate h2 itself, because hyper's server has no deadline for an answer that nobody reads, no word
//! for why a stream is reset, and no way to end a connection with ENHANCE_YOUR_CALM.

mod http1;
mod http2;
mod ledger;
mod received;
mod stream;

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use culvert_model::reason::Reason;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::body::Body;
use crate::message::{Request, Response};
use crate::wakes::Quiet;

pub(crate) use http2::{SMALL_FRAMES, connection_window};
pub(crate) use ledger::Ledger;
pub(crate) use received::Received;
pub(crate) use stream::SwitchAccepted;

/// How long a refused caller may take to hear why.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Which versions of HTTP a server speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Http2 {
    /// Whichever the connection's first bytes are (RFC 9113 §3.3, prior knowledge).
    Sniff,
    /// HTTP/2 only: agreed by ALPN.
    Always,
    /// HTTP/1.1 only.
    Never,
}

/// Settings of a server.
#[derive(Clone)]
pub struct ServerSettings {
    /// From the first byte of a head to its last. For HTTP/2, until the connection's preface has come.
    pub head_timeout: Duration,
    /// Without a request. Must be more than the patience of the other side's pool.
    pub keep_alive: Duration,
    /// The largest head, in bytes; also bounds the buffers of a connection. At least 8 KiB. HTTP/2 heads up to twice as
    /// large reach the service, which can refuse them by name.
    pub max_head: usize,
    /// How long a caller that has closed its sending side is still answered while nothing is written to it. A closed
    /// connection cannot be told from a half-closed one before that. HTTP/1.1 only.
    pub half_close: Duration,
    /// The versions spoken.
    pub http2: Http2,
    /// HTTP/2: exchanges at once on a connection.
    pub max_streams: u32,
    /// HTTP/2: how much of a request's body may come before it is read. What a connection may hold is `max_streams` times
    /// as much, so that a stream which is not read costs no other its window.
    pub window: u32,
    /// HTTP/2: how long a caller may take nothing of an answer that is there, before its stream is reset.
    pub unread_timeout: Duration,
    /// HTTP/2: whether the other side is a hop's own pool: a cut answer is reset with the code of its reason, which nobody
    /// else understands, and no ledger is kept of what it costs.
    pub is_own: bool,
    /// Told of requests that were refused before they became one.
    pub refused: Option<Arc<dyn Fn(Reason) + Send + Sync>>,
}

impl ServerSettings {
    /// For gateways. An idle connection outlives the pools of common gateways (nginx 60 s, Go 90 s).
    pub fn front() -> Self {
        Self {
            head_timeout: Duration::from_secs(30),
            keep_alive: Duration::from_secs(120),
            max_head: 64 * 1024,
            half_close: Duration::from_secs(1),
            http2: Http2::Sniff,
            max_streams: 100,
            window: 128 * 1024,
            unread_timeout: Duration::from_secs(120),
            is_own: false,
            refused: None,
        }
    }

    /// For the streams of a tunnel, whose other end is [`crate::pool`]: it outlives that pool's idle time.
    pub fn gate() -> Self {
        Self {
            keep_alive: Duration::from_secs(180),
            half_close: Duration::ZERO,
            // The other side has its own deadline for its reader.
            unread_timeout: Duration::from_secs(3600),
            window: 256 * 1024,
            // The other side has one at a time, and some whose end has not come here yet.
            max_streams: 4,
            is_own: true,
            ..Self::front()
        }
    }
}

impl fmt::Debug for ServerSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerSettings")
            .field("head_timeout", &self.head_timeout)
            .field("keep_alive", &self.keep_alive)
            .field("max_head", &self.max_head)
            .field("half_close", &self.half_close)
            .field("http2", &self.http2)
            .field("max_streams", &self.max_streams)
            .finish_non_exhaustive()
    }
}

/// Serves one connection until it ends. When `drain` completes, the requests in flight are finished and the connection
/// closed after them. After a 101 the connection lives on in whoever holds its [`crate::upgrade::OnUpgrade`].
///
/// The service is called for each request: one after the other on HTTP/1.1, many at once on HTTP/2.
/// [`Request::version`] tells. All run in the task that polls this future.
///
/// Dropping the future, or the caller's going away, drops the service's futures and the responses' bodies.
pub async fn serve<Io, S, F>(io: Io, settings: &ServerSettings, service: S, drain: impl Future<Output = ()>)
where
    Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Fn(Request<Body>) -> F,
    F: Future<Output = Result<Response<Body>, Infallible>>,
{
    let mut drain = pin!(Quiet::new(drain));
    let (io, first) = if settings.http2 == Http2::Always {
        (io, Bytes::new())
    } else {
        match http1::serve(io, settings, &service, drain.as_mut()).await {
            Some(begun) => begun,
            None => return,
        }
    };
    // In a box: most connections never need it.
    Box::pin(http2::serve(io, first, settings, &service, drain)).await;
}
