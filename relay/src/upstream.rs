//! The way of a request to one live connector: pooled streams of its connection, HTTP/1.1 on each (design.md §2).
//!
//! Must never try a request twice: it says what was sent, the front decides.

use std::io;
use std::time::Duration;

use culvert_hop::body::Body;
use culvert_hop::exchange::{Answer, Deadlines, SendError};
use culvert_hop::fault::{Fault, Retry, Side};
use culvert_hop::pool::{Opener, Pool, PoolSettings};
use culvert_model::reason::Reason;
use culvert_plane::{Connection, Stream, StreamReset};
use http::Request;

/// A connector that permits no further stream for so long is overloaded.
const OPEN_WITHIN: Duration = Duration::from_secs(5);
/// Streams kept idle for each connector.
const IDLE_STREAMS: usize = 128;
/// How long each; the gate's patience is longer.
const IDLE_FOR: Duration = Duration::from_secs(30);
/// The largest response head.
const MAX_HEAD: usize = 64 * 1024;

/// The pool of streams to one connector.
pub(crate) struct Upstream {
    pool: Pool<Tunnel>,
}

/// Opens streams of one connection.
struct Tunnel {
    connection: Connection,
}

impl Upstream {
    /// No stream is opened before the first request.
    pub(crate) fn new(connection: Connection) -> Self {
        let settings =
            PoolSettings { max_idle: IDLE_STREAMS, idle_timeout: IDLE_FOR, max_head: MAX_HEAD, preserve_case: true };
        Self { pool: Pool::new(Tunnel { connection }, settings) }
    }

    /// Sends one request in its final form. Dropping the future cancels it at the other end.
    ///
    /// # Errors
    /// [`SendError`], whose retry says what of it was sent.
    pub(crate) async fn send(
        &self,
        request: Request<Body>,
        deadlines: &Deadlines,
    ) -> Result<Answer<Stream>, SendError> {
        self.pool.send(request, deadlines).await
    }

    /// Closes streams that were idle for too long; to be called every few seconds.
    pub(crate) fn sweep(&self) {
        self.pool.sweep();
    }

    /// Closes idle streams, and those in use when their exchange is over.
    pub(crate) fn close(&self) {
        self.pool.close();
    }
}

impl Opener for Tunnel {
    type Io = Stream;

    async fn open(&self) -> Result<Stream, Fault> {
        match tokio::time::timeout(OPEN_WITHIN, self.connection.open()).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(lost(&error, Retry::Safe)),
            Err(_) => Err(Fault::new(Reason::Overloaded)
                .side(Side::Tunnel)
                .retry(Retry::Safe)
                .log("the connector permits no further stream")),
        }
    }

    fn lost(&self, io: Option<&io::Error>, sent: bool) -> Fault {
        let retry = if sent { Retry::IfIdempotent } else { Retry::Safe };
        let Some(error) = io else { return lost(&"the stream ended before the response", retry) };
        match StreamReset::of(error) {
            Some(reset) if reset.is_refused_unread() => lost(&reset, Retry::Safe),
            Some(reset) => match reset.reason() {
                Some(reason) => Fault::new(reason).side(Side::Tunnel).retry(retry).log(reset),
                None => lost(&reset, retry),
            },
            None => lost(error, retry),
        }
    }
}

fn lost(cause: &dyn std::fmt::Display, retry: Retry) -> Fault {
    Fault::new(Reason::ConnectorLost).side(Side::Tunnel).retry(retry).log(cause)
}
