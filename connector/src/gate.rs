//! The gate: takes the relay's streams, and each request on them to the origin that its service names.
//!
//! Deny by default: a service that is not in the table does not exist. Must never follow a redirect, show the relay an
//! origin's address, or end an answer cleanly that the origin cut.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};

use culvert_hop::body::{Body, Ending, Outcome};
use culvert_hop::failure;
use culvert_hop::fault::{Fault, Retry, Side};
use culvert_hop::message::{Handle, Request, RequestParts as Parts, Response};
use culvert_hop::request::{self, Head};
use culvert_hop::server::{self, ServerSettings};
use culvert_hop::upgrade::{OnUpgrade, Protocol, Raw, splice};
use culvert_model::control::SERVICE_FIELD;
use culvert_model::reason::Reason;
use culvert_ops::drain::{Drain, InFlight};
use culvert_ops::runtime::now;
use culvert_ops::task::Owner;
use culvert_origin::exchange::{Carried, Switch, exchange};
use culvert_origin::figures::ServiceMetrics;
use culvert_origin::origin_io::OriginIo;
use culvert_origin::origins::{Origins, Upstream};
use culvert_plane::{Closed, Connection, Stream};
use http::{StatusCode, Version};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use crate::metrics::ConnectorMetrics;

mod tcp;

/// Streams that a relay may have open at first; doubled while more than half are in use.
pub const STREAMS_AT_FIRST: u32 = 256;
/// And at most.
const STREAMS_AT_MOST: u32 = 8192;

/// What every stream needs. Clones share it.
#[derive(Clone)]
pub struct Gate {
    origins: Origins,
    metrics: Arc<ConnectorMetrics>,
    drain: Drain,
    settings: Arc<ServerSettings>,
}

/// Tasks that outlive a stream's exchanges: upgraded connections. They end with the relay's connection.
type Upgraded = Arc<std::sync::Mutex<Owner>>;

impl Gate {
    /// A gate to these origins.
    pub fn new(origins: Origins, metrics: Arc<ConnectorMetrics>, drain: Drain) -> Self {
        Self { origins, metrics, drain, settings: Arc::new(ServerSettings::gate()) }
    }

    /// Takes the streams of one connection until it ends.
    pub async fn serve(&self, connection: &Connection) -> Closed {
        let mut streams = Owner::new();
        let upgraded = Upgraded::default();
        let open = Arc::new(AtomicU32::new(0));
        let mut permitted = STREAMS_AT_FIRST;
        loop {
            let stream = match connection.accept().await {
                Ok(stream) => stream,
                Err(closed) => return closed,
            };
            let count = Counted::enter(&open);
            if open.load(Ordering::Relaxed) > permitted / 2 && permitted < STREAMS_AT_MOST {
                permitted *= 2;
                connection.permit_streams(permitted);
            }
            let (gate, upgraded) = (self.clone(), upgraded.clone());
            streams.spawn("connector.stream", async move {
                gate.counted(stream, Some(count), &upgraded).await;
            });
        }
    }

    /// Serves the requests of one stream, one after the other.
    pub async fn stream<Io>(&self, io: Io, upgraded: &Upgraded)
    where
        Io: Cancel + AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        self.counted(io, None, upgraded).await;
    }

    async fn counted<Io>(&self, io: Io, count: Option<Counted>, upgraded: &Upgraded)
    where
        Io: Cancel + AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let cut = Arc::new(AtomicU32::new(0));
        let io = Tunnelled { io, cut: cut.clone(), _count: count };
        let service = |request| {
            let (gate, upgraded, cut) = (self.clone(), upgraded.clone(), cut.clone());
            async move { Ok::<_, Infallible>(gate.answer(request, &upgraded, cut).await) }
        };
        // Idle streams stay until the whole connection goes: the relay may have sent a request on one before it knew
        // of the drain.
        server::serve(io, &self.settings, service, std::future::pending()).await;
    }

    async fn answer(&self, request: Request<Body>, upgraded: &Upgraded, cut: Arc<AtomicU32>) -> Response<Body> {
        let started = Instant::now();
        let (mut parts, body) = request.into_parts();
        // An HTTP/2 stream is reset with its reason by itself, and the tunnel's stream below it lives on.
        let cut = (parts.version < Version::HTTP_2).then_some(cut);
        let Some(upstream) = self.upstream(&parts) else {
            self.metrics.failed(None, Reason::NoSuchService);
            tracing::debug!("request for a service that is not here");
            // Nothing was sent, and another connector may have it.
            return failure::respond(&Fault::new(Reason::NoSuchService).side(Side::Here).retry(Retry::Safe));
        };
        let metrics = upstream.metrics.get_or_init(|| self.metrics.service(&upstream.service.name)).clone();
        let entered =
            Entered { metrics, started, in_flight: self.drain.enter(started.into_std()), all: self.metrics.clone() };
        let outcome = match request::check(&mut parts) {
            Ok(head) if tcp::is_asked(&upstream, &head) => {
                Box::pin(self.connect(&parts, head, &upstream, upgraded)).await
            }
            Ok(head) => self.exchange(parts, head, body, &upstream, upgraded).await,
            Err((fault, _)) => Err(fault),
        };
        match outcome {
            Ok(response) => entered.respond(response, cut),
            Err(fault) => entered.fail(&fault),
        }
    }

    fn upstream(&self, parts: &Parts) -> Option<Arc<Upstream>> {
        let mut named = parts.headers.get_all(SERVICE_FIELD);
        let name = named.next()?.to_str().ok()?;
        if named.next().is_some() {
            return None;
        }
        self.origins.table().upstream(name).cloned()
    }

    async fn exchange(
        &self,
        parts: Handle<Parts>,
        head: Head,
        body: Body,
        upstream: &Upstream,
        upgraded: &Upgraded,
    ) -> Result<Response<Body>, Fault> {
        match exchange(upstream, parts, head, body).await? {
            Carried::Response(response) => Ok(response),
            Carried::Switched(response, Switch { caller, origin, protocol }) => {
                self.keep(caller, origin, protocol, upstream.service.timeouts.deadlines().idle, upgraded);
                Ok(response)
            }
        }
    }

    /// Passes an upgraded connection's bytes until it ends, the relay's connection does, or the drain's time is over.
    fn keep(
        &self,
        caller: OnUpgrade,
        origin: Raw<OriginIo>,
        protocol: Protocol,
        idle: std::time::Duration,
        upgraded: &Upgraded,
    ) {
        let in_flight = self.drain.enter(now());
        in_flight.streaming();
        let passing = async move {
            let (how, passed) = splice(caller, origin, protocol, idle, in_flight.cut()).await;
            tracing::debug!(?how, up = passed.up, down = passed.down, "upgraded connection ended");
        };
        let mut owner = upgraded.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        owner.spawn("connector.upgraded", passing);
    }
}

/// A request that is being served.
struct Entered {
    metrics: ServiceMetrics,
    started: Instant,
    in_flight: InFlight,
    all: Arc<ConnectorMetrics>,
}

impl Entered {
    fn fail(self, fault: &Fault) -> Response<Body> {
        tracing::debug!(
            reason = %fault.reason,
            detail = fault.detail().unwrap_or_default(),
            ms = self.started.elapsed().as_millis(),
            "request failed"
        );
        self.all.failed(Some(&self.metrics), fault.reason);
        let status = StatusCode::from_u16(fault.reason.status()).unwrap_or(StatusCode::BAD_GATEWAY);
        self.all.answered(&self.metrics, status, self.started.elapsed());
        drop(self.in_flight);
        failure::respond(fault)
    }

    /// Counts the answer when its body has ended. A body that the origin cut tells the tunnel's stream why it is reset.
    fn respond(self, response: Response<Body>, cut: Option<Arc<AtomicU32>>) -> Response<Body> {
        self.metrics.enter();
        let status = response.status();
        response.map(|body| {
            body.on_end(move |Ending { outcome, .. }| {
                if let Outcome::Cut(reason) = outcome {
                    if let Some(cut) = cut {
                        cut.store(reason.reset_code(), Ordering::Relaxed);
                    }
                    self.all.failed(Some(&self.metrics), reason);
                }
                self.all.answered(&self.metrics, status, self.started.elapsed());
                self.metrics.leave();
                drop(self.in_flight);
            })
        })
    }
}

/// A stream that can be ended for a reason.
pub trait Cancel {
    /// Resets it.
    fn cancel(&mut self, reason: Reason);
}

impl Cancel for Stream {
    fn cancel(&mut self, reason: Reason) {
        Self::cancel(self, reason);
    }
}

#[cfg(test)]
impl Cancel for tokio::io::DuplexStream {
    fn cancel(&mut self, _: Reason) {}
}

/// A stream that, when it is dropped after a cut answer, is reset with the reason.
struct Tunnelled<Io: Cancel> {
    io: Io,
    cut: Arc<AtomicU32>,
    /// Goes with the stream, which an upgraded connection takes away from its task.
    _count: Option<Counted>,
}

impl<Io: Cancel> Drop for Tunnelled<Io> {
    fn drop(&mut self) {
        if let Some(reason) = Reason::from_reset_code(self.cut.load(Ordering::Relaxed)) {
            self.io.cancel(reason);
        }
    }
}

impl<Io: Cancel + AsyncRead + Unpin> AsyncRead for Tunnelled<Io> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<Io: Cancel + AsyncWrite + Unpin> AsyncWrite for Tunnelled<Io> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

struct Counted(Arc<AtomicU32>);

impl Counted {
    fn enter(count: &Arc<AtomicU32>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
