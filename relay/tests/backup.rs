//! `backup` and `restore` by the built binary, where no relay runs: what comes back, what is refused, what is left alone.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use culvert_ops::state::StateDir;
use serde_json::Value;
use tempfile::TempDir;

const PEER: &str = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";
const PASSPHRASE: &str = "correct horse battery staple";

#[test]
fn a_relay_comes_back_with_its_identity_and_registry() {
    let place = Place::new();
    let token = place.tunnel("dc1");
    let key = place.at(&["key", "show"]).stdout;
    let psk = culvert_model::key::Psk::generate().to_base64();
    let made = place.with_input(
        &["peer", "add", "branch", "--public-key", PEER, "--allowed-ips", "10.20.0.0/16", "--preshared-key", "-"],
        &psk,
    );
    assert_eq!(made.status, 0, "{}", made.stderr);
    place.backup();
    assert_eq!(mode(&place.file), 0o600);
    let other = place.other();
    let restored = other.restore(&[]);
    assert_eq!((restored.status, restored.stdout.as_str()), (0, ""), "{}", restored.stderr);
    assert!(restored.stderr.contains(key.trim()) && restored.stderr.contains("is undone"), "{}", restored.stderr);
    assert_eq!(other.at(&["key", "show"]).stdout, key);
    for listing in [["tunnel", "list"], ["token", "list"], ["gateway", "list"], ["peer", "list"]] {
        assert_eq!(other.json(&listing), place.json(&listing), "{listing:?}");
    }
    assert_eq!(mode(&other.state), 0o700);
    for file in ["private.key", "state.key", "reset.key", "registry.db"] {
        assert_eq!(mode(&other.state.join(file)), 0o600, "{file}");
        if file.ends_with("key") {
            assert_eq!(fs::read(other.state.join(file)).unwrap(), fs::read(place.state.join(file)).unwrap());
        }
    }
    let actions = |place: &Place| -> Vec<String> {
        let trail = place.json(&["audit"]);
        trail.as_array().unwrap().iter().map(|row| row["action"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(actions(&place), ["tunnel.create", "token.create", "peer.add", "relay.backup"]);
    assert_eq!(actions(&other), ["tunnel.create", "token.create", "peer.add", "relay.backup", "relay.restore"]);
    // Its pre-shared key opens: another public key takes it along.
    let config = ["peer", "config", "branch", "--generate-key", "--endpoint", "relay.example.com:51820"];
    assert_eq!(other.at(&config).status, 0);
    let sealed = fs::read(&place.file).unwrap();
    for secret in [key.trim(), "dc1", token.trim_start_matches("culvert_t1_"), psk.trim(), PASSPHRASE] {
        assert!(!contains(&sealed, secret.as_bytes()), "the backup shows {secret}");
    }
    let private = fs::read(place.state.join("private.key")).unwrap();
    assert!(!contains(&sealed, private.trim_ascii_end()));
    assert_eq!(unfinished(&other.state) + unfinished(&place.state) + unfinished(place.file.parent().unwrap()), 0);
}

#[test]
fn what_cannot_be_opened_is_named_and_changes_nothing() {
    let place = Place::new();
    place.tunnel("dc1");
    place.backup();
    let whole = fs::read(&place.file).unwrap();
    let other = place.other();
    fs::write(&other.passphrase, "another passphrase\n").unwrap();
    let refused = other.restore(&[]);
    assert_eq!(refused.status, 1);
    assert!(refused.stderr.contains("the passphrase is another one"), "{}", refused.stderr);
    assert!(!other.state.exists(), "no directory is made for what cannot be opened");
    fs::write(&other.passphrase, PASSPHRASE).unwrap();
    let mut changed = whole.clone();
    let last = changed.len() - 1;
    changed[last] ^= 1;
    let header = [b"culvert backup\r\n".as_slice(), &[9]].concat();
    let longer = [whole.as_slice(), b"x"].concat();
    for (bytes, words) in [
        (&whole[..whole.len() / 2], "damaged or cut short"),
        (&whole[..40], "damaged or cut short"),
        (&changed, "damaged or cut short"),
        (&longer, "damaged or cut short"),
        (&header, "newer program"),
        (b"something else".as_slice(), "not a backup"),
        (b"", "not a backup"),
    ] {
        fs::write(&place.file, bytes).unwrap();
        let refused = other.restore(&[]);
        assert_eq!((refused.status, refused.stdout.as_str()), (1, ""));
        assert!(refused.stderr.contains(words) && refused.stderr.contains("nothing was changed"), "{}", refused.stderr);
        let left: Vec<_> =
            fs::read_dir(&other.state).into_iter().flatten().flatten().map(|file| file.file_name()).collect();
        assert!(left.iter().all(|name| name == "lock"), "{words}: {left:?}");
    }
    fs::remove_file(&place.file).unwrap();
    assert_eq!(other.restore(&[]).status, 1);
    fs::write(&place.file, &whole).unwrap();
    assert_eq!(other.restore(&[]).status, 0, "and the whole one is taken after all of that");
}

#[test]
fn a_directory_in_use_is_restored_into_by_force_alone_and_keeps_what_it_had() {
    let place = Place::new();
    place.tunnel("dc1");
    place.backup();
    let key = place.at(&["key", "show"]).stdout;
    let other = place.other();
    other.tunnel("elsewhere");
    let (theirs, old) = (other.at(&["key", "show"]).stdout, fs::read(other.state.join("private.key")).unwrap());
    let refused = other.restore(&[]);
    assert_eq!(refused.status, 1);
    assert!(refused.stderr.contains("is not empty") && refused.stderr.contains("--force"), "{}", refused.stderr);
    assert_eq!(other.at(&["key", "show"]).stdout, theirs);
    let forced = other.restore(&["--force"]);
    assert_eq!(forced.status, 0, "{}", forced.stderr);
    assert_eq!(other.at(&["key", "show"]).stdout, key);
    assert_eq!(other.json(&["tunnel", "list"])[0]["name"], "dc1");
    let aside = fs::read_dir(&other.state)
        .unwrap()
        .flatten()
        .find(|entry| entry.file_name().to_string_lossy().starts_with("replaced-"));
    let aside = aside.expect("what was there is put aside").path();
    assert_eq!(mode(&aside), 0o700);
    assert_eq!(fs::read(aside.join("private.key")).unwrap(), old);
    assert!(aside.join("registry.db").is_file());
}

#[test]
fn the_directory_of_a_relay_that_runs_is_left_alone() {
    let place = Place::new();
    place.tunnel("dc1");
    place.backup();
    let other = place.other();
    let state = StateDir::create(&other.state).unwrap();
    let held = state.lock().unwrap();
    for force in [&[][..], &["--force"]] {
        let refused = other.restore(force);
        assert_eq!(refused.status, 1);
        assert!(refused.stderr.contains(&format!("process {}", std::process::id())), "{}", refused.stderr);
    }
    drop(held);
    assert_eq!(other.restore(&[]).status, 0);
}

#[test]
fn a_backup_replaces_a_backup_and_nothing_else() {
    let place = Place::new();
    place.tunnel("dc1");
    place.backup();
    let first = fs::read(&place.file).unwrap();
    place.backup();
    assert_ne!(fs::read(&place.file).unwrap(), first);
    fs::write(&place.file, "precious").unwrap();
    let refused = place.at(&["backup", place.file(), "--passphrase-file", place.passphrase()]);
    assert_eq!(refused.status, 1);
    assert!(refused.stderr.contains("not written over"), "{}", refused.stderr);
    assert_eq!(fs::read(&place.file).unwrap(), b"precious");
    let nowhere = place.at(&["backup", "/nonexistent/culvert.backup", "--passphrase-file", place.passphrase()]);
    assert_eq!(nowhere.status, 1);
    fs::remove_file(&place.file).unwrap();
    let empty = place.other();
    StateDir::create(&empty.state).unwrap();
    let nothing = empty.at(&["backup", empty.file(), "--passphrase-file", empty.passphrase()]);
    assert!(nothing.status == 1 && nothing.stderr.contains("nothing to back up"), "{}", nothing.stderr);
    assert!(!place.file.exists() && !empty.state.join("private.key").exists(), "no identity is made for a backup");
}

#[test]
fn the_passphrase_comes_by_stdin_or_the_environment_and_never_by_argv() {
    let place = Place::new();
    place.tunnel("dc1");
    let by_stdin = place.with_input(&["backup", place.file(), "--passphrase-file", "-"], &format!("{PASSPHRASE}\n"));
    assert_eq!(by_stdin.status, 0, "{}", by_stdin.stderr);
    let other = place.other();
    let mut command = other.command(&["restore", other.file()]);
    let output = command.env("CULVERT_BACKUP_PASSPHRASE", PASSPHRASE).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    for words in [&["--passphrase", PASSPHRASE][..], &["--passphrase=correct horse battery staple"]] {
        let ended = place.at(&[&["backup", place.file()][..], words].concat());
        assert_eq!(ended.status, 2);
        assert!(ended.stderr.contains("--passphrase-file") && !ended.stderr.contains("horse"), "{}", ended.stderr);
    }
    let short = place.with_input(&["backup", place.file(), "--passphrase-file", "-"], "short\n");
    assert!(short.status == 78 && short.stderr.contains("characters"), "{}", short.stderr);
    let none = place.command(&["backup", place.file()]);
    let none = without_terminal(none);
    assert!(none.status == 78 && none.stderr.contains("no terminal"), "{}", none.stderr);
}

#[test]
fn a_passphrase_is_asked_for_twice_and_never_shown() {
    let place = Place::new();
    place.tunnel("dc1");
    let asked = |verb: &str, state: &Place, answers: &[&str]| {
        let command = state.command(&[verb, place.file()]);
        let words: Vec<_> = command.get_args().map(|arg| arg.to_str().unwrap().to_owned()).collect();
        let program = format!("{} {}", env!("CARGO_BIN_EXE_culvert-relay"), words.join(" "));
        typed(&program, state, answers)
    };
    let made = asked("backup", &place, &[PASSPHRASE, PASSPHRASE]);
    assert!(made.status == 0 && !made.stdout.contains("horse"), "{}", made.stdout);
    let other = place.other();
    let restored = asked("restore", &other, &[PASSPHRASE]);
    assert!(restored.status == 0 && !restored.stdout.contains("horse"), "{}", restored.stdout);
    assert_eq!(other.at(&["key", "show"]).stdout, place.at(&["key", "show"]).stdout);
    fs::remove_file(&place.file).unwrap();
    let differs = asked("backup", &place, &[PASSPHRASE, "correct horse battery stable"]);
    assert!(differs.status == 1 && differs.stdout.contains("different"), "{}", differs.stdout);
    // ^C, and the terminal is as it was: it shows what is typed.
    let given_up = asked("backup", &place, &["half\u{3}"]);
    assert!(given_up.status == 1 && given_up.stdout.contains("no passphrase was typed"), "{}", given_up.stdout);
    assert!(!given_up.stdout.contains("half") && !place.file.exists());
}

#[test]
fn a_registry_elsewhere_is_backed_up_and_restored_where_the_configuration_says() {
    let place = Place::new();
    let config = place.root.path().join("relay.toml");
    fs::write(&config, format!("[registry]\nurl = \"sqlite:{}/a.db\"\n", place.root.path().display())).unwrap();
    let config = config.to_str().unwrap();
    fn with<'a>(config: &'a str, words: &[&'a str]) -> Vec<&'a str> {
        [words, &["--config", config]].concat()
    }
    assert_eq!(place.at(&with(config, &["tunnel", "create", "dc1", "--service", "a", "--endpoint", "r:1"])).status, 0);
    let made = place.at(&with(config, &["backup", place.file(), "--passphrase-file", place.passphrase()]));
    assert_eq!(made.status, 0, "{}", made.stderr);
    let other = place.other();
    let args = with(config, &["restore", other.file(), "--passphrase-file", other.passphrase()]);
    let refused = other.at(&args);
    assert!(refused.status == 1 && refused.stderr.contains("a.db"), "{}", refused.stderr);
    fs::rename(place.root.path().join("a.db"), place.root.path().join("b.db")).unwrap();
    assert_eq!(other.at(&args).status, 0);
    let listed = other.at(&with(config, &["tunnel", "list", "--json"]));
    assert!(listed.stdout.contains("dc1"), "{}", listed.stdout);
    assert!(!other.state.join("registry.db").exists());
    assert_eq!(mode(&place.root.path().join("a.db")), 0o600);
}

/// A state directory, a passphrase and a backup, all in one temporary directory.
struct Place {
    root: std::rc::Rc<TempDir>,
    state: PathBuf,
    passphrase: PathBuf,
    file: PathBuf,
}

struct Ended {
    status: i32,
    stdout: String,
    stderr: String,
}

impl Place {
    fn new() -> Self {
        let root = std::rc::Rc::new(tempfile::tempdir().unwrap());
        let passphrase = root.path().join("passphrase");
        fs::write(&passphrase, format!("{PASSPHRASE}\n")).unwrap();
        let state = root.path().join("state");
        StateDir::create(&state).unwrap();
        let file = root.path().join("relay.backup");
        Self { root, state, passphrase, file }
    }

    /// Another state directory, not there yet, for the same backup.
    fn other(&self) -> Self {
        let state = (0..).map(|n| self.root.path().join(format!("other{n}"))).find(|path| !path.exists()).unwrap();
        let passphrase = self.root.path().join("passphrase-of-other");
        fs::write(&passphrase, PASSPHRASE).unwrap();
        Self { root: self.root.clone(), state, passphrase, file: self.file.clone() }
    }

    fn tunnel(&self, name: &str) -> String {
        StateDir::create(&self.state).unwrap();
        let made = self.at(&["tunnel", "create", name, "--service", "orders", "--endpoint", "relay.example.com:51820"]);
        assert_eq!(made.status, 0, "{}", made.stderr);
        made.stdout.trim().to_owned()
    }

    fn backup(&self) {
        let made = self.at(&["backup", self.file(), "--passphrase-file", self.passphrase()]);
        assert_eq!((made.status, made.stdout.as_str()), (0, ""), "{}", made.stderr);
    }

    fn restore(&self, flags: &[&str]) -> Ended {
        self.at(&[&["restore", self.file(), "--passphrase-file", self.passphrase()], flags].concat())
    }

    fn json(&self, args: &[&str]) -> Value {
        let ended = self.at(&[args, &["--json"]].concat());
        serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{args:?}: {error}: {}", ended.stderr))
    }

    fn at(&self, args: &[&str]) -> Ended {
        self.with_input(args, "")
    }

    fn with_input(&self, args: &[&str], input: &str) -> Ended {
        let mut command = self.command(args);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        let output = child.wait_with_output().unwrap();
        ended(&output)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_culvert-relay"));
        command.args(args).arg("--state-dir").arg(&self.state).env("HOME", self.root.path());
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("CULVERT_") || name.to_string_lossy().starts_with("XDG_") {
                command.env_remove(name);
            }
        }
        command
    }

    fn file(&self) -> &str {
        self.file.to_str().unwrap()
    }

    fn passphrase(&self) -> &str {
        self.passphrase.to_str().unwrap()
    }
}

fn ended(output: &std::process::Output) -> Ended {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ended { status: output.status.code().unwrap_or(-1), stdout: text(&output.stdout), stderr: text(&output.stderr) }
}

/// On a terminal, by util-linux's `script`: each answer is typed when it is asked for.
fn typed(program: &str, place: &Place, answers: &[&str]) -> Ended {
    let mut command = Command::new("script");
    command.args(["-qec", program, "/dev/null"]).env("HOME", place.root.path());
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let (mut shown, mut asked) = (Vec::new(), 0);
    let mut byte = [0];
    while stdout.read(&mut byte).is_ok_and(|read| read == 1) {
        shown.push(byte[0]);
        let prompts: [&[u8]; 2] = [b"passphrase of the backup: ", b"the same again: "];
        if prompts.get(asked).is_some_and(|prompt| shown.ends_with(prompt)) {
            let answer = answers.get(asked).unwrap_or(&"");
            let end = if answer.ends_with('\u{3}') { "" } else { "\n" };
            stdin.write_all(format!("{answer}{end}").as_bytes()).unwrap();
            asked += 1;
        }
    }
    drop(stdin);
    let status = child.wait().unwrap().code().unwrap_or(-1);
    Ended { status, stdout: String::from_utf8_lossy(&shown).into_owned(), stderr: String::new() }
}

/// In a session of its own, so that there is no `/dev/tty`.
fn without_terminal(command: Command) -> Ended {
    let mut detached = Command::new("setsid");
    detached.arg("--wait").arg(command.get_program()).args(command.get_args()).stdin(Stdio::null());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => detached.env(name, value),
            None => detached.env_remove(name),
        };
    }
    ended(&detached.output().unwrap())
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).permissions().mode() & 0o777
}

fn unfinished(directory: &Path) -> usize {
    let entries = fs::read_dir(directory).unwrap().flatten();
    entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(".unfinished")).count()
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}
