//! The registry in a SQLite file, on a thread of its own: an fsync never stalls a packet.
//!
//! Must never create a database where a damaged one stands, nor write into a file that was replaced below it.

mod failure;
mod gateway;
mod read;
mod schema;
mod write;

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use culvert_model::id::{ConnectorId, GatewayId, TokenId, TunnelId};
use culvert_model::name::{Grant, ServiceName};
use rusqlite::{Connection, OpenFlags, TransactionBehavior};
use tokio::sync::{mpsc, oneshot};

use super::rows::{AuditRow, GatewayRow, SecretRow, Snapshot, TokenRow, Tunnel};
use super::{Actor, Candidate, Enrolment, Forgotten, Future, GatewayChange, Note, Registry, RegistryError, grants};
use failure::Failure;

/// How long a transaction waits for another process's lock.
const BUSY: Duration = Duration::from_secs(5);
/// Transactions that may wait for the thread; past it their callers wait.
const WAITING: usize = 256;

/// A registry in one file.
pub(crate) struct Sqlite {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    path: Arc<str>,
    degraded: Arc<Mutex<Option<String>>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
}

type Job = Box<dyn FnOnce(&mut Database) + Send>;

/// What the thread owns.
struct Database {
    connection: Connection,
    path: PathBuf,
    inode: (u64, u64),
}

impl Sqlite {
    /// Opens a registry, brings its schema up to date and starts its thread.
    ///
    /// The file exists, empty when it is new, and nobody else may read it: its maker sees to that.
    ///
    /// # Errors
    /// [`RegistryError`], all but its rules.
    pub(crate) fn open(path: &Path) -> Result<Self, RegistryError> {
        let shown: Arc<str> = path.display().to_string().into();
        let mut database = Database::open(path).map_err(|failure| failure.into_error(&shown))?;
        let (jobs, mut queue) = mpsc::channel::<Job>(WAITING);
        let work = move || {
            while let Some(job) = queue.blocking_recv() {
                job(&mut database);
            }
        };
        let started = std::thread::Builder::new().name("relay.registry".to_owned()).spawn(work);
        match started {
            Ok(thread) => Ok(Self { jobs: Some(jobs), thread: Some(thread), path: shown, degraded: Arc::default() }),
            Err(error) => Err(RegistryError::Away { path: shown.to_string(), detail: error.to_string() }),
        }
    }

    fn read<T: Send + 'static>(
        &self,
        what: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Future<'_, T> {
        self.submit(Kind::Read, move |database| {
            let transaction = database.connection.transaction()?;
            Ok(what(&transaction)?)
        })
    }

    fn write<T: Send + 'static>(
        &self,
        what: impl FnOnce(&Connection) -> Result<T, Failure> + Send + 'static,
    ) -> Future<'_, T> {
        self.submit(Kind::Write, move |database| {
            database.is_still_there()?;
            let transaction = database.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let value = what(&transaction)?;
            transaction.commit()?;
            Ok(value)
        })
    }

    fn submit<T: Send + 'static>(
        &self,
        kind: Kind,
        what: impl FnOnce(&mut Database) -> Result<T, Failure> + Send + 'static,
    ) -> Future<'_, T> {
        Box::pin(async move {
            let (answer, answered) = oneshot::channel();
            let (path, degraded) = (Arc::clone(&self.path), Arc::clone(&self.degraded));
            let job: Job = Box::new(move |database| {
                let result = what(database).map_err(|failure| failure.into_error(&path));
                let amiss = match &result {
                    Ok(_) | Err(RegistryError::Rule(_)) => None,
                    Err(error) => Some(error.to_string()),
                };
                // What can be read may still not be written.
                if amiss.is_some() || kind == Kind::Write {
                    *degraded.lock().unwrap_or_else(PoisonError::into_inner) = amiss;
                }
                let _ = answer.send(result);
            });
            let stopped = || RegistryError::Away {
                path: self.path.to_string(),
                detail: "its thread has ended: restart the relay".to_owned(),
            };
            self.jobs.as_ref().ok_or_else(stopped)?.send(job).await.map_err(|_| stopped())?;
            answered.await.map_err(|_| stopped())?
        })
    }
}

impl Drop for Sqlite {
    /// Waits for what was asked, and for SQLite to fold its write-ahead log into the file.
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Registry for Sqlite {
    fn load(&self) -> Future<'_, Snapshot> {
        self.read(read::snapshot)
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

    fn delete_service(&self, name: ServiceName, by: Actor, now: SystemTime) -> Future<'_, Vec<TunnelId>> {
        self.write(move |db| write::delete_service(db, &name, &by, now))
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

    fn note(&self, notes: Vec<Note>) -> Future<'_, ()> {
        self.write(move |db| write::note(db, &notes))
    }

    fn forget(&self, live: Vec<ConnectorId>, now: SystemTime) -> Future<'_, Forgotten> {
        self.write(move |db| write::forget(db, &live, now))
    }

    fn audit(&self, row: AuditRow) -> Future<'_, ()> {
        self.write(move |db| write::audit_row(db, &row))
    }

    fn audit_since(&self, since: SystemTime) -> Future<'_, Vec<AuditRow>> {
        self.read(move |db| read::audit_since(db, since))
    }

    fn degraded(&self) -> Option<String> {
        self.degraded.lock().unwrap_or_else(PoisonError::into_inner).clone()
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
        schema::migrate(&mut connection)?;
        let inode = inode(path).ok_or(Failure::Replaced)?;
        Ok(Self { connection, path: path.to_path_buf(), inode })
    }

    fn is_still_there(&self) -> Result<(), Failure> {
        if inode(&self.path) == Some(self.inode) { Ok(()) } else { Err(Failure::Replaced) }
    }
}

fn inode(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use std::io::{Seek as _, SeekFrom, Write as _};

    use culvert_ops::state::StateDir;
    use rusqlite::params;

    use super::super::suite::{Subject, suite};
    use super::super::{Rule, TOMBSTONE};
    use super::*;

    suite!(empty);

    fn empty() -> (Subject, StateDir) {
        let state = StateDir::temporary().unwrap();
        let path = state.create_file("registry.db").unwrap();
        (Arc::new(Sqlite::open(&path).unwrap()), state)
    }

    fn refusal(path: &Path) -> RegistryError {
        Sqlite::open(path).err().expect("it is refused")
    }

    #[tokio::test]
    async fn what_was_written_is_there_after_the_process_died() {
        let state = StateDir::temporary().unwrap();
        let path = state.create_file("registry.db").unwrap();
        let first = Sqlite::open(&path).unwrap();
        let row = AuditRow {
            at: SystemTime::UNIX_EPOCH,
            actor: "a".to_owned(),
            action: "b".to_owned(),
            subject: "c".to_owned(),
            detail: "d".to_owned(),
        };
        first.audit(row.clone()).await.unwrap();
        // Left open, as a killed process leaves it: the write-ahead log holds the row.
        let second = Sqlite::open(&path).unwrap();
        assert_eq!(second.audit_since(SystemTime::UNIX_EPOCH).await.unwrap(), [row]);
        drop(first);
    }

    #[tokio::test]
    async fn a_missing_file_is_not_made() {
        let state = StateDir::temporary().unwrap();
        let path = state.join("registry.db").unwrap();
        assert!(matches!(refusal(&path), RegistryError::Away { .. }));
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_damaged_file_is_refused_and_kept() {
        let (registry, state) = empty();
        for _ in 0..200 {
            let row = AuditRow {
                at: SystemTime::UNIX_EPOCH,
                actor: "a".repeat(100),
                action: "b".to_owned(),
                subject: "c".repeat(100),
                detail: String::new(),
            };
            registry.audit(row).await.unwrap();
        }
        drop(registry);
        let path = state.join("registry.db").unwrap();
        Connection::open(&path).unwrap().query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
        let pages = fs::metadata(&path).unwrap().len() / 4096;
        let mut file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        for page in 1..pages {
            file.seek(SeekFrom::Start(page * 4096)).unwrap();
            file.write_all(&[0xa5; 64]).unwrap();
        }
        let before = fs::read(&path).unwrap();
        assert!(matches!(refusal(&path), RegistryError::Corrupt { .. }));
        assert_eq!(fs::read(&path).unwrap(), before);
        fs::write(&path, b"this is no database, and long enough to be told from an empty one").unwrap();
        assert!(matches!(refusal(&path), RegistryError::Corrupt { .. }));
    }

    #[tokio::test]
    async fn a_newer_schema_is_refused_with_both_versions() {
        let (registry, state) = empty();
        registry.load().await.unwrap();
        drop(registry);
        let path = state.join("registry.db").unwrap();
        Connection::open(&path).unwrap().pragma_update(None, "user_version", 999).unwrap();
        let error = refusal(&path);
        assert!(matches!(error, RegistryError::Newer { found: 999, known: schema::VERSION, .. }), "{error}");
    }

    #[tokio::test]
    async fn a_lock_held_elsewhere_is_an_error_and_reading_goes_on() {
        let (_registry, state) = empty();
        let path = state.join("registry.db").unwrap();
        let impatient = Sqlite::open(&path).unwrap();
        impatient
            .submit(Kind::Read, |database| Ok(database.connection.busy_timeout(Duration::from_millis(20))?))
            .await
            .unwrap();
        let other = Connection::open(&path).unwrap();
        other.execute_batch("BEGIN EXCLUSIVE").unwrap();
        let forgotten = impatient.forget(Vec::new(), SystemTime::UNIX_EPOCH).await;
        assert!(matches!(forgotten, Err(RegistryError::Locked { .. })), "{forgotten:?}");
        assert!(impatient.degraded().unwrap().contains("locked"));
        other.execute_batch("COMMIT").unwrap();
        impatient.forget(Vec::new(), SystemTime::UNIX_EPOCH).await.unwrap();
        assert_eq!(impatient.degraded(), None);
    }

    #[tokio::test]
    async fn a_full_disk_is_an_error_that_changes_nothing() {
        let (_registry, state) = empty();
        let registry = Sqlite::open(&state.join("registry.db").unwrap()).unwrap();
        registry
            .submit(Kind::Read, |database| {
                let pages: u32 = database.connection.query_row("PRAGMA page_count", [], |row| row.get(0))?;
                Ok(database.connection.query_row(&format!("PRAGMA max_page_count = {pages}"), [], |_| Ok(()))?)
            })
            .await
            .unwrap();
        let row = AuditRow {
            at: SystemTime::UNIX_EPOCH,
            actor: "a".repeat(100_000),
            action: String::new(),
            subject: String::new(),
            detail: String::new(),
        };
        let full = registry.audit(row).await;
        assert!(matches!(full, Err(RegistryError::Full { .. })), "{full:?}");
        assert!(registry.audit_since(SystemTime::UNIX_EPOCH).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_file_that_was_replaced_is_not_written_to() {
        let (registry, state) = empty();
        let path = state.join("registry.db").unwrap();
        fs::rename(&path, state.join("moved.db").unwrap()).unwrap();
        let now = SystemTime::UNIX_EPOCH + TOMBSTONE;
        let refused = registry.forget(Vec::new(), now).await;
        assert!(matches!(refused, Err(RegistryError::Away { .. })), "{refused:?}");
        assert!(registry.load().await.is_ok(), "what is known can still be read");
        assert!(registry.degraded().unwrap().contains("replaced"), "and reading does not heal it");
    }

    #[tokio::test]
    async fn a_value_that_is_no_value_is_damage_and_not_a_panic() {
        let (registry, state) = empty();
        let path = state.join("registry.db").unwrap();
        let insert = "INSERT INTO tunnels (id, name, shared, created) VALUES (?, 'dc1', 0, -5)";
        Connection::open(&path).unwrap().execute(insert, params!["tnl_nonsense"]).unwrap();
        assert!(matches!(registry.load().await, Err(RegistryError::Corrupt { .. })));
    }

    #[tokio::test]
    async fn a_broken_rule_is_no_degradation() {
        let (registry, _state) = empty();
        let id = ConnectorId::new();
        let refused = registry.revoke_connector(id.clone(), Actor("x".to_owned()), SystemTime::UNIX_EPOCH).await;
        assert_eq!(refused, Err(Rule::NoSuchConnector(id).into()));
        assert_eq!(registry.degraded(), None);
    }
}
