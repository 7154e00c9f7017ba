//! The HTTP/2 connections of a pool: each with one small task that moves its bytes.
//!
//! Must never give a connection more exchanges than it may have, or one that is known to be over.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{Builder, SendRequest};
use http::uri::Scheme;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use crate::fault::{Fault, Retry};
use crate::pool::{Inner, Lost, Opener, PoolSettings};
use crate::pulse;
use crate::server::{SMALL_FRAMES, connection_window};
use crate::wire::{Seen, Wire};

/// What of one request waits in memory to be written.
const SEND_BUFFER: usize = 64 * 1024;

/// Connections that have room for an exchange, the newest last.
#[derive(Default)]
pub(crate) struct Lines(Mutex<Vec<Arc<Line>>>);

/// One connection. It ends when the last exchange and the pool have let go of it.
pub(crate) struct Line {
    sender: SendRequest<Bytes>,
    pub(crate) scheme: Scheme,
    most: usize,
    /// Exchanges on it. Changed under the lock of `Lines` only, like the next two.
    open: AtomicU32,
    is_listed: AtomicBool,
    idle_since: Mutex<Instant>,
    is_over: Arc<AtomicBool>,
    seen: Arc<Seen>,
}

/// One exchange's share of a connection, until it is dropped.
pub(crate) struct Turn<O: Opener> {
    line: Arc<Line>,
    pool: Arc<Inner<O>>,
    /// Bytes that the connection had taken when the exchange began.
    baseline: u64,
}

impl Lines {
    /// A share of the newest connection with room.
    pub(crate) fn take(&self, now: Instant, idle: Duration) -> Option<Arc<Line>> {
        let mut lines = self.lock();
        loop {
            let line = lines.last()?.clone();
            let open = line.open.load(Ordering::Relaxed);
            if !line.is_usable() || open == 0 && !line.is_fresh(now, idle) {
                lines.pop();
                line.is_listed.store(false, Ordering::Relaxed);
                continue;
            }
            line.open.store(open + 1, Ordering::Relaxed);
            if usize::try_from(open + 1).unwrap_or(usize::MAX) >= line.room() {
                lines.pop();
                line.is_listed.store(false, Ordering::Relaxed);
            }
            return Some(line);
        }
    }

    /// Adds a new connection, with its first exchange.
    pub(crate) fn add(&self, line: &Arc<Line>) {
        let mut lines = self.lock();
        line.open.store(1, Ordering::Relaxed);
        if line.room() > 1 {
            line.is_listed.store(true, Ordering::Relaxed);
            lines.push(line.clone());
        }
    }

    /// An exchange is over.
    fn give_back(&self, line: &Arc<Line>, most: usize, is_closed: bool) {
        let mut lines = self.lock();
        let open = line.open.load(Ordering::Relaxed).saturating_sub(1);
        line.open.store(open, Ordering::Relaxed);
        if open == 0 {
            *line.idle_since.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        }
        let has_place = !is_closed && lines.len() < most && line.is_usable();
        if has_place && !line.is_listed.swap(true, Ordering::Relaxed) {
            lines.push(line.clone());
        }
    }

    /// Connections without an exchange.
    pub(crate) fn idle(&self) -> usize {
        self.lock().iter().filter(|line| line.open.load(Ordering::Relaxed) == 0).count()
    }

    /// Lets go of those that are over, or idle for too long.
    pub(crate) fn sweep(&self, now: Instant, idle: Duration) {
        let keep = |line: &Arc<Line>| {
            let keep = line.is_usable() && (line.open.load(Ordering::Relaxed) > 0 || line.is_fresh(now, idle));
            line.is_listed.store(keep, Ordering::Relaxed);
            keep
        };
        self.lock().retain(keep);
    }

    /// Lets go of all.
    pub(crate) fn clear(&self) {
        let lines = std::mem::take(&mut *self.lock());
        lines.iter().for_each(|line| line.is_listed.store(false, Ordering::Relaxed));
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Line>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Line {
    /// Begins HTTP/2 on a stream.
    ///
    /// # Errors
    /// The stream failed, or could not take the first bytes.
    pub(crate) async fn begin<Io>(io: Io, settings: &PoolSettings, scheme: Scheme) -> Result<Arc<Self>, h2::Error>
    where
        Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let seen = Arc::<Seen>::default();
        let window = connection_window(settings.window, settings.exchanges_per_connection);
        let most = usize::try_from(settings.exchanges_per_connection.max(1)).unwrap_or(usize::MAX);
        let (sender, mut connection) = Builder::new()
            .enable_push(false)
            .initial_window_size(settings.window)
            .initial_connection_window_size(window)
            .initial_max_send_streams(most)
            .max_header_list_size(u32::try_from(settings.max_head).unwrap_or(u32::MAX))
            .max_send_buffer_size(SEND_BUFFER)
            .data_frame_budget(SMALL_FRAMES.max(usize::try_from(window / 2).unwrap_or(usize::MAX)))
            .handshake::<_, Bytes>(Wire::new(io, seen.clone()))
            .await?;
        let (watched, is_over) = (seen.clone(), Arc::new(AtomicBool::new(false)));
        let over = is_over.clone();
        // A tunnel's stream ends with its tunnel, which has a pulse of its own.
        let ping = if settings.exchanges_per_connection > 1 { connection.ping_pong() } else { None };
        tokio::spawn(async move {
            let pulse = async {
                match ping {
                    Some(ping) => pulse::gone(ping, &watched).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                ended = connection => {
                    if let Err(error) = ended {
                        tracing::debug!(%error, "connection ended");
                    }
                }
                () = pulse => {
                    tracing::debug!("the other side of a connection is gone without a word");
                    watched.fail(io::ErrorKind::TimedOut.into());
                }
            }
            over.store(true, Ordering::Relaxed);
        });
        Ok(Arc::new(Self {
            sender,
            scheme,
            most,
            open: AtomicU32::new(0),
            is_listed: AtomicBool::new(false),
            idle_since: Mutex::new(Instant::now()),
            is_over,
            seen,
        }))
    }

    /// A handle that can send one request.
    pub(crate) fn sender(&self) -> SendRequest<Bytes> {
        self.sender.clone()
    }

    /// Whether neither side has ended it, as far as is known.
    fn is_usable(&self) -> bool {
        !self.is_over.load(Ordering::Relaxed)
            && matches!(self.sender().poll_ready(&mut Context::from_waker(Waker::noop())), Poll::Ready(Ok(())))
    }

    fn is_fresh(&self, now: Instant, idle: Duration) -> bool {
        now.saturating_duration_since(*self.idle_since.lock().unwrap_or_else(PoisonError::into_inner)) < idle
    }

    /// How many exchanges at once both sides want on it. A peer that wants none gets one, which it may refuse.
    fn room(&self) -> usize {
        self.most.min(self.sender.current_max_send_streams()).max(1)
    }
}

impl<O: Opener> Turn<O> {
    pub(crate) fn new(line: Arc<Line>, pool: Arc<Inner<O>>) -> Self {
        let baseline = line.seen.written();
        Self { line, pool, baseline }
    }

    pub(crate) fn line(&self) -> &Line {
        &self.line
    }

    /// Names the failure of the exchange, and says whether the request may go elsewhere.
    pub(crate) fn fault(&self, error: &h2::Error) -> Fault {
        let fault = if error.is_remote() && (error.is_go_away() || error.reason() == Some(h2::Reason::REFUSED_STREAM)) {
            // Of the streams that a GOAWAY ends the other side has acted on nothing (RFC 9113 §6.8, §8.7).
            self.name(Lost::Refused)
        } else if error.is_remote() {
            self.name(Lost::Reset(error.reason().map_or(0, u32::from)))
        } else if error.is_io() {
            self.line.seen.with_error(|io| match io {
                Some(io) => self.name(Lost::Io(io)),
                None => self.name(Lost::Ended),
            })
        } else {
            self.name(Lost::Malformed)
        };
        if fault.detail().is_some() { fault } else { fault.log(error) }
    }

    pub(crate) fn name(&self, lost: Lost<'_>) -> Fault {
        let fault = self.pool.opener.lost(lost);
        if self.line.seen.written() == self.baseline { fault.retry(Retry::Safe) } else { fault }
    }
}

impl<O: Opener> Drop for Turn<O> {
    fn drop(&mut self) {
        self.pool.lines.give_back(&self.line, self.pool.settings.max_idle, self.pool.is_closed());
    }
}
