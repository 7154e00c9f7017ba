//! What `deploy/examples/origins/` shows runs as it is: it lets in what comes through the connector, and nobody else.

mod certificate;
mod jwt;
mod secret;
mod signatures;
mod signed;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use culvert_lab::skip::{Need, unless};
use culvert_lab::{Connector, Process, Relay, address, binary, process, spawner, wait};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(15);
/// A Go compiler beside other tests.
const BUILT_WITHIN: Duration = Duration::from_secs(90);

/// What an origin is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Language {
    Node,
    Python,
    Go,
}

/// A running example.
struct Example {
    at: SocketAddr,
    process: Process,
    _directory: TempDir,
}

impl Language {
    /// Whether a test of an example has to be skipped.
    fn is_missing(self, test: &str) -> bool {
        let needs = match self {
            Self::Node => &[Need::Npm("express"), Need::Npm("jose")][..],
            Self::Python => &[Need::Python("jwt, cryptography")],
            Self::Go => &[Need::Go],
        };
        unless(test, needs)
    }

    /// Starts an example of this language, and waits until it listens.
    async fn start(self, file: &str, settings: &[(&str, &str)]) -> Result<Example> {
        let directory = tempfile::Builder::new().prefix("culvert-example-").tempdir()?;
        let source = binary::project().join("deploy/examples/origins").join(file);
        let mut command = match self {
            Self::Python => {
                let mut command = spawner::command(binary::PYTHON);
                command.arg("-u").arg(source);
                command
            }
            // Node looks for packages beside the file that names them.
            Self::Node => {
                let copy = directory.path().join(file);
                std::fs::copy(&source, &copy).with_context(|| source.display().to_string())?;
                std::os::unix::fs::symlink(binary::node_modules(), directory.path().join("node_modules"))?;
                let mut command = spawner::command("node");
                command.arg(copy);
                command
            }
            Self::Go => spawner::command(build(file, &directory).await?),
        };
        let at = address::at(address::own_loopback(), 31_300);
        command.env("HOST", at.ip().to_string()).env("PORT", at.port().to_string());
        command.envs(settings.iter().copied()).current_dir(directory.path());
        let process = Process::start(file, command)?;
        let example = Example { at, process, _directory: directory };
        let what = format!("{file} to listen");
        let listens =
            wait::until(&what, PATIENCE, || async { tokio::net::TcpStream::connect(at).await.ok().map(drop) });
        listens.await.with_context(|| example.process.output())?;
        Ok(example)
    }
}

async fn build(file: &str, directory: &TempDir) -> Result<PathBuf> {
    let (compiler, args) = binary::go().context("there is no Go")?;
    let program = directory.path().join("example");
    let mut command = Command::new(compiler);
    command.args(args).arg(&program).arg(binary::project().join("deploy/examples/origins").join(file));
    command.env("GOCACHE", directory.path().join("cache")).env("GO111MODULE", "off");
    let said = process::run("go", command, None, BUILT_WITHIN).await?;
    ensure!(said.status == 0, "{said:?}");
    Ok(program)
}

/// A relay and a connector with these services, all of which are up; `up` names the last.
async fn serving(config: &str, relay_config: &str, up: &str) -> Result<(Relay, Connector)> {
    let mut relay = Relay::new()?;
    let listen = format!("[http]\nlisten = [\"{}\"]\n", relay.http);
    relay.config(&(listen + relay_config))?;
    relay.start().await?;
    let token = relay.tunnel("main", &["*"]).await?;
    let mut connector = Connector::new(&token, &[])?;
    connector.config(config)?;
    connector.start().await?;
    relay.up(up).await?;
    Ok((relay, connector))
}
