//! The way of a request to one live connector: pooled streams of its connection, each with one exchange at a
//! time in the version of HTTP that the request came in (design.md §2).
//!
//! Must never try a request twice: it says what was sent, the front decides.

use std::time::Duration;

use culvert_hop::body::Body;
use culvert_hop::exchange::{Answer, Deadlines, SendError};
use culvert_hop::fault::{Fault, Retry, Side};
use culvert_hop::message::Request;
use culvert_hop::pool::{Lost, Opener, Pool, PoolSettings, Speak};
use culvert_model::reason::Reason;
use culvert_plane::{Connection, Stream, StreamReset};
use tokio::time::Instant;

/// A connector that permits no further stream for so long is overloaded.
const OPEN_WITHIN: Duration = Duration::from_secs(5);
/// Streams kept idle for each connector.
const IDLE_STREAMS: usize = 512;
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
        let settings = PoolSettings {
            max_idle: IDLE_STREAMS,
            idle_timeout: IDLE_FOR,
            max_head: MAX_HEAD,
            http2: Speak::AsAsked,
            ..PoolSettings::default()
        };
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
    pub(crate) fn sweep(&self, now: Instant) {
        self.pool.sweep(now);
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

    fn lost(&self, how: Lost<'_>) -> Fault {
        of_loss(how)
    }
}

fn of_loss(how: Lost<'_>) -> Fault {
    let error = match how {
        Lost::Io(error) => error,
        Lost::Ended => return lost(&"the stream ended before the response", Retry::IfIdempotent),
        Lost::Malformed => return lost(&"the connector sent no HTTP", Retry::IfIdempotent),
        // The connector asks the origin under the same deadline; a second try would double the caller's wait.
        Lost::Silent => return Fault::new(Reason::OriginTimeout).side(Side::Tunnel),
        Lost::Refused => return lost(&"the connector refused the stream", Retry::Safe),
        Lost::Reset(code) => return of_reset(StreamReset { code }),
    };
    match StreamReset::of(error) {
        Some(reset) if reset.is_refused_unread() => lost(&reset, Retry::Safe),
        Some(reset) => of_reset(reset),
        None => lost(error, Retry::IfIdempotent),
    }
}

/// A reset of the tunnel's stream, or of the HTTP/2 stream on it: both carry the reason's code.
fn of_reset(reset: StreamReset) -> Fault {
    match reset.reason() {
        Some(reason) => Fault::new(reason).side(Side::Tunnel).retry(Retry::IfIdempotent).log(reset),
        None => lost(&reset, Retry::IfIdempotent),
    }
}

fn lost(cause: &dyn std::fmt::Display, retry: Retry) -> Fault {
    Fault::new(Reason::ConnectorLost).side(Side::Tunnel).retry(retry).log(cause)
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn a_reset_keeps_its_reason_and_only_what_was_refused_unread_is_safe_to_repeat() {
        let reset = |code| io::Error::other(StreamReset { code });
        for (error, reason, retry) in [
            (reset(StreamReset::REFUSED_UNREAD), Reason::ConnectorLost, Retry::Safe),
            (reset(Reason::OriginClosed.reset_code()), Reason::OriginClosed, Retry::IfIdempotent),
            (reset(0x9999), Reason::ConnectorLost, Retry::IfIdempotent),
            (io::ErrorKind::ConnectionReset.into(), Reason::ConnectorLost, Retry::IfIdempotent),
        ] {
            let fault = of_loss(Lost::Io(&error));
            assert_eq!((fault.reason, fault.retry), (reason, retry), "{error}");
        }
        assert_eq!(of_loss(Lost::Silent).retry, Retry::Never);
    }
}
