//! The server side of a hop: one HTTP/1.1 connection of a gateway at the front, or one tunnel stream at the gate.
//!
//! Must never answer a malformed head without its name, or take a request's client for gone while it may be listening.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use culvert_model::reason::Reason;
use http::{Request, Response};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::body::Body;

/// Settings of a server.
#[derive(Clone)]
pub struct ServerSettings {
    /// From the first byte of a head to its last.
    pub head_timeout: Duration,
    /// Without a request.
    pub keep_alive: Duration,
    /// The largest head, in bytes.
    pub max_head: usize,
    /// How long a client that has closed its sending side is still answered while nothing was written.
    pub half_close: Duration,
    /// Whether the case of field names is kept.
    pub preserve_case: bool,
    /// Told of requests that were refused before they became one.
    pub refused: Option<Arc<dyn Fn(Reason) + Send + Sync>>,
}

impl ServerSettings {
    /// For gateways.
    pub fn front() -> Self {
        todo!()
    }

    /// For the streams of a tunnel.
    pub fn gate() -> Self {
        todo!()
    }
}

/// Serves one connection until it ends. When `drain` completes, the request in flight is finished and the connection
/// closed after it.
pub async fn serve<Io, S, F>(_io: Io, _settings: &ServerSettings, _service: S, _drain: impl Future<Output = ()>)
where
    Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Fn(Request<Body>) -> F,
    F: Future<Output = Result<Response<Body>, Infallible>>,
{
    todo!()
}
