//! The programs, and an origin that logs every byte.
//!
//! Must never answer what the strict reader does not take for one whole request.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use bytes::BytesMut;
use culvert_http_tests::strict::{self, Decoder, Fields, Step};
use culvert_http_tests::wire::Wire;
use culvert_lab::{Connector, Relay, wait};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// Every answer of the origin.
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// A request as the origin understood it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) host: String,
    pub(crate) body: Vec<u8>,
    pub(crate) fields: Fields,
    pub(crate) trailers: Fields,
}

/// What one connection of the origin came to.
#[derive(Debug, Clone)]
pub(crate) enum Fact {
    Whole(Seen),
    /// It ended in the middle of this.
    Cut(Vec<u8>),
    /// It was not HTTP.
    Flaw(String, Vec<u8>),
}

pub(crate) struct Site {
    pub(crate) relay: Relay,
    _connector: Connector,
    log: Arc<Mutex<Vec<Fact>>>,
    probes: std::sync::atomic::AtomicUsize,
}

impl Site {
    pub(crate) async fn start() -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let at = listener.local_addr()?;
        let log = Arc::new(Mutex::new(Vec::new()));
        let facts = Arc::clone(&log);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let facts = Arc::clone(&facts);
                tokio::spawn(async move {
                    let fact = serve(stream, &facts).await;
                    facts.lock().unwrap_or_else(PoisonError::into_inner).extend(fact);
                });
            }
        });
        let mut relay = Relay::new()?;
        relay.start().await?;
        let token = relay.tunnel("corpus", &["orders", "other"]).await?;
        let mut connector = Connector::new(&token, &[])?;
        let service =
            |name: &str| format!("[[service]]\nname = \"{name}\"\norigin = \"http://{at}\"\nhost = \"preserve\"\n");
        connector.config(&format!("{}{}", service("orders"), service("other")))?;
        connector.start().await?;
        relay.up("orders").await?;
        relay.up("other").await?;
        Ok(Self { relay, _connector: connector, log, probes: 0.into() })
    }

    /// Where callers call.
    pub(crate) fn front(&self) -> SocketAddr {
        self.relay.http
    }

    /// What came to the origin since the last time, after a request that came after everything else.
    pub(crate) async fn facts(&self) -> Result<Vec<Fact>> {
        let number = self.probes.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = format!("/probe/{number}");
        let mut wire = Wire::connect(self.front()).await?;
        wire.write(format!("GET {path} HTTP/1.1\r\nHost: orders\r\nConnection: close\r\n\r\n").as_bytes()).await?;
        let head = wire.head().await?.context("the probe was not answered")?;
        ensure!(head.status()? == 200, "the probe was answered {}", head.status()?);
        let mut facts = std::mem::take(&mut *self.log());
        let is_probe = |fact: &Fact| matches!(fact, Fact::Whole(seen) if seen.target == path);
        let at = facts.iter().position(is_probe).context("the probe did not come")?;
        facts.remove(at);
        Ok(facts)
    }

    /// Waits until the origin has seen one whole request, or the end of one.
    pub(crate) async fn fact(&self) -> Result<Fact> {
        wait::until("a request at the origin", Duration::from_secs(5), || async { self.log().pop() }).await
    }

    /// Nothing came that no entry asked for.
    pub(crate) fn no_strangers(&self) -> Result<()> {
        let left = self.log();
        ensure!(left.is_empty(), "came to the origin late: {left:?}");
        Ok(())
    }

    fn log(&self) -> std::sync::MutexGuard<'_, Vec<Fact>> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn serve(mut stream: TcpStream, facts: &Mutex<Vec<Fact>>) -> Option<Fact> {
    let mut bytes = BytesMut::new();
    loop {
        let start = bytes.clone();
        match read(&mut stream, &mut bytes).await {
            Ok(Some(seen)) => {
                facts.lock().unwrap_or_else(PoisonError::into_inner).push(Fact::Whole(seen));
                stream.write_all(ANSWER).await.ok()?;
            }
            Ok(None) => return None,
            Err(error) if error.is::<strict::Flaw>() => {
                return Some(Fact::Flaw(error.to_string(), [&start[..], &bytes[..]].concat()));
            }
            Err(_) => return Some(Fact::Cut(bytes.to_vec())),
        }
    }
}

/// One whole request.
async fn read(stream: &mut TcpStream, bytes: &mut BytesMut) -> Result<Option<Seen>> {
    let head = loop {
        if let Some((head, taken)) = strict::head(bytes)? {
            let _ = bytes.split_to(taken);
            break head;
        }
        if stream.read_buf(bytes).await? == 0 {
            ensure!(bytes.is_empty(), "cut");
            return Ok(None);
        }
    };
    let mut decoder = Decoder::new(head.request_framing()?);
    let mut body = Vec::new();
    let trailers = loop {
        match decoder.step(bytes)? {
            Step::Data(data) => body.extend_from_slice(&data),
            Step::End(trailers) => break trailers,
            Step::More => {
                if stream.read_buf(bytes).await? == 0 {
                    bail!("cut");
                }
            }
        }
    };
    let line = head.line()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let host = text(head.fields.one("host").ok_or(strict::Flaw("no Host, or two"))?);
    let (method, target) = (text(line.method), text(line.target));
    Ok(Some(Seen { method, target, host, body, fields: head.fields, trailers }))
}
