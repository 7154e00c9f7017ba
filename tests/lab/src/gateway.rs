//! Gateways as `deploy/gateways` ships them, started for real: nginx, HAProxy, Caddy.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;

use crate::nginx::Nginx;
use crate::process::Process;
use crate::relay::START;
use crate::{binary, spawner};

/// A running gateway; it ends with this value.
#[derive(Debug)]
pub struct Gateway {
    /// Where callers reach it.
    pub listen: SocketAddr,
    _runs: Runs,
}

#[derive(Debug)]
#[expect(dead_code, reason = "held for their end")]
enum Runs {
    Nginx(Nginx),
    Program(Process, TempDir),
}

/// A shipped configuration with what a test must change: addresses and the place of a secret.
///
/// # Errors
/// A text to change is not in it: the file and the test have parted.
pub fn shipped(name: &str, changes: &[(&str, &str)]) -> Result<String> {
    let path = binary::project().join("deploy/gateways").join(name);
    let mut text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    for (from, to) in changes {
        ensure!(text.contains(from), "{name} has no {from:?}");
        text = text.replace(from, to);
    }
    Ok(text)
}

impl Gateway {
    /// nginx with the inside of its `http` block.
    ///
    /// # Errors
    /// It refuses the configuration.
    pub async fn nginx(listen: SocketAddr, http: &str) -> Result<Self> {
        Ok(Self { listen, _runs: Runs::Nginx(Nginx::start(None, listen, http).await?) })
    }

    /// HAProxy with its whole configuration.
    ///
    /// # Errors
    /// It refuses the configuration.
    pub async fn haproxy(listen: SocketAddr, config: &str, env: &[(&str, &str)]) -> Result<Self> {
        Self::program("haproxy", listen, "haproxy.cfg", config, env, &["-db", "-f"]).await
    }

    /// Caddy with its Caddyfile.
    ///
    /// # Errors
    /// It refuses the configuration.
    pub async fn caddy(listen: SocketAddr, config: &str, env: &[(&str, &str)]) -> Result<Self> {
        // Its admin address is the same for all of them.
        let config = format!("{{\n\tadmin off\n}}\n{config}");
        Self::program("caddy", listen, "Caddyfile", &config, env, &["run", "--adapter", "caddyfile", "--config"]).await
    }

    async fn program(
        name: &str,
        listen: SocketAddr,
        file: &str,
        config: &str,
        env: &[(&str, &str)],
        args: &[&str],
    ) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("culvert-gateway-").tempdir()?;
        let path = directory.path().join(file);
        std::fs::write(&path, config)?;
        let program = binary::on_path(name).with_context(|| format!("{name} is not installed"))?;
        let mut command = spawner::command(&program);
        command.args(args).arg(&path).env("HOME", directory.path()).envs(env.iter().copied());
        command.env_remove("XDG_CONFIG_HOME").env_remove("XDG_DATA_HOME");
        let mut process = Process::start(name, command)?;
        let start = Instant::now();
        while tokio::net::TcpStream::connect(listen).await.is_err() {
            ensure!(process.runs() && start.elapsed() < START, "{name} does not listen: {}", process.output());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(Self { listen, _runs: Runs::Program(process, directory) })
    }
}
