//! The built binary as an operator meets it, where no relay is needed: usage, configuration, state, tokens.

use std::fs::{self, Permissions};
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use culvert_model::key::PrivateKey;
use culvert_model::token::{RelayRef, Token};

struct Host(tempfile::TempDir);

impl Host {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn state(&self) -> String {
        self.path("state").display().to_string()
    }

    fn write(&self, name: &str, text: &str, mode: u32) -> String {
        fs::write(self.path(name), text).unwrap();
        fs::set_permissions(self.path(name), Permissions::from_mode(mode)).unwrap();
        self.path(name).display().to_string()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_culvert-connector"));
        command.args(args).env_clear().env("HOME", self.0.path()).env("CULVERT_LOG_FORMAT", "human");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs a command that ends by itself.
    fn run(&self, args: &[&str]) -> Ran {
        Ran::of(self.command(args).output().unwrap())
    }
}

struct Ran {
    status: i32,
    out: String,
    err: String,
}

impl Ran {
    fn of(output: Output) -> Self {
        Self {
            status: output.status.code().unwrap_or(-1),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// A process that runs until it is told otherwise. Killed on drop.
struct Running {
    child: Child,
    log: PathBuf,
}

impl Running {
    fn start(host: &Host, args: &[&str]) -> Self {
        let log = host.path("log");
        let mut command = host.command(args);
        command.stderr(fs::File::create(&log).unwrap());
        Self { child: command.spawn().unwrap(), log }
    }

    /// Waits for a word in the log.
    fn says(&self, words: &str) -> String {
        let deadline = Instant::now() + Duration::from_secs(15);
        loop {
            let text = fs::read_to_string(&self.log).unwrap();
            if text.contains(words) {
                return text;
            }
            assert!(Instant::now() < deadline, "{words:?} is not in\n{text}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
    }

    fn end(&mut self) -> i32 {
        self.child.wait().unwrap().code().unwrap_or(-1)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A token for a relay that is at this endpoint or not.
fn token(endpoint: &str) -> String {
    let relay = RelayRef { endpoint: endpoint.parse().unwrap(), public_key: PrivateKey::generate().public_key() };
    Token::generate(vec![relay]).to_text().to_string()
}

#[test]
fn every_command_has_help_and_a_version() {
    let host = Host::new();
    for args in [
        &["--help"][..],
        &["run", "--help"],
        &["key", "--help"],
        &["key", "show", "--help"],
        &["key", "rotate", "--help"],
        &["status", "--help"],
        &["ready", "--help"],
        &["reload", "--help"],
        &["check", "--help"],
        &["completion", "--help"],
    ] {
        let ran = host.run(args);
        assert!(ran.status == 0 && ran.out.contains("Usage: culvert-connector"), "{args:?} {}", ran.err);
    }
    assert!(host.run(&["--version"]).out.starts_with("culvert-connector "));
    for shell in ["bash", "zsh", "fish"] {
        let ran = host.run(&["completion", shell]);
        assert!(ran.status == 0 && ran.out.contains("culvert-connector"), "{shell}");
    }
}

#[test]
fn wrong_usage_ends_2() {
    let host = Host::new();
    for args in [&["fly"][..], &["run", "--frobnicate"], &["key", "sing"], &["completion", "tcsh"], &[]] {
        assert_eq!(host.run(args).status, 2, "{args:?}");
    }
    let ran = host.run(&["check", "--service", "orders"]);
    assert!(ran.status == 2 && ran.err.contains("--service: \"orders\" is not NAME=ORIGIN"), "{}", ran.err);
}

#[test]
fn a_secret_on_the_command_line_ends_2_and_is_not_repeated() {
    let host = Host::new();
    let token = token("relay.example:51820");
    for args in [["run", token.as_str()], ["run", "--service=a=http://user:hunter2@x"]] {
        let ran = host.run(&args);
        assert_eq!(ran.status, 2);
        assert!(
            ran.err.contains("command line") && !ran.err.contains("hunter2") && !ran.err.contains(&token),
            "{}",
            ran.err
        );
    }
}

#[test]
fn a_wrong_configuration_ends_78_with_file_and_line() {
    let host = Host::new();
    for (text, says) in [
        ("[[service]]\nnme = \"a\"\n", ":2: unknown key \"service.nme\"; did you mean \"service.name\"?"),
        ("[[service]]\nname = \"a\"\norigin = \"ftp://x:1\"\n", ":3: service[0].origin: origins of the kind \"ftp\""),
        ("[service]\n", "[[service]]"),
        ("not toml", ":1: "),
    ] {
        let file = host.write("connector.toml", text, 0o644);
        for verb in ["check", "run"] {
            let ran = host.run(&[verb, "--config", &file, "--state-dir", &host.state()]);
            assert_eq!(ran.status, 78, "{verb} {text} {}", ran.err);
            assert!(ran.err.contains(says), "{text}\n{}", ran.err);
        }
    }
    let ran = host.run(&["check", "--config", "/no/such/file.toml"]);
    assert!(ran.status == 78 && ran.err.contains("/no/such/file.toml"), "{}", ran.err);
}

#[test]
fn check_prints_each_value_with_its_source_and_no_secret() {
    let host = Host::new();
    let text = "[[service]]\nname = \"a\"\norigin = \"http://x\"\n[service.headers]\nauthorization = \"hunter2\"\n";
    let file = host.write("connector.toml", text, 0o600);
    let ran = host.run(&["check", "--config", &file, "--service", "b=unix:/run/b.sock"]);
    assert_eq!(ran.status, 0, "{}", ran.err);
    assert!(!ran.out.contains("hunter2") && !ran.err.contains("hunter2"));
    for line in [
        "admin.listen = \"127.0.0.1:9481\"  # default",
        "service[0].origin = \"http://x\"  # ",
        "service[1].name = \"b\"  # --service",
    ] {
        assert!(ran.out.contains(line), "{line}\n{}", ran.out);
    }
    let json: serde_json::Value = serde_json::from_str(&host.run(&["check", "--json", "--config", &file]).out).unwrap();
    assert!(json.as_array().is_some_and(|values| values.iter().all(|value| value["key"].is_string())));
}

#[test]
fn a_connector_that_never_joined_needs_a_token() {
    let host = Host::new();
    let ran = host.run(&["run", "--state-dir", &host.state()]);
    assert_eq!(ran.status, 78);
    assert!(ran.err.contains("has not joined yet") && ran.err.contains("CULVERT_TOKEN"), "{}", ran.err);
}

#[test]
fn a_malformed_token_ends_78_without_a_packet() {
    let host = Host::new();
    let mut damaged = token("relay.example:51820");
    damaged.truncate(damaged.len() - 2);
    for (text, says) in
        [("hello", "not a Culvert token"), (damaged.as_str(), "damaged"), ("culvert_t9_x", "newer kind")]
    {
        let file = host.write("token", text, 0o600);
        let ran = host.run(&["run", "--state-dir", &host.state(), "--token-file", &file]);
        assert!(ran.status == 78 && ran.err.contains(says) && !ran.err.contains(text), "{text} {}", ran.err);
    }
    let file = host.write("token", "\n", 0o600);
    let ran = host.run(&["run", "--state-dir", &host.state(), "--token-file", &file]);
    assert!(ran.status == 78 && ran.err.contains("empty"), "{}", ran.err);
}

#[test]
fn a_state_directory_that_others_can_read_is_refused() {
    let host = Host::new();
    fs::create_dir(host.path("state")).unwrap();
    fs::set_permissions(host.path("state"), Permissions::from_mode(0o755)).unwrap();
    let ran = host.run(&["run", "--state-dir", &host.state()]);
    assert!(ran.status == 78 && ran.err.contains("chmod 700"), "{}", ran.err);
}

#[test]
fn commands_without_a_running_connector_end_1() {
    let host = Host::new();
    for verb in [&["status"][..], &["ready"], &["reload"], &["key", "show"]] {
        let mut args = verb.to_vec();
        let state = host.state();
        args.extend(["--state-dir", &state]);
        let ran = host.run(&args);
        assert!(ran.status == 1 && ran.err.contains(&state), "{verb:?} {}", ran.err);
    }
    fs::create_dir(host.path("state")).unwrap();
    fs::set_permissions(host.path("state"), Permissions::from_mode(0o700)).unwrap();
    let ran = host.run(&["status", "--state-dir", &host.state()]);
    assert!(ran.status == 1 && ran.err.contains("not running"), "{}", ran.err);
    let ran = host.run(&["key", "show", "--state-dir", &host.state()]);
    assert!(ran.status == 1 && ran.err.contains("has not joined yet"), "{}", ran.err);
}

/// A connector whose relay is at `endpoint`, with a token file of a mounted secret's mode.
fn joining(host: &Host, endpoint: &str) -> Running {
    let file = host.write("token", &token(endpoint), 0o644);
    Running::start(host, &["run", "--state-dir", &host.state(), "--token-file", &file, "--admin-listen", "127.0.0.1:0"])
}

#[test]
fn a_relay_that_does_not_answer_is_told_apart_from_a_closed_port_and_an_unknown_name() {
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let closed = {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.local_addr().unwrap().to_string()
    };
    let cases = [
        (silent.local_addr().unwrap().to_string(), "it has another key than the token says"),
        (closed, "nothing listens on UDP at"),
        ("no-such-host.invalid:51820".to_owned(), "does not resolve"),
    ];
    let running: Vec<_> = cases
        .iter()
        .map(|(endpoint, says)| {
            let host = Host::new();
            let running = joining(&host, endpoint);
            (host, running, *says)
        })
        .collect();
    for (host, mut running, says) in running {
        let log = running.says(says);
        assert!(log.contains("other users can read this secret's file"), "a readable token file is warned about only");
        let status = host.run(&["status", "--state-dir", &host.state()]);
        assert!(status.status == 1 && status.out.contains(says), "{} {}", status.out, status.err);
        running.signal(nix::sys::signal::Signal::SIGTERM);
        assert_eq!(running.end(), 0, "never ends by itself, and cleanly when told");
    }
}

#[test]
fn joining_keeps_the_same_key_over_a_kill() {
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let endpoint = silent.local_addr().unwrap().to_string();
    let host = Host::new();
    let file = host.write("token", &token(&endpoint), 0o600);
    let state = host.state();
    let args = ["run", "--state-dir", &state, "--token-file", &file, "--admin-listen", "127.0.0.1:0"];
    let mut keys = Vec::new();
    for _ in 0..2 {
        let mut running = Running::start(&host, &args);
        // The first datagram of the handshake: the keys are on disk before it.
        let mut datagram = [0; 2048];
        silent.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
        silent.recv_from(&mut datagram).unwrap();
        keys.push(fs::read_to_string(host.path("state/joining/private.key")).unwrap());
        assert!(host.path("state/joining/kem.seed").exists());
        running.child.kill().unwrap();
        running.end();
    }
    assert_eq!(keys[0], keys[1]);
    assert_mode(&host.path("state"), 0o700);
    assert_mode(&host.path("state/joining/private.key"), 0o600);
}

#[test]
fn one_process_per_state_directory() {
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let host = Host::new();
    let running = joining(&host, &silent.local_addr().unwrap().to_string());
    running.says("joining");
    let ran = host.run(&["run", "--state-dir", &host.state()]);
    assert!(ran.status == 1 && ran.err.contains(&format!("process {}", running.child.id())), "{}", ran.err);
}

#[test]
fn a_second_signal_and_a_bad_reload_do_as_they_should() {
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let host = Host::new();
    let token = host.write("token", &token(&silent.local_addr().unwrap().to_string()), 0o600);
    let config = host.write("connector.toml", "[[service]]\nname = \"a\"\norigin = \"http://127.0.0.1:1\"\n", 0o600);
    let state = host.state();
    let mut running = Running::start(
        &host,
        &["run", "--state-dir", &state, "--token-file", &token, "--config", &config, "--admin-listen", "127.0.0.1:0"],
    );
    running.says("joining");
    host.write("connector.toml", "[[service]]\nname = \"a\"\norigin = \"http://127.0.0.1:1\"\nfoo = 1\n", 0o600);
    let ran = host.run(&["reload", "--state-dir", &state]);
    assert!(ran.status == 78 && ran.err.contains("connector.toml:4: unknown key"), "{}", ran.err);
    host.write("connector.toml", "[[service]]\nname = \"b\"\norigin = \"http://127.0.0.1:1\"\n", 0o600);
    let ran = host.run(&["reload", "--state-dir", &state]);
    assert_eq!(ran.status, 0, "{}", ran.err);
    let status: serde_json::Value =
        serde_json::from_str(&host.run(&["status", "--json", "--state-dir", &state]).out).unwrap();
    assert_eq!(status["services"][0]["name"], "b");
    running.signal(nix::sys::signal::Signal::SIGHUP);
    running.says("configuration reloaded");
    running.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(running.end(), 0);
    assert!(!host.path("state/admin.sock").exists());
}

#[test]
fn an_ephemeral_connector_writes_nothing() {
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let host = Host::new();
    let token = host.write("token", &token(&silent.local_addr().unwrap().to_string()), 0o600);
    let running =
        Running::start(&host, &["run", "--ephemeral", "--token-file", &token, "--admin-listen", "127.0.0.1:0"]);
    running.says("joining");
    let names: Vec<_> = fs::read_dir(host.0.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "token and log alone: {names:?}");
}

fn assert_mode(path: &Path, mode: u32) {
    assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, mode, "{}", path.display());
}
