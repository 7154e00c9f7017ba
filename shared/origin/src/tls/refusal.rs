//! Why TLS with an origin failed: the name that callers see, and words with a hint for the connector's operator.
//!
//! Must never say "TLS error" where it can say what to do.

use std::io;

use culvert_model::reason::Reason;
use rustls::{AlertDescription, CertificateError, Error, PeerIncompatible};

/// Names an I/O error that is TLS's own; none where the error is of the connection below.
///
/// Also for errors met after the handshake: with TLS 1.3 a server refuses a client's certificate only then.
pub fn refusal(error: &io::Error) -> Option<(Reason, String)> {
    let error = error.get_ref()?.downcast_ref::<Error>()?;
    Some(match error {
        Error::InvalidCertificate(why) => (Reason::OriginTlsCertificate, certificate(why)),
        Error::NoCertificatesPresented => {
            (Reason::OriginTlsCertificate, "the origin has no certificate to show".to_owned())
        }
        Error::AlertReceived(alert) => (Reason::OriginTls, alerted(*alert)),
        Error::InvalidMessage(_) => (
            Reason::OriginTls,
            format!("the origin does not speak TLS on this port ({error}): if it is plain HTTP, write http://"),
        ),
        Error::PeerIncompatible(
            PeerIncompatible::ServerDoesNotSupportTls12Or13 | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig,
        ) => (
            Reason::OriginTls,
            "the origin speaks neither TLS 1.2 nor 1.3, or not the one that min_version in [service.tls] asks for: enable it \
             there"
                .to_owned(),
        ),
        other => (Reason::OriginTls, other.to_string()),
    })
}

fn certificate(why: &CertificateError) -> String {
    let renew = "renew it at the origin";
    match why {
        CertificateError::UnknownIssuer => "the origin's certificate is from an authority that is not trusted here: \
             name that authority's certificate with ca in [service.tls], or have the origin send its intermediates"
            .to_owned(),
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            format!("the origin's certificate has expired ({why}): {renew}, or set this host's clock")
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            format!("the origin's certificate is not valid yet ({why}): is this host's clock right?")
        }
        CertificateError::NotValidForName => {
            "the origin's certificate is for other names: say which with server_name in [service.tls]".to_owned()
        }
        CertificateError::NotValidForNameContext { expected, presented } if presented.is_empty() => format!(
            "the origin's certificate names no host (it has no subjectAltName), {} is expected: make it anew with that \
             name",
            expected.to_str()
        ),
        CertificateError::NotValidForNameContext { expected, presented } => format!(
            "the origin's certificate is for {}, not for {}: say which name to expect with server_name in [service.tls]",
            presented.join(", "),
            expected.to_str()
        ),
        CertificateError::ApplicationVerificationFailure => {
            "the origin's key is none of those that pins in [service.tls] \
             names: if it was changed on purpose, add the new one's"
                .to_owned()
        }
        CertificateError::Revoked => format!("the origin's certificate was revoked: {renew}"),
        CertificateError::Other(other) if matches!(other.0.downcast_ref(), Some(webpki::Error::CaUsedAsEndEntity)) => {
            "the origin's certificate is an authority's own, and not trusted here: if it signed itself, name it with \
             ca in [service.tls]"
                .to_owned()
        }
        CertificateError::Other(other)
            if matches!(other.0.downcast_ref(), Some(webpki::Error::UnsupportedCertVersion)) =>
        {
            "the origin's certificate is of version 1, which names no host: make it anew with a subjectAltName"
                .to_owned()
        }
        other => format!("the origin's certificate cannot be accepted: {other}"),
    }
}

fn alerted(alert: AlertDescription) -> String {
    let hint = match alert {
        AlertDescription::CertificateRequired => "it wants a client's certificate: set cert and key in [service.tls]",
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateRevoked
        | AlertDescription::CertificateExpired
        | AlertDescription::CertificateUnknown
        | AlertDescription::UnknownCA
        | AlertDescription::AccessDenied => {
            "it does not accept our certificate, or wants one: check cert and key in [service.tls]"
        }
        AlertDescription::UnrecognisedName => {
            "it serves no such name: say which to ask for with server_name in [service.tls]"
        }
        AlertDescription::ProtocolVersion => {
            "it speaks neither TLS 1.2 nor 1.3, or not the one that min_version in [service.tls] asks for: enable it there"
        }
        AlertDescription::NoApplicationProtocol => "it speaks neither HTTP/2 nor HTTP/1.1 on this port",
        AlertDescription::HandshakeFailure | AlertDescription::InsufficientSecurity => {
            "no cipher or certificate in common; or it wants a client's certificate: cert and key in [service.tls]"
        }
        _ => "see its log",
    };
    format!("the origin ended TLS with the alert {alert:?}: {hint}")
}
