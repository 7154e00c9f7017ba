//! What becomes of a request that is signed for AWS.

use std::time::Duration;

use culvert_hop::message::Request;
use culvert_model::name::ServiceName;
use culvert_model::reason::Reason;

use super::*;

const BODY: &str = "{\"n\":1}";

fn signing(payload: PayloadPolicy, token: Option<&str>) -> AwsSigV4 {
    let credentials = Credentials::new("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", token, None).unwrap();
    AwsSigV4::new(AwsSettings {
        scope: Scope { service: "s3".to_owned(), region: "eu-west-1".to_owned() },
        credentials: CredentialSource::Fixed(Arc::new(credentials)),
        payload,
        payload_limit: 100,
        also: Vec::new(),
    })
}

async fn prove(
    signing: &AwsSigV4,
    fields: &[(&'static str, &'static str)],
    body: Body,
) -> Result<Request<Body>, Fault> {
    let mut request = Request::new(());
    for (name, value) in fields {
        request.headers_mut().append(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    let (mut parts, ()) = request.into_parts();
    let service: ServiceName = "orders".parse().unwrap();
    let about = About { service: &service, caller: None, is_tls: false };
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_440_938_160);
    let body = signing.prove(&mut parts, body, about, &Proofs::default(), now).await?;
    Ok(Request::from_parts(parts, body))
}

fn field(request: &Request<Body>, name: &str) -> String {
    let mut lines = request.headers().get_all(name);
    let line = lines.next().map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default();
    assert!(lines.next().is_none(), "{name} twice");
    line
}

#[tokio::test]
async fn each_policy_says_what_of_the_body_is_signed_and_sends_all_of_it() {
    let hash = sha256(BODY.as_bytes());
    for (policy, says) in [
        (PayloadPolicy::Signed, hash.as_str()),
        (PayloadPolicy::Unsigned, UNSIGNED),
        (PayloadPolicy::Chunked, STREAMING),
    ] {
        let fields = [("host", "a"), ("content-length", "7"), ("content-encoding", "gzip")];
        let sent = prove(&signing(policy, Some("t0ken")), &fields, Body::full(BODY)).await.unwrap();
        assert_eq!(field(&sent, "x-amz-content-sha256"), says);
        assert_eq!(
            (field(&sent, "x-amz-date"), field(&sent, "x-amz-security-token")),
            ("20150830T123600Z".to_owned(), "t0ken".to_owned())
        );
        assert!(field(&sent, "authorization").contains("host;x-amz-content-sha256;x-amz-date"));
        let is_chunked = policy == PayloadPolicy::Chunked;
        assert_eq!(field(&sent, "content-encoding"), if is_chunked { "aws-chunked,gzip" } else { "gzip" });
        assert_eq!(field(&sent, "x-amz-decoded-content-length"), if is_chunked { "7" } else { "" });
        let length = field(&sent, "content-length");
        let body = sent.into_body().read(1000).await.unwrap();
        assert_eq!((body.len().to_string(), body.windows(7).any(|part| part == BODY.as_bytes())), (length, true));
    }
}

#[tokio::test]
async fn a_request_without_a_body_is_signed_as_one_of_nothing_whatever_the_policy() {
    for policy in [PayloadPolicy::Signed, PayloadPolicy::Unsigned, PayloadPolicy::Chunked] {
        let sent = prove(&signing(policy, None), &[("host", "a")], Body::empty()).await.unwrap();
        assert_eq!(field(&sent, "x-amz-content-sha256"), sha256(b""));
        assert_eq!(field(&sent, "x-amz-security-token"), "");
        assert_eq!(sent.headers().len(), 4);
    }
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_only_where_it_has_to_be_read() {
    let long = || Body::full(vec![0; 101]);
    let refused = prove(&signing(PayloadPolicy::Signed, None), &[("host", "a")], long()).await;
    assert_eq!(refused.err().unwrap().reason, Reason::TooLarge);
    for policy in [PayloadPolicy::Unsigned, PayloadPolicy::Chunked] {
        assert!(prove(&signing(policy, None), &[("host", "a")], long()).await.is_ok());
    }
}
