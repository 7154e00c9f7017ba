//! https origins as they are in the field: nginx and `openssl s_server` with certificates made by `openssl`.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use culvert_lab::nginx::Nginx;
use culvert_lab::skip::{self, Need};
use culvert_lab::{address, wait};
use culvert_origin::tls::{ClientTls, Files};
use zeroize::Zeroizing;

use crate::pki::Pki;
use crate::stand::Stand;

const NEEDS: [Need; 3] = [Need::Program("nginx"), Need::Program("openssl"), Need::Program("faketime")];
const TELL: &str = r#"return 200 "$server_protocol host=$http_host sni=$ssl_server_name client=$ssl_client_verify";"#;

/// One nginx with a server for each certificate, at a port of its own.
struct Site {
    pki: Pki,
    at: Box<dyn Fn(u16) -> SocketAddr>,
    _nginx: Nginx,
}

const GOOD: u16 = 4001;
const EXPIRED: u16 = 4002;
const EARLY: u16 = 4003;
const OTHER: u16 = 4004;
const NAMELESS: u16 = 4005;
const SELF: u16 = 4006;
const OLD: u16 = 4007;
const MUTUAL: u16 = 4008;
const PLAIN: u16 = 4009;
const HTTP1: u16 = 4010;
const SELF_EXPIRED: u16 = 4011;

impl Site {
    async fn start() -> Self {
        let pki = Pki::new();
        pki.certify("good", Some("DNS:orders.test,IP:127.0.0.1"), None);
        pki.certify("expired", Some("DNS:orders.test"), Some("2020-01-01 00:00:00"));
        pki.certify("early", Some("DNS:orders.test"), Some("2199-01-01 00:00:00"));
        pki.certify("other", Some("DNS:billing.test,DNS:*.shop.test"), None);
        pki.certify("nameless", None, None);
        pki.certify("client", Some("DNS:connector.test"), None);
        pki.sign_own("self", "DNS:orders.test", None);
        pki.sign_own("self-old", "DNS:orders.test", Some("2020-01-01 00:00:00"));
        let ip = address::own_loopback();
        let at = move |port| address::at(ip, port);
        let dir = pki.directory().display().to_string();
        let server = |port: u16, cert: &str, more: &str| {
            format!(
                "server {{ listen {} ssl http2; ssl_certificate {dir}/{cert}.pem; ssl_certificate_key {dir}/{cert}.key; \
                 {more} location / {{ {TELL} }} }}\n",
                at(port)
            )
        };
        let config = [
            server(GOOD, "good", ""),
            server(EXPIRED, "expired", ""),
            server(EARLY, "early", ""),
            server(OTHER, "other", ""),
            server(NAMELESS, "nameless", ""),
            server(SELF, "self", ""),
            server(SELF_EXPIRED, "self-old", ""),
            server(OLD, "good", "ssl_protocols TLSv1.1; ssl_ciphers DEFAULT@SECLEVEL=0;"),
            server(MUTUAL, "good", &format!("ssl_verify_client on; ssl_client_certificate {dir}/ca.pem;")),
            format!("server {{ listen {}; location / {{ {TELL} }} }}\n", at(PLAIN)),
            server(HTTP1, "good", "").replace(" http2;", ";"),
        ];
        let nginx = Nginx::start(None, at(HTTP1), &config.concat()).await.unwrap();
        Self { pki, at: Box::new(at), _nginx: nginx }
    }

    fn ca(&self) -> Files {
        Files { ca: Some(self.pki.read("ca.pem")), ..Files::default() }
    }

    /// The answer of a GET to the server at `port`, by a connector that knows it as `name`.
    async fn get(&self, port: u16, name: &str, files: Files) -> String {
        let stand = Stand::of(
            &format!("https://{name}:{port}"),
            Some(ClientTls::new(files).unwrap()),
            |_| {},
            |names| {
                names.says("orders.test", (self.at)(0));
            },
        );
        stand.get("/").await
    }
}

/// The connector's failure, and its words.
fn failure(answer: &str) -> &str {
    answer.split_once("culvert-failure: ").map_or(answer, |(_, rest)| rest.split("\r\n").next().unwrap_or_default())
}

#[tokio::test]
async fn an_https_origin_is_reached_only_where_its_certificate_holds() {
    if skip::unless("an_https_origin_is_reached_only_where_its_certificate_holds", &NEEDS) {
        return;
    }
    let site = Site::start().await;
    let good = site.get(GOOD, "orders.test", site.ca()).await;
    assert!(good.starts_with("HTTP/1.1 200 "), "{good}");
    assert!(good.contains(&format!("HTTP/2.0 host=orders.test:{GOOD} sni=orders.test")), "{good}");
    let http1 = site.get(HTTP1, "orders.test", site.ca()).await;
    assert!(http1.contains("HTTP/1.1 host="), "{http1}");

    for (what, port) in [
        ("an expired certificate", EXPIRED),
        ("one of the future", EARLY),
        ("one for other names", OTHER),
        ("one for no name", NAMELESS),
        ("one that signed itself, and that is not named", SELF),
    ] {
        let answer = site.get(port, "orders.test", site.ca()).await;
        assert_eq!(failure(&answer), "origin_tls_certificate; sent=0", "{what}: {answer}");
    }
    let stranger = Files { ca: Some(site.pki.read("self.pem")), ..Files::default() };
    let answer = site.get(GOOD, "orders.test", stranger).await;
    assert_eq!(failure(&answer), "origin_tls_certificate; sent=0", "an unknown authority: {answer}");
    for (what, port) in [("only TLS 1.1", OLD), ("plain HTTP", PLAIN)] {
        let answer = site.get(port, "orders.test", site.ca()).await;
        assert_eq!(failure(&answer), "origin_tls; sent=0", "{what}: {answer}");
    }
}

#[tokio::test]
async fn each_failure_of_tls_says_what_to_do() {
    if skip::unless("each_failure_of_tls_says_what_to_do", &NEEDS) {
        return;
    }
    let site = Site::start().await;
    for (port, ca, words) in [
        (EXPIRED, "ca.pem", &["has expired", "renew"][..]),
        (EARLY, "ca.pem", &["not valid yet", "clock"]),
        (OTHER, "ca.pem", &["billing.test", "not for orders.test", "server_name"]),
        (NAMELESS, "ca.pem", &["names no host", "subjectAltName"]),
        (SELF, "ca.pem", &["signed itself", "ca in [service.tls]"]),
        (GOOD, "self.pem", &["authority that is not trusted", "ca in [service.tls]"]),
        (OLD, "ca.pem", &["TLS 1.2 nor 1.3"]),
        (PLAIN, "ca.pem", &["does not speak TLS", "http://"]),
    ] {
        let files = Files { ca: Some(site.pki.read(ca)), ..Files::default() };
        let tls = Some(ClientTls::new(files).unwrap());
        let stand = Stand::of(
            &format!("https://orders.test:{port}"),
            tls,
            |_| {},
            |names| {
                names.says("orders.test", (site.at)(0));
            },
        );
        let detail = stand.why_down().await;
        assert!(words.iter().all(|word| detail.contains(word)), "{port}: {detail}");
    }
}

#[tokio::test]
async fn a_certificate_that_signed_itself_is_trusted_when_it_is_named_and_for_its_name_and_time_only() {
    if skip::unless("a_certificate_that_signed_itself_is_trusted_when_it_is_named", &NEEDS) {
        return;
    }
    let site = Site::start().await;
    let named = || Files { ca: Some(site.pki.read("self.pem")), ..Files::default() };
    let answer = site.get(SELF, "orders.test", named()).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let by_address = site.get(SELF, &(site.at)(0).ip().to_string(), named()).await;
    assert_eq!(failure(&by_address), "origin_tls_certificate; sent=0", "{by_address}");
    let expired = Files { ca: Some(site.pki.read("self-old.pem")), ..Files::default() };
    let answer = site.get(SELF_EXPIRED, "orders.test", expired).await;
    assert_eq!(failure(&answer), "origin_tls_certificate; sent=0", "{answer}");
    let by_other_name = Files { server_name: Some("billing.test".try_into().unwrap()), ..named() };
    let answer = site.get(SELF, "orders.test", by_other_name).await;
    assert_eq!(failure(&answer), "origin_tls_certificate; sent=0", "{answer}");
}

#[tokio::test]
async fn the_name_to_expect_can_be_said() {
    if skip::unless("the_name_to_expect_can_be_said", &NEEDS) {
        return;
    }
    let site = Site::start().await;
    let expecting = |name: &str| Files { server_name: Some(name.to_owned().try_into().unwrap()), ..site.ca() };
    let answer = site.get(OTHER, "orders.test", expecting("a.shop.test")).await;
    assert!(answer.contains(&format!("host=orders.test:{OTHER} sni=a.shop.test")), "{answer}");
    let answer = site.get(OTHER, &(site.at)(0).ip().to_string(), expecting("billing.test")).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "by address, under its name: {answer}");
    let answer = site.get(OTHER, "orders.test", expecting("orders.test")).await;
    assert_eq!(failure(&answer), "origin_tls_certificate; sent=0", "{answer}");
}

#[tokio::test]
async fn a_client_certificate_proves_the_connector() {
    if skip::unless("a_client_certificate_proves_the_connector", &NEEDS) {
        return;
    }
    let site = Site::start().await;
    let key = Some(Zeroizing::new(site.pki.read("client.key")));
    let ours = Files { cert: Some(site.pki.read("client.pem")), key, ..site.ca() };
    let answer = site.get(MUTUAL, "orders.test", ours).await;
    assert!(answer.contains("client=SUCCESS"), "{answer}");
    let answer = site.get(MUTUAL, "orders.test", site.ca()).await;
    assert!(answer.starts_with("HTTP/1.1 400 ") && !answer.contains("culvert-failure"), "nginx's own words: {answer}");
}

#[tokio::test]
async fn an_origin_that_ends_tls_for_want_of_a_certificate_is_named() {
    if skip::unless("an_origin_that_ends_tls_for_want_of_a_certificate_is_named", &NEEDS) {
        return;
    }
    let pki = Pki::new();
    pki.certify("good", Some("DNS:orders.test"), None);
    for version in ["-tls1_2", "-tls1_3"] {
        let at = address::at(address::own_loopback(), 4100);
        let mut command = Command::new("openssl");
        command.args(["s_server", "-accept", &at.to_string(), version, "-www", "-Verify", "1", "-verify_return_error"]);
        command.args(["-cert", "good.pem", "-key", "good.key", "-CAfile", "ca.pem"]).current_dir(pki.directory());
        let _server = Ended(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        wait::until("s_server", Duration::from_secs(5), || async {
            tokio::net::TcpStream::connect(at).await.ok().map(drop)
        })
        .await
        .unwrap();
        let files = Files { ca: Some(pki.read("ca.pem")), ..Files::default() };
        let tls = Some(ClientTls::new(files).unwrap());
        let stand = Stand::of("https://orders.test:4100", tls, |_| {}, |names| names.says("orders.test", at));
        let answer = stand.get("/").await;
        assert!(failure(&answer).starts_with("origin_tls; sent="), "{version}: {answer}");
        let detail = stand.why_down().await;
        assert!(detail.contains("cert and key in [service.tls]"), "{version}: {detail}");
    }
}

/// A process that ends with the test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
