use tokio::net::TcpListener;

use super::*;
use crate::names::played::Played;

const PATIENCE: Duration = Duration::from_secs(5);

async fn dial(origin: &str) -> Result<OriginIo, Reason> {
    dial_within(origin, &Admission::Declared).await
}

async fn dial_within(origin: &str, admission: &Admission) -> Result<OriginIo, Reason> {
    let (origin, network) = (origin.parse().unwrap(), Network::default());
    let way = Way { origin: &origin, tls: None, offer: Offer::Either, admission, network: &network };
    connect(way, PATIENCE).await.map_err(|fault| fault.reason)
}

fn network_of(played: Arc<Played>) -> Network {
    Network { names: Names::by(played), ..Network::default() }
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
    for errno in [libc::EMFILE, libc::EADDRNOTAVAIL] {
        assert_eq!(reason_of(&io::Error::from_raw_os_error(errno)), Reason::Overloaded);
    }
    for (kind, reason) in kinds {
        assert_eq!(reason_of(&kind.into()), reason);
    }
}

/// Dials a name that is at these addresses, in this order.
async fn dial_name(port: u16, addresses: &[&str]) -> Result<OriginIo, Reason> {
    let played = Arc::new(Played::default());
    played.says("orders", addresses);
    let (origin, network) = (format!("http://orders:{port}").parse().unwrap(), network_of(played));
    let way =
        Way { origin: &origin, tls: None, offer: Offer::Either, admission: &Admission::Declared, network: &network };
    connect(way, PATIENCE).await.map_err(|fault| fault.reason)
}

fn reached(io: &OriginIo) -> String {
    match io {
        OriginIo::Tcp(stream) => stream.peer_addr().unwrap().ip().to_string(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_address_that_refuses_hands_on_to_the_next_at_once() {
    let listener = TcpListener::bind("127.0.0.3:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let started = Instant::now();
    let io = dial_name(port, &["127.0.0.1", "127.0.0.2", "127.0.0.3"]).await.unwrap();
    assert_eq!(reached(&io), "127.0.0.3");
    assert!(started.elapsed() < STAGGER, "a refusal is not waited for");
}

#[tokio::test]
async fn an_address_that_says_nothing_costs_a_quarter_of_a_second() {
    // A listener whose queue is full answers no SYN.
    let silent = full_listener("127.0.0.1:0").await;
    let port = silent.0.local_addr().unwrap().port();
    let listener = TcpListener::bind(("127.0.0.2", port)).await.unwrap();
    let started = Instant::now();
    let io = dial_name(port, &["127.0.0.1", "127.0.0.2"]).await.unwrap();
    assert_eq!(reached(&io), "127.0.0.2");
    let took = started.elapsed();
    assert!(took >= STAGGER && took < PATIENCE / 2, "{took:?}");
    listener.accept().await.unwrap();
    drop(silent);
}

/// A listener that takes no connection any more, and the connections in its queue.
async fn full_listener(at: &str) -> (std::net::TcpListener, Vec<TcpStream>) {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(at.parse().unwrap()).unwrap();
    let listener = socket.listen(0).unwrap().into_std().unwrap();
    let mut queue = Vec::new();
    while let Ok(connected) = tokio::time::timeout(STAGGER, TcpStream::connect(listener.local_addr().unwrap())).await {
        queue.push(connected.unwrap());
    }
    (listener, queue)
}

#[tokio::test]
async fn of_several_failures_the_one_that_says_most_is_told() {
    let port = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap().port()
    };
    // Nobody can connect to the broadcast address.
    for addresses in [&["255.255.255.255", "127.0.0.1"], &["127.0.0.1", "255.255.255.255"]] {
        assert_eq!(dial_name(port, addresses).await.unwrap_err(), Reason::OriginRefused, "{addresses:?}");
    }
    assert_eq!(dial_name(port, &["255.255.255.255"]).await.unwrap_err(), Reason::OriginUnreachable);
}

#[tokio::test]
async fn a_name_whose_addresses_all_failed_is_asked_anew() {
    let played = Arc::new(Played::default());
    let network = network_of(played.clone());
    let listener = TcpListener::bind("127.0.0.2:0").await.unwrap();
    let origin = format!("http://orders:{}", listener.local_addr().unwrap().port()).parse().unwrap();
    let way =
        Way { origin: &origin, tls: None, offer: Offer::Either, admission: &Admission::Declared, network: &network };
    played.says("orders", &["127.0.0.1"]);
    assert_eq!(connect(way, PATIENCE).await.unwrap_err().reason, Reason::OriginRefused);
    played.says("orders", &["127.0.0.2"]);
    assert!(connect(way, PATIENCE).await.is_ok(), "well before the answer's time is over");
}

#[tokio::test(start_paused = true)]
async fn a_resolver_that_does_not_answer_is_given_up_in_time() {
    let played = Arc::new(Played::default());
    played.says("orders", &["127.0.0.1"]);
    played.takes(Duration::from_secs(60));
    let (origin, network) = ("http://orders:1".parse().unwrap(), network_of(played));
    let way =
        Way { origin: &origin, tls: None, offer: Offer::Either, admission: &Admission::Declared, network: &network };
    let started = Instant::now();
    assert_eq!(connect(way, PATIENCE).await.unwrap_err().reason, Reason::OriginDns);
    assert_eq!(started.elapsed(), PATIENCE);
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
    let (origin, network) = (origin.parse().unwrap(), Network::default());
    let way = Way {
        origin: &origin,
        tls: Some(tls),
        offer: Offer::Either,
        admission: &Admission::Declared,
        network: &network,
    };
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

/// Dials a name that is at these addresses, within this list.
async fn dial_name_within(
    played: &Arc<Played>,
    network: &Network,
    port: u16,
    addresses: &[&str],
    allow: &str,
) -> Result<String, Reason> {
    played.says("orders", addresses);
    network.names.forget("orders");
    let admission = Admission::Within(Arc::new(Allow::parse(&[allow.to_owned()]).unwrap()));
    let origin = format!("http://orders:{port}").parse().unwrap();
    let way = Way { origin: &origin, tls: None, offer: Offer::Either, admission: &admission, network };
    connect(way, PATIENCE).await.map(|io| reached(&io)).map_err(|fault| fault.reason)
}

#[tokio::test]
async fn each_address_of_a_name_is_judged_at_each_attempt_and_none_outside_the_list_is_dialled() {
    let played = Arc::new(Played::default());
    let network = network_of(played.clone());
    let inside = TcpListener::bind("127.0.0.3:0").await.unwrap();
    let port = inside.local_addr().unwrap().port();
    let outside = TcpListener::bind(("127.0.0.2", port)).await.unwrap();
    let dial = async |addresses: &[&str]| dial_name_within(&played, &network, port, addresses, "127.0.0.3").await;
    assert_eq!(dial(&["127.0.0.2", "127.0.0.3"]).await.unwrap(), "127.0.0.3", "whichever comes first");
    assert_eq!(dial(&["127.0.0.3", "127.0.0.2"]).await.unwrap(), "127.0.0.3");
    // The name is bound anew between two attempts.
    assert_eq!(dial(&["127.0.0.2"]).await, Err(Reason::OriginDenied));
    assert_eq!(dial(&["::ffff:127.0.0.2", "169.254.169.254"]).await, Err(Reason::OriginDenied));
    // Nor is another one tried where the one within the list fails.
    drop(inside);
    assert_eq!(dial(&["127.0.0.2", "127.0.0.3"]).await, Err(Reason::OriginRefused));
    let came = tokio::time::timeout(STAGGER, outside.accept()).await;
    assert!(came.is_err(), "it was dialled");
}

#[tokio::test]
async fn a_name_that_no_address_could_permit_is_not_looked_up() {
    let played = Arc::new(Played::default());
    let network = network_of(played.clone());
    for allow in ["http://*.internal:8080", "10.0.0.0/8:443", "unix:/run/*"] {
        let denied = dial_name_within(&played, &network, 80, &["10.0.0.1"], allow).await;
        assert_eq!(denied, Err(Reason::OriginDenied), "{allow}");
    }
    assert_eq!(played.questions(), 0);
    let loopback = dial_name_within(&played, &network, 80, &["127.0.0.1"], "http://order*:80").await;
    assert_eq!((loopback, played.questions()), (Err(Reason::OriginDenied), 1), "its name alone is within the list");
}
