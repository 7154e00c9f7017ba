//! What a proof costs a request: `cargo bench -p culvert-bench --bench proof`. Not a test: compare with `hop::whole_exchange`
//! of the others, which is a request without one.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use culvert_hop::body::Body;
use culvert_hop::message::{Request, RequestParts};
use culvert_model::name::ServiceName;
use culvert_model::proof::Algorithm;
use culvert_ops::secret::Secret;
use culvert_origin::proof::{
    About, AwsSettings, AwsSigV4, CredentialSource, Credentials, FieldPolicy, HttpSignature, Jwt, JwtSettings,
    KeySource, PayloadPolicy, Proof, Proofs, Scope, SignatureAlgorithm, SignatureSettings, USUAL_COMPONENTS,
    USUAL_LIMIT,
};
use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use http::{HeaderName, HeaderValue, header};

fn main() {
    divan::main();
}

/// What stands before a service's origin.
struct Stand {
    runtime: tokio::runtime::Runtime,
    service: ServiceName,
    policy: FieldPolicy,
    proof: Option<Proof>,
    proofs: Proofs,
    now: SystemTime,
}

impl Stand {
    fn with(proof: Option<Proof>) -> Self {
        let now = SystemTime::now();
        let proofs = Proofs::default();
        proofs.need(&BTreeSet::from([Algorithm::EdDsa, Algorithm::Es256]), now).unwrap();
        let mut policy = FieldPolicy::default();
        for name in proof.iter().flat_map(Proof::fields) {
            policy.remove(&name).unwrap();
        }
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        Self { runtime, service: "orders".parse().unwrap(), policy, proof, proofs, now }
    }

    /// As the connector's last hop does for each request.
    fn prove(&self, mut parts: RequestParts, body: Body) -> (RequestParts, Body) {
        self.policy.apply(&mut parts.headers);
        let body = match &self.proof {
            None => body,
            Some(proof) => {
                let about = About { service: &self.service, caller: Some("kong"), is_tls: true };
                self.runtime.block_on(proof.prove(&mut parts, body, about, &self.proofs, self.now)).unwrap()
            }
        };
        (parts, body)
    }

    fn bench(&self, bencher: Bencher<'_, '_>, length: usize) {
        let head = head(length);
        let body = vec![0x55; length];
        bencher
            .counter(ItemsCount::new(1_usize))
            .counter(BytesCount::new(length))
            .with_inputs(|| (head.clone(), Body::full(body.clone())))
            .bench_local_values(|(parts, body)| black_box(self.prove(parts, body)));
    }
}

/// A request as a gateway sends it.
fn head(length: usize) -> RequestParts {
    let mut request = Request::new(());
    *request.uri_mut() = "/orders/42?expand=lines&limit=20".parse().unwrap();
    for (name, value) in [
        ("host", "orders.internal"),
        ("user-agent", "gateway/1.0"),
        ("accept", "application/json"),
        ("content-type", "application/json"),
        ("x-forwarded-for", "198.51.100.7"),
        ("x-forwarded-proto", "https"),
        ("x-request-id", "0123456789abcdef"),
        ("via", "1.1 culvert-r1"),
    ] {
        request.headers_mut().append(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    if length > 0 {
        request.headers_mut().append(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    request.into_parts().0
}

/// Nothing: what the measuring itself costs.
#[divan::bench]
fn none(bencher: Bencher<'_, '_>) {
    Stand::with(None).bench(bencher, 0);
}

/// `[service.headers]` with one secret, and one field taken out.
#[divan::bench]
fn header(bencher: Bencher<'_, '_>) {
    let mut stand = Stand::with(None);
    stand.policy.set(HeaderName::from_static("x-origin-key"), HeaderValue::from_static("secret")).unwrap();
    stand.policy.remove(&HeaderName::from_static("x-internal")).unwrap();
    stand.bench(bencher, 0);
}

fn jwt(algorithm: Algorithm, is_bound: bool) -> Option<Proof> {
    Some(Proof::Jwt(Jwt::new(JwtSettings {
        algorithm,
        audience: "orders-api".to_owned(),
        issuer: Some("https://id.example/main".to_owned()),
        subject: None,
        lifetime: Duration::from_secs(300),
        header: header::AUTHORIZATION,
        prefix: "Bearer ".to_owned(),
        is_bound,
        claims: serde_json::Map::new(),
    })))
}

#[divan::bench]
fn jwt_kept(bencher: Bencher<'_, '_>) {
    Stand::with(jwt(Algorithm::EdDsa, false)).bench(bencher, 0);
}

#[divan::bench]
fn jwt_eddsa_each(bencher: Bencher<'_, '_>) {
    Stand::with(jwt(Algorithm::EdDsa, true)).bench(bencher, 0);
}

#[divan::bench]
fn jwt_es256_each(bencher: Bencher<'_, '_>) {
    Stand::with(jwt(Algorithm::Es256, true)).bench(bencher, 0);
}

fn aws(payload: PayloadPolicy) -> Option<Proof> {
    let credentials = Credentials::new("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", None, None).unwrap();
    Some(Proof::AwsSigV4(AwsSigV4::new(AwsSettings {
        scope: Scope { service: "execute-api".to_owned(), region: "eu-west-1".to_owned() },
        credentials: CredentialSource::Fixed(Arc::new(credentials)),
        payload,
        payload_limit: USUAL_LIMIT,
        also: Vec::new(),
    })))
}

#[divan::bench(args = [0, 1024, 65_536])]
fn aws_sigv4_signed(bencher: Bencher<'_, '_>, length: usize) {
    Stand::with(aws(PayloadPolicy::Signed)).bench(bencher, length);
}

#[divan::bench(args = [65_536])]
fn aws_sigv4_unsigned(bencher: Bencher<'_, '_>, length: usize) {
    Stand::with(aws(PayloadPolicy::Unsigned)).bench(bencher, length);
}

fn signature(algorithm: SignatureAlgorithm, key: KeySource) -> Option<Proof> {
    let settings = SignatureSettings {
        label: "culvert".to_owned(),
        algorithm,
        key,
        keyid: Some("key-1".to_owned()),
        components: USUAL_COMPONENTS.iter().map(|text| text.parse().unwrap()).collect(),
        lifetime: Duration::from_secs(300),
        has_nonce: true,
        tag: None,
        digests: true,
        payload_limit: USUAL_LIMIT,
    };
    Some(Proof::HttpSignature(HttpSignature::new(settings).unwrap()))
}

#[divan::bench(args = [0, 1024, 65_536])]
fn http_signature_hmac(bencher: Bencher<'_, '_>, length: usize) {
    let key = KeySource::shared(&Secret::new("0123456789abcdef0123456789abcdef"), false).unwrap();
    Stand::with(signature(SignatureAlgorithm::HmacSha256, key)).bench(bencher, length);
}

#[divan::bench(args = [0])]
fn http_signature_ed25519(bencher: Bencher<'_, '_>, length: usize) {
    Stand::with(signature(SignatureAlgorithm::Ed25519, KeySource::Own)).bench(bencher, length);
}

#[divan::bench(args = [0])]
fn http_signature_ecdsa(bencher: Bencher<'_, '_>, length: usize) {
    Stand::with(signature(SignatureAlgorithm::EcdsaP256Sha256, KeySource::Own)).bench(bencher, length);
}
