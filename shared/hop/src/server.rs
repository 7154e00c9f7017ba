//! The server side of a hop: one HTTP/1.1 connection of a gateway at the front, or one tunnel stream at the gate.
//!
//! Must never answer a malformed head without its name, or take a caller that may still be listening for gone.
//!
//! What hyper 1.12's server cannot do: send 103 or any 1xx but 100 (by itself, when the body is first read) and 101;
//! write trailers to a caller that did not send `TE: trailers`, or that the head's `Trailer` did not announce.

use std::convert::Infallible;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::Poll;
use std::time::Duration;

use culvert_model::reason::Reason;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1::Builder;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, sleep_until};

use crate::body::{Body, Flag};
use crate::fault;
use crate::served::{ANSWERING, COUNT, HEAD, READING, SWITCHED, Served};

/// How long a refused caller may take to hear why.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Settings of a server.
#[derive(Clone)]
pub struct ServerSettings {
    /// From the first byte of a head to its last.
    pub head_timeout: Duration,
    /// Without a request. Must be more than the patience of the other side's pool.
    pub keep_alive: Duration,
    /// The largest head, in bytes; also bounds the buffers of a connection. At least 8 KiB.
    pub max_head: usize,
    /// How long a caller that has closed its sending side is still answered while nothing is written to it. A closed
    /// connection cannot be told from a half-closed one before that.
    pub half_close: Duration,
    /// Whether what hyper repairs is refused: bare LF, lengths given twice, a fragment in the target.
    pub strict: bool,
    /// Whether the case of field names is kept (costs a second map per message).
    pub preserve_case: bool,
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
            strict: true,
            preserve_case: true,
            refused: None,
        }
    }

    /// For the streams of a tunnel, whose other end is [`crate::pool`]: it outlives that pool's idle time.
    pub fn gate() -> Self {
        Self { keep_alive: Duration::from_secs(180), half_close: Duration::ZERO, strict: false, ..Self::front() }
    }
}

impl fmt::Debug for ServerSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerSettings")
            .field("head_timeout", &self.head_timeout)
            .field("keep_alive", &self.keep_alive)
            .field("max_head", &self.max_head)
            .field("half_close", &self.half_close)
            .field("strict", &self.strict)
            .field("preserve_case", &self.preserve_case)
            .finish_non_exhaustive()
    }
}

/// Serves one connection until it ends. When `drain` completes, the request in flight is finished and the connection
/// closed after it. After a 101 the connection lives on in whoever holds its [`hyper::upgrade::OnUpgrade`].
///
/// Dropping the future, or the caller's going away, drops the service's future and the response's body.
pub async fn serve<Io, S, F>(io: Io, settings: &ServerSettings, service: S, drain: impl Future<Output = ()>)
where
    Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Fn(Request<Body>) -> F,
    F: Future<Output = Result<Response<Body>, Infallible>>,
{
    let bits = Arc::new(AtomicU32::new(0));
    let wire = Served::new(io, bits.clone(), settings);
    let shared = bits.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        shared.fetch_and(!HEAD, Ordering::Relaxed);
        shared.fetch_add(COUNT, Ordering::Relaxed);
        let answering = Flag::raise(&shared, ANSWERING, 0);
        let request = request.map(|body| match Body::from(body) {
            body if http_body::Body::is_end_stream(&body) => body,
            body => body.flagged(Flag::raise(&shared, READING, 0)),
        });
        // In a box: hyper and the block below would each move it.
        let answer = Box::pin(service(request));
        let shared = shared.clone();
        async move {
            let response = answer.await?;
            if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                shared.fetch_or(SWITCHED, Ordering::Relaxed);
            }
            Ok::<_, Infallible>(response.map(|body| body.flagged(answering)))
        }
    });
    // No `header_read_timeout`: hyper's also counts the time between requests, and allocates a timer for each. Not
    // `max_headers`: setting it moves the parser from the stack to the heap. The default is 100.
    let mut connection = Builder::new()
        .auto_date_header(false)
        .header_read_timeout(None)
        .max_buf_size(settings.max_head.max(8192))
        .max_header_size(settings.max_head)
        .preserve_header_case(settings.preserve_case)
        .serve_connection(TokioIo::new(wire), service)
        .with_upgrades();
    let mut drain = pin!(drain);
    let mut is_draining = false;
    let mut sleep = pin!(None);
    let mut last = (bits.load(Ordering::Relaxed), Instant::now());
    let overdue = poll_fn(|cx| {
        if !is_draining && drain.as_mut().poll(cx).is_ready() {
            is_draining = true;
            Pin::new(&mut connection).graceful_shutdown();
        }
        if let Poll::Ready(result) = Pin::new(&mut connection).poll(cx) {
            if let Err(error) = result {
                tracing::debug!(%error, "connection ended");
            }
            return Poll::Ready(None);
        }
        let now = bits.load(Ordering::Relaxed);
        if now & (ANSWERING | READING) != 0 {
            return Poll::Pending;
        }
        if now != last.0 {
            last = (now, Instant::now());
        }
        let limit = if now & HEAD == 0 { settings.keep_alive } else { settings.head_timeout };
        let Some(due) = last.1.checked_add(limit) else { return Poll::Pending };
        if sleep.is_none() {
            sleep.set(Some(sleep_until(due)));
        }
        // Moved forward only when it fires, not at every request.
        while let Some(mut timer) = sleep.as_mut().as_pin_mut() {
            if timer.deadline() > due {
                timer.as_mut().reset(due);
            }
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            if timer.deadline() >= due {
                return Poll::Ready(Some(now & HEAD != 0));
            }
            timer.reset(due);
        }
        Poll::Pending
    })
    .await;
    let Some(is_mid_head) = overdue else { return };
    let Some(parts) = connection.into_parts() else { return };
    let mut io = parts.io.into_inner().into_inner();
    let farewell = async {
        if is_mid_head {
            if let Some(refused) = &settings.refused {
                refused(Reason::RequestTimeout);
            }
            io.write_all(&fault::refusal(Reason::RequestTimeout)).await?;
        }
        io.shutdown().await
    };
    let _ = tokio::time::timeout(LAST_WORDS, farewell).await;
}
