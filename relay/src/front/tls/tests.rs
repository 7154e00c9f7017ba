use std::time::Duration;

use culvert_ops::exit::Exit;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{ServerName, UnixTime};
use tokio::net::UnixStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;
use crate::config::{Address, listener_of};
use crate::door::{Door, tls_of};

struct Ca(CertifiedIssuer<'static, KeyPair>);

impl Ca {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// A certificate of these names and its key, in PEM.
    fn issue(&self, names: &[&str]) -> (String, String) {
        self.issue_until(names, 2090)
    }

    fn issue_until(&self, names: &[&str], year: i32) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>()).unwrap();
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        (params.signed_by(&key, &self.0).unwrap().pem(), key.serialize_pem())
    }

    fn pem(&self) -> String {
        self.0.pem()
    }
}

struct Files {
    dir: tempfile::TempDir,
}

impl Files {
    fn of((cert, key): &(String, String)) -> Self {
        let files = Self { dir: tempfile::tempdir().unwrap() };
        files.write("cert.pem", cert);
        files.write("key.pem", key);
        files
    }

    fn write(&self, name: &str, text: &str) {
        // As tools do that replace certificates: whole, and at once.
        let new = self.dir.path().join(format!("{name}.new"));
        fs::write(&new, text).unwrap();
        fs::rename(new, self.dir.path().join(name)).unwrap();
    }

    fn tls(&self, client_ca: bool) -> TlsFiles {
        let path = |name: &str| self.dir.path().join(name);
        TlsFiles { cert: path("cert.pem"), key: path("key.pem"), client_ca: client_ca.then(|| path("ca.pem")) }
    }
}

/// Believes anybody: these tests are about whom the listener believes.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// What a handshake with a caller that offers these protocols and shows this certificate settles.
async fn shake(tls: &Tls, offers: &[&[u8]], shows: Option<&(String, String)>) -> std::io::Result<Settled> {
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().unwrap();
    let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody));
    let mut config = match shows {
        None => builder.with_no_client_auth(),
        Some((cert, key)) => {
            let chain = certificates(cert.as_bytes(), Path::new("test")).unwrap();
            builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap()).unwrap()
        }
    };
    config.alpn_protocols = offers.iter().map(|protocol| protocol.to_vec()).collect();
    let (near, far) = UnixStream::pair().unwrap();
    let connector = TlsConnector::from(Arc::new(config));
    let connect = connector.connect("relay.example".try_into().unwrap(), near);
    let (accepted, _connected) = tokio::join!(TlsAcceptor::from(tls.config()).accept(far), connect);
    accepted.map(|stream| Settled::of(stream.get_ref().1))
}

#[tokio::test]
async fn a_caller_speaks_http2_where_it_offers_it_and_http1_where_it_offers_nothing() {
    let ca = Ca::new();
    let files = Files::of(&ca.issue(&["relay.example"]));
    let tls = Tls::load(&files.tls(false), false).unwrap();
    for (offers, http2) in [(&[HTTP2, HTTP1][..], true), (&[HTTP1, HTTP2], true), (&[HTTP1], false), (&[], false)] {
        assert_eq!(shake(&tls, offers, None).await.unwrap().http2, http2, "{offers:?}");
    }
    assert!(shake(&tls, &[b"spdy/3"], None).await.is_err());
}

#[tokio::test]
async fn a_callers_certificate_has_to_be_of_the_authorities_and_is_told() {
    let (ca, stranger) = (Ca::new(), Ca::new());
    let files = Files::of(&ca.issue(&["relay.example"]));
    files.write("ca.pem", &ca.pem());
    let kong = ca.issue(&["Kong.Example"]);
    let forged = stranger.issue(&["kong.example"]);
    let expired = ca.issue_until(&["kong.example"], 2020);
    for demanded in [false, true] {
        let tls = Tls::load(&files.tls(true), demanded).unwrap();
        let told = shake(&tls, &[HTTP1], Some(&kong)).await.unwrap().certificate.unwrap();
        let der = CertificateDer::from_pem_slice(kong.0.as_bytes()).unwrap();
        assert_eq!(told.sha256, <[u8; 32]>::from(Sha256::digest(&der)));
        assert_eq!(told.sans, ["kong.example"]);
        assert!(shake(&tls, &[HTTP1], Some(&forged)).await.is_err());
        assert!(shake(&tls, &[HTTP1], Some(&expired)).await.is_err());
        match (demanded, shake(&tls, &[HTTP1], None).await) {
            (true, without) => assert!(without.is_err()),
            (false, without) => assert!(without.unwrap().certificate.is_none()),
        }
    }
    // Without authorities nobody's certificate is asked for, so none can be told.
    let tls = Tls::load(&files.tls(false), false).unwrap();
    assert!(shake(&tls, &[HTTP1], Some(&forged)).await.unwrap().certificate.is_none());
}

#[tokio::test]
async fn where_callers_need_no_identity_but_authorities_are_named_a_certificate_is_demanded() {
    let ca = Ca::new();
    let files = Files::of(&ca.issue(&["relay.example"]));
    files.write("ca.pem", &ca.pem());
    for (identified, admitted) in [(true, true), (false, false)] {
        let plain = listener_of(Address::Unix("/run/x.sock".into())).unwrap();
        let listener = crate::config::Listener { tls: Some(files.tls(true)), identified, ..plain };
        let tls = tls_of(&listener).unwrap().unwrap();
        assert_eq!(shake(&tls, &[HTTP1], None).await.is_ok(), admitted);
    }
}

#[test]
fn files_that_cannot_be_used_are_refused_by_name() {
    let ca = Ca::new();
    let (own, other) = (ca.issue(&["relay.example"]), ca.issue(&["relay.example"]));
    let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIB\n-----END ENCRYPTED PRIVATE KEY-----\n".to_owned();
    let legacy = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nMIIB\n-----END RSA PRIVATE KEY-----\n";
    let (cert, key) = own.clone();
    for (files, file, words) in [
        ((cert.clone(), other.1), "key.pem", "is not the one of the certificate in"),
        ((cert.clone(), encrypted), "key.pem", "is encrypted: take its passphrase off"),
        ((cert.clone(), legacy.to_owned()), "key.pem", "is encrypted: take its passphrase off"),
        ((cert.clone(), cert.clone()), "key.pem", "holds no PEM private key"),
        ((key.clone(), key.clone()), "cert.pem", "holds no PEM certificate"),
        (("hello".to_owned(), key.clone()), "cert.pem", "holds no PEM certificate"),
    ] {
        let files = Files::of(&files);
        let error = Tls::load(&files.tls(false), false).unwrap_err().to_string();
        assert!(error.contains(words) && error.contains(file) && !error.contains("BEGIN"), "{error}");
    }
    let files = Files::of(&own);
    let error = Tls::load(&files.tls(true), false).unwrap_err().to_string();
    assert!(error.contains("ca.pem") && error.contains("No such file"), "{error}");
    files.write("ca.pem", "hello");
    let error = Tls::load(&files.tls(true), false).unwrap_err().to_string();
    assert!(error.contains("ca.pem holds no PEM certificate"), "{error}");

    let plain = listener_of(Address::Unix("/run/x.sock".into())).unwrap();
    let quit = tls_of(&crate::config::Listener { tls: Some(files.tls(true)), ..plain }).unwrap_err();
    assert_eq!(quit.exit, Exit::Config);
    assert!(quit.message.starts_with("tls of the http listener unix:/run/x.sock: "), "{quit}");
}

#[test]
fn changed_files_are_used_once_they_rest_and_wrong_ones_leave_the_old() {
    let ca = Ca::new();
    let (first, second) = (ca.issue_until(&["a.example"], 2060), ca.issue_until(&["b.example"], 2070));
    let files = Files::of(&first);
    let plain = listener_of(Address::Unix("/run/x.sock".into())).unwrap();
    let listener = crate::config::Listener { tls: Some(files.tls(false)), ..plain };
    let door = Door::new(listener.clone(), tls_of(&listener).unwrap());
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let looks = |times: usize| {
        (0..times).for_each(|_| door.shown().look_at_files(now));
        door.shown().tls().unwrap().expires().unwrap()
    };
    let old = looks(3);

    files.write("cert.pem", &second.0);
    assert_eq!(looks(4), old, "a certificate without its key changes nothing");
    files.write("key.pem", &second.1);
    assert_eq!(looks(1), old, "somebody may still be writing");
    let new = looks(1);
    assert!(new > old);
    fs::remove_file(files.dir.path().join("key.pem")).unwrap();
    assert_eq!(looks(4), new);
    files.write("key.pem", &second.1);
    assert_eq!(looks(4), new);
    files.write("cert.pem", &first.0);
    files.write("key.pem", &first.1);
    assert_eq!(looks(2), old, "and back");
}
