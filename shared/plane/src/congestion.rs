//! Congestion control of a connection that carries many callers' exchanges: as CUBIC would for that many connections.
//!
//! Gateways without a tunnel open a TCP connection for each exchange, and one lost packet slows one of them. One window for
//! all, cut whole at each loss, makes all of them wait for it. So the window is that of `n` CUBIC connections (RFC 9438),
//! as in MulTCP (Crowcroft and Oechslin, 1998) and Chromium's QUIC, where `n` is how many streams have sent lately: it
//! grows as theirs would together, and each lost packet cuts one share of it. When every share was hit, it is cut as one
//! CUBIC window, and persistent congestion collapses all of it (RFC 9002 §7.6): it must never take more of a full way than
//! the same streams as connections.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use quinn_proto::RttEstimator;
use quinn_proto::congestion::{Controller, ControllerFactory, ControllerMetrics};

use chance::Chance;

mod chance;
#[cfg(test)]
mod tests;

/// What is left of a connection's window after a loss (RFC 9438 §4.6).
const BETA: f64 = 0.7;
/// How steeply a window grows back (RFC 9438 §4.1), packets per cubic second.
const C: f64 = 0.4;
/// So many connections at most are imitated: about what a browser opens to one host. A window of 64 requests a round trip lasts
/// with it where one packet in a hundred is lost; more of them only fill queues.
const MAX_SHARES: u32 = 8;
/// The smallest window, packets (RFC 9002 §7.2).
const SMALLEST: u64 = 2;
/// A stream counts for one to two of these periods after it has sent, round trips.
const PERIOD: u32 = 4;
/// A question or an answer of more bytes is a transfer.
const LONG: u64 = 64 * 1024;
/// Where a round trip is nothing.
const MIN_PERIOD: Duration = Duration::from_millis(10);

/// What a connection's streams and its congestion control tell each other.
#[derive(Debug, Default)]
pub(crate) struct Flows {
    /// Changes every few round trips.
    period: AtomicU32,
    /// Streams that have sent in this period.
    counted: AtomicU32,
    /// The last period in which one of them was in the middle of something long.
    long: AtomicU32,
    /// The round-trip time, microseconds, while small datagrams may be sent twice; else 0.
    spare_rtt: AtomicU64,
    /// Bytes of such copies that may be sent now.
    spare_bytes: AtomicU64,
}

impl Flows {
    /// A stream sends, `bytes` since it last heard something; `seen` is its own and holds the period in which it was counted
    /// last.
    pub(crate) fn note(&self, seen: &mut Option<u32>, bytes: u64) {
        let period = self.period.load(Ordering::Relaxed);
        if seen.replace(period) != Some(period) {
            self.counted.fetch_add(1, Ordering::Relaxed);
        }
        if bytes > LONG {
            self.long.store(period, Ordering::Relaxed);
        }
    }

    /// Nobody sends anything long.
    pub(crate) fn are_short(&self) -> bool {
        self.period.load(Ordering::Relaxed).wrapping_sub(self.long.load(Ordering::Relaxed)) > 1
    }

    /// The round-trip time, if `length` bytes may be sent twice now; they count as sent.
    pub(crate) fn take_spare(&self, length: usize) -> Option<Duration> {
        let rtt = Some(self.spare_rtt.load(Ordering::Relaxed)).filter(|rtt| *rtt > 0)?;
        let left = self.spare_bytes.load(Ordering::Relaxed).checked_sub(length as u64)?;
        self.spare_bytes.store(left, Ordering::Relaxed);
        Some(Duration::from_micros(rtt))
    }

    /// Begins the next period and tells how many this one had.
    fn turn(&self) -> u32 {
        self.period.fetch_add(1, Ordering::Relaxed);
        self.counted.swap(0, Ordering::Relaxed)
    }

    fn counted(&self) -> u32 {
        self.counted.load(Ordering::Relaxed)
    }
}

/// Makes a [`Shares`] for each connection.
#[derive(Debug)]
pub(crate) struct SharesConfig {
    pub(crate) initial_window: u64,
}

impl ControllerFactory for SharesConfig {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        Box::new(Shares::new(self.initial_window, now, current_mtu))
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct Shares {
    flows: Arc<Flows>,
    /// Of the period before this one.
    flows_before: u32,
    turned: Instant,
    initial_window: u64,
    mtu: u64,
    /// Bytes. Below `ssthresh` it grows by what is acknowledged.
    window: f64,
    ssthresh: f64,
    recovery: Option<Recovery>,
    curve: Option<Curve>,
    acked: Instant,
    chance: Chance,
    rtt: Duration,
    /// Bytes.
    in_flight: u64,
    /// The most that was in flight in this round trip and in the one before.
    most: [u64; 2],
    round: Instant,
    /// When acknowledgements were last worked off.
    ended: Instant,
}

/// Losses of packets that were sent before `since` belong to one event.
#[derive(Debug, Clone, Copy)]
struct Recovery {
    since: Instant,
    /// The window before it.
    window: f64,
    shares: u32,
    /// Shares that have lost a packet.
    hit: u32,
    /// It had not grown back to where the event before found it, so it makes room for others (RFC 9438 §4.7).
    gives_way: bool,
}

/// Congestion avoidance (RFC 9438 §4.2, §4.3); windows in bytes.
#[derive(Debug, Clone, Copy)]
struct Curve {
    /// Time during which the window was used to the full.
    spent: Duration,
    /// When the window is at `plateau` again, seconds.
    k: f64,
    plateau: f64,
    /// What Reno's growth would have come to.
    reno: f64,
}

impl Shares {
    fn new(initial_window: u64, now: Instant, mtu: u16) -> Self {
        Self {
            flows: Arc::default(),
            flows_before: 0,
            turned: now,
            initial_window,
            mtu: u64::from(mtu),
            window: initial_window as f64,
            ssthresh: f64::INFINITY,
            recovery: None,
            curve: None,
            acked: now,
            chance: Chance::new(now),
            rtt: Duration::ZERO,
            in_flight: 0,
            most: [0; 2],
            round: now,
            ended: now,
        }
    }

    /// What streams tell it.
    pub(crate) fn flows(&self) -> Arc<Flows> {
        self.flows.clone()
    }

    fn streams(&self) -> u32 {
        self.flows_before.max(self.flows.counted()).max(1)
    }

    fn shares(&self) -> u32 {
        self.streams().min(MAX_SHARES)
    }

    fn floor(&self) -> f64 {
        (SMALLEST * self.mtu) as f64
    }

    /// `bytes` of a packet that was sent then are acknowledged.
    fn handle_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: Duration) {
        let spent = now.saturating_duration_since(self.acked);
        self.acked = now;
        self.rtt = rtt;
        self.chance.count(1, 0);
        self.chance.time(rtt, now);
        if now.saturating_duration_since(self.turned) >= (PERIOD * rtt).max(MIN_PERIOD) {
            self.turned = now;
            self.flows_before = self.flows.turn();
        }
        if now.saturating_duration_since(self.round) >= rtt {
            self.most = [self.in_flight, self.most[0]];
            self.round = now;
        }
        let is_recovering = self.recovery.is_some_and(|recovery| sent <= recovery.since);
        // A window of which half is used counts as used (RFC 7661 §4.3).
        let is_used = !app_limited || 2 * self.most[0].max(self.most[1]) >= Controller::window(self);
        if !is_used || is_recovering {
            return;
        }
        self.grow(bytes as f64, spent, rtt);
    }

    /// Grows by what `bytes` acknowledged bytes allow.
    fn grow(&mut self, bytes: f64, spent: Duration, rtt: Duration) {
        if self.window < self.ssthresh {
            self.window += bytes;
            return;
        }
        let (mtu, shares, window) = (self.mtu as f64, f64::from(self.shares()), self.window);
        let curve = self.curve.get_or_insert(Curve { spent: Duration::ZERO, k: 0.0, plateau: window, reno: window });
        curve.spent += spent;
        let at = (curve.spent + rtt).as_secs_f64() - curve.k;
        // No more than half of it in a round trip (RFC 9438 §4.2).
        let target = (curve.plateau + C * shares * at.powi(3) * mtu).clamp(window, 1.5 * window);
        // `n` connections of which each grows so much that it is as fast as a Reno connection (RFC 9438 §4.3).
        let alpha = if curve.reno < curve.plateau { 3.0 * (1.0 - BETA) / (1.0 + BETA) } else { 1.0 };
        curve.reno += alpha * shares * mtu * bytes / window;
        self.window = (window + (target - window) * bytes / window).max(curve.reno);
    }
}

impl Controller for Shares {
    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        self.handle_ack(now, sent, bytes, app_limited, rtt.get());
    }

    fn on_sent(&mut self, _: Instant, bytes: u64, _: u64) {
        self.in_flight += bytes;
        self.most[0] = self.most[0].max(self.in_flight);
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, _: bool, _: Option<u64>) {
        self.in_flight = in_flight;
        let rtt = if self.chance.is_met(self.rtt) { self.rtt } else { Duration::ZERO };
        // As many bytes a round trip as the window has left: with the copies, too, no more than it is under way.
        let left = Controller::window(self).saturating_sub(in_flight) as f64;
        let rounds = now.saturating_duration_since(self.ended).as_secs_f64() / self.rtt.as_secs_f64().max(1e-6);
        self.ended = now;
        let bytes = self.flows.spare_bytes.load(Ordering::Relaxed) as f64 + left * rounds;
        self.flows.spare_bytes.store(bytes.min(left) as u64, Ordering::Relaxed);
        self.flows.spare_rtt.store(u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, is_persistent_congestion: bool, lost_bytes: u64) {
        let (window, shares) = (Controller::window(self) as f64, self.shares());
        let known = self.recovery.filter(|recovery| sent <= recovery.since);
        let gives_way = self.curve.is_some_and(|curve| window < curve.plateau);
        let mut recovery = known.unwrap_or(Recovery { since: now, window, shares, hit: 0, gives_way });
        let lost = u32::try_from(lost_bytes.div_ceil(self.mtu)).unwrap_or(u32::MAX).max(1);
        self.chance.count(0, lost);
        let hit = recovery.hit.saturating_add(lost).min(recovery.shares);
        if hit > recovery.hit {
            recovery.hit = hit;
            let left = 1.0 - (1.0 - BETA) * f64::from(hit) / f64::from(recovery.shares);
            let cut = (recovery.window * left).max(self.floor());
            let plateau = if recovery.gives_way { (recovery.window + cut) / 2.0 } else { recovery.window };
            let per_share = (plateau - cut).max(0.0) / (self.mtu as f64 * C * f64::from(recovery.shares));
            self.window = cut;
            self.ssthresh = cut;
            self.curve = Some(Curve { spent: Duration::ZERO, k: per_share.cbrt(), plateau, reno: cut });
        }
        self.recovery = Some(recovery);
        if is_persistent_congestion {
            self.recovery = None;
            self.curve = None;
            self.ssthresh = (self.window * BETA).max(self.floor());
            self.window = self.floor();
        }
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.mtu = u64::from(new_mtu);
    }

    fn window(&self) -> u64 {
        self.window.max(self.floor()) as u64
    }

    fn metrics(&self) -> ControllerMetrics {
        let mut metrics = ControllerMetrics::default();
        metrics.congestion_window = self.window();
        metrics.ssthresh = self.ssthresh.is_finite().then_some(self.ssthresh as u64);
        metrics
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        self.initial_window
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}
