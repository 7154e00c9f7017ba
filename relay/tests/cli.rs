//! The built binary, where no relay has to run: what it says, what it prints, how it ends.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::Path;
use std::process::{Command, Stdio};

use culvert_model::gateway::{Credential, GatewaySecret};
use culvert_model::key::PrivateKey;
use culvert_model::token::Token;
use culvert_ops::state::StateDir;
use serde_json::Value;

use golden::golden;

#[path = "golden/compare.rs"]
mod golden;

/// Every command that exists now, as typed.
const COMMANDS: [&str; 52] = [
    "",
    "run",
    "dev",
    "tunnel",
    "tunnel create",
    "tunnel set",
    "tunnel list",
    "tunnel show",
    "tunnel delete",
    "token",
    "token create",
    "token list",
    "token revoke",
    "connector",
    "connector list",
    "connector show",
    "connector drain",
    "connector undrain",
    "connector revoke",
    "service",
    "service list",
    "service show",
    "service set",
    "service delete",
    "gateway",
    "gateway create",
    "gateway set",
    "gateway rotate",
    "gateway list",
    "gateway revoke",
    "peer",
    "peer add",
    "peer list",
    "peer show",
    "peer config",
    "peer delete",
    "key",
    "key show",
    "key rotate",
    "audit",
    "status",
    "backup",
    "restore",
    "genkey",
    "pubkey",
    "genpsk",
    "ready",
    "reload",
    "check",
    "completion",
    "tunnel ls",
    "tunnel rm",
];

#[test]
fn every_command_has_help_and_it_reads_well() {
    let mut text = String::new();
    for command in COMMANDS {
        let mut words: Vec<&str> = command.split(' ').filter(|word| !word.is_empty()).collect();
        words.push("--help");
        let ended = relay(&words);
        assert_eq!(ended.status, 0, "{command}");
        assert!(ended.stderr.is_empty(), "{command}");
        if !command.ends_with("ls") && !command.ends_with("rm") {
            text.push_str(&format!("$ culvert-relay {}\n{}\n", words.join(" "), ended.stdout));
        }
    }
    golden("help.txt", &text);
}

#[test]
fn each_mistake_about_a_peer_is_told_in_a_line_and_ends_with_its_status() {
    let state = StateDir::temporary().unwrap();
    let place = ["--state-dir", state.path().to_str().unwrap()];
    let key = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";
    let nets = "10.20.0.0/16";
    let secret = "GDlUgjoHEhXIRMIm4rhIjH1ZlCJbHXI1xNZKhZ1hZ2A=";
    let added = relay(&[&["peer", "add", "branch", "--public-key", key, "--allowed-ips", nets][..], &place].concat());
    assert_eq!(added.status, 0, "{}", added.stderr);
    assert_eq!(added.stdout, "");
    for (words, status, said) in [
        (&["peer", "add", "b", "--public-key", "short", "--allowed-ips", nets][..], 2, "44 characters of base64"),
        (&["peer", "add", "b", "--public-key", key, "--allowed-ips", "10.20.0.0/40"], 2, "a network is expected"),
        (
            &["peer", "add", "b", "--public-key", key, "--allowed-ips", nets, "--persistent-keepalive", "0"],
            2,
            "1 to 65535",
        ),
        (
            &["peer", "add", "b", "--public-key", key, "--allowed-ips", nets, "--persistent-keepalive", "70000"],
            2,
            "1 to 65535",
        ),
        (
            &["peer", "add", "b", "--public-key", key, "--allowed-ips", nets, "--preshared-key", secret],
            2,
            "names a file",
        ),
        (
            &["peer", "add", "b", "--public-key", key, "--allowed-ips", nets, "--preshared-key", "/none"],
            1,
            "cannot read /none",
        ),
        (
            &["peer", "add", "b", "--public-key", key, "--allowed-ips", "10.30.0.0/16"],
            1,
            "that public key is peer branch's",
        ),
        (
            &["peer", "add", "b", "--generate-key", "--allowed-ips", nets],
            78,
            "nothing tells where the other side dials",
        ),
        (&["peer", "config", "branch"], 78, "nothing tells where the other side dials"),
        (&["peer", "show", "nobody"], 1, "no peer \"nobody\""),
        (&["service", "set", "a", "--origin", "http://10.20.0.5"], 2, "--tunnel <TUNNEL>|--peer <PEER>"),
        (
            &["service", "set", "a", "--peer", "p", "--tunnel", "t", "--origin", "http://10.20.0.5"],
            2,
            "cannot be used with",
        ),
        (
            &["service", "set", "a", "--peer", "branch", "--origin", "http://10.30.0.5"],
            1,
            "not in the allowed IPs of peer branch",
        ),
        (
            &["service", "set", "a", "--peer", "branch", "--origin", "http://app.internal"],
            1,
            "no resolver inside the network",
        ),
        (&["service", "set", "a", "--peer", "branch", "--origin", "unix:/run/app.sock"], 1, "a socket of one machine"),
        (
            &["service", "set", "a", "--peer", "branch", "--origin", "https://10.20.0.5", "--ca", "/none"],
            1,
            "cannot be read",
        ),
    ] {
        let ended = relay(&[words, &place].concat());
        assert_eq!(ended.status, status, "{words:?}: {}", ended.stderr);
        assert!(ended.stdout.is_empty() && ended.stderr.contains(said), "{words:?}: {}", ended.stderr);
        assert!(!ended.stderr.contains(secret), "{words:?}: {}", ended.stderr);
    }
}

#[test]
fn what_is_later_is_not_in_help() {
    let help = relay(&["--help"]).stdout;
    assert!(!help.lines().any(|line| line.trim_start().starts_with("doctor")), "{help}");
}

#[test]
fn the_version_and_completions_are_data() {
    assert_eq!(relay(&["--version"]).stdout, format!("culvert-relay {}\n", env!("CARGO_PKG_VERSION")));
    for shell in ["bash", "zsh", "fish"] {
        let script = relay(&["completion", shell]);
        assert!(script.status == 0 && script.stdout.contains("culvert-relay"), "{shell}");
    }
    assert_eq!(relay(&["completion", "tcsh"]).status, 2);
}

#[test]
fn wrong_usage_ends_2_with_words_on_stderr_alone() {
    for words in [&["frobnicate"][..], &["tunnel", "create", "dc1"], &["tunnel", "list", "--frobnicate"], &[]] {
        let ended = relay(words);
        assert_eq!((ended.status, ended.stdout.as_str()), (2, ""), "{words:?}");
        assert!(!ended.stderr.is_empty(), "{words:?}");
    }
}

#[test]
fn a_secret_on_the_command_line_ends_2_and_is_not_repeated() {
    let state = state();
    let token = create(&state, "dc1", &["orders"]);
    for words in [
        vec!["tunnel", "show", &token],
        vec!["token", "revoke", &token],
        vec!["run", "--registry", "postgres://u:hunter2@h/d"],
    ] {
        let ended = relay(&words);
        assert_eq!(ended.status, 2, "{words:?}");
        let said = format!("{}{}", ended.stdout, ended.stderr);
        assert!(!said.contains(&token) && !said.contains("hunter2"), "{said}");
        assert!(ended.stderr.contains("command line") && ended.stderr.contains("file"), "{}", ended.stderr);
    }
}

#[test]
fn a_command_without_a_state_directory_ends_1_names_where_it_looked_and_makes_none() {
    let home = tempfile::tempdir().unwrap();
    let missing = home.path().join("missing");
    let ended = relay(&["tunnel", "list", "--state-dir", missing.to_str().unwrap()]);
    assert_eq!(ended.status, 1);
    assert!(ended.stderr.contains(missing.to_str().unwrap()), "{}", ended.stderr);
    assert!(!missing.exists());
    let ended = command(&["tunnel", "list"]).env("CULVERT_RELAY_STATE_DIR", &missing).output().unwrap();
    assert_eq!(ended.status.code(), Some(1));
    assert!(!missing.exists());
}

#[test]
fn a_tunnel_lives_from_create_to_delete_without_a_relay() {
    let state = state();
    let token: Token = create(&state, "dc1", &["orders", "billing-*"]).parse().unwrap();
    let shown = at(&state, &["key", "show"]).stdout;
    assert_eq!(shown.trim_end(), token.relays()[0].public_key.to_string());
    let listed = at(&state, &["tunnel", "list", "--json"]).json();
    assert_eq!(listed[0]["services"], serde_json::json!(["orders", "billing-*"]));
    let set = ["tunnel", "set", "dc1", "--add-service", "users", "--remove-service", "orders", "--json"];
    assert_eq!(at(&state, &set).json()["services"], serde_json::json!(["billing-*", "users"]));
    let more = ["token", "create", "dc1", "--uses", "unlimited", "--expires", "never", "--endpoint", "r:1", "--json"];
    let token = at(&state, &more).json();
    assert_eq!((&token["uses_left"], &token["expires"]), (&Value::Null, &Value::Null));
    let revoked = at(&state, &["token", "revoke", token["id"].as_str().unwrap()]);
    assert_eq!((revoked.status, revoked.stdout.as_str()), (0, ""));
    let states = at(&state, &["token", "ls", "dc1", "--json"]).json();
    let states: Vec<_> = states.as_array().unwrap().iter().map(|one| one["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["active", "revoked"]);
    assert_eq!(at(&state, &["tunnel", "rm", "dc1"]).status, 0);
    assert_eq!(at(&state, &["tunnel", "list", "--json"]).stdout, "[]\n");
    assert_eq!(at(&state, &["tunnel", "show", "dc1"]).status, 1);
}

#[test]
fn a_gateway_lives_from_create_to_revoke_without_a_relay_and_its_secret_is_alone_on_stdout() {
    let state = state();
    create(&state, "dc1", &["orders"]);
    let created = at(&state, &["gateway", "create", "kong", "--service", "orders"]);
    assert_eq!((created.status, created.stdout.lines().count()), (0, 1), "{}", created.stderr);
    let credential = created.stdout.trim_end();
    assert!(credential.parse::<Credential>().is_ok_and(|read| read.name.as_str() == "kong"));
    assert!(!created.stderr.contains("culvert_g1_"));
    let secret = credential.split_once(':').unwrap().1;
    let database = fs::read(state.path().join("registry.db")).unwrap();
    assert!(!database.windows(20).any(|window| secret.as_bytes().windows(20).any(|part| part == window)));
    let listed = at(&state, &["gateway", "list", "--json"]).json();
    assert_eq!((&listed[0]["name"], &listed[0]["last_used"]), (&Value::from("kong"), &Value::Null));
    assert!(!listed.to_string().contains("culvert_g1_"));
    let set = ["gateway", "set", "kong", "--add-service", "billing-*", "--cert-san", "kong.example", "--json"];
    let set = at(&state, &set).json();
    assert_eq!(set["services"], serde_json::json!(["orders", "billing-*"]));
    assert_eq!(set["certificate"], "san:kong.example");
    let rotated = at(&state, &["gateway", "rotate", "kong", "--grace", "0s", "--json"]).json();
    assert_eq!(rotated["secrets"], 1);
    assert!(rotated["secret"].as_str().unwrap().parse::<GatewaySecret>().is_ok());
    for words in [vec!["gateway", "revoke", credential], vec!["gateway", "list", secret]] {
        let ended = at(&state, &words);
        assert_eq!(ended.status, 2, "{words:?}");
        assert!(!ended.stderr.contains(secret), "{}", ended.stderr);
    }
    let revoked = at(&state, &["gateway", "rm", "kong"]);
    assert_eq!((revoked.status, revoked.stdout.as_str()), (0, ""));
    assert_eq!(at(&state, &["gateway", "list", "--json"]).stdout, "[]\n");
    assert_eq!(at(&state, &["gateway", "revoke", "kong"]).status, 1);
}

#[test]
fn the_token_is_alone_on_stdout_and_the_state_directory_is_said_on_stderr() {
    let state = state();
    let ended = at(&state, &["tunnel", "create", "dc1", "--service", "orders", "--endpoint", "r.example:1"]);
    assert_eq!(ended.status, 0);
    let mut lines = ended.stdout.lines();
    assert!(lines.next().unwrap().parse::<Token>().is_ok());
    assert_eq!(lines.next(), None);
    assert!(ended.stderr.contains(state.path().to_str().unwrap()));
    assert!(!ended.stderr.contains("culvert_t1_"));
}

#[test]
fn without_an_endpoint_a_token_ends_78_with_what_to_set() {
    let state = state();
    let ended = at(&state, &["tunnel", "create", "dc1", "--service", "orders"]);
    assert_eq!((ended.status, ended.stdout.as_str()), (78, ""));
    assert!(ended.stderr.contains("endpoints = ") && ended.stderr.contains("--endpoint"), "{}", ended.stderr);
    let config = state.path().join("relay.toml");
    fs::write(&config, "[wireguard]\nendpoints = [\"relay.example.com:51820\"]\n").unwrap();
    let config = config.to_str().unwrap();
    let ended = at(&state, &["tunnel", "create", "dc1", "--service", "orders", "--config", config]);
    let token: Token = ended.stdout.trim_end().parse().unwrap();
    assert_eq!(token.relays()[0].endpoint.to_string(), "relay.example.com:51820");
}

#[test]
fn status_ready_and_reload_end_1_where_no_relay_runs() {
    let state = state();
    for words in [&["status"][..], &["ready"], &["ready", "--service", "orders"], &["reload"]] {
        let ended = at(&state, words);
        assert_eq!((ended.status, ended.stdout.as_str()), (1, ""), "{words:?}");
        assert!(ended.stderr.contains("not running"), "{}", ended.stderr);
    }
}

#[test]
fn check_says_where_each_value_comes_from_and_a_wrong_file_ends_78_with_its_line() {
    let place = tempfile::tempdir().unwrap();
    let config = place.path().join("relay.toml");
    fs::write(&config, "[http]\ndomain = \"example\"\n").unwrap();
    let path = config.to_str().unwrap();
    let ended = relay(&["check", "--config", path, "--http-listen", "127.0.0.1:7000"]);
    assert_eq!(ended.status, 0);
    assert!(ended.stdout.contains(&format!("http.domain = \"example\"  # {path}:2")), "{}", ended.stdout);
    assert!(ended.stdout.contains("http.listen = [\"127.0.0.1:7000\"]  # --http-listen"), "{}", ended.stdout);
    assert!(ended.stdout.contains("# default"));
    let json = relay(&["check", "--config", path, "--json"]).json();
    assert!(json.as_array().unwrap().iter().any(|one| one["key"] == "http.domain"));
    fs::write(&config, "[http]\ndomian = \"example\"\n").unwrap();
    let ended = relay(&["check", "--config", path]);
    assert_eq!(ended.status, 78);
    assert!(ended.stderr.contains("relay.toml:2") && ended.stderr.contains("domain"), "{}", ended.stderr);
    assert_eq!(relay(&["check", "--config", "/nowhere/relay.toml"]).status, 78);
    // What an origin behind a peer is to get is read: it would else be missed at the first request.
    fs::write(&config, "[service.legacy.headers]\nx-key = { file = \"missing.key\" }\n").unwrap();
    let ended = relay(&["check", "--config", path]);
    assert_eq!(ended.status, 78);
    assert!(ended.stderr.contains("service.legacy.headers.x-key: cannot read"), "{}", ended.stderr);
}

#[test]
fn keys_are_bytes_in_and_out_as_wg_has_them() {
    let private = relay(&["genkey"]).stdout;
    let key: PrivateKey = private.trim_end().parse().unwrap();
    assert_eq!(private.len(), 45);
    assert_eq!(piped(&["pubkey"], &private).stdout, format!("{}\n", key.public_key()));
    assert_eq!(relay(&["genpsk"]).stdout.len(), 45);
    assert_ne!(relay(&["genkey"]).stdout, private);
    for bad in ["", "hello\n", &private[1..]] {
        let ended = piped(&["pubkey"], bad);
        assert_eq!((ended.status, ended.stdout.as_str()), (1, ""), "{bad:?}");
    }
    let Ok(mut wg) = Command::new("wg").arg("pubkey").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn() else {
        eprintln!("SKIPPED: wg is not installed, its pubkey is not compared");
        return;
    };
    wg.stdin.take().unwrap().write_all(private.as_bytes()).unwrap();
    let theirs = String::from_utf8(wg.wait_with_output().unwrap().stdout).unwrap();
    assert_eq!(theirs, piped(&["pubkey"], &private).stdout);
}

#[test]
fn what_others_can_read_ends_78_with_the_cure() {
    let state = state();
    create(&state, "dc1", &["orders"]);
    for file in ["private.key", "registry.db", "."] {
        let path = state.path().join(file);
        let before = fs::metadata(&path).unwrap().permissions();
        fs::set_permissions(&path, fs::Permissions::from_mode(before.mode() | 0o004)).unwrap();
        let ended = at(&state, &["tunnel", "list"]);
        fs::set_permissions(&path, before).unwrap();
        assert_eq!(ended.status, 78, "{file}: {}", ended.stderr);
        assert!(ended.stderr.contains("chmod"), "{}", ended.stderr);
    }
    assert_eq!(at(&state, &["tunnel", "list"]).status, 0);
}

#[test]
fn a_damaged_newer_or_orphaned_registry_ends_78_and_is_left_alone() {
    let state = state();
    create(&state, "dc1", &["orders"]);
    let database = state.path().join("registry.db");
    let good = fs::read(&database).unwrap();
    assert!(!state.path().join("registry.db-wal").exists(), "the log is folded in when a command ends");

    fs::write(&database, vec![0x5a; 8192]).unwrap();
    let ended = at(&state, &["tunnel", "list"]);
    assert_eq!(ended.status, 78);
    assert!(ended.stderr.contains("damaged") && ended.stderr.contains("backup"), "{}", ended.stderr);
    assert_eq!(fs::read(&database).unwrap(), vec![0x5a; 8192]);

    // The schema's number is a big-endian word at offset 60 (SQLite's file format §1.3).
    let mut newer = good.clone();
    newer[60..64].copy_from_slice(&999u32.to_be_bytes());
    fs::write(&database, &newer).unwrap();
    let ended = at(&state, &["tunnel", "list"]);
    assert_eq!(ended.status, 78);
    assert!(ended.stderr.contains("schema 999"), "{}", ended.stderr);

    fs::write(&database, &good).unwrap();
    let kept = fs::read(state.path().join("state.key")).unwrap();
    fs::remove_file(state.path().join("state.key")).unwrap();
    let ended = at(&state, &["tunnel", "list"]);
    assert_eq!(ended.status, 78);
    assert!(ended.stderr.contains("state.key is missing"), "{}", ended.stderr);
    state.write("state.key", &kept).unwrap();
    assert_eq!(at(&state, &["tunnel", "list", "--json"]).json().as_array().unwrap().len(), 1);
}

#[test]
fn commands_at_the_same_time_wait_for_each_other() {
    let state = state();
    create(&state, "dc0", &["s0"]);
    let running: Vec<_> = (1..=6)
        .map(|number| {
            let (name, service) = (format!("dc{number}"), format!("s{number}"));
            let words = ["tunnel", "create", &name, "--service", &service, "--endpoint", "r:1"];
            in_state(&state, &words).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    for one in running {
        let ended = one.wait_with_output().unwrap();
        assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    }
    assert_eq!(at(&state, &["tunnel", "list", "--json"]).json().as_array().unwrap().len(), 7);
}

#[test]
fn a_state_directory_in_use_ends_1_with_the_pid_of_its_user() {
    let state = state();
    let _lock = state.lock().unwrap();
    let ended = at(&state, &["tunnel", "list"]);
    assert_eq!(ended.status, 1);
    assert!(ended.stderr.contains(&std::process::id().to_string()), "{}", ended.stderr);
}

#[test]
fn what_root_makes_in_a_services_directory_belongs_to_the_service() {
    let state = state();
    if chown(state.path(), Some(4321), Some(4322)).is_err() {
        eprintln!("SKIPPED: only root can give files away");
        return;
    }
    create(&state, "dc1", &["orders"]);
    let files: Vec<_> = fs::read_dir(state.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(files.iter().any(|path| path.ends_with("registry.db")));
    for path in files {
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (4321, 4322), "{}", path.display());
        assert_eq!(metadata.mode() & 0o077, 0, "{}", path.display());
    }
}

struct Ended {
    status: i32,
    stdout: String,
    stderr: String,
}

impl Ended {
    fn json(&self) -> Value {
        assert_eq!(self.status, 0, "{}", self.stderr);
        serde_json::from_str(&self.stdout).unwrap()
    }
}

fn state() -> StateDir {
    StateDir::temporary().unwrap()
}

/// Creates a tunnel and gives its token.
fn create(state: &StateDir, name: &str, services: &[&str]) -> String {
    let mut words = vec!["tunnel", "create", name, "--endpoint", "relay.example.com:51820"];
    words.extend(services.iter().flat_map(|service| ["--service", service]));
    let ended = at(state, &words);
    assert_eq!(ended.status, 0, "{}", ended.stderr);
    ended.stdout.trim_end().to_owned()
}

fn at(state: &StateDir, words: &[&str]) -> Ended {
    ended(in_state(state, words))
}

fn in_state(state: &StateDir, words: &[&str]) -> Command {
    let mut command = command(words);
    command.arg("--state-dir").arg(state.path());
    command
}

fn relay(words: &[&str]) -> Ended {
    ended(command(words))
}

/// Without anything of this host in its environment: no home, no settings.
fn command(words: &[&str]) -> Command {
    let mut command = Command::new(Path::new(env!("CARGO_BIN_EXE_culvert-relay")));
    command.args(words).env_clear().stdin(Stdio::null());
    command
}

fn piped(words: &[&str], input: &str) -> Ended {
    let mut child = command(words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    read(child.wait_with_output().unwrap())
}

fn ended(mut command: Command) -> Ended {
    read(command.output().unwrap())
}

fn read(output: std::process::Output) -> Ended {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ended { status: output.status.code().unwrap(), stdout: text(output.stdout), stderr: text(output.stderr) }
}
