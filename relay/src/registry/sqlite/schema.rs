//! The tables, and how they came to be: every change of shape is one more migration, never an edit of an old one.

use rusqlite::{Connection, TransactionBehavior};

use super::failure::Failure;

/// "CULV": tells a registry from any other SQLite file.
const APPLICATION_ID: i32 = 0x4355_4c56;

/// From schema version N to N + 1, in order.
const MIGRATIONS: [&str; 3] = [V1, V2, V3];

/// The schema this program writes.
pub(super) const VERSION: u32 = MIGRATIONS.len() as u32;

/// Times are milliseconds since 1970, keys 32 raw bytes, addresses text.
const V1: &str = "
CREATE TABLE tunnels (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    shared INTEGER NOT NULL,
    created INTEGER NOT NULL,
    deleted INTEGER
) STRICT;
CREATE UNIQUE INDEX live_tunnel_names ON tunnels (name) WHERE deleted IS NULL;
CREATE TABLE grants (
    position INTEGER PRIMARY KEY,
    tunnel TEXT NOT NULL REFERENCES tunnels ON DELETE CASCADE,
    pattern TEXT NOT NULL,
    UNIQUE (tunnel, pattern)
) STRICT;
CREATE TABLE tokens (
    id TEXT PRIMARY KEY,
    tunnel TEXT NOT NULL REFERENCES tunnels,
    bootstrap_key BLOB NOT NULL UNIQUE,
    psk BLOB NOT NULL,
    uses_left INTEGER CHECK (uses_left >= 0),
    expires INTEGER,
    revoked INTEGER,
    created INTEGER NOT NULL,
    last_used INTEGER
) STRICT;
CREATE INDEX tokens_of_tunnels ON tokens (tunnel);
CREATE TABLE connectors (
    id TEXT PRIMARY KEY,
    tunnel TEXT NOT NULL REFERENCES tunnels,
    token TEXT NOT NULL,
    public_key BLOB NOT NULL UNIQUE,
    name TEXT,
    inner_address TEXT NOT NULL UNIQUE,
    ephemeral INTEGER NOT NULL,
    drained INTEGER NOT NULL DEFAULT 0,
    revoked INTEGER,
    enrolled INTEGER NOT NULL,
    last_endpoint TEXT,
    last_local TEXT,
    last_handshake INTEGER,
    version TEXT
) STRICT;
CREATE INDEX connectors_of_tunnels ON connectors (tunnel);
CREATE TABLE psks (
    connector TEXT NOT NULL REFERENCES connectors ON DELETE CASCADE,
    relay TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    sealed BLOB NOT NULL,
    confirmed INTEGER NOT NULL,
    PRIMARY KEY (connector, relay, epoch)
) STRICT, WITHOUT ROWID;
CREATE TABLE services (
    name TEXT NOT NULL,
    tunnel TEXT NOT NULL REFERENCES tunnels ON DELETE CASCADE,
    since INTEGER NOT NULL,
    PRIMARY KEY (name, tunnel)
) STRICT, WITHOUT ROWID;
CREATE TABLE audit (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    at INTEGER NOT NULL,
    actor TEXT NOT NULL,
    action TEXT NOT NULL,
    subject TEXT NOT NULL,
    detail TEXT NOT NULL
) STRICT;
CREATE INDEX audit_by_subject ON audit (subject, action, at);
CREATE TRIGGER audit_is_not_rewritten BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, 'audit is append-only'); END;
CREATE TRIGGER audit_is_not_shortened BEFORE DELETE ON audit BEGIN SELECT RAISE(ABORT, 'audit is append-only'); END;
";

/// Where a token may be used from: networks separated by spaces, none = anywhere.
const V2: &str = "ALTER TABLE tokens ADD COLUMN sources TEXT NOT NULL DEFAULT '';";

/// Who may call. Digests and salts are raw bytes.
const V3: &str = "
CREATE TABLE gateways (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    cert_sha256 BLOB,
    cert_san TEXT,
    created INTEGER NOT NULL,
    last_used INTEGER,
    revoked INTEGER,
    CHECK (cert_sha256 IS NULL OR cert_san IS NULL)
) STRICT;
CREATE UNIQUE INDEX live_gateway_names ON gateways (name) WHERE revoked IS NULL;
CREATE UNIQUE INDEX live_gateway_digests ON gateways (cert_sha256) WHERE revoked IS NULL;
CREATE UNIQUE INDEX live_gateway_sans ON gateways (cert_san) WHERE revoked IS NULL;
CREATE TABLE gateway_grants (
    position INTEGER PRIMARY KEY,
    gateway TEXT NOT NULL REFERENCES gateways ON DELETE CASCADE,
    pattern TEXT NOT NULL,
    UNIQUE (gateway, pattern)
) STRICT;
CREATE TABLE gateway_secrets (
    position INTEGER PRIMARY KEY,
    gateway TEXT NOT NULL REFERENCES gateways ON DELETE CASCADE,
    salt BLOB NOT NULL,
    digest BLOB NOT NULL,
    created INTEGER NOT NULL,
    until INTEGER
) STRICT;
CREATE INDEX secrets_of_gateways ON gateway_secrets (gateway);
";

/// Brings the database to [`VERSION`]: all steps in one transaction, so that a crash leaves the old schema whole.
pub(super) fn migrate(connection: &mut Connection) -> Result<(), Failure> {
    if state(connection)? == State::Current {
        return Ok(());
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // Read again under the lock: another process may have been first.
    if let State::At(from) = state(&transaction)? {
        for step in MIGRATIONS.iter().skip(from as usize) {
            transaction.execute_batch(step)?;
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

#[cfg(test)]
mod tests {
    use super::*;

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
                connection.execute_batch(step).unwrap();
            }
            connection.pragma_update(None, "application_id", APPLICATION_ID).unwrap();
            connection.pragma_update(None, "user_version", from).unwrap();
            let rows = "INSERT INTO tunnels (id, name, shared, created) VALUES ('tnl_aaaaaaaaaaaaaaaa', 'dc1', 0, 1);
                INSERT INTO tokens (id, tunnel, bootstrap_key, psk, created) VALUES
                ('tok_aaaaaaaaaaaaaaaa', 'tnl_aaaaaaaaaaaaaaaa', zeroblob(32), zeroblob(72), 1);";
            connection.execute_batch(rows).unwrap();
            migrate(&mut connection).unwrap();
            assert_eq!(state(&connection).unwrap(), State::Current);
            let tokens = super::super::read::tokens(&connection).unwrap();
            assert_eq!((tokens.len(), tokens[0].sources.len()), (1, 0), "from {from}");
            assert!(super::super::read::snapshot(&connection).unwrap().gateways.is_empty());
        }
    }

    #[test]
    fn a_migration_that_fails_leaves_the_old_schema_whole() {
        let mut connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(V1).unwrap();
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
}
