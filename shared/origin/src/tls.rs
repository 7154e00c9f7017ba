//! TLS toward https origins: who is trusted, and what proves us.
//!
//! Must never skip verification.

use std::fmt;
use std::sync::{Arc, OnceLock};

use rustls::client::danger::ServerCertVerifier;
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::sign::SingleCertAndKey;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use zeroize::Zeroizing;

use crate::origin::Host;

mod certified;
mod expiry;
mod own;
mod refusal;
mod required;

use certified::certified;
pub use expiry::{Expiry, Warnings};
use own::OwnCertificates;
pub use refusal::refusal;
use required::Required;
pub use required::{BadPin, Pin};

/// A client's side of TLS, made of what the operator pointed at. Equal when made of equal bytes.
#[derive(Clone)]
pub struct ClientTls {
    either: Arc<ClientConfig>,
    http1: Arc<ClientConfig>,
    made_of: Arc<Files>,
    expiries: Vec<Expiry>,
    #[cfg(test)]
    verifier: Arc<dyn ServerCertVerifier>,
}

/// Which HTTP an origin may choose (ALPN).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offer {
    /// HTTP/2, else HTTP/1.1.
    Either,
    /// HTTP/1.1: a connection that is to be upgraded.
    Http1,
}

/// What one service's `[service.tls]` says: a name, and the PEM texts of its files.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Files {
    /// The name that is asked for (SNI) and that the origin must prove, in place of its address's.
    pub server_name: Option<ServerName<'static>>,
    /// The names of which the origin must prove one, in place of `server_name` or its address's.
    pub verify_names: Vec<ServerName<'static>>,
    /// Keys of which the origin must have one; none: any that a trusted authority certified.
    pub pins: Vec<Pin>,
    /// Whether TLS 1.2 is too old.
    pub tls13_only: bool,
    /// Certificates of the authorities to trust in place of the system's.
    pub ca: Option<Vec<u8>>,
    /// Our certificate, and the chain below its root.
    pub cert: Option<Vec<u8>>,
    /// Its key.
    pub key: Option<Zeroizing<Vec<u8>>>,
}

/// Why TLS cannot be set up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadTls {
    /// A file holds no certificate.
    #[error("{0} holds no PEM certificate")]
    NoCertificate(&'static str),
    /// A file holds no key.
    #[error("key holds no PEM private key")]
    NoKey,
    /// A key under a passphrase.
    #[error("key is encrypted: keep it without a passphrase, readable to this connector alone (openssl pkey -in KEY)")]
    LockedKey,
    /// One without the other.
    #[error("cert and key go together")]
    Half,
    /// The key is not the certificate's, or of a kind that is not known.
    #[error("cert and key cannot be used: {0}")]
    Mismatch(String),
    /// The system has no trusted authorities.
    #[error("this system has no trusted certificate authorities: install ca-certificates, or name a file with ca")]
    NoRoots,
}

impl ClientTls {
    /// Sets up TLS from the files' contents.
    ///
    /// # Errors
    /// [`BadTls`]
    pub fn new(files: Files) -> Result<Self, BadTls> {
        let provider = provider();
        let mut expiries = Vec::new();
        let ordinary: Arc<dyn ServerCertVerifier> = match &files.ca {
            Some(pem) => {
                let own = certificates(pem, "ca")?;
                expiries.extend(Expiry::of_authorities(&own));
                Arc::new(OwnCertificates::new(verifier(roots_of(own.clone())?)?, own))
            }
            None => system_verifier()?,
        };
        let verifier = match files.verify_names.is_empty() && files.pins.is_empty() {
            true => ordinary,
            false => {
                let (names, pins) = (files.verify_names.clone(), files.pins.clone());
                Arc::new(Required { ordinary, names, pins })
            }
        };
        let versions = if files.tls13_only { &[&TLS13][..] } else { &[&TLS13, &TLS12] };
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(versions)
            .map_err(|error| BadTls::Mismatch(error.to_string()))?
            // Not dangerous: below it is the ordinary verifier, shared by services so that the roots are in memory once.
            .dangerous()
            .with_custom_certificate_verifier(verifier.clone());
        let mut config = match (&files.cert, &files.key) {
            (Some(cert), Some(key)) => {
                let chain = certificates(cert, "cert")?;
                expiries.extend(Expiry::of_chain(&chain));
                let key = private_key(key)?;
                let own = certified(chain, key, &provider).map_err(|error| BadTls::Mismatch(error.to_string()))?;
                builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(own)))
            }
            (None, None) => builder.with_no_client_auth(),
            _ => return Err(BadTls::Half),
        };
        config.resumption = Resumption::in_memory_sessions(8);
        let mut http1 = config.clone();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        http1.alpn_protocols = vec![b"http/1.1".to_vec()];
        // A resumed session keeps the protocol that was agreed on in it.
        http1.resumption = Resumption::in_memory_sessions(8);
        Ok(Self {
            either: Arc::new(config),
            http1: Arc::new(http1),
            made_of: Arc::new(files),
            expiries,
            #[cfg(test)]
            verifier,
        })
    }

    /// For a connector of TLS streams.
    pub fn config(&self, offer: Offer) -> Arc<ClientConfig> {
        match offer {
            Offer::Either => self.either.clone(),
            Offer::Http1 => self.http1.clone(),
        }
    }

    /// When the certificates that it was made of end.
    pub fn expiries(&self) -> &[Expiry] {
        &self.expiries
    }

    /// The name that an origin at `host` is asked for, and must prove unless other names are to be verified; none if the host's cannot be one.
    pub fn name_of(&self, host: &Host) -> Option<ServerName<'static>> {
        match (&self.made_of.server_name, host) {
            (Some(name), _) => Some(name.clone()),
            (None, Host::Address(address)) => Some(ServerName::IpAddress((*address).into())),
            (None, Host::Name(name)) => ServerName::try_from(name.trim_end_matches('.').to_owned()).ok(),
        }
    }
}

impl PartialEq for ClientTls {
    fn eq(&self, other: &Self) -> bool {
        self.made_of == other.made_of
    }
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientTls")
    }
}

/// The system's authorities, read once and only if an https origin needs them.
fn system_verifier() -> Result<Arc<dyn ServerCertVerifier>, BadTls> {
    static SYSTEM: OnceLock<Arc<dyn ServerCertVerifier>> = OnceLock::new();
    if let Some(known) = SYSTEM.get() {
        return Ok(known.clone());
    }
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let made = verifier(roots)?;
    Ok(SYSTEM.get_or_init(|| made).clone())
}

fn verifier(roots: RootCertStore) -> Result<Arc<WebPkiServerVerifier>, BadTls> {
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build().map_err(|_| BadTls::NoRoots)
}

fn roots_of(certificates: Vec<CertificateDer<'static>>) -> Result<RootCertStore, BadTls> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates);
    if roots.is_empty() { Err(BadTls::NoCertificate("ca")) } else { Ok(roots) }
}

fn private_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, BadTls> {
    let is_locked =
        |line: &[u8]| line.starts_with(b"-----BEGIN ENCRYPTED") || line.starts_with(b"Proc-Type: 4,ENCRYPTED");
    if pem.split(|byte| *byte == b'\n').any(is_locked) {
        return Err(BadTls::LockedKey);
    }
    PrivateKeyDer::from_pem_slice(pem).map_err(|_| BadTls::NoKey)
}

fn certificates(pem: &[u8], what: &'static str) -> Result<Vec<CertificateDer<'static>>, BadTls> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    all.ok().filter(|all| !all.is_empty()).ok_or(BadTls::NoCertificate(what))
}

fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER.get_or_init(|| Arc::new(rustls::crypto::ring::default_provider())).clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_without_what_they_should_hold_are_refused_by_name() {
        let no = |files: Files| ClientTls::new(files).unwrap_err();
        let text = || Some(b"hello\n".to_vec());
        assert_eq!(no(Files { ca: text(), ..Files::default() }), BadTls::NoCertificate("ca"));
        assert_eq!(no(Files { cert: text(), ..Files::default() }), BadTls::Half);
        let both = Files { cert: text(), key: text().map(Zeroizing::new), ..Files::default() };
        assert_eq!(no(both), BadTls::NoCertificate("cert"));
        assert_eq!(private_key(b"hello\n").unwrap_err(), BadTls::NoKey);
        for locked in
            ["-----BEGIN ENCRYPTED PRIVATE KEY-----\n", "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n"]
        {
            assert_eq!(private_key(locked.as_bytes()).unwrap_err(), BadTls::LockedKey);
        }
    }
}
