//! The hello: the first inner datagram of each WireGuard session tells who speaks and how (wire.md §2), and a padded
//! one finds out whether full-size packets pass (wire.md §1, "Small paths").
//!
//! [`Greeting`] is the state of one peer: time and messages go in, messages and facts come out. It must never send or
//! read a clock itself. The relay only answers; every timer is the connector's.

use std::time::{Duration, Instant};

use culvert_model::id::InstanceId;

use crate::crypto::PROTOCOL_VERSION;

/// The length of a hello before padding.
pub(crate) const LEN: usize = 29;
/// A padded hello makes an inner packet as long as QUIC's smallest full one.
pub(crate) const PADDED_LEN: usize = 1200;

const MAGIC: [u8; 4] = *b"clvh";
const NO_EPOCH: u32 = u32::MAX;

/// Unanswered for this long: said again.
const PATIENCE: Duration = Duration::from_millis(250);
const PATIENCE_MAX: Duration = Duration::from_secs(2);
/// A finding about the path is this fresh, or a dial asks again.
const FRESH: Duration = Duration::from_secs(5);

/// An answer is wanted.
const WANT_ANSWER: u8 = 1;
/// Padded to full size; so is its answer.
const PADDED: u8 = 2;
/// This is an answer.
const ANSWER: u8 = 4;
/// Between these two ends long packets go as two fragments.
const SMALL: u8 = 8;
/// The receiver's key is in use by another process (a clone, wire.md §2).
const DISPLACED: u8 = 16;
/// The path has changed: probe again.
const PROBE_AGAIN: u8 = 32;

/// One hello.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hello {
    pub(crate) version: u32,
    pub(crate) instance: InstanceId,
    pub(crate) epoch: Option<u32>,
    flags: u8,
}

impl Hello {
    /// Appends it, padded when it has to be.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&self.version.to_be_bytes());
        out.extend_from_slice(self.instance.as_bytes());
        out.extend_from_slice(&self.epoch.unwrap_or(NO_EPOCH).to_be_bytes());
        out.push(self.flags);
        if self.is_padded() {
            out.resize(start + PADDED_LEN, 0);
        }
    }

    /// Reads one; `None` when it is none. What follows the known fields is left to later versions.
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let (head, _) = bytes.split_first_chunk::<LEN>()?;
        let word = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let mut instance = [0; 16];
        instance.copy_from_slice(&head[8..24]);
        let epoch = Some(word(24)).filter(|epoch| *epoch != NO_EPOCH);
        (head[..4] == MAGIC).then(|| Self {
            version: word(4),
            instance: InstanceId::from_bytes(instance),
            epoch,
            flags: head[28],
        })
    }

    pub(crate) fn is_padded(&self) -> bool {
        self.flags & PADDED != 0
    }

    /// Says that the receiver's key is in use by another process.
    pub(crate) fn is_displacement(&self) -> bool {
        self.flags & DISPLACED != 0
    }

    /// The flags of the answer that it wants, if it wants one.
    pub(crate) fn answer(&self) -> Option<Flags> {
        (self.flags & WANT_ANSWER != 0).then_some(Flags(ANSWER | (self.flags & PADDED)))
    }

    fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// What a hello that has to be sent says beside who we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Flags(u8);

impl Flags {
    /// The relay's first word of a session: nothing is asked.
    pub(crate) const PLAIN: Self = Self(0);
    /// The relay saw the peer move.
    pub(crate) const MOVED: Self = Self(PROBE_AGAIN);

    /// Tells the receiver that its key is in use by another process.
    pub(crate) const fn displaced(self) -> Self {
        Self(self.0 | DISPLACED)
    }
}

/// What one end knows of the other from hellos. The connector's end drives, the relay's end is told.
#[derive(Debug, Default)]
pub(crate) struct Greeting {
    /// The peer's process, once it said so.
    pub(crate) instance: Option<InstanceId>,
    /// The pre-shared key epoch that the peer said it is on.
    pub(crate) epoch: Option<u32>,
    /// The version that the peer said it speaks.
    pub(crate) version: Option<u32>,
    /// Long packets go as two fragments.
    pub(crate) small: bool,
    /// The peer said that another process uses our key.
    pub(crate) displaced: bool,
    ask: Option<Ask>,
    probe: Option<Ask>,
    /// When the last finding about the path was made.
    found: Option<Instant>,
}

/// A question that is repeated until it is answered.
#[derive(Debug, Clone, Copy)]
struct Ask {
    due: Instant,
    tries: u32,
}

impl Greeting {
    /// Connector: a session is confirmed, or a dial wants fresh findings: asks who is there and whether full size passes.
    pub(crate) fn start(&mut self, now: Instant, out: &mut Vec<Flags>) {
        self.displaced = false;
        self.version = None;
        self.found = None;
        self.ask = Some(Ask { due: now + PATIENCE, tries: 1 });
        self.probe = Some(Ask { due: now + PATIENCE, tries: 1 });
        out.extend([self.flags(WANT_ANSWER), self.flags(WANT_ANSWER | PADDED)]);
    }

    /// Connector: no session is live, so nothing can be asked.
    pub(crate) fn stop(&mut self) {
        self.ask = None;
        self.probe = None;
        self.found = None;
        self.version = None;
        self.displaced = false;
    }

    /// Connector: whether QUIC may be dialled: the peer answered and the path is known, both lately.
    pub(crate) fn is_ready(&self, now: Instant) -> bool {
        let fresh = self.found.is_some_and(|at| now.saturating_duration_since(at) < FRESH);
        fresh && self.ask.is_none() && self.version == Some(PROTOCOL_VERSION) && !self.displaced
    }

    /// Connector: whether questions are out.
    pub(crate) fn is_asking(&self) -> bool {
        self.ask.is_some() || self.probe.is_some()
    }

    /// Connector: takes a hello of the peer.
    pub(crate) fn handle_hello(&mut self, hello: &Hello, now: Instant, out: &mut Vec<Flags>) {
        self.note(hello);
        self.displaced |= hello.is_displacement();
        if hello.has(PROBE_AGAIN) && self.probe.is_none() {
            self.probe = Some(Ask { due: now + PATIENCE, tries: 1 });
            out.push(self.flags(WANT_ANSWER | PADDED));
        }
        if !hello.has(ANSWER) {
            return;
        }
        if hello.is_padded() && self.probe.take().is_some() {
            self.found = Some(now);
            if self.small {
                self.small = false;
                self.tell(now, out);
                return;
            }
        }
        // The peer must have the same idea of the path before the question counts as answered.
        if hello.has(SMALL) == self.small {
            self.ask = None;
        }
    }

    /// Relay: takes a hello of the peer. The connector is the one who finds out about the path.
    pub(crate) fn note(&mut self, hello: &Hello) {
        self.version = Some(hello.version);
        self.epoch = hello.epoch;
    }

    /// Relay: the connector says how long packets travel between the two.
    pub(crate) fn follow(&mut self, hello: &Hello) {
        self.small = hello.has(SMALL);
    }

    /// Adds what every hello of this end says about the path.
    pub(crate) fn complete(&self, flags: Flags) -> Flags {
        if self.small { Flags(flags.0 | SMALL) } else { Flags(flags.0 & !SMALL) }
    }

    /// Connector: when [`Self::handle_timeout`] is due.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.ask.into_iter().chain(self.probe).map(|ask| ask.due).min()
    }

    /// Connector: says again what was not answered; a full-size probe unanswered twice makes the path a small one.
    pub(crate) fn handle_timeout(&mut self, now: Instant, out: &mut Vec<Flags>) {
        if let Some(probe) = self.probe.filter(|probe| probe.due <= now) {
            if probe.tries < 2 {
                self.probe = Some(Ask { due: now + PATIENCE, tries: 2 });
                out.push(self.flags(WANT_ANSWER | PADDED));
            } else if self.ask.is_some_and(|ask| ask.tries > 1) && !self.small {
                // Nothing at all is answered: that says nothing about the size.
                self.probe = Some(Ask { due: now + PATIENCE_MAX, tries: 1 });
            } else {
                self.probe = None;
                self.found = Some(now);
                if !self.small {
                    self.small = true;
                    self.tell(now, out);
                    return;
                }
            }
        }
        if let Some(ask) = self.ask.filter(|ask| ask.due <= now) {
            let patience = PATIENCE.saturating_mul(1 << ask.tries.min(3)).min(PATIENCE_MAX);
            self.ask = Some(Ask { due: now + patience, tries: ask.tries + 1 });
            out.push(self.flags(WANT_ANSWER));
        }
    }

    /// Tells the peer about the path until it answers in the same words.
    fn tell(&mut self, now: Instant, out: &mut Vec<Flags>) {
        self.ask = Some(Ask { due: now + PATIENCE, tries: 1 });
        out.push(self.flags(WANT_ANSWER));
    }

    fn flags(&self, flags: u8) -> Flags {
        self.complete(Flags(flags))
    }
}

/// Makes the hello that carries `flags`.
pub(crate) fn compose(flags: Flags, instance: InstanceId, epoch: Option<u32>) -> Hello {
    Hello { version: PROTOCOL_VERSION, instance, epoch, flags: flags.0 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hello(flags: u8) -> Hello {
        compose(Flags(flags), InstanceId::from_bytes([1; 16]), Some(3))
    }

    /// Runs the greeting's timers for a while; `answer` plays the network and the relay.
    fn run(
        greeting: &mut Greeting,
        start: Instant,
        seconds: u64,
        mut answer: impl FnMut(Flags) -> Option<u8>,
    ) -> usize {
        let (mut said, mut flags) = (0, Vec::new());
        greeting.start(start, &mut flags);
        for step in 0..seconds * 100 {
            let now = start + Duration::from_millis(10 * step);
            while let Some(sent) = flags.pop() {
                said += 1;
                if let Some(answer) = answer(sent) {
                    greeting.handle_hello(&hello(answer), now, &mut flags);
                }
            }
            greeting.handle_timeout(now, &mut flags);
        }
        said
    }

    #[test]
    fn a_hello_survives_the_wire_and_padding() {
        for (flags, length) in [(WANT_ANSWER, LEN), (PADDED | ANSWER, PADDED_LEN)] {
            let mut bytes = Vec::new();
            hello(flags).write(&mut bytes);
            assert_eq!(bytes.len(), length);
            assert_eq!(Hello::read(&bytes), Some(hello(flags)));
            assert_eq!(Hello::read(&bytes[..LEN - 1]), None);
        }
        let none = compose(Flags::PLAIN, InstanceId::from_bytes([1; 16]), None);
        let mut bytes = Vec::new();
        none.write(&mut bytes);
        assert_eq!(Hello::read(&bytes).unwrap().epoch, None);
        bytes[0] ^= 1;
        assert_eq!(Hello::read(&bytes), None);
    }

    #[test]
    fn a_peer_that_answers_both_makes_dialling_ready_with_two_hellos() {
        let (mut greeting, now) = (Greeting::default(), Instant::now());
        let said = run(&mut greeting, now, 1, |sent| Some(ANSWER | (sent.0 & PADDED)));
        assert_eq!(said, 2);
        assert!(greeting.is_ready(now) && !greeting.small && !greeting.is_asking());
        assert!(!greeting.is_ready(now + FRESH + Duration::from_secs(1)), "old findings are made again");
    }

    #[test]
    fn a_path_that_only_takes_short_packets_is_a_small_one_after_two_probes() {
        let (mut greeting, now) = (Greeting::default(), Instant::now());
        let mut probes = 0;
        run(&mut greeting, now, 2, |sent| {
            probes += usize::from(sent.0 & PADDED != 0);
            (sent.0 & PADDED == 0).then_some(ANSWER | (sent.0 & SMALL))
        });
        assert_eq!(probes, 2);
        assert!(greeting.small && greeting.is_ready(now + Duration::from_secs(2)));
    }

    #[test]
    fn the_relay_must_echo_what_it_was_told_of_the_path() {
        let (mut greeting, now) = (Greeting::default(), Instant::now());
        run(&mut greeting, now, 2, |sent| (sent.0 & PADDED == 0).then_some(ANSWER));
        assert!(greeting.small && !greeting.is_ready(now + Duration::from_secs(2)) && greeting.is_asking());
    }

    #[test]
    fn a_path_that_grows_again_is_whole_again() {
        let (mut greeting, now) = (Greeting { small: true, ..Greeting::default() }, Instant::now());
        run(&mut greeting, now, 2, |sent| Some(ANSWER | (sent.0 & (PADDED | SMALL))));
        assert!(!greeting.small && greeting.is_ready(now + Duration::from_secs(1)));
    }

    #[test]
    fn silence_says_nothing_about_size_and_is_asked_into_slowly() {
        let (mut greeting, now) = (Greeting::default(), Instant::now());
        let said = run(&mut greeting, now, 60, |_| None);
        assert!(!greeting.small && greeting.is_asking());
        assert!((30..100).contains(&said), "{said} in a minute");
    }

    #[test]
    fn another_version_or_a_displacement_is_never_ready() {
        let now = Instant::now();
        for (version, flags) in [(PROTOCOL_VERSION + 1, 0), (PROTOCOL_VERSION, DISPLACED)] {
            let mut greeting = Greeting::default();
            let mut out = Vec::new();
            greeting.start(now, &mut out);
            for padded in [0, PADDED] {
                let answer = Hello { version, ..hello(ANSWER | padded | flags) };
                greeting.handle_hello(&answer, now, &mut out);
            }
            assert!(!greeting.is_ready(now));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64), flags: u8) {
            let _ = Hello::read(&bytes);
            let (mut greeting, mut out) = (Greeting::default(), Vec::new());
            greeting.handle_hello(&hello(flags), Instant::now(), &mut out);
            prop_assert!(out.len() <= 2);
        }
    }
}
