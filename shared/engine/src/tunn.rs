//! boringtun 0.7.1, and every fact about it that its owner must know (design.md §4, wire.md §2).
//!
//! A [`Tunnel`] is one `Tunn` with a mirror of the state that it does not show:
//! - It has a ring of 8 sessions. The slot is the local index modulo 8, and indices count up with each initiation *and* each
//!   response, so unconfirmed sessions can evict the live one. Then `encapsulate` seals with an unconfirmed key.
//!   [`Tunnel::answer`] burns an index rather than let that happen, and [`Tunnel::seal`] uses only what is confirmed.
//! - `encapsulate` without a session queues the packet and initiates: it is never called then.
//! - Events are stamped with the time of the last `update_timers`, so the mirror stamps sessions the same way, and the
//!   owner calls [`Tunnel::tick`] before use when [`Tunnel::is_stale`].
//! - Of two sessions with the same stamp it seals with the one heard last, be it the older: it is ticked before each
//!   handshake message, so that no two have the same.
//! - An answered initiation makes it forget that it was the initiator of the live session, and with that the rekey after
//!   120 s; two events between the same two ticks have the same stamp, so a request answered at once starts no keepalive.
//!   [`Tunnel::wants_handshake`] and [`Tunnel::wants_keepalive`] are our own rules; what boringtun asks for comes on top.
//! - It takes the first packet after a silence of 15 s for one that had no answer in that time, if ticked before the answer
//!   comes; and it repeats initiations without jitter. [`Tunnel::hold`] keeps ticks away meanwhile.
//! - After 90 s without an answer, or 540 s without a new session, it expires and clears all sessions. The initiation
//!   timestamp comes from the wall clock read once, at construction. Both end by building another `Tunnel`.
//! - Output buffers that are too short make it panic: all of them are made here, and long enough.
//!
//! Must never hand out a packet that did not decrypt, nor seal under a key that the peer has not confirmed.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Tunn, TunnResult};
use culvert_model::key::{Psk, PublicKey};
use x25519_dalek::StaticSecret;

use crate::event::DropReason;

/// Length of an initiation.
pub(crate) const INITIATION: usize = 148;
/// Length of a response.
pub(crate) const RESPONSE: usize = 92;
/// Length of a cookie reply.
pub(crate) const COOKIE_REPLY: usize = 64;
/// What sealing adds, and so the length of a keepalive.
pub(crate) const OVERHEAD: usize = 32;
/// The longest inner packet that one UDP datagram can carry, padding included.
pub(crate) const LONGEST: usize = (65_507 - OVERHEAD) / 16 * 16;

/// WireGuard paper §6.5, by the paper's names.
pub(crate) const REKEY_AFTER_TIME: Duration = Duration::from_secs(120);
pub(crate) const REJECT_AFTER_TIME: Duration = Duration::from_secs(180);
pub(crate) const REKEY_ATTEMPT_TIME: Duration = Duration::from_secs(90);
pub(crate) const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
pub(crate) const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
const REKEY_AFTER_MESSAGES: u64 = 1 << 60;
const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);

/// How long a `Tunn` may go without a tick before it is used.
pub(crate) const TICK: Duration = Duration::from_millis(250);
const RING: usize = 8;
/// Handshakes that both ends began count as crossed within this time.
const CROSSED: Duration = REKEY_TIMEOUT;

/// One `Tunn` and the mirror of its state.
pub(crate) struct Tunnel {
    tunn: Tunn,
    /// The slot of the peer that it belongs to.
    pub(crate) peer: u32,
    pub(crate) base: u32,
    pub(crate) under: Under,
    pub(crate) born: Instant,
    /// No longer ticked, and no new handshakes: only what its sessions still carry.
    pub(crate) retired: bool,
    ring: [Option<Session>; RING],
    /// Mirrors `Tunn::current`: what seals is whatever stands in its slot. Starts at 0 as there.
    current: u32,
    /// Mirrors the count in the last index that was drawn.
    last_index: u8,
    ticked: Instant,
    /// The index and time of our newest initiation that has no answer.
    pub(crate) pending: Option<Pending>,
    pub(crate) last_rx: Instant,
    pub(crate) last_tx: Instant,
    last_rx_data: Option<Instant>,
    last_tx_data: Option<Instant>,
    /// When the first data packet was sent since we last heard anything.
    unheard_since: Option<Instant>,
}

/// An initiation of ours on its way.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Pending {
    pub(crate) sent: Instant,
    /// REKEY_TIMEOUT plus jitter after `sent`.
    pub(crate) retry_at: Instant,
    /// Responses tried on it; bounds what guessed ones can cost.
    pub(crate) tries: u8,
}

#[derive(Copy, Clone, Debug)]
struct Session {
    index: u32,
    /// The peer's index: what our packets under this session begin with.
    remote: u32,
    /// Stamped as boringtun stamps: the time of the last tick.
    established: Instant,
    /// When it was really made.
    started: Instant,
    confirmed: bool,
    initiated: bool,
    highest: Option<u64>,
    exhausted: bool,
    worn: bool,
}

/// A data packet that decrypted.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Opened {
    /// The inner source, or why there is no packet.
    pub(crate) inner: Inner,
    pub(crate) index: u32,
    /// The first packet of its session.
    pub(crate) confirms: bool,
    /// No packet of its session with a higher counter came before it.
    pub(crate) newest_counter: bool,
    started: Instant,
    initiated: bool,
}

impl Opened {
    /// It is of the newest confirmed session, which `active` has. When both ends initiate at once, both sessions are.
    pub(crate) fn is_newest(&self, active: &Tunnel) -> bool {
        active.newest_session().is_some_and(|newest| {
            let older_by = newest.started.saturating_duration_since(self.started);
            older_by.is_zero() || older_by <= CROSSED && newest.initiated != self.initiated
        })
    }
}

#[derive(Copy, Clone, Debug)]
pub(crate) enum Inner {
    Packet(IpAddr),
    Keepalive,
    Bad,
}

/// What a tick wants sent, or that the `Tunn` is used up.
#[derive(Debug)]
pub(crate) enum Tick {
    Nothing,
    Initiation([u8; INITIATION]),
    Keepalive([u8; OVERHEAD]),
    Expired,
}

impl Tunnel {
    pub(crate) fn new(keys: Secrets<'_>, place: Place, now: Instant) -> Self {
        let tunn = Tunn::new(
            keys.private.clone(),
            (*keys.peer.as_bytes()).into(),
            keys.psk.map(|psk| *psk.as_bytes()),
            // The engine keeps its own keepalive: boringtun's also speaks on a busy tunnel.
            None,
            place.base,
            Some(Arc::clone(keys.limiter)),
        );
        Self {
            tunn,
            peer: place.peer,
            base: place.base,
            under: place.under,
            born: now,
            retired: false,
            ring: [None; RING],
            current: 0,
            last_index: 0,
            ticked: now,
            pending: None,
            last_rx: now,
            last_tx: now,
            last_rx_data: None,
            last_tx_data: None,
            unheard_since: None,
        }
    }

    /// Opens a data packet of at least [`OVERHEAD`] bytes and appends the inner packet to `out`.
    ///
    /// # Errors
    /// Nothing was authenticated and nothing appended.
    pub(crate) fn open(&mut self, datagram: &[u8], now: Instant, out: &mut Vec<u8>) -> Result<Opened, DropReason> {
        let index = le32(datagram, 4).ok_or(DropReason::Malformed)?;
        let counter = le64(datagram, 8).ok_or(DropReason::Malformed)?;
        let slot = ring_slot(index);
        let session = self.ring[slot].filter(|session| session.index == index).ok_or(DropReason::UnknownIndex)?;
        // Counters past the limit also overflow boringtun's replay window.
        if counter >= REJECT_AFTER_MESSAGES || session.is_dead(now) {
            return Err(DropReason::Expired);
        }
        let start = out.len();
        out.resize(start + datagram.len(), 0);
        let (len, inner) = match self.tunn.decapsulate(None, datagram, &mut out[start..]) {
            TunnResult::WriteToTunnelV4(packet, source) if packet.len() >= 20 => {
                (packet.len(), Inner::Packet(source.into()))
            }
            TunnResult::WriteToTunnelV6(packet, source) => (packet.len(), Inner::Packet(source.into())),
            TunnResult::Done => (0, Inner::Keepalive),
            // It has decrypted and is no IP packet: what is malformed outside was refused above.
            TunnResult::WriteToTunnelV4(..) | TunnResult::Err(WireGuardError::InvalidPacket) => (0, Inner::Bad),
            TunnResult::Err(error) => {
                out.truncate(start);
                return Err(reason(&error));
            }
            TunnResult::WriteToNetwork(_) => {
                out.truncate(start);
                return Err(DropReason::BadSeal);
            }
        };
        out.truncate(start + len);

        let newest_counter = session.highest.is_none_or(|highest| counter > highest);
        if let Some(session) = self.ring[slot].as_mut() {
            session.confirmed = true;
            session.highest = session.highest.max(Some(counter));
        }
        self.make_current(index);
        self.last_rx = now;
        self.unheard_since = None;
        if !matches!(inner, Inner::Keepalive) {
            self.last_rx_data = Some(now);
        }
        let confirms = !session.confirmed && self.is_live(now);
        let Session { started, initiated, .. } = session;
        Ok(Opened { inner, index, confirms, newest_counter, started, initiated })
    }

    /// Seals one padded packet, or with no bytes a keepalive, and appends the datagram. `None`: no live session.
    pub(crate) fn seal(&mut self, packet: &[u8], now: Instant, out: &mut Vec<u8>) -> Option<usize> {
        let session = self.current_session().filter(|session| !session.is_dead(now))?;
        if packet.len() > LONGEST {
            return None;
        }
        let start = out.len();
        out.resize(start + (packet.len() + OVERHEAD).max(INITIATION), 0);
        let len = match self.tunn.encapsulate(packet, &mut out[start..]) {
            TunnResult::WriteToNetwork(sealed)
                if sealed.first() == Some(&4) && le32(sealed, 4) == Some(session.remote) =>
            {
                sealed.len()
            }
            // The clock of boringtun ran ahead of ours (suspend): its session is gone, and what it wants to send
            // instead is an initiation that the owner will make itself.
            _ => {
                out.truncate(start);
                self.ring[ring_slot(self.current)] = None;
                return None;
            }
        };
        out.truncate(start + len);
        self.last_tx = now;
        if !packet.is_empty() {
            self.last_tx_data = Some(now);
            self.unheard_since = self.unheard_since.or(Some(now));
        }
        let counter = le64(&out[start..], 8).unwrap_or(u64::MAX);
        if counter >= REKEY_AFTER_MESSAGES {
            self.wear_out(counter);
        }
        Some(len)
    }

    /// Makes an initiation, even while another is on its way.
    pub(crate) fn initiate(&mut self, jitter: Duration, now: Instant) -> Option<[u8; INITIATION]> {
        let mut out = [0; INITIATION];
        match self.tunn.format_handshake_initiation(&mut out, true) {
            TunnResult::WriteToNetwork(_) => {
                self.note_initiation(&out, jitter, now);
                Some(out)
            }
            _ => None,
        }
    }

    /// Answers an initiation that was found to be of this peer. The new session is unconfirmed.
    ///
    /// # Errors
    /// [`DropReason::Stale`]: authentic, but not newer than the last. [`DropReason::BadSeal`]: not authentic.
    pub(crate) fn answer(&mut self, initiation: &[u8], now: Instant) -> Result<[u8; RESPONSE], DropReason> {
        let next = self.last_index.wrapping_add(1);
        let live = self.current_session().filter(|session| !session.is_dead(now));
        if live.is_some_and(|session| ring_slot(session.index) == ring_slot(u32::from(next))) {
            let mut burnt = [0; INITIATION];
            if let TunnResult::WriteToNetwork(_) = self.tunn.format_handshake_initiation(&mut burnt, true) {
                self.last_index = burnt[4];
            }
        }
        let mut out = [0; INITIATION];
        match self.tunn.decapsulate(None, initiation, &mut out) {
            TunnResult::WriteToNetwork(response) if response.len() == RESPONSE => {}
            TunnResult::Err(error) => return Err(reason(&error)),
            _ => return Err(DropReason::BadSeal),
        }
        let index = le32(&out, 4).unwrap_or_default();
        self.last_index = out[4];
        self.put(index, le32(initiation, 4).unwrap_or_default(), false, now);
        let mut response = [0; RESPONSE];
        response.copy_from_slice(&out[..RESPONSE]);
        Ok(response)
    }

    /// Takes a response; the session is confirmed and current, and the keepalive tells the peer so.
    ///
    /// # Errors
    /// No initiation of ours asked for it, or it is not authentic.
    pub(crate) fn finish(&mut self, response: &[u8], now: Instant) -> Result<(u32, [u8; OVERHEAD]), DropReason> {
        if let Some(pending) = self.pending.as_mut() {
            pending.tries = pending.tries.saturating_add(1);
        }
        let mut out = [0; INITIATION];
        match self.tunn.decapsulate(None, response, &mut out) {
            TunnResult::WriteToNetwork(keepalive) if keepalive.len() == OVERHEAD => {}
            TunnResult::Err(error) => return Err(reason(&error)),
            _ => return Err(DropReason::BadSeal),
        }
        let index = le32(response, 8).unwrap_or_default();
        self.put(index, le32(response, 4).unwrap_or_default(), true, now);
        self.make_current(index);
        self.pending = None;
        self.last_rx = now;
        self.unheard_since = None;
        self.last_tx = now;
        let mut keepalive = [0; OVERHEAD];
        keepalive.copy_from_slice(&out[..OVERHEAD]);
        Ok((index, keepalive))
    }

    /// Takes a cookie reply; true when it is authentic and answers our last handshake message.
    pub(crate) fn take_cookie(&mut self, reply: &[u8]) -> bool {
        let mut out = [0; INITIATION];
        matches!(self.tunn.decapsulate(None, reply, &mut out), TunnResult::Done)
    }

    /// It must be ticked before use.
    #[inline]
    pub(crate) fn is_stale(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.ticked) >= TICK && self.hold(now).is_none() && !self.retired
    }

    /// Moves boringtun's timers.
    pub(crate) fn tick(&mut self, jitter: Duration, now: Instant) -> Tick {
        if now <= self.ticked || self.hold(now).is_some() {
            return Tick::Nothing;
        }
        self.ticked = now;
        for session in &mut self.ring {
            // As boringtun does, and with the same stamps.
            if session.is_some_and(|session| now - session.established > REJECT_AFTER_TIME) {
                *session = None;
            }
        }
        let mut out = [0; INITIATION];
        let len = match self.tunn.update_timers(&mut out) {
            TunnResult::WriteToNetwork(datagram) => datagram.len(),
            TunnResult::Err(WireGuardError::ConnectionExpired) => {
                self.ring = [None; RING];
                self.pending = None;
                return Tick::Expired;
            }
            _ => 0,
        };
        if self.tunn.time_since_last_handshake().is_none() {
            self.ring[ring_slot(self.current)] = None;
        }
        if len == INITIATION {
            self.note_initiation(&out, jitter, now);
            Tick::Initiation(out)
        } else if len == OVERHEAD && self.remote_now(now) == le32(&out, 4) {
            self.last_tx = now;
            let mut keepalive = [0; OVERHEAD];
            keepalive.copy_from_slice(&out[..OVERHEAD]);
            Tick::Keepalive(keepalive)
        } else {
            Tick::Nothing
        }
    }

    /// Packets can be sealed now.
    #[inline]
    pub(crate) fn is_live(&self, now: Instant) -> bool {
        self.current_session().is_some_and(|session| !session.is_dead(now))
    }

    /// When the session that seals was established.
    pub(crate) fn established(&self) -> Option<Instant> {
        self.current_session().map(|session| session.established)
    }

    /// When the newest confirmed session was made.
    pub(crate) fn newest_started(&self) -> Option<Instant> {
        self.newest_session().map(|session| session.started)
    }

    /// When a session was made.
    pub(crate) fn started_at(&self, index: u32) -> Option<Instant> {
        self.ring[ring_slot(index)].filter(|session| session.index == index).map(|session| session.started)
    }

    /// The last session, confirmed or not, has ended.
    pub(crate) fn is_empty(&self, now: Instant) -> bool {
        self.ring.iter().flatten().all(|session| session.is_dead(now))
    }

    /// We are who asks for another session, and it is time (paper §6.2), or what we sent is unheard (§6.4).
    pub(crate) fn wants_handshake(&self, now: Instant) -> bool {
        self.handshake_at().is_some_and(|at| at <= now)
    }

    /// A handshake was started because of [`wants_handshake`](Self::wants_handshake).
    pub(crate) fn note_wish_granted(&mut self) {
        self.unheard_since = None;
    }

    /// We received data and sent nothing since, for KEEPALIVE_TIMEOUT (paper §6.5).
    pub(crate) fn wants_keepalive(&self, now: Instant) -> bool {
        self.keepalive_at().is_some_and(|at| at <= now)
    }

    /// When it is worth a look next; never sooner than a tick can do something.
    pub(crate) fn due(&self, most: Duration, now: Instant) -> Instant {
        let end = self.established().map(|at| at + REJECT_AFTER_TIME);
        let wish = self.handshake_at().filter(|_| self.pending.is_none());
        if self.retired {
            return [end, wish].into_iter().flatten().fold(now + most, Instant::min);
        }
        let due = [end, wish, self.keepalive_at()].into_iter().flatten().fold(self.ticked + most, Instant::min);
        due.max(self.hold(now).unwrap_or(self.ticked + TICK))
    }

    fn handshake_at(&self) -> Option<Instant> {
        let session = self.current_session()?;
        let since = |at: Option<Instant>| at.is_some_and(|at| at > session.established);
        let sent = (session.initiated && since(self.last_tx_data)).then(|| session.established + REKEY_AFTER_TIME);
        let heard = (session.initiated && since(self.last_rx_data)).then(|| session.established + REKEY_ON_RECEIVE);
        let worn = session.worn.then_some(self.ticked);
        let unheard = self.unheard_since.map(|since| since + UNHEARD);
        [sent, heard, worn, unheard].into_iter().flatten().min()
    }

    fn keepalive_at(&self) -> Option<Instant> {
        self.current_session()?;
        Some(self.last_rx_data.filter(|rx| *rx > self.last_tx)? + KEEPALIVE_TIMEOUT)
    }

    /// The session index answers, or one before it still may.
    pub(crate) fn expects_response(&self) -> bool {
        self.pending.is_some_and(|pending| pending.tries < 8)
    }

    /// Until when it must not be ticked, if at all.
    fn hold(&self, now: Instant) -> Option<Instant> {
        if let Some(pending) = self.pending {
            // WireGuard spreads repeated initiations over 333 ms.
            return (now >= pending.sent + REKEY_TIMEOUT && now < pending.retry_at).then_some(pending.retry_at);
        }
        let silent = now.saturating_duration_since(self.last_rx) >= UNHEARD - TICK;
        self.unheard_since.map(|since| since + UNHEARD).filter(|until| silent && now < *until)
    }

    fn note_initiation(&mut self, initiation: &[u8; INITIATION], jitter: Duration, now: Instant) {
        self.last_index = initiation[4];
        self.pending = Some(Pending { sent: now, retry_at: now + REKEY_TIMEOUT + jitter, tries: 0 });
        self.last_tx = now;
    }

    fn put(&mut self, index: u32, remote: u32, initiated: bool, now: Instant) {
        self.ring[ring_slot(index)] = Some(Session {
            index,
            remote,
            established: self.ticked,
            started: now,
            confirmed: initiated,
            initiated,
            highest: None,
            exhausted: false,
            worn: false,
        });
    }

    /// `Tunn::set_current_session`, in the mirror.
    fn make_current(&mut self, index: u32) {
        let new = self.ring[ring_slot(index)];
        let old = self.ring[ring_slot(self.current)];
        if old.is_none_or(|old| new.is_some_and(|new| new.established >= old.established)) {
            self.current = index;
        }
    }

    #[inline]
    fn current_session(&self) -> Option<Session> {
        self.ring[ring_slot(self.current)].filter(|session| session.confirmed)
    }

    fn newest_session(&self) -> Option<Session> {
        self.ring.iter().flatten().filter(|session| session.confirmed).max_by_key(|session| session.started).copied()
    }

    fn remote_now(&self, now: Instant) -> Option<u32> {
        self.current_session().filter(|session| !session.is_dead(now)).map(|session| session.remote)
    }

    #[cold]
    fn wear_out(&mut self, counter: u64) {
        if let Some(session) = self.ring[ring_slot(self.current)].as_mut() {
            session.worn = true;
            session.exhausted = counter >= REJECT_AFTER_MESSAGES - 1;
        }
    }
}

/// Data that nothing came back for in this time starts a handshake: KEEPALIVE_TIMEOUT + REKEY_TIMEOUT.
const UNHEARD: Duration = Duration::from_secs(10 + 5);
/// REJECT_AFTER_TIME - KEEPALIVE_TIMEOUT - REKEY_TIMEOUT.
const REKEY_ON_RECEIVE: Duration = Duration::from_secs(180 - 10 - 5);

impl Session {
    #[inline]
    fn is_dead(&self, now: Instant) -> bool {
        self.exhausted || now.saturating_duration_since(self.established) >= REJECT_AFTER_TIME
    }
}

/// The keys of one tunnel.
pub(crate) struct Secrets<'a> {
    pub(crate) private: &'a StaticSecret,
    pub(crate) peer: &'a PublicKey,
    pub(crate) psk: Option<&'a Psk>,
    pub(crate) limiter: &'a Arc<RateLimiter>,
}

/// What a tunnel speaks under: a key of the peer, one of ours, and a pre-shared key.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) struct Under {
    /// The peer's, by the number that it has there.
    pub(crate) key: u32,
    pub(crate) own: usize,
    pub(crate) epoch: Option<u32>,
}

/// Where a tunnel belongs.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Place {
    pub(crate) peer: u32,
    pub(crate) base: u32,
    pub(crate) under: Under,
}

/// Reads a little-endian number.
#[inline]
pub(crate) fn le32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes)
}

#[inline]
fn le64(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes)
}

#[inline]
const fn ring_slot(index: u32) -> usize {
    index as usize % RING
}

fn reason(error: &WireGuardError) -> DropReason {
    match error {
        WireGuardError::WrongTai64nTimestamp => DropReason::Stale,
        WireGuardError::InvalidCounter | WireGuardError::DuplicateCounter => DropReason::Replayed,
        WireGuardError::UnexpectedPacket | WireGuardError::WrongIndex | WireGuardError::NoCurrentSession => {
            DropReason::UnknownIndex
        }
        _ => DropReason::BadSeal,
    }
}
