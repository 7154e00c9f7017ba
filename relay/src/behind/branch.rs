//! One stock peer's side of the last hop: the origins behind it, and what failures of theirs mean.
//!
//! Must never call a tunnel's loss the origin's failure.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use culvert_hop::fault::{Fault, Retry, Side};
use culvert_model::reason::Reason;
use culvert_origin::origins::Origins;

use super::severed::removed;
use crate::peers::StockPeer;

/// A peer behind which there are services.
pub(crate) struct Branch {
    /// The peer.
    pub(crate) stock: Arc<StockPeer>,
    /// The services, and connections to their origins.
    pub(super) origins: Origins,
    /// There is a TUN plane.
    has_plane: AtomicBool,
    /// It has an address to call it at.
    is_met: AtomicBool,
}

impl Branch {
    pub(super) fn new(stock: Arc<StockPeer>, origins: Origins) -> Self {
        let is_met = stock.row.endpoint.is_some() || !stock.row.heard.is_empty();
        Self { stock, origins, has_plane: AtomicBool::new(false), is_met: AtomicBool::new(is_met) }
    }

    /// Whether something can be asked behind it: it is up, or a packet would have it called. Silence alone is no loss: a
    /// peer without a keepalive is silent whenever nobody asks.
    pub(crate) fn is_there(&self) -> bool {
        if self.stock.is_gone() || !self.has_plane.load(Ordering::Relaxed) {
            return false;
        }
        if self.stock.is_up() {
            self.is_met.store(true, Ordering::Relaxed);
        }
        self.is_met.load(Ordering::Relaxed)
    }

    /// Says whether there is a TUN plane; what was said before.
    pub(super) fn set_plane(&self, has_plane: bool) -> bool {
        self.has_plane.swap(has_plane, Ordering::Relaxed)
    }

    /// The failure by its right name: while the peer has no session, nothing was heard of the origin.
    pub(super) fn named(&self, fault: Fault) -> Fault {
        if self.stock.is_gone() {
            return removed();
        }
        let is_silence = matches!(
            fault.reason,
            Reason::OriginConnectTimeout | Reason::OriginUnreachable | Reason::OriginTimeout | Reason::OriginDns
        );
        if !is_silence || self.stock.is_up() {
            return fault;
        }
        // Not safe to repeat: the same peer would be waited for once more.
        let lost = Fault::new(Reason::ConnectorLost).side(Side::Tunnel).retry(Retry::IfIdempotent);
        lost.log(format_args!("the peer has no session: {fault}"))
    }
}
