//! The examples that ask for a signature, before what the connector signs.

use std::process::Command;

use anyhow::{Result, ensure};
use bytes::Bytes;
use culvert_lab::skip::{Need, unless};
use culvert_lab::{Relay, client};
use http::{HeaderName, Method};

use super::{Language, serving};

/// What callers bring themselves.
const FORGED: [(&str, &str); 6] = [
    ("signature", "culvert=:Zm9yZ2Vk:"),
    ("signature-input", "culvert=(\"@method\");created=1"),
    ("content-digest", "sha-256=:Zm9yZ2Vk:"),
    ("authorization", "AWS4-HMAC-SHA256 Credential=forged"),
    ("x-amz-date", "20150830T123600Z"),
    ("x-amz-content-sha256", "UNSIGNED-PAYLOAD"),
];

/// GETs and POSTs, with and without fields that the caller forged: all get this status.
async fn all_get(relay: &Relay, service: &str, status: u16, words: impl Fn() -> String) -> Result<()> {
    let asked = [
        (Method::GET, "/", ""),
        (Method::GET, "/a%20b/c?d=e&f=%2F&d=", ""),
        (Method::POST, "/a?b", "{\"c\": 1}"),
        (Method::DELETE, "/a+b/?c+d=e%20f", ""),
    ];
    for (method, path, body) in asked {
        for forged in [&[][..], &FORGED] {
            let mut request = client::request(method.clone(), service, path, Bytes::from(body))?;
            for (name, value) in forged {
                request.headers_mut().append(HeaderName::from_static(name), value.parse()?);
            }
            if !body.is_empty() {
                request.headers_mut().insert("content-type", "application/json".parse()?);
            }
            let answer = client::send(relay.http, request).await?;
            let expected = if status == 200 { "in\n" } else { "" };
            let got = (answer.status.as_u16(), answer.text());
            assert_eq!((got.0, got.1.as_str()), (status, expected), "{service}: {method} {path}: {}", words());
        }
    }
    Ok(())
}

#[tokio::test]
async fn an_express_app_lets_in_what_the_connector_signed() -> Result<()> {
    let name = "an_express_app_lets_in_what_the_connector_signed";
    lets_in_http_signatures(Language::Node, "express-http-signature.js", name).await
}

#[tokio::test]
async fn a_wsgi_application_lets_in_what_the_connector_signed() -> Result<()> {
    let name = "a_wsgi_application_lets_in_what_the_connector_signed";
    lets_in_http_signatures(Language::Python, "python-http-signature.py", name).await
}

async fn lets_in_http_signatures(language: Language, file: &str, test: &str) -> Result<()> {
    if language.is_missing(test) || unless(test, &[Need::Program("openssl")]) {
        return Ok(());
    }
    let files = tempfile::tempdir()?;
    let script = "openssl genpkey -algorithm ed25519 -out ed.pem && openssl pkey -in ed.pem -pubout -out ed.pub && \
                  openssl genpkey -algorithm ed25519 -out other.pem";
    let made = Command::new("sh").args(["-c", script]).current_dir(files.path()).output()?;
    ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let public = std::fs::read_to_string(files.path().join("ed.pub"))?;
    let (new, old) = ("the next secret of the two of them", "a secret of the origin and the connector");
    let origin = language.start(file, &[("KEYS", &serde_json::json!([new, old, public]).to_string())]).await?;
    let shown = files.path().display();
    let services = [
        ("new", format!("algorithm = \"hmac-sha256\"\nkey = {{ values = [\"{new}\", \"{old}\"] }}"), 200),
        ("old", format!("algorithm = \"hmac-sha256\"\nkey = \"{old}\""), 200),
        ("ed25519", format!("algorithm = \"ed25519\"\nkey = {{ file = \"{shown}/ed.pem\" }}"), 200),
        (
            "other-secret",
            "algorithm = \"hmac-sha256\"\nkey = \"a secret that the origin has never seen\"".to_owned(),
            401,
        ),
        ("other-key", format!("algorithm = \"ed25519\"\nkey = {{ file = \"{shown}/other.pem\" }}"), 401),
        (
            "too-little",
            format!(
                "algorithm = \"hmac-sha256\"\nkey = \"{new}\"\ndigest = \"none\"\ncomponents = [\"@method\", \"@path\"]"
            ),
            401,
        ),
    ];
    let config = services.iter().map(|(name, auth, _)| {
        format!("[[service]]\nname = \"{name}\"\norigin = \"http://{}\"\n[service.auth]\ntype = \"http-signature\"\n{auth}\n", origin.at)
    });
    let (relay, _connector) = serving(&config.collect::<String>(), "", "too-little").await?;
    for (service, _, status) in &services {
        all_get(&relay, service, *status, || origin.process.output()).await?;
    }
    Ok(())
}

#[tokio::test]
async fn an_express_app_lets_in_what_the_connector_signed_as_aws_does() -> Result<()> {
    let name = "an_express_app_lets_in_what_the_connector_signed_as_aws_does";
    lets_in_aws(Language::Node, "express-aws-sigv4.js", name).await
}

#[tokio::test]
async fn a_wsgi_application_lets_in_what_the_connector_signed_as_aws_does() -> Result<()> {
    let name = "a_wsgi_application_lets_in_what_the_connector_signed_as_aws_does";
    lets_in_aws(Language::Python, "python-aws-sigv4.py", name).await
}

async fn lets_in_aws(language: Language, file: &str, test: &str) -> Result<()> {
    if language.is_missing(test) {
        return Ok(());
    }
    let secret = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
    let settings = [
        ("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE"),
        ("AWS_SECRET_ACCESS_KEY", secret),
        ("REGION", "eu-west-1"),
        ("SERVICE", "execute-api"),
    ];
    let origin = language.start(file, &settings).await?;
    let lax = language.start(file, &[&settings[..], &[("ACCEPTS_UNSIGNED", "yes")]].concat()).await?;
    let auth = |region: &str, secret: &str, more: &str| {
        format!(
            "type = \"aws-sigv4\"\nservice = \"execute-api\"\nregion = \"{region}\"\naccess_key_id = \"AKIDEXAMPLE\"\n\
             secret_access_key = \"{secret}\"\n{more}\n"
        )
    };
    let services = [
        ("signed", origin.at, auth("eu-west-1", secret, ""), 200),
        ("other-secret", origin.at, auth("eu-west-1", "another", ""), 403),
        ("other-region", origin.at, auth("eu-west-2", secret, ""), 403),
        ("unsigned", origin.at, auth("eu-west-1", secret, "payload = \"unsigned\""), 403),
        ("unsigned-taken", lax.at, auth("eu-west-1", secret, "payload = \"unsigned\""), 200),
    ];
    let config = services.iter().map(|(name, at, auth, _)| {
        format!("[[service]]\nname = \"{name}\"\norigin = \"http://{at}\"\n[service.auth]\n{auth}")
    });
    let (relay, _connector) = serving(&config.collect::<String>(), "", "unsigned-taken").await?;
    // Where there is no body, there is none that was left out.
    for (service, _, _, status) in services.iter().filter(|(service, ..)| *service != "unsigned") {
        all_get(&relay, service, *status, || format!("{}\n{}", origin.process.output(), lax.process.output())).await?;
    }
    let answer = client::post(relay.http, "unsigned", "/", "a body").await?;
    assert_eq!(answer.status, 403, "{}", origin.process.output());
    Ok(())
}
