//! AWS Signature Version 4 of a request: its canonical form, hashed and signed by a key of the day.
//!
//! Must never put the secret key, or one that is made of it, anywhere but under an HMAC.
//!
//! By own hand and not by the crate aws-sigv4: that one wants a newer compiler than this workspace promises, and fourteen
//! more crates for a page of arithmetic that AWS publishes vectors for.

use std::fmt::{self, Write as _};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use culvert_hop::message::RequestParts;
use culvert_ops::secret::Secret;
use culvert_ops::time::rfc3339;
use http::{HeaderName, HeaderValue};
use ring::{digest, hmac};

use super::canonical::{Canonical, PathRule};

/// What a request is signed with.
#[derive(Clone)]
pub struct Credentials {
    /// The access key's id.
    pub id: String,
    /// The secret access key.
    pub secret: Secret,
    /// The session's token, of temporary ones.
    pub token: Option<HeaderValue>,
    /// When they end; none: not by themselves.
    pub expires: Option<SystemTime>,
}

/// For whom requests are signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    /// The service's name in AWS, as `execute-api`.
    pub service: String,
    /// Its region.
    pub region: String,
}

/// Signs for one scope; keeps the day's key.
pub(super) struct Signer {
    scope: Scope,
    rule: PathRule,
    also: Vec<HeaderName>,
    kept: Mutex<Option<Kept>>,
}

struct Kept {
    date: String,
    of: Arc<Credentials>,
    key: Arc<hmac::Key>,
}

/// A signature, and what the next one of the same request builds on.
pub(super) struct Signed {
    /// `Authorization`.
    pub(super) authorization: HeaderValue,
    /// The signature, in hexadecimal digits.
    pub(super) signature: String,
    /// The key of the day.
    pub(super) key: Arc<hmac::Key>,
    /// `DATE/REGION/SERVICE/aws4_request`
    pub(super) scope: String,
}

/// A time as AWS writes it: `20150830T123600Z`.
pub(super) fn stamp(now: SystemTime) -> String {
    rfc3339(now).replace(['-', ':'], "")
}

impl Signer {
    pub(super) fn new(scope: Scope, also: Vec<HeaderName>) -> Self {
        // S3 alone, in its two shapes, takes paths as they are.
        let is_s3 = ["s3", "s3-outposts", "s3-object-lambda"].contains(&scope.service.as_str());
        let rule = if is_s3 { PathRule::Once } else { PathRule::Twice };
        Self { scope, rule, also, kept: Mutex::new(None) }
    }

    /// Signs a request whose other fields are final, X-Amz-Date (`stamp`) among them.
    pub(super) fn sign(
        &self,
        parts: &RequestParts,
        payload: &str,
        credentials: &Arc<Credentials>,
        stamp: &str,
    ) -> Option<Signed> {
        let canonical = Canonical::of(parts, payload, self.rule, &self.also);
        let date = stamp.get(..8)?;
        let key = self.key(credentials, date);
        let Scope { service, region } = &self.scope;
        let scope = format!("{date}/{region}/{service}/aws4_request");
        let hash = sha256(&canonical.text);
        let signature =
            hex(hmac::sign(&key, format!("AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hash}").as_bytes()).as_ref());
        let authorization = format!(
            "AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={}, Signature={signature}",
            credentials.id, canonical.signed
        );
        let mut authorization = HeaderValue::try_from(authorization).ok()?;
        authorization.set_sensitive(true);
        Some(Signed { authorization, signature, key, scope })
    }

    fn key(&self, credentials: &Arc<Credentials>, date: &str) -> Arc<hmac::Key> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kept) = &*kept
            && kept.date == date
            && Arc::ptr_eq(&kept.of, credentials)
        {
            return kept.key.clone();
        }
        let first = credentials.secret.with_prefix("AWS4");
        let mut key = hmac::Key::new(hmac::HMAC_SHA256, first.expose().as_bytes());
        for part in [date, &self.scope.region, &self.scope.service, "aws4_request"] {
            key = hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&key, part.as_bytes()).as_ref());
        }
        let key = Arc::new(key);
        *kept = Some(Kept { date: date.to_owned(), of: credentials.clone(), key: key.clone() });
        key
    }
}

/// In hexadecimal digits.
pub(super) fn sha256(bytes: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, bytes).as_ref())
}

pub(super) fn hex(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        let _ = write!(out, "{byte:02x}");
    }
    out
}

impl PartialEq for Credentials {
    fn eq(&self, other: &Self) -> bool {
        (&self.id, self.secret.expose(), &self.token, self.expires)
            == (&other.id, other.secret.expose(), &other.token, other.expires)
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials")
    }
}

#[cfg(test)]
mod tests {
    use culvert_hop::body::Body;
    use culvert_hop::message::Request;
    use culvert_ops::time::parse_rfc3339;

    use super::*;

    const STS: &str = "AQoDYXdzEPT//////////wEXAMPLEtc764bNrC9SAPBSM22wDOk4x4HIZ8j4FZTwdQWLWsKWHGBuFqwAeMicRXmxfpSPfIeoIYRqTflfKD8YUuwthAx7mSEI/qkPpKPi/kMcGdQrmGdeehM4IC1NtBmUpp2wUE8phUZampKsburEDy0KPkyQDYwT7WZ0wq5VSXDvp75YU9HFvlRd8Tx6q6fE8YQcHNVXAkiY9q6d+xo0rKwT38xVqr7ZD0u0iPPkUL64lIZbqBAz+scqKmlzm8FDrypNC9Yjc8fPOLn9FX9KSYvKTr4rvx3iSIlTJabIQwj2ICCR/oLxBA==";
    const UNRESERVED: &str = "-._~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

    /// The request and signature of every published vector that can be on a wire: awslabs/aws-c-auth,
    /// tests/aws-signing-test-suite/v4 (Apache-2.0). Those ending in `unnormalized` are signed as S3 reads paths.
    fn vectors() -> Vec<(&'static str, String, &'static [&'static str], &'static str)> {
        let own = |text: &str| text.to_owned();
        vec![
            ("get-vanilla", own("GET /"), &[], "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"),
            (
                "get-vanilla-query",
                own("GET /?"),
                &[],
                "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
            ),
            (
                "get-header-key-duplicate",
                own("GET /"),
                &["My-Header1:value2", "My-Header1:value2", "My-Header1:value1"],
                "c9d5ea9f3f72853aea855b47ea873832890dbdd183b4468f858259531a5138ea",
            ),
            (
                "get-header-value-multiline",
                own("GET /"),
                // As a hop hands it on: a folded line has become spaces (RFC 9112 §5.2).
                &["My-Header1:value1   value2      value3"],
                "cfd34249e4b1c8d6b91ef74165d41a32e5fab3306300901bb65a51a73575eefd",
            ),
            (
                "get-header-value-order",
                own("GET /"),
                &["My-Header1:value4", "My-Header1:value1", "My-Header1:value3", "My-Header1:value2"],
                "08c7e5a9acfcfeb3ab6b2185e75ce8b1deb5e634ec47601a50643f830c755c01",
            ),
            (
                "get-header-value-trim",
                own("GET /"),
                &["My-Header1: value1", "My-Header2: \"a   b   c\""],
                "acc3ed3afb60bb290fc8d2dd0098b9911fcaa05412b367055dee359757a9c736",
            ),
            (
                "get-relative-normalized",
                own("GET /example/.."),
                &[],
                "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
            ),
            (
                "get-relative-relative-normalized",
                own("GET /example1/example2/../.."),
                &[],
                "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
            ),
            (
                "get-relative-relative-unnormalized",
                own("GET /example1/example2/../.."),
                &[],
                "dc33e0856fd4baca4d7aa2146c38958283844764f38c74252a333df5e613003b",
            ),
            (
                "get-relative-unnormalized",
                own("GET /example/.."),
                &[],
                "eca7ead57bb5aa5c8e28007acd4ff04e1ff9a0ff3b237ec1554a184887ff9282",
            ),
            (
                "get-slash-dot-slash-normalized",
                own("GET /./"),
                &[],
                "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
            ),
            (
                "get-slash-dot-slash-unnormalized",
                own("GET /./"),
                &[],
                "68714168e6557f8f2de0ef956fc24dc2593a4bd2961f8df51898d8a134695145",
            ),
            (
                "get-slash-normalized",
                own("GET //"),
                &[],
                "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
            ),
            (
                "get-slash-pointless-dot-normalized",
                own("GET /./example"),
                &[],
                "ef75d96142cf21edca26f06005da7988e4f8dc83a165a80865db7089db637ec5",
            ),
            (
                "get-slash-pointless-dot-unnormalized",
                own("GET /./example"),
                &[],
                "beb03f223f7deae4146464f06e29eebbee9c8afbe15c290cf07aa8b119e14cff",
            ),
            (
                "get-slash-unnormalized",
                own("GET //"),
                &[],
                "c88bcd3d312d75078c0cd961d6deae3f4c754924b01669efcfcb439fd5e5b76e",
            ),
            (
                "get-slashes-normalized",
                own("GET //example//"),
                &[],
                "9a624bd73a37c9a373b5312afbebe7a714a789de108f0bdfe846570885f57e84",
            ),
            (
                "get-slashes-unnormalized",
                own("GET //example//"),
                &[],
                "87cca117541a147f6df867677d98a7d80dff226d2bfca9e4ffa899665623c7e5",
            ),
            (
                // On the wire it is encoded once, so only S3's rule gives the published text.
                "get-space-unnormalized",
                own("GET /example%20space/"),
                &[],
                "652487583200325589f1fba4c7e578f72c47cb61beeca81406b39ddec1366741",
            ),
            (
                "get-unreserved",
                format!("GET /{UNRESERVED}"),
                &[],
                "07ef7494c76fa4850883e2b006601f940f8a34d404d0cfa977f52a65bbf5f24f",
            ),
            ("get-utf8", own("GET /\u{1234}"), &[], "8318018e0b0f223aa2bbf98705b62bb787dc9c0e678f255a891fd03141be5d85"),
            (
                "get-vanilla-empty-query-key",
                own("GET /?Param1=value1"),
                &[],
                "a67d582fa61cc504c4bae71f336f98b97f1ea3c7a6bfe1b6e45aec72011b9aeb",
            ),
            (
                "get-vanilla-query-order-encoded",
                own("GET /?Param-3=Value3&Param=Value2&%E1%88%B4=Value1"),
                &[],
                "371d3713e185cc334048618a97f809c9ffe339c62934c032af5a0e595648fcac",
            ),
            (
                "get-vanilla-query-order-key-case",
                own("GET /?Param2=value2&Param1=value1"),
                &[],
                "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500",
            ),
            (
                "get-vanilla-query-unreserved",
                format!("GET /?{UNRESERVED}={UNRESERVED}"),
                &[],
                "9c3e54bfcdf0b19771a7f523ee5669cdf59bc7cc0884027167c21bb143a40197",
            ),
            (
                "get-vanilla-utf8-query",
                own("GET /?\u{1234}=bar"),
                &[],
                "2cdec8eed098649ff3a119c94853b13c643bcf08f8b0a1d91e12c9027818dd04",
            ),
            (
                "get-vanilla-with-session-token",
                own("GET /"),
                &["X-Amz-Security-Token:6e86291e8372ff2a2260956d9b8aae1d763fbf315fa00fa31553b73ebf194267"],
                "07ec1639c89043aa0e3e2de82b96708f198cceab042d4a97044c66dd9f74e7f8",
            ),
            ("post-vanilla", own("POST /"), &[], "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"),
            (
                "post-header-key-sort",
                own("POST /"),
                &["My-Header1:value1"],
                "c5410059b04c1ee005303aed430f6e6645f61f4dc9e1461ec8f8916fdf18852c",
            ),
            (
                "post-header-value-case",
                own("POST /"),
                &["My-Header1:VALUE1"],
                "cdbc9802e29d2942e5e10b5bccfdd67c5f22c7c4e8ae67b53629efa58b974b7d",
            ),
            (
                "post-sts-header-before",
                own("POST /"),
                &["X-Amz-Security-Token:STS"],
                "85d96828115b5dc0cfc3bd16ad9e210dd772bbebba041836c64533a82be05ead",
            ),
            (
                "post-vanilla-query",
                own("POST /?Param1=value1"),
                &[],
                "28038455d6de14eafc1f9222cf5aa6f1a96197d7deb8263271d420d138af7f11",
            ),
            (
                "post-x-www-form-urlencoded",
                own("POST / Param1=value1"),
                &["Content-Type:application/x-www-form-urlencoded", "Content-Length:13"],
                "d3875051da38690788ef43de4db0d8f280229d82040bfac253562e56c3f20e0b",
            ),
            (
                "post-x-www-form-urlencoded-parameters",
                own("POST / Param1=value1"),
                &["Content-Type:application/x-www-form-urlencoded; charset=utf-8", "Content-Length:13"],
                "328d1b9eaadca9f5818ef05e8392801e091653bafec24fcab71e7344e7f51422",
            ),
        ]
    }

    pub(crate) fn credentials() -> Arc<Credentials> {
        let secret = Secret::new("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY");
        Arc::new(Credentials { id: "AKIDEXAMPLE".to_owned(), secret, token: None, expires: None })
    }

    #[test]
    fn every_published_vector_gets_its_published_signature() {
        let also: Vec<HeaderName> =
            ["my-header1", "my-header2", "content-length"].into_iter().map(HeaderName::from_static).collect();
        let scope = Scope { service: "service".to_owned(), region: "us-east-1".to_owned() };
        let now = parse_rfc3339("2015-08-30T12:36:00Z").unwrap();
        let mut twice = Signer::new(scope.clone(), also.clone());
        let mut once = Signer { rule: PathRule::Once, ..Signer::new(scope, also) };
        for (name, request, fields, signature) in vectors() {
            let mut words = request.splitn(3, ' ');
            let (method, target, body) = (words.next().unwrap(), words.next().unwrap(), words.next());
            let mut asked = Request::new(Body::empty());
            *asked.method_mut() = method.parse().unwrap();
            *asked.uri_mut() = target.parse().unwrap_or_else(|error| panic!("{name}: {error}"));
            let hash = sha256(body.unwrap_or_default().as_bytes());
            let mut field = |name: &str, value: &str| {
                let value = HeaderValue::from_str(value.trim()).unwrap();
                asked.headers_mut().append(name.parse::<HeaderName>().unwrap(), value);
            };
            field("Host", "example.amazonaws.com");
            for (name, value) in fields.iter().map(|line| line.split_once(':').unwrap()) {
                field(name, if value == "STS" { STS } else { value });
            }
            field("X-Amz-Date", &stamp(now));
            if body.is_some() {
                field("x-amz-content-sha256", &hash);
            }
            let (parts, _) = asked.into_parts();
            let signer = if name.ends_with("unnormalized") { &mut once } else { &mut twice };
            let signed = signer.sign(&parts, &hash, &credentials(), &stamp(now)).unwrap();
            assert_eq!(signed.signature, signature, "{name}");
        }
    }

    #[test]
    fn the_authorization_names_the_key_the_scope_and_what_is_covered() {
        let scope = Scope { service: "execute-api".to_owned(), region: "eu-west-1".to_owned() };
        let mut request = Request::new(Body::empty());
        for (name, value) in [("host", "a"), ("accept", "*/*"), ("X-AMZ-Meta", "1"), ("x-amz-date", "20150830T123600Z")]
        {
            request.headers_mut().append(name.parse::<HeaderName>().unwrap(), HeaderValue::from_static(value));
        }
        let (parts, _) = request.into_parts();
        let signer = Signer::new(scope, Vec::new());
        let signed = signer.sign(&parts, "UNSIGNED-PAYLOAD", &credentials(), "20150830T123600Z").unwrap();
        let text = signed.authorization.to_str().unwrap();
        let start = "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/eu-west-1/execute-api/aws4_request, \
                     SignedHeaders=host;x-amz-date;x-amz-meta, Signature=";
        assert!(text.starts_with(start) && text.len() == start.len() + 64, "{text}");
        assert!(signed.authorization.is_sensitive() && !format!("{:?}", credentials()).contains("wJalr"));
    }

    #[test]
    fn another_day_and_other_credentials_have_another_key() {
        let signer = Signer::new(Scope { service: "lambda".to_owned(), region: "eu-west-1".to_owned() }, Vec::new());
        let (one, other) = (credentials(), credentials());
        let first = signer.key(&one, "20150830");
        assert!(Arc::ptr_eq(&first, &signer.key(&one, "20150830")));
        assert!(!Arc::ptr_eq(&first, &signer.key(&one, "20150831")));
        assert!(!Arc::ptr_eq(&signer.key(&one, "20150831"), &signer.key(&other, "20150831")));
    }
}
