//! What an origin must prove beyond a certificate of a trusted authority: one of several names, or a key that is known.
//!
//! Must never take anything for the ordinary verification: all of that comes first.

use std::str::FromStr;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, Error, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use sha2::{Digest as _, Sha256};

/// The SHA-256 of a certificate's key (its SubjectPublicKeyInfo, RFC 7469 §2.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pin([u8; 32]);

/// The text is no pin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no pin: sha256/ and 44 characters of base64 are expected, as curl's --pinnedpubkey has it")]
pub struct BadPin(String);

/// Verifies as another verifier does, and more.
#[derive(Debug)]
pub(super) struct Required {
    pub(super) ordinary: Arc<dyn ServerCertVerifier>,
    /// One of them is to be proven in place of the name that was asked for; none: that one.
    pub(super) names: Vec<ServerName<'static>>,
    /// One of them is the key's. Several during a change of keys.
    pub(super) pins: Vec<Pin>,
}

impl FromStr for Pin {
    type Err = BadPin;

    fn from_str(text: &str) -> Result<Self, BadPin> {
        let bad = || BadPin(text.to_owned());
        let hash = text.strip_prefix("sha256/").ok_or_else(bad)?;
        let hash = STANDARD.decode(hash.strip_prefix('/').unwrap_or(hash)).map_err(|_| bad())?;
        hash.try_into().map(Self).map_err(|_| bad())
    }
}

impl Required {
    /// The server's own certificate alone counts: anybody can send along another's as an intermediate.
    fn pinned(&self, certificate: &CertificateDer<'_>) -> Result<(), Error> {
        if self.pins.is_empty() {
            return Ok(());
        }
        let key = webpki::EndEntityCert::try_from(certificate)
            .map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))?
            .subject_public_key_info();
        let pin = Pin(Sha256::digest(key.as_ref()).into());
        match self.pins.contains(&pin) {
            true => Ok(()),
            false => Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure)),
        }
    }
}

impl ServerCertVerifier for Required {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let proves = |name: &ServerName<'_>| {
            self.ordinary.verify_server_cert(end_entity, intermediates, name, ocsp_response, now)
        };
        let mut verified = match self.names.first() {
            Some(name) => proves(name),
            None => proves(server_name),
        };
        for name in self.names.iter().skip(1) {
            verified = verified.or_else(|_| proves(name));
        }
        let verified = verified?;
        self.pinned(end_entity)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.ordinary.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.ordinary.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.ordinary.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::super::{ClientTls, Files};
    use super::*;

    struct Server {
        certificate: CertificateDer<'static>,
        pem: Vec<u8>,
        pin: Pin,
    }

    fn server(names: &[&str]) -> Server {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let certificate = CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
        let spki = rcgen::PublicKeyData::subject_public_key_info(&key);
        Server {
            certificate: certificate.der().clone(),
            pem: certificate.pem().into_bytes(),
            pin: Pin(Sha256::digest(spki).into()),
        }
    }

    fn verify(
        server: &Server,
        with: &[CertificateDer<'_>],
        asked: &str,
        names: &[&str],
        pins: &[Pin],
    ) -> Result<(), Error> {
        let own = ClientTls::new(Files { ca: Some(server.pem.clone()), ..Files::default() }).unwrap();
        let required = Required {
            ordinary: own.verifier.clone(),
            names: names.iter().map(|name| ServerName::try_from((*name).to_owned()).unwrap()).collect(),
            pins: pins.to_vec(),
        };
        let asked = ServerName::try_from(asked.to_owned()).unwrap();
        required.verify_server_cert(&server.certificate, with, &asked, &[], UnixTime::now()).map(drop)
    }

    #[test]
    fn one_of_the_names_is_proven_in_place_of_the_one_asked_for() {
        let server = server(&["ledger.internal"]);
        assert!(verify(&server, &[], "ledger.internal", &[], &[]).is_ok());
        assert!(verify(&server, &[], "asked.example", &["other.internal", "ledger.internal"], &[]).is_ok());
        assert!(verify(&server, &[], "asked.example", &["other.internal"], &[]).is_err());
        assert!(verify(&server, &[], "ledger.internal", &["other.internal"], &[]).is_err(), "asking is not proving");
    }

    #[test]
    fn a_pin_is_of_the_servers_own_key_and_comes_on_top() {
        let (one, other) = (server(&["a.internal"]), server(&["a.internal"]));
        assert!(verify(&one, &[], "a.internal", &[], &[other.pin, one.pin]).is_ok(), "one of several");
        let stuffed = std::slice::from_ref(&other.certificate);
        let refused = verify(&one, stuffed, "a.internal", &[], &[other.pin]).unwrap_err();
        assert_eq!(refused, Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure));
        assert!(verify(&one, &[], "b.internal", &[], &[one.pin]).is_err(), "the name is still to be proven");
    }

    #[test]
    fn a_pin_is_read_as_curl_writes_it() {
        let pin = Pin([7; 32]);
        let base64 = STANDARD.encode([7; 32]);
        for text in [format!("sha256/{base64}"), format!("sha256//{base64}")] {
            assert_eq!(text.parse(), Ok(pin));
        }
        for text in [base64.as_str(), "sha256/", "sha256/AAAA", "sha512/AAAA"] {
            assert!(text.parse::<Pin>().is_err(), "{text}");
        }
    }
}
