//! The suite over a PostgreSQL of the test's own, and what several relays on one database must see of each other.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError, Weak};
use std::time::SystemTime;

use culvert_lab::postgres::Postgres as Server;
use culvert_lab::skip::{self, Need};
use culvert_model::id::ConnectorId;
use culvert_ops::secret::{Secret, SecretSource};

use super::super::suite::{self, Subject, suite};
use super::super::{Actor, Enrolment, Registry as _, Rule};
use super::*;

const HEARD_WITHIN: Duration = Duration::from_secs(1);

suite!(empty);

/// A database of a server that the tests running now share.
struct Database {
    server: Arc<Server>,
    name: String,
}

fn empty() -> Option<(Subject, Database)> {
    let database = Database::new()?;
    Some((Arc::new(database.open().unwrap()), database))
}

impl Database {
    fn new() -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        if skip::unless("the registry in PostgreSQL", &[Need::Postgres]) {
            return None;
        }
        let database = Self { server: server(), name: format!("t{}", NUMBER.fetch_add(1, Ordering::Relaxed)) };
        database.sql("culvert", &format!("CREATE DATABASE {}", database.name));
        Some(database)
    }

    fn target(&self) -> Target {
        let socket = self.server.socket_directory().display().to_string().replace('/', "%2F");
        let url = format!("postgres://culvert@{socket}:{}/{}", self.server.address().port(), self.name);
        Target::new(&url, None).unwrap()
    }

    fn open(&self) -> Result<Store<Postgres>, RegistryError> {
        open(&self.target())
    }

    fn run(&self, sql: &str) -> String {
        self.sql(&self.name, sql)
    }

    fn sql(&self, name: &str, sql: &str) -> String {
        let (server, name, sql) = (Arc::clone(&self.server), name.to_owned(), sql.to_owned());
        alone(move || async move { server.sql_in(&name, &sql).await.unwrap() })
    }
}

/// One server for all tests that run at the same time; the last one to end stops it.
fn server() -> Arc<Server> {
    static SHARED: Mutex<Weak<Server>> = Mutex::new(Weak::new());
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(server) = shared.upgrade() {
        return server;
    }
    let server = Arc::new(alone(|| async { Server::start().await.unwrap() }));
    *shared = Arc::downgrade(&server);
    server
}

/// Runs it on a thread and a runtime of its own, and waits for it.
fn alone<T: Send + 'static, F: Future<Output = T>>(work: impl FnOnce() -> F + Send + 'static) -> T {
    let work = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(work())
    };
    std::thread::spawn(work).join().unwrap()
}

fn root() -> Actor {
    Actor("uid 0".to_owned())
}

async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < until, "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn fifty_parallel_redemptions_through_two_relays_let_one_in() {
    let Some((first, database)) = empty() else { return };
    let second: Subject = Arc::new(database.open().unwrap());
    let (tunnel, _) = suite::create(&first, "dc1", &["orders"]).await;
    let token = suite::token(&tunnel, Some(1));
    first.create_token(token.clone(), root()).await.unwrap();
    let mut tasks = JoinSet::new();
    for number in 0..50 {
        let registry = Arc::clone(if number % 2 == 0 { &first } else { &second });
        let candidate = suite::candidate(&token, SystemTime::UNIX_EPOCH);
        tasks.spawn(async move { registry.enrol(candidate).await.unwrap() });
    }
    let outcomes = tasks.join_all().await;
    let joined = outcomes.iter().filter(|outcome| matches!(outcome, Enrolment::Joined { .. })).count();
    let told = outcomes.iter().filter(|outcome| matches!(outcome, Enrolment::Refused { .. })).count();
    assert_eq!((joined, told), (1, 49));
    assert_eq!(second.load().await.unwrap(), first.load().await.unwrap());
}

#[tokio::test]
async fn a_change_at_one_relay_is_heard_at_the_other_within_a_second_and_not_at_the_one() {
    let Some((first, database)) = empty() else { return };
    let second = database.open().unwrap();
    for deaf in [false, true] {
        // The one by notification alone, the other by the look at the number alone.
        second.submit(Kind::Read, if deaf { unlisten } else { look_never }).await.unwrap();
        let (mut own, mut heard) = (first.changes(), second.changes());
        let name = if deaf { "dc2" } else { "dc1" };
        suite::create(&first, name, &[name]).await;
        tokio::time::timeout(HEARD_WITHIN, heard.changed()).await.expect("it is heard in time").unwrap();
        let tunnels = second.load().await.unwrap().tunnels;
        assert!(tunnels.iter().any(|tunnel| tunnel.name.as_str() == name));
        assert!(!own.has_changed().unwrap(), "nobody is told of what it did itself");
        own.mark_unchanged();
    }
}

fn look_never(engine: &mut Postgres) -> Result<(), Failure> {
    engine.look_at += Duration::from_secs(3_600);
    Ok(())
}

fn unlisten(engine: &mut Postgres) -> Result<(), Failure> {
    let State::Up(link) = &engine.state else { panic!("it is up") };
    Ok(engine.runtime.block_on(link.client.batch_execute("UNLISTEN *"))?)
}

#[tokio::test]
async fn what_was_noticed_and_what_was_refused_wakes_nobody() {
    let Some((first, database)) = empty() else { return };
    let second = database.open().unwrap();
    let (tunnel, token) = suite::create(&first, "dc1", &["orders"]).await;
    first.announce(tunnel.id.clone(), vec!["orders".parse().unwrap()], SystemTime::UNIX_EPOCH).await.unwrap();
    first.revoke_token(token.id.clone(), root(), SystemTime::UNIX_EPOCH).await.unwrap();
    let before = database.run("SELECT changes FROM culvert_registry");
    first.enrol(suite::candidate(&token, SystemTime::UNIX_EPOCH)).await.unwrap();
    first.announce(tunnel.id, vec!["orders".parse().unwrap()], SystemTime::UNIX_EPOCH).await.unwrap();
    first.forget(Vec::new(), SystemTime::UNIX_EPOCH).await.unwrap();
    let refused = first.revoke_connector(ConnectorId::new(), root(), SystemTime::UNIX_EPOCH).await;
    assert!(matches!(refused, Err(RegistryError::Rule(Rule::NoSuchConnector(_)))));
    assert_eq!(database.run("SELECT changes FROM culvert_registry"), before);
    drop(second);
}

#[tokio::test]
async fn relays_that_start_at_once_on_an_empty_database_make_its_tables_once() {
    let Some(database) = Database::new() else { return };
    let database = Arc::new(database);
    let opening: Vec<_> = (0..6)
        .map(|_| {
            let database = Arc::clone(&database);
            std::thread::spawn(move || database.open().map(drop))
        })
        .collect();
    for thread in opening {
        assert_eq!(thread.join().unwrap(), Ok(()));
    }
    assert_eq!(database.run("SELECT version FROM culvert_registry"), VERSION.to_string());
}

#[tokio::test]
async fn every_earlier_schema_is_brought_up_and_keeps_its_rows() {
    let Some(database) = Database::new() else { return };
    drop(database.open().unwrap());
    let fresh = columns(&database);
    for from in 1..VERSION {
        let Some(database) = Database::new() else { return };
        let target = database.target();
        alone(move || async move {
            let (client, connection) = target.config().unwrap().connect(tokio_postgres::NoTls).await.unwrap();
            let mut driver = JoinSet::new();
            driver.spawn(connection);
            schema::bring(&client, from).await.unwrap();
        });
        database.run(
            "INSERT INTO tunnels (id, name, shared, created) VALUES ('tnl_aaaaaaaaaaaaaaaa', 'dc1', 0, 1); \
             INSERT INTO tokens (id, tunnel, bootstrap_key, psk, created) VALUES \
             ('tok_aaaaaaaaaaaaaaaa', 'tnl_aaaaaaaaaaaaaaaa', decode(repeat('00', 32), 'hex'), '\\x00', 1)",
        );
        let snapshot = database.open().unwrap().load().await.unwrap();
        assert_eq!((snapshot.tunnels.len(), snapshot.tokens.len()), (1, 1), "from {from}");
        assert_eq!(columns(&database), fresh, "from {from}");
    }
}

fn columns(database: &Database) -> String {
    database.run(
        "SELECT table_name, column_name, data_type, is_nullable FROM information_schema.columns \
         WHERE table_schema = 'public' ORDER BY 1, 2",
    )
}

#[tokio::test]
async fn a_newer_schema_is_refused_at_the_start_and_stops_the_changes_of_who_runs() {
    let Some((registry, database)) = empty() else { return };
    database.run("UPDATE culvert_registry SET version = 999");
    let error = database.open().err().unwrap();
    assert!(matches!(error, RegistryError::Newer { found: 999, known: VERSION, .. }), "{error}");
    let id = ConnectorId::new();
    let refused = registry.revoke_connector(id, root(), SystemTime::UNIX_EPOCH).await;
    assert!(matches!(refused, Err(RegistryError::Newer { found: 999, .. })), "{refused:?}");
    assert!(registry.degraded().is_some());
    assert!(registry.load().await.is_ok(), "what can be read is read");
}

#[tokio::test]
async fn somebody_elses_database_is_refused_and_left_alone() {
    let Some(database) = Database::new() else { return };
    database.run("CREATE TABLE tunnels (length INT)");
    assert!(matches!(database.open().err().unwrap(), RegistryError::Corrupt { .. }));
    assert_eq!(database.run("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"), "1");
}

#[tokio::test]
async fn a_database_that_was_away_is_caught_up_with() {
    if skip::unless("the registry in PostgreSQL", &[Need::Postgres]) {
        return;
    }
    // A server of its own: others need theirs to stay.
    let server = Server::start().await.unwrap();
    let mut database = Database { server: Arc::new(server), name: "culvert".to_owned() };
    let registry: Subject = Arc::new(database.open().unwrap());
    suite::create(&registry, "dc1", &["orders"]).await;
    registry.load().await.unwrap();
    let heard = registry.changes();
    Arc::get_mut(&mut database.server).unwrap().stop().await.unwrap();
    eventually("it is noticed without a word", || registry.degraded().is_some()).await;
    let tunnel = suite::tunnel("dc2", &["users"]);
    let token = suite::token(&tunnel, None);
    let began = Instant::now();
    let refused = registry.create_tunnel(tunnel.clone(), token.clone(), root()).await.unwrap_err();
    assert!(
        matches!(&refused, RegistryError::Away { path, .. } if path.starts_with("postgres://culvert@")),
        "{refused}"
    );
    assert!(began.elapsed() < 2 * SOON, "nobody waits for it");
    assert!(registry.load().await.is_err());
    assert_eq!(registry.known().unwrap().tunnels.len(), 1, "what was loaded is still known");
    let unreachable = database.open().err().unwrap();
    assert!(unreachable.may_pass(), "{unreachable}");
    Arc::get_mut(&mut database.server).unwrap().restart().await.unwrap();
    eventually("it is back", || registry.degraded().is_none()).await;
    eventually("and all is read again", || heard.has_changed().unwrap()).await;
    registry.create_tunnel(tunnel, token, root()).await.unwrap();
    assert_eq!(registry.load().await.unwrap().tunnels.len(), 2, "nothing was lost, nothing came twice");
}

#[tokio::test]
async fn a_session_that_is_ended_by_the_server_costs_nobody_a_change() {
    let Some((registry, database)) = empty() else { return };
    for name in ["dc1", "dc2", "dc3"] {
        database.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'culvert-relay' AND datname = current_database()");
        suite::create(&registry, name, &[name]).await;
    }
    assert_eq!(registry.load().await.unwrap().tunnels.len(), 3);
}

#[tokio::test]
async fn a_lock_held_elsewhere_is_an_error_that_changes_nothing_and_reading_goes_on() {
    let Some((_, database)) = empty() else { return };
    let store = database.open().unwrap();
    store
        .submit(Kind::Read, |engine| {
            let State::Up(link) = &engine.state else { panic!("it is up") };
            Ok(engine.runtime.block_on(link.client.batch_execute("SET lock_timeout = '50ms'"))?)
        })
        .await
        .unwrap();
    let other = database.open().unwrap();
    let (held, is_held) = std::sync::mpsc::channel();
    let (release, released) = std::sync::mpsc::channel::<()>();
    let holding = tokio::spawn(async move {
        let hold = move |engine: &mut Postgres| {
            let work: Work<'_> = Box::new(|_| {
                held.send(()).unwrap();
                released.recv().unwrap();
                Ok(())
            });
            engine.transact(Kind::Write, work)
        };
        other.submit(Kind::Write, hold).await.unwrap();
    });
    tokio::task::spawn_blocking(move || is_held.recv().unwrap()).await.unwrap();
    let forgotten = store.forget(Vec::new(), SystemTime::UNIX_EPOCH).await;
    assert!(matches!(forgotten, Err(RegistryError::Locked { .. })), "{forgotten:?}");
    assert!(store.load().await.is_ok());
    release.send(()).unwrap();
    holding.await.unwrap();
    store.forget(Vec::new(), SystemTime::UNIX_EPOCH).await.unwrap();
    assert_eq!(store.degraded(), None);
}

#[tokio::test]
async fn the_audit_trail_is_neither_rewritten_nor_shortened() {
    let Some((registry, database)) = empty() else { return };
    suite::create(&registry, "dc1", &["orders"]).await;
    for sql in ["UPDATE audit SET actor = 'z'", "DELETE FROM audit", "TRUNCATE audit"] {
        let (server, name) = (Arc::clone(&database.server), database.name.clone());
        assert!(alone(move || async move { server.sql_in(&name, sql).await }).is_err(), "{sql}");
    }
    assert_eq!(registry.audit_since(SystemTime::UNIX_EPOCH).await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_wrong_password_is_told_without_the_password() {
    let Some(database) = Database::new() else { return };
    let target = |password: &str| {
        let url = format!("postgres://culvert@{}/{}", database.server.address(), database.name);
        Target::new(&url, Some(SecretSource::Literal(Secret::new(password)))).unwrap()
    };
    let error = open(&target("hunter2")).err().unwrap();
    assert!(matches!(error, RegistryError::Refused { .. }) && !error.may_pass());
    let error = error.to_string();
    assert!(error.contains("password authentication failed") && !error.contains("hunter2"), "{error}");
    assert!(open(&target(database.server.password())).is_ok());
}

#[tokio::test]
async fn as_much_is_asked_of_the_servers_certificate_as_the_url_says() {
    if skip::unless("the registry in PostgreSQL over TLS", &[Need::Postgres]) {
        return;
    }
    let server = Server::start().await.unwrap();
    let files = tempfile::tempdir().unwrap();
    let target = |host: &str, rest: &str| {
        let address = server.address();
        let url = format!("postgres://culvert@{host}:{}/culvert?hostaddr={}&{rest}", address.port(), address.ip());
        Target::new(&url, Some(SecretSource::Literal(Secret::new(server.password())))).unwrap()
    };
    let refusal = |host: &str, rest: &str| {
        let error = open(&target(host, rest)).err().unwrap();
        assert!(rest == "sslmode=require" || matches!(error, RegistryError::Refused { .. }), "{error}");
        error.to_string()
    };
    assert!(refusal("db.example", "sslmode=require").contains("does not support TLS"), "nothing goes in clear");
    let ours = certify(&server, files.path(), "db.example").await;
    let theirs = files.path().join("other.pem");
    std::fs::write(&theirs, authority().pem()).unwrap();
    let by = |mode: &str, roots: &std::path::Path| format!("sslmode={mode}&sslrootcert={}", roots.display());
    for (host, rest) in [
        ("db.example", by("verify-full", &ours)),
        ("other.example", by("verify-ca", &ours)),
        ("other.example", "sslmode=require".to_owned()),
        ("other.example", "sslmode=prefer".to_owned()),
    ] {
        let opened = open(&target(host, &rest)).unwrap();
        let sealed = "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
                      WHERE application_name = 'culvert-relay'";
        assert_eq!(server.sql(sealed).await.unwrap(), "t", "{host} {rest}");
        drop(opened);
    }
    for (host, rest) in [
        ("other.example", by("verify-full", &ours)),
        ("db.example", by("verify-full", &theirs)),
        ("db.example", by("verify-ca", &theirs)),
        ("db.example", String::new()),
    ] {
        let refused = refusal(host, &rest);
        assert!(refused.contains("certificate") && !refused.contains(server.password()), "{host} {rest}: {refused}");
    }
}

fn authority() -> rcgen::Certificate {
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap()
}

/// Gives the server a certificate of an authority made for it; returns the authority's file.
async fn certify(server: &Server, files: &std::path::Path, name: &str) -> std::path::PathBuf {
    use std::os::unix::fs::{PermissionsExt as _, chown};

    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key = rcgen::KeyPair::generate().unwrap();
    let roots = params.self_signed(&key).unwrap().pem();
    let issuer = rcgen::Issuer::new(params, key);
    let own = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&own, &issuer).unwrap();
    let file = |name: &str, text: String, mode: u32| {
        let path = files.join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path
    };
    std::fs::set_permissions(files, std::fs::Permissions::from_mode(0o755)).unwrap();
    let (roots, cert) = (file("ca.pem", roots, 0o644), file("server.pem", certificate.pem(), 0o644));
    let key = file("server.key", own.serialize_pem(), 0o600);
    if nix::unistd::geteuid().is_root() {
        let owner = std::fs::metadata(server.socket_directory()).unwrap();
        chown(&key, Some(std::os::unix::fs::MetadataExt::uid(&owner)), None).unwrap();
    }
    for (setting, value) in [("ssl_cert_file", &cert), ("ssl_key_file", &key)] {
        server.sql(&format!("ALTER SYSTEM SET {setting} = '{}'", value.display())).await.unwrap();
    }
    server.sql("ALTER SYSTEM SET ssl = on").await.unwrap();
    server.sql("SELECT pg_reload_conf()").await.unwrap();
    let until = Instant::now() + Duration::from_secs(10);
    while server.sql("SHOW ssl").await.unwrap() != "on" {
        assert!(Instant::now() < until, "{}", server.output());
    }
    roots
}
