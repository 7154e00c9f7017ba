//! What runs of one shard: its state, QUIC's and its tasks, all on one runtime.
//!
//! It must never run anything on another runtime than its own: whoever starts it may be on any.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use culvert_engine::{Engine, PeerId};
use culvert_model::close::CloseCode;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::AbortHandle;
use tokio::time::timeout;

use crate::connection::{Connection, DialError, Ending, Link, describe};
use crate::crypto::PROTOCOL_VERSION;
use crate::driver::{self, Maker};
use crate::event::Event;
use crate::group::Place;
use crate::intake;
use crate::outbox::Outbox;
use crate::plane::{Config, FLUSH, Stats};
use crate::port::Carrier;
use crate::quic::Quic;
use crate::shard::{Dial, Shard};
use crate::shared::{Held, Shared, now};

/// The budget is counted in these.
const BUDGET_UNIT: u64 = 1024;

/// One shard.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) maker: Maker,
    pub(crate) addresses: Vec<SocketAddr>,
    tasks: Vec<AbortHandle>,
}

impl Running {
    /// Starts a shard on a `current_thread` runtime; `place` tells which one it is of several.
    pub(crate) fn start(
        config: &Config,
        version: u32,
        runtime: Handle,
        carriers: Vec<Arc<dyn Carrier>>,
        place: Option<Place>,
        owner: mpsc::Sender<Event>,
    ) -> io::Result<Self> {
        let mut engine = config.engine.clone();
        let shards = place.as_ref().map_or(1, |place| place.group.len());
        if let Some(place) = &place {
            engine.shard = culvert_engine::Shard { number: place.number, bits: place.group.bits() };
        }
        let addresses = carriers.iter().map(|carrier| carrier.local_addr()).collect();
        let outbox = Outbox::new(carriers.clone());
        let shard = Shard::new(config.role, config.instance, config.inner, Engine::new(engine, now()), outbox, place);
        let quic = Quic::new(&config.streams, version, &config.reset_secret, config.role);
        let shared = Shared::new(shard, quic, carriers, config.role)?;

        let budget = config.streams.budget / u64::try_from(shards).unwrap_or(1).max(1);
        let units = usize::try_from(budget / BUDGET_UNIT).unwrap_or(usize::MAX);
        let units = units.clamp(1, Semaphore::MAX_PERMITS);
        let share = u64::from(config.streams.window).div_ceil(BUDGET_UNIT);
        let share = u32::try_from(share).unwrap_or(u32::MAX).min(u32::try_from(units).unwrap_or(u32::MAX));
        let maker = Maker { shared: shared.clone(), budget: Arc::new(Semaphore::new(units)), share };

        let tasks = vec![
            runtime.spawn(intake::receive(maker.clone())).abort_handle(),
            runtime.spawn(driver::flush(shared.clone())).abort_handle(),
            runtime.spawn(driver::work(shared.clone())).abort_handle(),
            runtime.spawn(driver::report(shared, owner)).abort_handle(),
        ];
        Ok(Self { maker, addresses, tasks })
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.maker.shared
    }

    pub(crate) fn stats(&self) -> Stats {
        let mut shard = self.shared().shard();
        Stats { engine: shard.engine().stats(), plane: shard.stats, send: shard.outbox.stats, tun: shard.tun_stats }
    }

    /// See [`crate::Plane::dial`].
    pub(crate) async fn dial(&self, peer: PeerId) -> Result<Connection, DialError> {
        loop {
            let (address, outer) = self.until_ready(peer).await?;
            let older = self.shared().shard().peers.get(peer).and_then(|peer| peer.link.upgrade());
            if let Some(older) = older {
                older.end(Ending::Code(CloseCode::Shutdown));
            }
            let key = self.shared().with_quic(|quic, _| quic.connect(address, outer, now()));
            let held = key.and_then(|key| Held::new(self.shared(), key)).ok_or(DialError::Stopped)?;
            let signals = held.signals.clone();
            tokio::select! {
                established = signals.until_established() => {
                    established.map_err(|error| DialError::Failed(describe(&error)))?;
                    if let Some(connection) = self.maker.register(held, peer, address) {
                        return Ok(connection);
                    }
                }
                () = self.until_elsewhere(peer, address) => {}
            }
        }
    }

    async fn until_ready(&self, peer: PeerId) -> Result<(SocketAddr, std::net::IpAddr), DialError> {
        loop {
            let dial = {
                let mut shard = self.shared().shard();
                if shard.stopped { Err(DialError::Stopped) } else { Ok(shard.prepare_dial(peer, now())) }
            };
            match dial? {
                Dial::Ready(address, outer) => return Ok((address, outer)),
                Dial::Wait(notice) => notice.await,
                Dial::Unknown => return Err(DialError::UnknownPeer),
                Dial::Version(theirs) => return Err(DialError::Version { ours: PROTOCOL_VERSION, theirs }),
                Dial::Displaced => return Err(DialError::Displaced),
            }
        }
    }

    /// Waits until the peer is gone or its process is another one.
    async fn until_elsewhere(&self, peer: PeerId, address: SocketAddr) {
        loop {
            let notice = {
                let shard = self.shared().shard();
                let known = shard.peers.get(peer).filter(|peer| peer.address == address);
                known.map(|peer| peer.changed.clone().notified_owned())
            };
            match notice {
                Some(notice) => notice.await,
                None => return,
            }
        }
    }

    /// Closes connections and waits until each has sealed a datagram more and all have left.
    pub(crate) async fn close_and_flush(&self, links: &[Arc<Link>], code: CloseCode) {
        let shared = self.shared();
        let sealed = |link: &Arc<Link>| shared.shard().peers.get(link.peer()).map(|peer| peer.sealed);
        let open = links.iter().filter(|link| !link.is_closed());
        let before: Vec<_> = open.map(|link| (link, sealed(link))).collect();
        for (link, _) in &before {
            link.end(Ending::Code(code));
        }
        let flushed = async {
            loop {
                let notice = shared.flushed.notified();
                let all = before.iter().all(|(link, before)| sealed(link) != *before);
                if all && shared.shard().outbox.is_empty() {
                    return;
                }
                notice.await;
            }
        };
        // Late is as good as lost: the peer's timers notice the end without it.
        let _ = timeout(FLUSH, flushed).await;
    }

    /// Closes every connection with `code` and flushes.
    pub(crate) async fn close_all(&self, code: CloseCode) {
        let links: Vec<_> = self.shared().shard().peers.iter().filter_map(|peer| peer.link.upgrade()).collect();
        self.close_and_flush(&links, code).await;
    }

    pub(crate) fn stop(&self) {
        let notices: Vec<_> = {
            let mut shard = self.maker.shared.shard();
            shard.stopped = true;
            shard.peers.iter().map(|peer| peer.changed.clone()).collect()
        };
        for notice in notices {
            notice.notify_waiters();
        }
        self.maker.budget.close();
        for task in &self.tasks {
            task.abort();
        }
        // What waits in the shard for those tasks may hold connections, and those hold the shard: they may not keep the
        // sockets.
        self.maker.shared.close();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
    }
}
