//! Idle HTTP/1.1 connections to one place, over any byte stream: newest first, bounded in number and time.
//!
//! Must never send a request twice: it says what was sent, its caller decides.

use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use http::Request;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use crate::body::Body;
use crate::client::Client;
use crate::exchange::{self, Answer, Deadlines, SendError};
use crate::expect::Gate;
use crate::fault::{Fault, Retry};

/// How to reach the place.
pub trait Opener: Send + Sync + 'static {
    /// The byte stream.
    type Io: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// Opens a stream. Its deadline is the opener's own. Nothing of the request was sent when it fails.
    fn open(&self) -> impl Future<Output = Result<Self::Io, Fault>> + Send;

    /// Names the failure of an exchange on an open stream that has taken bytes of the request. Its `retry` is
    /// [`Retry::Safe`] only if the other side said that it acted on nothing.
    fn lost(&self, lost: Lost<'_>) -> Fault;
}

/// How an exchange failed on an open stream.
#[derive(Debug, Clone, Copy)]
pub enum Lost<'a> {
    /// The stream failed.
    Io(&'a io::Error),
    /// The stream ended before the response did.
    Ended,
    /// What came is not HTTP/1.1.
    Malformed,
    /// No response came in time.
    Silent,
}

/// Limits of a pool.
#[derive(Debug, Clone)]
pub struct PoolSettings {
    /// Idle connections kept at most.
    pub max_idle: usize,
    /// How long one is kept idle. Must be less than the other side's patience.
    pub idle_timeout: Duration,
    /// The largest response head, in bytes; also bounds the buffers of a connection. At least 8 KiB.
    pub max_head: usize,
    /// Whether the case of field names is kept (HTTP/1.1; costs a second map per message).
    pub preserve_case: bool,
}

impl Default for PoolSettings {
    fn default() -> Self {
        Self { max_idle: 256, idle_timeout: Duration::from_secs(60), max_head: 64 * 1024, preserve_case: true }
    }
}

/// Idle connections to one place. Clones share them.
pub struct Pool<O: Opener>(Arc<Inner<O>>);

pub(crate) struct Inner<O: Opener> {
    pub(crate) opener: O,
    settings: PoolSettings,
    closed: AtomicBool,
    /// Oldest first.
    idle: Mutex<Vec<Box<Client<O>>>>,
}

impl<O: Opener> Clone for Pool<O> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<O: Opener> fmt::Debug for Pool<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("idle", &self.idle()).finish_non_exhaustive()
    }
}

impl<O: Opener> Pool<O> {
    /// An empty pool.
    pub fn new(opener: O, settings: PoolSettings) -> Self {
        Self(Arc::new(Inner { opener, settings, closed: AtomicBool::new(false), idle: Mutex::new(Vec::new()) }))
    }

    /// How it reaches the place.
    pub fn opener(&self) -> &O {
        &self.0.opener
    }

    /// Sends one request, on the newest idle connection that is still open or on a new one.
    ///
    /// The request is in its final form ([`crate::request`]). Dropping the future cancels it: the stream is dropped
    /// without a clean end. Dropping the response's body before its end does the same.
    ///
    /// # Errors
    /// [`SendError`]: nothing was answered.
    pub async fn send(&self, mut request: Request<Body>, deadlines: &Deadlines) -> Result<Answer<O::Io>, SendError> {
        let now = Instant::now();
        let gate = Gate::before(&mut request);
        loop {
            let idle = poll_fn(|cx| Poll::Ready(self.0.take(now, cx))).await;
            let is_reused = idle.is_some();
            let client = match idle {
                Some(client) => client,
                None => match self.open().await {
                    Ok(client) => client,
                    Err(fault) => return Err(SendError { fault, request: Some(Box::new(request)) }),
                },
            };
            match exchange::run(client, request, gate.as_ref(), deadlines, now).await {
                // It was closed while it was idle, and has seen nothing of the request.
                Err(SendError { request: Some(back), .. }) if is_reused => request = *back,
                done => return done,
            }
        }
    }

    /// Idle connections held.
    pub fn idle(&self) -> usize {
        self.0.idle().len()
    }

    /// Closes connections that have been idle too long, or that the other side closed. Call it every few seconds.
    pub fn sweep(&self, now: Instant) {
        let mut context = Context::from_waker(Waker::noop());
        let mut gone = Vec::new();
        {
            let mut idle = self.0.idle();
            for mut client in std::mem::take(&mut *idle) {
                if self.0.is_fresh(&client, now) && client.poll_usable(&mut context) {
                    idle.push(client);
                } else {
                    gone.push(client);
                }
            }
        }
        gone.into_iter().for_each(Client::retire);
    }

    /// Closes every idle connection, and those in use when their exchange is over.
    pub fn close(&self) {
        self.0.closed.store(true, Ordering::Relaxed);
        let idle = std::mem::take(&mut *self.0.idle());
        idle.into_iter().for_each(Client::retire);
    }

    async fn open(&self) -> Result<Box<Client<O>>, Fault> {
        let io = self.0.opener.open().await.map_err(|fault| fault.retry(Retry::Safe))?;
        Client::handshake(io, &self.0, &self.0.settings).await
    }
}

impl<O: Opener> Inner<O> {
    /// Keeps a connection whose exchange is over.
    pub(crate) fn put(&self, client: Box<Client<O>>) {
        let mut idle = self.idle();
        if self.closed.load(Ordering::Relaxed) || idle.len() >= self.settings.max_idle {
            drop(idle);
            client.retire();
        } else {
            idle.push(client);
        }
    }

    /// The newest idle connection that is still good.
    fn take(self: &Arc<Self>, now: Instant, cx: &mut Context<'_>) -> Option<Box<Client<O>>> {
        loop {
            let mut client = self.idle().pop()?;
            if self.is_fresh(&client, now) && client.poll_usable(cx) {
                client.pool = Some(self.clone());
                return Some(client);
            }
            client.retire();
        }
    }

    fn is_fresh(&self, client: &Client<O>, now: Instant) -> bool {
        now.saturating_duration_since(client.idle_since) < self.settings.idle_timeout
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Box<Client<O>>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
