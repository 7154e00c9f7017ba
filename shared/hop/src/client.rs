//! One HTTP/1.1 connection as its client, polled by whoever holds it.
//!
//! Must never be given back to its pool while anything of an exchange is still to come.

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use culvert_model::reason::Reason;
use http::{Method, StatusCode};
use http_body::{Body as _, Frame};
use tokio::time::Instant;

use crate::alarm::Alarm;
use crate::body::{Body, Drive};
use crate::expect::Gate;
use crate::fault::{Fault, Retry};
use crate::http1::{Decoder, Encoder, Line, Piece, read_response, write_request};
use crate::interim::Interim;
use crate::message::{Handle, Request, RequestParts, ResponseParts};
use crate::pool::{Inner, Lost, Opener, PoolSettings};

/// A connection. Dropped while an exchange runs, it drops its stream without a clean end.
pub(crate) struct Client<O: Opener> {
    line: Line<O::Io>,
    most_head: usize,
    /// The request, until it is known that something of it was taken.
    asked: Option<Handle<RequestParts>>,
    method: Method,
    upload: Option<Upload>,
    decoder: Decoder,
    keeps: bool,
    /// What was written when the exchange began.
    baseline: u64,
    /// The stream failed, for what is sent.
    error: Option<io::Error>,
    /// The request's body was not whole.
    failed: Option<Fault>,
    /// For the response's head.
    pub(crate) alarm: Alarm,
    pub(crate) idle_since: Instant,
    /// Where it goes when the exchange is over. None while it is there: they would keep each other alive.
    pub(crate) pool: Option<Arc<Inner<O>>>,
}

/// A request's body on its way.
struct Upload {
    body: Body,
    encoder: Encoder,
    /// Something of the body was taken.
    has_begun: bool,
    /// The body is waited for: its sender is slow, not the receiver.
    is_starved: bool,
}

/// The head of a response, or why there is none.
pub(crate) enum Outcome {
    Head(Handle<ResponseParts>),
    /// The stream failed, ended, or carried no HTTP.
    Lost(Fault),
}

impl<O: Opener> Client<O> {
    pub(crate) fn new(io: O::Io, pool: &Arc<Inner<O>>, settings: &PoolSettings, now: Instant) -> Box<Self> {
        Box::new(Self {
            line: Line::new(io),
            most_head: settings.max_head,
            asked: None,
            method: Method::GET,
            upload: None,
            decoder: Decoder::Over,
            keeps: true,
            baseline: 0,
            error: None,
            failed: None,
            alarm: Alarm::default(),
            idle_since: now,
            pool: Some(pool.clone()),
        })
    }

    /// Takes a request.
    pub(crate) fn begin(&mut self, request: Request<Body>) {
        let (parts, body) = request.into_parts();
        self.baseline = self.line.written();
        let mut encoder = write_request(&parts, &body, self.line.outbox());
        self.method = parts.method.clone();
        if !body.is_end_stream() {
            self.upload = Some(Upload { body, encoder, has_begun: false, is_starved: false });
        } else if encoder.end(None, self.line.outbox()).is_err() {
            self.failed = Some(Fault::new(Reason::BadRequest).log("a length without a body"));
        }
        self.asked = Some(parts);
    }

    /// Sends; ready when all was taken, or no more can be sent.
    pub(crate) fn poll_upload(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.upload.is_none() || !self.line.has_room() {
                let wrote = match self.upload {
                    None => ready!(self.line.poll_flush(cx)),
                    Some(_) => ready!(self.line.poll_write(cx)),
                };
                if let Err(error) = wrote {
                    self.broke(error);
                    return Poll::Ready(());
                }
            }
            let Some(upload) = &mut self.upload else { return Poll::Ready(()) };
            let done = match std::pin::Pin::new(&mut upload.body).poll_frame(cx) {
                Poll::Ready(polled) => {
                    (upload.is_starved, upload.has_begun) = (false, true);
                    upload.take(polled, &mut self.line)
                }
                Poll::Pending => {
                    upload.is_starved = true;
                    if let Poll::Ready(Err(error)) = self.line.poll_flush(cx) {
                        self.broke(error);
                        return Poll::Ready(());
                    }
                    return Poll::Pending;
                }
            };
            match done {
                None => {}
                Some(Ok(())) => self.upload = None,
                Some(Err(fault)) => {
                    self.upload = None;
                    self.keeps = false;
                    self.failed = Some(fault);
                    return Poll::Ready(());
                }
            }
        }
    }

    /// Waits for the response's head. What comes before it is told.
    pub(crate) fn poll_head(
        &mut self,
        gate: Option<&Arc<Gate>>,
        interim: Option<&Interim>,
        cx: &mut Context<'_>,
    ) -> Poll<Outcome> {
        loop {
            if !self.line.inbox.is_empty() {
                match read_response(&mut self.line.inbox, &self.method, self.most_head) {
                    Ok(None) => {}
                    Ok(Some(heard)) => {
                        let status = heard.parts.status;
                        if status == StatusCode::CONTINUE {
                            gate.inspect(|gate| gate.open());
                        } else if status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS {
                            if let Some(interim) = interim {
                                interim.tell(status, heard.parts.into_inner().headers);
                            }
                        } else {
                            self.asked = None;
                            self.decoder = heard.body;
                            self.keeps &= heard.keeps;
                            return Poll::Ready(Outcome::Head(heard.parts));
                        }
                        continue;
                    }
                    Err(flaw) => {
                        let fault = self.name(Lost::Malformed);
                        let fault = if fault.detail().is_none() { fault.log(format_args!("{flaw:?}")) } else { fault };
                        return Poll::Ready(Outcome::Lost(fault));
                    }
                }
            }
            match self.line.poll_read(cx) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Outcome::Lost(self.lost())),
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => {
                    self.error.get_or_insert(error);
                    return Poll::Ready(Outcome::Lost(self.lost()));
                }
                Poll::Pending if self.error.is_some() => return Poll::Ready(Outcome::Lost(self.lost())),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Why the request's body was not whole, once.
    pub(crate) fn take_failure(&mut self) -> Option<Fault> {
        self.failed.take()
    }

    /// The request, if nothing of it was taken.
    pub(crate) fn take_back(&mut self) -> Option<Request<Body>> {
        let parts = self.asked.take().filter(|_| self.line.written() == self.baseline)?;
        match self.upload.take() {
            None => Some(Request::from_parts(parts, Body::empty())),
            Some(upload) if !upload.has_begun => Some(Request::from_parts(parts, upload.body)),
            Some(_) => None,
        }
    }

    /// Whether an idle connection can take a request.
    pub(crate) fn is_usable(&mut self, cx: &mut Context<'_>) -> bool {
        self.is_clean() && self.line.poll_read(cx).is_pending()
    }

    /// Bytes of this exchange, and those before, that the stream has taken.
    pub(crate) fn written(&self) -> u64 {
        self.line.written()
    }

    pub(crate) fn is_uploading(&self) -> bool {
        self.upload.is_some() || !self.line.is_written()
    }

    /// Whether the request's body is waited for.
    pub(crate) fn is_starved(&self) -> bool {
        self.upload.as_ref().is_some_and(|upload| upload.is_starved)
    }

    /// Sends no more of the request: the connection ends with this exchange.
    pub(crate) fn give_up_upload(&mut self) {
        if self.upload.take().is_some() {
            self.keeps = false;
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.decoder.is_over()
    }

    /// The stream, and what was read past the head.
    pub(crate) fn into_raw(self) -> (O::Io, Bytes) {
        self.line.into_parts()
    }

    /// Names a failure, and says whether the request may go elsewhere.
    pub(crate) fn name(&self, lost: Lost<'_>) -> Fault {
        let fault = match &self.pool {
            Some(pool) => pool.opener.lost(lost),
            None => Fault::new(Reason::Internal),
        };
        if self.line.written() == self.baseline { fault.retry(Retry::Safe) } else { fault }
    }

    /// Gives the connection back if the exchange has left nothing behind; else drops it.
    pub(crate) fn release(mut self: Box<Self>) {
        if !self.is_clean() {
            return;
        }
        if let Some(pool) = self.pool.take() {
            self.idle_since = Instant::now();
            self.line.rest();
            pool.put(self);
        }
    }

    /// Ends an idle connection cleanly, without waiting.
    #[expect(clippy::boxed_local, reason = "it is large, and lives in its box")]
    pub(crate) fn retire(mut self: Box<Self>) {
        let _ = self.line.poll_shutdown(&mut Context::from_waker(Waker::noop()));
    }

    fn is_clean(&self) -> bool {
        self.keeps
            && self.decoder.is_over()
            && self.upload.is_none()
            && self.error.is_none()
            && self.line.is_written()
            && self.line.inbox.is_empty()
            && !self.line.is_ended()
    }

    fn broke(&mut self, error: io::Error) {
        self.upload = None;
        self.keeps = false;
        self.error.get_or_insert(error);
    }

    /// Names what became of the stream.
    fn lost(&mut self) -> Fault {
        let error = self.error.take();
        let fault = self.name(error.as_ref().map_or(Lost::Ended, Lost::Io));
        match (fault.detail(), error) {
            (None, Some(error)) => fault.log(error),
            _ => fault,
        }
    }
}

impl Upload {
    /// Puts a frame on the line; none while the body goes on.
    fn take<Io>(
        &mut self,
        polled: Option<Result<Frame<Bytes>, Fault>>,
        line: &mut Line<Io>,
    ) -> Option<Result<(), Fault>> {
        let last = match polled {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) if data.is_empty() => return None,
                Ok(data) => match self.encoder.frame(&data, line.outbox()) {
                    Ok(tail) => {
                        line.put(data, tail);
                        return None;
                    }
                    Err(broken) => return Some(Err(Fault::new(Reason::BadRequest).log(broken.0))),
                },
                Err(frame) => frame.into_trailers().ok(),
            },
            Some(Err(fault)) => return Some(Err(fault)),
            None => None,
        };
        let ended = self.encoder.end(last.as_ref(), line.outbox());
        Some(ended.map_err(|broken| Fault::new(Reason::BadRequest).log(broken.0)))
    }
}

impl<O: Opener> Drive for Client<O> {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        loop {
            let is_ended = self.line.is_ended();
            match self.decoder.take(&mut self.line.inbox, is_ended) {
                Ok(Piece::Data(data)) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                Ok(Piece::Trailers(trailers)) => return Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
                Ok(Piece::End) => return Poll::Ready(None),
                Ok(Piece::Missing) => {}
                Err(broken) => {
                    let lost = if is_ended { Lost::Ended } else { Lost::Malformed };
                    let fault = self.name(lost);
                    return Poll::Ready(Some(Err(if fault.detail().is_none() { fault.log(broken.0) } else { fault })));
                }
            }
            if let Err(error) = ready!(self.line.poll_read(cx)) {
                self.error = Some(error);
                return Poll::Ready(Some(Err(self.lost())));
            }
        }
    }

    fn left(&self) -> Option<u64> {
        self.decoder.left()
    }

    fn is_over(&self) -> bool {
        self.decoder.is_over()
    }

    fn finish(self: Box<Self>) {
        self.release();
    }
}
