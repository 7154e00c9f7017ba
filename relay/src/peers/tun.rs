//! When the TUN plane runs: from the first stock peer on, where this machine has what it needs.
//!
//! The only file that starts one. Must never end the relay for want of one: why there is none is kept, to be told.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use culvert_plane::Plane;
use culvert_plane::tun::{Tun, TunConfig, Way};
use tokio::time::timeout;
use tracing::{info, warn};

/// It takes milliseconds: past this nothing is waited for, and the relay goes on without.
const STARTED_WITHIN: Duration = Duration::from_secs(10);
/// Somebody who kills the namespace's process again and again gets no more than this of the relay.
pub(super) const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// How the TUN plane is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TunState {
    /// No peer asks for one.
    Off,
    /// It runs, without any privilege of the relay's own (`true`) or with it.
    Runs {
        /// A process of its own keeps it.
        by_child: bool,
    },
    /// There is a peer, and it cannot run here: what to change.
    Unavailable(String),
}

#[derive(Default)]
pub(super) struct TunPlane {
    config: Mutex<Option<TunConfig>>,
    now: Mutex<Option<Result<Tun, String>>>,
    /// One start after the other.
    starting: tokio::sync::Mutex<()>,
}

impl TunPlane {
    pub(super) fn set(&self, config: TunConfig) {
        *lock(&self.config) = Some(config);
    }

    /// Starts it if there is a peer, ends it if there is none. Returns whether it is another one now.
    ///
    /// What failed before is tried again: the machine may be another meanwhile.
    pub(super) async fn follow(&self, plane: &Plane, is_wanted: bool) -> bool {
        let _one = self.starting.lock().await;
        if !is_wanted {
            return lock(&self.now).take().is_some();
        }
        if self.running().is_some() {
            return false;
        }
        let Some(config) = lock(&self.config).clone() else { return false };
        let started = match timeout(STARTED_WITHIN, Tun::start(plane, config)).await {
            Ok(started) => started.map_err(|error| error.to_string()),
            Err(_) => Err("whoever makes the network namespace does not answer".to_owned()),
        };
        let before = lock(&self.now).replace(started.clone());
        let told = |one: &Option<Result<Tun, String>>| one.as_ref().and_then(|one| one.as_ref().err().cloned());
        let (was, is) = (told(&before), started.as_ref().err());
        match (&started, is == was.as_ref()) {
            (Ok(tun), _) => info!(by_child = tun.way() == Way::Child, "the TUN plane runs"),
            (Err(why), false) => warn!(why, "no TUN plane: what is behind stock peers cannot be reached"),
            (Err(_), true) => return false,
        }
        true
    }

    /// It has ended by itself: its handle goes, or no other could be started.
    pub(super) fn lost(&self) {
        *lock(&self.now) = Some(Err("the process that keeps its network namespace was ended".to_owned()));
    }

    pub(super) fn running(&self) -> Option<Tun> {
        lock(&self.now).as_ref().and_then(|now| now.as_ref().ok().cloned())
    }

    pub(super) fn state(&self) -> TunState {
        match &*lock(&self.now) {
            None => TunState::Off,
            Some(Ok(tun)) => TunState::Runs { by_child: tun.way() == Way::Child },
            Some(Err(why)) => TunState::Unavailable(why.clone()),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
