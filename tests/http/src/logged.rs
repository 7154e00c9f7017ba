//! An origin that writes down what it understood of every connection, by the strict reader.
//!
//! Must never answer what is not one whole request.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::strict::{self, Decoder, Fields, Flaw, Framing, Step};

/// Every answer.
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
/// How it ends for the caller.
pub const ANSWER_END: &[u8] = b"\r\n\r\nok";

/// A whole request, as it was understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub method: String,
    pub target: String,
    pub host: Option<String>,
    pub minor: u8,
    pub framing: Framing,
    pub body: Vec<u8>,
    pub fields: Fields,
    pub trailers: Fields,
}

/// What a connection came to.
#[derive(Debug, Clone)]
pub enum Fact {
    Whole(Seen),
    /// It ended in the middle of a request.
    Cut,
    /// It was not HTTP.
    Flaw(Flaw, Vec<u8>),
}

/// What is left behind whole requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rest {
    End,
    Cut,
    Flaw(Flaw),
}

/// Serves one connection to its end.
pub async fn serve(mut stream: impl AsyncRead + AsyncWrite + Unpin, facts: Arc<Mutex<Vec<Fact>>>) {
    let note = |fact| facts.lock().unwrap_or_else(PoisonError::into_inner).push(fact);
    let mut bytes = BytesMut::new();
    loop {
        match request(&mut bytes) {
            Ok(Some(seen)) => {
                note(Fact::Whole(seen));
                if stream.write_all(ANSWER).await.is_err() {
                    return;
                }
            }
            Ok(None) => match stream.read_buf(&mut bytes).await {
                Ok(1..) => {}
                Ok(0) | Err(_) if bytes.is_empty() => return,
                Ok(0) | Err(_) => return note(Fact::Cut),
            },
            Err(flaw) => return note(Fact::Flaw(flaw, bytes.to_vec())),
        }
    }
}

/// All whole requests in these bytes, and what follows them.
pub fn requests(bytes: &[u8]) -> (Vec<Seen>, Rest) {
    let mut bytes = BytesMut::from(bytes);
    let mut all = Vec::new();
    loop {
        // Blank lines before a request are to be ignored (RFC 9112 §2.2).
        while bytes.starts_with(b"\r\n") {
            let _ = bytes.split_to(2);
        }
        match request(&mut bytes) {
            Ok(Some(seen)) => all.push(seen),
            Ok(None) if bytes.is_empty() => return (all, Rest::End),
            Ok(None) => return (all, Rest::Cut),
            Err(flaw) => return (all, Rest::Flaw(flaw)),
        }
    }
}

/// Takes one whole request from the front.
fn request(bytes: &mut BytesMut) -> Result<Option<Seen>, Flaw> {
    let Some((head, taken)) = strict::head(bytes)? else { return Ok(None) };
    let line = head.line()?;
    let framing = head.request_framing()?;
    let mut decoder = Decoder::new(framing);
    let mut rest = bytes.clone().split_off(taken);
    let mut body = Vec::new();
    let trailers = loop {
        match decoder.step(&mut rest)? {
            Step::Data(data) => body.extend_from_slice(&data),
            Step::End(trailers) => break trailers,
            Step::More => return Ok(None),
        }
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if head.fields.all("host").count() > 1 {
        return Err(Flaw("Host twice"));
    }
    let host = head.fields.one("host").map(text);
    let (method, target, minor) = (text(line.method), text(line.target), line.minor);
    *bytes = rest;
    Ok(Some(Seen { method, target, host, minor, framing, body, fields: head.fields, trailers }))
}
