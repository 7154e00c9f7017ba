//! The connector's metrics, under the names that interface.md §6 promises where they fit.
//!
//! Must never have a label whose values a caller can invent: `service` is from this connector's own table.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use culvert_model::name::ServiceName;
use culvert_model::reason::Reason;
use culvert_ops::Program;
use culvert_ops::metrics::{Counters, DURATIONS, Gauges, Histograms, Metrics};
use culvert_origin::figures::ServiceMetrics;
use http::StatusCode;

use crate::VERSION;

/// Names of services that have figures of their own: a relay manages others time and again. Past it they share one.
const NAMES_AT_MOST: usize = 1024;

/// Every metric of this process.
pub struct ConnectorMetrics {
    registry: Metrics,
    requests: Counters<2>,
    durations: Histograms<1>,
    errors: Counters<2>,
    in_flight: Gauges<1>,
    service_up: Gauges<1>,
    relay_up: Gauges<1>,
    last_handshake: Gauges<1>,
    certificate_expiry: Gauges<2>,
    proof_left: Gauges<1>,
    services: Mutex<HashMap<ServiceName, ServiceMetrics>>,
}

impl ConnectorMetrics {
    /// All at zero.
    pub fn new() -> Self {
        let mut registry = Metrics::new(Program::Connector, VERSION);
        Self {
            requests: registry.counters("culvert_requests_total", "Requests by answer", ["service", "code"]),
            durations: registry.histograms(
                "culvert_request_duration_seconds",
                "Time from a request's head to its answer's end",
                ["service"],
                DURATIONS,
            ),
            errors: registry.counters(
                "culvert_errors_total",
                "Requests that failed here, by reason",
                ["service", "reason"],
            ),
            in_flight: registry.gauges("culvert_inflight_requests", "Requests being served", ["service"]),
            service_up: registry.gauges("culvert_service_up", "Whether the origin's check passes", ["service"]),
            relay_up: registry.gauges("culvert_relay_up", "Whether there is a session with the relay", ["relay"]),
            last_handshake: registry.gauges(
                "culvert_last_handshake_seconds",
                "Seconds since the last WireGuard handshake",
                ["relay"],
            ),
            certificate_expiry: registry.gauges(
                "culvert_certificate_expiry_seconds",
                "Until a certificate of [service.tls] or [service.auth] ends",
                ["service", "file"],
            ),
            proof_left: registry.gauges(
                "culvert_proof_left_seconds",
                "How long what [service.auth] holds of others is good for; 0: there is nothing",
                ["service"],
            ),
            services: Mutex::new(HashMap::new()),
            registry,
        }
    }

    /// The handles of one service of the table.
    pub fn service(&self, name: &ServiceName) -> ServiceMetrics {
        let mut services = self.services.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(known) = services.get(name) {
            return known.clone();
        }
        let has_room = services.len() < NAMES_AT_MOST;
        let label = if has_room { name.as_str() } else { "" };
        let made = ServiceMetrics {
            name: label.into(),
            duration: self.durations.with([label]),
            in_flight: self.in_flight.with([label]),
            ok: self.requests.with([label, "200"]),
        };
        if has_room {
            services.insert(name.clone(), made.clone());
        }
        made
    }

    /// A request was answered.
    pub fn answered(&self, service: &ServiceMetrics, status: StatusCode, took: Duration) {
        if status == StatusCode::OK {
            service.ok.inc();
        } else {
            self.requests.with([&*service.name, status.as_str()]).inc();
        }
        service.duration.observe(took.as_secs_f64());
    }

    /// A request failed here. `service` is absent when it named none of this connector's.
    pub fn failed(&self, service: Option<&ServiceMetrics>, reason: Reason) {
        let name = service.map_or("", |service| &*service.name);
        self.errors.with([name, reason.name()]).inc();
    }

    /// Takes how many seconds each certificate has left: service, setting, seconds.
    pub fn set_certificates<'a>(&self, ends: impl Iterator<Item = (&'a str, &'a str, f64)>) {
        self.certificate_expiry.replace(ends.map(|(service, file, left)| ([service, file], left)));
    }

    /// Takes how many seconds what each service's proof holds is good for: service, seconds.
    pub fn set_proofs<'a>(&self, ends: impl Iterator<Item = (&'a str, f64)>) {
        self.proof_left.replace(ends.map(|(service, left)| ([service], left)));
    }

    /// All of them as text, with what is gathered when it is asked for.
    pub fn text(&self, services: &[(String, bool)], relays: &[(String, bool, Option<Duration>)]) -> String {
        let up = |up: bool| if up { 1.0 } else { 0.0 };
        self.service_up.replace(services.iter().map(|(name, is_up)| ([name.as_str()], up(*is_up))));
        self.relay_up.replace(relays.iter().map(|(name, is_up, _)| ([name.as_str()], up(*is_up))));
        let ages = relays.iter().filter_map(|(name, _, age)| Some(([name.as_str()], age.as_ref()?.as_secs_f64())));
        self.last_handshake.replace(ages);
        self.registry.text()
    }
}

impl Default for ConnectorMetrics {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_come_and_go_without_end_share_their_figures() {
        let metrics = ConnectorMetrics::new();
        for number in 0..2 * NAMES_AT_MOST {
            let service = metrics.service(&format!("s{number}").parse().unwrap());
            metrics.answered(&service, StatusCode::BAD_GATEWAY, Duration::from_millis(3));
        }
        let text = metrics.text(&[], &[]);
        let counted = text.lines().filter(|line| line.starts_with("culvert_requests_total{")).count();
        assert!((NAMES_AT_MOST..=2 * NAMES_AT_MOST + 2).contains(&counted), "{counted}");
        let shared = format!("culvert_requests_total{{service=\"\",code=\"502\"}} {NAMES_AT_MOST}");
        assert!(text.contains(&shared), "{shared}");
    }

    #[test]
    fn the_promised_names_are_in_the_text() {
        let metrics = ConnectorMetrics::new();
        let orders = metrics.service(&"orders".parse().unwrap());
        orders.enter();
        metrics.answered(&orders, StatusCode::OK, Duration::from_millis(3));
        metrics.answered(&orders, StatusCode::BAD_GATEWAY, Duration::from_millis(3));
        metrics.failed(Some(&orders), Reason::OriginRefused);
        metrics.set_certificates([("orders", "cert", 60.0)].into_iter());
        metrics.set_proofs([("orders", 30.0)].into_iter());
        let text =
            metrics.text(&[("orders".to_owned(), false)], &[("relay".to_owned(), true, Some(Duration::from_secs(2)))]);
        for line in [
            "culvert_requests_total{service=\"orders\",code=\"200\"} 1",
            "culvert_requests_total{service=\"orders\",code=\"502\"} 1",
            "culvert_errors_total{service=\"orders\",reason=\"origin_refused\"} 1",
            "culvert_inflight_requests{service=\"orders\"} 1",
            "culvert_request_duration_seconds_count{service=\"orders\"} 2",
            "culvert_service_up{service=\"orders\"} 0",
            "culvert_relay_up{relay=\"relay\"} 1",
            "culvert_last_handshake_seconds{relay=\"relay\"} 2",
            "culvert_certificate_expiry_seconds{service=\"orders\",file=\"cert\"} 60",
            "culvert_proof_left_seconds{service=\"orders\"} 30",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
        assert!(text.contains("culvert_build_info{"));
    }
}
