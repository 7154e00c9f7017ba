//! Real nginx, as the gateway in front of the relay and as the private origin.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use crate::netns::Namespace;
use crate::process::Process;
use crate::{binary, relay, wait};

/// One nginx, one worker.
#[derive(Debug)]
pub struct Nginx {
    process: Process,
    directory: TempDir,
}

impl Nginx {
    /// Starts it with `http` (the inside of the `http` block), in a namespace if given, and waits until `listen`
    /// accepts. `DIR` in the text stands for its own directory.
    ///
    /// # Errors
    /// nginx is missing or refuses the configuration.
    pub async fn start(namespace: Option<&Namespace>, listen: SocketAddr, http: &str) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("culvert-nginx-").tempdir()?;
        let at = directory.path().display().to_string();
        // Its worker gives up root and must still reach the directory.
        std::fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        for part in ["body", "proxy", "root"] {
            std::fs::create_dir(directory.path().join(part))?;
        }
        let user = if nix::unistd::geteuid().is_root() { "user root;" } else { "" };
        let config = format!(
            "{user} worker_processes 1; daemon off; pid {at}/pid; error_log stderr warn;\n\
             events {{ worker_connections 4096; }}\n\
             http {{ access_log off; client_body_temp_path {at}/body; proxy_temp_path {at}/proxy;\n\
             fastcgi_temp_path {at}/body; uwsgi_temp_path {at}/body; scgi_temp_path {at}/body;\n\
             keepalive_requests 1000000; client_max_body_size 0; {} }}\n",
            http.replace("DIR", &at)
        );
        let path = directory.path().join("nginx.conf");
        std::fs::write(&path, config)?;
        let program = binary::on_path("nginx").context("nginx is not installed")?;
        let prefix = namespace.map(Namespace::prefix).unwrap_or_default();
        let mut command = relay::prefixed(&prefix, &program);
        command.arg("-c").arg(&path).arg("-p").arg(directory.path()).arg("-e").arg("stderr");
        let process = Process::start("nginx", command)?;
        let nginx = Self { process, directory };
        let what = format!("nginx at {listen}");
        let accepts = move || async move {
            wait::until(&what, Duration::from_secs(5), || async {
                tokio::net::TcpStream::connect(listen).await.ok().map(drop)
            })
            .await
        };
        let accepted = match namespace {
            Some(namespace) => namespace.within(accepts).await,
            None => accepts().await,
        };
        accepted.with_context(|| nginx.process.output())?;
        Ok(nginx)
    }

    /// Where its files are: `root/` is a good place for what it serves.
    pub fn root(&self) -> PathBuf {
        self.directory.path().join("root")
    }

    /// What it wrote: its error log.
    pub fn output(&self) -> String {
        self.process.output()
    }

    /// The process ids of master and workers.
    pub fn ids(&self) -> Vec<u32> {
        let master = self.process.id();
        let children = std::fs::read_to_string(format!("/proc/{master}/task/{master}/children")).unwrap_or_default();
        std::iter::once(master).chain(children.split_whitespace().filter_map(|id| id.parse().ok())).collect()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // The master ends its workers; a killed master would leave them.
        let _ = self.process.signal(nix::sys::signal::Signal::SIGTERM);
        let start = std::time::Instant::now();
        while self.process.runs() && start.elapsed() < Duration::from_secs(2) {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
