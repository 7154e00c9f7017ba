use tokio::net::TcpListener;

use super::*;

const PATIENCE: Duration = Duration::from_secs(5);

async fn dial(origin: &str) -> Result<OriginIo, Reason> {
    dial_within(origin, &Admission::Declared).await
}

async fn dial_within(origin: &str, admission: &Admission) -> Result<OriginIo, Reason> {
    let (origin, names) = (origin.parse().unwrap(), Names::system());
    let way = Way { origin: &origin, tls: None, offer: Offer::Either, admission, names: &names };
    connect(way, PATIENCE).await.map_err(|fault| fault.reason)
}

#[tokio::test]
async fn an_origin_is_reached_by_address_by_name_and_by_socket_file() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    assert!(dial(&format!("http://127.0.0.1:{port}")).await.is_ok());
    assert!(dial(&format!("http://localhost:{port}")).await.is_ok(), "whichever family comes first");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("app.sock");
    let _listener = tokio::net::UnixListener::bind(&path).unwrap();
    assert!(dial(&format!("unix:{}", path.display())).await.is_ok());
}

#[tokio::test]
async fn failures_have_names() {
    let port = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap().port()
    };
    assert_eq!(dial(&format!("http://127.0.0.1:{port}")).await.unwrap_err(), Reason::OriginRefused);
    assert_eq!(dial("http://no-such-host.invalid:80").await.unwrap_err(), Reason::OriginDns);
    assert_eq!(dial("unix:/no/such/file.sock").await.unwrap_err(), Reason::OriginRefused);
    let kinds = [
        (io::ErrorKind::HostUnreachable, Reason::OriginUnreachable),
        (io::ErrorKind::NetworkUnreachable, Reason::OriginUnreachable),
        (io::ErrorKind::PermissionDenied, Reason::OriginUnreachable),
        (io::ErrorKind::TimedOut, Reason::OriginConnectTimeout),
        (io::ErrorKind::ConnectionReset, Reason::OriginClosed),
    ];
    for (kind, reason) in kinds {
        assert_eq!(reason_of(&kind.into()), reason);
    }
}

/// An https origin on this host, and what trusts it.
fn certified(names: &[&str]) -> (Arc<rustls::ServerConfig>, ClientTls) {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    let key = rustls_pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let files = crate::tls::Files { ca: Some(made.cert.pem().into_bytes()), ..Default::default() };
    (Arc::new(server), ClientTls::new(files).unwrap())
}

async fn dial_tls(origin: &str, tls: &ClientTls) -> Result<OriginIo, Reason> {
    let (origin, names) = (origin.parse().unwrap(), Names::system());
    let way =
        Way { origin: &origin, tls: Some(tls), offer: Offer::Either, admission: &Admission::Declared, names: &names };
    connect(way, PATIENCE).await.map_err(|fault| fault.reason)
}

#[tokio::test]
async fn an_https_origin_must_prove_its_name_to_who_trusts_it() {
    let (server, tls) = certified(&["localhost"]);
    let (_, stranger) = certified(&["localhost"]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let serving = culvert_ops::task::spawn("test.origin", async move {
        let acceptor = tokio_rustls::TlsAcceptor::from(server);
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let _ = acceptor.accept(stream).await;
        }
    });
    assert!(dial_tls(&format!("https://localhost:{port}"), &tls).await.is_ok());
    let wrong_name = dial_tls(&format!("https://127.0.0.1:{port}"), &tls).await.unwrap_err();
    assert_eq!(wrong_name, Reason::OriginTlsCertificate);
    let untrusted = dial_tls(&format!("https://localhost:{port}"), &stranger).await.unwrap_err();
    assert_eq!(untrusted, Reason::OriginTlsCertificate);
    drop(serving);
}

#[tokio::test]
async fn an_origin_that_does_not_speak_tls_is_named() {
    let (_, tls) = certified(&["localhost"]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let serving = culvert_ops::task::spawn("test.origin", async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        stream
    });
    assert_eq!(dial_tls(&format!("https://localhost:{port}"), &tls).await.unwrap_err(), Reason::OriginTls);
    drop(serving);
}

#[tokio::test(start_paused = true)]
async fn an_origin_that_says_nothing_is_given_up_after_its_patience() {
    let (_, tls) = certified(&["localhost"]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let started = Instant::now();
    let outcome = dial_tls(&format!("https://127.0.0.1:{port}"), &tls).await.unwrap_err();
    assert_eq!(outcome, Reason::OriginConnectTimeout);
    assert_eq!(started.elapsed().as_secs(), PATIENCE.as_secs());
}

#[tokio::test]
async fn an_address_outside_the_allow_list_is_not_dialled() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let within = |text: &str| Admission::Within(Arc::new(Allow::parse(&[text.to_owned()]).unwrap()));
    let origin = format!("http://localhost:{port}");
    assert_eq!(dial_within(&origin, &within("10.0.0.0/8")).await.unwrap_err(), Reason::OriginDenied);
    assert!(dial_within(&origin, &within("127.0.0.0/8")).await.is_ok());
    assert_eq!(dial_within("unix:/x.sock", &within("10.0.0.0/8")).await.unwrap_err(), Reason::OriginDenied);
}
