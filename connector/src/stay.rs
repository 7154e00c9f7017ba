//! Stays connected to one relay, for as long as this process lives.
//!
//! Must never end but for a revoked key or the drain.

use std::time::{Duration, Instant, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use culvert_model::close::CloseCode;
use culvert_model::control::{Refusal, Subject};
use culvert_model::kem::KemKey;
use culvert_ops::runtime::now;
use tokio::sync::{Mutex, watch};
use tokio::time::{sleep, sleep_until, timeout};

use crate::identity::{Admission, Candidate, Identity, Relay};
use crate::join::{self, Refused};
use crate::link::Link;
use crate::reach::{Reached, Speaker, Way};
use crate::session::{self, Left};
use crate::shared::Shared;

/// How long one question as the token may take while the own key finds no answer.
const QUESTION: Duration = Duration::from_secs(10);
/// An older relay's word `revoked` may be about the token alone: the own key gets this long to find an answer.
const RECHECK: Duration = Duration::from_secs(4);
/// And how often it is asked.
const QUESTION_AGAIN: Duration = Duration::from_secs(600);
/// How long another relay has to make this connector known before the token is tried.
const HEAD_START: Duration = Duration::from_secs(2);
/// For so long the pre-shared keys of now are tried alone; then the very first one for a moment, in turn.
const CURRENT_TURN: Duration = Duration::from_secs(25);
const FIRST_TURN: Duration = Duration::from_secs(8);
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
    // A relay that came back from a backup may know the first pre-shared key alone.
    let (mut turn, mut shifted): (Option<Instant>, bool) = (None, false);
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
            // Joined before this relay was known, or never answered by it.
            let enrolled = tokio::select! {
                enrolled = become_known(shared, identity, relay) => enrolled,
                () = &mut drained => return Over::Drained,
            };
            match enrolled {
                Ok(()) => continue,
                // Said by a relay that this connector speaks to as its token: it is about this connector.
                Err(_) => return Over::Revoked,
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
        turn.get_or_insert(now() + CURRENT_TURN);
        loop {
            let reached = tokio::select! {
                reached = way.reach(&mut link, &shared.board) => reached,
                () = until(recheck) => Reached::Silence,
                () = until(turn) => {
                    turn = Some(now() + take_turns(&mut way, identity, &mut shifted).await);
                    continue;
                }
                () = &mut drained => {
                    way.plane.shutdown(CloseCode::Shutdown).await;
                    return Over::Drained;
                }
            };
            match reached {
                Reached::Connection(connection) => {
                    let left = session::live(&mut way, &mut link, &connection, shared, identity, &mut retired).await;
                    (asked, recheck, turn) = (None, None, Some(now() + CURRENT_TURN));
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

/// Tries the very first pre-shared key for a moment, or those of now again; for how long.
async fn take_turns(way: &mut Way, identity: &Mutex<Identity>, shifted: &mut bool) -> Duration {
    let identity = identity.lock().await;
    let Some(known) = identity.psks.get(way.name()) else { return CURRENT_TURN };
    let first = known.first(*shifted).filter(|_| !way.is_at_first() && !way.has_next());
    let (psks, turn) = match first {
        Some(first) => {
            *shifted = !*shifted;
            way.set_at_first(true);
            (vec![first], FIRST_TURN)
        }
        None if way.is_at_first() => {
            way.set_at_first(false);
            (known.for_engine(), CURRENT_TURN)
        }
        None => return CURRENT_TURN,
    };
    if let Err(error) = way.set_psks(psks) {
        tracing::debug!(relay = way.name(), %error, "pre-shared keys not changed");
    }
    turn
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
    place.psk_epoch?;
    let psks = identity.psks.get(relay)?.for_engine();
    let speaker = Speaker {
        private_key: identity.private_key.clone(),
        psks,
        inner: identity.joined.inner_address,
        instance: shared.instance,
        reset_secret: shared.reset_secret,
    };
    Some((speaker, place))
}

/// Gets this connector's key known to a relay: through another relay that it has a session with, or as the token.
async fn become_known(shared: &Shared, identity: &Mutex<Identity>, relay: &str) -> Result<(), Refused> {
    let others = identity.lock().await.joined.relays.iter().any(|other| other.psk_epoch.is_some());
    let by_token = async {
        if others {
            sleep(HEAD_START).await;
        }
        match enrol(shared, identity, relay).await {
            Err(refused @ Refused { refusal: Refusal::Revoked, of: None | Some(Subject::Connector), .. }) => {
                Err(refused)
            }
            Err(refused) => {
                let (why, _) = crate::words::refusal(&refused);
                tracing::warn!(relay, why, "this relay does not take the token");
                shared.board.set_problem(relay, &why);
                // Another relay may still make this connector known there.
                std::future::pending().await
            }
            Ok(()) => Ok(()),
        }
    };
    tokio::select! {
        () = introduced(shared, identity, relay) => Ok(()),
        enrolled = by_token => enrolled,
    }
}

/// Waits until another relay has made this connector known.
async fn introduced(shared: &Shared, identity: &Mutex<Identity>, relay: &str) {
    let known = |identity: &Identity| identity.joined.relays.iter().find(|known| known.name == relay).cloned();
    let tag = known(&*identity.lock().await).and_then(|place| place.tag);
    let Some(tag) = tag else { return std::future::pending().await };
    loop {
        let kem = KemKey::generate();
        let answer = shared.introductions.wish(&tag, STANDARD.encode(kem.encapsulation_key())).await;
        let mut identity = identity.lock().await;
        let own = identity.private_key.public_key();
        let ciphertext = STANDARD.decode(&answer.ciphertext).ok();
        let psk = ciphertext.and_then(|ciphertext| kem.decapsulate(&ciphertext, &answer.relay_key, &own).ok());
        let (Some(psk), true) = (psk, answer.public_key == own) else {
            tracing::warn!(relay, "an introduction to this relay makes no sense");
            drop(identity);
            sleep(HEAD_START).await;
            continue;
        };
        let admission = Admission {
            id: identity.joined.id.clone(),
            inner_address: identity.joined.inner_address,
            tunnel: identity.joined.tunnel.clone(),
            relay: relay.to_owned(),
            psk,
            psk_epoch: answer.psk_epoch,
        };
        match shared.store.enrolled_at(&mut identity, &admission, SystemTime::now()) {
            Ok(()) => tracing::info!(relay, "another relay made this connector known"),
            Err(error) => tracing::warn!(relay, %error, "the relay's answer cannot be kept"),
        }
        return;
    }
}

/// Asks the relay, as the token, to take this connector's own key.
async fn enrol(shared: &Shared, identity: &Mutex<Identity>, relay: &str) -> Result<(), Refused> {
    let Some(token) = &shared.token else {
        let why =
            "not known to this relay yet: another one has to make it known, or the token, if it is started with it";
        tracing::info!(relay, why, "no session with the relay");
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
    if let Err(error) = shared.store.enrolled_at(&mut identity, &admission, SystemTime::now()) {
        tracing::warn!(relay, %error, "the relay's answer cannot be kept");
    }
    Ok(())
}
