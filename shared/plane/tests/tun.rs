//! The TUN plane in real namespaces, as root and as nobody: kernel TCP through two of them, what is refused and why, and
//! that nothing is left of one. The work is done by a program of its own, `tun/namespaces.rs`.

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use culvert_lab::skip::{self, Need};
use nix::sys::signal::Signal;

/// Each way over IPv6, and an eighth of it over IPv4.
const BYTES: &str = "67108864";

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_tun-namespaces"))
}

fn skipped(test: &str) -> bool {
    let programs = ["unshare", "setpriv", "nsenter", "mount", "mknod"];
    let needs: Vec<_> = std::iter::once(Need::Root).chain(programs.map(Need::Program)).collect();
    skip::unless(test, &needs)
}

/// Nobody, in a mount namespace where the device has the usual mode or this one.
struct Nobody {
    /// A copy that everybody may read.
    folder: tempfile::TempDir,
    mode: &'static str,
}

impl Nobody {
    fn new(mode: &'static str) -> Self {
        use std::os::unix::fs::PermissionsExt as _;
        let folder =
            tempfile::Builder::new().permissions(std::fs::Permissions::from_mode(0o755)).tempdir_in("/tmp").unwrap();
        std::fs::copy(program(), folder.path().join("program")).unwrap();
        Self { folder, mode }
    }

    fn command(&self, words: &[&str]) -> Command {
        let script = format!(
            "mount -t tmpfs none /dev/net && mknod -m {} /dev/net/tun c 10 200 && exec setpriv --reuid 65534 --regid 65534 \
             --clear-groups --inh-caps=-all --bounding-set=-all --no-new-privs \"$@\"",
            self.mode
        );
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", &script, "sh"]).arg(self.folder.path().join("program")).args(words);
        command
    }
}

fn root(words: &[&str]) -> Command {
    let mut command = Command::new(program());
    command.args(words);
    command
}

/// Runs to the end and gives what was printed.
fn output(mut command: Command) -> String {
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    println!("{text}");
    text
}

/// One that holds a namespace.
struct Held {
    process: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
    way: String,
    keeper: u32,
}

impl Held {
    fn start(mut command: Command) -> Self {
        let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let line = lines.next().expect("a line").unwrap();
        let (way, keeper) = line.split_once(' ').unwrap();
        Self { process, lines, way: way.to_owned(), keeper: keeper.parse().unwrap_or_else(|_| panic!("{line}")) }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn until(what: &str, condition: impl Fn() -> bool) {
    let from = Instant::now();
    while !condition() {
        assert!(from.elapsed() < Duration::from_secs(10), "{what}");
        std::thread::yield_now();
    }
}

/// Processes that are in this network namespace.
fn inhabitants(namespace: u64) -> Vec<PathBuf> {
    let processes = std::fs::read_dir("/proc").unwrap().filter_map(|entry| Some(entry.ok()?.path()));
    processes.filter(|process| net(process) == Some(namespace)).collect()
}

fn net(process: &Path) -> Option<u64> {
    std::fs::metadata(process.join("ns/net")).ok().map(|link| link.ino())
}

#[test]
fn a_thread_of_root_and_a_child_carry_64_mib_both_ways_byte_exact() {
    if skipped("tun as root") {
        return;
    }
    for way in ["thread", "child"] {
        let text = output(root(&["transfer", way, BYTES]));
        assert!(text.contains("all is well") && text.to_lowercase().contains(&format!("way {way}")), "{text}");
    }
}

#[test]
fn nobody_carries_64_mib_both_ways_byte_exact_and_without_any_privilege() {
    if skipped("tun as nobody") {
        return;
    }
    let text = output(Nobody::new("666").command(&["transfer", "any", BYTES]));
    assert!(text.contains("all is well") && text.contains("way Child"), "{text}");
}

#[test]
fn a_killed_process_leaves_no_namespace_behind() {
    if skipped("tun and kill -9") {
        return;
    }
    let nobody = Nobody::new("666");
    let mut held = Held::start(nobody.command(&["hold", "any"]));
    let keeper = Path::new("/proc").join(held.keeper.to_string());
    let namespace = net(&keeper).expect("the child's namespace");
    assert_ne!(Some(namespace), net(Path::new("/proc/self")), "a namespace of its own");
    assert_eq!(inhabitants(namespace), std::slice::from_ref(&keeper), "nobody else is there");
    held.process.kill().unwrap();
    held.process.wait().unwrap();
    until("the child ends with its parent", || !keeper.exists());
    assert!(inhabitants(namespace).is_empty());
}

#[test]
fn other_processes_of_the_same_user_cannot_enter() {
    if skipped("tun and its user") {
        return;
    }
    let nobody = Nobody::new("666");
    let held = Held::start(nobody.command(&["hold", "child"]));
    let enter = |options: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--inh-caps=-all", "nsenter"]);
        command.args(options).args(["-t", &held.keeper.to_string(), "true"]).stderr(Stdio::null()).status().unwrap()
    };
    assert!(!enter(&["--user", "--net"]).success());
    assert!(!enter(&["--net"]).success());
    assert_eq!(held.way, "Child");
}

#[test]
fn a_child_stays_when_it_is_asked_to_end_and_is_missed_when_it_is_killed() {
    if skipped("tun without its child") {
        return;
    }
    let mut held = Held::start(root(&["hold", "child"]));
    let pid = nix::unistd::Pid::from_raw(i32::try_from(held.keeper).unwrap());
    // systemd and terminals ask every process of the relay; the relay drains and needs it for that long.
    nix::sys::signal::kill(pid, Signal::SIGTERM).unwrap();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let pending = status.lines().find_map(|line| line.strip_prefix("ShdPnd:")).unwrap().trim();
    assert_eq!(u64::from_str_radix(pending, 16).unwrap(), 1 << (Signal::SIGTERM as u64 - 1), "never delivered");
    nix::sys::signal::kill(pid, Signal::SIGKILL).unwrap();
    assert_eq!(held.lines.next().unwrap().unwrap(), "ended");
}

#[test]
fn a_machine_that_cannot_says_what_to_change() {
    if skipped("tun where it cannot be") {
        return;
    }
    let denied = output(Nobody::new("600").command(&["hold", "any"]));
    assert!(denied.contains("/dev/net/tun may not be opened") && denied.contains("DeviceAllow"), "{denied}");

    let limited = |script: &str| {
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--user", "--map-root-user", "sh", "-c", script, "sh"])
            .arg(program())
            .args(["hold", "child"]);
        output(command)
    };
    let full = limited("echo 0 >/proc/sys/user/max_user_namespaces && exec \"$@\"");
    assert!(full.contains("no network namespace may be made") && full.contains("user.max_user_namespaces"), "{full}");
    let bare = limited("mount -t tmpfs none /dev/net && exec \"$@\"");
    assert!(bare.contains("no /dev/net/tun") && bare.contains("--device /dev/net/tun"), "{bare}");
}
