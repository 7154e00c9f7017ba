//! The published vectors, and what is not in them.

use std::collections::BTreeSet;

use culvert_hop::message::Request;
use culvert_model::reason::Reason;
use culvert_ops::secret::Secret;
use ring::signature::{ECDSA_P256_SHA256_FIXED, ED25519, UnparsedPublicKey};

use super::*;

/// RFC 9421 §B.1.5
const SHARED: &str = "uzvJfB4u3N0Jy4T7NZ75MDVcr8zSTInedJtkgcu46YW4XByzNJjxBdtjUkdJPBtbmHhIDi6pcl8jsasjlTMtDQ==";
/// RFC 9421 §B.1.4
const ED25519_PEM: &str = "-----BEGIN PRIVATE KEY-----\n\
    MC4CAQAwBQYDK2VwBCIEIJ+DYvh6SEqVTm50DFtMDoQikTmiCqirVv9mWG9qfSnF\n-----END PRIVATE KEY-----\n";
const BODY: &str = r#"{"hello": "world"}"#;

fn settings(algorithm: SignatureAlgorithm, key: KeySource) -> SignatureSettings {
    SignatureSettings {
        label: "culvert".to_owned(),
        algorithm,
        key,
        keyid: Some("key-1".to_owned()),
        components: USUAL_COMPONENTS.iter().map(|text| text.parse().unwrap()).collect(),
        lifetime: Duration::from_secs(300),
        has_nonce: true,
        tag: Some("orders".to_owned()),
        digests: true,
        payload_limit: 100,
    }
}

fn shared() -> KeySource {
    KeySource::shared(&Secret::new(SHARED), true).unwrap()
}

/// RFC 9421 §B.2
fn request() -> RequestParts {
    let mut request = Request::new(());
    *request.method_mut() = http::Method::POST;
    *request.uri_mut() = "/foo?param=Value&Pet=dog".parse().unwrap();
    for (name, value) in [
        ("host", "example.com"),
        ("date", "Tue, 20 Apr 2021 02:07:55 GMT"),
        ("content-type", "application/json"),
        ("content-length", "18"),
    ] {
        request.headers_mut().append(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    request.into_parts().0.into_inner()
}

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

#[test]
fn the_rfcs_own_signatures_are_made_again() {
    for (algorithm, key, keyid, covered, signature) in [
        (
            SignatureAlgorithm::HmacSha256,
            shared(),
            "test-shared-secret",
            &["date", "@authority", "content-type"][..],
            "pxcQw6G3AjtMBQjwo8XzkZf/bws5LelbaMk5rGIGtE8=",
        ),
        (
            SignatureAlgorithm::Ed25519,
            KeySource::Pem(Secret::new(ED25519_PEM)),
            "test-key-ed25519",
            &["date", "@method", "@path", "@authority", "content-type", "content-length"],
            "wqcAqbmYJ2ji2glfAMaRy4gruYYnx2nEFN2HN6jrnDnQCK1u02Gb04v9EDgwUPiu4A0w6vuQv5lIp5WPpBKRCw==",
        ),
    ] {
        let components: Vec<Component> = covered.iter().map(|text| text.parse().unwrap()).collect();
        let params = Params { created: Some(1_618_884_473), keyid: Some(keyid), ..Params::default() };
        let base = Base::of(&request(), &components, &params, true).unwrap();
        let made = Key::of(algorithm, &key).unwrap().sign(&base.text).unwrap();
        assert_eq!(STANDARD.encode(made), signature, "{keyid}: {}", String::from_utf8_lossy(&base.text));
    }
}

#[tokio::test]
async fn a_signed_request_says_what_it_covers_and_carries_its_bodys_digest() {
    let signature = HttpSignature::new(settings(SignatureAlgorithm::HmacSha256, shared())).unwrap();
    let mut parts = request();
    let body =
        signature.prove(&mut parts, Body::full(BODY), true, &Proofs::default(), at(1_618_884_473)).await.unwrap();
    assert_eq!(body.read(100).await.unwrap(), BODY);
    let field = |name: HeaderName| parts.headers.get(name).unwrap().to_str().unwrap();
    assert_eq!(field(CONTENT_DIGEST), "sha-256=:X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE=:");
    let input = field(SIGNATURE_INPUT);
    let (covered, rest) = input.split_once(";nonce=\"").unwrap();
    assert_eq!(
        covered,
        "culvert=(\"@method\" \"@authority\" \"@path\" \"@query\" \"content-digest\" \"content-type\")\
         ;created=1618884473;expires=1618884773;keyid=\"key-1\";alg=\"hmac-sha256\""
    );
    assert!(rest.ends_with("\";tag=\"orders\""), "{rest}");
    assert!(field(SIGNATURE).starts_with("culvert=:") && field(SIGNATURE).ends_with("=:"));
    let mut other = request();
    signature.prove(&mut other, Body::full(BODY), true, &Proofs::default(), at(1_618_884_473)).await.unwrap();
    assert_ne!(other.headers.get(SIGNATURE), parts.headers.get(SIGNATURE), "a nonce of its own");
}

#[tokio::test]
async fn a_request_without_a_body_has_no_digest_and_one_too_long_is_refused() {
    let signature = HttpSignature::new(settings(SignatureAlgorithm::HmacSha256, shared())).unwrap();
    let mut parts = request();
    parts.headers.remove("content-length");
    signature.prove(&mut parts, Body::empty(), true, &Proofs::default(), at(1)).await.unwrap();
    assert!(!parts.headers.contains_key(CONTENT_DIGEST));
    assert!(!parts.headers.get(SIGNATURE_INPUT).unwrap().to_str().unwrap().contains("content-digest"));
    let long = signature.prove(&mut request(), Body::full(vec![0; 101]), true, &Proofs::default(), at(1)).await;
    assert_eq!(long.err().unwrap().reason, Reason::TooLarge);
}

#[tokio::test]
async fn the_connectors_own_keys_sign_under_their_names() {
    let proofs = Proofs::default();
    proofs.need(&BTreeSet::from([Algorithm::EdDsa, Algorithm::Es256]), at(1_618_884_473)).unwrap();
    for (algorithm, kind, verify) in [
        (
            SignatureAlgorithm::Ed25519,
            Algorithm::EdDsa,
            &ED25519 as &'static dyn ring::signature::VerificationAlgorithm,
        ),
        (SignatureAlgorithm::EcdsaP256Sha256, Algorithm::Es256, &ECDSA_P256_SHA256_FIXED),
    ] {
        let own = SignatureSettings { keyid: None, has_nonce: false, ..settings(algorithm, KeySource::Own) };
        let signature = HttpSignature::new(own).unwrap();
        assert_eq!(signature.algorithm(), Some(kind));
        let mut parts = request();
        signature.prove(&mut parts, Body::full(BODY), true, &proofs, at(1_618_884_473)).await.unwrap();
        let key = proofs.published().into_iter().find(|key| key.alg == kind).unwrap();
        let input = parts.headers.get(SIGNATURE_INPUT).unwrap().to_str().unwrap();
        assert!(input.contains(&format!("keyid=\"{}\";alg=\"{}\"", key.kid(), algorithm.name())), "{input}");
        let number = |text: &str| URL_SAFE_NO_PAD.decode(text).unwrap();
        let public = match &key.y {
            None => number(&key.x),
            Some(y) => [vec![4], number(&key.x), number(y)].concat(),
        };
        let made = parts.headers.get(SIGNATURE).unwrap().to_str().unwrap();
        let made = STANDARD.decode(made.strip_prefix("culvert=:").unwrap().strip_suffix(':').unwrap()).unwrap();
        let params = Params {
            created: Some(1_618_884_473),
            expires: Some(1_618_884_773),
            keyid: Some(&key.kid()),
            alg: Some(algorithm.name()),
            nonce: None,
            tag: Some("orders"),
        };
        let base = Base::of(&parts, &signature.settings.components, &params, true).unwrap();
        UnparsedPublicKey::new(verify, public).verify(&base.text, &made).unwrap();
    }
}

#[tokio::test]
async fn without_a_key_there_is_no_request() {
    let own = settings(SignatureAlgorithm::Ed25519, KeySource::Own);
    let fault =
        HttpSignature::new(own).unwrap().prove(&mut request(), Body::empty(), true, &Proofs::default(), at(1)).await;
    assert_eq!(fault.err().unwrap().reason, Reason::OriginAuth);
}

#[test]
fn a_key_that_cannot_sign_is_refused_with_what_to_do() {
    let short = KeySource::shared(&Secret::new("hunter2"), false).unwrap_err();
    assert!(short.to_string().contains("openssl rand"), "{short}");
    assert_eq!(KeySource::shared(&Secret::new("no base64!"), true).unwrap_err(), BadKey::Base64);
    for (algorithm, pem) in [
        (SignatureAlgorithm::Ed25519, "hunter2"),
        (SignatureAlgorithm::EcdsaP256Sha256, ED25519_PEM),
        (SignatureAlgorithm::HmacSha256, ED25519_PEM),
    ] {
        let bad = HttpSignature::new(settings(algorithm, KeySource::Pem(Secret::new(pem)))).err().unwrap();
        assert!(bad.to_string().contains("openssl genpkey"), "{bad}");
    }
    assert!(!format!("{:?}", settings(SignatureAlgorithm::HmacSha256, shared())).contains("uzvJ"));
}
