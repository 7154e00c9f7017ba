//! Joining: speaks to a relay as its token until the relay knows this connector's own key.
//!
//! Must never give up by itself, send the private key, or ask before the keys are stored.

use std::future::Future;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use culvert_model::address::BOOTSTRAP_INNER;
use culvert_model::close::CloseCode;
use culvert_model::control::{self, Enrol, Enrolled, Refusal, Subject, ToConnector, ToRelay};
use culvert_model::key::PublicKey;
use culvert_model::token::Token;
use culvert_ops::runtime::now;
use culvert_plane::{Connection, PskEpoch};
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::time::{sleep, timeout};

use crate::VERSION;
use crate::control::{ControlError, Incoming, Outgoing};
use crate::identity::{Admission, Candidate, Relay};
use crate::link::{Ended, Link};
use crate::reach::{Reached, Speaker, Way};
use crate::shared::Shared;

/// How long a relay may take to answer: its registry writes to disk first.
const ANSWER: Duration = Duration::from_secs(15);
/// The head start of each relay over the next.
const STAGGER: Duration = Duration::from_secs(3);
/// A socket that cannot be had is tried for again after this time.
const NO_SOCKET: Duration = Duration::from_secs(2);

/// A relay's last word.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("refused: {refusal:?}")]
pub struct Refused {
    /// Why.
    pub refusal: Refusal,
    /// When that came to be, where the relay knows.
    pub at: Option<String>,
    /// What it is about, where the relay says.
    pub of: Option<Subject>,
}

/// Asks every relay, the first one first, until one of them admits or refuses this connector for good.
///
/// # Errors
/// [`Refused`]
pub async fn join(
    shared: &Shared,
    token: &Token,
    candidate: &Candidate,
    relays: &[Relay],
) -> Result<Admission, Refused> {
    let mut asking = FuturesUnordered::new();
    let mut head_start = Duration::ZERO;
    for relay in relays {
        let wait = head_start;
        head_start += STAGGER;
        asking.push(async move {
            sleep(wait).await;
            ask(shared, token, candidate, relay).await
        });
    }
    match asking.next().await {
        Some(outcome) => outcome,
        None => std::future::pending().await,
    }
}

/// Asks one relay, for as long as it takes.
///
/// # Errors
/// [`Refused`]
pub async fn ask(shared: &Shared, token: &Token, candidate: &Candidate, relay: &Relay) -> Result<Admission, Refused> {
    let mut link = Link::new(rand::random(), now());
    loop {
        let speaker = Speaker {
            private_key: token.bootstrap_key(),
            psks: vec![PskEpoch { epoch: 0, psk: token.bootstrap_psk() }],
            inner: BOOTSTRAP_INNER,
            instance: shared.instance,
            reset_secret: culvert_model::key::random(),
        };
        let mut way = match Way::open(&speaker, relay) {
            Ok(way) => way,
            Err(why) => {
                tracing::warn!(why, "cannot join yet");
                sleep(NO_SOCKET).await;
                continue;
            }
        };
        loop {
            let connection = match way.reach(&mut link, &shared.board).await {
                Reached::Connection(connection) => connection,
                Reached::Rebuild => break,
                Reached::Silence => continue,
                Reached::Revoked => {
                    return Err(Refused { refusal: Refusal::Revoked, at: None, of: Some(Subject::Token) });
                }
            };
            link.handle_up(way.remote(), now());
            match exchange(shared, &connection, candidate, relay).await {
                Ok(outcome) => {
                    way.plane.shutdown(CloseCode::Enrolled).await;
                    return outcome;
                }
                Err(ended) => link.handle_ended(ended, now()),
            }
        }
    }
}

/// One question and its answer on a bootstrap connection.
async fn exchange(
    shared: &Shared,
    connection: &Connection,
    candidate: &Candidate,
    relay: &Relay,
) -> Result<Result<Admission, Refused>, Ended> {
    let public_key = candidate.private_key.public_key();
    let request = ToRelay::Enrol(Enrol {
        version: control::VERSION,
        public_key,
        kem_key: STANDARD.encode(candidate.kem.encapsulation_key()),
        name: shared.name.clone(),
        ephemeral: shared.ephemeral,
        program: VERSION.to_owned(),
    });
    let asked = async {
        let stream = connection.open().await.map_err(|error| std::io::Error::other(error.to_string()))?;
        let (read, write) = tokio::io::split(stream);
        let mut outgoing = Outgoing::new(write);
        let mut incoming = Incoming::new(read);
        outgoing.send(&request).await?;
        loop {
            match incoming.next::<ToConnector>().await? {
                ToConnector::Enrolled(enrolled) => return Ok(Ok(enrolled)),
                ToConnector::Refused { refusal, at, of } => return Ok(Err(Refused { refusal, at, of })),
                ToConnector::Ping { id } => outgoing.send(&ToRelay::Pong { id }).await?,
                ToConnector::Welcome(_)
                | ToConnector::Drain
                | ToConnector::Rekeyed(_)
                | ToConnector::RekeyRefused { .. }
                | ToConnector::Renewed { .. }
                | ToConnector::RelayKey { .. }
                | ToConnector::Lane(_)
                | ToConnector::LaneRefused { .. }
                | ToConnector::Manage { .. }
                | ToConnector::Issuer { .. }
                | ToConnector::Relays { .. }
                | ToConnector::Introduced { .. }
                | ToConnector::Pong { .. }
                | ToConnector::Unsupported { .. }
                | ToConnector::Unknown => {}
            }
        }
    };
    let answer: Result<Result<Enrolled, Refused>, ControlError> = within(ANSWER, asked).await;
    match answer {
        Ok(Ok(enrolled)) => admitted(candidate, &public_key, relay, enrolled).map(Ok),
        Ok(Err(refused)) => Ok(Err(refused)),
        Err(error) => {
            let closed = timeout(Duration::from_millis(50), connection.closed()).await;
            Err(closed.map_or_else(|_| Ended::Lost(error.to_string()), |closed| crate::reach::ended_as(&closed)))
        }
    }
}

fn admitted(candidate: &Candidate, own: &PublicKey, relay: &Relay, enrolled: Enrolled) -> Result<Admission, Ended> {
    let malformed = || Ended::Lost("the relay's answer makes no sense".to_owned());
    let ciphertext = STANDARD.decode(&enrolled.ciphertext).map_err(|_| malformed())?;
    let psk = candidate.kem.decapsulate(&ciphertext, &relay.public_key, own).map_err(|_| malformed())?;
    Ok(Admission {
        id: enrolled.id,
        inner_address: enrolled.inner_address,
        tunnel: enrolled.tunnel,
        relay: relay.name.clone(),
        psk,
        psk_epoch: enrolled.psk_epoch,
    })
}

async fn within<T>(patience: Duration, work: impl Future<Output = Result<T, ControlError>>) -> Result<T, ControlError> {
    timeout(patience, work).await.unwrap_or_else(|_| Err(ControlError::Io(std::io::ErrorKind::TimedOut.into())))
}
