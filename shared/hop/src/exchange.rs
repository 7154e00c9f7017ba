//! One request and its response on one connection, with deadlines, both bodies streaming at the same time.
//!
//! Must never keep working for somebody who went away.
//!
//! The connection is polled by whoever waits for the response, then by the response's body: no task, no channel hop.
//! Only a request's body that is still under way when the response's head arrives gets a task, because its pace must
//! not hang on how fast the response is read.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, UPGRADE};
use http::{Request, Response, StatusCode};
use http_body::{Body as _, Frame};
use hyper::body::Incoming;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

use culvert_model::reason::Reason;

use crate::body::{Body, Drive};
use crate::client::Client;
use crate::expect::Gate;
use crate::fault::Fault;
use crate::pool::{Lost, Opener};
use crate::upgrade::Raw;

/// How long a request's body may go on after its response was whole.
pub const LINGER: Duration = Duration::from_secs(5);

/// The deadlines of an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// For the response's head, since the last byte of the request that the other side took.
    pub first_byte: Duration,
    /// Without a byte of a body that is waited for.
    pub idle: Duration,
    /// The whole exchange.
    pub request: Option<Duration>,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self { first_byte: Duration::from_secs(60), idle: Duration::from_secs(3600), request: None }
    }
}

/// A response.
#[derive(Debug)]
pub enum Answer<Io> {
    /// An ordinary one. Its head is as received: see [`crate::failure::take`], [`crate::response::accept`].
    Response(Response<Body>),
    /// 101 to a request with `Upgrade`: the head, for [`crate::response::accept_switch`], and the bytes after it.
    Switched(Response<()>, Raw<Io>),
}

/// No response.
#[derive(Debug)]
pub struct SendError {
    /// What went wrong. Its `retry` is [`crate::fault::Retry::Safe`] only if no byte of the request was taken, or the
    /// other side said that it acted on none.
    pub fault: Fault,
    /// The request, untouched, if none of it was taken.
    pub request: Option<Box<Request<Body>>>,
}

/// Sends a request on a connection that is ready for it.
pub(crate) async fn run<O: Opener>(
    mut client: Box<Client<O>>,
    mut request: Request<Body>,
    gate: Option<&Arc<Gate>>,
    deadlines: &Deadlines,
    now: Instant,
) -> Result<Answer<O::Io>, SendError> {
    let asked = request.headers().contains_key(UPGRADE);
    if let Some(flag) = client.begin(!request.body().is_end_stream()) {
        let body = std::mem::replace(request.body_mut(), Body::empty());
        *request.body_mut() = body.flagged(flag);
    }
    let whole = deadlines.request.and_then(|limit| now.checked_add(limit));
    let response = ask(&mut client, request, deadlines.first_byte, whole, now).await?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return switched(client, response, asked);
    }
    let is_held = gate.is_some_and(|gate| !gate.is_open());
    Ok(Answer::Response(answered(client, response, is_held, deadlines.idle, whole)))
}

/// Sends the request and waits for the response's head.
async fn ask<O: Opener>(
    client: &mut Box<Client<O>>,
    request: Request<Body>,
    first_byte: Duration,
    whole: Option<Instant>,
    now: Instant,
) -> Result<Response<Incoming>, SendError> {
    let due = |from: Instant| from.checked_add(first_byte).into_iter().chain(whole).min();
    let mut sleep = pin!(sleep_until(due(now).unwrap_or(now)));
    let mut answer = pin!(client.send(request));
    let mut taken = client.written();
    let outcome = poll_fn(|cx| {
        let polled = client.poll_quietly(cx, |client, cx| {
            let is_over = client.poll_connection(cx).is_ready();
            let mut polled = answer.as_mut().poll(cx);
            if is_over && polled.is_pending() {
                // The request is still in hyper's queue.
                client.disconnect();
                polled = answer.as_mut().poll(cx);
            }
            polled
        });
        if let Poll::Ready(result) = polled {
            return Poll::Ready(Ok(result));
        }
        while sleep.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            if whole.is_some_and(|whole| whole <= now) {
                return Poll::Ready(Err(Fault::new(Reason::Deadline)));
            }
            let is_moving = client.written() != taken || client.is_starved();
            taken = client.written();
            match due(now) {
                Some(due) if client.is_uploading() && is_moving => sleep.as_mut().reset(due),
                _ => return Poll::Ready(Err(client.name(Lost::Silent))),
            }
        }
        Poll::Pending
    })
    .await;
    match outcome {
        Ok(Ok(response)) => Ok(response),
        Ok(Err(mut error)) => {
            let request = error.take_message().map(Box::new);
            Err(SendError { fault: client.fault(Some(&error.into_error())), request })
        }
        Err(fault) => Err(SendError { fault, request: None }),
    }
}

/// The bytes after a 101.
fn switched<O: Opener>(
    client: Box<Client<O>>,
    response: Response<Incoming>,
    asked: bool,
) -> Result<Answer<O::Io>, SendError> {
    let refused = |why: &str| SendError { fault: Fault::new(Reason::UpgradeRefused).log(why), request: None };
    if !asked {
        return Err(refused("a 101 that nobody asked for"));
    }
    let Some((io, first)) = client.into_raw() else { return Err(refused("a 101 in the middle of an exchange")) };
    Ok(Answer::Switched(response.map(drop), Raw { io, first }))
}

/// The response, with the connection that its body comes on.
fn answered<O: Opener>(
    client: Box<Client<O>>,
    response: Response<Incoming>,
    is_held: bool,
    idle: Duration,
    whole: Option<Instant>,
) -> Response<Body> {
    // A body that waits for a 100 which will not come any more is not sent at all.
    let is_uploading = client.is_uploading() && !is_held;
    let (parts, incoming) = response.into_parts();
    let body = if incoming.is_end_stream() {
        if is_uploading {
            Box::new(Apart::start(client)).finish();
        } else {
            client.release();
        }
        // hyper's server drops the `Content-Length` of an empty body unless it answers a HEAD.
        let length = || parts.headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok();
        match (parts.status, length()) {
            (StatusCode::NOT_MODIFIED, Some(length)) if length > 0 => Body::phantom(length),
            _ => Body::empty(),
        }
    } else {
        let drive: Box<dyn Drive> = if is_uploading { Box::new(Apart::start(client)) } else { client };
        let body = Body::answer(incoming, drive).idle_timeout(idle, Reason::OriginTimeout);
        match whole {
            Some(whole) => body.deadline(whole),
            None => body,
        }
    };
    Response::from_parts(parts, body)
}

/// A connection that is driven by a task, because its request's body is still under way.
struct Apart {
    over: Option<oneshot::Sender<()>>,
    fault: oneshot::Receiver<Fault>,
    task: AbortHandle,
}

impl Apart {
    fn start<O: Opener>(client: Box<Client<O>>) -> Self {
        let (over, is_over) = oneshot::channel();
        let (failed, fault) = oneshot::channel();
        let task = tokio::spawn(drive(client, is_over, failed)).abort_handle();
        Self { over: Some(over), fault, task }
    }
}

impl Drive for Apart {
    fn poll_frame(
        &mut self,
        incoming: &mut Incoming,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(incoming).poll_frame(cx)
    }

    fn poll_fault(&mut self, cx: &mut Context<'_>) -> Poll<Fault> {
        pin!(&mut self.fault)
            .poll(cx)
            .map(|fault| fault.unwrap_or_else(|_| Fault::new(Reason::Internal).log("the connection's task ended")))
    }

    fn finish(mut self: Box<Self>) {
        if let Some(over) = self.over.take() {
            let _ = over.send(());
        }
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        if self.over.is_some() {
            self.task.abort();
        }
    }
}

async fn drive<O: Opener>(
    mut client: Box<Client<O>>,
    mut is_over: oneshot::Receiver<()>,
    failed: oneshot::Sender<Fault>,
) {
    enum End {
        Idle,
        Lost,
        Lingered,
    }
    let mut linger = pin!(None);
    let end = poll_fn(|cx| {
        if client.poll_connection(cx).is_ready() {
            return Poll::Ready(End::Lost);
        }
        if client.sender.poll_ready(cx).is_ready() {
            return Poll::Ready(End::Idle);
        }
        if linger.is_none() && pin!(&mut is_over).poll(cx).is_ready() {
            linger.set(Some(tokio::time::sleep(LINGER)));
        }
        match linger.as_mut().as_pin_mut() {
            Some(linger) => linger.poll(cx).map(|()| End::Lingered),
            None => Poll::Pending,
        }
    })
    .await;
    match end {
        End::Idle => client.release(),
        End::Lost => {
            let _ = failed.send(client.fault(None));
        }
        End::Lingered => {}
    }
}
