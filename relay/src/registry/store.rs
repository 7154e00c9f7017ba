//! The registry over an engine, on a thread of its own: an fsync, or a database far away, never stalls a packet.
//!
//! Must never hold a rule: what a method does stands in the function that it names.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::SystemTime;

use culvert_model::id::{ConnectorId, GatewayId, StockPeerId, TokenId, TunnelId};
use culvert_model::key::PublicKey;
use culvert_model::name::{Grant, ServiceName};
use tokio::sync::{mpsc, oneshot, watch};

use super::failure::Failure;
use super::order::{Ask, Order, Teller};
use super::rows::{
    AuditRow, ConnectorRow, GatewayRow, ManagedRow, PeerRow, PeerSealRow, PeerServiceRow, RelayRow, SecretRow,
    Snapshot, TokenRow, TokenSealRow, Tunnel,
};
use super::sql::Transaction;
use super::{
    Actor, Candidate, Enrolment, Forgotten, FreshPsk, Future, GatewayChange, Introduction, Note, PeerKeys, Registry,
    RegistryError, Reserved, gateway, grants, keys, managed, peers, read, relays, write,
};

/// Transactions that may wait for the thread; past it their callers wait.
const WAITING: usize = 256;
/// Writes that are made durable together, where many wait: an fsync takes as long as dozens of them.
const TOGETHER: usize = 64;

/// A database that runs one transaction after the other.
pub(super) trait Engine: 'static {
    /// As status shows it.
    const NAME: &'static str;
    /// Whether the database is somewhere else: what was loaded last is kept then.
    const MAY_BE_AWAY: bool;

    /// Runs `work` in a transaction: all of it is durable, or nothing of it happened.
    ///
    /// # Errors
    /// What `work` said, or why the transaction could not begin or end.
    fn transact(&mut self, kind: Kind, work: Work<'_>) -> Result<(), Failure>;

    /// Runs one order in a transaction of its own, and answers it.
    fn carry_out(&mut self, mut order: Box<dyn Order>, place: &str) {
        let ended = self.transact(order.kind(), Box::new(|transaction| order.run(transaction)));
        order.answer(ended.map_err(|failure| failure.into_error(place)));
    }

    /// Runs several orders that write, one after the other, and answers each. All of one is durable or nothing of it
    /// happened, whatever came of the others.
    fn carry_out_all(&mut self, orders: Vec<Box<dyn Order>>, place: &str) {
        orders.into_iter().for_each(|order| self.carry_out(order, place));
    }

    /// The next job, as long as there may be one; meanwhile the engine may see to its connection.
    fn next(&mut self, jobs: &mut mpsc::Receiver<Job<Self>>) -> Option<Job<Self>>
    where
        Self: Sized,
    {
        jobs.blocking_recv()
    }
}

/// Whether a transaction may write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write,
}

/// The inside of a transaction.
pub(super) type Work<'a> = Box<dyn FnOnce(&dyn Transaction) -> Result<(), Failure> + 'a>;

/// What is asked of the thread.
pub(super) enum Job<E> {
    /// A transaction.
    Order(Box<dyn Order>),
    /// Something that only this engine can do.
    #[cfg_attr(not(test), expect(dead_code, reason = "tests reach into an engine"))]
    Other(Box<dyn FnOnce(&mut E) + Send>),
}

/// What the thread tells of itself.
#[derive(Clone)]
pub(super) struct Status {
    degraded: Arc<Mutex<Option<String>>>,
    changes: watch::Sender<u64>,
}

/// A registry over an engine.
pub(super) struct Store<E> {
    jobs: Option<mpsc::Sender<Job<E>>>,
    thread: Option<JoinHandle<()>>,
    place: Arc<str>,
    status: Status,
    known: Mutex<Option<Arc<Snapshot>>>,
}

impl Status {
    fn new() -> Self {
        Self { degraded: Arc::default(), changes: watch::Sender::new(0) }
    }

    /// Says that somebody else changed the registry.
    pub(super) fn changed(&self) {
        self.changes.send_modify(|changes| *changes += 1);
    }

    /// Says how the database is: none = well.
    pub(super) fn set(&self, degraded: Option<String>) {
        *self.degraded.lock().unwrap_or_else(PoisonError::into_inner) = degraded;
    }
}

impl<E: Engine> Store<E> {
    /// Starts the thread, and has it open the database. `place` is what errors name, and holds no secret.
    ///
    /// # Errors
    /// What `open` said; [`RegistryError::Away`]: no thread.
    pub(super) fn start(
        place: Arc<str>,
        open: impl FnOnce(&Status) -> Result<E, Failure> + Send + 'static,
    ) -> Result<Self, RegistryError> {
        let (jobs, mut queue) = mpsc::channel::<Job<E>>(WAITING);
        let (tell, told) = std::sync::mpsc::channel();
        let status = Status::new();
        let (of_thread, of_store) = (status.clone(), Arc::clone(&place));
        let work = move || {
            let opened = open(&of_thread);
            let mut engine = match opened {
                Ok(engine) => engine,
                Err(failure) => {
                    let _ = tell.send(Err(failure));
                    return;
                }
            };
            let _ = tell.send(Ok(()));
            serve(&mut engine, &mut queue, &of_store);
        };
        let away = |detail: String| RegistryError::Away { path: place.to_string(), detail };
        let thread = std::thread::Builder::new().name("relay.registry".to_owned()).spawn(work);
        let thread = thread.map_err(|error| away(error.to_string()))?;
        match told.recv() {
            Ok(Ok(())) => Ok(Self { jobs: Some(jobs), thread: Some(thread), place, status, known: Mutex::default() }),
            Ok(Err(failure)) => Err(failure.into_error(&place)),
            Err(_) => Err(away("its thread has ended".to_owned())),
        }
    }

    /// Has the thread do what only its engine can.
    #[cfg(test)]
    pub(super) fn submit<T: Send + 'static>(
        &self,
        kind: Kind,
        what: impl FnOnce(&mut E) -> Result<T, Failure> + Send + 'static,
    ) -> Future<'_, T> {
        let (teller, answered) = self.teller(kind);
        let place = Arc::clone(&self.place);
        let other = move |engine: &mut E| teller.tell(what(engine).map_err(|failure| failure.into_error(&place)));
        self.send(Job::Other(Box::new(other)), answered)
    }

    fn read<T: Send + 'static>(
        &self,
        what: impl FnOnce(&dyn Transaction) -> Result<T, Failure> + Send + 'static,
    ) -> Future<'_, T> {
        self.run(Kind::Read, what)
    }

    fn write<T: Send + 'static>(
        &self,
        what: impl FnOnce(&dyn Transaction) -> Result<T, Failure> + Send + 'static,
    ) -> Future<'_, T> {
        self.run(Kind::Write, what)
    }

    pub(super) fn run<T: Send + 'static>(
        &self,
        kind: Kind,
        what: impl FnOnce(&dyn Transaction) -> Result<T, Failure> + Send + 'static,
    ) -> Future<'_, T> {
        let (teller, answered) = self.teller(kind);
        let ask = Ask { what: Some(what), value: None, teller, place: Arc::clone(&self.place) };
        self.send(Job::Order(Box::new(ask)), answered)
    }

    fn teller<T>(&self, kind: Kind) -> (Teller<T>, oneshot::Receiver<Result<T, RegistryError>>) {
        let (answer, answered) = oneshot::channel();
        (Teller { kind, status: self.status.clone(), answer }, answered)
    }

    fn send<T: Send + 'static>(
        &self,
        job: Job<E>,
        answered: oneshot::Receiver<Result<T, RegistryError>>,
    ) -> Future<'_, T> {
        Box::pin(async move {
            let stopped = || RegistryError::Away {
                path: self.place.to_string(),
                detail: "its thread has ended: restart the relay".to_owned(),
            };
            self.jobs.as_ref().ok_or_else(stopped)?.send(job).await.map_err(|_| stopped())?;
            answered.await.map_err(|_| stopped())?
        })
    }
}

/// Works for as long as somebody may ask.
fn serve<E: Engine>(engine: &mut E, queue: &mut mpsc::Receiver<Job<E>>, place: &str) {
    let mut left = None;
    while let Some(job) = left.take().or_else(|| engine.next(queue)) {
        match job {
            Job::Other(other) => other(engine),
            Job::Order(order) if order.kind() == Kind::Read => engine.carry_out(order, place),
            Job::Order(order) => {
                let mut orders = vec![order];
                while orders.len() < TOGETHER {
                    match queue.try_recv() {
                        Ok(Job::Order(order)) if order.kind() == Kind::Write => orders.push(order),
                        other => {
                            left = other.ok();
                            break;
                        }
                    }
                }
                engine.carry_out_all(orders, place);
            }
        }
    }
}

impl<E> Drop for Store<E> {
    /// Waits for what was asked, and for the engine to close its database.
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl<E: Engine> Registry for Store<E> {
    fn load(&self) -> Future<'_, Snapshot> {
        Box::pin(async move {
            let snapshot = self.read(read::snapshot).await?;
            if E::MAY_BE_AWAY {
                *self.known.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(snapshot.clone()));
            }
            Ok(snapshot)
        })
    }

    fn create_tunnel(&self, tunnel: Tunnel, token: TokenRow, by: Actor) -> Future<'_, ()> {
        self.write(move |db| write::create_tunnel(db, &tunnel, &token, &by))
    }

    fn set_grants(
        &self,
        tunnel: TunnelId,
        add: Vec<Grant>,
        remove: Vec<Grant>,
        by: Actor,
        now: SystemTime,
    ) -> Future<'_, Tunnel> {
        self.write(move |db| write::set_grants(db, &tunnel, &add, &remove, &by, now))
    }

    fn delete_tunnel(&self, tunnel: TunnelId, by: Actor, now: SystemTime) -> Future<'_, Vec<ConnectorId>> {
        self.write(move |db| write::delete_tunnel(db, &tunnel, &by, now))
    }

    fn create_token(&self, token: TokenRow, by: Actor) -> Future<'_, ()> {
        self.write(move |db| write::create_token(db, &token, &by))
    }

    fn revoke_token(&self, token: TokenId, by: Actor, now: SystemTime) -> Future<'_, ()> {
        self.write(move |db| write::revoke_token(db, &token, &by, now))
    }

    fn enrol(&self, candidate: Candidate) -> Future<'_, Enrolment> {
        self.write(move |db| write::enrol(db, &candidate))
    }

    fn revoke_connector(&self, connector: ConnectorId, by: Actor, now: SystemTime) -> Future<'_, ()> {
        self.write(move |db| write::revoke_connector(db, &connector, &by, now))
    }

    fn set_drained(&self, connector: ConnectorId, drained: bool, by: Actor, now: SystemTime) -> Future<'_, ()> {
        self.write(move |db| write::set_drained(db, &connector, drained, &by, now))
    }

    fn announce(&self, tunnel: TunnelId, names: Vec<ServiceName>, now: SystemTime) -> Future<'_, grants::Decision> {
        self.write(move |db| write::announce(db, &tunnel, &names, now))
    }

    fn set_managed(&self, service: ManagedRow, by: Actor) -> Future<'_, ()> {
        self.write(move |db| managed::set(db, &service, &by))
    }

    fn add_peer(&self, peer: PeerRow, reserved: Reserved, by: Actor) -> Future<'_, PeerRow> {
        self.write(move |db| peers::add(db, &peer, &reserved, &by))
    }

    fn set_peer_keys(
        &self,
        peer: StockPeerId,
        keys: PeerKeys,
        reserved: Reserved,
        by: Actor,
        now: SystemTime,
    ) -> Future<'_, PeerRow> {
        self.write(move |db| peers::set_keys(db, &peer, &keys, &reserved, &by, now))
    }

    fn delete_peer(&self, peer: StockPeerId, by: Actor, now: SystemTime) -> Future<'_, Vec<ServiceName>> {
        self.write(move |db| peers::delete(db, &peer, &by, now))
    }

    fn set_peer_service(&self, service: PeerServiceRow, by: Actor) -> Future<'_, ()> {
        self.write(move |db| peers::set_service(db, &service, &by))
    }

    fn seal_peers(&self, seals: Vec<PeerSealRow>) -> Future<'_, ()> {
        self.write(move |db| peers::seal(db, &seals))
    }

    fn delete_service(&self, name: ServiceName, by: Actor, now: SystemTime) -> Future<'_, Vec<TunnelId>> {
        self.write(move |db| managed::delete_service(db, &name, &by, now))
    }

    fn create_gateway(&self, gateway: GatewayRow, by: Actor) -> Future<'_, ()> {
        self.write(move |db| gateway::create(db, &gateway, &by))
    }

    fn set_gateway(
        &self,
        gateway: GatewayId,
        change: GatewayChange,
        by: Actor,
        now: SystemTime,
    ) -> Future<'_, GatewayRow> {
        self.write(move |db| gateway::set(db, &gateway, change, &by, now))
    }

    fn rotate_gateway(
        &self,
        gateway: GatewayId,
        secret: SecretRow,
        until: SystemTime,
        by: Actor,
    ) -> Future<'_, GatewayRow> {
        self.write(move |db| gateway::rotate(db, &gateway, &secret, until, &by))
    }

    fn revoke_gateway(&self, gateway: GatewayId, by: Actor, now: SystemTime) -> Future<'_, ()> {
        self.write(move |db| gateway::revoke(db, &gateway, &by, now))
    }

    fn note_relay(&self, relay: RelayRow) -> Future<'_, ()> {
        self.write(move |db| relays::note(db, &relay))
    }

    fn seal_tokens(&self, seals: Vec<TokenSealRow>) -> Future<'_, ()> {
        self.write(move |db| relays::seal_tokens(db, &seals))
    }

    fn introduce(&self, introduction: Introduction) -> Future<'_, u32> {
        self.write(move |db| relays::introduce(db, &introduction))
    }

    fn renew(&self, fresh: FreshPsk) -> Future<'_, (u32, ConnectorRow)> {
        self.write(move |db| keys::renew(db, &fresh))
    }

    fn rekey(&self, fresh: FreshPsk) -> Future<'_, (u32, ConnectorRow)> {
        self.write(move |db| keys::rekey(db, &fresh))
    }

    fn retire_key(
        &self,
        connector: ConnectorId,
        stays: PublicKey,
        now: SystemTime,
    ) -> Future<'_, Option<ConnectorRow>> {
        self.write(move |db| keys::retire(db, &connector, &stays, now))
    }

    fn note(&self, notes: Vec<Note>) -> Future<'_, ()> {
        self.write(move |db| write::note(db, &notes))
    }

    fn forget(&self, live: Vec<ConnectorId>, now: SystemTime) -> Future<'_, Forgotten> {
        self.write(move |db| write::forget(db, &live, now))
    }

    fn audit(&self, row: AuditRow) -> Future<'_, ()> {
        self.write(move |db| write::audit_row(db, &row))
    }

    fn restored(&self, relay: String, row: AuditRow) -> Future<'_, ()> {
        self.write(move |db| write::restored(db, &relay, &row))
    }

    fn audit_since(&self, since: SystemTime) -> Future<'_, Vec<AuditRow>> {
        self.read(move |db| read::audit_since(db, since))
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.status.changes.subscribe()
    }

    fn known(&self) -> Option<Arc<Snapshot>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn place(&self) -> (&'static str, &str) {
        (E::NAME, &self.place)
    }

    fn degraded(&self) -> Option<String> {
        self.status.degraded.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
