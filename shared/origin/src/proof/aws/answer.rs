//! What AWS's services answer when they are asked for credentials.
//!
//! Must never put an answer's text into an error: it may hold the credentials themselves.

use std::time::SystemTime;

use culvert_ops::time::parse_rfc3339;
use serde::Deserialize;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::sign::Credentials;

/// What metadata services answer (EC2, ECS, EKS).
#[derive(Deserialize, Zeroize, ZeroizeOnDrop)]
#[serde(rename_all = "PascalCase")]
struct Metadata {
    code: Option<String>,
    access_key_id: Option<String>,
    secret_access_key: Option<String>,
    token: Option<String>,
    expiration: Option<String>,
}

/// Reads the JSON of a metadata service.
///
/// # Errors
/// What is wrong with it.
pub(super) fn metadata(json: &[u8]) -> Result<Credentials, String> {
    let mut said: Metadata =
        serde_json::from_slice(json).map_err(|_| "the answer is no JSON of credentials".to_owned())?;
    if let Some(code) = said.code.as_ref().filter(|code| *code != "Success") {
        return Err(format!("the answer's code is {code:?}"));
    }
    temporary(said.access_key_id.take(), said.secret_access_key.take(), said.token.take(), said.expiration.take())
}

/// Reads the XML of `AssumeRoleWithWebIdentity`.
///
/// # Errors
/// What is wrong with it.
pub(super) fn assumed(xml: &[u8]) -> Result<Credentials, String> {
    let text = std::str::from_utf8(xml).unwrap_or_default();
    let document = roxmltree::Document::parse(text).map_err(|_| "the answer is no XML".to_owned())?;
    let own = |name: &str| under(&document, "Credentials", name);
    temporary(own("AccessKeyId"), own("SecretAccessKey"), own("SessionToken"), own("Expiration"))
}

/// The code of a refusal, as `ExpiredTokenException`.
pub(super) fn refusal(xml: &[u8]) -> Option<String> {
    let document = roxmltree::Document::parse(std::str::from_utf8(xml).ok()?).ok()?;
    let code = under(&document, "Error", "Code")?;
    let is_code = code.len() <= 64 && code.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    is_code.then_some(code)
}

fn under(document: &roxmltree::Document<'_>, parent: &str, name: &str) -> Option<String> {
    let parent = document.descendants().find(|node| node.tag_name().name() == parent)?;
    parent.children().find(|node| node.tag_name().name() == name)?.text().map(|text| text.trim().to_owned())
}

fn temporary(
    id: Option<String>,
    secret: Option<String>,
    token: Option<String>,
    expiration: Option<String>,
) -> Result<Credentials, String> {
    let (id, secret) = (id.unwrap_or_default(), Zeroizing::new(secret.unwrap_or_default()));
    let (token, expiration) = (token.unwrap_or_default(), expiration.unwrap_or_default());
    let expires: SystemTime = parse_rfc3339(&expiration).map_err(|_| "the answer says no Expiration".to_owned())?;
    let credentials = Credentials::new(&id, &secret, Some(&token), Some(expires));
    credentials.ok_or_else(|| "the answer lacks a key or a token".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answers_that_aws_documents_are_read() {
        let json = br#"{"Code":"Success","LastUpdated":"2012-04-26T16:39:16Z","Type":"AWS-HMAC","AccessKeyId":"ASIAIOSFODNN7EXAMPLE",
            "SecretAccessKey":"wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY","Token":"token","Expiration":"2017-05-17T15:09:54Z"}"#;
        let read = metadata(json).unwrap();
        assert_eq!((read.id.as_str(), read.secret.expose().len()), ("ASIAIOSFODNN7EXAMPLE", 40));
        assert_eq!(
            (read.token.unwrap().to_str().unwrap(), read.expires),
            ("token", parse_rfc3339("2017-05-17T15:09:54Z").ok())
        );
        let xml = br#"<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">
            <AssumeRoleWithWebIdentityResult>
              <SubjectFromWebIdentityToken>main/orders</SubjectFromWebIdentityToken><Audience>sts.amazonaws.com</Audience>
              <AssumedRoleUser><Arn>arn:aws:sts::123456789012:assumed-role/R/app1</Arn><AssumedRoleId>A:app1</AssumedRoleId></AssumedRoleUser>
              <Credentials><SessionToken>AQoDYXdz/x==</SessionToken><SecretAccessKey>wJalr/K7</SecretAccessKey>
              <Expiration>2014-10-24T23:00:23Z</Expiration><AccessKeyId>ASgeIAIOSFODNN7EXAMPLE</AccessKeyId></Credentials>
            </AssumeRoleWithWebIdentityResult><ResponseMetadata><RequestId>ad4156e9</RequestId></ResponseMetadata>
            </AssumeRoleWithWebIdentityResponse>"#;
        let read = assumed(xml).unwrap();
        assert_eq!((read.id.as_str(), read.secret.expose()), ("ASgeIAIOSFODNN7EXAMPLE", "wJalr/K7"));
        assert_eq!(
            (read.token.unwrap().to_str().unwrap(), read.expires),
            ("AQoDYXdz/x==", parse_rfc3339("2014-10-24T23:00:23Z").ok())
        );
    }

    #[test]
    fn anything_else_is_an_error_that_repeats_no_secret() {
        let refusal = b"<ErrorResponse><Error><Type>Sender</Type><Code>ExpiredTokenException</Code><Message>hunter2</Message></Error></ErrorResponse>";
        assert_eq!(super::refusal(refusal).unwrap(), "ExpiredTokenException");
        assert!(!assumed(refusal).unwrap_err().contains("hunter2"));
        for answer in [
            &b""[..],
            b"hunter2",
            b"<a/>",
            b"<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>",
            b"<Credentials><AccessKeyId>a</AccessKeyId><SecretAccessKey>hunter2</SecretAccessKey></Credentials>",
            b"{\"Code\":\"Failed\",\"SecretAccessKey\":\"hunter2\"}",
            b"{\"AccessKeyId\":\"a\",\"SecretAccessKey\":\"hunter2\",\"Token\":\"a b\",\"Expiration\":\"2017-05-17T15:09:54Z\"}",
            b"{\"AccessKeyId\":\"a\",\"SecretAccessKey\":\"hunter2\",\"Token\":\"t\",\"Expiration\":\"soon\"}",
        ] {
            for error in [metadata(answer).unwrap_err(), assumed(answer).unwrap_err()] {
                assert!(!error.contains("hunter2"), "{error}");
            }
        }
    }
}
