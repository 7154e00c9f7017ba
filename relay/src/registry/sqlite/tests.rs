//! What SQLite alone can do wrong, and the suite over it.

use std::io::{Seek as _, SeekFrom, Write as _};

use std::time::SystemTime;

use culvert_model::id::ConnectorId;
use culvert_ops::state::StateDir;

use super::super::suite::{Subject, suite};
use super::super::{Actor, AuditRow, Registry as _, Rule, TOMBSTONE, read, write};
use super::*;

suite!(some);

fn empty() -> (Subject, StateDir) {
    let state = StateDir::temporary().unwrap();
    let path = state.create_file("registry.db").unwrap();
    (Arc::new(Sqlite::open(&path).unwrap()), state)
}

fn some() -> Option<(Subject, StateDir)> {
    Some(empty())
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
    assert!(matches!(error, RegistryError::Newer { found: 999, known: VERSION, .. }), "{error}");
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
    Connection::open(&path).unwrap().execute(insert, ["tnl_nonsense"]).unwrap();
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

#[test]
fn an_empty_file_becomes_a_registry_and_stays_one() {
    let mut connection = Connection::open_in_memory().unwrap();
    assert_eq!(state(&connection).unwrap(), State::At(0));
    migrate(&mut connection).unwrap();
    assert_eq!(state(&connection).unwrap(), State::Current);
    migrate(&mut connection).unwrap();
}

#[test]
fn a_registry_of_every_earlier_schema_is_brought_up_and_keeps_its_rows() {
    for from in 1..MIGRATIONS.len() {
        let mut connection = Connection::open_in_memory().unwrap();
        for step in &MIGRATIONS[..from] {
            connection.execute_batch(&step.sqlite()).unwrap();
        }
        connection.pragma_update(None, "application_id", APPLICATION_ID).unwrap();
        connection.pragma_update(None, "user_version", from).unwrap();
        let rows = "INSERT INTO tunnels (id, name, shared, created) VALUES ('tnl_aaaaaaaaaaaaaaaa', 'dc1', 0, 1);
            INSERT INTO tokens (id, tunnel, bootstrap_key, psk, created) VALUES
            ('tok_aaaaaaaaaaaaaaaa', 'tnl_aaaaaaaaaaaaaaaa', zeroblob(32), zeroblob(72), 1);";
        connection.execute_batch(rows).unwrap();
        migrate(&mut connection).unwrap();
        assert_eq!(state(&connection).unwrap(), State::Current);
        let tokens = read::tokens(&Inside(&connection)).unwrap();
        assert_eq!((tokens.len(), tokens[0].sources.len()), (1, 0), "from {from}");
        assert!(read::snapshot(&Inside(&connection)).unwrap().gateways.is_empty());
    }
}

#[test]
fn a_migration_that_fails_leaves_the_old_schema_whole() {
    let mut connection = Connection::open_in_memory().unwrap();
    connection.execute_batch(&MIGRATIONS[0].sqlite()).unwrap();
    connection.execute_batch("ALTER TABLE tokens ADD COLUMN sources TEXT").unwrap();
    connection.pragma_update(None, "application_id", APPLICATION_ID).unwrap();
    connection.pragma_update(None, "user_version", 1).unwrap();
    assert!(migrate(&mut connection).is_err());
    assert_eq!(state(&connection).unwrap(), State::At(1));
}

#[test]
fn a_newer_schema_is_refused_and_left_alone() {
    let mut connection = Connection::open_in_memory().unwrap();
    migrate(&mut connection).unwrap();
    connection.pragma_update(None, "user_version", VERSION + 1).unwrap();
    assert!(matches!(migrate(&mut connection), Err(Failure::Newer(found)) if found == VERSION + 1));
    let kept: u32 = connection.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
    assert_eq!(kept, VERSION + 1);
}

#[test]
fn somebody_elses_database_is_refused() {
    let mut connection = Connection::open_in_memory().unwrap();
    connection.execute_batch("CREATE TABLE recipes (name TEXT)").unwrap();
    assert!(matches!(migrate(&mut connection), Err(Failure::Foreign)));
}

#[test]
fn the_audit_trail_is_neither_rewritten_nor_shortened() {
    let mut connection = Connection::open_in_memory().unwrap();
    migrate(&mut connection).unwrap();
    connection
        .execute("INSERT INTO audit (at, actor, action, subject, detail) VALUES (1, 'a', 'b', 'c', '')", [])
        .unwrap();
    assert!(connection.execute("UPDATE audit SET actor = 'z'", []).is_err());
    assert!(connection.execute("DELETE FROM audit", []).is_err());
}

#[tokio::test]
async fn writes_that_wait_together_are_made_durable_together_and_one_that_is_refused_leaves_nothing() {
    let state = StateDir::temporary().unwrap();
    let path = state.create_file("registry.db").unwrap();
    let registry = Sqlite::open(&path).unwrap();
    let row = |actor: &str| AuditRow {
        at: SystemTime::UNIX_EPOCH,
        actor: actor.to_owned(),
        action: "b".to_owned(),
        subject: "c".to_owned(),
        detail: "d".to_owned(),
    };
    // The thread is busy until all of them wait.
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let busy = registry.submit(Kind::Read, move |_| wait.recv().map_err(|_| Failure::Silent));
    let (first, last) = (row("first"), row("last"));
    let first = registry.audit(first);
    let of_refused = row("refused");
    let refused = registry.run(Kind::Write, move |db| {
        write::audit_row(db, &of_refused)?;
        Err::<(), _>(Failure::Rule(Rule::NoSuchConnector(ConnectorId::new())))
    });
    let of_other = path.clone();
    let seen = registry.run(Kind::Write, move |_| {
        let other = Connection::open(of_other)?;
        Ok(other.query_row("SELECT count(*) FROM audit", [], |row| row.get::<_, i64>(0))?)
    });
    let last = registry.audit(last);
    let go = async {
        // All of them are asked before this is.
        tokio::task::yield_now().await;
        go.send(()).unwrap();
    };
    let (busy, first, refused, seen, last, ()) = tokio::join!(busy, first, refused, seen, last, go);
    assert_eq!((busy, first, seen, last), (Ok(()), Ok(()), Ok(0), Ok(())), "nothing is on the disk yet for others");
    assert!(matches!(refused, Err(RegistryError::Rule(Rule::NoSuchConnector(_)))));
    let rows = registry.audit_since(SystemTime::UNIX_EPOCH).await.unwrap();
    assert_eq!(rows.iter().map(|row| row.actor.as_str()).collect::<Vec<_>>(), ["first", "last"]);
}

#[tokio::test]
async fn a_disk_that_is_full_fails_every_write_of_a_group_and_the_next_one_works() {
    let (registry, _state) = {
        let state = StateDir::temporary().unwrap();
        let path = state.create_file("registry.db").unwrap();
        (Sqlite::open(&path).unwrap(), state)
    };
    let row = |length: usize| AuditRow {
        at: SystemTime::UNIX_EPOCH,
        actor: "a".repeat(length),
        action: "b".to_owned(),
        subject: "c".to_owned(),
        detail: "d".to_owned(),
    };
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let busy = registry.submit(Kind::Read, move |database| {
        let pages: i64 = database.connection.query_row("PRAGMA page_count", [], |row| row.get(0))?;
        database.connection.pragma_update(None, "max_page_count", pages + 1)?;
        wait.recv().map_err(|_| Failure::Silent)
    });
    let (small, large) = (registry.audit(row(1)), registry.audit(row(100_000)));
    let go = async {
        tokio::task::yield_now().await;
        go.send(()).unwrap();
    };
    let (busy, small, large, ()) = tokio::join!(busy, small, large, go);
    busy.unwrap();
    assert!(matches!(large, Err(RegistryError::Full { .. })), "{large:?}");
    // The database says whether its whole transaction went with it: what was answered is what is there.
    let there = registry.audit_since(SystemTime::UNIX_EPOCH).await.unwrap().len();
    assert_eq!(there, usize::from(small.is_ok()), "{small:?}");
    registry.audit(row(1)).await.unwrap();
}
