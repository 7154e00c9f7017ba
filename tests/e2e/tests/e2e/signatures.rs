//! Requests that are signed for their origin, through both binaries: other implementations verify them, and callers forge.

use std::io::{BufRead as _, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use culvert_lab::client::Answer;
use culvert_lab::load::Plan;
use culvert_lab::process::Process;
use culvert_lab::skip::{Need, unless};
use culvert_lab::{Connector, Origin, Relay, address, binary, client, spawner, wait};
use http::{HeaderName, Method, Request};
use http_body_util::Full;

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

/// What a played service of AWS was asked.
#[derive(Debug, Clone)]
struct Asked {
    line: String,
    fields: Vec<(String, String)>,
    body: String,
}

impl Asked {
    fn field(&self, name: &str) -> &str {
        let own = self.fields.iter().find(|(own, _)| own.eq_ignore_ascii_case(name));
        own.map_or("", |(_, value)| value.as_str())
    }

    /// The fields of a form, decoded.
    fn form(&self) -> Vec<(String, String)> {
        let decoded = |text: &str| {
            let mut out = Vec::new();
            let mut bytes = text.bytes();
            while let Some(byte) = bytes.next() {
                let digits: Vec<u8> = if byte == b'%' { bytes.by_ref().take(2).collect() } else { vec![] };
                let code = std::str::from_utf8(&digits).ok().and_then(|digits| u8::from_str_radix(digits, 16).ok());
                out.push(code.unwrap_or(byte));
            }
            String::from_utf8_lossy(&out).into_owned()
        };
        let pairs = self.body.split('&').filter_map(|pair| pair.split_once('='));
        pairs.map(|(name, value)| (decoded(name), decoded(value))).collect()
    }
}

/// How a service of AWS behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mood {
    Well,
    Slow,
    Broken,
    Refusing,
    LendsWhatHasEnded,
}

/// A service of AWS, played: its clock is five minutes ahead, and what it lends lasts eight seconds of it.
struct Lender {
    url: String,
    mood: Arc<Mutex<Mood>>,
    asked: Arc<Mutex<Vec<Asked>>>,
    thread: Option<std::thread::JoinHandle<()>>,
    stop: Arc<AtomicBool>,
}

const AHEAD: Duration = Duration::from_secs(300);
const LENT_FOR: Duration = Duration::from_secs(8);

impl Lender {
    /// `answer` makes of what was asked, and of the number and the end of what is lent, a status and a body.
    fn start(answer: impl Fn(&Asked, usize, &str) -> (u16, String) + Send + 'static) -> Result<Self> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        let url = format!("http://{}", listener.local_addr()?);
        let (mood, asked) = (Arc::new(Mutex::new(Mood::Well)), Arc::new(Mutex::new(Vec::new())));
        let stop = Arc::new(AtomicBool::new(false));
        let (own_mood, own_asked, own_stop) = (mood.clone(), asked.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            let mut lent = 0;
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { continue };
                if own_stop.load(Ordering::SeqCst) {
                    return;
                }
                let Some(question) = read_question(&mut stream) else { continue };
                own_asked.lock().unwrap().push(question.clone());
                let mood = *own_mood.lock().unwrap();
                let ends = match mood {
                    Mood::LendsWhatHasEnded => SystemTime::now() + AHEAD - LENT_FOR,
                    _ => SystemTime::now() + AHEAD + LENT_FOR,
                };
                let (status, body) = match mood {
                    Mood::Broken => (500, "<html>hunter2</html>".to_owned()),
                    Mood::Refusing => (
                        400,
                        "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><Error><Type>Sender</Type>\
                         <Code>InvalidIdentityToken</Code><Message>hunter2</Message></Error></ErrorResponse>"
                            .to_owned(),
                    ),
                    Mood::Slow | Mood::Well | Mood::LendsWhatHasEnded => {
                        answer(&question, lent + 1, &culvert_ops::time::rfc3339(ends))
                    }
                };
                lent += usize::from(body.contains("hunter2-"));
                if mood == Mood::Slow {
                    std::thread::sleep(Duration::from_secs(2));
                }
                let date = http_date(SystemTime::now() + AHEAD);
                let head = format!("HTTP/1.1 {status} X\r\nDate: {date}\r\nContent-Length: {}\r\n\r\n", body.len());
                let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes()));
            }
        });
        Ok(Self { url, mood, asked, thread: Some(thread), stop })
    }

    fn is(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

impl Drop for Lender {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = std::net::TcpStream::connect(self.url.trim_start_matches("http://"));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn read_question(stream: &mut std::net::TcpStream) -> Option<Asked> {
    let mut reader = std::io::BufReader::new(stream);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        match line.trim_end() {
            "" => break,
            text => lines.push(text.to_owned()),
        }
    }
    let fields: Vec<(String, String)> = lines
        .iter()
        .skip(1)
        .filter_map(|line| line.split_once(": ").map(|(name, value)| (name.to_owned(), value.to_owned())))
        .collect();
    let mut asked = Asked { line: lines.first()?.clone(), fields, body: String::new() };
    let mut body = vec![0; asked.field("content-length").parse().unwrap_or(0)];
    reader.read_exact(&mut body).ok()?;
    asked.body = String::from_utf8(body).ok()?;
    Some(asked)
}

/// As RFC 9110 §5.6.7 has it; the day of the week is not looked at.
fn http_date(at: SystemTime) -> String {
    let text = culvert_ops::time::rfc3339(at);
    let months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let month = text.get(5..7).and_then(|month| month.parse::<usize>().ok()).unwrap_or(1);
    let days = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs() / 86_400;
    let day = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"][usize::try_from(days % 7).unwrap_or(0)];
    format!("{day}, {} {} {} {} GMT", &text[8..10], months[month - 1], &text[..4], &text[11..19])
}

fn as_xml(number: usize, ends: &str) -> String {
    format!(
        "<AssumeRoleWithWebIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\
         <AssumeRoleWithWebIdentityResult><Audience>sts.amazonaws.com</Audience><Credentials><SessionToken>hunter2-{number}\
         </SessionToken><SecretAccessKey>{SECRET}</SecretAccessKey><Expiration>{ends}</Expiration><AccessKeyId>{ID}\
         </AccessKeyId></Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"
    )
}

fn as_json(number: usize, ends: &str) -> String {
    format!(
        "{{\"Code\":\"Success\",\"Type\":\"AWS-HMAC\",\"AccessKeyId\":\"{ID}\",\"SecretAccessKey\":\"{SECRET}\",\
         \"Token\":\"hunter2-{number}\",\"Expiration\":\"{ends}\"}}"
    )
}

/// What an origin knows of the first sessions.
fn sessions(directory: &Path) -> Result<PathBuf> {
    let file = directory.join("sessions");
    let tokens: String = (1..100).map(|number| format!("hunter2-{number}\n")).collect();
    replace(&format!("{ID}\n{SECRET}\n{tokens}"), &file)?;
    Ok(file)
}

async fn session(relay: &Relay, service: &str) -> Result<String> {
    let said = let_in(relay, forged(Method::GET, service, "/", "")?).await?;
    Ok(said["session"][0].as_str().unwrap_or_default().to_owned())
}

async fn refused_for_its_proof(relay: &Relay) -> Result<()> {
    let answer = relay.get("orders", "/").await?;
    assert_eq!(answer.status, 502, "{}", answer.text());
    assert_eq!(answer.header("proxy-status"), "culvert-relay; error=proxy_internal_error; details=\"origin_auth\"");
    let text = answer.text();
    assert!(!["sts", "role", "hunter2", "127.0.0.1", "500"].iter().any(|word| text.contains(word)), "{text}");
    Ok(())
}

#[tokio::test]
async fn a_role_is_lent_for_our_own_token_and_again_before_it_ends_and_a_failing_sts_stops_requests_and_no_more()
-> Result<()> {
    let name = "a_role_is_lent_for_our_own_token_and_again_before_it_ends_and_a_failing_sts_stops_requests_and_no_more";
    if unless(name, &[Need::PyPi("botocore")]) {
        return Ok(());
    }
    let files = tempfile::tempdir()?;
    let guarded = guarded_by_botocore("execute-api", &sessions(files.path())?).await?;
    let sts = Lender::start(|_, number, ends| (200, as_xml(number, ends)))?;
    let mut relay = Relay::new()?;
    let issuer = address::at(address::own_loopback(), 31_482);
    relay.config(&format!(
        "[http]\nlisten = [\"{}\"]\n[issuer]\nurl = \"http://{issuer}\"\nlisten = \"{issuer}\"\n",
        relay.http
    ))?;
    relay.start().await?;
    let token = relay.tunnel("shop", &["orders"]).await?;
    let mut connector = Connector::new(&token, &[])?;
    connector.config(&format!(
        "[[service]]\nname = \"orders\"\norigin = \"{}\"\n[service.auth]\ntype = \"aws-sigv4\"\nservice = \"execute-api\"\n\
         region = \"eu-west-1\"\nrole_arn = \"arn:aws:iam::123456789012:role/a+b\"\nsession_name = \"dc1@shop\"\n\
         session_lifetime = \"20m\"\nendpoint = \"{}\"\n",
        guarded.url(),
        sts.url,
    ))?;
    sts.is(Mood::Broken);
    connector.start().await?;
    relay.up("orders").await?;
    refused_for_its_proof(&relay).await?;
    let said = connector.process()?.line("the proof to the origin cannot be made", PATIENCE).await?;
    assert!(said.contains("500") && !said.contains("hunter2"), "{said}");
    for mood in [Mood::Refusing, Mood::LendsWhatHasEnded] {
        sts.is(mood);
        let before = sts.asked().len();
        wait::until("it is asked again", PATIENCE, || async { (sts.asked().len() > before).then_some(()) }).await?;
        refused_for_its_proof(&relay).await?;
    }
    // Well again, if slow: nothing was restarted.
    sts.is(Mood::Slow);
    let first = wait::until("a role is lent", PATIENCE, || async { session(&relay, "orders").await.ok() }).await?;
    assert!(first.starts_with("hunter2-"), "{first}");
    let asked = sts.asked().pop().context("a question")?;
    assert_eq!(asked.line, "POST / HTTP/1.1");
    assert_eq!(asked.field("content-type"), "application/x-www-form-urlencoded");
    let form = asked.form();
    let names: Vec<&str> = form.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["Action", "Version", "RoleArn", "RoleSessionName", "DurationSeconds", "WebIdentityToken"]);
    let values: Vec<&str> = form.iter().take(5).map(|(_, value)| value.as_str()).collect();
    let role = "arn:aws:iam::123456789012:role/a+b";
    assert_eq!(values, ["AssumeRoleWithWebIdentity", "2011-06-15", role, "dc1@shop", "1200"]);
    let claims = form[5].1.split('.').nth(1).context("a token")?;
    let claims: serde_json::Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims)?)?;
    let issuer = format!("http://{issuer}/shop");
    assert_eq!(
        (&claims["iss"], &claims["sub"], &claims["aud"]),
        (&issuer.into(), &"shop/orders".into(), &"sts.amazonaws.com".into())
    );
    // Eight seconds by a clock that is ahead: the next is there before they are over, and no request notices.
    sts.is(Mood::Well);
    let load = Plan::gets(relay.http, "orders").per_second(20).start();
    let sessions = wait::until("the role is lent twice again", Duration::from_secs(30), || async {
        let now = session(&relay, "orders").await.ok()?;
        let number = |session: &str| session.strip_prefix("hunter2-").and_then(|number| number.parse::<usize>().ok());
        (number(&now)? >= number(&first)? + 2).then_some(now)
    })
    .await?;
    load.finish().await?.all_well(20)?;
    let asked = sts.asked().len();
    assert!(sessions != first && asked < 40, "one asks for all: {asked}");
    let log = connector.output();
    assert!(!log.contains("hunter2") && !log.contains(SECRET), "{log}");
    Ok(())
}

#[tokio::test]
async fn metadata_services_lend_credentials_to_those_who_ask_as_they_want_to_be_asked() -> Result<()> {
    let name = "metadata_services_lend_credentials_to_those_who_ask_as_they_want_to_be_asked";
    if unless(name, &[Need::PyPi("botocore")]) {
        return Ok(());
    }
    let files = tempfile::tempdir()?;
    let guarded = guarded_by_botocore("lambda", &sessions(files.path())?).await?;
    let instance = Lender::start(|asked, number, ends| {
        let is_shown = asked.field("x-aws-ec2-metadata-token") == "AQAE/x==";
        match asked.line.as_str() {
            "PUT /latest/api/token HTTP/1.1" if asked.field("x-aws-ec2-metadata-token-ttl-seconds") == "60" => {
                (200, "AQAE/x==".to_owned())
            }
            "GET /latest/meta-data/iam/security-credentials/ HTTP/1.1" if is_shown => {
                (200, "origins-role\n".to_owned())
            }
            "GET /latest/meta-data/iam/security-credentials/origins-role HTTP/1.1" if is_shown => {
                (200, as_json(number, ends))
            }
            _ => (401, String::new()),
        }
    })?;
    let container = Lender::start(|asked, number, ends| match asked.line.as_str() {
        "GET /v2/credentials?id=7 HTTP/1.1" if asked.field("authorization") == "Basic c2VjcmV0" => {
            (200, as_json(number, ends))
        }
        _ => (401, String::new()),
    })?;
    let auth = "[service.auth]\ntype = \"aws-sigv4\"\nservice = \"lambda\"\nregion = \"eu-west-1\"\n";
    let full = format!("{}/v2/credentials?id=7", container.url);
    let token = files.path().join("container-token");
    replace("Basic c2VjcmV0\n", &token)?;
    let (relay, _connector) = behind(
        &format!(
            "[[service]]\nname = \"orders\"\norigin = \"{0}\"\n{auth}credentials = \"instance\"\nendpoint = \"{1}/\"\n\
             [[service]]\nname = \"pods\"\norigin = \"{0}\"\n{auth}credentials = \"container\"\n",
            guarded.url(),
            instance.url,
        ),
        &[
            ("AWS_CONTAINER_CREDENTIALS_FULL_URI", &full),
            ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", &token.display().to_string()),
        ],
    )
    .await?;
    for service in ["orders", "pods"] {
        assert!(session(&relay, service).await?.starts_with("hunter2-"), "{service}");
    }
    assert_eq!(instance.asked().len() % 3, 0, "a token, a role, its credentials");
    let renewed = wait::until("they are renewed", Duration::from_secs(30), || async {
        session(&relay, "orders").await.ok().filter(|now| now != "hunter2-1")
    })
    .await?;
    assert_eq!(renewed, "hunter2-2");
    Ok(())
}
