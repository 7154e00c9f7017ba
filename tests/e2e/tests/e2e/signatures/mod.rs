//! Requests that are signed for their origin, through both binaries: other implementations verify them, and callers forge.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use culvert_lab::client::Answer;
use culvert_lab::load::Plan;
use culvert_lab::process::Process;
use culvert_lab::skip::{Need, unless};
use culvert_lab::{Connector, Origin, Relay, address, binary, client, spawner, wait};
use http::{HeaderName, Method, Request};
use http_body_util::Full;

mod lenders;

const PATIENCE: Duration = Duration::from_secs(15);
const OLD: &str = "b2xkLXNlY3JldC1vbGQtc2VjcmV0LW9sZC1zZWNyZXQ=";
const NEW: &str = "bmV3LXNlY3JldC1uZXctc2VjcmV0LW5ldy1zZWNyZXQ=";

/// An origin in Python that another implementation guards (`verifiers/origin.py`).
struct Guarded {
    at: std::net::SocketAddr,
    _process: Process,
}

impl Guarded {
    async fn start(args: &[&str]) -> Result<Self> {
        let mut command = spawner::command(binary::python());
        command.arg(binary::project().join("tests/e2e/verifiers/origin.py")).args(args).stdin(Stdio::null());
        let mut process = Process::start("verifying origin", command)?;
        let line = process.line("listening ", Duration::from_secs(20)).await?;
        let port: u16 = line.split(' ').nth(1).context("a port")?.parse()?;
        Ok(Self { at: ([127, 0, 0, 1], port).into(), _process: process })
    }

    fn url(&self) -> String {
        format!("http://{}", self.at)
    }

    /// Sends what the connector sent, changed or not, straight to the origin.
    async fn again(&self, method: Method, path: &str, fields: &[(String, String)], body: &str) -> Result<Answer> {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in
            fields.iter().filter(|(name, _)| !["connection", "te"].contains(&name.to_lowercase().as_str()))
        {
            request = request.header(name, value);
        }
        client::send(self.at, request.body(Full::new(Bytes::from(body.to_owned())))?).await
    }
}

/// Puts a file in the place of another as a whole.
fn replace(text: &str, at: &Path) -> Result<()> {
    let next = at.with_extension("next");
    std::fs::write(&next, text)?;
    Ok(std::fs::rename(next, at)?)
}

async fn behind(config: &str, env: &[(&str, &str)]) -> Result<(Relay, Connector)> {
    let mut relay = Relay::new()?;
    relay.start().await?;
    let token = relay.tunnel("main", &["*"]).await?;
    let mut connector = Connector::new(&token, &[])?;
    connector.env.extend(env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    connector.config(config)?;
    connector.start().await?;
    relay.up("orders").await?;
    Ok((relay, connector))
}

/// A request whose caller tries to bring proofs of his own.
fn forged(method: Method, service: &str, path: &str, body: &'static str) -> Result<Request<Full<Bytes>>> {
    let mut request = client::request(method, service, path, Bytes::from(body))?;
    for (name, value) in [
        ("Signature", "culvert=:Zm9yZ2Vk:"),
        ("SIGNATURE-INPUT", "culvert=(\"@method\");created=1"),
        ("signature_input", "culvert=();created=1"),
        ("Signature.Input", "culvert=();created=1"),
        ("Content_Digest", "sha-256=:Zm9yZ2Vk:"),
        ("content-digest", "sha-256=:Zm9yZ2Vk:"),
        ("Authorization", "AWS4-HMAC-SHA256 Credential=forged"),
        ("X-Amz-Date", "20150830T123600Z"),
        ("x_amz_date", "20150830T123600Z"),
        ("X-Amz_Date", "20150830T123600Z"),
        ("X-AMZ-SECURITY-TOKEN", "forged"),
        ("x_amz_security_token", "forged"),
        ("x-amz-content-sha256", "UNSIGNED-PAYLOAD"),
        ("X_Amz_Content_Sha256", "UNSIGNED-PAYLOAD"),
    ] {
        request.headers_mut().append(HeaderName::from_bytes(name.as_bytes())?, value.parse()?);
    }
    request.headers_mut().insert("content-type", "application/json".parse()?);
    Ok(request)
}

/// What the origin says of a request that it let in.
async fn let_in(relay: &Relay, request: Request<Full<Bytes>>) -> Result<serde_json::Value> {
    let answer = client::send(relay.http, request).await?;
    ensure!(answer.status == 200, "{}: {}", answer.status, answer.text());
    answer.json()
}

fn fields(said: &serde_json::Value) -> Result<Vec<(String, String)>> {
    Ok(serde_json::from_value(said["fields"].clone())?)
}

/// The lines of this name, in any spelling that a program may take for it.
fn lines<'a>(fields: &'a [(String, String)], name: &str) -> Vec<&'a str> {
    let plain = |text: &str| text.to_lowercase().replace(|letter: char| !letter.is_ascii_alphanumeric(), "-");
    fields.iter().filter(|(own, _)| plain(own) == name).map(|(_, value)| value.as_str()).collect()
}

/// A private key in PEM and its public half, by openssl.
fn pair(directory: &Path, name: &str, algorithm: &[&str]) -> Result<(PathBuf, PathBuf)> {
    let (private, public) = (directory.join(format!("{name}.key")), directory.join(format!("{name}.pub")));
    let openssl = |args: &[&str]| -> Result<()> {
        let made = std::process::Command::new("openssl").args(args).output()?;
        ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        Ok(())
    };
    let shown = (private.display().to_string(), public.display().to_string());
    openssl(&[&["genpkey", "-out", &shown.0, "-algorithm"], algorithm].concat())?;
    openssl(&["pkey", "-in", &shown.0, "-pubout", "-out", &shown.1])?;
    Ok((private, public))
}

#[tokio::test]
async fn another_implementation_of_rfc_9421_lets_our_requests_in_and_no_changed_or_forged_one() -> Result<()> {
    let name = "another_implementation_of_rfc_9421_lets_our_requests_in_and_no_changed_or_forged_one";
    if unless(name, &[Need::PyPi("http_message_signatures"), Need::Program("openssl")]) {
        return Ok(());
    }
    let files = tempfile::tempdir()?;
    let ed = pair(files.path(), "ed", &["ed25519"])?;
    let ec = pair(files.path(), "ec", &["EC", "-pkeyopt", "ec_paramgen_curve:P-256"])?;
    let (secret, at_origin) = (files.path().join("secret"), files.path().join("at-origin"));
    replace(OLD, &secret)?;
    replace(OLD, &at_origin)?;
    let shown = |path: &Path| path.display().to_string();
    let shared = Guarded::start(&["http-signature", "HMAC_SHA256", "http", &shown(&at_origin)]).await?;
    let signed = Guarded::start(&["http-signature", "ED25519", "http", &shown(&ed.1)]).await?;
    let curve = Guarded::start(&["http-signature", "ECDSA_P256_SHA256", "http", &shown(&ec.1)]).await?;
    let auth = "[service.auth]\ntype = \"http-signature\"\n";
    let (relay, _connector) = behind(
        &format!(
            "[[service]]\nname = \"orders\"\norigin = \"{}\"\n{auth}algorithm = \"hmac-sha256\"\nencoding = \"base64\"\n\
             key = {{ file = \"{}\" }}\nkeyid = \"k\\\"1\"\ntag = \"orders\"\n\
             [[service]]\nname = \"billing\"\norigin = \"{}\"\n{auth}algorithm = \"ed25519\"\nkey = {{ file = \"{}\" }}\n\
             [[service]]\nname = \"ledger\"\norigin = \"{}\"\n{auth}algorithm = \"ecdsa-p256-sha256\"\n\
             key = {{ file = \"{}\" }}\nkeyid = \"ec\"\nlabel = \"sig1\"\n\
             components = [\"@target-uri\", \"@method\", \"@authority\", \"@path\", \"@query\", \"content-digest\", \"x-many\", \"x-none\"]\n",
            shared.url(),
            shown(&secret),
            signed.url(),
            shown(&ed.0),
            curve.url(),
            shown(&ec.0),
        ),
        &[],
    )
    .await?;
    for (service, guarded) in [("orders", &shared), ("billing", &signed), ("ledger", &curve)] {
        for path in ["/", "/a%20b/../c?x=1&y=%7e&x", "/?"] {
            let_in(&relay, forged(Method::GET, service, path, "")?).await.context(service)?;
        }
        let mut request = forged(Method::POST, service, "/orders?id=7", "{\"n\":1}")?;
        for value in ["one ", "two, three"] {
            request.headers_mut().append("x-many", value.parse()?);
        }
        let said = let_in(&relay, request).await.context(service)?;
        let sent = fields(&said)?;
        for own in ["signature", "signature-input", "content-digest"] {
            assert!(matches!(lines(&sent, own).as_slice(), [one] if !one.contains("Zm9yZ2Vk")), "{own}: {sent:?}");
        }
        let covered = said["covered"].to_string();
        assert!(covered.contains("content-digest"), "{covered}");
        assert_eq!(service == "ledger", covered.contains("one, two, three") && covered.contains("@target-uri"));
        // The origin is no rubber stamp: the same once more is let in, and nothing that was changed.
        let post = Method::POST;
        let body = "{\"n\":1}";
        assert_eq!(guarded.again(post.clone(), "/orders?id=7", &sent, body).await?.status, 200);
        assert_eq!(guarded.again(post.clone(), "/orders?id=8", &sent, body).await?.status, 403);
        assert_eq!(guarded.again(post.clone(), "/orders?id=7", &sent, "{\"n\":2}").await?.status, 403);
        assert_eq!(guarded.again(Method::PUT, "/orders?id=7", &sent, body).await?.status, 403);
        let unsigned: Vec<_> =
            sent.into_iter().filter(|(own, _)| !own.to_lowercase().starts_with("signature")).collect();
        assert_eq!(guarded.again(post, "/orders?id=7", &unsigned, body).await?.status, 403);
    }
    Ok(())
}

#[tokio::test]
async fn our_own_key_signs_and_another_implementation_verifies_it_by_what_the_relay_serves() -> Result<()> {
    let name = "our_own_key_signs_and_another_implementation_verifies_it_by_what_the_relay_serves";
    if unless(name, &[Need::PyPi("http_message_signatures")]) {
        return Ok(());
    }
    let files = tempfile::tempdir()?;
    let public = files.path().join("own.pub");
    let guarded = Guarded::start(&["http-signature", "ED25519", "http", &public.display().to_string()]).await?;
    let at = address::at(address::own_loopback(), 31_482);
    let mut relay = Relay::new()?;
    relay.config(&format!(
        "[http]\nlisten = [\"{}\"]\n[issuer]\nurl = \"http://{at}\"\nlisten = \"{at}\"\n",
        relay.http
    ))?;
    relay.start().await?;
    let token = relay.tunnel("shop", &["orders"]).await?;
    let mut connector = Connector::new(&token, &[])?;
    connector.config(&format!(
        "[[service]]\nname = \"orders\"\norigin = \"{}\"\n[service.auth]\ntype = \"http-signature\"\nalgorithm = \"ed25519\"\n",
        guarded.url()
    ))?;
    connector.start().await?;
    relay.up("orders").await?;
    let key = wait::until("the key is served", PATIENCE, || async {
        let keys = client::get(at, "id.example", "/shop/.well-known/jwks.json").await.ok()?.json().ok()?;
        keys["keys"].as_array()?.first().cloned()
    })
    .await?;
    // SubjectPublicKeyInfo of Ed25519 (RFC 8410 §4) before the 32 bytes.
    let x = URL_SAFE_NO_PAD.decode(key["x"].as_str().context("x")?)?;
    let der = [&b"\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00"[..], &x].concat();
    let text = format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(der));
    replace(&text, &public)?;
    let said = let_in(&relay, forged(Method::POST, "orders", "/a?b=c", "{}")?).await?;
    assert_eq!(said["parameters"]["keyid"], key["kid"]);
    Ok(())
}

#[tokio::test]
async fn a_shared_secret_changes_under_load_without_a_refused_request() -> Result<()> {
    let name = "a_shared_secret_changes_under_load_without_a_refused_request";
    if unless(name, &[Need::PyPi("http_message_signatures")]) {
        return Ok(());
    }
    let files = tempfile::tempdir()?;
    let file = |name: &str| files.path().join(name);
    replace(OLD, &file("old"))?;
    replace(NEW, &file("new"))?;
    replace(OLD, &file("connector"))?;
    let shown = |name: &str| file(name).display().to_string();
    let guarded = Guarded::start(&["http-signature", "HMAC_SHA256", "http", &shown("old"), &shown("new")]).await?;
    let only_new = Guarded::start(&["http-signature", "HMAC_SHA256", "http", &shown("new")]).await?;
    let (relay, mut connector) = behind(
        &format!(
            "[[service]]\nname = \"orders\"\norigin = \"{}\"\n[service.auth]\ntype = \"http-signature\"\n\
             algorithm = \"hmac-sha256\"\nencoding = \"base64\"\nkey = {{ values = [{{ file = \"{}\" }}, {{ file = \"{}\" }}] }}\n",
            guarded.url(),
            shown("connector"),
            shown("old"),
        ),
        &[],
    )
    .await?;
    let load = Plan::gets(relay.http, "orders").per_second(20).start();
    relay.get("orders", "/").await?;
    // Broken: the one before stays, and the log says so.
    replace("hunter2", &file("connector"))?;
    let said = connector.process()?.line("nothing was changed", PATIENCE).await?;
    assert!(said.contains("auth.key") && !said.contains("hunter2"), "{said}");
    assert_eq!(relay.get("orders", "/").await?.status, 200);
    replace(NEW, &file("connector"))?;
    let replaced = Instant::now();
    wait::until("the new secret is in force", PATIENCE, || async {
        let said = relay.get("orders", "/").await.ok()?.json().ok()?;
        let sent: Vec<(String, String)> = serde_json::from_value(said["fields"].clone()).ok()?;
        let answer = only_new.again(Method::GET, "/", &sent, "").await.ok()?;
        (answer.status == 200).then_some(())
    })
    .await?;
    ensure!(replaced.elapsed() < Duration::from_secs(1), "in force after {:?}", replaced.elapsed());
    load.finish().await?.all_well(10)?;
    Ok(())
}

#[tokio::test]
async fn a_body_over_its_limit_is_refused_unsigned_and_one_below_is_whole() -> Result<()> {
    let origin = Origin::start("orders").await?;
    let (relay, _connector) = behind(
        &format!(
            "[[service]]\nname = \"orders\"\norigin = \"{}\"\n[service.auth]\ntype = \"http-signature\"\n\
             algorithm = \"hmac-sha256\"\nkey = \"0123456789abcdef\"\npayload_limit = \"100KiB\"\n",
            origin.url(),
        ),
        &[],
    )
    .await?;
    let body = Bytes::from(vec![b'x'; 100 * 1024]);
    let answer = client::post(relay.http, "orders", "/sink", body).await?;
    assert_eq!((answer.status.as_u16(), answer.text().contains("102400")), (200, true), "{}", answer.text());
    let answer = client::post(relay.http, "orders", "/sink", Bytes::from(vec![b'x'; 100 * 1024 + 1])).await?;
    assert_eq!(answer.status, 413, "{}", answer.text());
    assert_eq!(origin.requests("/sink"), 1, "nothing of it was sent");
    Ok(())
}

const ID: &str = "AKIDEXAMPLE";
const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";

/// An origin that botocore guards for a service, and the file of credentials that it knows.
async fn guarded_by_botocore(service: &str, file: &Path) -> Result<Guarded> {
    Guarded::start(&["sigv4", service, "eu-west-1", &file.display().to_string()]).await
}

#[tokio::test]
async fn botocore_signs_what_the_origin_got_as_we_did_and_lets_no_forged_request_in() -> Result<()> {
    let name = "botocore_signs_what_the_origin_got_as_we_did_and_lets_no_forged_request_in";
    if unless(name, &[Need::PyPi("botocore")]) {
        return Ok(());
    }
    let files = tempfile::tempdir()?;
    let known = files.path().join("known");
    let with_token = files.path().join("with-token");
    replace(&format!("{ID}\n{SECRET}\n"), &known)?;
    replace(&format!("{ID}\n{SECRET}\nsess/ion==\n"), &with_token)?;
    let profiles = files.path().join("credentials");
    replace(
        &format!(
            "[default]\naws_access_key_id = AKIDOTHER\naws_secret_access_key = other\n[origins]\n\
             aws_access_key_id = {ID}\naws_secret_access_key = {SECRET}\naws_session_token = sess/ion==\n"
        ),
        &profiles,
    )?;
    let api = guarded_by_botocore("execute-api", &known).await?;
    let lambda = guarded_by_botocore("lambda", &with_token).await?;
    let s3 = guarded_by_botocore("s3", &known).await?;
    let auth = "[service.auth]\ntype = \"aws-sigv4\"\nregion = \"eu-west-1\"\nservice = ";
    let (relay, _connector) = behind(
        &format!(
            "[[service]]\nname = \"orders\"\norigin = \"{}\"\n{auth}\"execute-api\"\ncredentials = \"environment\"\n\
             signed_headers = [\"x-many\"]\n\
             [[service]]\nname = \"resize\"\norigin = \"{}\"\nhost = \"resize.lambda-url.example\"\n{auth}\"lambda\"\n\
             profile = \"origins\"\nprofile_file = \"{}\"\n\
             [[service]]\nname = \"files\"\norigin = \"{}\"\n{auth}\"s3\"\npayload = \"chunked\"\n\
             access_key_id = \"{ID}\"\nsecret_access_key = {{ env = \"AWS_SECRET_ACCESS_KEY\" }}\n\
             [[service]]\nname = \"streams\"\norigin = \"{}\"\n{auth}\"s3\"\npayload = \"unsigned\"\n",
            api.url(),
            lambda.url(),
            profiles.display(),
            s3.url(),
            s3.url(),
        ),
        &[("AWS_ACCESS_KEY_ID", ID), ("AWS_SECRET_ACCESS_KEY", SECRET)],
    )
    .await?;
    let body = "{\"n\":1}";
    for (service, guarded, payload) in [
        ("orders", &api, ""),
        ("resize", &lambda, ""),
        ("files", &s3, "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"),
        ("streams", &s3, "UNSIGNED-PAYLOAD"),
    ] {
        let paths: &[&str] = match service {
            "orders" | "resize" => {
                &["/", "/a%20b/../c/./d/?b=2&a=1&a=&x%2Fy=~", "/%E1%88%B4?q=a%20b&Q=1", "/a,b:c@d!$"]
            }
            // botocore takes keys and parameters as they are: these are in their canonical form already.
            _ => &["/", "/bucket/a%20b/../c", "/k?list-type=2&prefix=a%2Fb"],
        };
        for path in paths {
            let_in(&relay, forged(Method::GET, service, path, "")?)
                .await
                .with_context(|| format!("{service} {path}"))?;
        }
        let mut request = forged(Method::PUT, service, "/orders?id=7", body)?;
        for value in ["one  two", "three"] {
            request.headers_mut().append("x-many", value.parse()?);
        }
        request.headers_mut().append("x-amz-meta-owner", "ann".parse()?);
        let said = let_in(&relay, request).await.context(service)?;
        let sent = fields(&said)?;
        assert!(payload.is_empty() || said["payload"] == payload, "{said}");
        assert_eq!(said["length"], body.len());
        for own in ["authorization", "x-amz-date", "x-amz-content-sha256"] {
            assert_eq!(lines(&sent, own).len(), 1, "{own}: {sent:?}");
        }
        assert_eq!(lines(&sent, "x-amz-security-token").len(), usize::from(service == "resize"));
        let covered = said["covered"].to_string();
        assert!(covered.contains("x-amz-meta-owner") && covered.contains("host"), "{covered}");
        assert_eq!(covered.contains("x-many"), service == "orders");
        // The origin is no rubber stamp.
        if payload.is_empty() {
            let put = Method::PUT;
            assert_eq!(guarded.again(put.clone(), "/orders?id=7", &sent, body).await?.status, 200);
            assert_eq!(guarded.again(put.clone(), "/orders?id=8", &sent, body).await?.status, 403);
            assert_eq!(guarded.again(put, "/orders?id=7", &sent, "{\"n\":2}").await?.status, 403);
        }
    }
    // In several pieces, and more than is ever held.
    let large = Bytes::from(vec![b'x'; 3 * 1024 * 1024 + 5]);
    let mut request = forged(Method::PUT, "files", "/large", "")?;
    *request.body_mut() = Full::new(large.clone());
    let said = let_in(&relay, request).await?;
    assert_eq!(said["length"], large.len());
    let answer = client::post(relay.http, "orders", "/", large).await?;
    assert_eq!(answer.status, 413, "over the limit of a payload that is read");
    Ok(())
}
