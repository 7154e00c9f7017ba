//! The tasks of one shard beside the way in ([`crate::intake`]): flush, timers and handshakes, reporting. They only carry
//! things around: what is decided, the shard decides.

use std::future::{Future, poll_fn};
use std::mem;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use culvert_engine::PeerId;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::yield_now;
use tokio::time::{MissedTickBehavior, interval, sleep_until};

use crate::clock::{SuspendWatch, slept};
use crate::connection::{Connection, Ending, Link};
use crate::event::Event;
use crate::quic::Guest;
use crate::shard::Closing;
use crate::shared::{Held, Shared, now};

/// How often a flush lets the other ready tasks add to a bulk transfer's run.
const PATIENCE: u32 = 3;
/// How often the clocks are compared.
const SUSPEND_CHECK: Duration = Duration::from_secs(5);

/// Takes what a turn produced out of QUIC, and sends all that waits, once.
///
/// Woken by the first that has something to send, it runs after the tasks that were ready then (the runtime's queue is a
/// FIFO), so that their datagrams share packets and system calls.
pub(crate) fn flush(shared: Arc<Shared>) -> impl Future<Output = ()> {
    let (mut seen, mut waited) = (0, 0);
    let mut woken: Vec<Waker> = Vec::new();
    poll_fn(move |cx| {
        let mut quic = shared.quic();
        let mut shard = shared.shard();
        if shard.stopped && shard.outbox.is_empty() {
            return Poll::Ready(());
        }
        let more = quic.drive(&mut shard, now(), &mut woken);
        let is_sooner = quic.is_sooner();
        if !more {
            wait(&mut quic.flusher, cx);
        }
        drop(quic);
        let appended = shard.outbox.appended();
        let patient = shard.bulk && appended != seen && waited < PATIENCE && !shard.outbox.is_full();
        let flushed = if patient {
            (seen, waited) = (appended, waited + 1);
            Poll::Pending
        } else {
            waited = 0;
            shard.bulk = false;
            shard.outbox.poll_flush(cx)
        };
        // A carrier that is blocked has our waker.
        if patient || (more && flushed.is_ready()) {
            cx.waker().wake_by_ref();
        } else if flushed.is_ready() {
            wait(&mut shard.flusher, cx);
        }
        if is_sooner {
            shard.work.notify_one();
        }
        if !shard.outbox.is_full() {
            woken.append(&mut shard.writers);
        }
        drop(shard);
        woken.drain(..).for_each(Waker::wake);
        if flushed.is_ready() {
            shared.flushed.notify_waiters();
        }
        Poll::Pending
    })
}

/// Leaves the flush's waker where it is taken once there is something to do.
fn wait(flusher: &mut Option<Waker>, cx: &Context<'_>) {
    if !flusher.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
        *flusher = Some(cx.waker().clone());
    }
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
        shared.close_released(now());
        if let Some(place) = &place {
            unclaimed.into_iter().for_each(|one| place.settle(one, now()));
        }
        for closing in closing {
            match closing {
                Closing::Link(link, ending) => link.end(ending),
                Closing::Handshake(key) => shared.with_quic(|quic, woken| quic.release(key, now(), woken)),
            }
        }
        let due_in_quic = shared.with_quic(|quic, _| {
            quic.handle_timeout(now());
            quic.poll_timeout()
        });
        if more {
            yield_now().await;
            continue;
        }
        let timer = async {
            match due.into_iter().chain(due_in_quic).min() {
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
    pub(crate) budget: Arc<Semaphore>,
    pub(crate) share: u32,
}

impl Maker {
    /// Relay: tells the owner of a peer whose handshake has ended well.
    pub(crate) fn let_in(&self, guest: &Guest) {
        let Some(held) = Held::new(&self.shared, guest.key) else { return };
        if let Some(connection) = self.register(held, guest.peer, guest.address) {
            self.shared.shard().tell(Event::Connected(connection));
        }
    }

    /// Makes the new connection the peer's one; an older one is displaced. `None`: the peer's process has changed or
    /// the peer is gone, and the connection with it.
    pub(crate) fn register(&self, held: Held, peer: PeerId, address: SocketAddr) -> Option<Connection> {
        let known = self.shared.shard().peers.at(address).map(|known| known.bootstrap);
        let link = Link::new(held, peer, known.flatten(), &self.budget, self.share);
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
