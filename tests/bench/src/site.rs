//! The two hosts: the gateway's side and the private side with its origin.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use culvert_lab::nginx::Nginx;
use culvert_lab::{Namespace, Origin, netns};

use crate::work::Size;

/// Where the gateway's side and the private side are.
pub(crate) const GATEWAY: &str = "10.99.0.1";
pub(crate) const PRIVATE: &str = "10.99.0.2";
/// The origin's ports on every address of the private side: downloads, uploads, downloads over HTTP/2.
pub(crate) const FETCH: u16 = 8081;
pub(crate) const UPLOAD: u16 = 8082;
pub(crate) const HTTP2: u16 = 8083;

/// A large body over the way with loss: there a TCP connection may carry a few Mbit/s only.
const LOSSY_BULK: u64 = 4 << 20;

/// Both hosts, the origins on the private one, and the files that travel.
pub(crate) struct Site {
    pub(crate) gateway: Namespace,
    pub(crate) private: Namespace,
    /// nginx: a file for each size, and the large ones.
    pub(crate) origin: Nginx,
    /// Swallows uploads.
    _sink: Origin,
    bulk_bytes: u64,
    files: tempfile::TempDir,
}

/// Two hosts joined by a veth pair.
pub(crate) fn hosts() -> Result<(Namespace, Namespace)> {
    let (gateway, private) = (Namespace::new("gw")?, Namespace::new("vpc")?);
    netns::join(
        (&gateway, "toward-vpc", &[&format!("{GATEWAY}/24")]),
        (&private, "toward-gw", &[&format!("{PRIVATE}/24")]),
    )?;
    for side in [&gateway, &private] {
        cubic(side)?;
    }
    Ok((gateway, private))
}

impl Site {
    pub(crate) async fn build(bulk_mib: u64) -> Result<Self> {
        let (gateway, private) = hosts()?;
        let files = tempfile::Builder::new().prefix("culvert-bench-").tempdir_in("/dev/shm")?;
        std::fs::set_permissions(files.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        let bulk_bytes = bulk_mib << 20;
        let sizes = Size::every().map(|size| (size.name(), size.bytes()));
        for (name, bytes) in sizes.into_iter().chain([("bulk", bulk_bytes), ("lossy-bulk", LOSSY_BULK)]) {
            std::fs::write(files.path().join(name), culvert_lab::origin::pattern(0, bytes))?;
        }
        let root = files.path().display();
        let origin = Nginx::start(
            Some(&private),
            ([127, 0, 0, 1], FETCH).into(),
            &format!(
                "sendfile on; tcp_nopush on; keepalive_timeout 600; root {root}; default_type text/plain;\n\
                 server {{ listen {FETCH} backlog=4096; }}\n\
                 server {{ listen {HTTP2} http2 backlog=4096; }}",
            ),
        )
        .await?;
        let sink = Origin::start_at("sink", ([0, 0, 0, 0], UPLOAD).into(), Some(&private)).await?;
        Ok(Self { gateway, private, origin, _sink: sink, bulk_bytes, files })
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    /// The file of a large body and its size.
    pub(crate) fn bulk(&self, is_lossy: bool) -> (&'static str, u64) {
        if is_lossy { ("lossy-bulk", LOSSY_BULK) } else { ("bulk", self.bulk_bytes) }
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
