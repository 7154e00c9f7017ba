//! Stays connected to one relay, for as long as this process lives.
//!
//! Must never end but for a revoked key or the drain.

use std::time::{Duration, Instant, SystemTime};

use culvert_model::close::CloseCode;
use culvert_model::control::{Refusal, Subject};
use culvert_model::kem::KemKey;
use culvert_plane::PskEpoch;
use tokio::sync::{Mutex, watch};
use tokio::time::{sleep, sleep_until, timeout};

use crate::identity::{Candidate, Identity, Relay};
use crate::join::{self, Refused};
use crate::link::Link;
use crate::reach::{Reached, Speaker, Way, now};
use crate::session::{self, Left};
use crate::shared::Shared;

/// How long one question as the token may take while the own key finds no answer.
const QUESTION: Duration = Duration::from_secs(10);
/// An older relay's word `revoked` may be about the token alone: the own key gets this long to find an answer.
const RECHECK: Duration = Duration::from_secs(4);
/// And how often it is asked.
const QUESTION_AGAIN: Duration = Duration::from_secs(600);
/// A socket that cannot be had is tried for again after this time.
const NO_SOCKET: Duration = Duration::from_secs(2);

/// Why a link ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    /// This process is done.
    Drained,
    /// The relay revoked this connector.
    Revoked,
}

/// Stays connected to `relay` as `identity`, until `retired` says that another identity took its place.
pub async fn stay(
    shared: &Shared,
    identity: &Mutex<Identity>,
    relay: &str,
    mut retired: watch::Receiver<bool>,
) -> Over {
    let mut link = Link::new(rand::random(), now());
    let mut asked = None;
    // Where a relay does not say what is revoked, it may be the token and not this connector. But a relay that answers
    // the token twice and stays silent to the key in between has forgotten the key.
    let mut recheck: Option<Instant> = None;
    loop {
        let mut gone = retired.clone();
        let drained = async {
            tokio::select! {
                () = shared.drain.stopped() => {}
                () = session::is_said(&mut gone) => {}
            }
        };
        tokio::pin!(drained);
        let Some((speaker, place)) = speaker(shared, identity, relay).await else {
            // Joined before this relay was known, or never answered by it: only the token helps.
            let enrolled = tokio::select! {
                enrolled = enrol(shared, identity, relay) => enrolled,
                () = &mut drained => return Over::Drained,
            };
            match enrolled {
                Ok(()) => continue,
                Err(Refused { refusal: Refusal::Revoked, of: None | Some(Subject::Connector), .. }) => {
                    return Over::Revoked;
                }
                Err(refused) => {
                    let (why, _) = crate::words::refusal(&refused);
                    tracing::warn!(relay, why, "this relay does not take the token");
                    shared.board.set_problem(relay, &why);
                    drained.await;
                    return Over::Drained;
                }
            }
        };
        let mut way = match Way::open(&speaker, &place) {
            Ok(way) => way,
            Err(why) => {
                tracing::warn!(relay, why, "cannot connect yet");
                sleep(NO_SOCKET).await;
                continue;
            }
        };
        loop {
            let reached = tokio::select! {
                reached = way.reach(&mut link, &shared.board) => reached,
                () = until(recheck) => Reached::Silence,
                () = &mut drained => {
                    way.plane.shutdown(CloseCode::Shutdown).await;
                    return Over::Drained;
                }
            };
            match reached {
                Reached::Connection(connection) => {
                    let left = session::live(&mut way, &mut link, &connection, shared, &mut retired).await;
                    (asked, recheck) = (None, None);
                    shared.board.set_down(relay, SystemTime::now());
                    match left {
                        Left::Drained => {
                            way.plane.shutdown(CloseCode::Shutdown).await;
                            return Over::Drained;
                        }
                        Left::Ended(ended) => {
                            session::log_end(&way, &ended);
                            link.handle_ended(ended, now());
                        }
                    }
                }
                Reached::Rebuild => break,
                Reached::Revoked => return Over::Revoked,
                Reached::Silence => {
                    let lately = asked.is_some_and(|then| now().duration_since(then) < QUESTION_AGAIN);
                    let rechecks = recheck.take_if(|at| *at <= now()).is_some();
                    if shared.token.is_none() || (lately && !rechecks) {
                        continue;
                    }
                    asked = Some(now());
                    match timeout(QUESTION, enrol(shared, identity, relay)).await {
                        // The relay had forgotten this connector: it comes back as what it is now.
                        Ok(Ok(())) => break,
                        Ok(Err(Refused { refusal: Refusal::Revoked, of: Some(Subject::Connector), .. })) => {
                            return Over::Revoked;
                        }
                        Ok(Err(Refused { refusal: Refusal::Revoked, of: None, .. })) if rechecks => {
                            return Over::Revoked;
                        }
                        Ok(Err(Refused { refusal: Refusal::Revoked, of: None, .. })) => {
                            recheck = Some(now() + RECHECK);
                        }
                        Ok(Err(_)) | Err(_) => {}
                    }
                }
            }
        }
        way.plane.shutdown(CloseCode::Shutdown).await;
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// Who speaks to the relay; none before this connector has a pre-shared key with it.
async fn speaker(shared: &Shared, identity: &Mutex<Identity>, relay: &str) -> Option<(Speaker, Relay)> {
    let identity = identity.lock().await;
    let place = identity.joined.relays.iter().find(|known| known.name == relay)?.clone();
    let psk = PskEpoch { epoch: place.psk_epoch?, psk: identity.psks.get(relay)?.clone() };
    let speaker = Speaker {
        private_key: identity.private_key.clone(),
        psk,
        inner: identity.joined.inner_address,
        instance: shared.instance,
        reset_secret: shared.reset_secret,
    };
    Some((speaker, place))
}

/// Asks the relay, as the token, to take this connector's own key.
async fn enrol(shared: &Shared, identity: &Mutex<Identity>, relay: &str) -> Result<(), Refused> {
    let Some(token) = &shared.token else {
        let why = "this connector has not joined at this relay: start it once with the token";
        tracing::warn!(relay, why, "no session with the relay");
        shared.board.set_problem(relay, why);
        return std::future::pending().await;
    };
    let (candidate, place) = {
        let identity = identity.lock().await;
        let Some(place) = identity.joined.relays.iter().find(|known| known.name == relay).cloned() else {
            return std::future::pending().await;
        };
        (Candidate::of(&identity, KemKey::generate()), place)
    };
    let admission = join::ask(shared, token, &candidate, &place).await?;
    let mut identity = identity.lock().await;
    if let Err(error) = shared.store.enrolled_at(&mut identity, &admission) {
        tracing::warn!(relay, %error, "the relay's answer cannot be kept");
    }
    Ok(())
}
