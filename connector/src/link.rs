//! What one link to one relay does next, as a table of states: pure, `now` is passed in.
//!
//! Must never do I/O, read a clock, or give up: only a revoked key ends it.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use culvert_model::close::CloseCode;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};

/// The first wait after a failed attempt; doubles up to [`BACKOFF_MAX`].
const BACKOFF_MIN: Duration = Duration::from_millis(200);
/// The longest wait between attempts.
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// Spread of the first attempt after a loss, so that a relay's connectors do not come back all at once.
const AT_ONCE: Duration = Duration::from_millis(150);
/// How long each address is waited for, by the round over all addresses. The relay takes one initiation a second.
const PATIENCE: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(1), Duration::from_secs(2)];
/// The head start of each address over the next in the first round (RFC 8305 §5).
const HEAD_START: Duration = Duration::from_millis(300);
/// A handshake that succeeded must lead to a connection within this time.
const DIAL_PATIENCE: Duration = Duration::from_secs(5);
/// A session shorter than this counts as a failed attempt.
const STEADY: Duration = Duration::from_secs(5);
/// Silence of this length is looked into, once a minute at most.
const DIAGNOSE_AFTER: Duration = Duration::from_secs(2);
/// A session that is back within this time was no problem worth a word.
const HEALED: Duration = Duration::from_secs(3);
/// A problem that lasts is said again after this time.
const SAY_AGAIN: Duration = Duration::from_secs(60);
/// Without a session for this long, sockets and handshake state are built anew.
const REBUILD_AFTER: Duration = Duration::from_secs(60);
/// The wait after the relay said that another process uses this key (wire.md §2); doubles up to [`REPLACED_MAX`].
const REPLACED_MIN: Duration = Duration::from_secs(30);
/// The longest such wait.
const REPLACED_MAX: Duration = Duration::from_secs(600);
/// The wait after a relay of an incompatible version.
const VERSION_WAIT: Duration = Duration::from_secs(60);

/// Why there is no session, in the terms an operator can act on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Problem {
    /// The endpoint's name does not resolve.
    Dns(String),
    /// No address of a family that this host has a socket for.
    NoAddress,
    /// This host has no route there.
    NoRoute(SocketAddr),
    /// This host's own firewall forbids it.
    NotPermitted(SocketAddr),
    /// The relay's host answers that nothing listens there.
    PortClosed(SocketAddr),
    /// UDP reaches the relay's host, and the relay stays silent: another key than ours, or it does not know us.
    Unknown(SocketAddr),
    /// Nothing comes back at all.
    Silent(SocketAddr),
    /// WireGuard's handshake passes and nothing larger does.
    Stuck,
    /// The connection was lost.
    Lost(String),
    /// The relay is going down, or refused for now.
    Closed(CloseCode),
    /// Another process uses this key.
    Replaced,
    /// Both versions, in words.
    Version(String),
}

/// What an active look at the way to the relay found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finding {
    /// The system knows no route.
    NoRoute,
    /// The system forbids sending.
    NotPermitted,
    /// The relay's port is closed (ICMP).
    PortClosed,
    /// Another, closed port of the relay's host answered (ICMP): UDP gets there.
    HostAnswers,
    /// Nothing.
    Silence,
}

/// What the owner has to do now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Resolve every endpoint of the relay, then [`Link::handle_resolved`].
    Resolve,
    /// Start a handshake toward this address, then poll again.
    Knock(SocketAddr),
    /// Look why nothing answers, then [`Link::handle_finding`].
    Diagnose(SocketAddr),
    /// Close sockets and engine, build new ones, poll again.
    Rebuild,
    /// Nothing until then, or until a fact comes in.
    Wait(Instant),
    /// Over: the relay revoked this key.
    Revoked,
}

/// How a session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// The relay closed it with this code.
    ByRelay(CloseCode),
    /// Both versions, in words.
    Version(String),
    /// It broke, or stayed silent; why.
    Lost(String),
}

/// The state of one link.
#[derive(Debug)]
pub struct Link {
    state: State,
    problem: Option<Problem>,
    problem_since: Instant,
    said: Option<Instant>,
    diagnosed: Option<Instant>,
    failures: u32,
    displaced: u32,
    down_since: Instant,
    last_good: Option<SocketAddr>,
    jitter: SmallRng,
}

#[derive(Debug)]
enum State {
    Due { at: Instant },
    Resolving,
    Knocking { addresses: Vec<SocketAddr>, place: usize, due: Instant, since: Instant },
    Dialling { until: Instant, addresses: Vec<SocketAddr> },
    Up { since: Instant },
    Revoked,
}

impl Link {
    /// A link that is due at once.
    pub fn new(seed: u64, now: Instant) -> Self {
        Self {
            state: State::Due { at: now },
            problem: None,
            problem_since: now,
            said: None,
            diagnosed: None,
            failures: 0,
            displaced: 0,
            down_since: now,
            last_good: None,
            jitter: SmallRng::seed_from_u64(seed),
        }
    }

    /// What to do now.
    pub fn poll(&mut self, now: Instant) -> Step {
        match &mut self.state {
            State::Due { at } if now < *at => Step::Wait(*at),
            State::Due { .. } if now.duration_since(self.down_since) >= REBUILD_AFTER => {
                self.down_since = now;
                Step::Rebuild
            }
            State::Due { .. } => {
                self.state = State::Resolving;
                Step::Resolve
            }
            State::Knocking { due, .. } | State::Dialling { until: due, .. } if now < *due => Step::Wait(*due),
            State::Knocking { addresses, place, due, since } => {
                let round = *place / addresses.len();
                if let Some(address) = addresses.get(*place % addresses.len()).copied() {
                    let lately = self.diagnosed.is_some_and(|then| now.duration_since(then) < SAY_AGAIN);
                    if now.duration_since(*since) >= DIAGNOSE_AFTER && !lately {
                        self.diagnosed = Some(now);
                        return Step::Diagnose(address);
                    }
                    if let Some(patience) = PATIENCE.get(round).copied() {
                        let others = *place + 1 < addresses.len();
                        let patience = if others { HEAD_START.min(patience) } else { patience };
                        *place += 1;
                        // Spread, so that many connectors that lost one relay do not stay in step.
                        *due = now + patience.mul_f64(0.75 + self.jitter.random::<f64>() / 2.0);
                        return Step::Knock(address);
                    }
                }
                self.failed(now)
            }
            State::Dialling { addresses, .. } => {
                let addresses = std::mem::take(addresses);
                self.state = State::Knocking { addresses, place: 0, due: now, since: now };
                self.has(Problem::Stuck, now);
                self.poll(now)
            }
            State::Resolving | State::Up { .. } => Step::Wait(now + SAY_AGAIN),
            State::Revoked => Step::Revoked,
        }
    }

    /// Whoever was resolving has stopped.
    pub fn handle_abandoned(&mut self, now: Instant) {
        if matches!(self.state, State::Resolving) {
            self.state = State::Due { at: now };
        }
    }

    /// The endpoints' addresses, of the families that this host has sockets for, or why there are none.
    pub fn handle_resolved(&mut self, resolved: Result<Vec<SocketAddr>, Problem>, now: Instant) {
        if !matches!(self.state, State::Resolving) {
            return;
        }
        match resolved.map(|addresses| in_order(addresses, self.last_good)) {
            Ok(addresses) if !addresses.is_empty() => {
                self.state = State::Knocking { addresses, place: 0, due: now, since: now };
            }
            Ok(_) => self.fail_with(Problem::NoAddress, now),
            Err(problem) => self.fail_with(problem, now),
        }
    }

    /// What [`Step::Diagnose`] found.
    pub fn handle_finding(&mut self, address: SocketAddr, finding: Finding, now: Instant) {
        // A handshake that passed is better evidence than silence after it.
        let stuck = self.problem == Some(Problem::Stuck) && matches!(finding, Finding::HostAnswers | Finding::Silence);
        if matches!(self.state, State::Knocking { .. }) && !stuck {
            let problem = match finding {
                Finding::NoRoute => Problem::NoRoute(address),
                Finding::NotPermitted => Problem::NotPermitted(address),
                Finding::PortClosed => Problem::PortClosed(address),
                Finding::HostAnswers => Problem::Unknown(address),
                Finding::Silence => Problem::Silent(address),
            };
            self.has(problem, now);
        }
    }

    /// A WireGuard session came up: no more knocking while QUIC is dialled.
    pub fn handle_session(&mut self, remote: SocketAddr, now: Instant) {
        let addresses = match &mut self.state {
            State::Knocking { addresses, .. } => std::mem::take(addresses),
            // Whoever displaced this process, or speaks another version, would again.
            State::Due { .. } if matches!(self.problem, Some(Problem::Replaced | Problem::Version(_))) => return,
            State::Due { .. } | State::Resolving => vec![remote],
            State::Dialling { .. } | State::Up { .. } | State::Revoked => return,
        };
        self.state = State::Dialling { until: now + DIAL_PATIENCE, addresses };
    }

    /// Whether a connection would be welcome now: not while a wait is to be kept.
    pub fn wants_connection(&self) -> bool {
        matches!(self.state, State::Knocking { .. } | State::Dialling { .. })
    }

    /// The relay's welcome came: the session is live.
    pub fn handle_up(&mut self, remote: Option<SocketAddr>, now: Instant) {
        if !self.is_up() {
            self.state = State::Up { since: now };
        }
        self.problem = None;
        self.said = None;
        self.last_good = remote.or(self.last_good);
    }

    /// The session, or the attempt to get one, ended.
    pub fn handle_ended(&mut self, ended: Ended, now: Instant) {
        let steady = matches!(self.state, State::Up { since } if now.duration_since(since) >= STEADY);
        if matches!(self.state, State::Up { .. }) {
            self.down_since = now;
        }
        if steady {
            self.failures = 0;
        }
        let (problem, wait) = match ended {
            Ended::ByRelay(CloseCode::Revoked) => {
                self.state = State::Revoked;
                return;
            }
            Ended::ByRelay(CloseCode::Replaced) => {
                if matches!(self.state, State::Up { since } if now.duration_since(since) >= REPLACED_MAX) {
                    self.displaced = 0;
                }
                let wait = self.spread(doubled(REPLACED_MIN, self.displaced, REPLACED_MAX));
                self.displaced += 1;
                self.down_since = now + wait;
                (Problem::Replaced, wait)
            }
            Ended::ByRelay(CloseCode::Version) => {
                (Problem::Version("the relay closed the session".to_owned()), self.spread(VERSION_WAIT))
            }
            Ended::Version(words) => (Problem::Version(words), self.spread(VERSION_WAIT)),
            Ended::ByRelay(code) if steady => (Problem::Closed(code), self.at_once()),
            Ended::Lost(cause) if steady => (Problem::Lost(cause), self.at_once()),
            Ended::ByRelay(code) => (Problem::Closed(code), self.backoff()),
            Ended::Lost(cause) => (Problem::Lost(cause), self.backoff()),
        };
        self.has(problem, now);
        self.state = State::Due { at: now + wait };
    }

    /// The machine slept, or its addresses changed: waits are over.
    pub fn handle_woken(&mut self, now: Instant) {
        if matches!(self.state, State::Due { .. }) && self.problem != Some(Problem::Replaced) {
            self.failures = 0;
            self.state = State::Due { at: now };
        }
    }

    /// The problem, when it is time to say it: on change, and once a minute.
    pub fn poll_say(&mut self, now: Instant) -> Option<&Problem> {
        let problem = self.problem.as_ref()?;
        let may_heal = matches!(problem, Problem::Lost(_) | Problem::Closed(_));
        if may_heal && now.duration_since(self.problem_since) < HEALED {
            return None;
        }
        if self.said.is_some_and(|said| now.duration_since(said) < SAY_AGAIN) {
            return None;
        }
        self.said = Some(now);
        Some(problem)
    }

    /// Why there is no session, while there is none.
    pub fn problem(&self) -> Option<&Problem> {
        self.problem.as_ref()
    }

    /// Whether a session is live.
    pub fn is_up(&self) -> bool {
        matches!(self.state, State::Up { .. })
    }

    fn failed(&mut self, now: Instant) -> Step {
        let at = now + self.backoff();
        self.state = State::Due { at };
        Step::Wait(at)
    }

    fn fail_with(&mut self, problem: Problem, now: Instant) {
        self.has(problem, now);
        self.failed(now);
    }

    /// A changed problem is said at once.
    fn has(&mut self, problem: Problem, now: Instant) {
        if self.problem.as_ref() != Some(&problem) {
            self.problem = Some(problem);
            self.problem_since = now;
            self.said = None;
        }
    }

    fn backoff(&mut self) -> Duration {
        let wait = doubled(BACKOFF_MIN, self.failures, BACKOFF_MAX);
        self.failures = self.failures.saturating_add(1);
        self.spread(wait)
    }

    fn at_once(&mut self) -> Duration {
        AT_ONCE.mul_f64(self.jitter.random::<f64>())
    }

    /// The wait, more or less a quarter.
    fn spread(&mut self, wait: Duration) -> Duration {
        wait.mul_f64(0.75 + self.jitter.random::<f64>() / 2.0)
    }
}

/// IPv6 and IPv4 in turn (RFC 8305 §4), without repeats; the address that worked last comes first.
fn in_order(addresses: Vec<SocketAddr>, last_good: Option<SocketAddr>) -> Vec<SocketAddr> {
    let (six, four): (Vec<_>, Vec<_>) = addresses.into_iter().partition(SocketAddr::is_ipv6);
    let (mut six, mut four) = (six.into_iter(), four.into_iter());
    let mut order: Vec<SocketAddr> = Vec::new();
    loop {
        let pair = [six.next(), four.next()];
        if pair == [None, None] {
            break;
        }
        for address in pair.into_iter().flatten() {
            if !order.contains(&address) {
                order.push(address);
            }
        }
    }
    if let Some(place) = order.iter().position(|address| Some(*address) == last_good) {
        order[..=place].rotate_right(1);
    }
    order
}

fn doubled(first: Duration, times: u32, most: Duration) -> Duration {
    first.saturating_mul(1 << times.min(16)).min(most)
}

#[cfg(test)]
mod tests;
