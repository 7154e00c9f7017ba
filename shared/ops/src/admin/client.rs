//! One call to the running program, through its admin socket: how commands speak to it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::UnixStream;

use super::bind::{Near, SOCKET};
use crate::exit::{Exit, Quit};
use crate::state::StateDir;

/// The longest answer that is read.
const LONGEST_ANSWER: usize = 64 << 20;

/// Speaks to the program that runs on a state directory.
#[derive(Debug, Clone)]
pub struct Client {
    path: PathBuf,
    timeout: Duration,
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The status.
    pub status: StatusCode,
    /// The body.
    pub body: Bytes,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Nobody listens: it does not run on this state directory.
    #[error("not running: nobody answers at {}", .0.display())]
    NotRunning(PathBuf),
    /// This user may not speak to it.
    #[error("not allowed to speak to the running process at {}", .0.display())]
    Denied(PathBuf),
    /// It is there and does not answer.
    #[error("the running process at {} does not answer", .0.display())]
    Silent(PathBuf),
    /// The conversation broke.
    #[error("cannot speak to the running process at {}: {reason}", .path.display())]
    Broken {
        /// Where.
        path: PathBuf,
        /// How.
        reason: String,
    },
}

impl Client {
    /// Will speak to whoever runs on this state directory.
    pub fn new(state: &StateDir) -> Self {
        Self { path: state.path().join(SOCKET), timeout: Duration::from_secs(60) }
    }

    /// Waits this long for an answer, instead of a minute.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Where the socket is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes one call; `target` is a path and query, as `/readyz?service=orders`.
    ///
    /// # Errors
    /// [`CallError`]; any status is an answer.
    pub async fn call(&self, method: Method, target: &str, body: Option<&Value>) -> Result<Reply, CallError> {
        match tokio::time::timeout(self.timeout, self.exchange(method, target, body)).await {
            Ok(result) => result,
            Err(_) => Err(CallError::Silent(self.path.clone())),
        }
    }

    /// Reads something: GET, and the answer must be a success.
    ///
    /// # Errors
    /// The end that the answer, or its absence, means.
    pub async fn read<T: DeserializeOwned>(&self, target: &str) -> Result<T, Quit> {
        self.call(Method::GET, target, None).await?.success()
    }

    /// Changes something: POST, and the answer must be a success.
    ///
    /// # Errors
    /// The end that the answer, or its absence, means.
    pub async fn post<T: DeserializeOwned>(&self, target: &str, body: &Value) -> Result<T, Quit> {
        self.call(Method::POST, target, Some(body)).await?.success()
    }

    async fn exchange(&self, method: Method, target: &str, body: Option<&Value>) -> Result<Reply, CallError> {
        let broken = |reason: String| CallError::Broken { path: self.path.clone(), reason };
        let stream = self.connect().await?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(error.to_string()))?;
        let body = body.map(Value::to_string).unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(target)
            .header(HOST, "localhost")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| broken(error.to_string()))?;
        let answer = async {
            let response = sender.send_request(request).await.map_err(|error| broken(error.to_string()))?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, LONGEST_ANSWER).collect().await.map_err(|error| broken(error.to_string()))?;
            Ok(Reply { status: head.status, body: body.to_bytes() })
        };
        tokio::pin!(answer);
        tokio::select! {
            biased;
            reply = &mut answer => return reply,
            _ = connection => {}
        }
        // The connection may end with the answer's last byte already here.
        answer.await
    }

    async fn connect(&self) -> Result<UnixStream, CallError> {
        let path = || self.path.clone();
        let connected = match Near::new(&self.path) {
            Ok(near) => UnixStream::connect(&near.path).await,
            Err(error) => Err(error),
        };
        connected.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => CallError::NotRunning(path()),
            io::ErrorKind::PermissionDenied => CallError::Denied(path()),
            _ => CallError::Broken { path: path(), reason: error.to_string() },
        })
    }
}

impl Reply {
    /// The body of a success as JSON, or the end that the failure means.
    ///
    /// # Errors
    /// What `{error, hint, exit}` says; [`Exit::Failed`] for an answer of another shape.
    pub fn success<T: DeserializeOwned>(&self) -> Result<T, Quit> {
        if self.status.is_success() {
            let body: &[u8] = if self.body.is_empty() { b"null" } else { &self.body };
            return serde_json::from_slice(body)
                .map_err(|error| Quit::failed(format!("the running process answered something unknown: {error}")));
        }
        let body: Value = serde_json::from_slice(&self.body).unwrap_or_default();
        let said = body.get("error").and_then(Value::as_str);
        let exit = match body.get("exit").and_then(Value::as_u64) {
            Some(2) => Exit::Usage,
            Some(78) => Exit::Config,
            _ => Exit::Failed,
        };
        let message = said.map_or_else(|| format!("the running process answered {}", self.status), str::to_owned);
        let hint = body.get("hint").and_then(Value::as_str).map(str::to_owned);
        Err(Quit { exit, message, hint })
    }
}

impl From<CallError> for Quit {
    fn from(error: CallError) -> Self {
        let quit = Self::failed(error.to_string());
        match error {
            CallError::NotRunning(_) => quit.hint("start it with `run`, or say which one with --state-dir DIR"),
            CallError::Denied(_) => quit.hint("run this as its user or as root, or be in the group of [admin] group"),
            CallError::Silent(_) | CallError::Broken { .. } => quit,
        }
    }
}
