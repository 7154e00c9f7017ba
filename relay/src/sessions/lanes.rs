//! Further lanes of a connector: WireGuard peers of their own that carry requests beside its session, so that it may use
//! more than one core.
//!
//! Their keys are told over the session, which the connector's own key vouches for, and are written nowhere. Must never let a
//! lane outlive the session that opened it, or reach anything but that session's member.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use culvert_engine::{PeerConfig, PeerId, PskEpoch};
use culvert_model::address::lane_inner;
use culvert_model::close::CloseCode;
use culvert_model::control::{self, LANES_AT_MOST, LaneKeys, ToConnector, ToRelay};
use culvert_model::kem;
use culvert_model::key::PublicKey;
use culvert_plane::{Connection, Stream};
use futures_util::future::join_all;
use ipnet::IpNet;
use tokio::time::{sleep_until, timeout};
use tracing::{info, warn};

use super::Shared;
use super::conversation::ANNOUNCED_WITHIN;
use super::frames::{FrameError, Frames};
use super::liveness::{Liveness, Step};
use super::member::Member;
use super::tunnels::Tunnel;
use crate::command::LiveLane;

/// The epoch of a lane's first pre-shared key.
const FIRST_EPOCH: u32 = 1;
/// Lanes of one connector are opened no faster than this.
const ASKED_EVERY: Duration = Duration::from_millis(20);

/// A lane that may come, or is here.
#[derive(Debug, Clone)]
pub(super) struct Lane {
    member: Arc<Member>,
    number: u8,
}

/// Those of one session.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    open: Vec<Open>,
    /// When one was last asked for.
    asked: Option<Instant>,
}

/// One of them, as the plane answers it.
#[derive(Debug)]
struct Open {
    number: u8,
    peer: PeerId,
    public_key: PublicKey,
    /// Newest last; at most two.
    psks: Vec<PskEpoch>,
}

impl Lanes {
    /// Opens a lane, or renews its pre-shared key. Whoever asks without end waits between the answers.
    pub(super) async fn answer(
        &mut self,
        shared: &Shared,
        member: &Arc<Member>,
        own: PeerId,
        asked: &LaneKeys,
    ) -> ToConnector {
        if let Some(before) = self.asked {
            sleep_until((before + ASKED_EVERY).into()).await;
        }
        self.asked = Some(Instant::now());
        let replaced = self.open.iter().position(|lane| lane.number == asked.number);
        let replaced = replaced.filter(|place| self.open[*place].public_key != asked.public_key);
        if let Some(place) = replaced {
            let before = self.open.remove(place);
            shared.forget_lane(before.peer, CloseCode::Replaced).await;
        }
        match self.open(shared, member, own, asked) {
            Ok(answer) => ToConnector::Lane(answer),
            Err(why) => {
                warn!(connector = %member.who, lane = asked.number, why, "lane refused");
                ToConnector::LaneRefused { number: asked.number, why }
            }
        }
    }

    /// Their session is over, and so are they.
    pub(super) async fn end(self: Box<Self>, shared: Arc<Shared>, code: CloseCode) {
        join_all(self.open.iter().map(|lane| shared.forget_lane(lane.peer, code))).await;
    }

    /// Has the plane answer a lane's key, or gives a lane that is there its next pre-shared key.
    fn open(
        &mut self,
        shared: &Shared,
        member: &Arc<Member>,
        own: PeerId,
        asked: &LaneKeys,
    ) -> Result<control::Lane, String> {
        let LaneKeys { number, public_key, kem_key } = asked;
        let (number, public_key) = (*number, *public_key);
        if !(1..LANES_AT_MOST).contains(&number) {
            return Err(format!("a connector has {LANES_AT_MOST} lanes at most"));
        }
        let id = member.connector().ok_or("not a connector")?;
        // The connector knows this one of our keys for sure.
        let stats = shared.plane.peer_stats(own).ok_or("the session is over")?;
        let relay_key = shared.statics.key(stats.static_index).ok_or("the session's key is over")?;
        let kem_key = STANDARD.decode(kem_key).map_err(|_| "the encapsulation key is not base64")?;
        let (ciphertext, psk) =
            kem::encapsulate(&kem_key, &relay_key, &public_key).map_err(|error| error.to_string())?;
        let inner_address = lane_inner(id, &public_key);
        let known = self.open.iter_mut().find(|lane| lane.number == number);
        let psk_epoch = match known {
            Some(lane) => {
                let epoch = lane.psks.last().map_or(FIRST_EPOCH, |newest| newest.epoch.wrapping_add(1));
                lane.psks.push(PskEpoch { epoch, psk });
                lane.psks.drain(..lane.psks.len().saturating_sub(2));
                let set = shared.plane.set_key_psks(lane.peer, &public_key, None, lane.psks.clone());
                set.map_err(|error| error.to_string())?;
                epoch
            }
            None => {
                let psks = vec![PskEpoch { epoch: FIRST_EPOCH, psk }];
                let config = PeerConfig {
                    public_key,
                    static_index: stats.static_index,
                    psks: psks.clone(),
                    allowed_ips: vec![IpNet::from(IpAddr::from(inner_address))],
                    path: None,
                    persistent_keepalive: None,
                };
                let mut table = shared.table();
                if table.revoked.contains_key(&public_key) {
                    return Err("the key was revoked".to_owned());
                }
                let others: Vec<PeerId> = self.open.iter().map(|lane| lane.peer).chain([own]).collect();
                let peer = shared.plane.add_peer_apart(config, &others).map_err(|error| error.to_string())?;
                table.lanes.insert(peer, Lane { member: Arc::clone(member), number });
                self.open.push(Open { number, peer, public_key, psks });
                FIRST_EPOCH
            }
        };
        let ciphertext = STANDARD.encode(ciphertext);
        Ok(control::Lane { number, public_key, inner_address, ciphertext, psk_epoch, relay_key })
    }
}

impl Shared {
    async fn forget_lane(&self, peer: PeerId, code: CloseCode) {
        self.table().lanes.remove(&peer);
        self.plane.remove_peer(peer, code).await;
    }

    /// The connections of a live connector, its session's own first, for operators.
    pub(super) fn describe_lanes(&self, member: &Member) -> Vec<LiveLane> {
        let tunnels = member.tunnels().map(super::tunnels::Tunnels::all).unwrap_or_default();
        let lanes = tunnels.iter().map(|tunnel| {
            let stats = self.plane.peer_stats(tunnel.connection.peer());
            LiveLane {
                number: tunnel.number,
                shard: tunnel.shard(),
                in_flight: tunnel.in_flight(),
                requests: tunnel.requests(),
                rx_bytes: stats.map_or(0, |stats| stats.rx_bytes),
                tx_bytes: stats.map_or(0, |stats| stats.tx_bytes),
            }
        });
        lanes.collect()
    }
}

/// Has a lane's connection carry requests until it ends.
pub(super) async fn hold(shared: Arc<Shared>, connection: Connection, lane: Lane) {
    let Some(tunnels) = lane.member.tunnels() else { return };
    let tunnel = Tunnel::new(lane.number, connection, Instant::now());
    tunnels.add(&tunnel);
    shared.live.fetch_add(1, Ordering::Relaxed);
    let held = Held { shared: &shared, member: &lane.member, tunnel: &tunnel };
    // INVARIANT: a lane of a session that is over carries nothing, even before the plane has forgotten it.
    if !lane.member.is_open() {
        return tunnel.connection.close(CloseCode::Shutdown);
    }
    info!(connector = %lane.member.who, lane = lane.number, shard = tunnel.shard(), "lane is up");
    let why = match Box::pin(held.converse()).await {
        Ok(why) => why,
        Err(error) => {
            tunnel.connection.close(CloseCode::Protocol);
            error.to_string()
        }
    };
    info!(connector = %lane.member.who, lane = lane.number, why, "lane is gone");
}

/// A lane's connection while it is there.
struct Held<'a> {
    shared: &'a Shared,
    member: &'a Arc<Member>,
    tunnel: &'a Arc<Tunnel>,
}

impl Held<'_> {
    /// Pings and answers pings, which is all that is said on a lane; why it is over.
    async fn converse(&self) -> Result<String, FrameError> {
        let connection = &self.tunnel.connection;
        let Ok(stream) = timeout(ANNOUNCED_WITHIN, connection.accept()).await else {
            connection.close(CloseCode::Silent);
            return Ok("no control stream in time".to_owned());
        };
        let Ok(stream) = stream else { return Ok(connection.closed().await.cause) };
        let mut frames = Frames::new(stream);
        let mut liveness = Liveness::new(Instant::now());
        loop {
            liveness.exchanged(self.tunnel.exchanged());
            if let Some(stats) = self.shared.plane.peer_stats(connection.peer()) {
                liveness.wire(stats.rx_bytes, Instant::now());
            }
            let Some(due) = self.alive(&mut liveness, &mut frames).await? else {
                connection.close(CloseCode::Silent);
                return Ok("it does not answer".to_owned());
            };
            tokio::select! {
                message = frames.next() => {
                    let message = message?;
                    let pong = if let ToRelay::Pong { id } = message { Some(id) } else { None };
                    liveness.heard(pong, Instant::now());
                    match message {
                        ToRelay::Pong { .. } | ToRelay::Unsupported { .. } => {}
                        ToRelay::Ping { id } => frames.send(&ToConnector::Pong { id }).await?,
                        _ => frames.send(&ToConnector::Unsupported { what: "on a lane".to_owned() }).await?,
                    }
                }
                closed = connection.closed() => return Ok(closed.cause),
                () = self.tunnel.woken() => liveness.probe(),
                () = sleep_until(due.into()) => {}
            }
        }
    }

    /// Sends what liveness asks for; until when nothing is due, or none when the lane is dead.
    async fn alive(&self, liveness: &mut Liveness, frames: &mut Frames<Stream>) -> Result<Option<Instant>, FrameError> {
        let tunnels = self.shared.live.load(Ordering::Relaxed);
        loop {
            match liveness.step(tunnels, Instant::now()) {
                Step::WaitUntil(until) => return Ok(Some(until)),
                Step::Dead => return Ok(None),
                Step::Ping(id) => frames.send(&ToConnector::Ping { id }).await?,
            }
        }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.shared.live.fetch_sub(1, Ordering::Relaxed);
        if let Some(tunnels) = self.member.tunnels() {
            tunnels.remove(self.tunnel);
        }
    }
}
