//! A caller and an origin that speak HTTP/2, for the tests of it.
#![allow(dead_code, reason = "each test uses its part")]

use std::time::Duration;

use bytes::Bytes;
use culvert_hop::pool::{Pool, PoolSettings, Speak};
use h2::client::SendRequest;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request, Response, Version};
use std::future::poll_fn;
use tokio::io::DuplexStream;
use tokio::sync::mpsc;

use crate::rig::{Options, Origins, Rig, connect, pool};

/// A caller that speaks HTTP/2 with a hop.
pub(crate) struct Caller {
    pub send: SendRequest<Bytes>,
    pub rig: Rig,
}

impl Caller {
    pub(crate) async fn with(options: Options) -> Self {
        let mut rig = Rig::with(options);
        let io = std::mem::replace(&mut rig.caller, tokio::io::duplex(1).0);
        let mut builder = h2::client::Builder::new();
        let (send, connection) = builder.initial_connection_window_size(1 << 24).handshake(io).await.unwrap();
        tokio::spawn(async move { connection.await.ok() });
        Self { send, rig }
    }

    /// Toward origins of one version.
    pub(crate) async fn toward(http2: Speak) -> Self {
        Self::with(Options { pool: speaking(http2), ..Options::default() }).await
    }

    /// Through a tunnel's stream to a connector; what its pool opens.
    pub(crate) async fn through(http2: Speak) -> (Self, mpsc::UnboundedReceiver<DuplexStream>, Pool<Origins>) {
        let mut caller = Self::with(Options {
            pool: PoolSettings { http2: Speak::AsAsked, ..PoolSettings::default() },
            ..Options::default()
        })
        .await;
        let (pool, origins) = pool(64 * 1024, speaking(http2));
        let (mut streams, connector) =
            (std::mem::replace(&mut caller.rig.origins, mpsc::unbounded_channel().1), pool.clone());
        tokio::spawn(async move {
            while let Some(stream) = streams.recv().await {
                connect(stream, connector.clone());
            }
        });
        (caller, origins, pool)
    }

    pub(crate) async fn ask(&mut self, request: Request<()>) -> (h2::client::ResponseFuture, SendStream<Bytes>) {
        let mut send = self.send.clone().ready().await.unwrap();
        send.send_request(request, false).unwrap()
    }

    pub(crate) async fn get(&mut self, request: Request<()>) -> Result<Response<RecvStream>, h2::Error> {
        let mut send = self.send.clone().ready().await?;
        send.send_request(request, true)?.0.await
    }
}

pub(crate) fn speaking(http2: Speak) -> PoolSettings {
    PoolSettings { http2, exchanges_per_connection: 100, ..PoolSettings::default() }
}

pub(crate) fn to(path: &str) -> http::request::Builder {
    Request::builder().version(Version::HTTP_2).uri(format!("http://orders{path}"))
}

/// An origin that speaks HTTP/2: its exchanges as they come.
pub(crate) fn origin(io: DuplexStream) -> mpsc::UnboundedReceiver<(Request<RecvStream>, SendResponse<Bytes>)> {
    let (sender, receiver) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let Ok(mut connection) = h2::server::handshake(io).await else { return };
        while let Some(Ok(exchange)) = connection.accept().await {
            let _ = sender.send(exchange);
        }
    });
    receiver
}

pub(crate) async fn soon<T>(event: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10_000), event).await.expect("waited in vain")
}

pub(crate) async fn data(body: &mut RecvStream) -> Result<Bytes, h2::Error> {
    let mut all = Vec::new();
    while let Some(data) = soon(body.data()).await {
        let data = data?;
        body.flow_control().release_capacity(data.len()).unwrap();
        all.extend_from_slice(&data);
    }
    Ok(all.into())
}

pub(crate) async fn reset_of(stream: &mut SendResponse<Bytes>) -> h2::Reason {
    soon(poll_fn(|cx| stream.poll_reset(cx))).await.unwrap()
}

pub(crate) fn trailers(name: &'static str, value: &'static str) -> HeaderMap {
    let mut fields = HeaderMap::new();
    fields.insert(name, value.parse().unwrap());
    fields
}
