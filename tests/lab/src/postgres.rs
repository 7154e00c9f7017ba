//! A PostgreSQL of the test's own, from Debian's package: a directory, an address and a password of its own.
//!
//! It refuses to run as root, so root's test gives it to `nobody`. Nothing of it stays behind.

use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::process::{self, Process};
use crate::{address, spawner, wait};

/// The role and the database that relays use.
const NAME: &str = "culvert";
/// The role's password.
const PASSWORD: &str = "a password of tests";
const START: Duration = Duration::from_secs(20);

/// One server, started, stopped and started again by the test.
#[derive(Debug)]
pub struct Postgres {
    address: SocketAddr,
    programs: PathBuf,
    directory: TempDir,
    process: Option<Process>,
}

impl Postgres {
    /// Where Debian's package has the server's programs; none where it is not installed.
    pub fn programs() -> Option<PathBuf> {
        let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
        let mut programs: Vec<PathBuf> = versions.flatten().map(|version| version.path().join("bin")).collect();
        programs.retain(|path| path.join("initdb").exists());
        programs.sort();
        programs.pop()
    }

    /// Makes one with an empty database, starts it and waits until it answers.
    ///
    /// # Errors
    /// It is not installed, or does not start.
    pub async fn start() -> Result<Self> {
        let programs = Self::programs().context("PostgreSQL is not installed")?;
        let directory = tempfile::Builder::new().prefix("culvert-pg-").tempdir()?;
        let at = directory.path();
        std::fs::write(at.join("password"), format!("{PASSWORD}\n"))?;
        if nix::unistd::geteuid().is_root() {
            std::fs::set_permissions(at, std::fs::Permissions::from_mode(0o755))?;
            let nobody = nix::unistd::User::from_name("nobody")?.context("there is no user nobody")?;
            for path in [at.to_path_buf(), at.join("password")] {
                chown(path, Some(nobody.uid.as_raw()), Some(nobody.gid.as_raw()))?;
            }
        }
        let address = address::at(address::own_loopback(), 31_432);
        let mut postgres = Self { address, programs, directory, process: None };
        let mut init = postgres.as_nobody("initdb");
        init.args(["--no-sync", "--auth-local=trust", "--auth-host=scram-sha-256", "--encoding=UTF8", "--no-locale"]);
        init.arg("--username").arg(NAME).arg("--pwfile").arg(postgres.at("password"));
        init.arg("--pgdata").arg(postgres.at("data"));
        let said = process::run("initdb", init, None, START).await?;
        ensure!(said.status == 0, "initdb: {said:?}");
        postgres.restart().await?;
        let said = postgres.psql("postgres", &format!("CREATE DATABASE {NAME}")).await;
        said.map(|_| postgres)
    }

    /// Where it listens, as `[registry] url` names it; the password is in [`Postgres::password_file`].
    pub fn url(&self) -> String {
        format!("postgres://{NAME}@{}/{NAME}", self.address)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A file that holds the password alone.
    pub fn password_file(&self) -> PathBuf {
        self.at("password")
    }

    /// The password.
    pub fn password(&self) -> &'static str {
        PASSWORD
    }

    /// The directory of its unix socket, where it asks for no password.
    pub fn socket_directory(&self) -> &Path {
        self.directory.path()
    }

    /// Runs SQL in the relays' database: its rows, unaligned, columns separated by `|`.
    ///
    /// # Errors
    /// It failed.
    pub async fn sql(&self, sql: &str) -> Result<String> {
        self.psql(NAME, sql).await
    }

    /// As [`Postgres::sql`], in another database.
    ///
    /// # Errors
    /// It failed.
    pub async fn sql_in(&self, database: &str, sql: &str) -> Result<String> {
        self.psql(database, sql).await
    }

    /// Ends every session at once and stops, as at a crash of its host.
    ///
    /// # Errors
    /// It does not run.
    pub async fn stop(&mut self) -> Result<()> {
        let mut process = self.process.take().context("PostgreSQL does not run")?;
        process.signal(Signal::SIGQUIT)?;
        process.end(START).await?;
        Ok(())
    }

    /// Stops it, if it runs, starts it and waits until it answers.
    ///
    /// # Errors
    /// It does not start.
    pub async fn restart(&mut self) -> Result<()> {
        if self.process.is_some() {
            self.stop().await?;
        }
        let mut command = self.as_nobody("postgres");
        command.arg("-D").arg(self.at("data")).arg("-h").arg(self.address.ip().to_string());
        command.arg("-p").arg(self.address.port().to_string()).arg("-k").arg(self.directory.path());
        for setting in ["fsync=off", "max_connections=50", "shared_buffers=16MB", "log_min_messages=warning"] {
            command.arg("-c").arg(setting);
        }
        self.process = Some(Process::start("postgres", command)?);
        let answers =
            wait::until("PostgreSQL to answer", START, || async { self.psql("postgres", "SELECT 1").await.ok() });
        answers.await.map(drop).with_context(|| self.output())
    }

    /// What it wrote.
    pub fn output(&self) -> String {
        self.process.as_ref().map(Process::output).unwrap_or_default()
    }

    async fn psql(&self, database: &str, sql: &str) -> Result<String> {
        let mut command = spawner::command(self.programs.join("psql"));
        command.args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1"]);
        command.arg("--host").arg(self.directory.path()).arg("--port").arg(self.address.port().to_string());
        command.args(["--username", NAME, "--dbname", database, "--command", sql]);
        let said = process::run("psql", command, None, START).await?;
        ensure!(said.status == 0, "{sql}: {said:?}");
        Ok(said.stdout)
    }

    fn as_nobody(&self, program: &str) -> Command {
        let program = self.programs.join(program);
        let mut command = if nix::unistd::geteuid().is_root() {
            // Another user clears the parent-death signal, so it is set after that.
            let mut command = Command::new("setpriv");
            command.args(["--reuid", "nobody", "--regid", "nogroup", "--clear-groups"]);
            command.args(["setpriv", "--pdeathsig", "KILL", "--"]).arg(program);
            command
        } else {
            spawner::command(program)
        };
        command.current_dir(self.directory.path());
        command
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // Its children end with it only when it is told; killed, they need a moment and hold the directory.
        if let Some(process) = &mut self.process {
            let _ = process.signal(Signal::SIGQUIT);
            let start = std::time::Instant::now();
            while process.runs() && start.elapsed() < Duration::from_secs(5) {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::skip::{self, Need};

    #[tokio::test]
    async fn a_server_of_the_tests_own_keeps_its_rows_over_a_restart() -> Result<()> {
        if skip::unless("a PostgreSQL of the test's own", &[Need::Postgres]) {
            return Ok(());
        }
        let mut postgres = Postgres::start().await?;
        postgres.sql("CREATE TABLE t (n int); INSERT INTO t VALUES (7)").await?;
        postgres.restart().await?;
        assert_eq!(postgres.sql("SELECT n FROM t").await?, "7");
        Ok(())
    }
}
