//! A token endpoint as a vendor runs it: answers as it is told, and remembers what it was asked.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use culvert_ops::task::Owner;
use percent_encoding::percent_decode_str;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

/// One question.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    /// Method and target.
    pub(super) line: String,
    pub(super) fields: BTreeMap<String, String>,
    pub(super) body: String,
}

/// What is answered.
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) body: String,
    /// By how much the vendor's clock is ahead; none: it tells no time.
    pub(super) ahead: Option<i64>,
    /// More lines of the head.
    pub(super) more: &'static str,
}

type Script = Box<dyn FnMut(&Seen) -> Reply + Send>;

pub(super) struct Vendor {
    pub(super) at: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    _serving: Owner,
}

impl Reply {
    pub(super) fn ok(body: impl ToString) -> Self {
        Self { status: 200, body: body.to_string(), ahead: Some(0), more: "" }
    }

    pub(super) fn no(status: u16, body: impl ToString) -> Self {
        Self { status, ..Self::ok(body) }
    }
}

impl Seen {
    /// Its body as a form: every field once.
    pub(super) fn form(&self) -> BTreeMap<String, String> {
        assert_eq!(self.fields["content-type"], "application/x-www-form-urlencoded");
        let decode = |text: &str| percent_decode_str(text).decode_utf8().unwrap().into_owned();
        let pairs: Vec<_> = self.body.split('&').map(|pair| pair.split_once('=').unwrap()).collect();
        let form: BTreeMap<_, _> = pairs.iter().map(|(name, value)| (decode(name), decode(value))).collect();
        assert_eq!(form.len(), pairs.len(), "a field twice: {}", self.body);
        form
    }
}

impl Vendor {
    pub(super) async fn play(script: impl FnMut(&Seen) -> Reply + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let script = Arc::new(Mutex::new(Box::new(script) as Script));
        let mut serving = Owner::new();
        let seeing = seen.clone();
        serving.spawn("vendor", async move {
            let mut connections = Owner::new();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let (seen, script) = (seeing.clone(), script.clone());
                connections.spawn("vendor.connection", async move {
                    let mut heard = Vec::new();
                    let asked = loop {
                        if stream.read_buf(&mut heard).await.unwrap_or(0) == 0 {
                            return;
                        }
                        if let Some(asked) = read(&heard) {
                            break asked;
                        }
                    };
                    let Reply { status, body, ahead, more } = (script.lock().unwrap())(&asked);
                    seen.lock().unwrap().push(asked);
                    let date = ahead.map_or_else(String::new, |ahead| {
                        let now = SystemTime::now();
                        let by = Duration::from_secs(ahead.unsigned_abs());
                        format!("date: {}\r\n", httpdate::fmt_http_date(if ahead < 0 { now - by } else { now + by }))
                    });
                    let head = format!("HTTP/1.1 {status} x\r\n{date}{more}content-length: {}\r\n\r\n", body.len());
                    let _ = stream.write_all((head + &body).as_bytes()).await;
                });
            }
        });
        Self { at, seen, _serving: serving }
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.at)
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

fn read(heard: &[u8]) -> Option<Seen> {
    let text = std::str::from_utf8(heard).unwrap();
    let (head, body) = text.split_once("\r\n\r\n")?;
    let mut lines = head.split("\r\n");
    let line = lines.next().unwrap().trim_end_matches(" HTTP/1.1").to_owned();
    let fields: BTreeMap<String, String> = lines
        .map(|line| line.split_once(": ").unwrap())
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let length: usize = fields.get("content-length").map_or(0, |length| length.parse().unwrap());
    (body.len() >= length).then(|| Seen { line, fields, body: body.to_owned() })
}
