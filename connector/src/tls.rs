//! TLS toward https origins: who is trusted, and what proves us.
//!
//! Must never skip verification.

use std::fmt;
use std::sync::{Arc, OnceLock};

use rustls::client::danger::ServerCertVerifier;
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use zeroize::Zeroizing;

/// A client's side of TLS, made of what the operator pointed at. Equal when made of equal bytes.
#[derive(Clone)]
pub struct ClientTls {
    config: Arc<ClientConfig>,
    made_of: Arc<Files>,
}

/// The PEM texts of one service's `[service.tls]`.
#[derive(Default, PartialEq, Eq)]
pub struct Files {
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
        let verifier = match &files.ca {
            Some(pem) => verifier(roots_in(pem)?)?,
            None => system_verifier()?,
        };
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| BadTls::Mismatch(error.to_string()))?
            // Not dangerous: it is the ordinary verifier, shared by services so that the roots are in memory once.
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut config = match (&files.cert, &files.key) {
            (Some(cert), Some(key)) => {
                let chain = certificates(cert, "cert")?;
                let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| BadTls::NoKey)?;
                builder.with_client_auth_cert(chain, key).map_err(|error| BadTls::Mismatch(error.to_string()))?
            }
            (None, None) => builder.with_no_client_auth(),
            _ => return Err(BadTls::Half),
        };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.resumption = Resumption::in_memory_sessions(8);
        Ok(Self { config: Arc::new(config), made_of: Arc::new(files) })
    }

    /// For a connector of TLS streams.
    pub fn config(&self) -> Arc<ClientConfig> {
        self.config.clone()
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

fn verifier(roots: RootCertStore) -> Result<Arc<dyn ServerCertVerifier>, BadTls> {
    let built = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build();
    built.map(|verifier| verifier as Arc<dyn ServerCertVerifier>).map_err(|_| BadTls::NoRoots)
}

fn roots_in(pem: &[u8]) -> Result<RootCertStore, BadTls> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates(pem, "ca")?);
    if roots.is_empty() { Err(BadTls::NoCertificate("ca")) } else { Ok(roots) }
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
        let both = Files { cert: text(), key: text().map(Zeroizing::new), ca: None };
        assert_eq!(no(both), BadTls::NoCertificate("cert"));
    }
}
