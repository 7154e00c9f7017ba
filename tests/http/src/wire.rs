//! One connection of bytes, on either side, read strictly.
//!
//! Must never take the end of a connection for the end of a message that promised more.

use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use bytes::{Bytes, BytesMut};
use socket2::SockRef;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};

use crate::strict::{self, Decoder, Fields, Head, Step};

/// A stream of any kind.
pub trait Io: AsyncRead + AsyncWrite + Unpin + Send + Sync {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send + Sync> Io for T {}

/// What a connection is made of.
pub type Stream = Box<dyn Io>;

pub struct Wire {
    io: Stream,
    buffer: BytesMut,
    socket: Option<std::net::TcpStream>,
}

impl std::fmt::Debug for Wire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wire").field("buffer", &self.buffer).finish_non_exhaustive()
    }
}

impl Wire {
    pub fn new(io: Stream, socket: Option<std::net::TcpStream>) -> Self {
        Self { io, buffer: BytesMut::new(), socket }
    }

    /// Connects by TCP.
    ///
    /// # Errors
    /// Nobody listens there.
    pub async fn connect(to: SocketAddr) -> Result<Self> {
        let (stream, socket) = dial(to).await?;
        Ok(Self::new(Box::new(stream), Some(socket)))
    }

    /// Connects to a unix socket.
    ///
    /// # Errors
    /// Nobody listens there.
    pub async fn connect_unix(to: &Path) -> Result<Self> {
        let stream = UnixStream::connect(to).await.with_context(|| to.display().to_string())?;
        Ok(Self::new(Box::new(stream), None))
    }

    /// Writes all of it.
    ///
    /// # Errors
    /// The other side is gone.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.io.write_all(bytes).await.context("write")?;
        self.io.flush().await.context("flush")
    }

    /// Ends the sending side.
    ///
    /// # Errors
    /// The other side is gone.
    pub async fn shut(&mut self) -> Result<()> {
        self.io.shutdown().await.context("shut down")
    }

    /// A head; `None` at the end of the connection between two messages.
    ///
    /// # Errors
    /// A flawed one, or a cut.
    pub async fn head(&mut self) -> Result<Option<Head>> {
        loop {
            if let Some((head, taken)) = strict::head(&self.buffer)? {
                let _ = self.buffer.split_to(taken);
                return Ok(Some(head));
            }
            if !self.fill().await? {
                ensure!(self.buffer.is_empty(), "cut in a head: {:?}", self.buffer);
                return Ok(None);
            }
        }
    }

    /// The next piece of a body; at its end its trailers.
    ///
    /// # Errors
    /// A flawed body, or a cut.
    pub async fn piece(&mut self, decoder: &mut Decoder) -> Result<Result<Bytes, Fields>> {
        loop {
            match decoder.step(&mut self.buffer)? {
                Step::Data(data) => return Ok(Ok(data)),
                Step::End(trailers) => return Ok(Err(trailers)),
                Step::More if self.fill().await? => {}
                Step::More if decoder.may_end() => return Ok(Err(Fields::default())),
                Step::More => bail!("cut in a body"),
            }
        }
    }

    /// Raw bytes; `None` at the end.
    ///
    /// # Errors
    /// A reset.
    pub async fn raw(&mut self) -> Result<Option<Bytes>> {
        if self.buffer.is_empty() && !self.fill().await? {
            return Ok(None);
        }
        Ok(Some(self.buffer.split().freeze()))
    }

    /// Closes so that the other side sees a reset where its kind of socket knows one.
    pub fn reset(self) {
        if let Some(socket) = &self.socket {
            let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
        }
    }

    /// The stream below, of which nothing was read that is not used.
    pub fn into_stream(self) -> Stream {
        self.io
    }

    async fn fill(&mut self) -> Result<bool> {
        self.buffer.reserve(64 * 1024);
        Ok(self.io.read_buf(&mut self.buffer).await.context("read")? > 0)
    }
}

/// A TCP connection and a second handle of its socket.
///
/// # Errors
/// Nobody listens there.
pub async fn dial(to: SocketAddr) -> Result<(TcpStream, std::net::TcpStream)> {
    let stream = TcpStream::connect(to).await.with_context(|| format!("connect to {to}"))?;
    twin(stream)
}

/// The same for an accepted one.
///
/// # Errors
/// The socket cannot be held twice.
pub fn twin(stream: TcpStream) -> Result<(TcpStream, std::net::TcpStream)> {
    stream.set_nodelay(true)?;
    let owned = SockRef::from(&stream).try_clone()?;
    Ok((stream, owned.into()))
}
