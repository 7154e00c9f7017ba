//! TLS toward callers: what a listener proves itself with, whom it believes, and both anew when their files change.
//!
//! Must never show a key, and never stop serving because new files are not right yet.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use culvert_ops::certificate;
use culvert_ops::load::ProcessEnvironment;
use culvert_ops::secret::{SecretError, SecretSource};
use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{InconsistentKeys, RootCertStore, ServerConfig, ServerConnection};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest as _, Sha256};
use tracing::{info, warn};

use crate::config::TlsFiles;
use crate::gateways::PeerCertificate;

const HTTP2: &[u8] = b"h2";
const HTTP1: &[u8] = b"http/1.1";

/// A listener's TLS, made of its files.
pub(crate) struct Tls {
    config: Arc<ServerConfig>,
    files: TlsFiles,
    /// Callers must have a certificate; else they may.
    demanded: bool,
    /// The hash of what it was made of.
    contents: [u8; 32],
    /// When the certificate ends; none when that cannot be read.
    expires: Option<SystemTime>,
}

/// What was seen of the files when they were last looked at.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Seen(Vec<Option<(u64, i64, i64, u64)>>);

/// Watches the files of one listener.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    /// As they were when they were last made use of.
    used: Seen,
    /// As they were at the last look: two looks alike say that nobody is writing.
    last: Seen,
    told_expiry: Option<SystemTime>,
}

/// What a caller's handshake settled.
pub(crate) struct Settled {
    /// The caller chose HTTP/2.
    pub(crate) http2: bool,
    /// Verified by the listener's authorities.
    pub(crate) certificate: Option<Arc<PeerCertificate>>,
}

/// Why a listener's TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadTls {
    /// A file is not there, or cannot be read.
    #[error(transparent)]
    Unreadable(#[from] SecretError),
    /// A file holds no certificate.
    #[error("{} holds no PEM certificate", .0.display())]
    NoCertificate(PathBuf),
    /// A file holds no key.
    #[error("{} holds no PEM private key", .0.display())]
    NoKey(PathBuf),
    /// A file's key needs a passphrase that nobody can type here.
    #[error("{} is encrypted: take its passphrase off, as with openssl pkey -in OLD -out NEW", .0.display())]
    EncryptedKey(PathBuf),
    /// The two do not belong together.
    #[error("the key in {} is not the one of the certificate in {}", .key.display(), .cert.display())]
    Mismatch {
        /// The key's file.
        key: PathBuf,
        /// The certificate's file.
        cert: PathBuf,
    },
    /// They cannot be used otherwise.
    #[error("{} cannot be used: {why}", .path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What rustls says.
        why: String,
    },
}

impl Tls {
    /// Reads the files. Where `demanded`, callers must show a certificate of the client authorities.
    ///
    /// # Errors
    /// [`BadTls`]
    pub(crate) fn load(files: &TlsFiles, demanded: bool) -> Result<Self, BadTls> {
        let read = |path: &Path| SecretSource::File(path.to_owned()).read(&ProcessEnvironment);
        let cert = fs::read(&files.cert).map_err(|source| unreadable(&files.cert, source))?;
        let key = read(&files.key)?;
        let client_ca = files.client_ca.as_ref().map(|path| fs::read(path).map_err(|error| unreadable(path, error)));
        let client_ca = client_ca.transpose()?;
        let mut hash = Sha256::new();
        for part in [cert.as_slice(), key.expose().as_bytes(), client_ca.as_deref().unwrap_or_default()] {
            hash.update(Sha256::digest(part));
        }
        let chain = certificates(&cert, &files.cert)?;
        let expires = chain.first().and_then(|leaf| certificate::read(leaf)).map(|facts| facts.not_after);
        if ["ENCRYPTED PRIVATE KEY", "4,ENCRYPTED"].iter().any(|mark| key.expose().contains(mark)) {
            return Err(BadTls::EncryptedKey(files.key.clone()));
        }
        let key = PrivateKeyDer::from_pem_slice(key.expose().as_bytes());
        let key = key.map_err(|_| BadTls::NoKey(files.key.clone()))?;
        let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
        let builder = builder.map_err(|error| unusable(&files.cert, &error))?;
        let builder = match (&client_ca, &files.client_ca) {
            (Some(pem), Some(path)) => builder.with_client_cert_verifier(verifier(pem, path, demanded)?),
            (_, _) => builder.with_no_client_auth(),
        };
        let mut config = builder.with_single_cert(chain, key).map_err(|error| match error {
            rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                BadTls::Mismatch { key: files.key.clone(), cert: files.cert.clone() }
            }
            error => unusable(&files.cert, &error),
        })?;
        config.alpn_protocols = vec![HTTP2.to_vec(), HTTP1.to_vec()];
        let contents = hash.finalize().into();
        Ok(Self { config: Arc::new(config), files: files.clone(), demanded, contents, expires })
    }

    /// When the certificate ends.
    pub(crate) fn expires(&self) -> Option<SystemTime> {
        self.expires
    }

    /// For an acceptor of TLS streams.
    pub(crate) fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.config)
    }
}

impl Watch {
    /// Looks at the files of what is in use: what takes its place, if they changed and are right. Blocks on the disk.
    pub(crate) fn look(&mut self, tls: &Tls, now: SystemTime) -> Option<Tls> {
        if let Some(expires) = tls.expires
            && expires <= now
            && self.told_expiry.replace(expires) != Some(expires)
        {
            warn!(certificate = %tls.files.cert.display(), "certificate of a listener has expired");
        }
        let seen = Seen::of(&tls.files);
        let settled = std::mem::replace(&mut self.last, seen.clone()) == seen;
        if seen == self.used || !settled {
            return None;
        }
        self.used = seen;
        match Tls::load(&tls.files, tls.demanded) {
            Ok(new) if new.contents == tls.contents => None,
            Ok(new) => {
                info!(certificate = %tls.files.cert.display(), "certificate of a listener changed, using it");
                Some(new)
            }
            Err(error) => {
                warn!(%error, "changed files of a listener's TLS are not right, keeping the old");
                None
            }
        }
    }
}

impl Seen {
    fn of(files: &TlsFiles) -> Self {
        let paths = [Some(&files.cert), Some(&files.key), files.client_ca.as_ref()];
        let seen = paths.into_iter().flatten().map(|path| {
            let metadata = fs::metadata(path).ok()?;
            Some((metadata.ino(), metadata.mtime(), metadata.mtime_nsec(), metadata.size()))
        });
        Self(seen.collect())
    }
}

impl Settled {
    /// What a finished handshake says.
    pub(super) fn of(connection: &ServerConnection) -> Self {
        let leaf = connection.peer_certificates().and_then(<[_]>::first);
        let certificate = leaf.map(|leaf| {
            let names = certificate::read(leaf).map_or_else(Vec::new, |facts| facts.names);
            Arc::new(PeerCertificate { sha256: Sha256::digest(leaf).into(), sans: names })
        });
        Self { http2: connection.alpn_protocol() == Some(HTTP2), certificate }
    }
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("files", &self.files).finish_non_exhaustive()
    }
}

fn certificates(pem: &[u8], path: &Path) -> Result<Vec<CertificateDer<'static>>, BadTls> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    all.ok().filter(|all| !all.is_empty()).ok_or_else(|| BadTls::NoCertificate(path.to_owned()))
}

fn verifier(pem: &[u8], path: &Path, demanded: bool) -> Result<Arc<dyn ClientCertVerifier>, BadTls> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(pem, path)? {
        roots.add(certificate).map_err(|error| unusable(path, &error))?;
    }
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
    let builder = if demanded { builder } else { builder.allow_unauthenticated() };
    builder.build().map_err(|error| unusable(path, &error))
}

fn unreadable(path: &Path, source: std::io::Error) -> BadTls {
    BadTls::Unreadable(SecretError::Unreadable { name: path.display().to_string(), source })
}

fn unusable(path: &Path, why: &dyn std::fmt::Display) -> BadTls {
    BadTls::Unusable { path: path.to_owned(), why: why.to_string() }
}

fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| Arc::new(rustls::crypto::ring::default_provider())))
}

#[cfg(test)]
mod tests;
