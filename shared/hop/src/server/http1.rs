//! One HTTP/1.1 connection. Hands the byte stream back when its first bytes turn out to be HTTP/2's.
//!
//! Must never read a head behind one that was refused, or take the end of a cut answer for the end of a whole one.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{BufMut as _, Bytes};
use culvert_model::reason::Reason;
use http::{HeaderMap, Method, StatusCode, Version};
use http_body::Body as _;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::received::{Conn, Received, lock};
use super::{Http2, LAST_WORDS, ServerSettings};
use crate::alarm::Alarm;
use crate::body::Body;
use crate::fault;
use crate::fields::name::{EXPECT, UPGRADE};
use crate::http1::{Asked, Encoder, Flaw, Heard, Progress, read_request, write_response};
use crate::interim::Interim;
use crate::message::{Request, RequestParts, Response};
use crate::upgrade::{OnUpgrade, Switched};

/// What an HTTP/2 connection begins with (RFC 9113 §3.4). No HTTP/1.1 method is `PRI`.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Serves until the connection ends; the stream and what was read of it if HTTP/2 is spoken on it.
pub(super) async fn serve<Io, S, F>(
    io: Io,
    settings: &ServerSettings,
    service: &S,
    drain: Pin<&mut impl Future<Output = ()>>,
) -> Option<(Io, Bytes)>
where
    Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Fn(Request<Body>) -> F,
    F: Future<Output = Result<Response<Body>, Infallible>>,
{
    let mut server = Server {
        conn: Arc::new(Mutex::new(Conn::new(io))),
        settings,
        drain,
        is_draining: false,
        may_be_http2: settings.http2 == Http2::Sniff,
        alarm: Alarm::default(),
    };
    loop {
        let heard = match server.head().await {
            Begun::Request(heard) => heard,
            Begun::Http2 => return server.into_parts(),
            Begun::Over => return None,
            Begun::Refused(reason) => {
                server.refuse(reason).await;
                return None;
            }
            Begun::Idle => {
                server.farewell().await;
                return None;
            }
        };
        server.may_be_http2 = false;
        let Heard { mut parts, body, keeps } = heard;
        let asked = Asked { version: parts.version, is_head: parts.method == Method::HEAD, keeps };
        let interim = Interim::default();
        let hand_over = server.dress(&mut parts, &interim);
        let body = if body.is_over() {
            Body::empty()
        } else {
            let mut conn = lock(&server.conn);
            conn.owes_continue = asked.version > Version::HTTP_10
                && parts
                    .headers
                    .get(EXPECT)
                    .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
            conn.decoder = body;
            drop(conn);
            Body::received(Received::new(&server.conn))
        };
        // In a box: the loop would hold it by value.
        let answer = Box::pin(service(Request::from_parts(parts, body)));
        let response = server.answer(answer, &interim, asked).await?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            server.switch(response, hand_over, asked).await;
            return None;
        }
        match server.send(response, asked).await {
            Sent::Whole { keeps: true } => {}
            Sent::Whole { keeps: false } => {
                server.farewell().await;
                return None;
            }
            Sent::Cut => return None,
        }
        if !server.settle().await {
            server.farewell().await;
            return None;
        }
    }
}

struct Server<'a, Io, D> {
    conn: Arc<Mutex<Conn<Io>>>,
    settings: &'a ServerSettings,
    drain: Pin<&'a mut D>,
    is_draining: bool,
    may_be_http2: bool,
    alarm: Alarm,
}

/// How a wait for a request ended.
enum Begun {
    Request(Heard<RequestParts>),
    Http2,
    /// What came is no request, or did not come in time.
    Refused(Reason),
    /// Nothing came for so long, or nothing more is wanted.
    Idle,
    /// The caller went away.
    Over,
}

enum Sent {
    Whole {
        keeps: bool,
    },
    /// Nothing more can be said on this connection.
    Cut,
}

/// A caller that has ended what it sends, and may still listen.
#[derive(Default)]
struct HalfClosed {
    due: Option<Instant>,
    written: u64,
    alarm: Alarm,
}

impl<Io, D> Server<'_, Io, D>
where
    Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    D: Future<Output = ()>,
{
    /// Waits for the next request's head.
    async fn head(&mut self) -> Begun {
        let mut progress = Progress::default();
        let mut since = None;
        lock(&self.conn).line.rest();
        let (keep_alive, head_timeout) = (self.settings.keep_alive, self.settings.head_timeout);
        poll_fn(|cx| {
            let mut guard = lock(&self.conn);
            let conn = &mut *guard;
            loop {
                if self.may_be_http2 && PREFACE.starts_with(conn.line.inbox.get(..24).unwrap_or(&conn.line.inbox)) {
                    if conn.line.inbox.len() >= PREFACE.len() {
                        return Poll::Ready(Begun::Http2);
                    }
                } else if !conn.line.inbox.is_empty() {
                    match read_request(&mut conn.line.inbox, &mut progress, self.settings.max_head) {
                        Ok(Some(heard)) => return Poll::Ready(Begun::Request(heard)),
                        Ok(None) => {}
                        Err(flaw) => return Poll::Ready(Begun::Refused(refusal(flaw))),
                    }
                }
                let had = conn.line.inbox.len();
                match conn.line.poll_read(cx) {
                    Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Begun::Over),
                    // From the first byte on it is a head that has to come in time.
                    Poll::Ready(Ok(_)) if had == 0 => since = None,
                    Poll::Ready(Ok(_)) => {}
                    Poll::Pending => break,
                }
            }
            let is_idle = conn.line.inbox.is_empty();
            drop(guard);
            if !self.is_draining && self.drain.as_mut().poll(cx).is_ready() {
                self.is_draining = true;
            }
            if self.is_draining && is_idle {
                return Poll::Ready(Begun::Idle);
            }
            let limit = if is_idle { keep_alive } else { head_timeout };
            let Some(due) = since.get_or_insert_with(Instant::now).checked_add(limit) else { return Poll::Pending };
            ready!(self.alarm.poll(due, cx));
            Poll::Ready(if is_idle { Begun::Idle } else { Begun::Refused(Reason::RequestTimeout) })
        })
        .await
    }

    /// Adds what goes with a request beside its bytes; who gets the connection if it is switched.
    fn dress(&self, parts: &mut RequestParts, interim: &Interim) -> Option<Switched> {
        if parts.version > Version::HTTP_10 {
            parts.interim = Some(interim.clone());
        }
        if !parts.headers.contains_key(UPGRADE) {
            return None;
        }
        let (hand_over, on) = OnUpgrade::connection();
        parts.extensions.insert(on);
        Some(hand_over)
    }

    /// Waits for the service's answer, and passes on what comes before it. None when the caller is gone.
    async fn answer<F>(&mut self, mut answer: Pin<Box<F>>, interim: &Interim, asked: Asked) -> Option<Response<Body>>
    where
        F: Future<Output = Result<Response<Body>, Infallible>>,
    {
        let mut half_closed = HalfClosed::default();
        poll_fn(|cx| {
            let answered = answer.as_mut().poll(cx);
            if asked.version > Version::HTTP_10 {
                self.pass_interim(interim, cx);
            }
            if let Poll::Ready(Ok(response)) = answered {
                return Poll::Ready(Some(response));
            }
            let mut conn = lock(&self.conn);
            let is_lost = matches!(conn.line.poll_flush(cx), Poll::Ready(Err(_)));
            if is_lost || half_closed.poll_gone(&mut conn, self.settings.half_close, cx).is_ready() {
                return Poll::Ready(None);
            }
            conn.attend(cx);
            Poll::Pending
        })
        .await
    }

    fn pass_interim(&self, interim: &Interim, cx: &Context<'_>) {
        while let Poll::Ready(early) = interim.poll_next(cx) {
            let mut conn = lock(&self.conn);
            // This hop's own leave is given when the body is read.
            if early.status() != StatusCode::CONTINUE && conn.line.has_room() {
                let (parts, ()) = early.into_parts();
                let asked = Asked { version: Version::HTTP_11, is_head: false, keeps: true };
                write_response(&parts, &Body::empty(), asked, conn.line.outbox());
            }
        }
    }

    /// Writes a response.
    async fn send(&mut self, response: Response<Body>, asked: Asked) -> Sent {
        let (parts, mut body) = response.into_parts();
        let is_wanted = !asked.is_head;
        let mut half_closed = HalfClosed::default();
        let mut head = Some(parts);
        let mut out = (Encoder::Nothing, asked.keeps);
        let mut step = Step::Body;
        poll_fn(|cx| {
            if let Some(parts) = head.take() {
                self.is_draining = self.is_draining || self.drain.as_mut().poll(cx).is_ready();
                let asked = Asked { keeps: asked.keeps && !self.is_draining, ..asked };
                let mut conn = lock(&self.conn);
                // Nobody has read the body: what follows may be it, or not.
                let asked = Asked { keeps: asked.keeps && !(conn.owes_continue && conn.is_left()), ..asked };
                conn.owes_continue = false;
                out = write_response(&parts, &body, asked, conn.line.outbox());
            }
            let lost = loop {
                let mut conn = lock(&self.conn);
                if matches!(step, Step::Body) && conn.line.has_room() {
                    drop(conn);
                    // The body may read from this very connection.
                    let polled = Pin::new(&mut body).poll_frame(cx);
                    conn = lock(&self.conn);
                    match polled {
                        Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                            Ok(data) if data.is_empty() || !is_wanted || out.0 == Encoder::Nothing => {}
                            Ok(data) => match out.0.frame(&data, conn.line.outbox()) {
                                Ok(tail) => conn.line.put(data, tail),
                                Err(_) => step = Step::Cut,
                            },
                            Err(last) => step = end(&mut out.0, last.into_trailers().ok().as_ref(), &mut conn),
                        },
                        Poll::Ready(Some(Err(fault))) => {
                            tracing::debug!(%fault, "an answer was cut");
                            step = Step::Cut;
                        }
                        Poll::Ready(None) => step = end(&mut out.0, None, &mut conn),
                        Poll::Pending => match conn.line.poll_flush(cx) {
                            Poll::Ready(Err(_)) => break true,
                            Poll::Ready(Ok(())) | Poll::Pending => {
                                break half_closed.poll_gone(&mut conn, self.settings.half_close, cx).is_ready();
                            }
                        },
                    }
                    continue;
                }
                match (&step, conn.line.poll_flush(cx)) {
                    (Step::Body, Poll::Ready(Ok(()))) => {}
                    (Step::Whole, Poll::Ready(Ok(()))) => return Poll::Ready(Sent::Whole { keeps: out.1 }),
                    (Step::Cut, Poll::Ready(Ok(()))) | (_, Poll::Ready(Err(_))) => break true,
                    (_, Poll::Pending) => {
                        break half_closed.poll_gone(&mut conn, self.settings.half_close, cx).is_ready();
                    }
                }
            };
            if lost {
                return Poll::Ready(Sent::Cut);
            }
            lock(&self.conn).attend(cx);
            Poll::Pending
        })
        .await
    }

    /// Waits until the request's body is whole or given up; whether a head follows it.
    async fn settle(&mut self) -> bool {
        poll_fn(|cx| {
            let mut conn = lock(&self.conn);
            if conn.decoder.is_over() {
                return Poll::Ready(true);
            }
            if conn.is_left() {
                return Poll::Ready(conn.skip(cx));
            }
            conn.attend(cx);
            Poll::Pending
        })
        .await
    }

    /// Writes a 101, and hands the connection over.
    async fn switch(mut self, response: Response<Body>, hand_over: Option<Switched>, asked: Asked) {
        let Some(hand_over) = hand_over else {
            tracing::debug!("a 101 that nobody asked for");
            return;
        };
        if let Sent::Whole { .. } = self.send(response, asked).await
            && let Some((io, first)) = self.into_parts()
        {
            hand_over.switch(io, first);
        }
    }

    fn into_parts(self) -> Option<(Io, Bytes)> {
        let conn = Arc::try_unwrap(self.conn).ok()?;
        Some(conn.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).line.into_parts())
    }

    /// Tells a caller why its head is none, and ends the connection.
    async fn refuse(&mut self, reason: Reason) {
        if let Some(refused) = &self.settings.refused {
            refused(reason);
        }
        lock(&self.conn).line.outbox().put_slice(&fault::refusal(reason));
        self.farewell().await;
    }

    /// Ends the connection, so that what was said last is heard: a stream that is dropped with bytes unread is reset.
    async fn farewell(&mut self) {
        let leave = async {
            poll_fn(|cx| lock(&self.conn).line.poll_shutdown(cx)).await?;
            let has_more = {
                let conn = lock(&self.conn);
                !conn.line.is_ended() && (!conn.line.inbox.is_empty() || !conn.decoder.is_over())
            };
            if has_more {
                poll_fn(|cx| lock(&self.conn).line.poll_forget(cx)).await?;
            }
            Ok::<_, std::io::Error>(())
        };
        let _ = tokio::time::timeout(LAST_WORDS, leave).await;
    }
}

enum Step {
    Body,
    /// All is said, and to be flushed.
    Whole,
    /// What is said is to be flushed, and nothing more comes.
    Cut,
}

fn end<Io>(encoder: &mut Encoder, last: Option<&HeaderMap>, conn: &mut Conn<Io>) -> Step {
    match encoder.end(last, conn.line.outbox()) {
        Ok(()) => Step::Whole,
        Err(broken) => {
            tracing::debug!(why = broken.0, "an answer was cut");
            Step::Cut
        }
    }
}

fn refusal(flaw: Flaw) -> Reason {
    tracing::debug!(?flaw, "refused a request");
    match flaw {
        Flaw::Malformed(_) => Reason::BadRequest,
        Flaw::TooLarge => Reason::HeadTooLarge,
    }
}

impl HalfClosed {
    /// Ready when the caller is gone. One that has ended what it sends is taken for gone when nothing was written to it
    /// for `patience`.
    fn poll_gone<Io>(&mut self, conn: &mut Conn<Io>, patience: Duration, cx: &mut Context<'_>) -> Poll<()>
    where
        Io: AsyncRead + AsyncWrite + Unpin,
    {
        if ready!(conn.poll_ended(cx)).is_err() || patience.is_zero() {
            return Poll::Ready(());
        }
        loop {
            let written = conn.line.written();
            let due = match self.due {
                Some(due) => due,
                None => {
                    self.written = written;
                    let Some(due) = Instant::now().checked_add(patience) else { return Poll::Pending };
                    *self.due.insert(due)
                }
            };
            ready!(self.alarm.poll(due, cx));
            if written == self.written {
                return Poll::Ready(());
            }
            self.due = None;
        }
    }
}
