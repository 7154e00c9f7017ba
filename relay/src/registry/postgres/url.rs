//! `postgres://…`: which database, how it is reached, and what of that may be shown.
//!
//! Must never print a password. Settled without opening anything: files and secrets are read at each connection, so
//! that a rotated password or certificate needs no restart.

use std::borrow::Cow;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use culvert_ops::load::ProcessEnvironment;
use culvert_ops::secret::{Secret, SecretError, SecretSource};
use percent_encoding::percent_decode_str;
use tokio_postgres::config::{Host, SslMode, TargetSessionAttrs};

use super::tls::{Roots, TlsSettings, Trust};

/// An address of the server gets so long to answer.
const CONNECT_WITHIN: Duration = Duration::from_secs(3);
/// What was sent must be acknowledged within this, or the server counts as gone.
const UNANSWERED_FOR: Duration = Duration::from_secs(5);

/// A PostgreSQL database.
#[derive(Clone)]
pub(crate) struct Target {
    /// Everything but the password.
    config: tokio_postgres::Config,
    password: Option<SecretSource>,
    tls: Option<TlsSettings>,
    shown: String,
}

/// Why a URL names no database that a registry can be in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadTarget {
    /// It does not read as a URL of PostgreSQL.
    #[error("postgres://USER@HOST:PORT/DATABASE is expected: {0}")]
    Malformed(String),
    /// No such way to use TLS.
    #[error("sslmode={0}: disable, prefer, require, verify-ca or verify-full is expected")]
    SslMode(String),
    /// A certificate without its key, or the other way round.
    #[error("sslcert and sslkey are given together or not at all")]
    HalfCertificate,
    /// Two passwords.
    #[error("the URL holds a password, and registry.password is set too")]
    TwoPasswords,
}

impl Target {
    /// Reads a URL; `password` is where a password comes from that does not stand in it.
    ///
    /// # Errors
    /// [`BadTarget`].
    pub(crate) fn new(url: &str, password: Option<SecretSource>) -> Result<Self, BadTarget> {
        let (base, query) = url.split_once('?').unwrap_or((url, ""));
        let (mut kept, mut mode, mut tls) = (Vec::new(), None, TlsSettings::default());
        let (mut cert, mut key_file) = (None, None);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = || percent_decode_str(value).decode_utf8_lossy();
            match key {
                "sslmode" => mode = Some(value().into_owned()),
                "sslrootcert" if value() == "system" => {}
                "sslrootcert" => tls.roots = Roots::File(path(value())),
                "sslcert" => cert = Some(path(value())),
                "sslkey" => key_file = Some(path(value())),
                _ => kept.push(pair),
            }
        }
        let plain = if kept.is_empty() { base.to_owned() } else { format!("{base}?{}", kept.join("&")) };
        let mut config: tokio_postgres::Config =
            plain.parse().map_err(|error: tokio_postgres::Error| BadTarget::Malformed(told(&error)))?;
        if config.get_hosts().is_empty() {
            return Err(BadTarget::Malformed("it names no host".to_owned()));
        }
        let written = config.get_password().map(|password| Secret::new(String::from_utf8_lossy(password)));
        let password = match (written, password) {
            (Some(_), Some(_)) => return Err(BadTarget::TwoPasswords),
            (Some(written), None) => Some(SecretSource::Literal(written)),
            (None, source) => source,
        };
        tls.certificate = match (cert, key_file) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            (Some(_), None) | (None, Some(_)) => return Err(BadTarget::HalfCertificate),
        };
        let (ssl_mode, trust) = trust(mode.as_deref(), config.get_hosts())?;
        config.ssl_mode(ssl_mode).password("").tcp_user_timeout(UNANSWERED_FOR);
        // A standby that was promoted is found; one that was not would refuse every change.
        config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(CONNECT_WITHIN);
        }
        if config.get_application_name().is_none() {
            config.application_name("culvert-relay");
        }
        let tls = trust.map(|trust| TlsSettings { trust, ..tls });
        let shown = shown(&config, mode.as_deref());
        Ok(Self { config, password, tls, shown })
    }

    /// How to connect now: the password is read anew each time.
    ///
    /// # Errors
    /// The password's source holds none.
    pub(super) fn config(&self) -> Result<tokio_postgres::Config, SecretError> {
        let mut config = self.config.clone();
        if let Some(source) = &self.password {
            config.password(source.read(&ProcessEnvironment)?.expose());
        }
        Ok(config)
    }

    /// None = in clear.
    pub(super) fn tls(&self) -> Option<&TlsSettings> {
        self.tls.as_ref()
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

/// What tokio-postgres says, its causes too; never a password.
pub(super) fn told(error: &tokio_postgres::Error) -> String {
    if let Some(server) = error.as_db_error() {
        return server.message().to_owned();
    }
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(one) = cause {
        text = format!("{text}: {one}");
        cause = one.source();
    }
    text
}

/// Without a word, a server elsewhere has to prove who it is, and one on this machine needs no TLS.
fn trust(mode: Option<&str>, hosts: &[Host]) -> Result<(SslMode, Option<Trust>), BadTarget> {
    let local = |host: &Host| match host {
        Host::Unix(_) => true,
        Host::Tcp(name) => {
            name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
        }
    };
    let (mode, trust) = match mode {
        None if hosts.iter().all(local) => (SslMode::Disable, None),
        Some("disable") => (SslMode::Disable, None),
        Some("allow" | "prefer") => (SslMode::Prefer, Some(Trust::Anybody)),
        Some("require") => (SslMode::Require, Some(Trust::Anybody)),
        Some("verify-ca") => (SslMode::Require, Some(Trust::Chain)),
        None | Some("verify-full") => (SslMode::Require, Some(Trust::Name)),
        Some(other) => return Err(BadTarget::SslMode(other.to_owned())),
    };
    // PostgreSQL speaks no TLS over unix sockets.
    if hosts.iter().all(|host| matches!(host, Host::Unix(_))) {
        return Ok((SslMode::Disable, None));
    }
    Ok((mode, trust))
}

fn shown(config: &tokio_postgres::Config, mode: Option<&str>) -> String {
    let ports = config.get_ports();
    let host = |(place, host): (usize, &Host)| {
        let port = ports.get(place).or(ports.first()).copied().unwrap_or(5432);
        match host {
            Host::Tcp(name) if name.contains(':') => format!("[{name}]:{port}"),
            Host::Tcp(name) => format!("{name}:{port}"),
            Host::Unix(path) => format!("{}:{port}", path.display()),
        }
    };
    let hosts: Vec<_> = config.get_hosts().iter().enumerate().map(host).collect();
    let user = config.get_user().map(|user| format!("{user}@")).unwrap_or_default();
    let database = config.get_dbname().map(|name| format!("/{name}")).unwrap_or_default();
    let mode = mode.map(|mode| format!("?sslmode={mode}")).unwrap_or_default();
    format!("postgres://{user}{}{database}{mode}", hosts.join(","))
}

fn path(text: Cow<'_, str>) -> PathBuf {
    PathBuf::from(text.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_elsewhere_proves_who_it_is_unless_the_url_says_otherwise() {
        for (url, mode, trust) in [
            ("postgres://u@db.example/c", SslMode::Require, Some(Trust::Name)),
            ("postgresql://u@db.example/c?sslmode=verify-full", SslMode::Require, Some(Trust::Name)),
            ("postgres://u@db.example/c?sslmode=verify-ca", SslMode::Require, Some(Trust::Chain)),
            ("postgres://u@db.example/c?sslmode=require", SslMode::Require, Some(Trust::Anybody)),
            ("postgres://u@db.example/c?sslmode=prefer", SslMode::Prefer, Some(Trust::Anybody)),
            ("postgres://u@db.example/c?sslmode=disable", SslMode::Disable, None),
            ("postgres://u@127.0.0.1/c", SslMode::Disable, None),
            ("postgres://u@127.0.0.1,db.example/c", SslMode::Require, Some(Trust::Name)),
            ("postgres://u@%2Frun%2Fpostgresql/c?sslmode=require", SslMode::Disable, None),
        ] {
            let target = Target::new(url, None).unwrap();
            assert_eq!(target.config.get_ssl_mode(), mode, "{url}");
            assert_eq!(target.tls().map(|tls| tls.trust), trust, "{url}");
        }
    }

    #[test]
    fn a_password_comes_from_one_place_and_is_never_shown() {
        let source = || Some(SecretSource::Literal(Secret::new("hunter2\n")));
        let target = Target::new("postgres://u@db:6432/c?sslmode=require&sslrootcert=/ca.pem", source()).unwrap();
        assert_eq!(target.config().unwrap().get_password(), Some(b"hunter2".as_slice()));
        assert_eq!(format!("{target} {target:?}").matches("postgres://u@db:6432/c?sslmode=require").count(), 2);
        let written = Target::new("postgres://u:hunter2@db/c", None).unwrap();
        assert_eq!(written.config().unwrap().get_password(), Some(b"hunter2".as_slice()));
        assert!(!format!("{written} {written:?}").contains("hunter2"));
        let both = Target::new("postgres://u:hunter2@db/c", source()).unwrap_err();
        assert_eq!(both, BadTarget::TwoPasswords);
    }

    #[test]
    fn a_url_that_names_no_database_is_refused_without_repeating_it() {
        for bad in [
            "postgres://u:hunter2@db:x/c",
            "postgres://u:hunter2@/c",
            "postgres://u:hunter2@db/c?nonsense=1",
            "postgres://u:hunter2@db/c?sslmode=maybe",
            "postgres://u:hunter2@db/c?sslcert=/a.pem",
        ] {
            let error = Target::new(bad, None).unwrap_err().to_string();
            assert!(!error.contains("hunter2"), "{bad}: {error}");
        }
    }
}
