//! WebSocket frames (RFC 6455 §5), as much as a test needs: unfragmented text below 64 KiB, close, their echo.

use anyhow::{Context as _, Result, bail, ensure};
use base64::Engine as _;
use bytes::Bytes;
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use sha1::{Digest as _, Sha1};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// What came in one frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Text.
    Text(String),
    /// Close, with its code if it had one.
    Close(Option<u16>),
    /// The bytes ended without a close frame.
    End,
}

/// An open WebSocket on the caller's side.
#[derive(Debug)]
pub struct WebSocket {
    io: TokioIo<hyper::upgrade::Upgraded>,
}

/// The answer to a `Sec-WebSocket-Key` (RFC 6455 §4.2.2).
pub fn accept(key: &str) -> String {
    let digest = Sha1::new().chain_update(key).chain_update("258EAFA5-E914-47DA-95CA-C5AB0DC85B11").finalize();
    base64::engine::general_purpose::STANDARD.encode(digest)
}

impl WebSocket {
    /// Opens one.
    ///
    /// # Errors
    /// The upgrade was refused or wrong.
    pub async fn open(to: SocketAddr, host: &str, path: &str) -> Result<Self> {
        let key = "dGhlIHNhbXBsZSBub25jZQ==";
        let stream = TcpStream::connect(to).await?;
        stream.set_nodelay(true)?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(async move {
            let _ = connection.with_upgrades().await;
        });
        let request = http::Request::builder()
            .uri(path)
            .header("host", host)
            .header("connection", "Upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", key)
            .body(Empty::<Bytes>::new())?;
        let response = sender.send_request(request).await?;
        ensure!(response.status() == 101, "the upgrade was answered {}", response.status());
        let answered = response.headers().get("sec-websocket-accept").context("no sec-websocket-accept")?;
        ensure!(answered.to_str()? == accept(key), "wrong sec-websocket-accept {answered:?}");
        let upgraded = hyper::upgrade::on(response).await?;
        Ok(Self { io: TokioIo::new(upgraded) })
    }

    /// Sends text.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn send(&mut self, text: &str) -> Result<()> {
        write(&mut self.io, 1, text.as_bytes(), true).await
    }

    /// Sends large messages without reading until nothing has been taken for `pause`. The mask is zero, so that
    /// neither end spends its time on it.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn fill(&mut self, pause: Duration) -> Result<()> {
        let payload = 32 * 1024_u16;
        let [high, low] = payload.to_be_bytes();
        let mut frame = vec![0x81, 0x80 | 126, high, low, 0, 0, 0, 0];
        frame.resize(frame.len() + usize::from(payload), b'x');
        while let Ok(sent) = tokio::time::timeout(pause, self.io.write_all(&frame)).await {
            sent?;
        }
        Ok(())
    }

    /// Waits for the next message.
    ///
    /// # Errors
    /// The connection was reset, or spoke something else.
    pub async fn receive(&mut self) -> Result<Message> {
        read(&mut self.io).await
    }
}

/// Echoes until the other side closes.
///
/// # Errors
/// The connection broke.
pub async fn echo<S: AsyncRead + AsyncWrite + Unpin>(mut io: S) -> Result<()> {
    loop {
        match read(&mut io).await? {
            Message::Text(text) => write(&mut io, 1, text.as_bytes(), false).await?,
            Message::Close(code) => {
                write(&mut io, 8, &code.unwrap_or(1000).to_be_bytes(), false).await?;
                return Ok(());
            }
            Message::End => return Ok(()),
        }
    }
}

async fn write<S: AsyncWrite + Unpin>(io: &mut S, opcode: u8, payload: &[u8], masked: bool) -> Result<()> {
    // Shorter than 126 fits the first length; 126 says that two bytes of length follow.
    let length = u8::try_from(payload.len()).ok().filter(|length| *length < 126);
    let mut frame = vec![0x80 | opcode, length.unwrap_or(126) | if masked { 0x80 } else { 0 }];
    if length.is_none() {
        frame.extend_from_slice(&u16::try_from(payload.len())?.to_be_bytes());
    }
    if masked {
        let mask = [0x11, 0x22, 0x33, 0x44];
        frame.extend_from_slice(&mask);
        frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    } else {
        frame.extend_from_slice(payload);
    }
    io.write_all(&frame).await?;
    io.flush().await?;
    Ok(())
}

async fn read<S: AsyncRead + Unpin>(io: &mut S) -> Result<Message> {
    let mut head = [0; 2];
    match io.read_exact(&mut head).await {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(Message::End),
        Err(error) => return Err(error.into()),
    }
    let [first, second] = head;
    let length = match second & 0x7f {
        127 => bail!("test messages are below 64 KiB"),
        126 => {
            let mut length = [0; 2];
            io.read_exact(&mut length).await?;
            usize::from(u16::from_be_bytes(length))
        }
        length => usize::from(length),
    };
    let mut mask = [0; 4];
    if second & 0x80 != 0 {
        io.read_exact(&mut mask).await?;
    }
    let mut payload = vec![0; length];
    io.read_exact(&mut payload).await?;
    if mask != [0; 4] {
        for (byte, mask) in payload.iter_mut().zip(mask.iter().cycle()) {
            *byte ^= mask;
        }
    }
    match first & 0x0f {
        1 => Ok(Message::Text(String::from_utf8(payload)?)),
        8 => Ok(Message::Close(payload.first_chunk().map(|code| u16::from_be_bytes(*code)))),
        other => bail!("a frame of kind {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_accept_value_is_the_rfcs_own_example() {
        assert_eq!(accept("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}
