//! The access log: one JSON line a request (interface.md §6).
//!
//! Must never make a request wait for a disk or a pipe: lines are handed to a thread of their own, and past
//! [`PENDING_BYTES`] unwritten ones are dropped and counted. Must never hold a query string, a cookie or a body.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use serde::Serialize;

/// So many bytes may wait for the writer.
const PENDING_BYTES: usize = 4 << 20;
/// The writer collects lines for so long, so that a busy relay makes few writes.
const COLLECT_FOR: Duration = Duration::from_millis(20);
/// At the end the last lines get this long to be written.
const LAST_LINES_WITHIN: Duration = Duration::from_secs(2);

/// Where the lines go.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) enum Target {
    /// Standard output.
    #[default]
    Stdout,
    /// Standard error.
    Stderr,
    /// Nowhere.
    Off,
    /// A file, appended to, reopened on [`AccessLog::reopen`].
    File(PathBuf),
}

/// What is known of one request when it ends. The fields keep interface.md's order.
#[derive(Debug, Serialize)]
pub(crate) struct Entry<'a> {
    /// When it came.
    #[serde(serialize_with = "rfc3339")]
    pub(crate) time: SystemTime,
    /// Its id, kept from the caller or made.
    pub(crate) request_id: &'a str,
    /// Who called, by name.
    pub(crate) gateway: Option<&'a str>,
    /// The service it was for, when that is known.
    pub(crate) service: Option<&'a str>,
    /// The tunnel of the connector that had it last.
    pub(crate) tunnel: Option<&'a str>,
    /// The connector that had it last.
    pub(crate) connector: Option<&'a str>,
    /// The method.
    pub(crate) method: &'a str,
    /// The path without its query.
    pub(crate) path: &'a str,
    /// The status that was answered; none when the caller left before.
    pub(crate) status: Option<u16>,
    /// Why Culvert failed it.
    pub(crate) reason: Option<&'a str>,
    /// Bytes of its body.
    pub(crate) bytes_in: u64,
    /// Bytes of the answer's body.
    pub(crate) bytes_out: u64,
    /// From its head to the last byte of the answer.
    #[serde(serialize_with = "millis")]
    pub(crate) duration_ms: Duration,
    /// Until the answer's head came from the tunnel.
    #[serde(serialize_with = "optional_millis")]
    pub(crate) origin_ms: Option<Duration>,
    /// Of `traceparent`.
    pub(crate) trace_id: Option<&'a str>,
}

/// The log; ends with [`AccessLog::close`], or on drop.
#[derive(Debug)]
pub(crate) struct AccessLog {
    shared: Arc<Shared>,
    writer: Mutex<Option<JoinHandle<()>>>,
    on: AtomicBool,
}

/// An open target: none = off.
struct Output {
    stream: Option<Box<dyn Write + Send>>,
    path: Option<PathBuf>,
}

struct Shared {
    pending: Mutex<Pending>,
    changed: Condvar,
}

#[derive(Default)]
struct Pending {
    bytes: Vec<u8>,
    dropped: u64,
    reopen: bool,
    next: Option<Output>,
    writing: bool,
    closing: bool,
    closed: bool,
}

impl AccessLog {
    /// Opens the target.
    ///
    /// # Errors
    /// When the file cannot be opened for appending.
    pub(crate) fn open(target: &Target) -> io::Result<Self> {
        Self::start(Output::open(target)?)
    }

    /// Goes on with another target, after what was recorded so far is written to the old one.
    ///
    /// # Errors
    /// When the file cannot be opened for appending; the old target stays.
    pub(crate) fn set(&self, target: &Target) -> io::Result<()> {
        let next = Output::open(target)?;
        self.on.store(next.stream.is_some(), Ordering::Relaxed);
        self.shared.lock().next = Some(next);
        self.shared.changed.notify_all();
        Ok(())
    }

    /// Hands one line over; `entry` is asked for only when somebody wants it.
    pub(crate) fn record<'a>(&self, entry: impl FnOnce() -> Entry<'a>) {
        if !self.on.load(Ordering::Relaxed) {
            return;
        }
        let mut pending = self.shared.lock();
        if pending.closing || pending.bytes.len() >= PENDING_BYTES {
            pending.dropped += 1;
            return;
        }
        let was_empty = pending.bytes.is_empty();
        if serde_json::to_writer(&mut pending.bytes, &entry()).is_ok() {
            pending.bytes.push(b'\n');
        }
        drop(pending);
        if was_empty {
            self.shared.changed.notify_all();
        }
    }

    /// Lines that were not written, because the target was too slow.
    pub(crate) fn dropped(&self) -> u64 {
        self.shared.lock().dropped
    }

    /// Opens a file target anew, after what was recorded so far is written to the old one.
    pub(crate) fn reopen(&self) {
        self.shared.lock().reopen = true;
        self.shared.changed.notify_all();
    }

    /// Writes what is left, for two seconds at most.
    pub(crate) fn close(&self) {
        let shared = &self.shared;
        shared.lock().closing = true;
        shared.changed.notify_all();
        let wait = shared.changed.wait_timeout_while(shared.lock(), LAST_LINES_WITHIN, |pending| !pending.closed);
        let closed = wait.unwrap_or_else(PoisonError::into_inner).0.closed;
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let (true, Some(writer)) = (closed, writer) {
            let _ = writer.join();
        }
    }

    /// Waits until everything recorded so far is written.
    #[cfg(test)]
    pub(crate) fn settle(&self) {
        let shared = &self.shared;
        let busy = |pending: &mut Pending| !pending.bytes.is_empty() || pending.writing;
        drop(shared.changed.wait_while(shared.lock(), busy).unwrap());
    }

    fn start(output: Output) -> io::Result<Self> {
        let on = AtomicBool::new(output.stream.is_some());
        let shared = Arc::new(Shared { pending: Mutex::default(), changed: Condvar::new() });
        let theirs = Arc::clone(&shared);
        let writer =
            std::thread::Builder::new().name("access-log".to_owned()).spawn(move || write_out(&theirs, output))?;
        Ok(Self { shared, writer: Mutex::new(Some(writer)), on })
    }
}

impl Output {
    fn open(target: &Target) -> io::Result<Self> {
        let to = |stream| Ok(Self { stream: Some(stream), path: None });
        match target {
            Target::Off => Ok(Self { stream: None, path: None }),
            Target::Stdout => to(Box::new(io::stdout())),
            Target::Stderr => to(Box::new(io::stderr())),
            Target::File(path) => Ok(Self { stream: Some(Box::new(append(path)?)), path: Some(path.clone()) }),
        }
    }

    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        match &mut self.stream {
            Some(stream) => stream.write_all(lines).and_then(|()| stream.flush()),
            None => Ok(()),
        }
    }
}

impl Drop for AccessLog {
    fn drop(&mut self) {
        self.close();
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Shared")
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn append(path: &PathBuf) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o640).open(path)
}

/// The writer's thread: waits for lines, collects for a moment, writes them with the lock released.
fn write_out(shared: &Shared, mut output: Output) {
    let mut lines = Vec::new();
    let mut failed = false;
    loop {
        let calm = |pending: &mut Pending| !pending.closing && !pending.reopen && pending.next.is_none();
        let idle = |pending: &mut Pending| pending.bytes.is_empty() && calm(pending);
        let waited = shared.changed.wait_while(shared.lock(), idle).unwrap_or_else(PoisonError::into_inner);
        let waited = shared.changed.wait_timeout_while(waited, COLLECT_FOR, calm);
        let mut pending = waited.unwrap_or_else(PoisonError::into_inner).0;
        std::mem::swap(&mut pending.bytes, &mut lines);
        let (reopen, closing) = (std::mem::take(&mut pending.reopen), pending.closing);
        let next = pending.next.take();
        pending.writing = true;
        drop(pending);
        let written = output.write(&lines);
        if let (Err(error), false) = (&written, failed) {
            tracing::warn!(%error, "access log cannot be written");
        }
        failed = written.is_err();
        lines.clear();
        lines.shrink_to(64 << 10);
        if let Some(next) = next {
            output = next;
        } else if let (true, Some(path)) = (reopen, &output.path) {
            match append(path) {
                Ok(file) => output.stream = Some(Box::new(file)),
                Err(error) => tracing::warn!(%error, "access log cannot be reopened"),
            }
        }
        let mut pending = shared.lock();
        (pending.writing, pending.closed) = (false, closing);
        drop(pending);
        shared.changed.notify_all();
        if closing {
            return;
        }
    }
}

fn rfc3339<S: serde::Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&culvert_ops::time::rfc3339_millis(*time))
}

fn millis<S: serde::Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(in_millis(*duration))
}

fn optional_millis<S: serde::Serializer>(duration: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    match duration {
        Some(duration) => serializer.serialize_f64(in_millis(*duration)),
        None => serializer.serialize_none(),
    }
}

/// Milliseconds with three digits behind the point.
fn in_millis(duration: Duration) -> f64 {
    let micros = u32::try_from(duration.as_micros()).unwrap_or(u32::MAX);
    f64::from(micros) / 1_000.0
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn entry(request_id: &str) -> Entry<'_> {
        Entry {
            time: SystemTime::UNIX_EPOCH,
            request_id,
            gateway: None,
            service: Some("orders"),
            tunnel: Some("dc1"),
            connector: Some("con_aaaaaaaaaaaaaaaa"),
            method: "GET",
            path: "/a\"b",
            status: Some(200),
            reason: None,
            bytes_in: 0,
            bytes_out: 5,
            duration_ms: Duration::from_micros(1_234),
            origin_ms: None,
            trace_id: None,
        }
    }

    #[test]
    fn a_line_has_the_promised_fields_in_their_order() {
        assert_eq!(
            serde_json::to_string(&entry("r-1")).unwrap(),
            concat!(
                r#"{"time":"1970-01-01T00:00:00.000Z","request_id":"r-1","gateway":null,"service":"orders","#,
                r#""tunnel":"dc1","connector":"con_aaaaaaaaaaaaaaaa","method":"GET","path":"/a\"b","status":200,"#,
                r#""reason":null,"bytes_in":0,"bytes_out":5,"duration_ms":1.234,"origin_ms":null,"trace_id":null}"#
            )
        );
    }

    #[test]
    fn no_line_is_lost_at_the_end_and_a_reopened_file_is_a_new_one() {
        let dir = tempfile::tempdir().unwrap();
        let (path, moved) = (dir.path().join("access.log"), dir.path().join("access.log.1"));
        let log = AccessLog::open(&Target::File(path.clone())).unwrap();
        log.record(|| entry("first"));
        std::fs::rename(&path, &moved).unwrap();
        log.reopen();
        while !path.exists() {
            std::thread::yield_now();
        }
        for _ in 0..1_000 {
            log.record(|| entry("second"));
        }
        log.close();
        let count = |path, id: &str| std::fs::read_to_string(path).unwrap().matches(id).count();
        assert_eq!((count(&moved, "first"), count(&moved, "second")), (1, 0));
        assert_eq!((count(&path, "first"), count(&path, "second")), (0, 1_000));
    }

    #[test]
    fn a_stuck_target_costs_lines_and_not_memory_or_time() {
        struct Stuck(mpsc::Receiver<()>);
        impl Write for Stuck {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                let _ = self.0.recv();
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (release, stuck) = mpsc::channel();
        let log = AccessLog::start(Output { stream: Some(Box::new(Stuck(stuck))), path: None }).unwrap();
        while log.dropped() < 10 {
            log.record(|| entry("line"));
        }
        assert!(log.shared.lock().bytes.len() <= PENDING_BYTES + 1_024);
        drop(release);
        log.close();
    }

    #[test]
    fn another_target_gets_the_lines_from_then_on() {
        let dir = tempfile::tempdir().unwrap();
        let (old, new) = (dir.path().join("old.log"), dir.path().join("new.log"));
        let log = AccessLog::open(&Target::File(old.clone())).unwrap();
        log.record(|| entry("first"));
        log.set(&Target::File(new.clone())).unwrap();
        while std::fs::read_to_string(&old).unwrap().is_empty() {
            std::thread::yield_now();
        }
        log.record(|| entry("second"));
        assert!(log.set(&Target::File(dir.path().to_owned())).is_err(), "a directory is no log");
        log.close();
        let lines = |path| std::fs::read_to_string(path).unwrap().lines().count();
        assert_eq!((lines(&old), lines(&new)), (1, 1));
    }

    #[test]
    fn an_off_log_writes_nothing() {
        let log = AccessLog::open(&Target::Off).unwrap();
        log.record(|| entry("unseen"));
        assert_eq!(log.dropped(), 0);
    }
}
