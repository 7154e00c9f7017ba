//! What `status`, readiness and metrics show of the relays: written by each link, read by all.
//!
//! Must never decide anything.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use culvert_model::control::RefusedService;
use culvert_ops::time::rfc3339;
use serde_json::{Value, json};

/// All relays. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Board(Arc<Mutex<BTreeMap<String, RelayState>>>);

/// One relay.
#[derive(Debug, Clone, Default)]
pub struct RelayState {
    /// Its endpoints, as the token names them.
    pub endpoints: Vec<String>,
    /// Its public key.
    pub public_key: String,
    /// A session is live.
    pub up: bool,
    /// Since when it is, or is not.
    pub since: Option<SystemTime>,
    /// Why not, in words.
    pub problem: Option<String>,
    /// Where it is.
    pub remote: Option<SocketAddr>,
    /// Its program's version.
    pub version: Option<String>,
    /// The last handshake.
    pub last_handshake: Option<SystemTime>,
    /// Round-trip time.
    pub rtt: Option<Duration>,
    /// The epoch of the pre-shared key that its session hangs on, and the first handshake under it.
    pub psk: Option<(u32, Option<SystemTime>)>,
    /// The first handshake under any pre-shared key from ML-KEM: traffic recorded since then stays secret.
    pub safe_since: Option<SystemTime>,
    /// Further lanes that are up, by number.
    pub lanes: BTreeSet<u8>,
    /// Services it does not take from this connector, and why.
    pub refused: Vec<RefusedService>,
}

impl Board {
    /// Starts over with these relays, none of them up.
    pub fn set_relays(&self, relays: impl IntoIterator<Item = (String, RelayState)>) {
        *self.lock() = relays.into_iter().collect();
    }

    /// One more relay, or a known one with other endpoints or another key: what is known of its session stays.
    pub fn set_relay(&self, name: String, state: RelayState) {
        let mut relays = self.lock();
        let now = match relays.remove(&name) {
            Some(known) => RelayState { endpoints: state.endpoints, public_key: state.public_key, ..known },
            None => state,
        };
        relays.insert(name, now);
    }

    /// A relay that is no more.
    pub fn remove_relay(&self, name: &str) {
        self.lock().remove(name);
    }

    /// Whether a session with that relay is live.
    pub fn is_up(&self, relay: &str) -> bool {
        self.lock().get(relay).is_some_and(|state| state.up)
    }

    /// Why there is no session.
    pub fn set_problem(&self, relay: &str, why: &str) {
        if let Some(state) = self.lock().get_mut(relay)
            && state.problem.as_deref() != Some(why)
        {
            state.problem = Some(why.to_owned());
        }
    }

    /// The session is live.
    pub fn set_up(
        &self,
        relay: &str,
        remote: Option<SocketAddr>,
        version: &str,
        refused: &[RefusedService],
        now: SystemTime,
    ) {
        if let Some(state) = self.lock().get_mut(relay) {
            if !state.up {
                state.since = Some(now);
            }
            state.up = true;
            state.problem = None;
            state.remote = remote;
            state.version = Some(version.to_owned());
            state.refused = refused.to_vec();
        }
    }

    /// The session is over.
    pub fn set_down(&self, relay: &str, now: SystemTime) {
        if let Some(state) = self.lock().get_mut(relay)
            && state.up
        {
            state.up = false;
            state.since = Some(now);
            state.rtt = None;
        }
    }

    /// A further lane is up, or no more.
    pub fn set_lane(&self, relay: &str, number: u8, is_up: bool) {
        if let Some(state) = self.lock().get_mut(relay) {
            if is_up {
                state.lanes.insert(number)
            } else {
                state.lanes.remove(&number)
            };
        }
    }

    /// The relay has another key.
    pub fn set_public_key(&self, relay: &str, public_key: &str) {
        if let Some(state) = self.lock().get_mut(relay) {
            public_key.clone_into(&mut state.public_key);
        }
    }

    /// Figures of the session.
    pub fn set_figures(&self, relay: &str, last_handshake: Option<SystemTime>, rtt: Option<Duration>) {
        if let Some(state) = self.lock().get_mut(relay) {
            state.last_handshake = last_handshake.or(state.last_handshake);
            state.rtt = rtt;
        }
    }

    /// What the session's secrecy hangs on.
    pub fn set_psk(&self, relay: &str, epoch: u32, used: Option<SystemTime>, safe_since: Option<SystemTime>) {
        if let Some(state) = self.lock().get_mut(relay) {
            state.psk = Some((epoch, used));
            state.safe_since = safe_since;
        }
    }

    /// Whether a session is live with any relay.
    pub fn is_any_up(&self) -> bool {
        self.lock().values().any(|state| state.up)
    }

    /// Why no relay has a session, one reason for each.
    pub fn problems(&self) -> Vec<String> {
        self.lock().values().filter(|state| !state.up).filter_map(|state| state.problem.clone()).collect()
    }

    /// Every relay by its name.
    pub fn relays(&self) -> Vec<(String, RelayState)> {
        self.lock().iter().map(|(name, state)| (name.clone(), state.clone())).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, RelayState>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RelayState {
    /// As `status --json` has it.
    pub fn json(&self, name: &str) -> Value {
        json!({
            "name": name,
            "public_key": self.public_key,
            "endpoints": self.endpoints,
            "endpoint": self.remote.map(|remote| remote.to_string()),
            "state": if self.up { "up" } else { "down" },
            "since": self.since.map(rfc3339),
            "reason": self.problem,
            "lanes": usize::from(self.up) + self.lanes.len(),
            "version": self.version,
            "last_handshake": self.last_handshake.map(rfc3339),
            "rtt_seconds": self.rtt.map(|rtt| rtt.as_secs_f64()),
            "psk_epoch": self.psk.map(|(epoch, _)| epoch),
            "psk_since": self.psk.and_then(|(_, used)| used).map(rfc3339),
            "quantum_safe_since": self.safe_since.map(rfc3339),
            "refused": self.refused.iter().map(|refused| json!({"name": refused.name, "why": refused.why})).collect::<Vec<_>>(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relay_is_up_from_its_welcome_until_its_loss() {
        let board = Board::default();
        board.set_relays([("a".to_owned(), RelayState::default()), ("b".to_owned(), RelayState::default())]);
        board.set_problem("a", "no answer");
        assert!(!board.is_any_up());
        assert_eq!(board.problems(), ["no answer"]);
        board.set_up("a", None, "0.1.0", &[], SystemTime::UNIX_EPOCH);
        assert!(board.is_any_up());
        assert!(board.problems().is_empty());
        board.set_down("a", SystemTime::UNIX_EPOCH);
        assert!(!board.is_any_up());
        board.set_up("unknown", None, "0.1.0", &[], SystemTime::UNIX_EPOCH);
        assert!(!board.is_any_up(), "only known relays count");
    }

    #[test]
    fn a_relay_that_moves_keeps_its_session_and_one_that_is_gone_is_not_shown() {
        let board = Board::default();
        board.set_relays([("a".to_owned(), RelayState::default())]);
        board.set_up("a", None, "0.1.0", &[], SystemTime::UNIX_EPOCH);
        let at = |endpoint: &str| RelayState { endpoints: vec![endpoint.to_owned()], ..RelayState::default() };
        board.set_relay("a".to_owned(), at("a:2"));
        board.set_relay("b".to_owned(), at("b:1"));
        assert!(board.is_up("a") && !board.is_up("b"));
        assert_eq!(board.relays()[0].1.endpoints, ["a:2"]);
        board.remove_relay("a");
        assert_eq!(board.relays().len(), 1);
    }
}
