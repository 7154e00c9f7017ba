//! A connector under test: the real binary and a state directory of its own.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;

use crate::client::{self, Answer};
use crate::netns::Namespace;
use crate::process::{self, Process, Said};
use crate::relay::{START, clean, prefixed, public_copy};
use crate::{address, binary, usage};

/// One connector: configured, started, killed and started again by the test.
#[derive(Debug)]
pub struct Connector {
    /// `/livez`, `/readyz`, `/metrics`.
    pub admin: SocketAddr,
    /// More arguments of `run`.
    pub args: Vec<String>,
    /// Environment: the token, and more.
    pub env: Vec<(String, String)>,
    /// What stands before the program.
    pub prefix: Vec<String>,
    program: Option<PathBuf>,
    has_state: bool,
    state: PathBuf,
    directory: TempDir,
    process: Option<Process>,
}

impl Connector {
    /// One that joins with `token` and serves `services` (`NAME=URL`).
    ///
    /// # Errors
    /// No temporary directory.
    pub fn new(token: &str, services: &[&str]) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("culvert-connector-").tempdir()?;
        let mut args = Vec::new();
        for service in services {
            args.extend(["--service".to_owned(), (*service).to_owned()]);
        }
        Ok(Self {
            admin: address::at(address::own_loopback(), 31_481),
            args,
            env: vec![("CULVERT_TOKEN".to_owned(), token.to_owned())],
            prefix: Vec::new(),
            program: None,
            has_state: true,
            state: directory.path().join("state"),
            directory,
            process: None,
        })
    }

    /// The same inside a namespace.
    ///
    /// # Errors
    /// No temporary directory.
    pub fn within(namespace: &Namespace, token: &str, services: &[&str]) -> Result<Self> {
        let mut connector = Self::new(token, services)?;
        connector.admin = ([127, 0, 0, 1], 9481).into();
        connector.prefix = namespace.prefix();
        Ok(connector)
    }

    /// Its state directory.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// A directory for a test's own files.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Writes a configuration file and uses it.
    ///
    /// # Errors
    /// The file could not be written.
    pub fn config(&mut self, text: &str) -> Result<()> {
        let path = self.directory.path().join("connector.toml");
        std::fs::write(&path, text)?;
        self.args.extend(["--config".to_owned(), path.display().to_string()]);
        Ok(())
    }

    /// Starts it.
    ///
    /// # Errors
    /// The binary is missing.
    pub fn launch(&mut self) -> Result<()> {
        let mut command = self.base()?;
        command.arg("run").arg("--admin-listen").arg(self.admin.to_string());
        if self.has_state {
            command.arg("--state-dir").arg(&self.state);
        }
        command.args(&self.args);
        self.process = Some(Process::start("connector", command)?);
        Ok(())
    }

    /// Starts it and waits until it is ready: a session with a relay is live.
    ///
    /// # Errors
    /// It does not get ready.
    pub async fn start(&mut self) -> Result<()> {
        self.launch()?;
        self.ready().await
    }

    /// Waits until it is ready.
    ///
    /// # Errors
    /// It is not, in [`START`], or it ended.
    pub async fn ready(&mut self) -> Result<()> {
        let start = std::time::Instant::now();
        loop {
            if let Ok(answer) = self.ask("/readyz").await
                && answer.status == 200
            {
                return Ok(());
            }
            let process = self.process()?;
            ensure!(process.runs(), "the connector ended:\n{}", process.last_words());
            ensure!(start.elapsed() < START, "the connector is not ready:\n{}", process.last_words());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// GET at its admin port.
    ///
    /// # Errors
    /// Nobody answers.
    pub async fn ask(&self, path: &str) -> Result<Answer> {
        client::get(self.admin, &self.admin.to_string(), path).await
    }

    /// Runs a command of the connector's binary against this state directory.
    ///
    /// # Errors
    /// It could not be run.
    pub async fn cli(&self, args: &[&str]) -> Result<Said> {
        let mut command = self.base()?;
        command.args(args).arg("--state-dir").arg(&self.state);
        process::run("culvert-connector", command, None, START).await
    }

    /// The same without naming a state directory.
    ///
    /// # Errors
    /// It could not be run.
    pub async fn cli_bare(&self, args: &[&str]) -> Result<Said> {
        let mut command = self.base()?;
        command.args(args);
        process::run("culvert-connector", command, None, START).await
    }

    /// Names no state directory to `run`.
    pub fn no_state(&mut self) {
        self.has_state = false;
    }

    /// Runs a copy of the binary that every user can reach.
    ///
    /// # Errors
    /// It could not be copied.
    pub fn use_public_copy(&mut self) -> Result<()> {
        self.program = Some(public_copy(self.directory.path(), "culvert-connector")?);
        Ok(())
    }

    /// `kill -9`.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill(&mut self) -> Result<()> {
        self.process()?.kill()?;
        self.process = None;
        Ok(())
    }

    /// SIGTERM, and waits for its end.
    ///
    /// # Errors
    /// It did not end within `limit`.
    pub async fn terminate(&mut self, limit: Duration) -> Result<ExitStatus> {
        let status = self.process()?.terminate(limit).await?;
        self.process = None;
        Ok(status)
    }

    /// The running process.
    ///
    /// # Errors
    /// It was not started.
    pub fn process(&mut self) -> Result<&mut Process> {
        self.process.as_mut().context("the connector was not started")
    }

    /// Its process id, while it was started.
    pub fn id(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }

    /// What it wrote.
    pub fn output(&self) -> String {
        self.process.as_ref().map(Process::output).unwrap_or_default()
    }

    /// The end of what it wrote, for a failing test.
    pub fn last_words(&self) -> String {
        self.process.as_ref().map(Process::last_words).unwrap_or_default()
    }

    /// Memory and processor time.
    ///
    /// # Errors
    /// It does not run.
    pub fn usage(&self) -> Result<usage::Usage> {
        self.process.as_ref().context("the connector was not started")?.usage()
    }

    fn base(&self) -> Result<Command> {
        let mut command =
            prefixed(&self.prefix, &self.program.clone().map_or_else(|| binary::own("culvert-connector"), Ok)?);
        clean(&mut command, self.directory.path(), &self.env);
        Ok(command)
    }
}
