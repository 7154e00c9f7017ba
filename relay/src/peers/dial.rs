//! Dials stock peers that have an endpoint, for as long as they have no session.
//!
//! Its name is looked up at every attempt, because what it means may change. Must never ask faster than [`pause`] allows.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use culvert_model::token::Endpoint;
use culvert_plane::{PeerId, Plane};
use tokio::time::timeout;
use tracing::debug;

use super::StockPeer;

/// A handshake is answered in a round trip: after so long the next address is tried.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How long a name's addresses are waited for.
const RESOLVED_WITHIN: Duration = Duration::from_secs(5);

/// Whom to dial, and where.
pub(super) struct Dialled {
    pub(super) plane: Plane,
    pub(super) peer: PeerId,
    pub(super) endpoint: Endpoint,
    pub(super) stock: Arc<StockPeer>,
    /// Where it was last heard is known: it is called back there first.
    pub(super) heard: bool,
}

/// Keeps dialling whenever there is no session.
pub(super) async fn keep(dialled: Dialled) {
    let Dialled { plane, peer, endpoint, stock, heard } = dialled;
    let mut ups = stock.ups();
    let mut first = heard;
    loop {
        let mut attempt = 0;
        while !*ups.borrow_and_update() {
            if std::mem::take(&mut first) {
                plane.connect(peer, None);
            } else if let Some(address) = resolve(&plane, &endpoint, &stock, attempt).await {
                plane.connect(peer, Some(address));
            }
            let _ = timeout(pause(attempt), ups.wait_for(|up| *up)).await;
            attempt += 1;
        }
        if ups.wait_for(|up| !*up).await.is_err() {
            return;
        }
    }
}

/// One of the endpoint's addresses, another at each attempt, of a family that we have a socket for.
async fn resolve(plane: &Plane, endpoint: &Endpoint, stock: &StockPeer, attempt: u32) -> Option<SocketAddr> {
    let text = endpoint.to_string();
    let found = match timeout(RESOLVED_WITHIN, tokio::net::lookup_host(text.as_str())).await {
        Ok(Ok(found)) => found.collect(),
        Ok(Err(error)) => {
            debug!(peer = %stock.row.name, endpoint = text, %error, "endpoint not found");
            Vec::new()
        }
        Err(_) => Vec::new(),
    };
    let own = plane.local_addrs();
    let usable: Vec<SocketAddr> =
        found.into_iter().filter(|found| own.iter().any(|own| own.is_ipv4() == found.is_ipv4())).collect();
    stock.unresolved.store(usable.is_empty(), Ordering::Relaxed);
    let place = (attempt as usize).checked_rem(usable.len())?;
    usable.get(place).copied()
}

/// How long after an attempt the next one may come.
fn pause(attempt: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(attempt.saturating_sub(3).min(8))).min(LONGEST_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_addresses_are_tried_quickly_and_silence_is_asked_once_a_minute() {
        let pauses: Vec<u64> = (0..10).map(|attempt| pause(attempt).as_secs()).collect();
        assert_eq!(pauses, [2, 2, 2, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(pause(u32::MAX), LONGEST_PAUSE);
    }
}
