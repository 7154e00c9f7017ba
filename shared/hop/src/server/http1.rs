//! One HTTP/1.1 connection. Hands the byte stream back when its first bytes turn out to be HTTP/2's.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::Poll;

use bytes::Bytes;
use culvert_model::reason::Reason;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1::Builder;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, sleep_until};

use super::{LAST_WORDS, ServerSettings};
use crate::body::{Body, Flag};
use crate::fault;
use crate::served::{ANSWERING, COUNT, HEAD, HTTP2, READING, SWITCHED, Served};

/// Serves until the connection ends; the stream and what was read of it if HTTP/2 is spoken on it.
pub(super) async fn serve<Io, S, F>(
    io: Io,
    settings: &ServerSettings,
    service: &S,
    mut drain: Pin<&mut impl Future<Output = ()>>,
) -> Option<(Io, Bytes)>
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
    let mut is_draining = false;
    let mut sleep = pin!(None);
    let mut last = (bits.load(Ordering::Relaxed), Instant::now());
    let end = poll_fn(|cx| {
        if !is_draining && drain.as_mut().poll(cx).is_ready() {
            is_draining = true;
            Pin::new(&mut connection).graceful_shutdown();
        }
        if let Poll::Ready(result) = Pin::new(&mut connection).poll(cx) {
            if let Err(error) = result {
                tracing::debug!(%error, "connection ended");
            }
            return Poll::Ready(End::Over);
        }
        let now = bits.load(Ordering::Relaxed);
        if now & (ANSWERING | READING) != 0 {
            return Poll::Pending;
        }
        if now & HTTP2 != 0 {
            return Poll::Ready(End::Http2);
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
                return Poll::Ready(End::Overdue { is_mid_head: now & HEAD != 0 });
            }
            timer.reset(due);
        }
        Poll::Pending
    })
    .await;
    let (End::Http2 | End::Overdue { .. }) = end else { return None };
    let served = connection.into_parts()?.io.into_inner();
    let is_mid_head = match end {
        End::Over => return None,
        End::Http2 => return Some(served.into_begun()),
        End::Overdue { is_mid_head } => is_mid_head,
    };
    let mut io = served.into_inner();
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
    None
}

enum End {
    /// Whichever way.
    Over,
    /// Its first bytes are HTTP/2's preface.
    Http2,
    /// No request, or not all of a head, in time.
    Overdue { is_mid_head: bool },
}
