//! Metrics under the names that interface.md §6 promises, as OpenMetrics text.
//!
//! A handle (`Counter`, `Gauge`, `Histogram`) is looked up once and kept: an update is an atomic addition. Must never
//! take a label whose values a caller of the relay can invent.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::text;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::info::Info;
use prometheus_client::metrics::{counter, gauge, histogram};
use prometheus_client::registry::Registry;

use crate::program::Program;

/// The content type of [`Metrics::text`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Bounds of duration histograms in seconds: a request through the tunnel takes from a fraction of a millisecond on.
pub const DURATIONS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// A program's metrics.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
}

/// Counts up.
#[derive(Debug, Clone)]
pub struct Counter(counter::Counter);

/// Goes up and down.
#[derive(Debug, Clone)]
pub struct Gauge(gauge::Gauge<f64, AtomicU64>);

/// Counts observations by size.
#[derive(Debug, Clone)]
pub struct Histogram(histogram::Histogram);

/// Counters that differ in `N` labels.
#[derive(Debug, Clone)]
pub struct Counters<const N: usize> {
    labels: [&'static str; N],
    family: Family<Labels, counter::Counter>,
}

/// Gauges that differ in `N` labels.
#[derive(Debug, Clone)]
pub struct Gauges<const N: usize> {
    labels: [&'static str; N],
    family: Family<Labels, gauge::Gauge<f64, AtomicU64>>,
}

/// Histograms that differ in `N` labels.
#[derive(Debug, Clone)]
pub struct Histograms<const N: usize> {
    labels: [&'static str; N],
    family: Family<Labels, histogram::Histogram, Bounds>,
}

type Labels = Vec<(&'static str, String)>;

#[derive(Debug, Clone)]
struct Bounds(&'static [f64]);

impl MetricConstructor<histogram::Histogram> for Bounds {
    fn new_metric(&self) -> histogram::Histogram {
        histogram::Histogram::new(self.0.iter().copied())
    }
}

impl Metrics {
    /// Starts with `culvert_build_info`.
    pub fn new(program: Program, version: &str) -> Self {
        let mut registry = Registry::default();
        let info = vec![("program", program.name().to_owned()), ("version", version.to_owned())];
        registry.register("culvert_build", "Which program this is", Info::new(info));
        Self { registry }
    }

    /// Counters under a name that ends in `_total`, as `culvert_requests_total`.
    pub fn counters<const N: usize>(
        &mut self,
        name: &'static str,
        help: &'static str,
        labels: [&'static str; N],
    ) -> Counters<N> {
        let family = Family::default();
        // The encoder adds the suffix that OpenMetrics wants.
        self.registry.register(name.strip_suffix("_total").unwrap_or(name), help, Family::clone(&family));
        Counters { labels, family }
    }

    /// Gauges.
    pub fn gauges<const N: usize>(
        &mut self,
        name: &'static str,
        help: &'static str,
        labels: [&'static str; N],
    ) -> Gauges<N> {
        let family = Family::default();
        self.registry.register(name, help, Family::clone(&family));
        Gauges { labels, family }
    }

    /// Histograms with these upper bounds, [`DURATIONS`] for seconds.
    pub fn histograms<const N: usize>(
        &mut self,
        name: &'static str,
        help: &'static str,
        labels: [&'static str; N],
        bounds: &'static [f64],
    ) -> Histograms<N> {
        let family = Family::new_with_constructor(Bounds(bounds));
        self.registry.register(name, help, Family::clone(&family));
        Histograms { labels, family }
    }

    /// A counter without labels.
    pub fn counter(&mut self, name: &'static str, help: &'static str) -> Counter {
        let counter = counter::Counter::default();
        self.registry.register(name.strip_suffix("_total").unwrap_or(name), help, counter::Counter::clone(&counter));
        Counter(counter)
    }

    /// A gauge without labels.
    pub fn gauge(&mut self, name: &'static str, help: &'static str) -> Gauge {
        let gauge = gauge::Gauge::default();
        self.registry.register(name, help, gauge::Gauge::clone(&gauge));
        Gauge(gauge)
    }

    /// A histogram without labels.
    pub fn histogram(&mut self, name: &'static str, help: &'static str, bounds: &'static [f64]) -> Histogram {
        let histogram = Bounds(bounds).new_metric();
        self.registry.register(name, help, histogram::Histogram::clone(&histogram));
        Histogram(histogram)
    }

    /// All of them, as a scraper reads them.
    pub fn text(&self) -> String {
        let mut out = String::new();
        // Writing to a String does not fail.
        let _ = text::encode(&mut out, &self.registry);
        out
    }
}

impl<const N: usize> Counters<N> {
    /// The one with these label values; keep it.
    pub fn with(&self, values: [&str; N]) -> Counter {
        Counter(self.family.get_or_create_owned(&labels(self.labels, values)))
    }

    /// Forgets the one with these label values.
    pub fn remove(&self, values: [&str; N]) {
        self.family.remove(&labels(self.labels, values));
    }
}

impl<const N: usize> Gauges<N> {
    /// The one with these label values; keep it.
    pub fn with(&self, values: [&str; N]) -> Gauge {
        Gauge(self.family.get_or_create_owned(&labels(self.labels, values)))
    }

    /// Forgets the one with these label values.
    pub fn remove(&self, values: [&str; N]) {
        self.family.remove(&labels(self.labels, values));
    }

    /// Forgets all and takes these instead: for facts that are gathered when they are asked for.
    pub fn replace<'v>(&self, now: impl IntoIterator<Item = ([&'v str; N], f64)>) {
        self.family.clear();
        for (values, value) in now {
            self.with(values).set(value);
        }
    }
}

impl<const N: usize> Histograms<N> {
    /// The one with these label values; keep it.
    pub fn with(&self, values: [&str; N]) -> Histogram {
        Histogram(self.family.get_or_create_owned(&labels(self.labels, values)))
    }

    /// Forgets the one with these label values.
    pub fn remove(&self, values: [&str; N]) {
        self.family.remove(&labels(self.labels, values));
    }
}

impl Counter {
    /// Adds one.
    pub fn inc(&self) {
        self.0.inc();
    }

    /// Adds this many.
    pub fn add(&self, count: u64) {
        self.0.inc_by(count);
    }

    /// The count.
    pub fn count(&self) -> u64 {
        self.0.get()
    }

    /// Raises it to a count that is kept elsewhere (the engine's statistics); a smaller one changes nothing.
    pub fn raise_to(&self, count: u64) {
        self.0.inner().fetch_max(count, std::sync::atomic::Ordering::Relaxed);
    }
}

impl Gauge {
    /// Takes this value.
    pub fn set(&self, value: f64) {
        self.0.set(value);
    }

    /// Adds one.
    pub fn inc(&self) {
        self.0.inc();
    }

    /// Takes one away.
    pub fn dec(&self) {
        self.0.dec();
    }

    /// The value.
    pub fn value(&self) -> f64 {
        self.0.get()
    }
}

impl Histogram {
    /// Counts one observation.
    pub fn observe(&self, value: f64) {
        self.0.observe(value);
    }
}

fn labels<const N: usize>(names: [&'static str; N], values: [&str; N]) -> Labels {
    names.into_iter().zip(values.map(str::to_owned)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_has_the_promised_names_exactly() {
        let mut metrics = Metrics::new(Program::Relay, "0.1.0");
        let requests = metrics.counters("culvert_requests_total", "Requests answered", ["service", "code"]);
        let duration =
            metrics.histograms("culvert_request_duration_seconds", "How long requests take", ["service"], &[0.1, 1.0]);
        let up = metrics.gauges("culvert_service_up", "Whether a service can be called", ["service"]);
        let registry = metrics.gauge("culvert_registry_up", "Whether the registry can be reached");
        let orders = requests.with(["orders", "200"]);
        orders.inc();
        requests.with(["orders", "200"]).add(2);
        duration.with(["orders"]).observe(0.25);
        up.with(["orders"]).set(1.0);
        registry.set(1.0);
        assert_eq!(orders.count(), 3);
        assert_eq!(metrics.text(), GOLDEN);
    }

    #[test]
    fn gathered_gauges_replace_those_of_the_last_scrape() {
        let mut metrics = Metrics::new(Program::Relay, "0");
        let up = metrics.gauges("culvert_service_up", "Up", ["service"]);
        up.replace([(["a"], 1.0), (["b"], 0.0)]);
        up.replace([(["b"], 1.0)]);
        let text = metrics.text();
        assert!(text.contains("culvert_service_up{service=\"b\"} 1.0") && !text.contains("\"a\""), "{text}");
    }

    #[test]
    fn a_label_cannot_break_out_of_its_quotes() {
        let mut metrics = Metrics::new(Program::Relay, "0");
        metrics.counters("culvert_x_total", "X", ["l"]).with(["a\"} 1\nevil \\"]).inc();
        let text = metrics.text();
        assert!(text.lines().all(|line| line.starts_with('#') || line.starts_with("culvert_")), "{text}");
        assert!(text.contains(r#"culvert_x_total{l="a\"} 1\nevil \\"} 1"#), "{text}");
    }

    #[test]
    fn a_count_kept_elsewhere_only_rises() {
        let counter = Metrics::new(Program::Relay, "0").counter("culvert_x_total", "X");
        counter.raise_to(5);
        counter.raise_to(3);
        assert_eq!(counter.count(), 5);
    }

    const GOLDEN: &str = "\
# HELP culvert_build Which program this is.
# TYPE culvert_build info
culvert_build_info{program=\"relay\",version=\"0.1.0\"} 1
# HELP culvert_requests Requests answered.
# TYPE culvert_requests counter
culvert_requests_total{service=\"orders\",code=\"200\"} 3
# HELP culvert_request_duration_seconds How long requests take.
# TYPE culvert_request_duration_seconds histogram
culvert_request_duration_seconds_sum{service=\"orders\"} 0.25
culvert_request_duration_seconds_count{service=\"orders\"} 1
culvert_request_duration_seconds_bucket{le=\"0.1\",service=\"orders\"} 0
culvert_request_duration_seconds_bucket{le=\"1.0\",service=\"orders\"} 1
culvert_request_duration_seconds_bucket{le=\"+Inf\",service=\"orders\"} 1
# HELP culvert_service_up Whether a service can be called.
# TYPE culvert_service_up gauge
culvert_service_up{service=\"orders\"} 1.0
# HELP culvert_registry_up Whether the registry can be reached.
# TYPE culvert_registry_up gauge
culvert_registry_up 1.0
# EOF
";
}
