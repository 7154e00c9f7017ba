//! Which connector gets a request, and what happens when it cannot take it: one wait, one more try, one hedge.
//!
//! Must never send a request twice that is not safe to repeat (wire.md §4), and never wait without a bound.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use culvert_hop::body::Body;
use culvert_hop::exchange::{Answer, Deadlines, SendError};
use culvert_hop::failure;
use culvert_hop::fault::{Fault, Retry, Side};
use culvert_hop::message::Request;
use culvert_hop::retry::{self, Again};
use culvert_model::control::ServiceTimeouts;
use culvert_model::reason::Reason;
use tokio::time::{sleep, timeout_at};

use crate::behind;
use crate::far_end::FarEnd;
use crate::record::InUse;
use crate::sessions::{Member, Pair, Service, Via};

/// The longest wait for a connector that is on its way back (wire.md §2 "Relay restart").
const WAIT_AT_MOST: Duration = Duration::from_secs(2);
/// So many requests may wait for connectors at once.
const WAITING_AT_MOST: usize = 4_096;
/// A tunnel that was silent and does not answer for so long gets a rival (wire.md §2 "Liveness").
const HEDGE_AFTER: Duration = Duration::from_millis(250);

/// Sends requests of the whole process.
#[derive(Debug, Default)]
pub(crate) struct Sender {
    waiting: AtomicUsize,
}

/// An answer, and over which connector it came.
pub(crate) struct Sent {
    /// As received, the connector's failure field taken out.
    pub(crate) answer: Answer<FarEnd>,
    /// Over this one.
    pub(crate) pair: Arc<Pair>,
    /// Counts it as running.
    pub(crate) in_use: InUse,
    /// When it came.
    pub(crate) at: Instant,
}

/// No answer, and over which connector it was tried last.
pub(crate) struct Failed {
    /// What to tell the caller.
    pub(crate) fault: Fault,
    /// The last one tried.
    pub(crate) in_use: Option<InUse>,
}

impl Sender {
    /// Sends one request in its final form to a connector of the service.
    ///
    /// `stick` is the key by which the service's balance chooses, `now` when the first try begins.
    pub(crate) async fn send(
        &self,
        service: &Arc<Service>,
        mut request: Request<Body>,
        stick: Option<u64>,
        mut now: Instant,
    ) -> Result<Sent, Failed> {
        let idempotent = retry::is_idempotent(request.method());
        let mut failed: Option<(Arc<Pair>, Failed)> = None;
        loop {
            let not = failed.as_ref().map(|(pair, _)| &*pair.member);
            let (pair, last) = match (self.choose(service, stick, not, now).await, failed.take()) {
                (Ok(pair), failed) => (pair, failed.is_some()),
                (Err(fault), None) => return Err(Failed { fault, in_use: None }),
                // Nobody else: the same connector may have lost one stream, or one of its lanes.
                (Err(_), Some((pair, first))) if may_have_lost_no_more(&pair, &first) => (pair, true),
                (Err(_), Some((_, first))) => return Err(first),
            };
            let room = match pair.member.room.enter().await {
                Ok(room) => room,
                Err(fault) => return Err(Failed { fault, in_use: None }),
            };
            // Where nobody else could take it, the connector may come back while an idempotent request waits.
            let keep = !last && (idempotent || service.has_others(&pair));
            let (sent, mut again) = if keep { kept(request) } else { (request, None) };
            let silent = pair.member.begin(now);
            let in_use = InUse::new(Arc::clone(&pair.member), room);
            // In a box: the futures around this one are moved several times on their way to their task.
            let tried = match silent && idempotent && service.has_others(&pair) {
                true => Box::pin(self.hedged(service, pair, in_use, sent, &mut again)).await,
                false => Box::pin(once(pair, in_use, sent)).await,
            };
            let (pair, in_use, error) = match tried {
                Ok(sent) => return Ok(sent),
                Err(error) => error,
            };
            let SendError { fault, request: untouched } = error;
            let once_more = match (untouched, again) {
                (_, _) if last => None,
                (Some(untouched), _) => Some(*untouched),
                (None, Some(again)) => again.request(&fault),
                (None, None) => None,
            };
            match once_more {
                Some(once_more) => {
                    tracing::debug!(
                        service = %service.name(), connector = %pair.member.who, reason = %fault.reason,
                        detail = fault.detail(), "trying once more"
                    );
                    (request, now) = (once_more, Instant::now());
                    failed = Some((pair, Failed { fault, in_use: Some(in_use) }));
                }
                None => return Err(Failed { fault, in_use: Some(in_use) }),
            }
        }
    }

    /// Chooses a pair, and waits for one that is on its way back.
    async fn choose(
        &self,
        service: &Service,
        stick: Option<u64>,
        not: Option<&Member>,
        start: Instant,
    ) -> Result<Arc<Pair>, Fault> {
        let refused = match service.choose(stick, not, start) {
            Ok(pair) => return Ok(pair),
            Err(reason) => reason,
        };
        if service.expected_until(start).is_none() {
            return Err(Fault::new(refused));
        }
        Box::pin(self.wait(service, stick, not, start)).await
    }

    async fn wait(
        &self,
        service: &Service,
        stick: Option<u64>,
        not: Option<&Member>,
        start: Instant,
    ) -> Result<Arc<Pair>, Fault> {
        let Some(_place) = Place::take(&self.waiting) else { return Err(Fault::new(Reason::Overloaded)) };
        loop {
            let changed = service.changed().notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let now = Instant::now();
            let refused = match service.choose(stick, not, now) {
                Ok(pair) => return Ok(pair),
                Err(reason) => reason,
            };
            let until = service.expected_until(now).map(|until| until.min(start + WAIT_AT_MOST));
            let Some(until) = until.filter(|until| *until > now) else { return Err(Fault::new(refused)) };
            let _ = timeout_at(until.into(), changed).await;
        }
    }

    /// Sends over a tunnel that was silent: it is being asked whether it is there, and when neither that nor the request
    /// is answered soon, another connector gets the request too. The first answer counts.
    async fn hedged(
        &self,
        service: &Service,
        pair: Arc<Pair>,
        in_use: InUse,
        request: Request<Body>,
        again: &mut Option<Again>,
    ) -> Result<Sent, Tried> {
        let asked = Arc::clone(&pair);
        let first = once(pair, in_use, request);
        tokio::pin!(first);
        tokio::select! {
            biased;
            result = &mut first => return result,
            () = asked.member.answered() => return first.await,
            () = sleep(HEDGE_AFTER) => {}
        }
        let other = service.choose(None, Some(&asked.member), Instant::now());
        let doubt = Fault::new(Reason::ConnectorLost).side(Side::Tunnel).retry(Retry::IfIdempotent);
        let (Ok(other), Some(request)) = (other, again.take().and_then(|again| again.request(&doubt))) else {
            return first.await;
        };
        let Ok(room) = other.member.room.enter().await else { return first.await };
        tracing::debug!(service = %service.name(), connector = %other.member.who, "asking another connector too");
        let _ = other.member.begin(Instant::now());
        let in_use = InUse::new(Arc::clone(&other.member), room);
        let second = once(other, in_use, request);
        tokio::pin!(second);
        tokio::select! {
            biased;
            result = &mut first => match result {
                Ok(sent) => Ok(sent),
                Err(_) => second.await,
            },
            result = &mut second => match result {
                Ok(sent) => Ok(sent),
                Err(_) => first.await,
            },
        }
    }
}

/// Whether a connector may have lost one stream and not its connection, or a lane and not its session.
fn may_have_lost_no_more(pair: &Pair, failed: &Failed) -> bool {
    let Failed { fault, in_use } = failed;
    let lost_a_lane = in_use.as_ref().is_some_and(InUse::is_over_lost_lane);
    pair.member.is_open() && fault.side == Side::Tunnel && (fault.retry == Retry::Safe || lost_a_lane)
}

type Tried = (Arc<Pair>, InUse, SendError);

/// One try over one connector.
async fn once(pair: Arc<Pair>, mut in_use: InUse, request: Request<Body>) -> Result<Sent, Tried> {
    let tunnel = match &pair.member.via {
        Via::Tunnels(tunnels) => in_use.over(tunnels.choose()),
        Via::Branch(branch) => {
            return match Box::pin(behind::send(branch, &pair.service, request)).await {
                Ok(answer) => Ok(Sent { answer, pair, in_use, at: Instant::now() }),
                Err(fault) => Err((pair, in_use, SendError { fault, request: None })),
            };
        }
    };
    let mut answer = match tunnel.upstream.send(request, &deadlines(pair.timeouts)).await {
        Ok(answer) => answer,
        Err(error) => return Err((pair, in_use, error)),
    };
    let at = Instant::now();
    pair.member.note_heard(at);
    if let Answer::Response(response) = &mut answer
        && let Some(fault) = failure::take(response.headers_mut())
    {
        return Err((pair, in_use, SendError { fault, request: None }));
    }
    Ok(Sent { answer: FarEnd::over_tunnel(answer), pair, in_use, at })
}

fn kept(request: Request<Body>) -> (Request<Body>, Option<Again>) {
    let (request, again) = Again::keep(request);
    (request, Some(again))
}

/// What the connector's operator set, over the defaults.
fn deadlines(timeouts: ServiceTimeouts) -> Deadlines {
    let default = Deadlines::default();
    let millis = |millis: Option<u64>| millis.map(Duration::from_millis);
    Deadlines {
        first_byte: millis(timeouts.first_byte_ms).unwrap_or(default.first_byte),
        idle: millis(timeouts.idle_ms).unwrap_or(default.idle),
        request: millis(timeouts.request_ms).or(default.request),
    }
}

/// One of the places in the queue.
struct Place<'a>(&'a AtomicUsize);

impl<'a> Place<'a> {
    fn take(waiting: &'a AtomicUsize) -> Option<Self> {
        let before = waiting.fetch_add(1, Ordering::Relaxed);
        let place = Self(waiting);
        (before < WAITING_AT_MOST).then_some(place)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_queue_for_connectors_is_bounded_and_places_come_back() {
        let waiting = AtomicUsize::new(WAITING_AT_MOST - 1);
        let last = Place::take(&waiting);
        assert!(last.is_some());
        assert!(Place::take(&waiting).is_none());
        drop(last);
        assert!(Place::take(&waiting).is_some());
        assert_eq!(waiting.into_inner(), WAITING_AT_MOST - 1);
    }

    #[test]
    fn deadlines_are_the_connectors_over_ours() {
        let own = ServiceTimeouts { first_byte_ms: Some(5), request_ms: Some(7), ..ServiceTimeouts::default() };
        let settled = deadlines(own);
        assert_eq!(settled.first_byte, Duration::from_millis(5));
        assert_eq!(settled.request, Some(Duration::from_millis(7)));
        assert_eq!(settled.idle, Deadlines::default().idle);
    }
}
