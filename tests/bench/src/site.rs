//! The two hosts: the gateway's side and the private side with its origin.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use culvert_lab::nginx::Nginx;
use culvert_lab::{Namespace, Origin, netns};

/// Where the gateway's side and the private side are.
pub(crate) const GATEWAY: &str = "10.99.0.1";
pub(crate) const PRIVATE: &str = "10.99.0.2";

/// Both hosts, the origins on the private one, and the files that travel.
pub(crate) struct Site {
    pub(crate) gateway: Namespace,
    pub(crate) private: Namespace,
    /// nginx at port 8081 on every address of the private side: `/1k` and `/bulk`.
    pub(crate) origin: Nginx,
    /// Swallows uploads at port 8082.
    _sink: Origin,
    pub(crate) bulk_bytes: u64,
    files: tempfile::TempDir,
}

impl Site {
    pub(crate) async fn build(bulk_mib: u64) -> Result<Self> {
        let (gateway, private) = (Namespace::new("gw")?, Namespace::new("vpc")?);
        netns::join(
            (&gateway, "toward-vpc", &[&format!("{GATEWAY}/24")]),
            (&private, "toward-gw", &[&format!("{PRIVATE}/24")]),
        )?;
        for side in [&gateway, &private] {
            cubic(side)?;
        }
        let files = tempfile::Builder::new().prefix("culvert-bench-").tempdir_in("/dev/shm")?;
        std::fs::set_permissions(files.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        std::fs::write(files.path().join("1k"), vec![b'x'; 1024])?;
        let bulk_bytes = bulk_mib * 1024 * 1024;
        std::fs::write(files.path().join("bulk"), culvert_lab::origin::pattern(0, bulk_bytes))?;
        let listen = ([127, 0, 0, 1], 8081).into();
        let origin = Nginx::start(
            Some(&private),
            listen,
            &format!(
                "sendfile on; tcp_nopush on; keepalive_timeout 600;\n\
                 server {{ listen 8081 backlog=4096; root {}; default_type text/plain; }}",
                files.path().display()
            ),
        )
        .await?;
        let sink = Origin::start_at("sink", ([0, 0, 0, 0], 8082).into(), Some(&private)).await?;
        Ok(Self { gateway, private, origin, _sink: sink, bulk_bytes, files })
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    /// A certificate for `vpc`, as two PEM files.
    pub(crate) fn certificate(&self) -> Result<(PathBuf, PathBuf)> {
        let (cert, key) = (self.file("cert.pem"), self.file("key.pem"));
        if !cert.exists() {
            let output = std::process::Command::new("openssl")
                .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"])
                .args(["-subj", "/CN=vpc", "-addext", "subjectAltName=DNS:vpc"])
                .args([Path::new("-keyout"), &key, Path::new("-out"), &cert])
                .output()
                .context("openssl")?;
            ensure!(output.status.success(), "openssl: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok((cert, key))
    }
}

/// The machine's default may be bbr, which peers over TCP would then be measured with.
fn cubic(side: &Namespace) -> Result<()> {
    let setting = "net.ipv4.tcp_congestion_control=cubic";
    if side.sysctl(setting).is_err() {
        // A namespace may only use what the machine allows; this adds cubic to that list.
        let list = std::path::Path::new("/proc/sys/net/ipv4/tcp_allowed_congestion_control");
        let allowed = std::fs::read_to_string(list)?;
        std::fs::write(list, format!("{} cubic", allowed.trim())).context("allow cubic")?;
        side.sysctl(setting)?;
    }
    Ok(())
}
