//! The shards of one process: what lands on the wrong one is passed on, and who has which static key is known to all.
//!
//! Nothing comes here while datagrams are steered right, but initiations (their receiver has no index yet). It must never
//! pass a datagram on twice, nor hold more than [`BYTES`] for a shard that does not fetch it.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use culvert_engine::{Path, Unclaimed};
use culvert_model::key::PublicKey;

use crate::shared::Shared;

/// Bytes that may wait for one shard.
const BYTES: usize = 1 << 20;
/// What a datagram costs beside its bytes.
const BESIDE: usize = size_of::<Passed>();

/// All shards of one plane; there are at least two.
#[derive(Debug)]
pub(crate) struct Group {
    bits: u8,
    mails: Vec<Mail>,
    members: OnceLock<Vec<Weak<Shared>>>,
    /// On which shard a static key is known. Whoever changes what engines know holds it meanwhile, and takes shards' own
    /// locks under it, never the other way round.
    homes: Mutex<HashMap<PublicKey, u8>>,
}

/// One shard's place among them.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) group: Arc<Group>,
    pub(crate) number: u8,
}

/// A datagram for another shard than the one it landed on.
#[derive(Debug)]
pub(crate) struct Passed {
    pub(crate) path: Path,
    pub(crate) datagram: Box<[u8]>,
}

/// What waits for one shard.
#[derive(Debug, Default)]
struct Mail {
    /// Read without the lock.
    count: AtomicUsize,
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    passed: VecDeque<Passed>,
    bytes: usize,
    waker: Option<Waker>,
}

impl Group {
    /// Of so many shards, 2..=256.
    pub(crate) fn new(shards: usize) -> Arc<Self> {
        Arc::new(Self {
            bits: culvert_engine::Shard::bits_for(shards),
            mails: (0..shards).map(|_| Mail::default()).collect(),
            members: OnceLock::new(),
            homes: Mutex::default(),
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.mails.len()
    }

    pub(crate) fn bits(&self) -> u8 {
        self.bits
    }

    /// Makes the shards known to each other, in their order.
    pub(crate) fn introduce(&self, shards: Vec<Weak<Shared>>) {
        // Only the plane's start calls it, once.
        let _ = self.members.set(shards);
    }

    pub(crate) fn homes(&self) -> MutexGuard<'_, HashMap<PublicKey, u8>> {
        self.homes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn member(&self, number: u8) -> Option<Arc<Shared>> {
        self.members.get()?.get(usize::from(number))?.upgrade()
    }
}

impl Place {
    /// Which other shard a datagram is for.
    #[inline]
    pub(crate) fn elsewhere(&self, datagram: &[u8]) -> Option<u8> {
        let number = culvert_engine::Shard::of_datagram(datagram, self.group.bits)?;
        (number != self.number && usize::from(number) < self.group.mails.len()).then_some(number)
    }

    /// Passes a datagram on. `false`: too much waits there.
    pub(crate) fn pass(&self, to: u8, datagram: &[u8], path: Path) -> bool {
        let Some(mail) = self.group.mails.get(usize::from(to)) else { return false };
        let waker = {
            let mut queue = mail.lock();
            if queue.bytes + datagram.len() + BESIDE > BYTES {
                return false;
            }
            queue.bytes += datagram.len() + BESIDE;
            queue.passed.push_back(Passed { path, datagram: datagram.into() });
            mail.count.store(queue.passed.len(), Ordering::Release);
            queue.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        true
    }

    /// Takes the next datagram that another shard has passed on.
    pub(crate) fn take(&self) -> Option<Passed> {
        let mail = self.group.mails.get(usize::from(self.number))?;
        if mail.count.load(Ordering::Acquire) == 0 {
            return None;
        }
        let mut queue = mail.lock();
        let passed = queue.passed.pop_front()?;
        queue.bytes -= passed.datagram.len() + BESIDE;
        mail.count.store(queue.passed.len(), Ordering::Release);
        Some(passed)
    }

    /// Waits for the next one.
    pub(crate) fn poll_mail(&self, cx: &Context<'_>) -> Poll<()> {
        let Some(mail) = self.group.mails.get(usize::from(self.number)) else { return Poll::Pending };
        let mut queue = mail.lock();
        if !queue.passed.is_empty() {
            return Poll::Ready(());
        }
        if !queue.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            queue.waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Settles whose an initiation is that this shard does not know: its shard takes it from here, or nobody. To be called
    /// without any shard's lock.
    pub(crate) fn settle(&self, unclaimed: Unclaimed, now: Instant) {
        let home = self.group.homes().get(&unclaimed.public_key).copied();
        let there = home.filter(|home| *home != self.number).and_then(|home| self.group.member(home));
        let Some(own) = self.group.member(self.number) else { return };
        let Some(there) = there else {
            own.shard().change(|engine, now| engine.disown(&unclaimed, now));
            return;
        };
        let claimed = there.shard().claim(unclaimed, now);
        let mut own = own.shard();
        own.stats.passed_on += 1;
        own.stats.passed_lost += u64::from(!claimed);
    }
}

impl Mail {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_for_a_shard_is_bounded_and_comes_in_order() {
        let group = Group::new(2);
        let [first, second] = [0, 1].map(|number| Place { group: group.clone(), number });
        let path = Path { remote: ([10, 0, 0, 1], 1).into(), local: None, socket: 0 };
        let data = |top: u8, mark: u8| [4, 0, 0, 0, 0, 0, 0, top, mark];
        assert_eq!(first.elsewhere(&data(0x80, 0)), Some(1));
        assert_eq!(first.elsewhere(&data(0x7f, 0)), None);
        assert_eq!(second.elsewhere(&data(0x7f, 0)), Some(0));
        assert_eq!(second.elsewhere(&[1; 148]), None, "an initiation has no index of ours");
        assert!(second.take().is_none());
        for mark in 0..3 {
            assert!(first.pass(1, &data(0x80, mark), path));
        }
        let marks: Vec<_> = std::iter::from_fn(|| second.take()).map(|passed| passed.datagram[8]).collect();
        assert_eq!(marks, [0, 1, 2]);
        let large = vec![4; 60_000];
        let fit = (0..1000).take_while(|_| first.pass(1, &large, path)).count();
        assert_eq!(fit, BYTES / (60_000 + BESIDE));
        assert!(first.take().is_none(), "it is the other one's");
        assert!(second.take().is_some() && first.pass(1, &large, path));
    }

    #[test]
    fn numbers_past_the_last_shard_belong_to_nobody() {
        let place = Place { group: Group::new(3), number: 0 };
        let data = |top: u8| [4, 0, 0, 0, 0, 0, 0, top];
        assert_eq!([0x00, 0x40, 0x80, 0xc0].map(|top| place.elsewhere(&data(top))), [None, Some(1), Some(2), None]);
    }
}
