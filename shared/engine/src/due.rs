//! What time brings: ticks of boringtun, keepalives, initiations and their repetition, ends.
//!
//! Must never look at a peer that has nothing due.

use std::time::{Duration, Instant};

use rand::Rng as _;

use crate::config::Path;
use crate::engine::Engine;
use crate::event::Event;
use crate::peer::Attempt;
use crate::replies::Replies;
use crate::statics::lose;
use crate::timers::MOST;
use crate::tunn::{
    OVERHEAD, Place, REJECT_AFTER_TIME, REKEY_ATTEMPT_TIME, REKEY_TIMEOUT, Secrets, Tick, Tunnel, Under,
};

/// WireGuard's jitter on repeated initiations (paper §6.1).
const JITTER_MS: u64 = 333;
/// Unanswered initiations after which the `Tunn` is built anew, with the wall clock read again.
const REBUILD_EVERY: u32 = 2;
/// Tunnels of one peer: two keys or two epochs, and during a change two of each; and one that calls back.
const TUNNELS: usize = 6;
/// How long a tunnel without sessions is kept for the timestamp it knows.
const MEMORY: Duration = Duration::from_secs(3 * REJECT_AFTER_TIME.as_secs());

impl Engine {
    /// Does what is due for one peer.
    pub(crate) fn handle_due(&mut self, slot: u32, now: Instant, replies: &mut Replies) {
        let Some(peer) = self.peers.get(slot) else { return };
        if peer.instance.as_ref().is_some_and(|instance| instance.ends_at <= now) {
            return self.end_instance(slot);
        }
        self.forget_old_epoch(slot, now);
        if let Some(active) = self.peers.get(slot).and_then(|peer| peer.active) {
            self.tick(slot, active, now);
            self.keep_alive(slot, active, now, replies);
            self.note_loss(slot, active, now);
        }
        self.attempt(slot, now, replies);
        self.drop_spent_tunnels(slot, now);
    }

    /// Moves boringtun's timers. What it wants sent goes to the outbox.
    pub(crate) fn tick(&mut self, slot: u32, tunnel_slot: u32, now: Instant) {
        let jitter = self.jitter();
        let Some(tunnel) = self.tunnels.get_mut(tunnel_slot) else { return };
        let tick = if tunnel.retired { Tick::Nothing } else { tunnel.tick(jitter, now) };
        let wants = tunnel.wants_handshake(now);
        let under = tunnel.under;
        let pending = tunnel.pending;
        let Some(peer) = self.peers.get_mut(slot) else { return };
        if peer.active != Some(tunnel_slot) {
            return;
        }
        match (tick, peer.path) {
            // Only the tunnel of the newest keys initiates.
            (Tick::Initiation(initiation), Some(path)) if under == peer.keys.newest() => {
                let attempt = peer.attempt.get_or_insert_with(|| Attempt::new(None, now));
                attempt.sent = true;
                attempt.at = pending.map_or(now + REKEY_TIMEOUT, |pending| pending.retry_at);
                let path = attempt.target.unwrap_or(path);
                self.outbox.push(path, &initiation);
                self.stats.initiations += 1;
            }
            (Tick::Initiation(_), _) => {
                peer.attempt.get_or_insert_with(|| Attempt::new(None, now));
            }
            (Tick::Keepalive(keepalive), Some(path)) => {
                self.outbox.push(path, &keepalive);
                self.stats.keepalives += 1;
            }
            (Tick::Keepalive(_) | Tick::Nothing | Tick::Expired, _) => {}
        }
        if wants && pending.is_none() && peer.attempt.is_none() && peer.instance.is_none() {
            peer.attempt = Some(Attempt::new(None, now));
            if let Some(tunnel) = self.tunnels.get_mut(tunnel_slot) {
                tunnel.note_wish_granted();
            }
        }
        self.rearm(slot, now);
    }

    /// Sends the initiation that the peer's attempt is about, from the tunnel that fits, built if there is none.
    pub(crate) fn initiate(&mut self, slot: u32, now: Instant, replies: &mut Replies) {
        let Some(peer) = self.peers.get(slot) else { return };
        let Some(path) = peer.attempt.as_ref().and_then(|attempt| attempt.target).or(peer.path) else {
            if let Some(peer) = self.peers.get_mut(slot) {
                peer.attempt = None;
            }
            return;
        };
        let under = peer.keys.initiating(path.remote, peer.live);
        let tunnel = self.initiating_tunnel(slot, under, now);
        let sent_at = tunnel.and_then(|tunnel| self.send_initiation(tunnel, path, now, replies));
        if let Some(attempt) = self.peers.get_mut(slot).and_then(|peer| peer.attempt.as_mut()) {
            attempt.sent = true;
            attempt.at = sent_at.unwrap_or(now + REKEY_TIMEOUT);
        }
    }

    /// Sends one initiation and tells when it counts as unanswered.
    pub(crate) fn send_initiation(
        &mut self,
        tunnel: u32,
        path: Path,
        now: Instant,
        replies: &mut Replies,
    ) -> Option<Instant> {
        let jitter = self.jitter();
        let tunnel = self.tunnels.get_mut(tunnel)?;
        let initiation = tunnel.initiate(jitter, now)?;
        replies.push(path, &initiation);
        self.stats.initiations += 1;
        tunnel.pending.map(|pending| pending.retry_at)
    }

    /// Builds a tunnel of a peer, and drops the oldest that is not needed if there are too many.
    pub(crate) fn build_tunnel(&mut self, slot: u32, under: Under, now: Instant) -> Option<u32> {
        let peer = self.peers.get(slot)?;
        if peer.tunnels.len() >= TUNNELS {
            let spare = peer.tunnels.iter().copied().find(|tunnel| peer.active != Some(*tunnel))?;
            self.drop_tunnel(slot, spare);
        }
        let peer = self.peers.get_mut(slot)?;
        let theirs = peer.keys.get(under.key)?;
        let psk = theirs.psks.iter().find(|psk| Some(psk.epoch) == under.epoch).map(|psk| &psk.psk);
        let own = self.own.get(under.own)?.as_ref()?;
        let secrets = Secrets { private: &own.private, peer: &theirs.public_key, psk, limiter: &own.limiter };
        let (indices, rng) = (&mut self.indices, &mut self.rng);
        let mut base = None;
        let tunnel = self.tunnels.insert_with(|tunnel, _| {
            // Parity stands in the base whatever becomes of it: without a free base the row is emptied again below.
            base = indices.draw(rng, under.epoch.unwrap_or(0), tunnel);
            let place = Place { peer: slot, base: base.unwrap_or(0), under };
            Box::new(Tunnel::new(secrets, place, now))
        })?;
        if base.is_none() {
            self.tunnels.remove(tunnel);
            return None;
        }
        peer.tunnels.push(tunnel);
        Some(tunnel)
    }

    /// Drops a tunnel and its index base.
    pub(crate) fn drop_tunnel(&mut self, slot: u32, tunnel: u32) {
        if let Some(peer) = self.peers.get_mut(slot) {
            peer.tunnels.retain(|other| *other != tunnel);
            peer.active = peer.active.filter(|active| *active != tunnel);
        }
        if let Some(tunnel) = self.tunnels.remove(tunnel) {
            self.indices.release(tunnel.base);
        }
    }

    /// Sets when a peer is due next.
    pub(crate) fn rearm(&mut self, slot: u32, now: Instant) {
        self.rearm_after(slot, now, now);
    }

    /// Sets when a peer is due next, but no sooner than `floor`.
    pub(crate) fn rearm_after(&mut self, slot: u32, floor: Instant, now: Instant) {
        let Some(peer) = self.peers.get(slot) else { return };
        let mut due: Option<Instant> = None;
        let mut at = |instant: Option<Instant>| due = [due, instant].into_iter().flatten().min();
        at(peer.instance.as_ref().map(|instance| instance.ends_at));
        at(peer.keys.forget_old_at());
        at(peer.attempt.as_ref().map(|attempt| attempt.at));
        at(peer.cookie_at);
        let active = peer.active.and_then(|active| self.tunnels.get(active));
        if let Some(active) = active.filter(|_| peer.live) {
            let most = Duration::from_millis(MOST.as_millis() as u64 - u64::from(active.base % 2000));
            at(Some(self.timers.coarse(active.due(most, now), now)));
            at(peer.persistent_keepalive.map(|every| active.last_rx.max(active.last_tx) + every));
        }
        for tunnel in peer.tunnels.iter().filter_map(|tunnel| self.tunnels.get(*tunnel)) {
            at((active.map(|active| active.base) != Some(tunnel.base))
                .then(|| self.timers.coarse(spent_at(tunnel), now)));
        }
        at(active.filter(|_| !peer.live).map(|tunnel| self.timers.coarse(spent_at(tunnel), now)));
        let due = self.timers.arm(slot, peer.due, due.map(|due| due.max(floor)));
        if let Some(peer) = self.peers.get_mut(slot) {
            peer.due = due;
        }
    }

    fn forget_old_epoch(&mut self, slot: u32, now: Instant) {
        let Some(peer) = self.peers.get_mut(slot) else { return };
        if !peer.keys.forget_old(now) {
            return;
        }
        let active = peer.active;
        for tunnel in peer.tunnels.clone() {
            let Some(peer) = self.peers.get(slot) else { return };
            let Some(entry) = self.tunnels.get_mut(tunnel).filter(|entry| !peer.keys.has(entry.under)) else {
                continue;
            };
            if active == Some(tunnel) && entry.is_live(now) {
                entry.retired = true;
            } else {
                self.drop_tunnel(slot, tunnel);
            }
        }
    }

    /// Sends an empty packet if the peer waits for one, or the way needs one.
    fn keep_alive(&mut self, slot: u32, active: u32, now: Instant, replies: &mut Replies) {
        let Some(peer) = self.peers.get(slot) else { return };
        let Some(tunnel) = self.tunnels.get_mut(active) else { return };
        let quiet = now.saturating_duration_since(tunnel.last_rx.max(tunnel.last_tx));
        let wanted = peer.persistent_keepalive.is_some_and(|every| quiet >= every) || tunnel.wants_keepalive(now);
        let Some(path) = peer.path.filter(|_| wanted) else { return };
        let mut keepalive = Vec::with_capacity(OVERHEAD);
        if tunnel.seal(&[], now, &mut keepalive).is_some() {
            replies.push(path, &keepalive);
            self.stats.keepalives += 1;
        }
    }

    fn note_loss(&mut self, slot: u32, active: u32, now: Instant) {
        let live = self.tunnels.get(active).is_some_and(|tunnel| tunnel.is_live(now));
        let Some(peer) = self.peers.get_mut(slot).filter(|peer| peer.live && !live) else { return };
        lose(peer, now);
        self.stats.live -= 1;
        self.events.push_back(Event::SessionLost { peer: peer.id });
    }

    /// Sends or repeats an initiation, or gives up.
    fn attempt(&mut self, slot: u32, now: Instant, replies: &mut Replies) {
        let Some(peer) = self.peers.get_mut(slot) else { return };
        let cookie = peer.cookie_at.is_some_and(|at| at <= now);
        if cookie {
            peer.cookie_at = None;
        }
        let Some(attempt) = peer.attempt.as_mut() else { return };
        if attempt.at > now {
            if cookie {
                self.initiate(slot, now, replies);
            }
            return;
        }
        if attempt.sent {
            attempt.sent = false;
            attempt.cookies = 0;
            attempt.unanswered += 1;
            let (unanswered, started) = (attempt.unanswered, attempt.started);
            if let Some(target) = attempt.target.or(peer.path) {
                peer.keys.note_unanswered(target.remote);
            }
            self.events.push_back(Event::Unanswered { peer: peer.id, attempts: unanswered });
            let give_up = now.saturating_duration_since(started) >= REKEY_ATTEMPT_TIME;
            if give_up && peer.persistent_keepalive.is_none() {
                peer.attempt = None;
                return;
            }
            if unanswered % REBUILD_EVERY == 0 {
                self.retire_initiators(slot, now);
            }
        }
        self.initiate(slot, now, replies);
    }

    /// Makes the next initiation come from a tunnel built then: the wall clock is read when a `Tunn` is built.
    fn retire_initiators(&mut self, slot: u32, now: Instant) {
        let Some(peer) = self.peers.get(slot) else { return };
        for slot_of_tunnel in peer.tunnels.clone() {
            let Some(tunnel) = self.tunnels.get_mut(slot_of_tunnel).filter(|tunnel| tunnel.pending.is_some()) else {
                continue;
            };
            if tunnel.is_empty(now) {
                self.drop_tunnel(slot, slot_of_tunnel);
            } else {
                tunnel.retired = true;
            }
        }
    }

    /// The tunnel that initiates: a rekey goes through the live one; anything else never does, since boringtun clears all
    /// sessions of a `Tunn` that gets no answer for 90 s.
    fn initiating_tunnel(&mut self, slot: u32, under: Under, now: Instant) -> Option<u32> {
        let peer = self.peers.get(slot)?;
        let fits = |slot: &&u32| {
            self.tunnels
                .get(**slot)
                .is_some_and(|tunnel| tunnel.under == under && !tunnel.retired && !tunnel.is_live(now))
        };
        let aged = |slot: &&u32| {
            self.tunnels.get(**slot).is_some_and(|tunnel| {
                let old =
                    tunnel.established().is_some_and(|at| now.saturating_duration_since(at) >= REKEY_ATTEMPT_TIME);
                tunnel.under == under && !tunnel.retired && old
            })
        };
        let known = peer.tunnels.iter().rev().find(fits).or_else(|| peer.active.as_ref().filter(aged));
        match known {
            Some(tunnel) => Some(*tunnel),
            None => self.build_tunnel(slot, under, now),
        }
    }

    fn drop_spent_tunnels(&mut self, slot: u32, now: Instant) {
        let Some(peer) = self.peers.get(slot) else { return };
        for tunnel in peer.tunnels.clone() {
            let live = peer_is_live_on(self, slot, tunnel);
            if !live && self.tunnels.get(tunnel).is_some_and(|tunnel| spent_at(tunnel) <= now) {
                self.drop_tunnel(slot, tunnel);
            }
        }
    }

    fn jitter(&mut self) -> Duration {
        Duration::from_millis(self.rng.random_range(0..=JITTER_MS))
    }
}

fn peer_is_live_on(engine: &Engine, slot: u32, tunnel: u32) -> bool {
    engine.peers.get(slot).is_some_and(|peer| peer.live && peer.active == Some(tunnel))
}

/// When a tunnel that is not the live one is worth its memory no longer.
fn spent_at(tunnel: &Tunnel) -> Instant {
    let used = tunnel.born.max(tunnel.last_rx).max(tunnel.last_tx);
    used + if tunnel.retired { REJECT_AFTER_TIME } else { MEMORY }
}
