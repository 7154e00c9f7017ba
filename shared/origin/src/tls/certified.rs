//! Our own certificate and its key, which must belong together.
//!
//! Must never refuse what an origin may take: certificates of version 1, which `openssl x509 -req` makes by default, name no
//! host, but a client needs none.

use rustls::Error;
use rustls::crypto::CryptoProvider;
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, InconsistentKeys};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// Puts both together.
pub(super) fn certified(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    provider: &CryptoProvider,
) -> Result<CertifiedKey, Error> {
    let certified = CertifiedKey::new(chain, provider.key_provider.load_private_key(key)?);
    match certified.keys_match() {
        Ok(()) | Err(Error::InconsistentKeys(InconsistentKeys::Unknown)) => Ok(certified),
        // webpki reads none of these; the key stands in them as it is.
        Err(error) if is_version_1(&error) => match certified.key.public_key() {
            Some(public) if !certified.cert.first().is_some_and(|leaf| holds(leaf, public.as_ref())) => {
                Err(Error::InconsistentKeys(InconsistentKeys::KeyMismatch))
            }
            Some(_) | None => Ok(certified),
        },
        Err(error) => Err(error),
    }
}

fn is_version_1(error: &Error) -> bool {
    match error {
        Error::InvalidCertificate(CertificateError::Other(other)) => {
            matches!(other.0.downcast_ref(), Some(webpki::Error::UnsupportedCertVersion))
        }
        _ => false,
    }
}

fn holds(der: &[u8], part: &[u8]) -> bool {
    !part.is_empty() && der.windows(part.len()).any(|window| window == part)
}
