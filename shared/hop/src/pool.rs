//! Connections to one place, over any byte stream: newest first, bounded in number and time.
//!
//! Must never send a request twice: it says what was sent, its caller decides.

use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use culvert_model::reason::Reason;
use http::header::UPGRADE;
use http::uri::Scheme;
use http_body::Body as _;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use crate::body::Body;
use crate::client::Client;
use crate::exchange::{self, Answer, Deadlines, SendError};
use crate::expect::Gate;
use crate::fault::{Fault, Retry, Side};
use crate::http2;
use crate::lines::{Line, Lines, Turn};
use crate::message::Request;
use crate::multiplexed;

/// How to reach the place.
pub trait Opener: Send + Sync + 'static {
    /// The byte stream.
    type Io: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// Opens a stream. Its deadline is the opener's own. Nothing of the request was sent when it fails.
    fn open(&self) -> impl Future<Output = Result<Self::Io, Fault>> + Send;

    /// Opens a stream on which HTTP/1.1 is spoken, because the request asks for a change of protocol.
    fn open_http1(&self) -> impl Future<Output = Result<Self::Io, Fault>> + Send {
        self.open()
    }

    /// Whether the stream's ends have agreed on HTTP/2 (true) or HTTP/1.1 (false) by ALPN, and so on TLS. None: nobody
    /// asked, [`PoolSettings::http2`] decides.
    fn is_http2(_io: &Self::Io) -> Option<bool> {
        None
    }

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
    /// What came is not HTTP.
    Malformed,
    /// No response came in time.
    Silent,
    /// The other side says that it has acted on nothing of the request (HTTP/2: REFUSED_STREAM, GOAWAY).
    Refused,
    /// The other side reset the stream with this code (HTTP/2).
    Reset(u32),
}

/// Which version of HTTP a pool speaks where the stream does not tell ([`Opener::is_http2`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speak {
    /// That of the request.
    AsAsked,
    /// HTTP/2, by prior knowledge.
    Always,
    /// HTTP/1.1.
    Never,
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
    /// The version spoken.
    pub http2: Speak,
    /// HTTP/2: exchanges at once on a connection; less if the other side wants less.
    pub exchanges_per_connection: u32,
    /// HTTP/2: how much of a response's body may come before it is read. A connection's window is
    /// `exchanges_per_connection` times as much, so that a stream which is not read costs no other its window.
    pub window: u32,
}

impl Default for PoolSettings {
    fn default() -> Self {
        Self {
            max_idle: 256,
            idle_timeout: Duration::from_secs(60),
            max_head: 64 * 1024,
            http2: Speak::Never,
            exchanges_per_connection: 1,
            window: 256 * 1024,
        }
    }
}

/// Idle connections to one place. Clones share them.
pub struct Pool<O: Opener>(Arc<Inner<O>>);

pub(crate) struct Inner<O: Opener> {
    pub(crate) opener: O,
    pub(crate) settings: PoolSettings,
    closed: AtomicBool,
    /// Of HTTP/1.1. Oldest first.
    idle: Mutex<Vec<Box<Client<O>>>>,
    /// Of HTTP/2.
    pub(crate) lines: Lines,
    /// The other side has agreed on HTTP/2 before.
    has_agreed: AtomicBool,
    /// Held by whoever opens a connection that others wait to share.
    opening: tokio::sync::Mutex<()>,
    /// When opening failed last, and how.
    failed: Mutex<Option<(Instant, Reason, Side)>>,
}

/// What a request can go over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    /// HTTP/1.1; on a new stream HTTP/2, if its ends agree on it.
    Http1,
    /// HTTP/1.1 and nothing else.
    Http1Only,
    Http2,
}

enum Opened<O: Opener> {
    Http1(Box<Client<O>>),
    Http2(Turn<O>),
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
        Self(Arc::new(Inner {
            opener,
            settings,
            closed: AtomicBool::new(false),
            idle: Mutex::new(Vec::new()),
            lines: Lines::default(),
            has_agreed: AtomicBool::new(false),
            opening: tokio::sync::Mutex::new(()),
            failed: Mutex::new(None),
        }))
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
        let version = self.0.version(&request);
        if version == Version::Http2 {
            return Box::pin(self.send_http2(None, request, gate, deadlines, now)).await;
        }
        if request.version() == http::Version::HTTP_2 {
            request = dressed(request);
        }
        loop {
            let idle = poll_fn(|cx| Poll::Ready(self.0.take(now, cx))).await;
            let is_reused = idle.is_some();
            let client = match idle {
                Some(client) => client,
                // In a box: most requests find a connection, and their futures need no room to open one.
                None => match Box::pin(self.open(version)).await {
                    Ok(Opened::Http1(client)) => client,
                    Ok(Opened::Http2(turn)) => {
                        return Box::pin(self.send_http2(Some(turn), request, gate, deadlines, now)).await;
                    }
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

    /// [`Pool::send`] over HTTP/2, first on the new connection of `turn`.
    async fn send_http2(
        &self,
        mut turn: Option<Turn<O>>,
        mut request: Request<Body>,
        gate: Option<Arc<Gate>>,
        deadlines: &Deadlines,
        now: Instant,
    ) -> Result<Answer<O::Io>, SendError> {
        loop {
            let mut is_reused = false;
            let share = match turn.take() {
                Some(turn) => turn,
                None => match self.share(now, &mut is_reused).await {
                    Ok(Opened::Http2(turn)) => turn,
                    Ok(Opened::Http1(client)) => {
                        return exchange::run(client, dressed(request), gate.as_ref(), deadlines, now).await;
                    }
                    Err(fault) => return Err(SendError { fault, request: Some(Box::new(request)) }),
                },
            };
            match multiplexed::run(share, request, gate.as_ref(), deadlines, now).await {
                // It has ended meanwhile, and has seen nothing of the request.
                Err(SendError { request: Some(back), .. }) if is_reused => request = *back,
                done => return done,
            }
        }
    }

    /// A share of a connection: of one that is there, or a new one. Those who wait for a new one share it.
    async fn share(&self, now: Instant, is_reused: &mut bool) -> Result<Opened<O>, Fault> {
        let mut take = || {
            let line = self.0.lines.take(now, self.0.settings.idle_timeout)?;
            *is_reused = true;
            Some(Opened::Http2(Turn::new(line, self.0.clone())))
        };
        if let Some(share) = take() {
            return Ok(share);
        }
        if self.0.settings.exchanges_per_connection <= 1 {
            return self.open(Version::Http2).await;
        }
        let began = Instant::now();
        let _opening = self.0.opening.lock().await;
        if let Some(share) = take() {
            return Ok(share);
        }
        let failed = || self.0.failed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, reason, side)) = failed().filter(|(at, ..)| *at > began) {
            return Err(Fault::new(reason).side(side).retry(Retry::Safe).log("as another request found just now"));
        }
        let opened = self.open(Version::Http2).await;
        *failed() = opened.as_ref().err().map(|fault| (Instant::now(), fault.reason, fault.side));
        opened
    }

    /// Idle connections held.
    pub fn idle(&self) -> usize {
        self.0.idle().len() + self.0.lines.idle()
    }

    /// Closes connections that have been idle too long, or that the other side closed. Call it every few seconds.
    pub fn sweep(&self, now: Instant) {
        let mut context = Context::from_waker(Waker::noop());
        let mut gone = Vec::new();
        {
            let mut idle = self.0.idle();
            for mut client in std::mem::take(&mut *idle) {
                if self.0.is_fresh(&client, now) && client.is_usable(&mut context) {
                    idle.push(client);
                } else {
                    gone.push(client);
                }
            }
        }
        gone.into_iter().for_each(Client::retire);
        self.0.lines.sweep(now, self.0.settings.idle_timeout);
    }

    /// Closes every idle connection, and those in use when their exchange is over.
    pub fn close(&self) {
        self.0.closed.store(true, Ordering::Relaxed);
        let idle = std::mem::take(&mut *self.0.idle());
        idle.into_iter().for_each(Client::retire);
        self.0.lines.clear();
    }

    async fn open(&self, version: Version) -> Result<Opened<O>, Fault> {
        let opened = match version {
            Version::Http1Only => self.0.opener.open_http1().await,
            Version::Http1 | Version::Http2 => self.0.opener.open().await,
        };
        let io = opened.map_err(|fault| fault.retry(Retry::Safe))?;
        let agreed = O::is_http2(&io);
        if agreed.is_some() && version != Version::Http1Only {
            self.0.has_agreed.store(agreed == Some(true), Ordering::Relaxed);
        }
        if version != Version::Http1Only && agreed.unwrap_or(version == Version::Http2) {
            return Box::pin(self.begin_http2(io, agreed.is_some())).await.map(Opened::Http2);
        }
        Ok(Opened::Http1(Client::new(io, &self.0, &self.0.settings, Instant::now())))
    }

    async fn begin_http2(&self, io: O::Io, is_tls: bool) -> Result<Turn<O>, Fault> {
        let scheme = if is_tls { Scheme::HTTPS } else { Scheme::HTTP };
        match Line::begin(io, &self.0.settings, scheme).await {
            Ok(line) => {
                self.0.lines.add(&line);
                Ok(Turn::new(line, self.0.clone()))
            }
            Err(error) => Err(self.0.opener.lost(Lost::Ended).retry(Retry::Safe).log(error)),
        }
    }
}

impl<O: Opener> Inner<O> {
    fn version(&self, request: &Request<Body>) -> Version {
        if request.headers().contains_key(UPGRADE) {
            return Version::Http1Only;
        }
        let is_http2 = match self.settings.http2 {
            Speak::AsAsked => request.version() == http::Version::HTTP_2,
            Speak::Always => true,
            Speak::Never => self.has_agreed.load(Ordering::Relaxed),
        };
        if is_http2 { Version::Http2 } else { Version::Http1 }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

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
            if self.is_fresh(&client, now) && client.is_usable(cx) {
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

/// An HTTP/2 request as HTTP/1.1.
fn dressed(request: Request<Body>) -> Request<Body> {
    let (mut parts, body) = request.into_parts();
    http2::for_http1(&mut parts, body.is_end_stream());
    Request::from_parts(parts, body)
}
