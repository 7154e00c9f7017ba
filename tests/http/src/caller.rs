//! A gateway that a test plays, in HTTP/1.1 or HTTP/2: one call at a time, each step by itself.
//!
//! Must never add to a request what the test did not say, but for what its version demands.

use std::future::poll_fn;

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, RecvStream, SendStream};

use crate::strict::{Decoder, Fields, Framing};
use crate::two;
use crate::wire::Wire;

/// What is asked.
#[derive(Debug, Clone)]
pub struct Ask {
    pub method: &'static str,
    pub target: String,
    pub host: String,
    pub fields: Fields,
    pub framing: Framing,
    /// A WebSocket by extended CONNECT, where the version has it.
    pub protocol: Option<&'static str>,
}

impl Ask {
    pub fn new(method: &'static str, target: &str) -> Self {
        let target = target.to_owned();
        Self { method, target, host: String::new(), fields: Fields::default(), framing: Framing::None, protocol: None }
    }

    pub fn with(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.fields.push(name, value.as_ref());
        self
    }

    pub fn body(mut self, framing: Framing) -> Self {
        self.framing = framing;
        self
    }
}

/// What was answered.
#[derive(Debug, Clone)]
pub struct Heard {
    pub status: u16,
    pub fields: Fields,
    /// The 1xx before it.
    pub informational: Vec<(u16, Fields)>,
}

/// A call under way.
#[derive(Debug)]
pub enum Call {
    One(One),
    Two(Two),
}

#[derive(Debug)]
pub struct One {
    pub wire: Wire,
    method: &'static str,
    asked: Framing,
    decoder: Decoder,
    is_raw: bool,
}

#[derive(Debug)]
pub struct Two {
    response: Option<ResponseFuture>,
    sending: SendStream<Bytes>,
    body: Option<RecvStream>,
    /// Keeps the connection.
    requests: SendRequest<Bytes>,
}

impl Call {
    /// Asks by HTTP/1.1.
    ///
    /// # Errors
    /// The other side is gone.
    pub async fn one(mut wire: Wire, ask: &Ask) -> Result<Self> {
        let mut head = format!("{} {} HTTP/1.1\r\nHost: {}\r\n", ask.method, ask.target, ask.host).into_bytes();
        write_fields(&mut head, &ask.fields);
        match ask.framing {
            Framing::Length(length) => head.extend_from_slice(format!("Content-Length: {length}\r\n").as_bytes()),
            Framing::Chunked => head.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
            Framing::None | Framing::UntilClose => {}
        }
        head.extend_from_slice(b"\r\n");
        wire.write(&head).await?;
        let decoder = Decoder::new(Framing::None);
        Ok(Self::One(One { wire, method: ask.method, asked: ask.framing, decoder, is_raw: false }))
    }

    /// Asks by HTTP/2.
    ///
    /// # Errors
    /// The other side speaks something else, or is gone.
    pub async fn two(wire: Wire, ask: &Ask, is_tls: bool) -> Result<Self> {
        let (requests, connection) = h2::client::handshake(wire.into_stream()).await.context("HTTP/2")?;
        tokio::spawn(async move {
            let _ = connection.await;
        });
        Self::two_over(requests, ask, is_tls).await
    }

    /// Asks by HTTP/2 on a connection that is there.
    ///
    /// # Errors
    /// It is gone.
    pub async fn two_over(requests: SendRequest<Bytes>, ask: &Ask, is_tls: bool) -> Result<Self> {
        let scheme = if is_tls { "https" } else { "http" };
        let uri = http::Uri::builder().scheme(scheme).authority(ask.host.as_str()).path_and_query(ask.target.as_str());
        let uri = uri.build()?;
        let mut request =
            http::Request::builder().method(ask.method).uri(uri).version(http::Version::HTTP_2).body(())?;
        *request.headers_mut() = two::map(&ask.fields)?;
        if let Framing::Length(length) = ask.framing {
            request.headers_mut().insert("content-length", length.into());
        }
        let mut requests = requests.ready().await.context("HTTP/2")?;
        if let Some(protocol) = ask.protocol {
            for _ in 0..200 {
                if requests.is_extended_connect_protocol_enabled() {
                    break;
                }
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
            ensure!(requests.is_extended_connect_protocol_enabled(), "extended CONNECT is not offered");
            request.extensions_mut().insert(h2::ext::Protocol::from_static(protocol));
        }
        let ends = matches!(ask.framing, Framing::None) && ask.protocol.is_none();
        let (response, sending) = requests.send_request(request, ends).context("ask")?;
        Ok(Self::Two(Two { response: Some(response), sending, body: None, requests }))
    }

    /// Sends a piece of the body, or raw bytes after a switch.
    ///
    /// # Errors
    /// The other side is gone.
    pub async fn send(&mut self, data: impl Into<Bytes>) -> Result<()> {
        let data = data.into();
        match self {
            Self::One(one) if one.asked == Framing::Chunked && !one.is_raw => {
                let mut piece = format!("{:x}\r\n", data.len()).into_bytes();
                piece.extend_from_slice(&data);
                piece.extend_from_slice(b"\r\n");
                one.wire.write(&piece).await
            }
            Self::One(one) => one.wire.write(&data).await,
            Self::Two(two) => two::send(&mut two.sending, data).await,
        }
    }

    /// Ends the body.
    ///
    /// # Errors
    /// The other side is gone.
    pub async fn finish(&mut self, trailers: &Fields) -> Result<()> {
        match self {
            Self::One(one) if one.is_raw => one.wire.shut().await,
            Self::One(one) if one.asked == Framing::Chunked => {
                let mut end = b"0\r\n".to_vec();
                write_fields(&mut end, trailers);
                end.extend_from_slice(b"\r\n");
                one.wire.write(&end).await
            }
            Self::One(_) => Ok(()),
            Self::Two(two) => two::finish(&mut two.sending, trailers),
        }
    }

    /// Waits for the head of the answer.
    ///
    /// # Errors
    /// There is none.
    pub async fn head(&mut self) -> Result<Heard> {
        let mut informational = Vec::new();
        match self {
            Self::One(one) => loop {
                let head = one.wire.head().await?.context("the connection ended without an answer")?;
                let status = head.status()?;
                if status < 200 && status != 101 {
                    informational.push((status, head.fields));
                    continue;
                }
                one.decoder = Decoder::new(head.response_framing(one.method)?);
                one.is_raw = status == 101;
                return Ok(Heard { status, fields: head.fields, informational });
            },
            Self::Two(two) => {
                let mut response = two.response.take().context("the answer was taken before")?;
                while let Some(early) = poll_fn(|cx| response.poll_informational(cx)).await {
                    let early = early.context("1xx")?;
                    informational.push((early.status().as_u16(), two::fields(early.headers())));
                }
                let (head, body) = response.await.context("answer")?.into_parts();
                two.body = Some(body);
                Ok(Heard { status: head.status.as_u16(), fields: two::fields(&head.headers), informational })
            }
        }
    }

    /// The next piece of the answer's body; `Err(trailers)` at its clean end.
    ///
    /// # Errors
    /// It was cut, or is ill-formed.
    pub async fn piece(&mut self) -> Result<Result<Bytes, Fields>> {
        match self {
            Self::One(one) if one.is_raw => Ok(one.wire.raw().await?.ok_or_else(Fields::default)),
            Self::One(one) => one.wire.piece(&mut one.decoder).await,
            Self::Two(two) => two::piece(two.body.as_mut().context("no head yet")?).await,
        }
    }

    /// The whole of the answer's body, and its trailers.
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

    /// Exactly so many bytes of it, and not more.
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
        ensure!(
            heard == expected,
            "{:?} in place of {:?}",
            String::from_utf8_lossy(&heard),
            String::from_utf8_lossy(expected)
        );
        Ok(())
    }

    /// Goes away in the middle.
    pub fn leave(self) {
        match self {
            Self::One(one) => one.wire.reset(),
            Self::Two(mut two) => two.sending.send_reset(Reason::CANCEL),
        }
    }

    /// Another call on the same connection of HTTP/2.
    ///
    /// # Errors
    /// It is gone, or not HTTP/2.
    pub async fn beside(&self, ask: &Ask, is_tls: bool) -> Result<Self> {
        match self {
            Self::One(_) => bail!("HTTP/1.1 has one call at a time"),
            Self::Two(two) => Self::two_over(two.requests.clone(), ask, is_tls).await,
        }
    }

    /// Whether the sides of this call speak HTTP/2.
    pub fn is_two(&self) -> bool {
        matches!(self, Self::Two(_))
    }
}

/// Writes fields as they are.
pub fn write_fields(out: &mut Vec<u8>, fields: &Fields) {
    for (name, value) in &fields.0 {
        out.extend_from_slice(name);
        out.extend_from_slice(b": ");
        out.extend_from_slice(value);
        out.extend_from_slice(b"\r\n");
    }
}
