//! What the tasks of one shard share, and the handle that keeps a connection.

use std::io;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Instant;

use bytes::Bytes;
use culvert_model::close::CloseCode;
use tokio::sync::Notify;

use crate::group::Place;
use crate::inbox::Inbox;
use crate::intake::Intake;
use crate::plane::Role;
use crate::port::Carrier;
use crate::quic::{Guest, Key, Quic, Signals, Slot};
use crate::shard::Shard;

/// See the module. Locks are taken in this order: intake, QUIC, shard.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) intake: Mutex<Intake>,
    quic: Mutex<Quic>,
    shard: Mutex<Shard>,
    /// See [`Shard::place`].
    pub(crate) place: Option<Place>,
    /// Connections that nobody holds any more. Whoever lets go of the last handle may hold any lock but this one.
    released: Mutex<Vec<Key>>,
    work: Arc<Notify>,
    /// Notified when everything that waited has left.
    pub(crate) flushed: Notify,
}

impl Shared {
    /// # Errors
    /// There is no memory for what comes in.
    pub(crate) fn new(shard: Shard, quic: Quic, carriers: Vec<Arc<dyn Carrier>>, role: Role) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            intake: Mutex::new(Intake::new(carriers, role)?),
            quic: Mutex::new(quic),
            place: shard.place.clone(),
            released: Mutex::default(),
            work: shard.work.clone(),
            shard: Mutex::new(shard),
            flushed: Notify::new(),
        }))
    }

    pub(crate) fn shard(&self) -> MutexGuard<'_, Shard> {
        self.shard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be called by nobody who holds the shard.
    pub(crate) fn quic(&self) -> MutexGuard<'_, Quic> {
        self.quic.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands QUIC what came, wakes whom it concerns, and tells who was let in.
    pub(crate) fn deliver(&self, inbox: &mut Inbox, woken: &mut Vec<Waker>, now: Instant) -> Vec<Guest> {
        let mut guests = Vec::new();
        let (flusher, is_sooner) = {
            let mut quic = self.quic();
            for (from, payload) in inbox.drain() {
                quic.handle_datagram(from, payload, self, now);
            }
            quic.handle_turn(woken, &mut guests);
            (quic.take_flusher(), quic.is_sooner())
        };
        // The flush comes last: what those who are woken answer leaves with the acknowledgements.
        woken.drain(..).chain(flusher).for_each(Waker::wake);
        if is_sooner {
            self.work.notify_one();
        }
        guests
    }

    /// Does something with QUIC, and wakes whoever has to go on with it, without the lock.
    pub(crate) fn with_quic<T>(&self, change: impl FnOnce(&mut Quic, &mut Vec<Waker>) -> T) -> T {
        let mut woken = Vec::new();
        let (changed, flusher, is_sooner) = {
            let mut quic = self.quic();
            let changed = change(&mut quic, &mut woken);
            (changed, quic.take_flusher(), quic.is_sooner())
        };
        woken.into_iter().chain(flusher).for_each(Waker::wake);
        if is_sooner {
            self.work.notify_one();
        }
        changed
    }

    /// Closes connections that nobody holds any more.
    pub(crate) fn close_released(&self, now: Instant) {
        let released = mem::take(&mut *self.released.lock().unwrap_or_else(PoisonError::into_inner));
        if !released.is_empty() {
            self.with_quic(|quic, woken| released.into_iter().for_each(|key| quic.release(key, now, woken)));
        }
    }

    /// Closes every connection, lets go of the carriers, and of everything that nobody will fetch any more.
    pub(crate) fn close(&self) {
        let left = {
            let mut shard = self.shard();
            shard.outbox.close();
            shard.detach_tun();
            (mem::take(&mut shard.facts), mem::take(&mut shard.closing), mem::take(&mut shard.writers))
        };
        let (facts, closing, writers) = left;
        writers.into_iter().for_each(Waker::wake);
        let (code, reason) = (CloseCode::Shutdown.code().into(), Bytes::from_static(b"shutdown"));
        self.with_quic(|quic, woken| quic.close_all(code, &reason, now(), woken));
        drop((facts, closing));
        self.intake.lock().unwrap_or_else(PoisonError::into_inner).close();
    }
}

/// Keeps a connection; dropped, it is closed.
#[derive(Debug)]
pub(crate) struct Held {
    shared: Arc<Shared>,
    key: Key,
    pub(crate) signals: Arc<Signals>,
}

impl Held {
    /// `None`: the connection is over and forgotten.
    pub(crate) fn new(shared: &Arc<Shared>, key: Key) -> Option<Self> {
        let signals = shared.quic().hold(key)?;
        Some(Self { shared: shared.clone(), key, signals })
    }

    /// Does something with the connection; `use_it` also says whether there may be something to send now.
    pub(crate) fn with<T>(&self, use_it: impl FnOnce(&mut Slot) -> (T, bool)) -> Option<T> {
        let mut quic = self.shared.quic();
        let (used, moved) = use_it(quic.get_mut(self.key)?);
        let flusher = moved.then(|| {
            quic.mark_dirty(self.key);
            quic.take_flusher()
        });
        drop(quic);
        if let Some(flusher) = flusher.flatten() {
            flusher.wake();
        }
        Some(used)
    }

    pub(crate) fn close(&self, code: CloseCode) {
        let reason = Bytes::from(code.to_string());
        self.shared.with_quic(|quic, woken| quic.close(self.key, code.code().into(), reason, now(), woken));
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.shared.released.lock().unwrap_or_else(PoisonError::into_inner).push(self.key);
        self.shared.work.notify_one();
    }
}

/// The time by the runtime's clock.
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
