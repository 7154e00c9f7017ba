//! Our own token where a cloud takes one in place of a secret of its own (workload identity federation), and what time it
//! is there.
//!
//! Must never show it to anybody but the endpoint that the operator named.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

use culvert_model::name::ServiceName;
use culvert_model::proof::Algorithm;
use http::header;
use serde_json::Map;
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::trouble::Trouble;
use super::{About, Jwt, JwtSettings, Proofs};

/// It is shown once.
const LIFETIME: Duration = Duration::from_secs(300);
/// At the start, until a relay told who it answers as, and a key was made.
const PATIENCE: Duration = Duration::from_secs(5);
/// A clock that is off by less is right: others allow for a minute at least.
const SKEW: i64 = 30;
/// And one that is off by more is not followed: keys are published two hours longer than they sign.
const SKEW_AT_MOST: i64 = 3_600;

/// What our own token says where it is taken for another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FederatedSettings {
    /// What it is signed with.
    pub algorithm: Algorithm,
    /// `aud`.
    pub audience: String,
    /// `iss`; none: as the relay told.
    pub issuer: Option<String>,
    /// `sub`; none: the tunnel's name, a slash, and the service's.
    pub subject: Option<String>,
}

/// Makes such tokens.
#[derive(Debug, PartialEq)]
pub struct Federated(Jwt);

/// What time it is at an endpoint, by what it last said.
#[derive(Debug, Default)]
pub(super) struct TheirClock(AtomicI64);

impl Federated {
    /// With these settings.
    pub fn new(FederatedSettings { algorithm, audience, issuer, subject }: FederatedSettings) -> Self {
        Self(Jwt::new(JwtSettings {
            algorithm,
            audience,
            issuer,
            subject,
            lifetime: LIFETIME,
            header: header::AUTHORIZATION,
            prefix: String::new(),
            is_bound: false,
            claims: Map::new(),
        }))
    }

    /// What it signs with.
    pub const fn algorithm(&self) -> Algorithm {
        self.0.algorithm()
    }

    /// One token.
    ///
    /// # Errors
    /// [`Trouble::Here`]: no relay told of an issuer, or there is no key.
    pub(super) async fn token(
        &self,
        service: &ServiceName,
        proofs: &Proofs,
        now: SystemTime,
    ) -> Result<Zeroizing<String>, Trouble> {
        let ready = async {
            if !self.0.names_issuer() {
                proofs.issuer_is_told().await;
            }
            proofs.key_is_made(self.0.algorithm(), now).await;
            proofs.is_heard().await;
        };
        // What is missing is said below.
        let _ = timeout(PATIENCE, ready).await;
        let made = self.0.token(About { service, caller: None, is_tls: true }, proofs, now);
        made.map_err(|fault| Trouble::Here(fault.detail().unwrap_or("no token could be made").to_owned()))
    }
}

impl TheirClock {
    /// The time there.
    pub(super) fn now(&self) -> SystemTime {
        shifted(SystemTime::now(), self.0.load(Ordering::Relaxed))
    }

    /// It said by how much it is ahead of this host's. True if what was made for the time before may have been refused for
    /// that alone.
    pub(super) fn note(&self, ahead: Option<i64>) -> bool {
        let Some(ahead) = ahead.filter(|ahead| ahead.abs() <= SKEW_AT_MOST) else { return false };
        let ahead = if ahead.abs() <= SKEW { 0 } else { ahead };
        (self.0.swap(ahead, Ordering::Relaxed) - ahead).abs() > SKEW
    }
}

fn shifted(time: SystemTime, seconds: i64) -> SystemTime {
    let by = Duration::from_secs(seconds.unsigned_abs());
    let moved = if seconds < 0 { time.checked_sub(by) } else { time.checked_add(by) };
    moved.unwrap_or(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_off_is_followed_and_one_that_is_nearly_right_is_not() {
        let clock = TheirClock::default();
        let off =
            |clock: &TheirClock| clock.now().duration_since(SystemTime::now()).map_or(0, |ahead| ahead.as_secs() + 1);
        assert!(!clock.note(None) && !clock.note(Some(20)) && !clock.note(Some(1_000_000)));
        assert!(off(&clock) <= 1);
        assert!(clock.note(Some(300)), "what was made before may have been refused for it");
        assert!((299..=301).contains(&off(&clock)));
        assert!(!clock.note(Some(301)), "the same again is no reason");
        assert!(clock.note(Some(0)));
        assert!(off(&clock) <= 1);
    }
}
