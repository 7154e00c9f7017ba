//! One connection of a caller, from its first byte to its end.
//!
//! Must never end an answer that is cut short as if it were whole.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use culvert_hop::body::Body;
use culvert_hop::message::Request;
use culvert_hop::request::Caller;
use culvert_hop::server::serve;
use culvert_hop::wakes::Quiet;
use culvert_ops::drain::InFlight;
use http::StatusCode;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::sleep;
use tracing::debug;

use super::arrival::{Arrived, Manners};
use super::io::{CallerIo, Fate, Socket};
use super::{Front, Running};
use crate::cores;
use crate::door::Door;
use crate::gateways::PeerCertificate;

/// In a drain an idle connection stays open this long: the request that may be on its way is still answered.
const IDLE_LINGER: Duration = Duration::from_secs(1);

/// The shard whose thread accepts.
const ACCEPTS: u8 = 0;

/// A socket as it was accepted, and what is held for it.
pub(super) struct Accepted {
    pub(super) socket: Socket,
    /// Who called; none on a unix socket.
    pub(super) source: Option<SocketAddr>,
    /// Leave to be open.
    pub(super) permit: OwnedSemaphorePermit,
}

/// What all requests of a connection share.
struct Visit {
    door: Arc<Door>,
    caller: Caller,
    certificate: Option<Arc<PeerCertificate>>,
    running: Arc<Running>,
    fate: Arc<Fate>,
}

impl Visit {
    fn new(door: Arc<Door>, caller: Caller, certificate: Option<Arc<PeerCertificate>>, io: &CallerIo) -> Self {
        let fate = io.fate();
        Self { door, caller, certificate, running: Arc::new(Running::on(Arc::clone(&fate))), fate }
    }
}

impl Accepted {
    /// Has its socket looked after by this thread's runtime.
    pub(super) fn settle(mut self) -> io::Result<Self> {
        if cores::here() != ACCEPTS {
            self.socket = self.socket.settle()?;
        }
        Ok(self)
    }

    /// Where it called.
    pub(super) fn destination(&self) -> Option<SocketAddr> {
        match &self.socket {
            Socket::Tcp(stream) => stream.local_addr().ok(),
            Socket::Unix(_) => None,
        }
    }

    pub(super) async fn arrive(self, front: &Front, manners: Manners) -> Option<(Arrived, OwnedSemaphorePermit)> {
        let (source, destination) = (self.source, self.destination());
        match front.arrivals.arrive(self.socket, source, destination, manners).await {
            Ok(arrived) => Some((arrived, self.permit)),
            Err(why) => {
                debug!(%why, "a connection was turned away");
                None
            }
        }
    }
}

/// Serves HTTP on it.
pub(super) async fn connection(
    front: Arc<Front>,
    accepted: Accepted,
    door: Arc<Door>,
    open: InFlight,
    fate: Arc<Fate>,
) {
    let manners = door.manners();
    if !manners.proxy_protocol && manners.tls.is_none() {
        let destination = accepted.destination();
        let caller = caller(accepted.source, destination, false);
        let (io, _permit) = (CallerIo::plain(accepted.socket).share(fate), accepted.permit);
        let visit = Visit::new(door, caller, None, &io);
        speak(&front, io, visit, Speaks::Either, open).await;
        return;
    }
    // In a box: most listeners never come here.
    let Some((arrived, _permit)) = Box::pin(accepted.arrive(&front, manners)).await else { return };
    let Arrived { io, source, destination, tls } = arrived;
    let io = io.share(fate);
    let caller = caller(source, destination, tls.is_some());
    let (speaks, certificate) = match tls {
        None => (Speaks::Either, None),
        Some(settled) if settled.http2 => (Speaks::Http2, settled.certificate),
        Some(settled) => (Speaks::Http1, settled.certificate),
    };
    let visit = Visit::new(door, caller, certificate, &io);
    Box::pin(speak(&front, io, visit, speaks, open)).await;
}

/// Which HTTP is spoken.
#[derive(Debug, Clone, Copy)]
pub(super) enum Speaks {
    /// In clear text the first bytes tell.
    Either,
    Http1,
    Http2,
}

async fn speak(front: &Front, mut io: CallerIo, visit: Visit, speaks: Speaks, _open: InFlight) {
    let settings = front.settings(speaks);
    io.set_patience(settings.unread_timeout);
    let (visit, exchanges) = (Arc::new(visit), &front.exchanges);
    let answer = |request: Request<Body>| {
        let (exchanges, visit) = (Arc::clone(exchanges), Arc::clone(&visit));
        async move {
            let Visit { door, caller, certificate, running, fate } = &*visit;
            let response = exchanges.carry(door, *caller, certificate.as_ref(), running, request).await;
            if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                fate.be_patient();
            }
            Ok(response)
        }
    };
    let idle = async {
        exchanges.drain.closing().await;
        sleep(IDLE_LINGER).await;
    };
    tokio::select! {
        () = serve(io, &settings, answer, idle) => {}
        () = Quiet::new(visit.running.cut(&exchanges.drain, &exchanges.long)) => visit.fate.set_reset(true),
    }
}

fn caller(source: Option<SocketAddr>, destination: Option<SocketAddr>, tls: bool) -> Caller {
    Caller {
        address: source.map(|source| source.ip().to_canonical()),
        tls,
        port: destination.map(|destination| destination.port()),
    }
}
