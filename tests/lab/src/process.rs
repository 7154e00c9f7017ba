//! One running program: its lines as they come, its end, its use of the machine.

use std::io::{BufRead as _, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{spawner, usage, wait};

/// A program under test. Dropped: killed and reaped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    lines: Lines,
    readers: Vec<JoinHandle<()>>,
}

type Lines = Arc<Mutex<Vec<String>>>;

impl Process {
    /// Starts it with both outputs collected line by line.
    ///
    /// # Errors
    /// It could not be started.
    pub fn start(name: &str, mut command: Command) -> Result<Self> {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = spawner::spawn(command)?;
        let lines = Lines::default();
        let readers = [
            child.stdout.take().map(|pipe| collect(pipe, &lines)),
            child.stderr.take().map(|pipe| collect(pipe, &lines)),
        ];
        Ok(Self { name: name.to_owned(), child, lines, readers: readers.into_iter().flatten().collect() })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Everything it wrote so far.
    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Everything it wrote so far, as one text.
    pub fn output(&self) -> String {
        self.lines().join("\n")
    }

    /// The end of what it wrote, short enough to read; without its access log.
    pub fn last_words(&self) -> String {
        let lines = self.lines();
        let told: Vec<&str> = lines.iter().map(String::as_str).filter(|line| !line.starts_with("{\"time\"")).collect();
        told.iter().rev().take(60).rev().map(|line| line.get(..400).unwrap_or(line)).collect::<Vec<_>>().join("\n")
    }

    /// Waits for a line that contains `part`.
    ///
    /// # Errors
    /// The deadline passed, or the program ended without it.
    pub async fn line(&mut self, part: &str, limit: Duration) -> Result<String> {
        let lines = Arc::clone(&self.lines);
        let find = || {
            let lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
            lines.iter().find(|line| line.contains(part)).cloned()
        };
        let found = wait::until(&format!("{:?} from {}", part, self.name), limit, || async { find() }).await;
        found.with_context(|| format!("it wrote:\n{}", self.output()))
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// There is no such process any more.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let id = i32::try_from(self.child.id()).context("process id")?;
        kill(Pid::from_raw(id), signal).with_context(|| format!("{signal} to {}", self.name))
    }

    /// `kill -9`, and waits until it is gone.
    ///
    /// # Errors
    /// It could not be signalled or reaped.
    pub fn kill(&mut self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        self.child.wait().context("reap")?;
        Ok(())
    }

    /// SIGTERM, and waits for its end.
    ///
    /// # Errors
    /// It did not end within `limit`.
    pub async fn terminate(&mut self, limit: Duration) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.end(limit).await
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It did not end within `limit`.
    pub async fn end(&mut self, limit: Duration) -> Result<ExitStatus> {
        let start = std::time::Instant::now();
        loop {
            // Its last words may still be in the pipe.
            if let Some(status) = self.child.try_wait()?
                && (self.readers.iter().all(JoinHandle::is_finished) || start.elapsed() > limit)
            {
                return Ok(status);
            }
            if start.elapsed() > limit {
                bail!("{} still runs after {limit:?}; it wrote:\n{}", self.name, self.output());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Memory and processor time.
    ///
    /// # Errors
    /// It is gone.
    pub fn usage(&self) -> Result<usage::Usage> {
        usage::of(self.child.id())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() || std::env::var_os("CULVERT_LAB_VERBOSE").is_some() {
            eprintln!("--- {} wrote:\n{}\n---", self.name, self.last_words());
        }
    }
}

/// What one finished command said.
#[derive(Debug, Clone)]
pub struct Said {
    /// Its exit status; 128 + n for signal n.
    pub status: i32,
    /// Its data.
    pub stdout: String,
    /// Its words.
    pub stderr: String,
}

/// Runs a command to its end.
///
/// # Errors
/// It could not be started or did not end within `limit`.
pub async fn run(name: &str, mut command: Command, input: Option<&[u8]>, limit: Duration) -> Result<Said> {
    command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = spawner::spawn(command)?;
    if let (Some(input), Some(mut stdin)) = (input, child.stdin.take()) {
        use std::io::Write as _;
        let _ = stdin.write_all(input);
    }
    let (stdout, stderr) = (Lines::default(), Lines::default());
    let readers = [
        child.stdout.take().map(|pipe| collect(pipe, &stdout)),
        child.stderr.take().map(|pipe| collect(pipe, &stderr)),
    ];
    let readers = readers.into_iter().flatten().collect();
    let mut process = Process { name: name.to_owned(), child, lines: Lines::default(), readers };
    let status = process.end(limit).await;
    let text = |lines: &Lines| lines.lock().unwrap_or_else(PoisonError::into_inner).join("\n");
    let status = status.with_context(|| format!("stdout: {}\nstderr: {}", text(&stdout), text(&stderr)))?;
    Ok(Said { status: code(status), stdout: text(&stdout), stderr: text(&stderr) })
}

/// The exit code, or 128 + the signal.
pub fn code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt as _;
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

fn collect(pipe: impl Read + Send + 'static, lines: &Lines) -> JoinHandle<()> {
    let lines = Arc::clone(lines);
    std::thread::spawn(move || {
        let mut reader = BufReader::new(pipe);
        let mut line = Vec::new();
        while matches!(reader.read_until(b'\n', &mut line), Ok(read) if read > 0) {
            let text = String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r']).to_owned();
            lines.lock().unwrap_or_else(PoisonError::into_inner).push(text);
            line.clear();
        }
    })
}
