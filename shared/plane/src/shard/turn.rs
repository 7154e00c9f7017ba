//! The shard's turn without a datagram of its own: facts of the engine, timers, and who is woken after it.
//!
//! It must never wait: what has to happen later has a time, which [`Shard::poll_timeout`] tells.

use std::mem;
use std::task::Waker;
use std::time::Instant;

use culvert_engine::{BootstrapId, Event as Fact, Path, PeerId};
use culvert_model::address::BOOTSTRAP_INNER;

use super::{HANDSHAKES, MAX_FACTS, MOVED_AFTER, Shard};
use crate::event::Event;
use crate::hello::Flags;
use crate::plane::Role;

impl Shard {
    /// Takes what the engine wants sent and what it tells.
    pub(super) fn drain_engine(&mut self, now: Instant) {
        if !self.replies.is_empty() {
            for (path, datagram) in self.replies.drain() {
                self.outbox.push(path, datagram);
            }
        }
        while let Some(fact) = self.engine.0.poll_event() {
            self.handle_fact(fact, now);
        }
    }

    fn handle_fact(&mut self, fact: Fact, now: Instant) {
        match fact {
            Fact::SessionUp { peer, bootstrap, path, epoch, first, .. } => {
                self.session_up(peer, bootstrap, path, epoch, now);
                self.tell(Event::SessionUp { peer, bootstrap, path, first });
            }
            Fact::EndpointMoved { peer, path } => {
                // Told after a while, with the newest path: a peer that hops from packet to packet costs no more.
                if let Some(known) = self.peers.get_mut(peer) {
                    known.path = Some(path);
                    if !mem::replace(&mut known.moved, true) {
                        self.moved.push(peer);
                        self.moved_due.get_or_insert(now + MOVED_AFTER);
                        self.work.notify_one();
                    }
                }
            }
            Fact::SessionLost { peer } => {
                if let Some(peer) = self.peers.get_mut(peer) {
                    peer.live = false;
                    peer.asked = false;
                    peer.greeting.stop();
                    peer.changed.notify_waiters();
                }
                self.tell(Event::SessionLost { peer });
            }
            Fact::Unanswered { peer, attempts } => self.tell(Event::Unanswered { peer, attempts }),
            Fact::ClockBehind { peer, .. } => self.tell(Event::ClockBehind { peer }),
            Fact::PeerGone { peer, bootstrap } => {
                self.forget(peer);
                self.tell(Event::PeerGone { peer, bootstrap });
            }
            Fact::EpochPromoted { peer, epoch } => self.tell(Event::EpochPromoted { peer, epoch }),
            Fact::KeyPromoted { peer, public_key, static_index } => {
                self.tell(Event::KeyPromoted { peer, public_key, static_index });
            }
            Fact::Flapping { peer, paths } => self.tell(Event::Flapping { peer, paths }),
            Fact::Stranger { public_key, path } => self.tell(Event::Stranger { public_key, path }),
            _ => {}
        }
    }

    /// The hello is the first inner datagram of the session (wire.md §2).
    fn session_up(&mut self, id: PeerId, bootstrap: Option<BootstrapId>, path: Path, epoch: Option<u32>, now: Instant) {
        if self.peers.get(id).is_none() {
            self.peers.insert(id, bootstrap, Some(BOOTSTRAP_INNER));
        }
        let Some(peer) = self.peers.get_mut(id) else { return };
        peer.path = Some(path);
        peer.live = true;
        peer.asked = false;
        peer.epoch = epoch;
        if peer.stock {
            peer.changed.notify_waiters();
            return self.unpark(id, now);
        }
        let mut flags = mem::take(&mut self.flags);
        match self.role {
            Role::Relay => flags.push(Flags::PLAIN),
            Role::Connector => peer.greeting.start(now, &mut flags),
        }
        peer.changed.notify_waiters();
        self.say_all(id, &mut flags, now);
        self.flags = flags;
    }

    pub(crate) fn tell(&mut self, event: Event) {
        if self.facts.len() < MAX_FACTS {
            self.facts.push_back(event);
            self.told.notify_one();
        } else {
            self.stats.facts_lost += 1;
        }
    }

    // Time.

    /// One turn of the driver: handshakes within their budget, then what is due. `true`: more handshakes wait.
    pub(crate) fn handle_turn(&mut self, now: Instant) -> bool {
        let more = self.engine.0.handle_handshakes(HANDSHAKES, now, &mut self.replies);
        if self.engine.0.poll_timeout().is_some_and(|due| due <= now) {
            self.engine.0.handle_timeout(now, &mut self.replies);
        }
        self.drain_engine(now);
        if self.role == Role::Connector {
            self.handle_greetings(now);
        }
        if self.moved_due.is_some_and(|due| due <= now) {
            self.handle_moved(now);
        }
        self.expire_parked(now);
        self.send_spares(now);
        self.wake_flusher();
        more
    }

    fn handle_moved(&mut self, now: Instant) {
        self.moved_due = None;
        for id in mem::take(&mut self.moved) {
            let Some(peer) = self.peers.get_mut(id) else { continue };
            peer.moved = false;
            let Some(path) = peer.path else { continue };
            if self.role == Role::Relay && !peer.stock {
                self.say_all(id, &mut vec![Flags::MOVED], now);
            }
            self.tell(Event::EndpointMoved { peer: id, path });
        }
    }

    fn handle_greetings(&mut self, now: Instant) {
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        let ids: Vec<_> =
            self.peers.iter().filter(|peer| due(peer.greeting.poll_timeout())).map(|peer| peer.id).collect();
        for id in ids {
            let mut flags = mem::take(&mut self.flags);
            if let Some(peer) = self.peers.get_mut(id) {
                peer.greeting.handle_timeout(now, &mut flags);
                peer.changed.notify_waiters();
            }
            self.say_all(id, &mut flags, now);
            self.flags = flags;
        }
    }

    /// When [`Self::handle_turn`] is due. Remembers it, so that [`Self::after`] notices what comes sooner.
    pub(crate) fn poll_timeout(&mut self) -> Option<Instant> {
        let engine = self.engine.0.poll_timeout();
        let greetings = match self.role {
            Role::Relay => None,
            Role::Connector => self.peers.iter().filter_map(|peer| peer.greeting.poll_timeout()).min(),
        };
        self.armed = engine
            .into_iter()
            .chain(greetings)
            .chain(self.moved_due)
            .chain(self.parked_due())
            .chain(self.spares.poll_timeout())
            .min();
        self.armed
    }

    /// Ends a turn in which datagrams came or went: wakes the flush, and the driver if its timer has moved forward.
    pub(crate) fn after(&mut self, _now: Instant) {
        self.wake_flusher();
        let due = self.engine.0.poll_timeout().into_iter();
        let due = due.chain(self.parked_due()).chain(self.spares.poll_timeout()).min();
        if due.is_some_and(|due| self.armed.is_none_or(|armed| due < armed)) {
            self.armed = due;
            self.work.notify_one();
        }
    }

    /// After a receive turn: handshakes may wait for their budget.
    pub(crate) fn after_receive(&mut self, now: Instant) {
        self.flush_tun();
        if self.engine.0.handshakes_waiting() > 0 || !self.closing.is_empty() {
            self.work.notify_one();
        }
        self.after(now);
    }

    /// Wakes `waker` when the outbox has room again.
    pub(crate) fn wait_for_room(&mut self, waker: &Waker) {
        if !self.writers.iter().any(|writer| writer.will_wake(waker)) {
            self.writers.push(waker.clone());
        }
        self.wake_flusher();
    }

    pub(crate) fn wake_flusher(&mut self) {
        if self.outbox.is_empty() {
            return;
        }
        if let Some(waker) = self.flusher.take() {
            waker.wake();
        }
    }
}
