use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use culvert_hop::message::Request;
use culvert_ops::secret::Secret;
use ring::signature::{RSA_PKCS1_2048_8192_SHA256, RSA_PSS_2048_8192_SHA256, RsaParameters, RsaPublicKeyComponents};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use vendor::{Reply, Seen, Vendor};

use super::exchange::Endpoint;
use super::gcp::{Federation, GcpIdTokenSettings, KeyFile};
use super::*;

mod vendor;

const SCOPE: &str = "api://orders/.default";
const POOL: &str = "projects/12/locations/global/workloadIdentityPools/culvert/providers/relay";
const ACCOUNT: &str = "orders@p.iam.gserviceaccount.com";

fn service() -> ServiceName {
    "orders".parse().unwrap()
}

/// Keys and an issuer, as a connector has them once its relay spoke.
fn proofs() -> Proofs {
    let proofs = Proofs::default();
    proofs.need(&BTreeSet::from([Algorithm::Rs256]), SystemTime::now()).unwrap();
    proofs.told("https://id.example/shop", "shop");
    proofs
}

fn endpoint(url: &str) -> Endpoint {
    Endpoint::new(url, || None).unwrap()
}

fn federated(audience: &str) -> Federated {
    let (issuer, subject) = (None, None);
    Federated::new(FederatedSettings { algorithm: Algorithm::Rs256, audience: audience.to_owned(), issuer, subject })
}

fn secret(text: &str) -> ClientCredential {
    ClientCredential::Secret(SharedSecret(Secret::new(text)))
}

fn entra(url: &str, credential: ClientCredential) -> Proof {
    let settings = EntraIdSettings {
        endpoint: endpoint(url),
        client_id: "app-1".to_owned(),
        wanted: Wanted::Scope(SCOPE.to_owned()),
        credential,
        prefix: "Bearer ".to_owned(),
    };
    Proof::EntraId(Carried::new(http::header::AUTHORIZATION, EntraId::new(settings)))
}

fn google(from: IdTokenFrom) -> Proof {
    let settings = GcpIdTokenSettings {
        audience: "https://orders-x.a.run.app/?a=b&c".to_owned(),
        from,
        prefix: "Bearer ".to_owned(),
    };
    Proof::GcpIdToken(Carried::new(http::header::AUTHORIZATION, GcpIdToken::new(settings)))
}

/// What a request carries then, or why it is not sent.
async fn carried(proof: &Proof, proofs: &Proofs) -> Result<String, Fault> {
    let (mut parts, body) = Request::from(http::Request::new(Body::empty())).into_parts();
    let service = service();
    let about = About { service: &service, caller: None, is_tls: false };
    proof.prove(&mut parts, body, about, proofs, SystemTime::now()).await?;
    Ok(parts.headers.get("authorization").unwrap().to_str().unwrap().to_owned())
}

async fn why(proof: &Proof, proofs: &Proofs) -> String {
    let fault = carried(proof, proofs).await.unwrap_err();
    assert_eq!((fault.reason, fault.retry), (Reason::OriginAuth, Retry::Safe));
    fault.detail().unwrap().to_owned()
}

fn part(text: &str) -> Value {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text).unwrap()).unwrap()
}

/// Head and claims of a token that this key signed.
fn opened(token: &str, modulus: &[u8], how: &'static RsaParameters) -> (Value, Value) {
    let (signed, signature) = token.rsplit_once('.').unwrap();
    let key = RsaPublicKeyComponents { n: modulus, e: &[1, 0, 1] };
    key.verify(how, signed.as_bytes(), &URL_SAFE_NO_PAD.decode(signature).unwrap()).expect("the signature");
    let (head, claims) = signed.split_once('.').unwrap();
    (part(head), part(claims))
}

fn modulus_of(pkcs8: &[u8]) -> Vec<u8> {
    rsa::modulus(&ring::signature::RsaKeyPair::from_pkcs8(pkcs8).unwrap())
}

/// A token of a vendor's own: what it says of its time is all that matters here.
fn id_token(from: i64, seconds: i64) -> String {
    let now = culvert_ops::time::unix_seconds(SystemTime::now()) + from;
    let claims = URL_SAFE_NO_PAD.encode(json!({ "iat": now, "exp": now + seconds }).to_string());
    format!("eyJhbGciOiJSUzI1NiJ9.{claims}.c2lnbmVk")
}

fn is_about_now(claims: &Value, ahead: i64) {
    let now = culvert_ops::time::unix_seconds(SystemTime::now()) + ahead;
    let time = |name: &str| claims[name].as_i64().unwrap();
    assert!((now - 10..=now + 1).contains(&time("iat")), "{claims} at {now}");
    assert!(time("exp") - time("iat") <= 3600 && time("exp") > now);
}

fn pairs<'a>(form: &'a BTreeMap<String, String>, but: &str) -> Vec<(&'a str, &'a str)> {
    form.iter().filter(|(name, _)| *name != but).map(|(name, value)| (name.as_str(), value.as_str())).collect()
}

const ENTRA_SAYS: &str =
    r#"{"token_type":"Bearer","expires_in":3599,"ext_expires_in":3599,"access_token":"eyJ.token.x"}"#;

#[tokio::test]
async fn entra_id_is_asked_with_a_secret_as_microsoft_documents_it() {
    let vendor = Vendor::play(|_| Reply::ok(ENTRA_SAYS)).await;
    let (proof, proofs) = (entra(&vendor.url("/t/oauth2/v2.0/token"), secret("s&c=r+t %")), proofs());
    for _ in 0..3 {
        assert_eq!(carried(&proof, &proofs).await.unwrap(), "Bearer eyJ.token.x");
    }
    let [seen] = vendor.seen().try_into().expect("it is kept");
    assert_eq!(seen.line, "POST /t/oauth2/v2.0/token");
    assert_eq!(seen.fields["host"], vendor.at.to_string());
    assert_eq!(
        pairs(&seen.form(), ""),
        [
            ("client_id", "app-1"),
            ("client_secret", "s&c=r+t %"),
            ("grant_type", "client_credentials"),
            ("scope", SCOPE)
        ]
    );
    let left = proof.holding().unwrap().left.unwrap().as_secs();
    assert!((3500..3599).contains(&left), "{left}");
}

#[tokio::test]
async fn entra_id_is_asked_with_an_assertion_that_a_certificates_key_signed() {
    let pkcs8 = rsa::generate().unwrap();
    // A certificate holds its key's modulus; Entra ID looks at nothing but the thumbprint.
    let certificate = [b"certificate".as_slice(), &modulus_of(&pkcs8)].concat();
    let key = CertificateKey::new(&certificate, &rsa::pem(&pkcs8)).unwrap();
    assert!(CertificateKey::new(b"another", &rsa::pem(&pkcs8)).is_err(), "a key that is another's");
    let vendor = Vendor::play(|_| Reply::ok(ENTRA_SAYS)).await;
    let url = vendor.url("/t/oauth2/v2.0/token");
    let proof = entra(&url, ClientCredential::Certificate(Box::new(key)));
    assert_eq!(carried(&proof, &proofs()).await.unwrap(), "Bearer eyJ.token.x");
    let form = vendor.seen()[0].form();
    let kind = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
    assert_eq!(
        pairs(&form, "client_assertion"),
        [
            ("client_assertion_type", kind),
            ("client_id", "app-1"),
            ("grant_type", "client_credentials"),
            ("scope", SCOPE)
        ]
    );
    let (head, claims) = opened(&form["client_assertion"], &modulus_of(&pkcs8), &RSA_PSS_2048_8192_SHA256);
    let thumbprint = URL_SAFE_NO_PAD.encode(Sha256::digest(&certificate));
    assert_eq!(head, json!({ "alg": "PS256", "typ": "JWT", "x5t#S256": thumbprint }));
    assert_eq!((&claims["aud"], &claims["iss"], &claims["sub"]), (&url.into(), &"app-1".into(), &"app-1".into()));
    is_about_now(&claims, 0);
    assert_eq!((&claims["nbf"], claims["jti"].as_str().map(str::len)), (&claims["iat"], Some(22)));
    assert_eq!(claims["exp"].as_u64().unwrap() - claims["nbf"].as_u64().unwrap(), 300);
}

/// The claims of our own token, by the key that relays serve.
fn own_claims(token: &str, proofs: &Proofs, ahead: i64) -> Value {
    let key = proofs.published().into_iter().find(|key| key.alg == Algorithm::Rs256).unwrap();
    let (head, claims) = opened(token, &URL_SAFE_NO_PAD.decode(&key.x).unwrap(), &RSA_PKCS1_2048_8192_SHA256);
    assert_eq!(head, json!({ "alg": "RS256", "kid": key.kid(), "typ": "JWT" }));
    assert_eq!((&claims["iss"], &claims["sub"]), (&"https://id.example/shop".into(), &"shop/orders".into()));
    is_about_now(&claims, ahead);
    claims
}

#[tokio::test]
async fn entra_id_is_asked_with_our_own_token_for_its_exchange() {
    let vendor = Vendor::play(|_| Reply::ok(ENTRA_SAYS)).await;
    let own = ClientCredential::Federated(Box::new(federated("api://AzureADTokenExchange")));
    let (proof, proofs) = (entra(&vendor.url("/t/oauth2/v2.0/token"), own), Proofs::default());
    // As at the start: the key is being made, and the relay speaks a little later.
    proofs.need(&BTreeSet::from([Algorithm::Rs256]), SystemTime::now()).unwrap();
    let (asked, ()) = tokio::join!(carried(&proof, &proofs), async {
        tokio::task::yield_now().await;
        proofs.told("https://id.example/shop", "shop");
    });
    assert_eq!(asked.unwrap(), "Bearer eyJ.token.x");
    let claims = own_claims(&vendor.seen()[0].form()["client_assertion"], &proofs, 0);
    assert_eq!(claims["aud"], "api://AzureADTokenExchange");
    assert_eq!(proof.algorithm(), Some(Algorithm::Rs256));
}

fn key_file(pkcs8: &[u8], token_uri: &str) -> KeyFile {
    let text = json!({
        "type": "service_account", "private_key_id": "k1", "private_key": rsa::pem(pkcs8), "client_email": ACCOUNT,
        "token_uri": token_uri,
    });
    KeyFile::read(&text.to_string()).unwrap()
}

#[tokio::test]
async fn google_is_asked_for_an_id_token_with_what_the_accounts_key_signed() {
    let token = id_token(0, 3600);
    let said = json!({ "id_token": token });
    let vendor = Vendor::play(move |_| Reply::ok(&said)).await;
    let pkcs8 = rsa::generate().unwrap();
    let url = vendor.url("/token");
    let proof = google(IdTokenFrom::Key { key: key_file(&pkcs8, &url), endpoint: endpoint(&url) });
    assert_eq!(carried(&proof, &proofs()).await.unwrap(), format!("Bearer {token}"));
    let form = vendor.seen()[0].form();
    assert_eq!(pairs(&form, "assertion"), [("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer")]);
    let (head, claims) = opened(&form["assertion"], &modulus_of(&pkcs8), &RSA_PKCS1_2048_8192_SHA256);
    assert_eq!(head, json!({ "alg": "RS256", "kid": "k1", "typ": "JWT" }));
    assert_eq!(
        (&claims["iss"], &claims["sub"], &claims["aud"], &claims["target_audience"]),
        (&ACCOUNT.into(), &ACCOUNT.into(), &url.into(), &"https://orders-x.a.run.app/?a=b&c".into())
    );
    is_about_now(&claims, 0);
}

#[tokio::test]
async fn google_takes_our_own_token_at_its_sts_and_makes_an_id_token_for_the_account() {
    let token = id_token(0, 3600);
    let made = token.clone();
    let vendor = Vendor::play(move |seen| match seen.line.as_str() {
        "POST /v1/token" => Reply::ok(json!({
            "access_token": "ya29.federal", "expires_in": 3600, "token_type": "Bearer",
            "issued_token_type": "urn:ietf:params:oauth:token-type:access_token",
        })),
        _ => Reply::ok(json!({ "token": made })),
    })
    .await;
    let pool: gcp::Pool = POOL.parse().unwrap();
    let proof = google(IdTokenFrom::Federation(Box::new(Federation {
        federated: federated(&pool.audience()),
        pool,
        account: ACCOUNT.parse().unwrap(),
        sts: endpoint(&vendor.url("/v1/token")),
        iam_credentials: endpoint(&vendor.url("")),
    })));
    let proofs = proofs();
    assert_eq!(carried(&proof, &proofs).await.unwrap(), format!("Bearer {token}"));
    let [sts, iam]: [Seen; 2] = vendor.seen().try_into().unwrap();
    let form = sts.form();
    assert_eq!(
        pairs(&form, "subject_token"),
        [
            ("audience", &*format!("//iam.googleapis.com/{POOL}")),
            ("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"),
            ("requested_token_type", "urn:ietf:params:oauth:token-type:access_token"),
            ("scope", "https://www.googleapis.com/auth/cloud-platform"),
            ("subject_token_type", "urn:ietf:params:oauth:token-type:jwt"),
        ]
    );
    assert!(!sts.fields.contains_key("authorization"), "Google: do not send it");
    assert_eq!(own_claims(&form["subject_token"], &proofs, 0)["aud"], format!("https://iam.googleapis.com/{POOL}"));
    assert_eq!(iam.line, format!("POST /v1/projects/-/serviceAccounts/{ACCOUNT}:generateIdToken"));
    assert_eq!(
        (&*iam.fields["authorization"], &*iam.fields["content-type"]),
        ("Bearer ya29.federal", "application/json")
    );
    let asked: Value = serde_json::from_str(&iam.body).unwrap();
    assert_eq!(asked, json!({ "audience": "https://orders-x.a.run.app/?a=b&c", "includeEmail": true }));
}

#[tokio::test]
async fn a_machine_of_googles_asks_its_metadata_server() {
    let token = id_token(-600, 3600);
    let said = format!("{token}\n");
    let vendor = Vendor::play(move |_| Reply::ok(&said)).await;
    let path = "/computeMetadata/v1/instance/service-accounts/default/identity";
    let proof = google(IdTokenFrom::Metadata(endpoint(&vendor.url(path))));
    assert_eq!(carried(&proof, &proofs()).await.unwrap(), format!("Bearer {token}"));
    let seen = &vendor.seen()[0];
    let audience = "https%3A%2F%2Forders%2Dx%2Ea%2Erun%2Eapp%2F%3Fa%3Db%26c";
    assert_eq!(seen.line, format!("GET {path}?audience={audience}&format=full"));
    assert_eq!(seen.fields["metadata-flavor"], "Google");
    let left = proof.holding().unwrap().left.unwrap().as_secs();
    assert!((2900..3000).contains(&left), "it was made ten minutes ago: {left}");
}

#[tokio::test]
async fn an_accounts_key_signs_for_an_audience_by_itself() {
    let pkcs8 = rsa::generate().unwrap();
    let key = key_file(&pkcs8, "https://oauth2.googleapis.com/token");
    let signer =
        gcp::GcpServiceAccount { key, audience: "https://api.example".to_owned(), prefix: "Bearer ".to_owned() };
    let proof = Proof::GcpServiceAccount(Carried::new(http::header::AUTHORIZATION, signer));
    let token = carried(&proof, &proofs()).await.unwrap();
    assert_eq!(carried(&proof, &proofs()).await.unwrap(), token);
    let token = token.strip_prefix("Bearer ").unwrap();
    let (head, claims) = opened(token, &modulus_of(&pkcs8), &RSA_PKCS1_2048_8192_SHA256);
    assert_eq!(head, json!({ "alg": "RS256", "kid": "k1", "typ": "JWT" }));
    assert_eq!(
        (&claims["iss"], &claims["sub"], &claims["aud"]),
        (&ACCOUNT.into(), &ACCOUNT.into(), &"https://api.example".into())
    );
    is_about_now(&claims, 0);
}

#[tokio::test]
async fn a_vendor_whose_clock_differs_by_five_minutes_gets_what_is_valid_there() {
    for ahead in [300, -300] {
        let vendor = Vendor::play(move |seen| {
            let assertion = seen.form()["client_assertion"].clone();
            let claims = part(assertion.split('.').nth(1).unwrap());
            let now = culvert_ops::time::unix_seconds(SystemTime::now()) + ahead;
            let is_valid = claims["nbf"].as_i64().unwrap() <= now + 5 && now < claims["exp"].as_i64().unwrap() - 5;
            let reply = match is_valid {
                true => Reply::ok(ENTRA_SAYS),
                false => Reply::no(
                    401,
                    r#"{"error":"invalid_client","error_description":"AADSTS700024: not within its time"}"#,
                ),
            };
            Reply { ahead: Some(ahead), ..reply }
        })
        .await;
        let own = ClientCredential::Federated(Box::new(federated("api://AzureADTokenExchange")));
        let (proof, proofs) = (entra(&vendor.url("/token"), own), proofs());
        assert_eq!(carried(&proof, &proofs).await.unwrap(), "Bearer eyJ.token.x", "{ahead}");
        let seen = vendor.seen();
        assert_eq!(seen.len(), 2, "once with this host's time, once with the vendor's");
        own_claims(&seen[1].form()["client_assertion"], &proofs, ahead);
        let left = proof.holding().unwrap().left.unwrap().as_secs();
        assert!((3500..3599).contains(&left), "what lives for so long lives so long on any clock: {left}");
    }
    // An ID token says its times by the vendor's clock.
    for ahead in [300, -300] {
        let said = json!({ "id_token": id_token(ahead, 3600) });
        let vendor = Vendor::play(move |_| Reply { ahead: Some(ahead), ..Reply::ok(&said) }).await;
        let url = vendor.url("/token");
        let key = key_file(&rsa::generate().unwrap(), &url);
        let proof = google(IdTokenFrom::Key { key, endpoint: endpoint(&url) });
        carried(&proof, &proofs()).await.unwrap();
        let left = proof.holding().unwrap().left.unwrap().as_secs();
        assert!((3500..3600).contains(&left), "{ahead}: {left}");
    }
}

#[tokio::test]
async fn a_vendor_that_misbehaves_gives_no_token_and_words_for_the_log_without_a_secret() {
    let huge = "x".repeat(70 * 1024);
    let replies: Vec<(Reply, &str)> = vec![
        (Reply::no(500, "<html>"), "refused (500): no reason given"),
        (Reply::no(429, "{}"), "refused (429)"),
        (
            Reply::no(400, r#"{"error":"invalid_client","error_description":"bad secret"}"#),
            "invalid_client: bad secret",
        ),
        (Reply::ok("<html>"), "not the JSON"),
        (Reply::ok("{}"), "not the JSON"),
        (Reply::ok(r#"{"token_type":"pop","expires_in":10,"access_token":"a"}"#), "no bearer token"),
        (Reply::ok(r#"{"token_type":"Bearer","expires_in":"soon","access_token":"a"}"#), "expires_in is no number"),
        (Reply::ok(r#"{"token_type":"Bearer","expires_in":0,"access_token":"a"}"#), "ends 0 s after"),
        (Reply::ok(r#"{"token_type":"Bearer","expires_in":3600,"access_token":"a\nb"}"#), "no field may hold"),
        (Reply::ok(r#"{"token_type":"Bearer","expires_in":3600,"access_token":""}"#), "no field may hold"),
        (Reply { more: "location: http://127.0.0.1:1/\r\n", ..Reply::no(302, "") }, "its status is 302"),
        (Reply::no(204, ""), "its status is 204"),
        (Reply::ok(huge), "gave no answer: too_large"),
    ];
    for (reply, says) in replies {
        let mut reply = Some(reply);
        let vendor = Vendor::play(move |_| reply.take().unwrap()).await;
        let proof = entra(&vendor.url("/token"), secret("hunter2"));
        let why = why(&proof, &proofs()).await;
        assert!(why.contains(says) && !why.contains("hunter2"), "{says}: {why}");
        assert_eq!(vendor.seen().len(), 1);
        let holding = proof.holding().unwrap();
        assert!(holding.left.is_none() && holding.trouble.is_some_and(|trouble| trouble.contains(says)));
    }
    // Nobody there, and somebody who speaks no HTTP.
    let away = Vendor::play(|_| Reply::ok("")).await;
    let url = away.url("/token");
    drop(away);
    assert!(why(&entra(&url, secret("hunter2")), &proofs()).await.contains("gave no answer: origin_refused"));
}

#[tokio::test]
async fn a_vendor_over_tls_is_verified() {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let key = rustls_pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let config =
        rustls::ServerConfig::builder_with_provider(std::sync::Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut serving = culvert_ops::task::Owner::new();
    serving.spawn("vendor", async move {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut heard = [0; 4096];
            let _ = stream.read(&mut heard).await;
            let head = format!("HTTP/1.1 200 x\r\ncontent-length: {}\r\n\r\n", ENTRA_SAYS.len());
            let _ = stream.write_all((head + ENTRA_SAYS).as_bytes()).await;
            let _ = stream.shutdown().await;
        }
    });
    let ask = |ca: Option<Vec<u8>>| {
        let tls = crate::tls::ClientTls::new(crate::tls::Files { ca, ..crate::tls::Files::default() }).unwrap();
        let endpoint = Endpoint::new(&format!("https://localhost:{port}/token"), || Some(tls)).unwrap();
        let settings = EntraIdSettings {
            endpoint,
            client_id: "app-1".to_owned(),
            wanted: Wanted::Resource("https://vault.example".to_owned()),
            credential: secret("hunter2"),
            prefix: String::new(),
        };
        Proof::EntraId(Carried::new(http::header::AUTHORIZATION, EntraId::new(settings)))
    };
    assert_eq!(carried(&ask(Some(made.cert.pem().into_bytes())), &proofs()).await.unwrap(), "eyJ.token.x");
    let other = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let why = why(&ask(Some(other.cert.pem().into_bytes())), &proofs()).await;
    assert!(why.contains("gave no answer: origin_tls") && why.contains("certificate"), "{why}");
}

#[tokio::test]
async fn a_reload_asks_for_nothing_again_and_a_new_secret_starts_with_the_old_ones_token() {
    let mut number = 0;
    let vendor = Vendor::play(move |_| {
        number += 1;
        Reply::ok(ENTRA_SAYS.replace("eyJ.token.x", &format!("token-{number}")))
    })
    .await;
    let origins = crate::origins::Origins::default();
    let load = |with: &str, host: &str| {
        let mut service = crate::service::Service::new(service(), "http://127.0.0.1:1".parse().unwrap(), None);
        service.host = host.parse().unwrap();
        service.auth = Some(std::sync::Arc::new(entra(&vendor.url("/token"), secret(with))));
        origins.replace(vec![service]);
    };
    let shown = async || {
        let upstream = origins.table().upstream("orders").unwrap().clone();
        let (mut parts, body) = Request::from(http::Request::new(Body::empty())).into_parts();
        upstream.prove(&mut parts, body, None).await.unwrap();
        parts.headers.get("authorization").unwrap().to_str().unwrap().to_owned()
    };
    load("first", "preserve");
    assert_eq!(shown().await, "Bearer token-1");
    load("first", "other.internal");
    assert_eq!((shown().await, vendor.seen().len()), ("Bearer token-1".to_owned(), 1), "something else changed");
    load("second", "other.internal");
    assert_eq!(shown().await, "Bearer token-1", "nobody waits for the new one");
    tokio::time::timeout(PATIENCE, async {
        while shown().await != "Bearer token-2" {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("it is there soon");
    assert_eq!(vendor.seen()[1].form()["client_secret"], "second");
}
