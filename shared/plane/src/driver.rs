//! The tasks of one shard: flush, timers and handshakes, accepting, reporting. They only carry things around: what is
//! decided, the shard decides.

use std::future::{Future, poll_fn};
use std::mem;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use culvert_engine::PeerId;
use quinn::{Connecting, Endpoint};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::yield_now;
use tokio::time::{MissedTickBehavior, interval, sleep_until};

use crate::clock::{SuspendWatch, slept};
use crate::connection::{Connection, Ending, Link};
use crate::event::Event;
use crate::quic::Quic;
use crate::socket::{Shared, now};

/// How often a flush lets the other ready tasks add to a bulk transfer's run.
const PATIENCE: u32 = 3;
/// How often the clocks are compared.
const SUSPEND_CHECK: Duration = Duration::from_secs(5);

/// Sends what a turn produced, once.
///
/// Woken by the first datagram of a turn, it runs after the tasks that were ready then (the runtime's queue is a FIFO),
/// so that their datagrams share system calls.
pub(crate) fn flush(shared: Arc<Shared>) -> impl Future<Output = ()> {
    let (mut seen, mut waited) = (0, 0);
    poll_fn(move |cx| {
        let mut shard = shared.shard();
        if shard.outbox.is_empty() {
            if shard.stopped {
                return Poll::Ready(());
            }
            shard.flusher = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let appended = shard.outbox.appended();
        if shard.bulk && appended != seen && waited < PATIENCE && !shard.outbox.is_full() {
            (seen, waited) = (appended, waited + 1);
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        waited = 0;
        shard.bulk = false;
        let flushed = shard.outbox.poll_flush(cx);
        // A carrier that is blocked has our waker; otherwise the next datagram needs it.
        shard.flusher = flushed.is_ready().then(|| cx.waker().clone());
        let writers = if shard.outbox.is_full() { Vec::new() } else { mem::take(&mut shard.writers) };
        drop(shard);
        for writer in writers {
            writer.wake();
        }
        if flushed.is_ready() {
            shared.flushed.notify_waiters();
        }
        Poll::Pending
    })
}

/// Handshakes within their budget, timers, and closing what the shard wants closed.
pub(crate) async fn work(shared: Arc<Shared>) {
    let (notice, place) = {
        let shard = shared.shard();
        (shard.work.clone(), shard.place.clone())
    };
    let mut suspend = SuspendWatch::new(slept());
    let mut tick = interval(SUSPEND_CHECK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let (more, due, closing, unclaimed) = {
            let mut shard = shared.shard();
            if shard.stopped {
                return;
            }
            let more = shard.handle_turn(now());
            (more, shard.poll_timeout(), mem::take(&mut shard.closing), shard.take_unclaimed())
        };
        if let Some(place) = &place {
            unclaimed.into_iter().for_each(|one| place.settle(one, now()));
        }
        for (link, ending) in closing {
            link.end(ending);
        }
        if more {
            yield_now().await;
            continue;
        }
        let timer = async {
            match due {
                Some(due) => sleep_until(due.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = notice.notified() => {}
            () = timer => {}
            _ = tick.tick() => {
                if let Some(asleep) = suspend.check(slept()) {
                    shared.shard().tell(Event::Resumed { asleep });
                }
            }
        }
    }
}

/// Takes facts from the shard to the plane's owner, as fast as that one reads.
pub(crate) async fn report(shared: Arc<Shared>, owner: mpsc::Sender<Event>) {
    let notice = shared.shard().told.clone();
    loop {
        loop {
            let fact = shared.shard().facts.pop_front();
            match fact {
                // Nobody listens any more: connections are dropped, which closes them.
                Some(fact) => drop(owner.send(fact).await),
                None => break,
            }
        }
        notice.notified().await;
    }
}

/// What makes a [`Link`] of a QUIC connection.
#[derive(Debug, Clone)]
pub(crate) struct Maker {
    pub(crate) shared: Arc<Shared>,
    pub(crate) quic: Arc<Quic>,
    pub(crate) budget: Arc<Semaphore>,
    pub(crate) share: u32,
}

/// Relay: accepts QUIC from peers that have said hello.
pub(crate) async fn accept(maker: Maker, endpoint: Endpoint) {
    while let Some(incoming) = endpoint.accept().await {
        let address = incoming.remote_address();
        let admitted = maker.shared.shard().admit(address);
        let Some((peer, outer)) = admitted else {
            incoming.ignore();
            continue;
        };
        match incoming.accept_with(maker.quic.server(outer)) {
            Ok(connecting) => {
                let handshake = tokio::spawn(establish(maker.clone(), connecting, peer, address));
                maker.shared.shard().handshake_started(peer, handshake.abort_handle());
            }
            Err(error) => tracing::debug!(%error, "refused QUIC handshake"),
        }
    }
}

async fn establish(maker: Maker, connecting: Connecting, peer: PeerId, address: std::net::SocketAddr) {
    match connecting.await {
        Ok(quic) => {
            if let Some(connection) = maker.register(quic, peer, address) {
                maker.shared.shard().tell(Event::Connected(connection));
            }
        }
        Err(error) => tracing::debug!(%error, "QUIC handshake failed"),
    }
}

impl Maker {
    /// Makes the new connection the peer's one; an older one is displaced. `None`: the peer's process has changed or
    /// the peer is gone, and the connection with it.
    pub(crate) fn register(
        &self,
        quic: quinn::Connection,
        peer: PeerId,
        address: std::net::SocketAddr,
    ) -> Option<Connection> {
        let known = self.shared.shard().peers.at(address).map(|known| known.bootstrap);
        let link = Link::new(quic, peer, known.flatten(), &self.budget, self.share);
        let older = {
            let mut shard = self.shared.shard();
            let present = shard.peers.get_mut(peer).filter(|known| known.address == address);
            present.map(|known| {
                known.handshake = None;
                known.flows = link.flows().clone();
                mem::replace(&mut known.link, Arc::downgrade(&link)).upgrade()
            })
        };
        let Some(older) = older else {
            link.end(Ending::Gone);
            return None;
        };
        if let Some(older) = older {
            older.end(Ending::Code(culvert_model::close::CloseCode::Replaced));
        }
        Some(Connection::new(link))
    }
}
