//! What follows a 101: raw bytes both ways until one side is done, idle, or has to go.
//!
//! Must never look into the bytes beyond the lengths of WebSocket frames.

use std::future::{Future, poll_fn};
use std::io;
use std::mem::MaybeUninit;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http::HeaderValue;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

use crate::stream::RawStream;
use crate::websocket::{CLOSE_RESTART, Frames};

/// How long a connection that has to go may take to finish a frame, and to be told.
pub const FAREWELL: Duration = Duration::from_secs(3);

/// Read at once; on the stack, so that an idle connection holds no buffer.
const SCRATCH: usize = 16 * 1024;
/// Reads in a row before other tasks get their turn.
const BURST: usize = 32;

/// The caller's connection, once it was told of the change of protocol. Clones share it; one of them gets it.
#[derive(Clone)]
pub struct OnUpgrade(On);

#[derive(Clone)]
enum On {
    /// All of an HTTP/1.1 connection.
    Http1(Later<Caller>),
    /// One stream of an HTTP/2 connection.
    Http2(Later<RawStream>),
}

/// What is handed over later, once.
type Later<T> = Arc<Mutex<Option<oneshot::Receiver<T>>>>;

/// Any byte stream.
trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<Io: AsyncRead + AsyncWrite + Send + Unpin> Duplex for Io {}

/// A caller's HTTP/1.1 connection, and what was read of it past the head.
type Caller = (Box<dyn Duplex>, Bytes);

/// Hands over a connection that was switched.
pub(crate) struct Switched(oneshot::Sender<Caller>);

impl Switched {
    pub(crate) fn switch<Io: AsyncRead + AsyncWrite + Send + Unpin + 'static>(self, io: Io, first: Bytes) {
        // Nobody waits for it: it is dropped, and so closed.
        let _ = self.0.send((Box::new(io), first));
    }
}

impl OnUpgrade {
    /// A stream that is handed over later.
    pub(crate) fn stream() -> (oneshot::Sender<RawStream>, Self) {
        let (sender, receiver) = oneshot::channel();
        (sender, Self(On::Http2(Arc::new(Mutex::new(Some(receiver))))))
    }

    /// A connection that is handed over later.
    pub(crate) fn connection() -> (Switched, Self) {
        let (sender, receiver) = oneshot::channel();
        (Switched(sender), Self(On::Http1(Arc::new(Mutex::new(Some(receiver))))))
    }
}

impl std::fmt::Debug for OnUpgrade {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OnUpgrade").finish_non_exhaustive()
    }
}

/// A connection after its 101, with the bytes that were read past the head.
#[derive(Debug)]
pub struct Raw<Io> {
    /// The connection.
    pub io: Io,
    /// Read, not yet used.
    pub first: Bytes,
}

/// What is spoken after the 101.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// WebSocket: ended by a Close frame 1012 at a frame boundary.
    WebSocket,
    /// Anything else: ended by dropping both connections.
    Other,
}

impl Protocol {
    /// From the value of `Upgrade`.
    pub fn of(upgrade: &HeaderValue) -> Self {
        if upgrade.as_bytes().trim_ascii().eq_ignore_ascii_case(b"websocket") { Self::WebSocket } else { Self::Other }
    }
}

/// How an upgraded connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spliced {
    /// Both sides were done.
    Done,
    /// Nothing passed for the idle time.
    Idle,
    /// The end signal came.
    Ended,
    /// A side broke off.
    Broken,
}

/// Bytes that passed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Passed {
    /// From the caller to the origin.
    pub up: u64,
    /// From the origin to the caller.
    pub down: u64,
}

/// Passes bytes both ways between the caller's connection and the origin's, with half-close, until both are done,
/// nothing passed for `idle`, or `end` completes. Not cleanly ended, both connections are dropped: a reset.
pub async fn splice<Io>(
    caller: OnUpgrade,
    origin: Raw<Io>,
    protocol: Protocol,
    idle: Duration,
    end: impl Future<Output = ()> + Send,
) -> (Spliced, Passed)
where
    Io: AsyncRead + AsyncWrite + Unpin + Send,
{
    match caller.0 {
        On::Http1(caller) => {
            if let Some((io, first)) = handed_over(&caller).await {
                return splice_both(Raw { io, first }, origin, protocol, idle, end).await;
            }
        }
        On::Http2(caller) => {
            if let Some(caller) = handed_over(&caller).await {
                return splice_io(caller, origin, protocol, idle, end).await;
            }
        }
    }
    (Spliced::Broken, Passed::default())
}

async fn handed_over<T>(later: &Later<T>) -> Option<T> {
    let receiver = later.lock().unwrap_or_else(PoisonError::into_inner).take()?;
    receiver.await.ok()
}

/// [`splice`] with the caller's connection at hand.
pub async fn splice_io<Caller, Io>(
    caller: Caller,
    origin: Raw<Io>,
    protocol: Protocol,
    idle: Duration,
    end: impl Future<Output = ()> + Send,
) -> (Spliced, Passed)
where
    Caller: AsyncRead + AsyncWrite + Unpin + Send,
    Io: AsyncRead + AsyncWrite + Unpin + Send,
{
    splice_both(Raw { io: caller, first: Bytes::new() }, origin, protocol, idle, end).await
}

async fn splice_both<Caller, Io>(
    caller: Raw<Caller>,
    origin: Raw<Io>,
    protocol: Protocol,
    idle: Duration,
    end: impl Future<Output = ()> + Send,
) -> (Spliced, Passed)
where
    Caller: AsyncRead + AsyncWrite + Unpin + Send,
    Io: AsyncRead + AsyncWrite + Unpin + Send,
{
    let Raw { io: mut caller, first: sent } = caller;
    let Raw { io: mut origin, first } = origin;
    let mut up = Pipe::new(sent, false);
    let mut down = Pipe::new(first, protocol == Protocol::WebSocket);
    let mut end = pin!(end);
    let mut last = Instant::now();
    let mut seen = 0;
    let mut sleep = pin!(None);
    let spliced = poll_fn(|cx| {
        let upward = up.poll(&mut caller, &mut origin, cx);
        let downward = down.poll(&mut origin, &mut caller, cx);
        match (upward, downward) {
            (Poll::Ready(Err(_)), _) | (_, Poll::Ready(Err(_))) => return Poll::Ready(Spliced::Broken),
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => return Poll::Ready(Spliced::Done),
            _ => {}
        }
        if end.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Spliced::Ended);
        }
        if up.passed + down.passed != seen || sleep.is_none() {
            seen = up.passed + down.passed;
            last = Instant::now();
        }
        let Some(due) = last.checked_add(idle) else { return Poll::Pending };
        if sleep.is_none() {
            sleep.set(Some(sleep_until(due)));
        }
        // Moved only when it fires, not at every byte.
        while let Some(mut timer) = sleep.as_mut().as_pin_mut() {
            ready!(timer.as_mut().poll(cx));
            if timer.deadline() >= due {
                return Poll::Ready(Spliced::Idle);
            }
            timer.reset(due);
        }
        Poll::Pending
    })
    .await;
    let passed = Passed { up: up.passed, down: down.passed };
    if protocol == Protocol::WebSocket && spliced == Spliced::Ended && !down.is_shut {
        let _ = tokio::time::timeout(FAREWELL, down.take_leave(&mut origin, &mut caller)).await;
    }
    (spliced, passed)
}

/// One direction.
struct Pipe {
    /// Read, not yet written.
    held: Bytes,
    frames: Option<Frames>,
    passed: u64,
    is_read: bool,
    is_dirty: bool,
    is_shut: bool,
}

impl Pipe {
    fn new(first: Bytes, is_websocket: bool) -> Self {
        let frames = is_websocket.then(Frames::default);
        Self { held: first, frames, passed: 0, is_read: false, is_dirty: false, is_shut: false }
    }

    /// Ready when the reader has ended and the writer was told.
    fn poll<R, W>(&mut self, reader: &mut R, writer: &mut W, cx: &mut Context<'_>) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        for _ in 0..BURST {
            if self.is_shut {
                return Poll::Ready(Ok(()));
            }
            let all = self.held.len();
            ready!(self.poll_write(writer, all, cx))?;
            if self.is_read {
                ready!(Pin::new(&mut *writer).poll_shutdown(cx))?;
                self.is_shut = true;
                continue;
            }
            let mut scratch = [const { MaybeUninit::uninit() }; SCRATCH];
            let mut scratch = ReadBuf::uninit(&mut scratch);
            match Pin::new(&mut *reader).poll_read(cx, &mut scratch) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    if self.is_dirty && Pin::new(&mut *writer).poll_flush(cx)?.is_ready() {
                        self.is_dirty = false;
                    }
                    return Poll::Pending;
                }
            }
            let mut read = scratch.filled();
            self.is_read = read.is_empty();
            while !read.is_empty() {
                match Pin::new(&mut *writer).poll_write(cx, read) {
                    Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    Poll::Ready(Ok(taken)) => {
                        let (written, rest) = read.split_at(taken.min(read.len()));
                        self.wrote(written);
                        read = rest;
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => {
                        self.held = Bytes::copy_from_slice(read);
                        return Poll::Pending;
                    }
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Writes `bytes` of what is held.
    fn poll_write<W>(&mut self, writer: &mut W, mut bytes: usize, cx: &mut Context<'_>) -> Poll<io::Result<()>>
    where
        W: AsyncWrite + Unpin,
    {
        while bytes > 0
            && let Some(part) = self.held.get(..bytes)
        {
            let taken = ready!(Pin::new(&mut *writer).poll_write(cx, part))?.min(bytes);
            if taken == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            let written = self.held.slice(..taken);
            self.wrote(&written);
            self.held.advance(taken);
            bytes -= taken;
        }
        Poll::Ready(Ok(()))
    }

    fn wrote(&mut self, written: &[u8]) {
        self.is_dirty = true;
        self.passed += u64::try_from(written.len()).unwrap_or(u64::MAX);
        if let Some(frames) = &mut self.frames {
            frames.pass(written);
        }
    }

    /// Finishes the frame that is under way, says goodbye, and waits until the other side has heard it.
    async fn take_leave<R, W>(&mut self, reader: &mut R, writer: &mut W) -> io::Result<()>
    where
        R: AsyncRead + Unpin,
        W: AsyncRead + AsyncWrite + Unpin,
    {
        loop {
            let Some(frames) = self.frames else { return Ok(()) };
            if frames.is_between() {
                break;
            }
            if self.held.is_empty() {
                let mut more = vec![0; SCRATCH];
                let read = tokio::io::AsyncReadExt::read(reader, &mut more).await?;
                if read == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                more.truncate(read);
                self.held = more.into();
            }
            let rest = frames.left_of_frame(&self.held);
            poll_fn(|cx| self.poll_write(writer, rest, cx)).await?;
        }
        tokio::io::AsyncWriteExt::write_all(writer, &CLOSE_RESTART).await?;
        tokio::io::AsyncWriteExt::shutdown(writer).await?;
        // A connection that is closed with bytes unread is reset, and the goodbye with it.
        tokio::io::copy(writer, &mut tokio::io::sink()).await.map(drop)
    }
}
