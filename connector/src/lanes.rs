//! Further lanes to a relay: each has a thread, a WireGuard key, sockets and a connection of its own, and carries requests
//! beside the session that opened it.
//!
//! Nothing is said on a lane but whether it is there. Must never outlive its session, or be waited for by it.

use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use culvert_model::close::CloseCode;
use culvert_model::control::{LANES_AT_MOST, ToConnector, ToRelay};
use culvert_model::key::PublicKey;
use culvert_ops::drain::InFlight;
use culvert_ops::runtime::now;
use culvert_ops::task::{Task, spawn};
use culvert_plane::{Connection, Event, PskEpoch};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::board::Board;
use crate::control::{ControlError, Incoming, Outgoing};
use crate::gate::Gate;
use crate::identity::Relay;
use crate::liveness::{Check, Liveness};
use crate::reach::{Speaker, Way};

/// So long a lane's handshake and connection may take, then they begin anew.
const DIAL_PATIENCE: Duration = Duration::from_secs(5);
/// The pause before another try, doubled each time.
const PAUSE: Duration = Duration::from_millis(200);
/// The longest.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// A connection that lived so long was a good one: the next is tried for at once.
const GOOD: Duration = Duration::from_secs(10);
/// A word on the lane must be taken by the relay within this time.
const SEND_PATIENCE: Duration = Duration::from_secs(5);
/// How long the last word may take.
const LAST_WORD: Duration = Duration::from_millis(200);

/// As many lanes as are worth it where nobody says: one, and more where there are processors enough that the origins beside
/// have theirs.
pub fn default_lanes() -> u8 {
    // It heeds the affinity mask and the quota of the control group.
    lanes_for(thread::available_parallelism().map_or(1, |count| count.get()))
}

fn lanes_for(processors: usize) -> u8 {
    u8::try_from((processors / 4).clamp(1, MOST_BY_DEFAULT)).unwrap_or(1)
}

/// More would cost relays that many connectors share.
const MOST_BY_DEFAULT: usize = 4;

/// The most that anybody may want.
pub const MOST: u8 = LANES_AT_MOST;

/// What a lane is made of.
pub struct Plan {
    /// Which lane: 1 and up.
    pub number: u8,
    /// Who it speaks as.
    pub speaker: Speaker,
    /// The relay, under the key that the lane was opened with.
    pub relay: Relay,
    /// What takes its requests.
    pub gate: Gate,
    /// Where it is shown.
    pub board: Board,
}

/// What a session tells its lanes.
#[derive(Debug)]
pub enum Word {
    /// The relay is there, or this host's address changed.
    At(SocketAddr),
    /// Other pre-shared keys, newest last.
    Psks(Vec<PskEpoch>),
    /// The relay has another key.
    RelayKey(PublicKey, std::time::SystemTime),
    /// The relay knows of the drain: what it sent over the lane before that has arrived when the lane's ping is answered.
    /// Held until then.
    Settle(InFlight),
}

/// A lane, as its session holds it. It ends when this is dropped.
#[derive(Debug)]
pub struct Lane {
    words: mpsc::UnboundedSender<Word>,
    task: Task<()>,
}

impl Lane {
    /// Starts one on a thread of its own.
    pub fn start(thread: &Handle, plan: Plan, remote: Option<SocketAddr>) -> Self {
        let (words, heard) = mpsc::unbounded_channel();
        let _there = thread.enter();
        let task = spawn("connector.lane", run(plan, remote, heard));
        Self { words, task }
    }

    /// Tells it something.
    pub fn tell(&self, word: Word) {
        // One that is ending needs no word.
        let _ = self.words.send(word);
    }

    /// Whether it ended by itself: no socket could be had, or its sockets are gone.
    pub fn is_over(&self) -> bool {
        self.task.is_finished()
    }

    /// Ends it: its connection is closed, and what still runs over it is cut off.
    pub async fn end(self) {
        let Self { words, task } = self;
        drop(words);
        let _ = timeout(LAST_WORD, task).await;
    }
}

/// Stays connected until nobody holds the other end of `heard`.
async fn run(plan: Plan, remote: Option<SocketAddr>, mut heard: mpsc::UnboundedReceiver<Word>) {
    let Plan { number, speaker, relay, gate, board } = plan;
    let mut way = match Way::open(&speaker, &relay) {
        Ok(way) => way,
        Err(why) => return tracing::warn!(relay = relay.name, lane = number, why, "a lane cannot be opened"),
    };
    let mut strand = Strand { number, psks: speaker.psks, remote };
    let mut pause = PAUSE;
    while let Some(dialled) = strand.dial(&mut way, &mut heard).await {
        if let Some(connection) = dialled {
            let started = Instant::now();
            tracing::info!(relay = way.name(), lane = number, "lane is up");
            board.set_lane(way.name(), number, true);
            let served = strand.serve(&mut way, &connection, &gate, &mut heard).await;
            board.set_lane(way.name(), number, false);
            let Served::Lost(why) = served else { break };
            tracing::info!(relay = way.name(), lane = number, why, "lane is lost");
            pause = if started.elapsed() >= GOOD { PAUSE } else { pause };
        }
        let rested = strand.rest(&mut way, pause, &mut heard).await;
        if !rested {
            break;
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    way.plane.shutdown(CloseCode::Shutdown).await;
}

/// What a lane knows.
struct Strand {
    number: u8,
    psks: Vec<PskEpoch>,
    /// Where the relay is.
    remote: Option<SocketAddr>,
}

/// How a connection ended.
enum Served {
    /// It is to be had again.
    Lost(String),
    /// The session wants no lane any more.
    Ended,
}

impl Strand {
    /// Tries once for a connection; none when the session wants no lane any more.
    async fn dial(&mut self, way: &mut Way, heard: &mut mpsc::UnboundedReceiver<Word>) -> Option<Option<Connection>> {
        let (plane, peer) = (way.plane.clone(), way.peer);
        let dial = timeout(DIAL_PATIENCE, async move { plane.dial(peer).await });
        tokio::pin!(dial);
        way.plane.connect(way.peer, self.remote);
        loop {
            tokio::select! {
                dialled = &mut dial => return Some(match dialled {
                    Ok(Ok(connection)) => Some(connection),
                    Ok(Err(error)) => {
                        tracing::debug!(relay = way.name(), lane = self.number, %error, "no connection");
                        None
                    }
                    Err(_) => None,
                }),
                word = heard.recv() => self.heard(way, word?),
                event = way.events.recv() => event.map(drop)?,
            }
        }
    }

    /// Waits before another try. False when the session wants no lane any more.
    async fn rest(&mut self, way: &mut Way, pause: Duration, heard: &mut mpsc::UnboundedReceiver<Word>) -> bool {
        let until = sleep(pause);
        tokio::pin!(until);
        loop {
            tokio::select! {
                () = &mut until => return true,
                word = heard.recv() => match word {
                    Some(word) => self.heard(way, word),
                    None => return false,
                },
            }
        }
    }

    /// Serves one connection.
    async fn serve(
        &mut self,
        way: &mut Way,
        connection: &Connection,
        gate: &Gate,
        heard: &mut mpsc::UnboundedReceiver<Word>,
    ) -> Served {
        let gate = gate.serve(connection);
        tokio::pin!(gate);
        let mut liveness = Liveness::new(now());
        let mut pings = 0_u64;
        let mut settling: Option<(u64, InFlight)> = None;
        let stream = tokio::select! {
            closed = &mut gate => return Served::Lost(closed.cause),
            stream = timeout(SEND_PATIENCE, connection.open()) => stream,
        };
        let Ok(Ok(stream)) = stream else {
            connection.close(CloseCode::Silent);
            return Served::Lost("no control stream can be opened".to_owned());
        };
        let (read, write) = tokio::io::split(stream);
        let (mut incoming, mut outgoing) = (Incoming::new(read), Outgoing::new(write));
        // The relay sees a stream when something is on it.
        let mut ping = true;
        loop {
            let due = match liveness.poll(now()) {
                Check::Until(due) => due,
                Check::Ping => {
                    ping = true;
                    now()
                }
                Check::Knock => {
                    way.plane.connect(way.peer, way.remote().or(self.remote));
                    ping = true;
                    now()
                }
                Check::Dead => {
                    connection.close(CloseCode::Silent);
                    return Served::Lost("the relay was silent for 5 s".to_owned());
                }
            };
            if std::mem::take(&mut ping) {
                pings += 1;
                if let Err(error) = send(&mut outgoing, &ToRelay::Ping { id: pings }).await {
                    return broken(connection, &error);
                }
                continue;
            }
            tokio::select! {
                closed = &mut gate => return Served::Lost(closed.cause),
                word = heard.recv() => match word {
                    Some(Word::Settle(hold)) => {
                        settling = Some((pings + 1, hold));
                        ping = true;
                    }
                    Some(word) => {
                        if matches!(word, Word::At(_)) {
                            liveness.handle_doubt(now());
                        }
                        self.heard(way, word);
                    }
                    None => return Served::Ended,
                },
                message = incoming.next::<ToConnector>() => {
                    let message = match message {
                        Ok(message) => message,
                        Err(error) => return broken(connection, &error),
                    };
                    liveness.handle_heard(now());
                    match message {
                        ToConnector::Ping { id } => {
                            liveness.handle_ping(now());
                            if let Err(error) = send(&mut outgoing, &ToRelay::Pong { id }).await {
                                return broken(connection, &error);
                            }
                        }
                        ToConnector::Pong { id } => {
                            settling.take_if(|(asked, _)| *asked == id);
                        }
                        _ => {}
                    }
                }
                event = way.events.recv() => match event {
                    Some(Event::Resumed { .. }) => liveness.handle_doubt(now()),
                    Some(_) => {}
                    None => return Served::Lost("the sockets are gone".to_owned()),
                },
                () = sleep_until(due.into()) => {}
            }
        }
    }

    /// Does what the session says.
    fn heard(&mut self, way: &mut Way, word: Word) {
        let (relay, lane) = (way.name().to_owned(), self.number);
        match word {
            Word::At(remote) => self.remote = Some(remote),
            Word::Psks(psks) => {
                self.psks.clone_from(&psks);
                if let Err(error) = way.set_psks(psks) {
                    tracing::warn!(relay, lane, %error, "a lane's pre-shared key cannot be used");
                }
            }
            Word::RelayKey(newest, until) => {
                if newest == way.relay_key {
                    return;
                }
                if let Err(error) = way.take_relay_key(newest, until, self.psks.clone()) {
                    tracing::warn!(relay, lane, %error, "the relay's new key cannot be used by a lane");
                }
            }
            // Nothing is on its way here.
            Word::Settle(_) => return,
        }
        way.plane.connect(way.peer, self.remote.or_else(|| way.remote()));
    }
}

async fn send<W>(outgoing: &mut Outgoing<W>, message: &ToRelay) -> Result<(), ControlError>
where
    W: tokio::io::AsyncWrite + Unpin,
{
    match timeout(SEND_PATIENCE, outgoing.send(message)).await {
        Ok(sent) => sent,
        Err(_) => Err(ControlError::Io(std::io::ErrorKind::TimedOut.into())),
    }
}

fn broken(connection: &Connection, error: &ControlError) -> Served {
    connection.close(CloseCode::Protocol);
    Served::Lost(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_machine_opens_no_lane_and_a_large_one_a_few() {
        for (processors, lanes) in [(1, 1), (2, 1), (4, 1), (7, 1), (8, 2), (16, 4), (64, 4)] {
            assert_eq!(lanes_for(processors), lanes, "{processors}");
        }
    }
}
