//! A private server for tests: answers, echoes, streams, hashes and remembers what it saw.
//!
//! | Path | Answer |
//! |---|---|
//! | `/` | `hello from NAME` |
//! | `/head` | the request as it came: JSON of method, target and fields in order |
//! | `/echo` | the body, as it comes |
//! | `/bytes/N` | N bytes of a known pattern, hash in [`pattern_hash`] |
//! | `/hash` | SHA-256 and length of the body |
//! | `/sink` | the length of the body, which is thrown away |
//! | `/slow/MS` | `slow`, after MS milliseconds |
//! | `/sse/N/MS` | N events, one each MS milliseconds |
//! | `/flood` | large events for ever, as fast as they are taken |
//! | `/feed` | an event for each [`Origin::tell`] from now on; the first says `ready` |
//! | `/status/N` | that status |
//! | `/cut` | promises 1000 bytes, sends 10 and closes |
//! | `/ws` | a WebSocket that echoes |
//!
//! Under `/NAME/` the same, for gateways that lead a path of their own to it.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper_util::rt::TokioIo;
use sha2::{Digest as _, Sha256};
use tokio::net::TcpListener;
use tokio::sync::{broadcast, mpsc, watch};

use crate::netns::Namespace;
use crate::websocket;

/// A running origin. Dropped: closes its port and every connection.
#[derive(Debug)]
pub struct Origin {
    address: SocketAddr,
    seen: Arc<Seen>,
    stop: watch::Sender<bool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// What an origin remembers.
#[derive(Debug)]
struct Seen {
    name: String,
    feed: broadcast::Sender<Bytes>,
    by_id: Mutex<HashMap<String, usize>>,
    by_path: Mutex<HashMap<String, usize>>,
    heads: Mutex<Vec<serde_json::Value>>,
}

impl Origin {
    /// Starts one at a free port of `127.0.0.1`.
    ///
    /// # Errors
    /// It could not bind.
    pub async fn start(name: &str) -> Result<Self> {
        Self::start_at(name, ([127, 0, 0, 1], 0).into(), None).await
    }

    /// Starts one at an address, in a namespace if given.
    ///
    /// # Errors
    /// It could not bind there.
    pub async fn start_at(name: &str, at: SocketAddr, namespace: Option<&Namespace>) -> Result<Self> {
        let seen = Arc::new(Seen {
            name: name.to_owned(),
            feed: broadcast::channel(64).0,
            by_id: Mutex::default(),
            by_path: Mutex::default(),
            heads: Mutex::default(),
        });
        let (stop, stopped) = watch::channel(false);
        let (bound, address) = tokio::sync::oneshot::channel();
        let served = Arc::clone(&seen);
        let enter = namespace.map(Namespace::entrance).transpose()?;
        let thread = std::thread::spawn(move || {
            if let Some(enter) = enter
                && let Err(error) = enter.enter()
            {
                let _ = bound.send(Err(error));
                return;
            }
            let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => {
                    let _ = bound.send(Err(error.into()));
                    return;
                }
            };
            runtime.block_on(async move {
                match TcpListener::bind(at).await {
                    Ok(listener) => {
                        let _ = bound.send(listener.local_addr().map_err(Into::into));
                        serve(listener, served, stopped).await;
                    }
                    Err(error) => {
                        let _ = bound.send(Err(anyhow::Error::from(error).context(format!("bind {at}"))));
                    }
                }
            });
        });
        let address = address.await.context("the origin's thread ended")??;
        Ok(Self { address, seen, stop, thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// How often it saw a request with this `x-id`.
    pub fn times(&self, id: &str) -> usize {
        lock(&self.seen.by_id).get(id).copied().unwrap_or(0)
    }

    /// How many requests came at all under a path.
    pub fn requests(&self, path: &str) -> usize {
        lock(&self.seen.by_path).get(path).copied().unwrap_or(0)
    }

    /// Sends an event to everybody who reads `/feed`.
    pub fn tell(&self, data: &str) {
        // Nobody there is nobody to tell.
        let _ = self.seen.feed.send(Bytes::from(format!("data: {data}\n\n")));
    }

    /// How many requests came at all.
    pub fn all_requests(&self) -> usize {
        lock(&self.seen.by_path).values().sum()
    }

    /// The heads that came to `/head`.
    pub fn heads(&self) -> Vec<serde_json::Value> {
        lock(&self.seen.heads).clone()
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        let _ = self.stop.send(true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// SHA-256 of the first `length` bytes of the pattern that `/bytes/N` sends, in hex.
pub fn pattern_hash(length: u64) -> String {
    let mut hash = Sha256::new();
    let mut left = length;
    let mut offset = 0;
    while left > 0 {
        let piece = pattern(offset, left.min(PIECE));
        offset += piece.len() as u64;
        left -= piece.len() as u64;
        hash.update(&piece);
    }
    hex(&hash.finalize())
}

/// Bytes `offset..offset + length` of the pattern; never two equal pieces in a row, so that a swap shows.
pub fn pattern(offset: u64, length: u64) -> Bytes {
    let mut piece = Vec::with_capacity(usize::try_from(length).unwrap_or(0));
    let mut word = offset / 8;
    while (piece.len() as u64) < length {
        piece.extend_from_slice(&word.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
        word += 1;
    }
    piece.truncate(usize::try_from(length).unwrap_or(0));
    Bytes::from(piece)
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

const PIECE: u64 = 64 * 1024;

async fn serve(listener: TcpListener, seen: Arc<Seen>, mut stopped: watch::Receiver<bool>) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(_) => continue,
            },
            _ = stopped.changed() => break,
        };
        let _ = stream.set_nodelay(true);
        let seen = Arc::clone(&seen);
        connections.spawn(async move {
            let service = hyper::service::service_fn(move |request| {
                let seen = Arc::clone(&seen);
                async move { Ok::<_, Infallible>(answer(request, &seen).await) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .half_close(true)
                .serve_connection(TokioIo::new(stream), service);
            let _ = connection.with_upgrades().await;
        });
    }
    connections.shutdown().await;
}

async fn answer(mut request: Request<Incoming>, seen: &Seen) -> Response<Pieces> {
    let path = request.uri().path().to_owned();
    let mut segments: Vec<&str> = path.split('/').skip(1).collect();
    if segments.len() > 1 && segments.first().is_some_and(|first| *first == seen.name) {
        segments.remove(0);
    }
    *lock(&seen.by_path).entry(path.clone()).or_default() += 1;
    if let Some(id) = request.headers().get("x-id").and_then(|id| id.to_str().ok()) {
        *lock(&seen.by_id).entry(id.to_owned()).or_default() += 1;
    }
    let number = |place: usize| segments.get(place).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    match segments.first().copied().unwrap_or_default() {
        "head" => {
            let head = describe(&request);
            lock(&seen.heads).push(head.clone());
            Response::new(Pieces::whole(head.to_string()))
        }
        "echo" => {
            let (sender, pieces) = Pieces::channel();
            tokio::spawn(async move {
                while let Some(Ok(frame)) = request.body_mut().frame().await {
                    if let Ok(data) = frame.into_data()
                        && sender.send(Ok(data)).await.is_err()
                    {
                        break;
                    }
                }
            });
            Response::new(pieces)
        }
        "bytes" => {
            let (sender, mut pieces) = Pieces::channel();
            let length = number(1);
            pieces.length = Some(length);
            tokio::spawn(async move {
                let mut offset = 0;
                while offset < length {
                    let piece = pattern(offset, PIECE.min(length - offset));
                    offset += piece.len() as u64;
                    if sender.send(Ok(piece)).await.is_err() {
                        break;
                    }
                }
            });
            Response::new(pieces)
        }
        "hash" => {
            let mut hash = Sha256::new();
            let mut length = 0;
            while let Some(Ok(frame)) = request.body_mut().frame().await {
                if let Ok(data) = frame.into_data() {
                    length += data.len();
                    hash.update(&data);
                }
            }
            Response::new(Pieces::whole(format!("{} {length}", hex(&hash.finalize()))))
        }
        "sink" => {
            let mut length = 0;
            while let Some(Ok(frame)) = request.body_mut().frame().await {
                length += frame.into_data().map(|data| data.len()).unwrap_or(0);
            }
            Response::new(Pieces::whole(length.to_string()))
        }
        "slow" => {
            tokio::time::sleep(Duration::from_millis(number(1))).await;
            Response::new(Pieces::whole("slow"))
        }
        "sse" => {
            let (count, pause) = (number(1), Duration::from_millis(number(2)));
            let (sender, pieces) = Pieces::channel();
            tokio::spawn(async move {
                for event in 0..count {
                    if sender.send(Ok(Bytes::from(format!("id: {event}\ndata: event {event}\n\n")))).await.is_err() {
                        break;
                    }
                    tokio::time::sleep(pause).await;
                }
            });
            events(pieces)
        }
        "flood" => {
            let (sender, pieces) = Pieces::channel();
            tokio::spawn(async move {
                let event = Bytes::from(format!("data: {}\n\n", "x".repeat(16 * 1024)));
                while sender.send(Ok(event.clone())).await.is_ok() {}
            });
            events(pieces)
        }
        "feed" => {
            let mut feed = seen.feed.subscribe();
            let (sender, pieces) = Pieces::channel();
            tokio::spawn(async move {
                let mut next = Ok(Bytes::from_static(b"data: ready\n\n"));
                while let Ok(event) = next {
                    if sender.send(Ok(event)).await.is_err() {
                        break;
                    }
                    next = feed.recv().await;
                }
            });
            events(pieces)
        }
        "status" => {
            let mut response = Response::new(Pieces::whole(format!("status {}", number(1))));
            *response.status_mut() = u16::try_from(number(1))
                .ok()
                .and_then(|status| StatusCode::from_u16(status).ok())
                .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            response
        }
        "cut" => {
            let (sender, mut pieces) = Pieces::channel();
            pieces.length = Some(1000);
            tokio::spawn(async move {
                let _ = sender.send(Ok(Bytes::from_static(b"ten bytes!"))).await;
                // The head and these bytes must be on their way first, or the cut comes before any answer.
                tokio::time::sleep(Duration::from_millis(200)).await;
                let _ = sender.send(Err(std::io::Error::other("cut on purpose"))).await;
            });
            Response::new(pieces)
        }
        "ws" => upgrade(request),
        _ => Response::new(Pieces::whole(format!("hello from {}\n", seen.name))),
    }
}

fn events(pieces: Pieces) -> Response<Pieces> {
    let mut response = Response::new(pieces);
    response.headers_mut().insert("content-type", http::HeaderValue::from_static("text/event-stream"));
    response
}

fn upgrade(mut request: Request<Incoming>) -> Response<Pieces> {
    let key = request.headers().get("sec-websocket-key").and_then(|key| key.to_str().ok()).unwrap_or_default();
    let accept = websocket::accept(key);
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        if let Ok(upgraded) = upgraded.await {
            let _ = websocket::echo(TokioIo::new(upgraded)).await;
        }
    });
    let response = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header("connection", "upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-accept", accept)
        .body(Pieces::whole(""));
    response.unwrap_or_else(|_| Response::new(Pieces::whole("")))
}

fn describe(request: &Request<Incoming>) -> serde_json::Value {
    let fields: Vec<[String; 2]> = request
        .headers()
        .iter()
        .map(|(name, value)| [name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned()])
        .collect();
    let target = request.uri().path_and_query().map_or("", |target| target.as_str());
    serde_json::json!({"method": request.method().as_str(), "target": target, "fields": fields})
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A body of pieces from a channel; an error in it cuts the answer short.
#[derive(Debug)]
struct Pieces {
    receiver: mpsc::Receiver<std::io::Result<Bytes>>,
    length: Option<u64>,
}

impl Pieces {
    fn channel() -> (mpsc::Sender<std::io::Result<Bytes>>, Self) {
        let (sender, receiver) = mpsc::channel(2);
        (sender, Self { receiver, length: None })
    }

    fn whole(text: impl Into<Bytes>) -> Self {
        let text = text.into();
        let (sender, mut pieces) = Self::channel();
        pieces.length = Some(text.len() as u64);
        if !text.is_empty() {
            let _ = sender.try_send(Ok(text));
        }
        pieces
    }
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Option<std::io::Result<Frame<Bytes>>>> {
        self.receiver.poll_recv(cx).map(|piece| piece.map(|piece| piece.map(Frame::data)))
    }

    fn size_hint(&self) -> SizeHint {
        self.length.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pattern_is_the_same_in_any_pieces() {
        let whole = pattern(0, 4096);
        assert_eq!(&whole[1024..2048], &pattern(1024, 1024)[..]);
        assert_eq!(pattern_hash(4096), hex(&Sha256::digest(&whole)));
    }
}
