//! The examples that ask for a signature of each request. What the connector signs is verified in `signatures.rs`; here they
//! are held to what the standards say.

use std::path::PathBuf;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use culvert_lab::skip::{Need, unless};
use culvert_lab::{binary, client, process, spawner};
use http::{HeaderName, Method};

use super::{Language, PATIENCE};

/// RFC 9421 appendix B.2.5 (a shared secret) and B.2.6 (Ed25519).
const RFC_9421: &str = r#"
{"values": {"date": "Tue, 20 Apr 2021 02:07:55 GMT", "@authority": "example.com", "content-type": "application/json",
            "@method": "POST", "@path": "/foo", "content-length": "18"},
 "secret": "uzvJfB4u3N0Jy4T7NZ75MDVcr8zSTInedJtkgcu46YW4XByzNJjxBdtjUkdJPBtbmHhIDi6pcl8jsasjlTMtDQ==",
 "public": "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAJrQLj5P/89iXES9+vFgrIy29clF9CC/oPPsw3c5D0bs=\n-----END PUBLIC KEY-----\n",
 "signed": [
  ["sig-b25=(\"date\" \"@authority\" \"content-type\");created=1618884473;keyid=\"test-shared-secret\"",
   "sig-b25=:pxcQw6G3AjtMBQjwo8XzkZf/bws5LelbaMk5rGIGtE8=:"],
  ["sig-b26=(\"date\" \"@method\" \"@path\" \"@authority\" \"content-type\" \"content-length\");created=1618884473;keyid=\"test-key-ed25519\"",
   "sig-b26=:wqcAqbmYJ2ji2glfAMaRy4gruYYnx2nEFN2HN6jrnDnQCK1u02Gb04v9EDgwUPiu4A0w6vuQv5lIp5WPpBKRCw==:"]]}
"#;

/// Prints `true` or `false` for each signature as it is, and with a value that was changed.
const IN_PYTHON: &str = r#"
import base64, importlib.util, json, sys
spec = importlib.util.spec_from_file_location("example", sys.argv[1])
example = importlib.util.module_from_spec(spec)
spec.loader.exec_module(example)
given = json.load(sys.stdin)
keys = [base64.b64decode(given["secret"]), given["public"].encode()]
for values in given["values"], {**given["values"], "@authority": "example.org"}:
    for signed in given["signed"]:
        try:
            example.verified(*signed, values.get, keys)
            print("true")
        except example.Refused:
            print("false")
"#;
const IN_NODE: &str = r#"
const { verified } = require(process.argv[1]);
const given = JSON.parse(require('node:fs').readFileSync(0, 'utf8'));
const keys = [Buffer.from(given.secret, 'base64'), given.public];
for (const values of [given.values, { ...given.values, '@authority': 'example.org' }]) {
  for (const signed of given.signed) {
    try { verified(...signed, (name) => values[name], keys); console.log('true'); } catch { console.log('false'); }
  }
}
"#;

/// The first of the published vectors of AWS (get-vanilla), and one of ours that botocore made: what has to be encoded.
const AWS: &str = r#"
[["/", "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31", true],
 ["/", "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf32", false],
 ["/other", "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31", false],
 ["/a%20b/./c//d?x=1&b=%2F&b=&a=e+f", "967a4c2fb8bcbc89bf27d7fe029c30852bc6d962a76c2547c2b2fbb17c6f5316", true]]
"#;
const AWS_IN_PYTHON: &str = r#"
import importlib.util, io, json, sys
from datetime import datetime, timezone
spec = importlib.util.spec_from_file_location("example", sys.argv[1])
example = importlib.util.module_from_spec(spec)
spec.loader.exec_module(example)
guard = example.ThroughCulvert(None, "AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", "us-east-1", "service")
for target, signature, expected in json.load(sys.stdin):
    signed = f"AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, SignedHeaders=host;x-amz-date, Signature={signature}"
    environ = {"REQUEST_METHOD": "GET", "RAW_URI": target, "HTTP_HOST": "example.amazonaws.com",
               "HTTP_X_AMZ_DATE": "20150830T123600Z", "HTTP_AUTHORIZATION": signed, "wsgi.input": io.BytesIO()}
    try:
        guard.check(environ, datetime(2015, 8, 30, 12, 36, 0, tzinfo=timezone.utc))
        print("true")
    except example.Refused:
        print("false")
"#;
const AWS_IN_NODE: &str = r#"
const { check } = require(process.argv[1]);
const who = { id: 'AKIDEXAMPLE', secret: 'wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY', region: 'us-east-1', service: 'service' };
for (const [originalUrl, signature] of JSON.parse(require('node:fs').readFileSync(0, 'utf8'))) {
  const authorization = `AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, SignedHeaders=host;x-amz-date, Signature=${signature}`;
  const headers = { host: 'example.amazonaws.com', 'x-amz-date': '20150830T123600Z', authorization };
  try { check({ method: 'GET', originalUrl, headers }, who, Date.UTC(2015, 7, 30, 12, 36) / 1000); console.log('true'); } catch { console.log('false'); }
}
"#;

fn path(file: &str) -> PathBuf {
    binary::project().join("deploy/examples/origins").join(file)
}

/// What a piece of a program says that calls an example's function.
async fn says(language: Language, program: &str, file: &str, input: &str) -> Result<String> {
    let mut command = match language {
        Language::Node => spawner::command("node"),
        Language::Python | Language::Go => spawner::command(binary::PYTHON),
    };
    let flag = if language == Language::Node { "-e" } else { "-c" };
    command.args([flag, program]).arg(path(file));
    let said = process::run(file, command, Some(input.as_bytes()), PATIENCE).await?;
    ensure!(said.status == 0, "{said:?}");
    Ok(said.stdout)
}

#[tokio::test]
async fn the_verifiers_of_http_signatures_take_those_of_the_rfc_and_none_that_was_changed() -> Result<()> {
    let needs = [Need::Program("node"), Need::Python("cryptography")];
    if unless("the_verifiers_of_http_signatures_take_those_of_the_rfc_and_none_that_was_changed", &needs) {
        return Ok(());
    }
    for (language, program, file) in [
        (Language::Python, IN_PYTHON, "python-http-signature.py"),
        (Language::Node, IN_NODE, "express-http-signature.js"),
    ] {
        assert_eq!(says(language, program, file, RFC_9421).await?, "true\ntrue\nfalse\nfalse", "{file}");
    }
    Ok(())
}

#[tokio::test]
async fn the_verifiers_of_aws_signatures_take_those_that_aws_published_and_none_that_was_changed() -> Result<()> {
    let test = "the_verifiers_of_aws_signatures_take_those_that_aws_published_and_none_that_was_changed";
    if unless(test, &[Need::Program("node"), Need::Python("hmac")]) {
        return Ok(());
    }
    let expected = "true\nfalse\nfalse\ntrue";
    for (language, program, file) in [
        (Language::Python, AWS_IN_PYTHON, "python-aws-sigv4.py"),
        (Language::Node, AWS_IN_NODE, "express-aws-sigv4.js"),
    ] {
        assert_eq!(says(language, program, file, AWS).await?, expected, "{file}");
    }
    Ok(())
}

/// A request as it is signed, and as it is sent.
#[derive(Clone)]
struct Signed {
    method: Method,
    path: &'static str,
    components: &'static [&'static str],
    created: u64,
    body: &'static str,
}

const ALL: &[&str] = &["@method", "@authority", "@path", "@query"];
const WITH_BODY: &[&str] = &["@method", "@authority", "@path", "@query", "content-digest"];

impl Signed {
    /// The fields of the signature.
    fn fields(&self, key: &str) -> Result<Vec<(&'static str, String)>> {
        let (path, query) = self.path.split_once('?').unwrap_or((self.path, ""));
        let digest = format!("sha-256=:{}:", STANDARD.encode(openssl(&["-binary"], self.body)?));
        let list: Vec<String> = self.components.iter().map(|name| format!("\"{name}\"")).collect();
        let input = format!("({});created={};alg=\"hmac-sha256\"", list.join(" "), self.created);
        let mut base = String::new();
        for name in self.components {
            let value = match *name {
                "@method" => self.method.as_str(),
                "@authority" => "orders.example",
                "@path" => path,
                "@query" => &format!("?{query}"),
                _ => &digest,
            };
            base += &format!("\"{name}\": {value}\n");
        }
        base += &format!("\"@signature-params\": {input}");
        let hex: String = key.bytes().map(|byte| format!("{byte:02x}")).collect();
        let signature = openssl(&["-binary", "-mac", "HMAC", "-macopt", &format!("hexkey:{hex}")], &base)?;
        Ok(vec![
            ("signature-input", format!("culvert={input}")),
            ("signature", format!("culvert=:{}:", STANDARD.encode(signature))),
            ("content-digest", digest),
        ])
    }
}

fn openssl(args: &[&str], text: &str) -> Result<Vec<u8>> {
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), text)?;
    let said = Command::new("openssl").args(["dgst", "-sha256"]).args(args).arg(file.path()).output()?;
    ensure!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    Ok(said.stdout)
}

#[tokio::test]
async fn an_express_app_lets_in_whole_requests_that_were_signed_now() -> Result<()> {
    let name = "an_express_app_lets_in_whole_requests_that_were_signed_now";
    lets_in(Language::Node, "express-http-signature.js", name).await
}

#[tokio::test]
async fn a_wsgi_application_lets_in_whole_requests_that_were_signed_now() -> Result<()> {
    let name = "a_wsgi_application_lets_in_whole_requests_that_were_signed_now";
    lets_in(Language::Python, "python-http-signature.py", name).await
}

async fn lets_in(language: Language, file: &str, test: &str) -> Result<()> {
    if language.is_missing(test) || unless(test, &[Need::Program("openssl")]) {
        return Ok(());
    }
    let keys = r#"["the next secret of the two of them", "a secret of the origin and the connector"]"#;
    let (old, new) = ("a secret of the origin and the connector", "the next secret of the two of them");
    let origin = language.start(file, &[("KEYS", keys)]).await?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let get = Signed { method: Method::GET, path: "/a%2Fb?c=d%20e", components: ALL, created: now, body: "" };
    let post = Signed { method: Method::POST, components: WITH_BODY, body: "{\"a\": 1}", ..get.clone() };
    for (what, signed, key, sent, status) in [
        ("as it is", get.clone(), old, get.clone(), 200),
        ("with the next key", get.clone(), new, get.clone(), 200),
        ("with a body", post.clone(), old, post.clone(), 200),
        ("without a query", Signed { path: "/", ..get.clone() }, old, Signed { path: "/", ..get.clone() }, 200),
        ("by an unknown key", get.clone(), "another secret", get.clone(), 401),
        ("an hour old", Signed { created: now - 3600, ..get.clone() }, old, get.clone(), 401),
        ("of tomorrow", Signed { created: now + 86_400, ..get.clone() }, old, get.clone(), 401),
        ("another path", get.clone(), old, Signed { path: "/", ..get.clone() }, 401),
        ("another query", get.clone(), old, Signed { path: "/a%2Fb?c=e", ..get.clone() }, 401),
        ("another method", get.clone(), old, Signed { method: Method::DELETE, ..get.clone() }, 401),
        ("another body", post.clone(), old, Signed { body: "{\"a\": 2}", ..post.clone() }, 401),
        ("a body beside", get.clone(), old, Signed { method: Method::GET, body: "more", ..get.clone() }, 401),
        ("a body that is left out", Signed { components: ALL, ..post.clone() }, old, post.clone(), 401),
        (
            "a query that is left out",
            Signed { components: &["@method", "@authority", "@path"], ..get.clone() },
            old,
            get,
            401,
        ),
    ] {
        let mut request = client::request(sent.method, "orders.example", sent.path, Bytes::from(sent.body))?;
        for (name, value) in signed.fields(key)? {
            request.headers_mut().insert(HeaderName::from_static(name), value.parse()?);
        }
        let answer = client::send(origin.at, request).await?;
        let expected = if status == 200 { "in\n" } else { "" };
        assert_eq!(
            (answer.status.as_u16(), answer.text().as_str()),
            (status, expected),
            "{what}: {}",
            origin.process.output()
        );
    }
    assert_eq!(client::get(origin.at, "orders.example", "/").await?.status, 401, "unsigned");
    Ok(())
}
