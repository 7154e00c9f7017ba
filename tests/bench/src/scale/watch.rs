//! Requests through one connector while many others come: whether the relay still answers.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use culvert_lab::{Namespace, Relay, client, wait};
use serde::Serialize;
use tokio::sync::oneshot;

use super::processes::Crowd;

const SERVICE: &str = "watched";
const EVERY: Duration = Duration::from_millis(20);
const UP_WITHIN: Duration = Duration::from_secs(20);

/// How long requests took.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Latency {
    pub(crate) answered: usize,
    /// Those that failed after the first that did not: until then the relay was being started.
    pub(crate) failed: usize,
    pub(crate) first_after_seconds: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) longest_ms: f64,
}

/// The one connector.
pub(super) struct Watch {
    _connector: Crowd,
}

/// Requests that are being made.
pub(super) struct Watching {
    stop: oneshot::Sender<()>,
    made: oneshot::Receiver<Result<Latency>>,
}

impl Watch {
    /// Waits until it is up.
    pub(super) async fn prepare(gateway: &Namespace, private: &Namespace, relay: &Relay) -> Result<Self> {
        let token = relay.tunnel("watched", &[SERVICE]).await?;
        let connector = Crowd::one(private, SERVICE, &token)?;
        let http = relay.http;
        gateway
            .within(move || async move {
                wait::until("the watched connector", UP_WITHIN, || async {
                    client::get(http, SERVICE, "/").await.ok().filter(|answer| answer.status == 204)
                })
                .await
            })
            .await?;
        Ok(Self { _connector: connector })
    }

    /// Makes requests from now on, each on a connection of its own.
    pub(super) fn begin(&self, gateway: &Namespace, relay: &Relay) -> Result<Watching> {
        let (stop, mut stopped) = oneshot::channel();
        let http = relay.http;
        let made = gateway.begin(move || async move {
            let start = Instant::now();
            let (mut latency, mut took) = (Latency::default(), Vec::new());
            while stopped.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Empty) {
                let asked = Instant::now();
                let answer = client::get(http, SERVICE, "/").await;
                if answer.is_ok_and(|answer| answer.status == 204) {
                    if took.is_empty() {
                        latency.first_after_seconds = start.elapsed().as_secs_f64();
                    }
                    took.push(asked.elapsed().as_secs_f64() * 1e3);
                } else if !took.is_empty() {
                    latency.failed += 1;
                }
                tokio::time::sleep(EVERY).await;
            }
            took.sort_by(f64::total_cmp);
            let at = |share: f64| took.get((took.len() as f64 * share) as usize).copied().unwrap_or_default();
            latency.answered = took.len();
            (latency.p50_ms, latency.p99_ms) = (at(0.5), at(0.99));
            latency.longest_ms = took.last().copied().unwrap_or_default();
            Ok(latency)
        })?;
        Ok(Watching { stop, made })
    }
}

impl Watching {
    pub(super) async fn end(self) -> Result<Latency> {
        let _ = self.stop.send(());
        self.made.await.context("the thread with the requests panicked")?
    }
}
