//! What the host does to a SQLite registry, seen from the command line: a full disk, somebody's lock, a damaged file.
//! Nothing is lost, and what is said names the reason.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

use culvert_lab::skip::{self, Need};
use rusqlite::Connection;
use tempfile::TempDir;

const RELAY: &str = env!("CARGO_BIN_EXE_culvert-relay");

#[test]
fn a_full_disk_refuses_a_change_by_name_and_loses_nothing() {
    if skip::unless("a registry on a full disk", &[Need::Root]) {
        return;
    }
    let state = state();
    // A file system of its own that goes with the shell: small, filled, emptied.
    let script = r#"
        set -eu
        mount -t tmpfs -o size=600k,mode=700 none "$STATE"
        create() { "$RELAY" tunnel create "$1" --service "$1" --endpoint relay.example:1 --state-dir "$STATE" >/dev/null; }
        create first
        cat /dev/zero >"$STATE/filler" 2>/dev/null || true
        status=0; create second 2>"$OUT/full" || status=$?
        echo "$status" >"$OUT/status"
        "$RELAY" tunnel list --state-dir "$STATE" >"$OUT/meanwhile" 2>&1 || true
        rm "$STATE/filler"
        create second
        "$RELAY" tunnel list --json --state-dir "$STATE" >"$OUT/after"
    "#;
    let out = state.path().join("out");
    fs::create_dir(&out).unwrap();
    let done = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "bash", "-c", script])
        .envs([("RELAY", Path::new(RELAY)), ("STATE", &state.path().join("state")), ("OUT", &out)])
        .output()
        .unwrap();
    let read = |name: &str| fs::read_to_string(out.join(name)).unwrap_or_default();
    assert!(done.status.success(), "{} {}", words(&done), read("full"));
    assert_eq!(read("status").trim(), "1", "{}", read("full"));
    assert!(read("full").contains("no room to write the registry"), "{}", read("full"));
    let after = read("after");
    assert!(after.contains("\"first\"") && after.contains("\"second\""), "{after}");
}

#[test]
fn a_lock_of_another_process_is_named_and_the_change_can_be_made_after_it() {
    let state = state();
    assert_eq!(create(&state, "first").status.code(), Some(0));
    let other = Connection::open(state.path().join("state/registry.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let refused = create(&state, "second");
    assert_eq!(refused.status.code(), Some(1), "{}", words(&refused));
    assert!(words(&refused).contains("is locked by another process"), "{}", words(&refused));
    other.execute_batch("ROLLBACK").unwrap();
    assert_eq!(create(&state, "second").status.code(), Some(0));
}

#[test]
fn a_damaged_registry_is_refused_for_good_and_not_touched() {
    let state = state();
    assert_eq!(create(&state, "first").status.code(), Some(0));
    let path = state.path().join("state/registry.db");
    let mut bytes = fs::read(&path).unwrap();
    let pages = bytes.len() / 4096;
    assert!(pages > 4, "{pages}");
    bytes[4096..].fill(0xa5);
    fs::write(&path, &bytes).unwrap();
    let refused = create(&state, "second");
    assert_eq!(refused.status.code(), Some(78), "{}", words(&refused));
    assert!(words(&refused).contains("is damaged") && words(&refused).contains("backup"), "{}", words(&refused));
    assert_eq!(fs::read(&path).unwrap(), bytes);
    let checked = relay(&state, &["check"]);
    assert!(words(&checked).contains("registry: sqlite, "), "{}", words(&checked));
}

fn state() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    fs::create_dir(&state).unwrap();
    fs::set_permissions(&state, fs::Permissions::from_mode(0o700)).unwrap();
    directory
}

fn create(state: &TempDir, name: &str) -> Output {
    relay(state, &["tunnel", "create", name, "--service", name, "--endpoint", "relay.example:1"])
}

fn relay(state: &TempDir, args: &[&str]) -> Output {
    let mut command = Command::new(RELAY);
    command.args(args).arg("--state-dir").arg(state.path().join("state"));
    command.env_clear().env("HOME", state.path()).output().unwrap()
}

fn words(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
