//! One exchange on an HTTP/2 stream.
//!
//! Must never answer an extended CONNECT with success before the origin has switched protocols.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use culvert_model::reason::Reason;
use h2::server::SendResponse;
use h2::{RecvStream, ext};
use http::{HeaderMap, Method};
use http_body::Body as _;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::ServerSettings;
use super::ledger::Ledger;
use crate::body::Body;
use crate::fault::{Fault, Side};
use crate::fields::is_hop_by_hop;
use crate::fields::name::{CONTENT_LENGTH, EXPECT};
use crate::interim::Interim;
use crate::message::{Handle, Request, Response, ResponseParts};
use crate::stream::{Inbound, Owner, Progress, Pumped, RawStream, code, pump};
use crate::upgrade::OnUpgrade;

/// Goes with a response that says yes to an extended CONNECT.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SwitchAccepted;

pub(super) async fn exchange<S, F>(
    request: http::Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    service: &S,
    settings: &ServerSettings,
    ledger: &Arc<Ledger>,
) where
    S: Fn(Request<Body>) -> F,
    F: Future<Output = Result<Response<Body>, Infallible>>,
{
    let (mut parts, mut receive) = request.into_parts();
    if says_nothing_follows(&parts.headers) && !receive.is_end_stream() {
        match timeout(settings.head_timeout, follows(&mut receive)).await {
            Ok(false) => {}
            Ok(true) => return,
            Err(_) => return respond.send_reset(h2::Reason::CANCEL),
        }
    }
    let mut switch = None;
    let interim = Interim::default();
    let body = if parts.method == Method::CONNECT && parts.extensions.get::<ext::Protocol>().is_some() {
        let (hand_over, on) = OnUpgrade::stream();
        parts.extensions.insert(on);
        switch = Some((hand_over, receive));
        Body::empty()
    } else {
        let interim = expects(&parts.headers).then(|| interim.clone());
        Body::stream(Inbound::new(receive, &parts.headers, Box::new(Caller { interim })))
    };
    let (mut parts, body) = Request::from(http::Request::from_parts(parts, body)).into_parts();
    parts.interim = Some(interim.clone());
    let request = Request::from_parts(parts, body);
    // In a box: the future around it would hold it twice.
    let mut answer = Box::pin(service(request));
    let answered = poll_fn(|cx| {
        let answered = answer.as_mut().poll(cx);
        // Those that came together with the answer go first.
        while let Poll::Ready(response) = interim.poll_next(cx) {
            let _ = respond.send_informational(response.into_parts().0.into_http());
        }
        if let Poll::Ready(Ok(response)) = answered {
            return Poll::Ready(Some(response));
        }
        respond.poll_reset(cx).map(|_| None)
    })
    .await;
    drop(answer);
    let Some(response) = answered else { return };
    let (mut head, body) = response.into_parts();
    head.headers.drop_named(is_hop_by_hop);
    if let Some((hand_over, receive)) = switch {
        let is_accepted = head.extensions.get::<SwitchAccepted>().is_some();
        if is_accepted {
            let Ok(send) = respond.send_response(head.into_http(), false) else { return };
            ledger.answered();
            let (over, is_over) = oneshot::channel();
            if hand_over.send(RawStream::new(receive, send, ledger.clone(), over)).is_ok() {
                let _ = is_over.await;
            }
            return;
        }
        if head.status.is_success() {
            // It would mean that the protocol was switched.
            return respond.send_reset(h2::Reason::INTERNAL_ERROR);
        }
    }
    answer_with(head, body, respond, settings, ledger).await;
}

async fn answer_with(
    head: Handle<ResponseParts>,
    body: Body,
    mut respond: SendResponse<Bytes>,
    settings: &ServerSettings,
    ledger: &Arc<Ledger>,
) {
    let is_empty = body.is_end_stream();
    let Ok(mut send) = respond.send_response(head.into_http(), is_empty) else { return };
    ledger.answered();
    if is_empty {
        return;
    }
    let progress = Progress::default();
    let mut told = 0;
    let mut sending = Box::pin(pump(body, &mut send, Some(settings.unread_timeout), &progress));
    let end = poll_fn(|cx| {
        let polled = sending.as_mut().poll(cx);
        let frames = progress.frames();
        if frames != told {
            ledger.moved(frames - told);
            told = frames;
        }
        polled
    })
    .await;
    drop(sending);
    match end {
        Pumped::Whole | Pumped::Unwanted => {}
        Pumped::Cut(fault) => send.send_reset(code(&fault, settings.is_own)),
        Pumped::Stalled => {
            tracing::debug!("an answer that nobody reads was given up");
            send.send_reset(h2::Reason::CANCEL);
        }
    }
}

/// `Content-Length: 0`: whether it is true has to be known before anybody acts on it.
fn says_nothing_follows(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_LENGTH).is_some_and(|length| length.as_bytes().iter().all(|digit| *digit == b'0'))
}

/// Whether there is more than the end, perhaps with trailers. h2 has refused it then.
async fn follows(receive: &mut RecvStream) -> bool {
    loop {
        match receive.data().await {
            None => return false,
            Some(Ok(data)) if data.is_empty() => {}
            Some(_) => return true,
        }
    }
}

fn expects(headers: &HeaderMap) -> bool {
    headers.get(EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

/// The owner of a request's body.
struct Caller {
    /// Told once the body is read, if it waits for that.
    interim: Option<Interim>,
}

impl Owner for Caller {
    fn wanted(&mut self) {
        if let Some(interim) = self.interim.take() {
            interim.want();
        }
    }

    fn fault(&mut self, error: &h2::Error) -> Fault {
        Fault::new(Reason::BadRequest).side(Side::Caller).log(error)
    }
}
