//! An origin that a test plays, in HTTP/1.1 or HTTP/2: each request is handed to the cell that it is for.
//!
//! Must never answer by itself.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use tokio::sync::mpsc;

use crate::caller::write_fields;
use crate::strict::{Decoder, Fields, Framing, Head};
use crate::two;
use crate::wire::{Stream, Wire};

/// The field that says which cell a request belongs to.
pub const CELL: &str = "x-cell";

/// Where requests go.
#[derive(Debug, Clone, Default)]
pub struct Desk(Arc<Mutex<HashMap<String, mpsc::UnboundedSender<Taken>>>>);

impl Desk {
    /// What comes for a cell from now on.
    pub fn open(&self, cell: &str) -> mpsc::UnboundedReceiver<Taken> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.lock().insert(cell.to_owned(), sender);
        receiver
    }

    fn hand_over(&self, cell: &str, taken: Taken) {
        if let Some(sender) = self.lock().get(cell) {
            let _ = sender.send(taken);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, mpsc::UnboundedSender<Taken>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request that came, to be read and answered.
#[derive(Debug)]
pub struct Taken {
    pub method: String,
    pub target: String,
    /// `Host` or `:authority`.
    pub host: String,
    pub fields: Fields,
    pub framing: Framing,
    side: Side,
}

#[derive(Debug)]
enum Side {
    One {
        wire: Wire,
        decoder: Decoder,
        answered: Framing,
        is_raw: bool,
        back: Option<tokio::sync::oneshot::Sender<Wire>>,
    },
    Two {
        answer: SendResponse<Bytes>,
        body: RecvStream,
        sending: Option<SendStream<Bytes>>,
    },
}

/// Serves one connection of HTTP/1.1: the next request is read only once the cell has given the connection back.
pub async fn serve_one(mut wire: Wire, desk: Desk) {
    while let Ok(Some(head)) = wire.head().await {
        let (back, given) = tokio::sync::oneshot::channel();
        let cell = head.fields.text(CELL);
        match Taken::one(wire, head, back) {
            Ok(taken) => desk.hand_over(&cell, taken),
            Err(error) => {
                eprintln!("an origin got what is no request: {error:#}");
                return;
            }
        }
        match given.await {
            Ok(again) => wire = again,
            Err(_) => return,
        }
    }
}

/// Serves one connection of HTTP/2.
pub async fn serve_two(io: Stream, desk: Desk) {
    let mut builder = h2::server::Builder::new();
    let Ok(mut connection) = builder.enable_connect_protocol().handshake::<_, Bytes>(io).await else { return };
    while let Some(Ok((request, answer))) = connection.accept().await {
        let (head, body) = request.into_parts();
        let fields = two::fields(&head.headers);
        let host = head.uri.authority().map_or_else(|| fields.text("host"), |authority| authority.to_string());
        let framing = match fields.one("content-length") {
            Some(length) => String::from_utf8_lossy(length).parse().map_or(Framing::None, Framing::Length),
            None if body.is_end_stream() => Framing::None,
            None => Framing::Chunked,
        };
        let taken = Taken {
            method: head.method.to_string(),
            target: head.uri.path_and_query().map_or("", |target| target.as_str()).to_owned(),
            host,
            framing,
            side: Side::Two { answer, body, sending: None },
            fields,
        };
        let cell = taken.fields.text(CELL);
        desk.hand_over(&cell, taken);
    }
}

impl Taken {
    fn one(wire: Wire, head: Head, back: tokio::sync::oneshot::Sender<Wire>) -> Result<Self> {
        let line = head.line()?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let framing = head.request_framing()?;
        let host = text(head.fields.one("host").context("no Host, or two")?);
        let (method, target) = (text(line.method), text(line.target));
        let decoder = Decoder::new(framing);
        let side = Side::One { wire, decoder, answered: Framing::None, is_raw: false, back: Some(back) };
        Ok(Self { method, target, host, framing, side, fields: head.fields })
    }

    /// Whether the connector speaks HTTP/2 here.
    pub fn is_two(&self) -> bool {
        matches!(self.side, Side::Two { .. })
    }

    /// The next piece of the request's body; `Err(trailers)` at its clean end.
    ///
    /// # Errors
    /// It was cut, or is ill-formed.
    pub async fn piece(&mut self) -> Result<Result<Bytes, Fields>> {
        match &mut self.side {
            Side::One { wire, is_raw: true, .. } => Ok(wire.raw().await?.ok_or_else(Fields::default)),
            Side::One { wire, decoder, .. } => wire.piece(decoder).await,
            Side::Two { body, .. } => two::piece(body).await,
        }
    }

    /// The whole of it, and its trailers.
    ///
    /// # Errors
    /// It was cut, or is ill-formed.
    pub async fn rest(&mut self) -> Result<(Vec<u8>, Fields)> {
        let mut body = Vec::new();
        loop {
            match self.piece().await? {
                Ok(data) => body.extend_from_slice(&data),
                Err(trailers) => return Ok((body, trailers)),
            }
        }
    }

    /// Exactly so many bytes of it.
    ///
    /// # Errors
    /// Other ones, or an end.
    pub async fn exactly(&mut self, expected: &[u8]) -> Result<()> {
        let mut heard = Vec::new();
        while heard.len() < expected.len() {
            match self.piece().await? {
                Ok(data) => heard.extend_from_slice(&data),
                Err(_) => bail!("ended after {:?}", String::from_utf8_lossy(&heard)),
            }
        }
        anyhow::ensure!(heard == expected, "{:?} came", String::from_utf8_lossy(&heard));
        Ok(())
    }

    /// Sends a 1xx.
    ///
    /// # Errors
    /// The other side is gone.
    pub async fn inform(&mut self, status: u16, fields: &Fields) -> Result<()> {
        match &mut self.side {
            Side::One { wire, .. } => {
                let mut head = format!("HTTP/1.1 {status} Early\r\n").into_bytes();
                write_fields(&mut head, fields);
                head.extend_from_slice(b"\r\n");
                wire.write(&head).await
            }
            Side::Two { answer, .. } => {
                let mut response = http::Response::builder().status(status).body(())?;
                *response.headers_mut() = two::map(fields)?;
                answer.send_informational(response).context("1xx")
            }
        }
    }

    /// Sends the head of the answer.
    ///
    /// # Errors
    /// The other side is gone.
    pub async fn answer(&mut self, status: u16, fields: &Fields, framing: Framing) -> Result<()> {
        match &mut self.side {
            Side::One { wire, answered, is_raw, back, .. } => {
                let mut head = format!("HTTP/1.1 {status} Said\r\n").into_bytes();
                write_fields(&mut head, fields);
                match framing {
                    Framing::Length(length) => {
                        head.extend_from_slice(format!("Content-Length: {length}\r\n").as_bytes())
                    }
                    Framing::Chunked => head.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
                    Framing::None | Framing::UntilClose => {}
                }
                if fields.all("connection").next().is_none() {
                    head.extend_from_slice(b"Connection: close\r\n");
                    *back = None;
                }
                head.extend_from_slice(b"\r\n");
                *answered = framing;
                *is_raw = status == 101;
                wire.write(&head).await
            }
            Side::Two { answer, sending, .. } => {
                let mut response = http::Response::builder().status(status).body(())?;
                *response.headers_mut() = two::map(fields)?;
                if let Framing::Length(length) = framing {
                    response.headers_mut().insert("content-length", length.into());
                }
                *sending = Some(answer.send_response(response, framing == Framing::None).context("answer")?);
                Ok(())
            }
        }
    }

    /// Sends a piece of the answer's body, or raw bytes after a switch.
    ///
    /// # Errors
    /// The other side is gone.
    pub async fn send(&mut self, data: impl Into<Bytes>) -> Result<()> {
        let data = data.into();
        match &mut self.side {
            Side::One { wire, answered: Framing::Chunked, is_raw: false, .. } => {
                let mut piece = format!("{:x}\r\n", data.len()).into_bytes();
                piece.extend_from_slice(&data);
                piece.extend_from_slice(b"\r\n");
                wire.write(&piece).await
            }
            Side::One { wire, .. } => wire.write(&data).await,
            Side::Two { sending, .. } => two::send(sending.as_mut().context("no head yet")?, data).await,
        }
    }

    /// Ends the answer.
    ///
    /// # Errors
    /// The other side is gone.
    pub async fn finish(&mut self, trailers: &Fields) -> Result<()> {
        match &mut self.side {
            Side::One { wire, answered: Framing::Chunked, is_raw: false, .. } => {
                let mut end = b"0\r\n".to_vec();
                write_fields(&mut end, trailers);
                end.extend_from_slice(b"\r\n");
                wire.write(&end).await
            }
            Side::One { wire, answered: Framing::UntilClose, .. } | Side::One { wire, is_raw: true, .. } => {
                wire.shut().await
            }
            Side::One { .. } => Ok(()),
            Side::Two { sending, .. } => two::finish(sending.as_mut().context("no head yet")?, trailers),
        }
    }

    /// Answers in one go.
    ///
    /// # Errors
    /// The other side is gone.
    pub async fn reply(&mut self, status: u16, fields: &Fields, body: &[u8]) -> Result<()> {
        let is_empty = body.is_empty();
        let framing = if is_empty && self.is_two() { Framing::None } else { Framing::Length(body.len() as u64) };
        self.answer(status, fields, framing).await?;
        if framing != Framing::None {
            self.send(Bytes::copy_from_slice(body)).await?;
            self.finish(&Fields::default()).await?;
        }
        Ok(())
    }

    /// Gives the connection back for the next request; it was read and answered whole.
    pub fn keep(self) {
        if let Side::One { wire, back: Some(back), .. } = self.side {
            let _ = back.send(wire);
        }
    }

    /// Breaks off.
    pub fn reset(self) {
        match self.side {
            Side::One { wire, .. } => wire.reset(),
            Side::Two { mut answer, sending: None, .. } => answer.send_reset(Reason::INTERNAL_ERROR),
            Side::Two { sending: Some(mut sending), .. } => sending.send_reset(Reason::INTERNAL_ERROR),
        }
    }

    /// Waits until the other side has given up this exchange.
    pub async fn gone(&mut self) {
        match &mut self.side {
            Side::One { wire, .. } => while let Ok(Some(_)) = wire.raw().await {},
            Side::Two { sending: Some(sending), .. } => two::reset(sending).await,
            Side::Two { answer, .. } => {
                let _ = std::future::poll_fn(|cx| answer.poll_reset(cx)).await;
            }
        }
    }
}
