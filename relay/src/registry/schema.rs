//! The tables, and how they came to be: every change of shape is one more migration, never an edit of an old one.
//!
//! Written once, in SQLite's words; another engine exchanges them for its own.

/// From schema version N to N + 1, in order.
pub(super) const MIGRATIONS: [Step; 9] = [
    Step { both: V1, sqlite: V1_SQLITE },
    Step { both: V2, sqlite: "" },
    Step { both: V3, sqlite: "" },
    Step { both: MANAGED, sqlite: "" },
    Step { both: RELAYS, sqlite: "" },
    Step { both: KEYS, sqlite: "" },
    Step { both: HEARD, sqlite: "" },
    Step { both: PROOFS, sqlite: "" },
    Step { both: PEERS, sqlite: "" },
];

/// The schema this program writes.
pub(super) const VERSION: u32 = MIGRATIONS.len() as u32;

/// One migration.
pub(super) struct Step {
    /// For both engines, in SQLite's words: `INTEGER`, `BLOB`, `STRICT`, `INTEGER PRIMARY KEY` for a number that rises.
    pub(super) both: &'static str,
    /// For SQLite alone.
    sqlite: &'static str,
}

impl Step {
    /// For SQLite.
    pub(super) fn sqlite(&self) -> String {
        [self.both, self.sqlite].concat()
    }
}

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
";

/// What was written stays as it was written.
const V1_SQLITE: &str = "
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

/// Services defined at the relay; what a token narrows its connectors to (grants separated by spaces, none = all that the
/// tunnel may serve), and how often it was used.
const MANAGED: &str = "
CREATE TABLE managed (
    name TEXT NOT NULL,
    tunnel TEXT NOT NULL REFERENCES tunnels ON DELETE CASCADE,
    origin TEXT NOT NULL,
    host TEXT,
    health_path TEXT,
    since INTEGER NOT NULL,
    PRIMARY KEY (name, tunnel)
) STRICT, WITHOUT ROWID;
ALTER TABLE tokens ADD COLUMN services TEXT NOT NULL DEFAULT '';
ALTER TABLE tokens ADD COLUMN used INTEGER NOT NULL DEFAULT 0;
UPDATE tokens SET used = (SELECT count(*) FROM connectors WHERE connectors.token = tokens.id);
ALTER TABLE connectors ADD COLUMN services TEXT NOT NULL DEFAULT '';
";

/// What connectors change to: their next key, from the moment it is known here until they use it alone.
const KEYS: &str = "
CREATE TABLE next_keys (
    connector TEXT PRIMARY KEY REFERENCES connectors ON DELETE CASCADE,
    public_key BLOB NOT NULL UNIQUE,
    since INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE next_psks (
    connector TEXT NOT NULL REFERENCES connectors ON DELETE CASCADE,
    relay TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    sealed BLOB NOT NULL,
    PRIMARY KEY (connector, relay, epoch)
) STRICT, WITHOUT ROWID;
ALTER TABLE connectors ADD COLUMN key_since INTEGER;
ALTER TABLE connectors ADD COLUMN safe_since INTEGER;
";

/// Where each relay last heard a connector: behind a NAT that differs, and so does the socket that it uses for each.
const HEARD: &str = "
CREATE TABLE heard (
    connector TEXT NOT NULL REFERENCES connectors ON DELETE CASCADE,
    relay TEXT NOT NULL,
    remote TEXT NOT NULL,
    local TEXT NOT NULL,
    PRIMARY KEY (connector, relay)
) STRICT, WITHOUT ROWID;
";

/// The public keys of what connectors sign, as a JSON list: served to verifiers whether the connector is there or not.
const PROOFS: &str = "
CREATE TABLE proof_keys (
    connector TEXT PRIMARY KEY REFERENCES connectors ON DELETE CASCADE,
    public_keys TEXT NOT NULL
) STRICT, WITHOUT ROWID;
";

/// The relays that share this registry, and what each of them opens tokens with that another made.
const RELAYS: &str = "
CREATE TABLE relays (
    tag TEXT PRIMARY KEY,
    public_key BLOB NOT NULL,
    kem_key BLOB NOT NULL,
    endpoints TEXT NOT NULL,
    seen INTEGER NOT NULL
) STRICT;
CREATE TABLE token_seals (
    token TEXT NOT NULL REFERENCES tokens ON DELETE CASCADE,
    relay TEXT NOT NULL REFERENCES relays ON DELETE CASCADE,
    sealed BLOB NOT NULL,
    PRIMARY KEY (token, relay)
) STRICT, WITHOUT ROWID;
";

/// Stock WireGuard peers and the services behind them. Networks are separated by spaces; a name is one peer's alone.
const PEERS: &str = "
CREATE TABLE peers (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    public_key BLOB NOT NULL,
    allowed_ips TEXT NOT NULL,
    inner_ipv4 TEXT,
    endpoint TEXT,
    psk BLOB,
    keepalive INTEGER,
    dns TEXT,
    created INTEGER NOT NULL,
    last_endpoint TEXT,
    last_handshake INTEGER,
    revoked INTEGER
) STRICT;
CREATE UNIQUE INDEX live_peer_names ON peers (name) WHERE revoked IS NULL;
CREATE UNIQUE INDEX live_peer_keys ON peers (public_key) WHERE revoked IS NULL;
CREATE UNIQUE INDEX live_peer_inner_ipv4 ON peers (inner_ipv4) WHERE revoked IS NULL;
CREATE TABLE peer_seals (
    peer TEXT NOT NULL REFERENCES peers ON DELETE CASCADE,
    relay TEXT NOT NULL REFERENCES relays ON DELETE CASCADE,
    sealed BLOB NOT NULL,
    PRIMARY KEY (peer, relay)
) STRICT, WITHOUT ROWID;
CREATE TABLE peer_heard (
    peer TEXT NOT NULL REFERENCES peers ON DELETE CASCADE,
    relay TEXT NOT NULL,
    remote TEXT NOT NULL,
    local TEXT NOT NULL,
    PRIMARY KEY (peer, relay)
) STRICT, WITHOUT ROWID;
CREATE TABLE peer_services (
    name TEXT PRIMARY KEY,
    peer TEXT NOT NULL REFERENCES peers ON DELETE CASCADE,
    origin TEXT NOT NULL,
    host TEXT,
    health_path TEXT,
    ca TEXT,
    since INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
";
