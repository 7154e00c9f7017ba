//! What a proof to the origin costs a request, as the connector's last hop makes it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail};
use culvert_hop::body::Body;
use culvert_hop::message::{Handle, Request, RequestParts};
use culvert_model::name::ServiceName;
use culvert_model::proof::Algorithm;
use culvert_ops::secret::Secret;
use culvert_origin::proof::{
    About, AwsSettings, AwsSigV4, CredentialSource, Credentials, FieldPolicy, HttpSignature, Jwt, JwtSettings,
    KeySource, PayloadPolicy, Proof, Proofs, Scope, SignatureAlgorithm, SignatureSettings, USUAL_COMPONENTS,
    USUAL_LIMIT,
};
use http::{HeaderName, HeaderValue, header};

/// Seconds since 1970.
const NOW: u64 = 1_800_000_000;

/// What stands before a service's origin.
pub struct Stand {
    runtime: tokio::runtime::Runtime,
    service: ServiceName,
    policy: FieldPolicy,
    proof: Option<Proof>,
    proofs: Proofs,
    now: SystemTime,
}

impl Stand {
    /// One that makes the proof of this name: `none` (what the measuring itself costs), `header` (a secret under a name, and a
    /// field taken out), `jwt-kept`, `jwt-eddsa`, `jwt-es256`, `sigv4`, `sigv4-unsigned`, `signature-hmac`,
    /// `signature-ed25519` or `signature-ecdsa`.
    ///
    /// # Errors
    /// There is no such proof.
    pub fn with(name: &str) -> Result<Self> {
        let proof = match name {
            "none" | "header" => None,
            "jwt-kept" => jwt(Algorithm::EdDsa, false),
            "jwt-eddsa" => jwt(Algorithm::EdDsa, true),
            "jwt-es256" => jwt(Algorithm::Es256, true),
            "sigv4" => aws(PayloadPolicy::Signed)?,
            "sigv4-unsigned" => aws(PayloadPolicy::Unsigned)?,
            "signature-hmac" => {
                let secret = Secret::new("0123456789abcdef0123456789abcdef");
                let key = KeySource::shared(&secret, false).ok().context("the shared secret was refused")?;
                signature(SignatureAlgorithm::HmacSha256, key)?
            }
            "signature-ed25519" => signature(SignatureAlgorithm::Ed25519, KeySource::Own)?,
            "signature-ecdsa" => signature(SignatureAlgorithm::EcdsaP256Sha256, KeySource::Own)?,
            other => bail!("there is no proof {other:?}"),
        };
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(NOW);
        let proofs = Proofs::default();
        proofs.need(&BTreeSet::from([Algorithm::EdDsa, Algorithm::Es256]), now).ok().context("keys were not made")?;
        let mut policy = FieldPolicy::default();
        for name in proof.iter().flat_map(Proof::fields) {
            policy.remove(&name).ok().context("the policy refused a name")?;
        }
        if name == "header" {
            let key = HeaderName::from_static("x-origin-key");
            policy.set(key, HeaderValue::from_static("secret")).ok().context("the policy refused a value")?;
            policy.remove(&HeaderName::from_static("x-internal")).ok().context("the policy refused a name")?;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().build()?;
        Ok(Self { runtime, service: "orders".parse()?, policy, proof, proofs, now })
    }

    /// As the connector's last hop does for each request.
    ///
    /// # Errors
    /// The proof was not made.
    pub fn prove(&self, mut parts: Handle<RequestParts>, body: Body) -> Result<(Handle<RequestParts>, Body)> {
        self.policy.apply(&mut parts.headers);
        let Some(proof) = &self.proof else { return Ok((parts, body)) };
        let about = About { service: &self.service, caller: Some("kong"), is_tls: true };
        let proved = self.runtime.block_on(proof.prove(&mut parts, body, about, &self.proofs, self.now));
        Ok((parts, proved.ok().context("the proof was not made")?))
    }

    /// One request with a body of so many bytes.
    ///
    /// # Errors
    /// The proof was not made.
    pub fn prove_one(&self, length: usize) -> Result<()> {
        let (parts, body) = request(length);
        self.prove(parts, body).map(drop)
    }
}

/// A request as a gateway sends it.
pub fn request(length: usize) -> (Handle<RequestParts>, Body) {
    let mut request = Request::new(());
    *request.uri_mut() = http::Uri::from_static("/orders/42?expand=lines&limit=20");
    let fields = request.headers_mut();
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
        fields.append(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    if length > 0 {
        fields.append(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    (request.into_parts().0, Body::full(vec![0x55; length]))
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

fn aws(payload: PayloadPolicy) -> Result<Option<Proof>> {
    let credentials = Credentials::new("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", None, None);
    let credentials = credentials.context("the credentials were refused")?;
    Ok(Some(Proof::AwsSigV4(AwsSigV4::new(AwsSettings {
        scope: Scope { service: "execute-api".to_owned(), region: "eu-west-1".to_owned() },
        credentials: CredentialSource::Fixed(Arc::new(credentials)),
        payload,
        payload_limit: USUAL_LIMIT,
        also: Vec::new(),
    }))))
}

fn signature(algorithm: SignatureAlgorithm, key: KeySource) -> Result<Option<Proof>> {
    let components = USUAL_COMPONENTS.iter().map(|text| text.parse().ok().context("a component was refused"));
    let settings = SignatureSettings {
        label: "culvert".to_owned(),
        algorithm,
        key,
        keyid: Some("key-1".to_owned()),
        components: components.collect::<Result<_>>()?,
        lifetime: Duration::from_secs(300),
        has_nonce: true,
        tag: None,
        digests: true,
        payload_limit: USUAL_LIMIT,
    };
    Ok(Some(Proof::HttpSignature(HttpSignature::new(settings).ok().context("the settings were refused")?)))
}
