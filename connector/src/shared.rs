//! What every link of this process shares.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use culvert_model::control::{ManagedService, RefusedService};
use culvert_model::id::InstanceId;
use culvert_model::name::Label;
use culvert_model::token::Token;
use culvert_ops::cores::Cores;
use culvert_ops::drain::Drain;
use culvert_origin::allow::Allow;
use culvert_origin::health::Checks;
use culvert_origin::origins::Origins;
use culvert_origin::service::Service;
use tokio::sync::{mpsc, watch};

use crate::board::Board;
use crate::gate::Gate;
use crate::identity::Store;
use crate::introductions::Introductions;
use crate::managed::Managed;
use crate::metrics::ConnectorMetrics;
use crate::relays::Told;
use crate::rotation::Rotation;

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
    /// What makes them: this connector's configuration, and what its relays manage. Locked while the table is made.
    pub managed: Mutex<Managed>,
    /// The managed ones that are refused, and why.
    pub refused: watch::Sender<Vec<RefusedService>>,
    /// Their health.
    pub checks: Checks,
    /// What takes streams.
    pub gate: Gate,
    /// A thread for each lane, the first one's is this process's own.
    pub threads: Cores,
    /// The figures.
    pub metrics: Arc<ConnectorMetrics>,
    /// What `status` shows.
    pub board: Board,
    /// The way out.
    pub drain: Drain,
    /// How long requests in flight may take when a session is to go.
    pub drain_timeout: Duration,
    /// The change from this connector's key to its next one.
    pub rotation: Rotation,
    /// How old a pre-shared key becomes.
    pub renew_psk_after: watch::Sender<Duration>,
    /// Told when a session came up.
    pub up: watch::Sender<u64>,
    /// Relays that do not know this connector yet.
    pub introductions: Introductions,
    /// What relays tell of each other.
    pub told: mpsc::Sender<Told>,
}

/// Refusals that are named in the log each time.
const SAID_AT_MOST: usize = 16;

impl Shared {
    /// Puts this connector's own configuration into force. What relays manage is decided anew.
    pub fn configure(&self, declared: Vec<Service>, allow: Allow) {
        let mut managed = self.managed.lock().unwrap_or_else(PoisonError::into_inner);
        managed.configure(declared, allow);
        self.serve(&managed);
    }

    /// Takes a relay's whole list of managed services. Relays of one registry say the same: the last word counts.
    pub fn manage(&self, services: Vec<ManagedService>) {
        let mut managed = self.managed.lock().unwrap_or_else(PoisonError::into_inner);
        if managed.want(services) {
            self.serve(&managed);
        }
    }

    fn serve(&self, managed: &Managed) {
        let (entries, refused) = managed.decide();
        self.origins.replace(entries);
        self.checks.restart();
        self.refused.send_if_modified(|before| {
            let news: Vec<_> = refused.iter().filter(|one| !before.contains(one)).collect();
            for one in news.iter().take(SAID_AT_MOST) {
                tracing::warn!(service = %one.name, why = one.why, "a service that the relay manages is refused here");
            }
            let is_news = *before != refused;
            *before = refused;
            is_news
        });
    }
}
