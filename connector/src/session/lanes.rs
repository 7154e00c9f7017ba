//! The further lanes of one session: asked for one after the other, their pre-shared keys renewed, ended with it.
//!
//! Their keys are made here for this session alone and are never on disk. Must never hold the session up.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use culvert_model::control::{Lane as Answer, LaneKeys, ToRelay};
use culvert_model::kem::KemKey;
use culvert_model::key::{PrivateKey, PublicKey};
use culvert_ops::runtime::now;
use culvert_plane::PskEpoch;
use futures_util::future::join_all;

use super::{Draining, Session};
use crate::control::ControlError;
use crate::identity::Relay;
use crate::lanes::{Lane, Plan, Word};
use crate::reach::Speaker;

/// A relay that does not answer is asked again after this time.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// Nothing to do.
const LONG: Duration = Duration::from_secs(3600);

/// What one session knows of its lanes.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    open: BTreeMap<u8, Open>,
    asked: Option<Question>,
    /// One ended by itself: none is asked for before then.
    rest: Option<Instant>,
    /// The relay opens none, or no more.
    is_refused: bool,
}

#[derive(Debug)]
struct Open {
    lane: Lane,
    key: PrivateKey,
    /// Newest last; at most two.
    psks: Vec<PskEpoch>,
    /// When the newest was made.
    made: Instant,
}

/// What the relay was asked.
#[derive(Debug)]
struct Question {
    number: u8,
    key: PrivateKey,
    kem: KemKey,
    at: Instant,
}

impl Lanes {
    fn tell(&self, word: impl Fn() -> Word) {
        self.open.values().for_each(|open| open.lane.tell(word()));
    }

    /// What to ask for next, and when to look again: a lane that is missing, else the next pre-shared key of one.
    fn next(&mut self, wanted: u8, renew_after: Duration, now: Instant) -> (Option<(u8, PrivateKey)>, Instant) {
        if self.is_refused {
            return (None, now + LONG);
        }
        let before = self.open.len();
        self.open.retain(|_, open| !open.lane.is_over());
        if self.open.len() < before {
            self.rest = Some(now + ASK_AGAIN);
        }
        let again = self.asked.as_ref().map(|asked| asked.at + ASK_AGAIN).max(self.rest);
        if let Some(again) = again.filter(|again| now < *again) {
            return (None, again);
        }
        if let Some(number) = (1..wanted).find(|number| !self.open.contains_key(number)) {
            return (Some((number, PrivateKey::generate())), now + ASK_AGAIN);
        }
        let oldest = self.open.iter().min_by_key(|(_, open)| open.made);
        let Some((number, open)) = oldest else { return (None, now + LONG) };
        match open.made + renew_after {
            due if due <= now => (Some((*number, open.key.clone())), now + ASK_AGAIN),
            due => (None, due),
        }
    }
}

impl Session<'_> {
    /// Asks for lanes that are missing, and for fresh pre-shared keys of the others; when to look again.
    pub(super) async fn care_for_lanes(&mut self) -> Result<Instant, ControlError> {
        if !self.welcomed || !matches!(self.drain, Draining::Not) {
            return Ok(now() + LONG);
        }
        let renew_after = *self.shared.renew_psk_after.borrow();
        let (wish, look) = self.lanes.next(self.shared.threads.count(), renew_after, now());
        if let Some((number, key)) = wish {
            let kem = KemKey::generate();
            let (public_key, kem_key) = (key.public_key(), STANDARD.encode(kem.encapsulation_key()));
            self.lanes.asked = Some(Question { number, key, kem, at: now() });
            self.send(&ToRelay::Lane(LaneKeys { number, public_key, kem_key })).await?;
        }
        Ok(look)
    }

    /// The relay answers a lane's key.
    pub(super) fn lane(&mut self, answer: &Answer) {
        let is_answer = |asked: &Question| asked.number == answer.number && asked.key.public_key() == answer.public_key;
        let Some(Question { number, key, kem, .. }) = self.lanes.asked.take_if(|asked| is_answer(asked)) else {
            return;
        };
        let ciphertext = STANDARD.decode(&answer.ciphertext).ok();
        let psk = ciphertext.and_then(|bytes| kem.decapsulate(&bytes, &answer.relay_key, &answer.public_key).ok());
        let Some(psk) = psk else {
            tracing::warn!(relay = self.way.name(), lane = number, "the relay's answer to a lane makes no sense");
            return;
        };
        let psk = PskEpoch { epoch: answer.psk_epoch, psk };
        if let Some(open) = self.lanes.open.get_mut(&number) {
            open.psks.push(psk);
            open.psks.drain(..open.psks.len().saturating_sub(2));
            open.made = now();
            open.lane.tell(Word::Psks(open.psks.clone()));
            tracing::debug!(relay = self.way.name(), lane = number, "lane has a fresh pre-shared key");
            return;
        }
        let Some(thread) = self.shared.threads.runtime(number) else { return };
        let speaker = Speaker {
            private_key: key.clone(),
            psks: vec![psk],
            inner: answer.inner_address,
            instance: self.shared.instance,
            reset_secret: self.shared.reset_secret,
        };
        let psks = speaker.psks.clone();
        let plan = Plan {
            number,
            speaker,
            relay: Relay::new(self.way.name().to_owned(), answer.relay_key, self.way.addresses()),
            gate: self.shared.gate.clone(),
            board: self.shared.board.clone(),
        };
        let lane = Lane::start(thread, plan, self.way.remote());
        if answer.relay_key != self.way.relay_key {
            let until = self.way.former().map_or_else(SystemTime::now, |former| former.until());
            lane.tell(Word::RelayKey(self.way.relay_key, until));
        }
        self.lanes.open.insert(number, Open { lane, key, psks, made: now() });
    }

    /// The relay opens no such lane: what there is stays.
    pub(super) fn lane_refused(&mut self, number: u8, why: &str) {
        if self.lanes.asked.take_if(|asked| asked.number == number).is_some() {
            self.lanes.is_refused = true;
            tracing::warn!(relay = self.way.name(), lane = number, why, "the relay opens no further lane");
        }
    }

    /// The relay did not understand something: lanes, if it was just asked for one. True when it was that.
    pub(super) fn knows_no_lanes(&mut self) -> bool {
        let was_asked = self.lanes.asked.take().is_some();
        if was_asked {
            self.lanes.is_refused = true;
            tracing::info!(relay = self.way.name(), "the relay knows no lanes yet: one connection carries everything");
        }
        was_asked
    }

    /// This host's address changed.
    pub(super) fn lanes_moved(&self, remote: std::net::SocketAddr) {
        self.lanes.tell(|| Word::At(remote));
    }

    /// The relay has another key.
    pub(super) fn lanes_follow(&self, newest: PublicKey, until: SystemTime) {
        self.lanes.tell(|| Word::RelayKey(newest, until));
    }

    /// The relay sends nothing new from now on.
    pub(super) fn settle_lanes(&self) {
        self.lanes.tell(|| Word::Settle(self.shared.drain.enter(now())));
    }

    /// Ends all lanes.
    pub(super) async fn end_lanes(&mut self) {
        let lanes = std::mem::take(&mut self.lanes.open);
        join_all(lanes.into_values().map(|open| open.lane.end())).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_asked_for_once_at_a_time_and_a_refusal_ends_it() {
        let (mut lanes, start) = (Lanes::default(), now());
        let next = |lanes: &mut Lanes, wanted, at| {
            let (wish, look) = lanes.next(wanted, LONG, at);
            (wish.map(|(number, _)| number), look)
        };
        assert_eq!(next(&mut lanes, 1, start), (None, start + LONG), "the session is a lane itself");
        assert_eq!(next(&mut lanes, 3, start), (Some(1), start + ASK_AGAIN));
        lanes.asked = Some(Question { number: 1, key: PrivateKey::generate(), kem: KemKey::generate(), at: start });
        assert_eq!(next(&mut lanes, 3, start), (None, start + ASK_AGAIN), "one question at a time");
        assert_eq!(next(&mut lanes, 3, start + ASK_AGAIN).0, Some(1), "an answer that never came");
        lanes.is_refused = true;
        assert_eq!(next(&mut lanes, 3, start + ASK_AGAIN).0, None);
    }
}
