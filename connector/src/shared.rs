//! What every link of this process shares.

use std::sync::Arc;

use culvert_model::id::InstanceId;
use culvert_model::name::Label;
use culvert_model::token::Token;
use culvert_ops::drain::Drain;
use tokio::sync::watch;

use crate::board::Board;
use crate::gate::Gate;
use crate::health::Checks;
use crate::identity::Store;
use crate::metrics::ConnectorMetrics;
use crate::origins::Origins;

/// The parts that outlive any session.
pub struct Shared {
    /// This run of the process.
    pub instance: InstanceId,
    /// The connector's name for listings.
    pub name: Option<Label>,
    /// Whether the relay forgets it some time after it vanished.
    pub ephemeral: bool,
    /// Where the identity is kept.
    pub store: Store,
    /// The token, while it may still be needed.
    pub token: Option<Token>,
    /// See [`culvert_plane::Config::reset_secret`]. Of this process alone: a clone of the state directory must not be
    /// able to reset the newer process's connection, and restarts are told by the instance id.
    pub reset_secret: [u8; 32],
    /// The services.
    pub origins: Origins,
    /// Their health.
    pub checks: Checks,
    /// What takes streams.
    pub gate: Gate,
    /// The figures.
    pub metrics: Arc<ConnectorMetrics>,
    /// What `status` shows.
    pub board: Board,
    /// The way out.
    pub drain: Drain,
    /// How long requests in flight may take when a session is to go.
    pub drain_timeout: std::time::Duration,
    /// Told when a session came up.
    pub up: watch::Sender<u64>,
}
