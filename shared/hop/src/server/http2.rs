//! One HTTP/2 connection: accepts its streams, runs their exchanges, and ends.
//!
//! Must never let one stream's exchange hold up another's, nor a peer cost more than its ledger allows.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, Stream as _};
use h2::Reason;
use h2::server::Builder;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep_until, timeout};

use super::ledger::{Booked, Ledger};
use super::{LAST_WORDS, ServerSettings, stream};
use crate::body::Body;
use crate::message::{Request, Response};

/// What of one answer waits in memory to be written.
const SEND_BUFFER: usize = 64 * 1024;
/// Resets that a peer may make us send before the connection ends (MadeYouReset), refused streams included.
const PROVOKED_RESETS: usize = 256;
/// Requests in one read that are taken back in it; what happens over time the ledger knows.
const TAKEN_BACK: usize = 100;
/// For each byte that a small DATA frame is shorter than 256: so much memory may be lost to frames that wait for their
/// reader. 256 KiB of frames of 16 bytes fit.
pub(crate) const SMALL_FRAMES: usize = 8 * 1024 * 1024;

/// Serves until the connection ends. `first` was read from `io` before.
pub(super) async fn serve<Io, S, F>(
    io: Io,
    first: Bytes,
    settings: &ServerSettings,
    service: &S,
    mut drain: Pin<&mut impl Future<Output = ()>>,
) where
    Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Fn(Request<Body>) -> F,
    F: Future<Output = Result<Response<Body>, Infallible>>,
{
    let ledger = Arc::new(Ledger::new(settings.max_streams, settings.is_own));
    let wire = Booked::new(io, first, ledger.clone(), Instant::now());
    let window = connection_window(settings.window, settings.max_streams);
    let handshake = Builder::new()
        .initial_window_size(settings.window)
        .initial_connection_window_size(window)
        .max_concurrent_streams(settings.max_streams)
        // h2 refuses without a name: whoever serves has room to refuse what is over the limit with one.
        .max_header_list_size(u32::try_from(settings.max_head.saturating_mul(2)).unwrap_or(u32::MAX))
        .max_send_buffer_size(SEND_BUFFER)
        .max_pending_accept_reset_streams(TAKEN_BACK)
        .max_local_error_reset_streams(Some(PROVOKED_RESETS))
        .data_frame_budget(SMALL_FRAMES.max(usize::try_from(window / 2).unwrap_or(usize::MAX)))
        .enable_connect_protocol()
        .handshake::<_, Bytes>(wire);
    let mut connection = match timeout(settings.head_timeout, handshake).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return tracing::debug!(%error, "connection ended before its preface was whole"),
        Err(_) => return tracing::debug!("no preface came in time"),
    };
    let mut running = FuturesUnordered::new();
    let mut is_draining = false;
    let mut closing = Closing::No;
    let mut idle_since = Instant::now();
    let mut sleep = pin!(sleep_until(idle_since));
    poll_fn(|cx| {
        if !is_draining && drain.as_mut().poll(cx).is_ready() {
            is_draining = true;
            if closing == Closing::No {
                closing = Closing::Gracefully;
                connection.graceful_shutdown();
            }
        }
        let mut was_idle = running.is_empty();
        loop {
            while let Poll::Ready(Some(())) = Pin::new(&mut running).poll_next(cx) {}
            match connection.poll_accept(cx) {
                Poll::Ready(Some(Ok((request, respond)))) => {
                    was_idle = false;
                    running.push(stream::exchange(request, respond, service, settings, &ledger));
                }
                Poll::Ready(Some(Err(error))) => {
                    tracing::debug!(%error, "connection ended");
                    return Poll::Ready(());
                }
                Poll::Ready(None) => return Poll::Ready(()),
                Poll::Pending => {
                    if !ledger.is_spent() || closing == Closing::AtOnce {
                        break;
                    }
                    tracing::debug!("a caller asks for too much that it does not use");
                    closing = Closing::AtOnce;
                    connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
                    idle_since = Instant::now();
                }
            }
        }
        if !running.is_empty() && closing != Closing::AtOnce {
            return Poll::Pending;
        }
        if !was_idle && closing != Closing::AtOnce {
            idle_since = Instant::now();
        }
        loop {
            let limit = if closing == Closing::No { settings.keep_alive } else { LAST_WORDS };
            let Some(due) = idle_since.checked_add(limit) else { return Poll::Pending };
            if sleep.deadline() != due {
                sleep.as_mut().reset(due);
            }
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            if closing != Closing::No {
                // The other side does not hang up.
                return Poll::Ready(());
            }
            closing = Closing::Gracefully;
            connection.graceful_shutdown();
            idle_since = Instant::now();
            cx.waker().wake_by_ref();
        }
    })
    .await;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Closing {
    No,
    /// What runs may finish.
    Gracefully,
    AtOnce,
}

/// Room for all streams of a connection to stand still at once.
pub(crate) fn connection_window(window: u32, streams: u32) -> u32 {
    /// RFC 9113 §6.9.1.
    const MOST: u32 = (1 << 31) - 1;
    window.saturating_mul(streams.max(1)).clamp(65_535, MOST)
}
