//! The one body type of every hop: streamed with back-pressure, counted, with deadlines, and with an end that is told.
//!
//! Must never end cleanly when what it reads was cut short.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use culvert_model::reason::Reason;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::Instant;

use crate::alarm::Alarm;
use crate::fault::{Fault, Side};
use crate::server::Received;
use crate::stream::Inbound;

/// What a boxed body may fail with.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A request's or response's body. Its error is a [`Fault`]: it was not whole, and why.
pub struct Body {
    kind: Kind,
    /// What has to know that the body is there, and waited for: the connection it came on, and the one it goes to.
    flags: [Option<Flag>; 2],
    watch: Option<Box<Watch>>,
}

/// How a body ended and how much of it passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ending {
    /// Bytes of data, without framing and trailers.
    pub bytes: u64,
    /// How.
    pub outcome: Outcome,
}

/// How a body ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// With its last byte, or trailers.
    Whole,
    /// By an error on the side that it comes from, or a deadline.
    Cut(Reason),
    /// Nobody wanted the rest.
    Dropped,
}

/// Drives the connection that a response's body comes on.
pub(crate) trait Drive: Send {
    /// The body's next frame, or why it ended early.
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>>;

    /// How much is to come, of a body that said so.
    fn left(&self) -> Option<u64>;

    /// Whether nothing is to come.
    fn is_over(&self) -> bool;

    /// The body is over: the connection may be used again.
    fn finish(self: Box<Self>);
}

/// Set while a request's body is not fully taken.
pub(crate) const UPLOADING: u32 = 1;
/// Set while a request's body is waited for: its sender is slow, not the receiver.
pub(crate) const STARVED: u32 = 2;

/// A bit that is set while a body lives, and one that is set while somebody waits for its next bytes.
pub(crate) struct Flag {
    bits: Arc<AtomicU32>,
    live: u32,
    starved: u32,
}

enum Kind {
    Empty,
    Full(Bytes),
    /// A request's, on an HTTP/1.1 connection.
    Received(Received),
    /// A response's, on an HTTP/1.1 connection.
    Answer(Box<dyn Drive>),
    /// Of either side, on an HTTP/2 stream.
    Stream(Box<Inbound>),
    Boxed(Pin<Box<dyn HttpBody<Data = Bytes, Error = Fault> + Send>>),
    /// It fails with this at the next poll.
    Doomed(Fault),
    /// It failed: there is nothing more, but that is no clean end.
    Failed,
}

#[derive(Default)]
struct Watch {
    passed: u64,
    counter: Option<Arc<AtomicU64>>,
    limit: Option<u64>,
    idle: Option<(Duration, Reason)>,
    deadline: Option<Instant>,
    /// When the current wait began; none while bytes flow.
    waiting: Option<Instant>,
    alarm: Alarm,
    end: Option<Box<dyn FnOnce(Ending) + Send>>,
}

impl Body {
    /// No body.
    pub const fn empty() -> Self {
        Self::of(Kind::Empty)
    }

    /// These bytes.
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Self::of(if bytes.is_empty() { Kind::Empty } else { Kind::Full(bytes) })
    }

    /// Any other body.
    pub fn boxed<B>(body: B) -> Self
    where
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        Self::wrap(Named(Box::pin(body)))
    }

    /// Adds the bytes of data that pass to `counter`.
    #[must_use]
    pub fn counted(mut self, counter: Arc<AtomicU64>) -> Self {
        self.watch().counter = Some(counter);
        self
    }

    /// Fails the body with `too_large` past so many bytes, or at once if it says that it is longer.
    #[must_use]
    pub fn limited(mut self, bytes: u64) -> Self {
        self.watch().limit = Some(bytes);
        self
    }

    /// Fails the body with `reason` when nothing arrives for so long while it is waited for.
    #[must_use]
    pub fn idle_timeout(mut self, idle: Duration, reason: Reason) -> Self {
        self.watch().idle = Some((idle, reason));
        self
    }

    /// Fails the body with `deadline` when it is waited for past this moment.
    #[must_use]
    pub fn deadline(mut self, deadline: Instant) -> Self {
        self.watch().deadline = Some(deadline);
        self
    }

    /// Calls `end` once: when the body ended, failed, or was dropped. A second `on_end` is called before the first.
    #[must_use]
    pub fn on_end(mut self, end: impl FnOnce(Ending) + Send + 'static) -> Self {
        let watch = self.watch();
        watch.end = Some(match watch.end.take() {
            None => Box::new(end),
            Some(first) => Box::new(move |ending| {
                end(ending);
                first(ending);
            }),
        });
        self
    }

    /// Reads it all, at most `limit` bytes. Trailers are dropped.
    ///
    /// # Errors
    /// The body's fault, or `too_large`.
    pub async fn read(mut self, limit: usize) -> Result<Bytes, Fault> {
        let mut whole: Option<Bytes> = None;
        let mut more = BytesMut::new();
        while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut self).poll_frame(cx)).await {
            let Ok(data) = frame?.into_data() else { continue };
            let held = whole.as_ref().map_or(0, Bytes::len) + more.len();
            if held + data.len() > limit {
                return Err(too_large(u64::try_from(limit).unwrap_or(u64::MAX)));
            }
            if held == 0 {
                whole = Some(data);
            } else {
                more.extend_from_slice(&whole.take().unwrap_or_default());
                more.extend_from_slice(&data);
            }
        }
        Ok(whole.unwrap_or_else(|| more.freeze()))
    }

    pub(crate) fn wrap<B>(body: B) -> Self
    where
        B: HttpBody<Data = Bytes, Error = Fault> + Send + 'static,
    {
        Self::of(Kind::Boxed(Box::pin(body)))
    }

    pub(crate) fn received(body: Received) -> Self {
        Self::of(Kind::Received(body))
    }

    pub(crate) fn answer(drive: Box<dyn Drive>) -> Self {
        Self::of(Kind::Answer(drive))
    }

    pub(crate) fn stream(inbound: Inbound) -> Self {
        Self::of(if inbound.is_end() { Kind::Empty } else { Kind::Stream(Box::new(inbound)) })
    }

    /// Sets a bit for as long as the body lives. At most two.
    pub(crate) fn flagged(mut self, flag: Flag) -> Self {
        match &mut self.flags {
            [free @ None, _] | [_, free] => *free = Some(flag),
        }
        self
    }

    const fn of(kind: Kind) -> Self {
        Self { kind, flags: [None, None], watch: None }
    }

    fn watch(&mut self) -> &mut Watch {
        self.watch.get_or_insert_default()
    }

    fn ended(&mut self, outcome: Outcome) {
        self.flags = [None, None];
        if let Some(watch) = &mut self.watch {
            watch.alarm = Alarm::default();
            if let Some(end) = watch.end.take() {
                end(Ending { bytes: watch.passed, outcome });
            }
        }
    }

    /// Fails at the next poll: whoever sends the body sends what it has when the body is pending, and h2 drops what waits on
    /// a stream that is reset.
    fn fail(&mut self, fault: Fault, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        self.kind = Kind::Doomed(fault);
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = Fault;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        let this = self.get_mut();
        if let Kind::Doomed(_) = this.kind
            && let Kind::Doomed(fault) = std::mem::replace(&mut this.kind, Kind::Failed)
        {
            this.ended(Outcome::Cut(fault.reason));
            return Poll::Ready(Some(Err(fault)));
        }
        if let Some(watch) = &this.watch
            && let Some(limit) = watch.limit
            && watch.passed.saturating_add(this.kind.size_hint().lower()) > limit
        {
            return this.fail(too_large(limit), cx);
        }
        match this.kind.poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(data) = frame.data_ref()
                    && let Some(watch) = &mut this.watch
                    && let Err(fault) = watch.pass(data.len())
                {
                    return this.fail(fault, cx);
                }
                for flag in this.flags.iter().flatten() {
                    flag.set_starved(false);
                }
                if frame.is_trailers() || this.kind.is_end() {
                    this.kind.finish();
                    this.ended(Outcome::Whole);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(fault))) => this.fail(fault, cx),
            Poll::Ready(None) => {
                if !matches!(this.kind, Kind::Failed) {
                    this.kind.finish();
                    this.ended(Outcome::Whole);
                }
                Poll::Ready(None)
            }
            Poll::Pending => {
                for flag in this.flags.iter().flatten() {
                    flag.set_starved(true);
                }
                match this.watch.as_mut().map(|watch| watch.poll_overdue(cx)) {
                    Some(Poll::Ready(fault)) => this.fail(fault, cx),
                    Some(Poll::Pending) | None => Poll::Pending,
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.kind.is_end()
    }

    fn size_hint(&self) -> SizeHint {
        self.kind.size_hint()
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        let outcome = if let Kind::Doomed(fault) = &self.kind {
            Outcome::Cut(fault.reason)
        } else if self.kind.is_end() {
            Outcome::Whole
        } else {
            Outcome::Dropped
        };
        self.ended(outcome);
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match &self.kind {
            Kind::Empty => "empty",
            Kind::Full(_) => "full",
            Kind::Received(_) => "received",
            Kind::Answer(_) => "answer",
            Kind::Stream(_) => "stream",
            Kind::Boxed(_) => "boxed",
            Kind::Doomed(_) | Kind::Failed => "failed",
        };
        f.debug_tuple("Body").field(&kind).finish()
    }
}

impl Kind {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        match self {
            Self::Empty | Self::Doomed(_) | Self::Failed => Poll::Ready(None),
            Self::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                *self = Self::Empty;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Self::Received(body) => body.poll_frame(cx),
            Self::Answer(drive) => drive.poll_frame(cx),
            Self::Stream(inbound) => inbound.poll_frame(cx),
            Self::Boxed(body) => body.as_mut().poll_frame(cx),
        }
    }

    /// Gives the connection back. Whatever is left of the body is nothing.
    fn finish(&mut self) {
        match std::mem::replace(self, Self::Empty) {
            Self::Answer(drive) => drive.finish(),
            Self::Stream(inbound) => (*inbound).finish(),
            _ => {}
        }
    }

    fn is_end(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(_) | Self::Doomed(_) | Self::Failed => false,
            Self::Received(body) => body.is_end(),
            Self::Answer(drive) => drive.is_over(),
            Self::Stream(inbound) => inbound.is_end(),
            Self::Boxed(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Full(bytes) => SizeHint::with_exact(u64::try_from(bytes.len()).unwrap_or(u64::MAX)),
            Self::Received(body) => body.size_hint(),
            Self::Answer(drive) => drive.left().map_or_else(SizeHint::default, SizeHint::with_exact),
            Self::Stream(inbound) => inbound.size_hint(),
            Self::Boxed(body) => body.size_hint(),
            Self::Doomed(_) | Self::Failed => SizeHint::default(),
        }
    }
}

impl Watch {
    fn pass(&mut self, bytes: usize) -> Result<(), Fault> {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.waiting = None;
        self.passed = self.passed.saturating_add(bytes);
        if let Some(limit) = self.limit
            && self.passed > limit
        {
            return Err(too_large(limit));
        }
        if let Some(counter) = &self.counter {
            counter.fetch_add(bytes, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Ready when it has been waited for too long. The timer is moved only when it fires, not at every frame.
    fn poll_overdue(&mut self, cx: &mut Context<'_>) -> Poll<Fault> {
        if self.idle.is_none() && self.deadline.is_none() {
            return Poll::Pending;
        }
        let since = *self.waiting.get_or_insert_with(Instant::now);
        let idle = self.idle.and_then(|(idle, reason)| Some((since.checked_add(idle)?, reason)));
        let (due, reason) = match (idle, self.deadline) {
            (Some((idle, reason)), Some(deadline)) if idle < deadline => (idle, reason),
            (_, Some(deadline)) => (deadline, Reason::Deadline),
            (Some(idle), None) => idle,
            (None, None) => return Poll::Pending,
        };
        if self.alarm.poll(due, cx).is_pending() {
            return Poll::Pending;
        }
        let side = if reason == Reason::RequestTimeout { Side::Caller } else { Side::Origin };
        Poll::Ready(Fault::new(reason).side(side).log("the body stalled"))
    }
}

impl Flag {
    /// Sets `live` now and clears it when dropped; `starved` follows whether the body is waited for.
    pub(crate) fn raise(bits: &Arc<AtomicU32>, live: u32, starved: u32) -> Self {
        bits.fetch_or(live, Ordering::Relaxed);
        Self { bits: bits.clone(), live, starved }
    }

    fn set_starved(&self, starved: bool) {
        if self.starved == 0 {
        } else if starved {
            self.bits.fetch_or(self.starved, Ordering::Relaxed);
        } else {
            self.bits.fetch_and(!self.starved, Ordering::Relaxed);
        }
    }
}

impl Drop for Flag {
    fn drop(&mut self) {
        self.bits.fetch_and(!(self.live | self.starved), Ordering::Relaxed);
    }
}

/// A foreign body whose errors become faults of this process, unless they are faults already.
struct Named<B>(Pin<Box<B>>);

impl<B> HttpBody for Named<B>
where
    B: HttpBody<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = Fault;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        self.0.as_mut().poll_frame(cx).map_err(|error| match error.into().downcast::<Fault>() {
            Ok(fault) => *fault,
            Err(error) => Fault::new(Reason::Internal).log(error),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

fn too_large(limit: u64) -> Fault {
    Fault::new(Reason::TooLarge).side(Side::Caller).log(format_args!("over {limit} bytes"))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use http_body_util::{BodyExt as _, StreamBody};

    use super::*;

    type Endings = Arc<Mutex<Vec<Ending>>>;

    fn watched(body: Body) -> (Body, Endings) {
        let endings = Endings::default();
        let told = endings.clone();
        (body.on_end(move |ending| told.lock().unwrap().push(ending)), endings)
    }

    fn pieces(pieces: &[&'static str]) -> Body {
        let frames: Vec<Result<_, Fault>> =
            pieces.iter().map(|piece| Ok(Frame::data(Bytes::from_static(piece.as_bytes())))).collect();
        Body::boxed(StreamBody::new(futures_util::stream::iter(frames)))
    }

    #[tokio::test]
    async fn the_end_is_told_once_and_as_it_was() {
        let counter = Arc::new(AtomicU64::new(0));
        let (body, endings) = watched(pieces(&["ab", "c"]).counted(counter.clone()));
        assert_eq!(body.read(3).await.unwrap(), "abc");
        assert_eq!(endings.lock().unwrap()[..], [Ending { bytes: 3, outcome: Outcome::Whole }]);
        assert_eq!(counter.load(Ordering::Relaxed), 3);

        let (mut body, endings) = watched(pieces(&["ab", "c"]));
        body.frame().await.unwrap().unwrap();
        drop(body);
        assert_eq!(endings.lock().unwrap()[..], [Ending { bytes: 2, outcome: Outcome::Dropped }]);

        let (body, endings) = watched(Body::empty());
        drop(body);
        assert_eq!(endings.lock().unwrap()[..], [Ending { bytes: 0, outcome: Outcome::Whole }]);

        let failing: [Result<Frame<Bytes>, Fault>; 1] = [Err(Fault::new(Reason::ConnectorLost))];
        let (body, endings) = watched(Body::boxed(StreamBody::new(futures_util::stream::iter(failing))));
        assert_eq!(body.read(3).await.unwrap_err().reason, Reason::ConnectorLost);
        assert_eq!(endings.lock().unwrap()[..], [Ending { bytes: 0, outcome: Outcome::Cut(Reason::ConnectorLost) }]);
    }

    #[tokio::test]
    async fn a_body_over_its_limit_fails_with_no_byte_of_the_rest() {
        let (mut body, endings) = watched(pieces(&["ab", "cd"]).limited(3));
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "ab");
        assert_eq!(body.frame().await.unwrap().unwrap_err().reason, Reason::TooLarge);
        assert_eq!(endings.lock().unwrap()[0].outcome, Outcome::Cut(Reason::TooLarge));
        // One that says its length fails before its first byte.
        assert_eq!(Body::full("abcd").limited(3).frame().await.unwrap().unwrap_err().reason, Reason::TooLarge);
        assert_eq!(Body::full("abc").limited(3).read(10).await.unwrap(), "abc");
        assert_eq!(pieces(&["ab", "cd"]).read(3).await.unwrap_err().reason, Reason::TooLarge);
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_wait_is_too_long() {
        let slow = futures_util::stream::unfold((), |()| async {
            tokio::time::sleep(Duration::from_secs(9)).await;
            Some((Ok::<_, Fault>(Frame::data(Bytes::from_static(b"x"))), ()))
        });
        let body = Body::boxed(StreamBody::new(slow));
        let mut body = body.idle_timeout(Duration::from_secs(10), Reason::OriginTimeout);
        for _ in 0..5 {
            body.frame().await.unwrap().unwrap();
            // Nobody waits for it meanwhile.
            tokio::time::sleep(Duration::from_secs(100)).await;
        }
        let start = Instant::now();
        let mut body = body.deadline(start + Duration::from_secs(5));
        assert_eq!(body.frame().await.unwrap().unwrap_err().reason, Reason::Deadline);
        assert_eq!(start.elapsed(), Duration::from_secs(5));
    }
}
