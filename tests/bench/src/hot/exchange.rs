//! A fixed exchange: a gateway's bytes, the relay's hop, WireGuard both ways, the connector's hop, and back; and each hop
//! alone.

use std::convert::Infallible;
use std::future::{Future, pending};
use std::net::IpAddr;

use anyhow::{Result, bail, ensure};
use culvert_hop::body::Body;
use culvert_hop::exchange::{Answer, Deadlines};
use culvert_hop::fault::Fault;
use culvert_hop::message::{Request, Response};
use culvert_hop::pool::{Lost, Opener, Pool, PoolSettings};
use culvert_hop::request::{self, Caller, ForwardPolicy};
use culvert_hop::server::{ServerSettings, serve};
use culvert_model::reason::Reason;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

use super::tunnel::Tunnel;

/// The gateway's request; its answer's body is [`BODY`] bytes.
const REQUEST: &[u8] = b"GET /orders/42?expand=lines HTTP/1.1\r\nHost: orders.internal\r\nUser-Agent: gateway/1.0\r\n\
    Accept: application/json\r\nX-Forwarded-For: 198.51.100.7\r\nX-Request-Id: 0123456789abcdef\r\n\r\n";
const BODY: usize = 1024;
/// What a stream in memory holds.
const PIPE: usize = 64 * 1024;

/// `count` exchanges over both hops and the tunnel, one after the other.
///
/// # Errors
/// One did not end well.
pub async fn exchanges(count: usize) -> Result<()> {
    let (relay_stream, relay_wire) = duplex(PIPE);
    let (connector_wire, connector_stream) = duplex(PIPE);
    let tunnel = Tunnel::up()?;
    let (mut gateway, front) = duplex(PIPE);
    let pool = Pool::new(OneStream::of(relay_stream), PoolSettings::default());
    let front_settings = ServerSettings::front();
    let gate_settings = ServerSettings::gate();
    let relay = serve(front, &front_settings, |request| forward(&pool, request), pending());
    let connector = serve(connector_stream, &gate_settings, |request| answer(request, BODY), pending());
    tokio::select! {
        biased;
        done = ask(&mut gateway, count, BODY) => done,
        () = relay => bail!("the relay's hop ended"),
        () = connector => bail!("the connector's hop ended"),
        broken = tunnel.carry(relay_wire, connector_wire) => broken,
    }
}

/// `count` exchanges over a hop's server alone: read a head, check and rewrite it, answer `body` bytes.
///
/// # Errors
/// One did not end well.
pub async fn served(count: usize, body: usize) -> Result<()> {
    let (mut gateway, front) = duplex(PIPE);
    let settings = ServerSettings::front();
    let server = serve(
        front,
        &settings,
        async |request: Request<Body>| {
            let (mut parts, _) = request.into_parts();
            let checked = request::check(&mut parts).map_err(|(fault, _)| fault);
            let done =
                checked.and_then(|head| request::forward(&mut parts, &head, &caller(), ForwardPolicy::Append, "r1"));
            let length = if done.is_ok() { body } else { 0 };
            Ok::<_, Infallible>(Response::new(Body::full(vec![b'x'; length])))
        },
        pending(),
    );
    alone(ask(&mut gateway, count, body), server).await
}

/// `count` requests sent by a hop's pool to an origin in memory that answers at once.
///
/// # Errors
/// One did not end well.
pub async fn sent(count: usize) -> Result<()> {
    let (near, mut far) = duplex(PIPE);
    let pool = Pool::new(OneStream::of(near), PoolSettings::default());
    let mut response =
        format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {BODY}\r\n\r\n").into_bytes();
    response.resize(response.len() + BODY, b'x');
    let origin = async {
        let mut request = Vec::with_capacity(4096);
        while matches!(far.read_buf(&mut request).await, Ok(read) if read > 0) {
            if request.ends_with(b"\r\n\r\n") {
                request.clear();
                if far.write_all(&response).await.is_err() {
                    return;
                }
            }
        }
    };
    let callers = async {
        for _ in 0..count {
            let request = http::Request::get("/orders/42?expand=lines")
                .header("host", "orders.internal")
                .header("user-agent", "gateway/1.0")
                .header("accept", "application/json")
                .body(Body::empty())?;
            match pool.send(request.into(), &Deadlines::default()).await {
                Ok(Answer::Response(response)) => {
                    let body =
                        response.into_body().read(2 * BODY).await.map_err(|fault| anyhow::anyhow!("{fault:?}"))?;
                    ensure!(body.len() == BODY, "{} bytes", body.len());
                }
                Ok(Answer::Switched(..)) => bail!("switched"),
                Err(error) => bail!("{error:?}"),
            }
        }
        Ok(())
    };
    alone(callers, origin).await
}

async fn alone(callers: impl Future<Output = Result<()>>, other: impl Future<Output = ()>) -> Result<()> {
    tokio::select! {
        biased;
        done = callers => done,
        () = other => bail!("the other side ended"),
    }
}

async fn ask(gateway: &mut DuplexStream, count: usize, body: usize) -> Result<()> {
    for _ in 0..count {
        gateway.write_all(REQUEST).await?;
        read_answer(gateway, body).await?;
    }
    Ok(())
}

fn caller() -> Caller {
    Caller { address: Some(IpAddr::from([127, 0, 0, 1])), tls: false, port: Some(8080) }
}

async fn forward(pool: &Pool<OneStream>, request: Request<Body>) -> Result<Response<Body>, Infallible> {
    let (mut parts, body) = request.into_parts();
    let checked = request::check(&mut parts).map_err(|(fault, _)| fault);
    let forwarded =
        checked.and_then(|head| request::forward(&mut parts, &head, &caller(), ForwardPolicy::Append, "r1"));
    if forwarded.is_err() {
        return Ok(Response::new(Body::full("refused")));
    }
    match pool.send(Request::from_parts(parts, body), &Deadlines::default()).await {
        Ok(Answer::Response(response)) => Ok(response),
        Ok(Answer::Switched(..)) | Err(_) => Ok(Response::new(Body::full("lost"))),
    }
}

async fn answer(request: Request<Body>, body: usize) -> Result<Response<Body>, Infallible> {
    let (mut parts, _) = request.into_parts();
    if let Ok(head) = request::check(&mut parts) {
        request::deliver(&mut parts, &head);
    }
    let mut response = Response::new(Body::full(vec![b'x'; body]));
    response.headers_mut().append("content-type", http::HeaderValue::from_static("application/json"));
    Ok(response)
}

async fn read_answer(gateway: &mut DuplexStream, body: usize) -> Result<()> {
    let mut answer = Vec::with_capacity(body + 3072);
    loop {
        let head = answer.windows(4).take(2048).position(|window| window == b"\r\n\r\n");
        if let Some(head) = head
            && answer.len() >= head + 4 + body
        {
            ensure!(answer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&answer));
            ensure!(answer.len() == head + 4 + body, "{} bytes too many", answer.len() - head - 4 - body);
            return Ok(());
        }
        ensure!(gateway.read_buf(&mut answer).await? > 0, "closed after {}", String::from_utf8_lossy(&answer));
    }
}

/// A pool's only stream.
struct OneStream(std::sync::Mutex<Option<DuplexStream>>);

impl OneStream {
    fn of(stream: DuplexStream) -> Self {
        Self(std::sync::Mutex::new(Some(stream)))
    }
}

impl Opener for OneStream {
    type Io = DuplexStream;

    async fn open(&self) -> Result<DuplexStream, Fault> {
        let stream = self.0.lock().ok().and_then(|mut only| only.take());
        stream.ok_or_else(|| Fault::new(Reason::ConnectorLost))
    }

    fn lost(&self, _: Lost<'_>) -> Fault {
        Fault::new(Reason::ConnectorLost)
    }
}
