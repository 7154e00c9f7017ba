//! The pre-shared keys with one relay: at most two, told apart by their epoch (wire.md §3 "PSK rotation").
//!
//! Beside them the very first one is kept: a relay that comes back from a backup may know no later one.
//! Pure. Must never drop a key that the other end may still use, or print one.

use std::time::{Duration, SystemTime};

use culvert_model::key::Psk;
use culvert_plane::PskEpoch;
use zeroize::Zeroizing;

/// All of them with one relay, oldest first. Every one came from an ML-KEM-768 exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Psks {
    epochs: Vec<Kept>,
    /// The first there was under this WireGuard key.
    first: PskOf,
    /// The first handshake under any such key.
    safe_since: Option<SystemTime>,
}

/// A key and its epoch.
type PskOf = (u32, Psk);

/// One key.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Kept {
    epoch: u32,
    psk: Psk,
    made: SystemTime,
    /// The first handshake under it.
    used: Option<SystemTime>,
}

/// The relay's next epoch does not follow from what is known here: the two ends do not share the key before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the relay's epoch {0} does not follow one that is known here")]
pub struct Gap(pub u32);

impl Psks {
    /// The first key with a relay.
    pub fn new(epoch: u32, psk: Psk, now: SystemTime) -> Self {
        let first = (epoch, psk.clone());
        Self { epochs: vec![Kept { epoch, psk, made: whole(now), used: None }], first, safe_since: None }
    }

    /// The first key of a connector's next WireGuard key: traffic stays as safe as it has been.
    #[must_use]
    pub fn safe_since(self, safe_since: Option<SystemTime>) -> Self {
        Self { safe_since, ..self }
    }

    /// With the next key, beside the one before it. What is older goes: the relay has no use for it either.
    ///
    /// # Errors
    /// [`Gap`]: nothing may be changed then.
    pub fn with_next(&self, epoch: u32, psk: Psk, now: SystemTime) -> Result<Self, Gap> {
        let before = epoch.checked_sub(1).and_then(|before| self.epochs.iter().find(|kept| kept.epoch == before));
        let before = before.ok_or(Gap(epoch))?.clone();
        let next = Kept { epoch, psk, made: whole(now), used: None };
        Ok(Self { epochs: vec![before, next], first: self.first.clone(), safe_since: self.safe_since })
    }

    /// Without those before `epoch`; none when nothing changes.
    pub fn from_epoch(&self, epoch: u32) -> Option<Self> {
        let left: Vec<Kept> = self.epochs.iter().filter(|kept| kept.epoch >= epoch).cloned().collect();
        let changes = !left.is_empty() && left.len() < self.epochs.len();
        changes.then(|| Self { epochs: left, first: self.first.clone(), safe_since: self.safe_since })
    }

    /// The very first key for a relay that knows none of these any more, under its own number or, `shifted`, the next: only
    /// whether that is even or odd means something to the relay, and which it is cannot be known here. None while it is
    /// still among the others.
    pub fn first(&self, shifted: bool) -> Option<PskEpoch> {
        let (epoch, psk) = &self.first;
        let is_there = self.epochs.iter().any(|kept| kept.psk == *psk);
        let epoch = epoch.saturating_add(u32::from(shifted));
        (!is_there).then(|| PskEpoch { epoch, psk: psk.clone() })
    }

    /// The very first key and the one after it, where a relay that knew no other goes on from there.
    pub fn anew(&self, epoch: u32, psk: Psk, now: SystemTime) -> Self {
        let first =
            Kept { epoch: epoch.wrapping_sub(1), psk: self.first.1.clone(), made: whole(now), used: Some(whole(now)) };
        let next = Kept { epoch, psk, made: whole(now), used: None };
        Self { epochs: vec![first, next], first: self.first.clone(), safe_since: self.safe_since }
    }

    /// Noting a handshake under an epoch; none when it is not the first.
    pub fn used(&self, epoch: u32, now: SystemTime) -> Option<Self> {
        let mut noted = self.clone();
        let kept = noted.epochs.iter_mut().find(|kept| kept.epoch == epoch && kept.used.is_none())?;
        kept.used = Some(whole(now));
        noted.safe_since.get_or_insert(whole(now));
        Some(noted)
    }

    /// As the engine takes them.
    pub fn for_engine(&self) -> Vec<PskEpoch> {
        self.epochs.iter().map(|kept| PskEpoch { epoch: kept.epoch, psk: kept.psk.clone() }).collect()
    }

    /// The newest epoch.
    pub fn newest(&self) -> Option<u32> {
        self.epochs.last().map(|kept| kept.epoch)
    }

    /// The newest key.
    pub fn newest_key(&self) -> Option<&Psk> {
        self.epochs.last().map(|kept| &kept.psk)
    }

    /// When the newest key was made.
    pub fn made(&self) -> Option<SystemTime> {
        self.epochs.last().map(|kept| kept.made)
    }

    /// Since when no handshake hangs on X25519 alone, and when an epoch was first used.
    pub fn since(&self, epoch: Option<u32>) -> (Option<SystemTime>, Option<SystemTime>) {
        let used = self.epochs.iter().find(|kept| Some(kept.epoch) == epoch).and_then(|kept| kept.used);
        (self.safe_since, used)
    }

    /// One line for each key: epoch, key, when it was made, when it was first used (seconds since 1970, or `-`); before
    /// them the line with the first use of any, and the one with the first key.
    pub fn to_text(&self) -> Zeroizing<String> {
        let (epoch, first) = (self.first.0, self.first.1.to_base64());
        // Whole in one piece: growing would leave copies of a key behind.
        let mut text = Zeroizing::new(String::with_capacity(512));
        text.push_str(&Zeroizing::new(format!("safe {}\n", seconds(self.safe_since))));
        text.push_str(&Zeroizing::new(format!("first {epoch} {}\n", first.as_str())));
        for kept in &self.epochs {
            let key = kept.psk.to_base64();
            let line = Zeroizing::new(format!(
                "{} {} {} {}\n",
                kept.epoch,
                key.as_str(),
                seconds(Some(kept.made)),
                seconds(kept.used)
            ));
            text.push_str(&line);
        }
        text
    }

    /// Reads [`Self::to_text`]; none when it is something else.
    pub fn read(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let safe_since = time(lines.next()?.strip_prefix("safe ")?)?;
        let (epoch, psk) = lines.next()?.strip_prefix("first ")?.split_once(' ')?;
        let first = (epoch.parse().ok()?, psk.parse().ok()?);
        let mut epochs = Vec::new();
        for line in lines {
            let [epoch, psk, made, used] = line.split(' ').collect::<Vec<_>>().try_into().ok()?;
            let kept =
                Kept { epoch: epoch.parse().ok()?, psk: psk.parse().ok()?, made: time(made)??, used: time(used)? };
            epochs.push(kept);
        }
        let follows = match epochs.as_slice() {
            [_] => true,
            [old, new] => old.epoch.checked_add(1) == Some(new.epoch),
            _ => false,
        };
        follows.then_some(Self { epochs, first, safe_since })
    }
}

/// Times are kept in whole seconds, on disk and here alike.
fn whole(time: SystemTime) -> SystemTime {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs())
}

fn seconds(time: Option<SystemTime>) -> String {
    let since = time.map(|time| time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default());
    since.map_or("-".to_owned(), |since| since.as_secs().to_string())
}

/// A time or `-`; none when it is neither.
#[expect(clippy::option_option, reason = "no time is not the same as no sense")]
fn time(text: &str) -> Option<Option<SystemTime>> {
    if text == "-" {
        return Some(None);
    }
    let seconds: u64 = text.parse().ok()?;
    Some(Some(SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn epochs(psks: &Psks) -> Vec<u32> {
        psks.for_engine().iter().map(|psk| psk.epoch).collect()
    }

    #[test]
    fn the_next_key_stands_beside_the_one_before_it_and_a_gap_changes_nothing() {
        let first = Psks::new(4, Psk::from_bytes([4; 32]), at(1));
        let two = first.with_next(5, Psk::from_bytes([5; 32]), at(2)).unwrap();
        assert_eq!((epochs(&two), two.newest(), two.made()), (vec![4, 5], Some(5), Some(at(2))));
        let again = two.with_next(5, Psk::from_bytes([6; 32]), at(3)).unwrap();
        assert_eq!(again.newest_key(), Some(&Psk::from_bytes([6; 32])), "an answer that came twice");
        let three = two.with_next(6, Psk::from_bytes([6; 32]), at(3)).unwrap();
        assert_eq!(epochs(&three), [5, 6]);
        for gap in [0, 4, 7, u32::MAX] {
            assert_eq!(two.with_next(gap, Psk::generate(), at(3)), Err(Gap(gap)));
        }
    }

    #[test]
    fn the_older_key_goes_when_the_newer_was_used_and_never_the_last() {
        let two = Psks::new(4, Psk::generate(), at(1)).with_next(5, Psk::generate(), at(2)).unwrap();
        assert_eq!(two.from_epoch(5).map(|left| epochs(&left)), Some(vec![5]));
        assert_eq!(two.from_epoch(4), None);
        assert_eq!(two.from_epoch(6), None, "both are older than what is said to be in use");
    }

    #[test]
    fn a_relay_that_lost_its_memory_is_met_with_the_first_key() {
        let first = Psks::new(1, Psk::from_bytes([1; 32]), at(1)).used(1, at(1)).unwrap();
        let two = first.with_next(2, Psk::generate(), at(2)).unwrap();
        assert!(first.first(false).is_none() && two.first(true).is_none(), "it is still among them");
        let three = two.with_next(3, Psk::generate(), at(3)).unwrap();
        for (shifted, epoch) in [(false, 1), (true, 2)] {
            let first = three.first(shifted).unwrap();
            assert_eq!((first.epoch, first.psk), (epoch, Psk::from_bytes([1; 32])));
        }
        let anew = three.anew(9, Psk::from_bytes([9; 32]), at(4));
        assert_eq!((epochs(&anew), anew.newest_key()), (vec![8, 9], Some(&Psk::from_bytes([9; 32]))));
        assert_eq!(anew.for_engine()[0].psk, Psk::from_bytes([1; 32]));
        assert_eq!((anew.since(None).0, Psks::read(&anew.to_text())), (Some(at(1)), Some(anew.clone())));
    }

    #[test]
    fn the_first_use_of_each_key_and_of_all_is_remembered() {
        let first = Psks::new(1, Psk::generate(), at(1)).used(1, at(2)).unwrap();
        assert_eq!(first.since(Some(1)), (Some(at(2)), Some(at(2))));
        assert_eq!(first.used(1, at(3)), None);
        let two = first.with_next(2, Psk::generate(), at(4)).unwrap();
        assert_eq!(two.since(Some(2)), (Some(at(2)), None));
        assert_eq!(two.used(2, at(5)).unwrap().since(Some(2)), (Some(at(2)), Some(at(5))));
        assert_eq!(two.used(9, at(5)), None);
    }

    #[test]
    fn what_is_written_reads_back_and_anything_else_does_not() {
        let one = Psks::new(7, Psk::from_bytes([7; 32]), at(1_700_000_000));
        let two = one.used(7, at(1_700_000_001)).unwrap().with_next(8, Psk::generate(), at(1_700_000_002)).unwrap();
        for psks in [&one, &two] {
            assert_eq!(Psks::read(&psks.to_text()).as_ref(), Some(psks));
        }
        let text = two.to_text();
        for bad in [
            "",
            "safe",
            "safe x\n",
            "safe -\n",
            &text.replace("first", "last"),
            &text[..text.len() - 6],
            &text.replace("8 ", "9 "),
        ] {
            assert_eq!(Psks::read(bad), None, "{bad:?}");
        }
        assert!(!format!("{two:?}").contains(one.newest_key().unwrap().to_base64().as_str()));
    }
}
