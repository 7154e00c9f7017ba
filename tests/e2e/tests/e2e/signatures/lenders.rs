//! Credentials of AWS that are lent: by a role of STS, and by metadata services, all played here.

use std::io::{BufRead as _, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use culvert_lab::load::Plan;
use culvert_lab::skip::{Need, unless};
use culvert_lab::{Connector, Relay, address, wait};
use http::Method;

use super::{ID, PATIENCE, SECRET, behind, forged, guarded_by_botocore, let_in, replace};

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
