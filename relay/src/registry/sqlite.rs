//! The registry in a SQLite file.
//!
//! Must never create a database where a damaged one stands, nor write into a file that was replaced below it.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, ErrorCode, OpenFlags, ToSql, TransactionBehavior, params_from_iter};

use super::RegistryError;
use super::failure::Failure;
use super::order::Order;
use super::schema::{MIGRATIONS, VERSION};
use super::sql::{Row, Transaction, Value};
use super::store::{Engine, Kind, Store, Work};

/// How long a transaction waits for another process's lock.
const BUSY: Duration = Duration::from_secs(5);
/// "CULV": tells a registry from any other SQLite file.
const APPLICATION_ID: i32 = 0x4355_4c56;

/// A registry in one file.
pub(super) type Sqlite = Store<Database>;

/// What the thread owns.
pub(super) struct Database {
    connection: Connection,
    path: PathBuf,
    inode: (u64, u64),
}

/// One transaction.
struct Inside<'a>(&'a Connection);

impl Store<Database> {
    /// Opens a registry, brings its schema up to date and starts its thread.
    ///
    /// The file exists, empty when it is new, and nobody else may read it: its maker sees to that.
    ///
    /// # Errors
    /// [`RegistryError`], all but its rules.
    pub(super) fn open(path: &Path) -> Result<Self, RegistryError> {
        let shown: Arc<str> = path.display().to_string().into();
        let path = path.to_path_buf();
        Self::start(shown, move |_| Database::open(&path))
    }
}

impl Engine for Database {
    const NAME: &'static str = "sqlite";
    const MAY_BE_AWAY: bool = false;

    fn transact(&mut self, kind: Kind, work: Work<'_>) -> Result<(), Failure> {
        let behavior = match kind {
            Kind::Read => TransactionBehavior::Deferred,
            Kind::Write => {
                self.is_still_there()?;
                TransactionBehavior::Immediate
            }
        };
        let transaction = self.connection.transaction_with_behavior(behavior)?;
        work(&Inside(&transaction))?;
        Ok(transaction.commit()?)
    }

    /// One commit, and so one fsync, for all of them; each stands in a savepoint of its own.
    fn carry_out_all(&mut self, mut orders: Vec<Box<dyn Order>>, place: &str) {
        if orders.len() < 2 {
            return orders.into_iter().for_each(|order| self.carry_out(order, place));
        }
        let mut ended = Vec::with_capacity(orders.len());
        let whole = self.all_of(&mut orders, &mut ended).map_err(|failure| failure.into_error(place));
        for (number, order) in orders.into_iter().enumerate() {
            let own = match ended.get_mut(number).map(|own| std::mem::replace(own, Ok(()))) {
                Some(Err(failure)) => Err(failure.into_error(place)),
                Some(Ok(())) | None => whole.clone(),
            };
            order.answer(own);
        }
    }
}

impl Transaction for Inside<'_> {
    fn query(&self, sql: &str, values: &[Value]) -> Result<Vec<Row>, Failure> {
        let mut statement = self.0.prepare_cached(sql)?;
        let columns = statement.column_count();
        let mut found = statement.query(params_from_iter(values))?;
        let mut rows = Vec::new();
        while let Some(row) = found.next()? {
            let value = |column| Value::try_from(row.get_ref(column)?);
            rows.push(Row((0..columns).map(value).collect::<Result<_, _>>()?));
        }
        Ok(rows)
    }

    fn execute(&self, sql: &str, values: &[Value]) -> Result<u64, Failure> {
        Ok(self.0.prepare_cached(sql)?.execute(params_from_iter(values))? as u64)
    }

    fn execute_quietly(&self, sql: &str, values: &[Value]) -> Result<u64, Failure> {
        self.execute(sql, values)
    }
}

impl Database {
    fn open(path: &Path) -> Result<Self, Failure> {
        // Without CREATE: a file that vanished is an error, not an empty registry.
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(BUSY)?;
        connection.set_prepared_statement_cache_capacity(64);
        // FULL in WAL mode: what a method returned is on the disk (a use of a token, a revocation).
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "foreign_keys", true)?;
        connection.pragma_update(None, "trusted_schema", false)?;
        let check: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        if check != "ok" {
            return Err(Failure::Damaged(check.replace('\n', " ")));
        }
        migrate(&mut connection)?;
        let inode = inode(path).ok_or(Failure::Replaced)?;
        Ok(Self { connection, path: path.to_path_buf(), inode })
    }

    /// Runs orders until one is the end of them all; what each said goes to `ended`.
    fn all_of(&mut self, orders: &mut [Box<dyn Order>], ended: &mut Vec<Result<(), Failure>>) -> Result<(), Failure> {
        self.is_still_there()?;
        let mut transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        for order in orders {
            let mut savepoint = transaction.savepoint()?;
            let said = order.run(&Inside(&savepoint));
            let failed = said.is_err();
            ended.push(said);
            if !failed {
                savepoint.commit()?;
                continue;
            }
            // Errors of the disk end the whole transaction, and not the savepoint alone: then a savepoint would be a
            // transaction of its own.
            if savepoint.is_autocommit() {
                return Err(Failure::Away("the transaction around it failed".to_owned()));
            }
            savepoint.rollback()?;
            savepoint.commit()?;
        }
        Ok(transaction.commit()?)
    }

    fn is_still_there(&self) -> Result<(), Failure> {
        if inode(&self.path) == Some(self.inode) { Ok(()) } else { Err(Failure::Replaced) }
    }
}

fn inode(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

/// Says how the file is, for `check`. Changes nothing in it.
pub(super) fn look(path: &Path) -> String {
    if fs::metadata(path).is_ok_and(|metadata| metadata.len() > 0) {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let opened = Connection::open_with_flags(path, flags).map_err(Failure::from);
        match opened.and_then(|connection| state(&connection)) {
            Ok(State::Current) => format!("schema {VERSION} of {VERSION}"),
            Ok(State::At(version)) => format!("schema {version} of {VERSION}"),
            Err(failure) => format!("not usable: {}", failure.why()),
        }
    } else {
        "not made yet".to_owned()
    }
}

/// Brings the database to [`VERSION`]: all steps in one transaction, so that a crash leaves the old schema whole.
pub(super) fn migrate(connection: &mut Connection) -> Result<(), Failure> {
    if state(connection)? == State::Current {
        return Ok(());
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // Read again under the lock: another process may have been first.
    if let State::At(from) = state(&transaction)? {
        for step in MIGRATIONS.iter().skip(from as usize) {
            transaction.execute_batch(&step.sqlite())?;
        }
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.pragma_update(None, "user_version", VERSION)?;
    }
    Ok(transaction.commit()?)
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    Current,
    At(u32),
}

fn state(connection: &Connection) -> Result<State, Failure> {
    let number = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i32>(0));
    let tables: u32 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    let (application, version) = (number("application_id")?, number("user_version")?);
    match (application, u32::try_from(version).unwrap_or(u32::MAX)) {
        (APPLICATION_ID, VERSION) => Ok(State::Current),
        (APPLICATION_ID, version) if version < VERSION => Ok(State::At(version)),
        (APPLICATION_ID, found) => Err(Failure::Newer(found)),
        (0, 0) if tables == 0 => Ok(State::At(0)),
        _ => Err(Failure::Foreign),
    }
}

impl ToSql for Value {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            Self::Null => ValueRef::Null,
            Self::Integer(number) => ValueRef::Integer(*number),
            Self::Text(text) => ValueRef::Text(text.as_bytes()),
            Self::Bytes(bytes) => ValueRef::Blob(bytes),
        }))
    }
}

impl TryFrom<ValueRef<'_>> for Value {
    type Error = Failure;

    fn try_from(value: ValueRef<'_>) -> Result<Self, Failure> {
        match value {
            ValueRef::Null => Ok(Self::Null),
            ValueRef::Integer(number) => Ok(Self::Integer(number)),
            ValueRef::Text(text) => match std::str::from_utf8(text) {
                Ok(text) => Ok(Self::Text(text.to_owned())),
                Err(error) => Err(Failure::Damaged(format!("a text in the registry: {error}"))),
            },
            ValueRef::Blob(bytes) => Ok(Self::Bytes(bytes.to_vec())),
            ValueRef::Real(_) => Err(Failure::Damaged("a fraction stands in the registry".to_owned())),
        }
    }
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        let detail = error.to_string();
        let rusqlite::Error::SqliteFailure(cause, _) = error else { return Self::Damaged(detail) };
        if cause.code == ErrorCode::DatabaseBusy || cause.code == ErrorCode::DatabaseLocked {
            Self::Locked
        } else if cause.code == ErrorCode::DiskFull || cause.extended_code == rusqlite::ffi::SQLITE_IOERR_SHMSIZE {
            // The index of the write-ahead log is written without asking for the reason.
            Self::Full
        } else if cause.code == ErrorCode::DatabaseCorrupt || cause.code == ErrorCode::NotADatabase {
            Self::Damaged(detail)
        } else {
            Self::Away(detail)
        }
    }
}

#[cfg(test)]
mod tests;
