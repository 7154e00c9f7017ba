//! The admin server: health and metrics for anyone who can reach it, the API for this host, changes through a socket.
//!
//! Must never take a change over TCP, and never answer the API to a page that rebinds its name to 127.0.0.1
//! (interface.md §3).

mod bind;
mod client;
mod host;
mod server;

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;

use bytes::Bytes;
use http::{Method, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::exit::{Exit, Quit};

pub use bind::{AdminSocket, bind_tcp};
pub use client::{CallError, Client, Reply};
pub use server::{serve_socket, serve_tcp};

/// What a program answers on its admin server.
pub trait Admin: Send + Sync + 'static {
    /// Its health now.
    fn health(&self) -> Health;

    /// Its metrics as text (see [`crate::metrics::Metrics::text`]).
    fn metrics(&self) -> String;

    /// One call below `/api/v1/`. Over TCP only GET comes here, over the socket every method.
    fn api(&self, call: Call) -> impl Future<Output = Answer> + Send;
}

/// What `/readyz` says.
#[derive(Debug, Clone, Default)]
pub struct Health {
    /// On its way out.
    pub draining: bool,
    /// Why it is not ready; empty: it is, unless it drains.
    pub reasons: Vec<String>,
    /// Pairs of connector and service.
    pub services: BTreeMap<String, Pairs>,
    /// More fields of the body that decide nothing, as `registry: degraded`.
    pub notes: BTreeMap<&'static str, Value>,
}

/// How many pairs of a service are up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Pairs {
    /// Up now.
    pub up: usize,
    /// Known.
    pub total: usize,
}

/// One call of the API.
#[derive(Debug, Clone)]
pub struct Call {
    /// GET, or over the socket any.
    pub method: Method,
    /// The path from `/api/v1/` on, undecoded.
    pub path: String,
    /// The query, undecoded, without the question mark.
    pub query: String,
    /// The body, 1 MiB at most.
    pub body: Bytes,
    /// Who calls.
    pub caller: Caller,
}

/// Who calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// Over TCP, from this address.
    Tcp(SocketAddr),
    /// Over the socket: the kernel's word on who that is.
    Socket {
        /// The user.
        uid: u32,
        /// The process.
        pid: Option<i32>,
    },
}

/// The answer to a call.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The JSON body.
    pub body: Value,
}

/// The admin server cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// Somebody else listens there.
    #[error("the admin address {0} is in use")]
    InUse(SocketAddr),
    /// The address cannot be listened on.
    #[error("cannot listen on the admin address {address}: {source}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The socket cannot be made.
    #[error("cannot make the admin socket {}: {source}", .path.display())]
    Socket {
        /// Which.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The host has no such group.
    #[error("no group {0:?} on this host for the admin socket")]
    NoGroup(String),
}

impl Health {
    /// Whether it is ready, of itself or for one service.
    pub fn is_ready(&self, service: Option<&str>) -> bool {
        match service {
            None => !self.draining && self.reasons.is_empty(),
            Some(name) => !self.draining && self.services.get(name).is_some_and(|pairs| pairs.up > 0),
        }
    }

    /// The body of `/readyz`.
    pub fn body(&self, service: Option<&str>) -> Value {
        let services: BTreeMap<_, _> =
            self.services.iter().filter(|(name, _)| service.is_none_or(|wanted| wanted == *name)).collect();
        let mut reasons = self.reasons.clone();
        match service {
            Some(name) if !services.contains_key(&name.to_owned()) => reasons.push(format!("no service {name:?}")),
            Some(name) if !services.values().any(|pairs| pairs.up > 0) => {
                reasons.push(format!("no pair of {name:?} is up"))
            }
            Some(_) | None => {}
        }
        let mut body = Map::new();
        body.insert("ready".to_owned(), self.is_ready(service).into());
        body.insert("draining".to_owned(), self.draining.into());
        body.insert("reasons".to_owned(), reasons.into());
        body.insert("services".to_owned(), json!(services));
        for (name, note) in &self.notes {
            body.insert((*name).to_owned(), note.clone());
        }
        Value::Object(body)
    }
}

impl Call {
    /// A field of the query, decoded.
    pub fn query(&self, name: &str) -> Option<String> {
        query_field(&self.query, name)
    }

    /// The body read from JSON.
    ///
    /// # Errors
    /// The answer to give: 400 with what is wrong.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Answer> {
        serde_json::from_slice(&self.body).map_err(|error| Answer::from(Quit::usage(format!("wrong body: {error}"))))
    }

    /// The parts of the path behind `/api/v1/`, decoded: `["tunnels", "dc1"]`.
    pub fn parts(&self) -> Vec<String> {
        let rest = self.path.strip_prefix("/api/v1/").unwrap_or_default();
        rest.split('/').filter(|part| !part.is_empty()).map(|part| decode(part, false)).collect()
    }
}

impl Answer {
    /// 200 with a body.
    pub fn ok(body: impl Serialize) -> Self {
        match serde_json::to_value(body) {
            Ok(body) => Self { status: StatusCode::OK, body },
            Err(error) => Self::from(Quit::failed(format!("cannot write the answer: {error}"))),
        }
    }

    /// 404: no such thing.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self { status: StatusCode::NOT_FOUND, ..Self::from(Quit::failed(message)) }
    }

    /// 405: the path does not take the method.
    pub fn wrong_method() -> Self {
        Self { status: StatusCode::METHOD_NOT_ALLOWED, ..Self::from(Quit::usage("this path does not take the method")) }
    }
}

/// What went wrong, so that the calling command ends as if it had happened there: `{error, hint, exit}`.
impl From<Quit> for Answer {
    fn from(quit: Quit) -> Self {
        let status = match quit.exit {
            Exit::Ok => StatusCode::OK,
            Exit::Usage => StatusCode::BAD_REQUEST,
            Exit::Config => StatusCode::UNPROCESSABLE_ENTITY,
            Exit::Failed => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self { status, body: json!({ "error": quit.message, "hint": quit.hint, "exit": quit.exit as u8 }) }
    }
}

impl From<AdminError> for Quit {
    fn from(error: AdminError) -> Self {
        let text = error.to_string();
        match error {
            AdminError::InUse(_) => {
                Self::failed(text).hint("stop what listens there, or give another --admin-listen ADDR")
            }
            AdminError::Listen { .. } => Self::config(text).hint("give an address of this host with --admin-listen"),
            AdminError::NoGroup(_) => Self::config(text).hint("make the group, or change [admin] group"),
            AdminError::Socket { .. } => Self::failed(text),
        }
    }
}

fn query_field(query: &str, name: &str) -> Option<String> {
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode(key, true) == name).then(|| decode(value, true))
    })
}

/// Undoes percent-encoding; what is no encoding stays as it is.
fn decode(text: &str, form: bool) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let code = after.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        let code = code.filter(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()));
        match (first, code.and_then(|hex| u8::from_str_radix(hex, 16).ok())) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = after.get(2..).unwrap_or_default();
            }
            (b'+', _) if form => {
                bytes.push(b' ');
                rest = after;
            }
            _ => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests;
