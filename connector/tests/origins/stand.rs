//! A gate with one service, and its relay's end of streams.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use culvert_connector::gate::{Cancel, Gate};
use culvert_connector::metrics::ConnectorMetrics;
use culvert_model::reason::Reason;
use culvert_ops::drain::Drain;
use culvert_ops::task::{Task, spawn};
use culvert_origin::health::Checks;
use culvert_origin::names::{Names, Resolve};
use culvert_origin::origins::Origins;
use culvert_origin::service::Service;
use culvert_origin::tls::ClientTls;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, ReadBuf};
use tokio::sync::mpsc;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(10);

/// See the module.
pub struct Stand {
    gate: Gate,
    origins: Origins,
}

/// What the resolver says.
#[derive(Default)]
pub struct Told(Mutex<HashMap<String, SocketAddr>>);

/// The relay's end of one stream.
pub struct Line {
    /// What the relay writes and reads.
    pub stream: DuplexStream,
    ended: mpsc::UnboundedReceiver<How>,
    _serves: Task<()>,
}

/// How the gate ended a stream.
#[derive(Debug, PartialEq, Eq)]
pub enum How {
    /// After everything was said.
    Finished,
    /// In the middle; why, where the gate said so.
    Reset(Option<Reason>),
}

/// The gate's end of a stream.
struct Far {
    io: DuplexStream,
    is_finished: bool,
    why: Option<Reason>,
    ended: mpsc::UnboundedSender<How>,
}

impl Stand {
    /// A service at `origin`, changed as wanted; names are what `tell` says.
    pub fn of(
        origin: &str,
        tls: Option<ClientTls>,
        change: impl FnOnce(&mut Service),
        tell: impl FnOnce(&Told),
    ) -> Self {
        let told = Arc::new(Told::default());
        tell(&told);
        let origins = Origins::with_names(Names::by(told));
        let mut service = Service::new("orders".parse().unwrap(), origin.parse().unwrap(), tls);
        change(&mut service);
        origins.replace(vec![service]);
        let gate = Gate::new(origins.clone(), Arc::new(ConnectorMetrics::new()), Drain::new());
        Self { gate, origins }
    }

    /// A new stream.
    pub fn line(&self) -> Line {
        let (stream, io) = tokio::io::duplex(64 * 1024);
        let (tell, ended) = mpsc::unbounded_channel();
        let far = Far { io, is_finished: false, why: None, ended: tell };
        let gate = self.gate.clone();
        let serves = spawn("test.gate", async move { gate.stream(far, &Arc::default()).await });
        Line { stream, ended, _serves: serves }
    }

    /// The whole answer to a GET of `path`.
    pub async fn get(&self, path: &str) -> String {
        let mut line = self.line();
        line.ask(&format!("GET {path}"), "", "").await;
        line.answer().await
    }

    /// As when the origin's name has left an address.
    pub fn renew(&self) {
        self.origins.renew("orders");
    }

    /// What a check of the origin's health found, in words.
    pub async fn why_down(&self) -> String {
        let checks = Checks::new(self.origins.clone());
        let mut news = checks.news();
        checks.restart();
        timeout(PATIENCE, async {
            loop {
                let table = self.origins.table();
                if let Some(down) = table.upstream("orders").and_then(|upstream| upstream.health.why_down()) {
                    return down.detail.unwrap_or_default().into_string();
                }
                news.changed().await.unwrap();
            }
        })
        .await
        .expect("the origin is found to be down")
    }
}

impl Told {
    /// From now on `name` is at the address.
    pub fn says(&self, name: &str, address: SocketAddr) {
        self.0.lock().unwrap().insert(name.to_owned(), address);
    }
}

impl Resolve for Told {
    fn resolve(&self, name: &str) -> Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send>> {
        let found = self.0.lock().unwrap().get(name).copied();
        Box::pin(async move { found.map(|at| vec![at]).ok_or_else(|| io::Error::other("no such name")) })
    }
}

impl Line {
    /// Sends a request: its method and path, more fields (each with its CRLF), a body.
    pub async fn ask(&mut self, what: &str, fields: &str, body: &str) {
        let head = format!("{what} HTTP/1.1\r\nhost: api.example\r\nculvert-service: orders\r\n{fields}\r\n{body}");
        timeout(PATIENCE, self.stream.write_all(head.as_bytes())).await.expect("the gate reads").unwrap();
    }

    /// An answer's head.
    pub async fn head(&mut self) -> String {
        let mut bytes = Vec::new();
        timeout(PATIENCE, async {
            while !bytes.ends_with(b"\r\n\r\n") {
                bytes.push(self.stream.read_u8().await.expect("a whole head"));
            }
        })
        .await
        .expect("an answer comes");
        String::from_utf8(bytes).unwrap()
    }

    /// So many bytes.
    pub async fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        timeout(PATIENCE, self.stream.read_exact(&mut bytes)).await.expect("they come").unwrap();
        bytes
    }

    /// An answer's head and the body of the length that it tells.
    pub async fn answer(&mut self) -> String {
        let head = self.head().await;
        let length = field(&head, "content-length").and_then(|length| length.parse().ok());
        let body = self.bytes(length.unwrap_or(0)).await;
        head + &String::from_utf8_lossy(&body)
    }

    /// An answer's head and its chunked body as it stands, to the last chunk's end.
    pub async fn chunked(&mut self) -> String {
        let mut text = self.head().await;
        while !text.ends_with("\r\n0\r\n\r\n") {
            text.push(char::from(self.bytes(1).await[0]));
        }
        text
    }

    /// Everything until the gate ends the stream, and how it does.
    pub async fn end(&mut self) -> (String, How) {
        let mut bytes = Vec::new();
        timeout(PATIENCE, self.stream.read_to_end(&mut bytes)).await.expect("the stream ends").unwrap();
        let how = timeout(PATIENCE, self.ended.recv()).await.expect("the stream is let go").unwrap();
        (String::from_utf8_lossy(&bytes).into_owned(), how)
    }
}

/// A field's value.
pub fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = head.split("\r\n").filter_map(|line| line.split_once(':'));
    lines.find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
}

impl Cancel for Far {
    fn cancel(&mut self, reason: Reason) {
        self.why = Some(reason);
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        let how = if self.is_finished && self.why.is_none() { How::Finished } else { How::Reset(self.why) };
        let _ = self.ended.send(how);
    }
}

impl AsyncRead for Far {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Far {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.is_finished = true;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
