//! One request and its response on one connection, with deadlines, both bodies streaming at the same time.
//!
//! Must never keep working for somebody who went away.
//!
//! The connection is polled by whoever waits for the response, then by the response's body: no task, no channel hop.
//! Only a request's body that is still under way when the response's head arrives gets a task, because its pace must
//! not hang on how fast the response is read.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use culvert_model::reason::Reason;
use futures_util::task::AtomicWaker;
use http::StatusCode;
use http::header::UPGRADE;
use http_body::Frame;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::body::{Body, Drive};
use crate::client::{Client, Outcome};
use crate::expect::Gate;
use crate::fault::Fault;
use crate::interim::Interim;
use crate::message::{Handle, Request, Response, ResponseParts};
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
    request: Request<Body>,
    gate: Option<&Arc<Gate>>,
    deadlines: &Deadlines,
    now: Instant,
) -> Result<Answer<O::Io>, SendError> {
    let asked = request.headers().contains_key(UPGRADE);
    let interim = request.parts().interim.clone();
    let whole = deadlines.request.and_then(|limit| now.checked_add(limit));
    client.begin(request);
    let parts = match ask(&mut client, (gate, interim.as_ref()), deadlines.first_byte, whole, now).await {
        Ok(parts) => parts,
        Err(fault) => return Err(SendError { fault, request: client.take_back().map(Box::new) }),
    };
    if parts.status == StatusCode::SWITCHING_PROTOCOLS {
        return switched(client, parts, asked);
    }
    if gate.is_some_and(|gate| !gate.is_open()) {
        // A body that waits for a 100 which will not come any more is not sent at all.
        client.give_up_upload();
    }
    Ok(Answer::Response(Response::from_parts(parts, body(client, deadlines.idle, whole))))
}

/// Sends the request and waits for the response's head.
async fn ask<O: Opener>(
    client: &mut Box<Client<O>>,
    (gate, interim): (Option<&Arc<Gate>>, Option<&Interim>),
    first_byte: Duration,
    whole: Option<Instant>,
    now: Instant,
) -> Result<Handle<ResponseParts>, Fault> {
    let due = |from: Instant| from.checked_add(first_byte).into_iter().chain(whole).min();
    let mut next = due(now);
    let mut taken = client.written();
    poll_fn(|cx| {
        let _ = client.poll_upload(cx);
        if let Some(fault) = client.take_failure() {
            return Poll::Ready(Err(fault));
        }
        match client.poll_head(gate, interim, cx) {
            Poll::Ready(Outcome::Head(parts)) => return Poll::Ready(Ok(parts)),
            Poll::Ready(Outcome::Lost(fault)) => return Poll::Ready(Err(fault)),
            Poll::Pending => {}
        }
        while let Some(at) = next {
            ready!(client.alarm.poll(at, cx));
            let now = Instant::now();
            if whole.is_some_and(|whole| whole <= now) {
                return Poll::Ready(Err(Fault::new(Reason::Deadline)));
            }
            let is_moving = client.written() != taken || client.is_starved();
            taken = client.written();
            if !client.is_uploading() || !is_moving {
                return Poll::Ready(Err(client.name(Lost::Silent)));
            }
            next = due(now);
        }
        Poll::Pending
    })
    .await
}

/// The bytes after a 101.
#[expect(clippy::boxed_local, reason = "it is large, and lives in its box")]
fn switched<O: Opener>(
    client: Box<Client<O>>,
    parts: Handle<ResponseParts>,
    asked: bool,
) -> Result<Answer<O::Io>, SendError> {
    let refused = |why: &str| SendError { fault: Fault::new(Reason::UpgradeRefused).log(why), request: None };
    if !asked {
        return Err(refused("a 101 that nobody asked for"));
    }
    if client.is_uploading() {
        return Err(refused("a 101 in the middle of an exchange"));
    }
    let (io, first) = client.into_raw();
    Ok(Answer::Switched(Response::from_parts(parts, ()), Raw { io, first }))
}

/// The response's body, with the connection that it comes on.
fn body<O: Opener>(client: Box<Client<O>>, idle: Duration, whole: Option<Instant>) -> Body {
    let is_uploading = client.is_uploading();
    if client.is_over() {
        if is_uploading {
            Box::new(Apart::start(client)).finish();
        } else {
            client.release();
        }
        return Body::empty();
    }
    let drive: Box<dyn Drive> = if is_uploading { Box::new(Apart::start(client)) } else { client };
    let body = Body::answer(drive).idle_timeout(idle, Reason::OriginTimeout);
    match whole {
        Some(whole) => body.deadline(whole),
        None => body,
    }
}

/// A connection whose request's body is still under way: a task sends it, and the response's reader reads.
struct Apart<O: Opener> {
    shared: Arc<Shared<O>>,
    over: Option<oneshot::Sender<()>>,
    task: AbortHandle,
}

struct Shared<O: Opener> {
    /// None once the exchange is over.
    client: Mutex<Option<Box<Client<O>>>>,
    /// The response's reader.
    reader: AtomicWaker,
}

impl<O: Opener> Shared<O> {
    fn client(&self) -> MutexGuard<'_, Option<Box<Client<O>>>> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<O: Opener> Apart<O> {
    fn start(client: Box<Client<O>>) -> Self {
        let (over, is_over) = oneshot::channel();
        let shared = Arc::new(Shared { client: Mutex::new(Some(client)), reader: AtomicWaker::new() });
        let task = tokio::spawn(upload(shared.clone(), is_over)).abort_handle();
        Self { shared, over: Some(over), task }
    }
}

impl<O: Opener> Drive for Apart<O> {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        self.shared.reader.register(cx.waker());
        let mut client = self.shared.client();
        let Some(client) = &mut *client else { return Poll::Ready(Some(Err(Fault::new(Reason::Internal)))) };
        if let Some(fault) = client.take_failure() {
            return Poll::Ready(Some(Err(fault)));
        }
        Drive::poll_frame(&mut **client, cx)
    }

    fn left(&self) -> Option<u64> {
        self.shared.client().as_ref().and_then(|client| client.left())
    }

    fn is_over(&self) -> bool {
        self.shared.client().as_ref().is_none_or(|client| Drive::is_over(&**client))
    }

    fn finish(mut self: Box<Self>) {
        if let Some(over) = self.over.take() {
            let _ = over.send(());
        }
    }
}

impl<O: Opener> Drop for Apart<O> {
    fn drop(&mut self) {
        if self.over.is_some() {
            self.task.abort();
            self.shared.client().take();
        }
    }
}

/// Sends what is left of a request's body; gives the connection back when the response is over as well.
async fn upload<O: Opener>(shared: Arc<Shared<O>>, is_over: oneshot::Receiver<()>) {
    let sent = poll_fn(|cx| {
        let mut client = shared.client();
        let Some(client) = &mut *client else { return Poll::Ready(()) };
        let polled = client.poll_upload(cx);
        if polled.is_ready() {
            // It may have to hear of a failure.
            shared.reader.wake();
        }
        polled
    });
    let mut is_over = pin!(is_over);
    let mut sent = pin!(sent);
    tokio::select! {
        () = &mut sent => {
            // Cut: whoever cut it has taken the connection.
            if is_over.await.is_err() {
                return;
            }
        }
        ended = &mut is_over => {
            if ended.is_err() || tokio::time::timeout(LINGER, sent).await.is_err() {
                shared.client().take();
                return;
            }
        }
    }
    if let Some(client) = shared.client().take() {
        client.release();
    }
}
