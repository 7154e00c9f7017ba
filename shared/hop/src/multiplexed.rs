//! One request and its response on a stream of an HTTP/2 connection, with deadlines, both bodies streaming at once.
//!
//! Must never keep the other side working for somebody who went away: whatever is dropped early resets its stream.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use culvert_model::reason::Reason;
use h2::client::ResponseFuture;
use h2::{RecvStream, SendStream};
use http::StatusCode;
use http_body::Body as _;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, sleep_until};

use crate::body::{Body, Flag, STARVED, UPLOADING};
use crate::exchange::{Answer, Deadlines, LINGER, SendError};
use crate::expect::Gate;
use crate::fault::Fault;
use crate::http2;
use crate::interim::Interim;
use crate::lines::Turn;
use crate::message::Request;
use crate::pool::{Lost, Opener};
use crate::stream::{Inbound, Owner, Progress, Pumped, pump};

/// A request's body on its way; its fault, if it was not whole.
type Upload = Pin<Box<dyn Future<Output = Option<Fault>> + Send>>;

/// Sends a request on a connection with room for it.
pub(crate) async fn run<O: Opener>(
    turn: Turn<O>,
    request: Request<Body>,
    gate: Option<&Arc<Gate>>,
    deadlines: &Deadlines,
    now: Instant,
) -> Result<Answer<O::Io>, SendError> {
    let mut sender = turn.line().sender();
    if let Poll::Ready(Err(error)) = sender.poll_ready(&mut Context::from_waker(Waker::noop())) {
        return Err(SendError { fault: turn.name(Lost::Refused).log(error), request: Some(Box::new(request)) });
    }
    let (mut parts, mut body) = request.into_parts();
    let interim = parts.interim.take();
    http2::for_http2(&mut parts, turn.line().scheme.clone()).map_err(|fault| SendError { fault, request: None })?;
    let is_empty = body.is_end_stream();
    let bits = Arc::new(AtomicU32::new(0));
    if !is_empty {
        body = body.flagged(Flag::raise(&bits, UPLOADING, STARVED));
    }
    let (response, send) = sender
        .send_request(parts.into_http(), is_empty)
        .map_err(|error| SendError { fault: turn.fault(&error), request: None })?;
    drop(sender);
    let turn = Arc::new(turn);
    let progress = Arc::new(Progress::default());
    let upload: Option<Upload> = match is_empty {
        true => None,
        false => Some(Box::pin(upload(body, send, progress.clone(), turn.clone()))),
    };
    let mut asking = Asking { response, upload, bits, progress, turn };
    let whole = deadlines.request.and_then(|limit| now.checked_add(limit));
    let response = match asking.ask((gate, interim.as_ref()), deadlines, whole, now).await {
        Ok(response) => response,
        Err(fault) => return Err(SendError { fault, request: None }),
    };
    let Asking { mut upload, turn, .. } = asking;
    if gate.is_some_and(|gate| !gate.is_open()) {
        // A body that waits for a 100 which will not come any more is not sent at all.
        upload = None;
    }
    let (mut parts, receive) = response.into_parts();
    // Nobody else may read h2's.
    parts.extensions.clear();
    let owner = Box::new(Answering::new(turn, upload));
    let body = if receive.is_end_stream() {
        drop(receive);
        owner.finish();
        Body::empty()
    } else {
        let inbound = Inbound::new(receive, &parts.headers, owner);
        let body = Body::stream(inbound).idle_timeout(deadlines.idle, Reason::OriginTimeout);
        match whole {
            Some(whole) => body.deadline(whole),
            None => body,
        }
    };
    Ok(Answer::Response(http::Response::from_parts(parts, body).into()))
}

/// A request whose response has not begun.
struct Asking<O: Opener> {
    response: ResponseFuture,
    upload: Option<Upload>,
    bits: Arc<AtomicU32>,
    progress: Arc<Progress>,
    turn: Arc<Turn<O>>,
}

impl<O: Opener> Asking<O> {
    /// Waits for the response's head.
    async fn ask(
        &mut self,
        (gate, interim): (Option<&Arc<Gate>>, Option<&Interim>),
        deadlines: &Deadlines,
        whole: Option<Instant>,
        now: Instant,
    ) -> Result<http::Response<RecvStream>, Fault> {
        let due = |from: Instant| from.checked_add(deadlines.first_byte).into_iter().chain(whole).min();
        let mut timer = pin!(sleep_until(due(now).unwrap_or(now)));
        let mut taken = 0;
        poll_fn(|cx| {
            if let Some(upload) = &mut self.upload
                && let Poll::Ready(failed) = upload.as_mut().poll(cx)
            {
                self.upload = None;
                if let Some(fault) = failed {
                    return Poll::Ready(Err(fault));
                }
            }
            while let Poll::Ready(Some(Ok(early))) = self.response.poll_informational(cx) {
                match (early.status(), gate, interim) {
                    (StatusCode::CONTINUE, Some(gate), _) => gate.open(),
                    (status, _, Some(interim)) => interim.tell(status, early.headers().clone().into()),
                    (_, _, None) => {}
                }
            }
            if let Poll::Ready(result) = Pin::new(&mut self.response).poll(cx) {
                return Poll::Ready(result.map_err(|error| self.turn.fault(&error)));
            }
            while timer.as_mut().poll(cx).is_ready() {
                let now = Instant::now();
                if whole.is_some_and(|whole| whole <= now) {
                    return Poll::Ready(Err(Fault::new(Reason::Deadline)));
                }
                let bits = self.bits.load(Ordering::Relaxed);
                let is_moving = self.progress.bytes() != taken || bits & STARVED != 0;
                taken = self.progress.bytes();
                match due(now) {
                    Some(due) if bits & UPLOADING != 0 && is_moving => timer.as_mut().reset(due),
                    _ => return Poll::Ready(Err(self.turn.name(Lost::Silent))),
                }
            }
            Poll::Pending
        })
        .await
    }
}

async fn upload<O: Opener>(
    body: Body,
    mut send: SendStream<Bytes>,
    progress: Arc<Progress>,
    _turn: Arc<Turn<O>>,
) -> Option<Fault> {
    match pump(body, &mut send, None, &progress).await {
        Pumped::Cut(fault) => {
            send.send_reset(h2::Reason::CANCEL);
            Some(fault)
        }
        Pumped::Whole | Pumped::Unwanted | Pumped::Stalled => None,
    }
}

/// The owner of a response's body. Dropped before the body's end, it takes the request's body back as well.
struct Answering<O: Opener> {
    turn: Arc<Turn<O>>,
    uploading: Option<Uploading>,
}

/// A request's body that is still under way: its pace must not hang on how fast the response is read.
struct Uploading {
    task: AbortHandle,
    over: Option<oneshot::Sender<()>>,
    failed: Arc<Mutex<Option<Fault>>>,
}

impl<O: Opener> Answering<O> {
    fn new(turn: Arc<Turn<O>>, upload: Option<Upload>) -> Self {
        Self { turn, uploading: upload.map(Uploading::start) }
    }
}

impl<O: Opener> Owner for Answering<O> {
    fn fault(&mut self, error: &h2::Error) -> Fault {
        let own = self
            .uploading
            .as_ref()
            .and_then(|uploading| uploading.failed.lock().unwrap_or_else(PoisonError::into_inner).take());
        own.unwrap_or_else(|| self.turn.fault(error))
    }

    fn finish(mut self: Box<Self>) {
        if let Some(uploading) = &mut self.uploading
            && let Some(over) = uploading.over.take()
        {
            let _ = over.send(());
        }
    }
}

impl Uploading {
    fn start(upload: Upload) -> Self {
        let (over, is_over) = oneshot::channel();
        let failed = Arc::<Mutex<Option<Fault>>>::default();
        let told = failed.clone();
        let task = tokio::spawn(async move {
            let lingered = async {
                if is_over.await.is_err() {
                    std::future::pending::<()>().await;
                }
                sleep(LINGER).await;
            };
            tokio::select! {
                fault = upload => *told.lock().unwrap_or_else(PoisonError::into_inner) = fault,
                () = lingered => {}
            }
        });
        Self { task: task.abort_handle(), over: Some(over), failed }
    }
}

impl Drop for Uploading {
    fn drop(&mut self) {
        if self.over.is_some() {
            self.task.abort();
        }
    }
}
