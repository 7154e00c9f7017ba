//! A listener: takes connections until the drain closes it, then waits for those that are left.
//!
//! Must never let a connection that waits or stalls cost another one anything.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use culvert_ops::drain::InFlight;
use futures_util::FutureExt as _;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tracing::{debug, warn};

use super::connection::{Accepted, connection};
use super::io::{Bound, Fate, Socket};
use super::moving::{Serving, wherever_it_asks};
use super::seats::Seated;
use super::tcp;
use super::{Front, Leads};

/// In a drain it takes this long until it is known what runs for long.
const SETTLED_AFTER: Duration = Duration::from_millis(50);
/// After an error of `accept` that is not the connection's own (out of descriptors), before the next.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

impl Front {
    /// Accepts until the drain closes listeners, then waits for the connections that are left.
    ///
    /// `inherited` says that the service manager owns the listener.
    pub(crate) async fn listen(self: Arc<Self>, listener: Bound, leads: Leads, inherited: bool) {
        let exchanges = Arc::clone(&self.exchanges);
        let mut tasks = JoinSet::new();
        let closing = async {
            exchanges.drain.closing().await;
            if inherited {
                // The connections have to see the drain too before it is known which of them run for long.
                sleep(SETTLED_AFTER).await;
                exchanges.long.none().await;
            }
        };
        tokio::pin!(closing);
        loop {
            tokio::select! {
                biased;
                () = &mut closing => break,
                Some(ended) = tasks.join_next() => note_panic(ended),
                accepted = self.accept(&listener) => match accepted {
                    Ok(accepted) => self.spawn(&mut tasks, accepted, &leads),
                    Err(error) if is_of_connection(&error) => debug!(%error, "connection ended before it was accepted"),
                    Err(error) => {
                        warn!(%error, "cannot accept connections");
                        sleep(ACCEPT_AGAIN).await;
                    }
                },
            }
        }
        // Whoever is in the backlog of a socket of our own came before it closed; that of the service manager waits.
        while !inherited && let Some(Ok(accepted)) = self.accept(&listener).now_or_never() {
            self.spawn(&mut tasks, accepted, &leads);
        }
        if let Bound::Unix(_, Some(path)) = &listener {
            let _ = std::fs::remove_file(path);
        }
        drop(listener);
        while let Some(ended) = tasks.join_next().await {
            note_panic(ended);
        }
    }

    async fn accept(&self, listener: &Bound) -> io::Result<Accepted> {
        // Past the bound callers wait in the backlog.
        let permit = Arc::clone(&self.connections).acquire_owned().await.map_err(io::Error::other)?;
        match listener {
            Bound::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                let _ = stream.set_nodelay(true);
                Ok(Accepted { socket: Socket::Tcp(stream), source: Some(address), permit })
            }
            Bound::Unix(listener, _) => {
                let (stream, _) = listener.accept().await?;
                Ok(Accepted { socket: Socket::Unix(stream), source: None, permit })
            }
        }
    }

    fn spawn(self: &Arc<Self>, tasks: &mut JoinSet<()>, accepted: Accepted, leads: &Leads) {
        let front = Arc::clone(self);
        // A connection counts, not a request: an idle one may have a request on its way.
        let open: InFlight = front.exchanges.drain.enter(Instant::now());
        let (seated, fate) = (front.seats.take(), Arc::<Fate>::default());
        let (runtime, several) = (seated.runtime(), front.seats.are_several());
        match leads {
            Leads::Http(door) if !several => {
                tasks.spawn(seat(seated, connection(front, accepted, Arc::clone(door), open, fate)));
            }
            Leads::Tcp(door) if !several => {
                tasks.spawn(seat(seated, tcp::connection(front, accepted, Arc::clone(door), open, fate)));
            }
            Leads::Http(door) => {
                let (door, own) = (Arc::clone(door), Arc::clone(&fate));
                let serve = |accepted| Box::pin(connection(front, accepted, door, open, own)) as Serving;
                tasks.spawn_on(on_its_thread(accepted, fate, seated, serve), &runtime);
            }
            Leads::Tcp(door) => {
                let (door, own) = (Arc::clone(door), Arc::clone(&fate));
                let serve = |accepted| Box::pin(tcp::connection(front, accepted, door, open, own)) as Serving;
                tasks.spawn_on(on_its_thread(accepted, fate, seated, serve), &runtime);
            }
        }
    }
}

/// The only thread there is.
async fn seat(seated: Seated, serving: impl Future<Output = ()>) {
    let _seated = seated;
    serving.await;
}

/// Serves a connection on the thread that it got a place on, and wherever it moves.
async fn on_its_thread(
    accepted: Accepted,
    fate: Arc<Fate>,
    seated: Seated,
    serve: impl FnOnce(Accepted) -> Serving + Send,
) {
    match accepted.settle() {
        Ok(accepted) => wherever_it_asks(serve(accepted), fate, seated).await,
        Err(error) => debug!(%error, "a connection was lost on its way to its thread"),
    }
}

fn is_of_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted)
}

fn note_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "connection's task panicked");
    }
}
