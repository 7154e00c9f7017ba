//! A relay under test: the real binary, a state directory and an address of its own.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;

use crate::activator::Activator;
use crate::client::{self, Answer};
use crate::netns::Namespace;
use crate::postgres::Postgres;
use crate::process::{self, Process, Said};
use crate::{address, binary, spawner, usage, wait};

/// How long a start may take on a busy machine.
pub const START: Duration = Duration::from_secs(20);

/// One relay: configured, started, killed and started again by the test.
#[derive(Debug)]
pub struct Relay {
    /// Where gateways call.
    pub http: SocketAddr,
    /// `/livez`, `/readyz`, `/metrics`.
    pub admin: SocketAddr,
    /// Where it listens for connectors.
    pub wireguard: SocketAddr,
    /// Where connectors are told to dial.
    pub endpoint: String,
    /// More arguments of `run`.
    pub args: Vec<String>,
    /// More environment.
    pub env: Vec<(String, String)>,
    /// What stands before the program: `nsenter`, `setpriv` and the like.
    pub prefix: Vec<String>,
    /// The program, where it is not the one beside the test.
    program: Option<PathBuf>,
    wireguard_listen: Option<String>,
    state: PathBuf,
    directory: TempDir,
    activator: Option<Activator>,
    process: Option<Process>,
}

impl Relay {
    /// One on a loopback address of its own.
    ///
    /// # Errors
    /// No temporary directory.
    pub fn new() -> Result<Self> {
        Self::at(address::own_loopback())
    }

    /// One on that address.
    ///
    /// # Errors
    /// No temporary directory.
    pub fn at(ip: IpAddr) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("culvert-relay-").tempdir()?;
        let wireguard = address::at(ip, 31_820);
        Ok(Self {
            http: address::at(ip, 31_080),
            admin: address::at(ip, 31_480),
            wireguard,
            endpoint: wireguard.to_string(),
            args: Vec::new(),
            env: Vec::new(),
            prefix: Vec::new(),
            program: None,
            wireguard_listen: Some(wireguard.to_string()),
            state: directory.path().join("state"),
            directory,
            activator: None,
            process: None,
        })
    }

    /// One on a loopback address of its own whose registry is that server's: it shares it with others.
    ///
    /// # Errors
    /// No temporary directory.
    pub fn sharing(postgres: &Postgres) -> Result<Self> {
        let mut relay = Self::new()?;
        let password = relay.directory.path().join("password");
        std::fs::write(&password, postgres.password())?;
        std::fs::set_permissions(&password, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        let text = format!(
            "[http]\nlisten = [\"{}\"]\n[registry]\nurl = \"{}\"\npassword = {{ file = \"{}\" }}\n",
            relay.http,
            postgres.url(),
            password.display()
        );
        relay.config(&text)?;
        Ok(relay)
    }

    /// One inside a namespace: WireGuard on that address, front and admin on loopback there.
    ///
    /// # Errors
    /// No temporary directory.
    pub fn within(namespace: &Namespace, ip: IpAddr) -> Result<Self> {
        let mut relay = Self::at(ip)?;
        relay.http = address::at(IpAddr::from([127, 0, 0, 1]), 8080);
        relay.admin = address::at(IpAddr::from([127, 0, 0, 1]), 9480);
        relay.prefix = namespace.prefix();
        Ok(relay)
    }

    /// Hands it its front's socket, as systemd would, from now on.
    ///
    /// # Errors
    /// The address is taken.
    pub fn activate(&mut self) -> Result<()> {
        self.activator = Some(Activator::listen(self.http, "http")?);
        Ok(())
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
        let path = self.directory.path().join("relay.toml");
        std::fs::write(&path, text)?;
        self.args.extend(["--config".to_owned(), path.display().to_string()]);
        Ok(())
    }

    /// Starts it and waits until it is ready.
    ///
    /// # Errors
    /// It does not get ready.
    pub async fn start(&mut self) -> Result<()> {
        self.launch()?;
        self.ready().await
    }

    /// Starts it.
    ///
    /// # Errors
    /// The binary is missing.
    pub fn launch(&mut self) -> Result<()> {
        self.process = Some(Process::start("relay", self.run_command()?)?);
        Ok(())
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
            ensure!(process.runs(), "the relay ended:\n{}", process.last_words());
            ensure!(start.elapsed() < START, "the relay is not ready:\n{}", process.last_words());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until a service is up.
    ///
    /// # Errors
    /// It is not, in [`START`].
    pub async fn up(&self, service: &str) -> Result<()> {
        let path = format!("/readyz?service={service}");
        let what = format!("{service} to be up");
        let up =
            wait::until(&what, START, || async { self.ask(&path).await.ok().filter(|answer| answer.status == 200) });
        up.await.map(drop).with_context(|| self.last_words())
    }

    /// Waits until as many pairs of a service are up.
    ///
    /// # Errors
    /// They are not, in [`START`].
    pub async fn pairs_up(&self, service: &str, count: u64) -> Result<()> {
        let pointer = format!("/services/{service}/up");
        let what = format!("{count} pairs of {service}");
        let up = wait::until(&what, START, || async {
            let body = self.ask("/readyz").await.ok()?.json().ok()?;
            (body.pointer(&pointer)?.as_u64()? == count).then_some(())
        });
        up.await.with_context(|| self.last_words())
    }

    /// GET at its admin port.
    ///
    /// # Errors
    /// Nobody answers.
    pub async fn ask(&self, path: &str) -> Result<Answer> {
        client::get(self.admin, &self.admin.to_string(), path).await
    }

    /// GET at its front.
    ///
    /// # Errors
    /// No answer.
    pub async fn get(&self, host: &str, path: &str) -> Result<Answer> {
        client::get(self.http, host, path).await
    }

    /// Creates a tunnel and gives its token.
    ///
    /// # Errors
    /// The command failed, or printed something else.
    pub async fn tunnel(&self, name: &str, services: &[&str]) -> Result<String> {
        self.tunnel_with(name, services, &["--uses", "unlimited"]).await
    }

    /// Creates a tunnel with more flags and gives its token.
    ///
    /// # Errors
    /// The command failed, or printed something else.
    pub async fn tunnel_with(&self, name: &str, services: &[&str], flags: &[&str]) -> Result<String> {
        let mut args = vec!["tunnel", "create", name];
        for service in services {
            args.extend(["--service", service]);
        }
        args.extend(flags);
        let said = self.cli(&args).await?;
        ensure!(said.status == 0, "tunnel create: {said:?}");
        let token = said.stdout.trim().to_owned();
        ensure!(
            token.starts_with("culvert_t1_") && !token.contains(char::is_whitespace),
            "not a token alone: {said:?}"
        );
        Ok(token)
    }

    /// Runs a command of the relay's binary against this state directory.
    ///
    /// # Errors
    /// It could not be run.
    pub async fn cli(&self, args: &[&str]) -> Result<Said> {
        let mut command = self.base()?;
        command.args(args).arg("--state-dir").arg(&self.state);
        process::run("culvert-relay", command, None, START).await
    }

    /// The same without naming a state directory.
    ///
    /// # Errors
    /// It could not be run.
    pub async fn cli_bare(&self, args: &[&str]) -> Result<Said> {
        let mut command = self.base()?;
        command.args(args);
        process::run("culvert-relay", command, None, START).await
    }

    /// The same with standard input.
    ///
    /// # Errors
    /// It could not be run.
    pub async fn cli_input(&self, args: &[&str], input: &[u8]) -> Result<Said> {
        let mut command = self.base()?;
        command.args(args);
        process::run("culvert-relay", command, Some(input), START).await
    }

    /// Uses that state directory.
    pub fn set_state(&mut self, state: &Path) {
        self.state = state.to_path_buf();
    }

    /// Runs a copy of the binary that every user can reach, from a directory that every user can enter.
    ///
    /// # Errors
    /// It could not be copied.
    pub fn use_public_copy(&mut self) -> Result<()> {
        self.program = Some(public_copy(self.directory.path(), "culvert-relay")?);
        Ok(())
    }

    /// Listens for WireGuard there, and tells others so.
    pub fn listen_at(&mut self, wireguard: SocketAddr) {
        self.wireguard = wireguard;
        self.wireguard_listen = Some(wireguard.to_string());
        self.endpoint = wireguard.to_string();
    }

    /// Lets the WireGuard listeners be the defaults: every address of both families.
    pub fn listen_everywhere(&mut self) {
        self.wireguard_listen = None;
        self.endpoint = format!("{}:51820", self.wireguard.ip());
    }

    /// A command whose standard output is JSON.
    ///
    /// # Errors
    /// It failed or printed no JSON.
    pub async fn json(&self, args: &[&str]) -> Result<serde_json::Value> {
        let said = self.cli(&[args, &["--json"]].concat()).await?;
        ensure!(said.status == 0, "{args:?}: {said:?}");
        serde_json::from_str(&said.stdout).with_context(|| format!("{args:?}: {said:?}"))
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
        self.process.as_mut().context("the relay was not started")
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
        self.process.as_ref().context("the relay was not started")?.usage()
    }

    fn run_command(&self) -> Result<Command> {
        let mut command = match &self.activator {
            Some(activator) => activator.command(&self.program()?)?,
            None => self.base()?,
        };
        self.clean(&mut command);
        command.arg("run").arg("--state-dir").arg(&self.state);
        if let Some(listen) = &self.wireguard_listen {
            command.arg("--wireguard-listen").arg(listen);
        }
        command.arg("--endpoint").arg(&self.endpoint);
        command.arg("--admin-listen").arg(self.admin.to_string());
        if self.activator.is_none() && !self.args.iter().any(|arg| arg == "--config" || arg == "--http-listen") {
            command.arg("--http-listen").arg(self.http.to_string());
        }
        command.args(&self.args);
        Ok(command)
    }

    fn base(&self) -> Result<Command> {
        let mut command = prefixed(&self.prefix, &self.program()?);
        self.clean(&mut command);
        Ok(command)
    }

    fn program(&self) -> Result<PathBuf> {
        self.program.clone().map_or_else(|| binary::own("culvert-relay"), Ok)
    }

    fn clean(&self, command: &mut Command) {
        clean(command, self.directory.path(), &self.env);
    }
}

/// Copies a binary to where every user can run it.
pub(crate) fn public_copy(directory: &Path, name: &str) -> Result<PathBuf> {
    use std::os::unix::fs::PermissionsExt as _;
    let copy = directory.join(name);
    std::fs::copy(binary::own(name)?, &copy)?;
    std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o755))?;
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o755))?;
    Ok(copy)
}

/// A command behind its prefix.
pub(crate) fn prefixed(prefix: &[String], program: &Path) -> Command {
    match prefix.split_first() {
        None => spawner::command(program),
        Some((first, rest)) => {
            let mut command = spawner::command(first);
            command.args(rest).arg(program);
            command
        }
    }
}

/// No setting of the machine's owner reaches a program under test.
pub(crate) fn clean(command: &mut Command, home: &Path, env: &[(String, String)]) {
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CULVERT_") || text.starts_with("XDG_") || text == "TUNNEL_TOKEN" {
            command.env_remove(&name);
        }
    }
    command.env("HOME", home).env("CULVERT_LOG_FORMAT", "human").env("RUST_BACKTRACE", "1");
    command.envs(env.iter().map(|(name, value)| (name, value)));
}
