//! Answers over both doors.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HOST, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::host::{is_local, is_ours};
use super::{Admin, AdminSocket, Answer, Call, Caller, query_field};
use crate::exit::Quit;

/// Connections at once over each door.
const CONNECTIONS: usize = 64;
/// The longest body of a call.
const LONGEST_BODY: usize = 1 << 20;
/// How long a caller may take for a head, and for a body.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a listener that cannot accept (no descriptors) is left alone.
const PAUSE: Duration = Duration::from_millis(100);

type Reply = Response<Full<Bytes>>;

/// Serves GET and HEAD over TCP until it is dropped, its connections with it.
pub async fn serve_tcp<A: Admin>(listener: TcpListener, admin: Arc<A>) {
    let mut door = Door::new();
    loop {
        let room = door.room().await;
        match listener.accept().await {
            Ok((stream, peer)) => {
                let Ok(local) = stream.local_addr() else { continue };
                door.serve(room, stream, From::Tcp { local, peer }, Arc::clone(&admin));
            }
            Err(error) => pause(&error).await,
        }
    }
}

/// Serves everything over the socket until it is dropped, its connections with it.
pub async fn serve_socket<A: Admin>(socket: AdminSocket, admin: Arc<A>) {
    let mut door = Door::new();
    loop {
        let room = door.room().await;
        match socket.listener.accept().await {
            Ok((stream, _)) => {
                let Some(from) = socket_caller(&stream) else { continue };
                door.serve(room, stream, from, Arc::clone(&admin));
            }
            Err(error) => pause(&error).await,
        }
    }
}

#[derive(Clone)]
enum From {
    Tcp { local: SocketAddr, peer: SocketAddr },
    Socket { uid: u32, pid: Option<i32> },
}

struct Door {
    room: Arc<Semaphore>,
    connections: JoinSet<()>,
}

impl Door {
    fn new() -> Self {
        Self { room: Arc::new(Semaphore::new(CONNECTIONS)), connections: JoinSet::new() }
    }

    async fn room(&mut self) -> Option<tokio::sync::OwnedSemaphorePermit> {
        while self.connections.try_join_next().is_some() {}
        Arc::clone(&self.room).acquire_owned().await.ok()
    }

    fn serve<S, A>(&mut self, room: Option<tokio::sync::OwnedSemaphorePermit>, stream: S, from: From, admin: Arc<A>)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
        A: Admin,
    {
        self.connections.spawn(async move {
            let _room = room;
            let answer = service_fn(|request: Request<Incoming>| {
                let (from, admin) = (from.clone(), Arc::clone(&admin));
                async move { Ok::<_, Infallible>(answer(request, from, admin.as_ref()).await) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(PATIENCE)
                .max_buf_size(64 * 1024)
                .serve_connection(TokioIo::new(stream), answer);
            if let Err(error) = connection.await {
                tracing::debug!(%error, "admin connection ended early");
            }
        });
    }
}

async fn answer<A: Admin>(request: Request<Incoming>, from: From, admin: &A) -> Reply {
    let method = request.method().clone();
    let reading = method == Method::GET || method == Method::HEAD;
    if let From::Tcp { .. } = from
        && !reading
    {
        let message = "changes go through the admin socket in the state directory, not over TCP";
        let mut reply = refused(StatusCode::METHOD_NOT_ALLOWED, message);
        reply.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return reply;
    }
    let path = request.uri().path().to_owned();
    let query = request.uri().query().unwrap_or_default().to_owned();
    match path.as_str() {
        "/livez" if reading => text(StatusCode::OK, "text/plain; charset=utf-8", "live\n".to_owned()),
        "/readyz" if reading => {
            let service = query_field(&query, "service").map(|name| name.to_ascii_lowercase());
            let health = admin.health();
            let ready = health.is_ready(service.as_deref());
            let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            json(&Answer { status, body: health.body(service.as_deref()) })
        }
        "/metrics" if reading => text(StatusCode::OK, crate::metrics::CONTENT_TYPE, admin.metrics()),
        "/livez" | "/readyz" | "/metrics" => json(&Answer::wrong_method()),
        path if path.starts_with("/api/v1/") => api(request, from, admin).await,
        _ => refused(StatusCode::NOT_FOUND, "no such page: /livez, /readyz, /metrics and /api/v1/ are here"),
    }
}

async fn api<A: Admin>(request: Request<Incoming>, from: From, admin: &A) -> Reply {
    let caller = match from {
        From::Socket { uid, pid } => Caller::Socket { uid, pid },
        From::Tcp { local, peer } => {
            if !is_local(local, peer) {
                return refused(StatusCode::FORBIDDEN, "the API is served to this host alone");
            }
            if !names_us(&request, local) {
                let message = "the API is served under localhost or the listener's own address alone";
                return refused(StatusCode::MISDIRECTED_REQUEST, message);
            }
            Caller::Tcp(peer)
        }
    };
    let (head, body) = request.into_parts();
    let whole = tokio::time::timeout(PATIENCE, Limited::new(body, LONGEST_BODY).collect()).await;
    let body = match whole {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            return refused(StatusCode::PAYLOAD_TOO_LARGE, "the body is over 1 MiB");
        }
        Ok(Err(_)) => return refused(StatusCode::BAD_REQUEST, "the body was cut off"),
        Err(_) => return refused(StatusCode::REQUEST_TIMEOUT, "the body did not come in time"),
    };
    let query = head.uri.query().unwrap_or_default().to_owned();
    // HEAD is GET whose body hyper keeps back.
    let method = if head.method == Method::HEAD { Method::GET } else { head.method };
    json(&admin.api(Call { method, path: head.uri.path().to_owned(), query, body, caller }).await)
}

/// Every name the request gives for us must be ours: the authority of an absolute target, and its one Host field.
fn names_us(request: &Request<Incoming>, local: SocketAddr) -> bool {
    let target = request.uri().authority().is_none_or(|authority| is_ours(authority.as_str(), local));
    let mut hosts = request.headers().get_all(HOST).iter();
    let host = hosts.next().and_then(|host| host.to_str().ok()).is_some_and(|host| is_ours(host, local));
    target && host && hosts.next().is_none()
}

fn socket_caller(stream: &UnixStream) -> Option<From> {
    let credentials = stream.peer_cred().ok()?;
    Some(From::Socket { uid: credentials.uid(), pid: credentials.pid() })
}

fn refused(status: StatusCode, message: &str) -> Reply {
    json(&Answer { status, ..Answer::from(Quit::failed(message)) })
}

fn json(answer: &Answer) -> Reply {
    text(answer.status, "application/json", format!("{}\n", answer.body))
}

fn text(status: StatusCode, kind: &'static str, body: String) -> Reply {
    let mut reply = Response::new(Full::new(Bytes::from(body)));
    *reply.status_mut() = status;
    let headers = reply.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(HeaderName::from_static("x-content-type-options"), HeaderValue::from_static("nosniff"));
    reply
}

async fn pause(error: &std::io::Error) {
    tracing::debug!(%error, "the admin listener cannot accept");
    tokio::time::sleep(PAUSE).await;
}
