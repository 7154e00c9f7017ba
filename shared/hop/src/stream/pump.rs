//! A body that goes out on an HTTP/2 stream, at the pace of whoever reads it.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use h2::{Reason, SendStream};
use http_body::Body as HttpBody;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::body::Body;
use crate::fault::Fault;

/// How a body went out.
#[derive(Debug)]
pub(crate) enum Pumped {
    /// To its end, of which the stream was told.
    Whole,
    /// It failed. The stream is still open.
    Cut(Fault),
    /// The other side wants no more of it, or its connection is gone.
    Unwanted,
    /// The other side has taken nothing for too long. The stream is still open.
    Stalled,
}

/// What a stream has taken.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    frames: AtomicU64,
    bytes: AtomicU64,
}

impl Progress {
    pub(crate) fn frames(&self) -> u64 {
        self.frames.load(Ordering::Relaxed)
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    fn add(&self, bytes: usize) {
        self.frames.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(u64::try_from(bytes).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

/// Sends a body. `patience` is how long the other side may take nothing of what is there.
pub(crate) async fn pump(
    body: Body,
    out: &mut SendStream<Bytes>,
    patience: Option<Duration>,
    progress: &Progress,
) -> Pumped {
    let mut body = pin!(body);
    loop {
        let frame = poll_fn(|cx| {
            if out.poll_reset(cx).is_ready() {
                return Poll::Ready(Err(Pumped::Unwanted));
            }
            body.as_mut().poll_frame(cx).map(Ok)
        });
        let frame = match frame.await {
            Err(unwanted) => return unwanted,
            Ok(Some(Err(fault))) => return Pumped::Cut(fault),
            Ok(Some(Ok(frame))) => frame,
            Ok(None) => return whole(out.send_data(Bytes::new(), true)),
        };
        match frame.into_data() {
            Ok(data) => {
                let is_last = body.is_end_stream();
                if let Err(end) = send(data, is_last, out, patience, progress).await {
                    return end;
                }
                if is_last {
                    return Pumped::Whole;
                }
            }
            Err(frame) => {
                if let Ok(trailers) = frame.into_trailers() {
                    return whole(out.send_trailers(trailers));
                }
            }
        }
    }
}

fn whole(sent: Result<(), h2::Error>) -> Pumped {
    if sent.is_ok() { Pumped::Whole } else { Pumped::Unwanted }
}

async fn send(
    mut data: Bytes,
    is_last: bool,
    out: &mut SendStream<Bytes>,
    patience: Option<Duration>,
    progress: &Progress,
) -> Result<(), Pumped> {
    if data.is_empty() && is_last {
        return out.send_data(data, true).map_err(|_| Pumped::Unwanted);
    }
    let mut sleep = pin!(None);
    while !data.is_empty() {
        out.reserve_capacity(data.len());
        let mut room = out.capacity();
        if room == 0 {
            room = capacity(out, patience, sleep.as_mut()).await?;
        }
        let part = data.split_to(room.min(data.len()));
        progress.add(part.len());
        out.send_data(part, is_last && data.is_empty()).map_err(|_| Pumped::Unwanted)?;
    }
    Ok(())
}

/// Waits until the stream takes something.
async fn capacity(
    out: &mut SendStream<Bytes>,
    patience: Option<Duration>,
    mut sleep: Pin<&mut Option<Sleep>>,
) -> Result<usize, Pumped> {
    let due = patience.and_then(|patience| Instant::now().checked_add(patience));
    sleep.set(due.map(sleep_until));
    poll_fn(|cx| {
        loop {
            match out.poll_capacity(cx) {
                Poll::Ready(Some(Ok(0))) => {}
                Poll::Ready(Some(Ok(room))) => return Poll::Ready(Ok(room)),
                Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(Err(Pumped::Unwanted)),
                Poll::Pending => break,
            }
        }
        if out.poll_reset(cx).is_ready() {
            return Poll::Ready(Err(Pumped::Unwanted));
        }
        match sleep.as_mut().as_pin_mut() {
            Some(sleep) => sleep.poll(cx).map(|()| Err(Pumped::Stalled)),
            None => Poll::Pending,
        }
    })
    .await
}

/// What the other side is told when a body is cut for this reason of ours.
pub(crate) fn code(fault: &Fault, is_told: bool) -> Reason {
    if is_told { fault.reason.reset_code().into() } else { Reason::INTERNAL_ERROR }
}
