//! Notices that the other side of a shared HTTP/2 connection has vanished without a word: else every exchange on it, and
//! every new one, would wait for its deadline, because TCP tries for a quarter of an hour.
//!
//! Must never ask often: servers take pings that come faster than every five minutes for abuse (gRPC's
//! `ENHANCE_YOUR_CALM`, "too_many_pings"). A connection that is not waited for is not asked at all.

use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::time::{Instant, sleep, timeout};

use crate::wire::Seen;

/// How long a connection may be silent while it is waited for.
const QUIET: Duration = Duration::from_secs(10);
/// How long the answer to a ping may take.
const ANSWER: Duration = Duration::from_secs(10);
/// Between two pings.
const APART: Duration = Duration::from_secs(5 * 60);

/// Completes when the other side is gone. Cancel safe.
pub(crate) async fn gone(mut ping: PingPong, seen: &Seen) {
    let mut before = None;
    let mut next = Instant::now();
    loop {
        sleep(QUIET).await;
        let read = seen.read();
        let waits = seen.is_waited_for().then_some(read);
        if waits.is_some() && waits == before && Instant::now() >= next {
            next = Instant::now() + APART;
            match timeout(ANSWER, ping.ping(Ping::opaque())).await {
                Ok(Ok(_)) => {}
                // It is over, which the connection tells better.
                Ok(Err(_)) => return std::future::pending().await,
                Err(_) if seen.read() == read => return,
                Err(_) => {}
            }
        }
        before = waits;
    }
}
