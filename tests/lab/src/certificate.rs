//! Certificates that openssl makes: each its own authority, for one name.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::{process, spawner};

/// A certificate and its key, as PEM files.
#[derive(Debug, Clone)]
pub struct Certificate {
    /// The certificate; who trusts it needs no other.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Certificate {
    /// Makes one for a DNS name: `FILE.pem` and `FILE.key` in a directory.
    ///
    /// # Errors
    /// There is no openssl.
    pub async fn make(directory: &Path, file: &str, name: &str) -> Result<Self> {
        let made = Self { cert: directory.join(format!("{file}.pem")), key: directory.join(format!("{file}.key")) };
        let mut command = spawner::command("openssl");
        command.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "3"]);
        command.arg("-subj").arg(format!("/CN={name}")).arg("-addext").arg(format!("subjectAltName=DNS:{name}"));
        command.arg("-keyout").arg(&made.key).arg("-out").arg(&made.cert);
        let said = process::run("openssl", command, None, Duration::from_secs(20)).await?;
        ensure!(said.status == 0, "openssl: {said:?}");
        Ok(made)
    }

    /// As a listener's `tls` setting.
    pub fn setting(&self) -> String {
        format!("tls = {{ cert = \"{}\", key = \"{}\" }}", self.cert.display(), self.key.display())
    }
}
