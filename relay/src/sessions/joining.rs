//! A bootstrap session: the holder of a token asks to be enrolled, and nothing else (wire.md §3).
//!
//! Must never answer anything but an enrolment, nor keep the connection longer than [`WITHIN`].

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use culvert_engine::PskEpoch;
use culvert_model::close::CloseCode;
use culvert_model::control::{Refusal, Subject, ToConnector, ToRelay};
use culvert_model::id::TokenId;
use culvert_plane::Connection;
use tracing::{debug, info, warn};

use super::Shared;
use super::frames::{FrameError, Frames};
use crate::enrol::{self, Refused};
use crate::refusals::Attempt;

/// For the whole of it.
const WITHIN: Duration = Duration::from_secs(30);
/// The connector closes first; it gets so long.
const LINGER: Duration = Duration::from_secs(5);

/// Answers one joiner and closes its connection.
pub(super) async fn serve(shared: Arc<Shared>, connection: Connection, token: TokenId) {
    let code = match tokio::time::timeout(WITHIN, answer(&shared, &connection, &token)).await {
        Ok(Ok(())) => {
            let _ = tokio::time::timeout(LINGER, connection.closed()).await;
            CloseCode::Enrolled
        }
        Ok(Err(error)) => {
            debug!(token = %token, %error, "joining ended early");
            CloseCode::Protocol
        }
        Err(_) => CloseCode::Silent,
    };
    // Its place among the 256 is the next joiner's; left alone it would be held for the rest of its 30 seconds.
    shared.plane.remove_peer(connection.peer(), code).await;
}

async fn answer(shared: &Shared, connection: &Connection, token: &TokenId) -> Result<(), FrameError> {
    let Ok(stream) = connection.accept().await else { return Ok(()) };
    let mut frames = Frames::new(stream);
    loop {
        let request = match frames.next().await? {
            ToRelay::Enrol(request) => request,
            ToRelay::Ping { id } => {
                frames.send(&ToConnector::Pong { id }).await?;
                continue;
            }
            ToRelay::Announce(_)
            | ToRelay::Health { .. }
            | ToRelay::Drain
            | ToRelay::Rekey(_)
            | ToRelay::Renew { .. }
            | ToRelay::Retire { .. }
            | ToRelay::Lane(_)
            | ToRelay::Introduce { .. }
            | ToRelay::Managed { .. }
            | ToRelay::ProofKeys { .. }
            | ToRelay::Pong { .. }
            | ToRelay::Unsupported { .. }
            | ToRelay::Unknown => {
                frames.send(&ToConnector::Unsupported { what: "not while joining".to_owned() }).await?;
                continue;
            }
        };
        let Some(stats) = shared.plane.peer_stats(connection.peer()) else { return Ok(()) };
        let (Some(source), Some(relay_key)) = (stats.path, shared.statics.key(stats.static_index)) else {
            return Ok(());
        };
        let via = enrol::Via { source: source.remote, relay_key };
        let now = SystemTime::now();
        let enrolled = enrol::enrol(&*shared.registry, &shared.identity, token, request, via, now).await;
        match enrolled {
            Ok(admitted) => {
                let row = &admitted.connector;
                let psks = admitted.psks.into_iter().map(|key| PskEpoch { epoch: key.epoch, psk: key.psk }).collect();
                // The peer is there before the answer: the connector comes back as itself at once.
                if let Err(error) = shared.add_member(row, psks) {
                    warn!(connector = %row.id, %error, "enrolled connector cannot be added");
                    connection.close(CloseCode::Overloaded);
                    return Ok(());
                }
                info!(connector = %row.id, token = %token, repeated = admitted.repeated, "connector joined");
                frames.send(&ToConnector::Enrolled(admitted.answer)).await?;
            }
            Err(Refused::ForGood { refusal, at, of }) => {
                info!(token = %token, refusal = ?refusal, of = ?of, source = %source.remote, "joining refused");
                shared.refusals.note(Attempt {
                    action: "connector.refused",
                    actor: token.to_string(),
                    subject: token.to_string(),
                    detail: format!("{}, from {}", word(refusal, of), source.remote.ip()),
                });
                frames.send(&ToConnector::Refused { refusal, at, of: Some(of) }).await?;
            }
            Err(Refused::Unknown) => return Ok(()),
            Err(error @ (Refused::Later(_) | Refused::Broken(_))) => {
                warn!(token = %token, %error, "joining must wait");
                connection.close(CloseCode::Overloaded);
                return Ok(());
            }
        }
        return frames.finish().await;
    }
}

/// Why a joiner is refused, in the audit trail's words.
fn word(refusal: Refusal, of: Subject) -> &'static str {
    match (refusal, of) {
        (Refusal::Revoked, Subject::Connector) => "its key is revoked",
        (Refusal::Revoked, _) => "the token is revoked",
        (Refusal::Expired, _) => "the token is expired",
        (Refusal::UsedUp, _) => "the token is used up",
        (Refusal::Source, _) => "the token may not be used from there",
        (Refusal::Malformed, _) => "what it asked made no sense",
        (Refusal::Version, _) => "its version is another one",
        (Refusal::Other, _) => "for another reason",
    }
}
