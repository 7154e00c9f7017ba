//! The registry in a PostgreSQL database that several relays may share.
//!
//! One writer at a time, as in SQLite: a write locks the one row of `culvert_registry` first, so that every rule holds
//! over all relays, and raises the number in it, which tells the others that something changed (NOTIFY, and a look at
//! the number twice a second). Must never wait for a database that is away: what is asked then is refused at once.

mod link;
mod schema;
mod tls;
mod url;
mod value;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_postgres::{Client, SimpleQueryMessage, Statement};
use tracing::{info, warn};

use super::RegistryError;
use super::failure::Failure;
use super::schema::VERSION;
use super::sql::{Row, Transaction, Value};
use super::store::{Engine, Job, Kind, Status, Store, Work};
use link::Link;
pub(super) use url::{BadTarget, Target};

/// How often the number of changes is looked at, for the case that a notification went astray.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How soon a database that is away is tried again.
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(500);
/// How long a transaction waits for a connection that is being made.
const SOON: Duration = Duration::from_secs(1);
/// A statement that is not answered within this takes its connection with it.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Opens a transaction that writes: nobody else writes until it ends.
const BEGIN_WRITE: &str = "BEGIN; SELECT changes, version FROM culvert_registry FOR UPDATE";
const BEGIN_READ: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
const LOOK: &str = "SELECT changes, version FROM culvert_registry";
const CHANGED: &str = "UPDATE culvert_registry SET changes = changes + 1; NOTIFY culvert_registry; COMMIT";

/// What the thread owns.
pub(super) struct Postgres {
    runtime: Runtime,
    target: Target,
    state: State,
    /// The number of changes that this relay knows of.
    seen: i64,
    look_at: Instant,
    status: Status,
}

enum State {
    Up(Box<Link>),
    Away { why: String, again_at: Instant, trying: JoinSet<Result<Box<Link>, Failure>> },
}

/// What woke the thread.
enum Woken {
    Job(Option<Job<Postgres>>),
    Look,
    Lost,
    Try,
    Tried(Result<Box<Link>, Failure>),
}

/// One transaction.
struct Inside<'a> {
    runtime: &'a Runtime,
    client: &'a Client,
    statements: &'a RefCell<HashMap<String, Statement>>,
    changed: Cell<bool>,
    /// Nothing was heard for too long: the connection is of no use.
    silent: Cell<bool>,
}

/// Connects, brings the schema up to date and starts the thread.
///
/// # Errors
/// [`RegistryError`], all but its rules.
pub(super) fn open(target: &Target) -> Result<Store<Postgres>, RegistryError> {
    let (place, target): (Arc<str>, _) = (target.to_string().into(), target.clone());
    Store::start(place, move |status| Postgres::open(target, status.clone()))
}

/// Says how the database is, for `check`. Changes nothing in it.
pub(super) fn look(target: &Target) -> String {
    match version(target) {
        Ok(Some(version)) => format!("reachable, schema {version} of {VERSION}"),
        Ok(None) => "reachable, empty".to_owned(),
        Err(failure) => format!("not usable: {}", failure.why()),
    }
}

/// Tries whether the database is there and lets us in. Blocks for as long as that takes.
///
/// # Errors
/// [`RegistryError`], all but its rules.
pub(super) fn reach(target: &Target) -> Result<(), RegistryError> {
    version(target).map(drop).map_err(|failure| failure.into_error(&target.to_string()))
}

fn version(target: &Target) -> Result<Option<u32>, Failure> {
    let target = target.clone();
    let look = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| Failure::Away(error.to_string()))?;
        runtime.block_on(Link::look(&target))
    };
    // On a thread of its own: whoever asks may be inside a runtime.
    std::thread::spawn(look).join().unwrap_or(Err(Failure::Silent))
}

impl Postgres {
    fn open(target: Target, status: Status) -> Result<Self, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| Failure::Away(error.to_string()))?;
        let link = runtime.block_on(Link::open(&target))?;
        let (seen, state) = (link.changes, State::Up(Box::new(link)));
        Ok(Self { runtime, target, state, seen, look_at: Instant::now() + LOOK_EVERY, status })
    }

    /// The connection is gone: what is known goes on being served, and it is made anew.
    fn lose(&mut self, why: String) {
        if matches!(self.state, State::Up(_)) {
            warn!(error = why, "registry is away, what is known goes on being served");
        }
        self.say(Failure::Away(why.clone()));
        self.state = State::Away { why, again_at: Instant::now(), trying: JoinSet::new() };
        self.try_again();
    }

    /// Tells what is amiss.
    fn say(&self, failure: Failure) {
        self.status.set(Some(failure.into_error(&self.target.to_string()).to_string()));
    }

    fn try_again(&mut self) {
        let State::Away { trying, .. } = &mut self.state else { return };
        let target = self.target.clone();
        trying.spawn_on(async move { Link::open(&target).await.map(Box::new) }, self.runtime.handle());
    }

    fn tried(&mut self, result: Result<Box<Link>, Failure>) {
        match result {
            Ok(link) => {
                info!("registry is back");
                self.status.set(None);
                self.seen = link.changes;
                self.state = State::Up(link);
                self.look_at = Instant::now() + LOOK_EVERY;
                // Also what was told before it went away may not have been read since.
                self.status.changed();
            }
            Err(failure) => {
                let why = failure.why();
                let again_at = Instant::now() + TRY_AGAIN_AFTER;
                self.say(failure);
                self.state = State::Away { why, again_at, trying: JoinSet::new() };
            }
        }
    }

    /// Has everybody load again whom it concerns, if somebody else changed something.
    fn know(&mut self, changes: i64) {
        if changes != self.seen {
            self.seen = changes;
            self.status.changed();
        }
    }

    /// Asks whether something changed.
    fn look(&mut self) {
        self.look_at = Instant::now() + LOOK_EVERY;
        let State::Up(link) = &self.state else { return };
        let looked = self.runtime.block_on(within(link.client.simple_query(LOOK))).and_then(|rows| numbers(&rows));
        match looked {
            Ok((changes, version)) if version <= VERSION => self.know(changes),
            Ok((_, version)) => self.say(Failure::Newer(version)),
            Err(failure) => self.lose(failure.why()),
        }
    }

    /// Works on the connection; also tells whether it was lost over it.
    fn inside<T>(&mut self, work: impl FnOnce(&Inside<'_>) -> Result<T, Failure>) -> (Result<T, Failure>, bool) {
        if let Err(failure) = self.be_up() {
            return (Err(failure), false);
        }
        let State::Up(link) = &self.state else { return (Err(Failure::Silent), false) };
        let inside = Inside {
            runtime: &self.runtime,
            client: &link.client,
            statements: &link.statements,
            changed: Cell::new(false),
            silent: Cell::new(false),
        };
        let result = work(&inside);
        let lost = inside.is_lost();
        if lost && let Err(failure) = &result {
            self.lose(failure.why());
        }
        (result, lost)
    }

    /// Waits a moment for a connection that is being made, and no longer.
    fn be_up(&mut self) -> Result<(), Failure> {
        if let State::Up(link) = &self.state
            && link.client.is_closed()
        {
            self.lose("the connection was closed".to_owned());
        }
        if let State::Away { trying, .. } = &mut self.state
            && !trying.is_empty()
        {
            let tried = self.runtime.block_on(async { tokio::time::timeout(SOON, trying.join_next()).await });
            if let Ok(Some(Ok(result))) = tried {
                self.tried(result);
            }
        }
        match &self.state {
            State::Up(_) => Ok(()),
            State::Away { why, .. } => Err(Failure::Away(why.clone())),
        }
    }
}

impl Engine for Postgres {
    const NAME: &'static str = "postgresql";
    const MAY_BE_AWAY: bool = true;

    fn transact(&mut self, kind: Kind, work: Work<'_>) -> Result<(), Failure> {
        let (work, begun) = (Cell::new(Some(work)), Cell::new(false));
        let whole = |inside: &Inside<'_>| {
            let known = inside.begin(kind)?;
            begun.set(true);
            let changed = work.take().map_or(Ok(false), |work| inside.finish(kind, work))?;
            Ok((known, changed))
        };
        let mut ended = self.inside(whole);
        // A connection whose end was not noticed yet shows it at the first word: nothing was done, it is made anew.
        if ended.1 && !begun.get() {
            ended = self.inside(whole);
        }
        let (known, changed) = ended.0?;
        if let Some(changes) = known {
            self.know(changes);
        }
        self.seen += i64::from(changed);
        Ok(())
    }

    fn next(&mut self, jobs: &mut mpsc::Receiver<Job<Self>>) -> Option<Job<Self>> {
        loop {
            let look_at = self.look_at;
            let woken = match &mut self.state {
                State::Up(link) => self.runtime.block_on(async {
                    tokio::select! {
                        biased;
                        heard = link.heard.recv() => if heard.is_some() { Woken::Look } else { Woken::Lost },
                        () = tokio::time::sleep_until(look_at) => Woken::Look,
                        job = jobs.recv() => Woken::Job(job),
                    }
                }),
                State::Away { again_at, trying, .. } => self.runtime.block_on(async {
                    tokio::select! {
                        Some(tried) = trying.join_next() => Woken::Tried(
                            tried.unwrap_or_else(|error| Err(Failure::Away(error.to_string()))),
                        ),
                        () = tokio::time::sleep_until(*again_at), if trying.is_empty() => Woken::Try,
                        job = jobs.recv() => Woken::Job(job),
                    }
                }),
            };
            match woken {
                Woken::Job(job) => return job,
                Woken::Look => self.look(),
                Woken::Lost => self.lose("the connection was closed".to_owned()),
                Woken::Try => self.try_again(),
                Woken::Tried(result) => self.tried(result),
            }
        }
    }
}

impl Drop for Postgres {
    /// Says goodbye, so that the server does not wonder.
    fn drop(&mut self) {
        let away = State::Away { why: String::new(), again_at: Instant::now(), trying: JoinSet::new() };
        if let State::Up(link) = std::mem::replace(&mut self.state, away) {
            self.runtime.block_on(link.close());
        }
    }
}

impl Inside<'_> {
    /// Returns the number of changes so far, if this transaction may make one more.
    fn begin(&self, kind: Kind) -> Result<Option<i64>, Failure> {
        match kind {
            Kind::Read => self.say(BEGIN_READ).map(|_| None),
            Kind::Write => {
                let begun = self.say(BEGIN_WRITE).and_then(|rows| match numbers(&rows)? {
                    (changes, version) if version <= VERSION => Ok(Some(changes)),
                    (_, version) => Err(Failure::Newer(version)),
                });
                begun.inspect_err(|_| self.roll_back())
            }
        }
    }

    /// Returns whether it changed something that others need to hear of.
    fn finish(&self, kind: Kind, work: Work<'_>) -> Result<bool, Failure> {
        work(self).inspect_err(|_| self.roll_back())?;
        let changed = self.changed.get();
        match self.say(if changed { CHANGED } else { "COMMIT" }) {
            Ok(_) => Ok(changed),
            // Nothing was answered: the server may have done it.
            Err(failure) if kind == Kind::Write && self.is_lost() => {
                Err(Failure::Away(format!("{}; whether the change was made is not known", failure.why())))
            }
            Err(failure) => {
                self.roll_back();
                Err(failure)
            }
        }
    }

    fn is_lost(&self) -> bool {
        self.silent.get() || self.client.is_closed()
    }

    fn say(&self, sql: &str) -> Result<Vec<SimpleQueryMessage>, Failure> {
        self.wait(self.client.simple_query(sql))
    }

    /// INVARIANT: no transaction stays open on a connection that is used again.
    fn roll_back(&self) {
        if !self.client.is_closed() && self.say("ROLLBACK").is_err() {
            self.silent.set(true);
        }
    }

    fn wait<T>(&self, answer: impl Future<Output = Result<T, tokio_postgres::Error>>) -> Result<T, Failure> {
        if self.silent.get() {
            return Err(Failure::Away("it does not answer".to_owned()));
        }
        let result = self.runtime.block_on(within(answer));
        if matches!(&result, Err(Failure::Silent)) {
            self.silent.set(true);
        }
        result
    }

    fn statement(&self, sql: &str) -> Result<Statement, Failure> {
        if let Some(known) = self.statements.borrow().get(sql) {
            return Ok(known.clone());
        }
        let statement = self.wait(self.client.prepare(sql))?;
        self.statements.borrow_mut().insert(sql.to_owned(), statement.clone());
        Ok(statement)
    }
}

impl Transaction for Inside<'_> {
    fn query(&self, sql: &str, values: &[Value]) -> Result<Vec<Row>, Failure> {
        let statement = self.statement(sql)?;
        let rows = self.wait(self.client.query(&statement, &value::parameters(values)))?;
        rows.iter().map(value::row).collect()
    }

    fn execute(&self, sql: &str, values: &[Value]) -> Result<u64, Failure> {
        let rows = self.execute_quietly(sql, values)?;
        self.changed.set(self.changed.get() || rows > 0);
        Ok(rows)
    }

    fn execute_quietly(&self, sql: &str, values: &[Value]) -> Result<u64, Failure> {
        let statement = self.statement(sql)?;
        self.wait(self.client.execute(&statement, &value::parameters(values)))
    }
}

async fn within<T>(answer: impl Future<Output = Result<T, tokio_postgres::Error>>) -> Result<T, Failure> {
    match tokio::time::timeout(ANSWER_WITHIN, answer).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(Failure::Silent),
    }
}

/// The number of changes and the schema's version, out of the one row of `culvert_registry`.
fn numbers(messages: &[SimpleQueryMessage]) -> Result<(i64, u32), Failure> {
    let row = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    let number = |column| row.and_then(|row| row.get(column)).and_then(|text| text.parse::<i64>().ok());
    match (number(0), number(1)) {
        (Some(changes), Some(version)) => Ok((changes, u32::try_from(version).unwrap_or(u32::MAX))),
        _ => Err(Failure::Damaged("culvert_registry has no row".to_owned())),
    }
}

#[cfg(test)]
mod tests;
