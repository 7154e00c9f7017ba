//! The names of interface.md §6, and where their values come from.
//!
//! Must never take a label from a caller: services are those that are known, codes and reasons are few.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use culvert_engine::Stats;
use culvert_model::name::ServiceName;
use culvert_model::reason::Reason;
use culvert_ops::metrics::{Counter, Counters, DURATIONS, Gauge, Gauges, Histogram, Histograms, Metrics};
use culvert_ops::program::Program;
use culvert_plane::tun::TunStats;

use crate::command::LiveShard;

/// The label of requests that name no known service.
const NO_SERVICE: &str = "";

/// Every metric of the relay.
pub(crate) struct RelayMetrics {
    all: Metrics,
    requests: Counters<2>,
    durations: Histograms<1>,
    errors: Counters<2>,
    inflight: Gauges<1>,
    connectors: Gauges<2>,
    service_up: Gauges<1>,
    last_handshake: Gauges<1>,
    peers: Gauges<1>,
    peer_last_handshake: Gauges<1>,
    tun_packets: Counters<1>,
    tun_bytes: Counters<1>,
    tun_dropped: Counters<1>,
    registry_up: Gauge,
    callers: Gauge,
    turned_away: Counters<1>,
    certificate_expiry: Gauges<1>,
    log_lines_dropped: Counter,
    datagrams: Counter,
    drops: Counters<1>,
    handshakes: Counter,
    cookies: Counter,
    copies: Counter,
    shard_peers: Gauges<1>,
    shard_callers: Gauges<1>,
    shard_passed: Counters<1>,
}

/// The metrics of one service, looked up once.
pub(crate) struct ServiceMetrics {
    service: String,
    requests: Counters<2>,
    errors: Counters<2>,
    codes: Mutex<Vec<(u16, Counter)>>,
    duration: Histogram,
}

/// What is read when somebody asks.
pub(crate) struct Gathered {
    /// Requests that run, by service.
    pub(crate) inflight: Vec<(ServiceName, usize)>,
    /// Whether each service can be called.
    pub(crate) up: Vec<(ServiceName, bool)>,
    /// Connectors by tunnel and state.
    pub(crate) connectors: Vec<(String, &'static str, i64)>,
    /// When each connector last shook hands.
    pub(crate) handshakes: Vec<(String, SystemTime)>,
    /// Stock peers by state.
    pub(crate) peers: Vec<(&'static str, i64)>,
    /// When each stock peer last shook hands.
    pub(crate) peer_handshakes: Vec<(String, SystemTime)>,
    /// Packets between the relay and what is behind stock peers.
    pub(crate) tun: TunStats,
    /// Whether the registry can be reached.
    pub(crate) registry: bool,
    /// Connections of callers.
    pub(crate) callers: usize,
    /// Connections that never came to speak, by why.
    pub(crate) turned_away: [(&'static str, u64); 4],
    /// When the certificates of listeners end.
    pub(crate) certificates: Vec<(String, SystemTime)>,
    /// Lines that the access log lost.
    pub(crate) log_lines_dropped: u64,
    /// The engine's own counters.
    pub(crate) engine: Stats,
    /// Datagrams sent a second time.
    pub(crate) copies: u64,
    /// Of each shard.
    pub(crate) shards: Vec<LiveShard>,
}

impl RelayMetrics {
    /// Registers every name.
    pub(crate) fn new() -> Self {
        let mut all = Metrics::new(Program::Relay, env!("CARGO_PKG_VERSION"));
        Self {
            requests: all.counters("culvert_requests_total", "Requests answered", ["service", "code"]),
            durations: all.histograms(
                "culvert_request_duration_seconds",
                "From a request's head to the last byte of its answer",
                ["service"],
                DURATIONS,
            ),
            errors: all.counters("culvert_errors_total", "Requests that Culvert failed", ["service", "reason"]),
            inflight: all.gauges("culvert_inflight_requests", "Requests that run now", ["service"]),
            connectors: all.gauges("culvert_connectors", "Connectors by tunnel and state", ["tunnel", "state"]),
            service_up: all.gauges(
                "culvert_service_up",
                "Whether a connector and its origin can be called",
                ["service"],
            ),
            last_handshake: all.gauges("culvert_last_handshake_seconds", "Since the last handshake", ["connector"]),
            peers: all.gauges("culvert_peers", "Stock peers by state", ["state"]),
            peer_last_handshake: all.gauges(
                "culvert_peer_last_handshake_seconds",
                "Since the last handshake of a stock peer",
                ["peer"],
            ),
            tun_packets: all.counters(
                "culvert_tun_packets_total",
                "Packets from and to what is behind stock peers",
                ["direction"],
            ),
            tun_bytes: all.counters("culvert_tun_bytes_total", "Bytes of those packets", ["direction"]),
            tun_dropped: all.counters(
                "culvert_tun_packets_dropped_total",
                "Packets from and to what is behind stock peers that came to nothing",
                ["reason"],
            ),
            registry_up: all.gauge("culvert_registry_up", "Whether the registry can be reached"),
            callers: all.gauge("culvert_caller_connections", "Connections of callers"),
            turned_away: all.counters(
                "culvert_caller_connections_turned_away_total",
                "Connections of callers that never came to speak",
                ["reason"],
            ),
            certificate_expiry: all.gauges(
                "culvert_certificate_expiry_seconds",
                "Until a listener's certificate ends",
                ["listener"],
            ),
            log_lines_dropped: all.counter("culvert_access_log_lines_dropped_total", "Access log lines lost"),
            datagrams: all.counter("culvert_datagrams_total", "Datagrams received"),
            drops: all.counters("culvert_datagrams_dropped_total", "Datagrams that came to nothing", ["reason"]),
            handshakes: all.counter("culvert_handshakes_total", "WireGuard sessions confirmed"),
            cookies: all.counter("culvert_cookies_total", "Cookie replies sent under load"),
            copies: all.counter(
                "culvert_datagram_copies_total",
                "Datagrams sent to connectors a second time, on ways that lose some",
            ),
            shard_peers: all.gauges("culvert_shard_peers", "Peers with a session that live on a shard", ["shard"]),
            shard_callers: all.gauges(
                "culvert_shard_caller_connections",
                "Connections of callers that a shard's thread serves",
                ["shard"],
            ),
            shard_passed: all.counters(
                "culvert_shard_datagrams_passed_total",
                "Datagrams that landed on a shard and were another one's",
                ["shard"],
            ),
            all,
        }
    }

    /// The metrics of one service.
    pub(crate) fn service(&self, name: &ServiceName) -> ServiceMetrics {
        self.labelled(name.as_str())
    }

    /// Those of requests that name no known service.
    pub(crate) fn no_service(&self) -> ServiceMetrics {
        self.labelled(NO_SERVICE)
    }

    /// All of them, as a scraper reads them.
    pub(crate) fn text(&self, gathered: &Gathered, now: SystemTime) -> String {
        let since = |at: &SystemTime| now.duration_since(*at).unwrap_or_default().as_secs_f64();
        self.inflight.replace(gathered.inflight.iter().map(|(name, count)| ([name.as_str()], as_f64(*count))));
        self.service_up.replace(gathered.up.iter().map(|(name, up)| ([name.as_str()], f64::from(u8::from(*up)))));
        let connectors = gathered.connectors.iter();
        self.connectors.replace(connectors.map(|(tunnel, state, count)| ([tunnel.as_str(), state], *count as f64)));
        self.last_handshake.replace(gathered.handshakes.iter().map(|(id, at)| ([id.as_str()], since(at))));
        self.peers.replace(gathered.peers.iter().map(|(state, count)| ([*state], *count as f64)));
        self.peer_last_handshake
            .replace(gathered.peer_handshakes.iter().map(|(name, at)| ([name.as_str()], since(at))));
        let tun = &gathered.tun;
        for (direction, packets, bytes) in
            [("in", tun.packets_in, tun.bytes_in), ("out", tun.packets_out, tun.bytes_out)]
        {
            self.tun_packets.with([direction]).raise_to(packets);
            self.tun_bytes.with([direction]).raise_to(bytes);
        }
        for (reason, count) in [
            ("unroutable", tun.unroutable),
            ("waited", tun.waited),
            ("foreign", tun.foreign),
            ("malformed", tun.malformed),
            ("refused", tun.refused),
        ] {
            self.tun_dropped.with([reason]).raise_to(count);
        }
        self.registry_up.set(f64::from(u8::from(gathered.registry)));
        self.callers.set(as_f64(gathered.callers));
        for (reason, count) in gathered.turned_away {
            self.turned_away.with([reason]).raise_to(count);
        }
        let until = |at: &SystemTime| match at.duration_since(now) {
            Ok(left) => left.as_secs_f64(),
            Err(past) => -past.duration().as_secs_f64(),
        };
        self.certificate_expiry.replace(gathered.certificates.iter().map(|(at, end)| ([at.as_str()], until(end))));
        self.log_lines_dropped.raise_to(gathered.log_lines_dropped);
        self.datagrams.raise_to(gathered.engine.datagrams);
        self.handshakes.raise_to(gathered.engine.sessions);
        self.cookies.raise_to(gathered.engine.cookies);
        self.copies.raise_to(gathered.copies);
        for reason in culvert_engine::DropReason::ALL {
            self.drops.with([reason.name()]).raise_to(gathered.engine.dropped(reason));
        }
        let numbers = (0..gathered.shards.len()).map(|number| number.to_string());
        for (number, shard) in numbers.zip(&gathered.shards) {
            self.shard_peers.with([number.as_str()]).set(f64::from(shard.peers_up));
            self.shard_callers.with([number.as_str()]).set(as_f64(shard.callers));
            self.shard_passed.with([number.as_str()]).raise_to(shard.passed_on);
        }
        let text = self.all.text();
        // One for each connector: they are made anew for the next scrape.
        self.last_handshake.replace([]);
        text
    }

    fn labelled(&self, service: &str) -> ServiceMetrics {
        ServiceMetrics {
            service: service.to_owned(),
            requests: self.requests.clone(),
            errors: self.errors.clone(),
            codes: Mutex::default(),
            duration: self.durations.with([service]),
        }
    }
}

impl ServiceMetrics {
    /// Counts one request that is over; `code` is none when its caller left before an answer (as nginx: 499).
    pub(crate) fn count(&self, code: Option<u16>, reason: Option<Reason>, duration: Duration) {
        let code = code.unwrap_or(499);
        let mut codes = self.codes.lock().unwrap_or_else(PoisonError::into_inner);
        match codes.iter().find(|(known, _)| *known == code) {
            Some((_, counter)) => counter.inc(),
            None => {
                let counter = self.requests.with([&self.service, &code.to_string()]);
                counter.inc();
                codes.push((code, counter));
            }
        }
        drop(codes);
        self.duration.observe(duration.as_secs_f64());
        if let Some(reason) = reason {
            self.errors.with([&self.service, reason.name()]).inc();
        }
    }
}

/// Counts are far below 2^52.
fn as_f64(count: usize) -> f64 {
    u32::try_from(count).map_or(f64::from(u32::MAX), f64::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_promised_names_are_there() {
        let metrics = RelayMetrics::new();
        let orders: ServiceName = "orders".parse().unwrap();
        let of_orders = metrics.service(&orders);
        of_orders.count(Some(200), None, Duration::from_millis(3));
        of_orders.count(Some(200), None, Duration::from_millis(3));
        of_orders.count(None, None, Duration::from_millis(3));
        of_orders.count(Some(502), Some(Reason::OriginRefused), Duration::from_millis(3));
        metrics.no_service().count(Some(404), Some(Reason::NoSuchService), Duration::ZERO);
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(100);
        let gathered = Gathered {
            inflight: vec![(orders.clone(), 2)],
            up: vec![(orders, true)],
            connectors: vec![("dc1".to_owned(), "up", 1)],
            handshakes: vec![("con_a".to_owned(), now - Duration::from_secs(30))],
            peers: vec![("up", 1), ("lost", 0), ("never", 2)],
            peer_handshakes: vec![("branch".to_owned(), now - Duration::from_secs(40))],
            tun: TunStats::default(),
            registry: true,
            callers: 4,
            turned_away: [("proxy_header", 0), ("tls", 2), ("slow", 0), ("crowded", 0)],
            certificates: vec![("0.0.0.0:443".to_owned(), now + Duration::from_secs(60))],
            log_lines_dropped: 0,
            engine: Stats::default(),
            copies: 7,
            shards: vec![
                LiveShard { peers_up: 1, peers_total: 2, callers: 3, passed_on: 0 },
                LiveShard { peers_up: 0, peers_total: 1, callers: 1, passed_on: 5 },
            ],
        };
        let text = metrics.text(&gathered, now);
        for line in [
            "culvert_build_info{program=\"relay\"",
            "culvert_requests_total{service=\"orders\",code=\"200\"} 2",
            "culvert_requests_total{service=\"orders\",code=\"499\"} 1",
            "culvert_errors_total{service=\"orders\",reason=\"origin_refused\"} 1",
            "culvert_errors_total{service=\"\",reason=\"no_such_service\"} 1",
            "culvert_shard_peers{shard=\"0\"} 1",
            "culvert_shard_caller_connections{shard=\"1\"} 1",
            "culvert_shard_datagrams_passed_total{shard=\"1\"} 5",
            "culvert_datagram_copies_total 7",
            "culvert_request_duration_seconds_count{service=\"orders\"} 4",
            "culvert_inflight_requests{service=\"orders\"} 2",
            "culvert_connectors{tunnel=\"dc1\",state=\"up\"} 1",
            "culvert_service_up{service=\"orders\"} 1",
            "culvert_last_handshake_seconds{connector=\"con_a\"} 30",
            "culvert_peers{state=\"up\"} 1",
            "culvert_peers{state=\"never\"} 2",
            "culvert_peer_last_handshake_seconds{peer=\"branch\"} 40",
            "culvert_tun_packets_total{direction=\"in\"} 0",
            "culvert_tun_packets_dropped_total{reason=\"foreign\"} 0",
            "culvert_registry_up 1",
            "culvert_certificate_expiry_seconds{listener=\"0.0.0.0:443\"} 60",
            "culvert_caller_connections_turned_away_total{reason=\"tls\"} 2",
        ] {
            assert!(text.lines().any(|have| have.starts_with(line)), "{line} is missing in\n{text}");
        }
    }
}
