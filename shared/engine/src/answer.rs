//! Handshake messages, from the queue to a session: initiations are answered, responses finish what we began.
//!
//! Must never change what a live session does before the new one's keys are confirmed (wire.md §2).

use std::time::{Duration, Instant};

use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::{Packet, Tunn};
use culvert_model::key::PublicKey;

use crate::bootstrap::{Joiner, LIFE, Room};
use crate::bucket::Rate;
use crate::config::{BootstrapId, Path, PskEpoch};
use crate::engine::{Engine, Known};
use crate::event::{DropReason, Event};
use crate::handshakes::{Handshake, Unclaimed};
use crate::index::parity;
use crate::peer::{CALL_BACK, Instance};
use crate::replies::Replies;
use crate::roster::NewPeer;
use crate::tunn::{INITIATION, KEEPALIVE_TIMEOUT, REKEY_TIMEOUT, RESPONSE, Under, le32};

/// How many strangers are told of.
const STRANGERS: Rate = Rate { burst: 8, every: Duration::from_secs(1) };
/// Initiations for other shards that wait for the owner, who takes them out after each turn.
const UNCLAIMED: usize = 64;
/// The one key of an instance.
const FIRST_KEY: u32 = 0;
/// The one epoch of a bootstrap key.
const BOOTSTRAP_EPOCH: u32 = 0;

impl Engine {
    /// Takes an initiation whose static key nobody here has, and that another shard may know: [`Engine::claim`] there, or
    /// [`Engine::disown`] here. None on an engine that is alone.
    pub fn poll_unclaimed(&mut self) -> Option<Unclaimed> {
        self.unclaimed.pop_front()
    }

    /// Queues an initiation that another shard has judged and found to be for a key of this one. It is not asked for a
    /// cookie again, but counts as load. `false`: the queue is full.
    pub fn claim(&mut self, unclaimed: Unclaimed, now: Instant) -> bool {
        let Unclaimed { initiation: bytes, path, own, .. } = unclaimed;
        let first = self.endpoints.contains_key(&path.remote);
        let queued = self.queue.push(Handshake::Initiation { bytes, path, own, passed: true }, first, now);
        self.note_load(now);
        if !queued {
            self.stats.count_drop(DropReason::QueueFull);
        }
        queued
    }

    /// An initiation that no shard knows the key of.
    pub fn disown(&mut self, unclaimed: &Unclaimed, now: Instant) {
        let reason = self.stranger(unclaimed.public_key, unclaimed.path, now);
        self.stats.count_drop(reason);
    }

    fn stranger(&mut self, public_key: PublicKey, path: Path, now: Instant) -> DropReason {
        if self.strangers.take(STRANGERS, now) {
            self.events.push_back(Event::Stranger { public_key, path });
        }
        DropReason::UnknownPeer
    }

    /// Answers an initiation. One X25519 tells whose it is; its bounds come before the rest.
    pub(crate) fn take_initiation(
        &mut self,
        initiation: &[u8; INITIATION],
        path: Path,
        (own, passed): (usize, bool),
        now: Instant,
        replies: &mut Replies,
    ) -> Result<(), DropReason> {
        let key = self.own.get(own).and_then(Option::as_ref).ok_or(DropReason::BadMac)?;
        let Ok(Packet::HandshakeInit(parsed)) = Tunn::parse_incoming_packet(initiation) else {
            return Err(DropReason::Malformed);
        };
        let half = parse_handshake_anon(&key.private, &key.public, &parsed).map_err(|_| DropReason::BadSeal)?;
        let public_key = PublicKey::from_bytes(half.peer_static_public);
        let (slot, key) = match self.known_of(public_key, own) {
            Some(Known::Peer(slot, key)) => (slot, key),
            Some(Known::Bootstrap(id)) => {
                let known = self.bootstraps.instance(id, path.remote).is_some();
                if !known && !self.bootstraps.admits(id, now) {
                    let joiner = Joiner { id, initiation: *initiation, path, own, since: now };
                    return if self.bootstraps.wait(joiner) { Ok(()) } else { Err(DropReason::BootstrapLimit) };
                }
                (self.instance(id, path, own, now)?, FIRST_KEY)
            }
            // Passed on once: two shards that each believe the other has the key would send it to and fro.
            None if self.indices.shard().bits > 0 && !passed => {
                if self.unclaimed.len() >= UNCLAIMED {
                    return Err(DropReason::QueueFull);
                }
                self.unclaimed.push_back(Unclaimed { public_key, initiation: *initiation, path, own });
                return Ok(());
            }
            None => return Err(self.stranger(public_key, path, now)),
        };
        let peer = self.peers.get_mut(slot).ok_or(DropReason::UnknownPeer)?;
        if !peer.may_answer(now) {
            return Err(DropReason::TooManyInitiations);
        }
        let under = Under { key, own, epoch: peer.keys.epoch_of(key, parity(half.peer_index)) };
        let (tunnel, built) = self.answering_tunnel(slot, under, now).ok_or(DropReason::QueueFull)?;
        self.tick(slot, tunnel, now);
        let answer = self.tunnels.get_mut(tunnel).ok_or(DropReason::UnknownIndex)?.answer(initiation, now);
        match answer {
            Ok(response) => {
                replies.push(path, &response);
                self.stats.responses += 1;
                if let Some(peer) = self.peers.get_mut(slot) {
                    peer.note_answer(now);
                }
            }
            Err(_) if built => self.drop_tunnel(slot, tunnel),
            Err(DropReason::Stale) => self.call_back(slot, under, path, now, replies),
            Err(_) => {}
        }
        self.rearm(slot, now);
        answer.map(|_| ())
    }

    /// Answers joiners that waited, while there is room for them.
    pub(crate) fn admit_joiners(&mut self, budget: usize, now: Instant, replies: &mut Replies) {
        for _ in 0..budget {
            let Some(joiner) = self.bootstraps.admit(now) else { break };
            if let Err(reason) = self.take_initiation(&joiner.initiation, joiner.path, (joiner.own, true), now, replies)
            {
                self.stats.count_drop(reason);
            }
        }
    }

    /// Takes a response to an initiation of ours.
    pub(crate) fn take_response(
        &mut self,
        response: &[u8; RESPONSE],
        path: Path,
        now: Instant,
        replies: &mut Replies,
    ) -> Result<(), DropReason> {
        let slot = le32(response, 8).and_then(|index| self.indices.tunnel(index)).ok_or(DropReason::UnknownIndex)?;
        let peer = self.tunnels.get(slot).ok_or(DropReason::UnknownIndex)?.peer;
        self.tick(peer, slot, now);
        let tunnel = self.tunnels.get_mut(slot).ok_or(DropReason::UnknownIndex)?;
        let (index, keepalive) = tunnel.finish(response, now)?;
        self.stats.keepalives += 1;
        replies.push(path, &keepalive);
        self.confirm(peer, slot, index, true, path, now);
        Ok(())
    }

    /// A session's keys are confirmed: if it is the newest, everything moves to it now.
    pub(crate) fn confirm(
        &mut self,
        slot: u32,
        tunnel_slot: u32,
        index: u32,
        initiated: bool,
        path: Path,
        now: Instant,
    ) {
        let Some(peer) = self.peers.get(slot) else { return };
        let Some(tunnel) = self.tunnels.get(tunnel_slot) else { return };
        let under = tunnel.under;
        let newest = peer.active.and_then(|active| self.tunnels.get(active)).filter(|active| active.is_live(now));
        if newest.and_then(|newest| newest.newest_started()) > tunnel.started_at(index) {
            return;
        }
        self.set_path(slot, path, now);
        let Some(peer) = self.peers.get_mut(slot) else { return };
        let first = !peer.live;
        peer.active = Some(tunnel_slot);
        peer.live = true;
        peer.last_handshake = Some(now);
        peer.attempt = None;
        peer.cookie_at = None;
        peer.unconfirmed.refill();
        self.stats.live += u32::from(first);
        self.stats.sessions += 1;
        let id = peer.id;
        let bootstrap = peer.instance.as_ref().map(|instance| instance.bootstrap);
        let promoted = peer.keys.confirm(under, initiated, now);
        // Another tunnel with the same keys has nothing left to do but to open what is still on its way.
        for other in peer.tunnels.iter().filter(|other| **other != tunnel_slot) {
            if let Some(other) = self.tunnels.get_mut(*other).filter(|other| other.under == under) {
                other.retired = true;
            }
        }
        if bootstrap.is_some() {
            self.bootstraps.confirm(slot);
        }
        let epoch = under.epoch;
        self.events.push_back(Event::SessionUp { peer: id, bootstrap, path, epoch, initiated, first });
        if let Some(public_key) = promoted.key {
            self.events.push_back(Event::KeyPromoted { peer: id, public_key, static_index: under.own });
        }
        if let Some(epoch) = promoted.epoch {
            self.events.push_back(Event::EpochPromoted { peer: id, epoch });
        }
        self.rearm(slot, now);
    }

    /// A peer's timestamp went back. If it is silent otherwise, an initiation of ours to that source, 148 bytes for 148,
    /// brings it up; from a tunnel of its own, so that nothing else changes.
    fn call_back(&mut self, slot: u32, under: Under, path: Path, now: Instant, replies: &mut Replies) {
        let Some(peer) = self.peers.get_mut(slot) else { return };
        let active = peer.active.and_then(|active| self.tunnels.get(active));
        let heard = active.is_some_and(|active| {
            active.is_live(now) && now.saturating_duration_since(active.last_rx) < KEEPALIVE_TIMEOUT + REKEY_TIMEOUT
        });
        let recent = peer.called_back.is_some_and(|at| now.saturating_duration_since(at) < CALL_BACK);
        if heard || recent || peer.instance.is_some() {
            return;
        }
        peer.called_back = Some(now);
        let id = peer.id;
        self.events.push_back(Event::ClockBehind { peer: id, path });
        if let Some(tunnel) = self.build_tunnel(slot, under, now) {
            self.send_initiation(tunnel, path, now, replies);
        }
    }

    /// Who has a static key: under the key of ours that was addressed, else under any other of ours.
    pub(crate) fn known_of(&self, key: PublicKey, own: usize) -> Option<Known> {
        let others = (0..self.own.len()).filter(|other| *other != own);
        std::iter::once(own).chain(others).find_map(|own| self.known.get(&(key, own)).copied())
    }

    /// The instance of a bootstrap key at one source, made now if it must and may.
    fn instance(&mut self, bootstrap: BootstrapId, path: Path, own: usize, now: Instant) -> Result<u32, DropReason> {
        if !self.bootstraps.may_answer(bootstrap, now) {
            return Err(DropReason::BootstrapLimit);
        }
        if let Some(slot) = self.bootstraps.instance(bootstrap, path.remote) {
            return Ok(slot);
        }
        match self.bootstraps.room(now) {
            Room::Yes => {}
            Room::After(oldest) => self.end_instance(oldest),
            Room::No => return Err(DropReason::BootstrapLimit),
        }
        let key = self.bootstraps.key(bootstrap).ok_or(DropReason::UnknownPeer)?;
        let allowed_ips = key.allowed_ips.clone();
        let new = NewPeer {
            public_key: key.public_key,
            own,
            psks: vec![PskEpoch { epoch: BOOTSTRAP_EPOCH, psk: key.psk.clone() }],
            allowed_ips: &allowed_ips,
            path: None,
            keepalive: None,
            instance: Some(Instance { bootstrap, source: path.remote, ends_at: now + LIFE }),
        };
        let slot = self.put_peer(new).ok_or(DropReason::BootstrapLimit)?;
        self.bootstraps.insert(bootstrap, path.remote, slot, now);
        self.rearm(slot, now);
        Ok(slot)
    }

    /// The tunnel that answers under these keys: the one that knows the peer's last timestamp, else a new one.
    fn answering_tunnel(&mut self, slot: u32, under: Under, now: Instant) -> Option<(u32, bool)> {
        let peer = self.peers.get(slot)?;
        let fits =
            |slot: &&u32| self.tunnels.get(**slot).is_some_and(|tunnel| tunnel.under == under && !tunnel.retired);
        let known = peer.active.as_ref().filter(fits).or_else(|| peer.tunnels.iter().find(fits));
        match known {
            Some(tunnel) => Some((*tunnel, false)),
            None => self.build_tunnel(slot, under, now).map(|tunnel| (tunnel, true)),
        }
    }
}
