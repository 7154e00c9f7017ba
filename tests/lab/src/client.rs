//! A plain HTTP/1.1 client, as a gateway would be one: one request, its whole answer, or the raw bytes.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};

/// No request of a test takes longer.
pub const LIMIT: Duration = Duration::from_secs(10);

/// A whole answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its fields.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

impl Answer {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Errors
    /// It is not.
    pub fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_slice(&self.body).with_context(|| format!("not JSON: {}", self.text()))
    }

    /// One field as text, or nothing.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

/// GET `path` at `to` under `host`.
///
/// # Errors
/// No whole answer within [`LIMIT`].
pub async fn get(to: SocketAddr, host: &str, path: &str) -> Result<Answer> {
    send(to, request(Method::GET, host, path, Bytes::new())?).await
}

/// POST `body`.
///
/// # Errors
/// No whole answer within [`LIMIT`].
pub async fn post(to: SocketAddr, host: &str, path: &str, body: impl Into<Bytes>) -> Result<Answer> {
    send(to, request(Method::POST, host, path, body.into())?).await
}

/// A request with its host.
///
/// # Errors
/// The path or host cannot be written in HTTP.
pub fn request(method: Method, host: &str, path: &str, body: Bytes) -> Result<Request<Full<Bytes>>> {
    Ok(Request::builder().method(method).uri(path).header("host", host).body(Full::new(body))?)
}

/// Sends one request on a connection of its own.
///
/// # Errors
/// No whole answer within [`LIMIT`].
pub async fn send(to: SocketAddr, request: Request<Full<Bytes>>) -> Result<Answer> {
    let what = format!("{} {} at {to}", request.method(), request.uri());
    match tokio::time::timeout(LIMIT, exchange(to, request)).await {
        Ok(answer) => answer.with_context(|| what),
        Err(_) => bail!("{what}: no answer within {LIMIT:?}"),
    }
}

/// Sends one request through a unix socket.
///
/// # Errors
/// No whole answer.
pub async fn send_unix(to: &Path, request: Request<Full<Bytes>>) -> Result<Answer> {
    let stream = UnixStream::connect(to).await.with_context(|| format!("connect to {}", to.display()))?;
    let mut sender = open(stream).await?;
    let response = sender.send_request(request).await?;
    whole(response).await
}

/// Sends a request and gives the head as soon as it came; the body streams.
///
/// # Errors
/// No head.
pub async fn stream(to: SocketAddr, request: Request<Full<Bytes>>) -> Result<hyper::Response<Incoming>> {
    let mut sender = connect(to).await?;
    let response = sender.send_request(request).await?;
    // The connection lives on in its task until the body ends.
    Ok(response)
}

/// A kept connection.
///
/// # Errors
/// Nobody listens there.
pub async fn connect(to: SocketAddr) -> Result<SendRequest<Full<Bytes>>> {
    let stream = TcpStream::connect(to).await.with_context(|| format!("connect to {to}"))?;
    stream.set_nodelay(true)?;
    open(stream).await
}

/// Collects an answer.
///
/// # Errors
/// The body was cut short.
pub async fn whole(response: hyper::Response<Incoming>) -> Result<Answer> {
    let (head, body) = response.into_parts();
    let body = body.collect().await.context("body")?.to_bytes();
    Ok(Answer { status: head.status, headers: head.headers, body })
}

/// Writes raw bytes and reads until the other side closes or `limit` passes.
///
/// # Errors
/// Nobody listens there.
pub async fn raw(to: SocketAddr, bytes: &[u8], limit: Duration) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect(to).await.with_context(|| format!("connect to {to}"))?;
    // A server that refuses may close before everything was written.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(limit, async {
        let mut buffer = [0; 4096];
        while let Ok(read) = stream.read(&mut buffer).await {
            if read == 0 {
                break;
            }
            answer.extend_from_slice(&buffer[..read]);
        }
    })
    .await;
    Ok(answer)
}

async fn exchange(to: SocketAddr, request: Request<Full<Bytes>>) -> Result<Answer> {
    let mut sender = connect(to).await?;
    let response = sender.send_request(request).await?;
    whole(response).await
}

async fn open<S>(stream: S) -> Result<SendRequest<Full<Bytes>>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = handshake(TokioIo::new(stream)).await?;
    tokio::spawn(async move {
        let _ = connection.await;
    });
    Ok(sender)
}
