//! Certificates as an operator makes them, with `openssl`, in a directory of their own.

use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

/// A directory with `ca.pem` and what it certified.
pub struct Pki(TempDir);

const CURVE: [&str; 4] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"];

impl Pki {
    /// A new authority.
    pub fn new() -> Self {
        let pki = Self(tempfile::tempdir().unwrap());
        pki.sign_own("ca", "DNS:nobody.test", None);
        pki
    }

    /// `NAME.pem` and `NAME.key`: a certificate that signed itself, as `openssl req -x509` makes it at the time `at`.
    pub fn sign_own(&self, name: &str, subject: &str, at: Option<&str>) {
        let names = format!("subjectAltName={subject}");
        let (key, cert, own) = (format!("{name}.key"), format!("{name}.pem"), format!("/CN={name}"));
        let rest = ["-x509", "-nodes", "-keyout", &key, "-out", &cert, "-days", "30", "-subj", &own, "-addext", &names];
        self.openssl(at, &[&["req"][..], &CURVE, &rest].concat());
    }

    /// `NAME.pem` and `NAME.key`, certified by the authority for `subject` (none: no name at all), as of the time `at`.
    pub fn certify(&self, name: &str, subject: Option<&str>, at: Option<&str>) {
        let (key, request, cert) = (format!("{name}.key"), format!("{name}.csr"), format!("{name}.pem"));
        let names = subject.map(|subject| format!("subjectAltName={subject}"));
        let own = format!("/CN={name}");
        let mut make = [&["req"][..], &CURVE, &["-nodes", "-keyout", &key, "-out", &request, "-subj", &own]].concat();
        if let Some(names) = &names {
            make.extend(["-addext", names]);
        }
        self.openssl(None, &make);
        let sign = ["x509", "-req", "-in", &request, "-CA", "ca.pem", "-CAkey", "ca.key", "-copy_extensions", "copy"];
        self.openssl(at, &[&sign[..], &["-days", "30", "-out", &cert]].concat());
    }

    /// A file's bytes.
    pub fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.0.path().join(name)).unwrap()
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        self.0.path()
    }

    fn openssl(&self, at: Option<&str>, arguments: &[&str]) {
        let mut command = match at {
            Some(at) => {
                let mut command = Command::new("faketime");
                command.args([at, "openssl"]);
                command
            }
            None => Command::new("openssl"),
        };
        let output = command.args(arguments).current_dir(self.0.path()).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}
